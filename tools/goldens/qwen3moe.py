#!/usr/bin/env python3
"""Golden numbers of the `qwen3moe` architecture, from Hugging Face transformers in float32: see listed.py.

Run:  pip install torch==2.15.0 transformers==5.23.0 numpy
      python tools/goldens/qwen3moe.py
"""

import gqa
import listed
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

BASE = dict(
    vocab_size=80, hidden_size=64, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_experts=12, num_experts_per_tok=4, norm_topk_prob=True,
    max_position_embeddings=40960, rms_norm_eps=1e-6, tie_word_embeddings=False, rope_parameters=gqa.plain(1e6))

# name -> (tokens, fused tensors in the file, configuration)
CONFIGS = {
    # As published, in small: heads together wider than the model, pairs of heads share keys.
    "qwen3moe": (64, False, BASE),
    # Extended by YaRN, over an original context shorter than the input; eight heads share one key; the head is the embedding;
    # queries, keys and values in one tensor, gates and ups too.
    "qwen3moe_yarn": (72, True, {**BASE, "vocab_size": 64, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 16,
                                 "num_experts": 16, "num_experts_per_tok": 3, "tie_word_embeddings": True,
                                 "rope_parameters": gqa.yarn(1e4, 4.0, 32)}),
    # A key for every head, of the usual size, so that the file says neither; rotary frequencies divided by a factor.
    "qwen3moe_linear": (56, False, {**BASE, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16,
                                    "num_hidden_layers": 5, "num_experts": 8, "num_experts_per_tok": 2,
                                    "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}}),
    # Rows that hold blocks of any format.
    "qwen3moe_256": (28, False, {**BASE, "vocab_size": 64, "hidden_size": 256, "moe_intermediate_size": 256, "num_hidden_layers": 3}),
}


def make(name, seed, config):
    n, fused, c = config
    hidden, width, n_experts = c["hidden_size"], c["moe_intermediate_size"], c["num_experts"]
    toy = gqa.toy(name, "qwen3moe", seed, c, n_experts, width)
    w = {}
    gqa.ends(toy, w, c)
    for i in range(c["num_hidden_layers"]):
        gqa.norms(toy, w, i, hidden)
        gqa.attention(toy, w, i, c, norm="head", fused=fused)
        w[f"model.layers.{i}.mlp.gate.weight"] = toy.t(f"blk.{i}.ffn_gate_inp.weight", hidden, n_experts)
        gqa.experts(toy, w, i, hidden, width, n_experts, fused)
    model = listed.load(Qwen3MoeForCausalLM(gqa.eager(Qwen3MoeConfig(**c))).float().eval(), w)
    gqa.rotated(model, c["head_dim"] // 2)
    watch = listed.Watch({i: (layer.mlp.gate, layer.mlp.experts) for i, layer in enumerate(model.model.layers)}, gqa.softmax)
    return listed.record(toy, model, watch, n, "tools/goldens/qwen3moe.py")


if __name__ == "__main__":
    listed.main(__doc__, CONFIGS, make)
