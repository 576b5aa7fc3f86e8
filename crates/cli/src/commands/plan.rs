//! `slotbank plan`: what loading would take, without loading.

use std::process::ExitCode;

use engine::Engine;

use crate::args::{BankArgs, ModelPath};
use crate::ui::error::Failure;
use crate::{session, ui};

/// Show the memory that a model would take, without loading it
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelPath,
    #[command(flatten)]
    bank: BankArgs,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let model = session::open(args.model.path(), &args.model.sidecar)?;
    let plan = Engine::plan(&model.checkpoint, &args.bank.options())?;
    if args.json {
        ui::print_json(&plan)?;
    } else {
        ui::print(ui::plan::render(&model.name, &plan))?;
    }
    Ok(ExitCode::SUCCESS)
}
