//! Failures as a person reads them: what happened, where, why, what to do. One screen, lower case, no backtrace.

use std::fmt::Write as _;
use std::io;

use files::Class;

use super::{Paint, note, units};

/// How a command ends when it does not end well.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Whoever read our output has closed it: a quiet success.
    BrokenPipe,
    /// Anything else.
    Report(Box<Report>),
}

/// One failure, in the order in which it is read.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) class: Class,
    what: String,
    place: Option<String>,
    why: Option<String>,
    hint: Option<String>,
}

impl Report {
    pub(crate) fn new(class: Class, what: impl Into<String>) -> Self {
        Self { class, what: what.into(), place: None, why: None, hint: None }
    }

    pub(crate) fn place(mut self, place: impl Into<String>) -> Self {
        self.place = Some(place.into());
        self
    }

    pub(crate) fn why(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn print(&self) {
        let mut text = format!("{} {}", Paint::Red.on("error:"), self.what);
        for (label, line) in [("where:", &self.place), ("why:", &self.why), ("hint:", &self.hint)] {
            if let Some(line) = line {
                let _ = write!(text, "\n  {} {line}", Paint::Bold.on(label));
            }
        }
        note(text);
    }
}

impl From<Report> for Failure {
    fn from(report: Report) -> Self {
        Self::Report(Box::new(report))
    }
}

impl Failure {
    /// Bad input of the user that the argument parser cannot see.
    pub(crate) fn usage(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Report::new(Class::Usage, what).hint(hint).into()
    }

    /// A failed write to stdout.
    pub(crate) fn stdout(source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::BrokenPipe {
            return Self::BrokenPipe;
        }
        Report::new(Class::Io, "cannot write to standard output").why(source.to_string()).into()
    }

