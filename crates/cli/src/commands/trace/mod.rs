//! `slotbank trace`: record how a model routes, replay that against a bank, and try all banks at once.

mod chart;
mod identity;
mod rates;
mod record;
mod replay;
mod report;
mod simulate;

use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;
use engine::{EngineOptions, ModelInfo};
use experts::LayerExperts;

use crate::args::ModelArgs;
use crate::session;
use crate::ui::error::Failure;
pub(crate) use identity::Identity;

/// Record how a model routes its tokens, and find out what another bank would have made of it
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Trace,
}

#[derive(Debug, Subcommand)]
enum Trace {
    Record(record::Args),
    Replay(replay::Args),
    Simulate(simulate::Args),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    match &args.command {
        Trace::Record(args) => record::run(args),
        Trace::Replay(args) => replay::run(args),
        Trace::Simulate(args) => simulate::run(args),
    }
}

/// What a trace is replayed against.
struct Subject {
    /// What to call the model.
    model: String,
    info: ModelInfo,
    layers: Vec<LayerExperts>,
    /// What the trace says about its model and its run, if it says it.
    recorded: Option<Identity>,
}

impl Subject {
    /// Opens the model, without loading it, and refuses a trace that says it is of another one.
    fn open(model: &ModelArgs, trace: &Path, moe_topk: Option<u32>) -> Result<Subject, Failure> {
        let recorded = Identity::read(trace)?;
        let model = session::open(model.path(), &model.sidecar)?;
        let options = EngineOptions { moe_topk, ..EngineOptions::default() };
        let (info, layers) = engine::expert_geometry(&model.checkpoint, &options)?;
        if let Some(recorded) = &recorded {
            recorded.check(&Identity::of_model(&model, &info), trace)?;
        }
        Ok(Subject { model: model.name, info, layers, recorded })
    }
}
