#!/usr/bin/env python3
"""Golden numbers of the `gemma4` architecture (with routed experts), from Hugging Face transformers in float32: see listed.py.

Run:  pip install torch==2.15.0 transformers==5.23.0 numpy
      python tools/goldens/gemma4.py

Each way to get this architecture silently wrong is made on purpose, too: a fixture whose logits would not show it is not written.
"""

import contextlib
import sys

import listed
import torch
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

BASE = dict(
    vocab_size=80, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=6,
    num_attention_heads=4, num_key_value_heads=2, head_dim=16, global_head_dim=32, num_global_key_value_heads=1,
    attention_k_eq_v=True, sliding_window=20, final_logit_softcapping=1.5, num_experts=12, top_k_experts=3,
    max_position_embeddings=262144, rms_norm_eps=1e-6, hidden_size_per_layer_input=0, enable_moe_block=True,
    tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    rope_parameters={
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    })

# name -> (tokens, pattern of sliding and full layers, configuration)
CONFIGS = {
    # As published, in small: five sliding layers for one full one, which has fewer and longer heads and no values of its own.
    "gemma4": (64, "SSSSSF", BASE),
    # Full layers between sliding ones and values of their own, heads of one length, other frequencies.
    "gemma4_values": (56, "FSSFF", {
        **BASE, "num_hidden_layers": 5, "attention_k_eq_v": False, "num_global_key_value_heads": None, "head_dim": 32,
        "num_key_value_heads": 4, "sliding_window": 7, "num_experts": 8, "top_k_experts": 2, "vocab_size": 64,
        "final_logit_softcapping": 30.0,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 2e4},
        }}),
    # Rows of whole 256-element blocks, so that experts can be stored in every format; full first, more heads on full layers.
    "gemma4_wide": (40, "FSF", {
        **BASE, "num_hidden_layers": 3, "hidden_size": 256, "intermediate_size": 64, "moe_intermediate_size": 256, "num_experts": 8,
        "num_key_value_heads": 1, "num_global_key_value_heads": 2, "sliding_window": 12, "vocab_size": 64,
        "final_logit_softcapping": 6.0}),
}


def toy_of(name, seed, c, pattern):
    toy, full, rope = listed.Toy(name, "gemma4", seed, c["vocab_size"], c["top_k_experts"]), c["global_head_dim"], c["rope_parameters"]
    kv = {"S": c["num_key_value_heads"], "F": c["num_global_key_value_heads"] or c["num_key_value_heads"]}
    toy.kv("block_count", c["num_hidden_layers"])
    toy.kv("context_length", c["max_position_embeddings"])
    toy.kv("embedding_length", c["hidden_size"])
    toy.kv("feed_forward_length", c["intermediate_size"])
    toy.kv("attention.head_count", c["num_attention_heads"])
    toy.kv("attention.head_count_kv", [kv[kind] for kind in pattern])
    toy.kv("attention.layer_norm_rms_epsilon", c["rms_norm_eps"])
    for part in ("key", "value"):
        toy.kv(f"attention.{part}_length", full)
        toy.kv(f"attention.{part}_length_swa", c["head_dim"])
    toy.kv("attention.sliding_window", c["sliding_window"])
    toy.kv("attention.sliding_window_pattern", [kind == "S" for kind in pattern])
    toy.kv("attention.shared_kv_layers", 0)
    toy.kv("embedding_length_per_layer_input", 0)
    toy.kv("rope.freq_base", rope["full_attention"]["rope_theta"])
    toy.kv("rope.freq_base_swa", rope["sliding_attention"]["rope_theta"])
    toy.kv("rope.dimension_count", full)
    toy.kv("rope.dimension_count_swa", c["head_dim"])
    toy.kv("final_logit_softcapping", c["final_logit_softcapping"])
    toy.kv("expert_count", c["num_experts"])
    toy.kv("expert_used_count", c["top_k_experts"])
    toy.kv("expert_feed_forward_length", c["moe_intermediate_size"])
    return toy, kv


