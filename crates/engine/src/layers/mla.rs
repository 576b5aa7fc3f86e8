//! Multi-head latent attention in its absorbed form, with the lightning indexer (DSA) where a layer has one.
//!
//! The cache holds one row per position: the normed latent and the shared rotated key. Scores are taken in the latent
//! space, so keys and values are never expanded. A layer without an indexer attends to the positions that the nearest
//! indexer before it selected in the same pass (IndexShare).

use crate::Error;
use crate::backend::{
    Backend, Buf, CacheId, Heads, Index, LatentAttention, RopeId, SelectionId, View, WeightId,
};
use crate::load::Loader;

/// Sizes, Hugging Face names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MlaConfig {
    pub(crate) hidden_size: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) q_lora_rank: usize,
    pub(crate) kv_lora_rank: usize,
    pub(crate) qk_nope_head_dim: usize,
    pub(crate) qk_rope_head_dim: usize,
    pub(crate) v_head_dim: usize,
    pub(crate) latent_eps: f32,
    pub(crate) softmax_scale: f32,
    pub(crate) index_n_heads: usize,
    pub(crate) index_head_dim: usize,
    pub(crate) index_topk: usize,
    /// Rotate index queries and keys, so that a 2-byte key cache loses little.
    pub(crate) hadamard: bool,
}

impl MlaConfig {
    pub(crate) fn cache_width(&self) -> usize {
        self.kv_lora_rank + self.qk_rope_head_dim
    }
    fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }
}

/// Epsilon of the index keys' layer norm, as in transformers.
const INDEX_KEY_NORM_EPS: f32 = 1e-6;

/// Weights of one layer's attention.
pub(crate) struct Mla {
    q_a: WeightId,       // [q_lora_rank, hidden]
    q_a_norm: WeightId,  // [q_lora_rank]
    q_b: WeightId,       // [heads * (nope + rope), q_lora_rank]
    kv_a: WeightId,      // [kv_lora_rank + rope, hidden]
    kv_a_norm: WeightId, // [kv_lora_rank]
    k_b: WeightId,       // [heads][kv_lora_rank, nope]
    v_b: WeightId,       // [heads][v_head_dim, kv_lora_rank]
    output: WeightId,    // [hidden, heads * v_head_dim]
    indexer: Option<Indexer>,
}

/// Weights of the lightning indexer.
struct Indexer {
    q_b: WeightId,         // [index_heads * index_head_dim, q_lora_rank]
    k: WeightId,           // [index_head_dim, hidden]
    k_norm: WeightId,      // [index_head_dim]
    k_norm_bias: WeightId, // [index_head_dim]
    proj: WeightId,        // [index_heads, hidden]
}

/// Scratch of a pass, shared by all layers.
pub(crate) struct MlaState {
    q_latent: Buf,     // [ubatch, q_lora_rank]
    q: Buf,            // [ubatch, heads, nope + rope]
    kv: Buf,           // [ubatch, kv_lora_rank + rope]
    q_absorbed: Buf,   // [ubatch, heads, kv_lora_rank + rope]
    z: Buf,            // [ubatch, heads, kv_lora_rank]: queries before, values after attention
    context: Buf,      // [ubatch, heads, v_head_dim]
    index_q: Buf,      // [ubatch, index_heads, index_head_dim]
    index_k: Buf,      // [ubatch, index_head_dim]
    index_weight: Buf, // [ubatch, index_heads]
    pub(crate) selection: SelectionId,
    pub(crate) rope: RopeId,
}

impl MlaState {
    pub(crate) fn new(
        loader: &mut Loader<'_>,
        c: &MlaConfig,
        ubatch: usize,
        context: usize,
        rope: RopeId,
    ) -> Self {
        let heads = c.num_attention_heads;
        Self {
            q_latent: loader.buffer(ubatch * c.q_lora_rank),
            q: loader.buffer(ubatch * heads * c.qk_head_dim()),
            kv: loader.buffer(ubatch * c.cache_width()),
            q_absorbed: loader.buffer(ubatch * heads * c.cache_width()),
            z: loader.buffer(ubatch * heads * c.kv_lora_rank),
            context: loader.buffer(ubatch * heads * c.v_head_dim),
            index_q: loader.buffer(ubatch * c.index_n_heads * c.index_head_dim),
            index_k: loader.buffer(ubatch * c.index_head_dim),
            index_weight: loader.buffer(ubatch * c.index_n_heads),
            selection: loader.selection(ubatch, c.index_topk, context),
            rope,
        }
    }
}

