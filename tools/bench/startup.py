"""How long a sidecar of the published GLM-5.2's size takes to open, plan and inspect, with its receipt.

    cargo build --release
    python3 tools/bench/startup.py --binary target/release/slotbank --work /somewhere/with/sparse/files \\
        --out benches/receipts/startup.json

Makes the dense GGUF, the manifest and the bins of that model with holes in place of data: 213 GB of experts that take next to no
space. Every header, table and length is as in a real one, so opening, checking and planning do the same work; tensor data
cannot be read, and nothing here needs any. Standard library only.
"""
import argparse
import datetime
import json
import os
import shutil
import struct
import subprocess
import sys
import time

from common import commit, machine, spread, watched, write_receipt

LAYERS, DENSE_LAYERS, EXPERTS, TOP_K = 79, 3, 256, 8
WIDTH, FF_DENSE, FF, VOCAB = 6144, 12288, 2048, 154_880
HEADS, Q_LORA, KV_LORA, NOPE, ROPE, V_HEAD = 64, 2048, 512, 192, 64, 256
INDEX_HEADS, INDEX_DIM, INDEX_TOPK, CONTEXT = 32, 128, 2048, 1_048_576
# name: (ggml id, elements and bytes of a block)
TYPES = {"F32": (0, 1, 4), "Q8_0": (8, 32, 34), "Q2_K": (10, 256, 84), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176),
         "Q6_K": (14, 256, 210), "IQ2_XXS": (16, 256, 66), "IQ3_XXS": (18, 256, 98), "IQ1_M": (29, 256, 56)}
ALIGNMENT = 32


def tensor_bytes(kind, shape):
    _, elements, size = TYPES[kind]
    count = 1
    for n in shape:
        count *= n
    return count // elements * size


def dense_tensors():
    """(name, type, shape) of everything but the routed experts; the last layer predicts further tokens."""
    yield "token_embd.weight", "Q4_K", (WIDTH, VOCAB)
    for layer in range(LAYERS):
        def b(name):
            return "blk.%d.%s" % (layer, name)
        yield b("attn_norm.weight"), "F32", (WIDTH,)
        yield b("attn_q_a.weight"), "Q5_K", (WIDTH, Q_LORA)
        yield b("attn_q_a_norm.weight"), "F32", (Q_LORA,)
        yield b("attn_q_b.weight"), "Q4_K", (Q_LORA, HEADS * (NOPE + ROPE))
        yield b("attn_kv_a_mqa.weight"), "Q5_K", (WIDTH, KV_LORA + ROPE)
        yield b("attn_kv_a_norm.weight"), "F32", (KV_LORA,)
        yield b("attn_k_b.weight"), "Q8_0", (NOPE, KV_LORA, HEADS)
        yield b("attn_v_b.weight"), "Q6_K", (KV_LORA, V_HEAD, HEADS)
        yield b("attn_output.weight"), "Q6_K", (HEADS * V_HEAD, WIDTH)
        if layer < 2 or layer % 4 == 2:
            yield b("indexer.attn_q_b.weight"), "Q8_0", (Q_LORA, INDEX_HEADS * INDEX_DIM)
            yield b("indexer.attn_k.weight"), "Q8_0", (WIDTH, INDEX_DIM)
            yield b("indexer.k_norm.weight"), "F32", (INDEX_DIM,)
            yield b("indexer.k_norm.bias"), "F32", (INDEX_DIM,)
            yield b("indexer.proj.weight"), "Q8_0", (WIDTH, INDEX_HEADS)
        yield b("ffn_norm.weight"), "F32", (WIDTH,)
        suffix, width = ("", FF_DENSE) if layer < DENSE_LAYERS else ("_shexp", FF)
        if layer >= DENSE_LAYERS:
            yield b("ffn_gate_inp.weight"), "F32", (WIDTH, EXPERTS)
            yield b("exp_probs_b.bias"), "F32", (EXPERTS,)
        yield b("ffn_gate%s.weight" % suffix), "Q4_K", (WIDTH, width)
        yield b("ffn_up%s.weight" % suffix), "Q4_K", (WIDTH, width)
        yield b("ffn_down%s.weight" % suffix), "Q6_K", (width, WIDTH)
    yield "output_norm.weight", "F32", (WIDTH,)
    yield "output.weight", "Q6_K", (WIDTH, VOCAB)


