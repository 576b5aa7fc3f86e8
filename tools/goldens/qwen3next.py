#!/usr/bin/env python3
"""Golden numbers of the `qwen3next` architecture, from Hugging Face transformers in float32: see listed.py.

Run:  pip install torch==2.15.0 transformers==5.23.0 numpy
      python tools/goldens/qwen3next.py
"""

import numpy as np

import hybrid
import listed

BASE = dict(
    vocab_size=64, hidden_size=64, intermediate_size=64, moe_intermediate_size=32, shared_expert_intermediate_size=48,
    num_hidden_layers=4, interval=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_experts=12,
    num_experts_per_tok=4, norm_topk_prob=True, linear_conv_kernel_dim=4, linear_key_head_dim=16, linear_value_head_dim=16,
    linear_num_key_heads=2, linear_num_value_heads=4, max_position_embeddings=262144, rms_norm_eps=1e-6,
    tie_word_embeddings=False, attention_bias=False,
    rope_parameters={"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25})

# name -> (tokens, configuration)
CONFIGS = {
    # As published, in small: three layers with a memory, one with full attention; more tokens than a chunk of 64.
    "qwen3next": (80, BASE),
    # An early file: projections by key head in one tensor. Four value heads per key head, the last layer has a memory, the head is the
    # embedding, one key per position, a shorter convolution.
    "qwen3next_legacy": (72, {**BASE, "legacy": True, "num_hidden_layers": 5, "interval": 2, "linear_num_value_heads": 8,
                              "linear_key_head_dim": 32, "linear_value_head_dim": 32, "num_key_value_heads": 1,
                              "num_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": True,
                              "linear_conv_kernel_dim": 3}),
    # Rows that hold blocks of any format.
    "qwen3next_256": (28, {**BASE, "hidden_size": 256, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 256,
                            "num_hidden_layers": 3, "interval": 2}),
}


def projections(toy, w, i, c):
    """transformers has the rows by key head: query, key, values, gates; files have them apart, except old ones."""
    b, a, hidden, s = f"blk.{i}.", f"model.layers.{i}.linear_attn.", c["hidden_size"], c["linear_key_head_dim"]
    k, v = c["linear_num_key_heads"], c["linear_num_value_heads"]
    if c.get("legacy"):
        rows = toy.t(f"{b}ssm_in.weight", hidden, 2 * (k + v) * s, span=hybrid.QKV)
    else:
        parts = np.split(toy.t(f"{b}attn_qkv.weight", hidden, (2 * k + v) * s, span=hybrid.QKV), [k * s, 2 * k * s])
        parts.append(toy.t(f"{b}attn_gate.weight", hidden, v * s))
        rows = np.concatenate([part.reshape(k, -1, hidden) for part in parts], 1).reshape(-1, hidden)
    w[a + "in_proj_qkvz.weight"] = rows
    w[a + "in_proj_ba.weight"] = toy.t(f"{b}ssm_ba.weight", hidden, 2 * v)


if __name__ == "__main__":
    listed.main(__doc__, CONFIGS, hybrid.make("qwen3next", ("Qwen3NextConfig", "Qwen3NextForCausalLM"), projections,
                                              lambda c: lambda x: x, "tools/goldens/qwen3next.py"))
