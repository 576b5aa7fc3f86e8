//! Softmax attention over cached keys and values: a task takes some tokens and some of the heads that share a key, decodes a chunk of
//! positions once and passes over it with all of them.
//!
//! Chunks begin at multiples of their length, whatever the first position a token attends to: so tokens with different windows read
//! the same chunks, and what a head computes depends neither on the tokens nor on the heads that it shares a task with.

use std::ops::Range;

use kernels::{SharedMut, ops};

use super::CpuBackend;
use super::memory::{Cache, KV_TOKENS, Selected, Selection, TASKS_PER_THREAD, floats, floats_mut};
use crate::backend::KvAttention;

const CHUNK: usize = ops::ATTENTION_CHUNK;

/// Tasks per thread that are aimed at, and heads of a task at least: fewer would decode the same rows too often.
const TASKS_WANTED: usize = 2;
const HEADS_MIN: usize = 2;

/// How the work is cut into units: tokens and heads of one each. Tokens share a unit while there are enough of them to go round, and
/// heads are split where a step has few tokens and keys.
fn cut(threads: usize, rows: usize, a: &KvAttention) -> [usize; 2] {
    let group = a.n_heads / a.n_kv_heads;
    let wanted = threads * TASKS_WANTED;
    let tokens = (rows * a.n_kv_heads / wanted).clamp(1, KV_TOKENS);
    let whole = rows.div_ceil(tokens) * a.n_kv_heads;
    let parts = wanted.div_ceil(whole.max(1)).min(group.div_ceil(HEADS_MIN));
    [tokens, group.div_ceil(parts.max(1))]
}

/// One unit's heads: of the key number `kv`, `count` from `first` on.
#[derive(Clone, Copy)]
struct Group {
    kv: usize,
    first: usize,
    count: usize,
}

/// What all units read, and where they write.
struct Work<'a> {
    a: &'a KvAttention,
    keys: &'a Cache,
    values: &'a Cache,
    selection: &'a Selection,
    sinks: Option<&'a [f32]>,
    queries: &'a [f32],
    out: SharedMut<'a, f32>,
}

impl CpuBackend {
    pub(super) fn attend_kv(&mut self, a: &KvAttention, rows: Range<usize>) {
        assert!(a.n_heads.is_multiple_of(a.n_kv_heads), "groups of heads are equally large");
        let threads = self.pool.threads();
        let group = a.n_heads / a.n_kv_heads;
        let [tokens, heads] = cut(threads, rows.len(), a);
        let (blocks, parts) = (rows.len().div_ceil(tokens), group.div_ceil(heads));
        let units = blocks * a.n_kv_heads * parts;
        let tasks = units.min(threads * TASKS_PER_THREAD);
        let (queries, out) = self.buffers.two(a.queries, a.out);
        let work = Work {
            a,
            keys: &self.caches[a.keys.0 as usize],
            values: &self.caches[a.values.0 as usize],
            selection: &self.selections[a.selection.0 as usize],
            sinks: a.sinks.map(|id| floats(&self.weights[id.0 as usize].bytes)),
            queries,
            out: SharedMut::new(out),
        };
        let per_task = self.scratch.per_task;
        let scratch = SharedMut::new(floats_mut(&mut self.scratch.tasks));
        self.pool.run(tasks, &|task| {
            // SAFETY: each task has its own part of the scratch.
            let scratch = unsafe { scratch.part(task * per_task, per_task) };
            for unit in units * task / tasks..units * (task + 1) / tasks {
                let (block, kv, part) = (unit / (a.n_kv_heads * parts), unit / parts % a.n_kv_heads, unit % parts);
                let first = rows.start + block * tokens;
                let within = part * heads;
                let heads = Group { kv, first: kv * group + within, count: heads.min(group - within) };
                work.unit(first..rows.end.min(first + tokens), heads, scratch);
            }
        });
    }
}

