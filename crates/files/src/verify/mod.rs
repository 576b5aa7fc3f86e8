//! Are these still the bytes that were extracted?
//!
//! Every expert slice and every dense tensor is read and compared with its recorded sum, or with another checkpoint, or both
//! in one pass. Nothing stops at the first bad entry: a report that names all of them says which files to fetch again.
//! Worker threads claim slices in file order, so that the disk sees a few sequential streams.

mod work;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use crate::sums::{GgufSums, Sum, Sums, sum_of_file};
use crate::{Checkpoint, Error, ExpertTensor, Extent, Family, OpenOptions, Packer};
use work::{Item, Outcome};

/// In quick mode one expert in this many is read, besides the first and the last.
const SAMPLE: u64 = 64;

/// How much to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Every byte.
    #[default]
    Full,
    /// Extents, sizes, headers, and a sample of the sums.
    Quick,
}

/// What to verify against what.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The sidecar, when it is not found from the path.
    pub sidecar: Option<PathBuf>,
    /// How much to read.
    pub mode: Mode,
    /// Another checkpoint of the same model, usually the GGUF that this one was extracted from.
    pub against: Option<PathBuf>,
    /// For comparing packed experts with those that they were packed from.
    pub packers: Vec<Packer>,
    /// Record the sums of what is there now. Refused where sums exist.
    pub write_sums: bool,
    /// Worker threads; at least two by default.
    pub threads: Option<usize>,
    /// Set by another thread to stop.
    pub stop: Option<Arc<AtomicBool>>,
}

/// How far a verification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read of the checkpoint itself.
    pub bytes_done: u64,
    /// Bytes that will be read.
    pub bytes_total: u64,
    /// Bad entries so far.
    pub bad: usize,
}

/// What became of the sums.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SumsState {
    /// There are none: only structure was checked.
    Absent,
    /// They were checked.
    Checked(PathBuf),
    /// They were written by this run.
    Written(PathBuf),
}

/// Why an entry is bad.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// Its bytes have another sum.
    Sum {
        /// Recorded.
        expected: Sum,
        /// Computed.
        got: Sum,
    },
    /// Its bytes differ from the other checkpoint's.
    Bytes {
        /// First difference, counted from the start of the file.
        at: u64,
        /// Byte there in the other checkpoint.
        expected: u8,
        /// Byte here.
        got: u8,
    },
    /// It lies beyond the end of the file.
    Truncated {
        /// Bytes that the file should have.
        needs: u64,
        /// Bytes that it has.
        has: u64,
    },
    /// The file has another length than recorded.
    Size {
        /// Recorded.
        expected: u64,
        /// Found.
        got: u64,
    },
    /// The file or tensor is absent.
    Missing,
    /// Type or shape differ from the other checkpoint's.
    Geometry {
        /// There.
        expected: String,
        /// Here.
        got: String,
    },
    /// The system could not read it.
    Unreadable(String),
}

/// One bad entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bad {
    /// The file.
    pub file: PathBuf,
    /// Tensor name; empty when the file as a whole is bad.
    pub tensor: String,
    /// Layer, for experts.
    pub layer: Option<u32>,
    /// Family, for experts.
    pub family: Option<Family>,
    /// Expert id, for experts.
    pub expert: Option<u32>,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes of the entry.
    pub len: u64,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if !self.tensor.is_empty() {
            write!(f, ": `{}`", self.tensor)?;
        }
        if let Some(expert) = self.expert {
            write!(f, " expert {expert}")?;
        }
        if self.len > 0 {
            write!(f, " at byte {}", self.offset)?;
        }
        match &self.problem {
            Problem::Sum { expected, got } => write!(f, ": sum {got}, recorded {expected}"),
            Problem::Bytes { at, expected, got } => {
                write!(f, ": byte {at} is {got:#04x}, the other checkpoint has {expected:#04x}")
            }
            Problem::Truncated { needs, has } => {
                write!(f, ": truncated: needs {needs} bytes, the file has {has}")
            }
            Problem::Size { expected, got } => write!(f, ": {got} bytes long, {expected} recorded"),
            Problem::Missing => write!(f, ": missing"),
            Problem::Geometry { expected, got } => write!(f, ": {got}, the other checkpoint has {expected}"),
            Problem::Unreadable(why) => write!(f, ": {why}"),
        }
    }
}

