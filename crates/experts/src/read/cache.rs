//! What the page cache holds of a file. A probe that reads from it measures memory and calls it a drive.

use std::fs::File;
use std::path::PathBuf;

use files::FileIndex;

use crate::{ALIGNMENT, Error, Result};

/// Answers for the files of a checkpoint, where the system can tell.
#[derive(Debug)]
pub struct PageCache {
    files: Vec<File>,
}

/// Spots of an extent that are looked at. Looking at a page that is not there makes Linux fetch it, so they are few.
const SPOTS: u64 = 4;

impl PageCache {
    /// Opens every file once more, for questions only. Errors: [`Error::Open`].
    pub fn open(files: &[PathBuf]) -> Result<PageCache> {
        let open = |path: &PathBuf| {
            let file = File::open(path).map_err(|source| Error::Open { path: path.clone(), source })?;
            without_readahead(&file);
            Ok(file)
        };
        Ok(PageCache { files: files.iter().map(open).collect::<Result<_>>()? })
    }

    /// Whether some of `len` bytes at `offset` lie in the page cache; none where the system does not tell.
    pub fn holds(&self, file: FileIndex, offset: u64, len: u64) -> Option<bool> {
        let file = &self.files[file.index()];
        let step = (len / SPOTS).max(ALIGNMENT);
        let mut spots = (0..SPOTS).map(|i| offset + i * step).take_while(|at| *at < offset + len);
        spots.try_fold(false, |any, at| Some(any | is_resident(file, at)?))
    }

    /// Lets the system forget clean pages of `len` bytes at `offset`: for what a probe itself has brought in.
    pub fn forget(&self, file: FileIndex, offset: u64, len: u64) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            use rustix::fs::{Advice, fadvise};
            // Advice: where it is not taken the pages stay, and `holds` says so.
            let _ =
                fadvise(&self.files[file.index()], offset, std::num::NonZeroU64::new(len), Advice::DontNeed);
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let _ = (file, offset, len);
    }
}

/// Looking at one page shall not fetch its neighbours.
fn without_readahead(file: &File) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Random);
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = file;
}

/// A read that would have to wait for the drive comes back empty-handed.
#[cfg(target_os = "linux")]
fn is_resident(file: &File, offset: u64) -> Option<bool> {
    use rustix::io::{Errno, ReadWriteFlags, preadv2};
    let mut byte = [0u8];
    let mut buffers = [std::io::IoSliceMut::new(&mut byte)];
    match preadv2(file, &mut buffers, offset, ReadWriteFlags::NOWAIT) {
        Ok(n) => Some(n > 0),
        Err(Errno::AGAIN) => Some(false),
        // Filesystems that do not know the flag.
        Err(_) => None,
    }
}

#[cfg(not(target_os = "linux"))]
fn is_resident(file: &File, offset: u64) -> Option<bool> {
    let _ = (file, offset);
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Freshly written bytes are in the cache; those that were synced and forgotten are not, and one look at them says so.
    #[cfg(target_os = "linux")]
    #[test]
    fn written_bytes_are_held_until_they_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
        let cache = PageCache::open(std::slice::from_ref(&path)).unwrap();
        let Some(held) = cache.holds(FileIndex(0), 0, 1 << 20) else { return };
        assert!(held);
        File::open(&path).unwrap().sync_all().unwrap();
        cache.forget(FileIndex(0), 0, 1 << 20);
        // A filesystem that lives in memory forgets nothing, and then there is nothing to compare.
        let on_a_drive = cache.holds(FileIndex(0), 64 << 10, 64 << 10) == Some(false);
        if on_a_drive {
            assert_eq!(std::fs::read(&path).unwrap().len(), 1 << 20);
            assert_eq!(cache.holds(FileIndex(0), 512 << 10, 64 << 10), Some(true));
        }
    }
}
