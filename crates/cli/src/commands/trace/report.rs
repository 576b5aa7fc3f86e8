//! The simulation for people: tables of text, and the same as a web page with curves.

use super::chart::{self, Chart, Panel, Series};
use super::simulate::{Outcome, Row};
use crate::ui::table::{Align, Table};
use crate::ui::units;

/// One figure of a bank that is worth a table and a panel.
struct Measure {
    title: &'static str,
    /// Beside the axis.
    unit: &'static str,
    of: fn(&Row) -> Option<f64>,
    cell: fn(f64) -> String,
}

fn measures(outcome: &Outcome) -> Vec<Measure> {
    let all = [
        Measure {
            title: "hit rate",
            unit: "% of experts asked for",
            of: |row| Some(row.figures.hit_rate * 100.0),
            cell: |percent| format!("{percent:.1} %"),
        },
        Measure {
            title: "read per token",
            unit: "GB per token",
            of: |row| Some(row.figures.bytes_per_token / 1e9),
            cell: |gb| units::bytes((gb * 1e9) as u64),
        },
        Measure {
            title: "tokens/s, dependency bound",
            unit: "tokens per second",
            of: |row| row.figures.time.map(|time| time.dependency_tokens_per_s),
            cell: |rate| format!("{rate:.2}"),
        },
        Measure {
            title: "tokens/s, ideal bound",
            unit: "tokens per second",
            of: |row| row.figures.time.map(|time| time.ideal_tokens_per_s),
            cell: |rate| format!("{rate:.2}"),
        },
    ];
    all.into_iter().filter(|measure| outcome.rows.iter().any(|row| (measure.of)(row).is_some())).collect()
}

/// Names of policies in the order of the rows.
fn policies(outcome: &Outcome) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    outcome.rows.iter().map(|row| row.policy.as_str()).for_each(|name| {
        if !names.contains(&name) {
            names.push(name);
        }
    });
    names
}

fn budgets(outcome: &Outcome) -> impl Iterator<Item = (&'static str, &'static str)> + '_ {
    let all = [("global", "one budget for all layers"), ("per-layer", "the same slots for every layer")];
    all.into_iter().filter(move |(budget, _)| outcome.rows.iter().any(|row| row.budget == *budget))
}

/// One line about the model, one about what counted.
fn heading(outcome: &Outcome) -> (String, String) {
    let Outcome { model, expert_layers, n_experts, top_k, tokens, scope, .. } = outcome;
    let all = units::bytes(outcome.all_bytes);
    let model =
        format!("{model} · {expert_layers} layers of {n_experts} experts, top {top_k} · all experts {all}");
    let mut counted = format!("{} · {tokens} tokens", outcome.trace);
    if scope.single_tokens_only {
        counted += &format!(", {} one by one, which count", outcome.single_token_passes);
    }
    if scope.warm_up_tokens > 0 {
        counted += &format!(", the first {} as warm-up", scope.warm_up_tokens);
    }
    (model, counted)
}

/// What the guesses of the trace were worth, which no bank changes.
fn guesses(outcome: &Outcome) -> Vec<String> {
    let Some(Row { figures, .. }) = outcome.rows.first() else { return Vec::new() };
    let mut lines = vec![format!(
        "the token before names {} of a token's experts in the same layer",
        units::percent(figures.previous_token.recall)
    )];
    if let Some(ahead) = figures.lookahead {
        lines.push(format!("the look-ahead of the trace names {} of them", units::percent(ahead.recall)));
    }
    lines
}

/// Tables for a terminal.
pub(super) fn text(outcome: &Outcome) -> String {
    let (model, counted) = heading(outcome);
    let mut text = format!("{model}\n{counted}");
    for measure in measures(outcome) {
        for (budget, what) in budgets(outcome) {
            let mut table = Table::new(&vec![Align::Right; 2 + policies(outcome).len()]);
            for line in lines(outcome, &measure, budget) {
                table.row(line);
            }
            text += &format!("\n\n{}, {what}\n{}", measure.title, table.render("  "));
        }
    }
    text.push('\n');
    for line in guesses(outcome) {
        text += &format!("\n{line}");
    }
    text
}

