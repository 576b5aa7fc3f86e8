//! `slotbank chat`: a conversation through the model's own template.
//!
//! On a terminal a line editor with history; otherwise each line of stdin is a turn of the user, which is also how the
//! tests talk. The cache keeps what the rendered conversation has in common with the last one, so a turn costs its own
//! tokens only.

use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;

use engine::{EngineOptions, Finish, GenerateOptions, Sequence};
use files::Class;
use rustyline::error::ReadlineError;
use text::{Message, RenderOptions, Tokenizer, chat::encode};

use crate::args::{GenerateArgs, ModelArgs};
use crate::generation::{Printer, generate, tokenizer};
use crate::session::{self, Session};
use crate::ui::error::{Failure, Report};
use crate::ui::stats::{RunStats, finish_note};
use crate::{folders, ui};

/// Talk with a model
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Instructions that precede the conversation
    #[arg(long, value_name = "TEXT", help_heading = "Conversation")]
    system: Option<String>,
    #[command(flatten)]
    generate: GenerateArgs,
    /// No figures at the end
    #[arg(long, help_heading = "Output")]
    no_stats: bool,
}

const HELP: &str = "\
in the conversation:
  /help   this list
  /clear  forget the conversation
  /stats  speed and streaming figures so far
  /exit   leave (or ctrl-d)
ctrl-c stops a reply; a second one leaves. Piped input works: each line is one turn";

/// What one line of input leads to.
enum Next {
    Go,
    Leave,
}

/// A user's line, or the end of them.
enum Line {
    Text(String),
    Interrupted,
    End,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let model = session::open(args.model.path(), &args.model.sidecar)?;
    // What of a prompt comes again with the next one has to be come back to.
    let options = EngineOptions { snapshots: 1, ..args.generate.bank.options() };
    let session = session::load_with(&model, &args.generate.bank, options, args.generate.quiet)?;
    let tokenizer = tokenizer(&session)?;
    if session.engine.chat_template().is_none() {
        return Err(Report::new(Class::Unsupported, "this model carries no chat template")
            .place(model.checkpoint.root().display().to_string())
            .hint("`slotbank run` continues a text without one")
            .into());
    }
    let mut input = Input::open(args.generate.quiet)?;
    let mut talk = Talk::new(args, session, tokenizer)?;
    let mut code = ExitCode::SUCCESS;
    // Ctrl-C counts from the last line that was entered: one for the reply that it stopped, one more leaves.
    let mut interrupts = 0;
    loop {
        match input.line()? {
            Line::End => break,
            Line::Interrupted if interrupts > 0 => {
                code = ExitCode::from(Class::Interrupted.exit_code());
                break;
            }
            Line::Interrupted => {
                interrupts += 1;
                ui::note("ctrl-c again leaves; so do /exit and ctrl-d");
            }
            Line::Text(line) => {
                interrupts = 0;
                match talk.turn(&line) {
                    Ok(Next::Leave) => break,
                    Ok(Next::Go) => interrupts += u32::from(talk.interrupted),
                    Err(Failure::Report(report)) => {
                        // The bank and the cache are whole after an error, so a person can go on; a script should know.
                        report.print();
                        if !input.is_terminal() {
                            code = ExitCode::from(report.class.exit_code());
                        }
                    }
                    Err(pipe) => return talk.session.finish().and(Err(pipe)),
                }
            }
        }
    }
    talk.session.finish()?;
    if !args.generate.quiet && !args.no_stats {
        ui::note(talk.figures().render());
    }
    Ok(code)
}

/// The conversation and what of it is in the cache.
struct Talk {
    session: Session,
    tokenizer: std::sync::Arc<Tokenizer>,
    sequence: Sequence,
    /// The tokens behind the cached positions.
    cached: Vec<u32>,
    system: Option<String>,
    messages: Vec<Message>,
    options: GenerateOptions,
    stats: RunStats,
    interrupted: bool,
}

impl Talk {
    fn new(args: &Args, session: Session, tokenizer: std::sync::Arc<Tokenizer>) -> Result<Self, Failure> {
        let options = args.generate.options();
        let mut talk = Self {
            sequence: session.engine.new_sequence()?,
            cached: Vec::new(),
            system: args.system.clone(),
            messages: Vec::new(),
            options,
            stats: RunStats::default(),
            interrupted: false,
            session,
            tokenizer,
        };
        talk.clear();
        Ok(talk)
    }

    fn clear(&mut self) {
        self.messages = self.system.iter().map(Message::system).collect();
    }

    fn figures(&self) -> RunStats {
        let mut stats = self.stats.clone();
        stats.set_engine(self.session.engine.stats());
        stats.set_experts(self.session.counters());
        stats
    }

