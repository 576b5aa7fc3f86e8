"""Trains the demo model on the CPU: two workers with one thread each, gradients averaged.

Restarting continues from the last checkpoint; data depend on (seed, step, worker) only.
"""
import argparse
import json
import os
import random
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tokenizers import Tokenizer

import corpus
import model as dm
import recipe


def batch_of(encoder, stage, step, worker):
    rng = random.Random("%d/%d/%d" % (recipe.SEED, step, worker))
    rows = [encoder.row(rng, stage, stage["seq"]) for _ in range(stage["batch"])]
    ids = torch.tensor([r[0] for r in rows])
    weights = torch.tensor([r[1] for r in rows])
    # Links of all rows as (row, query, key) columns, one tensor per guided layer.
    links = [torch.tensor([(b, q, k) for b, r in enumerate(rows) for q, k in r[2][n]]).view(-1, 3).t()
             for n in range(3)]
    return ids[:, :-1], ids[:, 1:], weights[:, 1:], links, rng


def index_rows(weights, rng):
    """Query positions of the indexer loss: random ones, and ones that predict an answer."""
    t = weights.shape[1]
    rows = set(rng.sample(range(t), min(t, recipe.INDEX_ROWS * 2 // 3)))
    answers = (weights == corpus.W_ANSWER).nonzero()[:, 1].tolist()
    rng.shuffle(answers)
    rows.update(answers[: recipe.INDEX_ROWS // 3])
    return torch.tensor(sorted(rows))


def optimiser(net):
    decay = [p for n, p in net.named_parameters() if p.dim() >= 2 and "embed" not in n]
    plain = [p for n, p in net.named_parameters() if p.dim() < 2 or "embed" in n]
    groups = [{"params": decay, "weight_decay": recipe.WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.LR, betas=(0.9, 0.97), eps=1e-9, fused=True)


def average_gradients(params, world):
    """One all-reduce for all gradients; returns nothing, gradients are replaced in place."""
    for p in params:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    flat = torch.cat([p.grad.view(-1) for p in params])
    if world > 1:
        dist.all_reduce(flat)
        flat /= world
    i = 0
    for p in params:
        p.grad.copy_(flat[i:i + p.numel()].view_as(p))
        i += p.numel()


def balance_router(net, world, step):
    """Moves the selection bias of starved and overloaded experts; skew within the band stays."""
    moes = [l.mlp for l in net.model.layers if hasattr(l.mlp, "gate") and hasattr(l.mlp, "experts")]
    none = torch.zeros(net.config.n_routed_experts)
    counts = torch.stack([getattr(m.experts, "last_counts", none).float() for m in moes])
    if world > 1:
        dist.all_reduce(counts)
    load = counts / counts.mean(-1, keepdim=True).clamp_min(1e-9)
    if step < recipe.DECAY_FROM:
        low, high = recipe.LOAD_BAND
        for m, l in zip(moes, load):
            m.gate.e_score_correction_bias += recipe.BIAS_STEP * ((l < low).float() - (l > high).float())
    return load


def agree(flag, world):
    """True for all workers as soon as one of them says so."""
    t = torch.tensor([float(flag)])
    if world > 1:
        dist.all_reduce(t)
    return bool(t.item())


def save(path, net, opt, step, tokens):
    tmp = path + ".tmp"
    torch.save({"model": net.state_dict(), "opt": opt.state_dict(), "step": step, "tokens": tokens}, tmp)
    os.replace(tmp, path)


def worker(rank, world, a):
    torch.set_num_threads(1)
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    if world > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(a.port))
        dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(recipe.SEED)
    tok = Tokenizer.from_file(a.tokenizer)
    enc = corpus.Encoder(tok)
    net = dm.training_mode(dm.build(tok.get_vocab_size()))
    net.train()
    dm.watch_streams(net)
    with torch.no_grad():
        net.model.embed_tokens.weight.mul_(recipe.EMBED_STD / net.config.initializer_range)
        net.model.norm.weight.fill_(recipe.FINAL_NORM)
    opt, step, tokens = optimiser(net), 0, 0
    ckpt = os.path.join(a.out, "last.pt")
    if os.path.exists(ckpt):
        c = torch.load(ckpt, weights_only=True)
        net.load_state_dict(c["model"])
        opt.load_state_dict(c["opt"])
        step, tokens = c["step"], c["tokens"]
    params = list(net.parameters())
    began = saved = time.time()
    log = open(os.path.join(a.out, "log.jsonl"), "a") if rank == 0 else None
    while step < recipe.TOTAL:
        stats = one_step(net, opt, params, enc, step, rank, world)
        step += 1
        tokens += stats["tokens"] * world
        if rank == 0 and step % 20 == 0:
            stats.update(step=step, tokens=tokens, seconds=round(time.time() - began, 1))
            log.write(json.dumps(stats) + "\n")
            log.flush()
        stop = agree(os.path.exists(os.path.join(a.out, "stop")), world)
        if rank == 0 and (stop or time.time() - saved > a.save_every or step == recipe.TOTAL):
            save(ckpt, net, opt, step, tokens)
            saved = time.time()
        if stop:
            break
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def one_step(net, opt, params, enc, step, rank, world):
    st = recipe.stage(step)
    ids, target, weights, links, rng = batch_of(enc, st, step, rank)
    mode = "sparse" if random.Random("%d/%d" % (recipe.SEED, step)).random() < st["sparse"] else "dense"
    guide = recipe.guidance(step)
    mention = recipe.mention_guidance(step)
    first, second = recipe.GUIDED
    guided = [(first, 0, links[0]), (second, 0, links[1])] if guide else []
    guided += [(second, 1, links[2])] if mention else []
    dm.CONTROL.begin(mode, st["topk"], index_rows(weights, rng), guided)
    only_guided = st.get("only_guided", False)
    net.model.config.num_hidden_layers = recipe.GUIDED[1] + 1 if only_guided else len(dm.INDEX_PATTERN)
    hidden = net.model(ids, use_cache=False).last_hidden_state
    dm.CONTROL.close_group()
    ctl, w, stats = dm.CONTROL, weights.reshape(-1), {}
    loss = sum(ctl.loss) / len(ctl.loss) * recipe.INDEX_WEIGHT
    loss = loss + recipe.RESIDUAL_WEIGHT * dm.residual_loss(recipe.RESIDUAL_LIMIT)
    if guide and links[1].shape[1]:
        for layer, link, tokens in zip(recipe.GUIDED, links, (enc.tags, enc.value_ids)):
            ctl.guide.append(dm.read_out_loss(ctl.streams[layer], link, ids, net.lm_head.weight, tokens))
        loss = loss + guide * sum(ctl.guide)
    elif mention and ctl.guide:
        loss = loss + mention * sum(ctl.guide)
    if not only_guided:
        text, per_token = dm.HeadLoss.apply(
            hidden.view(-1, hidden.shape[-1]), net.lm_head.weight, target.reshape(-1), w)
        loss = loss + text
        ans = per_token[w == corpus.W_ANSWER]
        stats = {"text": round(per_token[(w == corpus.W_TEXT) | (w == corpus.W_MENTION)].mean().item(), 4),
                 "mention": round(per_token[w == corpus.W_MENTION].mean().item(), 3),
                 "answer": round(ans.mean().item(), 4), "hit": round((ans < 0.69).float().mean().item(), 3)}
    loss.backward()
    average_gradients(params, world)
    norm = torch.nn.utils.clip_grad_norm_(params, 1.0)
    for g in opt.param_groups:
        g["lr"] = recipe.lr(step)
    opt.step()
    opt.zero_grad(set_to_none=True)
    load = balance_router(net, world, step)
    return {"mode": mode, "seq": st["seq"], **stats, "kl": [round(k.item(), 3) for k in ctl.loss],
            "guide": [round(g.item(), 3) for g in ctl.guide], "norm": round(norm.item(), 2),
            "stream": round(max(h.pow(2).mean(-1).max().item() for h in ctl.streams), 1), "lr": recipe.lr(step),
            "tokens": ids.numel(), "load": [round(load.min().item(), 2), round(load.max().item(), 2)]}


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--workers", type=int, default=2)
    ap.add_argument("--save-every", type=float, default=180)
    ap.add_argument("--port", type=int, default=29517)
    a = ap.parse_args()
    os.makedirs(a.out, exist_ok=True)
    # Big buffers come back every step: keep them instead of giving the pages back.
    os.environ.update(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_="100000000000", MALLOC_TOP_PAD_="200000000")
    if a.workers == 1:
        worker(0, 1, a)
    else:
        mp.spawn(worker, (a.workers, a), nprocs=a.workers)


if __name__ == "__main__":
    main()
