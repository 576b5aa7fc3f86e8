//! One file per command. Each has its `Args` and a `run` that ends in an exit code or a [`Failure`](crate::ui::error::Failure).

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod extract;
pub(crate) mod inspect;
pub(crate) mod kl;
pub(crate) mod logits;
pub(crate) mod perplexity;
pub(crate) mod plan;
pub(crate) mod run;
pub(crate) mod trace;
pub(crate) mod verify;

use clap::{Parser, Subcommand};

const AFTER_HELP: &str = "\
exit codes:
  0 ok, 1 internal error, 2 usage, 3 bad file, 4 unsupported (but valid) file, 5 does not fit,
  6 read or write error, 7 integrity, 9 a limit of yours was missed, 130 interrupted";

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
    Doctor(doctor::Args),
    Inspect(inspect::Args),
    Extract(extract::Args),
    Verify(verify::Args),
    Logits(logits::Args),
    Eval(eval::Args),
    Perplexity(perplexity::Args),
    Kl(kl::Args),
    Bench(bench::Args),
    Trace(trace::Args),
}
