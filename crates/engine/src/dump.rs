//! Selected positions and expert ids of every layer and token, as JSON lines, for comparing engines.
//!
//! `{"layer":6,"position":70,"selected":[0,3,…]}` on layers that run an indexer, ascending;
//! `{"layer":6,"position":70,"experts":[17,4],"weights":[1.4,1.1]}` on routed layers, router order.

use std::io::Write;

/// Where the records go. The first write error is kept and reported by [`Dump::finish`].
pub struct Dump {
    out: Box<dyn Write + Send>,
    positions: Vec<u32>,
    error: Option<std::io::Error>,
}

#[derive(serde::Serialize)]
struct Selected<'a> {
    layer: u32,
    position: usize,
    selected: &'a [u32],
}

#[derive(serde::Serialize)]
struct Experts<'a> {
    layer: u32,
    position: usize,
    experts: &'a [u32],
    weights: &'a [f32],
}

impl Dump {
    /// Writes to `out`, unbuffered by itself.
    pub fn new(out: Box<dyn Write + Send>) -> Self {
        Self { out, positions: Vec::new(), error: None }
    }

    /// Flushes; the first error of any write.
    pub fn finish(mut self) -> std::io::Result<()> {
        match self.error.take() {
            Some(error) => Err(error),
            None => self.out.flush(),
        }
    }

    fn line(&mut self, record: &impl serde::Serialize) {
        if self.error.is_some() {
            return;
        }
        let written = serde_json::to_writer(&mut self.out, record)
            .map_err(std::io::Error::from)
            .and_then(|()| self.out.write_all(b"\n"));
        self.error = written.err();
    }

    pub(crate) fn selected(&mut self, layer: u32, position: usize, fill: impl FnOnce(&mut Vec<u32>)) {
        let mut positions = std::mem::take(&mut self.positions);
        positions.clear();
        fill(&mut positions);
        self.line(&Selected { layer, position, selected: &positions });
        self.positions = positions;
    }

    /// `ids` and `weights` are `[tokens, k]`, the first token at `start`.
    pub(crate) fn experts(&mut self, layer: u32, start: usize, k: usize, ids: &[u32], weights: &[f32]) {
        for (t, (experts, weights)) in ids.chunks_exact(k).zip(weights.chunks_exact(k)).enumerate() {
            self.line(&Experts { layer, position: start + t, experts, weights });
        }
    }
}

impl std::fmt::Debug for Dump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dump").field("error", &self.error).finish_non_exhaustive()
    }
}
