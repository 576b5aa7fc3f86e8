//! The dense GGUF of a package, and the description beside it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::copy::{Copier, smuggle};
use super::plan::{Part, Plan};
use crate::gguf::{self, Writer};
use crate::manifest::{ascii_json, timestamp};
use crate::package::{DENSE_NAME, PACKAGE_NAME};
use crate::sums::{GgufSums, Sum};
use crate::{Checkpoint, Error, atomic};

/// Sub-folder of the sidecar that takes the dense part, as in the published packages.
pub(super) const FOLDER: &str = "dense";

/// Where the dense GGUF of the sidecar in `folder` goes.
pub(super) fn path_in(folder: &Path) -> PathBuf {
    folder.join(FOLDER).join(DENSE_NAME)
}

/// Bytes of all tensors that the dense GGUF will have.
pub(super) fn bytes(src: &Checkpoint, plan: &Plan) -> u64 {
    let dense: u64 = src.tensors().iter().map(|tensor| tensor.extent.len).sum();
    dense + kept_experts(src, plan).map(crate::ExpertTensor::total_bytes).sum::<u64>()
}

/// Experts that the sidecar will not list stay in the GGUF, so that a partial sidecar still makes a whole model.
fn kept_experts<'a>(src: &'a Checkpoint, plan: &Plan) -> impl Iterator<Item = &'a crate::ExpertTensor> {
    src.experts().iter().filter(|tensor| !plan.lists(tensor.layer, tensor.family))
}

/// Sums of a dense GGUF and of the experts that stayed in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct DenseSums {
    pub(super) gguf: GgufSums,
    pub(super) experts: BTreeMap<String, Vec<Sum>>,
}

/// Writes `dense/model-dense.gguf` and returns its sums.
pub(super) fn write(
    src: &Checkpoint,
    plan: &Plan,
    folder: &Path,
    copier: &Copier,
) -> Result<DenseSums, Error> {
    let path = path_in(folder);
    let parent = folder.join(FOLDER);
    std::fs::create_dir_all(&parent).map_err(|e| Error::io(&parent, e))?;
    let mut metadata = src.metadata().clone();
    metadata.retain(|key| !key.starts_with("GGUF.") && !key.starts_with("split."));
    let mut writer = Writer::new(metadata)?;
    let sums = Rc::new(RefCell::new(BTreeMap::<String, Sum>::new()));
    let expert_sums = Rc::new(RefCell::new(BTreeMap::<String, Vec<Sum>>::new()));
    for tensor in src.tensors() {
        let (sums, path) = (Rc::clone(&sums), path.as_path());
        writer.tensor(&tensor.name, tensor.ty, &tensor.shape, move |out| {
            let sum = copier.extent(&tensor.extent, out, path).map_err(smuggle)?;
            sums.borrow_mut().insert(tensor.name.clone(), sum);
            Ok(())
        })?;
    }
    for tensor in kept_experts(src, plan) {
        let (sums, path) = (Rc::clone(&expert_sums), path.as_path());
        writer.tensor(&tensor.name, tensor.ty, &tensor.shape, move |out| {
            let experts = copier.tensor(tensor, out, path).map_err(smuggle)?;
            sums.borrow_mut().insert(tensor.name.clone(), experts);
            Ok(())
        })?;
    }
    writer.write_file(&path)?;
    let header = gguf::read(&path)?;
    let head = read_head(&path, header.data_offset)?;
    let gguf = GgufSums {
        file: DENSE_NAME.to_owned(),
        bytes: header.file_bytes,
        header: blake3::hash(&head).into(),
        tensors: sums.take(),
    };
    Ok(DenseSums { gguf, experts: expert_sums.take() })
}

fn read_head(path: &Path, bytes: u64) -> Result<Vec<u8>, Error> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let mut head = Vec::new();
    file.take(bytes).read_to_end(&mut head).map_err(|e| Error::io(path, e))?;
    Ok(head)
}

/// Totals of a set of routed tensors.
#[derive(Serialize, Default)]
struct RoutedSummary {
    tensor_count: u64,
    total_bytes: u64,
    by_family: BTreeMap<&'static str, Json>,
    by_layer: serde_json::Map<String, Json>,
}

fn summary(plan: &Plan) -> RoutedSummary {
    let mut families: BTreeMap<&'static str, (u64, u64, BTreeSet<u32>)> = BTreeMap::new();
    let mut summary = RoutedSummary::default();
    for layer in &plan.layers {
        let bytes: u64 = layer.parts.iter().map(Part::total_bytes).sum();
        let count = layer.parts.len();
        summary
            .by_layer
            .insert(layer.layer.to_string(), json!({"tensors": count, "bytes": bytes, "families": count}));
        summary.total_bytes += bytes;
        summary.tensor_count += count as u64;
        for part in &layer.parts {
            let line = families.entry(part.tensor.family.name()).or_default();
            line.0 += 1;
            line.1 += part.total_bytes();
            line.2.insert(layer.layer);
        }
    }
    for (family, (tensors, bytes, layers)) in families {
        summary.by_family.insert(family, json!({"tensors": tensors, "bytes": bytes, "layers": layers.len()}));
    }
    summary
}

/// Writes `dense/flashmoe-package.json`: descriptive only, but what the fork's scripts look at.
pub(super) fn write_package(src: &Checkpoint, plan: &Plan, folder: &Path) -> Result<PathBuf, Error> {
    let arch = src.architecture();
    let number = |name: &str| src.metadata().u64(&format!("{arch}.{name}"));
    let summary = summary(plan);
    let kept = kept_experts(src, plan).count();
    let package = json!({
        "schema_version": 1,
        "kind": "flashmoe_dense_package",
        "generated_at": timestamp(),
        "source": {
            // Names only; the author's folders are nobody's business.
            "model_files": src.gguf_files().iter().filter_map(|p| p.file_name()).map(|n| n.to_string_lossy()).collect::<Vec<_>>(),
            "sidecar_manifest": "../manifest.json",
            "layer_filter": null,
        },
        "model": {
            "arch": arch,
            "name": src.metadata().str("general.name")?,
            "block_count": number("block_count")?,
            "leading_dense_block_count": number("leading_dense_block_count")?,
            "expert_count": number("expert_count")?,
            "expert_used_count": number("expert_used_count")?,
            "context_length": number("context_length")?,
            "embedding_length": number("embedding_length")?,
            "file_type": src.metadata().u64("general.file_type")?,
        },
        "dense_model": {
            "path": DENSE_NAME,
            "tensor_count": src.tensors().len() + kept,
            "total_bytes": bytes(src, plan),
        },
        "routed_removed": {
            "tensor_count": summary.tensor_count,
            "total_bytes": summary.total_bytes,
            "summary": &summary,
        },
        "sidecar": { "path": "..", "summary": &summary },
        "runtime_hint": null,
    });
    let path = folder.join(FOLDER).join(PACKAGE_NAME);
    atomic::write(&path, &ascii_json(&package)?)?;
    Ok(path)
}
