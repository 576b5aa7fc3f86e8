"""Measures a checkpoint with Hugging Face: retrieval (dense, sparse, recent) and sampled sentences."""
import argparse
import json
import os

import numpy as np
import torch
from tokenizers import Tokenizer

import make_items
import model as dm
from parse_sentences import measure


def load(path, tok):
    net = dm.build(tok.get_vocab_size())
    state = torch.load(path, weights_only=True, map_location="cpu")
    net.load_state_dict(state.get("model", state))
    return net.eval(), state.get("step"), state.get("tokens")


def quantise(net, experts, dense="Q8_0"):
    """Replaces the weights by what the exported files will hold."""
    from gguf import GGMLQuantizationType as G
    from gguf.quants import dequantize, quantize
    with torch.no_grad():
        for name, p in net.named_parameters():
            kind = experts if "mlp.experts." in name else dense
            small = p.dim() < 2 or name.endswith("mlp.gate.weight") or "weights_proj" in name
            if kind == "F32" or small:
                continue
            x = p.detach().float().numpy()
            if "kv_b_proj" in name:
                x = split_kv_b(net.config, x, lambda a: dequantize(quantize(a, G[kind]), G[kind]))
            else:
                x = dequantize(quantize(np.ascontiguousarray(x), G[kind]), G[kind])
            p.copy_(torch.from_numpy(np.ascontiguousarray(x)))
    return net


def split_kv_b(cfg, w, f):
    """Applies `f` to the two parts as they are stored: keys transposed, values plain."""
    h, n, v, r = cfg.num_attention_heads, cfg.qk_nope_head_dim, cfg.v_head_dim, cfg.kv_lora_rank
    w = w.reshape(h, n + v, r)
    k = f(np.ascontiguousarray(w[:, :n].transpose(0, 2, 1))).transpose(0, 2, 1)
    return np.concatenate([k, f(np.ascontiguousarray(w[:, n:]))], 1).reshape(h * (n + v), r)


def fast(net):
    dm.training_mode(net)
    dm.WORK = torch.float32
    return net


@torch.no_grad()
def retrieval(net, tok, items, mode, topk=64, batch=16):
    """Share of items whose greedy continuation is " <answer>"; also by distance band."""
    space = tok.encode(" 427").ids[0]
    hits = []
    order = sorted(items, key=lambda i: len(i["prompt"]))
    for b in range(0, len(order), batch):
        part = order[b:b + batch]
        ids = [tok.encode(i["prompt"]).ids + [space] for i in part]
        width = max(map(len, ids))
        x = torch.tensor([i + [0] * (width - len(i)) for i in ids])
        dm.CONTROL.begin(mode, topk)
        hidden = net.model(x, use_cache=False).last_hidden_state
        for row, i, it in zip(hidden, ids, part):
            guess = net.lm_head(row[len(i) - 2:len(i)]).argmax(-1).tolist()
            hits.append((it["distance"], guess == [space, tok.token_to_id(it["answer"])]))
    bands = [[h for d, h in hits if lo <= d < lo + 56] for lo in range(70, 350, 56)]
    return sum(h for _, h in hits) / len(hits), [round(sum(b) / max(1, len(b)), 3) for b in bands]


@torch.no_grad()
def sample(net, tok, prompt, count, length, temperature=0.8, top_p=0.95, seed=5):
    """Samples with Hugging Face's own cache and classes, until <|endoftext|> or <|user|>."""
    gen = torch.Generator().manual_seed(seed)
    stop = {tok.token_to_id("<|endoftext|>"), tok.token_to_id("<|user|>")}
    start = tok.encode(prompt).ids
    ids = torch.tensor([start] * count)
    out, alive, cache, feed = ids, torch.ones(count, dtype=torch.bool), None, ids
    while out.shape[1] < length and alive.any():
        r = net(feed, past_key_values=cache, use_cache=True)
        cache = r.past_key_values
        p = (r.logits[:, -1] / temperature).softmax(-1)
        s, i = p.sort(-1, descending=True)
        s = s.masked_fill(s.cumsum(-1) - s > top_p, 0.0)
        nxt = i.gather(1, torch.multinomial(s, 1, generator=gen))
        nxt[~alive] = 0
        alive &= ~torch.tensor([int(n) in stop for n in nxt])
        out, feed = torch.cat([out, nxt], 1), nxt
    texts = []
    for row in out.tolist():
        end = next((j for j in range(len(start), len(row)) if row[j] in stop), len(row))
        texts.append(tok.decode(row[:end], skip_special_tokens=False))
    return texts


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--checkpoint", required=True)
    ap.add_argument("--items", type=int, default=512)
    ap.add_argument("--samples", type=int, default=0)
    ap.add_argument("--experts", default="F32", help="F32, Q8_0 or Q4_0")
    ap.add_argument("--dense", default="F32", help="F32 or Q8_0")
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--modes", default="dense,sparse,recent")
    ap.add_argument("--texts", help="write sampled texts here (JSON lines)")
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    tok = Tokenizer.from_file(a.tokenizer)
    net, step, tokens = load(a.checkpoint, tok)
    quantise(net, a.experts, a.dense)
    print("step %s, tokens %s, experts %s, dense %s" % (step, tokens, a.experts, a.dense), flush=True)
    if a.items:
        items = make_items.make(tok, a.items, 99)
        for mode in a.modes.split(","):
            acc, bands = retrieval(fast(net), tok, items, mode)
            print("retrieval %-7s %.3f   by distance %s" % (mode, acc, bands), flush=True)
    if a.samples:
        dm.training_mode(net, False)
        texts = sample(net, tok, "Once upon a time", a.samples, 320)
        good, total = measure(texts, 8)
        print("sentences that parse: %d of %d = %.2f %%" % (good, total, 100 * good / max(1, total)))
        print(texts[0])
        print(sample(net, tok, "[gMASK]<sop><|user|>Tell me a story about a fox.<|assistant|>", 1, 320)[0])
        if a.texts:
            with open(a.texts, "w") as f:
                f.writelines(json.dumps({"text": t}) + "\n" for t in texts)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
