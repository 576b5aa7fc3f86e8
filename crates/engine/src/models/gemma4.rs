//! Gemma 4 with routed experts (`gemma4`, 26B-A4B): in every layer a dense feed-forward block beside the routed one, each between norms
//! of its own; attention over a window in most layers and over everything in the others, which have fewer and longer heads and take
//! their values from the key projection; logits softly bounded.
//!
//! The router reads the residual stream, so that the whole dense block runs while experts are read.
//!
//! Facts and formulas were checked against transformers' `Gemma4ForCausalLM` (golden tests of this crate). In float32 the embedding is
//! multiplied by the root of its width, as here and in llama.cpp; in bfloat16, transformers rounds that factor (53 for 53.07).

use files::Checkpoint;
use kernels::ops::{Glu, Pairing};

use super::{Architecture, Model, ModelInfo, Step, no_indexer};
use crate::backend::{Backend, Buf, RopeId, RopeSpec, ScratchSpec, Select, SelectionId, View, WeightId};
use crate::keys::Keys;
use crate::layers::ffn::{Ffn, FfnState};
use crate::layers::gqa::{self, Gqa, GqaConfig, GqaState, KvCache, QkNorm, Spans};
use crate::layers::head::Head;
use crate::layers::moe::{Moe, MoeConfig, MoeDefaults, MoeState};
use crate::layers::router::Gating;
use crate::layers::trunk::TrunkConfig;
use crate::load::Loader;
use crate::models::Rows;
use crate::options::Prefetch;
use crate::{EngineOptions, Error};

pub(super) const ARCHITECTURE: Architecture = Architecture { names: &["gemma4"], load };

/// The files do not say it: softmax over all experts, weights that sum to 1 before the experts' own factors.
const DEFAULTS: MoeDefaults = MoeDefaults { gating: Gating::Softmax, norm_topk_prob: true };

/// Divisors of the full layers' frequencies: those of the pairs that do not turn are so large that nothing is left.
const FACTORS: &str = "rope_freqs.weight";

/// What a layer attends to. Index into what layers of a kind share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Full = 0,
    Sliding = 1,
}

/// Hugging Face names; the GGUF keys are in [`Config::read`] and in the layers' own.
struct Config {
    trunk: TrunkConfig,
    intermediate_size: Vec<usize>, // [layers]
    sliding_window: usize,
    final_logit_softcapping: Option<f32>,
    layer_types: Vec<Kind>, // [layers]
    gqa: Vec<GqaConfig>,    // [layers]
    rope: [Rope; 2],        // by kind
    moe: MoeConfig,
}

/// A rotary embedding of the layers of one kind.
struct Rope {
    dim: usize,
    theta: f32,
}

/// Weights; the experts are the bank's.
struct Weights {
    token_embd: WeightId, // [vocab, hidden]
    ones: [WeightId; 2],  // [head_dim], by kind: the values' norm has no weight
    layers: Vec<Layer>,
    head: Head,
}

struct Layer {
    attn_norm: WeightId, // [hidden], as all norms here
    attention: Gqa,
    post_attention_norm: WeightId,
    ffn_norm: WeightId,
    ffn: Ffn,
    post_ffw_norm_1: WeightId,
    pre_ffw_norm_2: WeightId,
    moe: Moe,
    post_ffw_norm_2: WeightId,
    post_ffw_norm: WeightId,
    output_scale: f32,
}

/// Every buffer of a pass, allocated once.
struct State {
    ubatch: usize,
    x: Buf,      // [batch, hidden] residual stream
    normed: Buf, // [batch, hidden]
    y: Buf,      // [batch, hidden] output of attention, then of the experts
    dense: Buf,  // [batch, hidden] output of the dense block
    ropes: [RopeId; 2],
    spans: [Spans; 2],
    gqa: GqaState,
    ffn: FfnState,
    moe: MoeState,
}

struct Gemma4 {
    config: Config,
    weights: Weights,
    state: State,
    caches: Vec<Vec<KvCache>>, // [sequences][layers]
    info: ModelInfo,
}

fn load(loader: &mut Loader<'_>) -> Result<Box<dyn Model>, Error> {
    let options = loader.options;
    no_indexer(options)?;
    let config = Config::read(loader.checkpoint, options)?;
    let sizes = config.trunk.sizes(options)?;
    let mut info = config.trunk.info(loader.checkpoint, sizes);
    info.expert_layers = (0..info.n_layers).collect();
    config.moe.describe(&mut info);
    let weights = Weights::load(loader, &config, sizes.rows[1])?;
    let state = State::new(loader, &config, sizes.rows)?;
    let caches = vec![config.gqa.iter().map(|c| KvCache::new(loader, c, sizes.context)).collect()];
    Ok(Box::new(Gemma4 { config, weights, state, caches, info }))
}

