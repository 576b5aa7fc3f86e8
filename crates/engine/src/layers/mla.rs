//! Multi-head latent attention in its absorbed form, with the lightning indexer (DSA) where a layer has one.
//! Queries come through a latent of their own or, in the small models of the family, straight from the input.
//!
//! The cache holds one row per position: the normed latent and the shared rotated key. Scores are taken in the latent
//! space, so keys and values are never expanded. A layer without an indexer attends to the positions that the nearest
//! indexer before it selected in the same pass (IndexShare).

use crate::backend::{
    Backend, Buf, CacheId, Heads, Index, LatentAttention, RopeId, ScratchSpec, Select, SelectionId, View,
    WeightId,
};
use crate::keys::Keys;
use crate::layers::rope::RopeConfig;
use crate::layers::trunk::{Mixer, Sizes};
use crate::load::Loader;
use crate::models::{ModelInfo, Rows, Step};
use crate::options::CacheType;
use crate::{EngineOptions, Error};

/// Sizes, Hugging Face names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MlaConfig {
    pub(crate) hidden_size: usize,
    pub(crate) num_attention_heads: usize,
    /// `None`: queries straight from the input.
    pub(crate) q_lora_rank: Option<usize>,
    pub(crate) kv_lora_rank: usize,
    pub(crate) qk_nope_head_dim: usize,
    pub(crate) qk_rope_head_dim: usize,
    pub(crate) v_head_dim: usize,
    pub(crate) latent_eps: f32,
    pub(crate) softmax_scale: f32,
    /// `None`: a query attends to all positions before it.
    pub(crate) index: Option<IndexConfig>,
}

/// Sizes of the lightning indexer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IndexConfig {
    pub(crate) n_heads: usize,
    pub(crate) head_dim: usize,
    /// Positions that a query keeps.
    pub(crate) topk: usize,
    /// Rotate queries and keys, so that a 2-byte key cache loses little.
    pub(crate) hadamard: bool,
}

impl MlaConfig {
    /// Without an indexer. The head sizes are those of the expanded view (`_mla`), or the plain ones of files that are older than
    /// the absorbed view.
    pub(crate) fn read(keys: &Keys<'_>, options: &EngineOptions, rope: &RopeConfig) -> Result<Self, Error> {
        let [key, value] = if keys.has("attention.key_length_mla") {
            ["attention.key_length_mla", "attention.value_length_mla"]
        } else {
            ["attention.key_length", "attention.value_length"]
        };
        let key_length = keys.size(key)?;
        let nope = key_length.checked_sub(rope.dim).filter(|&n| n > 0).ok_or_else(|| {
            keys.wrong(format!("{key} {key_length} leaves nothing beside rope.dimension_count {}", rope.dim))
        })?;
        Ok(Self {
            hidden_size: keys.size("embedding_length")?,
            num_attention_heads: keys.size("attention.head_count")?,
            q_lora_rank: Some(keys.size_or("attention.q_lora_rank", 0)?).filter(|&rank| rank > 0),
            kv_lora_rank: keys.size("attention.kv_lora_rank")?,
            qk_nope_head_dim: nope,
            qk_rope_head_dim: rope.dim,
            v_head_dim: keys.size(value)?,
            latent_eps: options.latent_eps,
            softmax_scale: rope.mscale * rope.mscale / (key_length as f32).sqrt(),
            index: None,
        })
    }

    pub(crate) fn cache_width(&self) -> usize {
        self.kv_lora_rank + self.qk_rope_head_dim
    }
    fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// What operations on `rows` rows need; `indexed` where any layer runs an indexer.
    fn scratch(&self, [_, ubatch]: [usize; 2], indexed: bool) -> ScratchSpec {
        let index = self.index.filter(|_| indexed);
        let heads = self.num_attention_heads;
        let widest = [
            self.hidden_size,
            self.q_lora_rank.unwrap_or(0),
            heads * self.v_head_dim.max(self.kv_lora_rank),
            heads * self.qk_head_dim(),
        ];
        ScratchSpec {
            rows: ubatch,
            row: widest.into_iter().max().unwrap_or(1),
            heads,
            cache_width: self.cache_width(),
            index_heads: index.map_or(0, |index| index.n_heads),
            index_head_dim: index.map_or(0, |index| index.head_dim),
            ..ScratchSpec::default()
        }
    }
}

