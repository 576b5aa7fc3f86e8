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
pub mod paced;
pub mod pread;
pub mod probe;
mod progress;
pub mod sim;
mod source;
pub mod spread;
#[cfg(target_os = "linux")]
pub mod uring;

use std::io;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use files::FileIndex;

use crate::{ALIGNMENT, Result};

/// What reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReaderKind {
    /// The pool; whoever opens a reader for many reads asks [`probe::probe_reader`] first. [`Reader::describe`] says what it is.
    #[default]
    Auto,
    /// A pool of threads; everywhere.
    Pread,
    /// io_uring, or an error; on Linux.
    Uring,
    /// The simulated drive over the real files: delays and reordering that take no time. For tests.
    Sim,
}

/// Whether reads go past the page cache.
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

/// The two choices from one word: `uring`, `direct`, `pread-buffered`, …
pub fn parse_reader(text: &str) -> Result<(ReaderKind, ReaderChoice)> {
    let kind = |word| match word {
        "auto" => Some(ReaderKind::Auto),
        "pread" => Some(ReaderKind::Pread),
        "uring" => Some(ReaderKind::Uring),
        "sim" => Some(ReaderKind::Sim),
        _ => None,
    };
    let choice = |word| match word {
        "direct" => Some(ReaderChoice::Direct),
        "buffered" => Some(ReaderChoice::Buffered),
        _ => None,
    };
    let parsed = match text.split_once('-') {
        None => kind(text)
            .map(|kind| (kind, ReaderChoice::Auto))
            .or_else(|| choice(text).map(|choice| (ReaderKind::Auto, choice))),
        // The simulated drive has no page cache to go past.
        Some((first, last)) => {
            kind(first).filter(|&kind| kind != ReaderKind::Sim).and_then(|kind| Some((kind, choice(last)?)))
        }
    };
    parsed.ok_or_else(|| {
        crate::Error::Usage(format!(
            "reader {text:?} is none of: auto, direct, buffered, pread, uring, either of the last two with -direct or \
             -buffered, sim"
        ))
    })
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
    /// The file, where it is not the one that the reader was asked for by its index: another copy of it.
    pub path: Option<PathBuf>,
}

impl ReadFailure {
    /// A failure of the file that was asked for.
    pub fn new(offset: u64, source: io::Error) -> Self {
        ReadFailure { offset, source, path: None }
    }
}

/// From when until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// Its beginning.
    pub from: Instant,
    /// Its end, not before that.
    pub to: Instant,
}

impl Interval {
    /// From `from` until now.
    pub fn since(from: Instant) -> Self {
        Interval { from, to: Instant::now() }
    }

    /// From the earlier beginning until the later end of the two.
    pub fn hull(self, other: Interval) -> Self {
        Interval { from: self.from.min(other.from), to: self.to.max(other.to) }
    }
}

/// A read that is over.
#[derive(Debug)]
pub struct Completion {
    /// The ticket of the read.
    pub ticket: Ticket,
    /// When the drive had it: from the start of its first system call to the end of its last one, without the time that it waited in
    /// a queue of ours. A reader that does not see these moments says so where it is described; then it is an upper bound.
    pub at_drive: Interval,
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

    /// Tells which memory most windows will lie in; in place of what was told before. A reader that can prepare
    /// memory (pin it once, not for each read) does; windows elsewhere work all the same.
    ///
    /// # Safety
    /// Until the next call, or until the reader is dropped, each region (first byte, bytes) stays mapped to the very
    /// pages it has now. Whoever gives pages of a region back to the system calls this first, without them.
    unsafe fn register(&mut self, regions: &[(NonNull<u8>, usize)]) {
        let _ = regions;
    }

    /// What went wrong without stopping anything, once each: a sentence for people.
    fn take_warning(&mut self) -> Option<String> {
        None
    }
}

