"""Decode and prefill with less memory than the model has experts: slotbank against llama.cpp, and against the bounds.

    sudo python3 tools/bench/streaming.py model.gguf --tokens ids.json --caps 0.25,0.5,1.0 --out benches/receipts/streaming.json

For each cap (a share of the experts' bytes) both engines run in a memory control group of the dense weights, that share of the experts
and what a process needs beside them; page cache counts there, so a mapped file is capped as well. Caches are dropped before every process. Rounds
alternate A B B A, one process each. Beside them, in the same run: decode with every expert resident (compute), and the drive
(slotbank doctor). From these and the routing trace of the same tokens `slotbank trace simulate` computes the bounds: the ideal one, the
longer of reading and computing, and the one of the dependencies, in which a layer's reads wait for its router.

Needs root, for control groups (version 1: memory, blkio) and for dropping caches. --throttle limits what both engines may read per second.
"""
import argparse
import contextlib
import datetime
import json
import os
import subprocess
import sys
import time

import common
import compare_llama

ROOT = "/sys/fs/cgroup"
MIB = 1 << 20


class Group:
    """A control group with a memory limit, and with a limit of bytes read per second where one is given."""

    def __init__(self, name, limit_bytes, device=None, read_bytes_per_s=None):
        self.folders = [os.path.join(ROOT, "memory", name)]
        os.makedirs(self.folders[0], exist_ok=True)
        self.put(self.folders[0], "memory.limit_in_bytes", str(limit_bytes))
        with contextlib.suppress(OSError):
            self.put(self.folders[0], "memory.swappiness", "0")
        if read_bytes_per_s:
            self.folders.append(os.path.join(ROOT, "blkio", name))
            os.makedirs(self.folders[1], exist_ok=True)
            self.put(self.folders[1], "blkio.throttle.read_bps_device", "%s %d" % (device, read_bytes_per_s))

    @staticmethod
    def put(folder, file, text):
        with open(os.path.join(folder, file), "w") as out:
            out.write(text)

    def join(self):
        """Moves the calling process (a child that is about to become the engine) into the group."""
        for folder in self.folders:
            self.put(folder, "cgroup.procs", str(os.getpid()))

    def peak_bytes(self):
        with open(os.path.join(self.folders[0], "memory.max_usage_in_bytes")) as source:
            return int(source.read())

    def remove(self):
        for folder in self.folders:
            for _ in range(50):
                try:
                    os.rmdir(folder)
                    break
                except OSError:
                    time.sleep(0.1)


def drop_caches():
    subprocess.run(["sync"], check=True)
    with open("/proc/sys/vm/drop_caches", "w") as out:
        out.write("3")


def device_of(path):
    """major:minor of the drive that holds the file."""
    number = os.stat(path).st_dev
    return "%d:%d" % (os.major(number), os.minor(number))


def run_in(group, command, what):
    """The JSON that a command prints, run in the group; its last words if it fails."""
    drop_caches()
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=group.join if group else None)
    if done.returncode != 0:
        sys.exit("%s failed with %d:\n%s\n%s" % (what, done.returncode, " ".join(command), done.stderr[-4000:]))
    return json.loads(done.stdout)


def speed(options, bank, prompt, gen, extra=()):
    command = [options.binary, "bench", "speed", options.model, "--json", "--bank", str(bank), "--prompt", prompt, "--gen", str(gen),
               "--rounds", "1", "--warm-up", "1", "--threads", str(options.threads), "--tokens", options.tokens]
    return command + list(extra) + options.slotbank_args.split()


def llama(options, prompt, gen):
    here = os.path.dirname(os.path.abspath(__file__))
    return [options.python, os.path.join(here, "llama_bench.py"), options.model, "--prompt", prompt, "--gen", str(gen), "--rounds", "1",
            "--threads", str(options.threads), "--tokens", options.tokens, "--mmap"]


def geometry(options):
    found = common.run_json([options.binary, "inspect", options.model, "--json"], "inspect")
    total = os.path.getsize(options.model)
    return {"bytes": total, "expert_bytes": found["experts"]["bytes"], "dense_bytes": total - found["experts"]["bytes"]}


def figures(output):
    """By test: what its one round says."""
    result = {}
    for test in output["tests"]:
        entry = {"tokens_per_s": test["tokens_per_s"]["median"], "rounds": test["rounds"]}
        for key in ("cpu_s_per_token", "bytes_read_per_token", "stall_ms_per_token"):
            if test.get(key):
                entry[key] = test[key]["median"]
        result["%s %d" % (test["test"], test["tokens"])] = entry
    return result


