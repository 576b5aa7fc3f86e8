//! The lightning indexer: scores of every cached key, the best positions of each token.
//!
//! Tokens are taken a few at a time. First every task scores a range of positions for all of them, a panel of keys decoded once,
//! and counts the leading bits of the scores as it goes; then each token's best positions are read off the counts and the
//! scores. The order of scores is total, so the choice is the same whatever the ranges.

use std::ops::Range;

use kernels::{SharedMut, ops};

use super::CpuBackend;
use super::memory::{Cache, SCAN_TOKENS, TASKS_PER_THREAD, floats_mut, index_floats};
use crate::backend::{Index, SelectionId};

/// Panels of a task at least, so that claiming it costs little beside the work.
const PANELS_MIN: usize = 8;

const PANEL: usize = ops::INDEX_PANEL;
const BINS: usize = ops::TOP_K_BINS;

impl CpuBackend {
    /// While no more than `top_k` positions are cached, all of them are kept and nothing is scored.
    pub(super) fn select_by_index(
        &mut self,
        selection: SelectionId,
        index: &Index,
        start: usize,
        rows: Range<usize>,
    ) {
        let dense = index.top_k.saturating_sub(start).clamp(rows.start, rows.end);
        for t in rows.start..dense {
            self.selections[selection.0 as usize].set_range(t, 0, start + t + 1);
        }
        for first in (dense..rows.end).step_by(SCAN_TOKENS) {
            let n = SCAN_TOKENS.min(rows.end - first);
            let tasks = self.score_positions(selection, index, start, first, n);
            self.choose_positions(selection, start, first, n, tasks);
        }
    }

    /// Scores every position for the `n` tokens from `first` on; returns how many tasks left counts.
    fn score_positions(
        &mut self,
        selection: SelectionId,
        index: &Index,
        start: usize,
        first: usize,
        n: usize,
    ) -> usize {
        let (heads, dim) = (index.n_heads, index.head_dim);
        let panels = (start + first + n).div_ceil(PANEL);
        let tasks = panels.div_ceil(PANELS_MIN).min(self.pool.threads() * TASKS_PER_THREAD);
        let cache = &self.caches[index.keys.0 as usize];
        let buffers = &self.buffers;
        let (keys, context) = self.selections[selection.0 as usize].scoring();
        let per_task = self.scratch.per_task;
        let scratch = SharedMut::new(floats_mut(&mut self.scratch.tasks));
        let counts = SharedMut::new(&mut self.scratch.counts);
        let scale = (dim as f32).powf(-0.5) * (heads as f32).powf(-0.5);
        self.pool.run(tasks, &|task| {
            // SAFETY: each task has its own part of the scratch and its own counters.
            let (scratch, counts) =
                unsafe { (scratch.part(task * per_task, per_task), counts.part(task * n * BINS, n * BINS)) };
            let (rows, rest) = scratch[..index_floats(heads, dim)].split_at_mut(PANEL * dim);
            let (panel, weights) = rest.split_at_mut(PANEL * dim);
            for (i, weights) in weights.chunks_exact_mut(heads).enumerate().take(n) {
                let raw = buffers.row(index.weights, first + i, heads);
                weights.iter_mut().zip(raw).for_each(|(scaled, raw)| *scaled = raw * scale);
            }
            counts.fill(0);
            for p in panels * task / tasks..panels * (task + 1) / tasks {
                let from = p * PANEL;
                read_panel(cache, from, (start + first + n - from).min(PANEL), rows, panel);
                for i in 0..n {
                    let queries = buffers.row(index.queries, first + i, heads * dim);
                    let mut scores = [0.0; PANEL];
                    ops::index_scores(queries, dim, &weights[i * heads..][..heads], panel, &mut scores);
                    let seen = (start + first + i + 1).saturating_sub(from).min(PANEL);
                    // SAFETY: tasks score disjoint ranges of positions.
                    let keys = unsafe { keys.part(i * context + from, seen) };
                    ops::top_k_count(&scores[..seen], keys, &mut counts[i * BINS..][..BINS]);
                }
            }
        });
        tasks
    }

    /// Reads the best positions of the `n` tokens from `first` on off their scores.
    fn choose_positions(
        &mut self,
        selection: SelectionId,
        start: usize,
        first: usize,
        n: usize,
        tasks: usize,
    ) {
        let selection = &mut self.selections[selection.0 as usize];
        let context = selection.context();
        let choosing = selection.choosing(first, n);
        let counts = SharedMut::new(&mut self.scratch.counts);
        self.pool.run(n, &|i| {
            // SAFETY: the counters of a token, in every task's part, and its list belong to its number.
            let (sums, list) = unsafe {
                (counts.part(i * BINS, BINS), choosing.lists.part(i * choosing.top_k, choosing.top_k))
            };
            for task in 1..tasks {
                // SAFETY: as above.
                let part = unsafe { counts.part((task * n + i) * BINS, BINS) };
                sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += *part);
            }
            let keys = &choosing.keys[i * context..][..start + first + i + 1];
            ops::top_k_counted(keys, sums, list);
        });
    }
}

/// Keys `from..from + n` as a panel; lanes behind them are zero.
fn read_panel(cache: &Cache, from: usize, n: usize, rows: &mut [f32], panel: &mut [f32]) {
    let dim = cache.width();
    for (i, row) in rows.chunks_exact_mut(dim).enumerate() {
        if i < n { cache.decode(from + i, row) } else { row.fill(0.0) }
    }
    ops::index_panel(rows, dim, panel);
}
