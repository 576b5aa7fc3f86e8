//! The one door for model files: whatever the path, the same tables come out.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::gguf::{self, Header, Metadata, Shards};
use crate::manifest::{Entry, Layout, Manifest};
use crate::package::{self, Parts};
use crate::{Error, ExpertTensor, Extent, Family, FileIndex, Tensor, copies};

/// How to open a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// A sidecar (folder or manifest) to use instead of the one that belongs to the path.
    pub sidecar: Option<PathBuf>,
    /// Further sidecars with the same files, on drives of their own.
    pub copies: Vec<PathBuf>,
    /// Open even when the dense part or experts are absent: for inspect, extract and verify, never for running.
    pub allow_incomplete: bool,
    /// Follow absolute paths and `..` in a manifest. Only for manifests that this user wrote.
    pub allow_outside: bool,
    /// Open although files are too short or bins are absent: for verify, which reports all of it at once.
    pub allow_damaged: bool,
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
    /// Experts from a sidecar, everything else from a GGUF if there is one.
    Sidecar {
        /// The manifest.
        manifest: PathBuf,
        /// How its bins are laid out.
        layout: Layout,
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
    gguf_files: usize,
    header_bytes: Vec<u64>,
    tensors: Vec<Tensor>,
    index: HashMap<String, usize>,
    experts: Vec<ExpertTensor>,
    manifest: Option<Manifest>,
    copies: Vec<Vec<PathBuf>>,
    notes: Vec<String>,
}

