//! Writes a sidecar: the routed experts of a model in bins of their own, and on request the dense GGUF that goes with it.
//!
//! ```text
//! DST/layer_003.bin …      DST/manifest.json (last)      DST/manifest.sums.json
//! DST/dense/model-dense.gguf, flashmoe-package.json      with `dense`
//! ```
//! Each bin is written under a temporary name, synced and renamed, then noted in a journal: an interrupted extraction goes on
//! with the bin it was writing. The manifest comes last, so a folder with a manifest is complete. The source may be a GGUF
//! or a sidecar (then this is a repack), and experts may be packed on the way; existing sums of the source are checked while its bytes pass by.

mod copy;
mod dense;
mod journal;
mod plan;

use std::cell::RefCell;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::handles::Handles;
use crate::manifest::{self, Layout, Manifest};
use crate::package::PACKAGE_NAME;
use crate::sums::{self, Sums};
use crate::{Checkpoint, Error, Family, GgmlType, Packer, atomic};
use copy::Copier;
use journal::Journal;
use plan::Plan;

/// What to extract, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Order of the bytes in a bin.
    pub layout: Layout,
    /// Only these layers.
    pub layers: Option<Vec<u32>>,
    /// Only these families.
    pub families: Option<Vec<Family>>,
    /// Pack the experts of these types, expert-major only; packed experts of the source are copied as they are. `None` packs nothing
    /// and takes no packed source.
    pub pack: Option<Vec<Packer>>,
    /// Also write the dense GGUF and the package description.
    pub dense: bool,
    /// Remove what an earlier extraction left at the destination, and start over.
    pub force: bool,
    /// Set by another thread to stop; what is finished stays and the next run goes on from there.
    pub stop: Option<Arc<AtomicBool>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            layout: Layout::LayerMajor,
            layers: None,
            families: None,
            pack: None,
            dense: false,
            force: false,
            stop: None,
        }
    }
}

/// How far an extraction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are written, those of earlier runs included.
    pub bytes_done: u64,
    /// Bytes that will be written in all.
    pub bytes_total: u64,
    /// Bytes that earlier runs had finished.
    pub bytes_resumed: u64,
    /// The layer being written; `None` for the dense part.
    pub layer: Option<u32>,
}

/// What becomes of the experts of one type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FormLine {
    /// Element type.
    #[serde(rename = "type")]
    pub ty: GgmlType,
    /// Name of the form in which the sidecar has them; `None` where they are as they were.
    pub form: Option<String>,
    /// Number of tensors.
    pub tensors: u64,
    /// Their bytes in the source.
    pub source_bytes: u64,
    /// Their bytes in the sidecar.
    pub bytes: u64,
}

/// What an extraction did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Tensors in the manifest.
    pub tensors: usize,
    /// Bins.
    pub layers: usize,
    /// By type, most bytes first.
    pub forms: Vec<FormLine>,
    /// Bins that earlier runs had finished.
    pub layers_resumed: usize,
    /// Bytes written by this run.
    pub bytes_written: u64,
    /// Bytes that earlier runs had finished.
    pub bytes_resumed: u64,
    /// The manifest.
    pub manifest: PathBuf,
    /// The sums.
    pub sums: PathBuf,
    /// The dense GGUF.
    pub dense: Option<PathBuf>,
    /// Files of an older extraction that `force` removed.
    pub removed: Vec<PathBuf>,
}

/// `0,3,5-9` as a list of layers.
///
/// # Errors
/// When it is anything else, or a range runs backwards.
pub fn parse_layers(text: &str) -> Result<Vec<u32>, Error> {
    let bad = |why: String| Error::Usage { why, hint: Some("write layers as in 0,3,5-9".into()) };
    let number = |s: &str| s.trim().parse::<u16>().map_err(|_| bad(format!("`{s}` is not a layer")));
    let mut layers = Vec::new();
    for item in text.split(',') {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let (first, last) = (number(first)?, number(last)?);
        if last < first {
            return Err(bad(format!("the range `{}` runs backwards", item.trim())));
        }
        layers.extend((first..=last).map(u32::from));
    }
    layers.sort_unstable();
    layers.dedup();
    Ok(layers)
}

/// `ffn_gate_exps,ffn_up_exps` or `routed` as a list of families; `ffn_` and `_exps` may be left out.
///
/// # Errors
/// When a name is unknown.
pub fn parse_families(text: &str) -> Result<Vec<Family>, Error> {
    let mut families = Vec::new();
    for item in text.split(',').map(str::trim) {
        let long = format!("ffn_{item}_exps");
        match Family::from_name(item).or_else(|| Family::from_name(&long)) {
            Some(family) => families.push(family),
            None if item == "routed" || item == "all" => families.extend(Family::ALL),
            None => {
                return Err(Error::Usage {
                    why: format!("unknown family `{item}`"),
                    hint: Some("families are gate, up, down, gate_up, or routed for all of them".into()),
                });
            }
        }
    }
    families.sort_unstable();
    families.dedup();
    Ok(families)
}

