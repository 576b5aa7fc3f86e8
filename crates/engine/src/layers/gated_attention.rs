//! Attention whose output goes through a gate: grouped keys and values, queries and keys normed per head and rotated in part; beside
//! each query its projection has as many numbers whose sigmoids multiply what the head puts out.

use crate::Error;
use crate::backend::{Backend, Buf, CacheId, Heads, KvAttention, RopeId, SelectionId, View, WeightId};
use crate::keys::Keys;
use crate::load::Loader;
use crate::models::Rows;

/// Sizes, Hugging Face names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GatedAttentionConfig {
    pub(crate) hidden_size: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) num_key_value_heads: usize,
    /// Of queries, keys and values.
    pub(crate) head_dim: usize,
    pub(crate) rms_norm_eps: f32,
}

impl GatedAttentionConfig {
    /// `rope_dim` elements of each head are rotated.
    pub(crate) fn read(keys: &Keys<'_>, rope_dim: usize) -> Result<Self, Error> {
        let c = Self {
            hidden_size: keys.size("embedding_length")?,
            num_attention_heads: keys.size("attention.head_count")?,
            num_key_value_heads: keys.size("attention.head_count_kv")?,
            head_dim: keys.size("attention.key_length")?,
            rms_norm_eps: keys.f32("attention.layer_norm_rms_epsilon")?,
        };
        let (heads, kv, dim) = (c.num_attention_heads, c.num_key_value_heads, c.head_dim);
        if !heads.is_multiple_of(kv) {
            return Err(keys.wrong(format!("attention.head_count {heads} is no multiple of head_count_kv {kv}")));
        }
        let value = keys.size_or("attention.value_length", dim)?;
        if value != dim {
            return Err(keys.wrong(format!("attention.value_length {value} is not key_length {dim}")));
        }
        if rope_dim > dim {
            return Err(keys.wrong(format!("rope.dimension_count {rope_dim} is above attention.key_length {dim}")));
        }
        Ok(c)
    }

    /// Elements of all heads.
    pub(crate) fn width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    fn kv_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// As [`ScratchSpec::kv`](crate::backend::ScratchSpec::kv).
    pub(crate) fn kv(&self) -> [usize; 3] {
        [self.num_attention_heads / self.num_key_value_heads, self.head_dim, self.head_dim]
    }
}

/// Weights of one layer.
pub(crate) struct GatedAttention {
    q: WeightId,      // [heads, (query, gate), head_dim; hidden]
    k: WeightId,      // [kv_heads * head_dim, hidden]
    v: WeightId,      // [kv_heads * head_dim, hidden]
    q_norm: WeightId, // [head_dim]
    k_norm: WeightId, // [head_dim]
    output: WeightId, // [hidden, heads * head_dim]
}

/// Cached state of one sequence in one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GatedAttentionCache {
    keys: CacheId,   // [context, kv_heads * head_dim], normed and rotated
    values: CacheId, // [context, kv_heads * head_dim]
}

impl GatedAttentionCache {
    pub(crate) fn new(loader: &mut Loader<'_>, c: &GatedAttentionConfig, context: usize) -> Self {
        let (ty, width) = (loader.options.cache_type, c.kv_width());
        // Keys decide where attention goes: 8 bits are for values only.
        Self { keys: loader.cache(context, width, 0, ty), values: loader.cache(context, width, width, ty) }
    }
}

/// Scratch of a pass, shared by all layers.
pub(crate) struct GatedAttentionState {
    q_gate: Buf, // [ubatch, heads, (query, gate), head_dim]
    q: Buf,      // [ubatch, heads, head_dim]
    k: Buf,      // [ubatch, kv_heads, head_dim]
    v: Buf,      // [ubatch, kv_heads, head_dim]
    o: Buf,      // [ubatch, heads, head_dim]
    rope: RopeId,
}

