//! Builders of small model files. Bytes of every tensor are derived from its name, so that a wrong extent is a wrong byte.
#![allow(dead_code, unreachable_pub, reason = "each test file is a crate of its own and uses its part")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use slotbank_files::gguf::{Metadata, Writer, shard_name};
use slotbank_files::{Checkpoint, Family, GgmlType};

/// `len` bytes that no other name gives.
pub fn bytes_of(name: &str, len: u64) -> Vec<u8> {
    let mut out = vec![0; usize::try_from(len).unwrap()];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut out);
    out
}

/// One tensor of a toy.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: String,
    pub ty: GgmlType,
    pub shape: Vec<u64>,
}

impl Spec {
    pub fn new(name: impl Into<String>, ty: GgmlType, shape: &[u64]) -> Self {
        Self { name: name.into(), ty, shape: shape.to_vec() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        bytes_of(&self.name, self.ty.tensor_bytes(&self.shape).unwrap())
    }

    pub fn is_expert(&self) -> bool {
        Family::parse_tensor_name(&self.name).is_some()
    }
}

/// A small `glm-dsa` model: one leading dense layer, routed layers 1 and 2, next-token prediction in layer 3.
#[derive(Clone, Debug)]
pub struct Toy {
    pub metadata: Metadata,
    pub tensors: Vec<Spec>,
}

pub const EMBD: u64 = 256;
pub const FF: u64 = 256;
pub const EXPERTS: u64 = 5;

impl Default for Toy {
    fn default() -> Self {
        let mut metadata = Metadata::new();
        metadata.insert("general.architecture", "glm-dsa");
        metadata.insert("general.name", "toy");
        for (key, value) in [
            ("block_count", 4u32),
            ("nextn_predict_layers", 1),
            ("context_length", 512),
            ("embedding_length", EMBD as u32),
            ("leading_dense_block_count", 1),
            ("expert_count", EXPERTS as u32),
            ("expert_used_count", 2),
            ("expert_shared_count", 1),
            ("expert_feed_forward_length", FF as u32),
        ] {
            metadata.insert(format!("glm-dsa.{key}"), value);
        }
        metadata.insert("glm-dsa.attention.indexer.types", vec![true, false, true]);
        metadata.insert("tokenizer.ggml.model", "gpt2");
        metadata.insert("tokenizer.ggml.pre", "glm4");
        metadata.insert("tokenizer.ggml.tokens", vec!["a", "b", "ä"]);
        metadata.insert("tokenizer.chat_template", "{{ messages }}");
        let mut tensors = vec![
            Spec::new("token_embd.weight", GgmlType::Q8_0, &[EMBD, 3]),
            Spec::new("output_norm.weight", GgmlType::F32, &[EMBD]),
        ];
        for layer in 0..4u32 {
            tensors.extend(dense_layer(layer));
            if layer > 0 {
                tensors.extend(expert_layer(layer));
            }
        }
        Self { metadata, tensors }
    }
}

fn dense_layer(layer: u32) -> Vec<Spec> {
    let mut names = vec![
        "attn_norm.weight",
        "ffn_norm.weight",
        "attn_q_a.weight",
        "attn_q_a_norm.weight",
        "attn_q_b.weight",
        "attn_kv_a_mqa.weight",
        "attn_kv_a_norm.weight",
        "attn_k_b.weight",
        "attn_v_b.weight",
        "attn_output.weight",
    ];
    if layer != 1 {
        names.extend([
            "indexer.attn_q_b.weight",
            "indexer.attn_k.weight",
            "indexer.k_norm.weight",
            "indexer.k_norm.bias",
            "indexer.proj.weight",
        ]);
    }
    if layer == 0 {
        names.extend(["ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"]);
    } else {
        names.extend(["ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"]);
        names.extend(["ffn_gate_inp.weight", "exp_probs_b.bias"]);
    }
    names.iter().map(|name| Spec::new(format!("blk.{layer}.{name}"), GgmlType::F32, &[7])).collect()
}

/// Types differ by layer and family, as in the published files.
fn expert_layer(layer: u32) -> Vec<Spec> {
    let (gate, up, down) = match layer % 3 {
        0 => (GgmlType::IQ1_M, GgmlType::IQ1_M, GgmlType::IQ1_M),
        1 => (GgmlType::IQ1_M, GgmlType::IQ2_XXS, GgmlType::IQ3_XXS),
        _ => (GgmlType::Q2_K, GgmlType::Q2_K, GgmlType::Q3_K),
    };
    [(Family::Gate, gate), (Family::Up, up), (Family::Down, down)]
        .into_iter()
        .map(|(family, ty)| {
            let (n_in, n_out) = if family == Family::Down { (FF, EMBD) } else { (EMBD, FF) };
            Spec::new(family.tensor_name(layer), ty, &[n_in, n_out, EXPERTS])
        })
        .collect()
}

impl Toy {
    /// Writes everything into one GGUF.
    pub fn write(&self, path: &Path) {
        write_gguf(path, &self.metadata, &self.tensors);
    }

