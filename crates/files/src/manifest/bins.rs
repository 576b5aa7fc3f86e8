//! A manifest against the bins that are really there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use super::{Entry, Manifest};
use crate::Error;
use crate::gguf::sniff;

/// Every bin must exist and reach as far as its entries say. Reads at most a few bytes of each file that does not.
pub(super) fn check(manifest: &Manifest) -> Result<(), Error> {
    // The entry that reaches furthest stands for its file: 228 entries need 76 stats.
    let mut furthest: BTreeMap<&str, &Entry> = BTreeMap::new();
    for entry in &manifest.entries {
        let last = furthest.entry(&entry.file).or_insert(entry);
        if entry.end() > last.end() {
            *last = entry;
        }
    }
    let mut missing = Vec::new();
    for (file, entry) in &furthest {
        let path = manifest.folder().join(file);
        match fs::metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => missing.push(*entry),
            Err(e) => return Err(Error::io(&path, e)),
            Ok(stat) if !stat.is_file() => {
                return Err(fail(manifest, entry, format!("{file} is not a file")));
            }
            Ok(stat) if stat.len() < entry.end() => return Err(too_short(&path, entry, stat.len())),
            Ok(_) => {}
        }
    }
    let Some(first) = missing.first() else { return Ok(()) };
    let others = match missing.len() - 1 {
        0 => String::new(),
        n => format!(", and {n} more of {} bins", furthest.len()),
    };
    Err(fail(manifest, first, format!("{} is missing{others}", first.file)))
}

/// Truncated, unless the file is something else altogether.
fn too_short(path: &Path, entry: &Entry, has: u64) -> Error {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(64).read_to_end(&mut head));
    if let Err(e) = read {
        return Error::io(path, e);
    }
    let (found, hint) = sniff(&head, has);
    if ["an empty file", "a Git LFS pointer", "an HTML page"].contains(&found.as_str()) {
        return Error::WrongKind { path: path.to_path_buf(), found, expected: "a sidecar bin", hint };
    }
    Error::Truncated {
        path: path.to_path_buf(),
        what: format!("entry {} (`{}`)", entry.index, entry.name),
        needs: entry.end(),
        has,
    }
}

fn fail(manifest: &Manifest, entry: &Entry, why: String) -> Error {
    Error::ManifestEntry { path: manifest.path.clone(), index: entry.index, tensor: entry.name.clone(), why }
}
