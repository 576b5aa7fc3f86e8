//! The embedded demo model, unpacked to disk so that its experts are really read from there.
//!
//! The files live in the user's cache folder under a name that carries their hash. Every start hashes what lies there
//! (some ten megabytes, a few milliseconds) and rewrites what is missing or damaged. Each file appears by a rename, so a
//! reader never sees half of one; a lock spares two processes the same work but correctness does not need it, for
//! both would write the same bytes. Where the cache cannot be written, a private folder among the temporary files
//! serves.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use files::Class;

use crate::folders;
use crate::ui::error::{Failure, Report};

/// One embedded file.
pub(crate) struct DemoFile {
    /// Path inside the model folder, with `/`.
    name: &'static str,
    bytes: &'static [u8],
    blake3: [u8; 32],
}

mod table {
    use super::DemoFile;
    include!(concat!(env!("OUT_DIR"), "/demo_files.rs"));
}

/// The demo on disk.
pub(crate) struct Demo {
    /// Folder to open as a checkpoint.
    pub(crate) path: PathBuf,
    /// The cache could not be used, and why.
    pub(crate) fallback: Option<String>,
}

/// Makes sure that the demo lies on disk, whole.
pub(crate) fn ensure() -> Result<Demo, Failure> {
    if table::FILES.is_empty() {
        return Err(Report::new(Class::Usage, "this slotbank was built without its demo model")
            .hint("name a model with -m MODEL")
            .into());
    }
    ensure_in(table::FILES, table::DIGEST, folders::cache().as_deref(), &temporary_root())
}

fn ensure_in(
    files: &[DemoFile],
    digest: &str,
    cache: Option<&Path>,
    temporary: &Path,
) -> Result<Demo, Failure> {
    let name = format!("demo-{digest}");
    let reason = match cache {
        None => "no home folder is set".to_owned(),
        Some(root) => match unpack(files, &root.join(&name)) {
            Ok(path) => return Ok(Demo { path, fallback: None }),
            Err(error) => format!("{}: {error}", root.display()),
        },
    };
    let path = temporary.join(&name);
    match private_folder(temporary).and_then(|()| unpack(files, &path)) {
        Ok(path) => Ok(Demo { path, fallback: Some(reason) }),
        Err(error) => Err(Report::new(Class::Io, "cannot unpack the demo model")
            .place(path.display().to_string())
            .why(format!("{error}; nor in the cache: {reason}"))
            .hint("set XDG_CACHE_HOME or TMPDIR to a folder with a few free megabytes")
            .into()),
    }
}

/// One folder per user, since the temporary folder is often shared.
fn temporary_root() -> PathBuf {
    #[cfg(unix)]
    let user = rustix::process::geteuid().as_raw().to_string();
    #[cfg(not(unix))]
    let user = "user";
    std::env::temp_dir().join(format!("slotbank-{user}"))
}

/// Creates `path` for this user alone, or refuses one that somebody else has put there.
fn private_folder(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt, MetadataExt};
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let meta = fs::symlink_metadata(path)?;
        if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the folder belongs to another user",
            ));
        }
        Ok(())
    }
    #[cfg(not(unix))]
    fs::create_dir_all(path)
}

fn unpack(files: &[DemoFile], folder: &Path) -> io::Result<PathBuf> {
    if files.iter().all(|file| is_whole(file, folder)) {
        return Ok(folder.to_owned());
    }
    fs::create_dir_all(folder)?;
    let lock = lock(folder);
    for file in files {
        // Another process may have done the work while we waited for the lock.
        if !is_whole(file, folder) {
            write_whole(file, folder)?;
        }
    }
    drop(lock);
    Ok(folder.to_owned())
}

/// Waits for other unpackers. A filesystem without locks costs only double work.
fn lock(folder: &Path) -> Option<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(folder.join(".lock")).ok()?;
    file.lock().ok().map(|()| file)
}

fn path_of(file: &DemoFile, folder: &Path) -> PathBuf {
    file.name.split('/').fold(folder.to_owned(), |path, part| path.join(part))
}

