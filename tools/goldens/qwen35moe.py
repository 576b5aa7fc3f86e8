#!/usr/bin/env python3
"""Golden numbers of the `qwen35moe` architecture, from Hugging Face transformers in float32: see listed.py.

Run:  pip install torch==2.15.0 transformers==5.23.0 numpy
      python tools/goldens/qwen35moe.py
"""

import numpy as np

import hybrid
import listed

BASE = dict(
    vocab_size=64, hidden_size=64, moe_intermediate_size=32, shared_expert_intermediate_size=48, num_hidden_layers=4,
    interval=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_experts=12, num_experts_per_tok=4,
    linear_conv_kernel_dim=4, linear_key_head_dim=16, linear_value_head_dim=16, linear_num_key_heads=3,
    linear_num_value_heads=6, max_position_embeddings=262144, rms_norm_eps=1e-6, tie_word_embeddings=False,
    attention_bias=False,
    rope_parameters={"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_interleaved": True,
                     "mrope_section": [2, 1, 1]})

# name -> (tokens, configuration)
CONFIGS = {
    # As published, in small, with the block that predicts further tokens; more tokens than a chunk of 64.
    "qwen35moe": (80, {**BASE, "mtp": True}),
    # A file that lists which layers have a memory, against the interval that it also gives; four value heads per key head, the last
    # layer has a memory.
    "qwen35moe_listed": (72, {**BASE, "num_hidden_layers": 5, "full": [False, True, True, False, False],
                              "linear_num_key_heads": 2, "linear_num_value_heads": 8, "linear_key_head_dim": 32,
                              "linear_value_head_dim": 32, "num_experts": 8, "num_experts_per_tok": 3}),
    # Rows that hold blocks of any format.
    "qwen35moe_256": (28, {**BASE, "hidden_size": 256, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 256,
                            "num_hidden_layers": 3, "interval": 2}),
}


def order(c):
    """Files have the first value head of every key head, then the second of each, and so on; transformers has those of a key head
    side by side."""
    k, v = c["linear_num_key_heads"], c["linear_num_value_heads"]
    return lambda x: x.reshape(v // k, k, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)


def projections(toy, w, i, c):
    b, a, hidden, s = f"blk.{i}.", f"model.layers.{i}.linear_attn.", c["hidden_size"], c["linear_key_head_dim"]
    k, v = c["linear_num_key_heads"], c["linear_num_value_heads"]
    rows = lambda x: order(c)(x.reshape(v, -1, hidden)).reshape(-1, hidden)
    qkv = toy.t(f"{b}attn_qkv.weight", hidden, (2 * k + v) * s, span=hybrid.QKV)
    w[a + "in_proj_qkv.weight"] = np.concatenate([qkv[:2 * k * s], rows(qkv[2 * k * s:])])
    w[a + "in_proj_z.weight"] = rows(toy.t(f"{b}attn_gate.weight", hidden, v * s))
    w[a + "in_proj_b.weight"] = rows(toy.t(f"{b}ssm_beta.weight", hidden, v))
    w[a + "in_proj_a.weight"] = rows(toy.t(f"{b}ssm_alpha.weight", hidden, v))


def sections(c):
    return {"rope.dimension_sections": (c["rope_parameters"]["mrope_section"] + [0], "i32s")}


if __name__ == "__main__":
    listed.main(__doc__, CONFIGS, hybrid.make("qwen35moe", ("Qwen3_5MoeTextConfig", "Qwen3_5MoeForCausalLM"), projections,
                                              order, "tools/goldens/qwen35moe.py", sections))
