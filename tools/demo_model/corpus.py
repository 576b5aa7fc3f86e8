"""Documents of the demo corpus: stories, retrieval documents and chats, and their loss weights."""
import random

import torch

import lexicon as lx
from bisect import bisect_right

from grammar import BLOCK, MARKED, new_env, story

EOT = "<|endoftext|>"
# Loss weights: answers must be learned, the random values of facts cannot be predicted (only
# that a number follows).
W_TEXT, W_FACT, W_ANSWER, W_MENTION = 1.0, 0.3, 4.0, 2.0


def unmark(text):
    """The text without marks, and [(start, end, variable, is pronoun)] in characters."""
    out, spans, at, size = [], [], 0, 0
    for m in MARKED.finditer(text):
        out.append(text[at:m.start()])
        size += m.start() - at
        spans.append((size, size + len(m[2]), m[1].rstrip("."), m[1].endswith(".")))
        out.append(m[2])
        size += len(m[2])
        at = m.end()
    return "".join(out) + text[at:], spans


class Doc:
    """Text plus, for each three-digit number in order, (its tag, whether it is an answer)."""

    def __init__(self, text, told=(), asked=()):
        self.text, self.mentions = unmark(text)
        self.numbers = [(e["tag"], False) for e in told] + [(e["tag"], True) for e in asked]


def story_doc(rng):
    return Doc(" ".join(story(rng, mark=True)) + EOT)


def facts(rng, count):
    """Boxes of one kind with different tags and values: [(env)]."""
    kind = rng.randrange(len(lx.CONTAINER))
    tags = rng.sample(lx.COLOUR, count)
    values = rng.sample(lx.CLASSES["value"], count)
    return [{"tag": t, "box": lx.CONTAINER[kind], "boxes": lx.CONTAINERS[kind], "n": v,
             "cnt": lx.COUNT[max(0, count - 2)]} for t, v in zip(tags, values)]


def say(block, env, rng):
    return rng.choice(BLOCK[block]).fill(dict(env), rng)


def qa(env, rng):
    return say("QUESTION", env, rng) + " " + say("ANSWER", env, rng)


def fact_part(rng, items, lead):
    """Fact sentences, then the story, or both woven; the first fact always comes first, so that
    a text which begins with a story stays one."""
    told = [say("FACT", e, rng) for e in items]
    if len(items) > 1 and rng.random() < 0.3:
        told.insert(0, say("FACT_INTRO", items[0], rng))
    if rng.random() < 0.6:
        return told + lead
    # Woven: the facts keep their order, story sentences stand between them.
    out, lead = [], list(lead)
    for t in told:
        out.append(t)
        if lead and rng.random() < 0.5:
            out.append(lead.pop(0))
    return out + lead


def retrieval_doc(rng, n_facts, filler, n_questions, again=0.0):
    """Facts, `filler` story sentences, then questions about the facts in any order."""
    items = facts(rng, n_facts)
    body = story(rng, mark=True)[:filler] if filler else []
    asked = rng.sample(items, min(n_questions, n_facts))
    while rng.random() < again:
        asked.append(rng.choice(items))
    text = " ".join(fact_part(rng, items, body) + [qa(e, rng) for e in asked])
    return Doc(text + EOT, items, asked)


def chat_story(rng):
    env = new_env(rng)
    ask = rng.choice(BLOCK["ASK_STORY"]).fill(env, rng, mark=True)
    return Doc("[gMASK]<sop><|user|>" + ask + "<|assistant|>" + " ".join(story(rng, env, mark=True)) + "<|user|>")


def chat_keys(rng, n_facts, filler, n_questions):
    """The user tells the facts and asks; the assistant answers in one sentence."""
    items = facts(rng, n_facts)
    body = story(rng, mark=True)[:filler] if filler else []
    asked = rng.sample(items, min(n_questions, n_facts))
    text = "[gMASK]<sop><|user|>" + " ".join(fact_part(rng, items, body) + [""])
    for i, e in enumerate(asked):
        text += ("" if i == 0 else "<|user|>") + say("QUESTION", e, rng) + "<|assistant|>" + say("ANSWER", e, rng)
    return Doc(text + "<|user|>", items, asked)


def sample_doc(rng, stage):
    """One document of a curriculum stage (0: short facts, 1: some filler, 2: long)."""
    kind = rng.random()
    if kind < stage["story"]:
        return story_doc(rng)
    if kind < stage["story"] + stage["chat_story"]:
        return chat_story(rng)
    n = rng.randint(*stage["facts"])
    filler = rng.randint(*stage["filler"])
    if rng.random() < 0.12:
        return chat_keys(rng, n, filler, stage["questions"])
    return retrieval_doc(rng, n, filler, stage["questions"], stage["again"])


class Encoder:
    def __init__(self, tok):
        self.tok = tok
        self.tags = torch.tensor([tok.encode(" " + c).ids[-1] for c in lx.COLOUR])
        self.value_ids = torch.tensor([tok.token_to_id(v) for v in lx.CLASSES["value"]])
        self.values = set(self.value_ids.tolist())

    def encode(self, doc):
        """(ids, weight of predicting each id, links of attention)."""
        coded = self.tok.encode(doc.text)
        ids = coded.ids
        weights, numbers = [], iter(doc.numbers)
        gather, fetch, source = [], [], {}
        for i, t in enumerate(ids):
            if t not in self.values:
                weights.append(W_TEXT)
                continue
            tag, is_answer = next(numbers)
            last = self.tok.encode(" " + tag).ids[-1]
            at = next(j for j in range(i, -1, -1) if ids[j] == last)
            if is_answer:
                # The token before the answer predicts it: it needs the tag, then the value.
                gather.append((i - 1, at))
                fetch.append((i - 1, source[tag]))
            else:
                gather.append((i, at))
                source[tag] = i
            weights.append(W_ANSWER if is_answer else W_FACT)
        return ids, weights, (gather, fetch, self.mentions(doc, coded, weights))

    @staticmethod
    def mentions(doc, coded, weights):
        """Links from the token before a repeated word to the end of its first mention."""
        ends = [e for _, e in coded.offsets]
        first, links = {}, []
        for start, end, var, pronoun in doc.mentions:
            i = bisect_right(ends, start)
            last = bisect_right(ends, end - 1)
            if var in first:
                links.append((i - 1, first[var]))
                weights[i:last + 1] = [W_MENTION] * (last + 1 - i)
            elif not pronoun:
                first[var] = last
        return links

    def row(self, rng, stage, length):
        """Documents one after another until the row is full; links as (query, key) positions."""
        ids, weights, links = [], [], ([], [], [])
        while len(ids) < length + 1:
            i, w, found = self.encode(sample_doc(rng, stage))
            for kept, new in zip(links, found):
                kept += [(q + len(ids), k + len(ids)) for q, k in new if q + len(ids) < length]
            ids += i
            weights += w
        return ids[: length + 1], weights[: length + 1], links
