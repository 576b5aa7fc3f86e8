//! DeepSeek-V2, V3 and R1, Kimi K2, GLM-4.7-Flash (`deepseek2`): MLA over all earlier positions, YaRN where the context was
//! extended, routed experts (softmax or sigmoid, from all groups or the best ones) beside shared ones, a few leading dense layers.
//!
//! Facts and formulas were checked against transformers' `DeepseekV2ForCausalLM`, `DeepseekV3ForCausalLM` and
//! `Glm4MoeLiteForCausalLM` (golden tests of this crate).

use files::Checkpoint;

use super::{Architecture, Model, ModelInfo, Step, no_indexer, planned_context};
use crate::backend::{Buf, Select, View, WeightId};
use crate::keys::Keys;
use crate::layers::head::Head;
use crate::layers::mla::{Mla, MlaCache, MlaConfig, MlaState};
use crate::layers::mlp::{Mlp, MlpState};
use crate::layers::moe::{MoeConfig, MoeDefaults};
use crate::layers::rope::RopeConfig;
use crate::layers::router::Gating;
use crate::load::Loader;
use crate::options::Prefetch;
use crate::{EngineOptions, Error};

pub(super) const ARCHITECTURE: Architecture = Architecture { names: &["deepseek2"], load };

/// Files of GLM-4.7-Flash may not say how its router scores; these two numbers tell it from DeepSeek-V2.
const FLASH_BLOCKS: [usize; 2] = [47, 48];
const FLASH_VOCAB: usize = 154_880;

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

struct Deepseek2 {
    config: Config,
    weights: Weights,
    state: State,
    caches: Vec<Vec<MlaCache>>, // [sequences][layers]
    info: ModelInfo,
}

fn load(loader: &mut Loader<'_>) -> Result<Box<dyn Model>, Error> {
    let options = loader.options;
    no_indexer(options)?;
    let config = Config::read(loader.checkpoint, options)?;
    let context = planned_context(options, config.max_position_embeddings)?;
    let rows = options.rows(context);
    let info = config.info(loader.checkpoint, context);
    let weights = Weights::load(loader, &config, rows[1])?;
    let state = State::new(loader, &config, rows, context as usize)?;
    let layers = 0..config.num_hidden_layers;
    let caches = layers.map(|_| MlaCache::new(loader, &config.mla, context as usize, false)).collect();
    let caches = vec![caches];
    Ok(Box::new(Deepseek2 { config, weights, state, caches, info }))
}

impl Config {
    fn read(checkpoint: &Checkpoint, options: &EngineOptions) -> Result<Self, Error> {
        let keys = Keys::new(checkpoint);
        let layers = keys.layers()?;
        let rope = RopeConfig::read(&keys)?;
        let mla = MlaConfig::read(&keys, options, &rope)?;
        let vocab_size = keys.vocab_size()?;
        Ok(Self {
            hidden_size: mla.hidden_size,
            num_hidden_layers: layers,
            vocab_size,
            intermediate_size: keys.size("feed_forward_length")?,
            first_k_dense_replace: keys.size_or("leading_dense_block_count", 0)?.min(layers),
            rms_norm_eps: keys.f32("attention.layer_norm_rms_epsilon")?,
            max_position_embeddings: keys.context_length()?,
            rope,
            mla,
            moe: MoeConfig::read(&keys, options, defaults(layers, vocab_size))?,
        })
    }

    fn info(&self, checkpoint: &Checkpoint, context: u32) -> ModelInfo {
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
            index_topk: 0,
            full_layers: Vec::new(),
        }
    }
}

/// What a file means that does not say how its router scores: it is DeepSeek-V2's, or GLM-4.7-Flash's.
fn defaults(layers: usize, vocab_size: usize) -> MoeDefaults {
    if FLASH_BLOCKS.contains(&layers) && vocab_size == FLASH_VOCAB {
        MoeDefaults { gating: Gating::Sigmoid, norm_topk_prob: true }
    } else {
        MoeDefaults { gating: Gating::Softmax, norm_topk_prob: false }
    }
}

impl Weights {
    fn load(loader: &mut Loader<'_>, c: &Config, ubatch: usize) -> Result<Self, Error> {
        let token_embd = loader.matrix("token_embd.weight", c.hidden_size, c.vocab_size)?;
        let mut layers = Vec::with_capacity(c.num_hidden_layers);
        for i in 0..c.num_hidden_layers {
            let layer = i as u32;
            let dense_width = (i < c.first_k_dense_replace).then_some(c.intermediate_size);
            layers.push(Layer {
                attn_norm: loader.vector(&format!("blk.{i}.attn_norm.weight"), c.hidden_size)?,
                attention: Mla::load(loader, layer, &c.mla, false)?,
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
        loader.scratch(&c.mla.scratch(rows, c.intermediate_size.max(c.moe.shared_width())));
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

impl Model for Deepseek2 {
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
        for ((_, rows), &selection) in step.rows(0, 2).parts(s.ubatch).zip(&s.mla.selections) {
            step.backend.select(selection, Select::All, rows.start, rows.count);
        }
        for (i, layer) in w.layers.iter().enumerate() {
            let rows = step.rows(i, w.layers.len());
            let b = &mut *step.backend;
            for ((first, rows), &selection) in rows.parts(s.ubatch).zip(&s.mla.selections) {
                let [x, normed, y] = [x, normed, y].map(|view| view.from_row(first));
                b.rms_norm(x, layer.attn_norm, c.rms_norm_eps, rows.count, normed);
                layer.attention.forward(b, &c.mla, &s.mla, cache[i], selection, normed, rows, y);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_file_is_v2_unless_it_has_the_shape_of_flash() {
        let of = |layers, vocab| {
            let defaults = defaults(layers, vocab);
            (defaults.gating, defaults.norm_topk_prob)
        };
        assert_eq!(of(47, 154_880), (Gating::Sigmoid, true));
        assert_eq!(of(48, 154_880), (Gating::Sigmoid, true));
        assert_eq!(of(27, 102_400), (Gating::Softmax, false));
        assert_eq!(of(60, 102_400), (Gating::Softmax, false));
        assert_eq!(of(47, 102_400), (Gating::Softmax, false));
    }
}
