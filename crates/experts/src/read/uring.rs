//! io_uring: one thread, many reads in flight, one system call per batch.
//!
//! The ring belongs to whoever calls. Demand is handed to the kernel at once, up to the depth of the ring;
//! speculative reads wait in a queue of ours, where they can be promoted and taken back, until there is no demand
//! and few reads are in flight. Files are registered once, and slot memory when we are told of it and the system
//! lets us pin it, so the kernel looks neither up again for each read. No thread of the kernel polls for us: the
//! cores are for computing. Nothing is allocated per read.
//!
//! When a read began and ended at the drive only the kernel knows. What a completion says of it is from when the kernel was given the
//! read until we saw its completion: an upper bound, by as long as nobody looked.
//!
//! A ring that the system no longer serves is broken for good: reads that the kernel does not have fail, now and from then on.
//! Those that it has are awaited where they appear, in shared memory, because until then it may write.

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
use super::{Completion, Interval, Priority, Read, ReadFailure, Reader, ReaderChoice, Ticket};
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
/// Registered buffers at most, a limit of kernels before 5.13.
const BUFFERS_MAX: usize = 1024;
/// How often a broken ring is looked at while somebody waits.
const BROKEN_TURN: Duration = Duration::from_micros(500);

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
    /// Those of them that are in the submission queue, in its order: the kernel takes them from the front.
    pushed: VecDeque<u32>,
    completed: VecDeque<Completion>,
    /// Submitted, and not yet handed back or cancelled.
    outstanding: usize,
    capacity: usize,
    speculative_max: usize,
    /// Why the system does not serve the ring any more.
    broken: Option<Errno>,
    warning: Option<String>,
    how: String,
    memory: String,
}

#[derive(Debug, Clone, Copy)]
struct Flying {
    read: Read,
    progress: Progress,
    /// When it was given to the kernel first.
    since: Instant,
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
            pushed: VecDeque::with_capacity(depth as usize),
            completed: VecDeque::with_capacity(capacity),
            outstanding: 0,
            capacity,
            speculative_max: options.speculative_max.clamp(1, depth as usize),
            broken: None,
            warning: None,
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
        if self.broken.is_some() {
            return self.fail_queued();
        }
        let since = Instant::now();
        while let Some(read) = self.next() {
            let index = self.flying_free.pop().expect("`next` saw a free place");
            let direct = self.sources[read.file.0 as usize].direct;
            self.flying[index as usize] =
                Some(Flying { read, progress: Progress::new(&read, direct), since });
            self.push(index);
        }
        if !self.ring.submission().is_empty() {
            self.enter(0, None);
        }
    }

    /// Puts the next system call of a flying read into the submission queue.
    fn push(&mut self, index: u32) {
        let Flying { read, progress, .. } = self.flying[index as usize].expect("a read is in flight there");
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
        self.pushed.push_back(index);
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

    /// Submits whatever is in the submission queue and waits for `want` completions or the time. A broken ring is looked at again
    /// after a moment.
    fn enter(&mut self, want: usize, timeout: Option<Duration>) {
        if self.broken.is_some() {
            return std::thread::sleep(timeout.map_or(BROKEN_TURN, |timeout| timeout.min(BROKEN_TURN)));
        }
        let entered = self.try_enter(want, timeout);
        let waiting = self.ring.submission().len();
        self.pushed.drain(..self.pushed.len() - waiting);
        if let Err(error) = entered {
            self.break_off(&error);
        }
    }

    /// The system does not serve the ring any more. What the kernel has not taken fails; it will never be asked again.
    fn break_off(&mut self, error: &io::Error) {
        let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
        if self.broken.replace(errno).is_none() {
            self.warning = Some(format!("io_uring broke: {errno}; experts cannot be read from now on"));
        }
        while let Some(index) = self.pushed.pop_front() {
            let flying = self.flying[index as usize].expect("a read is in flight there");
            let at = flying.progress.next().start as u64;
            let base = flying.read.offset - flying.read.delta();
            self.end(index, Err(ReadFailure::new(base + at, errno.into())));
        }
        self.fail_queued();
    }

    /// Reads that the kernel has never seen end with the ring's error.
    fn fail_queued(&mut self) {
        let Some(errno) = self.broken else { return };
        let at_drive = Interval::since(Instant::now());
        for queue in [&mut self.demand, &mut self.speculative] {
            for read in queue.drain(..) {
                let result = Err(ReadFailure::new(read.offset, errno.into()));
                self.completed.push_back(Completion { ticket: read.ticket, at_drive, result });
            }
        }
    }

    /// A read is over and its place in flight is free.
    fn end(&mut self, index: u32, result: Result<(), ReadFailure>) {
        let flying = self.flying[index as usize].take().expect("a read is in flight there");
        self.flying_free.push(index);
        let at_drive = Interval::since(flying.since);
        self.completed.push_back(Completion { ticket: flying.read.ticket, at_drive, result });
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

    /// Gives the registered memory back.
    fn unregister(&self) -> io::Result<()> {
        loop {
            match self.ring.submitter().unregister_buffers() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                given_back => return given_back,
            }
        }
    }

    /// Books what the kernel has finished. A read that fell short goes on.
    fn reap(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else { return };
            let index = entry.user_data() as usize;
            let Flying { read, mut progress, since } =
                self.flying[index].expect("a completion of a read in flight");
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
                    self.flying[index] = Some(Flying { read, progress, since });
                    match self.broken {
                        None => {
                            self.push(index as u32);
                            continue;
                        }
                        Some(errno) => Err((progress.next().start, errno.into())),
                    }
                }
                Ok(true) => Ok(()),
                Err(error) => Err(error),
            };
            let base = read.offset - read.delta();
            self.end(index as u32, result.map_err(|(at, error)| ReadFailure::new(base + at as u64, error)));
        }
    }
}

