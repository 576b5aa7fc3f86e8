"""What the golden scripts of families with grouped-query attention share: their keys, their attention and their experts, as GGUF has
them and as transformers does."""

import numpy as np
import torch

from listed import Toy


def yarn(theta, factor, original, **more):
    return {"rope_type": "yarn", "rope_theta": theta, "factor": factor, "original_max_position_embeddings": original, **more}


def plain(theta, **more):
    return {"rope_type": "default", "rope_theta": theta, **more}


def toy(name, arch, seed, c, experts, width):
    """A toy with the keys that all of these architectures have; `experts` and `width` of the routed experts."""
    toy = Toy(name, arch, seed, c["vocab_size"], c["num_experts_per_tok"])
    toy.kv("block_count", c["num_hidden_layers"])
    toy.kv("context_length", c["max_position_embeddings"])
    toy.kv("embedding_length", c["hidden_size"])
    toy.kv("attention.head_count", c["num_attention_heads"])
    if c["num_key_value_heads"] != c["num_attention_heads"]:
        toy.kv("attention.head_count_kv", c["num_key_value_heads"])
    if c["head_dim"] * c["num_attention_heads"] != c["hidden_size"]:
        toy.kv("attention.key_length", c["head_dim"])
        toy.kv("attention.value_length", c["head_dim"])
    toy.kv("attention.layer_norm_rms_epsilon", c["rms_norm_eps"])
    rope = c["rope_parameters"]
    toy.kv("rope.freq_base", rope["rope_theta"])
    if rope["rope_type"] != "default":
        toy.kv("rope.scaling.type", rope["rope_type"])
        toy.kv("rope.scaling.factor", rope["factor"])
        if rope["rope_type"] == "yarn":
            toy.kv("rope.scaling.original_context_length", rope["original_max_position_embeddings"])
    toy.kv("expert_count", experts)
    toy.kv("expert_used_count", c["num_experts_per_tok"])
    toy.kv("expert_feed_forward_length", width)
    return toy


def ends(toy, w, c):
    """Embedding, last norm and head, which may be the embedding."""
    hidden, vocab = c["hidden_size"], c["vocab_size"]
    w["model.embed_tokens.weight"] = w["lm_head.weight"] = toy.t("token_embd.weight", hidden, vocab)
    w["model.norm.weight"] = toy.t("output_norm.weight", hidden)
    if not c.get("tie_word_embeddings"):
        w["lm_head.weight"] = toy.t("output.weight", hidden, vocab)


def attention(toy, w, i, c, norm=None, bias=False, fused=False, output_bias=False):
    """`norm`: None, "head" or "row"; `fused`: queries, keys and values are one tensor of the file."""
    b, a, hidden = f"blk.{i}.attn_", f"model.layers.{i}.self_attn.", c["hidden_size"]
    heads, kv, d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    widths = [heads * d, kv * d, kv * d]
    kinds = ["weight"] + ["bias"] * bias
    for kind in kinds:
        shape = lambda n: (hidden, n) if kind == "weight" else (n,)
        if fused:
            parts = np.split(toy.t(f"{b}qkv.{kind}", *shape(sum(widths))), np.cumsum(widths)[:-1])
        else:
            parts = [toy.t(f"{b}{x}.{kind}", *shape(n)) for x, n in zip("qkv", widths)]
        for x, part in zip("qkv", parts):
            w[f"{a}{x}_proj.{kind}"] = part
    w[f"{a}o_proj.weight"] = toy.t(f"{b}output.weight", heads * d, hidden)
    if output_bias:
        w[f"{a}o_proj.bias"] = toy.t(f"{b}output.bias", hidden)
    if norm:
        for x, n in zip("qk", [d, d] if norm == "head" else widths):
            w[f"{a}{x}_norm.weight"] = toy.t(f"{b}{x}_norm.weight", n)


def swiglu(toy, w, ours, theirs, hidden, width):
    """A dense block; `ours` has a place for the part's name."""
    for part, shape in (("gate", (hidden, width)), ("up", (hidden, width)), ("down", (width, hidden))):
        w[f"{theirs}{part}_proj.weight"] = toy.t(ours.format(part), *shape)


def experts(toy, w, i, hidden, width, n, fused=False):
    """transformers packs gate rows, then up rows, of each expert into one tensor; a file may."""
    b, m = f"blk.{i}.ffn_", f"model.layers.{i}.mlp.experts."
    if fused:
        both = toy.t(f"{b}gate_up_exps.weight", hidden, 2 * width, n)
    else:
        both = np.concatenate([toy.t(f"{b}{x}_exps.weight", hidden, width, n) for x in ("gate", "up")], 1)
    w[m + "gate_up_proj"] = both
    w[m + "down_proj"] = toy.t(f"{b}down_exps.weight", width, hidden, n)


def norms(toy, w, i, hidden, ffn_norm="ffn_norm"):
    w[f"model.layers.{i}.input_layernorm.weight"] = toy.t(f"blk.{i}.attn_norm.weight", hidden)
    w[f"model.layers.{i}.post_attention_layernorm.weight"] = toy.t(f"blk.{i}.{ffn_norm}.weight", hidden)


def eager(config):
    config._attn_implementation = config._experts_implementation = "eager"
    return config


def logits(gate, x):
    return x.double() @ gate.weight.double().T


def softmax(i, gate, x):
    return logits(gate, x).softmax(-1)


def rotated(model, pairs):
    """Stops where the configuration did not reach the rotary embedding."""
    found = model.model.rotary_emb.inv_freq.numel()
    if found != pairs:
        raise SystemExit(f"transformers rotates {found} pairs, not {pairs}")
    torch.manual_seed(0)
