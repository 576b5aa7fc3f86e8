#!/usr/bin/env python3
"""Golden numbers of the `glm-dsa` architecture, from Hugging Face transformers in float32.

What it makes: one JSON file per toy configuration in tests/fixtures/glm_dsa/, with everything that an independent
implementation needs to be compared position by position: the configuration, the tokens, the logits of every position,
the positions that each full layer selected, the experts that each MoE layer chose (router order) with their weights,
residual norms after every layer, and the smallest margins of all discrete choices. No weights: they follow from the
seed by a hash (below), which the Rust crate tests/toy repeats.

Run:  pip install torch==2.15.0 transformers==5.23.0 numpy
      python tools/goldens/glm_dsa_goldens.py               # all configurations, about a minute on two cores
      python tools/goldens/glm_dsa_goldens.py share yarn    # some of them
      python tools/goldens/glm_dsa_goldens.py --search      # try seeds upwards until every margin is wide enough

The reference must be transformers >= 5.23: for some weeks in mid-2026 its GLM indexer had half-split rope by mistake.
This script does not trust it blindly: it recomputes the index scores with interleaved rope and stops if the selection
that transformers returns is not the one those scores imply; and it stops if decoding with the cache, in chunks or token
by token, does not reproduce the full forward.

Weights.  Names and element order are GGUF's (first dimension contiguous). Element i of tensor NAME is
      z = mix64((mix64(SEED) ^ fnv1a64(NAME)) + (i + 1) * 0x9E3779B97F4A7C15)      all modulo 2^64
      u = (z >> 40) / 2^23 - 1                                                   a 24-bit number in [-1, 1), exact in f32
where mix64 is splitmix64's finaliser; then, in float32,
      *norm.weight                      1 + 0.25 u
      *.bias of an indexer's k_norm     0.25 u
      exp_probs_b.bias                  0.125 u
      everything else                   0.1875 u
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import torch
import transformers
from transformers import DynamicCache, GlmMoeDsaConfig, GlmMoeDsaForCausalLM

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "glm_dsa"
# Below this an f32 implementation with another summation order may choose differently and be just as right.
MARGIN = 1e-5

PLAIN = {"rope_type": "default", "rope_theta": 8e6}

# name -> (seed, tokens, GlmMoeDsaConfig fields). `indexer_types` is written as a pattern; None leaves the choice of full
# and shared layers to the reader's default rule (by context length), and `resolved` is what that rule gives.
CONFIGS = {
    # The structure of GLM-5.2 in small: the shared run follows full layer 2, so a reader that reuses layer 0's selection
    # is caught; the dense/MoE boundary lies inside the leading full run.
    "share": (1, 64, dict(
        vocab_size=96, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=7,
        first_k_dense_replace=2, num_attention_heads=4, q_lora_rank=64, kv_lora_rank=64, qk_nope_head_dim=32,
        qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=1,
        routed_scaling_factor=2.5, norm_topk_prob=True, n_group=1, topk_group=1, index_topk=16, index_n_heads=16,
        index_head_dim=32, max_position_embeddings=4096, rope_parameters=PLAIN, pattern="FFFSSSF")),
    # Every layer full without saying so (GLM-5, 5.1), group-limited routing, heads that are no power of two.
    "groups": (1, 72, dict(
        vocab_size=64, hidden_size=96, intermediate_size=128, moe_intermediate_size=64, num_hidden_layers=4,
        first_k_dense_replace=1, num_attention_heads=6, q_lora_rank=96, kv_lora_rank=32, qk_nope_head_dim=64,
        qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=16, num_experts_per_tok=3, n_shared_experts=1,
        routed_scaling_factor=1.5, norm_topk_prob=True, n_group=4, topk_group=2, index_topk=16, index_n_heads=16,
        index_head_dim=64, max_position_embeddings=2048, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        pattern=None, resolved="FFFF")),
    # YaRN with both ends of the ramp inside the rotary dimensions, the softmax scale multiplied by mscale squared, and
    # router weights that are not normalised. Layer 0 is the only dense one.
    "yarn": (1, 80, dict(
        vocab_size=96, hidden_size=64, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=6,
        first_k_dense_replace=1, num_attention_heads=3, q_lora_rank=32, kv_lora_rank=64, qk_nope_head_dim=32,
        qk_rope_head_dim=32, v_head_dim=64, n_routed_experts=12, num_experts_per_tok=4, n_shared_experts=1,
        routed_scaling_factor=1.0, norm_topk_prob=False, n_group=1, topk_group=1, index_topk=16, index_n_heads=32,
        index_head_dim=64, max_position_embeddings=16384, rope_parameters={
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 4096,
            "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}, pattern="FSSSFS")),
    # A million positions of context and no schedule in the file: the fixed GLM-5.2 table applies. Index dimension equal
    # to the rope dimension (nothing passes unrotated), two shared experts, another YaRN-free theta.
    "million": (2, 64, dict(
        vocab_size=64, hidden_size=96, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=8,
        first_k_dense_replace=2, num_attention_heads=2, q_lora_rank=64, kv_lora_rank=96, qk_nope_head_dim=64,
        qk_rope_head_dim=32, v_head_dim=96, n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=2,
        routed_scaling_factor=2.5, norm_topk_prob=True, n_group=1, topk_group=1, index_topk=24, index_n_heads=16,
        index_head_dim=32, max_position_embeddings=1048576, rope_parameters=PLAIN, pattern=None, resolved="FFFSSSFS")),
    # Alternating full and shared layers, YaRN with other betas and mscale, groups and unnormalised weights together,
    # 96 tokens against 12 selected positions.
    "mixed": (1, 96, dict(
        vocab_size=128, hidden_size=128, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=5,
        first_k_dense_replace=1, num_attention_heads=8, q_lora_rank=64, kv_lora_rank=32, qk_nope_head_dim=32,
        qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=24, num_experts_per_tok=6, n_shared_experts=1,
        routed_scaling_factor=1.8, norm_topk_prob=False, n_group=4, topk_group=2, index_topk=12, index_n_heads=20,
        index_head_dim=16, max_position_embeddings=8192, rope_parameters={
            "rope_type": "yarn", "rope_theta": 50000.0, "factor": 8.0, "original_max_position_embeddings": 1024,
            "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.75, "mscale_all_dim": 0.75}, pattern="FSFSF")),
}

KEYS_OF_ALL = dict(rms_norm_eps=1e-5, pad_token_id=None, bos_token_id=None, eos_token_id=None)


# --- weights ------------------------------------------------------------------------------------------------------------

U64 = np.uint64
M1, M2, GAMMA = U64(0xBF58476D1CE4E5B9), U64(0x94D049BB133111EB), U64(0x9E3779B97F4A7C15)


def mix64(z):
    z = (z ^ (z >> U64(30))) * M1
    z = (z ^ (z >> U64(27))) * M2
    return z ^ (z >> U64(31))


def fnv1a64(text):
    h = 0xCBF29CE484222325
    for b in text.encode():
        h = ((h ^ b) * 0x100000001B3) % 2**64
    return U64(h)


def tensor(seed, name, *shape):
    """The tensor NAME; `shape` in GGUF order, the array has the same memory order (so its numpy shape is reversed)."""
    with np.errstate(over="ignore"):
        n = int(np.prod(shape))
        base = mix64(np.array([seed], U64)) ^ fnv1a64(name)
        z = mix64(base + (np.arange(n, dtype=U64) + U64(1)) * GAMMA)
    u = ((z >> U64(40)).astype(np.int64) - 2**23).astype(np.float32) / np.float32(2**23)
    if name.endswith("norm.weight"):
        u = np.float32(1) + np.float32(0.25) * u
    elif name.endswith("k_norm.bias"):
        u = np.float32(0.25) * u
    elif name.endswith("exp_probs_b.bias"):
        u = np.float32(0.125) * u
    else:
        u = np.float32(0.1875) * u
    return u.reshape(shape[::-1])


def hf_state(c, seed):
    """HF state dict of configuration `c`: the one place where GGUF names and orientations become HF's."""
    D, H, L = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
    N, R, V, Q = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"], c["q_lora_rank"]
    E, F = c["n_routed_experts"], c["moe_intermediate_size"]
    t = lambda name, *shape: tensor(seed, name, *shape)
    w = {"model.embed_tokens.weight": t("token_embd.weight", D, c["vocab_size"]),
         "model.norm.weight": t("output_norm.weight", D),
         "lm_head.weight": t("output.weight", D, c["vocab_size"])}
    for i in range(c["num_hidden_layers"]):
        b, h = f"blk.{i}.", f"model.layers.{i}."
        a = h + "self_attn."
        w[h + "input_layernorm.weight"] = t(b + "attn_norm.weight", D)
        w[h + "post_attention_layernorm.weight"] = t(b + "ffn_norm.weight", D)
        w[a + "q_a_proj.weight"] = t(b + "attn_q_a.weight", D, Q)
        w[a + "q_a_layernorm.weight"] = t(b + "attn_q_a_norm.weight", Q)
        w[a + "q_b_proj.weight"] = t(b + "attn_q_b.weight", Q, H * (N + R))
        w[a + "kv_a_proj_with_mqa.weight"] = t(b + "attn_kv_a_mqa.weight", D, L + R)
        w[a + "kv_a_layernorm.weight"] = t(b + "attn_kv_a_norm.weight", L)
        # GGUF splits kv_b_proj by head into the key part, transposed, and the value part.
        k_b, v_b = t(b + "attn_k_b.weight", N, L, H), t(b + "attn_v_b.weight", L, V, H)
        w[a + "kv_b_proj.weight"] = np.concatenate([k_b.transpose(0, 2, 1), v_b], 1).reshape(H * (N + V), L)
        w[a + "o_proj.weight"] = t(b + "attn_output.weight", H * V, D)
        if c["indexer_types"][i] == "full":
            x = a + "indexer."
            w[x + "wq_b.weight"] = t(b + "indexer.attn_q_b.weight", Q, c["index_n_heads"] * c["index_head_dim"])
            w[x + "wk.weight"] = t(b + "indexer.attn_k.weight", D, c["index_head_dim"])
            w[x + "k_norm.weight"] = t(b + "indexer.k_norm.weight", c["index_head_dim"])
            w[x + "k_norm.bias"] = t(b + "indexer.k_norm.bias", c["index_head_dim"])
            w[x + "weights_proj.weight"] = t(b + "indexer.proj.weight", D, c["index_n_heads"])
        m = h + "mlp."
        if i < c["first_k_dense_replace"]:
            I = c["intermediate_size"]
            w[m + "gate_proj.weight"] = t(b + "ffn_gate.weight", D, I)
            w[m + "up_proj.weight"] = t(b + "ffn_up.weight", D, I)
            w[m + "down_proj.weight"] = t(b + "ffn_down.weight", I, D)
            continue
        w[m + "gate.weight"] = t(b + "ffn_gate_inp.weight", D, E)
        w[m + "gate.e_score_correction_bias"] = t(b + "exp_probs_b.bias", E)
        # transformers packs gate rows, then up rows, of each expert into one tensor.
        gate, up = t(b + "ffn_gate_exps.weight", D, F, E), t(b + "ffn_up_exps.weight", D, F, E)
        w[m + "experts.gate_up_proj"] = np.concatenate([gate, up], 1)
        w[m + "experts.down_proj"] = t(b + "ffn_down_exps.weight", F, D, E)
        S = F * c["n_shared_experts"]
        w[m + "shared_experts.gate_proj.weight"] = t(b + "ffn_gate_shexp.weight", D, S)
        w[m + "shared_experts.up_proj.weight"] = t(b + "ffn_up_shexp.weight", D, S)
        w[m + "shared_experts.down_proj.weight"] = t(b + "ffn_down_shexp.weight", S, D)
    return w