impl Checkpoint {
    /// Opens whatever is at `path`: a GGUF, a shard, a manifest, a package description, or a folder of those.
    ///
    /// # Errors
    /// When a file is missing, damaged, of an unsupported kind, or parts do not belong together.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_with(path, &OpenOptions::default())
    }

    /// As [`Checkpoint::open`].
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_with(path: &Path, options: &OpenOptions) -> Result<Self, Error> {
        let mut parts = package::locate(path)?;
        if let Some(sidecar) = &options.sidecar {
            parts.manifest = Some(package::locate_sidecar(sidecar)?);
            parts.manifest_asked = true;
        }
        let mut this = match &parts.gguf {
            Some(gguf) => Self::from_gguf(gguf::open_set_with(gguf, options.allow_damaged)?)?,
            None if options.allow_incomplete => Self::empty(path),
            None => return Err(no_dense(path, &parts)),
        };
        if let Some(manifest) =
            parts.manifest.as_ref().filter(|_| parts.manifest_asked || this.experts.is_empty())
        {
            let manifest = match options.allow_damaged {
                true => Manifest::load_unchecked(manifest, options.allow_outside)?,
                false => Manifest::load(manifest, options.allow_outside)?,
            };
            if this.files.is_empty() {
                this.metadata = manifest.metadata();
                this.architecture = manifest.arch.clone().unwrap_or_else(|| "unknown".to_owned());
                this.root.clone_from(&manifest.path);
            }
            this.add_sidecar(manifest)?;
        }
        for copy in &options.copies {
            this.add_copy(copy, options.allow_outside)?;
        }
        this.experts.sort_by_key(|tensor| (tensor.layer, tensor.family));
        this.index = this.tensors.iter().enumerate().map(|(at, tensor)| (tensor.name.clone(), at)).collect();
        this.check_expert_count()?;
        if !options.allow_incomplete {
            this.check_complete(&parts)?;
        }
        Ok(this)
    }

    fn empty(path: &Path) -> Self {
        Self {
            source: Source::Gguf,
            root: path.to_path_buf(),
            metadata: Metadata::new(),
            architecture: String::new(),
            files: Vec::new(),
            gguf_files: 0,
            header_bytes: Vec::new(),
            tensors: Vec::new(),
            index: HashMap::new(),
            experts: Vec::new(),
            manifest: None,
            copies: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn from_gguf(shards: Shards) -> Result<Self, Error> {
        let mut this = Self::empty(&shards.headers[0].path);
        this.metadata = shards.metadata().clone();
        this.architecture = this.metadata.require_str("general.architecture")?.to_owned();
        if shards.headers.len() > 1 {
            this.source = Source::Split { shards: u32::try_from(shards.headers.len()).unwrap_or(u32::MAX) };
        }
        for header in shards.headers {
            this.add_gguf(header)?;
        }
        this.gguf_files = this.files.len();
        Ok(this)
    }

    fn add_gguf(&mut self, header: Header) -> Result<(), Error> {
        let file = self.next_file();
        for info in header.tensors {
            let extent = Extent { file, offset: info.offset, len: info.len };
            let Some((layer, family)) = Family::parse_tensor_name(&info.name) else {
                check_not_split_experts(&header.path, &info.name)?;
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
            // Exact: the expert is the slowest dimension and rows are whole blocks.
            let expert_bytes = info.len / shape[2];
            self.experts.push(ExpertTensor {
                layer,
                family,
                name: info.name,
                ty: info.ty,
                form: None,
                shape,
                file,
                offset: info.offset,
                stride: expert_bytes,
                expert_bytes,
            });
        }
        self.header_bytes.push(header.data_offset.min(header.file_bytes));
        self.files.push(header.path);
        Ok(())
    }

    fn next_file(&self) -> FileIndex {
        FileIndex(u32::try_from(self.files.len()).expect("fewer files than 2^32"))
    }

    /// Puts the sidecar's entries in place of (or beside) the GGUF's own experts.
    fn add_sidecar(&mut self, manifest: Manifest) -> Result<(), Error> {
        self.check_same_model(&manifest)?;
        let mut own: HashMap<(u32, Family), ExpertTensor> =
            self.experts.drain(..).map(|tensor| ((tensor.layer, tensor.family), tensor)).collect();
        let mut bins: HashMap<&str, FileIndex> = HashMap::new();
        let mut replaced = 0;
        for entry in &manifest.entries {
            let old = own.remove(&(entry.layer, entry.family));
            replaced += usize::from(old.is_some());
            let file = *bins.entry(&entry.file).or_insert_with(|| {
                self.files.push(manifest.folder().join(&entry.file));
                FileIndex(u32::try_from(self.files.len() - 1).expect("fewer files than 2^32"))
            });
            self.experts.push(expert_of(entry, old.as_ref(), file, &manifest, &self.root)?);
        }
        if replaced > 0 {
            self.notes.push(format!(
                "{replaced} expert tensors come from the sidecar instead of the GGUF, {} stay with the GGUF",
                own.len()
            ));
        }
        self.experts.extend(own.into_values());
        self.source = Source::Sidecar { manifest: manifest.path.clone(), layout: manifest.layout };
        self.manifest = Some(manifest);
        Ok(())
    }

    fn add_copy(&mut self, copy: &Path, allow_outside: bool) -> Result<(), Error> {
        let Some(manifest) = &self.manifest else {
            return Err(Error::Usage {
                why: format!("there is no sidecar that {} could be a copy of", copy.display()),
                hint: Some("give the first copy with --sidecar too".into()),
            });
        };
        let files = copies::open(copy, manifest, &self.files, allow_outside)?;
        if self.copies.contains(&files) {
            return Err(Error::Usage {
                why: format!("{} is given twice as a sidecar", copy.display()),
                hint: None,
            });
        }
        self.copies.push(files);
        Ok(())
    }

    /// A sidecar of another model has the same file names and often the same sizes; say so before anything is computed.
    fn check_same_model(&self, manifest: &Manifest) -> Result<(), Error> {
        if self.gguf_files == 0 {
            return Ok(());
        }
        let wrong = |why: String| Error::WrongSidecar {
            manifest: manifest.path.clone(),
            dense: self.root.clone(),
            why,
        };
        if let Some(arch) = manifest.arch.as_ref().filter(|arch| **arch != self.architecture) {
            return Err(wrong(format!("it is for `{arch}`, the model is `{}`", self.architecture)));
        }
        let width = self.metadata.u64(&self.key("embedding_length"))?;
        let ff = self.metadata.u64s(&self.key("expert_feed_forward_length"))?;
        let n_expert = self.expert_count()?;
        for entry in &manifest.entries {
            let [n_in, n_out, count] = entry.shape;
            let halves = if entry.family == Family::GateUp { 2 } else { 1 };
            let (has_width, has_ff) = match entry.family {
                Family::Down => (n_out, n_in),
                _ => (n_in, n_out / halves),
            };
            let ff = ff.as_ref().and_then(|ff| match ff.as_slice() {
                [one] => Some(*one),
                many => many.get(entry.layer as usize).copied(),
            });
            let claims = [
                ("expert_count", n_expert, count),
                ("embedding_length", width, has_width),
                ("expert_feed_forward_length", ff, has_ff),
            ];
            for (key, says, has) in claims {
                if let Some(says) = says.filter(|&says| says != has) {
                    return Err(wrong(format!("`{}` has {key} {has}, the model has {says}", entry.name)));
                }
            }
        }
        Ok(())
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// `<arch>.expert_count`, when it is one number for all layers.
    fn expert_count(&self) -> Result<Option<u64>, Error> {
        let list = self.metadata.u64s(&self.key("expert_count"))?;
        Ok(list.filter(|list| list.len() == 1).map(|list| list[0]))
    }

    fn check_expert_count(&self) -> Result<(), Error> {
        // Expert ids are 32 bits wide everywhere.
        if let Some(tensor) = self.experts.iter().find(|tensor| u32::try_from(tensor.shape[2]).is_err()) {
            return Err(Error::Metadata {
                path: self.root.clone(),
                key: tensor.name.clone(),
                expected: "fewer than 2^32 experts".into(),
                found: tensor.shape[2].to_string(),
            });
        }
        let Some(count) = self.expert_count()? else { return Ok(()) };
        match self.experts.iter().find(|tensor| tensor.shape[2] != count) {
            None => Ok(()),
            Some(tensor) => Err(Error::Metadata {
                path: self.root.clone(),
                key: self.key("expert_count"),
                expected: format!("{} as in `{}`", tensor.shape[2], tensor.name),
                found: count.to_string(),
            }),
        }
    }

    /// Every layer with a router needs its experts, except those of next-token prediction, which no decoder here runs.
    fn check_complete(&self, parts: &Parts) -> Result<(), Error> {
        let missing = self.missing_experts()?;
        let needed: Vec<&(u32, Family)> =
            missing.iter().filter(|(layer, _)| !self.is_mtp_layer(*layer)).collect();
        let expects_some = self.expert_count()?.is_some_and(|count| count > 0) && self.experts.is_empty();
        if needed.is_empty() && !expects_some {
            return Ok(());
        }
        let what = match needed.first() {
            Some((layer, family)) if !self.experts.is_empty() => {
                format!(
                    "{} expert tensors are missing, the first is {}",
                    needed.len(),
                    family.tensor_name(*layer)
                )
            }
            _ => "the routed experts are missing: this is only the dense part of a model".to_owned(),
        };
        let hint = if self.manifest.is_some() {
            "the sidecar is partial: extract or download all of its layers".to_owned()
        } else {
            let looked: Vec<String> = parts.looked.iter().map(|path| path.display().to_string()).collect();
            format!("pass its sidecar with --sidecar; looked for {}", looked.join(", "))
        };
        Err(Error::Incomplete { path: self.root.clone(), what, hint })
    }

    /// Expert tensors that the dense part calls for (a layer with a router) and no file has.
    ///
    /// # Errors
    /// When metadata has the wrong type.
    pub fn missing_experts(&self) -> Result<Vec<(u32, Family)>, Error> {
        let mut missing = Vec::new();
        for layer in self.router_layers() {
            let has = |family| self.expert(layer, family).is_some();
            let wanted: &[Family] =
                if has(Family::GateUp) { &[Family::Down] } else { &[Family::Gate, Family::Up, Family::Down] };
            missing.extend(wanted.iter().filter(|&&family| !has(family)).map(|&family| (layer, family)));
        }
        Ok(missing)
    }

    /// Layers whose dense part has a router, ascending.
    pub fn router_layers(&self) -> Vec<u32> {
        let layer_of = |name: &str| {
            let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
            (rest == "ffn_gate_inp.weight").then(|| layer.parse().ok())?
        };
        let mut layers: Vec<u32> = self.tensors.iter().filter_map(|tensor| layer_of(&tensor.name)).collect();
        layers.sort_unstable();
        layers
    }

    /// Whether `layer` belongs to next-token prediction: the last `nextn_predict_layers` of `block_count`.
    pub fn is_mtp_layer(&self, layer: u32) -> bool {
        let number = |name: &str| self.metadata.u64(&self.key(name)).ok().flatten();
        match (number("block_count"), number("nextn_predict_layers")) {
            (Some(blocks), Some(extra)) => u64::from(layer) >= blocks.saturating_sub(extra),
            (Some(blocks), None) => u64::from(layer) >= blocks,
            _ => false,
        }
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

    /// Every file that an extent can point into: GGUF files first, then bins.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// [`Checkpoint::files`] once more for each further copy of the sidecar.
    pub fn copies(&self) -> &[Vec<PathBuf>] {
        &self.copies
    }

    /// The GGUF files among [`Checkpoint::files`]; empty for a sidecar without its dense part.
    pub fn gguf_files(&self) -> &[PathBuf] {
        &self.files[..self.gguf_files]
    }

    /// Bytes before the data section of each of [`Checkpoint::gguf_files`].
    pub(crate) fn header_bytes(&self) -> &[u64] {
        &self.header_bytes
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

    /// The sidecar's manifest.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// What a user should know about how this was opened, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Reads an extent into memory. For small tensors, tests and tools; the engine reads by its own means.
    ///
    /// # Errors
    /// When the file cannot be read or has become shorter.
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

/// The table line of a manifest entry. `old` is the GGUF's own tensor, where it has one.
fn expert_of(
    entry: &Entry,
    old: Option<&ExpertTensor>,
    file: FileIndex,
    manifest: &Manifest,
    dense: &Path,
) -> Result<ExpertTensor, Error> {
    let fail = |why: &str| Error::ManifestEntry {
        path: manifest.path.clone(),
        index: entry.index,
        tensor: entry.name.clone(),
        why: why.to_owned(),
    };
    if let Some(old) = old.filter(|old| old.shape != entry.shape) {
        return Err(Error::WrongSidecar {
            manifest: manifest.path.clone(),
            dense: dense.to_path_buf(),
            why: format!("`{}` has shape {:?}, the model has {:?}", entry.name, entry.shape, old.shape),
        });
    }
    let ty = entry
        .ty
        .or(old.map(|old| old.ty))
        .ok_or_else(|| fail("no `quant_type`, and no GGUF that knows it"))?;
    // That of a packed form was checked with the entry.
    if entry.form.is_none() && ty.tensor_bytes(&entry.shape[..2]) != Some(entry.expert_bytes) {
        return Err(fail(&format!(
            "`bytes_per_expert` {} does not suit the GGUF's type {ty}",
            entry.expert_bytes
        )));
    }
    Ok(ExpertTensor {
        layer: entry.layer,
        family: entry.family,
        name: entry.name.clone(),
        ty,
        form: entry.form.clone(),
        shape: entry.shape,
        file,
        offset: entry.offset,
        stride: entry.stride,
        expert_bytes: entry.expert_bytes,
    })
}

/// Files of 2023 have one 2-D tensor per expert. Read as dense they would look like a model without experts.
fn check_not_split_experts(path: &Path, name: &str) -> Result<(), Error> {
    let expert_of = || {
        let rest = name.strip_prefix("blk.")?.split_once('.')?.1.strip_suffix(".weight")?;
        let (family, expert) = rest.split_once('.')?;
        let numbered = !expert.is_empty() && expert.bytes().all(|b| b.is_ascii_digit());
        (numbered && ["ffn_gate", "ffn_up", "ffn_down"].contains(&family)).then_some(())
    };
    match expert_of() {
        None => Ok(()),
        Some(()) => Err(Error::GgufVersion {
            path: path.to_path_buf(),
            why: format!(
                "`{name}` is a single expert; files with one tensor per expert (before 2024) are not supported"
            ),
        }),
    }
}

fn no_dense(path: &Path, parts: &Parts) -> Error {
    let looked: Vec<String> = parts.looked.iter().map(|path| path.display().to_string()).collect();
    Error::Incomplete {
        path: path.to_path_buf(),
        what: "a sidecar without the dense part of its model".into(),
        hint: format!("pass the dense GGUF and --sidecar; looked for {}", looked.join(", ")),
    }
}
