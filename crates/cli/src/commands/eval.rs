//! `slotbank eval`: two measurements of a model by its own text.
//!
//! `--items FILE` answers prompts greedily and counts exact answers; `--sample N` writes sampled completions of one
//! prompt for a grammar or a person to judge. Both give the same numbers for any bank.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use engine::{Finish, GenerateOptions, SamplingOptions};
use files::Class;
use serde::{Deserialize, Serialize};
use text::{Specials, Tokenizer};

use crate::args::{GenerateArgs, ModelPath};
use crate::generation::{Printer, generate, tokenizer};
use crate::session::{self, Session};
use crate::ui::error::{Failure, Report};
use crate::ui::progress::Bar;
use crate::ui::table::{Align, Table};
use crate::ui::{self, units};

/// Measure a model: exact answers to prompts, or samples for a grammar to judge
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelPath,
    /// JSON lines with "prompt" and "answer"; "group" and "chance" are optional
    #[arg(long, help_heading = "What to measure", value_name = "FILE", required_unless_present = "sample", conflicts_with_all = ["sample", "prompt"])]
    items: Option<PathBuf>,
    /// Write this many sampled completions instead
    #[arg(long, help_heading = "What to measure", value_name = "N", requires = "prompt")]
    sample: Option<u64>,
    /// What the samples continue
    #[arg(long, help_heading = "What to measure", value_name = "TEXT", requires = "sample")]
    prompt: Option<String>,
    /// Print each item and its completion as JSON lines, then the result as the last line
    #[arg(long, conflicts_with = "sample", help_heading = "Output")]
    details: bool,
    /// Print the result as JSON
    #[arg(long, conflicts_with = "sample", help_heading = "Output")]
    json: bool,
    #[command(flatten)]
    generate: GenerateArgs,
}

const AFTER_HELP: &str = "\
--items completes each prompt greedily; an item is right when the completion, without leading
blanks, begins with the answer and does not go on with a letter or digit. --sample prints one JSON
object per completion; completion i uses seed + i.";

#[derive(Debug, Deserialize)]
struct Item {
    prompt: String,
    answer: String,
    /// Items that are counted together as well.
    group: Option<String>,
    /// Probability of a right answer by guessing.
    chance: Option<f64>,
}

#[derive(Debug, Default, Clone, Serialize)]
struct Score {
    items: u64,
    right: u64,
    accuracy: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    chance: Option<f64>,
}

#[derive(Serialize)]
struct Outcome {
    model: String,
    attention: &'static str,
    #[serde(flatten)]
    all: Score,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    groups: BTreeMap<String, Score>,
}

#[derive(Serialize)]
struct Detail<'a> {
    prompt_tokens: usize,
    answer: &'a str,
    completion: &'a str,
    right: bool,
}

#[derive(Serialize)]
struct Sample<'a> {
    prompt: &'a str,
    /// Prompt and completion, which is what a grammar judges.
    text: String,
    seed: u64,
    finish: Finish,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let items = args.items.as_deref().map(read_items).transpose()?;
    let model = session::open(args.model.path(), &args.model.sidecar)?;
    let mut session = session::load(&model, &args.generate.bank, args.generate.quiet)?;
    let tokenizer = tokenizer(&session)?;
    let done = match (&items, args.sample, &args.prompt) {
        (Some(items), ..) => answer_all(args, &model.name, &mut session, &tokenizer, items),
        (None, Some(count), Some(prompt)) => sample_all(args, &mut session, &tokenizer, count, prompt),
        _ => unreachable!("the argument parser asks for one of the two"),
    };
    session.finish()?;
    done
}

fn read_items(path: &Path) -> Result<Vec<Item>, Failure> {
    let file = File::open(path).map_err(|e| Failure::file("cannot read the items", path, &e))?;
    let mut items = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|e| Failure::file("cannot read the items", path, &e))?;
        if line.trim().is_empty() {
            continue;
        }
        let item: Item = serde_json::from_str(&line).map_err(|e| bad_item(path, number, e.to_string()))?;
        if item.prompt.is_empty() || item.answer.trim().is_empty() {
            return Err(bad_item(path, number, "prompt or answer is empty".into()));
        }
        items.push(item);
    }
    if items.is_empty() {
        return Err(Report::new(Class::BadFile, "there are no items")
            .place(path.display().to_string())
            .into());
    }
    Ok(items)
}

fn bad_item(path: &Path, index: usize, why: String) -> Failure {
    Report::new(Class::BadFile, "bad item")
        .place(format!("{}, line {}", path.display(), index + 1))
        .why(why)
        .hint("each line is an object like {\"prompt\":\"…\",\"answer\":\"…\"}")
        .into()
}

/// Stopped by Ctrl-C: no result, since half a result looks like a whole one.
fn interrupted() -> Failure {
    Report::new(Class::Interrupted, "interrupted").into()
}

