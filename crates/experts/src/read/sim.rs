//! A reader with a will: real bytes, delivered after simulated delays, out of order, in pieces, or not at
//! all.
//!
//! Bytes are copied when a read *completes*, never earlier, and a failing read leaves a part of its bytes
//! behind, so code that looks at a slot too early or trusts one after an error is found out. With
//! [`Clock::Virtual`] no time passes: a blocking wait jumps to the next completion, a look advances the clock
//! by a random step, as a computation would. Everything follows from the seed and the order of calls, except the times that
//! completions carry: under [`Clock::Real`] those of the simulated drive, under [`Clock::Virtual`] those of the copy alone.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::progress::Progress;
use super::source::read_at;
use super::{Completion, Interval, Priority, Read, ReadFailure, Reader, Ticket};
use crate::{Error, Result};

/// Whose time passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// Nobody's: delays order the completions and cost nothing.
    Virtual,
    /// The caller's: `wait_any` sleeps.
    Real,
}

/// Which read a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultAt {
    /// The n-th read submitted to this reader, from 0.
    Nth(u64),
    /// Any read of this expert.
    Expert {
        /// Block index.
        layer: u32,
        /// Expert id.
        expert: u32,
    },
}

/// A fault that a read meets instead of its bytes: an I/O error (EIO).
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// Whom it hits.
    pub at: FaultAt,
    /// How often it still strikes.
    pub times: u32,
}

/// The model of the drive. The default is a perfect one: everything at once, in order.
#[derive(Debug, Clone)]
pub struct Options {
    /// Decides every random choice.
    pub seed: u64,
    /// Virtual or real time.
    pub clock: Clock,
    /// Added to each read.
    pub latency: Duration,
    /// A random part of this is added to each read on top; this is what reorders completions.
    pub jitter: Duration,
    /// Bytes per second over all reads; none is infinitely fast.
    pub bandwidth: Option<u64>,
    /// Every system call brings a random part of what it was asked for, and some are interrupted. Retried
    /// inside, as a real reader does.
    pub short_reads: bool,
    /// Errors to come.
    pub faults: Vec<Fault>,
    /// Each read fails with this probability, in parts per million.
    pub fault_ppm: u32,
    /// Reads that may be outstanding.
    pub capacity: usize,
}

impl Options {
    /// A drive that delays, reorders and returns short, without taking any time over it: what `--reader sim` is.
    pub fn rough(seed: u64) -> Self {
        Options {
            seed,
            latency: Duration::from_millis(1),
            jitter: Duration::from_millis(5),
            bandwidth: Some(1 << 30),
            short_reads: true,
            ..Options::default()
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            seed: 0,
            clock: Clock::Virtual,
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            bandwidth: None,
            short_reads: false,
            faults: Vec::new(),
            fault_ppm: 0,
            capacity: 4096,
        }
    }
}

/// Where simulated files have their real bytes.
#[derive(Debug)]
pub enum Source {
    /// In memory.
    Memory(Arc<[u8]>),
    /// On disk, read buffered.
    Disk(File),
}

/// The simulated reader.
#[derive(Debug)]
pub struct SimReader {
    sources: Vec<Source>,
    options: Options,
    random: Random,
    submitted: u64,
    now: Duration,
    started: Instant,
    /// When the drive has delivered everything that was submitted so far.
    drive_free: Duration,
    pending: Vec<Pending>,
}

#[derive(Debug)]
struct Pending {
    read: Read,
    /// When the drive begins with it and when it is through, on the reader's clock.
    begins: Duration,
    due: Duration,
    /// Breaks ties between equal times: order of submission.
    nth: u64,
    faulty: bool,
    started: bool,
}

impl SimReader {
    /// A reader over open sources.
    pub fn new(sources: Vec<Source>, options: Options) -> Self {
        SimReader {
            sources,
            random: Random(options.seed ^ 0x9e37_79b9_7f4a_7c15),
            submitted: 0,
            now: Duration::ZERO,
            started: Instant::now(),
            drive_free: Duration::ZERO,
            pending: Vec::with_capacity(options.capacity),
            options,
        }
    }

    /// A reader over the files of a checkpoint.
    pub fn open(files: &[PathBuf], options: Options) -> Result<Self> {
        let open = |path: &PathBuf| match File::open(path) {
            Ok(file) => Ok(Source::Disk(file)),
            Err(source) => Err(Error::Open { path: path.clone(), source }),
        };
        Ok(Self::new(files.iter().map(open).collect::<Result<_>>()?, options))
    }

    /// Time since the reader began, on its own clock.
    pub fn now(&self) -> Duration {
        match self.options.clock {
            Clock::Virtual => self.now,
            Clock::Real => self.started.elapsed(),
        }
    }

    fn faulty(&mut self, read: &Read) -> bool {
        let (nth, origin) = (self.submitted, read.origin);
        let hit = |fault: &&mut Fault| match fault.at {
            _ if fault.times == 0 => false,
            FaultAt::Nth(n) => n == nth,
            FaultAt::Expert { layer, expert } => origin.layer == layer && origin.expert == expert,
        };
        if let Some(fault) = self.options.faults.iter_mut().find(hit) {
            fault.times -= 1;
            return true;
        }
        self.random.below(1_000_000) < u64::from(self.options.fault_ppm)
    }

