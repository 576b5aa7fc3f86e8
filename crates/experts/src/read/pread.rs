//! A pool of threads that call `pread`, each on one read at a time.
//!
//! Direct by default: a drive saturates at 4 to 8 outstanding reads of a few MB, and going around the page
//! cache saves the copy and the memory. Queues are rings of fixed size behind one mutex; a read takes a few
//! milliseconds, so the lock is never the cost. Nothing is allocated per read.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Completion, Priority, Read, ReadFailure, Reader, ReaderChoice, Ticket};
use crate::{ALIGNMENT, Error, Result};

/// How to read.
#[derive(Debug, Clone)]
pub struct Options {
    /// Direct or buffered.
    pub choice: ReaderChoice,
    /// Reads in flight at the drive.
    pub threads: usize,
    /// Reads in flight or queued.
    pub capacity: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { choice: ReaderChoice::Auto, threads: 8, capacity: 4096 }
    }
}

/// The portable reader.
#[derive(Debug)]
pub struct PreadReader {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    capacity: usize,
    description: String,
}

#[derive(Debug)]
struct Shared {
    files: Vec<Source>,
    queues: Mutex<Queues>,
    work: Condvar,
    done: Condvar,
}

#[derive(Debug)]
struct Queues {
    demand: VecDeque<Read>,
    speculative: VecDeque<Read>,
    completed: VecDeque<Completion>,
    /// Demanded reads that a worker has.
    demanded: usize,
    /// Submitted, and not yet handed back or cancelled.
    outstanding: usize,
    closing: bool,
}

/// An open file and the way it is read.
#[derive(Debug)]
struct Source {
    file: File,
    /// Offsets, lengths and memory must be whole blocks.
    direct: bool,
}

impl PreadReader {
    /// Opens every file and starts the threads.
    ///
    /// Errors: [`Error::Open`], or [`Error::DirectRefused`] when direct reads were asked for by name.
    pub fn open(files: &[PathBuf], options: &Options) -> Result<Self> {
        let mut refused: Option<(&Path, io::Error)> = None;
        let mut sources = Vec::with_capacity(files.len());
        for path in files {
            let (source, refusal) = open_source(path, options.choice)?;
            sources.push(source);
            if refused.is_none() {
                refused = refusal.map(|error| (path.as_path(), error));
            }
        }
        let threads = options.threads.max(1);
        let how = match (&refused, options.choice) {
            (Some((path, error)), _) => {
                let direct = sources.iter().filter(|source| source.direct).count();
                let total = sources.len();
                format!("direct for {direct} of {total} files (refused for {}: {error})", path.display())
            }
            (None, ReaderChoice::Buffered) => "buffered".to_string(),
            (None, _) => DIRECT_NAME.to_string(),
        };
        let capacity = options.capacity.max(threads);
        let queues = Queues {
            demand: VecDeque::with_capacity(capacity),
            speculative: VecDeque::with_capacity(capacity),
            completed: VecDeque::with_capacity(capacity),
            demanded: 0,
            outstanding: 0,
            closing: false,
        };
        let shared =
            Shared { files: sources, queues: Mutex::new(queues), work: Condvar::new(), done: Condvar::new() };
        let mut reader = PreadReader {
            shared: Arc::new(shared),
            workers: Vec::with_capacity(threads),
            capacity,
            description: format!("pread, {threads} threads, {how}"),
        };
        for i in 0..threads {
            let shared = Arc::clone(&reader.shared);
            let worker = std::thread::Builder::new().name(format!("read-{i}")).spawn(move || shared.work());
            // Dropping `reader` on the way out ends the threads that did start.
            reader
                .workers
                .push(worker.map_err(|source| Error::Open { path: "reader thread".into(), source })?);
        }
        Ok(reader)
    }
}

// SAFETY: a window is written by the one worker that took its read out of a queue, before that worker files
// the completion, inside `window..window + span` (`Source::read` slices nothing else). A cancelled read was
// still in a queue, so no worker has it. Drop joins all workers.
unsafe impl Reader for PreadReader {
    unsafe fn submit(&mut self, reads: &[Read]) {
        for read in reads {
            read.assert_bounds();
            assert!((read.file.0 as usize) < self.shared.files.len(), "no such file: {read:?}");
        }
        let mut queues = self.shared.lock();
        queues.outstanding += reads.len();
        assert!(queues.outstanding <= self.capacity, "more reads than the queue holds");
        for read in reads {
            match read.priority {
                Priority::Demand => queues.demand.push_back(*read),
                Priority::Speculative => queues.speculative.push_back(*read),
            }
        }
        drop(queues);
        for _ in 0..reads.len().min(self.workers.len()) {
            self.shared.work.notify_one();
        }
    }

    fn promote(&mut self, ticket: Ticket) {
        let mut queues = self.shared.lock();
        if let Some(at) = queues.speculative.iter().position(|read| read.ticket == ticket) {
            let read = queues.speculative.remove(at);
            queues.demand.extend(read.map(|read| Read { priority: Priority::Demand, ..read }));
        }
    }

    fn cancel(&mut self, ticket: Ticket) -> bool {
        let mut queues = self.shared.lock();
        let queues = &mut *queues;
        for queue in [&mut queues.speculative, &mut queues.demand] {
            if let Some(at) = queue.iter().position(|read| read.ticket == ticket) {
                queue.remove(at);
                queues.outstanding -= 1;
                return true;
            }
        }
        false
    }

