//! `bench speed --against`: two ways of streaming one model in one process, in turns, so that what the machine does meanwhile happens
//! to both.
//!
//! The dense weights are loaded once. The bank is built anew for every round, as a load builds it, so that a round finds nothing of the
//! one before and each side has exactly the slots, the reader and the policy that it would have by itself. No setting that can be
//! compared this way changes what is computed, and that is checked.

use engine::{Engine, EngineOptions, Routing, Sequence};
use files::Class;
use serde::Serialize;

use super::measure::Spread;
use super::output::{Record, number};
use super::speed::{self, Bench, Kind, Outcome, Round, Run, Test, summary};
use crate::args::BankArgs;
use crate::session::{Model, Session};
use crate::ui::error::{Failure, Report};

/// The other side, and how the two compare.
#[derive(Debug, Serialize)]
pub(super) struct Against {
    /// As typed.
    given: String,
    /// One per test.
    ratios: Vec<Ratio>,
    #[serde(flatten)]
    outcome: Outcome,
}

/// Tokens per second of the command line to those of the other side.
#[derive(Debug, Serialize)]
struct Ratio {
    test: &'static str,
    tokens: usize,
    #[serde(flatten)]
    spread: Spread,
    rounds: Vec<f64>,
}

/// The options of the other side. Errors: words that are no options, options that only a load can change, and what does not fit.
pub(super) fn options(model: &Model, given: &BankArgs, words: &str) -> Result<EngineOptions, Failure> {
    let other = given.with(words)?;
    let (one, two) = (given.options(), other.options());
    let fixed = if other.dump.is_some() { Some("--dump") } else { one.fixed_difference(&two) };
    if let Some(option) = fixed {
        let what = format!("--against cannot compare {option}: that is settled when the model is loaded");
        return Err(Failure::usage(what, "measure each by itself, in turns"));
    }
    if one.oracle.is_some() || one.routing == Routing::Replay {
        let what = "--against cannot repeat the one run that a trace is of";
        return Err(Failure::usage(what, "leave the oracle modes out"));
    }
    Engine::plan(&model.checkpoint, &two)?;
    Ok(two)
}

/// Both sides of every test, round by round.
pub(super) fn measure(
    model: &Model,
    session: Session,
    sequence: &mut Sequence,
    run: &Run<'_>,
    tests: &[(Kind, usize)],
    given: String,
    other: EngineOptions,
) -> Result<Outcome, Failure> {
    let options = [session.engine.options().clone(), other];
    let mut sides = Sides { model, options, session, built_for: Some(0), described: [None, None] };
    let (mut measured, mut ratios, mut warm_up_rounds) = ([Vec::new(), Vec::new()], Vec::new(), 0);
    for &(kind, n) in tests {
        let both;
        (sides, both) = test(sides, sequence, run, kind, n)?;
        warm_up_rounds = warm_up_rounds.max(both.warmed);
        let speed = |side: usize, round: usize| both.tests[side].rounds[round].tokens_per_s;
        let rounds: Vec<f64> =
            (0..run.rounds as usize).map(|round| speed(0, round) / speed(1, round)).collect();
        let spread = Spread::of(rounds.iter().copied()).expect("one round at least");
        ratios.push(Ratio { test: both.tests[0].test, tokens: n, spread, rounds });
        for (all, test) in measured.iter_mut().zip(both.tests) {
            all.push(test);
        }
    }
    sides.session.finish()?;
    let [mine, others] = measured;
    let [first, second] = sides.described.map(|outcome| outcome.expect("every test takes both sides' turns"));
    let finished = |mut outcome: Outcome, tests| {
        (outcome.warm_up_rounds, outcome.tests) = (warm_up_rounds, tests);
        outcome
    };
    let mut outcome = finished(first, mine);
    outcome.against = Some(Box::new(Against { given, ratios, outcome: finished(second, others) }));
    Ok(outcome)
}

/// The engine, and whose bank it has.
struct Sides<'a> {
    model: &'a Model,
    options: [EngineOptions; 2],
    session: Session,
    /// The side whose bank was built and has not been used yet.
    built_for: Option<usize>,
    /// What each side says of itself, without tests.
    described: [Option<Outcome>; 2],
}

