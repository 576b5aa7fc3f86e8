//! `slotbank trace simulate`: every bank size and policy over one trace, with the optimum on top and the time that it would take.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use experts::simulate::{self, Figures, Rates, Scope, Workload};
use experts::{BankPlan, BankSize};
use serde::Serialize;

use super::rates::RateArgs;
use super::{Subject, report};
use crate::args::ModelArgs;
use crate::ui;
use crate::ui::error::Failure;
use crate::ui::progress::Bar;

/// Try all bank sizes and eviction policies on a trace: hit rates, bytes and predicted tokens per second
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Trace to work on
    #[arg(value_name = "TRACE")]
    file: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// Bank sizes, in percent of the model's experts; never less than one token's
    #[arg(
        long,
        value_name = "%,…",
        value_delimiter = ',',
        default_value = "5,10,15,20,25,30,40,50,60,75,90",
        value_parser = clap::value_parser!(u32).range(1..=100),
        help_heading = "What to try"
    )]
    sizes: Vec<u32>,
    /// Policies [default: all]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = PossibleValuesParser::new(simulate::names()), help_heading = "What to try")]
    policies: Vec<String>,
    /// One budget for all layers, the same number of slots for each, or both side by side
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Budgets::Both, help_heading = "What to try")]
    budget: Budgets,
    /// Tokens at the start that fill the bank and do not count
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "What to try")]
    warm_up: u64,
    /// Count prompts too, not only tokens that came one by one
    #[arg(long, help_heading = "What to try")]
    prompts: bool,
    /// Experts per token of the trace, when they were fewer than the model's own number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "What to try")]
    moe_topk: Option<u32>,
    #[command(flatten)]
    rates: RateArgs,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Write the curves and the tables as a web page that needs nothing else
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    html: Option<PathBuf>,
    /// Write the curves as a picture
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    svg: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
policies are those of `run --policy`, run by the same code. static-hot has the experts that this
trace uses most resident from the start, which no bank can know; belady begins empty and knows the
future: no policy can do better. With a drive and a computing time (--read-gb-per-s, --compute-ms)
tokens per second are predicted: ideal, where reads and computing overlap freely, and by the
dependency bound, where the reads of a layer begin when its router has spoken";

/// How slots are given to layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Budgets {
    Global,
    PerLayer,
    Both,
}

/// Everything that was tried.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) trace: String,
    pub(super) model: String,
    pub(super) architecture: String,
    pub(super) expert_layers: usize,
    pub(super) n_experts: u32,
    pub(super) top_k: u32,
    /// Bytes of all experts, in slots.
    pub(super) all_bytes: u64,
    /// Tokens and one-token passes of the trace.
    pub(super) tokens: u64,
    pub(super) single_token_passes: usize,
    pub(super) scope: Scope,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rates: Option<Rates>,
    pub(super) rows: Vec<Row>,
}

/// One bank.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) policy: String,
    /// `global` or `per-layer`.
    pub(super) budget: &'static str,
    /// Of the experts, how many have a slot, 0 to 1.
    pub(super) share: f64,
    pub(super) slots: u32,
    pub(super) bank_bytes: u64,
    #[serde(flatten)]
    pub(super) figures: Figures,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let subject = Subject::open(&args.model, &args.file, args.moe_topk)?;
    let rates = args.rates.rates(subject.layers.len() as u32, subject.info.top_k)?;
    let plans = plans(args, &subject)?;
    let everything = BankPlan::new(BankSize::All, 0, subject.info.top_k, &subject.layers)?;
    let workload = Workload::new(experts::trace::open(&args.file)?, &everything)?;
    let single_token_passes = workload.single_token_passes();
    let single_tokens_only = !args.prompts && single_token_passes > 0;
    let scope = Scope { warm_up_tokens: args.warm_up, single_tokens_only };
    if args.warm_up >= workload.tokens() {
        let what = format!("the trace has {} tokens, all of them would be warm-up", workload.tokens());
        return Err(Failure::usage(what, "give a smaller --warm-up"));
    }
    let all_experts = subject.layers.iter().map(|layer| u64::from(layer.n_expert)).sum();
    let rows = rows(args, &workload, &plans, all_experts, scope, rates.as_ref())?;
    let outcome = Outcome {
        trace: args.file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        model: subject.model,
        architecture: subject.info.architecture,
        expert_layers: subject.layers.len(),
        n_experts: subject.info.n_experts,
        top_k: subject.info.top_k,
        all_bytes: everything.all_bytes(),
        tokens: workload.tokens(),
        single_token_passes,
        scope,
        rates,
        rows,
    };
    if let Some(path) = &args.svg {
        write(path, &report::svg(&outcome))?;
    }
    if let Some(path) = &args.html {
        write(path, &report::html(&outcome))?;
    }
    if args.json {
        ui::print_json(&outcome)?
    } else {
        ui::print(report::text(&outcome))?
    }
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|e| Failure::file("cannot write the report", path, &e))
}

/// A plan per size and way to share, each size once: the same slots either way.
fn plans(args: &Args, subject: &Subject) -> Result<Vec<(&'static str, BankPlan)>, Failure> {
    let (n_experts, top_k) = (subject.info.n_experts, subject.info.top_k);
    let slots = |percent: &u32| (n_experts * percent).div_ceil(100).clamp(top_k, n_experts);
    let mut sizes: Vec<u32> = args.sizes.iter().map(slots).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let mut plans = Vec::new();
    for n in sizes {
        let new = |size| BankPlan::new(size, 0, top_k, &subject.layers);
        let fixed = new(BankSize::SlotsPerLayer(n))?;
        if args.budget != Budgets::PerLayer {
            plans.push(("global", new(BankSize::Bytes(fixed.arena_bytes()))?));
        }
        if args.budget != Budgets::Global {
            plans.push(("per-layer", fixed));
        }
    }
    Ok(plans)
}

fn rows(
    args: &Args,
    workload: &Workload,
    plans: &[(&'static str, BankPlan)],
    all_experts: u64,
    scope: Scope,
    rates: Option<&Rates>,
) -> Result<Vec<Row>, Failure> {
    let chosen = |name: &&str| args.policies.is_empty() || args.policies.iter().any(|given| given == name);
    let names: Vec<&str> = simulate::names().filter(chosen).collect();
    let bar = Bar::count(false, (plans.len() * names.len()) as u64);
    let mut rows = Vec::new();
    for &name in &names {
        for &(budget, ref plan) in plans {
            bar.set(rows.len() as u64, (plans.len() * names.len()) as u64, name);
            let figures = simulate::run(workload, plan, name, scope, rates)?;
            let slots = plan.slots_total();
            rows.push(Row {
                policy: name.to_owned(),
                budget,
                share: f64::from(slots) / all_experts as f64,
                slots,
                bank_bytes: plan.arena_bytes(),
                figures,
            });
        }
    }
    Ok(rows)
}
