#!/usr/bin/env python3
"""Golden numbers of the `gpt-oss` architecture, from Hugging Face transformers in float32: see listed.py.

Run:  pip install torch==2.15.0 transformers==5.23.0 numpy
      python tools/goldens/gpt_oss.py
"""

import numpy as np

import gqa
import listed
from transformers import GptOssConfig, GptOssForCausalLM

BASE = dict(
    vocab_size=80, hidden_size=64, intermediate_size=32, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
    head_dim=16, num_local_experts=12, num_experts_per_tok=4, sliding_window=8, max_position_embeddings=131072,
    rms_norm_eps=1e-5, tie_word_embeddings=False, rope_parameters=gqa.yarn(150000.0, 32.0, 4096, truncate=False))

# name -> (tokens, configuration)
CONFIGS = {
    # As published, in small: every other layer sees a window, here of 8 positions; the ends of YaRN's ramp lie between pairs.
    "gpt_oss": (64, BASE),
    # A window longer than a chunk of the engine's attention, so that its edge moves through one; another number of layers, pattern
    # and groups.
    "gpt_oss_wide": (72, {**BASE, "vocab_size": 64, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
                          "head_dim": 32, "sliding_window": 50, "num_local_experts": 8, "num_experts_per_tok": 2,
                          "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
    # Rows that hold blocks of any format.
    "gpt_oss_256": (28, {**BASE, "vocab_size": 64, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 3}),
}
# Experts' biases and activations are to reach the clamps.
LOUD = (0.0, 0.75)


def experts(toy, w, i, c):
    """transformers keeps the experts' matrices by input, gates and ups in turns; the file has rows by output and both apart."""
    hidden, width, n = c["hidden_size"], c["intermediate_size"], c["num_local_experts"]
    b, m = f"blk.{i}.ffn_", f"model.layers.{i}.mlp.experts."
    in_turns = lambda gate, up: np.stack([gate, up], -1).reshape(*gate.shape[:-1], 2 * width)
    gate, up = (toy.t(f"{b}{x}_exps.weight", hidden, width, n, span=LOUD) for x in ("gate", "up"))
    w[m + "gate_up_proj"] = in_turns(gate.transpose(0, 2, 1), up.transpose(0, 2, 1))
    w[m + "gate_up_proj_bias"] = in_turns(*(toy.t(f"{b}{x}_exps.bias", width, n, span=LOUD) for x in ("gate", "up")))
    w[m + "down_proj"] = toy.t(f"{b}down_exps.weight", width, hidden, n).transpose(0, 2, 1)
    w[m + "down_proj_bias"] = toy.t(f"{b}down_exps.bias", hidden, n)


def make(name, seed, config):
    n, c = config
    hidden, width, n_experts = c["hidden_size"], c["intermediate_size"], c["num_local_experts"]
    toy = gqa.toy(name, "gpt-oss", seed, c, n_experts, width)
    toy.kv("feed_forward_length", width)
    toy.kv("attention.sliding_window", c["sliding_window"])
    if "layer_types" in c:
        toy.kv("attention.sliding_window_pattern", [kind == "sliding_attention" for kind in c["layer_types"]])
    w = {}
    gqa.ends(toy, w, c)
    for i in range(c["num_hidden_layers"]):
        gqa.norms(toy, w, i, hidden, "post_attention_norm")
        gqa.attention(toy, w, i, c, bias=True, output_bias=True)
        w[f"model.layers.{i}.self_attn.sinks"] = toy.t(f"blk.{i}.attn_sinks.weight", c["num_attention_heads"], span=(0.5, 1.5))
        m = f"model.layers.{i}.mlp.router."
        w[m + "weight"] = toy.t(f"blk.{i}.ffn_gate_inp.weight", hidden, n_experts)
        w[m + "bias"] = toy.t(f"blk.{i}.ffn_gate_inp.bias", n_experts)
        experts(toy, w, i, c)
    model = listed.load(GptOssForCausalLM(gqa.eager(GptOssConfig(**c))).float().eval(), w)
    gqa.rotated(model, c["head_dim"] // 2)
    watched = {i: (layer.mlp.router, layer.mlp.experts) for i, layer in enumerate(model.model.layers)}
    decide = lambda i, gate, x: gqa.logits(gate, x) + gate.bias.double()
    return listed.record(toy, model, listed.Watch(watched, decide), n, "tools/goldens/gpt_oss.py")


if __name__ == "__main__":
    listed.main(__doc__, CONFIGS, make)
