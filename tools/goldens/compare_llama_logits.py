#!/usr/bin/env python3
"""slotbank and llama.cpp on the same toy GGUFs: the logits of every position, prefilled and token by token.

    cargo run --release -p slotbank-toy --example write -- FOLDER
    python3 tools/goldens/compare_llama_logits.py FOLDER --binary target/release/slotbank

Needs llama-cpp-python (any build) and numpy. Caches in f32 on both sides and the latent norms' epsilon as llama.cpp has it
(the layers' own). NAME.gguf is compared, where more than 2e-5 of the largest logit is a failure unless its cause is known, which is
then printed; and, where there is one, NAME.llama.gguf, from which that cause has been taken out and where nothing is excused.
"""

import argparse
import ctypes
import json
import pathlib
import subprocess
import sys

import numpy as np
from llama_cpp import llama_cpp as api

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "bench"))
import common  # noqa: E402

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures"
BOUND = 2e-5
CAUSES = {
    "qwen3moe_yarn": "llama.cpp takes gate and up of this architecture from two tensors only",
    "gpt_oss": "llama.cpp rounds the ends of YaRN's ramp to whole pairs",
    "gpt_oss_wide": "llama.cpp rounds the ends of YaRN's ramp to whole pairs",
    "kimi": "llama.cpp does not read yarn_beta_fast and yarn_beta_slow of this architecture and uses 32 and 1",
    "v2": "llama.cpp scores a group by its two best experts and puts no YaRN factor on cosines and sines",
    "lite": "llama.cpp needs 27 layers to know that there is no query latent",
    # transformers with that table is as far from llama.cpp in float32 as from itself in float64: values cross from one half to the next.
    **dict.fromkeys(("gemma4", "gemma4_values", "gemma4_wide"), "llama.cpp looks gelu up in a table of halves"),
}


def llama(path, tokens, first):
    """Logits of all positions: `first` tokens at once, the rest one by one; None where the file is refused."""
    params = api.llama_model_default_params()
    params.n_gpu_layers = 0
    model = api.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        return None
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 128
    params.n_threads = params.n_threads_batch = 2
    params.type_k = params.type_v = api.GGML_TYPE_F32
    params.flash_attn_type = 0
    context = api.llama_init_from_model(model, params)
    n_vocab, rows = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model)), []
    for part in [tokens[:first]] + [[token] for token in tokens[first:]]:
        array, wanted = (api.llama_token * len(part))(*part), (ctypes.c_int8 * len(part))(*[1] * len(part))
        batch = api.llama_batch_get_one(array, len(part))
        batch.logits = wanted
        if api.llama_decode(context, batch) != 0:
            sys.exit(f"{path}: llama_decode failed")
        for i in range(len(part)):
            row = ctypes.cast(api.llama_get_logits_ith(context, i), ctypes.POINTER(ctypes.c_float * n_vocab))
            rows.append(np.array(row.contents[:], np.float32))
    api.llama_free(context)
    api.llama_model_free(model)
    return np.stack(rows)


def slotbank(binary, path, tokens, eps):
    done = subprocess.run([binary, "logits", str(path), "--tokens", ",".join(map(str, tokens)), "--cache-type", "f32",
                           "--latent-eps", str(eps), "--bank", "all", "--quiet"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{path}: {done.stderr}")
    return np.array(json.loads(done.stdout)["logits"], np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--binary", default="target/release/slotbank")
    parser.add_argument("--out", help="receipt to write")
    parser.add_argument("--only", help="toys whose names contain this")
    options = parser.parse_args()
    api.llama_backend_init()
    silent = api.llama_log_callback(lambda *_: None)
    api.llama_log_set(silent, ctypes.c_void_p(0))
    failed, rows = [], []
    for fixture in sorted([*FIXTURES.glob("deepseek2/*.json"), *FIXTURES.glob("families/*.json")]):
        record = json.loads(fixture.read_text())
        name, tokens = record["name"], record["tokens"]
        # (Toys for the table of formats are not about the architecture, and llama.cpp aborts on a silent router.)
        if (options.only and options.only not in name) or name.endswith("_256"):
            continue
        eps = record["config"]["rms_norm_eps"] if "config" in record else 1e-6
        for path in (options.folder / f"{name}.gguf", options.folder / f"{name}.llama.gguf"):
            if not path.exists():
                continue
            ours = slotbank(options.binary, path, tokens, eps)
            theirs = {first: llama(path, tokens, first) for first in (len(tokens), len(tokens) - 24)}
            if any(logits is None for logits in theirs.values()):
                print(f"{path.name}: llama.cpp refuses it: {CAUSES.get(name, 'unknown')}")
                rows.append({"file": path.name, "refused": CAUSES.get(name, "unknown")})
                failed += [path.name] if name not in CAUSES or ".llama." in path.name else []
                continue
            scale = float(np.abs(ours).max())
            for first, logits in theirs.items():
                off = float(np.abs(ours - logits).max()) / scale
                same = int((ours.argmax(-1) == logits.argmax(-1)).sum())
                known = "" if off <= BOUND or ".llama." in path.name else CAUSES.get(name, "")
                print(f"{path.name}: prefill of {first}: {off:.1e} of the largest logit, same likeliest token at {same} of "
                      f"{len(tokens)} positions{'; ' + known if known else ''}")
                rows.append({"file": path.name, "prefill": first, "positions": len(tokens), "share_of_largest_logit": off, "same_likeliest": same,
                             **({"cause": known} if known else {})})
                if off > BOUND and not known:
                    failed.append(path.name)
    if options.out:
        common.write_receipt(options.out, {"what": "logits of every toy by slotbank and by llama.cpp, prefilled and token by token; caches in f32",
                                           "commit": common.commit(), "bound": BOUND, "toys": rows})
    if failed:
        sys.exit(f"unexplained: {sorted(set(failed))}")


if __name__ == "__main__":
    main()