impl GatedAttentionState {
    pub(crate) fn new(loader: &mut Loader<'_>, c: &GatedAttentionConfig, ubatch: usize, rope: RopeId) -> Self {
        Self {
            q_gate: loader.buffer(ubatch * 2 * c.width()),
            q: loader.buffer(ubatch * c.width()),
            k: loader.buffer(ubatch * c.kv_width()),
            v: loader.buffer(ubatch * c.kv_width()),
            o: loader.buffer(ubatch * c.width()),
            rope,
        }
    }
}

impl GatedAttention {
    pub(crate) fn load(loader: &mut Loader<'_>, layer: u32, c: &GatedAttentionConfig) -> Result<Self, Error> {
        let name = |part: &str| format!("blk.{layer}.attn_{part}.weight");
        Ok(Self {
            q: loader.matrix(&name("q"), c.hidden_size, 2 * c.width())?,
            k: loader.matrix(&name("k"), c.hidden_size, c.kv_width())?,
            v: loader.matrix(&name("v"), c.hidden_size, c.kv_width())?,
            q_norm: loader.vector(&name("q_norm"), c.head_dim)?,
            k_norm: loader.vector(&name("k_norm"), c.head_dim)?,
            output: loader.matrix(&name("output"), c.width(), c.hidden_size)?,
        })
    }

    /// `out = attention(x)` of the wanted rows, and the keys and values of all; `x` is the normed layer input, rows of `hidden_size`.
    #[expect(
        clippy::too_many_arguments,
        reason = "operands of one formula; a struct would be built and torn apart"
    )]
    pub(crate) fn forward(
        &self,
        b: &mut dyn Backend,
        c: &GatedAttentionConfig,
        s: &GatedAttentionState,
        cache: GatedAttentionCache,
        selection: SelectionId,
        x: View,
        rows: Rows,
        out: View,
    ) {
        let (heads, kv_heads, dim) = (c.num_attention_heads, c.num_key_value_heads, c.head_dim);
        let [k, v] = [s.k, s.v].map(|buf| View::rows(buf, c.kv_width()));
        let [q, o] = [s.q, s.o].map(|buf| View::rows(buf, c.width()));
        let q_gate = View::rows(s.q_gate, 2 * c.width());
        let (first, n) = (rows.first_wanted, rows.wanted().len());

        let all = [(self.k, k), (self.v, v), (self.q, q_gate)];
        b.matmul(x, rows.count, if first == 0 { &all } else { &all[..2] });
        let each_key = View { stride: dim, ..k };
        b.rms_norm(each_key, self.k_norm, c.rms_norm_eps, rows.count * kv_heads, each_key); // norms come before the rotation
        b.rope(s.rope, Heads::dense(k, kv_heads, dim), rows.start, rows.count);
        b.append(cache.keys, k, rows.start, rows.count);
        b.append(cache.values, v, rows.start, rows.count);
        if n == 0 {
            return;
        }

        // From here on the wanted rows only.
        if first > 0 {
            b.matmul(x.from_row(first), n, &[(self.q, q_gate.from_row(first))]);
        }
        let each_pair = View { stride: 2 * dim, ..q_gate.from_row(first) };
        let each_query = View { stride: dim, ..q.from_row(first) };
        b.rms_norm(each_pair, self.q_norm, c.rms_norm_eps, n * heads, each_query);
        b.rope(s.rope, Heads::dense(q, heads, dim).from_row(first), rows.start + first, n);
        let attention = KvAttention {
            queries: q,
            keys: cache.keys,
            values: cache.values,
            n_heads: heads,
            n_kv_heads: kv_heads,
            head_dim: dim,
            value_dim: dim,
            scale: 1.0 / (dim as f32).sqrt(),
            sinks: None,
            selection,
            out: o,
        };
        b.attention_kv(&attention, rows.wanted());
        let o = o.from_row(first);
        b.sigmoid_mul(View { stride: dim, ..o }, dim, each_pair.shifted(dim), dim, n * heads);
        b.matmul(o, n, &[(self.output, out.from_row(first))]);
    }
}
