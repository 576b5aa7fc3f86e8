#!/usr/bin/env python3
"""Golden numbers of the `deepseek2` architecture, from Hugging Face transformers in float32.

What it makes: one JSON file per toy configuration in tests/fixtures/deepseek2/, in the form that glm_dsa_goldens.py
describes (logits of every position, experts and weights of every MoE layer, residual norms, margins of all discrete
choices), without selections: every position sees all before it. Weights and tokens follow from the seed by the same
hash, under the names that a GGUF file of this architecture has.

Run:  pip install torch==2.15.0 transformers==5.23.0 numpy
      python tools/goldens/deepseek2_goldens.py             # all configurations, under a minute on two cores
      python tools/goldens/deepseek2_goldens.py --search    # try seeds upwards until every margin is wide enough

It does not trust the reference blindly: it recomputes every choice of experts from the router's definition in f64 and
stops where transformers chose others; and it stops if decoding with the cache, in chunks or token by token, does not
reproduce the full forward.
"""

import argparse
import json
import math
import pathlib
import sys

import numpy as np
import torch
import transformers

from glm_dsa_goldens import MARGIN, cached, hexed, tensor, tokens_of

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "deepseek2"


def yarn(theta, factor, original, fast, slow, **mscale):
    return {"rope_type": "yarn", "rope_theta": theta, "factor": factor, "original_max_position_embeddings": original,
            "beta_fast": fast, "beta_slow": slow, **mscale}


# name -> (model class, seed, tokens, configuration). `q_lora_rank` 0 stands for none.
CONFIGS = {
    # DeepSeek-V3 in small: two dense layers, groups by their two best experts, YaRN with both ends of the ramp inside the
    # rotary dimensions and the softmax scale multiplied by mscale squared.
    "v3": ("DeepseekV3", 1, 72, dict(
        vocab_size=96, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=5,
        first_k_dense_replace=2, num_attention_heads=4, q_lora_rank=64, kv_lora_rank=64, qk_nope_head_dim=32,
        qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=16, num_experts_per_tok=4, n_shared_experts=1,
        routed_scaling_factor=2.5, norm_topk_prob=True, n_group=4, topk_group=2, scoring_func="sigmoid",
        max_position_embeddings=163840, rms_norm_eps=1e-6,
        rope_parameters=yarn(10000.0, 40.0, 4096, 32.0, 1.0, mscale=1.0, mscale_all_dim=1.0))),
    # Kimi K2's first releases: both betas 1, so that the ramp is one pair wide; one group, many experts, one dense layer.
    "kimi": ("DeepseekV3", 1, 80, dict(
        vocab_size=64, hidden_size=96, intermediate_size=128, moe_intermediate_size=32, num_hidden_layers=4,
        first_k_dense_replace=1, num_attention_heads=2, q_lora_rank=32, kv_lora_rank=96, qk_nope_head_dim=64,
        qk_rope_head_dim=32, v_head_dim=64, n_routed_experts=24, num_experts_per_tok=6, n_shared_experts=1,
        routed_scaling_factor=2.827, norm_topk_prob=True, n_group=1, topk_group=1, scoring_func="sigmoid",
        max_position_embeddings=131072, rms_norm_eps=1e-6,
        rope_parameters=yarn(50000.0, 32.0, 4096, 1.0, 1.0, mscale=1.0, mscale_all_dim=1.0))),
    # GLM-4.7-Flash: no YaRN, values as wide as keys, a number of heads that is no power of two, another epsilon.
    "flash": ("Glm4MoeLite", 1, 64, dict(
        vocab_size=96, hidden_size=64, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=4,
        first_k_dense_replace=1, num_attention_heads=5, q_lora_rank=32, kv_lora_rank=64, qk_nope_head_dim=48,
        qk_rope_head_dim=16, v_head_dim=64, n_routed_experts=12, num_experts_per_tok=4, n_shared_experts=1,
        routed_scaling_factor=1.8, norm_topk_prob=True, n_group=1, topk_group=1, scoring_func="sigmoid",
        max_position_embeddings=202752, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6})),
    # DeepSeek-V2: softmax, groups by their best expert, weights as they are times 16, two shared experts; YaRN without
    # mscales, so that cosines and sines take its factor, over an original context shorter than the input.
    "v2": ("DeepseekV2", 1, 64, dict(
        vocab_size=64, hidden_size=96, intermediate_size=128, moe_intermediate_size=32, num_hidden_layers=4,
        first_k_dense_replace=1, num_attention_heads=6, q_lora_rank=64, kv_lora_rank=32, qk_nope_head_dim=32,
        qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=16, num_experts_per_tok=3, n_shared_experts=2,
        routed_scaling_factor=16.0, norm_topk_prob=False, n_group=4, topk_group=2, scoring_func="softmax",
        max_position_embeddings=163840, rms_norm_eps=1e-6, rope_parameters=yarn(10000.0, 4.0, 32, 32.0, 1.0))),
    # DeepSeek-V2-Lite: queries straight from the input, mscale 0.707.
    "lite": ("DeepseekV2", 1, 64, dict(
        vocab_size=96, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=5,
        first_k_dense_replace=1, num_attention_heads=4, q_lora_rank=0, kv_lora_rank=64, qk_nope_head_dim=32,
        qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=12, num_experts_per_tok=3, n_shared_experts=2,
        routed_scaling_factor=1.0, norm_topk_prob=False, n_group=1, topk_group=1, scoring_func="softmax",
        max_position_embeddings=163840, rms_norm_eps=1e-6,
        rope_parameters=yarn(10000.0, 40.0, 4096, 32.0, 1.0, mscale=0.707, mscale_all_dim=0.707))),
}