    fn turn(&mut self, line: &str) -> Result<Next, Failure> {
        self.interrupted = false;
        match line.trim() {
            "" => {}
            "/exit" | "/quit" | "/bye" => return Ok(Next::Leave),
            "/help" | "/?" => ui::note(HELP),
            "/clear" => {
                self.clear();
                ui::note("the conversation is empty again");
            }
            "/stats" => ui::note(self.figures().render()),
            command if command.starts_with('/') && !command[1..].contains(['/', ' ']) => {
                ui::note(format!("there is no `{command}`; /help lists the commands"));
            }
            _ => {
                self.messages.push(Message::user(line));
                match self.reply() {
                    Ok(reply) => self.messages.push(Message::reply(&reply)),
                    Err(failure) => {
                        self.messages.pop();
                        return Err(failure);
                    }
                }
            }
        }
        Ok(Next::Go)
    }

    fn reply(&mut self) -> Result<String, Failure> {
        let template = self.session.engine.chat_template().expect("checked before the conversation began");
        let mut render = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let tokens = encode(&self.tokenizer, template, &self.messages, &render)?;
        // At least one token has to run, or there are no logits to sample from.
        let kept = common(&self.cached, &tokens).min(tokens.len().saturating_sub(1));
        let kept = self.sequence.truncate(kept);
        if self.sequence.carries_state() {
            // The next prompt will have the messages, but maybe not what asks for this reply, nor all of the reply.
            render.add_generation_prompt = false;
            let messages = encode(&self.tokenizer, template, &self.messages, &render)?;
            self.options.save_after = common(&messages, &tokens).checked_sub(kept).filter(|&n| n > 0);
        }

        let mut printer = Printer::new(&self.tokenizer, true);
        let done =
            generate(&mut self.session, &mut self.sequence, &tokens[kept..], &self.options, &mut printer);
        self.cached = tokens;
        let generation = match done {
            Ok(generation) => generation,
            Err(failure) => {
                // Tokens of the failed reply may be in the cache, but nobody told us which.
                self.sequence.truncate(self.cached.len());
                self.cached.truncate(self.sequence.len());
                let _ = printer.finish();
                return Err(failure);
            }
        };
        self.cached.extend_from_slice(&generation.tokens);
        self.cached.truncate(self.sequence.len());
        let (text, emitted) = printer.finish()?;
        self.stats.add(&generation, emitted);
        self.interrupted = generation.finish == Finish::Interrupted;
        if let Some(note) = finish_note(generation.finish, self.session.engine.model().context) {
            ui::note(note);
        }
        Ok(text)
    }
}

/// How many tokens two texts have in common from their beginning.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Lines from a person or from a pipe.
enum Input {
    Terminal(Box<rustyline::DefaultEditor>),
    Pipe(std::io::Lines<std::io::StdinLock<'static>>),
}

impl Input {
    fn open(quiet: bool) -> Result<Self, Failure> {
        if !std::io::stdin().is_terminal() {
            return Ok(Self::Pipe(std::io::stdin().lock().lines()));
        }
        let config = rustyline::Config::builder().auto_add_history(true).max_history_size(1000);
        let mut editor = config
            .and_then(|config| rustyline::DefaultEditor::with_config(config.build()))
            .map_err(|e| Report::new(Class::Io, "the terminal cannot be used").why(e.to_string()))?;
        if let Some(path) = history_path() {
            // No history yet is the usual case at first; a damaged one is not worth stopping for.
            let _ = editor.load_history(&path);
        }
        if !quiet {
            ui::note("\n/help lists the commands, /exit leaves");
        }
        Ok(Self::Terminal(Box::new(editor)))
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    fn line(&mut self) -> Result<Line, Failure> {
        let failed =
            |why: String| Failure::from(Report::new(Class::Io, "cannot read standard input").why(why));
        match self {
            Self::Terminal(editor) => match editor.readline("> ") {
                Ok(line) => Ok(Line::Text(line)),
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(error) => Err(failed(error.to_string())),
            },
            Self::Pipe(lines) => match lines.next() {
                None => Ok(Line::End),
                Some(Ok(line)) => Ok(Line::Text(line)),
                Some(Err(error)) => Err(failed(error.to_string())),
            },
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        if let (Self::Terminal(editor), Some(path)) = (self, history_path()) {
            // A convenience: a home without room must not turn a good conversation into a failure.
            let _ = path.parent().map(std::fs::create_dir_all);
            let _ = editor.save_history(&path);
        }
    }
}

fn history_path() -> Option<std::path::PathBuf> {
    folders::cache().map(|cache| cache.join("chat-history"))
}
