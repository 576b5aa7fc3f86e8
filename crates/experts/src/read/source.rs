//! Open files and the way they are read: past the page cache where the system lets us, through it elsewhere.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::ReaderChoice;
use crate::{Error, Result};

/// An open file and the way it is read.
#[derive(Debug)]
pub(crate) struct Source {
    /// One handle per thread where a handle serves one read at a time (Windows), else one for all.
    handles: Vec<File>,
    /// Offsets, lengths and memory must be whole blocks.
    pub(crate) direct: bool,
}

impl Source {
    /// The handle of a thread.
    pub(crate) fn handle(&self, thread: usize) -> &File {
        &self.handles[thread % self.handles.len()]
    }
}

/// Opens every file for `threads` threads; beside them, how they are read, for people.
///
/// Errors: [`Error::Open`], or [`Error::DirectRefused`] when direct reads were asked for by name.
pub(crate) fn open_all(
    files: &[PathBuf],
    choice: ReaderChoice,
    threads: usize,
) -> Result<(Vec<Source>, String)> {
    let mut refused: Option<(&Path, io::Error)> = None;
    let mut sources = Vec::with_capacity(files.len());
    for path in files {
        let (source, refusal) = open(path, choice, threads)?;
        sources.push(source);
        if refused.is_none() {
            refused = refusal.map(|error| (path.as_path(), error));
        }
    }
    let how = match (&refused, choice) {
        (Some((path, error)), _) => {
            let direct = sources.iter().filter(|source| source.direct).count();
            let total = sources.len();
            format!("direct for {direct} of {total} files (refused for {}: {error})", path.display())
        }
        (None, ReaderChoice::Buffered) => "buffered".to_string(),
        (None, _) => DIRECT_NAME.to_string(),
    };
    Ok((sources, how))
}

/// Opens one file as `choice` says; beside it, why it is not read directly although it could have been.
fn open(path: &Path, choice: ReaderChoice, threads: usize) -> Result<(Source, Option<io::Error>)> {
    let opened = |open: &dyn Fn(&Path) -> io::Result<File>, direct| {
        let handles = if cfg!(windows) { threads.max(1) } else { 1 };
        let handles = (0..handles).map(|_| open(path)).collect::<io::Result<Vec<File>>>()?;
        Ok(Source { handles, direct })
    };
    let buffered = || {
        opened(&|path: &Path| File::open(path), false)
            .map_err(|source| Error::Open { path: path.into(), source })
    };
    if choice == ReaderChoice::Buffered {
        return Ok((buffered()?, None));
    }
    match opened(&open_direct, true) {
        Ok(source) => Ok((source, None)),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.kind() == io::ErrorKind::PermissionDenied =>
        {
            Err(Error::Open { path: path.into(), source: error })
        }
        Err(source) if choice == ReaderChoice::Direct => {
            Err(Error::DirectRefused { path: path.into(), source })
        }
        Err(refusal) => Ok((buffered()?, Some(refusal))),
    }
}

#[cfg(unix)]
pub(crate) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, bytes, offset)
}

#[cfg(windows)]
pub(crate) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, bytes, offset)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
const DIRECT_NAME: &str = "direct (O_DIRECT)";
#[cfg(target_vendor = "apple")]
const DIRECT_NAME: &str = "uncached (F_NOCACHE)";
#[cfg(windows)]
const DIRECT_NAME: &str = "direct (FILE_FLAG_NO_BUFFERING)";
#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple", windows)))]
const DIRECT_NAME: &str = "buffered";

/// Some filesystems refuse the flag and some refuse only the reads, so one block is read to see.
#[cfg(any(target_os = "linux", target_os = "android", windows))]
fn open_direct(path: &Path) -> io::Result<File> {
    #[cfg(unix)]
    use std::os::unix::fs::OpenOptionsExt;
    #[cfg(windows)]
    use std::os::windows::fs::OpenOptionsExt;

    use crate::ALIGNMENT;

    #[cfg(unix)]
    let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
    #[cfg(windows)]
    let flags = 0x2000_0000; // FILE_FLAG_NO_BUFFERING

    #[repr(align(4096))]
    struct Block([u8; ALIGNMENT as usize]);
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut block = Box::new(Block([0; ALIGNMENT as usize]));
    loop {
        match read_at(&file, &mut block.0, 0) {
            Ok(_) => return Ok(file),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// F_NOCACHE asks for no alignment; aligned reads still go straight into their destination.
#[cfg(target_vendor = "apple")]
fn open_direct(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    rustix::fs::fcntl_nocache(&file, true)?;
    Ok(file)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple", windows)))]
fn open_direct(path: &Path) -> io::Result<File> {
    let _ = path;
    Err(io::Error::new(io::ErrorKind::Unsupported, "no direct reads on this system"))
}
