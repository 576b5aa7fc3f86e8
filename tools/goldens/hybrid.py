"""What the golden scripts of families with Gated DeltaNet layers share: their keys and tensors, as GGUF has them and as transformers
does."""

import numpy as np
import torch
import transformers

import gqa
import listed

# Difference between transformers' own ways of feeding, of the largest logit.
SELF = 3e-6
# Of the projections to queries, keys and values: with the taps far enough for the activation to bend, so that keys and queries have a
# direction in common.
QKV = (0.0, 0.6)


def toy(name, arch, seed, c):
    """A toy with the keys of these architectures. `c["full"]` says which layers have full attention, `c["listed"]` whether the file says
    so layer by layer, `c["mtp"]` whether it has a block more than the decoder runs."""
    toy = gqa.toy(name, arch, seed, c, c["num_experts"], c["moe_intermediate_size"])
    toy.metadata = [[key, value] for key, value in toy.metadata if not key.endswith("block_count")]
    layers, mtp = c["num_hidden_layers"], c.get("mtp", False)
    toy.kv("block_count", layers + mtp)
    if mtp:
        toy.kv("nextn_predict_layers", 1)
    toy.kv("rope.dimension_count", c["head_dim"] // 4)
    toy.kv("expert_shared_feed_forward_length", c["shared_expert_intermediate_size"])
    toy.kv("ssm.conv_kernel", c["linear_conv_kernel_dim"])
    toy.kv("ssm.state_size", c["linear_key_head_dim"])
    toy.kv("ssm.group_count", c["linear_num_key_heads"])
    toy.kv("ssm.time_step_rank", c["linear_num_value_heads"])
    toy.kv("ssm.inner_size", c["linear_num_value_heads"] * c["linear_value_head_dim"])
    if c.get("listed"):
        toy.kv("attention.recurrent_layers", [not full for full in c["full"]] + [False] * mtp)
        toy.kv("full_attention_interval", 4)  # which the list overrides
    elif c["interval"] != 4:
        toy.kv("full_attention_interval", c["interval"])
    return toy


def complete(c):
    """Which layers have full attention: as listed, or every so many."""
    layers = c["num_hidden_layers"]
    return {**c, "full": c.get("full") or [(i + 1) % c["interval"] == 0 for i in range(layers)], "listed": "full" in c}


def fields(c):
    """The part that transformers' configuration has."""
    ours = ("full", "listed", "interval", "mtp", "legacy")
    kinds = ["full_attention" if full else "linear_attention" for full in c["full"]]
    return {**{k: v for k, v in c.items() if k not in ours}, "layer_types": kinds}


def experts_and_norms(toy, w, i, c):
    """What every layer has beside its attention. Norms of these models multiply by one more than their weight, which converters add."""
    hidden, n, shared = c["hidden_size"], c["num_experts"], c["shared_expert_intermediate_size"]
    b, h = f"blk.{i}.", f"model.layers.{i}."
    gqa.norms(toy, w, i, hidden, "post_attention_norm")
    w[f"{h}mlp.gate.weight"] = toy.t(f"{b}ffn_gate_inp.weight", hidden, n)
    gqa.experts(toy, w, i, hidden, c["moe_intermediate_size"], n)
    w[f"{h}mlp.shared_expert_gate.weight"] = toy.t(f"{b}ffn_gate_inp_shexp.weight", hidden).reshape(1, hidden)
    gqa.swiglu(toy, w, b + "ffn_{}_shexp.weight", f"{h}mlp.shared_expert.", hidden, shared)


def full_attention(toy, w, i, c):
    b, a, hidden = f"blk.{i}.attn_", f"model.layers.{i}.self_attn.", c["hidden_size"]
    heads, kv, d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    w[f"{a}q_proj.weight"] = toy.t(f"{b}q.weight", hidden, 2 * heads * d)  # a query, then its gate, head by head
    w[f"{a}k_proj.weight"] = toy.t(f"{b}k.weight", hidden, kv * d)
    w[f"{a}v_proj.weight"] = toy.t(f"{b}v.weight", hidden, kv * d)
    w[f"{a}o_proj.weight"] = toy.t(f"{b}output.weight", heads * d, hidden)
    w[f"{a}q_norm.weight"], w[f"{a}k_norm.weight"] = toy.t(f"{b}q_norm.weight", d), toy.t(f"{b}k_norm.weight", d)


def delta_net(toy, w, i, c, order=lambda x: x):
    """The tensors that both architectures have alike; `order` brings value heads [heads, ...] from the file's order to transformers'."""
    b, a, hidden = f"blk.{i}.ssm_", f"model.layers.{i}.linear_attn.", c["hidden_size"]
    v, s, kernel = c["linear_num_value_heads"], c["linear_key_head_dim"], c["linear_conv_kernel_dim"]
    # Memories of one token to some hundred.
    decay, step = toy.t(f"{b}a", v, span=(-0.6, 0.5)), toy.t(f"{b}dt.bias", v, span=(-0.5, 2.0))
    w[f"{a}A_log"], w[f"{a}dt_bias"] = np.log(-order(decay).astype(np.float64)).astype(np.float32), order(step)
    keys = 2 * c["linear_num_key_heads"] * s
    taps = toy.t(f"{b}conv1d.weight", kernel, keys + v * s, span=(0.5, 0.5))
    taps = np.concatenate([taps[:keys], order(taps[keys:].reshape(v, s, kernel)).reshape(v * s, kernel)])
    w[f"{a}conv1d.weight"] = taps[:, None, :]
    w[f"{a}norm.weight"] = toy.t(f"{b}norm.weight", s)  # the one norm without the additional 1
    out = toy.t(f"{b}out.weight", v * s, hidden)
    w[f"{a}out_proj.weight"] = order(out.reshape(hidden, v, s).swapaxes(0, 1)).swapaxes(0, 1).reshape(hidden, v * s)


def mtp(toy, i, c):
    """The block that predicts further tokens: a layer with full attention and experts, which nothing may run or count."""
    nowhere, hidden = {}, c["hidden_size"]
    experts_and_norms(toy, nowhere, i, c)
    full_attention(toy, nowhere, i, c)
    toy.t(f"blk.{i}.nextn.eh_proj.weight", 2 * hidden, hidden)
    for norm in ("enorm", "hnorm", "shared_head_norm"):
        toy.t(f"blk.{i}.nextn.{norm}.weight", hidden)


def unfold(w):
    """Takes from the norms the 1 that converters add."""
    for key in w:
        if key.endswith("norm.weight") and not key.endswith("linear_attn.norm.weight"):
            w[key] = w[key] - np.float32(1)
    return w


def make(arch, kind, projections, order, origin, more=lambda c: {}):
    """As listed.main wants it. `projections(toy, w, i, c)` adds what the two architectures do not have alike, `more(c)` metadata."""

    def fixture(name, seed, config):
        n, c = config[0], complete(config[1])
        our = toy(name, arch, seed, c)
        for key, (value, ty) in more(c).items():
            our.kv(key, value, ty)
        w = {}
        gqa.ends(our, w, c)
        for i, full in enumerate(c["full"]):
            experts_and_norms(our, w, i, c)
            if full:
                full_attention(our, w, i, c)
            else:
                projections(our, w, i, c)
                delta_net(our, w, i, c, order(c))
        if c.get("mtp"):
            mtp(our, len(c["full"]), c)
        settings = gqa.eager(getattr(transformers, kind[0])(**fields(c), pad_token_id=None, bos_token_id=None, eos_token_id=None))
        model = listed.load(getattr(transformers, kind[1])(settings).float().eval(), unfold(w))
        gqa.rotated(model, c["head_dim"] // 8)
        plain(model, c)
        watch = listed.Watch({i: (layer.mlp.gate, layer.mlp.experts) for i, layer in enumerate(model.model.layers)}, gqa.softmax)
        ways = ([24, n - 24], [n - 24] + [1] * 24, [7] * (n // 7) + [n % 7] * (n % 7 > 0), [1] * n)
        found = listed.record(our, model, watch, n, origin, ways)
        # What heads put out is normed, however small it is, and its rounding with it: where transformers' two forms of the rule are so
        # far apart, f32 does not know the logits well enough to compare with.
        return found if found and found["self_difference"] <= SELF * found["max_abs_logit"] else None

    return fixture


def plain(model, c):
    """Stops where a layer is not of its kind, or a kernel is not transformers' own in plain torch."""
    for layer, full in zip(model.model.layers, c["full"]):
        if hasattr(layer, "self_attn") != full:
            raise SystemExit(f"layer kinds are not {c['full']}")
    module = __import__(type(model).__module__, fromlist=["torch_chunk_gated_delta_rule"])
    for name in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule", "causal_conv1d_fn"):
        if not hasattr(module, name):
            raise SystemExit(f"transformers has no {name} any more: see what it computes with")
    torch.manual_seed(0)
