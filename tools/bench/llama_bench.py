"""Tokens per second of llama.cpp on one model, as JSON in the shape of `slotbank bench speed --json`.

    python3 tools/bench/llama_bench.py model.gguf --prompt 512 --gen 64 --threads 2 --tokens ids.txt

Measures what llama.cpp's own benchmark measures, through the C interface that llama-cpp-python carries: a prompt of N tokens
into an empty cache, and N single tokens one after the other, after one round that warms up. The tokens are given, so that
another engine can do the same work. Build it natively: `CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary :all:
llama-cpp-python`; the line `system_info` shows what it was built for.
"""
import argparse
import ctypes
import json
import os
import sys
import time

import llama_cpp
from llama_cpp import llama_cpp as api

import common

FLASH = {"auto": -1, "off": 0, "on": 1}


def quiet_log():
    """Keeps the library's log for the messages of failures; returns the list of its lines and what keeps it alive."""
    lines = []

    @api.llama_log_callback
    def keep(_level, text, _data):
        lines.append(text.decode("utf-8", "replace"))

    api.llama_log_set(keep, ctypes.c_void_p(0))
    return lines, keep


def load(options):
    """Model and context."""
    params = api.llama_model_default_params()
    params.n_gpu_layers = 0
    # Newer versions have one field for how the file is read; older ones a flag.
    if hasattr(params, "load_mode"):
        params.load_mode = api.LLAMA_LOAD_MODE_MMAP if options.mmap else api.LLAMA_LOAD_MODE_NONE
        # Experts that are read when first used would be timed as if they were computed.
        params.lazy_mode = api.LLAMA_LAZY_MODE_OFF
    else:
        params.use_mmap = options.mmap
    model = api.llama_model_load_from_file(options.model.encode(), params)
    if not model:
        return None, None
    params = api.llama_context_default_params()
    longest = max([options.depth + options.gen] + options.prompt)
    # As much as is used, like llama.cpp's own benchmark.
    params.n_ctx = max(longest, options.ctx)
    params.n_batch, params.n_ubatch = max(options.batch, options.ubatch), options.ubatch
    params.n_threads, params.n_threads_batch = options.threads, options.threads_batch or options.threads
    params.flash_attn_type = FLASH[options.flash_attn]
    params.no_perf = True
    return model, api.llama_init_from_model(model, params)


def decode(context, ids, batch, all_logits=False):
    """Runs ids after what the cache holds; the last one's logits are computed, or those of all."""
    for start in range(0, len(ids), batch):
        part = ids[start:start + batch]
        array, wanted = (api.llama_token * len(part))(*part), (ctypes.c_int8 * len(part))(*[1] * len(part))
        request = api.llama_batch_get_one(array, len(part))
        if all_logits:
            request.logits = wanted
        code = api.llama_decode(context, request)
        if code != 0:
            sys.exit("llama_decode failed with %d" % code)
    api.llama_synchronize(context)


def likeliest(context, n_vocab):
    """The first of the largest logits of the last token."""
    row = ctypes.cast(api.llama_get_logits_ith(context, -1), ctypes.POINTER(ctypes.c_float * n_vocab)).contents[:]
    return row.index(max(row))


def one_round(context, ids, depth_ids, single, options, seen=None, n_vocab=0):
    """One timed round over an emptied cache."""
    api.llama_memory_clear(api.llama_get_memory(context), True)
    if depth_ids:
        decode(context, depth_ids, options.batch)
    cpu, begun = time.process_time_ns(), time.perf_counter_ns()
    if single:
        for token in ids:
            decode(context, [token], 1)
            if seen is not None:
                seen.append(likeliest(context, n_vocab))
    else:
        decode(context, ids, options.batch, options.all_logits)
    wall_ns, cpu_ns = time.perf_counter_ns() - begun, time.process_time_ns() - cpu
    if seen is not None and not single:
        seen.append(likeliest(context, n_vocab))
    return {"wall_ns": wall_ns, "cpu_ns": cpu_ns, "tokens_per_s": len(ids) * 1e9 / wall_ns}


