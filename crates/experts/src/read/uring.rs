//! io_uring: one thread, many reads in flight, one system call per batch.
//!
//! The ring belongs to whoever calls. Demand is handed to the kernel at once, up to the depth of the ring;
//! speculative reads wait in a queue of ours, where they can be promoted and taken back, until there is no demand
//! and few reads are in flight. Files are registered once, and slot memory when we are told of it and the system
//! lets us pin it, so the kernel looks neither up again for each read. No thread of the kernel polls for us: the
//! cores are for computing. Nothing is allocated per read.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;

use super::progress::Progress;
use super::source::{Source, open_all};
use super::{Completion, Priority, Read, ReadFailure, Reader, ReaderChoice, Ticket};
use crate::{Error, Result};

/// How to read.
#[derive(Debug, Clone)]
pub struct Options {
    /// Direct or buffered.
    pub choice: ReaderChoice,
    /// Reads in the kernel at a time. Enough to keep a drive busy while a layer is computed and nobody asks, and no
    /// more: what is needed first shall not share the drive with what is needed last.
    pub depth: u32,
    /// A speculative read is given to the kernel only while fewer reads than this are in it.
    pub speculative_max: usize,
    /// Reads in flight or queued.
    pub capacity: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { choice: ReaderChoice::Auto, depth: 64, speculative_max: 8, capacity: 4096 }
    }
}

/// Bytes that one system call asks for at most, a multiple of any block: lengths in the ring have 32 bits.
const CALL_BYTES_MAX: usize = 1 << 30;
/// Bytes of one registered buffer at most, a limit of the kernel.
const BUFFER_BYTES_MAX: usize = 1 << 30;

/// The Linux reader.
pub struct UringReader {
    ring: IoUring,
    // Their descriptors are registered with the ring, in this order.
    sources: Vec<Source>,
    /// Registered memory by address; the index is the kernel's.
    buffers: Vec<(usize, usize)>,
    demand: VecDeque<Read>,
    speculative: VecDeque<Read>,
    /// Reads that the ring has; the index is the entry's user data.
    flying: Vec<Option<Flying>>,
    flying_free: Vec<u32>,
    completed: VecDeque<Completion>,
    /// Submitted, and not yet handed back or cancelled.
    outstanding: usize,
    capacity: usize,
    speculative_max: usize,
    how: String,
    memory: String,
}

#[derive(Debug, Clone, Copy)]
struct Flying {
    read: Read,
    progress: Progress,
}

impl std::fmt::Debug for UringReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UringReader")
            .field("outstanding", &self.outstanding)
            .field("how", &self.how)
            .finish_non_exhaustive()
    }
}

impl UringReader {
    /// Opens every file and sets up the ring.
    ///
    /// Errors: [`Error::UringRefused`] where the kernel is too old or forbids it; as the pread pool for the files.
    pub fn open(files: &[PathBuf], options: &Options) -> Result<Self> {
        let (sources, how) = open_all(files, options.choice, 1)?;
        let refused = |source| Error::UringRefused { source };
        let depth = options.depth.clamp(1, 4096).next_power_of_two();
        let ring = IoUring::new(depth).map_err(refused)?;
        // Waiting with a timeout came last of what is used here, with Linux 5.11.
        if !ring.params().is_feature_ext_arg() {
            return Err(refused(io::Error::new(io::ErrorKind::Unsupported, "the kernel is older than 5.11")));
        }
        let descriptors: Vec<i32> = sources.iter().map(|source| source.handle(0).as_raw_fd()).collect();
        if !descriptors.is_empty() {
            ring.submitter().register_files(&descriptors).map_err(refused)?;
        }
        let capacity = options.capacity.max(depth as usize);
        Ok(UringReader {
            ring,
            sources,
            buffers: Vec::new(),
            demand: VecDeque::with_capacity(capacity),
            speculative: VecDeque::with_capacity(capacity),
            flying: vec![None; depth as usize],
            flying_free: (0..depth).rev().collect(),
            completed: VecDeque::with_capacity(capacity),
            outstanding: 0,
            capacity,
            speculative_max: options.speculative_max.clamp(1, depth as usize),
            how,
            memory: String::new(),
        })
    }

    fn in_flight(&self) -> usize {
        self.flying.len() - self.flying_free.len()
    }

