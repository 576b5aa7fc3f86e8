"""The training schedule: what is trained when. Steps are optimiser steps over both workers."""

# story/chat_story: share of those documents, the rest is retrieval; filler: story sentences
# between facts and questions; sparse: share of steps with top-k attention (the others dense).
# only_guided: no text loss yet, and only the layers up to the second guided one run.
STAGES = [
    dict(until=100, seq=96, batch=14, story=0.0, chat_story=0.0, facts=(2, 5), filler=(0, 0), questions=5,
         again=0.0, sparse=0.0, topk=64, only_guided=True),
    dict(until=350, seq=96, batch=14, story=0.2, chat_story=0.0, facts=(2, 5), filler=(0, 0), questions=5,
         again=0.1, sparse=0.0, topk=64),
    dict(until=700, seq=200, batch=7, story=0.4, chat_story=0.05, facts=(2, 6), filler=(0, 7), questions=6,
         again=0.1, sparse=0.5, topk=64),
    dict(until=910, seq=384, batch=4, story=0.35, chat_story=0.08, facts=(2, 8), filler=(2, 18), questions=6,
         again=0.1, sparse=0.75, topk=64),
    dict(until=10 ** 9, seq=384, batch=6, story=0.42, chat_story=0.16, facts=(2, 8), filler=(2, 18), questions=6,
         again=0.1, sparse=0.75, topk=64),
]
# Guidance of the two-step look-up "value <- tag, question <- value". Without it the loss sat on
# a plateau for the whole budget: the tag's trace in the value token drowns in the value's own
# embedding. Head 0 of the first layer is shown where a value's tag stands, a read-out asks that
# the tag can be told from the residual stream there, and head 0 of the second layer is shown
# where the value of a question stands (and there the value must be readable). It fades out; the
# last 1,400 steps learn without it.
GUIDED = (1, 3)
GUIDE_FULL, GUIDE_UNTIL, GUIDE_WEIGHT = 700, 1100, 0.5
# The same for story words that come again (names, animals, things, and the pronouns of names):
# head 1 of the second layer is shown the first mention.
MENTION_FROM, MENTION_UNTIL, MENTION_WEIGHT = 1100, 2200, 0.4
# Mean square of the residual stream beyond which a layer's output is penalised.
RESIDUAL_LIMIT, RESIDUAL_WEIGHT = 1.5, 0.05
# Embeddings as large as what the layers add, so that a token's identity survives in the stream;
# the final norm starts small to keep the tied head's logits in range.
EMBED_STD, FINAL_NORM = 0.5, 0.2

TOTAL = 2500          # last step
DECAY_FROM = 1750     # the learning rate falls linearly from here to `LR * FLOOR`
WARMUP = 30
LR, FLOOR = 2e-3, 0.03
WEIGHT_DECAY = 0.02
INDEX_WEIGHT = 1.0    # reaches only the indexer's own parameters
INDEX_ROWS = 48
BIAS_STEP = 2e-3      # router bias; only for experts outside the band below
LOAD_BAND = (0.35, 2.5)
SEED = 11


def stage(step):
    return next(s for s in STAGES if step < s["until"])


def lr(step):
    if step < WARMUP:
        return LR * (step + 1) / WARMUP
    if step < DECAY_FROM:
        return LR
    return LR * (FLOOR + (1 - FLOOR) * max(0.0, (TOTAL - step) / (TOTAL - DECAY_FROM)))


def guidance(step):
    if step >= GUIDE_UNTIL:
        return 0.0
    return GUIDE_WEIGHT * min(1.0, (GUIDE_UNTIL - step) / (GUIDE_UNTIL - GUIDE_FULL))


def mention_guidance(step):
    return MENTION_WEIGHT if MENTION_FROM <= step < MENTION_UNTIL else 0.0
