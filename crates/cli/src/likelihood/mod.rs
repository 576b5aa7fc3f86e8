//! How likely a model finds a text: windows of tokens, the logits of those positions that have context before them, and what
//! comes of them. `perplexity` and `kl` are two ways of looking at these rows.

pub(crate) mod logits_file;

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use engine::{EngineOptions, Want};
use files::Class;
use text::Specials;

use crate::commands::bench::speed::read_tokens;
use crate::generation::tokenizer;
use crate::interrupt::Generating;
use crate::session::Session;
use crate::ui::error::{Failure, Report};
use crate::ui::progress::Bar;

/// Tokens of a window where nothing else is said, as in llama.cpp.
const WINDOW: u32 = 512;

/// What is to be found likely or not.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Text")]
pub(crate) struct TextArgs {
    /// Text file. Special tokens in it are plain text
    #[arg(short, long, value_name = "FILE", required_unless_present_any = ["tokens", "base"])]
    file: Option<PathBuf>,
    /// Token ids instead, as plain numbers or JSON; for models without a tokenizer
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    tokens: Option<PathBuf>,
    /// Begin a window every N tokens and count its last N only, so that more stands before each: slower. The windows are N/2 tokens
    /// longer [default: windows follow each other and the second half of each counts]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20), alias = "ppl-stride")]
    stride: Option<u32>,
    /// So many windows at most [default: as many as the text has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
}

/// The windows over a text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Windows {
    /// The text, or as much of it as is used.
    pub(crate) tokens: Vec<u32>,
    /// Tokens per window.
    pub(crate) length: usize,
    /// Tokens from the beginning of one to that of the next.
    pub(crate) step: usize,
    /// First position of a window whose prediction counts; the last one's has nothing to be compared with.
    pub(crate) first: usize,
    /// How many.
    pub(crate) count: usize,
    /// Stands in place of the first token of a window.
    pub(crate) bos: Option<u32>,
}

/// One prediction that counts.
pub(crate) struct Row<'a> {
    /// The token that followed.
    pub(crate) target: u32,
    /// One per token of the vocabulary.
    pub(crate) logits: &'a [f32],
}

/// The options of a run over windows of the length that `-c` says.
pub(crate) fn options(mut options: EngineOptions, args: &TextArgs) -> EngineOptions {
    let window = options.context.unwrap_or(WINDOW);
    options.context = Some(window.saturating_add(args.stride.unwrap_or(0) / 2));
    options
}

impl TextArgs {
    /// The windows over the text, as the loaded model reads it.
    pub(crate) fn windows(&self, session: &Session) -> Result<Windows, Failure> {
        let mut bos = None;
        let tokens = match (&self.file, &self.tokens) {
            (Some(path), _) => {
                let tokenizer = tokenizer(session)?;
                let text = std::fs::read_to_string(path)
                    .map_err(|e| Failure::file("cannot read the text", path, &e))?;
                bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
                let mut tokens: Vec<u32> = bos.into_iter().collect();
                tokens.extend(tokenizer.encode(&text, Specials::Plain)?);
                tokens
            }
            (None, Some(path)) => read_tokens(path)?,
            (None, None) => return Err(Failure::usage("there is no text", "give -f or --tokens")),
        };
        let length = session.engine.model().context as usize;
        let stride = self.stride.map(|stride| stride as usize);
        // (Strided windows have context enough to do without.)
        let bos = bos.filter(|_| stride.is_none());
        Windows::over(tokens, length, stride, self.chunks.map(|n| n as usize), bos)
    }

    /// Whether windows overlap.
    pub(crate) fn is_strided(&self) -> bool {
        self.stride.is_some()
    }
}

impl Windows {
    pub(crate) fn over(
        mut tokens: Vec<u32>,
        length: usize,
        stride: Option<usize>,
        chunks: Option<usize>,
        bos: Option<u32>,
    ) -> Result<Self, Failure> {
        let (step, first, count) = match stride {
            None => (length, length / 2, tokens.len() / length),
            Some(stride) if stride >= length => {
                let what = format!("a stride of {stride} leaves no context in windows of {length} tokens");
                return Err(Failure::usage(what, "give a smaller --stride or a larger -c"));
            }
            Some(stride) => {
                (stride, length - stride - 1, tokens.len().saturating_sub(length).div_ceil(stride))
            }
        };
        if length < 4 {
            return Err(Failure::usage(
                format!("windows of {length} tokens are too short"),
                "give a larger -c",
            ));
        }
        let count = chunks.map_or(count, |chunks| chunks.min(count));
        if count == 0 {
            let what = format!("the text has {} tokens, one window takes {length}", tokens.len());
            return Err(Failure::usage(what, "give a longer text or a smaller -c"));
        }
        tokens.truncate((count - 1) * step + length);
        Ok(Self { tokens, length, step, first, count, bos })
    }

