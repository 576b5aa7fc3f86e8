"""slotbank and llama.cpp on the same GGUF with the same tokens and threads, side by side, with a receipt.

    python3 tools/bench/compare_llama.py model.gguf --tokens ids.txt --out benches/receipts/NAME.json

One process per engine and round, alternating A B B A …; every process warms up before it measures. Both get the same token
ids in the same windows (slotbank bench speed, llama_bench.py), and how often their likeliest next tokens agree is part of
the receipt: engines that disagree did not do the same work. Rounds are marked in which the host took over 20 % more time from
one side than from the other, or in which other processes were busy; a second summary leaves them out. Run it with the Python that has a natively built
llama-cpp-python, or name that one with --python.
"""
import argparse
import datetime
import os
import sys

import common

HERE = os.path.dirname(os.path.abspath(__file__))
ENGINES = ("slotbank", "llama.cpp")


def commands(options):
    """One command line per engine."""
    same = ["--prompt", str(options.prompt), "--gen", str(options.gen), "--depth", str(options.depth),
            "--rounds", str(options.inner_rounds), "--threads", str(options.threads), "--ubatch", str(options.ubatch)]
    if options.threads_batch:
        same += ["--threads-batch", str(options.threads_batch)]
    if options.all_logits:
        same += ["--all-logits"]
    if options.tokens:
        same += ["--tokens", options.tokens]
    slotbank = [options.binary, "bench", "speed", options.model, "--json", "--bank", options.bank] + same
    llama = [options.python, os.path.join(HERE, "llama_bench.py"), options.model, "--flash-attn", options.flash_attn]
    return {"slotbank": slotbank + options.slotbank_args.split(), "llama.cpp": llama + same}


def native(system_info):
    """Which vector extensions this machine has that the library was not built for."""
    has = set(common.machine()["vector_extensions"])
    words = {"avx2": "AVX2 = 1", "avx512f": "AVX512 = 1", "avx512_vnni": "AVX512_VNNI = 1", "asimddp": "DOTPROD = 1"}
    return [flag for flag, word in words.items() if flag in has and word not in system_info]


def test_name(test):
    return "%s %d" % (test["test"], test["tokens"])


def agreement(outputs):
    """Share of equal likeliest tokens, by test; of the warm-up rounds, which both engines run over the same window."""
    ours, theirs = ({test_name(t): t["likeliest"] for t in outputs[e]["tests"]} for e in ENGINES)
    shares = {}
    for name, ids in ours.items():
        pairs = list(zip(ids, theirs[name]))
        shares[name] = sum(a == b for a, b in pairs) / max(len(pairs), 1)
    return shares


def figures(output):
    """One process: its medians by test, and every round inside it."""
    return {test_name(t): {"tokens_per_s": t["tokens_per_s"]["median"],
                           "cpu_s_per_token": (t.get("cpu_s_per_token") or {}).get("median"),
                           "rounds": t["rounds"]} for t in output["tests"]}


def run_rounds(options):
    """All rounds, and the first output of each engine."""
    lines, rounds, first = commands(options), [], {}
    for index, engine in common.alternating(ENGINES, options.rounds):
        if len(rounds) == index:
            rounds.append({"round": index})
        with common.watched() as noise:
            output = common.run_json(lines[engine], engine)
        first.setdefault(engine, output)
        rounds[index][engine] = {"noise": noise, "tests": figures(output)}
        if engine == "llama.cpp" and not options.allow_foreign_build and native(output["system_info"]):
            sys.exit("llama.cpp was not built for this machine: %s missing in\n%s"
                     % (", ".join(native(output["system_info"])), output["system_info"]))
        print("%d %-9s %s" % (index, engine, "  ".join("%s %.2f tok/s" % (name, test["tokens_per_s"]) for name, test
                                                       in rounds[index][engine]["tests"].items())), file=sys.stderr)
    for r in rounds:
        noises = [r[engine]["noise"] for engine in ENGINES]
        r["steal_differs"] = common.steal_differs(*noises)
        r["busy"] = any(common.is_busy(noise) for noise in noises)
    if any(r["busy"] for r in rounds):
        print("warning: other processes took over %.0f %% of the machine in %d of %d rounds"
              % (100 * common.OTHERS_SHARE_MAX, sum(r["busy"] for r in rounds), len(rounds)), file=sys.stderr)
    return rounds, first