fn is_whole(file: &DemoFile, folder: &Path) -> bool {
    let hash = || -> io::Result<blake3::Hash> {
        let mut on_disk = File::open(path_of(file, folder))?;
        if on_disk.metadata()?.len() != file.bytes.len() as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match on_disk.read(&mut buffer) {
                Ok(0) => return Ok(hasher.finalize()),
                Ok(n) => hasher.update(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
        }
    };
    hash().is_ok_and(|hash| hash == blake3::Hash::from_bytes(file.blake3))
}

fn write_whole(file: &DemoFile, folder: &Path) -> io::Result<()> {
    let path = path_of(file, folder);
    let parent = path.parent().expect("a file inside a folder");
    fs::create_dir_all(parent)?;
    let name = path.file_name().expect("a file has a name").to_string_lossy();
    // Unique per process, so that unpackers without a lock do not write into each other's file.
    let partial = parent.join(format!(".{name}.{}", std::process::id()));
    // Not synced: after a power cut the hash finds what is missing, and a busy disk would make the first start wait.
    let written = File::create(&partial).and_then(|mut out| out.write_all(file.bytes));
    let moved = written.and_then(|()| replace(&partial, &path));
    if moved.is_err() {
        let _ = fs::remove_file(&partial);
    }
    moved
}

fn replace(partial: &Path, path: &Path) -> io::Result<()> {
    match fs::rename(partial, path) {
        // Something that is no file stands in the way; it is inside our own cache folder.
        Err(_) if path.is_dir() => fs::remove_dir_all(path).and_then(|()| fs::rename(partial, path)),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GGUF: &[u8] = b"dense weights";
    const LAYER: &[u8] = &[7; 300_000];

    fn files() -> Vec<DemoFile> {
        let file =
            |name, bytes: &'static [u8]| DemoFile { name, bytes, blake3: *blake3::hash(bytes).as_bytes() };
        vec![file("model-dense.gguf", GGUF), file("sidecar/layer_001.bin", LAYER)]
    }

    fn content(demo: &Demo) -> (Vec<u8>, Vec<u8>) {
        let read = |name: &str| fs::read(demo.path.join(name)).expect(name);
        (read("model-dense.gguf"), read("sidecar/layer_001.bin"))
    }

    fn ensure_at(cache: &Path, temporary: &Path) -> Demo {
        ensure_in(&files(), "0123", Some(cache), temporary).unwrap_or_else(|e| panic!("{e:?}"))
    }

    #[test]
    fn unpacks_once_and_repairs_what_is_damaged() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let (cache, temporary) = (root.path().join("cache"), root.path().join("tmp"));
        let demo = ensure_at(&cache, &temporary);
        assert!(demo.fallback.is_none() && demo.path.starts_with(&cache));
        assert_eq!(content(&demo), (GGUF.to_vec(), LAYER.to_vec()));

        let layer = demo.path.join("sidecar/layer_001.bin");
        let untouched =
            fs::metadata(demo.path.join("model-dense.gguf")).and_then(|m| m.modified()).expect("mtime");
        let mut flipped = LAYER.to_vec();
        flipped[123_456] ^= 1;
        fs::write(&layer, flipped).expect("damage");
        assert_eq!(content(&ensure_at(&cache, &temporary)).1, LAYER);

        fs::write(&layer, b"short").expect("damage");
        assert_eq!(content(&ensure_at(&cache, &temporary)).1, LAYER);

        fs::remove_file(&layer).expect("damage");
        fs::create_dir(&layer).expect("damage");
        assert_eq!(content(&ensure_at(&cache, &temporary)).1, LAYER);

        let after =
            fs::metadata(demo.path.join("model-dense.gguf")).and_then(|m| m.modified()).expect("mtime");
        assert_eq!(untouched, after, "whole files are left alone");
        let leftovers = fs::read_dir(demo.path.join("sidecar")).expect("list").count();
        assert_eq!(leftovers, 1, "no partial files stay behind");
    }

    #[test]
    fn a_cache_that_cannot_be_used_falls_back_to_the_temporary_folder() {
        let root = tempfile::tempdir().expect("a temporary folder");
        // A file where the folder should be fails for every user, root included; permissions do not.
        let cache = root.path().join("occupied");
        fs::write(&cache, b"").expect("file");
        let temporary = root.path().join("tmp");
        let demo = ensure_at(&cache, &temporary);
        assert!(demo.path.starts_with(&temporary));
        assert!(demo.fallback.as_ref().is_some_and(|why| why.contains("occupied")), "{:?}", demo.fallback);
        assert_eq!(content(&demo).0, GGUF);
    }

    #[test]
    fn nowhere_to_write_is_an_io_failure_with_both_reasons() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let occupied = root.path().join("occupied");
        fs::write(&occupied, b"").expect("file");
        match ensure_in(&files(), "0123", None, &occupied) {
            Err(Failure::Report(report)) => assert_eq!(report.class, Class::Io),
            _ => panic!("expected a report"),
        }
    }

    #[test]
    fn many_unpackers_at_once_agree() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let cache = root.path().join("cache");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..4 {
                        let demo = ensure_at(&cache, root.path());
                        assert_eq!(content(&demo), (GGUF.to_vec(), LAYER.to_vec()));
                    }
                });
            }
        });
    }
}