impl IndexConfig {
    pub(crate) fn read(keys: &Keys<'_>, options: &EngineOptions, rope: &RopeConfig) -> Result<Self, Error> {
        let index = Self {
            n_heads: keys.size("attention.indexer.head_count")?,
            head_dim: keys.size("attention.indexer.key_length")?,
            topk: keys.size("attention.indexer.top_k")?,
            hadamard: options.cache_type != CacheType::F32,
        };
        let dim = index.head_dim;
        if dim < rope.dim {
            return Err(
                keys.wrong(format!("indexer.key_length {dim} is below rope.dimension_count {}", rope.dim))
            );
        }
        if index.hadamard && !dim.is_power_of_two() {
            let why = format!("indexer.key_length {dim} is no power of two; use `--cache-type f32`");
            return Err(keys.wrong(why));
        }
        Ok(index)
    }
}

/// Cached state of one sequence in one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MlaCache {
    /// `[context, kv_lora_rank + rope]`: latents and rotated keys.
    pub(crate) latents: CacheId,
    /// `[context, index_head_dim]`, on layers that run an indexer.
    pub(crate) index_keys: Option<CacheId>,
}

impl MlaCache {
    /// `indexed` is true for layers that run an indexer.
    pub(crate) fn new(loader: &mut Loader<'_>, c: &MlaConfig, context: usize, indexed: bool) -> Self {
        let ty = loader.options.cache_type;
        let index_dim = c.index.filter(|_| indexed).map(|index| index.head_dim);
        Self {
            latents: loader.cache(context, c.cache_width(), c.kv_lora_rank, ty),
            index_keys: index_dim.map(|dim| loader.cache(context, dim, 0, ty)),
        }
    }
}

/// Epsilon of the index keys' layer norm, as in transformers.
const INDEX_KEY_NORM_EPS: f32 = 1e-6;

/// Weights of one layer's attention.
pub(crate) struct Mla {
    query: Query,
    kv_a: WeightId,      // [kv_lora_rank + rope, hidden]
    kv_a_norm: WeightId, // [kv_lora_rank]
    k_b: WeightId,       // [heads][kv_lora_rank, nope]
    v_b: WeightId,       // [heads][v_head_dim, kv_lora_rank]
    output: WeightId,    // [hidden, heads * v_head_dim]
    indexer: Option<Indexer>,
}

/// Where the queries come from.
enum Query {
    Latent {
        down: WeightId, // [q_lora_rank, hidden]
        norm: WeightId, // [q_lora_rank]
        up: WeightId,   // [heads * (nope + rope), q_lora_rank]
    },
    Direct(WeightId), // [heads * (nope + rope), hidden]
}

/// Weights of the lightning indexer.
struct Indexer {
    c: IndexConfig,
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
    /// One per micro-batch of a batch: layers without an indexer use what the last one with has chosen.
    pub(crate) selections: Vec<SelectionId>,
    pub(crate) rope: RopeId,
}