/// How to open a reader.
#[derive(Debug, Clone)]
pub struct Options {
    /// What reads.
    pub kind: ReaderKind,
    /// Whether reads go past the page cache.
    pub choice: ReaderChoice,
    /// Reads in flight that one drive needs to be busy, at least 1: the threads of a pool.
    pub depth: usize,
    /// Pieces that a read may be cut into while fewer than `depth` are outstanding; 1 never cuts, none is the default.
    pub split: Option<u32>,
    /// Cut each read into one piece per copy.
    pub stripe: bool,
    /// Behave as a drive no faster than this, for measurements.
    pub pace: Option<paced::Pace>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            kind: ReaderKind::Auto,
            choice: ReaderChoice::Auto,
            depth: 8,
            split: None,
            stripe: false,
            pace: None,
        }
    }
}

/// Pieces that a read is cut into at most unless asked otherwise.
const SPLIT_DEFAULT: u32 = 1;

/// Opens what `options` ask for, over `files` and, if there are any, further copies of them on other drives: the
/// same files in the same order.
pub fn open(files: &[PathBuf], copies: &[Vec<PathBuf>], options: &Options) -> Result<Box<dyn Reader>> {
    let reader = open_all(files, copies, options)?;
    Ok(match options.pace {
        Some(pace) => Box::new(paced::PacedReader::new(reader, pace)),
        None => reader,
    })
}

fn open_all(files: &[PathBuf], copies: &[Vec<PathBuf>], options: &Options) -> Result<Box<dyn Reader>> {
    let ways = options.split.unwrap_or(SPLIT_DEFAULT).max(1);
    if copies.is_empty() && ways == 1 {
        return open_one(files, options);
    }
    let drive =
        |files: &[PathBuf]| Ok(spread::Drive { reader: open_one(files, options)?, files: files.to_vec() });
    let drives = std::iter::once(files).chain(copies.iter().map(Vec::as_slice)).map(drive);
    let spread = spread::Options { ways, depth: options.depth, stripe: options.stripe, ..Default::default() };
    Ok(Box::new(spread::SpreadReader::new(drives.collect::<Result<_>>()?, &spread)))
}

/// The reader of one drive.
fn open_one(files: &[PathBuf], options: &Options) -> Result<Box<dyn Reader>> {
    let choice = options.choice;
    match options.kind {
        ReaderKind::Auto | ReaderKind::Pread => {
            let options = pread::Options { choice, threads: options.depth, ..Default::default() };
            Ok(Box::new(pread::PreadReader::open(files, &options)?))
        }
        ReaderKind::Uring => open_uring(files, options),
        ReaderKind::Sim => Ok(Box::new(sim::SimReader::open(files, sim::Options::rough(1))?)),
    }
}

#[cfg(target_os = "linux")]
fn open_uring(files: &[PathBuf], options: &Options) -> Result<Box<dyn Reader>> {
    let (choice, speculative_max) = (options.choice, options.depth);
    let options = uring::Options { choice, speculative_max, ..Default::default() };
    Ok(Box::new(uring::UringReader::open(files, &options)?))
}

#[cfg(not(target_os = "linux"))]
fn open_uring(_: &[PathBuf], _: &Options) -> Result<Box<dyn Reader>> {
    Err(crate::Error::UringRefused { source: io::ErrorKind::Unsupported.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_says_what_reads_and_how() {
        use {ReaderChoice as How, ReaderKind as What};
        for (text, expected) in [
            ("auto", (What::Auto, How::Auto)),
            ("direct", (What::Auto, How::Direct)),
            ("buffered", (What::Auto, How::Buffered)),
            ("pread", (What::Pread, How::Auto)),
            ("uring-buffered", (What::Uring, How::Buffered)),
            ("pread-direct", (What::Pread, How::Direct)),
            ("sim", (What::Sim, How::Auto)),
        ] {
            assert_eq!(parse_reader(text).unwrap(), expected, "{text}");
        }
        for text in ["", "Uring", "direct-uring", "sim-direct", "uring-auto", "pread-", "pread-direct-"] {
            assert!(parse_reader(text).is_err(), "{text}");
        }
    }
}
