//! A drive that is slower than the one at hand, for measurements that repeat.
//!
//! Reads go to the drive as they come. Beside it runs a model of a slower one: it serves one read after the other, demand
//! first, at a fixed rate after a fixed latency; a completion is handed out when it is over in both. So the bytes, the
//! system calls and the processor time are real, while the time a read takes neither follows the noise of a shared drive nor
//! comes in bursts, as it does under a quota of the system (Linux's grants whole tenths of seconds at once).
//!
//! ```text
//! submitted ──► queued ──► serving ──► served ─┐
//!          └──► the real reader ──► landed ────┴─► handed out
//! ```
//! It is the drive of [`crate::simulate::time`]. Nothing is allocated per read.

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use super::{Completion, Interval, Priority, Read, Reader, Ticket};

/// The slower drive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Bytes per second, at least 1.
    pub read_bytes_per_s: u64,
    /// From the submission of a read to its first byte, at least.
    pub latency: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Job {
    ticket: Ticket,
    len: u64,
    submitted: Instant,
}

/// The wrapper.
pub struct PacedReader {
    reader: Box<dyn Reader>,
    pace: Pace,
    demand: VecDeque<Job>,
    speculative: VecDeque<Job>,
    /// What the modelled drive is at, since when and until when.
    serving: Option<(Ticket, Interval)>,
    /// Since when it has had nothing to do.
    free: Instant,
    /// Over in the model, where it was begun there.
    served: Vec<(Ticket, Option<Interval>)>,
    /// Over in reality.
    landed: Vec<Completion>,
    outstanding: usize,
}

impl std::fmt::Debug for PacedReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PacedReader").field("pace", &self.pace).finish_non_exhaustive()
    }
}

impl PacedReader {
    /// Holds `reader` to `pace`.
    pub fn new(reader: Box<dyn Reader>, pace: Pace) -> Self {
        let capacity = reader.capacity();
        PacedReader {
            reader,
            pace: Pace { read_bytes_per_s: pace.read_bytes_per_s.max(1), ..pace },
            demand: VecDeque::with_capacity(capacity),
            speculative: VecDeque::with_capacity(capacity),
            serving: None,
            free: Instant::now(),
            served: Vec::with_capacity(capacity),
            landed: Vec::with_capacity(capacity),
            outstanding: 0,
        }
    }

    /// Lets the modelled drive work until `now`. Called before anything is added to its queues, so that whatever it begins with
    /// was there when it began.
    fn advance(&mut self, now: Instant) {
        loop {
            if let Some((ticket, at_drive)) = self.serving {
                if at_drive.to > now {
                    return;
                }
                self.served.push((ticket, Some(at_drive)));
                self.free = at_drive.to;
                self.serving = None;
            }
            let Some(job) = self.demand.pop_front().or_else(|| self.speculative.pop_front()) else { return };
            let first_byte = self.free.max(job.submitted + self.pace.latency);
            let busy_ns = u128::from(job.len) * 1_000_000_000 / u128::from(self.pace.read_bytes_per_s);
            let from = self.free.max(job.submitted);
            let to = first_byte + Duration::from_nanos(busy_ns as u64);
            self.serving = Some((job.ticket, Interval { from, to }));
        }
    }

    /// A completion that is due in both worlds.
    fn due(&mut self) -> Option<Completion> {
        let landed = |ticket| self.landed.iter().position(|completion| completion.ticket == ticket);
        let (served, at) =
            self.served.iter().enumerate().find_map(|(i, &(ticket, _))| Some((i, landed(ticket)?)))?;
        let (completion, (_, at_drive)) = (self.landed.swap_remove(at), self.served.swap_remove(served));
        self.outstanding -= 1;
        Some(Completion { at_drive: at_drive.unwrap_or(completion.at_drive), ..completion })
    }

    /// Drops a read from the modelled queues; false when the drive has begun with it.
    fn unqueue(&mut self, ticket: Ticket) -> bool {
        let queues = [&mut self.speculative, &mut self.demand];
        queues.into_iter().any(|queue| {
            let at = queue.iter().position(|job| job.ticket == ticket);
            at.and_then(|at| queue.remove(at)).is_some()
        })
    }
}

// SAFETY: the reader inside keeps the contract; what is handed out here was handed out by it, later, and what is cancelled here
// was cancelled by it or had been handed out by it already.
unsafe impl Reader for PacedReader {
    unsafe fn submit(&mut self, reads: &[Read]) {
        let now = Instant::now();
        self.advance(now);
        self.outstanding += reads.len();
        for read in reads {
            let job = Job { ticket: read.ticket, len: read.len, submitted: now };
            match read.priority {
                Priority::Demand => self.demand.push_back(job),
                Priority::Speculative => self.speculative.push_back(job),
            }
        }
        // SAFETY: the caller's promise, passed on.
        unsafe { self.reader.submit(reads) };
        self.advance(now);
    }

    fn promote(&mut self, ticket: Ticket) {
        self.advance(Instant::now());
        self.reader.promote(ticket);
        if let Some(at) = self.speculative.iter().position(|job| job.ticket == ticket) {
            self.demand.extend(self.speculative.remove(at));
        }
    }

    fn cancel(&mut self, ticket: Ticket) -> bool {
        self.advance(Instant::now());
        if !self.unqueue(ticket) {
            return false;
        }
        if self.reader.cancel(ticket) {
            self.outstanding -= 1;
            return true;
        }
        if let Some(at) = self.landed.iter().position(|completion| completion.ticket == ticket) {
            self.landed.swap_remove(at);
            self.outstanding -= 1;
            return true;
        }
        // The real drive is at it: it will complete, and costs the modelled one nothing.
        self.served.push((ticket, None));
        false
    }

    fn wait_any(&mut self, timeout: Option<Duration>) -> Option<Completion> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let now = Instant::now();
            self.advance(now);
            while let Some(completion) = self.reader.wait_any(Some(Duration::ZERO)) {
                self.landed.push(completion);
            }
            if let Some(completion) = self.due() {
                return Some(completion);
            }
            if self.outstanding == 0
                || timeout == Some(Duration::ZERO)
                || deadline.is_some_and(|at| at <= now)
            {
                return None;
            }
            // Whichever world is behind decides what is waited for.
            let next = [deadline, self.serving.map(|(_, at_drive)| at_drive.to)].into_iter().flatten().min();
            let left = next.map(|at| at.saturating_duration_since(now));
            if self.served.is_empty() {
                std::thread::sleep(left.unwrap_or(Duration::from_millis(1)));
            } else {
                self.landed.extend(self.reader.wait_any(left));
            }
        }
    }

    fn capacity(&self) -> usize {
        self.reader.capacity()
    }

    fn describe(&self) -> String {
        let Pace { read_bytes_per_s, latency } = self.pace;
        format!(
            "{}, held to {} MB/s after {} µs",
            self.reader.describe(),
            read_bytes_per_s / 1_000_000,
            latency.as_micros()
        )
    }

    unsafe fn register(&mut self, regions: &[(NonNull<u8>, usize)]) {
        // SAFETY: the caller's promise, passed on.
        unsafe { self.reader.register(regions) };
    }

    fn take_warning(&mut self) -> Option<String> {
        self.reader.take_warning()
    }
}