def hf_state(c, seed):
    """HF state dict of configuration `c`: the one place where GGUF names and orientations become HF's."""
    D, H, L = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
    N, R, V, Q = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"], c["q_lora_rank"]
    E, F = c["n_routed_experts"], c["moe_intermediate_size"]
    t = lambda name, *shape: tensor(seed, name, *shape)
    w = {"model.embed_tokens.weight": t("token_embd.weight", D, c["vocab_size"]),
         "model.norm.weight": t("output_norm.weight", D),
         "lm_head.weight": t("output.weight", D, c["vocab_size"])}

    def swiglu(prefix, ours, width):
        w[prefix + "gate_proj.weight"] = t(ours.format("gate"), D, width)
        w[prefix + "up_proj.weight"] = t(ours.format("up"), D, width)
        w[prefix + "down_proj.weight"] = t(ours.format("down"), width, D)

    for i in range(c["num_hidden_layers"]):
        b, h = f"blk.{i}.", f"model.layers.{i}."
        a = h + "self_attn."
        w[h + "input_layernorm.weight"] = t(b + "attn_norm.weight", D)
        w[h + "post_attention_layernorm.weight"] = t(b + "ffn_norm.weight", D)
        if Q:
            w[a + "q_a_proj.weight"] = t(b + "attn_q_a.weight", D, Q)
            w[a + "q_a_layernorm.weight"] = t(b + "attn_q_a_norm.weight", Q)
            w[a + "q_b_proj.weight"] = t(b + "attn_q_b.weight", Q, H * (N + R))
        else:
            w[a + "q_proj.weight"] = t(b + "attn_q.weight", D, H * (N + R))
        w[a + "kv_a_proj_with_mqa.weight"] = t(b + "attn_kv_a_mqa.weight", D, L + R)
        w[a + "kv_a_layernorm.weight"] = t(b + "attn_kv_a_norm.weight", L)
        # GGUF splits kv_b_proj by head into the key part, transposed, and the value part.
        k_b, v_b = t(b + "attn_k_b.weight", N, L, H), t(b + "attn_v_b.weight", L, V, H)
        w[a + "kv_b_proj.weight"] = np.concatenate([k_b.transpose(0, 2, 1), v_b], 1).reshape(H * (N + V), L)
        w[a + "o_proj.weight"] = t(b + "attn_output.weight", H * V, D)
        m = h + "mlp."
        if i < c["first_k_dense_replace"]:
            swiglu(m, b + "ffn_{}.weight", c["intermediate_size"])
            continue
        w[m + "gate.weight"] = t(b + "ffn_gate_inp.weight", D, E)
        if c["scoring_func"] == "sigmoid":
            w[m + "gate.e_score_correction_bias"] = t(b + "exp_probs_b.bias", E)
        # transformers packs gate rows, then up rows, of each expert into one tensor.
        gate, up = t(b + "ffn_gate_exps.weight", D, F, E), t(b + "ffn_up_exps.weight", D, F, E)
        w[m + "experts.gate_up_proj"] = np.concatenate([gate, up], 1)
        w[m + "experts.down_proj"] = t(b + "ffn_down_exps.weight", F, D, E)
        swiglu(m + "shared_experts.", b + "ffn_{}_shexp.weight", F * c["n_shared_experts"])
    return w


class Watch:
    """Hooks on every MoE layer of a model: what was chosen and by how much."""

    def __init__(self, model, config):
        self.c = config
        self.margin = {"router": np.inf, "group": np.inf, "order": np.inf}
        self.clear()
        for i, layer in enumerate(model.model.layers):
            if hasattr(layer.mlp, "experts"):
                layer.mlp.experts.register_forward_pre_hook(self.hook(i, layer.mlp.gate), with_kwargs=True)

    def clear(self):
        self.experts, self.weights = {}, {}

    def choice(self, gate, x):
        """Scores that decide, from the router's definition, in f64; those of closed groups are minus infinity."""
        c = self.c
        logits = x.double() @ gate.weight.double().T
        if c["scoring_func"] == "softmax":
            choice, speak = logits.softmax(-1), 1
        else:
            choice, speak = logits.sigmoid() + gate.e_score_correction_bias.double(), 2
        if c["n_group"] > 1:
            grouped = choice.view(len(choice), c["n_group"], -1)
            scores = grouped.topk(speak, -1).values.sum(-1).sort(dim=-1, descending=True)
            kept = torch.zeros_like(scores.values, dtype=torch.bool)
            kept.scatter_(1, scores.indices[:, : c["topk_group"]], True)
            choice = grouped.masked_fill(~kept[..., None], -torch.inf).view(len(choice), -1)
            gap = scores.values[:, c["topk_group"] - 1] - scores.values[:, c["topk_group"]]
            self.margin["group"] = min(self.margin["group"], float(gap.min()))
        return choice

    def hook(self, i, gate):
        def hook(module, args, kwargs):
            x, ids, weights = (*args, *kwargs.values())[:3]
            x = x.view(-1, x.shape[-1])
            ranked = self.choice(gate, x).sort(dim=-1, descending=True, stable=True)
            k = ids.shape[-1]
            gaps = ranked.values[:, :k] - ranked.values[:, 1 : k + 1]
            self.margin["router"] = min(self.margin["router"], float(gaps[:, -1].min()))
            self.margin["order"] = min(self.margin["order"], float(gaps[:, :-1].min()))
            for row, best, weight in zip(ids.tolist(), ranked.indices[:, :k].tolist(), weights.tolist()):
                if sorted(row) != sorted(best):
                    sys.exit(f"layer {i}: transformers chose {row}, the router's definition {best}")
                self.experts.setdefault(i, []).append(best)
                self.weights.setdefault(i, []).append([weight[row.index(e)] for e in best])
        return hook