/// A header, then one line per bank size.
fn lines(outcome: &Outcome, measure: &Measure, budget: &str) -> Vec<Vec<String>> {
    let names = policies(outcome);
    let head = ["bank", "experts"].into_iter().chain(names.iter().copied()).map(str::to_owned);
    let mut lines: Vec<Vec<String>> = vec![head.collect()];
    let rows = |name: &str| {
        let name = name.to_owned();
        outcome.rows.iter().filter(move |row| row.policy == name && row.budget == budget)
    };
    for (i, first) in rows(names[0]).enumerate() {
        let mut line = vec![units::bytes(first.bank_bytes), units::percent(first.share)];
        line.extend(names.iter().map(|name| {
            let value = rows(name).nth(i).and_then(|row| (measure.of)(row));
            value.map_or_else(|| "–".into(), |value| (measure.cell)(value))
        }));
        lines.push(line);
    }
    lines
}

/// The curves.
pub(super) fn svg(outcome: &Outcome) -> String {
    let (model, counted) = heading(outcome);
    let names = policies(outcome);
    let panel = |measure: &Measure| {
        let mut series = Vec::new();
        for (budget, _) in budgets(outcome) {
            for name in &names {
                let rows = outcome.rows.iter().filter(|row| row.policy == *name && row.budget == budget);
                let points = rows.filter_map(|row| {
                    let value = (measure.of)(row)?;
                    let bank = units::bytes(row.bank_bytes);
                    let note = format!(
                        "{name}, {budget}: {} with {bank} ({})",
                        (measure.cell)(value),
                        units::percent(row.share)
                    );
                    Some((row.share * 100.0, value, note))
                });
                series.push(Series {
                    colour: colour_of(name),
                    dashed: budget != "global",
                    points: points.collect(),
                });
            }
        }
        Panel { title: measure.title.to_owned(), y_label: measure.unit.to_owned(), series }
    };
    let chart = Chart {
        title: model,
        subtitle: counted,
        x_label: "share of the experts that have a slot, and the bytes that this takes".into(),
        x_notes: (0..=4).map(|quarter| units::bytes(outcome.all_bytes / 4 * quarter)).collect(),
        legend: names.iter().map(|name| ((*name).to_owned(), colour_of(name))).collect(),
        strokes: budgets(outcome).map(|(budget, what)| (what.to_owned(), budget != "global")).collect(),
        panels: measures(outcome).iter().map(panel).collect(),
    };
    chart.render()
}

/// A policy has the same colour whoever else is shown. The optimum is no policy: it has the colour of the text.
fn colour_of(name: &str) -> usize {
    match name {
        experts::simulate::BELADY => chart::INK,
        _ => experts::simulate::names().position(|known| known == name).unwrap_or(0) % chart::COLOURS,
    }
}

/// A page with the curves and the tables, which loads nothing.
pub(super) fn html(outcome: &Outcome) -> String {
    let mut body = svg(outcome) + "\n";
    for measure in measures(outcome) {
        for (budget, what) in budgets(outcome) {
            body += &format!("<h2>{}, {what}</h2>\n<table>\n", chart::escape(measure.title));
            for (i, line) in lines(outcome, &measure, budget).iter().enumerate() {
                let tag = if i == 0 { "th" } else { "td" };
                let cells: String =
                    line.iter().map(|cell| format!("<{tag}>{}</{tag}>", chart::escape(cell))).collect();
                body += &format!("<tr>{cells}</tr>\n");
            }
            body += "</table>\n";
        }
    }
    for line in guesses(outcome) {
        body += &format!("<p>{}</p>\n", chart::escape(&line));
    }
    if let Some(rates) = &outcome.rates {
        let (disk, compute) = (&rates.disk, &rates.compute);
        body += &format!(
            "<p>time model: drive {} GB/s and {} µs; a routed layer {} ms before its router, {} ms shared, {} ms per expert; \
             {} ms outside</p>\n",
            disk.read_gb_per_s,
            disk.read_latency_us,
            round(compute.layer_ms),
            round(compute.shared_ms),
            round(compute.expert_ms),
            round(compute.other_ms)
        );
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{}</title>\n<style>{PAGE_STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        chart::escape(&outcome.model)
    )
}

fn round(ms: f64) -> f64 {
    (ms * 1e4).round() / 1e4
}

const PAGE_STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
  background: #fcfcfb; color: #1b1b19; }
h2 { font-size: 1rem; margin-top: 2rem; }
svg { width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { text-align: right; padding: .15rem .8rem; font-weight: normal; }
th { border-bottom: 1px solid #b5b5b0; color: #5f5f5a; }
@media (prefers-color-scheme: dark) {
  body { background: #1a1a19; color: #ecece8; }
  th { border-color: #55554f; color: #a5a59e; }
}
";