    /// When the drive begins with a read submitted now, and when it is through: its bytes come after those of all reads before it.
    fn times(&mut self, read: &Read) -> (Duration, Duration) {
        let now = self.now();
        let begins = self.drive_free.max(now);
        if let Some(rate) = self.options.bandwidth {
            let busy =
                Duration::from_nanos((u128::from(read.len) * 1_000_000_000 / u128::from(rate.max(1))) as u64);
            self.drive_free = self.drive_free.max(now) + busy;
        }
        let jitter = Duration::from_nanos(self.random.below(self.options.jitter.as_nanos() as u64 + 1));
        (begins, self.drive_free.max(now) + self.options.latency + jitter)
    }

    /// The index of the next read to complete: by priority when its time has come, by time otherwise.
    fn next(&self) -> Option<usize> {
        let key = |p: &Pending| (p.due, p.read.priority == Priority::Speculative, p.nth);
        (0..self.pending.len()).min_by_key(|&i| key(&self.pending[i]))
    }

    fn deliver(&mut self, at: usize) -> Completion {
        let Pending { read, begins, due, faulty, .. } = self.pending.swap_remove(at);
        let copying = Instant::now();
        // SAFETY: `submit` promised `span` initialised bytes that are ours until the completion, which is
        // made here.
        let window = unsafe { std::slice::from_raw_parts_mut(read.window.as_ptr(), read.span as usize) };
        let from = read.delta() as usize;
        let wanted = from + read.len as usize;
        let source = &self.sources[read.file.0 as usize];
        let (random, short) = (&mut self.random, self.options.short_reads);
        // A faulty read has got somewhere before it fails.
        let good = if faulty { from + random.below(read.len) as usize } else { wanted };
        let base = read.offset - from as u64;
        let result = Progress::new(&read, false).run(window, |bytes, at| {
            if at >= good {
                return Err(eio());
            }
            let asked = bytes.len().min(good - at);
            if short && random.below(8) == 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let asked = if short { 1 + random.below(asked as u64) as usize } else { asked };
            source.read_at(&mut bytes[..asked], base + at as u64)
        });
        let result = result.map_err(|(at, error)| ReadFailure::new(base + at as u64, error));
        let at_drive = match self.options.clock {
            Clock::Virtual => Interval::since(copying),
            // A caller that slept for it has slept too long rather than too short; one that computed meanwhile finds it done.
            Clock::Real => Interval { from: self.started + begins, to: self.started + due },
        };
        Completion { ticket: read.ticket, at_drive, result }
    }
}

// SAFETY: windows are written in `deliver` alone, inside `window..window + span`, by the thread that calls
// `wait_any`, right before the completion is returned; a `Progress` that ran to its end has copied every wanted
// byte from the source.
unsafe impl Reader for SimReader {
    unsafe fn submit(&mut self, reads: &[Read]) {
        assert!(self.pending.len() + reads.len() <= self.options.capacity, "more reads than the queue holds");
        for read in reads {
            read.assert_bounds();
            assert!((read.file.0 as usize) < self.sources.len(), "no such file: {read:?}");
            let faulty = self.faulty(read);
            let (begins, due) = self.times(read);
            // Whether a read has started is up to chance, so that cancelling meets both cases.
            let started = self.random.below(2) == 0;
            self.pending.push(Pending { read: *read, begins, due, nth: self.submitted, faulty, started });
            self.submitted += 1;
        }
    }

    fn promote(&mut self, ticket: Ticket) {
        let now = self.now();
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.read.ticket == ticket) {
            pending.read.priority = Priority::Demand;
            pending.due = pending.due.min(now + self.options.latency);
            pending.begins = pending.begins.min(pending.due);
        }
    }

    fn cancel(&mut self, ticket: Ticket) -> bool {
        let at = self.pending.iter().position(|pending| pending.read.ticket == ticket && !pending.started);
        at.map(|at| self.pending.swap_remove(at)).is_some()
    }

    fn wait_any(&mut self, timeout: Option<Duration>) -> Option<Completion> {
        let at = self.next()?;
        let due = self.pending[at].due;
        if self.options.clock == Clock::Real {
            let wait = due.saturating_sub(self.started.elapsed());
            if timeout.is_some_and(|timeout| timeout < wait) {
                std::thread::sleep(timeout.unwrap_or_default());
                return None;
            }
            std::thread::sleep(wait);
            return Some(self.deliver(at));
        }
        if timeout == Some(Duration::ZERO) {
            // Whoever only looks has been computing since the last look.
            let step = (self.options.latency + self.options.jitter).as_nanos() as u64 / 4 + 1;
            self.now += Duration::from_nanos(self.random.below(step));
        }
        if let Some(timeout) = timeout
            && due > self.now + timeout
        {
            self.now += timeout;
            return None;
        }
        self.now = self.now.max(due);
        Some(self.deliver(at))
    }

    fn capacity(&self) -> usize {
        self.options.capacity
    }

    fn describe(&self) -> String {
        let Options { seed, clock, .. } = self.options;
        format!("simulated, {} time, seed {seed}", if clock == Clock::Virtual { "virtual" } else { "real" })
    }
}

impl Source {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Source::Disk(file) => read_at(file, bytes, offset),
            Source::Memory(content) => {
                let start = content.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
                let n = bytes.len().min(content.len() - start);
                bytes[..n].copy_from_slice(&content[start..start + n]);
                Ok(n)
            }
        }
    }
}

fn eio() -> io::Error {
    if cfg!(unix) { io::Error::from_raw_os_error(5) } else { io::Error::other("simulated I/O error") }
}

/// SplitMix64: small, good enough, and the same on every machine.
#[derive(Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        if bound == 0 { 0 } else { z % bound }
    }
}
