"""Every weight format on slotbank and on llama.cpp: decode and prefill, as one receipt and one table.

    python3 tools/bench/format_table.py --work /tmp/probes --out benches/receipts/formats.json
    python3 tools/bench/format_table.py --work /tmp/probes --out … --formats IQ1_M,IQ2_XXS --redo

For each format it makes a small model whose routed experts, all in that format, do at least nine tenths of the multiply-adds,
runs both engines on it in alternation (compare_llama.py), measures the kernels alone (slotbank bench kernels), and deletes
the model. Every prompt token's logits are asked for, since the probe's only routed layer is its last, which both engines skip for
tokens that nobody asks about. The receipt is written after every format and continued where it ended; formats in it are skipped without --redo.

Weights per second are those of the expert matrices, times the tokens per second of the whole model; nothing is subtracted for
the rest, for neither engine. Kernels alone are held against what this machine reads from memory and multiplies and adds at most
(floats for F32, F16 and BF16, else bytes with sums of sixteen bits). GB/s likewise count the bytes of the experts used, and a multiply-add is two operations. One
thread is measured for decode, all of them for both; the table counts one thread by its processor time and all by the clock.
"""
import argparse
import datetime
import json
import os
import subprocess
import sys

import common
import compare_llama

FORMATS = ("F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS "
           "IQ3_S IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4 NVFP4").split()
SHARE_MIN = 0.90
ENGINES = compare_llama.ENGINES


def make_model(options, name, path, stream):
    """Writes the probe; its command line as a text without folders, or None where this build has no such format."""
    command = ["bench", "make-model", "--shape", "format-probe", "--experts-format", name, "--quiet", "--force"]
    command += options.make_args.split()
    done = subprocess.run([options.binary] + command + ["--stream", stream, path], capture_output=True, text=True)
    if done.returncode == 2 and ("no kernel" in done.stderr or "invalid value '%s'" % name in done.stderr):
        print("%s: left out, this build cannot make it: %s" % (name, done.stderr.strip().splitlines()[0]), file=sys.stderr)
        return None
    if done.returncode != 0:
        sys.exit("make-model failed with %d for %s:\n%s" % (done.returncode, name, done.stderr))
    return "slotbank " + " ".join(command)


def geometry(options, path):
    """Weights and bytes of the experts that one token uses, and their share of the multiply-adds."""
    found = common.run_json([options.binary, "inspect", path, "--json"], "inspect")
    sizes, parameters = found["geometry"], found["parameters"]
    used = sizes["expert_used_count"] / sizes["expert_count"]
    weights = parameters["experts"] * used
    # The embedding is looked up, not multiplied; the head is a matrix of its own.
    rest = parameters["dense"] - sizes["vocabulary"] * sizes["embedding_length"]
    share = weights / (weights + rest)
    if share < SHARE_MIN:
        sys.exit("the experts do %.1f %% of the multiply-adds, less than %.0f %%" % (100 * share, 100 * SHARE_MIN))
    return {"expert_weights_per_token": int(weights), "expert_bytes_per_token": int(found["experts"]["bytes"] * used),
            "expert_bytes": found["experts"]["bytes"], "share_of_multiply_adds": round(share, 4)}


def scaled(spread, by):
    return {key: value * by for key, value in spread.items()}


def engine_figures(compared, sizes, engine):
    """Tokens per second of one engine as what its kernels moved and computed; with `_by_cpu` per second of processor
    time, all threads together."""
    result = {}
    for name, entry in compared["summary"].items():
        speeds = {"": entry[engine]["tokens_per_s"]}
        if "cpu_s_per_token" in entry[engine]:
            cpu = entry[engine]["cpu_s_per_token"]
            speeds["_by_cpu"] = {"median": 1 / cpu["median"], "min": 1 / cpu["max"], "max": 1 / cpu["min"]}
        for by, speed in speeds.items():
            if name.startswith("decode"):
                result["decode_gb_per_s" + by] = scaled(speed, sizes["expert_bytes_per_token"] / 1e9)
                result["decode_gweights_per_s" + by] = scaled(speed, sizes["expert_weights_per_token"] / 1e9)
            else:
                result["prefill_gflop_per_s" + by] = scaled(speed, 2 * sizes["expert_weights_per_token"] / 1e9)
    return result


def compared(options, path, stream, threads, prompt, made_by):
    """Both engines on one probe."""
    settings = argparse.Namespace(**vars(options))
    settings.model, settings.tokens, settings.threads, settings.prompt = path, stream, threads, str(prompt)
    settings.threads_batch, settings.depth, settings.made_by = None, 0, made_by
    settings.all_logits = True
    return compare_llama.compare(settings)


def probe(options, name):
    """Everything about one format; None where it cannot be made."""
    path = os.path.join(options.work, "probe-%s.gguf" % name)
    stream = os.path.join(options.work, "probe-%s.tokens.json" % name)
    try:
        made_by = make_model(options, name, path, stream)
        if made_by is None:
            return None
        sizes = geometry(options, path)
        entry = {"date": datetime.date.today().isoformat(), "commit": common.commit(), "sizes": sizes, "threads": {}}
        for threads in options.thread_counts:
            done = compared(options, path, stream, threads, options.prompt if threads == options.thread_counts[-1] else 0,
                            made_by)
            done["figures"] = {engine: engine_figures(done, sizes, engine) for engine in ENGINES}
            entry["threads"][str(threads)] = done
    finally:
        for file in (path, stream):
            if os.path.exists(file):
                os.remove(file)
    entry["kernels"] = kernels(options, name)
    return entry


