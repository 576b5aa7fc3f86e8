//! The measuring rig: pools, memory, alternation, random weights in valid blocks.

use kernels::{AlignedBuf, Format, Isa, Kernel, Pool};
use serde::Serialize;

use crate::commands::bench::measure::{Cpu, Spread, Took, per_second, timed};

/// One thread, and all of them.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Pair {
    pub(super) one: Figure,
    pub(super) all: Figure,
}

/// A throughput; its unit is in the name of the field that holds it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figure {
    /// Per second of the thread's processor time when one works, else per second on the clock.
    #[serde(flatten)]
    pub(super) spread: Spread,
    rounds: Vec<Took>,
}

/// What all measures share: pools, memory, sizes.
pub(super) struct Rig {
    pub(super) one: Pool,
    pub(super) all: Pool,
    pub(super) isa: Isa,
    pub(super) rounds: u32,
    pub(super) weights: AlignedBuf,
    pub(super) n_in: usize,
    pub(super) n_out: usize,
}

/// A piece of work that can be done on a pool; returns how much was done, in units of 10^9.
type Work<'a> = &'a mut dyn FnMut(&Pool) -> f64;

impl Rig {
    /// One thread and all threads in alternation, the order turned round each time.
    pub(super) fn pair(&self, work: Work) -> Pair {
        let mut took: [Vec<(f64, Took)>; 2] = [Vec::new(), Vec::new()];
        for round in 0..=self.rounds {
            for side in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                let (pool, cpu) =
                    if side == 0 { (&self.one, Cpu::Thread) } else { (&self.all, Cpu::Process) };
                let done = timed(cpu, || work(pool));
                if round > 0 {
                    took[side].push(done);
                }
            }
        }
        let [one, all] = took;
        let own = |took: Took| took.cpu_ns.unwrap_or(took.wall_ns);
        Pair { one: Figure::of(one, own), all: Figure::of(all, |took| took.wall_ns) }
    }

    /// The same work in several ways, in alternation on this thread, the order turned round each time.
    pub(super) fn sides<const N: usize>(&self, ways: [&mut dyn FnMut() -> f64; N]) -> [Figure; N] {
        let mut took = [const { Vec::new() }; N];
        for round in 0..=self.rounds {
            for turn in 0..N {
                let side = if round % 2 == 0 { turn } else { N - 1 - turn };
                let done = timed(Cpu::Thread, &mut *ways[side]);
                if round > 0 {
                    took[side].push(done);
                }
            }
        }
        took.map(|took| Figure::of(took, |took| took.cpu_ns.unwrap_or(took.wall_ns)))
    }

    /// An unoptimised build would take minutes for figures that nobody should quote.
    pub(super) fn slowness(&self) -> u64 {
        if cfg!(debug_assertions) { 100 } else { 1 }
    }

    pub(super) fn matrix(&self, kernel: Kernel, n_out: usize) -> &[u8] {
        &self.weights.as_slice()[..kernel.row_bytes(self.n_in) * n_out]
    }
}

/// The only call of the kernels here: `y[c, o] = weights[o] · x[c]`.
#[expect(clippy::too_many_arguments, reason = "three slices with their shapes")]
pub(super) fn multiply(
    pool: &Pool,
    kernel: Kernel,
    weights: &[u8],
    n_in: usize,
    n_out: usize,
    x: &[u8],
    columns: usize,
    y: &mut [f32],
) {
    let product =
        kernels::Product { kernel, weights, n_in, n_out, n_batch: 1, x, y: kernels::SharedMut::new(y) };
    kernels::matmul(pool, &[product], columns);
    std::hint::black_box(y);
}

impl Figure {
    /// `rounds` are (amount, time); `ns` picks the time that counts.
    fn of(rounds: Vec<(f64, Took)>, ns: impl Fn(Took) -> u64) -> Figure {
        let rates = rounds.iter().map(|&(amount, took)| per_second(amount, ns(took)));
        let spread = Spread::of(rates).expect("one round at least");
        Figure { spread, rounds: rounds.into_iter().map(|(_, took)| took).collect() }
    }

    fn scaled(&self, by: f64) -> Figure {
        let Spread { median, min, max } = self.spread;
        Figure {
            spread: Spread { median: median * by, min: min * by, max: max * by },
            rounds: self.rounds.clone(),
        }
    }
}

impl Pair {
    pub(super) fn scaled(&self, by: f64) -> Pair {
        Pair { one: self.one.scaled(by), all: self.all.scaled(by) }
    }
}

pub(super) fn bits_per_weight(format: &Format) -> f64 {
    8.0 * format.block_bytes as f64 / format.block_elements as f64
}

/// Repeats `tile` over all of `buffer`: also the first touch of its pages.
pub(super) fn fill(buffer: &mut AlignedBuf, tile: &[u8]) {
    for piece in buffer.as_mut_slice().chunks_mut(tile.len()) {
        piece.copy_from_slice(&tile[..piece.len()]);
    }
}

/// Random bytes, the same in every run.
struct Bytes(u64);

impl Bytes {
    fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            // The low bits of this generator are its weak ones, and every bit of a block means something.
            let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// A tile of blocks that hold random numbers of a sane size: random bytes, drawn again where a scale came out as NaN,
/// infinite, tiny or huge. So no slow path of the processor is measured, and it works for any format.
pub(super) fn valid_blocks(format: &Format) -> Vec<u8> {
    const TILE_BYTES: usize = 1 << 20;
    let mut tile = vec![0; TILE_BYTES / format.block_bytes * format.block_bytes];
    let mut values = vec![0.0f32; format.block_elements];
    let mut bytes = Bytes(0x9e37_79b9_7f4a_7c15);
    for block in tile.chunks_exact_mut(format.block_bytes) {
        loop {
            bytes.fill(block);
            (format.dequantize)(block, &mut values);
            let largest =
                values.iter().fold(0.0f32, |a, x| if x.is_nan() { f32::NAN } else { a.max(x.abs()) });
            if (1e-6..1e6).contains(&largest) && values.iter().all(|x| x.is_finite()) {
                break;
            }
        }
    }
    tile
}

/// Activations of a sane size.
pub(super) fn noise(n: usize) -> Vec<f32> {
    let mut noise = vec![0u8; n];
    Bytes(0x1234_5678_9abc_def1).fill(&mut noise);
    noise.iter().map(|&byte| (f32::from(byte) - 127.5) / 64.0).collect()
}

/// `rows` activation rows in the kernel's form.
pub(super) fn activations(kernel: Kernel, n: usize, rows: usize) -> Vec<u8> {
    let mut out = vec![0; kernel.x_bytes(n) * rows];
    // Bell-shaped as those of a model, whose largest are rare: how kernels add up depends on that.
    let uniform = noise(4 * n * rows);
    let x: Vec<f32> = uniform.as_chunks::<4>().0.iter().map(|four| four.iter().sum()).collect();
    kernel.format().activation.quantize_rows(&x, n, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use kernels::FORMATS;

    use super::*;

    #[test]
    fn every_format_gets_blocks_of_finite_numbers_that_differ() {
        for format in FORMATS {
            let tile = valid_blocks(format);
            let blocks = tile.len() / format.block_bytes;
            let mut values = vec![0.0; blocks * format.block_elements];
            (format.dequantize)(&tile, &mut values);
            assert!(values.iter().all(|x| x.is_finite() && x.abs() < 1e6), "{}", format.name);
            let different: std::collections::BTreeSet<u32> =
                values.iter().take(1 << 16).map(|x| x.to_bits()).collect();
            assert!(different.len() > 64, "{}: {}", format.name, different.len());
        }
    }
}
