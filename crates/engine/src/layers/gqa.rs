//! Grouped-query attention: consecutive heads share the keys and values of a position.
//!
//! [`Gqa::forward`] is the plain form. What it is made of (project, norm, rotate, append, attend) can be called one by one by a model
//! that does something between the steps.

use std::ops::Range;

use crate::Error;
use crate::backend::{
    Backend, Buf, CacheId, Heads, KvAttention, RopeId, ScratchSpec, Select, SelectionId, View, WeightId,
};
use crate::keys::Keys;
use crate::layers::rope::RopeConfig;
use crate::layers::trunk::{Mixer, Sizes};
use crate::load::Loader;
use crate::models::{Rows, Step};

/// Sizes of one layer, Hugging Face names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct GqaConfig {
    pub(crate) hidden_size: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) num_key_value_heads: usize,
    pub(crate) head_dim: usize,
    /// Elements of a value, which need not be those of a key.
    pub(crate) v_head_dim: usize,
    pub(crate) rms_norm_eps: f32,
    pub(crate) softmax_scale: f32,
    /// Values are the keys before these are normed and rotated; the file has no tensor for them.
    pub(crate) keys_are_values: bool,
}

impl GqaConfig {
    /// One per layer: heads may be counted once or layer by layer.
    pub(crate) fn read(keys: &Keys<'_>, layers: usize) -> Result<Vec<Self>, Error> {
        let hidden_size = keys.size("embedding_length")?;
        let rms_norm_eps = keys.f32("attention.layer_norm_rms_epsilon")?;
        let name = "attention.head_count";
        let heads = keys.sizes(name, layers)?;
        let heads = heads.ok_or_else(|| keys.wrong(format!("`{}` is missing", keys.key(name))))?;
        let kv_heads = keys.sizes("attention.head_count_kv", layers)?.unwrap_or_else(|| heads.clone());
        heads
            .into_iter()
            .zip(kv_heads)
            .map(|(num_attention_heads, num_key_value_heads)| {
                if !num_attention_heads.is_multiple_of(num_key_value_heads) {
                    let why = format!(
                        "attention.head_count {num_attention_heads} is no multiple of attention.head_count_kv \
                         {num_key_value_heads}"
                    );
                    return Err(keys.wrong(why));
                }
                let usual = hidden_size / num_attention_heads;
                let length = |name: &str| {
                    if keys.has(name) || usual == 0 { keys.size(name) } else { Ok(usual) }
                };
                let head_dim = length("attention.key_length")?;
                Ok(Self {
                    hidden_size,
                    num_attention_heads,
                    num_key_value_heads,
                    head_dim,
                    v_head_dim: length("attention.value_length")?,
                    rms_norm_eps,
                    softmax_scale: 1.0 / (head_dim as f32).sqrt(),
                    keys_are_values: false,
                })
            })
            .collect()
    }

    /// Elements of a token's queries, keys and values, and of what attention makes of them.
    pub(crate) fn widths(&self) -> [usize; 4] {
        let (heads, kv) = (self.num_attention_heads, self.num_key_value_heads);
        [heads * self.head_dim, kv * self.head_dim, kv * self.v_head_dim, heads * self.v_head_dim]
    }
}

/// Elements of the shortest head, which bound what can be rotated.
pub(crate) fn shortest_head(layers: &[GqaConfig]) -> usize {
    layers.iter().map(|c| c.head_dim).min().unwrap_or(0)
}

/// What operations on `rows` rows need.
pub(crate) fn scratch(layers: &[GqaConfig], [_, ubatch]: [usize; 2]) -> ScratchSpec {
    let widest = layers.iter().flat_map(GqaConfig::widths).max().unwrap_or(0);
    let kv = layers.iter().fold([0; 3], |[heads, key, value], c| {
        let group = c.num_attention_heads / c.num_key_value_heads;
        [heads.max(group), key.max(c.head_dim), value.max(c.v_head_dim)]
    });
    ScratchSpec { rows: ubatch, row: widest, kv, ..ScratchSpec::default() }
}

/// Cached state of one sequence in one layer. Keys are stored normed and rotated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KvCache {
    pub(crate) keys: CacheId,   // [context, kv_heads * head_dim]
    pub(crate) values: CacheId, // [context, kv_heads * v_head_dim]
}

impl KvCache {
    /// All of a row may be rounded to 8 bits where the options say so.
    pub(crate) fn new(loader: &mut Loader<'_>, c: &GqaConfig, context: usize) -> Self {
        let ([_, key, value, _], ty) = (c.widths(), loader.options.cache_type);
        Self { keys: loader.cache(context, key, key, ty), values: loader.cache(context, value, value, ty) }
    }
}

