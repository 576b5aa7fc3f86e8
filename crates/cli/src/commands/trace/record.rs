//! `slotbank trace record`: run a text or a list of token ids and keep how it was routed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use engine::Want;
use files::Class;
use text::Specials;

use super::Identity;
use crate::args::{GenerateArgs, ModelArgs};
use crate::commands::bench::speed::read_tokens;
use crate::generation::{Printer, generate, tokenizer};
use crate::interrupt::Generating;
use crate::session::{self, Session};
use crate::ui;
use crate::ui::error::Failure;

/// Run a prompt, or given token ids, and write one line per routed layer call
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// File to write
    #[arg(value_name = "TRACE")]
    file: PathBuf,
    /// Text to continue
    #[arg(value_name = "PROMPT", required_unless_present = "tokens")]
    prompt: Option<String>,
    /// Token ids to run one by one instead, as plain numbers or JSON (see make-model --stream)
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    tokens: Option<PathBuf>,
    /// So many of them before, as a prompt
    #[arg(long, value_name = "N", default_value_t = 0, requires = "tokens")]
    prompt_tokens: usize,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    generate: GenerateArgs,
}

const AFTER_HELP: &str = "\
the model and the bank of the run are written to TRACE.model.json: replay and simulate refuse the
trace of another model. With --tokens, -n counts the ids to run one by one, as far as the file goes";

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let mut options = args.generate.bank.options();
    if let Some(other) = options.trace.replace(args.file.clone()) {
        let what = format!("there are two traces to write: {} and {}", args.file.display(), other.display());
        return Err(Failure::usage(what, "leave --trace out"));
    }
    let given = args.tokens.as_deref().map(read_tokens).transpose()?;
    let model = session::open(args.model.path(), &args.model.sidecar)?;
    let mut session = session::load_with(&model, &args.generate.bank, options, args.generate.quiet)?;
    let (tokens, interrupted) = match (&given, &args.prompt) {
        (Some(ids), _) => {
            run_ids(&mut session, ids, args.prompt_tokens, args.generate.sampling.max_tokens as usize)?
        }
        (None, Some(prompt)) => run_text(&mut session, prompt, args)?,
        (None, None) => return Err(Failure::usage("there is nothing to run", "give a prompt or --tokens")),
    };
    let counters = session.counters().unwrap_or_default();
    session.finish()?;
    if !args.generate.quiet {
        let (file, whose) = (args.file.display(), Identity::path(&args.file));
        ui::note(format!("{file}: {tokens} tokens, {} calls; {}", counters.calls, whose.display()));
    }
    Ok(if interrupted { ExitCode::from(Class::Interrupted.exit_code()) } else { ExitCode::SUCCESS })
}

/// A prompt of the first ids, then the others one by one; the tokens that ran, and whether Ctrl-C ended it.
fn run_ids(
    session: &mut Session,
    ids: &[u32],
    prompt: usize,
    max_tokens: usize,
) -> Result<(usize, bool), Failure> {
    if prompt >= ids.len() {
        let what = format!("the token list has {} ids, {prompt} are wanted as a prompt", ids.len());
        return Err(Failure::usage(what, "give a smaller --prompt-tokens"));
    }
    let (prompt, rest) = ids.split_at(prompt);
    let mut sequence = session.engine.new_sequence()?;
    let generating = Generating::begin();
    let mut done = 0;
    if !prompt.is_empty() {
        session.engine.forward(&mut sequence, prompt, Want::Last, &mut |_, _| ())?;
        done = prompt.len();
    }
    for id in rest.iter().take(max_tokens) {
        if generating.stop_flag().load(Ordering::Relaxed) {
            return Ok((done, true));
        }
        session.engine.forward(&mut sequence, std::slice::from_ref(id), Want::Last, &mut |_, _| ())?;
        done += 1;
    }
    Ok((done, false))
}

/// A text and its continuation, which goes to stdout.
fn run_text(session: &mut Session, prompt: &str, args: &Args) -> Result<(usize, bool), Failure> {
    let tokenizer = tokenizer(session)?;
    let tokens = tokenizer.encode(prompt, Specials::Parse)?;
    if tokens.is_empty() {
        return Err(Failure::usage("the prompt is empty", "give a text or --tokens"));
    }
    let options = args.generate.options();
    let mut sequence = session.engine.new_sequence()?;
    let mut printer = Printer::new(&tokenizer, true);
    let generation = generate(session, &mut sequence, &tokens, &options, &mut printer)?;
    // The trace is worth having even when nobody reads the text any more.
    let printed = printer.finish();
    if printed.is_err() {
        session.finish()?;
    }
    printed?;
    let ran = generation.prompt_tokens + generation.decode_passes;
    Ok((ran, generation.finish == engine::Finish::Interrupted))
}
