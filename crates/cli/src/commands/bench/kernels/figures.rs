//! The kernels of a format on their own, and the ceilings of the machine.

use kernels::ceilings::{self, Arithmetic};
use kernels::{Format, Kernel};
use serde::Serialize;

use super::rig::{Pair, Rig, activations, bits_per_weight, fill, multiply, valid_blocks};

#[derive(Debug, Serialize)]
pub(super) struct Ceilings {
    pub(super) read_gb_per_s: Pair,
    pub(super) int8_gop_per_s: Pair,
    pub(super) int8_narrow_gop_per_s: Pair,
    pub(super) int16_gop_per_s: Pair,
    pub(super) f32_gflop_per_s: Pair,
}

#[derive(Debug, Serialize)]
pub(super) struct FormatFigures {
    pub(super) format: &'static str,
    /// What its kernel really uses.
    pub(super) isa: &'static str,
    pub(super) bits_per_weight: f64,
    pub(super) decode_gb_per_s: Pair,
    pub(super) decode_gweights_per_s: Pair,
    pub(super) prefill: Vec<Prefill>,
}

#[derive(Debug, Serialize)]
pub(super) struct Prefill {
    pub(super) columns: usize,
    pub(super) gflop_per_s: Pair,
}

impl Rig {
    pub(super) fn ceilings(&self) -> Ceilings {
        let (isa, data) = (self.isa, self.weights.as_slice());
        let read = self.pair(&mut |pool| {
            ceilings::read_together(pool, isa, data);
            data.len() as f64 / 1e9
        });
        let arithmetic = |kind| {
            self.pair(&mut |pool| {
                // About a tenth of a second per thread, in tasks small enough to even out.
                const TASKS_PER_THREAD: usize = 16;
                let rounds = 1_000_000 / self.slowness();
                let tasks = pool.threads() * TASKS_PER_THREAD;
                pool.run(tasks, &|_| {
                    std::hint::black_box(ceilings::multiply_add(kind, isa, rounds));
                });
                let (per_task, _) = ceilings::multiply_add(kind, isa, 1);
                (2 * per_task * rounds * tasks as u64) as f64 / 1e9
            })
        };
        Ceilings {
            read_gb_per_s: read,
            int8_gop_per_s: arithmetic(Arithmetic::Int8),
            int8_narrow_gop_per_s: arithmetic(Arithmetic::Int8Narrow),
            int16_gop_per_s: arithmetic(Arithmetic::Int16),
            f32_gflop_per_s: arithmetic(Arithmetic::F32),
        }
    }

    pub(super) fn format(&mut self, format: &'static Format, columns: &[usize]) -> FormatFigures {
        let kernel = format.kernel(self.isa);
        fill(&mut self.weights, &valid_blocks(format));
        let (gb, gweights) = self.decode(kernel);
        FormatFigures {
            format: format.name,
            isa: kernel.isa().name(),
            bits_per_weight: bits_per_weight(format),
            decode_gb_per_s: gb,
            decode_gweights_per_s: gweights,
            prefill: columns
                .iter()
                .map(|&columns| Prefill { columns, gflop_per_s: self.prefill(kernel, columns) })
                .collect(),
        }
    }

    /// The whole working set as one matrix, one activation row: (GB/s, 10^9 weights/s).
    fn decode(&self, kernel: Kernel) -> (Pair, Pair) {
        let n_out = (self.weights.len() / kernel.row_bytes(self.n_in)).max(1);
        let weights = self.matrix(kernel, n_out);
        let x = activations(kernel, self.n_in, 1);
        let mut y = vec![0.0; n_out];
        let gb = self.pair(&mut |pool| {
            multiply(pool, kernel, weights, self.n_in, n_out, &x, 1, &mut y);
            weights.len() as f64 / 1e9
        });
        let gweights = gb.scaled(8.0 / bits_per_weight(kernel.format()));
        (gb, gweights)
    }

    /// `n_out` rows against `columns` activation rows, in 10^9 operations per second.
    fn prefill(&self, kernel: Kernel, columns: usize) -> Pair {
        let n_out = self.n_out.min(self.weights.len() / kernel.row_bytes(self.n_in)).max(1);
        let weights = self.matrix(kernel, n_out);
        let x = activations(kernel, self.n_in, columns);
        let mut y = vec![0.0; n_out * columns];
        self.pair(&mut |pool| {
            multiply(pool, kernel, weights, self.n_in, n_out, &x, columns, &mut y);
            2.0 * (self.n_in * n_out * columns) as f64 / 1e9
        })
    }
}
