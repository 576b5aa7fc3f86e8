"""Generator and recogniser of the story language: one set of templates serves both.

The generator fills the slots of a template from an environment (so that a story keeps its
hero, friend and thing). The recogniser turns every template into a regular expression over
the same word classes and checks articles and pronouns, so it accepts a sentence exactly when
some template can produce it.
"""
import random
import re

import lexicon as lx
import templates as tp

SLOT = re.compile(r"\{([^{}]*)\}")
AN_EXCEPTIONS = ("unicorn", "useful", "one")
HONEST_H = ("hour", "honest")
# Wrapping of marked words: variable (with a dot for a pronoun), then the word.
MARK = "\x02%s\x03%s\x04"
MARKED = re.compile("\x02([^\x03]*)\x03([^\x04]*)\x04")


def article(word):
    """`a` or `an`, by sound for the few words where spelling misleads."""
    w = word.lower()
    if w.startswith(AN_EXCEPTIONS):
        return "a"
    return "an" if w[0] in "aeiou" or w.startswith(HONEST_H) else "a"


def lines(block):
    return tuple(l.strip() for l in block.splitlines() if l.strip())


class Slot:
    """Parsed form of one `{...}`."""

    def __init__(self, text):
        self.cap = "^" in text
        text = text.replace("^", "")
        self.art = text.startswith("a ")
        if self.art:
            text = text[2:]
        self.pronoun = "." in text
        self.var, self.cls = text.split("." if self.pronoun else ":")
        if not self.pronoun and self.cls not in lx.CLASSES:
            raise ValueError("unknown class in {%s}" % text)


def parse(template):
    """Splits a template into literal strings and `Slot`s."""
    parts = SLOT.split(template)
    return [Slot(p) if i % 2 else p for i, p in enumerate(parts)]


def capital(word):
    return word[:1].upper() + word[1:]


class Template:
    def __init__(self, text):
        self.text = text
        self.parts = parse(text)
        self._regex = None

    def fill(self, env, rng, mark=False):
        """One sentence; named variables that are new are drawn and kept in `env`.

        With `mark`, words of named variables are wrapped so that training can find them.
        """
        out = []
        for p in self.parts:
            if isinstance(p, str):
                out.append(p)
                continue
            if p.pronoun:
                word = lx.PRONOUN[p.cls][lx.GENDER[env[p.var]]]
            elif p.var and p.var in env:
                word = env[p.var]
            else:
                word = rng.choice(lx.CLASSES[p.cls])
                if p.var:
                    env[p.var] = word
            front = article(word) + " " if p.art else ""
            if p.cap:
                front, word = capital(front), word if p.art else capital(word)
            if mark and p.var:
                word = MARK % (p.var + ("." if p.pronoun else ""), word)
            out.append(front + word)
        return "".join(out)

    def regex(self):
        """(pattern, [(group, var, cls, pronoun)]) with one group per slot."""
        if self._regex is None:
            pieces, groups = [], []
            for p in self.parts:
                if isinstance(p, str):
                    pieces.append(re.escape(p))
                    continue
                if p.pronoun:
                    words = tuple(lx.PRONOUN[p.cls].values())
                else:
                    words = lx.CLASSES[p.cls]
                if p.art:
                    words = [article(w) + " " + w for w in words]
                if p.cap:
                    words = [capital(w) for w in words]
                # Longest first, so that "tiny little" wins over "tiny".
                alts = sorted(words, key=len, reverse=True)
                pieces.append("(%s)" % "|".join(map(re.escape, alts)))
                groups.append(p)
            self._regex = re.compile("".join(pieces)), groups
        return self._regex

    def accepts(self, sentence):
        pattern, groups = self.regex()
        m = pattern.fullmatch(sentence)
        return bool(m) and self._consistent(zip(groups, m.groups()))

    @staticmethod
    def _consistent(pairs):
        """Same variable, same word; pronouns agree with the name or with each other."""
        words, genders = {}, {}
        for slot, text in pairs:
            if slot.pronoun:
                low = text.lower()
                fits = {g for g, w in lx.PRONOUN[slot.cls].items() if w == low}
                genders.setdefault(slot.var, []).append(fits)
                continue
            word = text.split(" ", 1)[1] if slot.art else text
            if slot.cap:
                word = word if slot.art else word[:1].lower() + word[1:]
            if slot.var and words.setdefault(slot.var, word) != word:
                return False
        for var, fits in genders.items():
            if var in words:
                fits = fits + [{lx.GENDER[words[var]]}]
            if not set.intersection(*fits):
                return False
        return True


