"""Trains the demo tokenizer: byte-level BPE with the glm4 pre-tokenizer and GLM's specials."""
import argparse
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import lexicon as lx

GLM4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
CHAT_TEMPLATE = (
    "[gMASK]<sop>{% for m in messages %}"
    "{% if m.role == 'system' %}<|system|>{{ m.content }}"
    "{% elif m.role == 'user' %}<|user|>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|assistant|>{{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build(merges_and_vocab=None):
    vocab, merges = merges_and_vocab or (None, None)
    model = models.BPE(vocab=vocab, merges=merges, ignore_merges=True) if vocab else models.BPE(ignore_merges=True)
    tok = Tokenizer(model)
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(GLM4), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tok.decoder = decoders.ByteLevel()
    return tok


def train(texts, vocab_size):
    """Every number 100..999 becomes one token: they are listed so often that BPE merges them."""
    tok = build()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, min_frequency=2,
        special_tokens=[AddedToken(s, special=True, normalized=False) for s in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tok.train_from_iterator(texts, trainer)
    missing = [v for v in lx.CLASSES["value"] if tok.token_to_id(v) is None]
    if missing:
        raise SystemExit("%d numbers are not single tokens, e.g. %s" % (len(missing), missing[:5]))
    return tok


def main():
    import corpus

    ap = argparse.ArgumentParser()
    ap.add_argument("--out", required=True, help="tokenizer.json to write")
    ap.add_argument("--vocab", type=int, default=4096)
    ap.add_argument("--docs", type=int, default=12000)
    ap.add_argument("--seed", type=int, default=7)
    a = ap.parse_args()
    rng = random.Random(a.seed)
    texts = [corpus.story_doc(rng).text for _ in range(a.docs)]
    texts += [corpus.retrieval_doc(rng, 4, 3, 4).text for _ in range(a.docs // 8)]
    texts += [corpus.chat_story(rng).text for _ in range(a.docs // 8)]
    # Word classes that stories use rarely are added so that most words are one token.
    words = [w for c in lx.CLASSES.values() for w in c]
    texts += [" " + w for w in words if not w.isdigit()] * 60
    texts += list(lx.CLASSES["value"]) * 2000
    tok = train(texts, a.vocab)
    tok.save(a.out)
    one = sum(len(tok.encode(w if w.isdigit() else " " + w).ids) == 1 for w in words)
    print("vocabulary %d, %d of %d lexicon words are one token" % (tok.get_vocab_size(), one, len(words)))


if __name__ == "__main__":
    main()