    /// Predictions that count in each window.
    #[cfg(test)]
    pub(crate) fn rows(&self) -> usize {
        self.length - 1 - self.first
    }

    /// Runs every window and hands on each prediction that counts, in order. `done` makes the progress bar's message of a finished window.
    pub(crate) fn run(
        &self,
        session: &mut Session,
        quiet: bool,
        row: &mut dyn FnMut(Row<'_>) -> Result<(), Failure>,
        done: &mut dyn FnMut() -> String,
    ) -> Result<(), Failure> {
        let generating = Generating::begin();
        let bar = Bar::count(quiet, self.count as u64);
        for window in 0..self.count {
            if generating.stop_flag().load(Ordering::Relaxed) {
                return Err(Report::new(Class::Interrupted, "interrupted").into());
            }
            self.run_one(session, window, row)?;
            bar.set(window as u64 + 1, self.count as u64, done());
        }
        Ok(())
    }

    fn run_one(
        &self,
        session: &mut Session,
        window: usize,
        row: &mut dyn FnMut(Row<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let text = &self.tokens[window * self.step..][..self.length];
        let mut input = text[..self.length - 1].to_vec();
        if let Some(bos) = self.bos {
            input[0] = bos;
        }
        let (context, counted) = input.split_at(self.first);
        let mut sequence = session.engine.new_sequence()?;
        session.engine.forward(&mut sequence, context, Want::None, &mut |_, _| ())?;
        let mut result = Ok(());
        session.engine.forward(&mut sequence, counted, Want::All, &mut |position, logits| {
            if result.is_err() {
                return;
            }
            result = if logits.iter().all(|logit| logit.is_finite()) {
                row(Row { target: text[position + 1], logits })
            } else {
                let at = window * self.step + position;
                Err(Report::new(
                    Class::Internal,
                    format!("the logits after token {at} of the text are not finite"),
                )
                .hint("verify the model files; if they are sound, please report this")
                .into())
            };
        })?;
        session.warn();
        result
    }
}

/// The logarithm of the sum of the exponentials.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    f64::from(max) + sum.ln()
}

/// A mean that knows how sure it is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Mean {
    sum: f64,
    squares: f64,
    count: u64,
}

impl Mean {
    pub(crate) fn add(&mut self, x: f64) {
        self.sum += x;
        self.squares += x * x;
        self.count += 1;
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn value(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// Standard error of the mean; 0 of a single value.
    pub(crate) fn error(&self) -> f64 {
        let variance = self.squares / self.count as f64 - self.value() * self.value();
        if self.count < 2 { 0.0 } else { (variance.max(0.0) / (self.count - 1) as f64).sqrt() }
    }
}

/// Perplexity and its standard error, of a mean of negative log-likelihoods.
pub(crate) fn perplexity(nll: &Mean) -> (f64, f64) {
    let value = nll.value().exp();
    (value, value * nll.error())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(n: u32, length: usize, stride: Option<usize>) -> Windows {
        Windows::over((0..n).collect(), length, stride, None, None).expect("enough of a text")
    }

    #[test]
    fn windows_follow_each_other_and_their_second_halves_count() {
        let plain = windows(35, 8, None);
        assert_eq!((plain.step, plain.first, plain.count, plain.rows()), (8, 4, 4, 3));
        assert_eq!(plain.tokens.len(), 32);
    }

    #[test]
    fn strided_windows_predict_every_token_once() {
        let strided = windows(35, 10, Some(4));
        // Windows at 0, 4, … of which the last ends before the text does; each predicts its last four tokens.
        assert_eq!((strided.first, strided.rows(), strided.count), (5, 4, 7));
        let predicted: Vec<usize> =
            (0..strided.count).flat_map(|w| (6..10).map(move |j| w * 4 + j)).collect();
        assert_eq!(predicted, (6..34).collect::<Vec<_>>());
    }

    #[test]
    fn a_short_text_says_what_is_missing() {
        for (stride, length) in [(None, 36), (Some(4), 35), (Some(8), 8), (None, 3)] {
            assert!(Windows::over((0..35).collect(), length, stride, None, None).is_err());
        }
    }

    #[test]
    fn means_and_errors() {
        let mut mean = Mean::default();
        [1.0, 2.0, 4.0].into_iter().for_each(|x| mean.add(x));
        assert!((mean.value() - 7.0 / 3.0).abs() < 1e-12);
        // Population variance 14/9 over n - 1.
        assert!((mean.error() - (14.0f64 / 9.0 / 2.0).sqrt()).abs() < 1e-12);
        assert!((log_sum_exp(&[1000.0, 1000.0]) - 1000.0 - 2f64.ln()).abs() < 1e-9);
    }
}
