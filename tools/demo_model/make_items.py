"""Writes the held-out retrieval items (JSON lines: prompt, answer, distance in tokens)."""
import argparse
import json
import random

from tokenizers import Tokenizer

import corpus
import lexicon as lx

# Chance is one in this many: the model must name one of the three-digit numbers.
VALUES = len(lx.CLASSES["value"])


def item(rng, tok):
    """One document cut before its answer, or None when the distance does not suit."""
    items = corpus.facts(rng, rng.randint(3, 7))
    body = corpus.story(rng)[: rng.randint(4, 20)]
    parts = corpus.fact_part(rng, items, body)
    asked = rng.choice(items)
    question = corpus.say("QUESTION", asked, rng)
    prompt = " ".join(parts + [question, "The key is"])
    ids = tok.encode(prompt).ids
    return prompt, asked["n"], len(ids) + 1 - ids.index(tok.token_to_id(asked["n"])), len(ids)


def make(tok, count, seed, low=70, high=350, longest=390):
    """Items spread evenly over five bands of distance."""
    rng = random.Random("held-out/%d" % seed)
    width = (high - low) / 5
    room = [-(-count // 5)] * 5
    out, seen = [], set()
    while len(out) < count:
        prompt, answer, distance, length = item(rng, tok)
        band = int((distance - low) // width)
        if not low <= distance < high or length > longest or not room[band] or prompt in seen:
            continue
        seen.add(prompt)
        room[band] -= 1
        out.append({"prompt": prompt, "answer": answer, "distance": distance})
    return out


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--count", type=int, default=512)
    ap.add_argument("--seed", type=int, default=99)
    a = ap.parse_args()
    rows = make(Tokenizer.from_file(a.tokenizer), a.count, a.seed)
    with open(a.out, "w") as f:
        for r in rows:
            f.write(json.dumps(r) + "\n")
    print("%d items, distance %d..%d, chance 1/%d" % (
        len(rows), min(r["distance"] for r in rows), max(r["distance"] for r in rows), VALUES))


if __name__ == "__main__":
    main()
