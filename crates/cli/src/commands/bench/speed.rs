//! `slotbank bench speed`: tokens per second of a whole model, the way llama.cpp's own benchmark counts them: a prompt of N
//! tokens into an empty cache, and N single tokens one after the other, each over several rounds after a warm-up.
//!
//! The tokens are given, never sampled: another engine that gets the same ids does the same work, and routes alike.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use engine::{Sequence, Want};
use experts::Counters;
use files::Class;
use serde::Serialize;

use super::against::{self, Against};
use super::measure::{Cpu, Spread, Took, per_second, timed};
use super::output::{self, Format, Record, number};
use crate::args::{BankArgs, ModelPath};
use crate::session::{self, Model, Session};
use crate::ui::error::{Failure, Report};
use crate::ui::table::{Align, Table};
use crate::ui::{self, units};

/// Measure tokens per second of prefill and decode, end to end
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelPath,
    /// Prompt lengths to measure, separated by commas; 0 measures none
    #[arg(
        short,
        long,
        value_name = "N,…",
        value_delimiter = ',',
        default_value = "512",
        help_heading = "What to measure",
        alias = "n-prompt"
    )]
    prompt: Vec<usize>,
    /// Tokens to decode one by one in each round; 0 measures none
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value_t = 128,
        help_heading = "What to measure",
        alias = "n-gen"
    )]
    r#gen: usize,
    /// Positions already in the cache when decoding starts
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "What to measure")]
    depth: usize,
    /// Ask for the logits of every prompt token, as a perplexity does: else the last layer runs for the
    /// last token only
    #[arg(long, help_heading = "What to measure")]
    all_logits: bool,
    /// Empty the bank before each round, the warm-up included; with reads past the page cache every round begins cold
    #[arg(long, help_heading = "What to measure")]
    cold: bool,
    /// Rounds that count
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), help_heading = "What to measure", alias = "repetitions")]
    rounds: u32,
    /// Rounds before them at most: they end early when no empty slot was filled in the last one
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..), help_heading = "What to measure")]
    warm_up: u32,
    /// Tokens of a warm-up round, the first ones of its window [default: all of them]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "What to measure")]
    warm_up_tokens: Option<u32>,
    /// Measure this too, in turns with the rest of the command line: options of loading and streaming over those that are given, in
    /// one string, such as "--prefetch off" or "--bank 25% --policy lru"
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true, help_heading = "What to measure", conflicts_with_all = ["trace", "dump"])]
    against: Option<String>,
    /// Token ids to run, as plain numbers or JSON (see make-model --stream) [default: a fixed list]
    #[arg(long, value_name = "FILE", help_heading = "What to measure")]
    tokens: Option<PathBuf>,
    #[command(flatten)]
    bank: BankArgs,
    /// Also show where the time went: resident matrices, routed experts, attention, indexer, the rest
    #[arg(long, help_heading = "Output")]
    parts: bool,
    /// How to print the results
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Table, help_heading = "Output")]
    output: Format,
    /// Print every round as JSON (--output json)
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Do not show the memory plan
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

const AFTER_HELP: &str = "\
round r runs the r-th window of the tokens, which begin again at their end; round 0 is the warm-up.
The cache is emptied before each round; the bank is not.

With --against the dense weights are loaded once, and the bank is built anew for every round of
either side, in the order A B, B A, A B and so on. It is warmed up each time, by as many rounds as
the side that takes longer needs to fill its bank, or not at all with --cold. Both sides run the
same tokens and must compute the same. What only a load can change, such as --threads, is refused.
The ratio is the tokens/s of the command line to those of --against, by round. With \"\" both sides
are the same, which shows what noise alone makes of them.";

