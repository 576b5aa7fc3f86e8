//! GLM-5, 5.1 and 5.2 (`glm-dsa`): MLA with DeepSeek sparse attention and IndexShare, sigmoid-routed experts with one
//! shared expert, a few leading dense layers.
//!
//! Facts and formulas were checked against transformers' `GlmMoeDsaForCausalLM` (golden tests of this crate).

use files::Checkpoint;

use super::{Architecture, Model, ModelInfo, Step, planned_context};
use crate::backend::{Buf, Select, View, WeightId};
use crate::keys::Keys;
use crate::layers::head::Head;
use crate::layers::mla::{IndexConfig, Mla, MlaCache, MlaConfig, MlaState};
use crate::layers::mlp::{Mlp, MlpState};
use crate::layers::moe::{MoeConfig, MoeDefaults};
use crate::layers::rope::RopeConfig;
use crate::layers::router::Gating;
use crate::load::Loader;
use crate::options::{AttentionMode, Prefetch};
use crate::{EngineOptions, Error};

pub(super) const ARCHITECTURE: Architecture = Architecture { names: &["glm-dsa"], load };

/// Files made before the metadata had `attention.indexer.types` are told apart by their context length.
const SHARED_INDEX_CONTEXT: u32 = 1_048_576;

const DEFAULTS: MoeDefaults = MoeDefaults { gating: Gating::Sigmoid, norm_topk_prob: true };

const NO_INDEXER: &str = "the file lacks the sparse-attention indexer: every token attends to all before it, as with \
                          `--attention dense`";

/// Hugging Face names; the GGUF keys are in [`Config::read`] and in the layers' own.
struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    vocab_size: usize,
    intermediate_size: usize,
    first_k_dense_replace: usize,
    rms_norm_eps: f32,
    max_position_embeddings: u32,
    rope: RopeConfig,
    mla: MlaConfig,
    moe: MoeConfig,
    /// Per layer: runs its own indexer (full) or reuses the last one's selection (shared).
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
    attention: Mla,
    ffn_norm: WeightId, // [hidden]
    mlp: Mlp,
}

/// Every buffer of a pass, allocated once.
struct State {
    ubatch: usize,
    x: Buf,      // [batch, hidden] residual stream
    normed: Buf, // [batch, hidden]
    y: Buf,      // [batch, hidden] output of a block
    mla: MlaState,
    mlp: MlpState,
}

struct GlmDsa {
    config: Config,
    weights: Weights,
    state: State,
    caches: Vec<Vec<MlaCache>>, // [sequences][layers]
    info: ModelInfo,
    attention: AttentionMode,
}

fn load(loader: &mut Loader<'_>) -> Result<Box<dyn Model>, Error> {
    let options = loader.options;
    let config = Config::read(loader.checkpoint, options)?;
    let attention = match (options.attention, config.mla.index) {
        (AttentionMode::Sparse, None) => {
            loader.warnings.push(NO_INDEXER.into());
            AttentionMode::Dense
        }
        (AttentionMode::Recent, None) => {
            let why = "the file lacks the indexer that `recent` would be compared with".into();
            return Err(Error::Option { option: "--attention", why });
        }
        (attention, _) => attention,
    };
    let context = planned_context(options, config.max_position_embeddings)?;
    let rows = options.rows(context);
    let info = config.info(loader.checkpoint, context);
    let weights = Weights::load(loader, &config, attention == AttentionMode::Sparse, rows[1])?;
    let state = State::new(loader, &config, rows, context as usize)?;
    let indexed = config.full.iter().map(|full| *full && attention == AttentionMode::Sparse);
    let caches = indexed.map(|indexed| MlaCache::new(loader, &config.mla, context as usize, indexed)).collect();
    let caches = vec![caches];
    Ok(Box::new(GlmDsa { config, weights, state, caches, info, attention }))
}

