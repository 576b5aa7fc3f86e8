//! The rates that turn hits and misses into time, from flags and from what `doctor` measured.

use std::path::{Path, PathBuf};

use experts::simulate::time::{Compute, Disk};
use experts::simulate::{Lookahead, Rates};
use files::Class;

use crate::ui::error::{Failure, Report};

/// Flags of the time model.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Time")]
pub(super) struct RateArgs {
    /// What `slotbank doctor --json` said about the drive
    #[arg(long, value_name = "FILE", conflicts_with_all = ["read_gb_per_s", "read_latency_us"])]
    disk: Option<PathBuf>,
    /// Rate of the drive for expert-sized reads, several in flight
    #[arg(long, value_name = "GB/S", value_parser = above_zero)]
    read_gb_per_s: Option<f64>,
    /// Time to the first byte of a layer's reads
    #[arg(long, value_name = "US", value_parser = at_least_zero, requires = "read_gb_per_s")]
    read_latency_us: Option<f64>,
    /// Computing a token with every expert resident, split evenly: over the routed layers, half of each before its router and
    /// half in its experts
    #[arg(long, value_name = "MS", value_parser = above_zero, conflicts_with_all = ["layer_ms", "shared_ms", "expert_ms", "other_ms"])]
    compute_ms: Option<f64>,
    /// Instead: of a routed layer up to its router's choice
    #[arg(long, value_name = "MS", value_parser = at_least_zero, requires = "expert_ms")]
    layer_ms: Option<f64>,
    /// Of a shared expert
    #[arg(long, value_name = "MS", value_parser = at_least_zero, requires = "layer_ms")]
    shared_ms: Option<f64>,
    /// Of one routed expert
    #[arg(long, value_name = "MS", value_parser = at_least_zero, requires = "layer_ms")]
    expert_ms: Option<f64>,
    /// Of a token outside its routed layers
    #[arg(long, value_name = "MS", value_parser = at_least_zero, requires = "layer_ms")]
    other_ms: Option<f64>,
    /// Of that, of the dense layer before the first routed one, after it has guessed that layer's experts; 0 where it does not
    #[arg(long, value_name = "MS", value_parser = at_least_zero, requires = "other_ms")]
    lead_ms: Option<f64>,
    /// Reads that begin one layer early: none, those that the trace predicted, or a part of the misses (0.75), with so
    /// many more read in vain (0.75:0.2)
    #[arg(long, value_name = "none|trace|R[:W]", default_value = "none", value_parser = lookahead)]
    lookahead: Lookahead,
}

impl RateArgs {
    /// `None` where no time was asked for.
    pub(super) fn rates(&self, routed_layers: u32, top_k: u32) -> Result<Option<Rates>, Failure> {
        let disk = match (&self.disk, self.read_gb_per_s) {
            (Some(path), _) => Some(measured(path)?),
            (None, rate) => rate.map(|read_gb_per_s| Disk {
                read_gb_per_s,
                read_latency_us: self.read_latency_us.unwrap_or(0.0),
            }),
        };
        let compute = match (self.compute_ms, self.layer_ms, self.expert_ms) {
            (Some(total_ms), ..) => Some(Compute::from_total(total_ms, routed_layers, top_k)),
            (None, Some(layer_ms), Some(expert_ms)) => Some(Compute {
                layer_ms,
                shared_ms: self.shared_ms.unwrap_or(0.0),
                expert_ms,
                other_ms: self.other_ms.unwrap_or(0.0),
                lead_ms: self.lead_ms.unwrap_or(0.0).min(self.other_ms.unwrap_or(0.0)),
            }),
            _ => None,
        };
        match (disk, compute) {
            (Some(disk), Some(compute)) => Ok(Some(Rates { disk, compute, lookahead: self.lookahead })),
            (None, None) if self.lookahead == Lookahead::None => Ok(None),
            (Some(_), None) => Err(Failure::usage(
                "the time model needs to know how long a token computes",
                "give --compute-ms, or --layer-ms and --expert-ms; `bench speed --bank all` measures it",
            )),
            (None, _) => Err(Failure::usage(
                "the time model needs to know the drive",
                "give --disk FILE with what `slotbank doctor --json` printed, or --read-gb-per-s",
            )),
        }
    }
}

/// The two figures of the drive, wherever they stand in the file.
fn measured(path: &Path) -> Result<Disk, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::file("cannot read what was measured of the drive", path, &e))?;
    let bad = |why: &str| {
        Report::new(Class::BadFile, "no measurement of a drive")
            .place(path.display().to_string())
            .why(why)
            .hint("`slotbank doctor MODEL --json` writes one; --read-gb-per-s says it by hand")
    };
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| bad(&e.to_string()))?;
    let number = |key: &str| find(&value, key).filter(|number| number.is_finite());
    match (number("read_gb_per_s"), number("read_latency_us")) {
        (Some(rate), latency) if rate > 0.0 && latency.is_none_or(|us| us >= 0.0) => {
            Ok(Disk { read_gb_per_s: rate, read_latency_us: latency.unwrap_or(0.0) })
        }
        (Some(_), _) => Err(bad("a rate is more than 0 and a latency is not less").into()),
        (None, _) => Err(bad("it has no number `read_gb_per_s`: was the file read from memory?").into()),
    }
}

fn find(value: &serde_json::Value, key: &str) -> Option<f64> {
    value.get(key).and_then(serde_json::Value::as_f64).or_else(|| {
        value.as_object()?.values().filter(|inner| inner.is_object()).find_map(|inner| find(inner, key))
    })
}

fn lookahead(text: &str) -> Result<Lookahead, String> {
    match text {
        "none" => return Ok(Lookahead::None),
        "trace" => return Ok(Lookahead::Traced),
        _ => {}
    }
    let (recall, waste) = text.split_once(':').unwrap_or((text, "0"));
    let (recall, waste) = (at_least_zero(recall)?, at_least_zero(waste)?);
    if recall > 1.0 {
        return Err("no more than all misses (1) can be named".into());
    }
    Ok(Lookahead::Assumed { recall, waste })
}

fn number(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x.is_finite() => Ok(x),
        _ => Err("expected a number".into()),
    }
}

fn at_least_zero(text: &str) -> Result<f64, String> {
    number(text).and_then(|x| if x >= 0.0 { Ok(x) } else { Err("expected 0 or more".into()) })
}

fn above_zero(text: &str) -> Result<f64, String> {
    number(text).and_then(|x| if x > 0.0 { Ok(x) } else { Err("expected more than 0".into()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookaheads_have_three_forms() {
        assert_eq!(lookahead("none"), Ok(Lookahead::None));
        assert_eq!(lookahead("trace"), Ok(Lookahead::Traced));
        assert_eq!(lookahead("0.75"), Ok(Lookahead::Assumed { recall: 0.75, waste: 0.0 }));
        assert_eq!(lookahead("1:0.5"), Ok(Lookahead::Assumed { recall: 1.0, waste: 0.5 }));
        for bad in ["", "1.5", "-1", "0.5:", "0.5:-1", "some", "nan"] {
            assert!(lookahead(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn figures_of_a_drive_are_found_at_any_depth() {
        let value =
            serde_json::json!({"a": 1, "drive": {"read_gb_per_s": 1.2, "cells": [{"read_gb_per_s": 9}]}});
        assert_eq!(find(&value, "read_gb_per_s"), Some(1.2));
        assert_eq!(find(&value, "read_latency_us"), None);
    }
}