    fn wait_any(&mut self, timeout: Option<Duration>) -> Option<Completion> {
        let mut queues = self.shared.lock();
        let deadline = match timeout {
            Some(timeout) if !timeout.is_zero() => Instant::now().checked_add(timeout),
            _ => None,
        };
        loop {
            if let Some(completion) = queues.completed.pop_front() {
                queues.outstanding -= 1;
                return Some(completion);
            }
            if queues.outstanding == 0 || timeout == Some(Duration::ZERO) {
                return None;
            }
            let Some(deadline) = deadline else {
                queues = self.shared.done.wait(queues).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            queues = self.shared.done.wait_timeout(queues, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn describe(&self) -> String {
        self.description.clone()
    }
}

impl Drop for PreadReader {
    fn drop(&mut self) {
        let mut queues = self.shared.lock();
        queues.closing = true;
        queues.demand.clear();
        queues.speculative.clear();
        drop(queues);
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            // A worker that panicked has stopped writing too, which is all that matters here.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// No code panics while it holds the lock with the queues half changed, so a poisoned lock is as good as
    /// any.
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut queues = self.lock();
        loop {
            let Some(read) = queues.next() else {
                if queues.closing {
                    return;
                }
                queues = self.work.wait(queues).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(queues);
            let result = self.files[read.file.0 as usize].read(&read);
            queues = self.lock();
            queues.completed.push_back(Completion { ticket: read.ticket, result });
            self.done.notify_one();
            if read.priority == Priority::Demand {
                queues.demanded -= 1;
                if queues.demanded == 0 && queues.demand.is_empty() && !queues.speculative.is_empty() {
                    self.work.notify_all();
                }
            }
        }
    }
}

impl Queues {
    /// The read to begin with now. What nobody waits for yet must not slow down what somebody does: it waits until the drive has
    /// nothing else to do.
    fn next(&mut self) -> Option<Read> {
        if let Some(read) = self.demand.pop_front() {
            self.demanded += 1;
            return Some(read);
        }
        if self.demanded > 0 { None } else { self.speculative.pop_front() }
    }
}

impl Source {
    /// Reads the wanted bytes of `read` into their place, however many system calls that takes.
    fn read(&self, read: &Read) -> Result<(), ReadFailure> {
        // SAFETY: `submit` promised `span` initialised bytes that are ours until the completion.
        let window = unsafe { std::slice::from_raw_parts_mut(read.window.as_ptr(), read.span as usize) };
        let delta = read.delta() as usize;
        let (from, to) = if self.direct {
            (0, (delta + read.len as usize).next_multiple_of(ALIGNMENT as usize))
        } else {
            (delta, delta + read.len as usize)
        };
        let block = if self.direct { ALIGNMENT as usize } else { 1 };
        let base = read.offset - delta as u64;
        fill(&mut window[..to], from, delta + read.len as usize, block, |bytes, at| {
            read_at(&self.file, bytes, base + at as u64)
        })
        .map_err(|(at, source)| ReadFailure { offset: base + at as u64, source })
    }
}

/// Fills `window[from..wanted]` by calls of `read_at(bytes, index of the first byte)`, each of which may fall
/// short.
///
/// Reads start at multiples of `block` and ask for everything up to the end of the window. Since a file need
/// not end on a block, a short read is fine once the wanted bytes are covered. Otherwise the rest is asked
/// for again from the last whole block; when that brings nothing new the file has ended. The error carries
/// the index that it happened at.
pub(crate) fn fill(
    window: &mut [u8],
    from: usize,
    wanted: usize,
    block: usize,
    mut read_at: impl FnMut(&mut [u8], usize) -> io::Result<usize>,
) -> std::result::Result<(), (usize, io::Error)> {
    let mut filled = from;
    while filled < wanted {
        let at = filled - filled % block;
        match read_at(&mut window[at..], at) {
            Ok(n) if at + n > filled => filled = at + n,
            Ok(_) => return Err((filled, io::ErrorKind::UnexpectedEof.into())),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((filled, error)),
        }
    }
    Ok(())
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
#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
const DIRECT_NAME: &str = "buffered";

/// Opens one file as `choice` says; beside it, why it is not read directly although it could have been.
fn open_source(path: &Path, choice: ReaderChoice) -> Result<(Source, Option<io::Error>)> {
    let buffered = || {
        let file = File::open(path).map_err(|source| Error::Open { path: path.into(), source })?;
        Ok(Source { file, direct: false })
    };
    if choice == ReaderChoice::Buffered {
        return Ok((buffered()?, None));
    }
    match open_direct(path) {
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

/// O_DIRECT. Some filesystems refuse the flag and some refuse only the reads, so one block is read to see.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn open_direct(path: &Path) -> io::Result<Source> {
    use std::os::unix::fs::OpenOptionsExt;

    #[repr(align(4096))]
    struct Block([u8; ALIGNMENT as usize]);
    let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut block = Box::new(Block([0; ALIGNMENT as usize]));
    loop {
        match read_at(&file, &mut block.0, 0) {
            Ok(_) => return Ok(Source { file, direct: true }),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// F_NOCACHE asks for no alignment; aligned reads still go straight into their destination.
#[cfg(target_vendor = "apple")]
fn open_direct(path: &Path) -> io::Result<Source> {
    let file = File::open(path)?;
    rustix::fs::fcntl_nocache(&file, true)?;
    Ok(Source { file, direct: true })
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn open_direct(path: &Path) -> io::Result<Source> {
    let _ = path;
    Err(io::Error::new(io::ErrorKind::Unsupported, "no direct reads on this system"))
}
