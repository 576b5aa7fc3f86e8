//! What a checkpoint is made of, in numbers. Renders nothing: the command line does.

mod gqa;
mod mla;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::{Checkpoint, Error, ExpertTensor, Family, Form, GgmlType, Source};

/// Direct reads want offsets that are multiples of this.
const PAGE_BYTES: u64 = 4096;

/// Everything about a checkpoint that can be known without reading a tensor.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// First shard, dense GGUF or manifest.
    pub root: PathBuf,
    /// `gguf`, `split` or `sidecar`.
    pub source: &'static str,
    /// `general.architecture`
    pub architecture: String,
    /// `general.name`
    pub name: Option<String>,
    /// Every file with its length.
    pub files: Vec<FileLine>,
    /// Sizes of the network.
    pub geometry: Geometry,
    /// Numbers of weights.
    pub parameters: Parameters,
    /// Everything that is not a routed expert, by type.
    pub dense: Vec<TypeLine>,
    /// Bytes of the dense part.
    pub dense_bytes: u64,
    /// Routed experts; `None` in a model without any.
    pub experts: Option<Experts>,
    /// Layers of next-token prediction, which a decoder does not run.
    pub mtp_layers: Vec<u32>,
    /// What the model should have and no file has, one line each.
    pub missing: Vec<String>,
    /// The tokenizer in the metadata.
    pub tokenizer: Option<Tokenizer>,
    /// Whether there is a chat template.
    pub chat_template: bool,
    /// How it was opened.
    pub notes: Vec<String>,
}

/// One file.
#[derive(Debug, Clone, Serialize)]
pub struct FileLine {
    /// Path.
    pub path: PathBuf,
    /// Length; `None` when it cannot be read.
    pub bytes: Option<u64>,
}

/// Sizes from the metadata, under their GGUF names; lists where layers differ.
#[derive(Debug, Clone, Default, Serialize)]
#[expect(missing_docs, reason = "the fields are GGUF keys")]
pub struct Geometry {
    pub block_count: Option<u64>,
    pub context_length: Option<u64>,
    pub embedding_length: Option<u64>,
    pub feed_forward_length: Vec<u64>,
    pub head_count: Vec<u64>,
    pub head_count_kv: Vec<u64>,
    pub kv_lora_rank: Option<u64>,
    pub leading_dense_block_count: Option<u64>,
    pub expert_count: Option<u64>,
    pub expert_used_count: Option<u64>,
    pub expert_shared_count: Option<u64>,
    pub expert_feed_forward_length: Vec<u64>,
    pub nextn_predict_layers: Option<u64>,
    pub vocabulary: Option<u64>,
}

/// Numbers of weights.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Parameters {
    /// All.
    pub total: u64,
    /// Outside of routed experts.
    pub dense: u64,
    /// In routed experts.
    pub experts: u64,
    /// Used for one token, without the layers of next-token prediction; `None` when the number of experts per token is unknown.
    pub active: Option<u64>,
}

/// Tensors of one type.
#[derive(Debug, Clone, Serialize)]
pub struct TypeLine {
    /// Element type.
    #[serde(rename = "type")]
    pub ty: GgmlType,
    /// Name of the form that they are packed in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub form: Option<String>,
    /// Number of tensors.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Smallest, largest and mean of something per layer.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Range {
    /// Smallest.
    pub min: u64,
    /// Largest.
    pub max: u64,
    /// Mean, rounded down.
    pub mean: u64,
}

/// One family over all layers.
#[derive(Debug, Clone, Serialize)]
pub struct FamilyLine {
    /// Which.
    pub family: Family,
    /// Number of tensors.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Types in use.
    pub types: Vec<TypeLine>,
    /// Bytes of one expert's matrix over the layers.
    pub expert_bytes: Range,
}

