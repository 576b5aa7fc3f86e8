"""Configuration of the demo model and the training-time replacements inside Hugging Face's class.

The weights always live in an unmodified `GlmMoeDsaForCausalLM`. For training three parts run
in another, mathematically equal way: the experts (one fused autograd function), the attention
(fused kernel), and the indexer, which keeps its inputs so that its own loss can be computed.
"""
import torch
import torch.nn.functional as F
from transformers import GlmMoeDsaConfig, GlmMoeDsaForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa as hf

# F = full (own indexer), S = shared (reuses the selection of the full layer before it).
INDEX_PATTERN = "FFSFSS"


def make_config(vocab, **over):
    full = {"F": "full", "S": "shared"}
    base = dict(
        vocab_size=vocab, hidden_size=128, intermediate_size=384, moe_intermediate_size=64,
        num_hidden_layers=len(INDEX_PATTERN), num_attention_heads=4, num_key_value_heads=4,
        n_shared_experts=1, n_routed_experts=32, num_experts_per_tok=4, routed_scaling_factor=2.5,
        q_lora_rank=64, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=48,
        n_group=1, topk_group=1, norm_topk_prob=True, max_position_embeddings=2048,
        initializer_range=0.05, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        first_k_dense_replace=1, index_topk=64, index_head_dim=32, index_n_heads=16,
        indexer_types=[full[c] for c in INDEX_PATTERN],
        bos_token_id=None, eos_token_id=0, pad_token_id=None,
    )
    base.update(over)
    return GlmMoeDsaConfig(**base)


# ---------------------------------------------------------------- experts

# Rows per expert are padded to a multiple of this: every new matrix shape costs a kernel build.
PAD = 64
WORK = torch.bfloat16
# Short rows: plain bfloat16 products beat the fused kernel on this kind of processor.
MANUAL_BELOW = 320


def each_expert(counts):
    """(expert, slice of its padded rows) for the experts that have rows."""
    start = 0
    for e, n in enumerate(counts):
        if n:
            yield e, slice(start, start + n)
        start += n


class GroupedSwiGLU(torch.autograd.Function):
    """All experts of a layer on rows sorted by expert, matrix products in bfloat16."""

    @staticmethod
    def forward(ctx, x, w_gu, w_down, counts):
        x, gu, down = x.to(WORK), w_gu.to(WORK), w_down.to(WORK)
        h = x.new_empty(x.shape[0], gu.shape[1])
        for e, s in each_expert(counts):
            torch.mm(x[s], gu[e].t(), out=h[s])
        gate, up = h.chunk(2, -1)
        inner = F.silu(gate) * up
        y = torch.empty_like(x)
        for e, s in each_expert(counts):
            torch.mm(inner[s], down[e].t(), out=y[s])
        ctx.save_for_backward(x, gu, down, h, inner)
        ctx.counts = counts
        return y.float()

    @staticmethod
    def backward(ctx, dy):
        x, gu, down, h, inner = ctx.saved_tensors
        dy = dy.to(WORK)
        d_down, d_gu = torch.zeros_like(down), torch.zeros_like(gu)
        d_inner, dx = torch.empty_like(inner), torch.empty_like(x)
        for e, s in each_expert(ctx.counts):
            torch.mm(dy[s], down[e], out=d_inner[s])
            torch.mm(dy[s].t(), inner[s], out=d_down[e])
        gate, up = h.chunk(2, -1)
        sig = torch.sigmoid(gate)
        act = gate * sig
        dh = torch.cat((d_inner * up * (sig + act * (1 - sig)), d_inner * act), -1)
        for e, s in each_expert(ctx.counts):
            torch.mm(dh[s], gu[e], out=dx[s])
            torch.mm(dh[s].t(), x[s], out=d_gu[e])
        return dx.float(), d_gu.float(), d_down.float(), None


def fused_experts(self, hidden, top_idx, top_w):
    k = top_idx.shape[-1]
    flat, order = torch.sort(top_idx.reshape(-1), stable=True)
    counts = torch.bincount(flat, minlength=self.num_experts)
    self.last_counts = counts
    padded = (counts + PAD - 1) // PAD * PAD
    # Where the sorted row r of expert e lies once every expert's rows are padded.
    shift = (padded.cumsum(0) - padded) - (counts.cumsum(0) - counts)
    place = torch.arange(len(order)) + shift[flat]
    rows = order // k
    x = hidden.new_zeros(int(padded.sum()), hidden.shape[1]).index_copy(0, place, hidden[rows])
    y = GroupedSwiGLU.apply(x, self.gate_up_proj, self.down_proj, padded.tolist())[place]
    y = y * top_w.reshape(-1)[order][:, None]
    return torch.zeros_like(hidden).index_add_(0, rows, y)


