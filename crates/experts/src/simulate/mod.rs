//! What a recorded run would have been with another bank: every size and policy over one trace.
//!
//! Policies are driven through the same bank code as a run ([`mod@crate::replay`]), so their counts are those of a run. Beside them
//! stand two banks that nobody can have: the most frequent experts resident for ever ([`STATIC_HOT`]) and Belady's optimum
//! ([`BELADY`]). The time model ([`time`]) turns hits and misses into tokens per second.

mod belady;
mod hot;
pub mod time;
mod workload;

pub use hot::hottest;
use serde::Serialize;
pub use workload::Workload;

use crate::plan::BankPlan;
use crate::policy;
use crate::replay::replay_watched;
use crate::{Error, Result};
use time::{Compute, Disk, LayerLoad, PassTime, pass_time};
use workload::Call;

/// Name of the bank that holds the most frequent experts and never changes.
pub const STATIC_HOT: &str = "static-hot";
/// Name of the optimum.
pub const BELADY: &str = "belady";

/// Sees a call (by number) before it is resolved, with the question which experts of its layer are resident.
type Watch<'a> = dyn FnMut(usize, &dyn Fn(u32) -> bool) + 'a;

/// Which passes count. All of them drive the bank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Scope {
    /// Passes that begin within so many tokens from the start are warm-up.
    pub warm_up_tokens: u64,
    /// Passes of several tokens (prompts) do not count.
    pub single_tokens_only: bool,
}

/// Where misses that are known one layer early come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lookahead {
    /// Nothing is read ahead.
    #[default]
    None,
    /// What the calls of the trace were predicted to ask for.
    Traced,
    /// This part of the misses, with so many experts read in vain for each of them.
    #[serde(untagged)]
    Assumed {
        /// Of the misses, 0 to 1.
        recall: f64,
        /// Experts read in vain for each miss named.
        waste: f64,
    },
}

/// What the time model needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rates {
    /// The drive.
    pub disk: Disk,
    /// The cores.
    pub compute: Compute,
    /// What is read ahead.
    pub lookahead: Lookahead,
}

/// How well a guess covered what was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Coverage {
    /// Of the experts asked for, the part that was named, 0 to 1.
    pub recall: f64,
    /// Of the misses, the part that was named, 0 to 1.
    pub recall_of_misses: f64,
    /// Experts per token that were named, not resident and not asked for.
    pub wasted_per_token: f64,
}

/// The time of a mean token, from the passes of one token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Timing {
    /// Means over the passes.
    #[serde(flatten)]
    pub mean: PassTime,
    /// Of the ideal bound.
    pub ideal_tokens_per_s: f64,
    /// Of the dependency bound.
    pub dependency_tokens_per_s: f64,
}

/// What a bank did over the passes that count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Tokens of those passes.
    pub tokens: u64,
    /// Routed layer calls.
    pub calls: u64,
    /// Unique experts summed over the calls.
    pub unique: u64,
    /// Of them, resident when asked for.
    pub hits: u64,
    /// Of them, not resident.
    pub misses: u64,
    /// Hits among unique experts, 0 to 1.
    pub hit_rate: f64,
    /// Calls without a miss among all calls, 0 to 1.
    pub full_hit_rate: f64,
    /// Misses per token.
    pub misses_per_token: f64,
    /// Expert bytes read per token.
    pub bytes_per_token: f64,
    /// How well the same layer's experts of the token before foretold those of this one.
    pub previous_token: Coverage,
    /// How well the predictions of the trace did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lookahead: Option<Coverage>,
    /// Predicted time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Timing>,
}

/// Names that [`run`] understands: the policies, [`STATIC_HOT`] and [`BELADY`].
pub fn names() -> impl Iterator<Item = &'static str> {
    policy::NAMES.iter().copied().chain([STATIC_HOT, BELADY])
}

/// Runs the workload through a bank of the given plan.
///
/// `rates` adds the predicted time. A bank that holds every expert begins full, as in a run. Errors: [`Error::Usage`] for a name that is
/// none of [`names`].
pub fn run(
    workload: &Workload,
    plan: &BankPlan,
    name: &str,
    scope: Scope,
    rates: Option<&Rates>,
) -> Result<Figures> {
    let mut sums = Sums::new(workload, plan, scope, rates);
    match name {
        BELADY => belady::run(workload, plan, &mut |call, resident| sums.take(call, resident)),
        STATIC_HOT => hot::run(workload, plan, &mut |call, resident| sums.take(call, resident)),
        name => {
            let policy = policy::by_name(name, plan).ok_or_else(|| unknown(name))?;
            let mut call = 0;
            replay_watched(workload.records(), plan, policy, plan.is_resident(), &mut |_, resident| {
                sums.take(call, resident);
                call += 1;
            })?;
        }
    }
    Ok(sums.figures())
}

fn unknown(name: &str) -> Error {
    let known: Vec<&str> = names().collect();
    Error::Usage(format!("policy {name:?} is none of: {}", known.join(", ")))
}

/// Experts that a guess named, beside what was asked for.
#[derive(Debug, Clone, Copy, Default)]
struct Guess {
    asked: u64,
    named: u64,
    misses: u64,
    named_misses: u64,
    wasted: u64,
}