def metadata():
    numbers = {
        "block_count": LAYERS, "nextn_predict_layers": 1, "context_length": CONTEXT, "embedding_length": WIDTH,
        "feed_forward_length": FF_DENSE, "attention.head_count": HEADS, "attention.head_count_kv": 1,
        "attention.key_length": KV_LORA + ROPE, "attention.value_length": KV_LORA,
        "attention.key_length_mla": NOPE + ROPE, "attention.value_length_mla": V_HEAD,
        "attention.q_lora_rank": Q_LORA, "attention.kv_lora_rank": KV_LORA,
        "attention.indexer.head_count": INDEX_HEADS, "attention.indexer.key_length": INDEX_DIM,
        "attention.indexer.top_k": INDEX_TOPK, "rope.dimension_count": ROPE, "expert_count": EXPERTS,
        "expert_used_count": TOP_K, "expert_shared_count": 1, "expert_group_count": 1, "expert_group_used_count": 1,
        "expert_feed_forward_length": FF, "expert_gating_func": 2, "leading_dense_block_count": DENSE_LAYERS,
        "vocab_size": VOCAB,
    }
    values = [("general.architecture", "glm-dsa")] + [("glm-dsa." + key, value) for key, value in numbers.items()]
    return values + [("glm-dsa.attention.layer_norm_rms_epsilon", 1e-5), ("glm-dsa.expert_weights_scale", 2.5),
                     ("glm-dsa.rope.freq_base", 8e6)]


