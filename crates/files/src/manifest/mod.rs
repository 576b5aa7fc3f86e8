//! `manifest.json` of a sidecar: where each expert of each layer lies in the bins beside it.
//!
//! A sidecar is a folder with a manifest and one headerless `layer_NNN.bin` per routed layer. Expert `e` of an entry is
//! `bytes_per_expert` bytes at `repacked_offset + e * stride`:
//! ```text
//! layer_major_whole_tensor:  | gate 0 1 2 … | up 0 1 2 … | down 0 1 2 … |          stride = bytes_per_expert
//! layer_major_expert:        | gate 0, up 0, down 0 | gate 1, up 1, down 1 | …     stride = expert_stride
//! ```
//! Schema version 1 holds ggml blocks and is shared with other programs. Version 2 is slotbank's own: records of which some families
//! are packed ([`Form`](crate::Form)). Kind, layout and the packed `quant_type` are then names that no reader of version 1 takes for
//! one of its own.
//!
//! Nothing in a bin says what it is and there are no sums, so everything that can be checked is: geometry against type and
//! shape, extents against file sizes, entries against each other. Paths must stay inside the sidecar's folder.
//!
//! `parse` checks what the manifest says about itself, [`Manifest::load`] also looks at the bins.

mod bins;
mod entry;
mod write;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

pub use entry::Entry;
pub(crate) use write::{
    EntryOut, Filters, ManifestOut, Model, PackedOut, SourceOut, ascii_json, kind_of, timestamp,
};

use crate::gguf::sniff;
use crate::{Error, Metadata};

/// The manifest's file name.
pub const FILE_NAME: &str = "manifest.json";
/// Far above any real manifest (228 entries are 200 kB), far below what could hurt.
const MANIFEST_BYTES_MAX: u64 = 256 << 20;
/// What `schema_version` and `sidecar_kind` say of a sidecar that holds ggml blocks only.
const PLAIN: (u64, &str) = (1, "flashmoe_gguf");
/// And of one with packed experts.
const PACKED: (u64, &str) = (2, "slotbank_packed");
/// `layout` of the latter. Its records are those of [`Layout::ExpertMajor`].
const PACKED_LAYOUT: &str = "slotbank_packed_expert";

/// The two ways in which experts can lie in a bin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// One whole tensor after the other.
    LayerMajor,
    /// One record per expert with all its families.
    ExpertMajor,
}

impl Layout {
    /// The value of `layout` in a manifest without packed experts.
    pub fn manifest_name(self) -> &'static str {
        match self {
            Layout::LayerMajor => "layer_major_whole_tensor",
            Layout::ExpertMajor => "layer_major_expert",
        }
    }

    /// The value of `model.sidecar_layout`, which is also what `--layout` takes.
    pub fn name(self) -> &'static str {
        match self {
            Layout::LayerMajor => "layer-major",
            Layout::ExpertMajor => "expert-major",
        }
    }

    /// The inverse of [`Layout::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        [Layout::LayerMajor, Layout::ExpertMajor].into_iter().find(|layout| layout.name() == name)
    }

    fn from_manifest(name: &str, packed: bool) -> Option<Self> {
        match name {
            PACKED_LAYOUT if packed => Some(Layout::ExpertMajor),
            _ if packed => None,
            "layer_major_whole_tensor" => Some(Layout::LayerMajor),
            "layer_major_expert" | "expert_major" => Some(Layout::ExpertMajor),
            _ => None,
        }
    }
}

impl serde::Serialize for Layout {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A manifest that has been checked.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Where it was read.
    pub path: PathBuf,
    /// How the bins are laid out.
    pub layout: Layout,
    /// `model.arch`
    pub arch: Option<String>,
    /// `model.expert_count`
    pub expert_count: Option<u64>,
    /// The whole `model` object, for what is not interpreted here.
    pub model: Map<String, Value>,
    /// Routed entries in file order.
    pub entries: Vec<Entry>,
    /// Entries of families that are not routed (copies of shared experts): legal, and used by nobody.
    pub skipped: usize,
}

impl Manifest {
    /// Reads the manifest at `path` and checks it against the bins.
    ///
    /// # Errors
    /// On everything that would make an expert's bytes wrong or unreachable; the message names manifest and entry.
    pub fn load(path: &Path, allow_outside: bool) -> Result<Self, Error> {
        let manifest = Self::load_unchecked(path, allow_outside)?;
        bins::check(&manifest)?;
        Ok(manifest)
    }

    /// As [`Manifest::load`], but does not look at the bins.
    pub(crate) fn load_unchecked(path: &Path, allow_outside: bool) -> Result<Self, Error> {
        Self::parse(&read_json_file(path, "a sidecar manifest")?, path, allow_outside)
    }

