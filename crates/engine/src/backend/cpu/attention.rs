//! Softmax attention over cached latents: all heads of a token read the same rows, so a task takes several heads of one token,
//! decodes a chunk of rows once and passes over it with all of them.
//!
//! What a head computes does not depend on the heads it shares a task with (see [`ops::attend_chunk`]), so tasks may be cut
//! anywhere. The cost of a token follows the number of selected positions, not where they lie.

use std::ops::Range;

use kernels::{SharedMut, ops};

use super::CpuBackend;
use super::memory::{Cache, Selected, TASKS_PER_THREAD, floats_mut};
use crate::backend::LatentAttention;

/// Heads are cut in multiples of this: the kernels take six, four, two or one at once, so that no multiple of four leaves one over.
const HEADS_MULTIPLE: usize = 4;

/// Tasks per thread that are aimed at: enough to even out threads, few enough to decode rows for many heads each.
const TASKS_WANTED: usize = 2;

/// Heads of a unit of work: all of them while there are tokens enough to go round, fewer when not.
fn heads_per_unit(threads: usize, rows: usize, heads: usize) -> usize {
    let units = (threads * TASKS_WANTED).div_ceil(rows.max(1));
    heads.div_ceil(units).next_multiple_of(HEADS_MULTIPLE).min(heads)
}

impl CpuBackend {
    /// Units of work are (token, block of heads) pairs; each is summed by one thread over ascending positions.
    pub(super) fn attend(&mut self, a: &LatentAttention, rows: Range<usize>) {
        let threads = self.pool.threads();
        let block = heads_per_unit(threads, rows.len(), a.n_heads);
        let blocks = a.n_heads.div_ceil(block);
        let units = rows.len() * blocks;
        let tasks = units.min(threads * TASKS_PER_THREAD);
        let (cache, selection) = (&self.caches[a.cache.0 as usize], &self.selections[a.selection.0 as usize]);
        let (queries, out) = self.buffers.two(a.queries, a.out);
        let out = SharedMut::new(out);
        let per_task = self.scratch.per_task;
        let scratch = SharedMut::new(floats_mut(&mut self.scratch.tasks));
        let width = a.latent + a.rope;
        self.pool.run(tasks, &|task| {
            // SAFETY: each task has its own part of the scratch.
            let scratch = unsafe { scratch.part(task * per_task, per_task) };
            for unit in units * task / tasks..units * (task + 1) / tasks {
                let (t, first) = (rows.start + unit / blocks, unit % blocks * block);
                let heads = block.min(a.n_heads - first);
                let queries = &queries[a.queries.offset + t * a.queries.stride + first * width..];
                let z = a.out.offset + t * a.out.stride + first * a.latent;
                // SAFETY: each unit has its own output, and a unit belongs to one task.
                let z = unsafe { out.part(z, heads * a.latent) };
                attend_unit(cache, selection.get(t), &queries[..heads * width], a.scale, scratch, heads, z);
            }
        });
    }
}

/// For each head: `z = sum over selected positions of softmax(scale * query · row) * row[..latent]`.
fn attend_unit(
    cache: &Cache,
    selected: Selected<'_>,
    queries: &[f32],
    scale: f32,
    scratch: &mut [f32],
    heads: usize,
    z: &mut [f32],
) {
    let width = cache.width();
    let pitch = ops::padded(width);
    let (rows, rest) = scratch.split_at_mut(ops::ATTENTION_CHUNK * pitch);
    let (scores, rest) = rest.split_at_mut(heads * ops::ATTENTION_CHUNK);
    let (maxima, rest) = rest.split_at_mut(heads);
    let mut running = ops::Running { scores, maxima, sums: &mut rest[..heads], values: z };
    running.begin();
    for first in (0..selected.len()).step_by(ops::ATTENTION_CHUNK) {
        let n = ops::ATTENTION_CHUNK.min(selected.len() - first);
        for (i, row) in rows.chunks_exact_mut(pitch).enumerate().take(n) {
            cache.decode(selected.at(first + i), &mut row[..width]);
            row[width..].fill(0.0);
        }
        let chunk = ops::Chunk { keys: rows, width, values: rows, pitch, n_rows: n };
        ops::attend_chunk(queries, &chunk, scale, &mut running);
    }
    ops::attend_finish(&mut running);
}
