//! Which bytes go where: decided completely before the first is written.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::{FormLine, Options};
use crate::manifest::{
    EntryOut, Filters, Layout, ManifestOut, Model, PackedOut, SourceOut, ascii_json, kind_of, timestamp,
};
use crate::{Array, Checkpoint, Error, ExpertTensor, Family, Form, Packer, Value};

/// Records of an expert-major bin start on pages, so that one direct read fetches exactly one expert. The format allows
/// any stride that holds the parts.
const RECORD_ALIGNMENT: u64 = 4096;
/// Longer arrays (vocabularies) do not belong in a manifest.
const KEPT_ARRAY_MAX: usize = 512;

/// One tensor of a bin.
pub(super) struct Part<'a> {
    pub(super) tensor: &'a ExpertTensor,
    /// Of expert 0 in the bin.
    pub(super) offset: u64,
    /// What rewrites the experts on the way.
    pub(super) packer: Option<&'a Packer>,
    /// Of one expert in the bin.
    pub(super) expert_bytes: u64,
}

impl<'a> Part<'a> {
    fn new(tensor: &'a ExpertTensor, offset: u64, packers: &'a [Packer]) -> Result<Self, Error> {
        let suits = |packer: &&Packer| tensor.form.is_none() && packer.source() == tensor.ty;
        let packer = packers.iter().find(suits);
        let expert_bytes = match packer {
            None => tensor.expert_bytes,
            Some(packer) => {
                let bytes = packer.form().tensor_bytes(tensor.ty, &tensor.shape[..2]);
                bytes.filter(|bytes| bytes.checked_mul(tensor.n_expert()).is_some()).ok_or_else(|| {
                    Error::Internal {
                        why: format!("`{}` cannot be packed as {}", tensor.name, packer.form()),
                    }
                })?
            }
        };
        Ok(Self { tensor, offset, packer, expert_bytes })
    }

    /// What the experts will be, where that is not ggml's.
    pub(super) fn form(&self) -> Option<&'a Form> {
        self.packer.map_or(self.tensor.form.as_ref(), |packer| Some(packer.form()))
    }

    /// Bytes of all experts, gaps not counted.
    pub(super) fn total_bytes(&self) -> u64 {
        self.expert_bytes * self.tensor.n_expert()
    }
}

/// One bin.
pub(super) struct LayerPlan<'a> {
    pub(super) layer: u32,
    pub(super) file: String,
    pub(super) bytes: u64,
    /// Distance between records; `None` for whole tensors.
    pub(super) stride: Option<u64>,
    pub(super) parts: Vec<Part<'a>>,
}

/// The whole extraction.
pub(super) struct Plan<'a> {
    pub(super) layout: Layout,
    pub(super) layers: Vec<LayerPlan<'a>>,
    filters: Filters,
}

impl<'a> Plan<'a> {
    pub(super) fn new(src: &'a Checkpoint, options: &'a Options) -> Result<Self, Error> {
        let wanted = |tensor: &&ExpertTensor| {
            options.layers.as_ref().is_none_or(|layers| layers.contains(&tensor.layer))
                && options.families.as_ref().is_none_or(|families| families.contains(&tensor.family))
        };
        let selected: Vec<&ExpertTensor> = src.experts().iter().filter(wanted).collect();
        if let Some(absent) =
            options.layers.iter().flatten().find(|&&layer| !src.expert_layers().any(|l| l == layer))
        {
            return Err(Error::Usage {
                why: format!("layer {absent} of {} has no routed experts", src.root().display()),
                hint: Some(format!("its expert layers are {}", ranges(src.expert_layers()))),
            });
        }
        if selected.is_empty() {
            return Err(Error::Usage {
                why: format!("{} has no routed experts to extract", src.root().display()),
                hint: Some("check --families, or choose a mixture-of-experts model".into()),
            });
        }
        let layers = selected
            .chunk_by(|a, b| a.layer == b.layer)
            .map(|tensors| LayerPlan::new(tensors, options))
            .collect::<Result<_, _>>()?;
        let sorted = |list: &Vec<u32>| {
            let mut list = list.clone();
            list.sort_unstable();
            list.dedup();
            list
        };
        let filters = Filters {
            layers: options.layers.as_ref().map(sorted),
            families: options
                .families
                .as_ref()
                .map(|wanted| Family::ALL.into_iter().filter(|family| wanted.contains(family)).collect()),
        };
        let plan = Self { layout: options.layout, layers, filters };
        plan.check_forms(src, options)?;
        Ok(plan)
    }