/// The positions that tokens attend to by one rule: a selection for each micro-batch of a batch.
pub(crate) struct Spans {
    how: Select,
    pub(crate) selections: Vec<SelectionId>,
}

impl Spans {
    pub(crate) fn new(loader: &mut Loader<'_>, how: Select, [batch, ubatch]: [usize; 2]) -> Self {
        // No list is kept, and nothing scored, where a rule selects.
        Self {
            how,
            selections: (0..batch.div_ceil(ubatch)).map(|_| loader.selection(ubatch, 0, 0)).collect(),
        }
    }

    /// To be called once per step, before the layers.
    pub(crate) fn select(&self, step: &mut Step<'_>, ubatch: usize) {
        for ((_, rows), &selection) in step.rows(0, 2).parts(ubatch).zip(&self.selections) {
            step.backend.select(selection, self.how, rows.start, rows.count);
        }
    }
}

/// Scratch of a pass, shared by all layers.
pub(crate) struct GqaState {
    q: Buf,       // [ubatch, heads * head_dim]
    k: Buf,       // [ubatch, kv_heads * head_dim]
    v: Buf,       // [ubatch, kv_heads * v_head_dim]
    context: Buf, // [ubatch, heads * v_head_dim]
}

impl GqaState {
    /// For the widest of `layers`.
    pub(crate) fn new(loader: &mut Loader<'_>, layers: &[GqaConfig], ubatch: usize) -> Self {
        let widest = layers.iter().fold([0; 4], |widest, c| {
            let own = c.widths();
            std::array::from_fn(|i| widest[i].max(own[i]))
        });
        let [q, k, v, context] = widest.map(|width| loader.buffer(ubatch * width));
        Self { q, k, v, context }
    }

    /// Queries, keys, values and results of a layer's tokens.
    pub(crate) fn views(&self, c: &GqaConfig) -> [View; 4] {
        let [q, k, v, context] = c.widths();
        [
            View::rows(self.q, q),
            View::rows(self.k, k),
            View::rows(self.v, v),
            View::rows(self.context, context),
        ]
    }
}

/// A matrix, and a vector that is added to its product where the file has one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Linear {
    pub(crate) weight: WeightId,       // [n_out, n_in]
    pub(crate) bias: Option<WeightId>, // [n_out]
}

impl Linear {
    /// `name` is without `.weight`.
    pub(crate) fn load(
        loader: &mut Loader<'_>,
        name: &str,
        n_in: usize,
        n_out: usize,
    ) -> Result<Self, Error> {
        let weight = loader.matrix(&format!("{name}.weight"), n_in, n_out)?;
        let bias = format!("{name}.bias");
        let bias = if loader.has(&bias) { Some(loader.vector(&bias, n_out)?) } else { None };
        Ok(Self { weight, bias })
    }

    /// Some of the `n_out` rows of a tensor that holds several matrices, one below the other.
    fn rows(
        loader: &mut Loader<'_>,
        name: &str,
        n_in: usize,
        n_out: usize,
        rows: Range<usize>,
    ) -> Result<Self, Error> {
        let weight = loader.rows(&format!("{name}.weight"), n_in, n_out, rows.clone())?;
        let bias = format!("{name}.bias");
        let bias = if loader.has(&bias) { Some(loader.elements(&bias, n_out, rows)?) } else { None };
        Ok(Self { weight, bias })
    }

    /// What is left to do after the product.
    pub(crate) fn add_bias(&self, b: &mut dyn Backend, out: View, rows: usize) {
        if let Some(bias) = self.bias {
            b.add_bias(out, bias, rows);
        }
    }
}

/// What queries and keys are normed over before they are rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QkNorm {
    None,
    /// Each head for itself, by one weight.
    Head,
    /// All heads together.
    Row,
}

/// Weights of one layer's attention.
pub(crate) struct Gqa {
    pub(crate) c: GqaConfig,
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) norm: QkNorm,
    /// Weights of the norms of queries and of keys.
    pub(crate) norms: Option<[WeightId; 2]>,
    /// `[heads]`, where softmax has them.
    sinks: Option<WeightId>,
    pub(crate) output: Linear,
}