/// The routed experts.
#[derive(Debug, Clone, Serialize)]
pub struct Experts {
    /// `layer-major`, `expert-major`, or `in place` in a GGUF.
    pub layout: &'static str,
    /// Layers that have experts.
    pub layers: Vec<u32>,
    /// Bytes of all of them.
    pub bytes: u64,
    /// By family.
    pub families: Vec<FamilyLine>,
    /// Bytes of one expert with all its families, over the layers.
    pub expert_bytes: Range,
    /// The same before packing; `None` where nothing is packed.
    pub unpacked_expert_bytes: Option<Range>,
    /// Memory of one slot in each layer that a decoder runs.
    pub slot_bytes_all_layers: u64,
    /// Bytes that one token reads when nothing is resident; `None` when the number of experts per token is unknown.
    pub cold_bytes_per_token: Option<u64>,
    /// Share of expert slices that begin on a 4 KiB page and are whole pages long.
    pub aligned_share: f64,
    /// Number of expert slices.
    pub slices: u64,
}

/// The tokenizer.
#[derive(Debug, Clone, Serialize)]
pub struct Tokenizer {
    /// `tokenizer.ggml.model`
    pub model: String,
    /// `tokenizer.ggml.pre`
    pub pre: Option<String>,
    /// Number of tokens.
    pub tokens: Option<u64>,
}

/// Describes `checkpoint`. Open it with `allow_incomplete`, so that what is missing can be listed.
///
/// # Errors
/// When metadata has the wrong type.
pub fn inspect(checkpoint: &Checkpoint) -> Result<Inspection, Error> {
    let geometry = geometry(checkpoint)?;
    let metadata = checkpoint.metadata();
    let mut mtp_layers: Vec<u32> =
        checkpoint.expert_layers().filter(|&layer| checkpoint.is_mtp_layer(layer)).collect();
    if let (Some(blocks), Some(extra)) = (geometry.block_count, geometry.nextn_predict_layers) {
        mtp_layers.extend(
            (blocks.saturating_sub(extra)..blocks).filter_map(|layer| u32::try_from(layer).ok()).take(64),
        );
        mtp_layers.sort_unstable();
        mtp_layers.dedup();
    }
    let tokenizer = metadata.str("tokenizer.ggml.model")?.map(|model| {
        Ok::<_, Error>(Tokenizer {
            model: model.to_owned(),
            pre: metadata.str("tokenizer.ggml.pre")?.map(str::to_owned),
            tokens: geometry.vocabulary,
        })
    });
    let dense = checkpoint.tensors().iter().map(|tensor| (tensor.ty, None, tensor.extent.len));
    Ok(Inspection {
        root: checkpoint.root().to_path_buf(),
        source: match checkpoint.source() {
            Source::Gguf => "gguf",
            Source::Split { .. } => "split",
            Source::Sidecar { .. } => "sidecar",
        },
        architecture: checkpoint.architecture().to_owned(),
        name: metadata.str("general.name")?.map(str::to_owned),
        files: checkpoint.files().iter().map(file_line).collect(),
        parameters: parameters(checkpoint, &geometry),
        dense_bytes: checkpoint.tensors().iter().map(|tensor| tensor.extent.len).sum(),
        dense: by_type(dense),
        experts: experts(checkpoint, &geometry),
        mtp_layers,
        missing: missing(checkpoint)?,
        tokenizer: tokenizer.transpose()?,
        chat_template: metadata.get("tokenizer.chat_template").is_some(),
        notes: checkpoint.notes().to_vec(),
        geometry,
    })
}

fn file_line(path: &PathBuf) -> FileLine {
    FileLine { path: path.clone(), bytes: std::fs::metadata(path).ok().map(|stat| stat.len()) }
}