// SAFETY: a window is written by the kernel alone, from the moment its read is pushed until the kernel's completion of
// the last call for it has been seen, in `window + range` of its progress, which `assert_bounds` put inside the span.
// A cancelled read was still in a queue of ours. A completion without an error comes from a `Progress` that says all
// wanted bytes are there; with registered memory those are the window's bytes by `register`'s contract. Drop waits
// until the kernel has none of them. When the ring breaks, only reads that the kernel has not taken out of the submission
// queue (`pushed`) are ended for it, and since nobody enters the ring again, it never takes them; the others end as ever.
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
        while self.broken.is_none() && !self.ring.submission().is_empty() {
            self.enter(0, None);
        }
        self.memory.clear();
        // What is read from now on names no buffer. Buffers that cannot be given back stay pinned, and pages that leave the regions
        // would not come free: that is no ring to go on with.
        if !std::mem::take(&mut self.buffers).is_empty()
            && let Err(error) = self.unregister()
        {
            self.break_off(&error);
        }
        if self.broken.is_some() {
            return;
        }
        let mut buffers: Vec<(usize, usize)> = Vec::new();
        for &(start, bytes) in regions {
            let pieces = (0..bytes).step_by(BUFFER_BYTES_MAX);
            buffers
                .extend(pieces.map(|at| (start.as_ptr() as usize + at, (bytes - at).min(BUFFER_BYTES_MAX))));
        }
        // The largest ones, where there are too many.
        buffers.sort_unstable_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        buffers.truncate(BUFFERS_MAX);
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

    fn take_warning(&mut self) -> Option<String> {
        self.warning.take()
    }
}