    /// Packed experts need records, a manifest that says so, and a wish for them.
    fn check_forms(&self, src: &Checkpoint, options: &Options) -> Result<(), Error> {
        let usage = |why: String, hint: &str| Err(Error::Usage { why, hint: Some(hint.into()) });
        if src.experts().iter().any(|tensor| tensor.form.is_some()) {
            let root = src.root().display();
            if options.pack.is_none() {
                let why = format!("the experts of {root} are packed, which cannot be undone");
                return usage(
                    why,
                    "extract from the GGUF, or copy them as they are with --layout expert-major --pack",
                );
            }
            let stay =
                |tensor: &ExpertTensor| tensor.form.is_some() && !self.lists(tensor.layer, tensor.family);
            if options.dense && src.experts().iter().any(stay) {
                let why = format!("packed experts of {root} would have to stay in the dense GGUF");
                return usage(why, "leave out --layers and --families, or --dense");
            }
        }
        if options.pack.is_none() {
            return Ok(());
        }
        if self.layout != Layout::ExpertMajor {
            return usage("--pack needs records, one per expert".into(), "add --layout expert-major");
        }
        if !self.is_packed() {
            let types: std::collections::BTreeSet<&str> =
                self.parts().map(|part| part.tensor.ty.name()).collect();
            let types: Vec<&str> = types.into_iter().collect();
            let why = format!("nothing to pack: no form that is faster here for {}", types.join(", "));
            return usage(why, "leave out --pack");
        }
        Ok(())
    }

    /// Whether some experts will be packed.
    pub(super) fn is_packed(&self) -> bool {
        self.parts().any(|part| part.form().is_some())
    }

    /// What becomes of each type, most bytes first.
    pub(super) fn forms(&self) -> Vec<FormLine> {
        let mut lines: Vec<FormLine> = Vec::new();
        for part in self.parts() {
            let (ty, form) = (part.tensor.ty, part.form().map(|form| form.name.clone()));
            let at = lines.iter().position(|line| line.ty == ty && line.form == form).unwrap_or_else(|| {
                lines.push(FormLine { ty, form, tensors: 0, source_bytes: 0, bytes: 0 });
                lines.len() - 1
            });
            lines[at].tensors += 1;
            lines[at].source_bytes += part.tensor.total_bytes();
            lines[at].bytes += part.total_bytes();
        }
        lines.sort_by_key(|line| std::cmp::Reverse(line.bytes));
        lines
    }

    pub(super) fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bytes).sum()
    }

    pub(super) fn tensor_count(&self) -> usize {
        self.layers.iter().map(|layer| layer.parts.len()).sum()
    }

    pub(super) fn lists(&self, layer: u32, family: Family) -> bool {
        self.parts().any(|part| (part.tensor.layer, part.tensor.family) == (layer, family))
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = &Part<'a>> {
        self.layers.iter().flat_map(|layer| &layer.parts)
    }

    pub(super) fn entries(&self, src: &Checkpoint) -> Vec<EntryOut> {
        self.layers.iter().flat_map(|layer| layer.parts.iter().map(|part| layer.entry(part, src))).collect()
    }

    /// Identifies the bins of this plan and the source files, so that a restart continues only what it would have begun. By
    /// name, length and date of the files: their folder may be written in another way the next time.
    pub(super) fn fingerprint(&self, src: &Checkpoint) -> Result<String, Error> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&ascii_json(&self.entries(src))?);
        hasher.update(&ascii_json(&self.filters)?);
        for path in src.files() {
            let stat = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
            let modified =
                stat.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
            hasher.update(plain_name(path).as_bytes());
            hasher.update(&stat.len().to_le_bytes());
            hasher.update(&modified.map_or(0, |time| time.as_nanos()).to_le_bytes());
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    pub(super) fn manifest(&self, src: &Checkpoint) -> Result<Vec<u8>, Error> {
        let number = |name: &str| src.metadata().u64(&format!("{}.{name}", src.architecture()));
        let (schema_version, sidecar_kind, layout) = kind_of(self.layout, self.is_packed());
        ascii_json(&ManifestOut {
            schema_version,
            sidecar_kind,
            layout,
            generated_at: timestamp(),
            include_shared: false,
            filters: self.filters.clone(),
            source: SourceOut {
                model_files: src.gguf_files().iter().map(|path| plain_name(path)).collect(),
                repacked_from_sidecar: src.manifest().map(|manifest| plain_name(&manifest.path)),
            },
            model: Model {
                arch: src.architecture().to_owned(),
                expert_count: number("expert_count")?,
                expert_used_count: number("expert_used_count")?,
                leading_dense_block_count: number("leading_dense_block_count")?,
                gguf_metadata: kept_metadata(src),
                sidecar_layout: self.layout.name(),
            },
            entries: self.entries(src),
        })
    }
}

