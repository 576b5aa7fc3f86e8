//! `slotbank kl`: how far the predictions of one run are from those of another: other weights, other options, or a file that
//! an earlier run or llama.cpp has written.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use files::Class;
use serde::Serialize;

use crate::args::{BankArgs, ModelPath, SidecarArgs};
use crate::likelihood::logits_file::{Form, Reader, Writer};
use crate::likelihood::{self, Mean, Row, TextArgs, Windows, log_sum_exp};
use crate::session::{self, Model, Session};
use crate::ui;
use crate::ui::error::{Failure, Report};
use crate::ui::table::{Align, Table};
use crate::ui::units;

/// Compare the predictions of two runs: KL divergence and how often they agree on the likeliest token
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
#[command(group = clap::ArgGroup::new("with").required(true).multiple(true).args(["base", "reference", "against"]))]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelPath,
    /// Predictions of the reference, and the text: what `slotbank perplexity --save-logits` or llama.cpp wrote
    #[arg(long, value_name = "FILE", help_heading = "Reference", conflicts_with_all = ["reference", "against", "file", "tokens", "stride"])]
    base: Option<PathBuf>,
    /// The model taken for right [default, with --against: MODEL itself]
    #[arg(long, value_name = "MODEL", help_heading = "Reference")]
    reference: Option<PathBuf>,
    /// Options of the reference's run that differ from this one's, as in "--bank all --cache-type f32"
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true, help_heading = "Reference")]
    against: Option<String>,
    #[command(flatten)]
    text: TextArgs,
    /// Exit with 9 where the mean divergence is larger
    #[arg(long, value_name = "NATS", help_heading = "Output")]
    fail_above: Option<f64>,
    /// Print the result as JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Show neither memory plans nor progress
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
    #[command(flatten)]
    bank: BankArgs,
}

const AFTER_HELP: &str = "\
divergences are in nats, of this run's distribution from the reference's, and the number after ± is one
standard error. With --reference or --against both runs are made here, one after the other, and nothing is
rounded: runs that compute the same have a divergence of exactly 0. A --base file stores
probabilities in 16 bits. Windows are those of `slotbank perplexity`.";

/// Exit code of a missed --fail-above.
const GATE: u8 = 9;

#[derive(Debug, Serialize)]
struct Outcome {
    model: String,
    reference: String,
    window: usize,
    windows: usize,
    tokens: u64,
    perplexity: f64,
    reference_perplexity: f64,
    /// Share of positions with the same likeliest token.
    same_top: f64,
    kl: Divergence,
    /// Of the probability of the text's own tokens.
    probability_difference: Difference,
    /// Largest difference of any two log-probabilities; 0 means that the runs computed the same.
    max_log_probability_difference: f64,
}