/// Extracts `src` into the folder `dst`.
///
/// # Errors
/// Before anything is written: when something is in the way, the disk is too small, or nothing matches. Later: on I/O
/// failure, a wrong sum, or a stop; then the same call goes on where this one ended.
pub fn extract(
    src: &Checkpoint,
    dst: &Path,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, Error> {
    let plan = Plan::new(src, options)?;
    refuse_own_source(src, dst)?;
    fs::create_dir_all(dst).map_err(|e| Error::io(dst, e))?;
    let _locked_until_return = lock(dst)?;
    if !options.force && dst.join(manifest::FILE_NAME).exists() {
        return add_dense(src, dst, &plan, options, progress);
    }
    let found = leftovers(dst, options)?;
    let resuming = dst.join(journal::FILE_NAME).exists() && !options.force;
    if let Some(first) = found.iter().find(|_| !options.force && !resuming) {
        return Err(Error::Exists { path: first.clone(), hint: "pass --force to replace it".into() });
    }
    let mut total = plan.bytes();
    if options.dense {
        total += dense::bytes(src, &plan);
    }
    // What is there already either stays (finished bins) or makes room (older ones).
    let reclaimed: u64 = found.iter().filter_map(|path| fs::metadata(path).ok()).map(|stat| stat.len()).sum();
    check_space(dst, total.saturating_sub(reclaimed), free_bytes(dst))?;
    let removed = if options.force { remove_all(found)? } else { Vec::new() };
    remove_temporaries(dst)?;
    let fingerprint = plan.fingerprint(src)?;
    let journal = Journal::open(dst, &fingerprint)?;
    let mut job = Job { src, dst, plan: &plan, options, journal, total, summary: Summary::default() };
    job.summary.removed = removed;
    job.run(progress)
}

/// One extraction under way.
struct Job<'a> {
    src: &'a Checkpoint,
    dst: &'a Path,
    plan: &'a Plan<'a>,
    options: &'a Options,
    journal: Journal,
    total: u64,
    summary: Summary,
}

