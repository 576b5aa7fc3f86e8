//! `slotbank bench kernels`: how fast the kernels of each format are, alone, beside what the processor can do at most.
//!
//! Decode is one activation row against a matrix that no cache holds; prefill is many columns against one expert-sized
//! matrix. One thread and all threads alternate in every round. Weights are random, in valid blocks.

use std::process::ExitCode;

use kernels::ceilings::{self, Arithmetic};
use kernels::{AlignedBuf, FORMATS, Format, Isa, Kernel, Pool};
use serde::Serialize;

use super::measure::{Cpu, Spread, Took, per_second, timed};
use crate::ui;
use crate::ui::error::Failure;
use crate::ui::table::{Align, Table};

/// Measure the kernels of each weight format, and the ceilings of this machine
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Formats, separated by commas (IQ1_M,Q4_K) [default: all]; `none` measures the ceilings alone
    #[arg(long, value_name = "F,…", value_delimiter = ',', help_heading = "What to measure")]
    formats: Vec<String>,
    /// Columns of the prefill, separated by commas; 0 leaves it out
    #[arg(
        long,
        value_name = "N,…",
        value_delimiter = ',',
        default_value = "16,512",
        help_heading = "What to measure"
    )]
    columns: Vec<usize>,
    /// Weights read by one decode pass: more than the last-level cache holds
    #[arg(long, value_name = "MIB", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65_536), help_heading = "What to measure")]
    working_set: u32,
    /// Inputs of the matrices, a multiple of 256
    #[arg(long, value_name = "N", default_value_t = 6144, value_parser = parse_width, help_heading = "What to measure")]
    n_in: usize,
    /// Outputs of the prefill matrix
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65_536), help_heading = "What to measure")]
    n_out: u32,
    /// Rounds that count, after one that does not
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), help_heading = "What to measure")]
    rounds: u32,
    /// Threads of the many-threaded measure [default: the cores this process may use]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "What to measure")]
    threads: Option<u32>,
    /// Print every figure as JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

const AFTER_HELP: &str = "\
GB is 10^9 bytes; a multiply-add counts as two operations. Figures of one thread are per second of
that thread's own processor time, which other processes do not disturb; those of all threads are per
second on the clock.";

#[derive(Debug, Serialize)]
struct Outcome {
    engine: &'static str,
    version: &'static str,
    isa: &'static str,
    threads: usize,
    working_set_bytes: usize,
    n_in: usize,
    /// Of the prefill matrix.
    n_out: usize,
    rounds: u32,
    ceilings: Ceilings,
    formats: Vec<FormatFigures>,
}

/// One thread, and all of them.
#[derive(Debug, Clone, Serialize)]
struct Pair {
    one: Figure,
    all: Figure,
}

/// A throughput; its unit is in the name of the field that holds it.
#[derive(Debug, Clone, Serialize)]
struct Figure {
    /// Per second of the thread's processor time when one works, else per second on the clock.
    #[serde(flatten)]
    spread: Spread,
    rounds: Vec<Took>,
}

#[derive(Debug, Serialize)]
struct Ceilings {
    read_gb_per_s: Pair,
    int8_gop_per_s: Pair,
    int8_narrow_gop_per_s: Pair,
    int16_gop_per_s: Pair,
    f32_gflop_per_s: Pair,
}

#[derive(Debug, Serialize)]
struct FormatFigures {
    format: &'static str,
    /// What its kernel really uses.
    isa: &'static str,
    bits_per_weight: f64,
    decode_gb_per_s: Pair,
    decode_gweights_per_s: Pair,
    prefill: Vec<Prefill>,
}

#[derive(Debug, Serialize)]
struct Prefill {
    columns: usize,
    gflop_per_s: Pair,
}

fn parse_width(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n > 0 && n % 256 == 0 && n <= 1 << 20 => Ok(n),
        _ => Err("expected a multiple of 256, at most 1048576".into()),
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let formats = chosen(&args.formats)?;
    let isa = Isa::detect().map_err(|e| Failure::usage(e.to_string(), e.hint().unwrap_or_default()))?;
    let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = args.threads.map_or_else(cores, |n| n as usize);
    let mut rig = Rig {
        one: Pool::new(1),
        all: Pool::new(threads),
        isa,
        rounds: args.rounds,
        weights: AlignedBuf::zeroed((args.working_set as usize) << 20),
        n_in: args.n_in,
        n_out: args.n_out as usize,
    };
    fill(&mut rig.weights, &[0x55]);
    let ceilings = rig.ceilings();
    let columns: Vec<usize> = args.columns.iter().copied().filter(|&n| n > 0).collect();
    let figures = formats.into_iter().map(|format| rig.format(format, &columns)).collect();
    let outcome = Outcome {
        engine: "slotbank",
        version: env!("CARGO_PKG_VERSION"),
        isa: isa.name(),
        threads,
        working_set_bytes: rig.weights.len(),
        n_in: rig.n_in,
        n_out: rig.n_out,
        rounds: args.rounds,
        ceilings,
        formats: figures,
    };
    if args.json {
        ui::print_json(&outcome)?
    } else {
        ui::print(table(&outcome))?
    }
    Ok(ExitCode::SUCCESS)
}

fn chosen(names: &[String]) -> Result<Vec<&'static Format>, Failure> {
    if names.is_empty() {
        return Ok(FORMATS.to_vec());
    }
    let named = names.iter().filter(|name| !name.eq_ignore_ascii_case("none"));
    named
        .map(|name| {
            FORMATS.iter().copied().find(|format| format.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
                let known: Vec<_> = FORMATS.iter().map(|format| format.name).collect();
                Failure::usage(
                    format!("there are no kernels for `{name}`"),
                    format!("one of {}", known.join(", ")),
                )
            })
        })
        .collect()
}