def gguf_string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_value(value):
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_string(value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<II", 4, value)


def write_dense(path):
    """A GGUF whose data section is a hole. Returns its length."""
    tensors, values = list(dense_tensors()), metadata()
    out = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(values))]
    out += [gguf_string(key) + gguf_value(value) for key, value in values]
    at = 0
    for name, kind, shape in tensors:
        out.append(gguf_string(name) + struct.pack("<I%dQIQ" % len(shape), len(shape), *shape, TYPES[kind][0], at))
        at += -(-tensor_bytes(kind, shape) // ALIGNMENT) * ALIGNMENT
    header = b"".join(out)
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(-(-len(header) // ALIGNMENT) * ALIGNMENT + at)
    return os.path.getsize(path)


def expert_type(layer, family):
    """Types differ by layer and family; this mix gives the published number of bytes."""
    if family == "down":
        return "Q2_K" if layer >= 69 else "IQ3_XXS"
    return "IQ2_XXS" if layer <= 57 else "IQ1_M"


def write_sidecar(folder):
    """Manifest and bins of holes. Returns the bytes of the bins."""
    entries, total = [], 0
    for layer in range(DENSE_LAYERS, LAYERS):
        at = 0
        for family in ("gate", "up", "down"):
            kind = expert_type(layer, family)
            shape = (FF, WIDTH) if family == "down" else (WIDTH, FF)
            size, name = tensor_bytes(kind, shape), "blk.%d.ffn_%s_exps.weight" % (layer, family)
            entries.append({
                "layer": layer, "tensor_family": "ffn_%s_exps" % family, "tensor_name": name,
                "original_gguf_tensor_name": name, "expert_id": None, "quant_type": kind, "block_size": TYPES[kind][1],
                "exact_byte_length": size * EXPERTS, "source_shard": "model-00002-of-00005.gguf",
                "source_shard_index": 1, "source_offset": 1_000_000 + at, "shape": list(shape) + [EXPERTS],
                "bytes_per_expert": size, "quant_tier": None, "projection_quant_kind": None,
                "alternate_bank_offsets": None, "dynamic_quant_policy_tag": None,
                "repacked_file": "layer_%03d.bin" % layer, "repacked_offset": at})
            at += size * EXPERTS
        with open(os.path.join(folder, "layer_%03d.bin" % layer), "wb") as file:
            file.truncate(at)
        total += at
    manifest = {
        "schema_version": 1, "sidecar_kind": "flashmoe_gguf", "layout": "layer_major_whole_tensor",
        "generated_at": "2026-07-01T12:00:00+00:00", "include_shared": False,
        "filters": {"layers": None, "families": None}, "source": {"model_files": ["model-00001-of-00005.gguf"]},
        "model": {"arch": "glm-dsa", "expert_count": EXPERTS, "expert_used_count": TOP_K,
                  "leading_dense_block_count": DENSE_LAYERS, "sidecar_layout": "layer-major",
                  "gguf_metadata": {"glm-dsa.context_length": CONTEXT,
                                    "glm-dsa.attention.indexer.top_k": INDEX_TOPK}},
        "entries": entries}
    with open(os.path.join(folder, "manifest.json"), "w") as file:
        json.dump(manifest, file)
    return total


def timed(command):
    """Seconds of one process, bytes that it read from files, and its JSON."""
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - begun
    if done.returncode != 0:
        sys.exit("%s failed with %d:\n%s" % (" ".join(command), done.returncode, done.stderr))
    return seconds, json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/slotbank")
    parser.add_argument("--work", required=True, help="folder for the files of holes, removed afterwards")
    parser.add_argument("--ram", default="128GiB", help="memory to plan for: that of no machine in particular")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--limit-s", type=float, default=2.0, help="what the slowest round may take")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()

    root = os.path.join(options.work, "startup-sidecar")
    os.makedirs(os.path.join(root, "dense"))
    try:
        expert_bytes = write_sidecar(root)
        dense_bytes = write_dense(os.path.join(root, "dense", "model-dense.gguf"))
        stored = sum(os.stat(os.path.join(folder, name)).st_blocks * 512
                     for folder, _, names in os.walk(root) for name in names)
        plan = [options.binary, "plan", root, "--ram", options.ram, "--json"]
        commands = {
            "inspect": [options.binary, "inspect", root, "--json"],
            "plan, nothing measured": plan + ["--no-measure"],
            "plan": plan + ["--drive", "5"],
        }
        rounds, seen = {name: [] for name in commands}, {}
        with watched() as noise:
            for _ in range(options.rounds):
                for name, command in commands.items():
                    seconds, output = timed(command)
                    rounds[name].append(round(seconds, 4))
                    seen[name] = output
    finally:
        shutil.rmtree(root)

    outcome = seen["plan, nothing measured"]
    summary = {name: spread(seconds) for name, seconds in rounds.items()}
    receipt = {
        "what": "opening, checking, inspecting and planning a sidecar of 213 GB that holds no data, one process each",
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "options": {"ram": options.ram, "rounds": options.rounds, "limit_s": options.limit_s},
        "expert_bytes": expert_bytes, "dense_bytes": dense_bytes, "bytes_stored": stored,
        "planned": {"total_bytes": outcome["total_bytes"], "cold_bytes_per_token": outcome["work"]["cold_bytes"],
                    "resident_share": outcome["work"]["resident_share"]},
        "noise": noise,
        "summary_s": summary,
        "within_limit": all(figures["max"] < options.limit_s for figures in summary.values()),
        "rounds_s": rounds,
    }
    write_receipt(options.out, receipt)
    for name, figures in summary.items():
        print("%-24s %.3f s (%.3f to %.3f)" % (name, figures["median"], figures["min"], figures["max"]))
    if not receipt["within_limit"]:
        sys.exit("slower than %.1f s" % options.limit_s)


if __name__ == "__main__":
    main()