fn geometry(checkpoint: &Checkpoint) -> Result<Geometry, Error> {
    let metadata = checkpoint.metadata();
    let key = |name: &str| format!("{}.{name}", checkpoint.architecture());
    // Some architectures give one value per layer; one that is the same everywhere reads better as one.
    let list = |name: &str| -> Result<Vec<u64>, Error> {
        let mut list = metadata.u64s(&key(name))?.unwrap_or_default();
        if list.windows(2).all(|pair| pair[0] == pair[1]) {
            list.truncate(1);
        }
        Ok(list)
    };
    let one = |name: &str| -> Result<Option<u64>, Error> { Ok(list(name)?.into_iter().max()) };
    let tokens = match metadata.get("tokenizer.ggml.tokens") {
        Some(crate::Value::Array(tokens)) => Some(tokens.len() as u64),
        _ => None,
    };
    Ok(Geometry {
        block_count: one("block_count")?,
        context_length: one("context_length")?,
        embedding_length: one("embedding_length")?,
        feed_forward_length: list("feed_forward_length")?,
        head_count: list("attention.head_count")?,
        head_count_kv: list("attention.head_count_kv")?,
        kv_lora_rank: one("attention.kv_lora_rank")?,
        leading_dense_block_count: one("leading_dense_block_count")?,
        expert_count: one("expert_count")?,
        expert_used_count: one("expert_used_count")?,
        expert_shared_count: one("expert_shared_count")?,
        expert_feed_forward_length: list("expert_feed_forward_length")?,
        nextn_predict_layers: one("nextn_predict_layers")?,
        vocabulary: one("vocab_size")?.or(tokens),
    })
}

fn elements(shape: &[u64]) -> u64 {
    shape.iter().product()
}

/// Layer of a tensor called `blk.N.…`.
fn layer_of(name: &str) -> Option<u32> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

fn parameters(checkpoint: &Checkpoint, geometry: &Geometry) -> Parameters {
    let runs = |layer: Option<u32>| layer.is_none_or(|layer| !checkpoint.is_mtp_layer(layer));
    let dense: u64 = checkpoint.tensors().iter().map(|tensor| elements(&tensor.shape)).sum();
    let dense_run: u64 = checkpoint
        .tensors()
        .iter()
        .filter(|tensor| runs(layer_of(&tensor.name)))
        .map(|tensor| elements(&tensor.shape))
        .sum();
    let experts: u64 = checkpoint.experts().iter().map(|tensor| elements(&tensor.shape)).sum();
    let per_token = |used: u64| -> u64 {
        let run = checkpoint.experts().iter().filter(|tensor| runs(Some(tensor.layer)));
        run.map(|tensor| tensor.shape[0] * tensor.shape[1] * used.min(tensor.shape[2])).sum()
    };
    let active = match geometry.expert_used_count {
        Some(used) => Some(dense_run + per_token(used)),
        None => checkpoint.experts().is_empty().then_some(dense_run),
    };
    Parameters { total: dense + experts, dense, experts, active }
}

fn by_type<'a>(tensors: impl Iterator<Item = (GgmlType, Option<&'a Form>, u64)>) -> Vec<TypeLine> {
    let mut lines: BTreeMap<(GgmlType, Option<&Form>), (u64, u64)> = BTreeMap::new();
    for (ty, form, bytes) in tensors {
        let line = lines.entry((ty, form)).or_default();
        line.0 += 1;
        line.1 += bytes;
    }
    let mut lines: Vec<TypeLine> = lines
        .into_iter()
        .map(|((ty, form), (tensors, bytes))| {
            let form = form.map(|form| form.name.clone());
            TypeLine { ty, form, tensors, bytes }
        })
        .collect();
    lines.sort_by_key(|line| std::cmp::Reverse(line.bytes));
    lines
}

fn range(values: impl Iterator<Item = u64>) -> Range {
    let values: Vec<u64> = values.collect();
    Range {
        min: values.iter().copied().min().unwrap_or(0),
        max: values.iter().copied().max().unwrap_or(0),
        mean: values.iter().sum::<u64>() / (values.len() as u64).max(1),
    }
}