PLOTS = {
    name[5:].lower(): [[Template(t) for t in lines(stage)] for stage in getattr(tp, name)]
    for name in dir(tp) if name.startswith("PLOT_")
}
BLOCK = {
    name: [Template(t) for t in lines(getattr(tp, name))]
    for name in ("OPEN", "TRAIT", "ASIDE", "END", "FACT_INTRO", "ASK_STORY")
}
for _name in ("THE_END", "FACT", "QUESTION", "ANSWER"):
    BLOCK[_name] = [Template(t) for t in getattr(tp, _name)]


def all_templates():
    out = [t for name, block in BLOCK.items() if name != "ASK_STORY" for t in block]
    for stages in PLOTS.values():
        out += [t for stage in stages for t in stage]
    return out


def new_env(rng):
    """Hero and friend differ in name and kind; pronouns follow the names."""
    hero, friend = rng.sample(lx.CLASSES["name"], 2)
    kind1, kind2 = rng.sample(lx.ANIMAL, 2)
    return {"hero": hero, "friend": friend, "kind1": kind1, "kind2": kind2}


def story(rng, env=None, mark=False):
    """Sentences of one coherent story."""
    env = dict(env or new_env(rng))
    out = [rng.choice(BLOCK["OPEN"]).fill(env, rng, mark)]
    for t in rng.sample(BLOCK["TRAIT"], rng.choice((1, 1, 2))):
        out.append(t.fill(env, rng, mark))
    stages = PLOTS[rng.choice(sorted(PLOTS))]
    for number, stage in enumerate(stages):
        # Openings and first meetings are alternatives; elsewhere two sentences may follow.
        alternatives = number == 0 or "kind2:animal} named" in stage[0].text or "look2" in stage[0].text
        count = 1 if alternatives else min(len(stage), rng.choice((1, 1, 1, 2)))
        # Keep the written order inside a stage: it is the natural one.
        picks = sorted(rng.sample(range(len(stage)), count))
        out += [stage[i].fill(env, rng, mark) for i in picks]
        if rng.random() < 0.25:
            out.append(rng.choice(BLOCK["ASIDE"]).fill(env, rng, mark))
    for t in rng.sample(BLOCK["END"], rng.choice((1, 1, 2))):
        out.append(t.fill(env, rng, mark))
    if rng.random() < 0.5:
        out.append(BLOCK["THE_END"][0].fill(env, rng, mark))
    return out


# A sentence ends at . ! ? (and a closing quote) before a space and a capital or a quote.
BOUNDARY = re.compile(r'(?<=[.!?])\s+(?=["A-Z])|(?<=[.!?]")\s+(?=["A-Z])|\n+')


def split_sentences(text):
    """Sentences of a text; the second value tells whether the last one is finished."""
    parts = [p.strip() for p in BOUNDARY.split(text.strip()) if p.strip()]
    # A quotation may hold two sentence ends only at its end, so nothing needs rejoining.
    done = bool(parts) and parts[-1].endswith((".", "!", "?", '."', '!"', '?"'))
    return parts, done


class Recogniser:
    """Decides for a sentence whether the grammar can generate it."""

    def __init__(self):
        self.templates = all_templates()

    def accepts(self, sentence):
        return any(t.accepts(sentence) for t in self.templates)

    def score(self, text):
        """(accepted, total, rejected sentences); an unfinished last sentence is left out."""
        parts, done = split_sentences(text)
        if parts and not done:
            parts = parts[:-1]
        bad = [p for p in parts if not self.accepts(p)]
        return len(parts) - len(bad), len(parts), bad


def self_check(n=300, seed=1):
    """The recogniser accepts what the generator makes, and rejects shuffled words."""
    rng, rec = random.Random(seed), Recogniser()
    good = total = 0
    for _ in range(n):
        ok, all_, bad = rec.score(" ".join(story(rng)))
        good, total = good + ok, total + all_
        if bad:
            print("rejected:", bad)
    return good, total


if __name__ == "__main__":
    import sys
    r = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    for _ in range(6):
        print(" ".join(story(r)), "\n")
    print("recogniser accepts %d of %d generated sentences" % self_check())
