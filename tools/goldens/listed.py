"""What the golden scripts of the families share: a toy as a list of GGUF metadata and tensors, and what transformers computed with it.

A fixture (tests/fixtures/families/NAME.json) holds everything that an independent implementation needs: the metadata and the tensors
that a converter would have written (names, shapes, roles; the values follow from the seed by the hash of glm_dsa_goldens.py), the
tokens, the logits of every position, the experts of every MoE layer (best first) with their weights, and the smallest margins of all
choices. tests/toy/src/listed.rs writes the GGUF, crates/engine/tests/families.rs compares.

A family's script makes one `Toy` per configuration, asks it for every tensor by its GGUF name and shape (`t`), turns those into the
state dict of the Hugging Face model (undoing what a converter does), and hands both to `record`.
"""

import argparse
import json
import pathlib
import re
import sys

import numpy as np
import torch
import transformers

from glm_dsa_goldens import GAMMA, MARGIN, U64, fnv1a64, hexed, mix64, tensor, tokens_of

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "families"
ROLES = {"ffn_gate_exps": "gate", "ffn_up_exps": "up", "ffn_down_exps": "down", "ffn_gate_up_exps": "gate_up"}
# Matrices that converters leave in f32.
EXACT = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "ssm_conv1d.weight")


class Toy:
    """One toy: metadata and tensors in file order."""

    def __init__(self, name, arch, seed, vocab_size, top_k):
        self.name, self.arch, self.seed, self.vocab_size, self.top_k = name, arch, seed, vocab_size, top_k
        self.metadata, self.tensors, self.held = [], [], {}
        self.general("general.architecture", arch)
        self.general("general.type", "model")
        self.general("general.name", "Toy")
        self.general("general.quantization_version", 2)
        self.general("tokenizer.ggml.model", "no_vocab")
        self.kv("vocab_size", vocab_size)

    def general(self, key, value, kind=None):
        """A metadata value under its full name. Python's own type says which GGUF type, unless `kind` does (u32, i32, f32, bool, str; +s)."""
        one = value[0] if isinstance(value, (list, tuple)) else value
        guess = "bool" if isinstance(one, bool) else "u32" if isinstance(one, int) else "f32" if isinstance(one, float) else "str"
        kind = kind or guess + "s" * isinstance(value, (list, tuple))
        self.metadata.append([key, {kind: list(value) if isinstance(value, tuple) else value}])

    def kv(self, key, value, kind=None):
        """The same, under the architecture's prefix."""
        self.general(f"{self.arch}.{key}", value, kind)

    def t(self, name, *shape, role=None, span=None, values=None):
        """The tensor `name` of the file: `shape` in GGUF order, the array's numpy shape is reversed. `span` = (middle, half width)
        where the values are not to lie as the name says; a few `values` can be given as they are. Asking again gives the same."""
        if name in self.held:
            return self.held[name]
        part = name.split(".")[-2] if name.endswith((".weight", ".bias", ".scale")) else name
        matrix = len(shape) > 1 and name.endswith(".weight") and not name.endswith(EXACT)
        entry = {"name": name, "shape": list(shape), "role": role or ROLES.get(part if name.endswith(".weight") else "", "dense" if matrix else "exact")}
        if values is not None:
            values = np.array(values, np.float32).reshape(shape[::-1])
            entry["values"] = values.ravel().tolist()
        elif span is None:
            values = tensor(self.seed, name, *shape)
        else:
            entry["range"] = [float(np.float32(x)) for x in span]
            values = spread(self.seed, name, *span, *shape)
        self.tensors.append(entry)
        self.held[name] = values
        return values


def spread(seed, name, middle, half_width, *shape):
    """As `tensor`, over another range."""
    with np.errstate(over="ignore"):
        base = mix64(np.array([seed], U64)) ^ fnv1a64(name)
        z = mix64(base + (np.arange(int(np.prod(shape)), dtype=U64) + U64(1)) * GAMMA)
    u = ((z >> U64(40)).astype(np.int64) - 2**23).astype(np.float32) / np.float32(2**23)
    return (np.float32(middle) + np.float32(half_width) * u).reshape(shape[::-1])


def load(model, state):
    """Fills the model, eagerly in f32, and makes sure that it holds what it was given."""
    state = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in state.items()}
    model.load_state_dict(state, strict=True)
    for name, value in model.state_dict().items():
        if not torch.equal(value, state[name].reshape(value.shape)):
            sys.exit(f"{name} did not survive loading")
    if model.config._attn_implementation != "eager" or model.dtype != torch.float32:
        sys.exit("the reference must run eagerly in float32")
    return model


