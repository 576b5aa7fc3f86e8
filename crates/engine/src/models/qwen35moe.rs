//! Qwen3.5 and Qwen3.6 with experts (`qwen35moe`): Gated DeltaNet layers with full attention in between, both behind gates, and in every
//! layer routed experts (softmax, renormalised) beside a shared one with a gate. The blocks after the trunk that predict further tokens
//! do not run.
//!
//! Facts and formulas were checked against transformers' `Qwen3_5MoeForCausalLM` (golden tests of this crate).

use super::{Architecture, Model, ModelInfo, Rows, Step, no_indexer};
use crate::Error;
use crate::backend::{KeyHead, RopeId, ScratchSpec, Select, StateId, View};
use crate::keys::Keys;
use crate::layers::delta_net::{DeltaNet, DeltaNetCache, DeltaNetConfig, DeltaNetState};
use crate::layers::gated_attention::{GatedAttention, GatedAttentionState};
use crate::layers::gqa::{self, GqaConfig, KvCache, Spans};
use crate::layers::moe::{Moe, MoeConfig, MoeDefaults, MoeState};
use crate::layers::rope::RopeConfig;
use crate::layers::router::Gating;
use crate::layers::shared_expert::{GatedShared, GatedSharedState};
use crate::layers::trunk::{FeedForward, Mixer, Sizes, Trunk, TrunkConfig};
use crate::load::Loader;
use crate::options::Prefetch;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { names: &["qwen35moe"], load: |loader| load(loader, KeyHead::Tiled) };

/// How files route that do not say so.
const DEFAULTS: MoeDefaults = MoeDefaults { gating: Gating::Softmax, norm_topk_prob: true };

/// One layer in so many has full attention, unless the file says which.
const FULL_ATTENTION_INTERVAL: usize = 4;