/// The other members of the family under the same name.
fn check_member(keys: &Keys<'_>, checkpoint: &Checkpoint) -> Result<(), Error> {
    let why = if keys.size_or("embedding_length_per_layer_input", 0)? > 0 {
        "it has embeddings per layer (E2B, E4B), which are not implemented"
    } else if keys.size_or("attention.shared_kv_layers", 0)? > 0 {
        "its last layers read the keys and values of earlier ones, which is not implemented"
    } else if keys.size_or("expert_count", 0)? == 0 {
        "it has no routed experts, and nothing else is what slotbank streams"
    } else {
        return Ok(());
    };
    Err(Error::Member {
        architecture: checkpoint.architecture().to_owned(),
        path: checkpoint.root().to_owned(),
        why: why.into(),
    })
}

impl Config {
    fn read(checkpoint: &Checkpoint, options: &EngineOptions) -> Result<Self, Error> {
        let keys = Keys::new(checkpoint);
        check_member(&keys, checkpoint)?;
        let trunk = TrunkConfig::read(&keys)?;
        let layers = trunk.num_hidden_layers;
        let mut moe = MoeConfig::read(&keys, options, DEFAULTS)?;
        moe.activation = Glu::Gelu;
        moe.router.norm_eps = Some(trunk.rms_norm_eps);
        let layer_types = layer_types(&keys, layers)?;
        let (cap, width) = ("final_logit_softcapping", "feed_forward_length");
        let intermediate_size = keys.sizes(width, layers)?;
        Ok(Self {
            trunk,
            intermediate_size: intermediate_size
                .ok_or_else(|| keys.wrong(format!("`{}` is missing", keys.key(width))))?,
            sliding_window: keys.size("attention.sliding_window")?,
            final_logit_softcapping: if keys.has(cap) { Some(keys.f32(cap)?) } else { None },
            gqa: attention(&keys, checkpoint, &layer_types)?,
            rope: [rope(&keys, "")?, rope(&keys, "_swa")?],
            layer_types,
            moe,
        })
    }

    fn rope_spec(&self, kind: Kind, factors: Option<Vec<f32>>, rows: usize) -> RopeSpec {
        let Rope { dim, theta } = self.rope[kind as usize];
        RopeSpec { dim, pairing: Pairing::Halves, rows, theta, yarn: None, factors }
    }
}

fn layer_types(keys: &Keys<'_>, layers: usize) -> Result<Vec<Kind>, Error> {
    let name = "attention.sliding_window_pattern";
    let sliding = keys.bools(name)?.filter(|pattern| pattern.len() >= layers).ok_or_else(|| {
        keys.wrong(format!("`{}` does not say of {layers} layers which attend to a window", keys.key(name)))
    })?;
    Ok(sliding[..layers].iter().map(|&sliding| if sliding { Kind::Sliding } else { Kind::Full }).collect())
}

/// Heads are counted layer by layer; how long they are depends on the layer's kind.
fn attention(
    keys: &Keys<'_>,
    checkpoint: &Checkpoint,
    layer_types: &[Kind],
) -> Result<Vec<GqaConfig>, Error> {
    let length = |kind: &str| -> Result<usize, Error> {
        let [key, value] = ["key", "value"].map(|part| format!("attention.{part}_length{kind}"));
        let head_dim = keys.size(&key)?;
        match keys.size_or(&value, head_dim)? {
            same if same == head_dim => Ok(head_dim),
            other => Err(keys.wrong(format!("{value} {other} is not {key} {head_dim}"))),
        }
    };
    let lengths = [length("")?, length("_swa")?];
    let mut layers = GqaConfig::read(keys, layer_types.len())?;
    for (i, (c, &kind)) in layers.iter_mut().zip(layer_types).enumerate() {
        c.head_dim = lengths[kind as usize];
        c.v_head_dim = c.head_dim;
        c.softmax_scale = 1.0; // queries and keys are normed, by weights that have learnt the scale
        let absent = |part: &str| checkpoint.tensor(&format!("blk.{i}.attn_{part}.weight")).is_none();
        c.keys_are_values = kind == Kind::Full && absent("v") && absent("qkv");
    }
    Ok(layers)
}

