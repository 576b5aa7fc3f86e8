//! Flash-MoE's spellings: command lines of its model cards work as they are. What has an effect here maps onto our own options; what has
//! none is said, once.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use engine::{BankSize, EngineOptions, Prefetch, ReaderChoice, Routing};
use files::Class;

use crate::ui::error::{Failure, Report};

/// Options of the model cards of Flash-MoE, for command lines that are copied from there; the guide lists them, `--help` does not
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct FlashMoeArgs {
    /// stock, resident and resident-bank hold every expert; slot-bank is what happens anyway; the oracles read the trace of an earlier
    /// run from --moe-trace: all-hit replays its routing with every expert read in advance, prefetch reads ahead what it will need
    #[arg(long, value_enum, value_name = "MODE", hide = true)]
    moe_mode: Option<Mode>,
    /// Guess that a token needs what the one before it used (--prefetch previous)
    #[arg(long, hide = true, aliases = ["moe-prefetch-temporal-sparse", "moe-predict-prev-token", "moe-predict-top1-prev"])]
    moe_prefetch_temporal: bool,
    /// Diagnostic: run the routers, but neither read nor compute routed experts
    #[arg(long, hide = true)]
    moe_router_only: bool,
    /// Diagnostic: this expert alone, with weight 1, for every token; -1 is off
    #[arg(long, value_name = "N", hide = true, allow_negative_numbers = true)]
    moe_force_expert: Option<i64>,
    /// Check every byte of the experts before the run (as `slotbank verify`)
    #[arg(long, hide = true)]
    pub(crate) moe_verify_sidecar: bool,
    /// Prompt tokens per pass through a layer (--batch)
    #[arg(long, value_name = "N", hide = true, value_parser = parse_batch)]
    moe_prefill_batch: Option<u32>,
    /// All routed experts of a token in one go, which is what happens anyway (--no-slot8 switches it off)
    #[arg(long, hide = true, aliases = ["slot4", "slot10"])]
    slot8: bool,
    #[arg(long, hide = true)]
    moe_trace_harness: bool,
    #[arg(long, hide = true)]
    moe_prefill_layer_major: bool,
    #[arg(long, hide = true)]
    moe_sort_decode_expert_ids: bool,
    #[arg(long, hide = true, value_name = "N")]
    moe_prefill_micro_batch: Option<String>,
    #[arg(long, hide = true, value_name = "N")]
    moe_prefill_banks: Option<String>,
    #[arg(long, hide = true, value_name = "N", alias = "moe-prefill-cache-io-split")]
    moe_prefill_io_split: Option<String>,
    #[arg(long, hide = true, value_name = "N")]
    moe_prefill_next_hot_experts: Option<String>,
    #[arg(long, hide = true, value_name = "FILE")]
    moe_quant_map: Option<PathBuf>,
    /// Refuse options that have no effect here instead of saying so
    #[arg(long, hide = true)]
    strict: bool,
}

/// Flash-MoE's names for copies of the sidecar on further drives, each of which is read like those of --sidecar.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct LaneArgs {
    #[arg(long, value_name = "DIR", hide = true, alias = "secondary-sidecar")]
    moe_secondary_sidecar: Option<PathBuf>,
    #[arg(long, value_name = "DIR", hide = true, alias = "tertiary-sidecar")]
    moe_tertiary_sidecar: Option<PathBuf>,
}

