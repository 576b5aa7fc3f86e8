//! Qwen3.5 and Qwen3.6 with experts (`qwen35moe`): Gated DeltaNet layers with full attention in between, both behind gates, and in every
//! layer routed experts (softmax, renormalised) beside a shared one with a gate. The blocks after the trunk that predict further tokens
//! do not run.
//!
//! Facts and formulas were checked against transformers' `Qwen3_5MoeForCausalLM` (golden tests of this crate).

use files::Checkpoint;

use super::{Architecture, Model, ModelInfo, Rows, Step, no_indexer, planned_context};
use crate::backend::{Buf, KeyHead, RopeId, ScratchSpec, Select, SelectionId, StateId, View, WeightId};
use crate::keys::Keys;
use crate::layers::delta_net::{DeltaNet, DeltaNetCache, DeltaNetConfig, DeltaNetState};
use crate::layers::gated_attention::{GatedAttention, GatedAttentionState};
use crate::layers::gqa::{self, GqaConfig, KvCache, Spans};
use crate::layers::head::Head;
use crate::layers::moe::{Moe, MoeConfig, MoeDefaults, MoeState};
use crate::layers::rope::RopeConfig;
use crate::layers::router::Gating;
use crate::layers::shared_expert::{GatedShared, GatedSharedState};
use crate::load::Loader;
use crate::options::Prefetch;
use crate::{EngineOptions, Error};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { names: &["qwen35moe"], load: |loader| load(loader, KeyHead::Tiled) };

/// How files route that do not say so.
const DEFAULTS: MoeDefaults = MoeDefaults { gating: Gating::Softmax, norm_topk_prob: true };

/// One layer in so many has full attention, unless the file says which.
const FULL_ATTENTION_INTERVAL: usize = 4;

/// Hugging Face names; the GGUF keys are in [`Config::read`] and in the layers' own.
struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    vocab_size: usize,
    rms_norm_eps: f32,
    max_position_embeddings: u32,
    shared_expert_intermediate_size: usize,
    rope: RopeConfig,
    attention: Vec<GqaConfig>, // [layers], all alike; those of the others are not used
    delta: DeltaNetConfig,
    moe: MoeConfig,
    /// The layers with full attention.
    full: Vec<bool>,
}

/// Weights; the experts are the bank's.
struct Weights {
    token_embd: WeightId, // [vocab, hidden]
    layers: Vec<Layer>,
    head: Head,
}

struct Layer {
    attn_norm: WeightId, // [hidden]
    mixer: Mixer,
    ffn_norm: WeightId, // [hidden]
    moe: Moe,
    shared: GatedShared,
}

/// What tells a layer of other positions.
enum Mixer {
    Full(GatedAttention),
    Delta(DeltaNet),
}

/// What one sequence keeps in one layer.
enum Cache {
    Full(KvCache),
    Delta(DeltaNetCache),
}

/// Every buffer of a pass, allocated once.
struct State {
    ubatch: usize,
    x: Buf,      // [batch, hidden] residual stream
    normed: Buf, // [batch, hidden]
    y: Buf,      // [batch, hidden] output of a block
    rope: RopeId,
    spans: Spans,
    attention: GatedAttentionState,
    delta: DeltaNetState,
    shared: GatedSharedState,
    moe: MoeState,
}

struct Qwen35Moe {
    config: Config,
    weights: Weights,
    state: State,
    caches: Vec<Vec<Cache>>,   // [sequences][layers]
    states: Vec<Vec<StateId>>, // [sequences], of all layers
    info: ModelInfo,
}

/// `key_head` says how the file orders the value heads of Gated DeltaNet.
pub(super) fn load(loader: &mut Loader<'_>, key_head: KeyHead) -> Result<Box<dyn Model>, Error> {
    let options = loader.options;
    no_indexer(options)?;
    let config = Config::read(loader.checkpoint, options, key_head)?;
    let context = planned_context(options, config.max_position_embeddings)?;
    let rows = options.rows(context);
    let info = config.info(loader.checkpoint, context);
    let weights = Weights::load(loader, &config, rows[1])?;
    let state = State::new(loader, &config, rows)?;
    let cache: Vec<Cache> = (0..config.num_hidden_layers).map(|i| config.cache(loader, i, context)).collect();
    let states = cache.iter().filter_map(Cache::states).flatten().collect();
    Ok(Box::new(Qwen35Moe { config, weights, state, caches: vec![cache], states: vec![states], info }))
}

