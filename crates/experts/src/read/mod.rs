//! Bytes from files into slots.
//!
//! A [`Reader`] takes reads with a destination each and hands back completions in whatever order they finish.
//! It knows nothing of slots. Short reads and interruptions are its business and invisible outside; real
//! errors come out as errors.
//!
//! Every read names a *wanted* extent and a destination window. The window starts on an [`ALIGNMENT`]
//! boundary of memory and the wanted bytes land at `offset mod ALIGNMENT` in it, so a direct reader can widen
//! the read to whole blocks in place. Bytes of the window outside the wanted ones are scratch.

pub mod cache;
pub mod pread;
pub mod probe;
pub mod sim;

use std::io;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::time::Duration;

use files::FileIndex;

use crate::{ALIGNMENT, Result};

/// Which kind of reads to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReaderChoice {
    /// Direct where the filesystem takes it, buffered elsewhere; [`Reader::describe`] says which.
    #[default]
    Auto,
    /// Direct, or an error.
    Direct,
    /// Through the page cache.
    Buffered,
}

impl std::str::FromStr for ReaderChoice {
    type Err = crate::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(ReaderChoice::Auto),
            "direct" => Ok(ReaderChoice::Direct),
            "buffered" => Ok(ReaderChoice::Buffered),
            _ => Err(crate::Error::Usage(format!("reader {text:?} is none of: auto, direct, buffered"))),
        }
    }
}

/// Names one read between its submission and its completion. The submitter chooses it and must not use one
/// twice at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Demand goes before speculation, always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Somebody waits for it.
    Demand,
    /// Somebody may want it.
    Speculative,
}

/// Whose bytes a read brings; for error messages and for the simulated reader's faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Block index.
    pub layer: u32,
    /// Expert id.
    pub expert: u32,
    /// Index of the read among the reads of that expert.
    pub part: u32,
}

/// One read.
#[derive(Debug, Clone, Copy)]
pub struct Read {
    /// Comes back with the completion.
    pub ticket: Ticket,
    /// Index into the files that the reader was opened with.
    pub file: FileIndex,
    /// First wanted byte, from the start of the file.
    pub offset: u64,
    /// Wanted bytes, at least one.
    pub len: u64,
    /// Start of the window in memory, aligned to [`ALIGNMENT`].
    pub window: NonNull<u8>,
    /// Bytes of the window, a multiple of [`ALIGNMENT`].
    pub span: u64,
    /// Queue that it waits in.
    pub priority: Priority,
    /// Whose bytes they are.
    pub origin: Origin,
}

// SAFETY: the window is memory that `Reader::submit`'s contract hands to the reader, whatever thread it reads
// from.
unsafe impl Send for Read {}
// SAFETY: a shared `Read` gives no access to the window; only a reader writes through it, under the contract
// of `submit`.
unsafe impl Sync for Read {}

impl Read {
    /// Where the first wanted byte lands in the window.
    pub fn delta(&self) -> u64 {
        self.offset % ALIGNMENT
    }

    /// Panics unless the wanted bytes, widened to whole blocks, lie inside the window. Every reader calls it
    /// before it accepts a read.
    pub fn assert_bounds(&self) {
        let end = self.delta().checked_add(self.len).and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
        assert!(self.len > 0, "read of nothing: {self:?}");
        assert!(end.is_some_and(|end| end <= self.span), "read beyond its window: {self:?}");
        assert!((self.window.as_ptr() as u64).is_multiple_of(ALIGNMENT), "window not aligned: {self:?}");
    }
}

/// How a read failed.
#[derive(Debug)]
pub struct ReadFailure {
    /// Where it stood in the file.
    pub offset: u64,
    /// What the system said.
    pub source: io::Error,
}

/// A read that is over.
#[derive(Debug)]
pub struct Completion {
    /// The ticket of the read.
    pub ticket: Ticket,
    /// All wanted bytes are in place, or they are not.
    pub result: Result<(), ReadFailure>,
}

/// A queue of reads.
///
/// # Safety
/// An implementation touches the window of a read only between its `submit` and the moment its completion is
/// handed out, its `cancel` answers true, or the reader is dropped (so dropping waits for whatever still
/// writes), and stays inside it. A completion without an error means that the wanted bytes are those of the
/// file.
pub unsafe trait Reader: Send + Sync {
    /// Takes all of `reads`, to be started in this order as far as their priorities allow. Never blocks on
    /// I/O.
    ///
    /// # Safety
    /// Each window is valid for writes of `span` initialised bytes from any thread, overlaps no other
    /// outstanding window, and nobody else reads or writes it until the read is over.
    ///
    /// # Panics
    /// When a window is too small for its read, or more than [`Reader::capacity`] reads would be outstanding.
    unsafe fn submit(&mut self, reads: &[Read]);

    /// Moves a speculative read that has not started to the end of the demand queue.
    fn promote(&mut self, ticket: Ticket);

    /// Takes back a read that has not started. True: it is gone and no completion will come. False: it will
    /// complete.
    fn cancel(&mut self, ticket: Ticket) -> bool;

    /// The next completion. Waits for one at most `timeout` (zero only looks, none waits as long as it
    /// takes). None when the time is up or nothing is outstanding.
    fn wait_any(&mut self, timeout: Option<Duration>) -> Option<Completion>;

    /// Reads that may be outstanding at a time.
    fn capacity(&self) -> usize;

    /// One line for people: what reads, how, with how many threads, and why not otherwise.
    fn describe(&self) -> String;
}

/// Opens the reader that this machine should use by default.
pub fn open(files: &[PathBuf], choice: ReaderChoice) -> Result<Box<dyn Reader>> {
    let options = pread::Options { choice, ..pread::Options::default() };
    Ok(Box::new(pread::PreadReader::open(files, &options)?))
}