/// What all measures share: pools, memory, sizes.
struct Rig {
    one: Pool,
    all: Pool,
    isa: Isa,
    rounds: u32,
    weights: AlignedBuf,
    n_in: usize,
    n_out: usize,
}

/// A piece of work that can be done on a pool; returns how much was done, in units of 10^9.
type Work<'a> = &'a mut dyn FnMut(&Pool) -> f64;

impl Rig {
    /// One thread and all threads in alternation, the order turned round each time.
    fn pair(&self, work: Work) -> Pair {
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

    fn ceilings(&self) -> Ceilings {
        let (isa, data) = (self.isa, self.weights.as_slice());
        let read = self.pair(&mut |pool| {
            // Pieces as large as what a thread of a matmul walks through, so that the pool evens out slow threads.
            let piece = data.len().div_ceil(pool.threads() * 8).next_multiple_of(4096);
            pool.run(data.len().div_ceil(piece), &|task| {
                let from = task * piece;
                std::hint::black_box(ceilings::read(isa, &data[from..data.len().min(from + piece)]));
            });
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

    /// An unoptimised build would take minutes for figures that nobody should quote.
    fn slowness(&self) -> u64 {
        if cfg!(debug_assertions) { 100 } else { 1 }
    }

    fn format(&mut self, format: &'static Format, columns: &[usize]) -> FormatFigures {
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

    fn matrix(&self, kernel: Kernel, n_out: usize) -> &[u8] {
        &self.weights.as_slice()[..kernel.row_bytes(self.n_in) * n_out]
    }
}

/// The only call of the kernels here: `y[c, o] = weights[o] · x[c]`.
#[expect(clippy::too_many_arguments, reason = "three slices with their shapes")]
fn multiply(
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
    fn scaled(&self, by: f64) -> Pair {
        Pair { one: self.one.scaled(by), all: self.all.scaled(by) }
    }
}

fn bits_per_weight(format: &Format) -> f64 {
    8.0 * format.block_bytes as f64 / format.block_elements as f64
}

/// Repeats `tile` over all of `buffer`: also the first touch of its pages.
fn fill(buffer: &mut AlignedBuf, tile: &[u8]) {
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
fn valid_blocks(format: &Format) -> Vec<u8> {
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

/// `rows` activation rows in the kernel's form.
fn activations(kernel: Kernel, n: usize, rows: usize) -> Vec<u8> {
    let mut bytes = Bytes(0x1234_5678_9abc_def1);
    let mut noise = vec![0u8; n * rows];
    bytes.fill(&mut noise);
    let x: Vec<f32> = noise.iter().map(|&byte| (f32::from(byte) - 127.5) / 64.0).collect();
    let mut out = vec![0; kernel.x_bytes(n) * rows];
    kernel.format().activation.quantize_rows(&x, n, &mut out);
    out
}

fn table(outcome: &Outcome) -> String {
    let cell = |figure: &Figure| format!("{:.2}", figure.spread.median);
    let mut ceilings = Table::new(&[Align::Left, Align::Right, Align::Right, Align::Left]);
    ceilings.row([
        "ceiling".to_owned(),
        "1 thread".into(),
        format!("{} threads", outcome.threads),
        String::new(),
    ]);
    let all = &outcome.ceilings;
    for (name, pair, unit) in [
        ("memory read", &all.read_gb_per_s, "GB/s"),
        ("int8", &all.int8_gop_per_s, "GOP/s"),
        ("int8, 16-bit sums", &all.int8_narrow_gop_per_s, "GOP/s"),
        ("int16", &all.int16_gop_per_s, "GOP/s"),
        ("f32", &all.f32_gflop_per_s, "GFLOP/s"),
    ] {
        ceilings.row([name.to_owned(), cell(&pair.one), cell(&pair.all), unit.to_owned()]);
    }
    let columns: Vec<usize> =
        outcome.formats.first().map_or_else(Vec::new, |f| f.prefill.iter().map(|p| p.columns).collect());
    let mut align = vec![Align::Left; 2];
    align.extend(vec![Align::Right; 4 + 2 * columns.len()]);
    let mut formats = Table::new(&align);
    let n = outcome.threads;
    let mut head = vec!["format".to_owned(), "isa".to_owned(), "GB/s 1".to_owned(), format!("{n}")];
    head.extend(["Gweights/s 1".to_owned(), format!("{n}")]);
    columns.iter().for_each(|c| head.extend([format!("GFLOP/s ×{c} 1"), format!("{n}")]));
    formats.row(head);
    for figures in &outcome.formats {
        let mut row = vec![figures.format.to_owned(), figures.isa.to_owned()];
        for pair in [&figures.decode_gb_per_s, &figures.decode_gweights_per_s]
            .into_iter()
            .chain(figures.prefill.iter().map(|p| &p.gflop_per_s))
        {
            row.extend([cell(&pair.one), cell(&pair.all)]);
        }
        formats.row(row);
    }
    let tables =
        if outcome.formats.is_empty() { String::new() } else { format!("\n\n{}", formats.render("  ")) };
    format!("{}{tables}", ceilings.render("  "))
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn formats_are_found_in_any_case() {
        assert_eq!(chosen(&[]).ok().map(|all| all.len()), Some(FORMATS.len()));
        let found = chosen(&["iq1_m".into(), "Q4_K".into()]).ok();
        assert_eq!(found.map(|f| f.iter().map(|f| f.name).collect::<Vec<_>>()), Some(vec!["IQ1_M", "Q4_K"]));
        assert_eq!(chosen(&["none".into()]).ok().map(|none| none.len()), Some(0));
        assert!(chosen(&["Q9_X".into()]).is_err());
    }
}
