//! Further copies of a sidecar, on drives of their own: the same in everything that can be seen without reading experts.

use std::fs;
use std::path::{Path, PathBuf};

use crate::manifest::{Entry, Manifest};
use crate::sums::{self, Sums};
use crate::{Error, package};

/// The files of the copy at `path`, as `files` (those of the original in `manifest`) have them; files that are not the
/// sidecar's are the same ones.
pub(crate) fn open(
    path: &Path,
    manifest: &Manifest,
    files: &[PathBuf],
    allow_outside: bool,
) -> Result<Vec<PathBuf>, Error> {
    let copy = Manifest::load(&package::locate_sidecar(path)?, allow_outside)?;
    let real = |path: &Path| fs::canonicalize(path).map_err(|e| Error::io(path, e));
    if real(&copy.path)? == real(&manifest.path)? {
        return Err(Error::Usage {
            why: format!("{} is given twice as a sidecar", copy.path.display()),
            hint: Some("a copy only helps when it is on a drive of its own".into()),
        });
    }
    let differs =
        |why: String| Error::CopyDiffers { copy: copy.path.clone(), original: manifest.path.clone(), why };
    compare(manifest, &copy).map_err(differs)?;
    let mut paths = Vec::with_capacity(files.len());
    for file in files {
        let entry = manifest.entries.iter().find(|entry| manifest.folder().join(&entry.file) == *file);
        let Some(entry) = entry else {
            paths.push(file.clone());
            continue;
        };
        let path = copy.folder().join(&entry.file);
        let bytes = |path: &Path| fs::metadata(path).map(|stat| stat.len()).map_err(|e| Error::io(path, e));
        let (here, there) = (bytes(file)?, bytes(&path)?);
        if here != there {
            return Err(differs(format!("{} has {there} bytes in place of {here}", entry.file)));
        }
        paths.push(path);
    }
    Ok(paths)
}

/// What differs first.
fn compare(original: &Manifest, copy: &Manifest) -> Result<(), String> {
    if copy.layout != original.layout {
        return Err(format!("its layout is {}, not {}", copy.layout.name(), original.layout.name()));
    }
    let of = |manifest: &Manifest| manifest.arch.clone().unwrap_or_else(|| "unknown".into());
    if of(copy) != of(original) {
        return Err(format!("it is for `{}`, not `{}`", of(copy), of(original)));
    }
    if copy.entries.len() != original.entries.len() {
        return Err(format!("it has {} entries, not {}", copy.entries.len(), original.entries.len()));
    }
    // Where the author had it from is no part of what it is.
    let stripped = |entry: &Entry| Entry {
        source_shard: None,
        source_shard_index: None,
        source_offset: None,
        ..entry.clone()
    };
    let pairs = original.entries.iter().zip(&copy.entries);
    if let Some((_, entry)) = pairs.into_iter().find(|(a, b)| stripped(a) != stripped(b)) {
        return Err(format!("entry {} (`{}`) is another one", entry.index, entry.name));
    }
    let sums = |manifest: &Manifest| Sums::load(&manifest.folder().join(sums::FILE_NAME)).ok().flatten();
    if let (Some(here), Some(there)) = (sums(original), sums(copy)) {
        let differing = here.experts.iter().find(|(name, sums)| there.experts.get(*name) != Some(sums));
        if let Some((name, _)) = differing {
            return Err(format!("the recorded sums of `{name}` differ"));
        }
    }
    Ok(())
}