impl Mla {
    /// `indexed` comes from the metadata: files may carry stale indexer tensors on layers that share.
    pub(crate) fn load(
        loader: &mut Loader<'_>,
        layer: u32,
        c: &MlaConfig,
        indexed: bool,
    ) -> Result<Self, Error> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let heads = c.num_attention_heads;
        let indexer = if indexed { Some(Indexer::load(loader, layer, c)?) } else { None };
        Ok(Self {
            q_a: loader.matrix(&name("attn_q_a.weight"), c.hidden_size, c.q_lora_rank)?,
            q_a_norm: loader.vector(&name("attn_q_a_norm.weight"), c.q_lora_rank)?,
            q_b: loader.matrix(&name("attn_q_b.weight"), c.q_lora_rank, heads * c.qk_head_dim())?,
            kv_a: loader.matrix(&name("attn_kv_a_mqa.weight"), c.hidden_size, c.cache_width())?,
            kv_a_norm: loader.vector(&name("attn_kv_a_norm.weight"), c.kv_lora_rank)?,
            k_b: loader.heads(&name("attn_k_b.weight"), c.qk_nope_head_dim, c.kv_lora_rank, heads)?,
            v_b: loader.heads(&name("attn_v_b.weight"), c.kv_lora_rank, c.v_head_dim, heads)?,
            output: loader.matrix(&name("attn_output.weight"), heads * c.v_head_dim, c.hidden_size)?,
            indexer,
        })
    }

    /// `out = attention(x)`; `x` is the normed layer input, rows of `hidden_size`, row `t` at position `start + t`.
    #[expect(
        clippy::too_many_arguments,
        reason = "operands of one formula; a struct would be built and torn apart"
    )]
    pub(crate) fn forward(
        &self,
        b: &mut dyn Backend,
        c: &MlaConfig,
        s: &MlaState,
        latents: CacheId,
        index_keys: Option<CacheId>,
        x: View,
        start: usize,
        rows: usize,
        out: View,
    ) {
        let (heads, nope, rope, latent) =
            (c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim, c.kv_lora_rank);
        let (qk, width) = (c.qk_head_dim(), c.cache_width());
        let q_latent = View::rows(s.q_latent, c.q_lora_rank);
        let q = View::rows(s.q, heads * qk);
        let kv = View::rows(s.kv, width);
        let q_absorbed = View::rows(s.q_absorbed, heads * width);
        let (q_heads, absorbed_heads) = (Heads::dense(q, heads, qk), Heads::dense(q_absorbed, heads, width));

        match &self.indexer {
            Some(i) => b.matmul(
                x,
                rows,
                &[
                    (self.q_a, q_latent),
                    (self.kv_a, kv),
                    (i.k, View::rows(s.index_k, c.index_head_dim)),
                    (i.proj, View::rows(s.index_weight, c.index_n_heads)),
                ],
            ),
            None => b.matmul(x, rows, &[(self.q_a, q_latent), (self.kv_a, kv)]),
        }
        b.rms_norm(q_latent, self.q_a_norm, c.latent_eps, rows, q_latent);
        b.rms_norm(kv, self.kv_a_norm, c.latent_eps, rows, kv); // the latent part only: the rope key is not normed
        b.rope(s.rope, Heads::one(kv.shifted(latent)), start, rows);
        b.append(latents, kv, start, rows);

        match (&self.indexer, index_keys) {
            (Some(i), Some(keys)) => {
                b.matmul(
                    q_latent,
                    rows,
                    &[(self.q_b, q), (i.q_b, View::rows(s.index_q, c.index_n_heads * c.index_head_dim))],
                );
                i.forward(b, c, s, keys, start, rows);
            }
            _ => b.matmul(q_latent, rows, &[(self.q_b, q)]),
        }
        b.rope(s.rope, q_heads.shifted(nope), start, rows); // rope comes last in MLA's heads
        let z = View::rows(s.z, heads * latent);
        b.matmul_heads(self.k_b, q_heads, rows, z);
        b.copy(Heads::dense(z, heads, latent), absorbed_heads, latent, rows);
        b.copy(q_heads.shifted(nope), absorbed_heads.shifted(latent), rope, rows);

        let attention = LatentAttention {
            queries: q_absorbed,
            cache: latents,
            n_heads: heads,
            latent,
            rope,
            scale: c.softmax_scale,
            selection: s.selection,
            out: z,
        };
        b.attention_latent(&attention, start, rows);
        let context = View::rows(s.context, heads * c.v_head_dim);
        b.matmul_heads(self.v_b, Heads::dense(z, heads, latent), rows, context);
        b.matmul(context, rows, &[(self.output, out)]);
    }
}

impl Indexer {
    fn load(loader: &mut Loader<'_>, layer: u32, c: &MlaConfig) -> Result<Self, Error> {
        let name = |part: &str| format!("blk.{layer}.indexer.{part}");
        let (heads, dim) = (c.index_n_heads, c.index_head_dim);
        Ok(Self {
            q_b: loader.matrix(&name("attn_q_b.weight"), c.q_lora_rank, heads * dim)?,
            k: loader.matrix(&name("attn_k.weight"), c.hidden_size, dim)?,
            k_norm: loader.vector(&name("k_norm.weight"), dim)?,
            k_norm_bias: loader.vector(&name("k_norm.bias"), dim)?,
            proj: loader.matrix(&name("proj.weight"), c.hidden_size, heads)?,
        })
    }

    /// Caches this step's keys (always: later tokens score against them) and selects positions.
    fn forward(
        &self,
        b: &mut dyn Backend,
        c: &MlaConfig,
        s: &MlaState,
        keys: CacheId,
        start: usize,
        rows: usize,
    ) {
        let (heads, dim) = (c.index_n_heads, c.index_head_dim);
        let q = View::rows(s.index_q, heads * dim);
        let q_heads = Heads::dense(q, heads, dim);
        let k = View::rows(s.index_k, dim);
        b.layer_norm(k, self.k_norm, self.k_norm_bias, INDEX_KEY_NORM_EPS, rows);
        b.rope(s.rope, q_heads, start, rows); // rope comes first in the indexer's heads
        b.rope(s.rope, Heads::one(k), start, rows);
        if c.hadamard {
            b.hadamard(q_heads, dim, rows);
            b.hadamard(Heads::one(k), dim, rows);
        }
        b.append(keys, k, start, rows);
        let index = Index {
            queries: q,
            weights: View::rows(s.index_weight, heads),
            keys,
            n_heads: heads,
            head_dim: dim,
            top_k: c.index_topk,
        };
        b.sparse_index(s.selection, &index, start, rows);
    }
}
