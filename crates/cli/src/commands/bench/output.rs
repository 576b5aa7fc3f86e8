//! One record per test, in the formats of llama.cpp's own benchmark: its columns, then what only a streaming engine has.

use clap::ValueEnum;
use serde_json::{Map, Value, json};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Table,
    /// Everything, every round
    Json,
    /// One object per test
    Jsonl,
    /// One line per test, with a header
    Csv,
    /// A table for issues and pages
    Md,
}

/// The columns of one test, in order.
pub(super) type Record = Map<String, Value>;

/// `records` as CSV: strings in quotes, as RFC 4180 has them.
pub(super) fn csv(records: &[Record]) -> String {
    let cell = |value: &Value| match value {
        Value::String(text) => format!("\"{}\"", text.replace('"', "\"\"")),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let line = |cells: Vec<String>| cells.join(",");
    let header = records.first().map(|record| line(record.keys().cloned().collect()));
    let rows = records.iter().map(|record| line(record.values().map(cell).collect()));
    header.into_iter().chain(rows).collect::<Vec<_>>().join("\n")
}

/// As JSON lines.
pub(super) fn jsonl(records: &[Record]) -> String {
    let lines = records.iter().map(|record| Value::Object(record.clone()).to_string());
    lines.collect::<Vec<_>>().join("\n")
}

/// As a Markdown table.
pub(super) fn markdown(records: &[Record]) -> String {
    let Some(first) = records.first() else { return String::new() };
    let row =
        |cells: &mut dyn Iterator<Item = String>| format!("| {} |", cells.collect::<Vec<_>>().join(" | "));
    let mut lines = vec![row(&mut first.keys().cloned())];
    lines.push(row(&mut first
        .values()
        .map(|value| if value.is_number() { "---:" } else { "---" }.to_owned())));
    for record in records {
        lines.push(row(&mut record.values().map(short)));
    }
    lines.join("\n")
}

fn short(value: &Value) -> String {
    match value {
        Value::String(text) => text.replace('|', "\\|"),
        Value::Number(n) if n.is_f64() => format!("{:.2}", n.as_f64().unwrap_or_default()),
        Value::Null => "–".to_owned(),
        other => other.to_string(),
    }
}

/// A float with as many digits as anybody can use.
pub(super) fn number(x: f64) -> Value {
    json!((x * 1e4).round() / 1e4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        let record = |test: &str, speed: f64, hit: Value| {
            let Value::Object(map) = json!({ "test": test, "avg_ts": number(speed), "hit_rate": hit }) else {
                unreachable!("an object")
            };
            map
        };
        vec![record("pp512", 100.0 / 3.0, Value::Null), record("a \"b\"|c", 2.0, json!(0.5))]
    }

    #[test]
    fn every_format_has_every_record() {
        assert_eq!(csv(&records()), "test,avg_ts,hit_rate\n\"pp512\",33.3333,\n\"a \"\"b\"\"|c\",2.0,0.5");
        assert_eq!(jsonl(&records()).lines().count(), 2);
        let table = markdown(&records());
        assert_eq!(table.lines().nth(2), Some("| pp512 | 33.33 | – |"));
        assert!(table.ends_with("| a \"b\"\\|c | 2.00 | 0.50 |"), "{table}");
        assert!(csv(&[]).is_empty() && markdown(&[]).is_empty());
    }
}
