//! Small changes to the text of a template before the engine parses it, where Jinja2 reads it differently.

use std::sync::LazyLock;

use regex::Regex;

/// What `[::-1]` becomes: the engine's own slices fail on empty values and miscount others.
pub(super) const REVERSED: &str = "__reversed__";

/// `source` in the engine's dialect; lines stay where they are.
pub(super) fn adapt(source: &str) -> String {
    // Jinja2 knows only this line break, whatever the file was written with.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    with_reversals(&without_generation_blocks(&source))
}

/// `{% generation %}` marks the model's turns for training and means nothing here. It becomes a block that always
/// renders, so that line numbers and white space stay.
fn without_generation_blocks(source: &str) -> String {
    static TAG: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(\{%[-+]?)\s*(end)?generation\s*([-+]?%\})").expect("a constant"));
    TAG.replace_all(source, |tag: &regex::Captures| {
        let word = if tag.get(2).is_some() { "endif" } else { "if true" };
        format!("{} {word} {}", &tag[1], &tag[3])
    })
    .into_owned()
}

/// Replaces `[::-1]` in expressions, leaving text, comments and strings alone.
fn with_reversals(source: &str) -> String {
    // A comment; a string; the slice; the end of a tag; the beginning of one.
    static PART: LazyLock<Regex> = LazyLock::new(|| {
        let strings = r#""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'"#;
        let parts = format!(r"(?s)(\{{#.*?#\}})|({strings})|(\[\s*:\s*:\s*-\s*1\s*\])|([%}}]\}})|(\{{[%{{])");
        Regex::new(&parts).expect("a constant")
    });
    static OUTSIDE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(?s)(\{#.*?#\})|(\{[%{])").expect("a constant"));
    let mut out = String::with_capacity(source.len());
    let (mut at, mut copied, mut inside) = (0, 0, false);
    while let Some(found) =
        if inside { PART.captures_at(source, at) } else { OUTSIDE.captures_at(source, at) }
    {
        let Some(whole) = found.get(0) else { break };
        at = whole.end();
        if !inside {
            inside = found.get(2).is_some();
        } else if found.get(3).is_some() {
            out.push_str(&source[copied..whole.start()]);
            out.push_str(&format!(".{REVERSED}()"));
            copied = at;
        } else if found.get(4).is_some() {
            inside = false;
        }
    }
    out.push_str(&source[copied..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reversals_are_found_in_expressions_alone() {
        for (source, adapted) in [
            ("{{ a[::-1] }}", "{{ a.__reversed__() }}"),
            ("{% for a in b[1:][ : :-1 ][0] %}", "{% for a in b[1:].__reversed__()[0] %}"),
            (
                "a[::-1]{# [::-1] #}{{ '[::-1]' ~ \"\\\"[::-1]\" }}",
                "a[::-1]{# [::-1] #}{{ '[::-1]' ~ \"\\\"[::-1]\" }}",
            ),
            ("{{ '}}' }}[::-1]{{ \"{#\" }}[::-1]", "{{ '}}' }}[::-1]{{ \"{#\" }}[::-1]"),
            ("{{ {'a': {'b': 1}} }}[::-1]", "{{ {'a': {'b': 1}} }}[::-1]"),
            ("\r\n{{ a }}\r[::-1]", "\n{{ a }}\n[::-1]"),
            ("it's {{ a[::-1] }} isn't", "it's {{ a.__reversed__() }} isn't"),
        ] {
            assert_eq!(adapt(source), adapted);
        }
    }
}
