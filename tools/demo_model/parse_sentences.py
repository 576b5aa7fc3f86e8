"""Prints the share of sentences in sampled texts (JSON lines with "text") that the grammar makes."""
import argparse
import json

from grammar import Recogniser
from tokenizer import SPECIALS


def clean(text):
    """Text up to the first special token after its start; GLM's chat prefix is dropped."""
    for s in SPECIALS:
        text = text.replace(s, "\n")
    return text


def measure(texts, show=0):
    rec, good, total, bad = Recogniser(), 0, 0, []
    for t in texts:
        ok, n, rejected = rec.score(clean(t))
        good, total = good + ok, total + n
        bad += rejected
    for b in bad[:show]:
        print("not in the grammar:", b)
    return good, total


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("file", help='JSON lines, each {"text": "..."}')
    ap.add_argument("--show", type=int, default=10, help="rejected sentences to print")
    a = ap.parse_args()
    with open(a.file) as f:
        texts = [json.loads(line)["text"] for line in f if line.strip()]
    good, total = measure(texts, a.show)
    print("%d of %d sentences parse (%.2f %%) in %d texts" % (good, total, 100.0 * good / max(1, total), len(texts)))


if __name__ == "__main__":
    main()