#[derive(Debug, Serialize)]
struct Divergence {
    mean: f64,
    error: f64,
    median: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

#[derive(Debug, Serialize)]
struct Difference {
    mean: f64,
    rms: f64,
    max: f64,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    if args.base.is_none() {
        args.text.check()?;
    }
    let model = session::open(args.model.path(), &args.model.sidecar)?;
    let (mut reader, windows, name) = match &args.base {
        Some(path) => {
            let (reader, windows) = Reader::open(path)?;
            (reader, windows, path.display().to_string())
        }
        None => reference(args, &model)?,
    };
    let mut options = args.bank.options();
    if let (Some(path), Some(asked)) = (&args.base, options.context.filter(|&n| n as usize != windows.length))
    {
        let what = format!("-c {asked} is not the window of {}, which is {}", path.display(), windows.length);
        return Err(Failure::usage(what, "leave -c out: the file says it"));
    }
    options.context = Some(windows.length as u32);
    let mut session = session::load_with(&model, &args.bank, options, args.quiet || args.json)?;
    let windows = match &args.base {
        Some(_) => Windows { bos: bos(&session), ..windows },
        None => windows,
    };
    let n_vocab = session.engine.model().n_vocab as usize;
    if reader.n_vocab() != n_vocab {
        return Err(Report::new(Class::Usage, "these two cannot be compared")
            .why(format!("the reference knows {} tokens, {} knows {n_vocab}", reader.n_vocab(), model.name))
            .hint("both must have the same vocabulary")
            .into());
    }
    let sums = std::cell::RefCell::new(Sums::default());
    let mut log_probs = Vec::new();
    windows.run(
        &mut session,
        args.quiet,
        &mut |row| {
            reader.next(&mut log_probs)?;
            sums.borrow_mut().add(&log_probs, reader.floor(), &row);
            Ok(())
        },
        &mut || format!("KL {:.6}", sums.borrow().kl.value()),
    )?;
    session.finish()?;
    let outcome = sums.into_inner().outcome(model.name, name, &windows);
    if args.json {
        ui::print_json(&outcome)?;
    } else {
        ui::print(table(&outcome))?;
    }
    // (Not `>`: a divergence that is no number passes no gate.)
    let missed = args
        .fail_above
        .is_some_and(|limit| !matches!(outcome.kl.mean.partial_cmp(&limit), Some(order) if order.is_le()));
    Ok(if missed { ExitCode::from(GATE) } else { ExitCode::SUCCESS })
}

fn bos(session: &Session) -> Option<u32> {
    let tokenizer = session.engine.tokenizer()?;
    tokenizer.bos().filter(|_| tokenizer.add_bos())
}

/// Makes the reference's run: its predictions, unrounded, in a file that nobody else sees.
fn reference(args: &Args, model: &Model) -> Result<(Reader, Windows, String), Failure> {
    if args.text.is_strided() {
        return Err(Failure::usage(
            "--stride is for `slotbank perplexity`",
            "leave it out: windows follow each other",
        ));
    }
    let bank = args.bank.with(args.against.as_deref().unwrap_or_default())?;
    // (A sidecar that was named is MODEL's; the reference has its own.)
    let other = args.reference.as_deref().map(|path| session::open(Some(path), &SidecarArgs::default()));
    let other = other.transpose()?;
    let model = other.as_ref().unwrap_or(model);
    let options = likelihood::options(bank.options(), &args.text);
    let mut session = session::load_with(model, &bank, options, args.quiet || args.json)?;
    let windows = args.text.windows(&session)?;
    let n_vocab = session.engine.model().n_vocab as usize;
    let kept = Path::new("(kept for the comparison)");
    let failed = |e: std::io::Error| {
        Failure::file("cannot keep the reference's predictions", &std::env::temp_dir(), &e)
    };
    let mut writer = tempfile::tempfile()
        .and_then(|file| Writer::new(file, Form::Exact, &windows, n_vocab))
        .map_err(failed)?;
    windows.run(&mut session, args.quiet, &mut |row| writer.push(row.logits).map_err(failed), &mut || {
        "reference".into()
    })?;
    let file = writer.finish().map_err(failed)?;
    session.finish()?;
    let name = match &args.against {
        Some(words) => format!("{} {words}", model.name),
        None => model.name.clone(),
    };
    let (reader, read) = Reader::new(file, kept)?;
    Ok((reader, Windows { bos: windows.bos, ..read }, name))
}

#[derive(Default)]
struct Sums {
    kl: Mean,
    divergences: Vec<f32>,
    nll: Mean,
    reference_nll: Mean,
    same_top: u64,
    probability: Mean,
    probability_squared: Mean,
    probability_max: f64,
    max_difference: f64,
}

impl Sums {
    /// `base`: the reference's log-probabilities, of which those at or below `floor` say nothing.
    fn add(&mut self, base: &[f64], floor: f64, row: &Row<'_>) {
        let total = log_sum_exp(row.logits);
        let log_prob = |i: usize| f64::from(row.logits[i]) - total;
        let (mut divergence, mut widest) = (0.0, 0.0f64);
        for (i, &p) in base.iter().enumerate() {
            if p > floor {
                divergence += p.exp() * (p - log_prob(i));
                widest = widest.max((p - log_prob(i)).abs());
            }
        }
        let target = row.target as usize;
        let difference = log_prob(target).exp() - base[target].exp();
        self.kl.add(divergence);
        self.divergences.push(divergence as f32);
        self.nll.add(-log_prob(target));
        self.reference_nll.add(-base[target]);
        self.same_top += u64::from(largest(row.logits.iter().copied()) == largest(base.iter().copied()));
        self.probability.add(difference);
        self.probability_squared.add(difference * difference);
        self.probability_max = self.probability_max.max(difference.abs());
        self.max_difference = self.max_difference.max(widest);
    }

