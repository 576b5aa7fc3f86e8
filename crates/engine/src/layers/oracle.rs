//! A routing trace as an oracle: it knows what each routed layer of the same run asked for, and what the next one will.

use std::path::{Path, PathBuf};

use crate::Error;

/// The calls of a trace, in order, and how far the run has come.
pub(crate) struct Oracle {
    path: PathBuf,
    calls: Vec<Call>,
    ids: Vec<u32>,
    at: usize,
}

#[derive(Clone, Copy)]
struct Call {
    layer: u32,
    k: u32,
    n_tokens: u32,
    /// Index of the first of its ids.
    start: usize,
}

impl Oracle {
    /// Reads a whole trace. Errors: those of [`experts::trace::open`], and an empty one.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let mut oracle = Self { path: path.to_owned(), calls: Vec::new(), ids: Vec::new(), at: 0 };
        for record in experts::trace::open(path)? {
            let record = record?;
            let (layer, k, n_tokens) = (record.layer, record.n_expert_used, record.n_tokens);
            oracle.calls.push(Call { layer, k, n_tokens, start: oracle.ids.len() });
            oracle.ids.extend(record.experts);
        }
        if oracle.calls.is_empty() {
            return Err(oracle.error("it has no calls".into()));
        }
        Ok(oracle)
    }

    /// What the call that comes now asked for when the trace was written; the call must be the same.
    pub(crate) fn take(&mut self, layer: u32, k: usize, n_tokens: usize) -> Result<&[u32], Error> {
        let Some(&call) = self.calls.get(self.at) else {
            return Err(self.error(format!("it ends after {} calls, and the run goes on", self.calls.len())));
        };
        let Call { layer: of, k: its_k, n_tokens: its_tokens, start } = call;
        if (of, its_k as usize, its_tokens as usize) != (layer, k, n_tokens) {
            return Err(self.error(format!(
                "call {} of it is of layer {of} with {its_tokens} tokens of {its_k} experts, the run is at layer {layer} with {n_tokens} \
                 tokens of {k}: it was written by another model, prompt or micro-batch",
                self.at
            )));
        }
        self.at += 1;
        Ok(&self.ids[start..start + k * n_tokens])
    }

    /// The layer and the experts of the next call, if that is one of a single token.
    pub(crate) fn next(&self) -> Option<(u32, &[u32])> {
        let call = self.calls.get(self.at).filter(|call| call.n_tokens == 1)?;
        Some((call.layer, &self.ids[call.start..call.start + call.k as usize]))
    }

    /// By layer, ascending: every expert that the trace names.
    pub(crate) fn experts(&self) -> Vec<(u32, Vec<u32>)> {
        let mut layers = std::collections::BTreeMap::<u32, std::collections::BTreeSet<u32>>::new();
        for call in &self.calls {
            let ids = &self.ids[call.start..call.start + (call.k * call.n_tokens) as usize];
            layers.entry(call.layer).or_default().extend(ids);
        }
        layers.into_iter().map(|(layer, ids)| (layer, ids.into_iter().collect())).collect()
    }

    fn error(&self, why: String) -> Error {
        Error::Option { option: "trace", why: format!("{}: {why}", self.path.display()) }
    }
}