impl LaneArgs {
    pub(crate) fn copies(&self) -> impl Iterator<Item = &PathBuf> {
        self.moe_secondary_sidecar.iter().chain(&self.moe_tertiary_sidecar)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Stock,
    Resident,
    ResidentBank,
    ResidentSlotBank,
    SlotBank,
    OracleAllHit,
    OraclePrefetch,
}

impl FlashMoeArgs {
    /// Lets these options have the last word.
    pub(crate) fn apply(&self, options: &mut EngineOptions) {
        match self.moe_mode {
            Some(Mode::Stock | Mode::Resident | Mode::ResidentBank) => options.bank = BankSize::All,
            // Misses come from memory: from the page cache.
            Some(Mode::ResidentSlotBank) => options.reader = ReaderChoice::Buffered,
            Some(Mode::OracleAllHit) => {
                (options.routing, options.oracle) = (Routing::Replay, options.trace.take());
            }
            Some(Mode::OraclePrefetch) => {
                (options.prefetch, options.oracle) = (Prefetch::Oracle, options.trace.take());
            }
            Some(Mode::SlotBank) | None => {}
        }
        if self.moe_prefetch_temporal {
            options.prefetch = Prefetch::Previous;
        }
        if self.moe_router_only {
            options.routing = Routing::RouterOnly;
        }
        if let Some(expert) = self.moe_force_expert.and_then(|n| u32::try_from(n).ok()) {
            options.routing = Routing::Force(expert);
        }
        if let Some(batch) = self.moe_prefill_batch {
            options.batch = batch;
        }
    }

    /// Says once which options do nothing here; with `--strict` that is an error. Errors: contradictions, too.
    pub(crate) fn check(&self, options: &EngineOptions) -> Result<(), Failure> {
        let usage = |what: &str, hint: &str| {
            Err(Report::new(Class::Usage, what.to_owned()).hint(hint.to_owned()).into())
        };
        let oracle = matches!(self.moe_mode, Some(Mode::OracleAllHit | Mode::OraclePrefetch));
        if oracle && options.oracle.is_none() {
            return usage(
                "an oracle mode needs the trace of an earlier run",
                "write one with --moe-trace FILE in a run of the same prompt, then give the same FILE with the oracle mode",
            );
        }
        if self.moe_force_expert.is_some_and(|n| n < -1 || n > i64::from(u32::MAX)) {
            return usage("--moe-force-expert takes an expert id, or -1 for none", "ids begin with 0");
        }
        let idle = self.without_effect();
        if idle.is_empty() {
            return Ok(());
        }
        let list: Vec<String> = idle.iter().map(|(flag, why)| format!("{flag} ({why})")).collect();
        let line = format!("no effect here: {}", list.join(", "));
        if self.strict {
            return usage(&line, "leave them out, or leave out --strict");
        }
        crate::ui::note(format_args!("note: {line}"));
        Ok(())
    }

    fn without_effect(&self) -> Vec<(&'static str, &'static str)> {
        let always = "prompts always pass layer by layer, each expert read once";
        let flags = [
            (self.moe_trace_harness, "--moe-trace-harness", "`slotbank run` always continues the raw text"),
            (self.moe_prefill_layer_major, "--moe-prefill-layer-major", always),
            (
                self.moe_sort_decode_expert_ids,
                "--moe-sort-decode-expert-ids",
                "results do not depend on the order",
            ),
            (self.moe_prefill_micro_batch.is_some(), "--moe-prefill-micro-batch", always),
            (self.moe_prefill_banks.is_some(), "--moe-prefill-banks", always),
            (self.moe_prefill_io_split.is_some(), "--moe-prefill-io-split", "all reads are split alike"),
            (self.moe_prefill_next_hot_experts.is_some(), "--moe-prefill-next-hot-experts", always),
            (self.moe_quant_map.is_some(), "--moe-quant-map", "types come from the files"),
        ];
        flags.into_iter().filter(|(given, ..)| *given).map(|(_, flag, why)| (flag, why)).collect()
    }
}

/// `8192`, `8K`, and 0 for Flash-MoE's default of 8192.
fn parse_batch(text: &str) -> Result<u32, String> {
    let (digits, unit) = match text.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1024),
        None => (text, 1),
    };
    match digits.parse::<u32>().ok().and_then(|n| n.checked_mul(unit)) {
        Some(0) => Ok(8192),
        Some(n) => Ok(n),
        None => Err("expected a number of tokens such as 2048 or 8K".into()),
    }
}
