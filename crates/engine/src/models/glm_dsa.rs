//! GLM-5, 5.1 and 5.2 (`glm-dsa`): MLA with DeepSeek sparse attention and IndexShare, sigmoid-routed experts with one
//! shared expert, a few leading dense layers.
//!
//! Facts and formulas were checked against transformers' `GlmMoeDsaForCausalLM` (golden tests of this crate).

use files::{Checkpoint, Metadata};
use kernels::ops::Yarn;

use super::{Architecture, Model, ModelInfo, SequenceCache, Step, planned_context};
use crate::backend::{Buf, RopeSpec, ScratchSpec, Select, View, WeightId};
use crate::layers::ffn::{Ffn, FfnState};
use crate::layers::mla::{Mla, MlaConfig, MlaState};
use crate::layers::moe::{Moe, MoeConfig, MoeState};
use crate::layers::router::RouterConfig;
use crate::load::Loader;
use crate::options::{AttentionMode, CacheType, Prefetch, Routing};
use crate::{EngineOptions, Error, Want};

pub(super) const ARCHITECTURE: Architecture = Architecture { names: &["glm-dsa"], load };

/// Rows of logits computed per head matmul, so that asking for every position stays within a small buffer.
const LOGIT_ROWS: usize = 8;

/// Bounds of what a file may claim: far above any model, far below what could overflow.
const SIZE_MAX: u64 = 1 << 24;
const EXPERTS_MAX: u64 = 1 << 16;

/// Files made before the metadata had `attention.indexer.types` are told apart by their context length.
const SHARED_INDEX_CONTEXT: u32 = 1_048_576;

/// Hugging Face names; see the GGUF keys beside each in [`Config::read`].
struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    vocab_size: usize,
    intermediate_size: usize,
    first_k_dense_replace: usize,
    rms_norm_eps: f32,
    max_position_embeddings: u32,
    rope_theta: f32,
    yarn: Option<Yarn>,
    mla: MlaConfig,
    moe: MoeConfig,
    /// Per layer: runs its own indexer (full) or reuses the last one's selection (shared).
    full: Vec<bool>,
}

/// Weights; the experts are the bank's.
struct Weights {
    token_embd: WeightId,  // [vocab, hidden]
    layers: Vec<Layer>,
    output_norm: WeightId, // [hidden]
    output: WeightId,      // [vocab, hidden]
}

struct Layer {
    attn_norm: WeightId, // [hidden]
    attention: Mla,
    ffn_norm: WeightId, // [hidden]
    mlp: Mlp,
}

enum Mlp {
    Dense(Ffn),
    Sparse(Moe),
}

/// Every buffer of a pass, allocated once.
struct State {
    ubatch: usize,
    x: Buf,      // [batch, hidden] residual stream
    normed: Buf, // [batch, hidden]
    y: Buf,      // [batch, hidden] output of a block
    logits: Buf, // [LOGIT_ROWS, vocab]
    mla: MlaState,
    ffn: FfnState,
    moe: MoeState,
}

struct GlmDsa {
    config: Config,
    weights: Weights,
    state: State,
    caches: Vec<SequenceCache>,
    info: ModelInfo,
    attention: AttentionMode,
}

fn load(loader: &mut Loader<'_>) -> Result<Box<dyn Model>, Error> {
    let options = loader.options;
    let config = Config::read(loader.checkpoint, options)?;
    let context = planned_context(options, config.max_position_embeddings)?;
    let info = config.info(loader.checkpoint, context);
    let weights = Weights::load(loader, &config, options.attention == AttentionMode::Sparse)?;
    let state = State::new(loader, &config, options.rows(context), context as usize)?;
    let caches = vec![config.sequence_cache(loader, context as usize, options)];
    Ok(Box::new(GlmDsa { config, weights, state, caches, info, attention: options.attention }))
}

