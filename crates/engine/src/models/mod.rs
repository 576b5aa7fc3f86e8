//! One file per architecture: `Config` (Hugging Face names kept), weights, `forward`.

use std::ops::Range;

use experts::{Bank, Counters};
use files::Checkpoint;

use crate::backend::{Backend, StateId};
use crate::load::Loader;
use crate::options::{AttentionMode, Prefetch};
use crate::{Dump, EngineOptions, Error, Want};

/// Declares the model files and the table that finds them by `general.architecture`.
macro_rules! architectures {
    ($($file:ident),+ $(,)?) => {
        $(mod $file;)+
        /// Every architecture this build can run.
        static ARCHITECTURES: &[Architecture] = &[$($file::ARCHITECTURE),+];
    };
}

architectures! { deepseek2, gemma4, glm4moe, glm_dsa, gpt_oss, minimax_m2, qwen35moe, qwen3moe, qwen3next }

/// One row of the table.
pub(crate) struct Architecture {
    /// Values of `general.architecture`.
    pub(crate) names: &'static [&'static str],
    /// Checks the metadata, asks the loader for everything, and returns the model.
    pub(crate) load: fn(&mut Loader<'_>) -> Result<Box<dyn Model>, Error>,
}

/// What the loop, the plan and the user interface need to know about a loaded model.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ModelInfo {
    /// `general.architecture`.
    pub architecture: String,
    /// Vocabulary size.
    pub n_vocab: u32,
    /// Layers that run (next-token-prediction blocks not counted).
    pub n_layers: u32,
    /// Layers with routed experts that run.
    pub expert_layers: Vec<u32>,
    /// Routed experts per layer.
    pub n_experts: u32,
    /// Experts per token in effect.
    pub top_k: u32,
    /// Model width.
    pub hidden_size: u32,
    /// Positions the model was made for.
    pub context_max: u32,
    /// Positions planned.
    pub context: u32,
    /// Positions a query keeps under sparse attention; 0 where it keeps all.
    pub index_topk: u32,
    /// Layers that run their own indexer.
    pub full_layers: Vec<u32>,
}

/// One forward pass: tokens at `start..`, in one sequence.
pub(crate) struct Step<'a> {
    pub(crate) backend: &'a mut dyn Backend,
    /// `None` only where the routed experts are left out.
    pub(crate) bank: Option<&'a mut Bank>,
    pub(crate) tokens: &'a [u32],
    pub(crate) start: usize,
    /// Which of the model's sequence caches.
    pub(crate) slot: usize,
    pub(crate) want: Want,
    /// Receives (position, logits) for each wanted position.
    pub(crate) sink: &'a mut dyn FnMut(usize, &[f32]),
    pub(crate) dump: Option<&'a mut Dump>,
    /// Hears of every layer that is done, with what the bank has counted so far; false ends the step.
    pub(crate) watch: Option<&'a mut dyn FnMut(usize, Counters) -> bool>,
}

impl Step<'_> {
    /// To be called after layer `layer`. Errors: [`Error::Interrupted`].
    pub(crate) fn layer_done(&mut self, layer: usize) -> Result<(), Error> {
        let Some(watch) = self.watch.as_deref_mut() else { return Ok(()) };
        let counters = self.bank.as_deref().map(|bank| bank.stats().total()).unwrap_or_default();
        if watch(layer, counters) { Ok(()) } else { Err(Error::Interrupted) }
    }

    /// The rows as layer `layer` of `n_layers` sees them: what comes out of the last one is read by the head alone, so that there
    /// only the positions whose logits are wanted are computed to the end.
    pub(crate) fn rows(&self, layer: usize, n_layers: usize) -> Rows {
        let count = self.tokens.len();
        let first_wanted = match self.want {
            _ if layer + 1 < n_layers => 0,
            Want::All => 0,
            Want::Last => count - 1,
            Want::None => count,
        };
        Rows { start: self.start, count, first_wanted }
    }
}

/// The rows of a step in one layer; row `t` is at position `start + t`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) start: usize,
    pub(crate) count: usize,
    /// The rows before this one leave their keys in the caches and nothing else.
    pub(crate) first_wanted: usize,
}

impl Rows {
    /// At most `ubatch` rows at a time: where they begin, and the rows themselves.
    pub(crate) fn parts(self, ubatch: usize) -> impl Iterator<Item = (usize, Rows)> {
        (0..self.count).step_by(ubatch).map(move |first| {
            let count = ubatch.min(self.count - first);
            let first_wanted = self.first_wanted.saturating_sub(first).min(count);
            (first, Rows { start: self.start + first, count, first_wanted })
        })
    }

    /// Rows whose output is wanted.
    pub(crate) fn wanted(&self) -> Range<usize> {
        self.first_wanted..self.count
    }
}

/// A loaded architecture.
pub(crate) trait Model: Send {
    fn info(&self) -> &ModelInfo;
    /// Sequences planned at load.
    fn sequences(&self) -> usize;
    /// What sequence `slot` carries from token to token beside its cached rows. A step that succeeds has run each of them over all rows.
    fn states(&self, _slot: usize) -> &[StateId] {
        &[]
    }
    fn forward(&mut self, step: &mut Step<'_>) -> Result<(), Error>;
    /// Lets somebody else guess the next experts from now on, who has seen nothing yet. Never to or from an oracle.
    fn set_prefetch(&mut self, prefetch: Prefetch);
}

/// Finds the architecture of a checkpoint.
pub(crate) fn find(checkpoint: &Checkpoint) -> Result<&'static Architecture, Error> {
    let found = checkpoint.architecture();
    ARCHITECTURES.iter().find(|a| a.names.contains(&found)).ok_or_else(|| Error::Architecture {
        found: found.to_owned(),
        path: checkpoint.root().to_owned(),
        known: known(),
    })
}

/// Names of everything this build can run.
pub(crate) fn known() -> Vec<&'static str> {
    ARCHITECTURES.iter().flat_map(|a| a.names.iter().copied()).collect()
}

/// Refuses the option that stands in for an indexer, for architectures that have none.
pub(crate) fn no_indexer(options: &EngineOptions) -> Result<(), Error> {
    if options.attention == AttentionMode::Recent {
        let why = "`recent` stands in for an indexer, and this architecture has none".into();
        return Err(Error::Option { option: "--attention", why });
    }
    Ok(())
}

/// The context to plan: what was asked, bounded by what the model was made for.
pub(crate) fn planned_context(options: &EngineOptions, context_max: u32) -> Result<u32, Error> {
    match options.context {
        None => Ok(context_max.min(crate::options::DEFAULT_CONTEXT)),
        Some(0) => Err(Error::Option { option: "-c", why: "a context of 0 positions holds nothing".into() }),
        Some(n) if n > context_max => Err(Error::Option {
            option: "-c",
            why: format!("{n} positions asked, the model was made for {context_max}"),
        }),
        Some(n) => Ok(n),
    }
}
