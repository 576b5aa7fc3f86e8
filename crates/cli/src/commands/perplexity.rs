//! `slotbank perplexity`: how well a model predicts a text, counted as llama.cpp counts it.

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::args::{BankArgs, ModelPath};
use crate::likelihood::logits_file::{Form, Writer};
use crate::likelihood::{self, Mean, TextArgs, Windows, log_sum_exp};
use crate::session;
use crate::ui;
use crate::ui::error::Failure;

/// Measure how well a model predicts a text: perplexity over windows of it
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelPath,
    #[command(flatten)]
    text: TextArgs,
    /// Keep the predictions, to compare other runs with: `slotbank kl --base FILE`, and llama.cpp's --kl-divergence-base
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "stride",
        help_heading = "Output",
        alias = "kl-divergence-base"
    )]
    save_logits: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Show neither the memory plan nor progress
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
    #[command(flatten)]
    bank: BankArgs,
}

const AFTER_HELP: &str = "\
-c is the length of a window, 512 where it is not given. A window's first half is context and its
second half is predicted; windows follow each other. With --stride they overlap. The number after ±
is one standard error. Windows, counting and file format are those of llama.cpp's perplexity tool.";

#[derive(Serialize)]
struct Outcome {
    model: String,
    window: usize,
    step: usize,
    windows: usize,
    /// Predictions that count.
    tokens: u64,
    /// Mean negative log-likelihood of a token, in nats.
    nll: f64,
    perplexity: f64,
    /// Standard error of the perplexity.
    error: f64,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    args.text.check()?;
    let model = session::open(args.model.path(), &args.model.sidecar)?;
    let options = likelihood::options(args.bank.options(), &args.text);
    let mut session = session::load_with(&model, &args.bank, options, args.quiet || args.json)?;
    let windows = args.text.windows(&session)?;
    let n_vocab = session.engine.model().n_vocab as usize;
    let mut saved = args.save_logits.as_deref().map(|path| create(path, &windows, n_vocab)).transpose()?;
    let nll = std::cell::Cell::new(Mean::default());
    windows.run(
        &mut session,
        args.quiet,
        &mut |row| {
            let mut sum = nll.get();
            sum.add(log_sum_exp(row.logits) - f64::from(row.logits[row.target as usize]));
            nll.set(sum);
            match (&mut saved, &args.save_logits) {
                (Some(writer), Some(path)) => writer.push(row.logits).map_err(|e| unwritten(path, &e)),
                _ => Ok(()),
            }
        },
        &mut || format!("perplexity {:.4}", likelihood::perplexity(&nll.get()).0),
    )?;
    if let (Some(writer), Some(path)) = (saved, &args.save_logits) {
        writer.finish().map_err(|e| unwritten(path, &e))?;
    }
    session.finish()?;
    let nll = nll.get();
    let (perplexity, error) = likelihood::perplexity(&nll);
    let outcome = Outcome {
        model: model.name,
        window: windows.length,
        step: windows.step,
        windows: windows.count,
        tokens: nll.count(),
        nll: nll.value(),
        perplexity,
        error,
    };
    if args.json {
        ui::print_json(&outcome)?;
    } else {
        ui::print(format!(
            "perplexity {perplexity:.4} ± {error:.5}  ({} predictions in {} windows of {})",
            outcome.tokens, outcome.windows, outcome.window
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn create(path: &std::path::Path, windows: &Windows, n_vocab: usize) -> Result<Writer, Failure> {
    File::create(path)
        .and_then(|file| Writer::new(file, Form::Shared, windows, n_vocab))
        .map_err(|e| unwritten(path, &e))
}

fn unwritten(path: &std::path::Path, error: &std::io::Error) -> Failure {
    Failure::file("cannot write the predictions", path, error)
}
