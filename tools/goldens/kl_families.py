#!/usr/bin/env python3
"""Every toy of every architecture, streamed against resident and quantised against F32, by `slotbank kl`.

    cargo run --release -p slotbank-toy --example write -- FOLDER
    cargo run --release -p slotbank-toy --example write -- FOLDER Q8_0
    python3 tools/goldens/kl_families.py FOLDER --type Q8_0 --binary target/release/slotbank --out benches/receipts/kl-families.json

Streamed runs have as few slots per layer as one token uses and must diverge by exactly 0, in every position. Quantised ones diverge;
how much says that the same function is computed, since what differs is rounding. Standard library only.
"""

import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "bench"))
import common  # noqa: E402

WINDOW = 24


def kl(options, model, *args):
    command = [options.binary, "kl", str(model), "-c", str(WINDOW), "--cache-type", "f32", "--json", "-q", *args]
    return common.run_json(command, "kl")


def architecture(record):
    found = [value["str"] for key, value in record.get("metadata", []) if key == "general.architecture"]
    return found[0] if found else record["config"].get("family", "glm-dsa")


def top_k(record):
    return record["top_k"] if "top_k" in record else record["config"]["num_experts_per_tok"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--type", default="Q8_0")
    parser.add_argument("--binary", default="target/release/slotbank")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    rows = []
    for fixture in sorted(ROOT.glob("tests/fixtures/*/*.json")):
        record = json.loads(fixture.read_text())
        plain, quantised = (options.folder / f"{record.get('name')}{end}.gguf" for end in ("", f".{options.type}"))
        if not plain.exists():
            continue
        ids = options.folder / "ids.json"
        ids.write_text(json.dumps(record["tokens"]))
        row = {"architecture": architecture(record), "toy": record["name"]}
        for name, model, other in (("streamed", plain, None), ("streamed_quantised", quantised, None), ("quantised", quantised, plain)):
            if not model.exists():
                continue
            ways = ["--bank", "all", "--reference", str(other)] if other else ["--bank", str(top_k(record)), "--against", "--bank all --no-slot8"]
            found = kl(options, model, "--tokens", str(ids), *ways)
            row[name] = {"positions": found["tokens"], "mean_kl": found["kl"]["mean"], "max_kl": found["kl"]["max"], "same_top": found["same_top"],
                         "max_log_probability_difference": found["max_log_probability_difference"]}
            if not other and found["max_log_probability_difference"] != 0:
                sys.exit(f"{record['name']}: streaming changed the answer: {found}")
        rows.append(row)
        print(row["architecture"], row["toy"], *(f"{name}: KL {row[name]['mean_kl']:.2e}, same likeliest {row[name]['same_top']:.0%}"
                                                 for name in ("streamed", "streamed_quantised", "quantised") if name in row), sep="  ")
    common.write_receipt(options.out, {
        "what": "slotbank kl on every toy: streamed (as few slots as one token uses, waves) against resident (one expert at a time), and "
                f"every matrix as {options.type} against F32", "commit": common.commit(), "window": WINDOW, "type": options.type, "toys": rows})


if __name__ == "__main__":
    main()
