//! The experts of one wave: gate, up and activation in one dispatch, down in another, each pair into its own row.

use experts::{Bank, Resident};
use files::Family;
use kernels::{Kernel, ops};

use super::CpuBackend;
use super::matmul::FORMS;
use crate::backend::{Routed, View};

/// Weight rows per task.
const ROWS_PER_TASK: usize = 32;

impl CpuBackend {
    /// Every pair is computed from its own token and expert alone, so waves and their order do not matter.
    pub(super) fn routed(&mut self, bank: &Bank, call: &Routed<'_>) {
        let kernel = |id: u32| kernels::format(id).expect("checked at load").kernel(self.isa);
        let [gate, up, down] = call.formats.map(kernel);
        self.quantize_inputs(call, gate, up);
        self.gate_and_up(bank, call, gate, up);
        self.quantize_hidden(bank.wave(), call, down);
        self.down(bank, call, down);
    }

    /// Token rows in the forms that gate and up read; at most two, one after the other.
    fn quantize_inputs(&mut self, call: &Routed<'_>, gate: Kernel, up: Kernel) {
        let mut at = 0;
        for form in FORMS {
            if gate.format().activation != form && up.format().activation != form {
                continue;
            }
            let row_bytes = form.row_bytes(call.n_embd);
            for t in 0..call.n_tokens {
                let target = &mut self.scratch.activations.as_mut_slice()[at..at + row_bytes];
                form.quantize(self.buffers.row(call.x, t, call.n_embd), target);
                at += row_bytes;
            }
        }
    }

    fn gate_and_up(&mut self, bank: &Bank, call: &Routed<'_>, gate: Kernel, up: Kernel) {
        let wave = bank.wave();
        let chunks = call.n_ff.div_ceil(ROWS_PER_TASK);
        let hidden = self.buffers.shared(call.hidden);
        let x = self.scratch.activations.as_slice();
        let (gate_x, up_x) = (&x[input_start(call, gate, up, gate)..], &x[input_start(call, gate, up, up)..]);
        self.pool.run(wave.len() * chunks, &|task| {
            let resident = &wave[task / chunks];
            let (gate_w, up_w) = gate_up_weights(bank, resident, call, gate);
            let first = task % chunks * ROWS_PER_TASK;
            for row in first..(first + ROWS_PER_TASK).min(call.n_ff) {
                let (g, u) =
                    (weight_row(gate, gate_w, row, call.n_embd), weight_row(up, up_w, row, call.n_embd));
                for &pair in call.pairs_of(resident.expert) {
                    let t = pair as usize / call.k;
                    let g = gate.dot(g, activation_row(gate, gate_x, t, call.n_embd), call.n_embd);
                    let u = up.dot(u, activation_row(up, up_x, t, call.n_embd), call.n_embd);
                    // SAFETY: (pair, row) belongs to one task: a pair to one expert, a row to one chunk.
                    unsafe { hidden.write(at(call.hidden, pair, row), g / (1.0 + ops::exp(-g)) * u) };
                }
            }
        });
    }

    /// The wave's hidden rows in down's form, at the place of their pair.
    fn quantize_hidden(&mut self, wave: &[Resident], call: &Routed<'_>, down: Kernel) {
        let form = down.format().activation;
        let row_bytes = form.row_bytes(call.n_ff);
        for resident in wave {
            for &pair in call.pairs_of(resident.expert) {
                let target =
                    &mut self.scratch.activations.as_mut_slice()[pair as usize * row_bytes..][..row_bytes];
                form.quantize(self.buffers.row(call.hidden, pair as usize, call.n_ff), target);
            }
        }
    }

    fn down(&mut self, bank: &Bank, call: &Routed<'_>, down: Kernel) {
        let wave = bank.wave();
        let chunks = call.n_embd.div_ceil(ROWS_PER_TASK);
        let out = self.buffers.shared(call.out);
        let x = self.scratch.activations.as_slice();
        self.pool.run(wave.len() * chunks, &|task| {
            let resident = &wave[task / chunks];
            let weights = bank.weights(resident.slot, Family::Down);
            let first = task % chunks * ROWS_PER_TASK;
            for row in first..(first + ROWS_PER_TASK).min(call.n_embd) {
                let w = weight_row(down, weights, row, call.n_ff);
                for &pair in call.pairs_of(resident.expert) {
                    let y = down.dot(w, activation_row(down, x, pair as usize, call.n_ff), call.n_ff);
                    // SAFETY: (pair, row) belongs to one task: a pair to one expert, a row to one chunk.
                    unsafe { out.write(at(call.out, pair, row), y) };
                }
            }
        });
    }
}

/// Where [`CpuBackend::quantize_inputs`] put the token rows in `kernel`'s form.
fn input_start(call: &Routed<'_>, gate: Kernel, up: Kernel, kernel: Kernel) -> usize {
    let used = |form: &kernels::Activation| [gate, up].iter().any(|k| k.format().activation == *form);
    let before = FORMS.into_iter().take_while(|form| *form != kernel.format().activation);
    before.filter(used).map(|form| form.row_bytes(call.n_embd) * call.n_tokens).sum()
}

impl Routed<'_> {
    fn pairs_of(&self, expert: u32) -> &[u32] {
        let e = expert as usize;
        &self.pairs[self.starts[e] as usize..self.starts[e + 1] as usize]
    }
}

/// Element `row` of a pair's place in `view`.
fn at(view: View, pair: u32, row: usize) -> usize {
    view.offset + pair as usize * view.stride + row
}

fn weight_row(kernel: Kernel, weights: &[u8], row: usize, n_in: usize) -> &[u8] {
    let bytes = kernel.row_bytes(n_in);
    &weights[row * bytes..][..bytes]
}

fn activation_row(kernel: Kernel, rows: &[u8], row: usize, n_in: usize) -> &[u8] {
    let bytes = kernel.format().activation.row_bytes(n_in);
    &rows[row * bytes..][..bytes]
}

/// Gate and up of one expert; where they are one tensor, gate is its first half.
fn gate_up_weights<'a>(
    bank: &'a Bank,
    resident: &Resident,
    call: &Routed<'_>,
    gate: Kernel,
) -> (&'a [u8], &'a [u8]) {
    if call.fused {
        return bank.weights(resident.slot, Family::GateUp).split_at(call.n_ff * gate.row_bytes(call.n_embd));
    }
    (bank.weights(resident.slot, Family::Gate), bank.weights(resident.slot, Family::Up))
}