/// Everything one run measured; tools/bench/llama_bench.py prints the same shape for llama.cpp.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    engine: &'static str,
    version: &'static str,
    model: String,
    architecture: String,
    n_vocab: u32,
    backend: String,
    reader: String,
    threads: usize,
    /// As typed on the command line, with defaults filled in.
    options: engine::EngineOptions,
    slots: Option<u32>,
    /// What the plan remarks on, packed experts first of all.
    notes: Vec<String>,
    pub(super) warm_up_rounds: u32,
    pub(super) tests: Vec<Test>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) against: Option<Box<Against>>,
}

/// One measure over all its rounds.
#[derive(Debug, Serialize)]
pub(super) struct Test {
    pub(super) test: &'static str,
    /// Tokens per round.
    pub(super) tokens: usize,
    tokens_per_s: Spread,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_s_per_token: Option<Spread>,
    bytes_read_per_token: Spread,
    stall_ms_per_token: Spread,
    /// Time for which the drive worked for calls that waited for it; what is above the stall was hidden behind computing.
    io_wall_ms_per_token: Spread,
    /// The same for reads ahead of demand.
    ahead_io_wall_ms_per_token: Spread,
    /// Milliseconds by kind of operation, all rounds together.
    #[serde(skip_serializing_if = "Option::is_none")]
    parts_ms_per_token: Option<BTreeMap<&'static str, f64>>,
    pub(super) rounds: Vec<Round>,
    /// The likeliest token after each of the first warm-up round's outputs: two engines that agree do the same work.
    likeliest: Vec<u32>,
}

