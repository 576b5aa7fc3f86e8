//! `slotbank bench`: what measurements need, one file per subcommand.

mod against;
pub(crate) mod kernels;
pub(crate) mod make_model;
mod measure;
mod output;
pub(crate) mod speed;

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
    Speed(Box<speed::Args>),
    Kernels(kernels::Args),
    MakeModel(make_model::Args),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    match &args.command {
        Bench::Speed(args) => speed::run(args),
        Bench::Kernels(args) => kernels::run(args),
        Bench::MakeModel(args) => make_model::run(args),
    }
}
