"""Decode and prefill with less memory than the model has experts: slotbank against llama.cpp, and against the bounds.

    sudo python3 tools/bench/streaming.py model.gguf --tokens ids.json --caps 0.25,0.5,1.0 --out benches/receipts/streaming.json

For each cap (a share of the experts' bytes) both engines run in a memory control group of the dense weights, that share of the experts
and what a process needs beside them; page cache counts there, so a mapped file is capped as well. Caches are dropped before every
process. Rounds alternate A B C, C B A, one process each: slotbank, llama.cpp and, where tokens are decoded below a cap of 1, slotbank
with every expert resident and no cap, which is what computing takes. From that, the drive (slotbank doctor, or the pace) and the
routing trace of the same tokens `slotbank trace simulate` computes the bounds of every round: the ideal one, the longer of reading and
computing, and the one of the dependencies, in which a layer's reads wait for its router, or for the guess that the trace holds.

Needs root, for control groups (version 1: memory, blkio) and for dropping caches, and gguf-py, for the sizes of the tensors. --throttle
limits by control group what both engines may read per second, in bursts of a tenth of a second; --pace holds slotbank's reads, one
by one, to a drive of that rate.
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
               "--rounds", "1", "--warm-up", "1", "--warm-up-tokens", str(options.warm_up_tokens), "--threads", str(options.threads), "--tokens",
               options.tokens, "--parts", "--quiet", "--reader", options.reader]
    if options.pace:
        command += ["--pace", str(options.pace)]
    return command + list(extra)


def llama(options, prompt, gen):
    here = os.path.dirname(os.path.abspath(__file__))
    return [options.python, os.path.join(here, "llama_bench.py"), options.model, "--prompt", prompt, "--gen", str(gen), "--rounds", "1",
            "--warm-up-tokens", str(options.warm_up_tokens), "--threads", str(options.threads), "--tokens", options.tokens, "--mmap"]


def geometry(options):
    found = common.run_json([options.binary, "inspect", options.model, "--json"], "inspect")
    total, first = os.path.getsize(options.model), found["experts"]["layers"][0]
    return {"bytes": total, "expert_bytes": found["experts"]["bytes"], "dense_bytes": total - found["experts"]["bytes"],
            "routed_layers": len(found["experts"]["layers"]), "top_k": found["geometry"]["expert_used_count"], **shares(options.model, first)}


def shares(model, first):
    """Of the bytes that a token reads of dense matrices: those of routed layers before the router and of shared experts, and those of the
    FFN that comes before the first routed layer."""
    import gguf

    total, before, shared, lead = 0, 0, 0, 0
    for tensor in gguf.GGUFReader(model).tensors:
        name, size = tensor.name, int(tensor.n_bytes)
        if "_exps" in name or name == "token_embd.weight":
            continue
        total += size
        layer = int(name.split(".")[1]) if name.startswith("blk.") else -1
        if "_shexp" in name:
            shared += size
        elif layer >= first:
            before += size
        elif layer == first - 1 and name.split(".")[2] in ("ffn_gate", "ffn_up", "ffn_down"):
            lead += size
    return {"share_before_router": before / total, "share_shared": shared / total, "share_lead": lead / total}


def figures(output):
    """By test: what its one round says."""
    result = {}
    for test in output["tests"]:
        entry = {"tokens_per_s": test["tokens_per_s"]["median"], "rounds": test["rounds"]}
        for key in ("cpu_s_per_token", "bytes_read_per_token", "stall_ms_per_token"):
            if test.get(key):
                entry[key] = test[key]["median"]
        if test.get("parts_ms_per_token"):
            entry["parts_ms_per_token"] = test["parts_ms_per_token"]
        result["%s %d" % (test["test"], test["tokens"])] = entry
    return result


def measure_cap(options, sizes, cap, drive, trace):
    """All rounds at one cap."""
    bank = int(cap * sizes["expert_bytes"])
    limit = sizes["dense_bytes"] + bank + options.beside_mib * MIB
    throttle = options.throttle * 1e6 if options.throttle else None
    group = Group("slotbank-bench-%d" % os.getpid(), limit, device_of(options.model), throttle)
    own = options.slotbank_args.split()
    sides = {"slotbank": (group, speed(options, "%dB" % bank, options.prompt, options.gen, own)), "llama.cpp": (group, llama(options, options.prompt, options.gen))}
    if options.only:
        sides = {name: side for name, side in sides.items() if name == options.only}
    if options.gen and cap < 1 and "slotbank" in sides:
        sides["resident"] = (None, speed(options, "all", "0", options.gen, ["--promote", "never"] + own))
    rounds, likeliest = [], {}
    for index, side in common.alternating(sides, options.rounds):
        if len(rounds) == index:
            rounds.append({"round": index})
        with common.watched() as noise:
            output = run_in(*sides[side], side)
        rounds[index][side] = {"noise": noise, "tests": figures(output)}
        likeliest.setdefault(side, [test["likeliest"] for test in output["tests"]])
        print("cap %.2f round %d %-9s %s" % (cap, index, side, "  ".join(
            "%s %.2f tok/s" % (name, test["tokens_per_s"]) for name, test in rounds[index][side]["tests"].items())), file=sys.stderr, flush=True)
    peak = group.peak_bytes()
    group.remove()
    result = {"cap": cap, "bank_bytes": bank, "memory_limit_bytes": limit, "memory_peak_bytes": peak, "summary": compared(rounds, list(sides))}
    if "resident" in sides:
        result["bounds"] = bounds(options, sizes, cap, drive, trace, rounds)
    if "llama.cpp" in likeliest and "slotbank" in likeliest:
        pairs = zip(result["summary"], likeliest["slotbank"], likeliest["llama.cpp"])
        result["same_likeliest_token"] = {name: sum(a == b for a, b in zip(ours, theirs)) / max(len(ours), 1) for name, ours, theirs in pairs}
    result["rounds"] = rounds
    return result


def compared(rounds, sides):
    """By test: the speeds of all rounds, and slotbank's over llama.cpp's."""
    summary = {}
    for name in rounds[0][sides[0]]["tests"]:
        entry = {side: common.spread([r[side]["tests"][name]["tokens_per_s"] for r in rounds]) for side in sides if name in rounds[0][side]["tests"]}
        if "slotbank" in entry and "llama.cpp" in entry:
            pairs = [(r["slotbank"]["tests"][name]["tokens_per_s"], r["llama.cpp"]["tests"][name]["tokens_per_s"]) for r in rounds]
            entry["ratio"] = {"of_medians": entry["slotbank"]["median"] / entry["llama.cpp"]["median"],
                              "by_round": common.spread([a / b for a, b in pairs])}
        summary[name] = entry
    return summary


def drive_of(options):
    """Rate and latency of the drive; what a throttle or a pace leaves of it."""
    found = common.run_json([options.binary, "doctor", options.model, "--quick", "--json"], "doctor")
    rate, limit = found["read_gb_per_s"], options.throttle or options.pace
    measured = {"read_gb_per_s": rate, "read_latency_us": found["read_latency_us"]}
    if options.pace:
        return {"read_gb_per_s": options.pace / 1e3, "read_latency_us": 100.0, "measured": measured}
    return {**measured, "read_gb_per_s": min(rate or limit / 1e3, limit / 1e3)} if limit else measured


def recorded(options, sizes):
    """A trace of the tokens that are measured, with what the next layer's router foresaw; the bank has no say in it."""
    trace, ids = options.out + ".trace", options.out + ".ids"
    tokens = common.read_tokens(options.tokens)
    with open(ids, "w") as out:
        json.dump(tokens[:options.warm_up_tokens] + common.window(tokens, 1, options.gen), out)
    record = [options.binary, "trace", "record", trace, "-m", options.model, "--tokens", ids, "-n", str(options.warm_up_tokens + options.gen),
              "--bank", "%dB" % (sizes["expert_bytes"] // 4), "--threads", str(options.threads), "--prefetch", "next-layer", "--quiet"]
    subprocess.run(record, check=True, capture_output=True)
    os.remove(ids)
    return trace


def bounds(options, sizes, cap, drive, trace, rounds):
    """Tokens per second that the trace allows, by what computing took in each round, and the share of it that was reached: ideal, and
    by the dependencies without and with the traced guesses."""
    result = []
    for entry in rounds:
        resident = entry["resident"]["tests"]["decode %d" % options.gen]
        total = 1000 / resident["tokens_per_s"]
        experts = resident["parts_ms_per_token"]["experts"]
        dense, layers = total - experts, sizes["routed_layers"]
        before, shared = dense * sizes["share_before_router"] / layers, dense * sizes["share_shared"] / layers
        other = dense - layers * (before + shared)
        command = [options.binary, "trace", "simulate", trace, "-m", options.model, "--json", "--policies", "lfu", "--budget", "global", "--sizes",
                   "%g" % (100 * cap), "--warm-up", str(options.warm_up_tokens), "--read-gb-per-s", str(drive["read_gb_per_s"]), "--read-latency-us",
                   str(drive["read_latency_us"]), "--layer-ms", str(before), "--shared-ms", str(shared), "--expert-ms",
                   str(experts / layers / sizes["top_k"]), "--other-ms", str(other), "--lead-ms", str(dense * sizes["share_lead"])]
        reached = entry["slotbank"]["tests"]["decode %d" % options.gen]["tokens_per_s"]
        found = {}
        for name, guesses in (("dependency", "none"), ("dependency_with_guesses", "trace")):
            row = common.run_json(command + ["--lookahead", guesses], "trace simulate")["rows"][0]
            found[name] = row["time"]["dependency_tokens_per_s"]
            found["ideal"] = row["time"]["ideal_tokens_per_s"]
            found["io_ms"], found["compute_ms"] = row["time"]["io_ms"], row["time"]["compute_ms"]
            found["hit_rate"] = row["hit_rate"]
        result.append({**found, **{"share_of_" + name: reached / found[name] for name in ("ideal", "dependency", "dependency_with_guesses")}})
    return {**common.summary(result), "rounds": result}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--caps", default="0.25,0.5,1.0")
    parser.add_argument("--prompt", default="0", help="prompt lengths, separated by commas")
    parser.add_argument("--gen", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-up-tokens", type=int, default=64, help="tokens that run before those that count")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--beside-mib", type=int, default=1024, help="memory for buffers, caches and the program itself")
    parser.add_argument("--throttle", type=float, help="MB per second that may be read, by control group")
    parser.add_argument("--pace", type=int, help="MB per second at which slotbank's reads are handed out")
    parser.add_argument("--reader", default="pread-direct", help="slotbank's reader: named, so that every process has the same")
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
        "order": "A B C, C B A, …, %d rounds, one process each after dropping caches, %d tokens of warm-up in each" % (options.rounds, options.warm_up_tokens),
        "caps": [],
    }
    trace = None
    if options.gen and options.only != "llama.cpp":
        receipt["drive"], trace = drive_of(options), recorded(options, sizes)
    common.write_receipt(options.out, receipt)
    for cap in (float(cap) for cap in options.caps.split(",")):
        receipt["caps"].append(measure_cap(options, sizes, cap, receipt.get("drive"), trace))
        common.write_receipt(options.out, receipt)
    if trace:
        os.remove(trace)
        os.remove(trace + ".model.json")


if __name__ == "__main__":
    main()
