//! Everything that is drawn for a person: on stderr, apart from what a command was asked to print.

pub(crate) mod error;
pub(crate) mod forecast;
pub(crate) mod plan;
pub(crate) mod progress;
pub(crate) mod stats;
pub(crate) mod table;
pub(crate) mod units;

use std::fmt;
use std::io::{IsTerminal, Write};

use error::Failure;

/// Colour of text on stderr; nothing at all when stderr is no terminal or `NO_COLOR` is set.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Paint {
    Bold,
    Dim,
    Red,
}

impl Paint {
    pub(crate) fn on(self, text: &str) -> String {
        let code = match self {
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Red => "1;31",
        };
        if colours() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn colours() -> bool {
    let unwanted = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !unwanted("NO_COLOR")
        && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
        && std::io::stderr().is_terminal()
}

/// A line for a person. Lost when stderr is gone, which is no reason to fail.
pub(crate) fn note(line: impl fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// What the command was asked for.
pub(crate) fn print(text: impl fmt::Display) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(Failure::stdout)
}

/// The same as JSON: pretty for a person, and still one value for a program.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).expect("our own structs have string keys");
    print(text)
}
