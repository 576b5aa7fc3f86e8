//! `slotbank bench`: what measurements need, one file per subcommand.

pub(crate) mod make_model;

use std::process::ExitCode;

use clap::Subcommand;

use crate::ui::error::Failure;

/// Measure, and make what is measured
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    MakeModel(make_model::Args),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    match &args.command {
        Bench::MakeModel(args) => make_model::run(args),
    }
}
