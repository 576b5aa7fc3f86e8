"""Exports a checkpoint: dense GGUF + sidecar package, or one unquantised GGUF with reference logits."""
import argparse
import datetime
import json
import os

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as G
from gguf.quants import quantize
from tokenizers import Tokenizer

import model as dm
from evaluate import load
from tokenizer import CHAT_TEMPLATE, SPECIALS

ARCH = "glm-dsa"
FAMILIES = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
BLOCK_BYTES = {"Q8_0": 34, "Q4_0": 18}
CONTEXT = 1024
NAME = "slotbank demo"


def dense_tensors(net):
    """(GGUF name, numpy array, keep as F32) of everything but the routed experts."""
    cfg, sd = net.config, {k: v.detach().float().numpy() for k, v in net.state_dict().items()}
    yield "token_embd.weight", sd["model.embed_tokens.weight"], False
    for i in range(cfg.num_hidden_layers):
        src, dst = "model.layers.%d." % i, "blk.%d." % i
        yield from attention_tensors(cfg, sd, src + "self_attn.", dst)
        if cfg.indexer_types[i] == "full":
            yield from indexer_tensors(sd, src + "self_attn.indexer.", dst + "indexer.")
        yield dst + "attn_norm.weight", sd[src + "input_layernorm.weight"], True
        yield dst + "ffn_norm.weight", sd[src + "post_attention_layernorm.weight"], True
        if cfg.mlp_layer_types[i] == "dense":
            for part in ("gate", "up", "down"):
                yield dst + "ffn_%s.weight" % part, sd[src + "mlp.%s_proj.weight" % part], False
            continue
        yield dst + "ffn_gate_inp.weight", sd[src + "mlp.gate.weight"], True
        yield dst + "exp_probs_b.bias", sd[src + "mlp.gate.e_score_correction_bias"], True
        for part in ("gate", "up", "down"):
            yield dst + "ffn_%s_shexp.weight" % part, sd[src + "mlp.shared_experts.%s_proj.weight" % part], False
    yield "output_norm.weight", sd["model.norm.weight"], True
    yield "output.weight", sd["lm_head.weight"], False


def attention_tensors(cfg, sd, src, dst):
    h, n, v = cfg.num_attention_heads, cfg.qk_nope_head_dim, cfg.v_head_dim
    yield dst + "attn_q_a.weight", sd[src + "q_a_proj.weight"], False
    yield dst + "attn_q_a_norm.weight", sd[src + "q_a_layernorm.weight"], True
    yield dst + "attn_q_b.weight", sd[src + "q_b_proj.weight"], False
    yield dst + "attn_kv_a_mqa.weight", sd[src + "kv_a_proj_with_mqa.weight"], False
    yield dst + "attn_kv_a_norm.weight", sd[src + "kv_a_layernorm.weight"], True
    kv_b = sd[src + "kv_b_proj.weight"].reshape(h, n + v, cfg.kv_lora_rank)
    # The key half is stored transposed: contiguous over the head's key dimension.
    yield dst + "attn_k_b.weight", kv_b[:, :n].transpose(0, 2, 1), False
    yield dst + "attn_v_b.weight", kv_b[:, n:], False
    yield dst + "attn_output.weight", sd[src + "o_proj.weight"], False


def indexer_tensors(sd, src, dst):
    yield dst + "attn_q_b.weight", sd[src + "wq_b.weight"], False
    yield dst + "attn_k.weight", sd[src + "wk.weight"], False
    yield dst + "k_norm.weight", sd[src + "k_norm.weight"], True
    yield dst + "k_norm.bias", sd[src + "k_norm.bias"], True
    yield dst + "proj.weight", sd[src + "weights_proj.weight"], True


def expert_tensors(net):
    """(layer, family, [expert, out, in])."""
    cfg = net.config
    f = cfg.moe_intermediate_size
    for i, layer in enumerate(net.model.layers):
        if cfg.mlp_layer_types[i] == "sparse":
            gu = layer.mlp.experts.gate_up_proj.detach().float().numpy()
            yield i, "ffn_gate_exps", gu[:, :f]
            yield i, "ffn_up_exps", gu[:, f:]
            yield i, "ffn_down_exps", layer.mlp.experts.down_proj.detach().float().numpy()


