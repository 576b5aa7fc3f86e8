//! `slotbank trace replay`: what one bank makes of a trace, counted by the bank's own code.

use std::path::PathBuf;
use std::process::ExitCode;

use engine::BankSize;
use engine::EngineOptions;
use experts::{BankPlan, Counters, Stats, policy, simulate};
use serde::Serialize;

use super::Subject;
use crate::args::{ModelArgs, parse_bank, policies};
use crate::ui::error::Failure;
use crate::ui::table::{Align, Table};
use crate::ui::{self, units};

/// Count what one bank makes of a trace: the counters of a run, without the run
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Trace to replay
    #[arg(value_name = "TRACE")]
    file: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// Resident experts, as for `run` [default: those of the run that wrote the trace]
    #[arg(long, value_name = "SIZE|N|all", value_parser = parse_bank, help_heading = "Bank")]
    bank: Option<BankSize>,
    /// Who loses a slot that is needed, as for `run` [default: as in the run that wrote the trace]
    #[arg(long, value_name = "NAME", value_parser = policies(), help_heading = "Bank")]
    policy: Option<String>,
    /// Never evict the experts that this trace used most, as for `run`
    #[arg(long, value_name = "TRACE", help_heading = "Bank")]
    pin: Option<PathBuf>,
    /// Experts per token of the trace, when they were fewer than the model's own number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Bank")]
    moe_topk: Option<u32>,
    /// Print JSON, with every layer
    #[arg(long, help_heading = "Output")]
    json: bool,
}

#[derive(Serialize)]
struct Outcome<'a> {
    trace: String,
    model: &'a str,
    bank: String,
    policy: &'a str,
    slots: u32,
    bank_bytes: u64,
    hit_rate: f64,
    total: Counters,
    layers: &'a Stats,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let subject = Subject::open(&args.model, &args.file, args.moe_topk)?;
    let (size, name) = bank(args, &subject)?;
    let run = subject.recorded.as_ref().and_then(|identity| identity.run.as_ref());
    let spares = run.map_or_else(|| EngineOptions::default().spares(), |run| run.spares);
    let plan = BankPlan::new(size, 0, subject.info.top_k, &subject.layers)?.with_spares(spares);
    // Says what is foreign about it, before anything is counted.
    let records = experts::trace::open(&args.file)?.collect::<experts::Result<Vec<_>>>()?;
    simulate::Workload::new(records.iter().cloned().map(Ok), &plan)?;
    let mut policy = policy::by_name(&name, &plan).expect("a name that the parser or a run has taken");
    if let Some(path) = &args.pin {
        let hot = simulate::hottest(experts::trace::open(path)?, &plan)?;
        policy = Box::new(policy::pinned::Pinned::new(policy, &plan, &hot));
    }
    let preloaded = size == BankSize::All;
    let stats = experts::replay(records.into_iter().map(Ok), &plan, policy, preloaded)?;
    let total = stats.total();
    let outcome = Outcome {
        trace: args.file.display().to_string(),
        model: &subject.model,
        bank: size.to_string(),
        policy: &name,
        slots: plan.slots_total(),
        bank_bytes: plan.arena_bytes(),
        hit_rate: total.hit_rate(),
        total,
        layers: &stats,
    };
    if args.json {
        ui::print_json(&outcome)?
    } else {
        ui::print(table(&outcome, &plan))?
    }
    Ok(ExitCode::SUCCESS)
}

/// From the flags, else from the run that wrote the trace.
fn bank(args: &Args, subject: &Subject) -> Result<(BankSize, String), Failure> {
    let run = subject.recorded.as_ref().and_then(|identity| identity.run.as_ref());
    let recorded = run.and_then(|run| run.bank.parse().ok());
    let hint = "give --bank a size (8GiB), slots per layer (64) or `all`";
    let size = match args.bank.or(recorded) {
        None => return Err(Failure::usage("the trace does not say which bank it was recorded with", hint)),
        Some(BankSize::Auto) => return Err(Failure::usage("a replay has no memory to measure", hint)),
        Some(size) => size,
    };
    if args.pin.is_none() && run.is_some_and(|run| run.pinned) {
        ui::note("note: the run that wrote the trace had pinned experts; `--pin` takes the same trace here");
    }
    let known = run.map(|run| &run.policy).filter(|name| policy::NAMES.contains(&name.as_str()));
    let name = args.policy.clone().or_else(|| known.cloned());
    Ok((size, name.unwrap_or_else(|| policy::NAMES[0].to_owned())))
}

fn table(outcome: &Outcome<'_>, plan: &BankPlan) -> String {
    let total = &outcome.total;
    let mut table = Table::new(&[Align::Left, Align::Right]);
    let bank = format!("{} in {}", units::exact(u64::from(outcome.slots)), units::bytes(plan.arena_bytes()));
    for (name, value) in [
        ("slots", bank),
        ("calls", units::exact(total.calls)),
        ("experts asked for", units::exact(total.unique)),
        ("hits", units::exact(total.hits)),
        ("misses", units::exact(total.misses)),
        ("hit rate", units::percent(outcome.hit_rate)),
        ("read", units::bytes(total.bytes_read)),
        ("into empty slots", units::exact(total.cold)),
        ("evictions", units::exact(total.evictions)),
    ] {
        table.row([name.to_owned(), value]);
    }
    format!("{} · bank {} · {}\n{}", outcome.model, outcome.bank, outcome.policy, table.render("  "))
}
