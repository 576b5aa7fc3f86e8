//! `slotbank bench make-model`: a synthetic model with the shape of a real one.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::ui::error::Failure;

/// Write a synthetic model: the shape of a real one, random weights, skewed and drifting routing
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The GGUF to write
    #[arg(value_name = "FILE")]
    out: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    Err(Failure::usage(format!("cannot write {} yet", args.out.display()), "wait for the next commit"))
}
