//! What a plan lets one expect, and afterwards what came of it.

use engine::forecast::{Bound, Forecast};
use serde::Serialize;

use super::table::{Align, Table};
use super::{Paint, units};
use crate::forecast::Outlook;

/// One token, its three times, the speed between two bounds, and what each change would buy.
pub(crate) fn render(outlook: &Outlook) -> String {
    let (work, expected, sources) = (&outlook.work, &outlook.forecast, &outlook.sources);
    let mut token = Table::new(&[Align::Left, Align::Right, Align::Left]);
    if work.layers > 0 {
        let experts = format!("{} experts in each of {} layers", work.top_k, work.layers);
        token.row(["experts, cold".to_owned(), units::bytes(work.cold_bytes), experts]);
        token.row(["hit rate".to_owned(), units::percent(expected.hit_rate), sources.hit_rate.clone()]);
    }
    let seconds = |s: Option<f64>| s.map_or_else(|| "?".to_owned(), |s| units::seconds((s * 1e9) as u64));
    if work.layers > 0 {
        let drive = format!("{} to read; {}", units::bytes(expected.read_bytes), sources.drive);
        token.row(["drive".to_owned(), seconds(expected.drive_s), drive]);
    }
    let memory = format!("{} of weights; {}", units::bytes(work.memory_bytes), sources.memory);
    token.row(["memory".to_owned(), seconds(expected.memory_s), memory]);
    let weights: u64 = work.weights.values().sum();
    let compute = format!("{:.2} Gweights; {}", weights as f64 / 1e9, sources.compute);
    token.row(["compute".to_owned(), seconds(expected.compute_s), compute]);
    token.row(["tokens/s".to_owned(), speed(expected), bound(expected).to_owned()]);
    let mut text = format!("{}\n{}", Paint::Bold.on("one token"), token.render("  "));
    if let Some(bytes) = outlook.largest_bank_bytes {
        text += &format!("\n\nlargest bank that fits: {}", units::bytes(bytes));
    }
    if !outlook.changes.is_empty() {
        let mut table = Table::new(&[Align::Left, Align::Right, Align::Right, Align::Right, Align::Right]);
        table.row(["", "bank", "hit rate", "read", "tokens/s"]);
        for change in &outlook.changes {
            table.row([
                change.what.clone(),
                units::bytes(change.bank_bytes),
                units::percent(change.forecast.hit_rate),
                units::bytes(change.forecast.read_bytes),
                speed(&change.forecast),
            ]);
        }
        text += &format!("\n\n{}\n{}", Paint::Bold.on("what a change would buy"), table.render("  "));
    }
    text += "\n\nspeeds are those of a machine that does nothing else, from nothing overlapping to everything;\n\
             attention over the cache and small operations are not counted";
    if outlook.estimated {
        text +=
            "\nhit rates are estimates, from GLM-5.2 as others measured it: other models and texts differ";
    }
    text
}

/// `0.42 to 0.61`, or one number where the two are the same.
pub(crate) fn speed(expected: &Forecast) -> String {
    let rate = |rate: f64| if rate < 100.0 { format!("{rate:.2}") } else { format!("{rate:.0}") };
    match (expected.tokens_per_s_low, expected.tokens_per_s_high) {
        (Some(low), Some(high)) if rate(low) == rate(high) => rate(low),
        (Some(low), Some(high)) => format!("{} to {}", rate(low), rate(high)),
        (_, Some(high)) => format!("at most {}", rate(high)),
        _ => "?".to_owned(),
    }
}

fn bound(expected: &Forecast) -> &'static str {
    match (expected.bound, expected.tokens_per_s_low) {
        (Some(Bound::Drive), _) => "bound by the drive",
        (Some(Bound::Memory), Some(_)) => "bound by memory",
        (Some(Bound::Compute), Some(_)) => "bound by compute",
        (Some(_), None) => "a rate is missing, and it may be the one that counts",
        (None, _) => "no rate is known: give --drive, --memory and --compute",
    }
}