impl Guess {
    /// One call of which `named` was expected.
    fn of(call: &Call, named: &[u32], resident: &dyn Fn(u32) -> bool) -> Guess {
        let mut guess = Guess { asked: call.unique.len() as u64, ..Guess::default() };
        for id in &call.unique {
            let (hit, named) = (resident(*id), named.contains(id));
            guess.named += u64::from(named);
            guess.misses += u64::from(!hit);
            guess.named_misses += u64::from(named && !hit);
        }
        let in_vain = |id: &&u32| !resident(**id) && !call.unique.contains(id);
        guess.wasted = named.iter().filter(in_vain).count() as u64;
        guess
    }

    fn add(&mut self, other: Guess) {
        self.asked += other.asked;
        self.named += other.named;
        self.misses += other.misses;
        self.named_misses += other.named_misses;
        self.wasted += other.wasted;
    }

    fn coverage(&self, tokens: u64) -> Coverage {
        Coverage {
            recall: ratio(self.named, self.asked),
            recall_of_misses: ratio(self.named_misses, self.misses),
            wasted_per_token: ratio(self.wasted, tokens),
        }
    }
}

fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

/// Adds up calls as they come, in order.
struct Sums<'a> {
    workload: &'a Workload,
    plan: &'a BankPlan,
    scope: Scope,
    rates: Option<&'a Rates>,
    /// The pass of the next call, and the tokens before it.
    pass: usize,
    tokens_before: u64,
    /// Layers of the pass so far.
    loads: Vec<LayerLoad>,
    full_hits: u64,
    bytes: u64,
    previous: Guess,
    ahead: Guess,
    time: PassTime,
    timed: u64,
    figures: Figures,
}

impl<'a> Sums<'a> {
    fn new(workload: &'a Workload, plan: &'a BankPlan, scope: Scope, rates: Option<&'a Rates>) -> Self {
        Sums {
            workload,
            plan,
            scope,
            rates,
            pass: 0,
            tokens_before: 0,
            loads: Vec::new(),
            full_hits: 0,
            bytes: 0,
            previous: Guess::default(),
            ahead: Guess::default(),
            time: PassTime::default(),
            timed: 0,
            figures: Figures::default(),
        }
    }

    fn take(&mut self, index: usize, resident: &dyn Fn(u32) -> bool) {
        let pass = &self.workload.passes[self.pass];
        let single = pass.tokens == 1;
        let counts =
            self.tokens_before >= self.scope.warm_up_tokens && (single || !self.scope.single_tokens_only);
        if counts {
            self.count(index, resident);
        }
        if index + 1 == pass.calls.end {
            if counts {
                self.figures.tokens += pass.tokens;
                if single {
                    self.time_pass();
                }
            }
            self.tokens_before += pass.tokens;
            self.pass += 1;
            self.loads.clear();
        }
    }

    fn count(&mut self, index: usize, resident: &dyn Fn(u32) -> bool) {
        let call = &self.workload.calls[index];
        let expert_bytes = self.plan.layers()[call.layer].expert_bytes;
        let before = call.previous.map_or(&[][..], |before| &self.workload.calls[before].unique);
        let previous = Guess::of(call, before, resident);
        let ahead = Guess::of(call, &call.record.predicted, resident);
        let (unique, misses) = (previous.asked, previous.misses);
        self.previous.add(previous);
        self.ahead.add(ahead);
        self.figures.calls += 1;
        self.figures.unique += unique;
        self.figures.misses += misses;
        self.full_hits += u64::from(misses == 0);
        self.bytes += misses * expert_bytes;
        let (named, waste) = match self.rates.map(|rates| rates.lookahead) {
            None | Some(Lookahead::None) => (0.0, 0.0),
            Some(Lookahead::Traced) => (ahead.named_misses as f64, ratio(ahead.wasted, ahead.named_misses)),
            Some(Lookahead::Assumed { recall, waste }) => (recall * misses as f64, waste),
        };
        let (hits, misses) = ((unique - misses) as u32, misses as u32);
        self.loads.push(LayerLoad { hits, misses, expert_bytes, ahead: named, waste });
    }

    fn time_pass(&mut self) {
        let Some(rates) = self.rates else { return };
        let time = pass_time(&self.loads, &rates.disk, &rates.compute);
        self.timed += 1;
        self.time.io_ms += time.io_ms;
        self.time.compute_ms += time.compute_ms;
        self.time.ideal_ms += time.ideal_ms;
        self.time.dependency_ms += time.dependency_ms;
    }

    fn figures(self) -> Figures {
        let Figures { tokens, calls, unique, misses, .. } = self.figures;
        let n = self.timed as f64;
        let timing = || {
            let PassTime { io_ms, compute_ms, ideal_ms, dependency_ms } = self.time;
            let mean = PassTime {
                io_ms: io_ms / n,
                compute_ms: compute_ms / n,
                ideal_ms: ideal_ms / n,
                dependency_ms: dependency_ms / n,
            };
            let per_s = |ms: f64| if ms > 0.0 { 1e3 / ms } else { 0.0 };
            let (ideal, dependency) = (per_s(mean.ideal_ms), per_s(mean.dependency_ms));
            Timing { mean, ideal_tokens_per_s: ideal, dependency_tokens_per_s: dependency }
        };
        Figures {
            hits: unique - misses,
            hit_rate: ratio(unique - misses, unique),
            full_hit_rate: ratio(self.full_hits, calls),
            misses_per_token: ratio(misses, tokens),
            bytes_per_token: ratio(self.bytes, tokens),
            previous_token: self.previous.coverage(tokens),
            lookahead: self.workload.has_predictions().then(|| self.ahead.coverage(tokens)),
            time: (self.timed > 0).then(timing),
            ..self.figures
        }
    }
}
