//! `slotbank plan`: what loading would take and how fast it would run, without loading.

use std::process::ExitCode;

use engine::{Engine, MemoryPlan};
use serde::Serialize;

use crate::args::{BankArgs, ModelPath};
use crate::forecast::{self, Hits, Outlook, RateArgs};
use crate::ui::error::Failure;
use crate::{session, ui};

/// Show the memory that a model would take and the speed to expect, without loading it
#[derive(Debug, clap::Args)]
#[command(mut_arg("trace", |arg| arg.help("Replay this routing trace (of `run --trace`) for the hit rate [default: an estimate]")))]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelPath,
    #[command(flatten)]
    bank: BankArgs,
    #[command(flatten)]
    rates: RateArgs,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

#[derive(Serialize)]
struct Output<'a> {
    #[serde(flatten)]
    plan: &'a MemoryPlan,
    #[serde(flatten)]
    outlook: &'a Outlook,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let mut options = args.bank.options();
    // Here the trace is read, not written.
    let hits = Hits::read(options.trace.take().as_deref())?;
    let model = session::open(args.model.path(), &args.model.sidecar)?;
    let plan = Engine::plan(&model.checkpoint, &options)?;
    let outlook = forecast::outlook(&model.checkpoint, &plan, &options, &args.rates, &hits, true)?;
    if args.json {
        ui::print_json(&Output { plan: &plan, outlook: &outlook })?;
    } else {
        ui::print(format!("{}\n\n{}", ui::plan::render(&model.name, &plan), ui::forecast::render(&outlook)))?;
    }
    Ok(ExitCode::SUCCESS)
}
