//! What a generation cost: speed, hits, bytes, and the time spent waiting for the disk.

use engine::{Finish, Generation, Phase};
use experts::Counters;
use experts::stats::LayerCounters;
use serde::Serialize;

use super::forecast::Compared;
use super::table::{Align, Table};
use super::{Paint, units};

/// The numbers of one or more generations, for people and as JSON.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct RunStats {
    pub(crate) prompt_tokens: u64,
    pub(crate) prompt_ns: u64,
    /// Tokens handed out, end token not counted.
    pub(crate) generated_tokens: u64,
    /// Forward passes behind `decode_ns`; the first token of each generation comes with the prompt.
    pub(crate) decode_passes: u64,
    pub(crate) decode_ns: u64,
    /// Nanoseconds of the prompt and of the passes after it, by what they went into; each adds up to the whole.
    pub(crate) prompt_went: Vec<(&'static str, u64)>,
    pub(crate) decode_went: Vec<(&'static str, u64)>,
    /// Absent when the routed experts are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) experts: Option<ExpertStats>,
    /// The bank layer by layer; only when asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) layers: Vec<LayerStats>,
    /// What was expected of a token, and what came of it; only when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) planned: Option<Compared>,
    pub(crate) reader: String,
    pub(crate) backend: String,
    /// The least that the bank was shrunk to while it worked, where memory ran short; and what it had at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) shrunk_to_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bank_bytes: Option<u64>,
}

/// What the bank did for them.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ExpertStats {
    pub(crate) hit_rate: f64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_read_per_token: f64,
    /// Time for which nothing could be computed because reads were outstanding, and time for which the drive was at work for calls that
    /// waited for it, and ahead of them.
    pub(crate) stall_ns: u64,
    pub(crate) io_wall_ns: u64,
    pub(crate) ahead_io_wall_ns: u64,
    /// Experts rewritten in packed form, and hits on such.
    pub(crate) promotions: u64,
    pub(crate) packed_hits: u64,
    /// Experts guessed for calls, those of them that the calls named, and misses that were read ahead.
    pub(crate) guessed: u64,
    pub(crate) guessed_right: u64,
    pub(crate) ahead_used: u64,
}

/// What the bank did in one layer.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LayerStats {
    pub(crate) layer: u32,
    pub(crate) hit_rate: f64,
    pub(crate) bytes_read_per_token: f64,
    pub(crate) io_wall_ms_per_token: f64,
    pub(crate) ahead_io_wall_ms_per_token: f64,
    pub(crate) stall_ms_per_token: f64,
    /// From the router's choice to the last expert, without the stall.
    pub(crate) computing_ms_per_token: f64,
}

impl RunStats {
    /// Adds one generation of which `emitted` tokens were shown.
    pub(crate) fn add(&mut self, generation: &Generation, emitted: u64) {
        self.prompt_tokens += generation.prompt_tokens as u64;
        self.prompt_ns += generation.prompt_ns;
        self.generated_tokens += emitted;
        self.decode_passes += generation.decode_passes as u64;
        self.decode_ns += generation.decode_ns;
        add_times(&mut self.prompt_went, generation.prompt_ns, &generation.prompt);
        add_times(&mut self.decode_went, generation.decode_ns, &generation.decode);
    }

    /// Takes what describes the engine and its bank as they are now.
    pub(crate) fn set_engine(&mut self, stats: engine::EngineStats) {
        self.reader = stats.reader;
        self.backend = stats.backend;
        self.shrunk_to_bytes = stats.shrunk_to_bytes;
        self.bank_bytes = stats.bank_bytes.filter(|_| stats.shrunk_to_bytes.is_some());
    }

    /// Takes the bank's counters since the load.
    pub(crate) fn set_experts(&mut self, counters: Option<Counters>) {
        let passes = self.prompt_tokens + self.decode_passes;
        self.experts = counters.map(|c| ExpertStats {
            hit_rate: c.hit_rate(),
            hits: c.hits,
            misses: c.misses,
            bytes_read: c.bytes_read,
            bytes_read_per_token: if passes == 0 { 0.0 } else { c.bytes_read as f64 / passes as f64 },
            stall_ns: c.stall_ns,
            io_wall_ns: c.io_wall_ns,
            ahead_io_wall_ns: c.ahead_io_wall_ns,
            promotions: c.promotions,
            packed_hits: c.packed_hits,
            guessed: c.guessed,
            guessed_right: c.guessed_right,
            ahead_used: c.ahead_used,
        });
    }