impl Sides<'_> {
    /// The turn of a side begins: with a bank in which nothing but what a load reads into it has happened.
    fn turn(mut self, side: usize) -> Result<Self, Failure> {
        if self.built_for.take() != Some(side) {
            self.session.warn();
            self.session = self.session.with_streaming(self.model, self.options[side].clone())?;
        }
        Ok(self)
    }
}

/// One test of both sides.
struct Both {
    tests: [Test; 2],
    /// Rounds that warmed the bank up before each round that counts.
    warmed: u32,
}

fn test<'a>(
    mut sides: Sides<'a>,
    sequence: &mut Sequence,
    run: &Run<'_>,
    kind: Kind,
    n: usize,
) -> Result<(Sides<'a>, Both), Failure> {
    let (mut likeliest, mut warmed) = ([Vec::new(), Vec::new()], 0);
    for (side, seen) in likeliest.iter_mut().enumerate() {
        sides = sides.turn(side)?;
        let mut bench = Bench { session: &mut sides.session, sequence: &mut *sequence, run, kind, n };
        let rounds;
        (*seen, rounds) = bench.warm_up()?;
        warmed = warmed.max(rounds);
        sides.described[side].get_or_insert_with(|| Outcome::of(sides.model, &sides.session, 0, Vec::new()));
    }
    if likeliest[0] != likeliest[1] {
        let what = "the two sides computed different tokens, and streaming must never change the answer";
        return Err(Report::new(Class::Internal, what).hint("please report this").into());
    }
    // A cold round empties the bank itself.
    let warm_up = if run.cold { 0 } else { warmed };
    let mut rounds: [Vec<Round>; 2] = [Vec::new(), Vec::new()];
    for round in 0..run.rounds {
        for side in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            sides = sides.turn(side)?;
            let mut bench = Bench { session: &mut sides.session, sequence: &mut *sequence, run, kind, n };
            for before in 0..warm_up {
                bench.round((round + before) as usize, n.min(run.warm_up_tokens), None)?;
            }
            rounds[side].push(bench.round((round + warmed) as usize, n, None)?);
        }
    }
    let [first, second] = rounds;
    let [seen_first, seen_second] = likeliest;
    let tests = [summary(kind, n, first, seen_first), summary(kind, n, second, seen_second)];
    Ok((sides, Both { tests, warmed }))
}

/// The tests in the order in which they are shown, each followed by that of the other side.
pub(super) fn labelled(outcome: &Outcome) -> Vec<(String, &Test)> {
    let mut labelled = Vec::new();
    for (i, test) in outcome.tests.iter().enumerate() {
        labelled.push((format!("{} {}", test.test, test.tokens), test));
        if let Some(against) = &outcome.against {
            labelled.push((format!("  {}", against.name()), &against.outcome.tests[i]));
        }
    }
    labelled
}

/// What the comparison comes to, a line per test; nothing where nothing was compared.
pub(super) fn lines(outcome: &Outcome) -> String {
    let Some(against) = &outcome.against else { return String::new() };
    let line = |ratio: &Ratio| {
        let Ratio { test, tokens, spread: Spread { median, min, max }, .. } = ratio;
        let name = against.name();
        format!(
            "  {test} {tokens}: {median:.3} times the tokens/s of {name} ({min:.3} – {max:.3} by round)\n"
        )
    };
    against.ratios.iter().map(line).collect()
}

/// As [`speed::records`]; where two sides were compared, both of each test, with the ratio in the first.
pub(super) fn records(outcome: &Outcome) -> Vec<Record> {
    let mine = speed::records(outcome);
    let Some(against) = &outcome.against else { return mine };
    let mut records = Vec::new();
    for ((mut one, mut two), ratio) in
        mine.into_iter().zip(speed::records(&against.outcome)).zip(&against.ratios)
    {
        let Spread { median, min, max } = ratio.spread;
        one.insert("against".to_owned(), serde_json::Value::Null);
        two.insert("against".to_owned(), against.given.clone().into());
        for (name, value) in [("ratio", median), ("ratio_min", min), ("ratio_max", max)] {
            one.insert(name.to_owned(), number(value));
            two.insert(name.to_owned(), serde_json::Value::Null);
        }
        records.extend([one, two]);
    }
    records
}

impl Against {
    fn name(&self) -> &str {
        if self.given.trim().is_empty() { "the same again" } else { &self.given }
    }
}