impl MlaState {
    pub(crate) fn new(
        loader: &mut Loader<'_>,
        c: &MlaConfig,
        [batch, ubatch]: [usize; 2],
        context: usize,
        rope: RopeId,
    ) -> Self {
        let heads = c.num_attention_heads;
        let [index_heads, index_dim, topk] =
            c.index.map_or([0; 3], |index| [index.n_heads, index.head_dim, index.topk]);
        // Nothing is scored, and no list kept, where a rule selects.
        let scored = if c.index.is_some() { context } else { 0 };
        Self {
            q_latent: loader.buffer(ubatch * c.q_lora_rank.unwrap_or(0)),
            q: loader.buffer(ubatch * heads * c.qk_head_dim()),
            kv: loader.buffer(ubatch * c.cache_width()),
            q_absorbed: loader.buffer(ubatch * heads * c.cache_width()),
            z: loader.buffer(ubatch * heads * c.kv_lora_rank),
            context: loader.buffer(ubatch * heads * c.v_head_dim),
            index_q: loader.buffer(ubatch * index_heads * index_dim),
            index_k: loader.buffer(ubatch * index_dim),
            index_weight: loader.buffer(ubatch * index_heads),
            selections: (0..batch.div_ceil(ubatch)).map(|_| loader.selection(ubatch, topk, scored)).collect(),
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
        let (heads, latent) = (c.num_attention_heads, c.kv_lora_rank);
        let (indexer, query) = match (c.q_lora_rank, c.index.filter(|_| indexed)) {
            (Some(rank), index) => {
                let indexer = index.map(|index| Indexer::load(loader, layer, c.hidden_size, rank, index));
                (indexer.transpose()?, Query::from_latent(loader, layer, c, rank)?)
            }
            (None, _) => {
                let q = loader.matrix(&name("attn_q.weight"), c.hidden_size, heads * c.qk_head_dim())?;
                (None, Query::Direct(q))
            }
        };
        let kv_a = loader.matrix(&name("attn_kv_a_mqa.weight"), c.hidden_size, c.cache_width())?;
        let kv_a_norm = loader.vector(&name("attn_kv_a_norm.weight"), latent)?;
        let (nope, v) = (c.qk_nope_head_dim, c.v_head_dim);
        let (both, k) = (name("attn_kv_b.weight"), name("attn_k_b.weight"));
        let (k_b, v_b) = if loader.has(&both) && !loader.has_heads(&k, nope, latent, heads) {
            // Older files: per head the key's rows, then the value's, both of latent width. (Files of another engine hold the two
            // parts beside it, flattened.)
            let k_b = loader.head_columns(&both, latent, nope + v, 0..nope, heads)?;
            (k_b, loader.head_rows(&both, latent, nope + v, nope..nope + v, heads)?)
        } else {
            (
                loader.heads(&k, nope, latent, heads)?,
                loader.heads(&name("attn_v_b.weight"), latent, v, heads)?,
            )
        };
        let output = loader.matrix(&name("attn_output.weight"), heads * v, c.hidden_size)?;
        Ok(Self { query, kv_a, kv_a_norm, k_b, v_b, output, indexer })
    }

    /// `out = attention(x)` of the wanted rows, and the keys of all; `x` is the normed layer input, rows of `hidden_size`.
    #[expect(
        clippy::too_many_arguments,
        reason = "operands of one formula; a struct would be built and torn apart"
    )]
    pub(crate) fn forward(
        &self,
        b: &mut dyn Backend,
        c: &MlaConfig,
        s: &MlaState,
        cache: MlaCache,
        selection: SelectionId,
        x: View,
        rows: Rows,
        out: View,
    ) {
        let (heads, nope, rope, latent) =
            (c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim, c.kv_lora_rank);
        let (qk, width) = (c.qk_head_dim(), c.cache_width());
        let q_latent = View::rows(s.q_latent, c.q_lora_rank.unwrap_or(0));
        let q = View::rows(s.q, heads * qk);
        let kv = View::rows(s.kv, width);
        let q_absorbed = View::rows(s.q_absorbed, heads * width);
        let (q_heads, absorbed_heads) = (Heads::dense(q, heads, qk), Heads::dense(q_absorbed, heads, width));

        let query = match &self.query {
            Query::Latent { down, .. } => (*down, q_latent),
            Query::Direct(all) => (*all, q),
        };
        match &self.indexer {
            Some(i) => project(
                b,
                x,
                rows,
                [(self.kv_a, kv), (i.k, View::rows(s.index_k, i.c.head_dim))],
                [query, (i.proj, View::rows(s.index_weight, i.c.n_heads))],
            ),
            None => project(b, x, rows, [(self.kv_a, kv)], [query]),
        }
        b.rms_norm(kv, self.kv_a_norm, c.latent_eps, rows.count, kv); // the latent part only: the rope key is not normed
        b.rope(s.rope, Heads::one(kv.shifted(latent)), rows.start, rows.count);
        b.append(cache.latents, kv, rows.start, rows.count);
        let indexer = self.indexer.as_ref().zip(cache.index_keys);
        if let Some((i, keys)) = indexer {
            i.append(b, s, keys, rows);
        }
        if rows.wanted().is_empty() {
            return;
        }

        // From here on the wanted rows only.
        let (first, start, n) = (rows.first_wanted, rows.start + rows.first_wanted, rows.wanted().len());
        let (q_latent, q_wanted) = (q_latent.from_row(first), q.from_row(first));
        let (q_heads, absorbed_heads) = (q_heads.from_row(first), absorbed_heads.from_row(first));
        if let Query::Latent { norm, up, .. } = &self.query {
            b.rms_norm(q_latent, *norm, c.latent_eps, n, q_latent);
            match indexer {
                Some((i, keys)) => {
                    let index_q = View::rows(s.index_q, i.c.n_heads * i.c.head_dim).from_row(first);
                    b.matmul(q_latent, n, &[(*up, q_wanted), (i.q_b, index_q)]);
                    i.select(b, s, keys, selection, rows);
                }
                None => b.matmul(q_latent, n, &[(*up, q_wanted)]),
            }
        }
        b.rope(s.rope, q_heads.shifted(nope), start, n); // rope comes last in MLA's heads
        let z = View::rows(s.z, heads * latent);
        let z_heads = Heads::dense(z, heads, latent).from_row(first);
        b.matmul_heads(self.k_b, q_heads, n, z_heads.rows);
        b.copy(z_heads, absorbed_heads, latent, n);
        b.copy(q_heads.shifted(nope), absorbed_heads.shifted(latent), rope, n);

        let attention = LatentAttention {
            queries: q_absorbed,
            cache: cache.latents,
            n_heads: heads,
            latent,
            rope,
            scale: c.softmax_scale,
            selection,
            out: z,
        };
        b.attention_latent(&attention, rows.wanted());
        let context = View::rows(s.context, heads * c.v_head_dim).from_row(first);
        b.matmul_heads(self.v_b, z_heads, n, context);
        b.matmul(context, n, &[(self.output, out.from_row(first))]);
    }
}

