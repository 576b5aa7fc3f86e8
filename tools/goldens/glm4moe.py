#!/usr/bin/env python3
"""Golden numbers of the `glm4moe` architecture, from Hugging Face transformers in float32: see listed.py.

Run:  pip install torch==2.15.0 transformers==5.23.0 numpy
      python tools/goldens/glm4moe.py
"""

import gqa
import listed
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

BASE = dict(
    vocab_size=80, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=5, first_k_dense_replace=2,
    num_attention_heads=6, num_key_value_heads=2, head_dim=32, n_routed_experts=12, num_experts_per_tok=4, n_shared_experts=1,
    routed_scaling_factor=2.5, norm_topk_prob=True, n_group=1, topk_group=1, use_qk_norm=True, attention_bias=True,
    max_position_embeddings=131072, rms_norm_eps=1e-5, tie_word_embeddings=False, num_mtp_layers=0,
    rope_parameters=gqa.plain(1e6, partial_rotary_factor=0.5))

# name -> (tokens, blocks of next-token prediction in the file, fused tensors in the file, configuration)
CONFIGS = {
    # GLM-4.5 and after: norms on queries and keys, weights times 2.5, two leading dense layers, a block that predicts further.
    "glm4moe": (64, 1, False, BASE),
    # Air: no norms, weights as they are; queries, keys and values in one tensor with one bias. Nothing says how the router scores.
    "glm4moe_air": (64, 0, True, {**BASE, "num_hidden_layers": 4, "first_k_dense_replace": 1, "num_attention_heads": 8,
                                  "num_key_value_heads": 2, "use_qk_norm": False, "routed_scaling_factor": 1.0,
                                  "n_routed_experts": 16, "num_experts_per_tok": 3}),
    # Rows that hold blocks of any format.
    "glm4moe_256": (28, 0, False, {**BASE, "vocab_size": 64, "hidden_size": 256, "moe_intermediate_size": 256, "num_hidden_layers": 3,
                                   "first_k_dense_replace": 1}),
}


def prediction_block(toy, i, c):
    """What a converter writes for a block that predicts further tokens; nothing of it is to be read."""
    w, hidden, vocab = {}, c["hidden_size"], c["vocab_size"]
    sparse_layer(toy, w, i, c, False)
    for part in ("enorm", "hnorm", "shared_head_norm"):
        toy.t(f"blk.{i}.nextn.{part}.weight", hidden)
    toy.t(f"blk.{i}.nextn.eh_proj.weight", 2 * hidden, hidden)
    toy.t(f"blk.{i}.nextn.embed_tokens.weight", hidden, vocab)
    toy.t(f"blk.{i}.nextn.shared_head_head.weight", hidden, vocab)


def sparse_layer(toy, w, i, c, fused):
    hidden, width, n = c["hidden_size"], c["moe_intermediate_size"], c["n_routed_experts"]
    gqa.norms(toy, w, i, hidden, "post_attention_norm")
    gqa.attention(toy, w, i, c, norm="head" if c["use_qk_norm"] else None, bias=True, fused=fused)
    m = f"model.layers.{i}.mlp."
    if i < c["first_k_dense_replace"]:
        return gqa.swiglu(toy, w, f"blk.{i}.ffn_{{}}.weight", m, hidden, c["intermediate_size"])
    w[m + "gate.weight"] = toy.t(f"blk.{i}.ffn_gate_inp.weight", hidden, n)
    w[m + "gate.e_score_correction_bias"] = toy.t(f"blk.{i}.exp_probs_b.bias", n)
    gqa.experts(toy, w, i, hidden, width, n)
    gqa.swiglu(toy, w, f"blk.{i}.ffn_{{}}_shexp.weight", m + "shared_experts.", hidden, width * c["n_shared_experts"])


def make(name, seed, config):
    n, prediction, fused, c = config
    toy = gqa.toy(name, "glm4moe", seed, {**c, "num_hidden_layers": c["num_hidden_layers"] + prediction}, c["n_routed_experts"],
                  c["moe_intermediate_size"])
    toy.kv("feed_forward_length", c["intermediate_size"])
    toy.kv("leading_dense_block_count", c["first_k_dense_replace"])
    toy.kv("rope.dimension_count", c["head_dim"] // 2)
    toy.kv("expert_shared_count", c["n_shared_experts"])
    toy.kv("expert_weights_scale", c["routed_scaling_factor"])
    toy.kv("expert_weights_norm", True)
    toy.kv("expert_group_count", 1)
    toy.kv("expert_group_used_count", 1)
    if prediction:
        toy.kv("expert_gating_func", 2)
        toy.kv("nextn_predict_layers", prediction)
    w = {}
    gqa.ends(toy, w, c)
    for i in range(c["num_hidden_layers"]):
        sparse_layer(toy, w, i, c, fused)
    for i in range(prediction):
        prediction_block(toy, c["num_hidden_layers"] + i, c)
    model = listed.load(Glm4MoeForCausalLM(gqa.eager(Glm4MoeConfig(**c))).float().eval(), w)
    gqa.rotated(model, c["head_dim"] // 4)
    sparse = {i: (layer.mlp.gate, layer.mlp.experts) for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "gate")}
    decide = lambda i, gate, x: gqa.logits(gate, x).sigmoid() + gate.e_score_correction_bias.double()
    return listed.record(toy, model, listed.Watch(sparse, decide), n, "tools/goldens/glm4moe.py")


if __name__ == "__main__":
    listed.main(__doc__, CONFIGS, make)
