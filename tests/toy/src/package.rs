//! Dense GGUF and sidecar of a toy, in both layouts and all three package conventions, written as the published ones are:
//! absolute foreign source paths, null fields, no checksum. Independent of `files::extract`, so that the two can be compared.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::config::{EXPERT_FAMILIES, Family, Role, TensorSpec};
use crate::model::Toy;

/// Order of bytes inside a layer file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// All experts' gates, then ups, then downs.
    WholeTensor,
    /// One record of gate, up and down per expert; its stride is a multiple of this many bytes (1 = the fork's, no padding).
    ExpertMajor {
        /// Multiple.
        stride: u64,
    },
}

/// Where a package keeps its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convention {
    /// Dense GGUF and package JSON at the root, sidecar in `sidecar/`.
    Flat,
    /// `dense/` beside the layer files and the manifest at the root: the published GLM-5.2.
    DenseFolder,
    /// `dense/` and `sidecar/`, with the flat package JSON of the DeepSeek-V4 exporter.
    TwoFolders,
}

impl Convention {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Flat, Self::DenseFolder, Self::TwoFolders];
}

/// Every entry point of a written package.
#[derive(Clone, Debug)]
pub struct Package {
    /// The folder of everything.
    pub root: PathBuf,
    /// `model-dense.gguf`.
    pub dense: PathBuf,
    /// `flashmoe-package.json`.
    pub json: PathBuf,
    /// The folder of manifest and layer files.
    pub sidecar: PathBuf,
    /// `manifest.json`.
    pub manifest: PathBuf,
}

impl Package {
    /// Paths from which a reader must find the whole package.
    pub fn entry_points(&self) -> Vec<PathBuf> {
        let dense_dir = self.dense.parent().expect("a file has a folder").to_path_buf();
        let mut all = vec![
            self.root.clone(),
            self.dense.clone(),
            dense_dir,
            self.json.clone(),
            self.sidecar.clone(),
            self.manifest.clone(),
        ];
        all.dedup();
        all
    }

    /// The file of a layer.
    pub fn layer_file(&self, layer: u32) -> PathBuf {
        self.sidecar.join(layer_file_name(layer))
    }
}

/// The machine on which the published package was made; it does not exist here.
const FOREIGN: &str = "/Volumes/Models/GLM-5.2-UD-IQ1_M";

fn layer_file_name(layer: u32) -> String {
    format!("layer_{layer:03}.bin")
}

fn shard_path(index: usize) -> String {
    format!("{FOREIGN}/GLM-5.2-UD-IQ1_M-{:05}-of-00005.gguf", index + 1)
}

impl Toy {
    /// Writes the package into `root`.
    pub fn write_package(&self, root: &Path, convention: Convention, layout: Layout) -> Package {
        let (dense_dir, sidecar) = match convention {
            Convention::Flat => (root.to_path_buf(), root.join("sidecar")),
            Convention::DenseFolder => (root.join("dense"), root.to_path_buf()),
            Convention::TwoFolders => (root.join("dense"), root.join("sidecar")),
        };
        make_dir(&dense_dir);
        let package = Package {
            root: root.to_path_buf(),
            dense: dense_dir.join("model-dense.gguf"),
            json: if convention == Convention::TwoFolders { root } else { &dense_dir }
                .join("flashmoe-package.json"),
            manifest: sidecar.join("manifest.json"),
            sidecar,
        };
        self.write_dense(&package.dense);
        let entries = self.write_sidecar(&package.sidecar, layout);
        let json = match convention {
            Convention::TwoFolders => json!({
                "package_kind": "flashmoe_ssd", "arch": self.config.family.name(), "dense": "dense/model-dense.gguf",
                "sidecar": "sidecar", "written": {}, "estimate": null,
            }),
            _ => self.package_json(&package.dense, &entries),
        };
        write_json(&package.json, &json);
        package
    }

    /// Writes layer files and manifest into `dir`; returns the manifest's entries.
    pub fn write_sidecar(&self, dir: &Path, layout: Layout) -> Vec<Value> {
        make_dir(dir);
        let mut layers: Vec<(u32, Vec<TensorSpec>)> = Vec::new();
        for spec in self.tensors() {
            let Role::Expert(layer, _) = spec.role else { continue };
            match layers.last_mut() {
                Some((last, specs)) if *last == layer => specs.push(spec),
                _ => layers.push((layer, vec![spec])),
            }
        }
        let mut entries = Vec::new();
        for (layer, specs) in &layers {
            entries.extend(self.write_layer(&dir.join(layer_file_name(*layer)), *layer, specs, layout));
        }
        let c = &self.config;
        let mut model = json!({
            "arch": self.config.family.name(), "expert_count": c.n_routed_experts, "expert_used_count": c.num_experts_per_tok,
            "leading_dense_block_count": c.first_k_dense_replace,
        });
        let arch = c.family.name();
        let mut numbers = serde_json::Map::new();
        numbers.insert(format!("{arch}.context_length"), json!(c.max_position_embeddings));
        numbers.insert(format!("{arch}.rope.freq_base"), json!(c.rope_parameters.rope_theta));
        if c.family == Family::GlmDsa {
            numbers.insert(format!("{arch}.attention.indexer.top_k"), json!(c.index_topk));
            numbers.insert(format!("{arch}.attention.indexer.head_count"), json!(c.index_n_heads));
        }
        model["gguf_metadata"] = Value::Object(numbers);
        if layout != Layout::WholeTensor {
            model["sidecar_layout"] = json!("expert-major");
        }
        let manifest = json!({
            "schema_version": 1,
            "sidecar_kind": "flashmoe_gguf",
            "layout": if layout == Layout::WholeTensor { "layer_major_whole_tensor" } else { "layer_major_expert" },
            "generated_at": "2026-07-01T12:00:00.000000+00:00",
            "include_shared": false,
            "filters": { "layers": null, "families": null },
            "source": { "model_files": (0..5).map(shard_path).collect::<Vec<_>>() },
            "model": model,
            "entries": entries,
        });
        write_json(&dir.join("manifest.json"), &manifest);
        entries
    }