    /// Takes the same by layer.
    pub(crate) fn set_layers(&mut self, layers: &[LayerCounters]) {
        let passes = (self.prompt_tokens + self.decode_passes).max(1) as f64;
        let ms = |ns: u64| ns as f64 / 1e6 / passes;
        let layer = |layer: &LayerCounters| LayerStats {
            layer: layer.layer,
            hit_rate: layer.counters.hit_rate(),
            bytes_read_per_token: layer.counters.bytes_read as f64 / passes,
            io_wall_ms_per_token: ms(layer.counters.io_wall_ns),
            ahead_io_wall_ms_per_token: ms(layer.counters.ahead_io_wall_ns),
            stall_ms_per_token: ms(layer.counters.stall_ns),
            computing_ms_per_token: ms(layer.counters.open_ns.saturating_sub(layer.counters.stall_ns)),
        };
        self.layers = layers.iter().map(layer).collect();
    }

    pub(crate) fn render(&self) -> String {
        let mut table = Table::new(&[Align::Left, Align::Left]);
        let speed = |tokens, passes, ns| {
            format!("{tokens} tokens in {}, {} tokens/s", units::seconds(ns), units::rate(passes, ns))
        };
        table.row(["prompt".to_owned(), speed(self.prompt_tokens, self.prompt_tokens, self.prompt_ns)]);
        table
            .row(["generation".to_owned(), speed(self.generated_tokens, self.decode_passes, self.decode_ns)]);
        for (name, went) in [("prompt time", &self.prompt_went), ("token time", &self.decode_went)] {
            if let Some(shares) = shares(went) {
                table.row([name.to_owned(), shares]);
            }
        }
        if let Some(experts) = &self.experts {
            table.row([
                "experts".to_owned(),
                format!(
                    "hit rate {}, {} read ({} per token), {} stalled on reads",
                    units::percent(experts.hit_rate),
                    units::bytes(experts.bytes_read),
                    units::bytes(experts.bytes_read_per_token as u64),
                    units::seconds(experts.stall_ns),
                ),
            ]);
            if experts.io_wall_ns > 0 {
                let tokens = (self.prompt_tokens + self.decode_passes).max(1) as f64;
                let ms = |ns: u64| format!("{:.2} ms", ns as f64 / 1e6 / tokens);
                let hidden = experts.io_wall_ns.saturating_sub(experts.stall_ns);
                table.row([
                    "I/O wall".to_owned(),
                    format!(
                        "{} per token, {} of it exposed, {} behind computing{}",
                        ms(experts.io_wall_ns),
                        ms(experts.stall_ns.min(experts.io_wall_ns)),
                        ms(hidden),
                        match experts.ahead_io_wall_ns {
                            0 => String::new(),
                            ns => format!("; {} ahead of demand", ms(ns)),
                        },
                    ),
                ]);
            }
            if experts.promotions > 0 {
                let share = experts.packed_hits as f64 / experts.hits.max(1) as f64;
                table.row([
                    "packed".to_owned(),
                    format!("{} experts, {} of the hits", experts.promotions, units::percent(share)),
                ]);
            }
            if experts.guessed > 0 {
                let right = experts.guessed_right as f64 / experts.guessed as f64;
                let ahead = experts.ahead_used as f64 / experts.misses.max(1) as f64;
                table.row([
                    "read ahead".to_owned(),
                    format!(
                        "{} of the misses, {} of the guesses right",
                        units::percent(ahead),
                        units::percent(right)
                    ),
                ]);
            }
            table.row(["reader", &self.reader]);
        }
        if let Some(bytes) = self.shrunk_to_bytes {
            let now = self.bank_bytes.filter(|&now| now > bytes);
            let now = now.map_or_else(String::new, |now| format!("; grown to {} since", units::bytes(now)));
            let row = format!("shrunk to {}: memory ran short{now}", units::bytes(bytes));
            table.row(["bank".to_owned(), row]);
        }
        table.row(["backend", &self.backend]);
        let planned = self.planned.as_ref().map_or_else(String::new, |c| format!("\n{}", c.render()));
        let layers = self.render_layers().map_or_else(String::new, |layers| format!("\n{layers}"));
        Paint::Dim.on(&format!("{}{layers}{planned}", table.render("  ")))
    }