def tokens_of(name, n, vocab):
    """`n` token ids, from the same hash; not all distinct, as in real text."""
    with np.errstate(over="ignore"):
        z = mix64(fnv1a64("tokens." + name) + (np.arange(n, dtype=U64) + U64(1)) * GAMMA)
    return ((z >> U64(40)) % U64(vocab)).astype(np.int64).tolist()


# --- the reference model, watched -----------------------------------------------------------------------------------------

class Watch:
    """Hooks on every indexer and router of a model: what they chose and by how much."""

    def __init__(self, model, config):
        self.config, self.sel, self.experts, self.weights = config, {}, {}, {}
        self.margin = {"selection": np.inf, "router": np.inf, "group": np.inf, "order": np.inf}
        for i, layer in enumerate(model.model.layers):
            if layer.self_attn.indexer is not None:
                layer.self_attn.indexer.register_forward_hook(self.indexer_hook(i), with_kwargs=True)
            if hasattr(layer.mlp, "gate") and hasattr(layer.mlp, "experts"):
                layer.mlp.gate.register_forward_hook(self.router_hook(i))

    def clear(self):
        self.sel, self.experts, self.weights = {}, {}, {}

    def indexer_hook(self, i):
        def hook(module, args, kwargs, out):
            names = ["hidden_states", "q_resid", "position_embeddings", "attention_mask", "position_ids"]
            a = {**dict(zip(names, args)), **kwargs}
            rows = [sorted(j for j in row if j <= t) for row, t in zip(out[0].tolist(), a["position_ids"][0].tolist())]
            self.sel.setdefault(i, []).extend(rows)
            if a["hidden_states"].shape[1] == a["attention_mask"].shape[-1]:  # the whole sequence in one pass
                self.check_selection(module, a, rows)
        return hook

    def check_selection(self, module, a, rows):
        """Index scores from their definition, in f64; the reference's selection must be theirs."""
        x, qr = a["hidden_states"][0].double(), a["q_resid"][0].double()
        n, D, R = module.n_heads, module.head_dim, module.qk_rope_head_dim
        cos, sin = (p[0, :, : R // 2].double() for p in a["position_embeddings"])

        def rope(v, c, s):  # interleaved pairs of the first R values
            even, odd = v[..., 0:R:2], v[..., 1:R:2]
            pairs = torch.stack([even * c - odd * s, odd * c + even * s], -1).flatten(-2)
            return torch.cat([pairs, v[..., R:]], -1)

        q = rope((qr @ module.wq_b.weight.double().T).view(-1, n, D), cos[:, None], sin[:, None])
        k = x @ module.wk.weight.double().T
        k = (k - k.mean(-1, keepdim=True)) / torch.sqrt(k.var(-1, unbiased=False, keepdim=True) + 1e-6)
        k = rope(k * module.k_norm.weight.double() + module.k_norm.bias.double(), cos, sin)
        w = x @ module.weights_proj.weight.double().T * n**-0.5
        score = torch.einsum("th,ths->ts", w, torch.relu(torch.einsum("thd,sd->ths", q, k) * D**-0.5))
        for t, row in enumerate(rows):
            k_eff = min(module.index_topk, t + 1)
            values, order = torch.sort(score[t, : t + 1], descending=True, stable=True)
            if sorted(order[:k_eff].tolist()) != row:
                sys.exit(f"layer {module.layer_idx}, token {t}: transformers selected {row}, scores imply another set")
            if k_eff < t + 1:
                self.margin["selection"] = min(self.margin["selection"], float(values[k_eff - 1] - values[k_eff]))

    def router_hook(self, i):
        def hook(module, args, out):
            logits, weights, ids = out
            prob = torch.sigmoid(logits)
            choice = prob + module.e_score_correction_bias
            if module.num_group > 1:
                g = choice.view(len(choice), module.num_group, -1)
                sums = g.topk(2, -1).values.sum(-1).sort(dim=-1, descending=True)
                kept = torch.zeros_like(sums.values, dtype=torch.bool)
                kept.scatter_(1, sums.indices[:, : module.topk_group], True)
                choice = g.masked_fill(~kept[..., None], -torch.inf).view(len(choice), -1)
                gap = sums.values[:, module.topk_group - 1] - sums.values[:, module.topk_group]
                self.margin["group"] = min(self.margin["group"], float(gap.min()))
            ranked = choice.sort(dim=-1, descending=True, stable=True)
            k = module.top_k
            gaps = ranked.values[:, :k] - ranked.values[:, 1 : k + 1]
            self.margin["router"] = min(self.margin["router"], float(gaps[:, -1].min()))
            self.margin["order"] = min(self.margin["order"], float(gaps[:, :-1].min()))
            # transformers leaves its ids unsorted; router order is by choice, best first.
            for row, best, weight in zip(ids.tolist(), ranked.indices[:, :k].tolist(), weights.tolist()):
                if sorted(row) != sorted(best):
                    sys.exit(f"layer {i}: transformers chose {row}, probabilities imply {best}")
                self.experts.setdefault(i, []).append(best)
                self.weights.setdefault(i, []).append([weight[row.index(e)] for e in best])
        return hook


def build(c, seed):
    torch.manual_seed(0)
    fields = {k: v for k, v in c.items() if k not in ("pattern", "resolved", "indexer_types")}
    config = GlmMoeDsaConfig(**fields, **KEYS_OF_ALL, indexer_types=c["indexer_types"], num_key_value_heads=c["num_attention_heads"])
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = GlmMoeDsaForCausalLM(config).float().eval()
    state = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in hf_state(c, seed).items()}
    model.load_state_dict(state, strict=True)
    for name, value in model.state_dict().items():
        if not torch.equal(value, state[name]):
            sys.exit(f"{name} did not survive loading")
    if config._attn_implementation != "eager" or model.dtype != torch.float32:
        sys.exit("the reference must run eagerly in float32")
    return model, config


def cached(model, ids, chunks):
    """Logits of every position when `ids` arrive in `chunks`, through the reference's own cache."""
    cache, out, at = DynamicCache(config=model.config), [], 0
    for n in chunks:
        out.append(model(ids[:, at : at + n], past_key_values=cache, use_cache=True).logits[0])
        at += n
    return torch.cat(out)


def hexed(array):
    return np.ascontiguousarray(array, "<f4").tobytes().hex()


@torch.no_grad()
def make(name, search):
    seed, n, c = CONFIGS[name]
    types = c["pattern"] or c["resolved"]
    c = {**c, "indexer_types": [{"F": "full", "S": "shared"}[x] for x in types]}
    ids = torch.tensor([tokens_of(name, n, c["vocab_size"])])
    while True:
        model, config = build(c, seed)
        watch = Watch(model, config)
        full = model(ids, output_hidden_states=True, use_cache=False)
        margin = {k: v for k, v in watch.margin.items() if np.isfinite(v)}
        if min(margin.values()) > MARGIN:
            break
        if not search:
            sys.exit(f"{name}: seed {seed} has a margin below {MARGIN}: {margin}; run with --search")
        seed += 1
    selected, experts, weights = watch.sel, watch.experts, watch.weights
    logits = full.logits[0]
    drift = 0.0
    for chunks in ([24, n - 24], [n - 24] + [1] * 24, [7] * (n // 7) + [n % 7] * (n % 7 > 0)):
        watch.clear()
        drift = max(drift, float((cached(model, ids, chunks) - logits).abs().max()))
        if watch.sel != selected or watch.experts != experts:
            sys.exit(f"{name}: transformers chooses differently when it decodes in chunks {chunks}")
    scale = float(logits.abs().max())
    if drift > 1e-5 * scale:
        sys.exit(f"{name}: transformers disagrees with itself by {drift} of {scale}")
    norms = [h[0].double().norm(dim=-1).float().numpy() for h in full.hidden_states]
    top = c["index_topk"]
    record = {
        "origin": f"tools/goldens/glm_dsa_goldens.py, transformers {transformers.__version__}, torch "
                  f"{torch.__version__.split('+')[0]}, float32, eager, CPU",
        "name": name, "seed": seed, "latent_eps": 1e-6,
        "schedule_in_file": c["pattern"] is not None,
        "config": {**{k: v for k, v in c.items() if k not in ("pattern", "resolved")}, "rms_norm_eps": 1e-5},
        "tokens": ids[0].tolist(),
        "margins": margin, "self_difference": drift, "max_abs_logit": scale,
        # [token][vocab], little-endian f32 in hexadecimal
        "logits": hexed(logits.numpy()),
        # residual norms [0 = embedding, i = after layer i; the last one after the final norm][token], same encoding
        "hidden_norms": hexed(np.stack(norms)),
        # layer -> first token with a choice -> ascending positions; earlier tokens see everything
        "selections": {str(i): rows[top:] for i, rows in selected.items()},
        "experts": {str(i): rows for i, rows in experts.items()},
        "expert_weights": {str(i): hexed(rows) for i, rows in weights.items()},
    }
    if any(row != list(range(t + 1)) for rows in selected.values() for t, row in enumerate(rows[:top])):
        sys.exit(f"{name}: a token within index_topk does not see everything")
    return record


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(CONFIGS))
    parser.add_argument("--search", action="store_true", help="try the following seeds when margins are too small")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)  # one summation order
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        record = make(name, args.search)
        path = args.out / f"{name}.json"
        path.write_text(json.dumps(record, separators=(",", ":")).replace(',"', ',\n"') + "\n")
        print(f"{name}: seed {record['seed']}, max |logit| {record['max_abs_logit']:.3f}, self difference "
              f"{record['self_difference']:.1e}, margins {record['margins']}, {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