def summary(rounds):
    """By test: each engine's spread, and the ratio of their medians beside the spread of the rounds' own ratios."""
    if not rounds:
        return None
    result = {}
    for name in rounds[0][ENGINES[0]]["tests"]:
        ours, theirs = ([r[engine]["tests"][name] for r in rounds] for engine in ENGINES)
        speeds = [[test["tokens_per_s"] for test in side] for side in (ours, theirs)]
        entry = {"rounds": len(rounds)}
        for engine, side, speed in zip(ENGINES, (ours, theirs), speeds):
            entry[engine] = {"tokens_per_s": common.spread(speed)}
            cpu = [test["cpu_s_per_token"] for test in side]
            if None not in cpu:
                entry[engine]["cpu_s_per_token"] = common.spread(cpu)
        medians = [entry[engine]["tokens_per_s"]["median"] for engine in ENGINES]
        entry["ratio"] = {"of_medians": medians[0] / medians[1],
                          "by_round": common.spread([a / b for a, b in zip(*speeds)])}
        if all("cpu_s_per_token" in entry[engine] for engine in ENGINES):
            cpu = [entry[engine]["cpu_s_per_token"]["median"] for engine in ENGINES]
            entry["ratio"]["of_cpu_time"] = cpu[1] / cpu[0]
        result[name] = entry
    return result


def compare(options):
    """Everything measured on one model, as it stands in a receipt."""
    rounds, first = run_rounds(options)
    ours, theirs = (first[engine] for engine in ENGINES)
    return {
        "model": {"file": os.path.basename(options.model), "bytes": os.path.getsize(options.model),
                  "architecture": ours["architecture"], "n_vocab": ours["n_vocab"], "made_by": options.made_by},
        "versions": {"slotbank": ours["version"], "llama.cpp": theirs["version"]},
        "system_info": theirs["system_info"],
        "backend": ours["backend"],
        "engine_options": {"slotbank": ours["options"], "llama.cpp": theirs["options"]},
        "order": "A B B A, %d rounds, one process each, %d timed after a warm-up in each process"
                 % (options.rounds, options.inner_rounds),
        "same_likeliest_token": agreement(first),
        "summary": summary(rounds),
        "summary_without_marked_rounds": summary([r for r in rounds if not (r["steal_differs"] or r["busy"])]),
        "rounds": rounds,
    }


def add_arguments(parser):
    """The options that format_table.py has as well."""
    parser.add_argument("--binary", default="target/release/slotbank")
    parser.add_argument("--python", default=sys.executable, help="the Python that has llama-cpp-python")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--threads-batch", type=int, help="where both engines are to use another number for prompts")
    parser.add_argument("--ubatch", type=int, default=512)
    parser.add_argument("--flash-attn", default="auto")
    parser.add_argument("--rounds", type=int, default=6, help="processes per engine")
    parser.add_argument("--inner-rounds", type=int, default=1, help="timed rounds in each process")
    parser.add_argument("--bank", default="all")
    parser.add_argument("--slotbank-args", default="", help="further options of `slotbank bench speed`")
    parser.add_argument("--allow-foreign-build", action="store_true",
                        help="go on with a llama.cpp that was not built for this machine")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", help="file of token ids for both [default: a fixed list]")
    parser.add_argument("--prompt", default="64,512")
    parser.add_argument("--gen", type=int, default=64)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--all-logits", action="store_true",
                        help="ask for the logits of every prompt token: else both engines skip the last layer for all but one")
    parser.add_argument("--made-by", default="", help="the command that made the model, for the receipt")
    parser.add_argument("--out", required=True)
    add_arguments(parser)
    options = parser.parse_args()
    done = compare(options)
    unsaid = ("model", "binary", "python", "out", "tokens", "made_by")
    receipt = {
        "what": "slotbank against llama.cpp on the same GGUF, tokens and threads, every expert resident"
                if options.bank == "all" else "slotbank with a bank of %s against llama.cpp" % options.bank,
        "date": datetime.date.today().isoformat(),
        "commit": common.commit(),
        "machine": common.machine(),
        "options": {key: value for key, value in vars(options).items() if key not in unsaid},
        **done,
    }
    common.write_receipt(options.out, receipt)
    for name, entry in done["summary"].items():
        speeds = [entry[engine]["tokens_per_s"] for engine in ENGINES]
        print("%-12s slotbank %8.2f (%.2f-%.2f)  llama.cpp %8.2f (%.2f-%.2f)  ratio %.2f (%.2f-%.2f)  same token %.0f %%" % (
            name, speeds[0]["median"], speeds[0]["min"], speeds[0]["max"], speeds[1]["median"], speeds[1]["min"],
            speeds[1]["max"], entry["ratio"]["of_medians"], entry["ratio"]["by_round"]["min"],
            entry["ratio"]["by_round"]["max"], 100 * done["same_likeliest_token"][name]))


if __name__ == "__main__":
    main()
