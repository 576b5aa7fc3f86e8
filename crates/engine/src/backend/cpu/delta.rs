//! What a layer carries from token to token, and the operations on it: the short convolution and the gated delta rule.
//!
//! Value heads are independent, and so are the rows of their states: each is passed over by one thread, token after token.

use kernels::{AlignedBuf, SharedMut, ops};

use super::CpuBackend;
use super::memory::{TASKS_PER_THREAD, floats, floats_mut};
use super::rows::each_row;
use crate::backend::{CONV_MAX, GatedDelta, StateChange, StateId, View, WeightId};

/// Tokens of a block: their keys and queries (16 KiB at a width of 128) stay in the first-level cache while all rows pass.
const TOKENS: usize = 16;
/// Rows of a state that are copied and worked on before the next ones are.
const ROWS: usize = 16;
/// Tasks per thread that are aimed at.
const TASKS_WANTED: usize = 2;
/// Added to the sum of squares of a query and of a key, as in transformers.
const L2_EPS: f32 = 1e-6;

/// Two copies, so that a step which fails half way leaves the state as it was, and places to keep older ones in.
pub(super) struct State {
    copies: [AlignedBuf; 2],
    places: Vec<AlignedBuf>,
    /// The copy that the last finished step left.
    finished: usize,
    /// Whether the running step has written the other one.
    begun: bool,
}

/// Bytes of [`State::new`].
pub(crate) fn state_bytes(len: usize, places: usize) -> u64 {
    4 * (len * (2 + places)) as u64
}

impl State {
    pub(super) fn new(len: usize, places: usize) -> Self {
        let copy = || AlignedBuf::zeroed(4 * len);
        Self {
            copies: [copy(), copy()],
            places: (0..places).map(|_| copy()).collect(),
            finished: 0,
            begun: false,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.copies.iter().chain(&self.places).map(|copy| copy.len() as u64).sum()
    }

    pub(super) fn change(&mut self, change: StateChange) {
        let finished = &mut self.copies[self.finished];
        match change {
            StateChange::Clear => floats_mut(finished).fill(0.0),
            StateChange::Begin => {}
            StateChange::Finish => self.finished ^= usize::from(self.begun),
            StateChange::Save(place) => floats_mut(&mut self.places[place]).copy_from_slice(floats(finished)),
            StateChange::Restore(place) => {
                floats_mut(finished).copy_from_slice(floats(&self.places[place]));
            }
        }
        self.begun = false;
    }

    /// For an operation of a step: where it reads, unless that is where it writes, and where it writes.
    fn step(&mut self) -> (Option<&[f32]>, &mut [f32]) {
        let [a, b] = &mut self.copies;
        let (finished, other) = if self.finished == 0 { (a, b) } else { (b, a) };
        let first = !std::mem::replace(&mut self.begun, true);
        (first.then(|| floats(finished)), floats_mut(other))
    }
}

/// Floats of a task: key, query and value of each token of a block, and its three gates.
pub(super) fn delta_floats(head_dim: usize) -> usize {
    if head_dim == 0 { 0 } else { TOKENS * (3 * head_dim + 3) }
}

/// Rows of a head that one unit of work takes: all where there are heads enough to go round.
fn rows_per_unit(threads: usize, d: &GatedDelta) -> usize {
    let parts = (threads * TASKS_WANTED).div_ceil(d.v_heads);
    d.head_dim.div_ceil(parts).next_multiple_of(ROWS).min(d.head_dim)
}

/// What all units read, and where they write.
struct Work<'a> {
    d: &'a GatedDelta,
    qkv: &'a [f32],
    beta: &'a [f32],
    alpha: &'a [f32],
    bias: &'a [f32],
    rate: &'a [f32],
    before: Option<&'a [f32]>,
    state: SharedMut<'a, f32>,
    out: SharedMut<'a, f32>,
}

impl CpuBackend {
    /// Units of work are (value head, some rows of its state).
    pub(super) fn delta(&mut self, d: &GatedDelta, rows: usize) {
        assert!(d.v_heads.is_multiple_of(d.k_heads), "groups of heads are equally large");
        let threads = self.pool.threads();
        let per_unit = rows_per_unit(threads, d);
        let parts = d.head_dim.div_ceil(per_unit);
        let units = d.v_heads * parts;
        let tasks = units.min(threads * TASKS_PER_THREAD);
        let vector = |id: WeightId| floats(&self.weights[id.0 as usize].bytes);
        let (before, after) = self.states[d.state.0 as usize].step();
        let [qkv, beta, alpha, out] = self.buffers.several([d.qkv, d.beta, d.alpha, d.out]);
        let (bias, rate) = (vector(d.bias), vector(d.rate));
        let (state, out) = (SharedMut::new(after), SharedMut::new(out));
        let work = Work { d, qkv, beta, alpha, bias, rate, before, state, out };
        let per_task = self.scratch.per_task;
        let scratch = SharedMut::new(floats_mut(&mut self.scratch.tasks));
        self.pool.run(tasks, &|task| {
            // SAFETY: each task has its own part of the scratch.
            let scratch = unsafe { scratch.part(task * per_task, per_task) };
            for unit in units * task / tasks..units * (task + 1) / tasks {
                let (head, first) = (unit / parts, unit % parts * per_unit);
                let count = per_unit.min(d.head_dim - first);
                for token in (0..rows).step_by(TOKENS) {
                    work.block(head, [first, count], [token, TOKENS.min(rows - token)], scratch);
                }
            }
        });
    }