def build(kind, c, seed):
    torch.manual_seed(0)
    fields = {k: v for k, v in c.items() if k != "scoring_func"}
    fields["q_lora_rank"] = c["q_lora_rank"] or None
    if kind == "DeepseekV2":
        fields["topk_method"] = "group_limited_greedy" if c["n_group"] > 1 else "greedy"
    config = getattr(transformers, kind + "Config")(
        **fields, num_key_value_heads=c["num_attention_heads"], tie_word_embeddings=False, pad_token_id=None,
        bos_token_id=None, eos_token_id=None)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = getattr(transformers, kind + "ForCausalLM")(config).float().eval()
    state = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in hf_state(c, seed).items()}
    model.load_state_dict(state, strict=True)
    for name, value in model.state_dict().items():
        if not torch.equal(value, state[name]):
            sys.exit(f"{name} did not survive loading")
    check_softmax_scale(model, c)
    if config._attn_implementation != "eager" or model.dtype != torch.float32:
        sys.exit("the reference must run eagerly in float32")
    return model


def check_softmax_scale(model, c):
    """DeepSeek's own code multiplies it by mscale squared; transformers once left that out for V2."""
    rope = c["rope_parameters"]
    mscale = 0.1 * rope.get("mscale_all_dim", 0.0) * math.log(rope.get("factor", 1.0)) + 1.0
    right = (c["qk_nope_head_dim"] + c["qk_rope_head_dim"]) ** -0.5 * mscale**2
    for layer in model.model.layers:
        if abs(layer.self_attn.scaling - right) > 1e-9:
            sys.exit(f"softmax scale {layer.self_attn.scaling}, by definition {right}")


@torch.no_grad()
def make(name, search):
    kind, seed, n, c = CONFIGS[name]
    ids = torch.tensor([tokens_of(name, n, c["vocab_size"])])
    while True:
        model = build(kind, c, seed)
        watch = Watch(model, c)
        full = model(ids, output_hidden_states=True, use_cache=False)
        margin = {k: v for k, v in watch.margin.items() if np.isfinite(v)}
        if min(margin.values()) > MARGIN:
            break
        if not search:
            sys.exit(f"{name}: seed {seed} has a margin below {MARGIN}: {margin}; run with --search")
        seed += 1
    experts, weights, logits = watch.experts, watch.weights, full.logits[0]
    drift = 0.0
    for chunks in ([24, n - 24], [n - 24] + [1] * 24, [7] * (n // 7) + [n % 7] * (n % 7 > 0)):
        watch.clear()
        drift = max(drift, float((cached(model, ids, chunks) - logits).abs().max()))
        if watch.experts != experts:
            sys.exit(f"{name}: transformers chooses differently when it decodes in chunks {chunks}")
    scale = float(logits.abs().max())
    if drift > 1e-5 * scale:
        sys.exit(f"{name}: transformers disagrees with itself by {drift} of {scale}")
    norms = [h[0].double().norm(dim=-1).float().numpy() for h in full.hidden_states]
    return {
        "origin": f"tools/goldens/deepseek2_goldens.py, transformers {transformers.__version__} {kind}ForCausalLM, torch "
                  f"{torch.__version__.split('+')[0]}, float32, eager, CPU",
        "name": name, "seed": seed, "latent_eps": 1e-6,
        "config": {"family": "deepseek2", **c},
        "tokens": ids[0].tolist(),
        "margins": margin, "self_difference": drift, "max_abs_logit": scale,
        # [token][vocab], little-endian f32 in hexadecimal
        "logits": hexed(logits.numpy()),
        # residual norms [0 = embedding, i = after layer i; the last one after the final norm][token], same encoding
        "hidden_norms": hexed(np.stack(norms)),
        "experts": {str(i): rows for i, rows in experts.items()},
        "expert_weights": {str(i): hexed(rows) for i, rows in weights.items()},
    }


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