/// One round.
#[derive(Debug, Serialize)]
pub(super) struct Round {
    #[serde(flatten)]
    took: Took,
    pub(super) tokens_per_s: f64,
    /// Expert bytes read.
    bytes_read: u64,
    /// Time for which nothing could be computed because reads were outstanding.
    stall_ns: u64,
    /// Time for which reads that calls waited for were at the drive, and reads ahead of demand.
    io_wall_ns: u64,
    ahead_io_wall_ns: u64,
    hits: u64,
    misses: u64,
    /// Experts that went to slots never used before: a cold bank is still filling.
    cold: u64,
    /// What guessing the next layer's experts came to.
    #[serde(skip_serializing_if = "Option::is_none")]
    guesses: Option<Guesses>,
    /// Nanoseconds by kind of operation.
    #[serde(skip)]
    parts: Vec<(&'static str, u64)>,
}

/// Experts guessed, read ahead and used in one round.
#[derive(Debug, Serialize)]
struct Guesses {
    guessed: u64,
    right: u64,
    read_ahead: u64,
    used: u64,
    /// Of the used ones: still being read when their layer asked.
    late: u64,
    wasted_bytes: u64,
}

/// What a test does in one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Prefill,
    Decode { depth: usize },
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let plan = tests(args)?;
    let model = session::open(args.model.path(), &args.model.sidecar)?;
    let given = args.tokens.as_deref().map(read_tokens).transpose()?;
    let output = if args.json { Format::Json } else { args.output };
    let other =
        args.against.as_deref().map(|words| against::options(&model, &args.bank, words)).transpose()?;
    let mut session = session::load(&model, &args.bank, args.quiet || output != Format::Table)?;
    let tokens = given.unwrap_or_else(|| fixed_tokens(session.engine.model().n_vocab));
    let mut sequence = session.engine.new_sequence()?;
    session.engine.time_parts(args.parts);
    let want = if args.all_logits { Want::All } else { Want::Last };
    let run = Run {
        tokens: &tokens,
        want,
        cold: args.cold,
        rounds: args.rounds,
        warm_up: args.warm_up,
        warm_up_tokens: args.warm_up_tokens.map_or(usize::MAX, |tokens| tokens as usize),
    };
    let outcome = if let Some(options) = other {
        let words = args.against.clone().unwrap_or_default();
        against::measure(&model, session, &mut sequence, &run, &plan, words, options)?
    } else {
        let (mut measured, mut warm_up_rounds) = (Vec::new(), 0);
        for (kind, n) in plan {
            let mut bench = Bench { session: &mut session, sequence: &mut sequence, run: &run, kind, n };
            let (test, warmed) = bench.measure()?;
            warm_up_rounds = warm_up_rounds.max(warmed);
            measured.push(test);
        }
        let outcome = Outcome::of(&model, &session, warm_up_rounds, measured);
        session.finish()?;
        outcome
    };
    match output {
        Format::Table => ui::print(table(&outcome))?,
        Format::Json => ui::print_json(&outcome)?,
        Format::Jsonl => ui::print(output::jsonl(&against::records(&outcome)))?,
        Format::Csv => ui::print(output::csv(&against::records(&outcome)))?,
        Format::Md => ui::print(output::markdown(&against::records(&outcome)))?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Outcome {
    pub(super) fn of(model: &Model, session: &Session, warm_up_rounds: u32, tests: Vec<Test>) -> Outcome {
        let (engine, stats) = (&session.engine, session.engine.stats());
        Outcome {
            engine: "slotbank",
            version: env!("CARGO_PKG_VERSION"),
            model: model.name.clone(),
            architecture: engine.model().architecture.clone(),
            n_vocab: engine.model().n_vocab,
            backend: stats.backend,
            reader: stats.reader,
            threads: engine.options().threads(),
            options: engine.options().clone(),
            slots: engine.memory_plan().bank.as_ref().map(experts::BankPlan::slots_total),
            notes: engine.memory_plan().notes.clone(),
            warm_up_rounds,
            tests,
            against: None,
        }
    }
}

/// The measures asked for, in order.
fn tests(args: &Args) -> Result<Vec<(Kind, usize)>, Failure> {
    let prefill = args.prompt.iter().filter(|&&n| n > 0).map(|&n| (Kind::Prefill, n));
    let decode = (args.r#gen > 0).then_some((Kind::Decode { depth: args.depth }, args.r#gen));
    let tests: Vec<_> = prefill.chain(decode).collect();
    if tests.is_empty() {
        return Err(Failure::usage(
            "there is nothing to measure",
            "give --prompt or --gen more than 0 tokens",
        ));
    }
    Ok(tests)
}

pub(crate) fn read_tokens(path: &Path) -> Result<Vec<u32>, Failure> {
    let text =
        std::fs::read_to_string(path).map_err(|e| Failure::file("cannot read the tokens", path, &e))?;
    match parse_tokens(&text) {
        Ok(tokens) if !tokens.is_empty() => Ok(tokens),
        parsed => Err(Report::new(Class::BadFile, "bad token list")
            .place(path.display().to_string())
            .why(parsed.err().unwrap_or_else(|| "it holds none".into()))
            .hint("ids separated by blanks or commas, or JSON: a list, or an object with \"tokens\"")
            .into()),
    }
}

/// Plain ids, or JSON as `bench make-model --stream` writes it.
fn parse_tokens(text: &str) -> Result<Vec<u32>, String> {
    if text.trim_start().starts_with(['[', '{']) {
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let list = value.get("tokens").unwrap_or(&value).clone();
        return serde_json::from_value(list).map_err(|e| e.to_string());
    }
    let words = text.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty());
    words.map(|word| word.parse().map_err(|_| format!("`{word}` is no token id"))).collect()
}

/// Tokens of no meaning, the same everywhere; tools/bench/common.py has the same list.
fn fixed_tokens(n_vocab: u32) -> Vec<u32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % n_vocab
    };
    (0..1 << 16).map(|_| next()).collect()
}

/// Window `index` of `n` tokens; after the last comes the first again.
fn window(tokens: &[u32], index: usize, n: usize) -> Vec<u32> {
    tokens.iter().cycle().skip(index * n % tokens.len()).take(n).copied().collect()
}

fn likeliest(logits: &[f32]) -> u32 {
    let best = logits
        .iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (id, &logit)| if logit > best.1 { (id, logit) } else { best });
    best.0 as u32
}