    /// Writes the GGUF without its experts.
    pub fn write_dense(&self, path: &Path) {
        let dense: Vec<Spec> = self.tensors.iter().filter(|spec| !spec.is_expert()).cloned().collect();
        write_gguf(path, &self.metadata, &dense);
    }

    /// Writes a split set whose first shard has no tensors; returns its paths.
    pub fn write_split(&self, folder: &Path, shards: u32) -> Vec<PathBuf> {
        let per_shard = self.tensors.len().div_ceil(shards as usize - 1);
        let mut chunks: Vec<&[Spec]> = vec![&[]];
        chunks.extend(self.tensors.chunks(per_shard));
        assert_eq!(chunks.len(), shards as usize);
        let mut paths = Vec::new();
        for (at, chunk) in chunks.into_iter().enumerate() {
            let mut metadata = if at == 0 { self.metadata.clone() } else { Metadata::new() };
            metadata.insert("split.no", u16::try_from(at).unwrap());
            metadata.insert("split.count", u16::try_from(shards).unwrap());
            metadata.insert("split.tensors.count", i32::try_from(self.tensors.len()).unwrap());
            let path = folder.join(shard_name("toy", u32::try_from(at).unwrap() + 1, shards));
            write_gguf(&path, &metadata, chunk);
            paths.push(path);
        }
        paths
    }

    pub fn spec(&self, name: &str) -> &Spec {
        self.tensors.iter().find(|spec| spec.name == name).unwrap()
    }

    /// Checks every byte that `checkpoint` gives access to.
    pub fn check(&self, checkpoint: &Checkpoint) {
        for spec in &self.tensors {
            let expected = spec.bytes();
            let Some((layer, family)) = Family::parse_tensor_name(&spec.name) else {
                let tensor = checkpoint.tensor(&spec.name).unwrap_or_else(|| panic!("no {}", spec.name));
                assert_eq!((tensor.ty, &tensor.shape), (spec.ty, &spec.shape), "{}", spec.name);
                assert!(checkpoint.read(&tensor.extent).unwrap() == expected, "{}", spec.name);
                continue;
            };
            let tensor = checkpoint.expert(layer, family).unwrap_or_else(|| panic!("no {}", spec.name));
            assert_eq!((tensor.ty, tensor.shape.to_vec()), (spec.ty, spec.shape.clone()), "{}", spec.name);
            let size = expected.len() / tensor.n_expert() as usize;
            for (expert, slice) in expected.chunks(size).enumerate() {
                let extent = tensor.extent(u32::try_from(expert).unwrap());
                assert!(checkpoint.read(&extent).unwrap() == slice, "{} expert {expert}", spec.name);
            }
        }
    }
}

pub fn write_gguf(path: &Path, metadata: &Metadata, tensors: &[Spec]) {
    let mut writer = Writer::new(metadata.clone()).unwrap();
    for spec in tensors {
        writer.tensor(&spec.name, spec.ty, &spec.shape, |out| out.write_all(&spec.bytes())).unwrap();
    }
    writer.write_file(path).unwrap();
}

/// All files under `folder` by relative name.
pub fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, folder: &Path, out: &mut BTreeMap<String, Vec<u8>>) {
        for item in fs::read_dir(folder).unwrap() {
            let path = item.unwrap().path();
            if path.is_dir() {
                walk(root, &path, out);
            } else {
                let name = path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
                out.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(folder, folder, &mut out);
    out
}

/// Flips one bit of one byte.
pub fn flip(path: &Path, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[usize::try_from(at).unwrap()] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

pub fn put(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    File::create(path).unwrap().write_all(bytes).unwrap();
}

pub fn names(folder: &Path) -> Vec<String> {
    tree(folder).into_keys().collect()
}

/// What the tests pack with: a form of IQ1_M that keeps its 56 bytes at the end of 80.
pub fn packer() -> slotbank_files::Packer {
    fn pack(bytes: &[u8], out: &mut [u8]) {
        assert_eq!(bytes.len() / 56, out.len() / 80, "as many packed blocks");
        for (block, out) in bytes.chunks_exact(56).zip(out.chunks_exact_mut(80)) {
            out.fill(0xA5);
            out[24..].copy_from_slice(block);
        }
    }
    slotbank_files::Packer::new(GgmlType::IQ1_M, "IQ1_M spacious", 80, pack)
}

/// A toy in a temporary folder, opened.
pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) toy: Toy,
    pub(crate) src: Checkpoint,
}

pub(crate) fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let toy = Toy::default();
    toy.write(&dir.path().join("toy.gguf"));
    let src = Checkpoint::open(&dir.path().join("toy.gguf")).unwrap();
    Fixture { dir, toy, src }
}
