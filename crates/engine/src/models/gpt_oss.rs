//! gpt-oss (`gpt-oss`): grouped-query attention with sinks and biases, every other layer over a window of recent positions, YaRN; experts
//! with biases and a clamped activation, weighted among the chosen.
//!
//! The ramp of its YaRN ends between pairs, as in the reference: see docs/models.md for what other engines do.
//!
//! Facts and formulas were checked against transformers' `GptOssForCausalLM` (golden tests of this crate).

use files::Checkpoint;
use kernels::ops::Glu;

use super::{Architecture, Model, ModelInfo, Step, no_indexer, planned_context};
use crate::backend::{Buf, RopeId, Select, View, WeightId};
use crate::keys::Keys;
use crate::layers::gqa::{self, Gqa, GqaConfig, GqaState, KvCache, QkNorm, Spans};
use crate::layers::head::Head;
use crate::layers::mlp::{Mlp, MlpState};
use crate::layers::moe::{MoeConfig, MoeDefaults};
use crate::layers::rope::RopeConfig;
use crate::layers::router::Gating;
use crate::load::Loader;
use crate::options::Prefetch;
use crate::{EngineOptions, Error};

pub(super) const ARCHITECTURE: Architecture = Architecture { names: &["gpt-oss"], load };

/// The files do not say it.
const DEFAULTS: MoeDefaults = MoeDefaults { gating: Gating::Chosen, norm_topk_prob: false };

/// Hugging Face names; the GGUF keys are in [`Config::read`] and in the layers' own.
struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    vocab_size: usize,
    rms_norm_eps: f32,
    max_position_embeddings: u32,
    rope: RopeConfig,
    gqa: Vec<GqaConfig>, // [layers], all alike
    moe: MoeConfig,
    /// Positions that a token sees in a layer with a window, itself among them.
    sliding_window: usize,
    /// Per layer: has a window.
    windowed: Vec<bool>,
}

/// Weights; the experts are the bank's.
struct Weights {
    token_embd: WeightId, // [vocab, hidden]
    layers: Vec<Layer>,
    head: Head,
}

struct Layer {
    attn_norm: WeightId, // [hidden]
    attention: Gqa,
    ffn_norm: WeightId, // [hidden]
    mlp: Mlp,
}

/// Every buffer of a pass, allocated once.
struct State {
    ubatch: usize,
    x: Buf,      // [batch, hidden] residual stream
    normed: Buf, // [batch, hidden]
    y: Buf,      // [batch, hidden] output of a block
    rope: RopeId,
    all: Spans,
    recent: Spans,
    gqa: GqaState,
    mlp: MlpState,
}

struct GptOss {
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
    let context = planned_context(options, config.max_position_embeddings)?;
    let rows = options.rows(context);
    let info = config.info(loader.checkpoint, context);
    let weights = Weights::load(loader, &config, rows[1])?;
    let state = State::new(loader, &config, rows)?;
    let caches = vec![config.gqa.iter().map(|c| KvCache::new(loader, c, context as usize)).collect()];
    Ok(Box::new(GptOss { config, weights, state, caches, info }))
}

impl Config {
    fn read(checkpoint: &Checkpoint, options: &EngineOptions) -> Result<Self, Error> {
        let keys = Keys::new(checkpoint);
        let layers = keys.layers()?;
        let gqa = GqaConfig::read(&keys, layers)?;
        let mut rope = RopeConfig::halves(&keys, gqa::shortest_head(&gqa))?;
        if let Some(yarn) = &mut rope.yarn {
            yarn.truncate = false;
        }
        let mut moe = MoeConfig::read(&keys, options, DEFAULTS)?;
        moe.activation = Glu::Clamped;
        Ok(Self {
            hidden_size: gqa[0].hidden_size,
            num_hidden_layers: layers,
            vocab_size: keys.vocab_size()?,
            rms_norm_eps: gqa[0].rms_norm_eps,
            max_position_embeddings: keys.context_length()?,
            rope,
            gqa,
            moe,
            sliding_window: keys.size("attention.sliding_window")?,
            windowed: windowed(&keys, layers)?,
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
}

/// Which layers have a window: the metadata, or every other one from the first on.
fn windowed(keys: &Keys<'_>, layers: usize) -> Result<Vec<bool>, Error> {
    let name = "attention.sliding_window_pattern";
    match keys.bools(name)? {
        None => Ok((0..layers).map(|i| i % 2 == 0).collect()),
        Some(windowed) if windowed.len() < layers => {
            Err(keys.wrong(format!("`{}` names {} of {layers} layers", keys.key(name), windowed.len())))
        }
        Some(windowed) => Ok(windowed[..layers].to_vec()),
    }
}

impl Weights {
    fn load(loader: &mut Loader<'_>, c: &Config, ubatch: usize) -> Result<Self, Error> {
        let token_embd = loader.matrix("token_embd.weight", c.hidden_size, c.vocab_size)?;
        let mut layers = Vec::with_capacity(c.num_hidden_layers);
        for (i, gqa) in c.gqa.iter().enumerate() {
            let layer = i as u32;
            let sinks = loader.vector(&format!("blk.{i}.attn_sinks.weight"), gqa.num_attention_heads)?;
            layers.push(Layer {
                attn_norm: loader.vector(&format!("blk.{i}.attn_norm.weight"), c.hidden_size)?,
                attention: Gqa::load(loader, layer, gqa, QkNorm::None)?.with_sinks(sinks),
                ffn_norm: loader.vector(&format!("blk.{i}.post_attention_norm.weight"), c.hidden_size)?,
                mlp: Mlp::load(loader, layer, &c.moe, None)?,
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
        loader.scratch(&gqa::scratch(&c.gqa, rows, c.hidden_size, c.moe.shared_width()));
        Ok(Self {
            ubatch,
            x: loader.buffer(batch * c.hidden_size),
            normed: loader.buffer(batch * c.hidden_size),
            y: loader.buffer(batch * c.hidden_size),
            rope,
            all: Spans::new(loader, Select::All, rows),
            recent: Spans::new(loader, Select::Recent(c.sliding_window), rows),
            gqa: GqaState::new(loader, &c.gqa, ubatch),
            mlp: MlpState::new(loader, &c.moe, 0, rows)?,
        })
    }
}

impl Model for GptOss {
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
        s.all.select(step, s.ubatch);
        s.recent.select(step, s.ubatch);
        for (i, layer) in w.layers.iter().enumerate() {
            let spans = if c.windowed[i] { &s.recent } else { &s.all };
            let rows = step.rows(i, w.layers.len());
            let b = &mut *step.backend;
            for ((first, rows), &selection) in rows.parts(s.ubatch).zip(&spans.selections) {
                let [x, normed, y] = [x, normed, y].map(|view| view.from_row(first));
                b.rms_norm(x, layer.attn_norm, c.rms_norm_eps, rows.count, normed);
                layer.attention.forward(b, &s.gqa, s.rope, cache[i], selection, normed, rows, y);
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