/// The attention of a model whose layers all have it: weights, scratch and what sequences leave.
pub(crate) struct MlaLayers {
    c: MlaConfig,
    layers: Vec<Mla>,
    state: MlaState,
    ubatch: usize,
    /// Per layer: the file has an indexer for it; the others reuse the last one's selection.
    full: Vec<bool>,
    /// What selects the positions in place of indexers.
    rule: Option<Select>,
    caches: Vec<Vec<MlaCache>>, // [sequences][layers]
}

impl MlaLayers {
    /// `full` has an entry per layer; indexers run where there is no `rule`.
    pub(crate) fn load(
        loader: &mut Loader<'_>,
        c: MlaConfig,
        rope: &RopeConfig,
        sizes: Sizes,
        full: Vec<bool>,
        rule: Option<Select>,
    ) -> Result<Self, Error> {
        let indexed: Vec<bool> = full.iter().map(|&full| full && rule.is_none()).collect();
        let mut layers = Vec::with_capacity(full.len());
        for (layer, &indexed) in (0..).zip(&indexed) {
            layers.push(Mla::load(loader, layer, &c, indexed)?);
        }
        let Sizes { context, rows } = sizes;
        let rope = loader.rope_table(&rope.spec(rows[1]));
        let state = MlaState::new(loader, &c, rows, context, rope);
        let caches =
            vec![indexed.iter().map(|&indexed| MlaCache::new(loader, &c, context, indexed)).collect()];
        Ok(Self { c, layers, state, ubatch: rows[1], full, rule, caches })
    }
}

impl Mixer for MlaLayers {
    fn sequences(&self) -> usize {
        self.caches.len()
    }

    fn scratch(&self, rows: [usize; 2]) -> ScratchSpec {
        self.c.scratch(rows, self.rule.is_none())
    }

    fn describe(&self, info: &mut ModelInfo) {
        let Some(index) = self.c.index else { return };
        info.index_topk = index.topk as u32;
        info.full_layers = (0..).zip(&self.full).filter_map(|(layer, &full)| full.then_some(layer)).collect();
    }

    fn begin(&self, step: &mut Step<'_>) {
        let Some(how) = self.rule else { return }; // each full layer selects
        for ((_, rows), &selection) in step.rows(0, 2).parts(self.ubatch).zip(&self.state.selections) {
            step.backend.select(selection, how, rows.start, rows.count);
        }
    }