def layer(toy, w, i, kind, kv, c):
    b, m, hidden = f"blk.{i}.", f"model.layers.{i}.", c["hidden_size"]
    d, heads, width = c["global_head_dim"] if kind == "F" else c["head_dim"], c["num_attention_heads"], c["moe_intermediate_size"]
    for ours, theirs in (
        ("attn_norm", "input_layernorm"), ("post_attention_norm", "post_attention_layernorm"), ("ffn_norm", "pre_feedforward_layernorm"),
        ("post_ffw_norm_1", "post_feedforward_layernorm_1"), ("pre_ffw_norm_2", "pre_feedforward_layernorm_2"),
        ("post_ffw_norm_2", "post_feedforward_layernorm_2"), ("post_ffw_norm", "post_feedforward_layernorm"),
    ):
        w[f"{m}{theirs}.weight"] = toy.t(f"{b}{ours}.weight", hidden, span=(1.0, 0.6))
    w[f"{m}layer_scalar"] = toy.t(f"{b}layer_output_scale.weight", 1, span=(0.7, 0.25))
    a = f"{m}self_attn."
    w[f"{a}q_proj.weight"] = toy.t(f"{b}attn_q.weight", hidden, heads * d)
    w[f"{a}k_proj.weight"] = toy.t(f"{b}attn_k.weight", hidden, kv * d)
    if kind == "S" or not c["attention_k_eq_v"]:
        w[f"{a}v_proj.weight"] = toy.t(f"{b}attn_v.weight", hidden, kv * d)
    w[f"{a}o_proj.weight"] = toy.t(f"{b}attn_output.weight", heads * d, hidden)
    for x in "qk":  # small, so that a scale of 1 does not make the softmax a choice of one
        w[f"{a}{x}_norm.weight"] = toy.t(f"{b}attn_{x}_norm.weight", d, span=(0.35, 0.2))
    for part, shape in (("gate", (hidden, c["intermediate_size"])), ("up", (hidden, c["intermediate_size"])), ("down", (c["intermediate_size"], hidden))):
        w[f"{m}mlp.{part}_proj.weight"] = toy.t(f"{b}ffn_{part}.weight", *shape)
    n = c["num_experts"]
    w[f"{m}router.proj.weight"] = toy.t(f"{b}ffn_gate_inp.weight", hidden, n)
    w[f"{m}router.scale"] = toy.t(f"{b}ffn_gate_inp.scale", hidden, span=(5.0, 4.0))
    w[f"{m}router.per_expert_scale"] = toy.t(f"{b}ffn_down_exps.scale", n, span=(1.25, 1.0))
    w[f"{m}experts.gate_up_proj"] = toy.t(f"{b}ffn_gate_up_exps.weight", hidden, 2 * width, n)
    w[f"{m}experts.down_proj"] = toy.t(f"{b}ffn_down_exps.weight", width, hidden, n)


def scores(i, gate, x):
    """What decides, in f64: probabilities over all experts."""
    x = x.double()
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + gate.eps) * gate.scale.double() * gate.hidden_size**-0.5
    return torch.softmax(x @ gate.proj.weight.double().T, dim=-1)


@contextlib.contextmanager
def changed(*changes):
    """Sets attributes (object, name, value) for a while."""
    before = [(thing, name, getattr(thing, name)) for thing, name, _ in changes]
    for thing, name, value in changes:
        setattr(thing, name, value)
    yield
    for thing, name, value in before:
        setattr(thing, name, value)


