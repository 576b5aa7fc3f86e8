"""What each idea is worth: the same work with it and without it, in alternation, as one receipt.

    python3 tools/bench/ablations.py model.gguf --tokens ids.json --out benches/receipts/ablations.json

End to end (slotbank bench speed, one process per side and round, order A B … B A):
    promotion       hot experts in packed form, against experts as they are in the file: decode, after a warm-up long
                    enough that hot experts have been packed
    two dispatches  the routed experts of a wave together, against one expert at a time (--no-slot8): decode and prefill
On one thread (slotbank bench kernels --ablate): weights unpacked once for all columns of a prefill, activations quantised
once for all matrices that read them, packed forms; and what handing work to 1 … 4 times as many threads as cores costs.
Standard library only.
"""
import json

import common

SIDES = {"default": [], "no promotion": ["--promote", "never"], "one at a time": ["--promote", "never", "--no-slot8"]}
# (idea, with it, without it): the two sides differ in one option.
IDEAS = (("promotion", "default", "no promotion"), ("two dispatches", "no promotion", "one at a time"))


def command(options, extra):
    return common.speed_command(options, ["--parts"] + extra)


def figures(output):
    tests = {}
    for test in output["tests"]:
        tests["%s %d" % (test["test"], test["tokens"])] = {
            "tokens_per_s": test["tokens_per_s"]["median"],
            "cpu_s_per_token": (test.get("cpu_s_per_token") or {}).get("median"),
            "parts_ms_per_token": test["parts_ms_per_token"],
        }
    return tests


def measure(options):
    """All rounds; and the likeliest tokens of each side's warm-up, which must be equal."""
    rounds, likeliest = [], {}
    for index, side in common.alternating(SIDES, options.rounds):
        if len(rounds) == index:
            rounds.append({})
        with common.watched() as noise:
            output = common.run_json(command(options, SIDES[side]), side)
        rounds[index][side] = {"noise": noise, "tests": figures(output)}
        likeliest.setdefault(json.dumps([test["likeliest"] for test in output["tests"]]), side)
        print("%d %-14s %s" % (index, side, "  ".join("%s %.2f tok/s" % (name, test["tokens_per_s"]) for name, test
                                                      in rounds[index][side]["tests"].items())))
    if len(likeliest) != 1:
        raise SystemExit("the sides computed different tokens: %s" % ", ".join(likeliest.values()))
    for r in rounds:
        r["busy"] = any(common.is_busy(r[side]["noise"]) for side in SIDES)
    return rounds


def summary(rounds):
    result = {}
    for idea, with_it, without in IDEAS:
        for name in rounds[0][with_it]["tests"]:
            sides = [[r[side]["tests"][name]["tokens_per_s"] for r in rounds] for side in (with_it, without)]
            spreads = [common.spread(side) for side in sides]
            result["%s, %s" % (idea, name)] = {
                "with_tokens_per_s": spreads[0], "without_tokens_per_s": spreads[1],
                "ratio_of_medians": spreads[0]["median"] / spreads[1]["median"],
                "ratio_by_round": common.spread([a / b for a, b in zip(*sides)]),
            }
    return result


def main():
    parser = common.speed_parser(__doc__, bank="all", prompt=512, gen=96)
    parser.add_argument("--formats", default="IQ1_S,IQ1_M,IQ2_XXS,IQ2_XS,IQ2_S,IQ3_XXS,Q2_K,Q4_K,Q6_K,Q8_0")
    parser.add_argument("--columns", default="4,16,128")
    options = parser.parse_args()
    with common.watched() as noise:
        kernels = common.run_json([options.binary, "bench", "kernels", "--ablate", "--dispatch", "--json", "--formats", options.formats,
                                   "--columns", options.columns, "--threads", str(options.threads)], "bench kernels")
    kernels["noise"] = noise
    rounds = measure(options)
    receipt = {
        **common.speed_receipt("each idea of the kernels and of the routed experts against its opposite, in alternation", options),
        "order": "A B C C B A …, one process each, %d timed rounds after a warm-up in each" % options.inner_rounds,
        "end_to_end": summary(rounds),
        "end_to_end_without_busy_rounds": summary([r for r in rounds if not r["busy"]] or rounds),
        "kernels": {key: kernels[key] for key in ("isa", "ceilings", "ablations", "dispatch", "noise")},
        "rounds": rounds,
    }
    common.write_receipt(options.out, receipt)
    for name, entry in receipt["end_to_end"].items():
        print("%-28s with %7.2f  without %7.2f tok/s  ratio %.2f (%.2f-%.2f)" % (
            name, entry["with_tokens_per_s"]["median"], entry["without_tokens_per_s"]["median"], entry["ratio_of_medians"],
            entry["ratio_by_round"]["min"], entry["ratio_by_round"]["max"]))


if __name__ == "__main__":
    main()