/// How every test is run.
pub(super) struct Run<'a> {
    tokens: &'a [u32],
    want: Want,
    pub(super) cold: bool,
    pub(super) rounds: u32,
    warm_up: u32,
    /// At most.
    pub(super) warm_up_tokens: usize,
}

/// One test under way.
pub(super) struct Bench<'a> {
    pub(super) session: &'a mut Session,
    pub(super) sequence: &'a mut Sequence,
    pub(super) run: &'a Run<'a>,
    pub(super) kind: Kind,
    pub(super) n: usize,
}

impl Bench<'_> {
    /// Warms up, then measures; also how many rounds the warm-up took.
    fn measure(&mut self) -> Result<(Test, u32), Failure> {
        let (likeliest, warmed) = self.warm_up()?;
        let rounds = (warmed..warmed + self.run.rounds)
            .map(|index| self.round(index as usize, self.n, None))
            .collect::<Result<Vec<_>, _>>()?;
        Ok((summary(self.kind, self.n, rounds, likeliest), warmed))
    }

    /// Rounds until the bank is full: the likeliest tokens of the first of them, and how many they were.
    pub(super) fn warm_up(&mut self) -> Result<(Vec<u32>, u32), Failure> {
        let (mut likeliest, mut warmed) = (Vec::new(), 0);
        while warmed < self.run.warm_up {
            let seen = (warmed == 0).then_some(&mut likeliest);
            let cold = self.round(warmed as usize, self.n.min(self.run.warm_up_tokens), seen)?.cold;
            warmed += 1;
            if cold == 0 || self.run.cold {
                break;
            }
        }
        Ok((likeliest, warmed))
    }

    /// One round over the first `n` tokens of window `index`, into an emptied cache. Only the passes that count are timed.
    pub(super) fn round(
        &mut self,
        index: usize,
        n: usize,
        mut seen: Option<&mut Vec<u32>>,
    ) -> Result<Round, Failure> {
        let (session, sequence) = (&mut *self.session, &mut *self.sequence);
        sequence.truncate(0);
        if self.run.cold {
            session.engine.clear_bank();
        }
        let mut ids = window(self.run.tokens, index, self.n);
        ids.truncate(n);
        if let Kind::Decode { depth } = self.kind
            && depth > 0
        {
            session.engine.forward(
                sequence,
                &window(self.run.tokens, 0, depth),
                Want::None,
                &mut |_, _| (),
            )?;
        }
        let pass = if self.kind == Kind::Prefill { n } else { 1 };
        let before = session.counters().unwrap_or_default();
        let parts_before = session.engine.parts().named();
        let (done, took) = timed(Cpu::Process, || {
            ids.chunks(pass).try_for_each(|ids| {
                session.engine.forward(sequence, ids, self.run.want, &mut |position, logits| {
                    if let Some(seen) = seen.as_deref_mut()
                        && (position + 1).is_multiple_of(pass)
                    {
                        seen.push(likeliest(logits));
                    }
                })
            })
        });
        done?;
        let after = session.counters().unwrap_or_default();
        let parts = session.engine.parts().named().into_iter().zip(parts_before);
        let delta = |field: fn(&Counters) -> u64| field(&after) - field(&before);
        Ok(Round {
            took,
            tokens_per_s: per_second(n as f64, took.wall_ns),
            bytes_read: delta(|c| c.bytes_read),
            stall_ns: delta(|c| c.stall_ns),
            io_wall_ns: delta(|c| c.io_wall_ns),
            ahead_io_wall_ns: delta(|c| c.ahead_io_wall_ns),
            hits: delta(|c| c.hits),
            misses: delta(|c| c.misses),
            cold: delta(|c| c.cold),
            guesses: (delta(|c| c.guessed) > 0).then(|| Guesses {
                guessed: delta(|c| c.guessed),
                right: delta(|c| c.guessed_right),
                read_ahead: delta(|c| c.ahead),
                used: delta(|c| c.ahead_used),
                late: delta(|c| c.ahead_late),
                wasted_bytes: delta(|c| c.ahead_wasted_bytes),
            }),
            parts: parts.map(|((name, now), (_, before))| (name, now - before)).collect(),
        })
    }
}

