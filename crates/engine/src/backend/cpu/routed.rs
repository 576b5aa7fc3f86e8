//! The experts of one wave: gate, up and activation in one dispatch, down in another, each pair into its own row; and the
//! sum of a token's pairs.
//!
//! An expert that was packed in its slot, or is packed in its file already, is computed by the kernels of that form, which give the same bits and read the same
//! activations. A task is a group of weight rows of one expert with all of the expert's pairs as columns, the experts with most pairs
//! first. Whoever finishes the last group of an expert's gate and up brings its hidden rows into down's form.

use std::sync::atomic::{AtomicU32, Ordering};

use experts::{Bank, Resident};
use files::Family;
use kernels::{Activation, AlignedBuf, Kernel, Pool, SharedMut, TILE_COLUMNS, TILE_ROWS, ops};

use super::CpuBackend;
use super::matmul::{FormStarts, quantize};
use super::memory::{Buffers, floats, floats_mut};
use crate::backend::{Routed, RoutedSpec, View};
use crate::packed;
use crate::plan::packed_form;

/// Pairs whose hidden rows are in memory at once; a wave with more is computed in several turns.
const HIDDEN_ROWS: usize = 1024;
/// Rows of gate and up per task at most.
const TASK_ROWS: usize = 32;
/// Sums from which on combining is worth a dispatch.
const COMBINE_TOGETHER: usize = 1 << 16;
/// Elements of a token that one task of a combination sums.
const COMBINE_WIDTH: usize = 2048;

/// Some pairs of one expert, as many as a turn has room for.
#[derive(Clone, Copy)]
struct Piece {
    resident: Resident,
    /// First and end of its pairs in [`Routed::pairs`].
    pairs: (u32, u32),
    /// Hidden row of the first of them.
    row: u32,
    /// Which of [`Turn::kernels`] its weights need: 1 for packed ones.
    form: u32,
}

impl Piece {
    fn len(&self) -> usize {
        (self.pairs.1 - self.pairs.0) as usize
    }
}

/// What the experts of a turn leave for each other.
pub(super) struct RoutedScratch {
    /// `[rows, n_ff]`.
    hidden: AlignedBuf,
    /// The same in down's form.
    quantized: AlignedBuf,
    rows: usize,
    pieces: Vec<Piece>,
    /// Tasks of each piece's gate and up that are not finished.
    unfinished: Vec<AtomicU32>,
}

/// Hidden rows, and bytes of each in the widest quantised form.
fn lens(spec: &RoutedSpec) -> (usize, usize) {
    (spec.pairs.min(HIDDEN_ROWS), Activation::Q8_0.row_bytes(spec.n_ff.next_multiple_of(256)))
}

/// Bytes of [`RoutedScratch::new`].
pub(crate) fn routed_bytes(spec: &RoutedSpec) -> u64 {
    let (rows, quantized) = lens(spec);
    (rows * (4 * spec.n_ff + quantized + size_of::<Piece>() + size_of::<AtomicU32>())) as u64
}

