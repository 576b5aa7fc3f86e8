//! The command line as plain data. Nothing here opens a file: `commands/` turns these structs into work.
//!
//! Flag groups that several commands share are flattened: [`ModelArgs`] / [`ModelPath`] (which checkpoint),
//! [`BankArgs`] (how it is loaded and streamed), [`SamplingArgs`] (how tokens are chosen).

mod bank;
mod model;
mod sampling;

pub(crate) use bank::BankArgs;
pub(crate) use model::{ModelArgs, ModelPath};
pub(crate) use sampling::SamplingArgs;

use clap::{Parser, Subcommand};

use crate::commands::{chat, eval, extract, inspect, logits, plan, run, verify};

const AFTER_HELP: &str = "\
exit codes:
  0 ok, 1 internal error, 2 usage, 3 bad file, 4 unsupported (but valid) file, 5 does not fit,
  6 read or write error, 7 integrity, 130 interrupted";

/// Run Mixture-of-Experts language models that do not fit in memory: dense weights stay resident, experts are read
/// from SSD into a small bank of slots.
#[derive(Debug, Parser)]
#[command(name = "slotbank", version, after_help = AFTER_HELP, max_term_width = 100, arg_required_else_help = true)]
#[command(disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(run::Args),
    Chat(chat::Args),
    Plan(plan::Args),
    Inspect(inspect::Args),
    Extract(extract::Args),
    Verify(verify::Args),
    Logits(logits::Args),
    Eval(eval::Args),
}