def mistakes(model, c, pattern):
    """Name -> changes that make the mistake."""
    text, layers = model.model, model.model.layers
    attend = [layer.self_attn for layer in layers]
    full = [layer.self_attn for layer, kind in zip(layers, pattern) if kind == "F"]
    rotary, ones = text.rotary_emb, torch.ones
    parameter = lambda value: torch.nn.Parameter(value, requires_grad=False)
    theta, turn = c["rope_parameters"]["full_attention"]["rope_theta"], rotary.full_attention_inv_freq > 0
    frequencies = lambda d, of: 1.0 / theta ** (torch.arange(0, d, 2).float() / of)
    every = frequencies(c["global_head_dim"], c["global_head_dim"])
    squeezed = frequencies(c["global_head_dim"], 2 * int(turn.sum())) * turn
    other = frequencies(c["head_dim"], c["head_dim"])
    identity = torch.nn.Identity()

    class RawKey(torch.nn.Module):  # the norm of the key as the norm of the value that is the key, too
        def __init__(self, key):
            super().__init__()
            self.key = key

        def forward(self, x):
            return self.key(x)

    made = {
        "the softmax divides by the root of the head's length": [(a, "scaling", a.head_dim**-0.5) for a in attend],
        "values are not normed": [(a, "v_norm", identity) for a in attend],
        "all pairs of full layers turn": [(rotary, "full_attention_inv_freq", every)],
        "frequencies of full layers are those of the turning part": [(rotary, "full_attention_inv_freq", squeezed)],
        "sliding layers turn by the other base": [(rotary, "sliding_attention_inv_freq", other)],
        "the window is one longer": [(text.config, "sliding_window", c["sliding_window"] + 1)],
        "the window is one shorter": [(text.config, "sliding_window", c["sliding_window"] - 1)],
        "experts have no factors": [(layer.router, "per_expert_scale", parameter(ones(c["num_experts"]))) for layer in layers],
        "the router's input has no scale": [(layer.router, "scale", parameter(ones(c["hidden_size"]))) for layer in layers],
        "the router's input is not divided by the root of its width": [(layer.router, "scalar_root_size", 1.0) for layer in layers],
        "logits have no bound": [(model.config, "final_logit_softcapping", None)],
        "the embedding is not scaled": [(text.embed_tokens, "embed_scale", torch.tensor(1.0))],
        "layers' outputs are not scaled": [(layer, "layer_scalar", ones(1)) for layer in layers],
        "silu for gelu": [(part, "act_fn", torch.nn.SiLU()) for layer in layers for part in (layer.mlp, layer.experts)],
        "the norm before the experts is that before the dense block": [
            (layer, "pre_feedforward_layernorm_2", layer.pre_feedforward_layernorm) for layer in layers],
        "the two blocks' last norms are exchanged": [
            change for layer in layers for change in ((layer, "post_feedforward_layernorm_1", layer.post_feedforward_layernorm_2),
                                                      (layer, "post_feedforward_layernorm_2", layer.post_feedforward_layernorm_1))],
        "the dense block's norm is left out": [(layer, "post_feedforward_layernorm_1", identity) for layer in layers],
        "attention's last norm is that before the dense block": [
            (layer, "post_attention_layernorm", layer.pre_feedforward_layernorm) for layer in layers],
    }
    if c["attention_k_eq_v"]:
        made["values of full layers have the keys' norm"] = [(a, "v_norm", RawKey(a.k_norm)) for a in full]
    return made


@torch.no_grad()
def check_mistakes(model, fixture, logits, c, pattern):
    ids = torch.tensor([fixture["tokens"]])
    for layer in model.model.layers:  # who watches would object
        layer.router._forward_pre_hooks.clear()
        layer.experts._forward_pre_hooks.clear()
    for name, changes in mistakes(model, c, pattern).items():
        with changed(*changes):
            off = float((model(input_ids=ids, use_cache=False).logits[0] - logits).abs().max()) / fixture["max_abs_logit"]
        print(f"  {name}: {off:.1e}", file=sys.stderr)
        if off < 1e-3:
            sys.exit(f"{fixture['name']}: it would not be noticed if {name}: {off}")
    again = float((model(input_ids=ids, use_cache=False).logits[0] - logits).abs().max())
    if again != 0.0:
        sys.exit(f"a mistake was not taken back: {again}")


def make(name, seed, config):
    n, pattern, c = config
    toy, kv = toy_of(name, seed, c, pattern)
    hidden, vocab = c["hidden_size"], c["vocab_size"]
    w = {"model.embed_tokens.weight": toy.t("token_embd.weight", hidden, vocab), "model.norm.weight": toy.t("output_norm.weight", hidden)}
    w["lm_head.weight"] = w["model.embed_tokens.weight"]
    turning = int(c["rope_parameters"]["full_attention"]["partial_rotary_factor"] * c["global_head_dim"] // 2)
    toy.t("rope_freqs.weight", c["global_head_dim"] // 2, values=[1.0] * turning + [1e30] * (c["global_head_dim"] // 2 - turning))
    for i, kind in enumerate(pattern):
        layer(toy, w, i, kind, kv[kind], c)
    types = {"S": "sliding_attention", "F": "full_attention"}
    hf = Gemma4TextConfig(**c, layer_types=[types[kind] for kind in pattern])
    hf._attn_implementation = hf._experts_implementation = "eager"
    model = listed.load(Gemma4ForCausalLM(hf).float().eval(), w)
    watch = listed.Watch({i: (layer.router, layer.experts) for i, layer in enumerate(model.model.layers)}, scores)
    fixture = listed.record(toy, model, watch, n, "tools/goldens/gemma4.py")
    if fixture is not None:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([fixture["tokens"]]), use_cache=False).logits[0]
        check_mistakes(model, fixture, logits, c, pattern)
    return fixture


if __name__ == "__main__":
    listed.main(__doc__, CONFIGS, make)
