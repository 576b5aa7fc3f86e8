"""What each idea of streaming is worth: the same tokens with it and without it, in turns in one process.

    python3 tools/bench/streaming_ablations.py model.gguf --tokens ids.json --bank 25% --pace 600 --out benches/receipts/streaming-ablations.json

`slotbank bench speed --against` builds the bank anew for every round and checks that both sides compute the same. --pace holds reads to a drive of
that rate, which should be about as slow as computing: there overlap is worth most, and noise of the drive at hand is out of it. Without it the
drive is what it is. --only names ideas. Standard library only.
"""
import sys

import common

# Idea: the options with it, the options without it, and whether it is the default.
IDEAS = {
    "hits and the shared expert are computed while misses are read": ("--prefetch off", "--prefetch off --no-hits-first", True),
    "gate and up of all misses are read before any down": ("--prefetch off", "--prefetch off --no-ordered-reads", True),
    "the next layer's router guesses (next-layer)": ("--prefetch next-layer", "--prefetch off", False),
    "guesses where they gain by the clock (auto)": ("--prefetch auto", "--prefetch off", True),
    "guesses from the token before (previous)": ("--prefetch previous", "--prefetch off", False),
    "evict by frequency (lfu) rather than by age (lru)": ("--prefetch off --policy lfu", "--prefetch off --policy lru", True),
    "evict by frequency (lfu) rather than by both (lrfu)": ("--prefetch off --policy lfu", "--prefetch off --policy lrfu", True),
    "reads cut 4 ways while few are outstanding": ("--prefetch off --io-split 4", "--prefetch off --io-split 1", False),
    "io_uring rather than a pool of threads": ("--prefetch off --reader uring-direct", "--prefetch off --reader pread-direct", False),
}
FIGURES = ("bytes_read_per_token", "stall_ms_per_token", "io_wall_ms_per_token", "cpu_s_per_token")


def measure(options, ways):
    """Both sides of one idea."""
    with_it, without, default = ways
    paced = ["--pace", str(options.pace)] if options.pace else []
    line = common.speed_command(options, ["--reader", "pread-direct"] if "--reader" not in with_it else [])
    line += paced + ["--promote", "never", "--warm-up", "1", "--warm-up-tokens", str(options.warm_up_tokens), "--quiet"]
    with common.watched() as noise:
        output = common.run_json(line + with_it.split() + ["--against", without], with_it)
    result = {"with": with_it, "without": without, "is_the_default": default, "noise": noise, "tests": []}
    for one, other, ratio in zip(output["tests"], output["against"]["tests"], output["against"]["ratios"]):
        sides = {}
        for name, test in (("with", one), ("without", other)):
            sides[name] = {"tokens_per_s": test["tokens_per_s"], **{key: test[key]["median"] for key in FIGURES if test.get(key)}}
            hits, misses = (sum(r[key] for r in test["rounds"]) for key in ("hits", "misses"))
            sides[name]["hit_rate"] = hits / max(hits + misses, 1)
            if any(r.get("guesses") for r in test["rounds"]):
                guesses = [r["guesses"] for r in test["rounds"] if r.get("guesses")]
                sides[name]["guesses"] = {key: sum(g[key] for g in guesses) for key in guesses[0]}
        result["tests"].append({"test": one["test"], "tokens": one["tokens"], **sides, "ratio": ratio})
    return result


def main():
    parser = common.speed_parser(__doc__, bank="25%", gen=128)
    parser.set_defaults(inner_rounds=6)
    parser.add_argument("--pace", type=int, help="MB per second of the drive")
    parser.add_argument("--warm-up-tokens", type=int, default=64)
    parser.add_argument("--only", action="append", help="ideas that contain this text")
    options = parser.parse_args()
    ideas = {name: ways for name, ways in IDEAS.items() if not options.only or any(text in name for text in options.only)}
    receipt = common.speed_receipt("streaming with and without an idea, in turns in one process", options)
    receipt["ideas"] = {}
    for name, ways in ideas.items():
        receipt["ideas"][name] = measure(options, ways)
        for test in receipt["ideas"][name]["tests"]:
            ratio = test["ratio"]
            print("%-70s %s %d  %.2f against %.2f tok/s  %.3f (%.3f to %.3f)" % (
                name, test["test"], test["tokens"], test["with"]["tokens_per_s"]["median"], test["without"]["tokens_per_s"]["median"],
                ratio["median"], ratio["min"], ratio["max"]), file=sys.stderr, flush=True)
        common.write_receipt(options.out, receipt)


if __name__ == "__main__":
    main()
