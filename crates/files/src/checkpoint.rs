//! The one door for model files: whatever the path, the same tables come out.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::gguf::{self, Header, Metadata};
use crate::{Error, ExpertTensor, Extent, Family, FileIndex, Tensor};

/// How to open a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// A sidecar (folder or manifest) to use instead of the one that belongs to the path.
    pub sidecar: Option<PathBuf>,
    /// Open even when the dense part or the experts are absent: for inspect, extract and verify, never for running.
    pub allow_incomplete: bool,
    /// Follow absolute paths and `..` in a manifest. Only for manifests that this user wrote.
    pub allow_outside: bool,
}

/// What kind of files a checkpoint is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// One GGUF; experts are read in place.
    Gguf,
    /// A split GGUF; experts are read in place.
    Split {
        /// Number of files.
        shards: u32,
    },
}

/// An opened checkpoint: tables only, no data.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    source: Source,
    root: PathBuf,
    metadata: Metadata,
    architecture: String,
    files: Vec<PathBuf>,
    tensors: Vec<Tensor>,
    index: HashMap<String, usize>,
    experts: Vec<ExpertTensor>,
    notes: Vec<String>,
}

impl Checkpoint {
    /// Opens whatever is at `path`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_with(path, &OpenOptions::default())
    }

    /// Opens whatever is at `path`.
    pub fn open_with(path: &Path, _options: &OpenOptions) -> Result<Self, Error> {
        let shards = gguf::open_set(path)?;
        let metadata = shards.metadata().clone();
        let architecture = metadata.require_str("general.architecture")?.to_owned();
        let mut this = Self {
            source: match shards.headers.len() {
                1 => Source::Gguf,
                n => Source::Split { shards: u32::try_from(n).unwrap_or(u32::MAX) },
            },
            root: shards.headers[0].path.clone(),
            metadata,
            architecture,
            files: Vec::new(),
            tensors: Vec::new(),
            index: HashMap::new(),
            experts: Vec::new(),
            notes: Vec::new(),
        };
        for header in shards.headers {
            this.add_file(header)?;
        }
        this.experts.sort_by_key(|tensor| (tensor.layer, tensor.family));
        this.index = this.tensors.iter().enumerate().map(|(at, tensor)| (tensor.name.clone(), at)).collect();
        Ok(this)
    }

    fn add_file(&mut self, header: Header) -> Result<(), Error> {
        let file = FileIndex(u32::try_from(self.files.len()).expect("shards are few"));
        for info in header.tensors {
            let extent = Extent { file, offset: info.offset, len: info.len };
            let Some((layer, family)) = Family::parse_tensor_name(&info.name) else {
                self.tensors.push(Tensor { name: info.name, ty: info.ty, shape: info.shape, extent });
                continue;
            };
            let Ok(shape) = <[u64; 3]>::try_from(info.shape.as_slice()) else {
                return Err(Error::Gguf {
                    path: header.path,
                    offset: info.offset,
                    what: format!("tensor `{}`", info.name),
                    why: format!(
                        "experts need the shape [n_in, n_out, n_expert], this one is {:?}",
                        info.shape
                    ),
                });
            };
            let expert_bytes = info.len / shape[2];
            self.experts.push(ExpertTensor {
                layer,
                family,
                name: info.name,
                ty: info.ty,
                shape,
                file,
                offset: info.offset,
                stride: expert_bytes,
                expert_bytes,
            });
        }
        self.files.push(header.path);
        Ok(())
    }

    /// What kind of files this is made of.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The file that stands for the checkpoint in messages: first shard, dense GGUF, or manifest.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Keys and values of the model.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// `general.architecture`
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Every file that an extent can point into.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// All dense tensors, in file order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// A dense tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.index.get(name).map(|&at| &self.tensors[at])
    }

    /// All expert tensors, sorted by layer and family.
    pub fn experts(&self) -> &[ExpertTensor] {
        &self.experts
    }

    /// One family of one layer.
    pub fn expert(&self, layer: u32, family: Family) -> Option<&ExpertTensor> {
        let at = self
            .experts
            .binary_search_by_key(&(layer, family), |tensor| (tensor.layer, tensor.family))
            .ok()?;
        Some(&self.experts[at])
    }

    /// Layers that have expert tensors, ascending.
    pub fn expert_layers(&self) -> impl Iterator<Item = u32> + '_ {
        self.experts.chunk_by(|a, b| a.layer == b.layer).map(|layer| layer[0].layer)
    }

    /// What a user should know about how this was opened, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Reads an extent into memory. For small tensors, tests and tools; the engine reads by its own means.
    pub fn read(&self, extent: &Extent) -> Result<Vec<u8>, Error> {
        let path = &self.files[extent.file.index()];
        let fail = |e| Error::io(path, e);
        let mut file = File::open(path).map_err(fail)?;
        file.seek(SeekFrom::Start(extent.offset)).map_err(fail)?;
        let mut bytes = Vec::new();
        // Grows with what arrives: the file may have shrunk since it was checked.
        file.take(extent.len).read_to_end(&mut bytes).map_err(fail)?;
        if bytes.len() as u64 == extent.len {
            return Ok(bytes);
        }
        Err(Error::Truncated {
            path: path.clone(),
            what: "a tensor".into(),
            needs: extent.offset + extent.len,
            has: extent.offset + bytes.len() as u64,
        })
    }
}
