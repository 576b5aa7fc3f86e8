"""What reads experts best: the pread pool against io_uring, reads cut or whole, past the page cache or through it.

    python3 tools/bench/readers.py model.gguf --tokens ids.json --bank 8 --out benches/receipts/readers.json

slotbank bench speed on one model with a bank so small that most of a token is read, one process per side and round, in
alternation A B C … C B A. With --memory-limit the processes run in a memory control group (version 1, needs root), where
the page cache counts as well, and the caches are dropped before each: without it `buffered` would measure memory.
Standard library only.
"""
import json
import os

import common

# The first one is what the others are compared with.
SIDES = {
    "pread": ["--reader", "pread-direct"],
    "uring": ["--reader", "uring-direct"],
    "pread, cut 2 ways": ["--reader", "pread-direct", "--io-split", "2"],
    "pread, cut 4 ways": ["--reader", "pread-direct", "--io-split", "4"],
    "uring, cut 4 ways": ["--reader", "uring-direct", "--io-split", "4"],
    "pread, buffered": ["--reader", "pread-buffered"],
}
CONTROL_GROUP = "/sys/fs/cgroup/memory/slotbank-readers"
FIGURES = ("tokens_per_s", "cpu_s_per_token", "stall_ms_per_token", "read_gb_per_s")


def capped(limit_bytes):
    """A prefix for commands that shall live with so much memory."""
    if not limit_bytes:
        return []
    os.makedirs(CONTROL_GROUP, exist_ok=True)
    with open(os.path.join(CONTROL_GROUP, "memory.limit_in_bytes"), "w") as limit:
        limit.write(str(limit_bytes))
    return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', CONTROL_GROUP]


def drop_caches():
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as drop:
        drop.write("3")


def command(options, extra):
    return common.speed_command(options, ["--promote", "never", "--warm-up", "1"] + extra)


def figures(test):
    rounds = test["rounds"]
    read, seconds = sum(r["bytes_read"] for r in rounds), sum(r["wall_ns"] for r in rounds) / 1e9
    return {"tokens_per_s": test["tokens_per_s"]["median"],
            "cpu_s_per_token": (test.get("cpu_s_per_token") or {}).get("median", 0.0),
            "stall_ms_per_token": test["stall_ms_per_token"]["median"],
            "bytes_read_per_token": test["bytes_read_per_token"]["median"],
            "read_gb_per_s": read / 1e9 / seconds}


def measure(options):
    """All rounds and what each side says it read with; the likeliest tokens must be the same for all sides."""
    prefix, rounds, readers, likeliest = capped(options.memory_limit), [], {}, {}
    sides = [side for side in SIDES if side in options.sides] if options.sides else list(SIDES)
    for index, side in common.alternating(sides, options.rounds):
        if len(rounds) == index:
            rounds.append({})
        if options.memory_limit:
            drop_caches()
        with common.watched() as noise:
            output = common.run_json(prefix + command(options, SIDES[side]), side)
        readers[side] = output["reader"]
        tests = {"%s %d" % (test["test"], test["tokens"]): figures(test) for test in output["tests"]}
        rounds[index][side] = {"noise": noise, "tests": tests}
        likeliest.setdefault(json.dumps([test["likeliest"] for test in output["tests"]]), side)
        print("%d %-18s %s" % (index, side, "  ".join(
            "%s %.2f tok/s, %.4f CPU s, %.2f GB/s" % (name, test["tokens_per_s"], test["cpu_s_per_token"], test["read_gb_per_s"])
            for name, test in tests.items())), flush=True)
    if len(likeliest) != 1:
        raise SystemExit("the sides computed different tokens: %s" % ", ".join(likeliest.values()))
    for r in rounds:
        r["busy"] = any(common.is_busy(side["noise"]) for side in r.values())
    return rounds, readers


def summary(rounds):
    result = {}
    for side in rounds[0]:
        if side == "busy":
            continue
        for name in rounds[0][side]["tests"]:
            mine, first = ([r[s]["tests"][name] for r in rounds] for s in (side, next(iter(SIDES))))
            entry = {key: common.spread([r[key] for r in mine]) for key in FIGURES}
            entry["ratio_to_first_by_round"] = common.spread(
                [a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(mine, first)])
            result["%s, %s" % (side, name)] = entry
    return result


def main():
    parser = common.speed_parser(__doc__)
    parser.add_argument("--memory-limit", type=int, default=0, help="bytes; 0 limits nothing")
    parser.add_argument("--sides", nargs="*", choices=list(SIDES), help="only these; the first of all must be among them")
    options = parser.parse_args()
    rounds, readers = measure(options)
    receipt = {
        **common.speed_receipt("readers of expert bytes against each other, in alternation, with a bank so small that most is read",
                               options),
        "order": "A B C … C B A, one process each, %d timed rounds after a warm-up in each" % options.inner_rounds,
        "readers": readers,
        "summary": summary(rounds),
        "summary_without_busy_rounds": summary([r for r in rounds if not r["busy"]] or rounds),
        "rounds": rounds,
    }
    common.write_receipt(options.out, receipt)
    for name, entry in receipt["summary"].items():
        print("%-34s %7.2f tok/s (%.2f-%.2f)  %.4f CPU s  %.2f GB/s  ratio %.3f (%.3f-%.3f)" % (
            name, entry["tokens_per_s"]["median"], entry["tokens_per_s"]["min"], entry["tokens_per_s"]["max"],
            entry["cpu_s_per_token"]["median"], entry["read_gb_per_s"]["median"], entry["ratio_to_first_by_round"]["median"],
            entry["ratio_to_first_by_round"]["min"], entry["ratio_to_first_by_round"]["max"]))


if __name__ == "__main__":
    main()