def kernels(options, name):
    """The kernels alone, and the machine's ceilings at the same time."""
    command = [options.binary, "bench", "kernels", "--formats", name, "--columns", "16,512", "--json", "--threads",
               str(options.thread_counts[-1])]
    found = common.run_json(command, "bench kernels")
    return {"ceilings": found["ceilings"], "isa": found["isa"], **{k: v for k, v in (found["formats"] or [{}])[0].items()}}


def table(receipt):
    """Markdown: a line per format, medians. One thread counts by its processor time, which neighbours disturb less."""
    counts = receipt["options"]["thread_counts"]
    head = ["format", "bits"]
    for threads in counts:
        head += ["GB/s %dT" % threads, "Gw/s %dT" % threads, "llama.cpp Gw/s %dT" % threads, "ratio"]
    head += ["prefill GFLOP/s %dT" % counts[-1], "llama.cpp", "ratio", "kernel alone Gw/s 1T", "of memory read",
             "kernel alone GFLOP/s 1T", "of multiply-adds"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for name in sorted(receipt["formats"], key=FORMATS.index):
        lines.append("| " + " | ".join(table_row(name, receipt["formats"][name], counts)) + " |")
    return "\n".join(lines) + "\n"


def table_row(name, entry, counts):
    """The cells of one format."""
    def cells(threads, keys, by):
        figures = entry["threads"].get(str(threads), {}).get("figures", {})
        median = lambda engine, key: (figures.get(engine, {}).get(key + by) or {}).get("median")
        ours, theirs = median("slotbank", keys[-1]), median("llama.cpp", keys[-1])
        ratio = ours / theirs if ours and theirs else None
        return [number(x) for x in [median("slotbank", key) for key in keys] + [theirs, ratio]]

    sizes, alone = entry["sizes"], entry["kernels"]
    row = [name, "%.2f" % (8 * sizes["expert_bytes_per_token"] / sizes["expert_weights_per_token"])]
    for threads in counts:
        row += cells(threads, ["decode_gb_per_s", "decode_gweights_per_s"], "_by_cpu" if threads == 1 else "")
    row += cells(counts[-1], ["prefill_gflop_per_s"], "_by_cpu" if counts[-1] == 1 else "")
    if "decode_gweights_per_s" not in alone:
        return row + ["–"] * 4
    one = lambda pair: pair["one"]["median"]
    share = lambda part, whole: "%.0f %%" % (100 * part / whole)
    ceilings, prefill = alone["ceilings"], one(alone["prefill"][-1]["gflop_per_s"])
    multiply = ceilings["f32_gflop_per_s" if name in ("F32", "F16", "BF16") else "int8_narrow_gop_per_s"]
    return row + [number(one(alone["decode_gweights_per_s"])),
                  share(one(alone["decode_gb_per_s"]), one(ceilings["read_gb_per_s"])),
                  number(prefill), share(prefill, one(multiply))]


def number(x):
    """Three digits, or a dash."""
    return "–" if x is None else "%.0f" % x if x >= 100 else "%.1f" % x if x >= 10 else "%.2f" % x


def new_receipt(options):
    unsaid = ("binary", "python", "out", "table", "work", "formats", "redo")
    return {
        "what": "decode and prefill by weight format: slotbank against llama.cpp, as separate processes in alternation, "
                "on models whose experts in that format do at least %d %% of the multiply-adds" % (100 * SHARE_MIN),
        "date": datetime.date.today().isoformat(),
        "machine": common.machine(),
        "options": {key: value for key, value in vars(options).items() if key not in unsaid},
        "formats": {},
    }


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    compare_llama.add_arguments(parser)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--gen", type=int, default=32)
    parser.add_argument("--make-args", default="", help="further options of `slotbank bench make-model`")
    parser.add_argument("--work", required=True, help="folder for the probes, 1 GB at most at a time")
    parser.add_argument("--out", required=True)
    parser.add_argument("--table", help="Markdown file [default: the receipt's name with .md]")
    parser.add_argument("--redo", action="store_true", help="measure formats again that the receipt has")
    parser.add_argument("--kernels-only", action="store_true", help="measure again only the kernels alone, of formats that it has")
    parser.add_argument("--table-only", action="store_true", help="write the table of the receipt as it stands")
    options = parser.parse_args()
    options.thread_counts = sorted({1, options.threads})
    options.table = options.table or os.path.splitext(options.out)[0] + ".md"
    return options


def main():
    options = arguments()
    names = [name.strip().upper() for name in options.formats.split(",") if name.strip()]
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        sys.exit("unknown formats: %s; known are %s" % (", ".join(unknown), " ".join(FORMATS)))
    receipt = new_receipt(options)
    if os.path.exists(options.out):
        with open(options.out) as old:
            receipt["formats"] = json.load(old)["formats"]
    os.makedirs(options.work, exist_ok=True)
    for name in names:
        if options.table_only or (name in receipt["formats"] and not (options.redo or options.kernels_only)):
            continue
        print("== %s" % name, file=sys.stderr)
        if options.kernels_only:
            receipt["formats"][name]["kernels"] = {"commit": common.commit(), **kernels(options, name)}
            common.write_receipt(options.out, receipt)
            continue
        entry = probe(options, name)
        if entry is not None:
            receipt["formats"][name] = entry
            common.write_receipt(options.out, receipt)
    text = table(receipt)
    with open(options.table, "w") as out:
        out.write(text)
    print(text, end="")


if __name__ == "__main__":
    main()
