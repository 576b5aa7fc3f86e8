//! What every command that generates text is told: how to load and stream, how to choose tokens, how much to say.

use clap::Args;
use engine::GenerateOptions;

use super::{BankArgs, SamplingArgs};

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) bank: BankArgs,
    /// Nothing but the result: no memory plan, no progress, no figures
    #[arg(short, long, help_heading = "Output")]
    pub(crate) quiet: bool,
}

impl GenerateArgs {
    /// How one generation runs.
    pub(crate) fn options(&self) -> GenerateOptions {
        GenerateOptions {
            max_tokens: Some(self.sampling.max_tokens as usize),
            sampling: self.sampling.options(),
            ignore_eos: self.sampling.ignore_eos,
            ..GenerateOptions::default()
        }
    }
}
