//! Files appear whole or not at all: written under a temporary name, synced, then renamed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::Error;

/// Suffix of files that are not finished.
const TEMPORARY: &str = ".slotbank-tmp";

/// The name under which `path` is written until it is complete. Fixed rather than random, so that a later run finds and
/// removes what an interrupted one left behind.
pub(crate) fn temporary_path(path: &Path) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}{TEMPORARY}"))
}

/// Whether `name` is one that [`temporary_path`] makes.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(TEMPORARY)
}

/// Syncs `file`, gives it its final name and syncs the folder, so that the name survives a power cut too.
pub(crate) fn publish(file: File, temporary: &Path, path: &Path) -> Result<(), Error> {
    file.sync_all().map_err(|e| Error::io(temporary, e))?;
    drop(file);
    fs::rename(temporary, path).map_err(|e| Error::io(path, e))?;
    sync_folder(path.parent().unwrap_or(Path::new(".")));
    Ok(())
}

/// Writes a small file whole.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = temporary_path(path);
    let mut file = File::create(&temporary).map_err(|e| Error::io(&temporary, e))?;
    file.write_all(bytes).map_err(|e| Error::io(&temporary, e))?;
    publish(file, &temporary, path)
}

/// Best effort: some filesystems refuse to sync a folder, and the data itself is already safe.
fn sync_folder(folder: &Path) {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if let Ok(handle) = File::open(folder) {
        drop(handle.sync_all());
    }
}
