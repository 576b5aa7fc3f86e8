//! Toys of any architecture: a fixture lists the metadata and the tensors of a GGUF, whose values follow from the seed by the hash
//! of [`crate::weights`], and what Hugging Face transformers computed with them. Nothing here knows an architecture.
//!
//! The fixtures are `tests/fixtures/families/*.json`, written by `tools/goldens/listed.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use files::gguf::{Value, Writer};
use files::{GgmlType, Metadata};
use serde::Deserialize;

use crate::blocks;
use crate::config::{Role, TensorSpec, Types};
use crate::fixture::{by_layer, rows};
use crate::weights;

/// One toy model and what transformers computed with it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// File stem.
    pub name: String,
    /// Seed of the weights.
    pub seed: u64,
    /// What the GGUF says.
    pub metadata: Metadata,
    /// Its tensors, in file order.
    pub tensors: Vec<TensorSpec>,
    /// Tensors whose values are not spread as their names say: the middle and the half width of the range.
    pub ranges: BTreeMap<String, [f32; 2]>,
    /// Tensors whose values are listed, in F32.
    pub values: BTreeMap<String, Vec<f32>>,
    /// The input.
    pub tokens: Vec<u32>,
    /// Smallest margin of any discrete choice in the fixture, by kind.
    pub margins: BTreeMap<String, f64>,
    /// `[token][vocab]`.
    pub logits: Vec<Vec<f32>>,
    /// MoE layer → per token, expert ids, best choice first.
    pub experts: BTreeMap<u32, Vec<Vec<u32>>>,
    /// MoE layer → per token, the weight of each of them.
    pub expert_weights: BTreeMap<u32, Vec<Vec<f32>>>,
}

#[derive(Deserialize)]
struct Record {
    name: String,
    seed: u64,
    /// In file order.
    metadata: Vec<(String, Entry)>,
    tensors: Vec<Tensor>,
    tokens: Vec<u32>,
    margins: BTreeMap<String, f64>,
    vocab_size: usize,
    top_k: usize,
    logits: String,
    experts: BTreeMap<String, Vec<Vec<u32>>>,
    expert_weights: BTreeMap<String, String>,
}

/// A typed value.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Entry {
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(String),
    U32s(Vec<u32>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Bools(Vec<bool>),
}

impl From<Entry> for Value {
    fn from(entry: Entry) -> Self {
        match entry {
            Entry::U32(value) => value.into(),
            Entry::I32(value) => value.into(),
            Entry::F32(value) => value.into(),
            Entry::Bool(value) => value.into(),
            Entry::Str(value) => value.into(),
            Entry::U32s(values) => values.into(),
            Entry::I32s(values) => values.into(),
            Entry::F32s(values) => values.into(),
            Entry::Bools(values) => values.into(),
        }
    }
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    shape: Vec<u64>,
    role: RoleName,
    range: Option<[f32; 2]>,
    values: Option<Vec<f32>>,
}

/// What a tensor is for, which decides how it may be stored.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum RoleName {
    Exact,
    Dense,
    Gate,
    Up,
    Down,
    /// Gate rows, then up rows; stored as gates are.
    GateUp,
}

impl RoleName {
    fn role(&self, tensor: &str) -> Role {
        let family = match self {
            Self::Exact => return Role::Exact,
            Self::Dense => return Role::Dense,
            Self::Gate | Self::GateUp => 0,
            Self::Up => 1,
            Self::Down => 2,
        };
        let layer = tensor.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok());
        Role::Expert(layer.unwrap_or_else(|| panic!("{tensor} names no layer")), family)
    }
}

impl Listed {
    /// Every fixture, in order of names.
    pub fn all() -> Vec<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/families");
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a folder entry").path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.sort();
        paths.iter().map(|path| Self::open(path)).collect()
    }

    /// The fixture called `name`.
    pub fn named(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/families");
        Self::open(&folder.join(format!("{name}.json")))
    }

    fn open(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let record: Record =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self::from(record)
    }

    /// `general.architecture`.
    pub fn architecture(&self) -> &str {
        self.metadata.str("general.architecture").ok().flatten().expect("every fixture has one")
    }

    /// The largest logit in absolute value.
    pub fn max_abs_logit(&self) -> f32 {
        self.logits.iter().flatten().fold(0.0, |m, x| m.max(x.abs()))
    }

    /// The longest row that experts' tensors have in common, as a power of two: what block sizes they can be stored in.
    pub fn expert_row_divisor(&self) -> u64 {
        let routed = self.tensors.iter().filter(|t| matches!(t.role, Role::Expert(..)));
        routed.map(|t| 1 << t.shape[0].trailing_zeros()).min().unwrap_or(1)
    }

    /// First layer with routed experts.
    fn first_moe(&self) -> u32 {
        let layers = self.tensors.iter().filter_map(|t| match t.role {
            Role::Expert(layer, _) => Some(layer),
            _ => None,
        });
        layers.min().unwrap_or(0)
    }

    /// Stored bytes of a tensor. A range of its own is kept where there is a quantiser; random blocks are as large as always.
    pub fn bytes(&self, spec: &TensorSpec, ty: GgmlType) -> Vec<u8> {
        if let Some(values) = self.values.get(&spec.name) {
            return files::gguf::f32_bytes(values);
        }
        let Some(&[middle, half_width]) = self.ranges.get(&spec.name) else {
            return blocks::encode(ty, self.seed, &spec.name, spec.len());
        };
        blocks::quantise(ty, &|| weights::values_in(self.seed, &spec.name, spec.len(), middle, half_width))
            .unwrap_or_else(|| blocks::random(ty, self.seed, &spec.name, spec.len()))
    }

    /// One GGUF with weights stored as `types`.
    pub fn write(&self, types: &Types, path: &Path) {
        self.write_edited(types, path, |_| true, |_| ());
    }

    /// One GGUF with the tensors that `keep` keeps and metadata as `edit` leaves it.
    pub fn write_edited(
        &self,
        types: &Types,
        path: &Path,
        keep: impl Fn(&str) -> bool,
        edit: impl FnOnce(&mut Metadata),
    ) {
        let mut metadata = self.metadata.clone();
        edit(&mut metadata);
        let mut writer = Writer::new(metadata).expect("toy metadata is sound");
        for spec in self.tensors.iter().filter(|spec| keep(&spec.name)) {
            let ty = types.of(spec, self.first_moe());
            writer
                .tensor(spec.name.clone(), ty, &spec.shape, move |out| out.write_all(&self.bytes(spec, ty)))
                .expect("toy tensors are sound");
        }
        writer.write_file(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

impl From<Record> for Listed {
    fn from(r: Record) -> Self {
        let mut metadata = Metadata::new();
        for (key, value) in r.metadata {
            metadata.insert(key, value);
        }
        let ranges = r.tensors.iter().filter_map(|t| Some((t.name.clone(), t.range?))).collect();
        let values = r.tensors.iter().filter_map(|t| Some((t.name.clone(), t.values.clone()?))).collect();
        let spec = |t: Tensor| TensorSpec { role: t.role.role(&t.name), name: t.name, shape: t.shape };
        Self {
            logits: rows(&r.logits, r.vocab_size),
            experts: by_layer(&r.experts, Clone::clone),
            expert_weights: by_layer(&r.expert_weights, |hex| rows(hex, r.top_k)),
            tensors: r.tensors.into_iter().map(spec).collect(),
            name: r.name,
            seed: r.seed,
            metadata,
            ranges,
            values,
            tokens: r.tokens,
            margins: r.margins,
        }
    }
}