    /// Checks what the manifest says about itself; touches no other file.
    ///
    /// # Errors
    /// As [`Manifest::load`].
    pub fn parse(json: &[u8], path: &Path, allow_outside: bool) -> Result<Self, Error> {
        let bad = |why: String| Error::Manifest { path: path.to_path_buf(), why };
        let root: Value = serde_json::from_slice(json).map_err(|e| bad(format!("not valid json: {e}")))?;
        let Value::Object(mut root) = root else { return Err(bad("not a json object".into())) };
        let packed = is_packed_kind(&root, path)?;
        let layout = match root.get("layout") {
            None | Some(Value::Null) if !packed => Layout::LayerMajor,
            None | Some(Value::Null) => return Err(bad("the key `layout` is missing".into())),
            Some(Value::String(name)) => Layout::from_manifest(name, packed)
                .ok_or_else(|| unsupported(path, format!("layout `{name}` is not supported")))?,
            Some(other) => return Err(bad(format!("`layout` is {}, not a string", kind(other)))),
        };
        let model = match root.remove("model") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(model)) => model,
            Some(other) => return Err(bad(format!("`model` is {}, not an object", kind(&other)))),
        };
        let raw = match root.remove("entries") {
            Some(Value::Array(raw)) => raw,
            Some(other) => return Err(bad(format!("`entries` is {}, not an array", kind(&other)))),
            None => return Err(bad("the key `entries` is missing".into())),
        };
        let arch = model.get("arch").and_then(Value::as_str).map(str::to_owned);
        let expert_count = model.get("expert_count").and_then(Value::as_u64);
        let context = entry::Context { path, layout, packed, expert_count, allow_outside };
        let (entries, skipped) = entry::parse_all(&raw, &context)?;
        if entries.is_empty() {
            return Err(bad("it has no routed-expert entries".into()));
        }
        Ok(Self { path: path.to_path_buf(), layout, arch, expert_count, model, entries, skipped })
    }

    /// The folder that holds manifest and bins.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// What the manifest knows about the model, as GGUF metadata: a stand-in where the dense GGUF is absent.
    pub fn metadata(&self) -> Metadata {
        let mut metadata = Metadata::with_origin(&self.path);
        let arch = self.arch.clone().unwrap_or_else(|| "unknown".to_owned());
        metadata.insert("general.architecture", arch.as_str());
        for key in ["expert_count", "expert_used_count", "leading_dense_block_count"] {
            if let Some(n) = self.model.get(key).and_then(Value::as_u64) {
                metadata.insert(format!("{arch}.{key}"), n);
            }
        }
        let Some(Value::Object(kept)) = self.model.get("gguf_metadata") else { return metadata };
        for (key, value) in kept {
            if let Some(value) = from_json(value) {
                metadata.insert(key.clone(), value);
            }
        }
        metadata
    }
}

/// The GGUF value that a JSON value of `gguf_metadata` stands for; widths are lost, which the getters do not mind.
fn from_json(value: &Value) -> Option<crate::Value> {
    #[expect(clippy::cast_possible_truncation, reason = "metadata in f64 is meant as f32")]
    Some(match value {
        Value::Bool(b) => (*b).into(),
        Value::String(s) => s.as_str().into(),
        Value::Number(n) => match (n.as_u64(), n.as_i64(), n.as_f64()) {
            (Some(n), _, _) => n.into(),
            (None, Some(n), _) => n.into(),
            (None, None, Some(x)) => (x as f32).into(),
            _ => return None,
        },
        Value::Array(list) if list.iter().all(Value::is_boolean) => {
            list.iter().filter_map(Value::as_bool).collect::<Vec<_>>().into()
        }
        Value::Array(list) if list.iter().all(Value::is_u64) => {
            list.iter().filter_map(Value::as_u64).collect::<Vec<_>>().into()
        }
        _ => return None,
    })
}

/// Whether the manifest is of the kind that may have packed experts; an error when it is of no known kind.
fn is_packed_kind(root: &Map<String, Value>, path: &Path) -> Result<bool, Error> {
    let (plain, packed) = (PLAIN.0, PACKED.0);
    let is_packed = match root.get("schema_version") {
        None | Some(Value::Null) => false,
        Some(version) if version.as_u64() == Some(plain) => false,
        Some(version) if version.as_u64() == Some(packed) => true,
        Some(version) => {
            let why = format!("schema_version {version} is not supported, only {plain} and {packed}");
            return Err(unsupported(path, why));
        }
    };
    let (version, expected) = if is_packed { PACKED } else { PLAIN };
    match root.get("sidecar_kind") {
        None | Some(Value::Null) if !is_packed => Ok(false),
        Some(Value::String(kind)) if kind == expected => Ok(is_packed),
        kind => {
            let kind = kind.unwrap_or(&Value::Null);
            let why = format!(
                "sidecar_kind {kind} is not supported in schema_version {version}, only \"{expected}\""
            );
            Err(unsupported(path, why))
        }
    }
}

fn unsupported(path: &Path, why: String) -> Error {
    Error::ManifestVersion { path: path.to_path_buf(), why }
}

/// A JSON value's type, for messages.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a bool",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Reads a whole JSON file, with an upper bound, recognising what a failed download leaves in its place.
pub(crate) fn read_json_file(path: &Path, expected: &'static str) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut bytes = Vec::new();
    file.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(Error::Manifest {
            path: path.to_path_buf(),
            why: format!("larger than {MANIFEST_BYTES_MAX} bytes"),
        });
    }
    if !matches!(bytes.trim_ascii_start().first(), Some(b'{' | b'[')) {
        let (found, hint) = sniff(&bytes[..bytes.len().min(64)], bytes.len() as u64);
        return Err(Error::WrongKind { path: path.to_path_buf(), found, expected, hint });
    }
    Ok(bytes)
}