fn experts(checkpoint: &Checkpoint, geometry: &Geometry) -> Option<Experts> {
    let all = checkpoint.experts();
    if all.is_empty() {
        return None;
    }
    let per_layer: Vec<(u32, u64)> = all
        .chunk_by(|a, b| a.layer == b.layer)
        .map(|layer| (layer[0].layer, layer.iter().map(|tensor| tensor.expert_bytes).sum()))
        .collect();
    let unpacked = all
        .chunk_by(|a, b| a.layer == b.layer)
        .map(|layer| layer.iter().map(ExpertTensor::unpacked_expert_bytes).sum());
    let slot_bytes: u64 =
        per_layer.iter().filter(|(layer, _)| !checkpoint.is_mtp_layer(*layer)).map(|(_, bytes)| bytes).sum();
    let slices: u64 = all.iter().map(ExpertTensor::n_expert).sum();
    let aligned: u64 = all.iter().map(aligned_slices).sum();
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    let aligned_share = aligned as f64 / slices.max(1) as f64;
    Some(Experts {
        layout: match checkpoint.source() {
            Source::Sidecar { layout, .. } => layout.name(),
            Source::Gguf | Source::Split { .. } => "in place",
        },
        layers: checkpoint.expert_layers().collect(),
        bytes: all.iter().map(ExpertTensor::total_bytes).sum(),
        families: Family::ALL.into_iter().filter_map(|family| family_line(all, family)).collect(),
        expert_bytes: range(per_layer.iter().map(|(_, bytes)| *bytes)),
        unpacked_expert_bytes: all.iter().any(|tensor| tensor.form.is_some()).then(|| range(unpacked)),
        slot_bytes_all_layers: slot_bytes,
        cold_bytes_per_token: geometry.expert_used_count.map(|used| used * slot_bytes),
        aligned_share,
        slices,
    })
}

fn family_line(all: &[ExpertTensor], family: Family) -> Option<FamilyLine> {
    let own: Vec<&ExpertTensor> = all.iter().filter(|tensor| tensor.family == family).collect();
    let first = own.first()?;
    Some(FamilyLine {
        family: first.family,
        tensors: own.len() as u64,
        bytes: own.iter().map(|tensor| tensor.total_bytes()).sum(),
        types: by_type(own.iter().map(|tensor| (tensor.ty, tensor.form.as_ref(), tensor.total_bytes()))),
        expert_bytes: range(own.iter().map(|tensor| tensor.expert_bytes)),
    })
}

/// Slices that a direct read can fetch without reading more than asked. They follow each other at a fixed distance, so
/// their positions in a page repeat after at most as many of them as a page has bytes.
fn aligned_slices(tensor: &ExpertTensor) -> u64 {
    if !tensor.expert_bytes.is_multiple_of(PAGE_BYTES) {
        return 0;
    }
    let (start, step) = (tensor.offset % PAGE_BYTES, tensor.stride % PAGE_BYTES);
    let among_first =
        |n: u64| (0..n).filter(|expert| (start + expert * step).is_multiple_of(PAGE_BYTES)).count() as u64;
    let (periods, rest) = (tensor.n_expert() / PAGE_BYTES, tensor.n_expert() % PAGE_BYTES);
    if periods == 0 { among_first(rest) } else { periods * among_first(PAGE_BYTES) + among_first(rest) }
}

fn missing(checkpoint: &Checkpoint) -> Result<Vec<String>, Error> {
    let mut missing: Vec<String> = Vec::new();
    if checkpoint.gguf_files().is_empty() {
        missing.push("the dense part of the model".into());
        return Ok(missing);
    }
    let experts = checkpoint.missing_experts()?;
    missing.extend(experts.into_iter().map(|(layer, family)| family.tensor_name(layer)));
    if mla::ARCHITECTURES.contains(&checkpoint.architecture()) {
        missing.extend(mla::missing(checkpoint)?);
    } else if let Some(architecture) = gqa::architecture(checkpoint) {
        missing.extend(architecture.missing(checkpoint)?);
    }
    Ok(missing)
}
