//! `slotbank bench kernels`: how fast the kernels of each format are, alone, beside what the processor can do at most.
//!
//! Decode is one activation row against a matrix that no cache holds; prefill is many columns against one expert-sized
//! matrix. One thread and all threads alternate in every round. Weights are random, in valid blocks.

mod ablations;
mod dispatch;
mod figures;
pub(crate) mod rig;

use std::process::ExitCode;

use kernels::{AlignedBuf, FORMATS, Format, Isa, Pool};
use serde::Serialize;

use self::ablations::Ablations;
use self::dispatch::Dispatch;
use self::figures::{Ceilings, FormatFigures};
use self::rig::{Figure, Rig, fill};
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
    /// Also measure what the ideas behind the kernels are worth, on one thread, each beside its opposite
    #[arg(long, help_heading = "What to measure")]
    ablate: bool,
    /// Also measure what it costs to hand work to the threads
    #[arg(long, help_heading = "What to measure")]
    dispatch: bool,
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ablations: Vec<Ablations>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dispatch: Vec<Dispatch>,
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
    check_sizes(args, &formats)?;
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
    let figures = formats.iter().map(|&format| rig.format(format, &columns)).collect();
    let ablated: &[_] = if args.ablate { &formats } else { &[] };
    let ablations = ablated.iter().map(|&format| rig.ablations(format, &columns)).collect();
    let dispatch = if args.dispatch { dispatch::measure(args.rounds) } else { Vec::new() };
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
        ablations,
        dispatch,
    };
    if args.json {
        ui::print_json(&outcome)?
    } else {
        ui::print(table(&outcome))?
    }
    Ok(ExitCode::SUCCESS)
}

/// A matrix has one row at least.
fn check_sizes(args: &Args, formats: &[&Format]) -> Result<(), Failure> {
    let working_set = (args.working_set as usize) << 20;
    let too_long = |format: &&&Format| format.row_bytes(args.n_in).is_none_or(|bytes| bytes > working_set);
    formats.iter().find(too_long).map_or(Ok(()), |format| {
        Err(Failure::usage(
            format!("a row of {} inputs in {} is larger than the working set", args.n_in, format.name),
            "give a larger --working-set, or fewer --n-in",
        ))
    })
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
    let mut text = ceilings.render("  ");
    if !outcome.formats.is_empty() {
        text += &format!("\n\n{}", formats.render("  "));
    }
    if !outcome.ablations.is_empty() {
        text += &format!("\n\n{}", ablations::table(&outcome.ablations));
    }
    if !outcome.dispatch.is_empty() {
        text += &format!("\n\n{}", dispatch::table(&outcome.dispatch));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_found_in_any_case() {
        assert_eq!(chosen(&[]).ok().map(|all| all.len()), Some(FORMATS.len()));
        let found = chosen(&["iq1_m".into(), "Q4_K".into()]).ok();
        assert_eq!(found.map(|f| f.iter().map(|f| f.name).collect::<Vec<_>>()), Some(vec!["IQ1_M", "Q4_K"]));
        assert_eq!(chosen(&["none".into()]).ok().map(|none| none.len()), Some(0));
        assert!(chosen(&["Q9_X".into()]).is_err());
    }
}