class HeadLoss(torch.autograd.Function):
    """Weighted cross entropy of the tied head, in chunks so that logits stay in the cache."""

    CHUNK = 512

    @staticmethod
    def forward(ctx, hidden, weight, target, w):
        scale = 1.0 / w.sum()
        wb, d_weight = weight.to(WORK), torch.zeros_like(weight)
        d_hidden, total = torch.empty_like(hidden), torch.zeros(len(hidden))
        for i in range(0, len(hidden), HeadLoss.CHUNK):
            s = slice(i, i + HeadLoss.CHUNK)
            hb = hidden[s].to(WORK)
            p = torch.mm(hb, wb.t()).float()
            logp = F.log_softmax(p, -1)
            total[s] = -logp.gather(1, target[s, None])[:, 0]
            g = logp.exp_()
            g.scatter_add_(1, target[s, None], -torch.ones(len(g), 1))
            g = g.mul_((w[s] * scale)[:, None]).to(WORK)
            d_hidden[s] = torch.mm(g, wb).float()
            d_weight += torch.mm(g.t(), hb).float()
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.mark_non_differentiable(total)
        return (total * w).sum() * scale, total

    @staticmethod
    def backward(ctx, d_loss, _):
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * d_loss, d_weight * d_loss, None, None


# ---------------------------------------------------------------- indexer and attention

class Control:
    """What the replaced parts do in this step, and what they hand back."""

    def __init__(self):
        self.mode = "dense"      # dense | sparse | recent
        self.topk = 64
        self.rows = None         # query positions that get the indexer loss, [R]
        self.loss = []           # one indexer loss per full layer
        self.pending = None      # (indexer scores of `rows`, summed targets, layers in the sum)
        self.selection = None    # bool [B, T, T] of the last full layer
        self.links = ()          # (layer, head, (row, query, key) columns) to guide
        self.guide = []          # guidance losses
        self.streams = []        # residual stream after every layer that ran

    def begin(self, mode, topk=64, rows=None, links=()):
        self.mode, self.topk, self.rows = mode, topk, rows
        self.links, self.guide, self.streams = links, [], []
        self.loss, self.pending, self.selection = [], None, None

    def close_group(self):
        """Indexer loss of a full layer and the shared layers behind it."""
        if self.pending is None:
            return
        scores, target, layers = self.pending
        target = target / layers
        logp = F.log_softmax(scores, -1)
        kl = torch.where(target > 0, target * (torch.log(target.clamp_min(1e-9)) - logp), 0.0)
        self.loss.append(kl.sum(-1).mean())
        self.pending = None


CONTROL = Control()


def index_scores(ix, hidden, q_resid, cos, sin, rows=None):
    """Scores [B, R, T] of the indexer, for all query rows or for some."""
    b, t, _ = hidden.shape
    r = ix.qk_rope_head_dim
    hq, qr, cq, sq = (hidden, q_resid, cos, sin) if rows is None else (
        hidden[:, rows], q_resid[:, rows], cos[:, rows], sin[:, rows])
    q = ix.wq_b(qr).view(b, -1, ix.n_heads, ix.head_dim)
    k = ix.k_norm(ix.wk(hidden)).unsqueeze(2)
    q = torch.cat([rope(q[..., :r], cq, sq), q[..., r:]], -1)
    k = torch.cat([rope(k[..., :r], cos, sin), k[..., r:]], -1).squeeze(2)
    w = ix.weights_proj(hq) * (ix.n_heads ** -0.5 * ix.head_dim ** -0.5)
    n = q.shape[1]
    dots = torch.matmul(q.reshape(b, n * ix.n_heads, ix.head_dim), k.transpose(1, 2))
    dots = F.relu(dots, inplace=not dots.requires_grad).view(b, n, ix.n_heads, t)
    return torch.matmul(w.unsqueeze(2), dots).squeeze(2)