/// The result of a verification.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was verified.
    pub root: PathBuf,
    /// Files looked at.
    pub files: usize,
    /// Expert slices and dense tensors that were read.
    pub slices: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whether sums were there.
    pub sums: SumsState,
    /// Every bad entry, in file order.
    pub bad: Vec<Bad>,
    /// What else the user should know.
    pub notes: Vec<String>,
}

impl Report {
    /// Whether nothing is bad.
    pub fn is_ok(&self) -> bool {
        self.bad.is_empty()
    }

    /// An integrity error when something is bad.
    ///
    /// # Errors
    /// That one.
    pub fn check(&self) -> Result<(), Error> {
        match self.bad.len() {
            0 => Ok(()),
            1 => Err(Error::Integrity { path: self.root.clone(), why: "1 bad entry".into() }),
            n => Err(Error::Integrity { path: self.root.clone(), why: format!("{n} bad entries") }),
        }
    }
}

/// Verifies the checkpoint at `path`.
///
/// # Errors
/// Only when nothing can be verified: the path is no checkpoint, its manifest or header is malformed, or the run was
/// stopped. Bad entries are in the report.
pub fn verify(path: &Path, options: &Options, progress: &mut dyn FnMut(Progress)) -> Result<Report, Error> {
    if options.write_sums && options.mode == Mode::Quick {
        return Err(Error::Usage {
            why: "sums can only be written by a full verification".into(),
            hint: None,
        });
    }
    let open = OpenOptions {
        sidecar: options.sidecar.clone(),
        allow_incomplete: true,
        allow_damaged: true,
        ..OpenOptions::default()
    };
    let own = Checkpoint::open_with(path, &open)?;
    let other = match &options.against {
        Some(path) => Some(Checkpoint::open_with(
            path,
            &OpenOptions { allow_incomplete: true, ..OpenOptions::default() },
        )?),
        None => None,
    };
    let sums_path = Sums::path_for(&own);
    let sums = Sums::load(&sums_path)?;
    if options.write_sums && sums.is_some() {
        return Err(Error::Exists {
            path: sums_path,
            hint: "delete it first if the files are known to be good".into(),
        });
    }
    let mut run = Run {
        own: &own,
        other: other.as_ref(),
        packers: &options.packers,
        sums: sums.as_ref(),
        bad: Vec::new(),
        notes: own.notes().to_vec(),
        without_sums: 0,
    };
    run.check_structure()?;
    // Without anything to compare with there is nothing to read.
    let reads = sums.is_some() || other.is_some() || options.write_sums;
    let items = if reads { run.items(options.mode) } else { Vec::new() };
    let (bytes, slices) = (items.iter().map(|item| item.extent.len).sum(), items.len() as u64);
    let outcomes = work::run(&own, other.as_ref(), &items, options, run.bad.len(), progress)?;
    let fresh = run.collect(&items, outcomes);
    run.bad.sort_by(|a, b| (&a.file, a.offset, &a.tensor).cmp(&(&b.file, b.offset, &b.tensor)));
    let sums_state = match &sums {
        Some(_) => SumsState::Checked(sums_path),
        None if options.write_sums && run.bad.is_empty() => {
            fresh?.save(&sums_path)?;
            SumsState::Written(sums_path)
        }
        None => {
            run.notes.push(no_sums_note(&own, options.write_sums));
            SumsState::Absent
        }
    };
    let Run { bad, notes, .. } = run;
    Ok(Report {
        root: own.root().to_path_buf(),
        files: own.files().len(),
        slices,
        bytes,
        sums: sums_state,
        bad,
        notes,
    })
}

fn no_sums_note(own: &Checkpoint, wanted: bool) -> String {
    if wanted {
        return "no sums were written, because the files are not in order".to_owned();
    }
    format!(
        "no sums are recorded for {0}: only structure and sizes were checked; `slotbank verify --write-sums {0}` records \
         what is there now",
        own.root().display()
    )
}

struct Run<'a> {
    own: &'a Checkpoint,
    other: Option<&'a Checkpoint>,
    packers: &'a [Packer],
    sums: Option<&'a Sums>,
    bad: Vec<Bad>,
    notes: Vec<String>,
    /// Expert tensors that the sums do not cover.
    without_sums: usize,
}