impl Config {
    fn read(checkpoint: &Checkpoint, options: &EngineOptions) -> Result<Self, Error> {
        let keys = Keys { metadata: checkpoint.metadata(), checkpoint };
        let blocks = keys.size("block_count")?;
        let nextn = keys.size_or("nextn_predict_layers", 0)?;
        if nextn >= blocks {
            return Err(keys.wrong(format!("nextn_predict_layers {nextn} of block_count {blocks}")));
        }
        let layers = blocks - nextn;
        let rope_dim = keys.size("rope.dimension_count")?;
        let key_length = keys.size("attention.key_length_mla")?;
        let nope = key_length.checked_sub(rope_dim).filter(|&n| n > 0).ok_or_else(|| {
            keys.wrong(format!("key_length_mla {key_length} leaves nothing beside rope.dimension_count {rope_dim}"))
        })?;
        let (yarn, mscale) = keys.yarn()?;
        let hidden_size = keys.size("embedding_length")?;
        let max_position_embeddings = keys.size_up_to("context_length", 1 << 31)? as u32;
        let config = Self {
            hidden_size,
            num_hidden_layers: layers,
            vocab_size: keys.vocab_size()?,
            intermediate_size: keys.size("feed_forward_length")?,
            first_k_dense_replace: keys.size_or("leading_dense_block_count", 0)?.min(layers),
            rms_norm_eps: keys.f32("attention.layer_norm_rms_epsilon")?,
            max_position_embeddings,
            rope_theta: keys.f32("rope.freq_base")?,
            yarn,
            mla: MlaConfig {
                hidden_size,
                num_attention_heads: keys.size("attention.head_count")?,
                q_lora_rank: keys.size("attention.q_lora_rank")?,
                kv_lora_rank: keys.size("attention.kv_lora_rank")?,
                qk_nope_head_dim: nope,
                qk_rope_head_dim: rope_dim,
                v_head_dim: keys.size("attention.value_length_mla")?,
                latent_eps: options.latent_eps,
                softmax_scale: mscale * mscale / (key_length as f32).sqrt(),
                index_n_heads: keys.size("attention.indexer.head_count")?,
                index_head_dim: keys.size("attention.indexer.key_length")?,
                index_topk: keys.size("attention.indexer.top_k")?,
                hadamard: options.cache_type != CacheType::F32,
            },
            moe: keys.moe(hidden_size, options)?,
            full: keys.full_layers(layers, max_position_embeddings)?,
        };
        config.check(&keys)?;
        Ok(config)
    }

    /// Combinations that the maths below cannot run.
    fn check(&self, keys: &Keys<'_>) -> Result<(), Error> {
        let (m, r) = (&self.mla, &self.moe.router);
        let wrong = if !self.full[0] {
            "layer 0 shares an indexer that no earlier layer runs".into()
        } else if m.qk_rope_head_dim % 2 != 0 {
            format!("rope.dimension_count {} is odd", m.qk_rope_head_dim)
        } else if m.index_head_dim < m.qk_rope_head_dim {
            format!("indexer.key_length {} is below rope.dimension_count {}", m.index_head_dim, m.qk_rope_head_dim)
        } else if m.hadamard && !m.index_head_dim.is_power_of_two() {
            format!("indexer.key_length {} is no power of two; use `--cache-type f32`", m.index_head_dim)
        } else if r.n_group == 0 || r.n_experts % r.n_group != 0 || r.topk_group == 0 || r.topk_group > r.n_group {
            format!("{} experts in {} groups, {} used", r.n_experts, r.n_group, r.topk_group)
        } else if r.top_k > r.n_experts / r.n_group * r.topk_group {
            format!("{} experts per token from {} groups of {}", r.top_k, r.topk_group, r.n_experts / r.n_group)
        } else {
            return Ok(());
        };
        Err(keys.wrong(wrong))
    }

    fn info(&self, checkpoint: &Checkpoint, context: u32) -> ModelInfo {
        let numbered = |wanted: bool| {
            self.full.iter().enumerate().filter(move |(_, f)| **f == wanted).map(|(i, _)| i as u32).collect()
        };
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
            index_topk: self.mla.index_topk as u32,
            full_layers: numbered(true),
        }
    }

    fn sequence_cache(&self, loader: &mut Loader<'_>, context: usize, options: &EngineOptions) -> SequenceCache {
        let ty = options.cache_type;
        let sparse = options.attention == AttentionMode::Sparse;
        let (width, latent) = (self.mla.cache_width(), self.mla.kv_lora_rank);
        let latents = (0..self.num_hidden_layers).map(|_| loader.cache(context, width, latent, ty)).collect();
        let index_keys = self
            .full
            .iter()
            .map(|&full| (full && sparse).then(|| loader.cache(context, self.mla.index_head_dim, 0, ty)))
            .collect();
        SequenceCache { latents, index_keys }
    }
}

