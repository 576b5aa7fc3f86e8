//! Softmax attention over cached latents, one (token, head) at a time.

use kernels::{SharedMut, ops};

use super::CpuBackend;
use super::memory::{Cache, Selected, TASKS_PER_THREAD, floats_mut};
use crate::backend::LatentAttention;

impl CpuBackend {
    /// Units of work are (token, head) pairs; each is summed by one thread over ascending positions.
    pub(super) fn attend(&mut self, a: &LatentAttention, _start: usize, rows: usize) {
        let units = rows * a.n_heads;
        let tasks = units.min(self.pool.threads() * TASKS_PER_THREAD);
        let (cache, selection) = (&self.caches[a.cache.0 as usize], &self.selections[a.selection.0 as usize]);
        let (queries, out) = self.buffers.two(a.queries, a.out);
        let out = SharedMut::new(out);
        let probabilities = SharedMut::new(floats_mut(&mut self.scratch.probabilities));
        let context = self.scratch.context;
        let width = a.latent + a.rope;
        self.pool.run(tasks, &|task| {
            // SAFETY: each task has its own row of probabilities.
            let row = unsafe { probabilities.part(task * context, context) };
            for unit in units * task / tasks..units * (task + 1) / tasks {
                let (t, h) = (unit / a.n_heads, unit % a.n_heads);
                let query = &queries[a.queries.offset + t * a.queries.stride + h * width..][..width];
                // SAFETY: each unit has its own output, and a unit belongs to one task.
                let z = unsafe { out.part(a.out.offset + t * a.out.stride + h * a.latent, a.latent) };
                attend_one(cache, selection.get(t), query, a.scale, row, z);
            }
        });
    }
}

/// `z = sum over selected positions of softmax(scale * query · row) * row[..latent]`.
fn attend_one(
    cache: &Cache,
    selected: Selected<'_>,
    query: &[f32],
    scale: f32,
    row: &mut [f32],
    z: &mut [f32],
) {
    let n = selected.len();
    let row = &mut row[..n];
    for (i, p) in row.iter_mut().enumerate() {
        *p = cache.dot(selected.at(i), query) * scale;
    }
    ops::softmax(row);
    z.fill(0.0);
    for (i, &p) in row.iter().enumerate() {
        cache.axpy(p, selected.at(i), z);
    }
}