impl Job<'_> {
    fn run(mut self, progress: &mut dyn FnMut(Progress)) -> Result<Summary, Error> {
        self.write_layers(progress)?;
        if self.options.dense {
            self.write_dense(progress)?;
        }
        let manifest = self.plan.manifest(self.src)?;
        let mut sums = Sums::default();
        sums.manifest = Some(blake3::hash(&manifest).into());
        for layer in &self.plan.layers {
            sums.bins.insert(layer.file.clone(), layer.bytes);
            let done = self.journal.layers.get(&layer.layer).cloned().unwrap_or_default();
            sums.experts.extend(done);
        }
        if let Some(dense) = self.journal.dense.clone() {
            sums.gguf.push(dense.gguf);
            sums.experts.extend(dense.experts);
        }
        self.summary.sums = self.dst.join(sums::FILE_NAME);
        sums.save(&self.summary.sums)?;
        self.summary.manifest = self.dst.join(manifest::FILE_NAME);
        atomic::write(&self.summary.manifest, &manifest)?;
        self.summary.tensors = self.plan.tensor_count();
        self.summary.forms = self.plan.forms();
        self.summary.layers = self.plan.layers.len();
        self.journal.finish()?;
        Ok(self.summary)
    }

    fn write_layers(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<(), Error> {
        let known = Sums::load(&Sums::path_for(self.src))?;
        let stop = self.options.stop.as_deref();
        let mut state = Progress { bytes_done: 0, bytes_total: self.total, bytes_resumed: 0, layer: None };
        let mut todo = Vec::new();
        for layer in &self.plan.layers {
            let size = fs::metadata(self.dst.join(&layer.file)).map(|stat| stat.len()).ok();
            if size == Some(layer.bytes) && self.journal.layers.contains_key(&layer.layer) {
                state.bytes_done += layer.bytes;
                state.bytes_resumed += layer.bytes;
                self.summary.layers_resumed += 1;
            } else {
                todo.push(layer);
            }
        }
        self.summary.bytes_resumed = state.bytes_resumed;
        let state = RefCell::new(state);
        let mut on_bytes = |n: u64| {
            let mut state = state.borrow_mut();
            state.bytes_done += n;
            progress(*state);
            check_stop(stop)
        };
        let copier = Copier {
            handles: RefCell::new(Handles::new(self.src.files())),
            known,
            on_bytes: RefCell::new(&mut on_bytes),
        };
        for layer in todo {
            check_stop(stop)?;
            state.borrow_mut().layer = Some(layer.layer);
            let sums = copier.layer(layer, self.dst)?;
            self.journal.layer_done(layer.layer, sums)?;
            self.summary.bytes_written += layer.bytes;
        }
        Ok(())
    }

    fn write_dense(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<(), Error> {
        let path = dense::path_in(self.dst);
        let bytes = dense::bytes(self.src, self.plan);
        if self.journal.dense.is_none() || !path.exists() {
            let mut state = Progress {
                bytes_done: self.total - bytes,
                bytes_total: self.total,
                bytes_resumed: self.summary.bytes_resumed,
                layer: None,
            };
            let sums = copy_dense(self.src, self.plan, self.dst, self.options, &mut state, progress)?;
            self.journal.dense_done(sums)?;
            self.summary.bytes_written += bytes;
        } else {
            self.summary.bytes_resumed += bytes;
        }
        dense::write_package(self.src, self.plan, self.dst)?;
        self.summary.dense = Some(path);
        Ok(())
    }
}

fn copy_dense(
    src: &Checkpoint,
    plan: &Plan,
    dst: &Path,
    options: &Options,
    state: &mut Progress,
    progress: &mut dyn FnMut(Progress),
) -> Result<dense::DenseSums, Error> {
    let mut on_bytes = |n: u64| {
        state.bytes_done += n;
        progress(*state);
        check_stop(options.stop.as_deref())
    };
    let copier = Copier {
        handles: RefCell::new(Handles::new(src.files())),
        known: None,
        on_bytes: RefCell::new(&mut on_bytes),
    };
    dense::write(src, plan, dst, &copier)
}

/// The destination has a manifest. That is only welcome when it is this very extraction and just the dense part is asked for.
fn add_dense(
    src: &Checkpoint,
    dst: &Path,
    plan: &Plan,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, Error> {
    let path = dst.join(manifest::FILE_NAME);
    let dense_path = dense::path_in(dst);
    let exists = |path: &Path, hint: &str| Err(Error::Exists { path: path.to_path_buf(), hint: hint.into() });
    if !options.dense || dense_path.exists() {
        let file = if options.dense { &dense_path } else { &path };
        return exists(file, "the extraction is complete; pass --force to do it again");
    }
    if !same_entries(&Manifest::load(&path, false)?, plan, src) {
        return exists(&path, "it is of another extraction; pass --force to replace it");
    }
    let total = dense::bytes(src, plan);
    check_space(dst, total, free_bytes(dst))?;
    remove_temporaries(dst)?;
    let mut state = Progress { bytes_done: 0, bytes_total: total, bytes_resumed: 0, layer: None };
    let new = copy_dense(src, plan, dst, options, &mut state, progress)?;
    dense::write_package(src, plan, dst)?;
    let sums_path = dst.join(sums::FILE_NAME);
    if let Some(mut sums) = Sums::load(&sums_path)? {
        sums.gguf = vec![new.gguf];
        sums.experts.extend(new.experts);
        sums.save(&sums_path)?;
    }
    Ok(Summary {
        tensors: plan.tensor_count(),
        layers: plan.layers.len(),
        forms: plan.forms(),
        layers_resumed: plan.layers.len(),
        bytes_written: total,
        bytes_resumed: plan.bytes(),
        manifest: path,
        sums: sums_path,
        dense: Some(dense_path),
        removed: Vec::new(),
    })
}

fn same_entries(found: &Manifest, plan: &Plan, src: &Checkpoint) -> bool {
    let planned = plan.entries(src);
    found.entries.len() == planned.len()
        && found.entries.iter().zip(&planned).all(|(a, b)| {
            a.name == b.tensor_name
                && a.ty.is_some_and(|ty| a.form.as_ref().map_or(ty.name(), |form| &form.name) == b.quant_type)
                && a.form.as_ref().map(|form| &form.version)
                    == b.packed.as_ref().map(|packed| &packed.version)
                && (a.shape, &a.file, a.offset) == (b.shape, &b.repacked_file, b.repacked_offset)
                && a.stride == b.expert_stride.unwrap_or(b.bytes_per_expert)
        })
}

/// Repacking a sidecar into its own folder would remove the bytes that it reads.
fn refuse_own_source(src: &Checkpoint, dst: &Path) -> Result<(), Error> {
    let Ok(dst_real) = fs::canonicalize(dst) else { return Ok(()) };
    let dense = dst_real.join(dense::FOLDER);
    for file in src.files() {
        let real = fs::canonicalize(file).map_err(|e| Error::io(file, e))?;
        let is_bin = !src.gguf_files().contains(file);
        if real.parent() == Some(&dense) || (is_bin && real.parent() == Some(&dst_real)) {
            return Err(Error::Usage {
                why: format!("the destination {} holds the source itself", dst.display()),
                hint: Some("choose another folder".into()),
            });
        }
    }
    Ok(())
}

/// Keeps other extractions out of `folder` while the handle lives. `None` where folders cannot be opened or locked: there
/// an extraction only loses the protection against a second one.
fn lock(folder: &Path) -> Result<Option<File>, Error> {
    let Ok(handle) = File::open(folder) else { return Ok(None) };
    match handle.try_lock() {
        Ok(()) => Ok(Some(handle)),
        Err(TryLockError::Error(_)) => Ok(None),
        Err(TryLockError::WouldBlock) => Err(Error::Usage {
            why: format!("another extraction into {} is running", folder.display()),
            hint: Some("wait for it, or choose another destination".into()),
        }),
    }
}

/// Files at the destination that an extraction would replace, and bins that would be mistaken for its own.
fn leftovers(dst: &Path, options: &Options) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for item in fs::read_dir(dst).map_err(|e| Error::io(dst, e))? {
        let path = item.map_err(|e| Error::io(dst, e))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name == manifest::FILE_NAME
            || name == sums::FILE_NAME
            || name == journal::FILE_NAME
            || is_bin(&name)
        {
            found.push(path);
        }
    }
    if options.dense {
        let folder = dst.join(dense::FOLDER);
        found.extend(
            [dense::path_in(dst), folder.join(PACKAGE_NAME)].into_iter().filter(|path| path.exists()),
        );
    }
    // The manifest goes first, so that no interruption leaves one without its bins.
    found.sort_by_key(|path| (path.file_name() != Some(manifest::FILE_NAME.as_ref()), path.clone()));
    Ok(found)
}

fn is_bin(name: &str) -> bool {
    let number = name.strip_prefix("layer_").and_then(|rest| rest.strip_suffix(".bin"));
    number.is_some_and(|number| number.len() >= 3 && number.bytes().all(|b| b.is_ascii_digit()))
}

fn remove_all(paths: Vec<PathBuf>) -> Result<Vec<PathBuf>, Error> {
    for path in &paths {
        fs::remove_file(path).map_err(|e| Error::io(path, e))?;
    }
    Ok(paths)
}

/// Discards what an interrupted run was writing.
fn remove_temporaries(dst: &Path) -> Result<(), Error> {
    for folder in [dst.to_path_buf(), dst.join(dense::FOLDER)] {
        let Ok(items) = fs::read_dir(&folder) else { continue };
        for path in items.filter_map(|item| Some(item.ok()?.path())) {
            if path.file_name().is_some_and(|name| atomic::is_temporary(&name.to_string_lossy())) {
                fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
            }
        }
    }
    Ok(())
}

/// Bytes that this user may still write at `path`; `None` where the system does not say.
fn free_bytes(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(path).ok()?;
        stat.f_bavail.checked_mul(stat.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

fn check_space(path: &Path, needs: u64, has: Option<u64>) -> Result<(), Error> {
    match has {
        Some(has) if has < needs => Err(Error::Space { path: path.to_path_buf(), needs, has }),
        _ => Ok(()),
    }
}

fn check_stop(stop: Option<&AtomicBool>) -> Result<(), Error> {
    if stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
        return Err(Error::Interrupted { what: "extract stopped; run it again to go on".into() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_lists() {
        assert_eq!(parse_layers("0,3,5-9").unwrap(), [0, 3, 5, 6, 7, 8, 9]);
        assert_eq!(parse_layers(" 4 , 4-5").unwrap(), [4, 5]);
        for bad in ["", "x", "3-", "-3", "9-5", "1,,2", "70000"] {
            assert_eq!(parse_layers(bad).unwrap_err().class(), crate::Class::Usage, "{bad}");
        }
    }

    #[test]
    fn family_lists() {
        assert_eq!(parse_families("ffn_down_exps,gate").unwrap(), [Family::Gate, Family::Down]);
        assert_eq!(parse_families("routed").unwrap(), Family::ALL);
        assert!(parse_families("shared").is_err());
    }

    #[test]
    fn too_small_a_disk_is_refused_with_numbers() {
        let error = check_space(Path::new("/dst"), 1000, Some(400)).unwrap_err();
        assert_eq!(error.class(), crate::Class::DoesNotFit);
        assert_eq!(error.to_string(), "not enough space on the disk of /dst: 1000 bytes needed, 400 free");
        assert_eq!(error.hint().unwrap(), "free 600 more bytes or choose another disk");
        assert!(check_space(Path::new("/dst"), 1000, Some(1000)).is_ok());
        assert!(check_space(Path::new("/dst"), 1000, None).is_ok());
    }

    #[test]
    fn bins_are_recognised() {
        assert!(is_bin("layer_003.bin") && is_bin("layer_1003.bin"));
        assert!(!is_bin("layer_3.bin") && !is_bin("layer_abc.bin") && !is_bin("layer_003.bin.bak"));
    }
}