/// Typed access to `glm-dsa.*` keys.
struct Keys<'a> {
    metadata: &'a Metadata,
    checkpoint: &'a Checkpoint,
}

impl Keys<'_> {
    fn wrong(&self, why: String) -> Error {
        Error::Metadata { path: self.checkpoint.root().to_owned(), why }
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.checkpoint.architecture())
    }

    /// A size: at least 1, and so small that no product of sizes that the plan forms can overflow.
    fn size(&self, name: &str) -> Result<usize, Error> {
        self.size_up_to(name, SIZE_MAX)
    }

    fn size_up_to(&self, name: &str, max: u64) -> Result<usize, Error> {
        let key = self.key(name);
        let value = self.metadata.u64(&key)?.ok_or_else(|| self.wrong(format!("`{key}` is missing")))?;
        if value == 0 || value > max {
            return Err(self.wrong(format!("`{key}` is {value}, which is not in 1..={max}")));
        }
        Ok(value as usize)
    }

    fn size_or(&self, name: &str, default: usize) -> Result<usize, Error> {
        let key = self.key(name);
        match self.metadata.u64(&key)? {
            None => Ok(default),
            Some(value) if value > SIZE_MAX => Err(self.wrong(format!("`{key}` is {value}, above {SIZE_MAX}"))),
            Some(value) => Ok(value as usize),
        }
    }

    fn f32(&self, name: &str) -> Result<f32, Error> {
        let key = self.key(name);
        let value = self.metadata.f32(&key)?.ok_or_else(|| self.wrong(format!("`{key}` is missing")))?;
        if !value.is_finite() || value <= 0.0 {
            return Err(self.wrong(format!("`{key}` is {value}")));
        }
        Ok(value)
    }

    fn vocab_size(&self) -> Result<usize, Error> {
        let Some(tensor) = self.checkpoint.tensor("token_embd.weight") else {
            return Err(Error::MissingTensor {
                tensor: "token_embd.weight".into(),
                path: self.checkpoint.root().to_owned(),
            });
        };
        match tensor.shape.get(1) {
            Some(&n) if n > 0 && n <= SIZE_MAX => Ok(n as usize),
            _ => Err(Error::Shape { tensor: tensor.name.clone(), found: tensor.shape.clone(), expected: vec![] }),
        }
    }

    /// YaRN tables and the factor whose square scales the softmax. Keys as deepseek2's.
    fn yarn(&self) -> Result<(Option<Yarn>, f32), Error> {
        let optional = |name: &str| -> Result<Option<f32>, Error> { Ok(self.metadata.f32(&self.key(name))?) };
        match self.metadata.str(&self.key("rope.scaling.type"))? {
            None | Some("none") => return Ok((None, 1.0)),
            Some("linear") if optional("rope.scaling.factor")?.is_none_or(|f| f == 1.0) => return Ok((None, 1.0)),
            Some("yarn") => {}
            Some(other) => return Err(self.wrong(format!("rope.scaling.type `{other}` is not implemented"))),
        }
        let factor = self.f32("rope.scaling.factor")?;
        let log = if factor > 1.0 { factor.ln() } else { 0.0 };
        // `yarn_log_multiplier` carries 0.1 * mscale_all_dim; with it the two mscales cancel on cos and sin.
        let (attention_factor, mscale) = match optional("rope.scaling.yarn_log_multiplier")? {
            Some(multiplier) if multiplier != 0.0 => (1.0, 1.0 + multiplier * log),
            _ => (1.0 + 0.1 * log, 1.0),
        };
        let yarn = Yarn {
            factor,
            original_context: self.size("rope.scaling.original_context_length")? as u32,
            beta_fast: optional("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: optional("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            attention_factor: attention_factor * optional("rope.scaling.attn_factor")?.unwrap_or(1.0),
        };
        Ok((Some(yarn), mscale))
    }

    fn moe(&self, hidden_size: usize, options: &EngineOptions) -> Result<MoeConfig, Error> {
        let used = self.size("expert_used_count")?;
        let top_k = match options.moe_topk {
            None => used,
            Some(n) if n == 0 || n as usize > used => {
                return Err(Error::Option {
                    option: "--moe-topk",
                    why: format!("{n} experts per token asked, the model was made for 1 to {used}"),
                });
            }
            Some(n) => n as usize,
        };
        let n_experts = self.size_up_to("expert_count", EXPERTS_MAX)?;
        let top_k = match options.routing {
            Routing::Force(expert) if expert as usize >= n_experts => {
                return Err(Error::Option {
                    option: "--moe-force-expert",
                    why: format!("expert {expert} asked, the model has 0 to {}", n_experts - 1),
                });
            }
            Routing::Force(_) => 1,
            _ => top_k,
        };
        match self.size_or("expert_gating_func", 2)? {
            2 => {}
            other => return Err(self.wrong(format!("expert_gating_func {other} is not sigmoid (2)"))),
        }
        let scale = self.metadata.f32(&self.key("expert_weights_scale"))?.unwrap_or(1.0);
        Ok(MoeConfig {
            router: RouterConfig {
                n_experts,
                top_k,
                n_group: self.size_or("expert_group_count", 1)?.max(1),
                topk_group: self.size_or("expert_group_used_count", 1)?.max(1),
                norm_topk_prob: self.metadata.bool(&self.key("expert_weights_norm"))?.unwrap_or(true),
                routed_scaling_factor: if scale == 0.0 { 1.0 } else { scale },
            },
            hidden_size,
            moe_intermediate_size: self.size("expert_feed_forward_length")?,
            n_shared_experts: self.size_or("expert_shared_count", 0)?,
        })
    }

    /// Which layers run an indexer: the metadata, or the rule of files that predate the key. Never the tensors, which
    /// some files carry on shared layers too.
    fn full_layers(&self, layers: usize, context_length: u32) -> Result<Vec<bool>, Error> {
        let key = self.key("attention.indexer.types");
        if let Some(mut full) = self.metadata.bools(&key)? {
            if full.len() < layers {
                return Err(self.wrong(format!("`{key}` names {} of {layers} layers", full.len())));
            }
            full.truncate(layers);
            return Ok(full);
        }
        if context_length < SHARED_INDEX_CONTEXT {
            return Ok(vec![true; layers]);
        }
        Ok((0..layers).map(|i| i < 2 || i % 4 == 2).collect())
    }
}

