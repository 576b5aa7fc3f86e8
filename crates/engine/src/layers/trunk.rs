//! The trunk that most models are: the embedding, then layers of two blocks, of which the first looks at other positions (the mixer) and
//! the second does not (the feed-forward), each behind a norm and added to the residual stream; then the head.
//!
//! A model file says which mixer and which feed-forward, and with what numbers. Models that do more between the blocks have a forward
//! pass of their own.

use files::Checkpoint;

use crate::backend::{Buf, ScratchSpec, StateId, View, WeightId};
use crate::keys::Keys;
use crate::layers::head::Head;
use crate::load::Loader;
use crate::models::{Model, ModelInfo, Rows, Step, planned_context};
use crate::options::Prefetch;
use crate::{EngineOptions, Error};

/// What every model says of itself, Hugging Face names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TrunkConfig {
    pub(crate) hidden_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) vocab_size: usize,
    pub(crate) rms_norm_eps: f32,
    pub(crate) max_position_embeddings: u32,
}

/// How many positions and rows are planned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Positions of a sequence.
    pub(crate) context: usize,
    /// Rows of a batch and of a micro-batch.
    pub(crate) rows: [usize; 2],
}

impl TrunkConfig {
    pub(crate) fn read(keys: &Keys<'_>) -> Result<Self, Error> {
        Ok(Self {
            hidden_size: keys.size("embedding_length")?,
            num_hidden_layers: keys.layers()?,
            vocab_size: keys.vocab_size()?,
            rms_norm_eps: keys.f32("attention.layer_norm_rms_epsilon")?,
            max_position_embeddings: keys.context_length()?,
        })
    }

    pub(crate) fn sizes(&self, options: &EngineOptions) -> Result<Sizes, Error> {
        let context = planned_context(options, self.max_position_embeddings)?;
        Ok(Sizes { context: context as usize, rows: options.rows(context) })
    }

    /// What the blocks have nothing to say about; they add the rest.
    pub(crate) fn info(&self, checkpoint: &Checkpoint, sizes: Sizes) -> ModelInfo {
        ModelInfo {
            architecture: checkpoint.architecture().to_owned(),
            n_vocab: self.vocab_size as u32,
            n_layers: self.num_hidden_layers as u32,
            expert_layers: Vec::new(),
            n_experts: 0,
            top_k: 0,
            hidden_size: self.hidden_size as u32,
            context_max: self.max_position_embeddings,
            context: sizes.context as u32,
            index_topk: 0,
            full_layers: Vec::new(),
        }
    }
}

