//! `slotbank run`: continue a text. The text goes to stdout as it comes, everything else to stderr.

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

use engine::forecast::Forecast;
use engine::{Engine, Finish};
use files::Class;
use text::Specials;

use crate::args::{GenerateArgs, ModelArgs};
use crate::forecast::{self, Hits, RateArgs};
use crate::generation::{Printer, describe, generate, tokenizer};
use crate::session;
use crate::ui::error::{Failure, Report};
use crate::ui::forecast::Compared;
use crate::ui::stats::{RunStats, finish_note};
use crate::ui::{self, Paint};

/// Continue a text
#[derive(Debug, clap::Args)]
#[command(
    after_help = "the continuation alone goes to standard output, the memory plan and the figures to standard error"
)]
pub(crate) struct Args {
    /// Text to continue; `-`, or nothing with piped input, reads it from standard input
    prompt: Option<String>,
    /// llama.cpp's way to give the prompt
    #[arg(short, long = "prompt", hide = true, conflicts_with = "prompt")]
    prompt_flag: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    generate: GenerateArgs,
    /// Print one JSON object with text, tokens and figures at the end instead of streaming
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Compare the figures with what the plan lets one expect; that measures drive, memory and kernels first,
    /// for about a second
    #[arg(long, help_heading = "Output", conflicts_with_all = ["no_stats", "quiet"])]
    stats: bool,
    /// No figures at the end
    #[arg(long, help_heading = "Output")]
    no_stats: bool,
}

#[derive(serde::Serialize)]
struct Output<'a> {
    model: &'a str,
    prompt: &'a str,
    text: String,
    tokens: &'a [u32],
    finish: Finish,
    seed: u64,
    stats: &'a RunStats,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let prompt = prompt(args)?;
    let model = session::open(args.model.path(), &args.model.sidecar)?;
    let expected = if args.stats { Some(expected(&model, args)?) } else { None };
    let mut session = session::load(&model, &args.generate.bank, args.generate.quiet)?;
    let tokenizer = tokenizer(&session)?;
    let tokens = tokenizer.encode(&prompt, Specials::Parse)?;
    if !args.generate.quiet && !args.json && std::io::stdout().is_terminal() {
        // The continuation reads on from the prompt, yet stdout holds the continuation alone.
        let _ = write!(std::io::stderr(), "\n{}", Paint::Dim.on(&prompt));
    }
    let options = args.generate.options();
    let mut sequence = session.engine.new_sequence()?;
    let mut printer = Printer::new(&tokenizer, !args.json);
    let generation = generate(&mut session, &mut sequence, &tokens, &options, &mut printer)?;
    // The trace is worth having even when nobody reads the text any more.
    let printed = printer.finish();
    let mut stats = describe(&session);
    session.finish()?;
    let (text, emitted) = printed?;
    stats.add(&generation, emitted);
    stats.set_experts(session.counters());
    if args.stats {
        stats.set_layers(&session.layers());
    }
    stats.planned = expected.and_then(|expected| {
        let decoded = session.engine.bank_stats().map(|_| generation.decode.experts);
        let (passes, ns) = (generation.decode_passes as u64, generation.decode_ns);
        Compared::new(&expected, decoded.as_ref(), passes, ns)
    });
    if args.json {
        let (tokens, finish) = (&generation.tokens[..], generation.finish);
        let (model, prompt, seed) = (&model.name[..], &prompt[..], args.generate.sampling.seed);
        ui::print_json(&Output { model, prompt, text, tokens, finish, seed, stats: &stats })?;
    }
    if let Some(note) = finish_note(generation.finish, session.engine.model().context) {
        ui::note(note);
    }
    if !args.generate.quiet && !args.no_stats {
        ui::note(stats.render());
    }
    Ok(match generation.finish {
        Finish::Interrupted => ExitCode::from(Class::Interrupted.exit_code()),
        _ => ExitCode::SUCCESS,
    })
}

/// What the plan lets one expect of a token, by rates measured now.
fn expected(model: &session::Model, args: &Args) -> Result<Forecast, Failure> {
    let options = args.generate.bank.options();
    let plan = Engine::plan(&model.checkpoint, &options)?;
    let (rates, hits) = (RateArgs::default(), Hits::Estimate);
    let outlook = forecast::outlook(&model.checkpoint, &plan, &options, &rates, &hits, false)?;
    Ok(outlook.forecast)
}

/// From the argument, or all of stdin without its last line end.
fn prompt(args: &Args) -> Result<String, Failure> {
    let given = args.prompt.as_deref().or(args.prompt_flag.as_deref());
    let text = match given {
        Some(text) if text != "-" => text.to_owned(),
        None if std::io::stdin().is_terminal() => {
            return Err(Failure::usage("there is no prompt", "slotbank run \"Once upon a time\""));
        }
        _ => {
            let mut bytes = Vec::new();
            std::io::stdin()
                .read_to_end(&mut bytes)
                .map_err(|e| Report::new(Class::Io, "cannot read standard input").why(e.to_string()))?;
            let mut text = String::from_utf8(bytes).map_err(|e| {
                Report::new(Class::Usage, "the prompt on standard input is not utf-8").why(e.to_string())
            })?;
            if text.ends_with('\n') {
                text.pop();
            }
            if text.ends_with('\r') {
                text.pop();
            }
            text
        }
    };
    if text.is_empty() {
        return Err(Failure::usage("the prompt is empty", "slotbank run \"Once upon a time\""));
    }
    Ok(text)
}
