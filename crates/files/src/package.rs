//! Finds the parts of a model from whatever the user points at.
//!
//! Three arrangements of a dense GGUF and its sidecar are in the wild:
//! ```text
//! (a) model-dense.gguf        (b) dense/model-dense.gguf       (c) dense/model-dense.gguf
//!     flashmoe-package.json       dense/flashmoe-package.json      flashmoe-package.json
//!     sidecar/manifest.json       manifest.json, layer_*.bin       sidecar/manifest.json
//! ```
//! Any of their folders and files leads to both parts. A GGUF that has its own experts stands for itself: a manifest that
//! happens to lie beside it is used only when it is asked for.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use crate::Error;
use crate::manifest::{self, read_json_file};

/// The dense part's usual name.
pub const DENSE_NAME: &str = "model-dense.gguf";
/// The package description's name.
pub const PACKAGE_NAME: &str = "flashmoe-package.json";

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    /// A GGUF: dense part, whole model, or one shard of it.
    pub(crate) gguf: Option<PathBuf>,
    /// A sidecar's manifest.
    pub(crate) manifest: Option<PathBuf>,
    /// Whether the manifest was named by the user (or by the folder given) rather than found beside a GGUF.
    pub(crate) manifest_asked: bool,
    /// Places without what was looked for, for the hint.
    pub(crate) looked: Vec<PathBuf>,
}

/// The parts that belong to `path`.
pub(crate) fn locate(path: &Path) -> Result<Parts, Error> {
    let stat = fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if stat.is_dir() {
        return in_folder(&absolute(path)?);
    }
    let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    if is_json { from_json(path) } else { beside_gguf(path) }
}

/// The manifest that `--sidecar` names: itself, or the one in the folder.
pub(crate) fn locate_sidecar(path: &Path) -> Result<PathBuf, Error> {
    let stat = fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !stat.is_dir() {
        return Ok(path.to_path_buf());
    }
    let candidates = [path.join(manifest::FILE_NAME), path.join("sidecar").join(manifest::FILE_NAME)];
    candidates.into_iter().find(|candidate| candidate.is_file()).ok_or_else(|| Error::Incomplete {
        path: path.to_path_buf(),
        what: "no manifest.json in it".into(),
        hint: "pass the folder that holds manifest.json and the layer_NNN.bin files".into(),
    })
}

/// With a name and a parent, as long as there is one: `.` has neither.
fn absolute(folder: &Path) -> Result<PathBuf, Error> {
    if matches!(folder.components().next_back(), Some(Component::Normal(_))) && folder.parent().is_some() {
        return Ok(folder.to_path_buf());
    }
    fs::canonicalize(folder).map_err(|e| Error::io(folder, e))
}

fn in_folder(folder: &Path) -> Result<Parts, Error> {
    let mut parts = Parts { manifest_asked: true, ..Parts::default() };
    let package = read_package(folder);
    find_manifest(folder, package.as_ref(), &mut parts);
    find_dense(folder, &mut parts)?;
    if parts.gguf.is_none() && parts.manifest.is_none() {
        return Err(nothing_in(folder));
    }
    Ok(parts)
}

/// Looks for a sidecar of the folder that holds (or should hold) the dense part.
fn find_manifest(folder: &Path, package: Option<&Map<String, Value>>, parts: &mut Parts) {
    let mut candidates = vec![folder.to_path_buf(), folder.join("sidecar")];
    if let Some(sidecar) = package.and_then(declared_sidecar) {
        candidates.insert(0, folder.join(sidecar));
    }
    // Only a folder called `dense` is known to be a part of something; the parent of any other is none of our business.
    if let Some(parent) = parent_if_named(folder, "dense") {
        candidates.extend([parent.to_path_buf(), parent.join("sidecar")]);
    }
    for candidate in candidates {
        let candidate = candidate.join(manifest::FILE_NAME);
        if candidate.is_file() && !is_foreign(&candidate) {
            parts.manifest = Some(candidate);
            return;
        }
        parts.looked.push(candidate);
    }
}

/// Whether a `manifest.json` that was merely found is sound JSON of somebody else's. A damaged one is not foreign: its
/// parser shall say what is wrong with it.
fn is_foreign(path: &Path) -> bool {
    let json = read_json_file(path, "a sidecar manifest").ok();
    let root: Option<Map<String, Value>> = json.and_then(|json| serde_json::from_slice(&json).ok());
    root.is_some_and(|root| !root.contains_key("entries") && !root.contains_key("sidecar_kind"))
}

/// Looks for the dense part of the sidecar in `folder`.
fn find_dense(folder: &Path, parts: &mut Parts) -> Result<(), Error> {
    let mut candidates = vec![folder.to_path_buf(), folder.join("dense")];
    if let Some(parent) = parent_if_named(folder, "sidecar") {
        candidates.extend([parent.to_path_buf(), parent.join("dense")]);
    }
    for candidate in candidates {
        if let Some(gguf) = gguf_in(&candidate)? {
            parts.gguf = Some(gguf);
            return Ok(());
        }
        parts.looked.push(candidate.join(DENSE_NAME));
    }
    Ok(())
}

fn parent_if_named<'a>(folder: &'a Path, name: &str) -> Option<&'a Path> {
    folder.parent().filter(|_| folder.file_name().is_some_and(|found| found == name))
}