impl Config {
    fn read(checkpoint: &Checkpoint, options: &EngineOptions, key_head: KeyHead) -> Result<Self, Error> {
        let keys = Keys::new(checkpoint);
        let layers = keys.layers()?;
        let attention = GqaConfig::read(&keys, layers)?;
        if attention.iter().any(|c| c.head_dim != c.v_head_dim) {
            return Err(keys.wrong("attention.value_length is not attention.key_length, and each output has a gate".into()));
        }
        let mut moe = MoeConfig::read(&keys, options, DEFAULTS)?;
        moe.n_shared_experts = 0; // it has a width and a gate of its own
        Ok(Self {
            hidden_size: moe.hidden_size,
            num_hidden_layers: layers,
            vocab_size: keys.vocab_size()?,
            rms_norm_eps: keys.f32("attention.layer_norm_rms_epsilon")?,
            max_position_embeddings: keys.context_length()?,
            shared_expert_intermediate_size: keys.size("expert_shared_feed_forward_length")?,
            // Text has one position per token, whatever sections the dimensions are dealt out to for pictures.
            rope: RopeConfig::halves(&keys, gqa::shortest_head(&attention))?,
            attention,
            delta: DeltaNetConfig::read(&keys, key_head)?,
            moe,
            full: full_layers(&keys, layers)?,
        })
    }

    fn info(&self, checkpoint: &Checkpoint, context: u32) -> ModelInfo {
        ModelInfo {
            architecture: checkpoint.architecture().to_owned(),
            n_vocab: self.vocab_size as u32,
            n_layers: self.num_hidden_layers as u32,
            expert_layers: (0..self.num_hidden_layers as u32).collect(),
            n_experts: self.moe.router.n_experts as u32,
            top_k: self.moe.router.top_k as u32,
            hidden_size: self.hidden_size as u32,
            context_max: self.max_position_embeddings,
            context,
            index_topk: 0,
            full_layers: Vec::new(),
        }
    }

    fn cache(&self, loader: &mut Loader<'_>, layer: usize, context: u32) -> Cache {
        if self.full[layer] {
            Cache::Full(KvCache::new(loader, &self.attention[layer], context as usize))
        } else {
            let places = loader.options.snapshots as usize;
            Cache::Delta(DeltaNetCache::new(loader, &self.delta, places))
        }
    }

    fn scratch(&self, rows: [usize; 2]) -> ScratchSpec {
        let widest = self.shared_expert_intermediate_size.max(self.delta.value_dim());
        let attention = gqa::scratch(&self.attention, rows, self.hidden_size, widest);
        ScratchSpec { delta: self.delta.head_dim, ..attention }
    }
}

/// Which layers have full attention: the file's own list of the others, or one in so many.
fn full_layers(keys: &Keys<'_>, layers: usize) -> Result<Vec<bool>, Error> {
    let name = "attention.recurrent_layers";
    if let Some(recurrent) = keys.bools(name)? {
        if recurrent.len() < layers {
            let why = format!("`{}` names {} of {layers} layers", keys.key(name), recurrent.len());
            return Err(keys.wrong(why));
        }
        return Ok(recurrent[..layers].iter().map(|recurrent| !recurrent).collect());
    }
    let interval = keys.size_or("full_attention_interval", FULL_ATTENTION_INTERVAL)?.max(1);
    Ok((1..=layers).map(|n| n.is_multiple_of(interval)).collect())
}

impl Weights {
    fn load(loader: &mut Loader<'_>, c: &Config, ubatch: usize) -> Result<Self, Error> {
        let token_embd = loader.matrix("token_embd.weight", c.hidden_size, c.vocab_size)?;
        let mut layers = Vec::with_capacity(c.num_hidden_layers);
        for (i, &full) in c.full.iter().enumerate() {
            let layer = i as u32;
            let mixer = if full {
                Mixer::Full(GatedAttention::load(loader, layer, &c.attention[i])?)
            } else {
                Mixer::Delta(DeltaNet::load(loader, layer, &c.delta)?)
            };
            layers.push(Layer {
                attn_norm: loader.vector(&format!("blk.{i}.attn_norm.weight"), c.hidden_size)?,
                mixer,
                // After the attention and its sum with the input, that is.
                ffn_norm: loader.vector(&format!("blk.{i}.post_attention_norm.weight"), c.hidden_size)?,
                moe: Moe::load(loader, layer, &c.moe)?,
                shared: GatedShared::load(
                    loader,
                    layer,
                    [c.hidden_size, c.shared_expert_intermediate_size],
                )?,
            });
        }
        let head = Head::load(loader, token_embd, [c.hidden_size, c.vocab_size], c.rms_norm_eps, ubatch)?;
        Ok(Self { token_embd, layers, head })
    }
}

