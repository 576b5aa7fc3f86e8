//! From a planned model to what it would do: rates given or measured, hits replayed or estimated, and what each change would buy.

use std::path::Path;

use engine::forecast::{Bound, Forecast, Rates, Work, estimated_hit_rate, forecast};
use engine::{BankSize, CacheType, Engine, EngineOptions, MemoryPlan};
use experts::{TraceRecord, policy};
use files::Checkpoint;
use kernels::Pool;
use serde::Serialize;

use crate::machine::drive::{self, Target};
use crate::machine::processor;
use crate::ui::error::Failure;
use crate::ui::units;

/// Rates that are known, so that they need not be measured.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Prediction")]
pub(crate) struct RateArgs {
    /// The drive at reads of an expert, in GB/s [default: measured on the model's files]
    #[arg(long, value_name = "GB/S", value_parser = rate)]
    drive: Option<f64>,
    /// Memory, all threads together, in GB/s [default: measured]
    #[arg(long, value_name = "GB/S", value_parser = rate)]
    memory: Option<f64>,
    /// Weights that the kernels take, all threads together, in 10^9 per second [default: measured per format]
    #[arg(long, value_name = "N", value_parser = rate)]
    compute: Option<f64>,
    /// Measure nothing: predict from what is given
    #[arg(long)]
    no_measure: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("expected a number above 0".into()),
    }
}

/// What a plan lets one expect.
#[derive(Debug, Serialize)]
pub(crate) struct Outlook {
    pub(crate) work: Work,
    pub(crate) rates: Rates,
    pub(crate) sources: Sources,
    pub(crate) forecast: Forecast,
    /// Whether hit rates come from no trace.
    pub(crate) estimated: bool,
    /// Largest bank that fits into the memory beside the rest; absent without a bank.
    pub(crate) largest_bank_bytes: Option<u64>,
    pub(crate) changes: Vec<Change>,
}

/// Where each figure comes from, in words.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sources {
    pub(crate) hit_rate: String,
    pub(crate) drive: String,
    pub(crate) memory: String,
    pub(crate) compute: String,
}

/// Something that could be different, and what it would do.
#[derive(Debug, Serialize)]
pub(crate) struct Change {
    pub(crate) what: String,
    pub(crate) bank_bytes: u64,
    pub(crate) forecast: Forecast,
}

/// Where hit rates come from.
pub(crate) enum Hits {
    /// A routing trace, replayed through the bank of the plan.
    Trace { records: Vec<TraceRecord>, name: String },
    /// The share of experts that is resident.
    Estimate,
}

impl Hits {
    pub(crate) fn read(trace: Option<&Path>) -> Result<Hits, Failure> {
        let Some(path) = trace else { return Ok(Hits::Estimate) };
        let file = std::fs::File::open(path).map_err(|e| Failure::file("cannot read the trace", path, &e))?;
        let records = experts::trace::read(std::io::BufReader::new(file));
        let records: Vec<TraceRecord> = records.collect::<experts::Result<_>>()?;
        if records.is_empty() {
            return Err(Failure::usage(
                format!("the trace {} holds no routed call", path.display()),
                "`slotbank run --trace FILE` writes one",
            ));
        }
        Ok(Hits::Trace { records, name: path.display().to_string() })
    }

    /// Hits among the experts of a decoded token, 0 to 1.
    fn rate(&self, plan: &MemoryPlan, work: &Work, options: &EngineOptions) -> Result<f64, Failure> {
        let (bank, policy_name) = (options.bank, options.policy.as_str());
        match (self, &plan.bank) {
            (_, None) => Ok(1.0),
            (Hits::Estimate, Some(_)) => Ok(estimated_hit_rate(work.resident_share)),
            (Hits::Trace { records, .. }, Some(planned)) => {
                let counted = |records: &[TraceRecord]| {
                    let records = records.iter().cloned().map(Ok);
                    let policy =
                        policy::by_name(policy_name, planned).expect("a name that the parser has taken");
                    experts::replay(records, planned, policy, bank == BankSize::All)
                        .map(|stats| stats.total())
                };
                let prompt = after_prompt(records);
                let (before, all) = (counted(&records[..prompt])?, counted(records)?);
                let (hits, unique) = (all.hits - before.hits, all.unique - before.unique);
                Ok(if unique == 0 { all.hit_rate() } else { hits as f64 / unique as f64 })
            }
        }
    }

