#!/usr/bin/env python3
"""Perplexity of the same GGUF and text by slotbank and by llama.cpp, whose logits are counted here as its perplexity tool counts them.

    python3 tools/goldens/compare_llama_perplexity.py MODEL.gguf TEXT --window 256 --binary target/release/slotbank

Needs llama-cpp-python and numpy. Both engines tokenise the text themselves. A difference above the standard error that is printed is
a failure.
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


def tokens_of(vocab, text):
    data = text.encode()
    room = (api.llama_token * (len(data) + 8))()
    count = api.llama_tokenize(vocab, data, len(data), room, len(room), True, False)
    return list(room[:count])


def nll_of(path, text, window, chunks):
    params = api.llama_model_default_params()
    params.n_gpu_layers = 0
    model = api.llama_model_load_from_file(path.encode(), params)
    if not model:
        sys.exit(f"llama.cpp cannot load {path}")
    vocab = api.llama_model_get_vocab(model)
    n_vocab = api.llama_vocab_n_tokens(vocab)
    tokens = tokens_of(vocab, text)
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = window
    context = api.llama_init_from_model(model, params)
    result = []
    for start in range(0, len(tokens) // window * window, window)[:chunks]:
        part = tokens[start : start + window]
        fed = [api.llama_vocab_bos(vocab)] + part[1:] if api.llama_vocab_get_add_bos(vocab) else part
        api.llama_memory_clear(api.llama_get_memory(context), True)
        array, wanted = (api.llama_token * window)(*fed), (ctypes.c_int8 * window)(*[1] * window)
        batch = api.llama_batch_get_one(array, window)
        batch.logits = wanted
        if api.llama_decode(context, batch) != 0:
            sys.exit("llama_decode failed")
        for j in range(window // 2, window - 1):
            row = ctypes.cast(api.llama_get_logits_ith(context, j), ctypes.POINTER(ctypes.c_float * n_vocab))
            logits = np.array(row.contents[:], np.float64)
            top = logits.max()
            result.append(top + np.log(np.exp(logits - top).sum()) - logits[part[j + 1]])
    return np.array(result)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--binary", default="target/release/slotbank")
    parser.add_argument("--slotbank-args", default="", help="further options of `slotbank perplexity`")
    parser.add_argument("--made-by", default="", help="the command that made the model, for the receipt")
    parser.add_argument("--out", help="receipt to write")
    options = parser.parse_args()
    api.llama_backend_init()
    silent = api.llama_log_callback(lambda *_: None)
    api.llama_log_set(silent, ctypes.c_void_p(0))
    with open(options.text, encoding="utf-8") as source:
        nll = nll_of(options.model, source.read(), options.window, options.chunks)
    theirs, error = float(np.exp(nll.mean())), float(np.exp(nll.mean()) * np.sqrt(nll.var() / (len(nll) - 1)))
    ours = json.loads(subprocess.run(
        [options.binary, "perplexity", options.model, "-f", options.text, "-c", str(options.window), "--chunks", str(options.chunks), "--json",
         "-q", *options.slotbank_args.split()], capture_output=True, text=True, check=True).stdout)
    print(f"llama.cpp {theirs:.4f} ± {error:.5f} over {len(nll)} predictions, slotbank {ours['perplexity']:.4f} ± {ours['error']:.5f} over "
          f"{ours['tokens']}")
    if options.out:
        common.write_receipt(options.out, {
            "what": "perplexity of one text by both engines, llama.cpp's logits counted as its perplexity tool counts them", "commit": common.commit(),
            "model": {"file": pathlib.Path(options.model).name, "made_by": options.made_by}, "window": options.window,
            "slotbank_args": options.slotbank_args, "text_bytes": pathlib.Path(options.text).stat().st_size,
            "llama.cpp": {"perplexity": theirs, "error": error, "tokens": len(nll)}, "slotbank": ours})
    if ours["tokens"] != len(nll) or abs(ours["perplexity"] - theirs) > error:
        sys.exit("they do not agree")


if __name__ == "__main__":
    main()
