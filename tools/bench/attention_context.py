"""Attention and indexer against the length of the context, before and after a change: docs/attention-cost.md, with its receipt.

    cargo build --release -p slotbank-engine --example attention_context
    python3 tools/bench/attention_context.py --after target/release/examples/attention_context [--before OTHER] --out RECEIPT

Runs the example of two builds in turn, A B B A per cache type, on one thread, and keeps every round. The older build may not
know every cache type; those are measured alone. Standard library only.
"""
import argparse
import datetime
import json
import statistics
import subprocess
import sys

import common


def run(binary, cache_type, contexts, tokens):
    """One process: its lines."""
    done = subprocess.run([binary, cache_type, contexts, tokens], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit("%s %s failed:\n%s" % (binary, cache_type, done.stderr))
    return [json.loads(line) for line in done.stdout.splitlines()]


def medians(rounds):
    """Per build, cache type, context and tokens: medians in nanoseconds per token and layer."""
    groups = {}
    for r in rounds:
        groups.setdefault((r["build"], r["cache_type"], r["context"], r["tokens"]), []).append(r)
    return [dict(zip(("build", "cache_type", "context", "tokens"), key),
                 attention_ns=statistics.median(r["attention_ns"] for r in group),
                 index_ns=statistics.median(r["index_ns"] for r in group)) for key, group in groups.items()]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--after", required=True)
    arguments.add_argument("--before")
    arguments.add_argument("--before-types", default="f32,f16", help="cache types the older build knows")
    arguments.add_argument("--commits", default="", help="BEFORE,AFTER for the receipt")
    arguments.add_argument("--types", default="f32,f16,q8")
    arguments.add_argument("--contexts", default="1024,2048,4096,8192,16384,32768,65536,131072")
    arguments.add_argument("--tokens", default="1", help="tokens per step")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--out", required=True)
    a = arguments.parse_args()
    rounds = []
    for number in range(a.rounds):
        for cache_type in a.types.split(","):
            order = [("after", a.after)]
            if a.before and cache_type in a.before_types.split(","):
                order = [("before", a.before), ("after", a.after)]
            for build, binary in order if number % 2 == 0 else order[::-1]:
                for line in run(binary, cache_type, a.contexts, a.tokens):
                    rounds.append({"round": number, "build": build, **line})
    receipt = {
        "what": "CPU nanoseconds of latent attention and of the indexer, per token and layer, at the dimensions of GLM-5.2",
        "date": datetime.date.today().isoformat(),
        "commits": a.commits or common.commit(),
        "machine": common.machine(),
        "options": {"threads": 1, "heads": 64, "latent": 512, "rope": 64, "index_heads": 32, "index_head_dim": 128,
                    "index_topk": 2048, "clock": "CPU time of the thread", "rounds": a.rounds},
        "medians": medians(rounds),
        "rounds": rounds,
    }
    common.write_receipt(a.out, receipt)


if __name__ == "__main__":
    main()