    /// A failed read or write of a file named by the user.
    pub(crate) fn file(what: &str, path: &std::path::Path, source: &io::Error) -> Self {
        let class = if source.kind() == io::ErrorKind::NotFound { Class::Usage } else { Class::Io };
        Report::new(class, what).place(path.display().to_string()).why(source.to_string()).into()
    }
}

impl From<files::Error> for Failure {
    fn from(error: files::Error) -> Self {
        use files::Error as E;
        let new = |what: &str| Report::new(error.class(), what);
        let report = match &error {
            E::Io { path, source } => {
                new("cannot read or write").place(path.display().to_string()).why(source.to_string())
            }
            E::NotFound { path } => new("no such file or folder").place(path.display().to_string()),
            E::WrongKind { path, found, expected, .. } => new(&format!("not {expected}"))
                .place(path.display().to_string())
                .why(format!("it is {found}")),
            E::Gguf { path, offset, what, why } => {
                new("damaged gguf").place(format!("{}, byte {offset}: {what}", path.display())).why(why)
            }
            E::GgufVersion { path, why } => {
                new("unsupported gguf").place(path.display().to_string()).why(why)
            }
            E::TensorType { path, tensor, why } => new("unsupported tensor type")
                .place(format!("{}: tensor `{tensor}`", path.display()))
                .why(why),
            E::Truncated { path, what, needs, has } => {
                new("truncated file").place(format!("{}: {what}", path.display())).why(format!(
                    "it needs bytes up to {}, the file has {}",
                    units::exact(*needs),
                    units::exact(*has)
                ))
            }
            E::MissingShard { path, number, count } => {
                new(&format!("shard {number} of {count} is missing")).place(path.display().to_string())
            }
            E::Split { path, why } => {
                new("shards that do not belong together").place(path.display().to_string()).why(why)
            }
            E::Manifest { path, why } => new("bad manifest").place(path.display().to_string()).why(why),
            E::ManifestEntry { path, index, tensor, why } => new("bad manifest entry")
                .place(format!("{}: entry {index} (`{tensor}`)", path.display()))
                .why(why),
            E::WrongSidecar { manifest, dense, why } => {
                new("wrong sidecar").place(format!("{} for {}", manifest.display(), dense.display())).why(why)
            }
            E::CopyDiffers { copy, original, why } => new("sidecars that are no copies of each other")
                .place(format!("{} and {}", original.display(), copy.display()))
                .why(why),
            E::Incomplete { path, what, .. } => {
                new("incomplete model").place(path.display().to_string()).why(what)
            }
            E::Space { path, needs, has } => new("not enough disk space")
                .place(path.display().to_string())
                .why(format!("{} needed, {} free", units::bytes(*needs), units::bytes(*has))),
            E::Integrity { path, why } => new("damaged bytes").place(path.display().to_string()).why(why),
            other => new(&other.to_string()),
        };
        with_hint(report, error.hint())
    }
}

impl From<experts::Error> for Failure {
    fn from(error: experts::Error) -> Self {
        use experts::Error as E;
        let new = |what: &str| Report::new(error.class(), what);
        let report = match &error {
            E::DoesNotFit { needed, given, floor, layers } => {
                new("the expert bank is too small").why(format!(
                    "one token needs {floor} slots in each of {layers} layers, {} in all; {} given",
                    units::bytes(*needed),
                    units::bytes(*given)
                ))
            }
            E::Read { path, offset, len, layer, expert, families, source } => {
                new(&format!("cannot read expert {expert} of layer {layer} ({families})"))
                    .place(format!("{}, offset {offset}, {len} bytes", path.display()))
                    .why(source.to_string())
            }
            E::Open { path, source } | E::DirectRefused { path, source } => {
                let what = if matches!(error, E::Open { .. }) {
                    "cannot open the experts"
                } else {
                    "direct reads are refused"
                };
                new(what).place(path.display().to_string()).why(source.to_string())
            }
            E::TraceOpen { path, source } => {
                new("cannot read the trace").place(path.display().to_string()).why(source.to_string())
            }
            E::TraceForeign { why } => new("the trace is of another model").why(why),
            other => new(&other.to_string()),
        };
        let hint = match (&error, error.hint()) {
            (E::DoesNotFit { floor, .. }, Some(hint)) => {
                Some(format!("{hint}, or {floor} slots per layer (`--bank {floor}`)"))
            }
            (_, hint) => hint,
        };
        with_hint(report, hint)
    }
}

impl From<engine::Error> for Failure {
    fn from(error: engine::Error) -> Self {
        use engine::Error as E;
        match error {
            E::Files(e) => e.into(),
            E::Experts(e) => e.into(),
            E::Text(e) => e.into(),
            error => {
                let new = |what: &str| Report::new(error.class(), what);
                let report = match &error {
                    E::Architecture { found, path, .. } => {
                        new(&format!("architecture `{found}` is not supported"))
                            .place(path.display().to_string())
                    }
                    E::DoesNotFit { needed_bytes, available_bytes, parts, .. } => {
                        let parts: Vec<_> = parts
                            .iter()
                            .map(|(name, bytes)| format!("{name} {}", units::bytes(*bytes)))
                            .collect();
                        new("the model does not fit into memory").why(format!(
                            "{} needed ({}), {} available",
                            units::bytes(*needed_bytes),
                            parts.join(", "),
                            units::bytes(*available_bytes)
                        ))
                    }
                    E::Write { path, source } => {
                        new("cannot write").place(path.display().to_string()).why(source.to_string())
                    }
                    other => new(&other.to_string()),
                };
                with_hint(report, error.hint())
            }
        }
    }
}

impl From<text::Error> for Failure {
    fn from(error: text::Error) -> Self {
        let class = match error.fault() {
            text::Fault::BadFile => Class::BadFile,
            text::Fault::Unsupported => Class::Unsupported,
            text::Fault::Usage => Class::Usage,
            _ => Class::Internal,
        };
        let broken = "`slotbank verify` checks the model files; if they are sound, please report this";
        let hint = error.hint().or_else(|| (class == Class::Internal).then(|| broken.to_owned()));
        with_hint(Report::new(class, error.to_string()), hint)
    }
}

fn with_hint(report: Report, hint: Option<String>) -> Failure {
    match hint {
        Some(hint) => report.hint(hint).into(),
        None => report.into(),
    }
}