fn answer_all(
    args: &Args,
    name: &str,
    session: &mut Session,
    tokenizer: &std::sync::Arc<Tokenizer>,
    items: &[Item],
) -> Result<ExitCode, Failure> {
    let bar = Bar::count(args.generate.quiet, items.len() as u64);
    let (mut all, mut groups) = (Score::default(), BTreeMap::<String, Score>::new());
    for (done, item) in items.iter().enumerate() {
        let message = format!("{} of {done} right", all.right);
        bar.set(done as u64, items.len() as u64, message);
        let prompt = tokenizer.encode(&item.prompt, Specials::Parse)?;
        let answer = tokenizer.encode(item.answer.trim(), Specials::Plain)?;
        let options = GenerateOptions {
            // Room for a leading blank and for what shows that the answer has ended.
            max_tokens: Some(answer.len() + 3),
            sampling: SamplingOptions { temperature: 0.0, ..SamplingOptions::default() },
            ..GenerateOptions::default()
        };
        let (completion, finish) = complete(session, tokenizer, &prompt, &options)?;
        if finish == Finish::Interrupted {
            return Err(interrupted());
        }
        let right = is_right(&completion, &item.answer);
        all.count(right, item.chance);
        if let Some(group) = &item.group {
            groups.entry(group.clone()).or_default().count(right, item.chance);
        }
        if args.details {
            let completion = completion.as_str();
            let line = Detail { prompt_tokens: prompt.len(), answer: &item.answer, completion, right };
            ui::print(serde_json::to_string(&line).expect("plain fields"))?;
        }
    }
    drop(bar);
    let outcome =
        Outcome { model: name.to_owned(), attention: args.generate.bank.attention_name(), all, groups };
    if args.details {
        ui::print(serde_json::to_string(&outcome).expect("plain fields"))?;
    } else if args.json {
        ui::print_json(&outcome)?;
    } else {
        ui::print(table(&outcome))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn sample_all(
    args: &Args,
    session: &mut Session,
    tokenizer: &std::sync::Arc<Tokenizer>,
    count: u64,
    prompt: &str,
) -> Result<ExitCode, Failure> {
    let tokens = tokenizer.encode(prompt, Specials::Parse)?;
    let bar = Bar::count(args.generate.quiet, count);
    for i in 0..count {
        bar.set(i, count, "samples");
        let seed = args.generate.sampling.seed.wrapping_add(i);
        let options = GenerateOptions {
            sampling: SamplingOptions { seed, ..args.generate.sampling.options() },
            ..args.generate.options()
        };
        let (completion, finish) = complete(session, tokenizer, &tokens, &options)?;
        if finish == Finish::Interrupted {
            return Err(interrupted());
        }
        let text = format!("{prompt}{completion}");
        ui::print(serde_json::to_string(&Sample { prompt, text, seed, finish }).expect("plain fields"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn complete(
    session: &mut Session,
    tokenizer: &std::sync::Arc<Tokenizer>,
    prompt: &[u32],
    options: &GenerateOptions,
) -> Result<(String, Finish), Failure> {
    let mut sequence = session.engine.new_sequence()?;
    let mut printer = Printer::new(tokenizer, false);
    let generation = generate(session, &mut sequence, prompt, options, &mut printer)?;
    Ok((printer.finish()?.0, generation.finish))
}

fn is_right(completion: &str, answer: &str) -> bool {
    completion
        .trim_start()
        .strip_prefix(answer.trim())
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
}

impl Score {
    fn count(&mut self, right: bool, chance: Option<f64>) {
        let before = self.items as f64;
        self.items += 1;
        self.right += u64::from(right);
        self.accuracy = self.right as f64 / self.items as f64;
        // The mean over the items that say it; items of one file either all do or none.
        if let Some(chance) = chance {
            self.chance = Some((self.chance.unwrap_or(0.0) * before + chance) / self.items as f64);
        }
    }
}

fn table(outcome: &Outcome) -> String {
    let mut table = Table::new(&[Align::Left, Align::Right, Align::Right, Align::Right, Align::Right]);
    table.row(["attention", "items", "right", "accuracy", "chance"]);
    let row = |name: &str, score: &Score| {
        let chance = score.chance.map_or_else(|| "–".to_owned(), units::percent);
        [
            name.to_owned(),
            score.items.to_string(),
            score.right.to_string(),
            units::percent(score.accuracy),
            chance,
        ]
    };
    for (name, score) in &outcome.groups {
        table.row(row(&format!("{} {name}", outcome.attention), score));
    }
    table.row(row(outcome.attention, &outcome.all));
    table.render("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_whole_words() {
        assert!(is_right(" 427.", "427"));
        assert!(is_right("427", " 427"));
        assert!(is_right("the blue box. And", "the blue box"));
        assert!(!is_right(" 4271", "427"));
        assert!(!is_right(" 42", "427"));
        assert!(!is_right("", "427"));
    }

    #[test]
    fn scores_average_the_chance() {
        let mut score = Score::default();
        score.count(true, Some(0.25));
        score.count(false, Some(0.75));
        assert_eq!((score.items, score.right, score.accuracy, score.chance), (2, 1, 0.5, Some(0.5)));
    }
}