impl<'a> Run<'a> {
    /// Everything that needs no tensor data: files, lengths, manifest, headers, completeness.
    fn check_structure(&mut self) -> Result<(), Error> {
        self.check_files();
        if let Some(manifest) = self.own.manifest() {
            let recorded = self.sums.and_then(|sums| sums.manifest);
            if let Some(expected) = recorded {
                let got = sum_of_file(&manifest.path)?;
                if got != expected {
                    self.whole_file(&manifest.path, Problem::Sum { expected, got });
                }
            }
        }
        self.check_headers();
        self.check_known_tensors();
        for (layer, family) in
            self.own.missing_experts()?.into_iter().filter(|(layer, _)| !self.own.is_mtp_layer(*layer))
        {
            self.bad.push(Bad {
                file: self.own.root().to_path_buf(),
                tensor: family.tensor_name(layer),
                layer: Some(layer),
                family: Some(family),
                expert: None,
                offset: 0,
                len: 0,
                problem: Problem::Missing,
            });
        }
        Ok(())
    }

    fn whole_file(&mut self, file: &Path, problem: Problem) {
        self.bad.push(Bad {
            file: file.to_path_buf(),
            tensor: String::new(),
            layer: None,
            family: None,
            expert: None,
            offset: 0,
            len: 0,
            problem,
        });
    }

    /// Each file must exist, be as long as recorded, and reach as far as its extents.
    fn check_files(&mut self) {
        let mut needs: BTreeMap<usize, u64> = BTreeMap::new();
        let extents = self.own.tensors().iter().map(|tensor| tensor.extent);
        let experts = self.own.experts().iter().map(last_extent);
        for extent in extents.chain(experts) {
            let end = needs.entry(extent.file.index()).or_default();
            *end = (*end).max(extent.offset + extent.len);
        }
        for (index, path) in self.own.files().iter().enumerate() {
            let recorded = self.recorded_bytes(path);
            match fs::metadata(path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => self.whole_file(path, Problem::Missing),
                Err(e) => self.whole_file(path, Problem::Unreadable(e.to_string())),
                Ok(stat) => {
                    let (has, needs) = (stat.len(), needs.get(&index).copied().unwrap_or(0));
                    match recorded {
                        Some(expected) if expected != has => {
                            self.whole_file(path, Problem::Size { expected, got: has });
                        }
                        // With sums each entry beyond the end is reported by itself; without them this is all there is.
                        _ if has < needs => self.whole_file(path, Problem::Truncated { needs, has }),
                        _ => {}
                    }
                }
            }
        }
    }

    fn recorded_bytes(&self, path: &Path) -> Option<u64> {
        let sums = self.sums?;
        if let Some(gguf) = self.gguf_sums(path) {
            return Some(gguf.bytes);
        }
        let folder = self.own.manifest()?.folder();
        sums.bins.iter().find(|(name, _)| folder.join(name) == path).map(|(_, bytes)| *bytes)
    }