impl Config {
    fn read(checkpoint: &Checkpoint, options: &EngineOptions) -> Result<Self, Error> {
        let keys = Keys::new(checkpoint);
        let layers = keys.layers()?;
        let rope = RopeConfig::read(&keys)?;
        let max_position_embeddings = keys.context_length()?;
        let mut mla = MlaConfig::read(&keys, options, &rope)?;
        if mla.q_lora_rank.is_none() {
            return Err(keys.wrong(format!("`{}` is missing", keys.key("attention.q_lora_rank"))));
        }
        if has_indexer(checkpoint, layers) {
            mla.index = Some(IndexConfig::read(&keys, options, &rope)?);
        }
        Ok(Self {
            hidden_size: mla.hidden_size,
            num_hidden_layers: layers,
            vocab_size: keys.vocab_size()?,
            intermediate_size: keys.size("feed_forward_length")?,
            first_k_dense_replace: keys.size_or("leading_dense_block_count", 0)?.min(layers),
            rms_norm_eps: keys.f32("attention.layer_norm_rms_epsilon")?,
            max_position_embeddings,
            rope,
            mla,
            moe: MoeConfig::read(&keys, options, DEFAULTS)?,
            full: full_layers(&keys, layers, max_position_embeddings)?,
        })
    }

    fn info(&self, checkpoint: &Checkpoint, context: u32) -> ModelInfo {
        let full = self.full.iter().enumerate().filter(|(_, full)| **full && self.mla.index.is_some());
        ModelInfo {
            architecture: checkpoint.architecture().to_owned(),
            n_vocab: self.vocab_size as u32,
            n_layers: self.num_hidden_layers as u32,
            expert_layers: (self.first_k_dense_replace as u32..self.num_hidden_layers as u32).collect(),
            n_experts: self.moe.router.n_experts as u32,
            top_k: self.moe.router.top_k as u32,
            hidden_size: self.hidden_size as u32,
            context_max: self.max_position_embeddings,
            context,
            index_topk: self.mla.index.map_or(0, |index| index.topk as u32),
            full_layers: full.map(|(i, _)| i as u32).collect(),
        }
    }
}

/// Whether any layer that runs has one: some files were made without.
fn has_indexer(checkpoint: &Checkpoint, layers: usize) -> bool {
    checkpoint.tensors().iter().any(|tensor| {
        let numbered = tensor.name.strip_prefix("blk.").and_then(|name| name.split_once(".indexer."));
        numbered.and_then(|(layer, _)| layer.parse().ok()).is_some_and(|layer: usize| layer < layers)
    })
}

/// Which layers run an indexer: the metadata, or the rule of files that predate the key. Never the tensors, which
/// some files carry on shared layers too.
fn full_layers(keys: &Keys<'_>, layers: usize, context_length: u32) -> Result<Vec<bool>, Error> {
    let name = "attention.indexer.types";
    let full = match keys.bools(name)? {
        Some(full) if full.len() < layers => {
            return Err(keys.wrong(format!("`{}` names {} of {layers} layers", keys.key(name), full.len())));
        }
        Some(mut full) => {
            full.truncate(layers);
            full
        }
        None if context_length < SHARED_INDEX_CONTEXT => vec![true; layers],
        None => (0..layers).map(|i| i < 2 || i % 4 == 2).collect(),
    };
    if !full[0] {
        return Err(keys.wrong("layer 0 shares an indexer that no earlier layer runs".into()));
    }
    Ok(full)
}

impl Weights {
    fn load(loader: &mut Loader<'_>, c: &Config, sparse: bool, ubatch: usize) -> Result<Self, Error> {
        let token_embd = loader.matrix("token_embd.weight", c.hidden_size, c.vocab_size)?;
        let mut layers = Vec::with_capacity(c.num_hidden_layers);
        for i in 0..c.num_hidden_layers {
            let layer = i as u32;
            let dense_width = (i < c.first_k_dense_replace).then_some(c.intermediate_size);
            layers.push(Layer {
                attn_norm: loader.vector(&format!("blk.{i}.attn_norm.weight"), c.hidden_size)?,
                attention: Mla::load(loader, layer, &c.mla, c.full[i] && sparse)?,
                ffn_norm: loader.vector(&format!("blk.{i}.ffn_norm.weight"), c.hidden_size)?,
                mlp: Mlp::load(loader, layer, &c.moe, dense_width)?,
            });
        }
        let head = Head::load(loader, token_embd, [c.hidden_size, c.vocab_size], c.rms_norm_eps, ubatch)?;
        Ok(Self { token_embd, layers, head })
    }
}