    fn write_layer(&self, path: &Path, layer: u32, specs: &[TensorSpec], layout: Layout) -> Vec<Value> {
        let experts = self.config.n_routed_experts as usize;
        let bytes: Vec<Vec<u8>> = specs.iter().map(|spec| self.bytes(spec)).collect();
        let each: Vec<usize> = bytes.iter().map(|b| b.len() / experts).collect();
        let record: usize = each.iter().sum();
        let file = fs::File::create(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut out = BufWriter::new(file);
        let mut write = |bytes: &[u8]| out.write_all(bytes).expect("the temporary folder has room");
        let stride = match layout {
            Layout::WholeTensor => {
                bytes.iter().for_each(|b| write(b));
                None
            }
            Layout::ExpertMajor { stride } => {
                let stride = record.next_multiple_of(stride as usize);
                for e in 0..experts {
                    for (b, n) in bytes.iter().zip(&each) {
                        write(&b[e * n..(e + 1) * n]);
                    }
                    write(&vec![0; stride - record]);
                }
                Some(stride)
            }
        };
        out.flush().expect("the temporary folder has room");
        let mut offset = 0;
        let mut entries = Vec::new();
        for ((spec, whole), n) in specs.iter().zip(&bytes).zip(&each) {
            entries.push(self.entry(layer, spec, whole.len(), offset, stride));
            offset += if stride.is_some() { *n } else { whole.len() };
        }
        entries
    }

    /// One manifest entry.
    fn entry(
        &self,
        layer: u32,
        spec: &TensorSpec,
        len: usize,
        offset: usize,
        stride: Option<usize>,
    ) -> Value {
        let Role::Expert(_, family) = spec.role else { unreachable!("only routed experts are in a sidecar") };
        let ty = self.type_of(spec);
        let shard = layer as usize * 5 / 80;
        let mut entry = Map::new();
        let mut put = |key: &str, value: Value| drop(entry.insert(key.to_owned(), value));
        put("layer", json!(layer));
        put("tensor_family", json!(EXPERT_FAMILIES[family]));
        put("tensor_name", json!(spec.name));
        put("original_gguf_tensor_name", json!(spec.name));
        put("expert_id", Value::Null);
        put("quant_type", json!(ty.name()));
        put("block_size", json!(ty.block_elements()));
        put("exact_byte_length", json!(len));
        put("bytes_per_expert", json!(len / self.config.n_routed_experts as usize));
        put("source_shard", json!(shard_path(shard)));
        put("source_shard_index", json!(shard));
        put("source_offset", json!(9_123_456_000u64 + offset as u64));
        put("shape", json!(spec.shape));
        for reserved in
            ["quant_tier", "projection_quant_kind", "alternate_bank_offsets", "dynamic_quant_policy_tag"]
        {
            put(reserved, Value::Null);
        }
        put("repacked_file", json!(layer_file_name(layer)));
        put("repacked_offset", json!(offset));
        if let Some(stride) = stride {
            put("expert_stride", json!(stride));
            put("expert_major", json!(true));
            put("expert_count", json!(self.config.n_routed_experts));
        }
        Value::Object(entry)
    }

    fn package_json(&self, dense: &Path, entries: &[Value]) -> Value {
        let c = &self.config;
        let routed: u64 = entries.iter().filter_map(|e| e["exact_byte_length"].as_u64()).sum();
        let summary = json!({
            "tensor_count": entries.len(), "total_bytes": routed, "by_family": {}, "by_layer": {},
        });
        let removed = json!({ "tensor_count": entries.len(), "total_bytes": routed, "summary": summary });
        json!({
            "schema_version": 1,
            "kind": "flashmoe_dense_package",
            "generated_at": "2026-07-01T12:30:00+00:00",
            "source": {
                "model_files": (0..5).map(shard_path).collect::<Vec<_>>(),
                "sidecar_manifest": "/Volumes/Models/GLM-5.2-sidecar/manifest.json", "layer_filter": null,
            },
            "model": {
                "arch": self.config.family.name(), "name": "Toy", "block_count": c.num_hidden_layers + u32::from(self.mtp),
                "leading_dense_block_count": c.first_k_dense_replace, "expert_count": c.n_routed_experts,
                "expert_used_count": c.num_experts_per_tok, "context_length": c.max_position_embeddings,
                "embedding_length": c.hidden_size, "file_type": 31,
            },
            "dense_model": {
                "path": "model-dense.gguf", "tensor_count": self.tensors().len() - entries.len(),
                "total_bytes": fs::metadata(dense).map_or(0, |m| m.len()),
            },
            "routed_removed": removed,
            "sidecar": { "path": "/Volumes/Models/GLM-5.2-sidecar", "summary": summary },
            "runtime_hint": null,
        })
    }
}

fn make_dir(path: &Path) {
    fs::create_dir_all(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn write_json(path: &Path, value: &Value) {
    let text = serde_json::to_string_pretty(value).expect("JSON values serialise") + "\n";
    fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