    fn source(&self, work: &Work) -> String {
        match self {
            _ if work.layers == 0 => "no routed experts".to_owned(),
            Hits::Trace { name, .. } => format!("replay of {name}"),
            Hits::Estimate if work.resident_share >= 1.0 => "every expert is resident".to_owned(),
            Hits::Estimate => {
                let share = units::percent(work.resident_share);
                format!("estimate for {share} of the experts resident; --trace replays your own text")
            }
        }
    }
}

/// The first call that routes a token after the last prompt: prompts route many tokens in one call, but for their last layer, which
/// may run for the last token alone.
fn after_prompt(records: &[TraceRecord]) -> usize {
    let Some(last) = records.iter().rposition(|record| record.n_tokens > 1) else { return 0 };
    let same_pass = |pair: &&[TraceRecord]| pair[0].layer < pair[1].layer;
    last + 1 + records[last..].windows(2).take_while(same_pass).count()
}

/// Plans were made; now what they mean. `with_changes` also tries what could be different.
pub(crate) fn outlook(
    checkpoint: &Checkpoint,
    plan: &MemoryPlan,
    options: &EngineOptions,
    args: &RateArgs,
    hits: &Hits,
    with_changes: bool,
) -> Result<Outlook, Failure> {
    let work = Work::of(checkpoint, plan);
    let hit_rate = hits.rate(plan, &work, options)?;
    let (rates, drive, memory, compute) = rates(checkpoint, &work, options, args)?;
    let expected = forecast(&work, hit_rate, &rates);
    let others = plan.total_bytes - plan.bank.as_ref().map_or(0, experts::BankPlan::arena_bytes);
    let room = plan.available_bytes.saturating_sub(others);
    let changes =
        if with_changes { changes(checkpoint, plan, options, &rates, hits, &expected)? } else { Vec::new() };
    Ok(Outlook {
        estimated: matches!(hits, Hits::Estimate) && work.resident_share < 1.0,
        sources: Sources { hit_rate: hits.source(&work), drive, memory, compute },
        forecast: expected,
        largest_bank_bytes: plan.bank.as_ref().map(|bank| room.min(bank.all_bytes())),
        changes,
        work,
        rates,
    })
}

/// The rates, and in words where those of drive, memory and compute come from.
fn rates(
    checkpoint: &Checkpoint,
    work: &Work,
    options: &EngineOptions,
    args: &RateArgs,
) -> Result<(Rates, String, String, String), Failure> {
    let mut rates = Rates::default();
    let not_measured = || "not measured".to_owned();
    let drive = match args.drive {
        Some(rate) => {
            rates.drive_gb_per_s = Some(rate);
            format!("{rate:.2} GB/s given")
        }
        None if work.cold_bytes == 0 || args.no_measure => not_measured(),
        None => match drive::quick(&Target::experts(checkpoint)?)? {
            Err(why) => format!("not measured: {why}; give --drive"),
            Ok(cell) => {
                (rates.drive_gb_per_s, rates.drive_latency_us) = (Some(cell.gb_per_s), Some(cell.latency_us));
                let size = units::bytes(cell.read_bytes);
                format!(
                    "{:.2} GB/s measured, {} reads of {size}, {} at a time",
                    cell.gb_per_s, cell.reader, cell.depth
                )
            }
        },
    };
    let pool = Pool::new(options.threads());
    let memory = match args.memory {
        Some(rate) => {
            rates.memory_gb_per_s = Some(rate);
            format!("{rate:.1} GB/s given")
        }
        None if args.no_measure => not_measured(),
        None => {
            let rate = processor::memory_quickly(&pool)?;
            rates.memory_gb_per_s = Some(rate);
            format!("{rate:.1} GB/s measured")
        }
    };
    let formats: Vec<_> = work.weights.keys().filter_map(|&id| kernels::format(id)).collect();
    let compute = match args.compute {
        Some(rate) => {
            rates.gweights_per_s = work.weights.keys().map(|&id| (id, rate)).collect();
            format!("{rate:.1} Gweights/s given")
        }
        None if args.no_measure => not_measured(),
        None => {
            rates.gweights_per_s = processor::kernels(&pool, &formats)?;
            // The formats that matter most; a model has a dozen with a few vectors each.
            let mut named: Vec<_> = formats.iter().map(|format| (work.weights[&format.id], format)).collect();
            named.sort_by_key(|(weights, _)| std::cmp::Reverse(*weights));
            let text = named.iter().take(3).map(|(_, format)| {
                format!(
                    "{} {:.1}",
                    format.name,
                    rates.gweights_per_s.get(&format.id).copied().unwrap_or_default()
                )
            });
            format!("{} Gweights/s measured", text.collect::<Vec<_>>().join(", "))
        }
    };
    Ok((rates, drive, memory, compute))
}