class Watch:
    """What every MoE layer chose and by how much, checked against the router's definition.

    `layers`: {layer: (gate module, experts module)}. `decide(layer, gate, x)` gives the scores that decide, in f64, from the gate's
    input `x` [tokens, hidden]; minus infinity where a group is closed. `chosen(args)` takes (ids, weights) from the experts' arguments.
    """

    def __init__(self, layers, decide, chosen=lambda args: args[1:3]):
        self.decide, self.chosen = decide, chosen
        self.margin = {"router": np.inf, "order": np.inf}
        self.inputs = {}
        self.clear()
        for i, (gate, experts) in layers.items():
            gate.register_forward_pre_hook(self.seen(i, gate), with_kwargs=True)
            experts.register_forward_pre_hook(self.hook(i, gate), with_kwargs=True)

    def clear(self):
        self.experts, self.weights = {}, {}

    def seen(self, i, gate):
        def hook(module, args, kwargs):
            x = (*args, *kwargs.values())[0]
            self.inputs[i] = x.reshape(-1, x.shape[-1])
        return hook

    def hook(self, i, gate):
        def hook(module, args, kwargs):
            ids, weights = self.chosen((*args, *kwargs.values()))
            ranked = self.decide(i, gate, self.inputs[i]).sort(dim=-1, descending=True, stable=True)
            k = ids.shape[-1]
            gaps = ranked.values[:, :k] - ranked.values[:, 1 : k + 1]
            self.margin["router"] = min(self.margin["router"], float(gaps[:, -1].min()))
            if k > 1:
                self.margin["order"] = min(self.margin["order"], float(gaps[:, :-1].min()))
            if weights.shape[-1] != k:
                weights = weights.gather(-1, ids)  # given for all experts
            for row, best, weight in zip(ids.tolist(), ranked.indices[:, :k].tolist(), weights.tolist()):
                if sorted(row) != sorted(best):
                    sys.exit(f"layer {i}: transformers chose {row}, the router's definition {best}")
                self.experts.setdefault(i, []).append(best)
                self.weights.setdefault(i, []).append([weight[row.index(e)] for e in best])
        return hook


def cached(model, ids, chunks):
    """Logits of every position when `ids` arrive in `chunks`, through the reference's own cache."""
    cache, out, at = None, [], 0
    for n in chunks:
        step = model(input_ids=ids[:, at : at + n], past_key_values=cache, use_cache=True)
        cache, at = step.past_key_values, at + n
        out.append(step.logits[0])
    return torch.cat(out)


@torch.no_grad()
def record(toy, model, watch, n, origin, chunkings=None):
    """The fixture, or None where a margin is too small: `n` tokens at once, compared with transformers' own ways of decoding
    (`chunkings`: lists of call lengths; the default has chunks and single tokens)."""
    ids = torch.tensor([tokens_of(toy.name, n, toy.vocab_size)])
    logits = model(input_ids=ids, use_cache=False).logits[0]
    margin = {key: value for key, value in watch.margin.items() if np.isfinite(value)}
    if min(margin.values()) <= MARGIN:
        print(f"{toy.name}: seed {toy.seed} has a margin below {MARGIN}: {margin}", file=sys.stderr)
        return None
    experts, weights, drift = watch.experts, watch.weights, 0.0
    for chunks in chunkings or ([24, n - 24], [n - 24] + [1] * 24, [7] * (n // 7) + [n % 7] * (n % 7 > 0)):
        watch.clear()
        drift = max(drift, float((cached(model, ids, chunks) - logits).abs().max()))
        if watch.experts != experts:
            sys.exit(f"{toy.name}: transformers chooses differently when it decodes in chunks {chunks}")
    scale = float(logits.abs().max())
    if drift > 1e-5 * scale:
        sys.exit(f"{toy.name}: transformers disagrees with itself by {drift} of {scale}")
    return {
        "origin": f"{origin}, transformers {transformers.__version__} {type(model).__name__}, torch "
                  f"{torch.__version__.split('+')[0]}, float32, eager, CPU",
        "name": toy.name, "seed": toy.seed, "metadata": toy.metadata, "tensors": toy.tensors, "tokens": ids[0].tolist(),
        "margins": margin, "self_difference": drift, "max_abs_logit": scale, "vocab_size": toy.vocab_size, "top_k": toy.top_k,
        # [token][vocab], little-endian f32 in hexadecimal
        "logits": hexed(logits.numpy()),
        "experts": {str(i): rows for i, rows in experts.items()},
        "expert_weights": {str(i): hexed(rows) for i, rows in weights.items()},
    }


def write(fixture, folder=OUT):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{fixture['name']}.json"
    text = json.dumps(fixture, separators=(",", ":")).replace('},{"name"', '},\n{"name"').replace('],["', '],\n["')
    path.write_text(re.sub(r',"(seed|metadata|tensors|tokens|margins|logits|experts|expert_weights)":', r',\n"\1":', text) + "\n")
    print(f"{fixture['name']}: seed {fixture['seed']}, max |logit| {fixture['max_abs_logit']:.3f}, self difference "
          f"{fixture['self_difference']:.1e}, margins {fixture['margins']}, {path.stat().st_size // 1024} KiB")


def main(description, configs, make):
    """The command line of a family: `make(name, seed, config)` gives a fixture, or None where the seed will not do. The first seed
    from 1 on that will is taken."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(configs), help="some configurations only")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)  # one summation order
    for name in options.names:
        fixtures = (make(name, seed, configs[name]) for seed in range(1, 200))
        fixture = next((fixture for fixture in fixtures if fixture is not None), None)
        if fixture is None:
            sys.exit(f"{name}: no seed has margins above {MARGIN}")
        write(fixture, options.out)
