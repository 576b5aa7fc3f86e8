//! A pool of threads that call `pread`, each on one read at a time.
//!
//! Direct by default: a drive saturates at 4 to 8 outstanding reads of a few MB, and going around the page
//! cache saves the copy and the memory. Queues are rings of fixed size behind one mutex; a read takes a few
//! milliseconds, so the lock is never the cost. Nothing is allocated per read.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::progress::Progress;
use super::source::{Source, open_all, read_at};
use super::{Completion, Interval, Priority, Read, ReadFailure, Reader, ReaderChoice, Ticket};
use crate::{Error, Result};

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

impl PreadReader {
    /// Opens every file and starts the threads.
    ///
    /// Errors: [`Error::Open`], or [`Error::DirectRefused`] when direct reads were asked for by name.
    pub fn open(files: &[PathBuf], options: &Options) -> Result<Self> {
        let threads = options.threads.max(1);
        let (sources, how) = open_all(files, options.choice, threads)?;
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
            let worker = std::thread::Builder::new().name(format!("read-{i}")).spawn(move || shared.work(i));
            // Dropping `reader` on the way out ends the threads that did start.
            reader
                .workers
                .push(worker.map_err(|source| Error::Open { path: "reader thread".into(), source })?);
        }
        Ok(reader)
    }
}

// SAFETY: a window is written by the one worker that took its read out of a queue, before that worker files
// the completion, inside `window..window + span` (`read_whole` slices nothing else). A cancelled read was
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

    fn work(&self, thread: usize) {
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
            let begun = Instant::now();
            let result = read_whole(&self.files[read.file.0 as usize], thread, &read);
            let at_drive = Interval::since(begun);
            queues = self.lock();
            queues.completed.push_back(Completion { ticket: read.ticket, at_drive, result });
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

/// Reads the wanted bytes of `read` into their place, however many system calls that takes.
fn read_whole(source: &Source, thread: usize, read: &Read) -> Result<(), ReadFailure> {
    // SAFETY: `submit` promised `span` initialised bytes that are ours until the completion.
    let window = unsafe { std::slice::from_raw_parts_mut(read.window.as_ptr(), read.span as usize) };
    let (file, base) = (source.handle(thread), read.offset - read.delta());
    Progress::new(read, source.direct)
        .run(window, |bytes, at| read_at(file, bytes, base + at as u64))
        .map_err(|(at, error)| ReadFailure::new(base + at as u64, error))
}