/// `key_head` says how the file orders the value heads of Gated DeltaNet.
pub(super) fn load(loader: &mut Loader<'_>, key_head: KeyHead) -> Result<Box<dyn Model>, Error> {
    no_indexer(loader.options)?;
    let keys = Keys::new(loader.checkpoint);
    let c = TrunkConfig::read(&keys)?;
    let sizes = c.sizes(loader.options)?;
    let attention = GqaConfig::read(&keys, c.num_hidden_layers)?;
    if attention.iter().any(|c| c.head_dim != c.v_head_dim) {
        return Err(keys
            .wrong("attention.value_length is not attention.key_length, and each output has a gate".into()));
    }
    // Text has one position per token, whatever sections the dimensions are dealt out to for pictures.
    let rope = RopeConfig::halves(&keys, gqa::shortest_head(&attention))?;
    let delta = DeltaNetConfig::read(&keys, key_head)?;
    let full = full_layers(&keys, c.num_hidden_layers)?;
    let mut moe = MoeConfig::read(&keys, loader.options, DEFAULTS)?;
    moe.n_shared_experts = 0; // it has a width and a gate of its own
    let shared_width = keys.size("expert_shared_feed_forward_length")?;

    let mixers = Mixers::load(loader, attention, delta, &rope, &full, sizes)?;
    let experts = Experts::load(loader, moe, c.num_hidden_layers, shared_width, sizes)?;
    // The norm after the attention and its sum with the input, that is.
    Trunk::load(loader, &c, sizes, "post_attention_norm", mixers, experts)
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

/// The layers' first blocks, of two kinds.
struct Mixers {
    attention: Vec<GqaConfig>, // [layers], all alike; those of the others are not used
    delta: DeltaNetConfig,
    layers: Vec<Block>,
    rope: RopeId,
    ubatch: usize,
    spans: Spans,
    attention_state: GatedAttentionState,
    delta_state: DeltaNetState,
    caches: Vec<Vec<Cache>>,   // [sequences][layers]
    states: Vec<Vec<StateId>>, // [sequences], of all layers
}

/// Weights of one layer.
enum Block {
    Full(GatedAttention),
    Delta(DeltaNet),
}

/// What one sequence keeps in one layer.
enum Cache {
    Full(KvCache),
    Delta(DeltaNetCache),
}

impl Mixers {
    fn load(
        loader: &mut Loader<'_>,
        attention: Vec<GqaConfig>,
        delta: DeltaNetConfig,
        rope: &RopeConfig,
        full: &[bool],
        sizes: Sizes,
    ) -> Result<Self, Error> {
        let (ubatch, places) = (sizes.rows[1], loader.options.snapshots as usize);
        let (mut layers, mut cache) = (Vec::with_capacity(full.len()), Vec::with_capacity(full.len()));
        for ((layer, &full), c) in (0..).zip(full).zip(&attention) {
            if full {
                layers.push(Block::Full(GatedAttention::load(loader, layer, c)?));
                cache.push(Cache::Full(KvCache::new(loader, c, sizes.context)));
            } else {
                layers.push(Block::Delta(DeltaNet::load(loader, layer, &delta)?));
                cache.push(Cache::Delta(DeltaNetCache::new(loader, &delta, places)));
            }
        }
        Ok(Self {
            layers,
            rope: loader.rope_table(&rope.spec(ubatch)),
            ubatch,
            spans: Spans::new(loader, Select::All, sizes.rows),
            attention_state: GatedAttentionState::new(loader, &attention, ubatch),
            delta_state: DeltaNetState::new(loader, &delta, ubatch),
            states: vec![cache.iter().filter_map(Cache::states).flatten().collect()],
            caches: vec![cache],
            attention,
            delta,
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

impl Mixer for Mixers {
    fn sequences(&self) -> usize {
        self.caches.len()
    }

    fn states(&self, slot: usize) -> &[StateId] {
        &self.states[slot]
    }

    fn scratch(&self, rows: [usize; 2]) -> ScratchSpec {
        let delta =
            ScratchSpec { row: self.delta.value_dim(), delta: self.delta.head_dim, ..ScratchSpec::default() };
        gqa::scratch(&self.attention, rows).max(delta)
    }

    fn begin(&self, step: &mut Step<'_>) {
        self.spans.select(step, self.ubatch);
    }

    fn forward(&self, step: &mut Step<'_>, layer: usize, part: usize, x: View, rows: Rows, y: View) {
        let (b, cache) = (&mut *step.backend, &self.caches[step.slot][layer]);
        match (&self.layers[layer], cache) {
            (Block::Full(attention), Cache::Full(cache)) => {
                let selection = self.spans.selections[part];
                attention.forward(b, &self.attention_state, self.rope, *cache, selection, x, rows, y);
            }
            (Block::Delta(delta), Cache::Delta(cache)) => {
                delta.forward(b, &self.delta, &self.delta_state, *cache, x, rows, y);
            }
            _ => unreachable!("weights and caches come from the same list of layers"),
        }
    }
}

/// The layers' second blocks: routed experts beside a shared one with a gate.
struct Experts {
    c: MoeConfig,
    layers: Vec<(Moe, GatedShared)>,
    shared_width: usize,
    moe: MoeState,
    shared: GatedSharedState,
}

impl Experts {
    fn load(
        loader: &mut Loader<'_>,
        c: MoeConfig,
        layers: usize,
        shared_width: usize,
        sizes: Sizes,
    ) -> Result<Self, Error> {
        let mut all = Vec::with_capacity(layers);
        for layer in 0..layers as u32 {
            let moe = Moe::load(loader, layer, &c)?;
            all.push((moe, GatedShared::load(loader, layer, [c.hidden_size, shared_width])?));
        }
        let shared = GatedSharedState::new(loader, sizes.rows[1], shared_width);
        Ok(Self { moe: MoeState::new(loader, &c, sizes.rows)?, c, layers: all, shared_width, shared })
    }
}

impl FeedForward for Experts {
    fn scratch(&self, [batch, ubatch]: [usize; 2]) -> ScratchSpec {
        let routed = [batch, self.c.hidden_size];
        ScratchSpec { rows: ubatch, row: self.shared_width, routed, ..ScratchSpec::default() }
    }

    fn describe(&self, info: &mut ModelInfo) {
        info.expert_layers = (0..self.layers.len() as u32).collect();
        self.c.describe(info);
    }

    fn set_prefetch(&mut self, prefetch: Prefetch) {
        self.moe.set_prefetch(prefetch);
    }

    fn forward(
        &mut self,
        step: &mut Step<'_>,
        layer: usize,
        x: View,
        rows: Rows,
        y: View,
    ) -> Result<(), Error> {
        let ((moe, shared), state, n) = (&self.layers[layer], &self.shared, rows.wanted().len());
        moe.forward_beside(step, &self.c, &mut self.moe, [x, x], rows, y, &mut |b| {
            shared.forward(b, state, x, n, y);
        })
    }
}