def rope(x, cos, sin):
    """Interleaved rotary embedding on [B, S, H, D]; output de-interleaved as in Hugging Face."""
    c, s = cos[..., : cos.shape[-1] // 2].unsqueeze(2), sin[..., : sin.shape[-1] // 2].unsqueeze(2)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.cat([a * c - b * s, b * c + a * s], -1)


def future(rows, t):
    return torch.arange(t)[None, :] > rows[:, None]


def train_indexer(self, hidden_states, q_resid, position_embeddings, attention_mask, position_ids=None,
                  past_key_values=None):
    ctl = CONTROL
    ctl.close_group()
    cos, sin = position_embeddings
    hidden, q_resid = hidden_states.detach(), q_resid.detach()
    t = hidden.shape[1]
    if ctl.rows is not None:
        s = index_scores(self, hidden, q_resid, cos, sin, ctl.rows)
        ctl.pending = [s.masked_fill(future(ctl.rows, t), -1e9), 0.0, 0]
    if ctl.mode == "sparse" and t > ctl.topk:
        with torch.no_grad():
            s = index_scores(self, hidden, q_resid, cos, sin)
            s.masked_fill_(torch.ones(t, t, dtype=torch.bool).triu(1), float("-inf"))
            idx = s.topk(ctl.topk, -1, sorted=False).indices
            keep = torch.zeros_like(s, dtype=torch.bool).scatter_(-1, idx, True)
            ctl.selection = keep & torch.ones(t, t, dtype=torch.bool).tril()
    # The real indices travel through `CONTROL`; the class only passes this on.
    return torch.zeros(1, dtype=torch.int32)


def guidance_loss(query, key, scaling, head, links):
    """-log of the attention that a head pays along the links; only their rows are computed."""
    b, q, k = links
    s = torch.matmul(key[b, head], query[b, head, q].unsqueeze(-1)).squeeze(-1) * scaling
    s = s.masked_fill(future(q, key.shape[2]), -1e9)
    return F.cross_entropy(s, k)


def read_out_loss(hidden, links, ids, weight, tags):
    """The linked token (one of `tags`) must be readable from the linking token's stream."""
    b, q, k = links
    h = hidden[b, q]
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5)
    which = (ids[b, k][:, None] == tags[None, :]).long().argmax(-1)
    return F.cross_entropy(h @ weight[tags].t(), which)


def residual_loss(limit):
    """Keeps massive activations away: they drown everything else after the norm."""
    return sum(F.relu(h.pow(2).mean(-1) - limit).mean() for h in CONTROL.streams)


def train_attention(module, query, key, value, attention_mask, scaling, **kwargs):
    ctl = CONTROL
    t = query.shape[2]
    if ctl.pending is not None:
        with torch.no_grad():
            p = torch.matmul(query[:, :, ctl.rows], key.transpose(2, 3)) * scaling
            p = p.masked_fill_(future(ctl.rows, t), -1e9).softmax(-1).mean(1)
            ctl.pending[1] = ctl.pending[1] + p
            ctl.pending[2] += 1
    for layer, head, links in ctl.links:
        if layer == module.layer_idx and links.shape[1]:
            ctl.guide.append(guidance_loss(query, key, scaling, head, links))
    if ctl.mode == "recent":
        i = torch.arange(t)
        gap = i[:, None] - i[None, :]
        mask = ((gap >= 0) & (gap < ctl.topk))[None, None]
    else:
        mask = None if ctl.selection is None else ctl.selection[:, None]
    if torch.is_grad_enabled() and t <= MANUAL_BELOW:
        keep = torch.ones(t, t, dtype=torch.bool).tril() if mask is None else mask
        q, k, v = query.to(WORK), key.to(WORK), value.to(WORK)
        p = torch.matmul(q * scaling, k.transpose(2, 3)).masked_fill_(~keep, -1e9)
        return torch.matmul(p.softmax(-1), v).float().transpose(1, 2), None
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling)
    return out.transpose(1, 2), None


def no_mask(*args, **kwargs):
    return torch.zeros(1, 1, 1, 1)


ALL_EXPERTS_FUNCTIONS.register("demo_fused", fused_experts)
ALL_ATTENTION_FUNCTIONS.register("demo_train", train_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register("demo_train", no_mask)
PLAIN_INDEXER = hf.GlmMoeDsaIndexer.forward


def training_mode(model, on=True):
    """Switches an existing model between the fast training parts and Hugging Face's own."""
    hf.GlmMoeDsaIndexer.forward = train_indexer if on else PLAIN_INDEXER
    model.config._attn_implementation = "demo_train" if on else "eager"
    model.config._experts_implementation = "demo_fused" if on else "eager"
    return model


def watch_streams(model):
    for layer in model.model.layers:
        layer.register_forward_hook(lambda m, i, o: CONTROL.streams.append(o[0]))


def build(vocab, **over):
    cfg = make_config(vocab, **over)
    return GlmMoeDsaForCausalLM._from_config(cfg, attn_implementation="eager")