def add_metadata(w, cfg, file_type):
    w.add_name(NAME)
    w.add_description("Small glm-dsa model trained on generated stories; see the demo's README.")
    w.add_license("MIT OR Apache-2.0")
    w.add_file_type(file_type)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    u32 = {
        "block_count": cfg.num_hidden_layers, "context_length": CONTEXT, "embedding_length": cfg.hidden_size,
        "feed_forward_length": cfg.intermediate_size, "attention.head_count": cfg.num_attention_heads,
        "attention.head_count_kv": 1, "attention.q_lora_rank": cfg.q_lora_rank,
        "attention.kv_lora_rank": cfg.kv_lora_rank,
        "attention.key_length": cfg.kv_lora_rank + cfg.qk_rope_head_dim,
        "attention.value_length": cfg.kv_lora_rank,
        "attention.key_length_mla": cfg.qk_nope_head_dim + cfg.qk_rope_head_dim,
        "attention.value_length_mla": cfg.v_head_dim, "rope.dimension_count": cfg.qk_rope_head_dim,
        "expert_count": cfg.n_routed_experts, "expert_used_count": cfg.num_experts_per_tok,
        "expert_shared_count": cfg.n_shared_experts, "expert_group_count": cfg.n_group,
        "expert_group_used_count": cfg.topk_group, "expert_feed_forward_length": cfg.moe_intermediate_size,
        "expert_gating_func": 2, "leading_dense_block_count": cfg.first_k_dense_replace,
        "vocab_size": cfg.vocab_size, "attention.indexer.head_count": cfg.index_n_heads,
        "attention.indexer.key_length": cfg.index_head_dim, "attention.indexer.top_k": cfg.index_topk,
    }
    for key, value in u32.items():
        w.add_uint32("%s.%s" % (ARCH, key), value)
    w.add_float32(ARCH + ".attention.layer_norm_rms_epsilon", cfg.rms_norm_eps)
    w.add_float32(ARCH + ".rope.freq_base", cfg.rope_parameters["rope_theta"])
    w.add_float32(ARCH + ".expert_weights_scale", cfg.routed_scaling_factor)
    w.add_bool(ARCH + ".expert_weights_norm", cfg.norm_topk_prob)
    w.add_array(ARCH + ".attention.indexer.types", [t == "full" for t in cfg.indexer_types])


def add_tokenizer(w, tok):
    data = json.loads(tok.to_str())
    vocab = tok.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    special = set(SPECIALS)
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("glm4")
    w.add_token_list(tokens)
    w.add_token_types([3 if t in special else 1 for t in tokens])
    w.add_token_merges(merges)
    w.add_bos_token_id(vocab["[gMASK]"])
    w.add_eos_token_id(vocab["<|endoftext|>"])
    w.add_eot_token_id(vocab["<|user|>"])
    w.add_eom_token_id(vocab["<|observation|>"])
    w.add_unk_token_id(vocab["<|endoftext|>"])
    w.add_pad_token_id(vocab["<|endoftext|>"])
    w.add_add_bos_token(False)
    w.add_chat_template(CHAT_TEMPLATE)


def add_tensor(w, name, x, kind):
    x = np.ascontiguousarray(x, np.float32)
    if kind == "F32":
        w.add_tensor(name, x)
    else:
        w.add_tensor(name, quantize(x, G[kind]), raw_dtype=G[kind])


