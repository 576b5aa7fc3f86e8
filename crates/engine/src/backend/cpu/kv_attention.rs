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
                let (block, kv, part) =
                    (unit / (a.n_kv_heads * parts), unit / parts % a.n_kv_heads, unit % parts);
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
        let first = tokens.clone().map(|t| self.positions(t).start).min().unwrap_or(0);
        let last = tokens.clone().map(|t| self.positions(t).end).max().unwrap_or(0);
        for (i, t) in tokens.clone().enumerate() {
            let mut running = self.running(t, heads, scores, &mut maxima[i * n..], &mut sums[i * n..]);
            match self.sinks {
                Some(sinks) => running.begin_with_sinks(&sinks[heads.first..][..n]),
                None => running.begin(),
            }
        }
        for start in (first / CHUNK * CHUNK..last).step_by(CHUNK) {
            let read = first.max(start)..last.min(start + CHUNK);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backend, ScratchSpec, Select, View, WeightSpec};
    use crate::options::CacheType;

    /// Reproducible floats in −1..1.
    fn floats(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[derive(Debug, Clone, Copy)]
    struct Case {
        heads: [usize; 2],
        dims: [usize; 2],
        positions: usize,
        tokens: usize,
        window: Option<usize>,
        sinks: bool,
        ty: CacheType,
    }

    const CASES: [Case; 8] = {
        let base = Case {
            heads: [4, 2],
            dims: [32, 32],
            positions: 60,
            tokens: 20,
            window: None,
            sinks: false,
            ty: CacheType::F32,
        };
        [
            base,
            Case { heads: [12, 1], dims: [16, 24], tokens: 60, ..base },
            // Key parts that begin and end inside blocks of eight bits.
            Case { heads: [6, 3], dims: [20, 12], ty: CacheType::Q8, ..base },
            Case { heads: [3, 3], dims: [64, 64], positions: 200, tokens: 3, ty: CacheType::F16, ..base },
            Case { sinks: true, window: Some(7), tokens: 60, ..base },
            // Windows whose beginnings lie in different chunks.
            Case { sinks: true, window: Some(50), positions: 150, tokens: 100, heads: [8, 2], ..base },
            Case { window: Some(1), ty: CacheType::Q8, ..base },
            Case { heads: [10, 2], dims: [33, 9], positions: 97, tokens: 1, sinks: true, ..base },
        ]
    };

    struct Run {
        b: CpuBackend,
        a: KvAttention,
        sinks: Vec<f32>,
    }

    impl Case {
        fn run(&self, threads: usize) -> Run {
            let mut b = CpuBackend::new(threads, threads).expect("threads");
            let ([heads, kv], [dim, value_dim]) = (self.heads, self.dims);
            let queries = View::rows(b.buffer(self.tokens * heads * dim), heads * dim);
            let out = View::rows(b.buffer(self.tokens * heads * value_dim), heads * value_dim);
            b.buffers.starting_at(queries).copy_from_slice(&floats(self.tokens * heads * dim, 1));
            b.buffers.starting_at(out).fill(f32::NAN);
            let [keys, values] = [(dim, 2), (value_dim, 3)].map(|(width, seed)| {
                let width = kv * width;
                let cache = b.cache(self.positions, width, width, self.ty);
                let rows = View::rows(b.buffer(self.positions * width), width);
                b.buffers.starting_at(rows).copy_from_slice(&floats(self.positions * width, seed));
                b.append(cache, rows, 0, self.positions);
                cache
            });
            let sinks = floats(heads, 4);
            let spec = WeightSpec { name: "sinks".into(), format: 0, n_in: heads, n_out: 1, count: 1 };
            let weight = b.weight(&spec, &mut |bytes| {
                bytes.copy_from_slice(bytemuck::cast_slice(&sinks));
                Ok(())
            });
            let selection = b.selection(self.tokens, 0, 0);
            let how = self.window.map_or(Select::All, Select::Recent);
            b.select(selection, how, self.positions - self.tokens, self.tokens);
            let kv_scratch = [heads / kv, dim, value_dim];
            b.scratch(&ScratchSpec { rows: self.tokens, kv: kv_scratch, ..ScratchSpec::default() });
            let a = KvAttention {
                queries,
                keys,
                values,
                n_heads: heads,
                n_kv_heads: kv,
                head_dim: dim,
                value_dim,
                scale: 0.7,
                sinks: self.sinks.then(|| weight.expect("f32 loads")),
                selection,
                out,
            };
            Run { b, a, sinks }
        }

        /// The definition, in f64, over the rows as they are cached.
        fn expected(&self, run: &Run, t: usize, h: usize) -> Vec<f64> {
            let ([heads, kv], [dim, value_dim]) = (self.heads, self.dims);
            let end = self.positions - self.tokens + t + 1;
            let first = self.window.map_or(0, |n| end.saturating_sub(n));
            let part = |cache: crate::backend::CacheId, width: usize, position: usize| {
                let mut row = vec![0.0; kv * width];
                run.b.caches[cache.0 as usize].decode(position, &mut row);
                let at = h / (heads / kv) * width;
                row[at..at + width].iter().map(|x| f64::from(*x)).collect::<Vec<_>>()
            };
            let query = &run.b.buffers.row(run.a.queries, t, heads * dim)[h * dim..][..dim];
            let score = |position| {
                let key = part(run.a.keys, dim, position);
                key.iter().zip(query).map(|(k, q)| k * f64::from(*q)).sum::<f64>() * f64::from(run.a.scale)
            };
            let weights: Vec<f64> = (first..end).map(|position| f64::exp(score(position))).collect();
            let sink = if self.sinks { f64::from(run.sinks[h]).exp() } else { 0.0 };
            let total = weights.iter().sum::<f64>() + sink;
            let mut out = vec![0.0; value_dim];
            for (weight, position) in weights.iter().zip(first..end) {
                let value = part(run.a.values, value_dim, position);
                out.iter_mut().zip(value).for_each(|(out, value)| *out += weight / total * value);
            }
            out
        }
    }

    #[test]
    fn is_softmax_attention_over_what_is_cached() {
        for case in CASES {
            let mut run = case.run(2);
            run.b.attention_kv(&run.a.clone(), 0..case.tokens);
            let ([heads, _], [_, value_dim]) = (case.heads, case.dims);
            for t in 0..case.tokens {
                for h in 0..heads {
                    let got =
                        &run.b.buffers.row(run.a.out, t, heads * value_dim)[h * value_dim..][..value_dim];
                    for (got, want) in got.iter().zip(case.expected(&run, t, h)) {
                        assert!(
                            (f64::from(*got) - want).abs() < 2e-6,
                            "{case:?}: token {t}, head {h}: {got} {want}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn neither_threads_nor_neighbours_change_a_bit() {
        for case in CASES {
            let all = |run: &mut Run| run.b.buffers.starting_at(run.a.out).to_vec();
            let mut reference = case.run(1);
            for t in 0..case.tokens {
                reference.b.attention_kv(&reference.a.clone(), t..t + 1);
            }
            let reference = all(&mut reference);
            assert!(reference.iter().all(|x| x.is_finite()));
            for threads in [1, 2, 7] {
                let mut run = case.run(threads);
                run.b.attention_kv(&run.a.clone(), 0..case.tokens);
                assert_eq!(all(&mut run), reference, "{case:?} with {threads} threads");
            }
        }
    }

    #[test]
    fn rows_that_are_not_asked_for_are_left_alone() {
        let case = CASES[0];
        let mut run = case.run(3);
        run.b.attention_kv(&run.a.clone(), 5..9);
        for t in 0..case.tokens {
            let row = run.b.buffers.row(run.a.out, t, 4 * 32);
            assert!(row.iter().all(|x| x.is_nan() != (5..9).contains(&t)), "token {t}");
        }
    }
}