def measure_cap(options, sizes, cap):
    """All rounds at one cap."""
    bank = int(cap * sizes["expert_bytes"])
    limit = sizes["dense_bytes"] + bank + options.beside_mib * MIB
    throttle = options.throttle * 1e6 if options.throttle else None
    group = Group("slotbank-bench-%d" % os.getpid(), limit, device_of(options.model), throttle)
    sides = {"slotbank": speed(options, "%dB" % bank, options.prompt, options.gen), "llama.cpp": llama(options, options.prompt, options.gen)}
    if options.only:
        sides = {name: command for name, command in sides.items() if name == options.only}
    rounds, likeliest = [], {}
    for index, side in common.alternating(sides, options.rounds):
        if len(rounds) == index:
            rounds.append({"round": index})
        with common.watched() as noise:
            output = run_in(group, sides[side], side)
        rounds[index][side] = {"noise": noise, "tests": figures(output)}
        likeliest.setdefault(side, [test["likeliest"] for test in output["tests"]])
        print("cap %.2f round %d %-9s %s" % (cap, index, side, "  ".join(
            "%s %.2f tok/s" % (name, test["tokens_per_s"]) for name, test in rounds[index][side]["tests"].items())), file=sys.stderr)
    peak = group.peak_bytes()
    group.remove()
    summary = {}
    for name in rounds[0][list(sides)[0]]["tests"]:
        entry = {side: common.spread([r[side]["tests"][name]["tokens_per_s"] for r in rounds]) for side in sides}
        if len(sides) == 2:
            pairs = [(r["slotbank"]["tests"][name]["tokens_per_s"], r["llama.cpp"]["tests"][name]["tokens_per_s"]) for r in rounds]
            entry["ratio"] = {"of_medians": entry["slotbank"]["median"] / entry["llama.cpp"]["median"],
                              "by_round": common.spread([a / b for a, b in pairs])}
        summary[name] = entry
    same = {}
    if len(likeliest) == 2:
        for name, ours, theirs in zip(summary, *likeliest.values()):
            pairs = list(zip(ours, theirs))
            same[name] = sum(a == b for a, b in pairs) / max(len(pairs), 1)
    return {"cap": cap, "bank_bytes": bank, "memory_limit_bytes": limit, "memory_peak_bytes": peak, "summary": summary,
            "same_likeliest_token": same, "rounds": rounds}


def compute(options):
    """Decode with every expert resident: what computing takes, packed experts left out since a small bank has none."""
    runs = [figures(run_in(None, speed(options, "all", "0", options.gen, ["--promote", "never"]), "resident")) for _ in range(options.compute_rounds)]
    speeds = [test["tokens_per_s"] for run in runs for test in run.values()]
    return {"tokens_per_s": common.spread(speeds), "ms_per_token": 1000 / common.spread(speeds)["median"]}


def drive(options):
    """Rate and latency of the drive; what a throttle leaves of it."""
    found = common.run_json([options.binary, "doctor", options.model, "--quick", "--json"], "doctor")
    rate = found["read_gb_per_s"]
    if options.throttle:
        rate = min(rate or options.throttle / 1e3, options.throttle / 1e3)
    return {"read_gb_per_s": rate, "read_latency_us": found["read_latency_us"]}


def bounds(options, measured, resident, caps):
    """Tokens per second that the trace of the same tokens allows at each cap: ideal, and by the dependencies, with and without
    reads that begin a layer early as far as the next layer's router foresees them."""
    trace = options.out + ".trace"
    record = [options.binary, "trace", "record", trace, "-m", options.model, "--tokens", options.tokens, "-n", str(2 * options.gen), "--bank", "all", "--threads",
              str(options.threads), "--prefetch", "off"]
    subprocess.run(record, check=True, capture_output=True)
    result = {}
    for name in ("none", "0.75"):
        command = [options.binary, "trace", "simulate", trace, "-m", options.model, "--json", "--policies", "lfu", "--budget", "global",
                   "--sizes", ",".join("%g" % (100 * cap) for cap in caps), "--warm-up", str(options.gen), "--lookahead", name,
                   "--read-gb-per-s", str(measured["read_gb_per_s"]), "--read-latency-us", str(measured["read_latency_us"]),
                   "--compute-ms", str(resident["ms_per_token"])]
        result[name] = common.run_json(command, "trace simulate")
    for file in (trace, trace + ".model.json"):
        os.remove(file)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--caps", default="0.25,0.5,1.0")
    parser.add_argument("--prompt", default="0", help="prompt lengths, separated by commas")
    parser.add_argument("--gen", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compute-rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--beside-mib", type=int, default=1024, help="memory for buffers, caches and the program itself")
    parser.add_argument("--throttle", type=float, help="MB per second that may be read")
    parser.add_argument("--only", choices=("slotbank", "llama.cpp"))
    parser.add_argument("--binary", default="target/release/slotbank")
    parser.add_argument("--python", default=sys.executable, help="the Python that has llama-cpp-python")
    parser.add_argument("--slotbank-args", default="")
    parser.add_argument("--made-by", default="")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    sizes = geometry(options)
    receipt = {
        "what": "decode and prefill under a memory cap, slotbank against llama.cpp on the same GGUF, tokens and threads",
        "date": datetime.date.today().isoformat(), "commit": common.commit(), "machine": common.machine(),
        "options": {key: value for key, value in vars(options).items() if key not in ("model", "binary", "python", "out", "tokens", "made_by")},
        "model": {"file": os.path.basename(options.model), "made_by": options.made_by, **sizes},
        "order": "A B B A, %d rounds, one process each after dropping caches, one warm-up round in each" % options.rounds,
        "resident": compute(options) if options.gen else None,
        "caps": [],
    }
    caps = [float(cap) for cap in options.caps.split(",")]
    if options.gen:
        receipt["drive"] = drive(options)
        receipt["bounds_by_lookahead"] = bounds(options, receipt["drive"], receipt["resident"], [cap for cap in caps if cap < 1])
    common.write_receipt(options.out, receipt)
    for cap in caps:
        receipt["caps"].append(measure_cap(options, sizes, cap))
        common.write_receipt(options.out, receipt)


if __name__ == "__main__":
    main()