def write_gguf(path, net, tok, kind, experts=False):
    """`kind` for matrices; with `experts` the routed experts are in the file, as `kind` too."""
    w = gguf.GGUFWriter(path + ".tmp", ARCH)
    add_metadata(w, net.config, 0 if kind == "F32" else 7)
    add_tokenizer(w, tok)
    count = 0
    for name, x, plain in dense_tensors(net):
        add_tensor(w, name, x, "F32" if plain else kind)
        count += 1
    for layer, family, x in expert_tensors(net) if experts else ():
        add_tensor(w, "blk.%d.%s.weight" % (layer, family), x, kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    os.replace(path + ".tmp", path)
    return count


def now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat()


def write_sidecar(folder, net, kind):
    """layer_NNN.bin per layer, the three stacked tensors one after another, and manifest.json."""
    os.makedirs(folder, exist_ok=True)
    cfg, entries, blobs = net.config, [], {}
    for layer, family, x in expert_tensors(net):
        raw = quantize(np.ascontiguousarray(x, np.float32), G[kind]).tobytes()
        file = "layer_%03d.bin" % layer
        blob = blobs.setdefault(file, bytearray())
        entries.append(manifest_entry(cfg, layer, family, x.shape, kind, raw, file, len(blob)))
        blob += raw
    for file, blob in blobs.items():
        with open(os.path.join(folder, file), "wb") as f:
            f.write(blob)
    manifest = {
        "schema_version": 1, "sidecar_kind": "flashmoe_gguf", "layout": "layer_major_whole_tensor",
        "generated_at": now(), "include_shared": False, "filters": {"layers": None, "families": None},
        "source": {"model_files": ["demo.gguf"]},
        "model": {"arch": ARCH, "expert_count": cfg.n_routed_experts,
                  "expert_used_count": cfg.num_experts_per_tok,
                  "leading_dense_block_count": cfg.first_k_dense_replace, "sidecar_layout": "layer-major"},
        "entries": entries,
    }
    write_json(os.path.join(folder, "manifest.json"), manifest)
    return entries


def manifest_entry(cfg, layer, family, shape, kind, raw, file, offset):
    experts, n_out, n_in = shape
    per_expert = n_in // 32 * BLOCK_BYTES[kind] * n_out
    assert per_expert * experts == len(raw)
    name = "blk.%d.%s.weight" % (layer, family)
    return {
        "layer": layer, "tensor_family": family, "tensor_name": name, "original_gguf_tensor_name": name,
        "expert_id": None, "quant_type": kind, "block_size": 32, "exact_byte_length": len(raw),
        "bytes_per_expert": per_expert, "source_shard": "demo.gguf", "source_shard_index": 0,
        "source_offset": 0, "shape": [n_in, n_out, experts], "quant_tier": None,
        "projection_quant_kind": None, "alternate_bank_offsets": None, "dynamic_quant_policy_tag": None,
        "repacked_file": file, "repacked_offset": offset,
    }


def summary(entries):
    fam, lay = {}, {}
    for e in entries:
        n = e["exact_byte_length"]
        f = fam.setdefault(e["tensor_family"], {"tensors": 0, "bytes": 0, "layers": 0})
        l = lay.setdefault(str(e["layer"]), {"tensors": 0, "bytes": 0, "families": 0})
        for d, key in ((f, "layers"), (l, "families")):
            d["tensors"] += 1
            d["bytes"] += n
            d[key] += 1
    return {"tensor_count": len(entries), "total_bytes": sum(e["exact_byte_length"] for e in entries),
            "by_family": fam, "by_layer": lay}


def write_json(path, obj):
    with open(path, "w") as f:
        json.dump(obj, f, indent=2)
        f.write("\n")


def write_package(folder, net, tok, dense, experts):
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "model-dense.gguf")
    count = write_gguf(path, net, tok, dense)
    s = summary(write_sidecar(os.path.join(folder, "sidecar"), net, experts))
    cfg = net.config
    write_json(os.path.join(folder, "flashmoe-package.json"), {
        "schema_version": 1, "kind": "flashmoe_dense_package", "generated_at": now(),
        "source": {"model_files": ["demo.gguf"], "sidecar_manifest": "sidecar/manifest.json", "layer_filter": None},
        "model": {"arch": ARCH, "name": NAME, "block_count": cfg.num_hidden_layers,
                  "leading_dense_block_count": cfg.first_k_dense_replace, "expert_count": cfg.n_routed_experts,
                  "expert_used_count": cfg.num_experts_per_tok, "context_length": CONTEXT,
                  "embedding_length": cfg.hidden_size, "file_type": 7},
        "dense_model": {"path": "model-dense.gguf", "tensor_count": count, "total_bytes": os.path.getsize(path)},
        "routed_removed": {"tensor_count": s["tensor_count"], "total_bytes": s["total_bytes"], "summary": s},
        "sidecar": {"path": "sidecar", "summary": s}, "runtime_hint": None,
    })
    print("dense %d bytes, experts %d bytes" % (os.path.getsize(path), s["total_bytes"]))


@torch.no_grad()
def write_logits(path, net, tok, length=200):
    """Reference logits of Hugging Face's own eager code in float32."""
    import make_items
    dm.training_mode(net, False)
    item = next(i for i in make_items.make(tok, 40, 99) if i["distance"] > 180)
    ids = tok.encode(item["prompt"]).ids[-length:]
    logits = net(torch.tensor([ids]), use_cache=False).logits[0].float()
    with open(path, "w") as f:
        json.dump({"tokens": ids, "logits": logits.tolist()}, f)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--checkpoint", required=True)
    ap.add_argument("--package", help="folder for model-dense.gguf, sidecar/ and flashmoe-package.json")
    ap.add_argument("--dense", default="Q8_0")
    ap.add_argument("--experts", default="Q8_0")
    ap.add_argument("--f32", help="one unquantised GGUF with the experts in place")
    ap.add_argument("--logits", help="reference logits of the unquantised model (JSON)")
    a = ap.parse_args()
    torch.set_num_threads(1)
    tok = Tokenizer.from_file(a.tokenizer)
    net, step, tokens = load(a.checkpoint, tok)
    print("step %s, %s tokens" % (step, tokens))
    if a.package:
        write_package(a.package, net, tok, a.dense, a.experts)
    if a.f32:
        write_gguf(a.f32, net, tok, "F32", experts=True)
    if a.logits:
        write_logits(a.logits, net, tok)


if __name__ == "__main__":
    main()
