"""What the measuring scripts share: the machine's description, rounds in alternation, noise, spreads, receipts.

Standard library only.
"""
import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time

# Sides of one round whose stolen time differs by more than this share of it are not comparable.
STEAL_DIFFERENCE_MAX = 0.20
# A machine whose other processes take more than this share of its cores is not quiet.
OTHERS_SHARE_MAX = 0.05
# Columns of a receipt.
LINE_MAX = 160


def machine():
    """What ran it, without names of the machine."""
    cpu, flags, memory = platform.processor(), "", 0
    try:
        with open("/proc/cpuinfo") as lines:
            fields = dict(line.split(":", 1) for line in lines if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        cpu, flags = fields.get("model name", cpu), fields.get("flags", fields.get("Features", ""))
        with open("/proc/meminfo") as lines:
            memory = int(next(lines).split()[1]) * 1024
    except (OSError, StopIteration):
        pass
    interesting = ("avx", "fma", "f16c", "asimd", "i8mm", "sve", "amx")
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_bytes": memory, "system": platform.system(),
            "machine": platform.machine(),
            "vector_extensions": sorted(flag for flag in flags.split() if flag.startswith(interesting))}


def commit():
    """The commit that the scripts lie in, with a mark when it was changed since."""
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
        return done.stdout.strip() or "unknown"
    except OSError:
        return "unknown"


def spread(values):
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summary(rounds):
    """Median, minimum and maximum of each number of a list of flat rounds."""
    return {key: spread([r[key] for r in rounds]) for key in rounds[0].keys()}


def alternating(names, rounds):
    """(round, name): A B, B A, A B, …"""
    for i in range(rounds):
        for name in (list(names) if i % 2 == 0 else list(names)[::-1]):
            yield i, name


def _processor_seconds():
    """Seconds over all cores since the system started: given to others by the host, busy, and in all; None where
    nothing tells."""
    try:
        with open("/proc/stat") as lines:
            user, nice, system, idle, iowait, irq, softirq, steal = (int(word) for word in next(lines).split()[1:9])
    except (OSError, StopIteration, ValueError):
        return None
    per_s = os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + irq + softirq
    return steal / per_s, busy / per_s, (busy + idle + iowait + steal) / per_s


@contextlib.contextmanager
def watched():
    """Yields a dictionary that holds, once the block is done, how disturbed the machine was meanwhile: load average,
    share of the time that the host gave to others, and share that other processes of this system used. The block is
    expected to run one child process to its end."""
    noise, before, own, begun = {}, _processor_seconds(), os.times(), time.monotonic()
    yield noise
    noise["seconds"] = round(time.monotonic() - begun, 3)
    noise["load_average_1min"] = round(os.getloadavg()[0], 2)
    after, now = _processor_seconds(), os.times()
    if before and after:
        steal, busy, total = (y - x for x, y in zip(before, after))
        mine = sum(now[:4]) - sum(own[:4])
        noise["steal_share"] = round(steal / max(total, 1e-9), 4)
        noise["others_share"] = round(max(busy - mine, 0.0) / max(total, 1e-9), 4)


def steal_differs(a, b):
    """True when one of two measurements side by side lost over 20 % more to the host than the other. Under one
    percent of the time nobody can tell."""
    a, b = a.get("steal_share", 0.0), b.get("steal_share", 0.0)
    larger = max(a, b)
    return larger > 0.01 and abs(a - b) > STEAL_DIFFERENCE_MAX * larger


def is_busy(noise):
    """True when other processes took a part of the processors that shows in the figures."""
    return noise.get("others_share", 0.0) > OTHERS_SHARE_MAX


def run_json(command, what):
    """The JSON that a command prints; ends the script when it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit("%s failed with %d:\n%s\n%s" % (what, done.returncode, " ".join(command), done.stderr[-4000:]))
    return json.loads(done.stdout)


def speed_parser(description, bank=None, prompt=0, gen=64):
    """The arguments of a script that runs `slotbank bench speed` with several sets of options in alternation; without a `bank` one has
    to be given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens")
    parser.add_argument("--binary", default="target/release/slotbank")
    parser.add_argument("--bank", default=bank, required=bank is None)
    parser.add_argument("--prompt", type=int, default=prompt)
    parser.add_argument("--gen", type=int, default=gen)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--inner-rounds", type=int, default=2)
    parser.add_argument("--made-by", default="", help="the command that made the model, for the receipt")
    parser.add_argument("--out", required=True)
    return parser


def speed_command(options, extra):
    """The command of one process: what all sides have in common, then what makes one of them."""
    line = [options.binary, "bench", "speed", options.model, "--json", "--bank", options.bank,
            "--prompt", str(options.prompt), "--gen", str(options.gen), "--rounds", str(options.inner_rounds),
            "--threads", str(options.threads)]
    return line + (["--tokens", options.tokens] if options.tokens else []) + extra


def speed_receipt(what, options):
    """How a receipt of such a script begins."""
    return {
        "what": what,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "model": {"file": os.path.basename(options.model), "bytes": os.path.getsize(options.model), "made_by": options.made_by},
        "options": {key: value for key, value in vars(options).items()
                    if key not in ("model", "binary", "out", "tokens", "made_by")},
    }


def read_tokens(path):
    """Token ids separated by blanks, line ends or commas; or JSON: a list, or an object with "tokens"."""
    with open(path) as source:
        text = source.read()
    if text.lstrip().startswith(("[", "{")):
        value = json.loads(text)
        return value["tokens"] if isinstance(value, dict) else value
    return [int(word) for word in text.replace(",", " ").split()]


def fixed_tokens(n_vocab, count=1 << 16):
    """The list that `slotbank bench speed` uses when none is given."""
    state, tokens = 1, []
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % (1 << 32)
        tokens.append((state >> 8) % n_vocab)
    return tokens


def window(tokens, index, n):
    """Window `index` of n tokens; after the last comes the first again."""
    start = index * n % len(tokens)
    return [tokens[(start + i) % len(tokens)] for i in range(n)]


def laid_out(value, indent=""):
    """JSON in which what fits on a line stands on one: receipts hold thousands of short records."""
    line = json.dumps(value)
    if len(indent) + len(line) <= LINE_MAX or not isinstance(value, (dict, list)):
        return line
    inner = indent + " "
    if isinstance(value, dict):
        parts = ["%s%s: %s" % (inner, json.dumps(key), laid_out(part, inner)) for key, part in value.items()]
    else:
        parts = [inner + laid_out(part, inner) for part in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return "%s\n%s\n%s%s" % (opening, ",\n".join(parts), indent, closing)


def write_receipt(path, receipt):
    """Writes next to the old one and renames, so that a stopped run leaves no half receipt."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    part = path + ".part"
    with open(part, "w") as out:
        out.write(laid_out(receipt) + "\n")
    os.replace(part, path)