impl RoutedScratch {
    pub(super) fn new(spec: &RoutedSpec) -> Self {
        let (rows, quantized) = lens(spec);
        Self {
            hidden: AlignedBuf::zeroed(rows * 4 * spec.n_ff),
            quantized: AlignedBuf::zeroed(rows * quantized),
            rows,
            pieces: Vec::with_capacity(rows),
            unfinished: (0..rows).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        let lists = self.rows * (size_of::<Piece>() + size_of::<AtomicU32>());
        (self.hidden.len() + self.quantized.len() + lists) as u64
    }
}

/// Everything the tasks of a turn read.
struct Turn<'a> {
    bank: &'a Bank,
    call: &'a Routed<'a>,
    /// Of gate, up and down: as they are in the file, and packed in the slot.
    kernels: [[Kernel; 3]; 2],
    pieces: &'a [Piece],
    /// Token rows in gate's form and in up's.
    tokens: [&'a [u8]; 2],
    /// See [`Routed::biases`]: the values from expert 0's on, and from one expert to the next.
    biases: [Option<(&'a [f32], usize)>; 3],
}

impl CpuBackend {
    /// Token rows in the forms that gate and up read. They stay in the common scratch until the call's last wave; no other
    /// operation runs between.
    pub(super) fn routed_tokens(&mut self, call: &Routed<'_>) {
        for (form, at) in token_starts(call).forms() {
            let target = &mut self.scratch.activations.as_mut_slice()[at..];
            let target = &mut target[..call.n_tokens * form.row_bytes(call.n_embd)];
            quantize(&self.pool, form, call.n_embd, &|t| self.buffers.row(call.x, t, call.n_embd), target);
        }
    }

    /// Every pair is computed from its own token and expert alone, so neither waves nor turns nor their order matter.
    pub(super) fn routed(&mut self, bank: &Bank, wave: &[Resident], call: &Routed<'_>) {
        let kernels = [false, true].map(|packed| {
            call.formats.map(|id| match packed_form(id).filter(|_| packed) {
                Some(packed) => packed.format.kernel(self.isa),
                None => packed::format(id).expect("checked at load").kernel(self.isa),
            })
        });
        let Self { pool, buffers, scratch, routed, weights, .. } = self;
        let biases = call
            .biases
            .map(|bias| bias.map(|b| (&floats(&weights[b.values.0 as usize].bytes)[b.offset..], b.stride)));
        let (starts, tokens) = (token_starts(call), scratch.activations.as_slice());
        let tokens = [0, 1].map(|i: usize| &tokens[starts.at(kernels[0][i].format().activation)..]);
        let RoutedScratch { hidden, quantized, rows, pieces, unfinished } = routed;
        let (mut member, mut done) = (0, 0);
        while member < wave.len() {
            pieces.clear();
            let mut row = 0;
            while member < wave.len() && row < *rows {
                let resident = wave[member];
                let (first, end) = call.pairs_of(resident.expert);
                let first = first + done;
                let n = (end - first).min((*rows - row) as u32);
                let form = u32::from(bank.is_packed(resident.slot));
                pieces.push(Piece { resident, pairs: (first, first + n), row: row as u32, form });
                row += n as usize;
                (member, done) = if first + n == end { (member + 1, 0) } else { (member, done + n) };
            }
            // The longest first, so that no long one is left when the others are done.
            pieces.sort_unstable_by_key(|piece| (std::cmp::Reverse(piece.len()), piece.row));
            let turn = Turn { bank, call, kernels, pieces, tokens, biases };
            turn.gate_and_up(pool, hidden, quantized, unfinished);
            turn.down(pool, hidden, quantized, buffers);
        }
    }

    /// See [`crate::backend::Backend::combine`]. Each element has its own sum, in router order.
    pub(super) fn sum_pairs(
        &mut self,
        x: View,
        weights: &[f32],
        k: usize,
        width: usize,
        rows: usize,
        y: View,
    ) {
        let (from, to) = self.buffers.two(x, y);
        let to = SharedMut::new(to);
        let parts = width.div_ceil(COMBINE_WIDTH);
        let task = |task: usize| {
            let (t, first) = (task / parts, task % parts * COMBINE_WIDTH);
            let n = COMBINE_WIDTH.min(width - first);
            // SAFETY: a part of a token's row belongs to one task.
            let sum = unsafe { to.part(y.offset + t * y.stride + first, n) };
            for j in 0..k {
                let pair = t * k + j;
                ops::axpy(weights[pair], &from[x.offset + pair * x.stride + first..][..n], sum);
            }
        };
        if rows * k * width < COMBINE_TOGETHER {
            (0..rows * parts).for_each(task);
        } else {
            self.pool.run(rows * parts, &task);
        }
    }
}

impl Turn<'_> {
    fn kernels_of(&self, piece: &Piece) -> [Kernel; 3] {
        self.kernels[piece.form as usize]
    }

    /// The number of row groups per piece, and rows of a group, of matrices of `n_out` rows.
    fn groups(&self, pool: &Pool, n_out: usize, n_in: usize, kernel: Kernel) -> (usize, usize) {
        let pairs: usize = self.pieces.iter().map(Piece::len).sum();
        let rows = if self.pieces.first().is_some_and(|piece| kernel.prefers_tiles(piece.len())) {
            TILE_ROWS
        } else {
            let columns = pairs.div_ceil(self.pieces.len().max(1));
            kernels::rows_per_task(pool.threads(), self.pieces.len() * n_out, n_in * columns)
        };
        let rows = rows.min(TASK_ROWS);
        (n_out.div_ceil(rows), rows)
    }

    /// `hidden = act(gate x) * up x` for every pair of the turn, and the same in down's form.
    fn gate_and_up(
        &self,
        pool: &Pool,
        hidden: &mut AlignedBuf,
        quantized: &mut AlignedBuf,
        unfinished: &[AtomicU32],
    ) {
        let (n_ff, [gate, ..]) = (self.call.n_ff, self.kernels[0]);
        let (groups, rows) = self.groups(pool, n_ff, 2 * self.call.n_embd, gate);
        unfinished[..self.pieces.len()].iter().for_each(|n| n.store(groups as u32, Ordering::Relaxed));
        let hidden = SharedMut::new(floats_mut(hidden));
        let quantized = SharedMut::new(quantized.as_mut_slice());
        pool.run(self.pieces.len() * groups, &|task| {
            let (index, first) = (task / groups, task % groups * rows);
            let piece = &self.pieces[index];
            let count = rows.min(n_ff - first);
            if piece.len() == 1 {
                self.gate_up_one(piece, first, count, &hidden);
            } else {
                self.gate_up_many(piece, first, count, &hidden);
            }
            // Acquire and release: the last one sees what all others wrote.
            if unfinished[index].fetch_sub(1, Ordering::AcqRel) == 1 {
                self.finish_hidden(piece, &hidden, &quantized);
            }
        });
    }

    /// Rows `first..first + count` of gate and up for the only pair of a piece.
    fn gate_up_one(&self, piece: &Piece, first: usize, count: usize, hidden: &SharedMut<'_, f32>) {
        let (call, [gate, up, _]) = (self.call, self.kernels_of(piece));
        let (gate_rows, up_rows) = self.gate_up_weights(piece, first, count);
        let token = call.pairs[piece.pairs.0 as usize] as usize / call.k;
        let (mut g, mut u) = ([0.0; TASK_ROWS], [0.0; TASK_ROWS]);
        gate.rows(gate_rows, self.token(0, token), call.n_embd, &mut g[..count]);
        up.rows(up_rows, self.token(1, token), call.n_embd, &mut u[..count]);
        self.add_bias(0, piece, first, &mut g[..count]);
        self.add_bias(1, piece, first, &mut u[..count]);
        // SAFETY: (hidden row, row group) belongs to one task.
        let out = unsafe { hidden.part(piece.row as usize * call.n_ff + first, count) };
        call.activation.apply(&g[..count], &u[..count], out);
    }

    /// The same for several pairs.
    fn gate_up_many(&self, piece: &Piece, first: usize, count: usize, hidden: &SharedMut<'_, f32>) {
        let (call, [gate, up, _]) = (self.call, self.kernels_of(piece));
        let (gate_rows, up_rows) = self.gate_up_weights(piece, first, count);
        let pairs = &call.pairs[piece.pairs.0 as usize..piece.pairs.1 as usize];
        let mut columns: [&[u8]; TILE_COLUMNS] = [&[]; TILE_COLUMNS];
        let mut g = [[0.0; TILE_ROWS]; TILE_COLUMNS];
        let mut u = [[0.0; TILE_ROWS]; TILE_COLUMNS];
        for (block, pairs) in pairs.chunks(TILE_COLUMNS).enumerate() {
            for (i, kernel, weights, y) in [(0, gate, gate_rows, &mut g), (1, up, up_rows, &mut u)] {
                for (column, &pair) in columns.iter_mut().zip(pairs) {
                    *column = self.token(i, pair as usize / call.k);
                }
                kernel.tile(weights, count, &columns[..pairs.len()], call.n_embd, &mut y[..pairs.len()]);
            }
            for (c, (g, u)) in g.iter_mut().zip(&mut u).take(pairs.len()).enumerate() {
                self.add_bias(0, piece, first, &mut g[..count]);
                self.add_bias(1, piece, first, &mut u[..count]);
                let row = piece.row as usize + block * TILE_COLUMNS + c;
                // SAFETY: as for one pair.
                let out = unsafe { hidden.part(row * call.n_ff + first, count) };
                call.activation.apply(&g[..count], &u[..count], out);
            }
        }
    }

    /// The hidden rows of a finished piece in down's form.
    fn finish_hidden(&self, piece: &Piece, hidden: &SharedMut<'_, f32>, quantized: &SharedMut<'_, u8>) {
        let (n_ff, form) = (self.call.n_ff, self.kernels[0][2].format().activation);
        if form == Activation::F32 {
            return; // read as they are
        }
        let (row_bytes, first, n) = (form.row_bytes(n_ff), piece.row as usize, piece.len());
        // SAFETY: every task of this piece has finished, and nobody else has its rows.
        let (x, out) = unsafe {
            (hidden.read(first * n_ff, n * n_ff), quantized.part(first * row_bytes, n * row_bytes))
        };
        form.quantize_rows(x, n_ff, out);
    }

    /// Each pair's own output row.
    fn down(&self, pool: &Pool, hidden: &AlignedBuf, quantized: &AlignedBuf, buffers: &mut Buffers) {
        let (call, [.., down]) = (self.call, self.kernels[0]);
        let x = if down.format().activation == Activation::F32 { hidden } else { quantized }.as_slice();
        let x_bytes = down.x_bytes(call.n_ff);
        let (groups, rows) = self.groups(pool, call.n_embd, call.n_ff, down);
        let out = buffers.shared(call.out);
        pool.run(self.pieces.len() * groups, &|task| {
            let (piece, first) = (&self.pieces[task / groups], task % groups * rows);
            let count = rows.min(call.n_embd - first);
            let [.., down] = self.kernels_of(piece);
            let weights = self.bank.weights(piece.resident.slot, Family::Down);
            let weights = weight_rows(down, weights, first, count, call.n_ff);
            let pairs = &call.pairs[piece.pairs.0 as usize..piece.pairs.1 as usize];
            let x = &x[piece.row as usize * x_bytes..][..pairs.len() * x_bytes];
            if let [pair] = pairs {
                // SAFETY: (pair, row group) belongs to one task.
                let y = unsafe { out.part(call.out_at(*pair) + first, count) };
                down.rows(weights, x, call.n_ff, y);
                return self.add_bias(2, piece, first, y);
            }
            let mut columns: [&[u8]; TILE_COLUMNS] = [&[]; TILE_COLUMNS];
            let mut tile = [[0.0; TILE_ROWS]; TILE_COLUMNS];
            for (pairs, x) in pairs.chunks(TILE_COLUMNS).zip(x.chunks(TILE_COLUMNS * x_bytes)) {
                columns.iter_mut().zip(x.chunks_exact(x_bytes)).for_each(|(column, x)| *column = x);
                down.tile(weights, count, &columns[..pairs.len()], call.n_ff, &mut tile[..pairs.len()]);
                for (&pair, values) in pairs.iter().zip(&tile) {
                    // SAFETY: as above.
                    let y = unsafe { out.part(call.out_at(pair) + first, count) };
                    y.copy_from_slice(&values[..count]);
                    self.add_bias(2, piece, first, y);
                }
            }
        });
    }

    /// Adds what gate (0), up (1) or down (2) have for rows `first..` of a piece's expert.
    fn add_bias(&self, i: usize, piece: &Piece, first: usize, rows: &mut [f32]) {
        let Some((values, stride)) = self.biases[i] else { return };
        let bias = &values[piece.resident.expert as usize * stride + first..];
        rows.iter_mut().zip(bias).for_each(|(row, bias)| *row += bias);
    }

    /// A token's row in the form of gate (0) or up (1).
    fn token(&self, i: usize, token: usize) -> &[u8] {
        let bytes = self.kernels[0][i].x_bytes(self.call.n_embd);
        &self.tokens[i][token * bytes..][..bytes]
    }

    /// Rows of gate and of up; where the two are one tensor, gate is its first half.
    fn gate_up_weights(&self, piece: &Piece, first: usize, count: usize) -> (&[u8], &[u8]) {
        let (call, slot, [gate, up, _]) = (self.call, piece.resident.slot, self.kernels_of(piece));
        let (gate_w, up_w) = if call.fused {
            self.bank.weights(slot, Family::GateUp).split_at(call.n_ff * gate.row_bytes(call.n_embd))
        } else {
            (self.bank.weights(slot, Family::Gate), self.bank.weights(slot, Family::Up))
        };
        let rows = |kernel, weights| weight_rows(kernel, weights, first, count, call.n_embd);
        (rows(gate, gate_w), rows(up, up_w))
    }
}

impl Routed<'_> {
    /// First and end of an expert's pairs in `pairs`.
    fn pairs_of(&self, expert: u32) -> (u32, u32) {
        let e = expert as usize;
        (self.starts[e], self.starts[e + 1])
    }

    /// First element of a pair's output row.
    fn out_at(&self, pair: u32) -> usize {
        self.out.offset + pair as usize * self.out.stride
    }
}

fn weight_rows(kernel: Kernel, weights: &[u8], first: usize, count: usize, n_in: usize) -> &[u8] {
    let bytes = kernel.row_bytes(n_in);
    &weights[first * bytes..][..count * bytes]
}

fn token_starts(call: &Routed<'_>) -> FormStarts {
    let form = |id: &u32| packed::format(*id).expect("checked at load").activation;
    FormStarts::new(call.formats[..2].iter().map(form), call.n_tokens, call.n_embd)
}