/// The embedding of one kind of layer; `kind` ends its keys.
fn rope(keys: &Keys<'_>, kind: &str) -> Result<Rope, Error> {
    let factor = keys.f32_if_any("rope.scaling.factor")?.filter(|&factor| factor != 1.0 && factor != 0.0);
    if let Some(factor) = factor {
        return Err(
            keys.wrong(format!("rope.scaling.factor {factor} is not implemented for this architecture"))
        );
    }
    let (length, name) =
        (keys.size(&format!("attention.key_length{kind}"))?, format!("rope.dimension_count{kind}"));
    let dim = keys.size_or(&name, length)?;
    if dim == 0 || dim > length || !dim.is_multiple_of(2) {
        return Err(keys.wrong(format!("{name} {dim} is odd, or not in 1..={length}")));
    }
    Ok(Rope { dim, theta: keys.f32(&format!("rope.freq_base{kind}"))? })
}

impl Weights {
    fn load(loader: &mut Loader<'_>, c: &Config, ubatch: usize) -> Result<Self, Error> {
        let token_embd = loader.matrix("token_embd.weight", c.trunk.hidden_size, c.trunk.vocab_size)?;
        let mut layers = Vec::with_capacity(c.trunk.num_hidden_layers);
        for i in 0..c.trunk.num_hidden_layers {
            layers.push(Layer::load(loader, c, i)?);
        }
        let mut ones = |kind: Kind| {
            let layer = c.layer_types.iter().position(|&own| own == kind);
            loader.ones(layer.map_or(1, |layer| c.gqa[layer].head_dim))
        };
        let ones = [ones(Kind::Full)?, ones(Kind::Sliding)?];
        let mut head = Head::load(
            loader,
            token_embd,
            [c.trunk.hidden_size, c.trunk.vocab_size],
            c.trunk.rms_norm_eps,
            ubatch,
        )?;
        head.soft_cap = c.final_logit_softcapping;
        Ok(Self { token_embd, ones, layers, head })
    }
}

impl Layer {
    fn load(loader: &mut Loader<'_>, c: &Config, i: usize) -> Result<Self, Error> {
        let (layer, hidden) = (i as u32, c.trunk.hidden_size);
        let mut norm = |name: &str| loader.vector(&format!("blk.{i}.{name}.weight"), hidden);
        let [attn_norm, post_attention_norm, ffn_norm] =
            [norm("attn_norm")?, norm("post_attention_norm")?, norm("ffn_norm")?];
        let [post_ffw_norm_1, pre_ffw_norm_2, post_ffw_norm_2, post_ffw_norm] = [
            norm("post_ffw_norm_1")?,
            norm("pre_ffw_norm_2")?,
            norm("post_ffw_norm_2")?,
            norm("post_ffw_norm")?,
        ];
        let scale = format!("blk.{i}.layer_output_scale.weight");
        Ok(Self {
            attn_norm,
            attention: Gqa::load(loader, layer, &c.gqa[i], QkNorm::Head)?,
            post_attention_norm,
            ffn_norm,
            ffn: Ffn::load(loader, layer, "", [hidden, c.intermediate_size[i]], c.moe.activation)?,
            post_ffw_norm_1,
            pre_ffw_norm_2,
            moe: Moe::load(loader, layer, &c.moe)?,
            post_ffw_norm_2,
            post_ffw_norm,
            output_scale: if loader.has(&scale) { loader.read_once(&scale, 1)?[0] } else { 1.0 },
        })
    }
}

impl State {
    fn new(loader: &mut Loader<'_>, c: &Config, rows: [usize; 2]) -> Result<Self, Error> {
        let [batch, ubatch] = rows;
        let pairs = c.rope[Kind::Full as usize].dim / 2;
        let factors = if loader.has(FACTORS) { Some(loader.read_once(FACTORS, pairs)?) } else { None };
        let ropes = [c.rope_spec(Kind::Full, factors, ubatch), c.rope_spec(Kind::Sliding, None, ubatch)];
        let width = c.intermediate_size.iter().copied().max().unwrap_or(0);
        let around = ScratchSpec {
            rows: ubatch,
            row: c.trunk.hidden_size.max(width),
            routed: [batch, c.trunk.hidden_size],
            ..ScratchSpec::default()
        };
        loader.scratch(&gqa::scratch(&c.gqa, rows).max(around));
        let spans = [Select::All, Select::Recent(c.sliding_window)];
        Ok(Self {
            ubatch,
            x: loader.buffer(batch * c.trunk.hidden_size),
            normed: loader.buffer(batch * c.trunk.hidden_size),
            y: loader.buffer(batch * c.trunk.hidden_size),
            dense: loader.buffer(batch * c.trunk.hidden_size),
            ropes: ropes.map(|spec| loader.rope_table(&spec)),
            spans: spans.map(|how| Spans::new(loader, how, rows)),
            gqa: GqaState::new(loader, &c.gqa, ubatch),
            ffn: FfnState::new(loader, ubatch, width),
            moe: MoeState::new(loader, &c.moe, rows)?,
        })
    }
}

