//! The lightning indexer: scores of every cached key, the best positions of each token.

use kernels::SharedMut;

use super::CpuBackend;
use crate::backend::{Index, SelectionId};

/// Positions scored per task.
const POSITIONS_PER_TASK: usize = 256;

impl CpuBackend {
    /// While no more than `top_k` positions are cached, all of them are kept and nothing is scored.
    pub(super) fn select_by_index(
        &mut self,
        selection: SelectionId,
        index: &Index,
        start: usize,
        rows: usize,
    ) {
        let keys = &self.caches[index.keys.0 as usize];
        let selection = &mut self.selections[selection.0 as usize];
        let dim = index.head_dim;
        let key_scale = (dim as f32).powf(-0.5);
        let head_scale = (index.n_heads as f32).powf(-0.5);
        for t in 0..rows {
            let len = start + t + 1;
            if len <= index.top_k {
                selection.set_range(t, 0, len);
                continue;
            }
            let queries = self.buffers.row(index.queries, t, index.n_heads * dim);
            let weights = self.buffers.row(index.weights, t, index.n_heads);
            let scores = SharedMut::new(&mut selection.scores[..len]);
            self.pool.run(len.div_ceil(POSITIONS_PER_TASK), &|task| {
                let first = task * POSITIONS_PER_TASK;
                // SAFETY: tasks score disjoint ranges of positions.
                let scores = unsafe { scores.part(first, POSITIONS_PER_TASK.min(len - first)) };
                for (i, score) in scores.iter_mut().enumerate() {
                    *score = 0.0;
                    for (query, weight) in queries.chunks_exact(dim).zip(weights) {
                        let relevance = (keys.dot(first + i, query) * key_scale).max(0.0);
                        *score += relevance * (weight * head_scale);
                    }
                }
            });
            selection.set_top(t, len, index.top_k);
        }
    }
}
