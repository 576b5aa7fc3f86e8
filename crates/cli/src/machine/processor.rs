//! The processor and its memory: what they do at most, and how fast the kernels of some formats are.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kernels::ceilings::{self, Arithmetic};
use kernels::{AlignedBuf, Format, Isa, Kernel, Pool};
use serde::Serialize;

use crate::commands::bench::kernels::rig::{activations, fill, valid_blocks};
use crate::ui::error::Failure;

/// One thread, and all of them.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Pair {
    pub(crate) one: f64,
    pub(crate) all: f64,
}

/// The processor.
#[derive(Debug, Serialize)]
pub(crate) struct Processor {
    /// The best instruction set that it has.
    pub(crate) isa: &'static str,
    /// The one that the kernels use.
    pub(crate) isa_used: &'static str,
    /// Whether the environment asked for that.
    pub(crate) isa_forced: bool,
    /// Threads that this process may run at a time.
    pub(crate) threads: usize,
    pub(crate) memory_gb_per_s: Pair,
    pub(crate) int8_gop_per_s: Pair,
    pub(crate) f32_gflop_per_s: Pair,
}

/// The instruction set to use.
pub(crate) fn isa() -> Result<Isa, Failure> {
    Isa::detect().map_err(|e| Failure::usage(e.to_string(), e.hint().unwrap_or_default()))
}

pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// How long each measure takes, about.
const SLICE: Duration = Duration::from_millis(120);

/// Memory that no cache holds.
const WORKING_SET_BYTES: usize = 256 << 20;
const QUICK_WORKING_SET_BYTES: usize = 96 << 20;

pub(crate) fn measure(quick: bool) -> Result<Processor, Failure> {
    let isa_used = isa()?;
    let (one, all) = (Pool::new(1), Pool::new(threads()));
    let mut data = AlignedBuf::zeroed(if quick { QUICK_WORKING_SET_BYTES } else { WORKING_SET_BYTES });
    fill(&mut data, &[0x55]);
    let arithmetic = |kind: Arithmetic| {
        const ROUNDS: u64 = 20_000;
        let (macs, _) = ceilings::multiply_add(kind, isa_used, 1);
        let work = |pool: &Pool| {
            pool.run(pool.threads() * 8, &|_| {
                std::hint::black_box(ceilings::multiply_add(kind, isa_used, ROUNDS));
            });
            (2 * macs * ROUNDS * pool.threads() as u64 * 8) as f64
        };
        Pair { one: best(SLICE, || work(&one)), all: best(SLICE, || work(&all)) }
    };
    Ok(Processor {
        isa: Isa::best().name(),
        isa_used: isa_used.name(),
        isa_forced: std::env::var_os("SLOTBANK_ISA").is_some_and(|value| !value.is_empty()),
        threads: all.threads(),
        memory_gb_per_s: Pair { one: memory(&one, isa_used, &data), all: memory(&all, isa_used, &data) },
        int8_gop_per_s: arithmetic(Arithmetic::Int8),
        f32_gflop_per_s: arithmetic(Arithmetic::F32),
    })
}

/// GB/s of all threads together, in a quarter of a second.
pub(crate) fn memory_quickly(pool: &Pool) -> Result<f64, Failure> {
    let isa = isa()?;
    let mut data = AlignedBuf::zeroed(QUICK_WORKING_SET_BYTES);
    fill(&mut data, &[0x55]);
    Ok(memory(pool, isa, &data))
}

fn memory(pool: &Pool, isa: Isa, data: &AlignedBuf) -> f64 {
    best(SLICE, || {
        ceilings::read_together(pool, isa, data);
        data.len() as f64
    })
}

/// The best rate of a piece of work that is repeated for `budget`, in 10⁹ units per second: what else runs on the machine
/// only ever takes away.
fn best(budget: Duration, mut work: impl FnMut() -> f64) -> f64 {
    let begun = Instant::now();
    let mut best = 0.0f64;
    loop {
        let round = Instant::now();
        let done = work();
        best = best.max(done / round.elapsed().as_nanos().max(1) as f64);
        if begun.elapsed() >= budget {
            return best;
        }
    }
}

/// 10⁹ weights per second that the kernels of each format take with one activation row, all threads together, on weights that
/// lie in the caches: the bound that computing alone sets.
pub(crate) fn kernels(pool: &Pool, formats: &[&'static Format]) -> Result<BTreeMap<u32, f64>, Failure> {
    let isa = isa()?;
    Ok(formats.iter().map(|format| (format.id, kernel(pool, format.kernel(isa)))).collect())
}

fn kernel(pool: &Pool, kernel: Kernel) -> f64 {
    const N_IN: usize = 2048;
    // A task's weights stay in a core's own cache from round to round.
    const TASK_BYTES: usize = 256 << 10;
    const SLICE: Duration = Duration::from_millis(25);
    let (tile, x) = (valid_blocks(kernel.format()), activations(kernel, N_IN, 1));
    let row_bytes = kernel.row_bytes(N_IN);
    let rows = (TASK_BYTES.min(tile.len()) / row_bytes).max(1);
    let weights = &tile[..rows * row_bytes];
    let tasks = pool.threads();
    best(SLICE, || {
        pool.run(tasks, &|_| {
            let mut y = [0.0f32; 64];
            for first in (0..rows).step_by(y.len()) {
                let n = y.len().min(rows - first);
                kernel.rows(&weights[first * row_bytes..][..n * row_bytes], &x, N_IN, &mut y[..n]);
                std::hint::black_box(&y);
            }
        });
        (tasks * rows * N_IN) as f64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_round_counts() {
        let mut rounds = 0;
        let rate = best(Duration::from_millis(5), || {
            rounds += 1;
            std::thread::sleep(Duration::from_millis(if rounds == 1 { 1 } else { 4 }));
            1e6
        });
        assert!(rounds >= 2);
        // 10⁶ units in a millisecond at best, and sleeping overruns.
        assert!(rate > 0.05 && rate <= 1.0, "{rate}");
    }

    #[test]
    fn every_format_has_a_rate() {
        let pool = Pool::new(1);
        let formats = [kernels::format(8).expect("Q8_0"), kernels::format(12).expect("Q4_K")];
        let rates = super::kernels(&pool, &formats).expect("measured");
        assert_eq!(rates.keys().copied().collect::<Vec<_>>(), [8, 12]);
        assert!(rates.values().all(|&rate| rate > 0.0), "{rates:?}");
    }
}