impl<'a> LayerPlan<'a> {
    fn new(tensors: &[&'a ExpertTensor], options: &'a Options) -> Result<Self, Error> {
        let (layer, layout) = (tensors[0].layer, options.layout);
        let packers = options.pack.as_deref().unwrap_or_default();
        let mut parts = Vec::with_capacity(tensors.len());
        let mut at = 0;
        for tensor in tensors {
            let part = Part::new(tensor, at, packers)?;
            at += match layout {
                Layout::LayerMajor => part.total_bytes(),
                Layout::ExpertMajor => part.expert_bytes,
            };
            parts.push(part);
        }
        let (bytes, stride) = match layout {
            Layout::LayerMajor => (at, None),
            Layout::ExpertMajor => {
                let n_expert = tensors[0].n_expert();
                if tensors.iter().any(|tensor| tensor.n_expert() != n_expert) {
                    return Err(Error::Usage {
                        why: format!("the families of layer {layer} have different numbers of experts"),
                        hint: Some("use --layout layer-major".into()),
                    });
                }
                let stride = at.next_multiple_of(RECORD_ALIGNMENT);
                (stride * n_expert, Some(stride))
            }
        };
        Ok(Self { layer, file: format!("layer_{layer:03}.bin"), bytes, stride, parts })
    }

    fn entry(&self, part: &Part, src: &Checkpoint) -> EntryOut {
        let tensor = part.tensor;
        // A repack keeps what the sidecar knew about its origin; the bins themselves were never a shard of anything.
        let old = src.manifest().and_then(|manifest| {
            manifest.entries.iter().find(|entry| (entry.layer, entry.family) == (tensor.layer, tensor.family))
        });
        let shard = old.and_then(|old| old.source_shard.as_deref()).map(|path| plain_name(Path::new(path)));
        EntryOut {
            layer: tensor.layer,
            tensor_family: tensor.family,
            tensor_name: tensor.name.clone(),
            original_gguf_tensor_name: tensor.name.clone(),
            expert_id: None,
            quant_type: part.form().map_or(tensor.ty.name(), |form| &form.name).to_owned(),
            block_size: tensor.ty.block_elements(),
            exact_byte_length: part.total_bytes(),
            source_shard: shard.unwrap_or_else(|| plain_name(&src.files()[tensor.file.index()])),
            source_shard_index: old
                .and_then(|old| old.source_shard_index)
                .unwrap_or(u64::from(tensor.file.0)),
            source_offset: old.and_then(|old| old.source_offset).unwrap_or(tensor.offset),
            shape: tensor.shape,
            bytes_per_expert: part.expert_bytes,
            quant_tier: None,
            projection_quant_kind: None,
            alternate_bank_offsets: None,
            dynamic_quant_policy_tag: None,
            repacked_file: self.file.clone(),
            repacked_offset: part.offset,
            expert_stride: self.stride,
            expert_major: self.stride.map(|_| true),
            expert_count: self.stride.map(|_| tensor.n_expert()),
            packed: part.form().map(|form| PackedOut::new(tensor.ty, form)),
        }
    }
}

/// Last component of a path of this or another system.
fn plain_name(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.rsplit(['/', '\\']).next().unwrap_or_default().to_owned()
}

/// The model's own keys, so that a sidecar alone can still be described.
fn kept_metadata(src: &Checkpoint) -> Map<String, Json> {
    let prefix = format!("{}.", src.architecture());
    let mut kept = Map::new();
    for (key, value) in src.metadata().iter().filter(|(key, _)| key.starts_with(&prefix)) {
        let json = match value {
            Value::Bool(b) => Some(Json::from(*b)),
            Value::Str(s) => Some(Json::from(s.as_str())),
            Value::F32(x) => Some(Json::from(*x)),
            Value::F64(x) => Some(Json::from(*x)),
            Value::Array(Array::Bool(list)) if list.len() <= KEPT_ARRAY_MAX => Some(Json::from(list.clone())),
            Value::Array(array) if array.len() <= KEPT_ARRAY_MAX => {
                src.metadata().u64s(key).ok().flatten().map(Json::from)
            }
            Value::Array(_) => None,
            integer => integer.as_integer().and_then(|n| i64::try_from(n).ok()).map(Json::from),
        };
        if let Some(json) = json {
            kept.insert(key.to_owned(), json);
        }
    }
    kept
}

/// `3-5, 8` for a hint.
fn ranges(numbers: impl Iterator<Item = u32>) -> String {
    let numbers: Vec<u32> = numbers.collect();
    let runs = numbers.chunk_by(|a, b| a + 1 == *b);
    let text: Vec<String> = runs
        .map(|run| match run {
            [one] => one.to_string(),
            run => format!("{}-{}", run[0], run[run.len() - 1]),
        })
        .collect();
    if text.is_empty() { "none".to_owned() } else { text.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_their_folders_on_every_system() {
        assert_eq!(
            plain_name(Path::new("/Volumes/X/model-00001-of-00005.gguf")),
            "model-00001-of-00005.gguf"
        );
        assert_eq!(plain_name(Path::new("C:\\models\\m.gguf")), "m.gguf");
        assert_eq!(ranges([3, 4, 5, 8].into_iter()), "3-5, 8");
        assert_eq!(ranges(std::iter::empty()), "none");
    }
}
