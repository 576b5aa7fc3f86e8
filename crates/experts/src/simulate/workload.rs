//! A trace in memory, cut into passes and checked against a model.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::plan::BankPlan;
use crate::trace::TraceRecord;
use crate::{Error, Result};

/// One routed layer call.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) record: TraceRecord,
    /// Index into the plan's layers.
    pub(crate) layer: usize,
    /// The experts of the call, each once, in order of first appearance.
    pub(crate) unique: Vec<u32>,
    /// The call of the same layer before this one.
    pub(crate) previous: Option<usize>,
}

/// The routed layer calls of one forward pass.
#[derive(Debug, Clone)]
pub(crate) struct Pass {
    pub(crate) calls: Range<usize>,
    pub(crate) tokens: u64,
}

/// The calls of a trace, of which all sizes and policies are tried.
#[derive(Debug)]
pub struct Workload {
    pub(crate) calls: Vec<Call>,
    pub(crate) passes: Vec<Pass>,
}

impl Workload {
    /// Reads a trace to its end. `plan` is any plan of the model.
    ///
    /// Errors: what `trace` yields; [`Error::TraceLine`] (counting records) or [`Error::TraceForeign`] for a trace that this
    /// model cannot have written; [`Error::Usage`] for an empty one.
    pub fn new(trace: impl IntoIterator<Item = Result<TraceRecord>>, plan: &BankPlan) -> Result<Workload> {
        let mut calls: Vec<Call> = Vec::new();
        let mut latest: Vec<Option<usize>> = vec![None; plan.layers().len()];
        for (record, line) in trace.into_iter().zip(1u64..) {
            let record = record?;
            let foreign = |why: Error| Error::TraceLine { line, why: why.to_string() };
            let found = plan.layers().binary_search_by_key(&record.layer, |layer| layer.layer);
            let layer = found.map_err(|_| foreign(Error::NoSuchLayer { layer: record.layer }))?;
            let n_expert = plan.layers()[layer].n_expert;
            let mut named = record.experts.iter().chain(&record.predicted);
            if let Some(&expert) = named.find(|&&id| id >= n_expert) {
                return Err(foreign(Error::NoSuchExpert { layer: record.layer, expert, n_expert }));
            }
            if record.n_expert_used != plan.top_k() {
                let why = format!("{} experts per token, here {}", record.n_expert_used, plan.top_k());
                return Err(Error::TraceForeign { why });
            }
            let mut seen = BTreeSet::new();
            let unique = record.experts.iter().copied().filter(|&id| seen.insert(id)).collect();
            let previous = latest[layer].replace(calls.len());
            calls.push(Call { record, layer, unique, previous });
        }
        if calls.is_empty() {
            return Err(Error::Usage("the trace is empty".into()));
        }
        if let Some(missing) = latest.iter().position(Option::is_none) {
            let layer = plan.layers()[missing].layer;
            return Err(Error::TraceForeign { why: format!("it has no call of layer {layer}") });
        }
        let passes = cut(&calls);
        Ok(Workload { calls, passes })
    }

    /// Tokens of all passes.
    pub fn tokens(&self) -> u64 {
        self.passes.iter().map(|pass| pass.tokens).sum()
    }

    /// Passes of one token, which is what generation consists of.
    pub fn single_token_passes(&self) -> usize {
        self.passes.iter().filter(|pass| pass.tokens == 1).count()
    }

    /// Whether calls say what was expected of them.
    pub fn has_predictions(&self) -> bool {
        self.calls.iter().any(|call| !call.record.predicted.is_empty())
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = Result<TraceRecord>> + '_ {
        self.calls.iter().map(|call| Ok(call.record.clone()))
    }
}

/// Layers ascend within a pass. A prompt's last layer may have fewer tokens than the others: only those whose logits are
/// wanted go through it.
fn cut(calls: &[Call]) -> Vec<Pass> {
    let mut passes: Vec<Pass> = Vec::new();
    for (i, call) in calls.iter().enumerate() {
        let tokens = u64::from(call.record.n_tokens);
        match passes.last_mut() {
            Some(pass) if calls[i - 1].layer < call.layer => {
                pass.calls.end = i + 1;
                pass.tokens = pass.tokens.max(tokens);
            }
            _ => passes.push(Pass { calls: i..i + 1, tokens }),
        }
    }
    passes
}
