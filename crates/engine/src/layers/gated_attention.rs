//! Attention whose output goes through a gate: grouped keys and values as in [`gqa`](super::gqa), queries and keys normed per head and
//! rotated in part; beside each query its projection has as many numbers whose sigmoids multiply what the head puts out.

use crate::Error;
use crate::backend::{Backend, Buf, Heads, KvAttention, RopeId, SelectionId, View, WeightId};
use crate::layers::gqa::{GqaConfig, GqaState, KvCache, norm_heads};
use crate::load::Loader;
use crate::models::Rows;

/// Weights of one layer.
pub(crate) struct GatedAttention {
    c: GqaConfig,
    q: WeightId,      // [heads, (query, gate), head_dim; hidden]
    k: WeightId,      // [kv_heads * head_dim, hidden]
    v: WeightId,      // [kv_heads * head_dim, hidden]
    q_norm: WeightId, // [head_dim]
    k_norm: WeightId, // [head_dim]
    output: WeightId, // [hidden, heads * head_dim]
}

/// Scratch of a pass, shared by all layers.
pub(crate) struct GatedAttentionState {
    plain: GqaState,
    q_gate: Buf, // [ubatch, heads, (query, gate), head_dim]
}

impl GatedAttentionState {
    /// For the widest of `layers`.
    pub(crate) fn new(loader: &mut Loader<'_>, layers: &[GqaConfig], ubatch: usize) -> Self {
        let widest = layers.iter().map(|c| c.widths()[0]).max().unwrap_or(0);
        Self { plain: GqaState::new(loader, layers, ubatch), q_gate: loader.buffer(ubatch * 2 * widest) }
    }
}

impl GatedAttention {
    pub(crate) fn load(loader: &mut Loader<'_>, layer: u32, c: &GqaConfig) -> Result<Self, Error> {
        let name = |part: &str| format!("blk.{layer}.attn_{part}.weight");
        let [q, k, v, context] = c.widths();
        Ok(Self {
            c: *c,
            q: loader.matrix(&name("q"), c.hidden_size, 2 * q)?,
            k: loader.matrix(&name("k"), c.hidden_size, k)?,
            v: loader.matrix(&name("v"), c.hidden_size, v)?,
            q_norm: loader.vector(&name("q_norm"), c.head_dim)?,
            k_norm: loader.vector(&name("k_norm"), c.head_dim)?,
            output: loader.matrix(&name("output"), context, c.hidden_size)?,
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
        s: &GatedAttentionState,
        rope: RopeId,
        cache: KvCache,
        selection: SelectionId,
        x: View,
        rows: Rows,
        out: View,
    ) {
        let (c, [q, k, v, context]) = (&self.c, s.plain.views(&self.c));
        let (heads, kv_heads, dim) = (c.num_attention_heads, c.num_key_value_heads, c.head_dim);
        let q_gate = View::rows(s.q_gate, 2 * heads * dim);
        let (first, n) = (rows.first_wanted, rows.wanted().len());

        let all = [(self.k, k), (self.v, v), (self.q, q_gate)];
        b.matmul(x, rows.count, if first == 0 { &all } else { &all[..2] });
        norm_heads(b, k, self.k_norm, kv_heads, c.rms_norm_eps, rows.count); // norms come before rotations
        b.rope(rope, Heads::dense(k, kv_heads, dim), rows.start, rows.count);
        b.append(cache.keys, k, rows.start, rows.count);
        b.append(cache.values, v, rows.start, rows.count);
        if n == 0 {
            return;
        }

        // From here on the wanted rows only.
        if first > 0 {
            b.matmul(x.from_row(first), n, &[(self.q, q_gate.from_row(first))]);
        }
        let query = View { stride: 2 * dim, ..q_gate.from_row(first) }; // of one head after the other, its gate behind it
        b.rms_norm(query, self.q_norm, c.rms_norm_eps, n * heads, View { stride: dim, ..q.from_row(first) });
        b.rope(rope, Heads::dense(q, heads, dim).from_row(first), rows.start + first, n);
        let attention = KvAttention {
            queries: q,
            keys: cache.keys,
            values: cache.values,
            n_heads: heads,
            n_kv_heads: kv_heads,
            head_dim: dim,
            value_dim: dim,
            scale: c.softmax_scale,
            sinks: None,
            selection,
            out: context,
        };
        b.attention_kv(&attention, rows.wanted());
        let context = context.from_row(first);
        b.sigmoid_mul(View { stride: dim, ..context }, dim, query.shifted(dim), dim, n * heads);
        b.matmul(context, n, &[(self.output, out.from_row(first))]);
    }
}

#[cfg(test)]
mod tests;