    /// What the kernel gets next, if it may have more.
    fn next(&mut self) -> Option<Read> {
        if self.flying_free.is_empty() {
            return None;
        }
        let few = self.in_flight() < self.speculative_max;
        self.demand.pop_front().or_else(|| if few { self.speculative.pop_front() } else { None })
    }

    /// Gives the kernel what it may have, in one call.
    fn pump(&mut self) {
        while let Some(read) = self.next() {
            let index = self.flying_free.pop().expect("`next` saw a free place");
            let direct = self.sources[read.file.0 as usize].direct;
            self.flying[index as usize] = Some(Flying { read, progress: Progress::new(&read, direct) });
            self.push(index);
        }
        if !self.ring.submission().is_empty() {
            self.enter(0, None);
        }
    }

    /// Puts the next system call of a flying read into the submission queue.
    fn push(&mut self, index: u32) {
        let Flying { read, progress } = self.flying[index as usize].expect("a read is in flight there");
        let range = progress.next();
        let len = range.len().min(CALL_BYTES_MAX);
        // SAFETY: the range ends inside the window, by `assert_bounds`.
        let start = unsafe { read.window.add(range.start) };
        let offset = read.offset - read.delta() + range.start as u64;
        let file = types::Fixed(read.file.0);
        let entry = match self.buffer_of(start, len) {
            Some(buffer) => {
                opcode::ReadFixed::new(file, start.as_ptr(), len as u32, buffer).offset(offset).build()
            }
            None => opcode::Read::new(file, start.as_ptr(), len as u32).offset(offset).build(),
        };
        self.queue(entry.user_data(u64::from(index)));
    }

    fn queue(&mut self, entry: squeue::Entry) {
        // SAFETY: the files stay open as long as the ring. The memory is part of a window that `submit` promised to
        // be ours until the completion, which is filed only after the kernel's, and drop waits for the kernel.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the submission queue has a place for each place in `flying`");
    }

    /// The registered buffer that holds all of these bytes.
    fn buffer_of(&self, start: NonNull<u8>, len: usize) -> Option<u16> {
        let start = start.as_ptr() as usize;
        let after = self.buffers.partition_point(|&(first, _)| first <= start);
        let (first, bytes) = *self.buffers.get(after.checked_sub(1)?)?;
        (start - first + len <= bytes).then_some((after - 1) as u16)
    }

    /// Submits whatever is in the submission queue and waits for `want` completions or the time.
    fn enter(&self, want: usize, timeout: Option<Duration>) {
        self.try_enter(want, timeout).unwrap_or_else(|error| panic!("io_uring_enter: {error}"));
    }