impl State {
    fn new(loader: &mut Loader<'_>, c: &Config, rows: [usize; 2]) -> Result<Self, Error> {
        let [batch, ubatch] = rows;
        let rope = loader.rope_table(&c.rope.spec(ubatch));
        loader.scratch(&c.scratch(rows));
        Ok(Self {
            ubatch,
            x: loader.buffer(batch * c.hidden_size),
            normed: loader.buffer(batch * c.hidden_size),
            y: loader.buffer(batch * c.hidden_size),
            rope,
            spans: Spans::new(loader, Select::All, rows),
            attention: GatedAttentionState::new(loader, &c.attention, ubatch),
            delta: DeltaNetState::new(loader, &c.delta, ubatch),
            shared: GatedSharedState::new(loader, ubatch, c.shared_expert_intermediate_size),
            moe: MoeState::new(loader, &c.moe, rows)?,
        })
    }
}

impl Cache {
    fn states(&self) -> Option<[StateId; 2]> {
        match self {
            Self::Full(_) => None,
            Self::Delta(cache) => Some([cache.conv, cache.memory]),
        }
    }
}

impl Layer {
    /// `y = mixer(normed)` of some rows.
    #[expect(clippy::too_many_arguments, reason = "operands of one formula")]
    fn mix(
        &self,
        step: &mut Step<'_>,
        c: &Config,
        s: &State,
        cache: &Cache,
        selection: SelectionId,
        normed: View,
        rows: Rows,
        y: View,
    ) {
        let b = &mut *step.backend;
        match (&self.mixer, cache) {
            (Mixer::Full(attention), Cache::Full(cache)) => {
                attention.forward(b, &s.attention, s.rope, *cache, selection, normed, rows, y);
            }
            (Mixer::Delta(delta), Cache::Delta(cache)) => {
                delta.forward(b, &c.delta, &s.delta, *cache, normed, rows, y);
            }
            _ => unreachable!("weights and caches come from the same list of layers"),
        }
    }
}

impl Model for Qwen35Moe {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn sequences(&self) -> usize {
        self.caches.len()
    }

    fn states(&self, slot: usize) -> &[StateId] {
        &self.states[slot]
    }

    fn set_prefetch(&mut self, prefetch: Prefetch) {
        self.state.moe.set_prefetch(prefetch);
    }

    fn forward(&mut self, step: &mut Step<'_>) -> Result<(), Error> {
        let (c, w, s) = (&self.config, &self.weights, &mut self.state);
        let cache = &self.caches[step.slot];
        let [x, normed, y] = [s.x, s.normed, s.y].map(|buf| View::rows(buf, c.hidden_size));

        step.backend.embed(w.token_embd, step.tokens, x);
        s.spans.select(step, s.ubatch);
        for (i, layer) in w.layers.iter().enumerate() {
            let rows = step.rows(i, w.layers.len());
            for ((first, rows), &selection) in rows.parts(s.ubatch).zip(&s.spans.selections) {
                let [x, normed, y] = [x, normed, y].map(|view| view.from_row(first));
                step.backend.rms_norm(x, layer.attn_norm, c.rms_norm_eps, rows.count, normed);
                layer.mix(step, c, s, &cache[i], selection, normed, rows, y);
            }
            let n = rows.wanted().len();
            if n == 0 {
                break; // the last layer, of which only the keys or the state are needed
            }
            let [x, normed, y] = [x, normed, y].map(|view| view.from_row(rows.first_wanted));
            let b = &mut *step.backend;
            b.add(x, y, c.hidden_size, n);
            b.rms_norm(x, layer.ffn_norm, c.rms_norm_eps, n, normed);
            layer.moe.forward_beside(step, &c.moe, &mut s.moe, [normed, normed], rows, y, &mut |b| {
                layer.shared.forward(b, &s.shared, normed, n, y);
            })?;
            step.backend.add(x, y, c.hidden_size, n);
            step.layer_done(i)?;
        }
        w.head.forward(step, x, normed);
        Ok(())
    }
}