impl Gqa {
    /// Biases are those that the file has, queries, keys and values may be in one tensor.
    pub(crate) fn load(
        loader: &mut Loader<'_>,
        layer: u32,
        c: &GqaConfig,
        norm: QkNorm,
    ) -> Result<Self, Error> {
        let name = |part: &str| format!("blk.{layer}.attn_{part}");
        let ([q, k, v, context], hidden) = (c.widths(), c.hidden_size);
        let all = name("qkv");
        let [query, key, value] = if loader.has(&format!("{all}.weight")) {
            [0..q, q..q + k, q + k..q + k + v].map(|rows| Linear::rows(loader, &all, hidden, q + k + v, rows))
        } else {
            let mut part = |part: &str, width| Linear::load(loader, &name(part), hidden, width);
            let (query, key) = (part("q", q), part("k", k)?);
            [query, Ok(key), if c.keys_are_values { Ok(key) } else { part("v", v) }]
        };
        let widths = match norm {
            QkNorm::None => None,
            QkNorm::Head => Some([c.head_dim; 2]),
            QkNorm::Row => Some([q, k]),
        };
        let norms = match widths {
            None => None,
            Some([q, k]) => {
                Some([loader.vector(&name("q_norm.weight"), q)?, loader.vector(&name("k_norm.weight"), k)?])
            }
        };
        Ok(Self {
            c: *c,
            query: query?,
            key: key?,
            value: value?,
            norm,
            norms,
            sinks: None,
            output: Linear::load(loader, &name("output"), context, hidden)?,
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
        s: &GqaState,
        rope: RopeId,
        cache: KvCache,
        selection: SelectionId,
        x: View,
        rows: Rows,
        out: View,
    ) {
        self.project(b, s, x, rows);
        self.finish(b, s, rope, cache, selection, rows, out);
    }

    /// All that follows the projection.
    #[expect(clippy::too_many_arguments, reason = "as above")]
    pub(crate) fn finish(
        &self,
        b: &mut dyn Backend,
        s: &GqaState,
        rope: RopeId,
        cache: KvCache,
        selection: SelectionId,
        rows: Rows,
        out: View,
    ) {
        self.normalise(b, s, rows);
        self.rotate(b, s, rope, rows);
        let [_, k, v, context] = s.views(&self.c);
        b.append(cache.keys, k, rows.start, rows.count);
        b.append(cache.values, v, rows.start, rows.count);
        if rows.wanted().is_empty() {
            return;
        }
        self.attend(b, s, cache, selection, rows);
        let (first, n) = (rows.first_wanted, rows.wanted().len());
        let out = out.from_row(first);
        b.matmul(context.from_row(first), n, &[(self.output.weight, out)]);
        self.output.add_bias(b, out, n);
    }

    /// Queries of the wanted rows, keys and values of all: in one call where these are the same rows.
    pub(crate) fn project(&self, b: &mut dyn Backend, s: &GqaState, x: View, rows: Rows) {
        let ([q, k, v, _], first, n) = (s.views(&self.c), rows.first_wanted, rows.wanted().len());
        let (q, x_wanted) = (q.from_row(first), x.from_row(first));
        let all = [(self.query.weight, q), (self.key.weight, k), (self.value.weight, v)];
        let all = if self.c.keys_are_values { &all[..2] } else { &all[..] };
        if first == 0 {
            b.matmul(x, rows.count, all);
        } else {
            b.matmul(x, rows.count, &all[1..]);
            if n > 0 {
                b.matmul(x_wanted, n, &all[..1]);
            }
        }
        self.query.add_bias(b, q, n);
        self.key.add_bias(b, k, rows.count);
        if self.c.keys_are_values {
            b.copy(Heads::one(k), Heads::one(v), k.stride, rows.count);
        } else {
            self.value.add_bias(b, v, rows.count);
        }
    }

    /// Norms of the queries of the wanted rows and of the keys of all.
    pub(crate) fn normalise(&self, b: &mut dyn Backend, s: &GqaState, rows: Rows) {
        let Some(weights) = self.norms else { return };
        let ([q, k, ..], n, c) = (s.views(&self.c), rows.wanted().len(), &self.c);
        let heads = [c.num_attention_heads, c.num_key_value_heads];
        for (((x, rows), weight), heads) in
            [(q.from_row(rows.first_wanted), n), (k, rows.count)].into_iter().zip(weights).zip(heads)
        {
            match self.norm {
                QkNorm::Head => norm_heads(b, x, weight, heads, c.rms_norm_eps, rows),
                QkNorm::Row | QkNorm::None => b.rms_norm(x, weight, c.rms_norm_eps, rows, x),
            }
        }
    }

    /// Rotates the queries of the wanted rows and the keys of all.
    pub(crate) fn rotate(&self, b: &mut dyn Backend, s: &GqaState, rope: RopeId, rows: Rows) {
        let ([q, k, ..], c, first) = (s.views(&self.c), &self.c, rows.first_wanted);
        b.rope(rope, Heads::dense(k, c.num_key_value_heads, c.head_dim), rows.start, rows.count);
        let q = Heads::dense(q.from_row(first), c.num_attention_heads, c.head_dim);
        b.rope(rope, q, rows.start + first, rows.wanted().len());
    }

    /// Attention of the wanted rows over what is cached.
    pub(crate) fn attend(
        &self,
        b: &mut dyn Backend,
        s: &GqaState,
        cache: KvCache,
        selection: SelectionId,
        rows: Rows,
    ) {
        let ([queries, _, _, out], c) = (s.views(&self.c), &self.c);
        let attention = KvAttention {
            queries,
            keys: cache.keys,
            values: cache.values,
            n_heads: c.num_attention_heads,
            n_kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
            value_dim: c.v_head_dim,
            scale: c.softmax_scale,
            sinks: self.sinks,
            selection,
            out,
        };
        b.attention_kv(&attention, rows.wanted());
    }
}

/// The attention of a model whose layers all have it: weights, scratch and what sequences leave.
pub(crate) struct GqaLayers {
    configs: Vec<GqaConfig>, // [layers]
    layers: Vec<Gqa>,
    state: GqaState,
    rope: RopeId,
    ubatch: usize,
    /// All positions, and after that the window where a layer has one.
    spans: Vec<Spans>,
    /// Which of them a layer sees.
    span_of: Vec<usize>, // [layers]
    caches: Vec<Vec<KvCache>>, // [sequences][layers]
}

impl GqaLayers {
    /// `norm` says what a layer norms queries and keys over.
    pub(crate) fn load(
        loader: &mut Loader<'_>,
        configs: Vec<GqaConfig>,
        rope: &RopeConfig,
        sizes: Sizes,
        norm: impl Fn(&Loader<'_>, u32) -> QkNorm,
    ) -> Result<Self, Error> {
        let mut layers = Vec::with_capacity(configs.len());
        for (layer, c) in (0..).zip(&configs) {
            let norm = norm(loader, layer);
            layers.push(Gqa::load(loader, layer, c, norm)?);
        }
        let ubatch = sizes.rows[1];
        Ok(Self {
            layers,
            state: GqaState::new(loader, &configs, ubatch),
            rope: loader.rope_table(&rope.spec(ubatch)),
            ubatch,
            spans: vec![Spans::new(loader, Select::All, sizes.rows)],
            span_of: vec![0; configs.len()],
            caches: vec![configs.iter().map(|c| KvCache::new(loader, c, sizes.context)).collect()],
            configs,
        })
    }

    /// With a window of so many positions, the token's own among them, in the layers that say so.
    pub(crate) fn with_window(
        mut self,
        loader: &mut Loader<'_>,
        positions: usize,
        windowed: &[bool],
        sizes: Sizes,
    ) -> Self {
        self.spans.push(Spans::new(loader, Select::Recent(positions), sizes.rows));
        self.span_of = windowed.iter().map(|&windowed| usize::from(windowed)).collect();
        self
    }

    /// With a score per head, in every layer, that takes its share of the softmax.
    pub(crate) fn with_sinks(mut self, loader: &mut Loader<'_>) -> Result<Self, Error> {
        for (layer, gqa) in self.layers.iter_mut().enumerate() {
            let name = format!("blk.{layer}.attn_sinks.weight");
            gqa.sinks = Some(loader.vector(&name, gqa.c.num_attention_heads)?);
        }
        Ok(self)
    }
}

impl Mixer for GqaLayers {
    fn sequences(&self) -> usize {
        self.caches.len()
    }

    fn scratch(&self, rows: [usize; 2]) -> ScratchSpec {
        scratch(&self.configs, rows)
    }

    fn begin(&self, step: &mut Step<'_>) {
        self.spans.iter().for_each(|spans| spans.select(step, self.ubatch));
    }

    fn forward(&self, step: &mut Step<'_>, layer: usize, part: usize, x: View, rows: Rows, y: View) {
        let (cache, selection) =
            (self.caches[step.slot][layer], self.spans[self.span_of[layer]].selections[part]);
        self.layers[layer].forward(step.backend, &self.state, self.rope, cache, selection, x, rows, y);
    }
}

/// Norms each of the `heads` equal parts of every row by one weight, in place.
pub(crate) fn norm_heads(
    b: &mut dyn Backend,
    x: View,
    weight: WeightId,
    heads: usize,
    eps: f32,
    rows: usize,
) {
    let parts = View { stride: x.stride / heads, ..x };
    b.rms_norm(parts, weight, eps, rows * heads, parts);
}
