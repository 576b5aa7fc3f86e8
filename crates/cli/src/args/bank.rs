//! How a model is loaded and how its experts are streamed: the flags behind [`EngineOptions`].

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Args, FromArgMatches, ValueEnum};
use engine::{
    AttentionMode, BankSize, CacheType, EngineOptions, Prefetch, Promote, ReaderChoice, ReaderKind,
};

use super::flash_moe::FlashMoeArgs;
use crate::ui::error::Failure;

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Loading and streaming")]
pub(crate) struct BankArgs {
    /// Resident experts: a size over all layers (8GiB, 512MiB), a share of all experts (25%), slots per layer (64), `auto` or `all`
    #[arg(long, value_name = "SIZE|N|auto|all", default_value = "auto", value_parser = parse_bank, alias = "moe-slot-bank")]
    pub(crate) bank: BankSize,
    /// Memory that may be used in all (24GiB) [default: what the system and the control group leave]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    ram: Option<u64>,
    /// Leave it to the system whether dense weights are swapped out, where it has swap space; else they are locked in memory as far
    /// as `ulimit -l` allows
    #[arg(long)]
    no_mlock: bool,
    /// Prompt tokens that pass through a layer together: its experts are read once for all of them
    #[arg(short, long, value_name = "N", default_value_t = EngineOptions::default().batch, value_parser = positive(), alias = "batch-size")]
    batch: u32,
    /// Prompt tokens that attention computes at once
    #[arg(long, value_name = "N", default_value_t = EngineOptions::default().ubatch, value_parser = positive(), alias = "ubatch-size")]
    ubatch: u32,
    /// Positions to keep [default: the smaller of the model's context and 8192]
    #[arg(short, long = "ctx", value_name = "N", value_parser = positive(), alias = "ctx-size", alias = "context")]
    context: Option<u32>,
    /// Element type of the attention cache
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = CacheChoice::F16)]
    cache_type: CacheChoice,
    /// Compute threads [default: the cores this process may use]
    #[arg(short, long, value_name = "N", value_parser = positive())]
    threads: Option<u32>,
    /// Compute threads for prompts [default: as --threads]
    #[arg(long, value_name = "N", value_parser = positive())]
    threads_batch: Option<u32>,
    /// Compute one routed expert at a time: slower, same results; the reference for computing them together
    #[arg(long)]
    no_slot8: bool,
    /// Rewrite experts that are hit again in a larger form that computes faster, same results: where all of them fit
    /// that way, always (fewer slots), or never
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = PromoteArg::Auto)]
    promote: PromoteArg,
    /// Who guesses the experts that the next layer will need, so that they are read before it asks: its router, as long as decoding is
    /// measurably faster that way (auto), its router always, the previous token, or nobody
    #[arg(long, value_enum, value_name = "WHO", default_value_t = PrefetchArg::Auto)]
    prefetch: PrefetchArg,
    /// Experts that may be read ahead at a time
    #[arg(long, value_name = "N", default_value_t = EngineOptions::default().prefetch_experts)]
    prefetch_experts: u32,
    /// Wait for all experts of a layer before computing any: slower, same results; the reference for computing hits meanwhile
    #[arg(long, hide = true)]
    no_hits_first: bool,
    /// Read the experts of a layer one after the other: the reference for reading all gate and up matrices before any down
    #[arg(long, hide = true)]
    no_ordered_reads: bool,
    /// Experts per token, when fewer than the model's own number are wanted; 0 is that number
    #[arg(long, value_name = "N")]
    moe_topk: Option<u32>,
    /// Positions a token may attend to: picked by the model's indexer, all, or only the most recent
    #[arg(long, value_enum, value_name = "MODE", default_value_t = AttentionChoice::Sparse)]
    attention: AttentionChoice,
    /// Epsilon of the latent norms: 1e-6 as in transformers, 1e-5 as in llama.cpp
    #[arg(long, value_name = "EPS", default_value = "1e-6", value_parser = parse_epsilon)]
    latent_eps: f32,
    /// Diagnostic: leave the routed experts out
    #[arg(long, alias = "moe-shared-only")]
    shared_only: bool,
    /// What reads expert bytes (threads, io_uring, or the simulated drive of the tests) and how: past the page cache
    /// or through it. `auto`, `pread`, `uring` or `sim`; `direct` or `buffered`; or both as in `uring-direct`
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = parse_reader)]
    reader: (ReaderKind, ReaderChoice),
    /// Cut a read into up to N pieces while too few reads are outstanding to keep the drive busy; 1 never does
    /// [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16), alias = "moe-cache-io-split")]
    io_split: Option<u32>,
    /// With --sidecar given several times: cut each read into one piece per copy
    #[arg(long)]
    stripe: bool,
    /// Hand out reads no faster than a drive of so many MB/s would, for measurements
    #[arg(long, value_name = "MB/S", value_parser = positive(), hide = true)]
    pace: Option<u32>,
    /// Who loses a slot that is needed: the expert used least often, older uses counting less and less (lfu), the
    /// least recently used one (lru), or the one whose uses, fading with time, add up to least (lrfu)
    #[arg(long, value_name = "NAME", default_value_t = EngineOptions::default().policy, value_parser = policies())]
    policy: String,
    /// Never evict the experts that this trace used most, while others can give way
    #[arg(long, value_name = "TRACE")]
    pin: Option<PathBuf>,
    /// Write one JSON line per routed layer call: which experts, which slots
    #[arg(long, value_name = "FILE", alias = "moe-trace")]
    trace: Option<PathBuf>,
    /// Write the selected positions and expert ids of each layer and token as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) dump: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) flash_moe: FlashMoeArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CacheChoice {
    F32,
    F16,
    Q8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AttentionChoice {
    Sparse,
    Dense,
    Recent,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PromoteArg {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PrefetchArg {
    Off,
    Auto,
    NextLayer,
    Previous,
}

impl BankArgs {
    /// The one place where flags become engine options.
    pub(crate) fn options(&self) -> EngineOptions {
        let mut options = EngineOptions {
            bank: self.bank,
            batch: self.batch,
            ubatch: self.ubatch,
            context: self.context,
            cache_type: match self.cache_type {
                CacheChoice::F32 => CacheType::F32,
                CacheChoice::F16 => CacheType::F16,
                CacheChoice::Q8 => CacheType::Q8,
            },
            threads: self.threads,
            threads_batch: self.threads_batch,
            slot8: !self.no_slot8,
            promote: match self.promote {
                PromoteArg::Auto => Promote::Auto,
                PromoteArg::Always => Promote::Always,
                PromoteArg::Never => Promote::Never,
            },
            prefetch: match self.prefetch {
                PrefetchArg::Off => Prefetch::Off,
                PrefetchArg::Auto => Prefetch::Auto,
                PrefetchArg::NextLayer => Prefetch::NextLayer,
                PrefetchArg::Previous => Prefetch::Previous,
            },
            prefetch_experts: self.prefetch_experts,
            hits_first: !self.no_hits_first,
            ordered_reads: !self.no_ordered_reads,
            moe_topk: self.moe_topk.filter(|&n| n > 0),
            attention: match self.attention {
                AttentionChoice::Sparse => AttentionMode::Sparse,
                AttentionChoice::Dense => AttentionMode::Dense,
                AttentionChoice::Recent => AttentionMode::Recent,
            },
            latent_eps: self.latent_eps,
            shared_only: self.shared_only,
            policy: self.policy.clone(),
            pin: self.pin.clone(),
            trace: self.trace.clone(),
            memory_bytes: self.ram,
            mlock: !self.no_mlock,
            reader_kind: self.reader.0,
            reader: self.reader.1,
            io_split: self.io_split,
            stripe: self.stripe,
            pace_mb_per_s: self.pace,
            ..EngineOptions::default()
        };
        self.flash_moe.apply(&mut options);
        options
    }

    /// These options with those of `words` over them, such as `--bank 8GiB --prefetch off`. Errors: words that are no such options.
    pub(crate) fn with(&self, words: &str) -> Result<Self, Failure> {
        let hint = "options of loading and streaming, as in \"--bank 8GiB --prefetch off\"";
        let usage = |error: clap::Error| {
            let text = error.to_string();
            let what = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            Failure::usage(format!("in {words:?}: {what}"), hint)
        };
        let command = clap::Command::new("against").no_binary_name(true).disable_help_flag(true);
        let mut matches =
            Self::augment_args(command).try_get_matches_from(words.split_whitespace()).map_err(usage)?;
        let alone = Self::from_arg_matches(&matches).map_err(usage)?;
        alone.flash_moe.check(&alone.options())?;
        // What the words do not name stays as it is.
        let unnamed = |id: &&clap::Id| matches.value_source(id.as_str()) == Some(ValueSource::DefaultValue);
        let unnamed: Vec<_> = matches.ids().filter(unnamed).cloned().collect();
        for id in unnamed {
            matches.try_clear_id(id.as_str()).map_err(|error| Failure::usage(error.to_string(), hint))?;
        }
        let mut changed = self.clone();
        changed.update_from_arg_matches(&matches).map_err(usage)?;
        Ok(changed)
    }

    /// As typed, for reports.
    pub(crate) fn attention_name(&self) -> &'static str {
        match self.attention {
            AttentionChoice::Sparse => "sparse",
            AttentionChoice::Dense => "dense",
            AttentionChoice::Recent => "recent",
        }
    }
}

/// The names that `--policy` takes.
pub(crate) fn policies() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(experts::policy::NAMES.iter().copied())
}

fn positive() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..)
}

fn parse_epsilon(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(eps) if eps > 0.0 && eps < 0.1 => Ok(eps),
        Ok(_) => Err("expected a small positive number such as 1e-6".into()),
        Err(e) => Err(e.to_string()),
    }
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    match text.parse::<BankSize>() {
        Ok(BankSize::Bytes(bytes)) if bytes > 0 => Ok(bytes),
        _ => Err("expected a size with a unit, such as 24GiB or 500MB".into()),
    }
}

pub(crate) fn parse_bank(text: &str) -> Result<BankSize, String> {
    text.parse::<BankSize>().map_err(|error| error.to_string())
}

fn parse_reader(text: &str) -> Result<(ReaderKind, ReaderChoice), String> {
    experts::parse_reader(text).map_err(|error| error.to_string())
}
