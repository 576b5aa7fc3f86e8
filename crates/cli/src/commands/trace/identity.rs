//! Whose trace it is: a small JSON file beside the trace. The trace itself keeps to the lines that other readers of the format
//! expect, and those have no header.

use std::path::{Path, PathBuf};

use engine::{Engine, ModelInfo};
use files::Class;
use serde::{Deserialize, Serialize};

use crate::session::Model;
use crate::ui::error::{Failure, Report};

/// The model, and the bank of the run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Version of this file.
    slotbank_trace: u32,
    /// The file or folder, for people; a model may be moved.
    model: String,
    architecture: String,
    /// `general.name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    hidden_size: u32,
    n_vocab: u32,
    expert_layers: Vec<u32>,
    n_experts: u32,
    top_k: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) run: Option<Run>,
}

/// The bank that wrote the trace: what a replay needs to count the same.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Run {
    /// As `--bank` takes it; for a bank that sized itself, the bytes that it took.
    pub(super) bank: String,
    pub(super) policy: String,
    /// Slots set aside for reading ahead.
    #[serde(default)]
    pub(super) spares: u32,
    /// Whether a trace pinned experts.
    pub(super) pinned: bool,
}

impl Identity {
    pub(super) fn of_model(model: &Model, info: &ModelInfo) -> Identity {
        let name = model.checkpoint.metadata().str("general.name").ok().flatten();
        Identity {
            slotbank_trace: 1,
            model: model.name.clone(),
            architecture: info.architecture.clone(),
            name: name.map(str::to_owned),
            hidden_size: info.hidden_size,
            n_vocab: info.n_vocab,
            expert_layers: info.expert_layers.clone(),
            n_experts: info.n_experts,
            top_k: info.top_k,
            run: None,
        }
    }

    /// Of a loaded model that writes a trace.
    pub(crate) fn of_run(model: &Model, engine: &Engine) -> Identity {
        let options = engine.options();
        let run = engine.memory_plan().bank.as_ref().map(|plan| Run {
            spares: options.spares(),
            bank: match options.bank {
                engine::BankSize::Auto => format!("{}B", plan.arena_bytes()),
                given => given.to_string(),
            },
            policy: options.policy.clone(),
            pinned: options.pin.is_some(),
        });
        Identity { run, ..Identity::of_model(model, engine.model()) }
    }

    /// `trace.jsonl` → `trace.jsonl.model.json`
    pub(super) fn path(trace: &Path) -> PathBuf {
        let mut name = trace.as_os_str().to_owned();
        name.push(".model.json");
        name.into()
    }

    pub(crate) fn write(&self, trace: &Path) -> Result<(), Failure> {
        let path = Self::path(trace);
        let text = serde_json::to_string_pretty(self).expect("our own structs have string keys");
        std::fs::write(&path, text + "\n")
            .map_err(|e| Failure::file("cannot write whose trace it is", &path, &e))
    }

    /// `None` for a trace without such a file: it is checked by its calls alone.
    pub(super) fn read(trace: &Path) -> Result<Option<Identity>, Failure> {
        let path = Self::path(trace);
        let text = match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Failure::file("cannot read whose trace it is", &path, &e)),
            Ok(text) => text,
        };
        let bad = |why: String| {
            let hint = "remove the file to have the trace checked by its calls alone";
            Report::new(Class::BadFile, "bad description of a trace")
                .place(path.display().to_string())
                .why(why)
                .hint(hint)
                .into()
        };
        let identity: Identity = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
        match identity.slotbank_trace {
            1 => Ok(Some(identity)),
            other => Err(bad(format!("it is of version {other}, this slotbank knows 1"))),
        }
    }

    /// Fails where `here` routes differently, with the first difference.
    pub(super) fn check(&self, here: &Identity, trace: &Path) -> Result<(), Failure> {
        let span = |layers: &[u32]| match (layers.first(), layers.last()) {
            (Some(first), Some(last)) => format!("{} from {first} to {last}", layers.len()),
            _ => "none".into(),
        };
        let name = |identity: &Identity| identity.name.clone().unwrap_or_else(|| "without a name".into());
        let both = |what: &str, there: String, here: String| {
            (there != here, format!("{what}: {there} in the trace, {here} here"))
        };
        let number = |what, there: u32, here: u32| both(what, there.to_string(), here.to_string());
        let differences = [
            both("architecture", self.architecture.clone(), here.architecture.clone()),
            (
                self.expert_layers != here.expert_layers,
                both("layers with experts", span(&self.expert_layers), span(&here.expert_layers)).1,
            ),
            number("experts per layer", self.n_experts, here.n_experts),
            number("experts per token", self.top_k, here.top_k),
            number("width", self.hidden_size, here.hidden_size),
            number("vocabulary", self.n_vocab, here.n_vocab),
            both("name", name(self), name(here)),
        ];
        let Some((_, why)) = differences.into_iter().find(|(differs, _)| *differs) else { return Ok(()) };
        let hint = match self.top_k != here.top_k {
            true => format!(
                "the model that was recorded is {}; `--moe-topk` changes experts per token",
                self.model
            ),
            false => format!("the model that was recorded is {}", self.model),
        };
        Err(Report::new(Class::BadFile, "the trace is of another model")
            .place(trace.display().to_string())
            .why(why)
            .hint(hint)
            .into())
    }
}