impl Work<'_> {
    /// For each token and head: `out = Σ softmax(scale * query · key) * value` over the positions selected for the token.
    fn unit(&self, tokens: Range<usize>, heads: Group, scratch: &mut [f32]) {
        let (width, n) = (self.a.head_dim, heads.count);
        let (pitch, value_pitch) = (ops::padded(width), ops::padded(self.a.value_dim));
        let (keys, rest) = scratch.split_at_mut(CHUNK * pitch);
        let (values, rest) = rest.split_at_mut(CHUNK * value_pitch);
        let (scores, rest) = rest.split_at_mut(n * CHUNK);
        let (maxima, rest) = rest.split_at_mut(KV_TOKENS * n);
        let sums = &mut rest[..KV_TOKENS * n];
        let mut seen = usize::MAX..0;
        for (i, t) in tokens.clone().enumerate() {
            let own = self.positions(t);
            seen = seen.start.min(own.start)..seen.end.max(own.end);
            let mut running = self.running(t, heads, scores, &mut maxima[i * n..], &mut sums[i * n..]);
            match self.sinks {
                Some(sinks) => running.begin_with_sinks(&sinks[heads.first..][..n]),
                None => running.begin(),
            }
        }
        for start in (seen.start / CHUNK * CHUNK..seen.end).step_by(CHUNK) {
            let read = seen.start.max(start)..seen.end.min(start + CHUNK);
            decode(self.keys, read.clone(), start, heads.kv, width, keys);
            decode(self.values, read, start, heads.kv, self.a.value_dim, values);
            for (i, t) in tokens.clone().enumerate() {
                let own = self.positions(t);
                let (from, to) = (own.start.max(start), own.end.min(start + CHUNK));
                if from >= to {
                    continue;
                }
                let chunk = ops::Chunk {
                    keys: &keys[(from - start) * pitch..],
                    width,
                    values: &values[(from - start) * value_pitch..],
                    pitch: value_pitch,
                    n_rows: to - from,
                };
                let query = self.a.queries.offset + t * self.a.queries.stride + heads.first * width;
                let mut running = self.running(t, heads, scores, &mut maxima[i * n..], &mut sums[i * n..]);
                ops::attend_chunk(&self.queries[query..][..n * width], &chunk, self.a.scale, &mut running);
            }
        }
        for (i, t) in tokens.enumerate() {
            ops::attend_finish(&mut self.running(t, heads, scores, &mut maxima[i * n..], &mut sums[i * n..]));
        }
    }

    /// The positions that token `t` attends to.
    fn positions(&self, t: usize) -> Range<usize> {
        match self.selection.get(t) {
            Selected::Range(from, to) => from as usize..to as usize,
            Selected::List(_) => unreachable!("keys and values are selected by a rule"),
        }
    }

    /// What the heads of token `t` carry; `maxima` and `sums` begin with theirs.
    fn running<'b>(
        &'b self,
        t: usize,
        heads: Group,
        scores: &'b mut [f32],
        maxima: &'b mut [f32],
        sums: &'b mut [f32],
    ) -> ops::Running<'b> {
        let (n, width) = (heads.count, self.a.value_dim);
        let at = self.a.out.offset + t * self.a.out.stride + heads.first * width;
        // SAFETY: each unit has its own tokens and heads, a unit belongs to one task, and it has one of these at a time.
        let values = unsafe { self.out.part(at, n * width) };
        ops::Running { scores, maxima: &mut maxima[..n], sums: &mut sums[..n], values }
    }
}

/// Positions `read` of head `kv` as rows of a chunk that begins at position `start`.
fn decode(cache: &Cache, read: Range<usize>, start: usize, kv: usize, width: usize, rows: &mut [f32]) {
    let pitch = ops::padded(width);
    for position in read {
        let row = &mut rows[(position - start) * pitch..][..pitch];
        cache.decode_part(position, kv * width..(kv + 1) * width, &mut row[..width]);
        row[width..].fill(0.0);
    }
}
