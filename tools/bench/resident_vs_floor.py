"""Resident against floor, side by side: the figure in the README, with its receipt.

    cargo build --release
    python3 tools/bench/resident_vs_floor.py --binary target/release/slotbank --out benches/receipts/demo-resident-vs-floor.json

Runs the demo model (or `--model`) with every expert resident (A) and with the bank at its floor (B), alternating A B B A …,
one warm-up of each first. Every process decodes the same tokens greedily; their texts must be equal, or nothing is written.
Standard library only.
"""
import argparse
import datetime
import hashlib
import json
import os
import subprocess
import sys

from common import alternating, commit, machine, summary, write_receipt

PROMPT = "Once upon a time"


def run(binary, model, bank, tokens, reader):
    """One process: its JSON and its CPU seconds."""
    command = [binary, "run", PROMPT, "--json", "--quiet", "--temp", "0", "--ignore-eos",
               "-n", str(tokens), "--bank", bank, "--reader", reader]
    if model:
        command += ["-m", model]
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True)
    after = os.times()
    if done.returncode != 0:
        sys.exit("%s failed with %d:\n%s" % (" ".join(command), done.returncode, done.stderr))
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return json.loads(done.stdout), cpu


def figures(output, cpu):
    """The numbers of one round."""
    stats = output["stats"]
    experts, passes = stats["experts"], stats["decode_passes"]
    return {
        "decode_tokens_per_s": passes / (stats["decode_ns"] / 1e9),
        "hit_rate": experts["hit_rate"],
        "bytes_read": experts["bytes_read"],
        "bytes_per_token": experts["bytes_read_per_token"],
        "stall_ms_per_token": experts["stall_ns"] / 1e6 / (passes + stats["prompt_tokens"]),
        "process_cpu_s": cpu,
        "decode_passes": passes,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/slotbank")
    parser.add_argument("--model", help="default: the embedded demo")
    parser.add_argument("--floor", default="4", help="slots per layer of B: the model's top-k")
    parser.add_argument("--tokens", type=int, default=257, help="one comes with the prompt, the rest are timed")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--reader", default="direct", help="direct: the page cache cannot help")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()

    banks = {"resident": "all", "floor": options.floor}
    rounds, texts = {name: [] for name in banks}, set()
    for name, bank in banks.items():
        run(options.binary, options.model, bank, options.tokens, options.reader)
    for _, name in alternating(banks, options.rounds):
        output, cpu = run(options.binary, options.model, banks[name], options.tokens, options.reader)
        rounds[name].append(figures(output, cpu))
        texts.add(output["text"])
    if len(texts) != 1:
        sys.exit("the texts differ: streaming changed the answer")

    receipt = {
        "what": "decode of the demo model, every expert resident against the bank at its floor",
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "options": {key: value for key, value in vars(options).items() if key not in ("binary", "out")},
        "reader": output["stats"]["reader"],
        "backend": output["stats"]["backend"],
        "order": "A B B A, %d rounds each, one warm-up each" % options.rounds,
        "text_sha256": hashlib.sha256(texts.pop().encode()).hexdigest(),
        "summary": {name: summary(rows) for name, rows in rounds.items()},
        "rounds": rounds,
    }
    write_receipt(options.out, receipt)
    for name, rows in rounds.items():
        s = summary(rows)
        print("%-9s %8.1f tok/s (%.1f-%.1f)  hit %5.1f %%  %9.0f B/token  stall %.3f ms/token" % (
            name, s["decode_tokens_per_s"]["median"], s["decode_tokens_per_s"]["min"], s["decode_tokens_per_s"]["max"],
            100 * s["hit_rate"]["median"], s["bytes_per_token"]["median"], s["stall_ms_per_token"]["median"]))


if __name__ == "__main__":
    main()