    /// Recorded sums of a GGUF file, which are kept by plain name.
    fn gguf_sums(&self, path: &Path) -> Option<&'a GgufSums> {
        if !self.own.gguf_files().iter().any(|file| file == path) {
            return None;
        }
        let name = path.file_name()?.to_string_lossy();
        self.sums?.gguf.iter().find(|gguf| gguf.file == name)
    }

    fn check_headers(&mut self) {
        let own = self.own;
        for (path, &bytes) in own.gguf_files().iter().zip(own.header_bytes()) {
            let Some(recorded) = self.gguf_sums(path) else {
                if self.sums.is_some() {
                    self.notes.push(format!("no sums are recorded for {}", path.display()));
                }
                continue;
            };
            match sum_of_head(path, bytes) {
                Ok(got) if got != recorded.header => {
                    self.whole_file(path, Problem::Sum { expected: recorded.header, got });
                }
                Ok(_) => {}
                Err(e) => self.whole_file(path, Problem::Unreadable(e.to_string())),
            }
        }
    }

    /// Tensors that have sums and are gone, and tensors that the other checkpoint has beyond ours.
    fn check_known_tensors(&mut self) {
        let own: std::collections::HashSet<&str> =
            self.own.experts().iter().map(|tensor| tensor.name.as_str()).collect();
        let recorded = self.sums.into_iter().flat_map(|sums| sums.experts.keys());
        let gone: Vec<&String> = recorded.filter(|name| !own.contains(name.as_str())).collect();
        for name in gone {
            let parsed = Family::parse_tensor_name(name);
            self.bad.push(Bad {
                file: self.own.root().to_path_buf(),
                tensor: name.clone(),
                layer: parsed.map(|(layer, _)| layer),
                family: parsed.map(|(_, family)| family),
                expert: None,
                offset: 0,
                len: 0,
                problem: Problem::Missing,
            });
        }
        let Some(other) = self.other else { return };
        let extra = other.experts().iter().filter(|tensor| !own.contains(tensor.name.as_str())).count();
        if extra > 0 {
            self.notes.push(format!(
                "{extra} expert tensors of {} are not in this checkpoint",
                other.root().display()
            ));
        }
    }

    /// Everything to read, in file order.
    fn items(&mut self, mode: Mode) -> Vec<Item<'a>> {
        let mut items = Vec::new();
        for tensor in self.own.experts() {
            self.expert_items(tensor, mode, &mut items);
        }
        for (index, tensor) in self.own.tensors().iter().enumerate() {
            if mode == Mode::Quick && !(index as u64).is_multiple_of(SAMPLE) {
                continue;
            }
            let other = match self.other.map(|other| (other, other.tensor(&tensor.name))) {
                // A sidecar alone has no dense tensors to compare with.
                None => None,
                Some((other, None)) if other.tensors().is_empty() => None,
                Some((_, found)) => {
                    let there = found.map(|t| (t.ty.name(), t.shape.as_slice()));
                    if !self.same_geometry(
                        &tensor.name,
                        tensor.extent,
                        (tensor.ty.name(), &tensor.shape),
                        there,
                        None,
                    ) {
                        continue;
                    }
                    found.map(|t| t.extent)
                }
            };
            let path = &self.own.files()[tensor.extent.file.index()];
            let expected = self.gguf_sums(path).and_then(|gguf| gguf.tensors.get(&tensor.name).copied());
            items.push(Item {
                extent: tensor.extent,
                tensor: index,
                expert: None,
                expected,
                other,
                packer: None,
            });
        }
        if self.without_sums > 0 {
            self.notes.push(format!("no sums are recorded for {} expert tensors", self.without_sums));
        }
        // A missing file has been reported once; that it also lacks each of its experts says nothing more.
        let there: Vec<bool> = self.own.files().iter().map(|path| path.is_file()).collect();
        items.retain(|item| there[item.extent.file.index()]);
        items.sort_by_key(|item| (item.extent.file, item.extent.offset));
        items
    }

    /// What makes of the other checkpoint's experts what ours are.
    fn packer(&self, own: &ExpertTensor, other: &ExpertTensor) -> Option<&'a Packer> {
        let form = own.form.as_ref().filter(|_| other.form.is_none() && own.ty == other.ty)?;
        self.packers.iter().find(|packer| packer.source() == own.ty && packer.form() == form)
    }

    fn expert_items(&mut self, tensor: &'a ExpertTensor, mode: Mode, items: &mut Vec<Item<'a>>) {
        let index =
            self.own.experts().partition_point(|t| (t.layer, t.family) < (tensor.layer, tensor.family));
        let there = self.other.map(|other| other.expert(tensor.layer, tensor.family));
        let packer = there.flatten().and_then(|there| self.packer(tensor, there));
        if let Some(there) = there {
            // What can be packed on the way counts as what it becomes.
            let stored = |t: &'a ExpertTensor| packer.map_or(t.stored_as(), |packer| &packer.form().name);
            let geometry = there.map(|t| (stored(t), t.shape.as_slice()));
            let expert = Some((tensor.layer, tensor.family));
            if !self.same_geometry(
                &tensor.name,
                last_extent(tensor),
                (tensor.stored_as(), &tensor.shape),
                geometry,
                expert,
            ) {
                return;
            }
        }
        let sums = self.sums.and_then(|sums| sums.experts.get(&tensor.name));
        let complete = sums.is_some_and(|sums| sums.len() as u64 == tensor.n_expert());
        self.without_sums += usize::from(self.sums.is_some() && !complete);
        for expert in 0..u32::try_from(tensor.n_expert()).unwrap_or(u32::MAX) {
            let sampled =
                u64::from(expert).is_multiple_of(SAMPLE) || u64::from(expert) + 1 == tensor.n_expert();
            if mode == Mode::Quick && !sampled {
                continue;
            }
            items.push(Item {
                extent: tensor.extent(expert),
                tensor: index,
                expert: Some(expert),
                expected: sums.and_then(|sums| sums.get(expert as usize).copied()),
                other: there.flatten().map(|there| there.extent(expert)),
                packer,
            });
        }
    }

    /// Reports a tensor that the other checkpoint lacks or has in another form; false when there is nothing to compare.
    fn same_geometry(
        &mut self,
        name: &str,
        extent: Extent,
        here: (&str, &[u64]),
        there: Option<(&str, &[u64])>,
        expert: Option<(u32, Family)>,
    ) -> bool {
        let problem = match there {
            Some(there) if there == here => return true,
            Some((ty, shape)) => Problem::Geometry {
                expected: format!("{ty} {shape:?}"),
                got: format!("{} {:?}", here.0, here.1),
            },
            None => Problem::Geometry {
                expected: "no such tensor".into(),
                got: format!("{} {:?}", here.0, here.1),
            },
        };
        self.bad.push(Bad {
            file: self.own.files()[extent.file.index()].clone(),
            tensor: name.to_owned(),
            layer: expert.map(|(layer, _)| layer),
            family: expert.map(|(_, family)| family),
            expert: None,
            offset: extent.offset,
            len: extent.len,
            problem,
        });
        false
    }

    /// Turns outcomes into bad entries, and into fresh sums where everything was read.
    fn collect(&mut self, items: &[Item<'_>], outcomes: Vec<Outcome>) -> Result<Sums, Error> {
        let mut fresh = Sums::default();
        let mut experts: BTreeMap<(usize, u32), Sum> = BTreeMap::new();
        let mut tensors: BTreeMap<usize, BTreeMap<String, Sum>> = BTreeMap::new();
        for (item, outcome) in items.iter().zip(outcomes) {
            if let Some(sum) = outcome.sum {
                match item.expert {
                    Some(expert) => drop(experts.insert((item.tensor, expert), sum)),
                    None => {
                        let name = self.own.tensors()[item.tensor].name.clone();
                        tensors.entry(item.extent.file.index()).or_default().insert(name, sum);
                    }
                }
            }
            if let Some(problem) = outcome.problem {
                self.bad.push(self.describe(item, problem));
            }
        }
        for ((tensor, _), sum) in experts {
            fresh.experts.entry(self.own.experts()[tensor].name.clone()).or_default().push(sum);
        }
        let own = self.own;
        for (index, (path, &bytes)) in own.gguf_files().iter().zip(own.header_bytes()).enumerate() {
            fresh.gguf.push(GgufSums {
                file: path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
                bytes: fs::metadata(path).map_err(|e| Error::io(path, e))?.len(),
                header: sum_of_head(path, bytes)?,
                tensors: tensors.remove(&index).unwrap_or_default(),
            });
        }
        if let Some(manifest) = own.manifest() {
            fresh.manifest = Some(sum_of_file(&manifest.path)?);
            for entry in &manifest.entries {
                let path = manifest.folder().join(&entry.file);
                let stat = fs::metadata(&path).map_err(|e| Error::io(&path, e))?;
                fresh.bins.insert(entry.file.clone(), stat.len());
            }
        }
        Ok(fresh)
    }

    fn describe(&self, item: &Item<'_>, problem: Problem) -> Bad {
        let tensor = item.expert.map(|_| &self.own.experts()[item.tensor]);
        Bad {
            file: self.own.files()[item.extent.file.index()].clone(),
            tensor: tensor
                .map_or_else(|| self.own.tensors()[item.tensor].name.clone(), |tensor| tensor.name.clone()),
            layer: tensor.map(|tensor| tensor.layer),
            family: tensor.map(|tensor| tensor.family),
            expert: item.expert,
            offset: item.extent.offset,
            len: item.extent.len,
            problem,
        }
    }
}

/// Where the last expert is, which reaches furthest.
fn last_extent(tensor: &ExpertTensor) -> Extent {
    Extent {
        file: tensor.file,
        offset: tensor.offset + (tensor.n_expert() - 1) * tensor.stride,
        len: tensor.expert_bytes,
    }
}

fn sum_of_head(path: &Path, bytes: u64) -> Result<Sum, Error> {
    use std::io::Read;
    let mut hasher = blake3::Hasher::new();
    let file = fs::File::open(path).map_err(|e| Error::io(path, e))?;
    hasher.update_reader(file.take(bytes)).map_err(|e| Error::io(path, e))?;
    Ok(hasher.finalize().into())
}