/// What was expected beside what came of it, for decoded tokens.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Compared {
    pub(crate) planned_hit_rate: f64,
    pub(crate) hit_rate: f64,
    pub(crate) planned_bytes_per_token: u64,
    pub(crate) bytes_per_token: u64,
    pub(crate) planned_tokens_per_s_low: Option<f64>,
    pub(crate) planned_tokens_per_s_high: Option<f64>,
    pub(crate) tokens_per_s: f64,
}

impl Compared {
    /// `decoded` counts what the bank did for `passes` tokens in `ns`; none of no token.
    pub(crate) fn new(
        expected: &Forecast,
        decoded: Option<&experts::Counters>,
        passes: u64,
        ns: u64,
    ) -> Option<Compared> {
        if passes == 0 || ns == 0 {
            return None;
        }
        Some(Compared {
            planned_hit_rate: expected.hit_rate,
            hit_rate: decoded.map_or(1.0, experts::Counters::hit_rate),
            planned_bytes_per_token: expected.read_bytes,
            bytes_per_token: decoded.map_or(0, |counters| counters.bytes_read / passes),
            planned_tokens_per_s_low: expected.tokens_per_s_low,
            planned_tokens_per_s_high: expected.tokens_per_s_high,
            tokens_per_s: passes as f64 * 1e9 / ns as f64,
        })
    }

    pub(crate) fn render(&self) -> String {
        let mut table = Table::new(&[Align::Left, Align::Right, Align::Right]);
        let planned = |rate: Option<f64>| rate.map_or_else(|| "?".to_owned(), |rate| format!("{rate:.2}"));
        let (low, high) = (planned(self.planned_tokens_per_s_low), planned(self.planned_tokens_per_s_high));
        let bytes = [self.planned_bytes_per_token, self.bytes_per_token].map(units::bytes);
        table.row(["one token", "planned", "measured"]);
        table.row([
            "hit rate".to_owned(),
            units::percent(self.planned_hit_rate),
            units::percent(self.hit_rate),
        ]);
        table.row(["read".to_owned(), bytes[0].clone(), bytes[1].clone()]);
        table.row(["tokens/s".to_owned(), format!("{low} to {high}"), format!("{:.2}", self.tokens_per_s)]);
        table.render("  ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(low: Option<f64>, high: Option<f64>) -> Forecast {
        Forecast {
            hit_rate: 0.75,
            read_bytes: 1 << 30,
            drive_s: None,
            memory_s: None,
            compute_s: None,
            bound: Some(Bound::Memory),
            tokens_per_s_low: low,
            tokens_per_s_high: high,
        }
    }

    #[test]
    fn a_speed_is_a_range_a_bound_or_unknown() {
        assert_eq!(speed(&expected(Some(0.421), Some(0.6))), "0.42 to 0.60");
        assert_eq!(speed(&expected(Some(3.001), Some(3.004))), "3.00");
        assert_eq!(speed(&expected(None, Some(250.4))), "at most 250");
        assert_eq!(speed(&expected(None, None)), "?");
        assert!(bound(&expected(None, Some(1.0))).contains("missing"));
    }

    #[test]
    fn planned_and_measured_stand_side_by_side() {
        let counters = experts::Counters {
            hits: 60,
            misses: 40,
            unique: 100,
            bytes_read: 4 << 20,
            ..Default::default()
        };
        let compared = Compared::new(&expected(Some(1.0), Some(2.0)), Some(&counters), 4, 2_000_000_000)
            .expect("four tokens");
        assert_eq!((compared.hit_rate, compared.bytes_per_token, compared.tokens_per_s), (0.6, 1 << 20, 2.0));
        assert_eq!(
            compared.render(),
            "  one token       planned  measured\n  hit rate         75.0 %    60.0 %\n  \
             read            1.0 GiB   1.0 MiB\n  tokens/s   1.00 to 2.00      2.00"
        );
        assert!(Compared::new(&expected(None, None), None, 0, 0).is_none());
    }
}