/// The first block of all layers, with what sequences leave in them.
pub(crate) trait Mixer: Send {
    /// Sequences planned.
    fn sequences(&self) -> usize;
    /// See [`Model::states`].
    fn states(&self, _slot: usize) -> &[StateId] {
        &[]
    }
    /// What its operations need.
    fn scratch(&self, rows: [usize; 2]) -> ScratchSpec;
    /// Adds what it knows.
    fn describe(&self, _info: &mut ModelInfo) {}
    /// Before the layers of a step.
    fn begin(&self, step: &mut Step<'_>);
    /// `y = mixer(x)` of the wanted rows, and what all rows leave to later ones; the rows are micro-batch `part` of the step.
    fn forward(&self, step: &mut Step<'_>, layer: usize, part: usize, x: View, rows: Rows, y: View);
}

/// The second block of all layers.
pub(crate) trait FeedForward: Send {
    /// What its operations need.
    fn scratch(&self, rows: [usize; 2]) -> ScratchSpec;
    /// Adds what it knows.
    fn describe(&self, info: &mut ModelInfo);
    /// See [`Model::set_prefetch`].
    fn set_prefetch(&mut self, prefetch: Prefetch);
    /// `y = ffn(x)`; the first row of both is the first wanted one.
    fn forward(
        &mut self,
        step: &mut Step<'_>,
        layer: usize,
        x: View,
        rows: Rows,
        y: View,
    ) -> Result<(), Error>;
}

/// A model made of the two.
pub(crate) struct Trunk<M, F> {
    info: ModelInfo,
    hidden_size: usize,
    eps: f32,
    ubatch: usize,
    token_embd: WeightId,      // [vocab, hidden]
    norms: Vec<[WeightId; 2]>, // [layers], [hidden]: before the mixer and before the feed-forward
    mixer: M,
    feed_forward: F,
    head: Head,
    x: Buf,      // [batch, hidden] residual stream
    normed: Buf, // [batch, hidden]
    y: Buf,      // [batch, hidden] output of a block
}

impl<M: Mixer + 'static, F: FeedForward + 'static> Trunk<M, F> {
    /// Loads what is around the blocks; `ffn_norm` is what the architecture's files call the norm before the second one.
    pub(crate) fn load(
        loader: &mut Loader<'_>,
        c: &TrunkConfig,
        sizes: Sizes,
        ffn_norm: &str,
        mixer: M,
        feed_forward: F,
    ) -> Result<Box<dyn Model>, Error> {
        let [batch, ubatch] = sizes.rows;
        let token_embd = loader.matrix("token_embd.weight", c.hidden_size, c.vocab_size)?;
        let mut norm =
            |layer: usize, name: &str| loader.vector(&format!("blk.{layer}.{name}.weight"), c.hidden_size);
        let norms = (0..c.num_hidden_layers).map(|i| Ok([norm(i, "attn_norm")?, norm(i, ffn_norm)?]));
        let norms = norms.collect::<Result<_, Error>>()?;
        let head = Head::load(loader, token_embd, [c.hidden_size, c.vocab_size], c.rms_norm_eps, ubatch)?;
        let around = ScratchSpec {
            rows: ubatch,
            row: c.hidden_size,
            routed: [batch, c.hidden_size],
            ..ScratchSpec::default()
        };
        loader.scratch(&around.max(mixer.scratch(sizes.rows)).max(feed_forward.scratch(sizes.rows)));
        let [x, normed, y] = [(); 3].map(|()| loader.buffer(batch * c.hidden_size));
        let mut info = c.info(loader.checkpoint, sizes);
        mixer.describe(&mut info);
        feed_forward.describe(&mut info);
        let (hidden_size, eps) = (c.hidden_size, c.rms_norm_eps);
        Ok(Box::new(Self {
            info,
            hidden_size,
            eps,
            ubatch,
            token_embd,
            norms,
            mixer,
            feed_forward,
            head,
            x,
            normed,
            y,
        }))
    }
}

impl<M: Mixer, F: FeedForward> Model for Trunk<M, F> {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn sequences(&self) -> usize {
        self.mixer.sequences()
    }

    fn states(&self, slot: usize) -> &[StateId] {
        self.mixer.states(slot)
    }

    fn set_prefetch(&mut self, prefetch: Prefetch) {
        self.feed_forward.set_prefetch(prefetch);
    }

    fn forward(&mut self, step: &mut Step<'_>) -> Result<(), Error> {
        let width = self.hidden_size;
        let [x, normed, y] = [self.x, self.normed, self.y].map(|buf| View::rows(buf, width));

        step.backend.embed(self.token_embd, step.tokens, x);
        self.mixer.begin(step);
        for (i, &[mixer_norm, ffn_norm]) in self.norms.iter().enumerate() {
            let rows = step.rows(i, self.norms.len());
            for (part, (first, rows)) in rows.parts(self.ubatch).enumerate() {
                let [x, normed, y] = [x, normed, y].map(|view| view.from_row(first));
                step.backend.rms_norm(x, mixer_norm, self.eps, rows.count, normed);
                self.mixer.forward(step, i, part, normed, rows, y);
            }
            let n = rows.wanted().len();
            if n == 0 {
                break; // the last layer, of which only what it leaves to later tokens is needed
            }
            let [x, normed, y] = [x, normed, y].map(|view| view.from_row(rows.first_wanted));
            step.backend.add(x, y, width, n);
            step.backend.rms_norm(x, ffn_norm, self.eps, n, normed);
            self.feed_forward.forward(step, i, normed, rows, y)?;
            step.backend.add(x, y, width, n);
            step.layer_done(i)?;
        }
        self.head.forward(step, x, normed);
        Ok(())
    }
}
