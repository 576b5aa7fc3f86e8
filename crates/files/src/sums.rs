//! Recorded BLAKE3 sums, in a file of their own so that `manifest.json` stays as the fork wrote it.
//!
//! `manifest.sums.json` lies beside the manifest, `<first shard>.sums.json` beside a plain GGUF:
//! ```text
//! { "schema_version": 1, "kind": "slotbank_sums", "algorithm": "blake3", "generated_at": …,
//!   "manifest": "<sum of manifest.json>",
//!   "bins":    { "layer_003.bin": <bytes>, … },
//!   "experts": { "blk.3.ffn_gate_exps.weight": ["<sum of expert 0>", …], … },
//!   "gguf":    [ { "file": "model-dense.gguf", "bytes": …, "header": "<sum of everything before the data>",
//!                  "tensors": { "token_embd.weight": "<sum>", … } } ] }
//! ```
//! Sums are of an expert's own bytes, so they survive a change of layout. The sum of the manifest (or of the header) is what
//! catches a changed type of equal size. Padding is not summed: nothing reads it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::manifest::{ascii_json, read_json_file, timestamp};
use crate::{Checkpoint, Error, atomic};

/// The sums' file name beside a manifest.
pub const FILE_NAME: &str = "manifest.sums.json";
const KIND: &str = "slotbank_sums";
const ALGORITHM: &str = "blake3";

/// A BLAKE3 sum, written as 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum(pub [u8; 32]);

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl From<blake3::Hash> for Sum {
    fn from(hash: blake3::Hash) -> Self {
        Sum(*hash.as_bytes())
    }
}

impl Serialize for Sum {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sum {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let hash = blake3::Hash::from_hex(&text).map_err(serde::de::Error::custom)?;
        Ok(hash.into())
    }
}

/// Sums of one GGUF file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GgufSums {
    /// Plain file name.
    pub file: String,
    /// Length of the file.
    pub bytes: u64,
    /// Everything before the data section.
    pub header: Sum,
    /// By tensor name.
    pub tensors: BTreeMap<String, Sum>,
}

/// All sums of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    schema_version: u32,
    kind: String,
    algorithm: String,
    generated_at: String,
    /// Of the manifest's bytes; `None` for a plain GGUF.
    pub manifest: Option<Sum>,
    /// Length of each bin, by its name in the manifest.
    pub bins: BTreeMap<String, u64>,
    /// Of each expert, by tensor name.
    pub experts: BTreeMap<String, Vec<Sum>>,
    /// Of each GGUF file.
    pub gguf: Vec<GgufSums>,
}

impl Default for Sums {
    fn default() -> Self {
        Self {
            schema_version: 1,
            kind: KIND.to_owned(),
            algorithm: ALGORITHM.to_owned(),
            generated_at: timestamp(),
            manifest: None,
            bins: BTreeMap::new(),
            experts: BTreeMap::new(),
            gguf: Vec::new(),
        }
    }
}

impl Sums {
    /// Where the sums of `checkpoint` are, whether or not they exist.
    pub fn path_for(checkpoint: &Checkpoint) -> PathBuf {
        if let Some(manifest) = checkpoint.manifest() {
            return manifest.folder().join(FILE_NAME);
        }
        let name =
            checkpoint.root().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        checkpoint.root().with_file_name(format!("{name}.sums.json"))
    }

    /// Reads the sums at `path`; `None` when there are none.
    ///
    /// # Errors
    /// When the file exists and is not what it should be.
    pub fn load(path: &Path) -> Result<Option<Self>, Error> {
        if !path.exists() {
            return Ok(None);
        }
        let bad = |why: String| Error::Sums { path: path.to_path_buf(), why };
        let json = read_json_file(path, "a file of sums")?;
        let sums: Sums = serde_json::from_slice(&json).map_err(|e| bad(e.to_string()))?;
        if (sums.schema_version, sums.kind.as_str(), sums.algorithm.as_str()) != (1, KIND, ALGORITHM) {
            return Err(bad(format!(
                "version {}, kind {}, algorithm {} are not known here",
                sums.schema_version, sums.kind, sums.algorithm
            )));
        }
        Ok(Some(sums))
    }

    /// Writes the sums, whole or not at all.
    ///
    /// # Errors
    /// On I/O failure.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        atomic::write(path, &ascii_json(self)?)
    }
}

/// Sum of a small file.
pub(crate) fn sum_of_file(path: &Path) -> Result<Sum, Error> {
    Ok(blake3::hash(&fs::read(path).map_err(|e| Error::io(path, e))?).into())
}
