//! `slotbank logits`: the logits of every position of a given token list. The parity tool: it needs no tokenizer, and its
//! numbers read back as exactly the f32 that were computed.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use engine::Want;
use files::Class;

use crate::args::{BankArgs, ModelPath};
use crate::session;
use crate::ui::error::{Failure, Report};

/// Run a list of token ids and print the logits of every position as JSON
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Token ids, separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',', required = true)]
    tokens: Vec<u32>,
    #[command(flatten)]
    model: ModelPath,
    #[command(flatten)]
    bank: BankArgs,
    /// JSON is the only output; accepted so that scripts can say it
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Do not show the memory plan
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

const AFTER_HELP: &str = "\
prints one object, {\"n_vocab\":N,\"tokens\":[…],\"logits\":[[…],…]}; every number reads back as exactly
the 32-bit float that was computed";

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let model = session::open(args.model.path(), &args.model.sidecar)?;
    let mut session = session::load(&model, &args.bank, args.quiet || args.json)?;
    let engine = &mut session.engine;
    let n_vocab = engine.model().n_vocab;
    let mut sequence = engine.new_sequence()?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    // Rows go out as they come: a long list of positions times a real vocabulary is gigabytes of text.
    // Nothing is printed before the first row is there: an error leaves standard output empty.
    let head = format!("{{\"n_vocab\":{n_vocab},\"tokens\":{},\"logits\":[", serde_json::json!(args.tokens));
    let mut written = Ok(());
    let mut broken = None;
    engine.forward(&mut sequence, &args.tokens, Want::All, &mut |position, row| {
        // JSON has no word for NaN or infinity, and a broken row must not pass for a result.
        if row.iter().any(|x| !x.is_finite()) {
            broken.get_or_insert(position);
        }
        if written.is_ok() {
            written = write_row(&mut out, if position == 0 { &head } else { "," }, row);
        }
    })?;
    written.and_then(|()| writeln!(out, "]}}")).and_then(|()| out.flush()).map_err(Failure::stdout)?;
    drop(out);
    session.finish()?;
    match broken {
        None => Ok(ExitCode::SUCCESS),
        Some(position) => {
            Err(Report::new(Class::Internal, format!("the logits of position {position} are not finite"))
                .hint("verify the model files; if they are sound, please report this")
                .into())
        }
    }
}

fn write_row(out: &mut impl Write, before: &str, row: &[f32]) -> std::io::Result<()> {
    out.write_all(before.as_bytes())?;
    serde_json::to_writer(out, row).map_err(std::io::Error::from)
}