    /// A line per routed layer.
    fn render_layers(&self) -> Option<String> {
        const RIGHT: Align = Align::Right;
        let mut table = Table::new(&[RIGHT; 7]);
        let figures =
            ["hit rate", "read/token", "I/O wall/token", "stall/token", "computing/token", "ahead/token"];
        table.row(["layer"].into_iter().chain(figures));
        for layer in &self.layers {
            let ms = |ms: f64| format!("{ms:.3} ms");
            table.row([
                layer.layer.to_string(),
                units::percent(layer.hit_rate),
                units::bytes(layer.bytes_read_per_token as u64),
                ms(layer.io_wall_ms_per_token),
                ms(layer.stall_ms_per_token),
                ms(layer.computing_ms_per_token),
                ms(layer.ahead_io_wall_ms_per_token),
            ]);
        }
        (!self.layers.is_empty()).then(|| table.render("  "))
    }
}

/// Adds what `whole_ns` went into; what nobody measured is "other".
fn add_times(went: &mut Vec<(&'static str, u64)>, whole_ns: u64, phase: &Phase) {
    let parts = phase.parts.named().into_iter().chain([("waiting for reads", phase.experts.stall_ns)]);
    let mut left_ns = whole_ns;
    let mut add = |name, ns| match went.iter_mut().find(|part| part.0 == name) {
        Some(part) => part.1 += ns,
        None => went.push((name, ns)),
    };
    for (name, ns) in parts {
        let ns = ns.min(left_ns);
        left_ns -= ns;
        add(name, ns);
    }
    add("other", left_ns);
}

/// The largest first, as shares of the whole; nothing where nothing ran.
fn shares(went: &[(&'static str, u64)]) -> Option<String> {
    let whole: u64 = went.iter().map(|part| part.1).sum();
    let mut parts: Vec<_> = went.iter().filter(|part| part.1 * 200 >= whole.max(1)).collect();
    parts.sort_by_key(|part| std::cmp::Reverse(part.1));
    let share =
        |part: &&(&'static str, u64)| format!("{} {}", part.0, units::percent(part.1 as f64 / whole as f64));
    (whole > 0).then(|| parts.iter().map(share).collect::<Vec<_>>().join(", "))
}

/// Why it ended, where that is not simply the length asked for.
pub(crate) fn finish_note(finish: Finish, context: u32) -> Option<String> {
    match finish {
        Finish::Stop | Finish::Length => None,
        Finish::Context => Some(format!("note: the context of {context} positions is full; `-c` raises it")),
        Finish::Interrupted => Some("interrupted".into()),
    }
}

#[cfg(test)]
mod tests {
    use engine::PartTimes;

    use super::*;

    /// Computing by kind, the exposed part of reading, and the rest are all of the time, whatever was measured. Reads behind computing
    /// are not time of their own.
    #[test]
    fn what_time_went_into_adds_up_to_the_whole() {
        let parts = PartTimes { dense_ns: 30, experts_ns: 40, rows_ns: 5, ..PartTimes::default() };
        let experts = Counters { stall_ns: 20, io_wall_ns: 60, ..Counters::default() };
        let phase = Phase { parts, experts };
        for (whole, other) in [(100, 5), (95, 0), (90, 0), (0, 0), (1_000_000, 999_905)] {
            let mut went = Vec::new();
            add_times(&mut went, whole, &phase);
            assert_eq!(went.iter().map(|part| part.1).sum::<u64>(), whole);
            assert_eq!(went.last(), Some(&("other", other)));
            add_times(&mut went, whole, &phase);
            assert_eq!(went.iter().map(|part| part.1).sum::<u64>(), 2 * whole, "two generations");
        }
        let mut went = Vec::new();
        add_times(&mut went, 100, &phase);
        assert!(went.contains(&("waiting for reads", 20)), "{went:?}");
        assert_eq!(
            shares(&went).as_deref(),
            Some("experts 40.0 %, dense 30.0 %, waiting for reads 20.0 %, rows 5.0 %, other 5.0 %")
        );
    }

    #[test]
    fn hidden_reading_is_what_is_not_exposed() {
        let mut stats = RunStats { decode_passes: 4, ..RunStats::default() };
        let counters = Counters {
            stall_ns: 8_000_000,
            io_wall_ns: 20_000_000,
            open_ns: 12_000_000,
            ..Counters::default()
        };
        stats.set_experts(Some(counters));
        stats.set_layers(&[LayerCounters { layer: 7, counters }]);
        let text = stats.render();
        for needle in [
            "5.00 ms per token, 2.00 ms of it exposed, 3.00 ms behind computing",
            "5.000 ms 2.000 ms 1.000 ms 0.000 ms",
        ] {
            let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(flat.contains(needle), "{needle}: {text}");
        }
    }
}