    fn forward(&self, step: &mut Step<'_>, layer: usize, part: usize, x: View, rows: Rows, y: View) {
        let (cache, selection) = (self.caches[step.slot][layer], self.state.selections[part]);
        self.layers[layer].forward(step.backend, &self.c, &self.state, cache, selection, x, rows, y);
        if let (Some(dump), true) = (step.dump.as_deref_mut(), cache.index_keys.is_some()) {
            for t in rows.wanted() {
                dump.selected(layer as u32, rows.start + t, |out| step.backend.selected(selection, t, out));
            }
        }
    }
}

/// What all rows leave in the caches and what only wanted rows need, of the same input: in one call where these are the same rows.
fn project<const N: usize>(
    b: &mut dyn Backend,
    x: View,
    rows: Rows,
    keys: [(WeightId, View); N],
    queries: [(WeightId, View); N],
) {
    let first = rows.first_wanted;
    if first == 0 {
        let mut both = [keys[0]; 4];
        both[..N].copy_from_slice(&keys);
        both[N..2 * N].copy_from_slice(&queries);
        return b.matmul(x, rows.count, &both[..2 * N]);
    }
    b.matmul(x, rows.count, &keys);
    if !rows.wanted().is_empty() {
        let queries = queries.map(|(weight, out)| (weight, out.from_row(first)));
        b.matmul(x.from_row(first), rows.wanted().len(), &queries);
    }
}

impl Query {
    fn from_latent(loader: &mut Loader<'_>, layer: u32, c: &MlaConfig, rank: usize) -> Result<Self, Error> {
        let name = |part: &str| format!("blk.{layer}.attn_{part}.weight");
        let heads = c.num_attention_heads;
        Ok(Self::Latent {
            down: loader.matrix(&name("q_a"), c.hidden_size, rank)?,
            norm: loader.vector(&name("q_a_norm"), rank)?,
            up: loader.matrix(&name("q_b"), rank, heads * c.qk_head_dim())?,
        })
    }
}

impl Indexer {
    fn load(
        loader: &mut Loader<'_>,
        layer: u32,
        hidden_size: usize,
        q_lora_rank: usize,
        c: IndexConfig,
    ) -> Result<Self, Error> {
        let name = |part: &str| format!("blk.{layer}.indexer.{part}");
        let (heads, dim) = (c.n_heads, c.head_dim);
        Ok(Self {
            c,
            q_b: loader.matrix(&name("attn_q_b.weight"), q_lora_rank, heads * dim)?,
            k: loader.matrix(&name("attn_k.weight"), hidden_size, dim)?,
            k_norm: loader.vector(&name("k_norm.weight"), dim)?,
            k_norm_bias: loader.vector(&name("k_norm.bias"), dim)?,
            proj: loader.matrix(&name("proj.weight"), hidden_size, heads)?,
        })
    }

    /// Caches the keys of all rows: later tokens score against them.
    fn append(&self, b: &mut dyn Backend, s: &MlaState, keys: CacheId, rows: Rows) {
        let k = View::rows(s.index_k, self.c.head_dim);
        b.layer_norm(k, self.k_norm, self.k_norm_bias, INDEX_KEY_NORM_EPS, rows.count);
        b.rope(s.rope, Heads::one(k), rows.start, rows.count);
        if self.c.hadamard {
            b.hadamard(Heads::one(k), self.c.head_dim, rows.count);
        }
        b.append(keys, k, rows.start, rows.count);
    }

    /// Selects positions for the wanted rows.
    fn select(&self, b: &mut dyn Backend, s: &MlaState, keys: CacheId, selection: SelectionId, rows: Rows) {
        let (heads, dim) = (self.c.n_heads, self.c.head_dim);
        let (first, n) = (rows.first_wanted, rows.wanted().len());
        let q = View::rows(s.index_q, heads * dim);
        let q_heads = Heads::dense(q, heads, dim).from_row(first);
        b.rope(s.rope, q_heads, rows.start + first, n); // rope comes first in the indexer's heads
        if self.c.hadamard {
            b.hadamard(q_heads, dim, n);
        }
        let index = Index {
            queries: q,
            weights: View::rows(s.index_weight, heads),
            keys,
            n_heads: heads,
            head_dim: dim,
            top_k: self.c.topk,
        };
        b.sparse_index(selection, &index, rows.start, rows.wanted());
    }
}
