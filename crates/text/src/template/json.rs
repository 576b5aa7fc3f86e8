//! JSON as Python's `json.dumps` writes it. Models were trained on that spelling: a space after colons and commas,
//! `1.0` and `1e-07`, no HTML escapes.

use std::fmt::Write as _;

use serde_json::Value;

/// The arguments of `json.dumps`.
pub(crate) struct Style {
    pub(super) ascii: bool,
    pub(super) sort_keys: bool,
    pub(super) indent: Option<String>,
    /// Between items and between key and value.
    pub(super) item: String,
    pub(super) key: String,
}

impl Default for Style {
    /// What `json.dumps(value, ensure_ascii=False)` writes.
    fn default() -> Self {
        Self { ascii: false, sort_keys: false, indent: None, item: ", ".into(), key: ": ".into() }
    }
}

/// `value` in that style.
pub(crate) fn dumps(value: &Value, style: &Style) -> String {
    let mut out = String::new();
    write_value(&mut out, value, style, 0);
    out
}

fn write_value(out: &mut String, value: &Value, style: &Style, depth: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(float) => write_float(out, float),
            None => out.push_str(&number.to_string()),
        },
        Value::String(text) => write_string(out, text, style.ascii),
        Value::Array(items) => write_list(out, ('[', ']'), items.iter(), style, depth, |out, item| {
            write_value(out, item, style, depth + 1);
        }),
        Value::Object(fields) => {
            let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
            if style.sort_keys {
                fields.sort_unstable_by_key(|(key, _)| *key);
            }
            write_list(out, ('{', '}'), fields.into_iter(), style, depth, |out, (key, value)| {
                write_string(out, key, style.ascii);
                out.push_str(&style.key);
                write_value(out, value, style, depth + 1);
            });
        }
    }
}

fn write_list<T>(
    out: &mut String,
    (open, close): (char, char),
    items: impl ExactSizeIterator<Item = T>,
    style: &Style,
    depth: usize,
    mut write: impl FnMut(&mut String, T),
) {
    let break_line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    };
    let is_empty = items.len() == 0;
    out.push(open);
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push_str(&style.item);
        }
        break_line(out, depth + 1);
        write(out, item);
    }
    if !is_empty {
        break_line(out, depth);
    }
    out.push(close);
}

/// Python's `repr` of a float.
pub(super) fn float(float: f64) -> String {
    let mut out = String::new();
    match float {
        _ if float.is_nan() => out.push_str("nan"),
        _ if float.is_infinite() => out.push_str(if float > 0.0 { "inf" } else { "-inf" }),
        _ => write_float(&mut out, float),
    }
    out
}

/// Shortest digits, an exponent below 1e-4 and from 1e16.
fn write_float(out: &mut String, float: f64) {
    let size = float.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{float:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
        let _ = write!(out, "{digits}e{sign}{exponent:0>2}");
    } else {
        let _ = write!(out, "{float}");
        if float.fract() == 0.0 {
            out.push_str(".0");
        }
    }
}

fn write_string(out: &mut String, text: &str, ascii: bool) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\0'..='\u{1f}' => write_escape(out, char),
            // The mark of shielded text is no character of it.
            '\u{7f}'.. if ascii && char != crate::tokenizer::SHIELD => write_escape(out, char),
            _ => out.push(char),
        }
    }
    out.push('"');
}

fn write_escape(out: &mut String, char: char) {
    for unit in char.encode_utf16(&mut [0; 2]) {
        let _ = write!(out, "\\u{unit:04x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_spelled_as_python_does() {
        for (float, text) in [
            (1.0, "1.0"),
            (-0.5, "-0.5"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e100, "1.25e+100"),
            (-0.0, "-0.0"),
        ] {
            assert_eq!(dumps(&float.into(), &Style::default()), text);
        }
    }

    #[test]
    fn strings_are_escaped_as_python_does() {
        let text: Value = "<a&'\"\\\n\u{1}\u{7f}é😀>".into();
        assert_eq!(dumps(&text, &Style::default()), "\"<a&'\\\"\\\\\\n\\u0001\u{7f}é😀>\"");
        let ascii = Style { ascii: true, ..Style::default() };
        assert_eq!(dumps(&text, &ascii), r#""<a&'\"\\\n\u0001\u007f\u00e9\ud83d\ude00>""#);
    }

    #[test]
    fn nesting_and_order() {
        let value: Value =
            serde_json::from_str(r#"{"z":[1,2.0,null],"a":{"k":true},"e":[],"f":{}}"#).unwrap();
        assert_eq!(
            dumps(&value, &Style::default()),
            r#"{"z": [1, 2.0, null], "a": {"k": true}, "e": [], "f": {}}"#
        );
        let indented =
            Style { indent: Some("  ".into()), item: ",".into(), sort_keys: true, ..Style::default() };
        assert_eq!(
            dumps(&value, &indented),
            "{\n  \"a\": {\n    \"k\": true\n  },\n  \"e\": [],\n  \"f\": {},\n  \"z\": [\n    1,\n    2.0,\n    null\n  ]\n}"
        );
    }
}
