#!/usr/bin/env python3
"""How a synthetic model routes: measured twice, by slotbank's trace and by llama.cpp, and compared.

Three questions, all on one token stream (the walk that `slotbank bench make-model --stream` writes):

* hit curve: what share of expert requests a global LRU bank of 10, 25, 50, 75 % of all experts serves, over the decode
  tokens of a trace that `slotbank run --trace` wrote;
* foresight: which share of a layer's true experts the layer's own router names when it is given the normed input of the
  router one layer earlier;
* agreement: whether slotbank and llama.cpp choose the same experts and give the same logits.

Hidden states come from llama.cpp (its evaluation callback), router weights from the file by gguf-py: no code of
slotbank takes part in the second question. Needs numpy, gguf and llama-cpp-python.
"""

import argparse
import ctypes
import datetime
import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np

from resident_vs_floor import commit, machine

SHARES = (0.10, 0.25, 0.50, 0.75)


def read_trace(path):
    """{layer: [tokens, k]}, in token order."""
    layers = {}
    with open(path) as lines:
        for line in lines:
            call = json.loads(line)
            ids = np.array(call["experts"]).reshape(call["n_tokens"], call["n_expert_used"])
            layers.setdefault(call["layer"], []).append(ids)
    return {layer: np.concatenate(calls) for layer, calls in sorted(layers.items())}


def lru_hit_rate(routing, n_experts, share, warm_tokens):
    """Requests of tokens after the warm-up that a global LRU of `share` of all experts serves."""
    layers = sorted(routing)
    capacity = int(share * n_experts * len(layers))
    resident = OrderedDict()
    hits = requests = 0
    for t in range(len(routing[layers[0]])):
        counted = t >= warm_tokens
        for layer in layers:
            for expert in routing[layer][t]:
                key = (layer, int(expert))
                hit = key in resident
                if hit:
                    resident.move_to_end(key)
                else:
                    if len(resident) >= capacity:
                        resident.popitem(last=False)
                    resident[key] = True
                hits += hit and counted
                requests += counted
    return hits / requests


def routers(path):
    """{layer: (weights [experts, channels], bias [experts])}, top-k, number of experts, and from what the file was made."""
    import gguf

    reader = gguf.GGUFReader(path)
    top_k = int(reader.fields["glm-dsa.expert_used_count"].contents())
    n_experts = int(reader.fields["glm-dsa.expert_count"].contents())
    made = {k.rsplit(".", 1)[1]: f.contents() for k, f in reader.fields.items() if k.startswith("slotbank.synthetic.")}
    made["layers"] = int(reader.fields["glm-dsa.block_count"].contents())
    made["experts_format"] = {}
    tensors = {t.name: t for t in reader.tensors}
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(".ffn_gate_inp.weight"):
            layer = int(name.split(".")[1])
            weights = np.array(tensor.data, dtype=np.float32).reshape(n_experts, -1)
            bias = np.array(tensors[f"blk.{layer}.exp_probs_b.bias"].data, dtype=np.float32)
            found[layer] = (weights, bias)
            for family in ("gate", "up", "down"):
                ty = tensors[f"blk.{layer}.ffn_{family}_exps.weight"].tensor_type
                made["experts_format"][family] = ty.name
    return dict(sorted(found.items())), top_k, n_experts, made


def choose(hidden, router, top_k):
    """[tokens, k]: the experts that a sigmoid router with this bias takes, best first."""
    weights, bias = router
    choice = 1.0 / (1.0 + np.exp(-(hidden @ weights.T))) + bias
    return np.argsort(-choice, axis=1, kind="stable")[:, :top_k]


def overlap(a, b):
    """Mean share of the ids of each row of `a` that are in the same row of `b`."""
    return float(np.mean([len(set(x) & set(y)) / len(x) for x, y in zip(a, b)]))


