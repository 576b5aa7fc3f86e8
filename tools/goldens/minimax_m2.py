#!/usr/bin/env python3
"""Golden numbers of the `minimax-m2` architecture, from Hugging Face transformers in float32: see listed.py.

Run:  pip install torch==2.15.0 transformers==5.23.0 numpy
      python tools/goldens/minimax_m2.py
"""

import gqa
import listed
from transformers import MiniMaxM2Config, MiniMaxM2ForCausalLM

BASE = dict(
    vocab_size=80, hidden_size=64, intermediate_size=32, num_hidden_layers=5, num_attention_heads=6, num_key_value_heads=2,
    head_dim=32, num_local_experts=16, num_experts_per_tok=4, max_position_embeddings=196608, rms_norm_eps=1e-6,
    tie_word_embeddings=False, rope_parameters=gqa.plain(5e6, partial_rotary_factor=0.5))

# name -> (tokens, whether the file says how the router scores, configuration)
CONFIGS = {
    # As published, in small: one norm over all queries, one over all keys, half of each head rotated.
    "minimax_m2": (64, True, BASE),
    # Rows that hold blocks of any format; the file does not say how the router scores.
    "minimax_m2_256": (28, False, {**BASE, "vocab_size": 64, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 3}),
}


def make(name, seed, config):
    n, gating, c = config
    hidden, width, n_experts = c["hidden_size"], c["intermediate_size"], c["num_local_experts"]
    toy = gqa.toy(name, "minimax-m2", seed, c, n_experts, width)
    toy.kv("feed_forward_length", width)
    toy.kv("rope.dimension_count", c["head_dim"] // 2)
    if gating:
        toy.kv("expert_gating_func", 2)
    w = {}
    gqa.ends(toy, w, c)
    for i in range(c["num_hidden_layers"]):
        gqa.norms(toy, w, i, hidden)
        gqa.attention(toy, w, i, c, norm="row")
        m = f"model.layers.{i}.mlp."
        w[m + "gate.weight"] = toy.t(f"blk.{i}.ffn_gate_inp.weight", hidden, n_experts)
        w[m + "e_score_correction_bias"] = toy.t(f"blk.{i}.exp_probs_b.bias", n_experts)
        gqa.experts(toy, w, i, hidden, width, n_experts)
    model = listed.load(MiniMaxM2ForCausalLM(gqa.eager(MiniMaxM2Config(**c))).float().eval(), w)
    gqa.rotated(model, c["head_dim"] // 4)
    layers = model.model.layers
    watched = {i: (layer.mlp.gate, layer.mlp.experts) for i, layer in enumerate(layers)}
    decide = lambda i, gate, x: gqa.logits(gate, x).sigmoid() + layers[i].mlp.e_score_correction_bias.double()
    return listed.record(toy, model, listed.Watch(watched, decide), n, "tools/goldens/minimax_m2.py")


if __name__ == "__main__":
    listed.main(__doc__, CONFIGS, make)