impl Gemma4 {
    /// `y = attention(norm(x))` of the wanted rows of layer `i`, and the keys and values of all.
    fn attend(
        &self,
        b: &mut dyn Backend,
        i: usize,
        slot: usize,
        selection: SelectionId,
        views: [View; 3],
        rows: Rows,
    ) {
        let (c, s, layer) = (&self.config, &self.state, &self.weights.layers[i]);
        let ([x, normed, y], kind) = (views, c.layer_types[i] as usize);
        let (heads, ones) = (c.gqa[i].num_key_value_heads, self.weights.ones[kind]);
        b.rms_norm(x, layer.attn_norm, c.trunk.rms_norm_eps, rows.count, normed);
        layer.attention.project(b, &s.gqa, normed, rows);
        let [_, _, values, _] = s.gqa.views(&c.gqa[i]);
        gqa::norm_heads(b, values, ones, heads, c.trunk.rms_norm_eps, rows.count); // before the keys are normed and rotated
        layer.attention.finish(b, &s.gqa, s.ropes[kind], self.caches[slot][i], selection, rows, y);
    }
}

impl Model for Gemma4 {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn sequences(&self) -> usize {
        self.caches.len()
    }

    fn set_prefetch(&mut self, prefetch: Prefetch) {
        self.state.moe.set_prefetch(prefetch);
    }

    fn forward(&mut self, step: &mut Step<'_>) -> Result<(), Error> {
        let (hidden, eps) = (self.config.trunk.hidden_size, self.config.trunk.rms_norm_eps);
        let [x, normed, y, dense] = [self.state.x, self.state.normed, self.state.y, self.state.dense]
            .map(|buf| View::rows(buf, hidden));

        step.backend.embed(self.weights.token_embd, step.tokens, x);
        step.backend.scale(x, (hidden as f64).sqrt() as f32, hidden, step.tokens.len());
        self.state.spans.iter().for_each(|spans| spans.select(step, self.state.ubatch));
        for i in 0..self.weights.layers.len() {
            let rows = step.rows(i, self.weights.layers.len());
            let spans = &self.state.spans[self.config.layer_types[i] as usize];
            for ((first, rows), &selection) in rows.parts(self.state.ubatch).zip(&spans.selections) {
                let views = [x, normed, y].map(|view| view.from_row(first));
                self.attend(step.backend, i, step.slot, selection, views, rows);
            }
            let n = rows.wanted().len();
            if n == 0 {
                break; // the last layer, of which only the keys are needed
            }
            let (c, layer, s) = (&self.config, &self.weights.layers[i], &mut self.state);
            let [x, normed, y, dense] = [x, normed, y, dense].map(|view| view.from_row(rows.first_wanted));
            let b = &mut *step.backend;
            b.rms_norm(y, layer.post_attention_norm, eps, n, y);
            b.add(x, y, hidden, n);
            b.rms_norm(x, layer.pre_ffw_norm_2, eps, n, normed);
            let ffn = &s.ffn;
            layer.moe.forward_beside(step, &c.moe, &mut s.moe, [x, normed], rows, y, &mut |b| {
                b.rms_norm(x, layer.ffn_norm, eps, n, y);
                layer.ffn.forward(b, ffn, y, n, dense);
                b.rms_norm(dense, layer.post_ffw_norm_1, eps, n, dense);
                b.zero(y, hidden, n);
            })?;
            let b = &mut *step.backend;
            b.rms_norm(y, layer.post_ffw_norm_2, eps, n, y);
            b.add(y, dense, hidden, n);
            b.rms_norm(y, layer.post_ffw_norm, eps, n, y);
            b.add(x, y, hidden, n);
            b.scale(x, layer.output_scale, hidden, n);
            step.layer_done(i)?;
        }
        self.weights.head.forward(step, x, normed);
        Ok(())
    }
}