def run_llama(path, tokens, threads, batch):
    """Normed router inputs {layer: [tokens, channels]} and logits [tokens, vocab] of llama.cpp, f32 cache."""
    import llama_cpp
    from llama_cpp import llama_cpp as api

    folder = Path(llama_cpp.__file__).parent / "lib"
    base = ctypes.CDLL(str(next(folder.glob("libggml-base.so*"))))
    base.ggml_get_name.restype = ctypes.c_char_p
    base.ggml_get_name.argtypes = [ctypes.c_void_p]
    base.ggml_nbytes.restype = ctypes.c_size_t
    base.ggml_nbytes.argtypes = [ctypes.c_void_p]
    base.ggml_backend_tensor_get.restype = None
    base.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    hidden = {}

    @ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
    def observe(tensor, ask, _):
        name = base.ggml_get_name(tensor)
        # Views of it are called `ffn_norm-3 (reshaped)`. To a question "no" means: go on without showing me this one.
        if not (name.startswith(b"ffn_norm-") and name[9:].isdigit()):
            return not ask
        if ask:
            return True
        data = np.empty(base.ggml_nbytes(tensor) // 4, dtype=np.float32)
        base.ggml_backend_tensor_get(tensor, data.ctypes.data, 0, data.nbytes)
        hidden.setdefault(int(name[9:]), []).append(data)
        return True

    api.llama_backend_init()
    mp = api.llama_model_default_params()
    mp.use_mmap = True
    model = api.llama_model_load_from_file(str(path).encode(), mp)
    if not model:
        sys.exit(f"llama.cpp does not load {path}")
    cp = api.llama_context_default_params()
    cp.n_ctx = len(tokens) + 8
    cp.n_batch = cp.n_ubatch = batch
    cp.n_threads = cp.n_threads_batch = threads
    cp.type_k = cp.type_v = 0  # f32
    cp.cb_eval = ctypes.cast(observe, type(cp.cb_eval))
    context = api.llama_init_from_model(model, cp)
    vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    logits = []
    for start in range(0, len(tokens), batch):
        part = tokens[start : start + batch]
        b = api.llama_batch_init(len(part), 0, 1)
        b.n_tokens = len(part)
        for i, token in enumerate(part):
            b.token[i], b.pos[i], b.n_seq_id[i], b.seq_id[i][0], b.logits[i] = token, start + i, 1, 0, 1
        if api.llama_decode(context, b) != 0:
            sys.exit("llama.cpp fails to decode")
        for i in range(len(part)):
            logits.append(np.ctypeslib.as_array(api.llama_get_logits_ith(context, i), shape=(vocab,)).copy())
        api.llama_batch_free(b)
    api.llama_free(context)
    api.llama_model_free(model)
    # The last layer may be computed for the wanted rows only; here all are wanted.
    n = len(tokens)
    stacked = {layer: np.concatenate(parts).reshape(n, -1) for layer, parts in hidden.items()}
    return stacked, np.array(logits)


def run_slotbank(binary, path, tokens, trace):
    """Logits [tokens, vocab], and the trace written to `trace`."""
    command = [binary, "logits", str(path), "--tokens", ",".join(map(str, tokens)), "--cache-type", "f32"]
    command += ["--latent-eps", "1e-5", "--trace", str(trace), "--quiet", "--ctx", str(len(tokens) + 8)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return np.array(json.loads(out)["logits"], dtype=np.float32)


def divergence(a, b):
    """KL(softmax(a) || softmax(b)) per row."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    log_p = a - a.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    log_q = b - b.max(1, keepdims=True)
    log_q -= np.log(np.exp(log_q).sum(1, keepdims=True))
    return (np.exp(log_p) * (log_p - log_q)).sum(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("stream", type=Path, help="what make-model --stream wrote")
    parser.add_argument("--tokens", type=int, default=320, help="tokens of the stream to run")
    parser.add_argument("--warm", type=int, default=64, help="of these, not counted in the hit curve")
    parser.add_argument("--trace", type=Path, help="trace of a `slotbank run`; its curve is measured instead of llama.cpp's")
    parser.add_argument("--slotbank", help="binary: compare its experts and logits with llama.cpp's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()

    tokens = json.loads(args.stream.read_text())["tokens"][: args.tokens]
    found, top_k, n_experts, made = routers(args.model)
    hidden, logits = run_llama(args.model, tokens, args.threads, args.batch)
    layers = list(found)
    chosen = {layer: choose(hidden[layer], found[layer], top_k) for layer in layers}
    early = {
        layer: overlap(chosen[layer], choose(hidden[layer - 1], found[layer], top_k))
        for layer in layers
        if layer - 1 in found
    }
    result = {
        "what": "routing of a synthetic model: hit rate of a global LRU bank, and experts foreseen one layer early",
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "options": made,
        "model": args.model.name,
        "tokens": len(tokens),
        "warm_tokens": args.warm,
        "n_experts": n_experts,
        "top_k": top_k,
        "routed_layers": len(layers),
        "foresight_recall": float(np.mean(list(early.values()))) if early else None,
        "foresight_recall_by_layer": early,
        "argmax_is_next_on_stream": float(np.mean(logits[:-1].argmax(1) == np.array(tokens[1:]))),
    }
    routing, source = chosen, "llama.cpp"
    if args.trace:
        routing, source = read_trace(args.trace), "slotbank trace"
        result["trace_tokens"] = len(next(iter(routing.values())))
    result["hit_curve_of"] = source
    result["lru_hit_rate"] = {f"{s:.2f}": lru_hit_rate(routing, n_experts, s, args.warm) for s in SHARES}
    result["token_to_token_overlap"] = float(np.mean([overlap(r[1:], r[:-1]) for r in routing.values()]))
    if args.slotbank:
        trace = args.model.with_suffix(".routing-trace.jsonl")
        ours = run_slotbank(args.slotbank, args.model, tokens, trace)
        kl = divergence(logits, ours)
        theirs = read_trace(trace)
        trace.unlink()
        result["agreement"] = {
            "same_experts": {layer: overlap(chosen[layer], theirs[layer]) for layer in layers},
            "same_top_token": float(np.mean(logits.argmax(1) == ours.argmax(1))),
            "kl_mean": float(kl.mean()),
            "kl_max": float(kl.max()),
            "logit_rms_difference": float(np.sqrt(np.mean((logits - ours) ** 2))),
            "logit_rms": float(np.sqrt(np.mean(logits**2))),
        }
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
