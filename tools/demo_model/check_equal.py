"""Checks that the training-time parts give the logits of Hugging Face's unmodified class."""
import argparse

import torch
from tokenizers import Tokenizer

import make_items
import model as dm
from evaluate import fast, load


@torch.no_grad()
def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--checkpoint", required=True)
    a = ap.parse_args()
    tok = Tokenizer.from_file(a.tokenizer)
    net, step, _ = load(a.checkpoint, tok)
    worst = 0.0
    for item in make_items.make(tok, 5, 3):
        ids = torch.tensor([tok.encode(item["prompt"]).ids])
        dm.training_mode(net, False)
        want = net(ids, use_cache=False).logits
        dm.CONTROL.begin("sparse", net.config.index_topk)
        got = fast(net)(ids, use_cache=False).logits
        worst = max(worst, float((want - got).abs().max() / want.abs().max()))
    print("step %s: largest difference %.2e of the largest logit" % (step, worst))
    assert worst < 1e-4


if __name__ == "__main__":
    main()