impl State {
    fn new(loader: &mut Loader<'_>, c: &Config, rows: [usize; 2], context: usize) -> Result<Self, Error> {
        let [batch, ubatch] = rows;
        let rope = loader.rope_table(&c.rope.spec(ubatch));
        let mut scratch = c.mla.scratch(rows, c.intermediate_size.max(c.moe.shared_width()));
        if loader.options.attention != AttentionMode::Sparse {
            scratch.index_heads = 0; // no indexer runs
        }
        loader.scratch(&scratch);
        Ok(Self {
            ubatch,
            x: loader.buffer(batch * c.hidden_size),
            normed: loader.buffer(batch * c.hidden_size),
            y: loader.buffer(batch * c.hidden_size),
            mla: MlaState::new(loader, &c.mla, rows, context, rope),
            mlp: MlpState::new(loader, &c.moe, c.intermediate_size, rows)?,
        })
    }
}

impl Model for GlmDsa {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn sequences(&self) -> usize {
        self.caches.len()
    }

    fn set_prefetch(&mut self, prefetch: Prefetch) {
        self.state.mlp.set_prefetch(prefetch);
    }

    fn forward(&mut self, step: &mut Step<'_>) -> Result<(), Error> {
        let (c, w, s) = (&self.config, &self.weights, &mut self.state);
        let cache = &self.caches[step.slot];
        let [x, normed, y] = [s.x, s.normed, s.y].map(|buf| View::rows(buf, c.hidden_size));

        step.backend.embed(w.token_embd, step.tokens, x);
        let how = match self.attention {
            AttentionMode::Sparse => None, // each full layer selects
            AttentionMode::Dense => Some(Select::All),
            AttentionMode::Recent => c.mla.index.map(|index| Select::Recent(index.topk)),
        };
        if let Some(how) = how {
            for ((_, rows), &selection) in step.rows(0, 2).parts(s.ubatch).zip(&s.mla.selections) {
                step.backend.select(selection, how, rows.start, rows.count);
            }
        }
        for (i, layer) in w.layers.iter().enumerate() {
            let rows = step.rows(i, w.layers.len());
            let b = &mut *step.backend;
            for ((first, rows), &selection) in rows.parts(s.ubatch).zip(&s.mla.selections) {
                let [x, normed, y] = [x, normed, y].map(|view| view.from_row(first));
                b.rms_norm(x, layer.attn_norm, c.rms_norm_eps, rows.count, normed);
                let attention = &layer.attention;
                attention.forward(b, &c.mla, &s.mla, cache[i], selection, normed, rows, y);
                if let (Some(dump), true) = (step.dump.as_deref_mut(), cache[i].index_keys.is_some()) {
                    for t in rows.wanted() {
                        dump.selected(i as u32, rows.start + t, |out| b.selected(selection, t, out));
                    }
                }
            }
            let n = rows.wanted().len();
            if n == 0 {
                break; // the last layer, of which only the keys are needed
            }
            let [x, normed, y] = [x, normed, y].map(|view| view.from_row(rows.first_wanted));
            b.add(x, y, c.hidden_size, n);
            b.rms_norm(x, layer.ffn_norm, c.rms_norm_eps, n, normed);
            layer.mlp.forward(step, &c.moe, &mut s.mlp, normed, rows, y)?;
            step.backend.add(x, y, c.hidden_size, n);
            step.layer_done(i)?;
        }
        w.head.forward(step, x, normed);
        Ok(())
    }
}
