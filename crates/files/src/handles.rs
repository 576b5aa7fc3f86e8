//! Positioned reads from many files with few open at a time.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::{Error, Extent, FileIndex};

/// Enough for the parts of one layer; far below any limit on open files.
const OPEN_MAX: usize = 16;
/// Bytes per read: long enough for full disk speed, short enough to stay in a cache.
pub(crate) const CHUNK_BYTES: usize = 4 << 20;

/// Files of a checkpoint, opened when first read.
pub(crate) struct Handles<'a> {
    paths: &'a [PathBuf],
    open: Vec<(FileIndex, File)>,
}

impl<'a> Handles<'a> {
    pub(crate) fn new(paths: &'a [PathBuf]) -> Self {
        Self { paths, open: Vec::new() }
    }

    /// A file's path.
    pub(crate) fn path(&self, file: FileIndex) -> &Path {
        &self.paths[file.index()]
    }

    /// Fills `buf` from `offset`.
    pub(crate) fn read_at(&mut self, file: FileIndex, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let path = &self.paths[file.index()];
        let at = match self.open.iter().position(|(open, _)| *open == file) {
            Some(at) => at,
            None => {
                if self.open.len() == OPEN_MAX {
                    self.open.remove(0);
                }
                self.open.push((file, File::open(path).map_err(|e| Error::io(path, e))?));
                self.open.len() - 1
            }
        };
        let handle = &mut self.open[at].1;
        let result = handle.seek(SeekFrom::Start(offset)).and_then(|_| handle.read_exact(buf));
        result.map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Error::Truncated {
                path: path.clone(),
                what: "a tensor".into(),
                needs: offset + buf.len() as u64,
                has: handle.metadata().map_or(0, |stat| stat.len()),
            },
            _ => Error::io(path, e),
        })
    }

    /// Hands `extent` to `each` piece by piece, with the offset of the piece inside the extent.
    pub(crate) fn read_chunks(
        &mut self,
        extent: &Extent,
        buf: &mut Vec<u8>,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut done = 0;
        while done < extent.len {
            let n = usize::try_from(extent.len - done).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            buf.resize(n, 0);
            self.read_at(extent.file, extent.offset + done, buf)?;
            each(done, buf)?;
            done += n as u64;
        }
        Ok(())
    }
}