impl Weights {
    fn load(loader: &mut Loader<'_>, c: &Config, sparse: bool) -> Result<Self, Error> {
        let token_embd = loader.matrix("token_embd.weight", c.hidden_size, c.vocab_size)?;
        let mut layers = Vec::with_capacity(c.num_hidden_layers);
        for i in 0..c.num_hidden_layers {
            let layer = i as u32;
            layers.push(Layer {
                attn_norm: loader.vector(&format!("blk.{i}.attn_norm.weight"), c.hidden_size)?,
                attention: Mla::load(loader, layer, &c.mla, c.full[i] && sparse)?,
                ffn_norm: loader.vector(&format!("blk.{i}.ffn_norm.weight"), c.hidden_size)?,
                mlp: if i < c.first_k_dense_replace {
                    Mlp::Dense(Ffn::load(loader, layer, "", c.hidden_size, c.intermediate_size)?)
                } else {
                    Mlp::Sparse(Moe::load(loader, layer, &c.moe)?)
                },
            });
        }
        Ok(Self {
            token_embd,
            layers,
            output_norm: loader.vector("output_norm.weight", c.hidden_size)?,
            output: if loader.has("output.weight") {
                loader.matrix("output.weight", c.hidden_size, c.vocab_size)?
            } else {
                token_embd
            },
        })
    }
}