def measure(context, name, n, tokens, options, n_vocab):
    """One test: a warm-up, then the rounds."""
    single = name == "decode"
    depth_ids = common.window(tokens, 0, options.depth) if single else []
    seen, rounds = [], []
    for index in range(options.rounds + 1):
        ids = common.window(tokens, index, n)
        if index == 0:
            ids = ids[:options.warm_up_tokens or n]
        done = one_round(context, ids, depth_ids, single, options, seen if index == 0 else None, n_vocab)
        if index > 0:
            rounds.append(done)
    return {
        "test": name,
        "tokens": n,
        "tokens_per_s": common.spread([r["tokens_per_s"] for r in rounds]),
        "cpu_s_per_token": common.spread([r["cpu_ns"] / 1e9 / n for r in rounds]),
        "rounds": rounds,
        "likeliest": seen,
    }


def versions():
    """Of the binding and what it carries."""
    found = {"llama_cpp_python": llama_cpp.__version__}
    for name, library in (("llama_version", api._lib), ("ggml_version", None), ("ggml_commit", None)):
        try:
            if library is None:
                folder = os.path.join(os.path.dirname(llama_cpp.__file__), "lib")
                base = next(f for f in sorted(os.listdir(folder)) if f.startswith("libggml-base."))
                library = ctypes.CDLL(os.path.join(folder, base))
            function = getattr(library, name)
            function.restype = ctypes.c_char_p
            found[name] = function().decode()
        except (AttributeError, OSError, StopIteration):
            continue
    return found


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompt", default="512", help="prompt lengths, separated by commas; 0 for none")
    parser.add_argument("--gen", type=int, default=128, help="tokens to decode one by one; 0 for none")
    parser.add_argument("--depth", type=int, default=0, help="positions in the cache when decoding starts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-up-tokens", type=int, default=0, help="tokens of the warm-up round, the first ones of its window [default: all]")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--threads-batch", type=int)
    parser.add_argument("--ubatch", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--ctx", type=int, default=0, help="at least this many positions")
    parser.add_argument("--flash-attn", choices=sorted(FLASH), default="auto")
    parser.add_argument("--all-logits", action="store_true",
                        help="ask for the logits of every prompt token: else the last layer is skipped for all but one")
    parser.add_argument("--mmap", action="store_true", help="map the file instead of reading it into memory")
    parser.add_argument("--tokens", help="file of token ids [default: the list that slotbank uses]")
    options = parser.parse_args()
    options.prompt = [int(n) for n in options.prompt.split(",") if int(n) > 0]
    return options


def main():
    options = arguments()
    log, keep = quiet_log()
    api.llama_backend_init()
    model, context = load(options)
    if not context:
        sys.exit("llama.cpp cannot load %s:\n%s" % (options.model, "".join(log[-30:])))
    n_vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    tokens = common.read_tokens(options.tokens) if options.tokens else common.fixed_tokens(n_vocab)
    if max(tokens) >= n_vocab:
        sys.exit("token %d is not in the vocabulary of %d" % (max(tokens), n_vocab))
    tests = [measure(context, "prefill", n, tokens, options, n_vocab) for n in options.prompt]
    if options.gen > 0:
        tests.append(measure(context, "decode", options.gen, tokens, options, n_vocab))
    outcome = {
        "engine": "llama.cpp",
        "version": versions(),
        "system_info": api.llama_print_system_info().decode().strip(),
        "model": os.path.basename(options.model),
        "n_vocab": n_vocab,
        "threads": options.threads,
        "options": {key: value for key, value in vars(options).items() if key not in ("model", "tokens")},
        "warm_up_rounds": 1,
        "tests": tests,
    }
    json.dump(outcome, sys.stdout, indent=1)
    print()
    api.llama_free(context)
    api.llama_model_free(model)
    del keep


if __name__ == "__main__":
    main()