    fn outcome(mut self, model: String, reference: String, windows: &Windows) -> Outcome {
        self.divergences.sort_by(f32::total_cmp);
        let sorted = &self.divergences;
        // The value that this share of all positions does not exceed.
        let quantile = |share: f64| {
            f64::from(sorted[((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len()) - 1])
        };
        let tokens = self.kl.count();
        Outcome {
            model,
            reference,
            window: windows.length,
            windows: windows.count,
            tokens,
            perplexity: likelihood::perplexity(&self.nll).0,
            reference_perplexity: likelihood::perplexity(&self.reference_nll).0,
            same_top: self.same_top as f64 / tokens as f64,
            kl: Divergence {
                mean: self.kl.value(),
                error: self.kl.error(),
                median: quantile(0.5),
                p90: quantile(0.9),
                p99: quantile(0.99),
                max: quantile(1.0),
            },
            probability_difference: Difference {
                mean: self.probability.value(),
                rms: self.probability_squared.value().sqrt(),
                max: self.probability_max,
            },
            max_log_probability_difference: self.max_difference,
        }
    }
}

/// Index of the largest value, the first of equals.
fn largest<T: PartialOrd>(values: impl Iterator<Item = T>) -> usize {
    let mut best = None;
    for (i, value) in values.enumerate() {
        if best.as_ref().is_none_or(|(_, most)| value > *most) {
            best = Some((i, value));
        }
    }
    best.map_or(0, |(i, _)| i)
}

fn table(o: &Outcome) -> String {
    let mut table = Table::new(&[Align::Left, Align::Left]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("reference", o.reference.clone());
    row("positions", format!("{} in {} windows of {}", o.tokens, o.windows, o.window));
    row("perplexity", format!("{:.4}, reference {:.4}", o.perplexity, o.reference_perplexity));
    row("same likeliest token", units::percent(o.same_top));
    let kl = &o.kl;
    row("KL divergence", format!("{:.6} ± {:.6}", kl.mean, kl.error));
    row(
        "",
        format!("median {:.6}, 90 % {:.6}, 99 % {:.6}, largest {:.6}", kl.median, kl.p90, kl.p99, kl.max),
    );
    let p = &o.probability_difference;
    let parts = [p.mean, p.rms, p.max].map(|x| format!("{:.3} %", 100.0 * x));
    row("probability of the text", format!("mean {}, RMS {}, largest {}", parts[0], parts[1], parts[2]));
    if o.max_log_probability_difference == 0.0 {
        row("", "every probability is the same".into());
    }
    table.render("")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(base: &[f32], logits: &[f32], target: u32, floor: f64) -> Sums {
        let total = log_sum_exp(base);
        let base: Vec<f64> = base.iter().map(|&x| f64::from(x) - total).collect();
        let mut sums = Sums::default();
        sums.add(&base, floor, &Row { target, logits });
        sums
    }

    #[test]
    fn equal_predictions_do_not_diverge() {
        let logits = [0.1, -3.0, 7.5, 2.0];
        let sums = sums(&logits, &logits, 2, f64::NEG_INFINITY);
        assert_eq!((sums.kl.value(), sums.max_difference, sums.same_top), (0.0, 0.0, 1));
    }

    #[test]
    fn divergence_by_its_definition() {
        // (3/4, 1/4) from (1/2, 1/2): the sum of p ln(p / q).
        let sums = sums(&[3f32.ln(), 0.0], &[0.0, 0.0], 0, f64::NEG_INFINITY);
        let expected = 0.75 * (0.75f64 / 0.5).ln() + 0.25 * (0.25f64 / 0.5).ln();
        assert!((sums.kl.value() - expected).abs() < 1e-7);
        assert!((sums.probability.value() + 0.25).abs() < 1e-7);
        // Both are likeliest first: equals go to the lower index.
        assert_eq!(sums.same_top, 1);
    }

    #[test]
    fn what_lies_on_the_floor_is_left_out() {
        let far = sums(&[0.0, -30.0], &[0.0, 20.0], 0, -16.0);
        let near = sums(&[0.0, -30.0], &[0.0, 20.0], 0, f64::NEG_INFINITY);
        assert!(far.max_difference < near.max_difference && far.same_top == 0);
    }
}