fn from_json(path: &Path) -> Result<Parts, Error> {
    let json = read_json_file(path, "a sidecar manifest or package description")?;
    let root: Option<Map<String, Value>> = serde_json::from_slice(&json).ok();
    let kind = |key: &str| root.as_ref().and_then(|root| root.get(key)?.as_str()).unwrap_or("").to_owned();
    let folder = absolute(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    if kind("kind") != "flashmoe_dense_package" && kind("package_kind") != "flashmoe_ssd" {
        // Anything else is taken for a manifest, whose own parser knows best what is wrong with it.
        let mut parts =
            Parts { manifest: Some(path.to_path_buf()), manifest_asked: true, ..Parts::default() };
        find_dense(&folder, &mut parts)?;
        return Ok(parts);
    }
    let mut parts = Parts { manifest_asked: true, ..Parts::default() };
    find_manifest(&folder, root.as_ref(), &mut parts);
    let declared = root.as_ref().and_then(declared_dense).map(|dense| folder.join(dense));
    match declared.filter(|dense| dense.is_file()) {
        Some(dense) => parts.gguf = Some(dense),
        None => find_dense(&folder, &mut parts)?,
    }
    if parts.gguf.is_none() && parts.manifest.is_none() {
        return Err(nothing_in(&folder));
    }
    Ok(parts)
}

fn beside_gguf(path: &Path) -> Result<Parts, Error> {
    let mut parts = Parts { gguf: Some(path.to_path_buf()), ..Parts::default() };
    let folder = absolute(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    find_manifest(&folder, read_package(&folder).as_ref(), &mut parts);
    Ok(parts)
}

/// The package description of a folder. Only a source of hints: a damaged one is as good as none.
fn read_package(folder: &Path) -> Option<Map<String, Value>> {
    let json = read_json_file(&folder.join(PACKAGE_NAME), "a package description").ok()?;
    serde_json::from_slice(&json).ok()
}

/// `sidecar.path`, or `sidecar` itself in the flat form.
fn declared_sidecar(package: &Map<String, Value>) -> Option<PathBuf> {
    let sidecar = package.get("sidecar")?;
    inside(sidecar.as_str().or_else(|| sidecar.get("path")?.as_str())?)
}

/// `dense_model.path`, or `dense` in the flat form.
fn declared_dense(package: &Map<String, Value>) -> Option<PathBuf> {
    let dense = package.get("dense").and_then(Value::as_str);
    inside(dense.or_else(|| package.get("dense_model")?.get("path")?.as_str())?)
}

/// Relative paths that stay inside. The others are absolute paths of the author's disk, or an attempt at something.
fn inside(path: &str) -> Option<PathBuf> {
    let path = PathBuf::from(path);
    path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)).then_some(path)
}

/// The one model in a folder: `model-dense.gguf`, else the only GGUF, else the first shard of the only split set.
fn gguf_in(folder: &Path) -> Result<Option<PathBuf>, Error> {
    if !folder.is_dir() {
        return Ok(None);
    }
    let dense = folder.join(DENSE_NAME);
    if dense.is_file() {
        return Ok(Some(dense));
    }
    let mut models: Vec<String> = Vec::new();
    for item in fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let name = item.map_err(|e| Error::io(folder, e))?.file_name().to_string_lossy().into_owned();
        if is_model(&name) {
            models.push(name);
        }
    }
    models.sort();
    match models.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some(folder.join(only))),
        _ => Err(Error::Usage {
            why: format!("{} holds several models: {}", folder.display(), models.join(", ")),
            hint: Some("pass one of them".into()),
        }),
    }
}

/// Whether a file name is a model to choose from: a GGUF, of a split set only the first shard, no companion file.
fn is_model(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let Some(stem) = lower.strip_suffix(".gguf") else { return false };
    if stem.starts_with('.') || stem.starts_with("mmproj") || stem.starts_with("mtp-") {
        return false;
    }
    match stem.rsplit_once("-of-").and_then(|(rest, count)| Some((rest.rsplit_once('-')?.1, count))) {
        Some((number, count)) if number.bytes().chain(count.bytes()).all(|b| b.is_ascii_digit()) => {
            number.parse() == Ok(1)
        }
        _ => true,
    }
}

fn nothing_in(folder: &Path) -> Error {
    let safetensors = fs::read_dir(folder).ok().is_some_and(|mut items| {
        items.any(|item| item.is_ok_and(|item| item.path().extension().is_some_and(|e| e == "safetensors")))
    });
    let (what, hint) = if safetensors {
        ("a folder of safetensors, which are not read yet", "convert the model to GGUF first")
    } else {
        (
            "no model in it: neither a .gguf file nor a sidecar's manifest.json",
            "pass a .gguf file, or a folder that holds one",
        )
    };
    Error::Incomplete { path: folder.to_path_buf(), what: what.into(), hint: hint.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_first_shards_and_no_companions_are_models() {
        assert!(is_model("model.gguf"));
        assert!(is_model("GLM-00001-of-00005.gguf"));
        assert!(is_model("best-of-three.gguf"));
        for name in ["GLM-00002-of-00005.gguf", "mmproj-F16.gguf", "mtp-glm.gguf", ".x.gguf", "model.bin"] {
            assert!(!is_model(name), "{name}");
        }
    }

    #[test]
    fn declared_paths_must_stay_inside() {
        assert_eq!(inside("sidecar"), Some(PathBuf::from("sidecar")));
        assert_eq!(inside("./dense/model-dense.gguf"), Some(PathBuf::from("./dense/model-dense.gguf")));
        assert_eq!(inside("/out/sidecar"), None);
        assert_eq!(inside("../x"), None);
    }
}