impl Drop for UringReader {
    fn drop(&mut self) {
        self.demand.clear();
        self.speculative.clear();
        // What is in the submission queue is not the kernel's yet, and goes with the ring.
        loop {
            self.reap();
            if self.in_flight() <= self.pushed.len() {
                return;
            }
            self.enter(1, Some(Duration::from_millis(100)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::mem::ManuallyDrop;
    use std::os::fd::{FromRawFd, OwnedFd};

    use files::FileIndex;

    use super::*;
    use crate::read::Origin;

    const SPAN: usize = 2 << 12;
    const READ_BYTES: u64 = 5000;

    #[repr(align(4096))]
    #[derive(Clone, Copy)]
    struct Window([u8; SPAN]);

    struct Stand {
        _folder: tempfile::TempDir,
        content: Vec<u8>,
        /// Never freed: a test that fails shall not take it from under the kernel.
        start: NonNull<Window>,
        windows: usize,
        reader: Option<UringReader>,
    }

    impl Stand {
        /// A reader of so many reads in flight; none where io_uring is forbidden.
        fn new(windows: usize, depth: u32) -> Option<Stand> {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("file");
            let content: Vec<u8> = (0..64 * 4096u32).map(|i| ((i * 37) >> 5) as u8).collect();
            std::fs::write(&path, &content).unwrap();
            let options = Options { depth, speculative_max: depth as usize, ..Options::default() };
            let reader = match UringReader::open(&[path], &options) {
                Err(Error::UringRefused { .. }) => return None,
                opened => opened.unwrap(),
            };
            let start = NonNull::from(vec![Window([0; SPAN]); windows].leak()).cast();
            Some(Stand { _folder: folder, content, start, windows, reader: Some(reader) })
        }

        fn reader(&mut self) -> &mut UringReader {
            self.reader.as_mut().unwrap()
        }

        fn offset(i: usize) -> u64 {
            i as u64 * 4096 + 100
        }

        fn submit(&mut self, reads: std::ops::Range<usize>, priority: Priority) {
            let read = |i: usize| Read {
                ticket: Ticket(i as u64),
                file: FileIndex(0),
                offset: Self::offset(i),
                len: READ_BYTES,
                // SAFETY: there is a window for each index.
                window: unsafe { self.start.add(i) }.cast(),
                span: SPAN as u64,
                priority,
                origin: Origin { layer: 0, expert: 0, part: 0 },
            };
            let reads: Vec<Read> = reads.map(read).collect();
            // SAFETY: a window of its own for each read, looked at only when the reader is gone; it goes first.
            unsafe { self.reader().submit(&reads) };
        }

        /// Awaits everything and says which reads went well; their bytes must be the file's.
        fn finish(mut self, outstanding: usize) -> Vec<bool> {
            let mut ended = vec![None; self.windows];
            for _ in 0..outstanding {
                let completion = self.reader().wait_any(Some(Duration::from_secs(20))).expect("a completion");
                let seen = ended[completion.ticket.0 as usize].replace(completion.result.is_ok());
                assert_eq!(seen, None, "a read ends once");
                if let Err(failure) = completion.result {
                    assert!(failure.source.raw_os_error().is_some(), "{failure:?}");
                }
            }
            assert!(self.reader().wait_any(None).is_none(), "nothing is outstanding");
            drop(self.reader.take());
            for (i, _) in ended.iter().enumerate().filter(|(_, ended)| **ended == Some(true)) {
                let at = Self::offset(i) as usize;
                // SAFETY: there is a window for each index, and the reader is gone.
                let window = unsafe { self.start.add(i).as_ref() };
                let got = &window.0[at % 4096..][..READ_BYTES as usize];
                assert_eq!(got, &self.content[at..at + READ_BYTES as usize]);
            }
            ended.into_iter().flatten().collect()
        }
    }

    /// From now on the ring's descriptor leads elsewhere, as if the system had taken the ring away. What the kernel has of it goes on: the
    /// memory that is shared with it keeps the ring alive.
    fn take_away(reader: &UringReader) {
        let null = File::open("/dev/null").unwrap();
        // SAFETY: the descriptor is the ring's, open, and stays the ring's to close.
        let mut ring = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(reader.ring.as_raw_fd()) });
        rustix::io::dup2(&null, &mut ring).unwrap();
    }

    #[test]
    fn a_broken_ring_fails_what_it_never_had_and_what_comes_later() {
        let Some(mut stand) = Stand::new(12, 4) else { return };
        take_away(stand.reader());
        stand.submit(0..6, Priority::Demand);
        stand.submit(6..9, Priority::Speculative);
        stand.reader().promote(Ticket(7));
        assert!(!stand.reader().cancel(Ticket(2)), "it has failed already");
        let warning = stand.reader().take_warning().expect("a warning");
        assert!(warning.contains("io_uring broke"), "{warning}");
        assert_eq!(stand.reader().take_warning(), None);
        stand.submit(9..12, Priority::Demand);
        assert_eq!(stand.finish(12), [false; 12]);
    }

    #[test]
    fn what_the_kernel_had_before_is_awaited() {
        let mut brought = 0;
        for _ in 0..20 {
            let Some(mut stand) = Stand::new(40, 8) else { return };
            stand.submit(0..40, Priority::Demand);
            take_away(stand.reader());
            let ended = stand.finish(40);
            // As many as there was room for, unless some had ended by then and were followed by others.
            assert_eq!(ended.len(), 40);
            assert!(ended[39..].iter().all(|ok| !ok), "{ended:?}");
            brought += ended.iter().filter(|&&ok| ok).count();
        }
        assert!(brought >= 8, "{brought}");
    }

    #[test]
    fn a_reader_with_a_broken_ring_is_dropped_after_its_reads() {
        for _ in 0..20 {
            let Some(mut stand) = Stand::new(20, 8) else { return };
            stand.submit(0..20, Priority::Demand);
            take_away(stand.reader());
            drop(stand.reader.take());
        }
    }

    #[test]
    fn memory_that_cannot_be_given_back_breaks_the_ring() {
        let Some(mut stand) = Stand::new(8, 8) else { return };
        let region = (stand.start.cast(), 8 * SPAN);
        // SAFETY: the windows outlive the reader and stay where they are.
        unsafe { stand.reader().register(&[region]) };
        if stand.reader().buffers.is_empty() {
            return;
        }
        take_away(stand.reader());
        // SAFETY: no region.
        unsafe { stand.reader().register(&[]) };
        assert!(stand.reader().broken.is_some());
        stand.submit(0..3, Priority::Demand);
        assert_eq!(stand.finish(3), [false; 3]);
    }
}