/// What could be different, each alone. What does not fit or gains nothing here is left out.
fn changes(
    checkpoint: &Checkpoint,
    plan: &MemoryPlan,
    options: &EngineOptions,
    rates: &Rates,
    hits: &Hits,
    now: &Forecast,
) -> Result<Vec<Change>, Failure> {
    let mut changes = Vec::new();
    let Some(bank) = &plan.bank else { return Ok(changes) };
    let mut with = |what: String, options: &EngineOptions, rates: &Rates| -> Result<(), Failure> {
        let Ok(plan) = Engine::plan(checkpoint, options) else { return Ok(()) };
        let work = Work::of(checkpoint, &plan);
        let forecast = forecast(&work, hits.rate(&plan, &work, options)?, rates);
        let gains = forecast.tokens_per_s_high > now.tokens_per_s_high
            || forecast.tokens_per_s_low > now.tokens_per_s_low
            || forecast.read_bytes < now.read_bytes;
        if gains {
            let bank_bytes = plan.bank.as_ref().map_or(0, experts::BankPlan::arena_bytes);
            changes.push(Change { what, bank_bytes, forecast });
        }
        Ok(())
    };
    if !bank.is_resident() {
        if options.bank == BankSize::Auto {
            let memory = plan.available_bytes.saturating_mul(2);
            let more = EngineOptions { memory_bytes: Some(memory), ..options.clone() };
            with(format!("twice the memory ({})", units::bytes(memory)), &more, rates)?;
            let context = plan.model.context / 2;
            if context > 0 {
                let shorter = EngineOptions { context: Some(context), ..options.clone() };
                with(format!("half the context (-c {context})"), &shorter, rates)?;
            }
            let smaller = match options.cache_type {
                CacheType::F32 => Some((CacheType::F16, "f16")),
                CacheType::F16 => Some((CacheType::Q8, "q8")),
                CacheType::Q8 => None,
            };
            if let Some((cache_type, name)) = smaller {
                let smaller = EngineOptions { cache_type, ..options.clone() };
                with(format!("--cache-type {name}"), &smaller, rates)?;
            }
        } else {
            let size = match options.bank {
                BankSize::SlotsPerLayer(n) => BankSize::SlotsPerLayer(n.saturating_mul(2)),
                _ => BankSize::Bytes(bank.arena_bytes().saturating_mul(2).min(bank.all_bytes())),
            };
            let larger = EngineOptions { bank: size, ..options.clone() };
            with("a bank twice as large".into(), &larger, rates)?;
        }
    }
    let twice = Rates { drive_gb_per_s: rates.drive_gb_per_s.map(|rate| rate * 2.0), ..rates.clone() };
    with("a drive twice as fast".into(), options, &twice)?;
    if now.bound == Some(Bound::Memory) {
        let twice = Rates { memory_gb_per_s: rates.memory_gb_per_s.map(|rate| rate * 2.0), ..rates.clone() };
        with("memory twice as fast".into(), options, &twice)?;
    }
    if now.bound == Some(Bound::Compute) {
        let gweights_per_s = rates.gweights_per_s.iter().map(|(&id, &rate)| (id, rate * 2.0)).collect();
        with("twice the cores".into(), options, &Rates { gweights_per_s, ..rates.clone() })?;
    }
    let fewer = plan.model.top_k / 2;
    if fewer > 0 {
        let fewer_experts = EngineOptions { moe_topk: Some(fewer), ..options.clone() };
        with(format!("--moe-topk {fewer} (other answers)"), &fewer_experts, rates)?;
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_ends_with_its_last_layer() {
        let call = |layer, n_tokens: u32| TraceRecord {
            seq: 0,
            layer,
            n_expert_used: 1,
            n_tokens,
            experts: vec![0; n_tokens as usize],
            slots: Vec::new(),
            predicted: Vec::new(),
        };
        let decode = [call(3, 1), call(4, 1), call(5, 1)];
        let prompt = [call(3, 4), call(4, 4), call(5, 1)];
        assert_eq!(after_prompt(&decode), 0);
        assert_eq!(after_prompt(&[&prompt[..], &decode].concat()), 3);
        assert_eq!(after_prompt(&[&prompt[..2], &prompt, &decode, &decode].concat()), 5);
        assert_eq!(after_prompt(&[&[call(3, 4), call(4, 4), call(5, 4)], &decode[..]].concat()), 3);
        assert_eq!(after_prompt(&prompt[..2]), 2);
    }

    #[test]
    fn rates_are_numbers_above_zero() {
        assert_eq!(rate("1.5"), Ok(1.5));
        for text in ["0", "-1", "fast", "inf", "nan"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