/// One test from all its rounds.
pub(super) fn summary(kind: Kind, tokens: usize, rounds: Vec<Round>, likeliest: Vec<u32>) -> Test {
    let n = tokens as f64;
    let mut parts = BTreeMap::new();
    for &(name, ns) in rounds.iter().flat_map(|round| &round.parts) {
        *parts.entry(name).or_insert(0.0) += ns as f64 / 1e6 / n / rounds.len() as f64;
    }
    let spread =
        |figure: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(figure)).expect("one round at least");
    let cpu = rounds.iter().map(|r| r.took.cpu_ns.map(|ns| ns as f64 / 1e9 / n)).collect::<Option<Vec<_>>>();
    Test {
        test: if kind == Kind::Prefill { "prefill" } else { "decode" },
        tokens,
        tokens_per_s: spread(&|r| r.tokens_per_s),
        cpu_s_per_token: cpu.and_then(Spread::of),
        bytes_read_per_token: spread(&|r| r.bytes_read as f64 / n),
        stall_ms_per_token: spread(&|r| r.stall_ns as f64 / 1e6 / n),
        io_wall_ms_per_token: spread(&|r| r.io_wall_ns as f64 / 1e6 / n),
        ahead_io_wall_ms_per_token: spread(&|r| r.ahead_io_wall_ns as f64 / 1e6 / n),
        parts_ms_per_token: Some(parts).filter(|parts| parts.values().any(|&ms| ms > 0.0)),
        rounds,
        likeliest,
    }
}

/// Names and units of llama.cpp's benchmark where it has the figure.
pub(super) fn records(outcome: &Outcome) -> Vec<Record> {
    let record = |test: &Test| {
        let kind = if test.test == "prefill" { "pp" } else { "tg" };
        let (hits, misses) = test.rounds.iter().fold((0, 0), |sum, r| (sum.0 + r.hits, sum.1 + r.misses));
        let speeds: Vec<f64> = test.rounds.iter().map(|round| round.tokens_per_s).collect();
        let mean = speeds.iter().sum::<f64>() / speeds.len() as f64;
        let variance =
            speeds.iter().map(|speed| (speed - mean).powi(2)).sum::<f64>() / (speeds.len().max(2) - 1) as f64;
        let mut record = Record::new();
        let mut put = |name: &str, value: serde_json::Value| drop(record.insert(name.to_owned(), value));
        put("model", outcome.model.clone().into());
        put("backend", outcome.backend.clone().into());
        put("n_threads", outcome.threads.into());
        put("n_batch", outcome.options.batch.into());
        put("n_ubatch", outcome.options.ubatch.into());
        put("test", format!("{kind}{}", test.tokens).into());
        put("avg_ts", number(mean));
        put("stddev_ts", number(variance.sqrt()));
        put("bank", format!("{:?}", outcome.options.bank).into());
        put("slots", outcome.slots.into());
        let used = hits + misses;
        put("hit_rate", if used == 0 { serde_json::Value::Null } else { number(hits as f64 / used as f64) });
        put("gb_per_token", number(test.bytes_read_per_token.median / 1e9));
        put("stall_ms_per_token", number(test.stall_ms_per_token.median));
        put("io_wall_ms_per_token", number(test.io_wall_ms_per_token.median));
        let cpu = test.cpu_s_per_token.map(|cpu| number(cpu.median));
        put("cpu_s_per_token", cpu.unwrap_or(serde_json::Value::Null));
        record
    };
    outcome.tests.iter().map(record).collect()
}

