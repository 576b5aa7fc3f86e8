//! How far a read has come: what to ask the system for next, and what its answer means.
//!
//! Shared by every reader, so that all of them agree on short reads, interruptions and the end of a file.

use std::io;
use std::ops::Range;

use super::Read;
use crate::ALIGNMENT;

/// A read under way, in indices into its window.
///
/// A system call starts at a multiple of `block` and asks for everything up to `end`. Since a file need not end on
/// a block, a short read is fine once the wanted bytes are covered. Otherwise the rest is asked for again from the
/// last whole block; when that brings nothing new the file has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    filled: usize,
    wanted: usize,
    end: usize,
    block: usize,
}

impl Progress {
    /// Nothing is there yet. A direct read is widened to whole blocks at both ends.
    pub(crate) fn new(read: &Read, direct: bool) -> Self {
        let delta = read.delta() as usize;
        let wanted = delta + read.len as usize;
        let block = ALIGNMENT as usize;
        match direct {
            true => Progress { filled: 0, wanted, end: wanted.next_multiple_of(block), block },
            false => Progress { filled: delta, wanted, end: wanted, block: 1 },
        }
    }

    /// The bytes of the window to ask for now.
    pub(crate) fn next(&self) -> Range<usize> {
        self.filled - self.filled % self.block..self.end
    }

    /// Books what a system call for [`Progress::next`] (or a beginning of it) brought. True: the wanted bytes are
    /// there. False: ask again. An error carries the index at which the read stands.
    pub(crate) fn advance(&mut self, result: io::Result<usize>) -> Result<bool, (usize, io::Error)> {
        match result {
            Ok(n) if self.next().start + n > self.filled => {
                self.filled = self.next().start + n;
                Ok(self.filled >= self.wanted)
            }
            Ok(_) => Err((self.filled, io::ErrorKind::UnexpectedEof.into())),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err((self.filled, error)),
        }
    }

    /// Runs to the end by calls of `read_at(bytes, index of the first byte)`.
    pub(crate) fn run(
        mut self,
        window: &mut [u8],
        mut read_at: impl FnMut(&mut [u8], usize) -> io::Result<usize>,
    ) -> Result<(), (usize, io::Error)> {
        loop {
            let range = self.next();
            let start = range.start;
            if self.advance(read_at(&mut window[range], start))? {
                return Ok(());
            }
        }
    }
}
