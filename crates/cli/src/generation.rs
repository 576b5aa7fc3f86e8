//! One generation on the terminal: tokens become text on stdout as they come, and Ctrl-C or a closed pipe ends it.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use engine::{Event, GenerateOptions, Generation};
use files::Class;

use crate::interrupt::Generating;
use crate::session::Session;
use crate::ui::error::{Failure, Report};
use crate::ui::progress::PromptBar;
use crate::ui::stats::RunStats;

/// Models without a vocabulary can be computed with, but not talked to.
pub(crate) fn tokenizer(session: &Session) -> Result<Arc<text::Tokenizer>, Failure> {
    session.engine.tokenizer().cloned().ok_or_else(|| {
        Report::new(
            Class::Unsupported,
            "this model carries no tokenizer, so it can neither read nor write text",
        )
        .hint("`slotbank logits MODEL --tokens …` runs token ids")
        .into()
    })
}

/// The parts of the figures that do not depend on what was generated.
pub(crate) fn describe(session: &Session) -> RunStats {
    let mut stats = RunStats::default();
    stats.set_engine(session.engine.stats());
    stats
}

/// One generation that Ctrl-C or a closed stdout can stop.
pub(crate) fn generate(
    session: &mut Session,
    sequence: &mut engine::Sequence,
    prompt: &[u32],
    options: &GenerateOptions,
    printer: &mut Printer,
) -> Result<Generation, Failure> {
    let generating = Generating::begin();
    let stop = generating.stop_flag();
    let mut bar = None;
    let generation = session.engine.generate(sequence, prompt, options, stop, &mut |event| match event {
        Event::Prompt(progress) => {
            bar.get_or_insert_with(|| PromptBar::new(!printer.stream)).set(&progress);
        }
        Event::Token(token) => {
            bar = None;
            if printer.push(token).is_err() {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
    session.warn();
    Ok(generation?)
}

/// Turns tokens into text on stdout, complete characters only, each as soon as it is known.
pub(crate) struct Printer {
    detokenizer: text::Detokenizer,
    stream: bool,
    text: String,
    emitted: u64,
    failed: Option<std::io::Error>,
}

impl Printer {
    pub(crate) fn new(tokenizer: &Arc<text::Tokenizer>, stream: bool) -> Self {
        Self {
            detokenizer: text::Detokenizer::new(tokenizer.clone()),
            stream,
            text: String::new(),
            emitted: 0,
            failed: None,
        }
    }

    /// Fails once stdout cannot be written.
    pub(crate) fn push(&mut self, token: u32) -> Result<(), ()> {
        self.emitted += 1;
        let piece = self.detokenizer.push(token);
        self.text.push_str(piece);
        if self.stream && self.failed.is_none() && !piece.is_empty() {
            self.failed = write_now(piece).err();
        }
        if self.failed.is_some() { Err(()) } else { Ok(()) }
    }

    /// The whole text and the number of tokens behind it; ends the line on stdout.
    pub(crate) fn finish(mut self) -> Result<(String, u64), Failure> {
        let rest = self.detokenizer.finish();
        self.text.push_str(rest);
        if self.stream && self.failed.is_none() {
            let end = if self.text.ends_with('\n') { "" } else { "\n" };
            self.failed = write_now(&format!("{rest}{end}")).err();
        }
        match self.failed {
            None => Ok((self.text, self.emitted)),
            Some(error) => Err(Failure::stdout(error)),
        }
    }
}

fn write_now(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