fn table(outcome: &Outcome) -> String {
    const RIGHT: Align = Align::Right;
    let mut table = Table::new(&[Align::Left, RIGHT, RIGHT, RIGHT, RIGHT, RIGHT, RIGHT]);
    table.row(["", "tokens/s", "min – max", "CPU s/token", "read/token", "I/O wall/token", "stall/token"]);
    for (label, test) in against::labelled(outcome) {
        let speed = test.tokens_per_s;
        table.row([
            label,
            format!("{:.2}", speed.median),
            format!("{:.2} – {:.2}", speed.min, speed.max),
            test.cpu_s_per_token.map_or_else(|| "–".into(), |cpu| format!("{:.4}", cpu.median)),
            units::bytes(test.bytes_read_per_token.median as u64),
            format!("{:.2} ms", test.io_wall_ms_per_token.median),
            format!("{:.2} ms", test.stall_ms_per_token.median),
        ]);
    }
    let labelled = against::labelled(outcome);
    let parts: String = labelled.iter().filter_map(|(label, test)| part_line(label, test)).collect();
    let (table, ratios) = (table.render("  "), against::lines(outcome));
    format!("{table}\n{ratios}{parts}{} · {} · reader {}", outcome.model, outcome.backend, outcome.reader)
}

/// Where the time of a test went, the largest part first; what is not in any part comes last. Together they are all of it.
fn part_line(label: &str, test: &Test) -> Option<String> {
    let mut parts: Vec<_> = test.parts_ms_per_token.as_ref()?.iter().map(|(name, ms)| (*name, *ms)).collect();
    let stalled: u64 = test.rounds.iter().map(|round| round.stall_ns).sum();
    let per_token = test.tokens as f64 * test.rounds.len() as f64;
    parts.push(("waiting for reads", stalled as f64 / 1e6 / per_token));
    parts.sort_by(|a, b| b.1.total_cmp(&a.1));
    let took: u64 = test.rounds.iter().map(|round| round.took.wall_ns).sum();
    let whole = took as f64 / 1e6 / per_token;
    let known: f64 = parts.iter().map(|part| part.1).sum();
    parts.retain(|part| part.1 > 0.0);
    parts.push(("other", (whole - known).max(0.0)));
    let share = |ms: f64| 100.0 * ms / whole;
    let parts: Vec<_> =
        parts.iter().map(|(name, ms)| format!("{name} {:.0} % ({ms:.2} ms)", share(*ms))).collect();
    Some(format!("  {label}: {}\n", parts.join(" · ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_follow_each_other_and_wrap() {
        let tokens = [0, 1, 2, 3, 4];
        assert_eq!(window(&tokens, 0, 2), [0, 1]);
        assert_eq!(window(&tokens, 1, 2), [2, 3]);
        assert_eq!(window(&tokens, 2, 2), [4, 0]);
        assert_eq!(window(&tokens, 1, 7), [2, 3, 4, 0, 1, 2, 3]);
    }

    #[test]
    fn token_lists_are_numbers_or_json() {
        for text in ["1 2\n3", "1,2, 3\n", "[1, 2, 3]", "{\"tokens\": [1,2,3], \"text\": \"x\"}"] {
            assert_eq!(parse_tokens(text), Ok(vec![1, 2, 3]), "{text}");
        }
        for text in ["1 x", "[1, -2]", "{\"ids\": [1]}", "[1", "4294967296"] {
            assert!(parse_tokens(text).is_err(), "{text}");
        }
        assert_eq!(parse_tokens(" "), Ok(vec![]));
    }

    #[test]
    fn fixed_tokens_are_in_the_vocabulary_and_differ() {
        let tokens = fixed_tokens(100);
        assert!(tokens.iter().all(|&id| id < 100));
        assert!(tokens.iter().collect::<std::collections::BTreeSet<_>>().len() > 90);
        // Held equal with tools/bench/common.py.
        assert_eq!(fixed_tokens(1000)[..4], [65, 333, 777, 978]);
    }

    #[test]
    fn the_first_of_equals_is_likeliest() {
        assert_eq!(likeliest(&[0.0, 3.0, 3.0, -1.0]), 1);
    }
}