impl State {
    fn new(
        loader: &mut Loader<'_>,
        c: &Config,
        [batch, ubatch]: [usize; 2],
        context: usize,
    ) -> Result<Self, Error> {
        let shared = c.moe.n_shared_experts * c.moe.moe_intermediate_size;
        let rope = loader.rope_table(&RopeSpec {
            dim: c.mla.qk_rope_head_dim,
            rows: ubatch,
            theta: c.rope_theta,
            yarn: c.yarn,
        });
        let widest = [
            c.hidden_size,
            c.mla.q_lora_rank,
            c.mla.num_attention_heads * c.mla.v_head_dim.max(c.mla.kv_lora_rank),
            c.mla.num_attention_heads * (c.mla.qk_nope_head_dim + c.mla.qk_rope_head_dim),
            c.intermediate_size.max(shared),
        ];
        loader.scratch(&ScratchSpec {
            rows: ubatch,
            row: widest.into_iter().max().unwrap_or(1),
            heads: c.mla.num_attention_heads,
            cache_width: c.mla.cache_width(),
            index_heads: if loader.options.attention == AttentionMode::Sparse { c.mla.index_n_heads } else { 0 },
            index_head_dim: c.mla.index_head_dim,
            routed: [batch, c.hidden_size],
        });
        Ok(Self {
            ubatch,
            x: loader.buffer(batch * c.hidden_size),
            normed: loader.buffer(batch * c.hidden_size),
            y: loader.buffer(batch * c.hidden_size),
            logits: loader.buffer(LOGIT_ROWS.min(ubatch) * c.vocab_size),
            mla: MlaState::new(loader, &c.mla, [batch, ubatch], context, rope),
            ffn: FfnState::new(loader, ubatch, c.intermediate_size.max(shared)),
            moe: MoeState::new(loader, &c.moe, [batch, ubatch])?,
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
        self.state.moe.set_prefetch(prefetch);
    }

    fn forward(&mut self, step: &mut Step<'_>) -> Result<(), Error> {
        let (c, w, s) = (&self.config, &self.weights, &mut self.state);
        let cache = &self.caches[step.slot];
        let x = View::rows(s.x, c.hidden_size);
        let normed = View::rows(s.normed, c.hidden_size);
        let y = View::rows(s.y, c.hidden_size);

        step.backend.embed(w.token_embd, step.tokens, x);
        let how = match self.attention {
            AttentionMode::Sparse => None, // each full layer selects
            AttentionMode::Dense => Some(Select::All),
            AttentionMode::Recent => Some(Select::Recent(c.mla.index_topk)),
        };
        if let Some(how) = how {
            for ((_, rows), &selection) in step.rows(0, 2).parts(s.ubatch).zip(&s.mla.selections) {
                step.backend.select(selection, how, rows.start, rows.count);
            }
        }
        for (i, layer) in w.layers.iter().enumerate() {
            let (latents, index_keys) = (cache.latents[i], cache.index_keys[i]);
            let rows = step.rows(i, w.layers.len());
            let b = &mut *step.backend;
            for ((first, rows), &selection) in rows.parts(s.ubatch).zip(&s.mla.selections) {
                let [x, normed, y] = [x, normed, y].map(|view| view.from_row(first));
                b.rms_norm(x, layer.attn_norm, c.rms_norm_eps, rows.count, normed);
                let attention = &layer.attention;
                attention.forward(b, &c.mla, &s.mla, latents, index_keys, selection, normed, rows, y);
                if let (Some(dump), true) = (step.dump.as_deref_mut(), index_keys.is_some()) {
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
            match &layer.mlp {
                Mlp::Dense(ffn) => {
                    if n == 1 {
                        s.moe.lead(step, &c.moe, i as u32, normed)?;
                    }
                    ffn.forward(step.backend, &s.ffn, normed, n, y);
                }
                Mlp::Sparse(moe) => moe.forward(step, &c.moe, &mut s.moe, &s.ffn, normed, rows, y)?,
            }
            step.backend.add(x, y, c.hidden_size, n);
            step.layer_done(i)?;
        }
        self.head(step);
        Ok(())
    }
}

impl GlmDsa {
    /// Final norm and logits of the wanted rows.
    fn head(&self, step: &mut Step<'_>) {
        let (c, w, s) = (&self.config, &self.weights, &self.state);
        let rows = step.tokens.len();
        let first = match step.want {
            Want::None => return,
            Want::Last => rows - 1,
            Want::All => 0,
        };
        let b = &mut *step.backend;
        let x = View::rows(s.x, c.hidden_size);
        let normed = View::rows(s.normed, c.hidden_size);
        let logits = View::rows(s.logits, c.vocab_size);
        let mut row = first;
        while row < rows {
            let n = LOGIT_ROWS.min(s.ubatch).min(rows - row);
            b.rms_norm(x.shifted(row * c.hidden_size), w.output_norm, c.rms_norm_eps, n, normed);
            b.matmul(normed, n, &[(w.output, logits)]);
            for i in 0..n {
                (step.sink)(step.start + row + i, b.read(logits, i, c.vocab_size));
            }
            row += n;
        }
    }
}