    /// `out[t] = silu(Σ taps[i] * x[t - kernel + 1 + i])`.
    pub(super) fn conv_rows(&mut self, state: StateId, taps: WeightId, x: View, rows: usize, out: View) {
        let Self { pool, buffers, states, weights, .. } = self;
        let taps = &weights[taps.0 as usize];
        let (channels, kernel) = (taps.n_in, taps.n_out);
        assert!((1..=CONV_MAX).contains(&kernel), "taps of a convolution");
        let kept = kernel - 1;
        let (before, after) = states[state.0 as usize].step();
        let (from, to) = buffers.two(x, out);
        let row = |t: usize| &from[x.offset + t * x.stride..][..channels];
        {
            let history = before.unwrap_or(&*after);
            let to = SharedMut::new(to);
            each_row(pool, rows, kernel * channels, &|t| {
                let mut window: [&[f32]; CONV_MAX] = [&[]; CONV_MAX];
                for (i, slot) in window[..kernel].iter_mut().enumerate() {
                    let at = t + i;
                    *slot = if at < kept { &history[at * channels..][..channels] } else { row(at - kept) };
                }
                // SAFETY: each row of `out` belongs to one call.
                let to = unsafe { to.part(out.offset + t * out.stride, channels) };
                ops::conv_silu(floats(&taps.bytes), &window[..kernel], to);
            });
        }
        // Oldest first, so that a row is read before it is written where both are one.
        for i in 0..kept {
            let (at, target) = (i + rows, i * channels..(i + 1) * channels);
            if at >= kept {
                after[target].copy_from_slice(row(at - kept));
            } else if let Some(before) = before {
                after[target].copy_from_slice(&before[at * channels..][..channels]);
            } else {
                after.copy_within(at * channels..(at + 1) * channels, target.start);
            }
        }
    }

    /// `x[t] *= sigmoid(gate[t])`.
    pub(super) fn sigmoid_rows(&mut self, x: View, width: usize, gate: View, gate_width: usize, rows: usize) {
        assert!(gate_width == 1 || gate_width == width, "one gate for all elements, or one for each");
        let (gates, data) = self.buffers.two(gate, x);
        let data = SharedMut::new(data);
        let scratch = SharedMut::new(floats_mut(&mut self.scratch.activations));
        each_row(&self.pool, rows, width, &|t| {
            // SAFETY: each row of `x`, and of the scratch, belongs to one call.
            let (x, factors) = unsafe {
                (data.part(x.offset + t * x.stride, width), scratch.part(t * gate_width, gate_width))
            };
            factors.copy_from_slice(&gates[gate.offset + t * gate.stride..][..gate_width]);
            ops::sigmoid(factors);
            match factors {
                [factor] => x.iter_mut().for_each(|x| *x *= *factor),
                factors => x.iter_mut().zip(factors).for_each(|(x, factor)| *x *= *factor),
            }
        });
    }
}

impl Work<'_> {
    /// Passes over rows `first..first + count` of a head's state with tokens `token..token + n`.
    fn block(&self, head: usize, [first, count]: [usize; 2], [token, n]: [usize; 2], scratch: &mut [f32]) {
        let d = self.d;
        let width = d.head_dim;
        let (pairs, rest) = scratch.split_at_mut(2 * TOKENS * width);
        let (values, rest) = rest.split_at_mut(TOKENS * width);
        let (overlaps, rest) = rest.split_at_mut(TOKENS);
        let (decays, rest) = rest.split_at_mut(TOKENS);
        let (pairs, overlaps, decays, betas) =
            (&mut pairs[..2 * n * width], &mut overlaps[..n], &mut decays[..n], &mut rest[..n]);
        let key_head = d.key_head.of(head, [d.k_heads, d.v_heads]);
        let of_query = 1.0 / (width as f32).sqrt();
        for (t, pair) in pairs.chunks_exact_mut(2 * width).enumerate() {
            let row = &self.qkv[(token + t) * d.qkv.stride..];
            let (key, query) = pair.split_at_mut(width);
            query.copy_from_slice(&row[key_head * width..][..width]);
            key.copy_from_slice(&row[(d.k_heads + key_head) * width..][..width]);
            ops::l2_norm(query, L2_EPS, of_query);
            ops::l2_norm(key, L2_EPS, 1.0);
            overlaps[t] = ops::dot(key, query);
            let at = (2 * d.k_heads + head) * width + first;
            values[t * count..][..count].copy_from_slice(&row[at..at + count]);
            betas[t] = self.beta[(token + t) * d.beta.stride + head];
            decays[t] = self.alpha[(token + t) * d.alpha.stride + head];
        }
        ops::sigmoid(betas);
        ops::delta_decay(decays, self.bias[head], self.rate[head]);
        let tokens = ops::DeltaTokens { pairs, overlaps, decays, betas };
        for row in (0..count).step_by(ROWS) {
            let (at, len) = ((head * width + first + row) * width, ROWS.min(count - row) * width);
            // SAFETY: each unit has its own rows, and a unit belongs to one task.
            let state = unsafe { self.state.part(at, len) };
            if let Some(before) = self.before.filter(|_| token == 0) {
                state.copy_from_slice(&before[at..at + len]);
            }
            ops::delta_rows(&tokens, state, &mut values[row..], count);
        }
        for (t, values) in values.chunks_exact(count).take(n).enumerate() {
            let at = (token + t) * d.out.stride + head * width + first;
            // SAFETY: as above; these are the unit's own elements of the row.
            unsafe { self.out.part(at, count) }.copy_from_slice(values);
        }
    }
}