    /// An error is none that can be waited out.
    fn try_enter(&self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        let submitter = self.ring.submitter();
        let entered = match timeout {
            None => submitter.submit_and_wait(want),
            Some(timeout) => {
                let timeout = types::Timespec::from(timeout);
                submitter.submit_with_args(want, &types::SubmitArgs::new().timespec(&timeout))
            }
        };
        let Err(error) = entered else { return Ok(()) };
        match Errno::from_io_error(&error) {
            Some(Errno::INTR | Errno::TIME) => Ok(()),
            // The system is short of something; what is in flight gives some of it back.
            Some(Errno::AGAIN | Errno::BUSY | Errno::NOMEM) => {
                std::thread::sleep(Duration::from_micros(200));
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Books what the kernel has finished. A read that fell short goes on.
    fn reap(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else { return };
            let index = entry.user_data() as usize;
            let Flying { read, mut progress } = self.flying[index].expect("a completion of a read in flight");
            let result = match usize::try_from(entry.result()) {
                Ok(bytes) => Ok(bytes),
                Err(_) => match Errno::from_raw_os_error(-entry.result()) {
                    // Cancelled: the thread that submitted it has ended, and with it what it had in flight.
                    Errno::INTR | Errno::AGAIN | Errno::CANCELED => Err(io::ErrorKind::Interrupted.into()),
                    errno => Err(errno.into()),
                },
            };
            let result = match progress.advance(result) {
                Ok(false) => {
                    self.flying[index] = Some(Flying { read, progress });
                    self.push(index as u32);
                    continue;
                }
                Ok(true) => Ok(()),
                Err((at, error)) => Err(ReadFailure::new(read.offset - read.delta() + at as u64, error)),
            };
            self.flying[index] = None;
            self.flying_free.push(index as u32);
            self.completed.push_back(Completion { ticket: read.ticket, result });
        }
    }
}

// SAFETY: a window is written by the kernel alone, from the moment its read is pushed until the kernel's completion of
// the last call for it has been seen, in `window + range` of its progress, which `assert_bounds` put inside the span.
// A cancelled read was still in a queue of ours. A completion without an error comes from a `Progress` that says all
// wanted bytes are there; with registered memory those are the window's bytes by `register`'s contract. Drop waits
// until the kernel has none of them.
unsafe impl Reader for UringReader {
    unsafe fn submit(&mut self, reads: &[Read]) {
        for read in reads {
            read.assert_bounds();
            assert!((read.file.0 as usize) < self.sources.len(), "no such file: {read:?}");
        }
        assert!(self.outstanding + reads.len() <= self.capacity, "more reads than the queue holds");
        self.outstanding += reads.len();
        for read in reads {
            match read.priority {
                Priority::Demand => self.demand.push_back(*read),
                Priority::Speculative => self.speculative.push_back(*read),
            }
        }
        self.reap();
        self.pump();
    }

    fn promote(&mut self, ticket: Ticket) {
        if let Some(at) = self.speculative.iter().position(|read| read.ticket == ticket) {
            let read = self.speculative.remove(at);
            self.demand.extend(read.map(|read| Read { priority: Priority::Demand, ..read }));
            self.reap();
            self.pump();
        }
    }

    fn cancel(&mut self, ticket: Ticket) -> bool {
        for queue in [&mut self.speculative, &mut self.demand] {
            if let Some(at) = queue.iter().position(|read| read.ticket == ticket) {
                queue.remove(at);
                self.outstanding -= 1;
                return true;
            }
        }
        false
    }

    fn wait_any(&mut self, timeout: Option<Duration>) -> Option<Completion> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            self.reap();
            self.pump();
            if let Some(completion) = self.completed.pop_front() {
                self.outstanding -= 1;
                return Some(completion);
            }
            if self.outstanding == 0 || timeout == Some(Duration::ZERO) {
                return None;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return None;
            }
            self.enter(1, left);
        }
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn describe(&self) -> String {
        format!("io_uring, {} in flight, {}{}", self.flying.len(), self.how, self.memory)
    }

    unsafe fn register(&mut self, regions: &[(NonNull<u8>, usize)]) {
        /// A `struct iovec`.
        #[repr(C)]
        struct Vector(*mut u8, usize);

        // What is queued names buffers by their old numbers. What the kernel has keeps its pages.
        while !self.ring.submission().is_empty() {
            self.enter(0, None);
        }
        if !std::mem::take(&mut self.buffers).is_empty()
            && let Err(error) = self.ring.submitter().unregister_buffers()
        {
            panic!("io_uring: buffers cannot be given back: {error}");
        }
        self.memory.clear();
        let mut buffers: Vec<(usize, usize)> = Vec::new();
        for &(start, bytes) in regions {
            let pieces = (0..bytes).step_by(BUFFER_BYTES_MAX);
            buffers
                .extend(pieces.map(|at| (start.as_ptr() as usize + at, (bytes - at).min(BUFFER_BYTES_MAX))));
        }
        buffers.sort_unstable();
        if buffers.is_empty() {
            return;
        }
        let vectors: Vec<Vector> = buffers
            .iter()
            .map(|&(start, bytes)| Vector(std::ptr::with_exposed_provenance_mut(start), bytes))
            .collect();
        // SAFETY: `Vector` is laid out like the system's iovec, which the crate does not hand on by name; the list
        // lives through the call. That the memory stays what it is our caller promises.
        let registered = unsafe {
            let vectors = std::slice::from_raw_parts(vectors.as_ptr().cast(), vectors.len());
            self.ring.submitter().register_buffers(vectors)
        };
        match registered {
            Ok(()) => {
                self.buffers = buffers;
                self.memory = ", registered memory".into();
            }
            Err(error) => self.memory = format!(" (memory not registered: {error})"),
        }
    }
}

impl Drop for UringReader {
    fn drop(&mut self) {
        self.demand.clear();
        self.speculative.clear();
        // What is in the submission queue is not the kernel's yet, and goes with the ring.
        loop {
            self.reap();
            if self.in_flight() <= self.ring.submission().len() {
                return;
            }
            if self.try_enter(1, Some(Duration::from_millis(100))).is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
