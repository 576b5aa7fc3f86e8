//! One read, several drives: reads are spread over the drives that hold the same files, and cut into slices where
//! that helps.
//!
//! * A read is cut when so few are outstanding that the drives would idle otherwise, or always, into one slice per
//!   drive, when striping. Slices begin and end on blocks, so each is a direct read into its part of the window.
//! * A slice goes to the drive that will be through with it first, judged by what is queued there and by the bytes
//!   per busy second so far. All drives begin as equals.
//! * A slice that a drive fails to read is read from another one, once. That drive gets no more reads from then on;
//!   a warning says so. When the other one fails as well, the read does, with the path on the drive.
//!
//! A read was at the drives from when the first of its slices was until the last one was over.
//!
//! Several drives are waited for in turns of [`TURN`]: their readers know nothing of each other. Nothing is
//! allocated per read.

use std::path::PathBuf;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use super::{Completion, Interval, Priority, Read, ReadFailure, Reader, Ticket};
use crate::ALIGNMENT;

/// How to spread.
#[derive(Debug, Clone)]
pub struct Options {
    /// Slices per read while few reads are outstanding, at most; 1 cuts nothing.
    pub ways: u32,
    /// Reads in flight that keep one drive busy.
    pub depth: usize,
    /// Cut each read into one slice per drive.
    pub stripe: bool,
    /// Bytes of a slice at least; below that a drive spends its time on the way, not on bytes.
    pub slice_bytes_min: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { ways: 4, depth: 8, stripe: false, slice_bytes_min: 256 << 10 }
    }
}

/// A copy of the files.
pub struct Drive {
    /// Reads them; opened with the same files in the same order as those of the other drives.
    pub reader: Box<dyn Reader>,
    /// Where they are, for messages.
    pub files: Vec<PathBuf>,
}

impl std::fmt::Debug for Drive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drive").field("files", &self.files).finish_non_exhaustive()
    }
}

/// How long one drive is waited for before the next is looked at.
pub const TURN: Duration = Duration::from_micros(250);
/// A drive that was passed over so often gets the next slice whatever is known of it, which may be outdated.
const PASSED_OVER_MAX: u32 = 64;
/// Bytes and seconds of every drive before anything is known of it: a few reads at 1 GB/s.
const PRIOR: (f64, f64) = (8e6, 8e-3);
/// Once a drive has delivered this much, what it did in the past counts half.
const FORGET_BYTES: f64 = 1e9;

/// The wrapper.
#[derive(Debug)]
pub struct SpreadReader {
    drives: Vec<Lane>,
    options: Options,
    /// Reads that were submitted to us; slices point into it.
    whole: Vec<Whole>,
    whole_free: Vec<u32>,
    /// The index is the ticket that the drive's reader knows.
    slices: Vec<Slice>,
    slices_free: Vec<u32>,
    capacity: usize,
    warning: Option<String>,
}

/// A drive and what is known of it.
#[derive(Debug)]
struct Lane {
    drive: Drive,
    /// Gets reads. One that failed where another did not is off.
    on: bool,
    batch: Vec<Read>,
    queued_reads: usize,
    queued_bytes: u64,
    done_bytes: f64,
    busy_s: f64,
    /// Since when its busy time is not yet in `busy_s`; meaningful while something is queued.
    since: Instant,
    passed_over: u32,
}

#[derive(Debug)]
struct Whole {
    ticket: Ticket,
    /// Slices that are not over; 0 where there is no read.
    left: u32,
    /// Of the slices that are over.
    at_drive: Option<Interval>,
    failure: Option<ReadFailure>,
}

#[derive(Debug)]
struct Slice {
    /// None where there is no slice.
    read: Option<Read>,
    whole: u32,
    lane: u32,
    /// The drive that failed to read it, and how.
    failed: Option<(u32, ReadFailure)>,
    /// Taken back from the drive, while a whole read is cancelled.
    cancelled: bool,
}

impl SpreadReader {
    /// Spreads reads over `drives`, which must not be empty.
    pub fn new(drives: Vec<Drive>, options: &Options) -> Self {
        assert!(!drives.is_empty(), "reads need a drive");
        let ways = (options.ways.max(1) as usize).max(if options.stripe { drives.len() } else { 1 });
        // All slices of all reads may end up on one drive.
        let least = drives.iter().map(|drive| drive.reader.capacity()).min().unwrap_or(0);
        let capacity = (least / ways).max(1);
        let slices = capacity * ways;
        let lane = |drive| Lane {
            drive,
            on: true,
            batch: Vec::with_capacity(slices),
            queued_reads: 0,
            queued_bytes: 0,
            done_bytes: PRIOR.0,
            busy_s: PRIOR.1,
            since: Instant::now(),
            passed_over: 0,
        };
        let slice = |_| Slice { read: None, whole: 0, lane: 0, failed: None, cancelled: false };
        SpreadReader {
            drives: drives.into_iter().map(lane).collect(),
            options: Options { ways: options.ways.max(1), depth: options.depth.max(1), ..options.clone() },
            whole: (0..capacity)
                .map(|_| Whole { ticket: Ticket(0), left: 0, at_drive: None, failure: None })
                .collect(),
            whole_free: (0..capacity as u32).rev().collect(),
            slices: (0..slices).map(slice).collect(),
            slices_free: (0..slices as u32).rev().collect(),
            capacity,
            warning: None,
        }
    }

    fn outstanding(&self) -> usize {
        self.capacity - self.whole_free.len()
    }

    fn slices_outstanding(&self) -> usize {
        self.slices.len() - self.slices_free.len()
    }

    /// Slices for each read of a batch of `reads`: enough to keep the drives busy, no more.
    fn ways(&self, reads: usize) -> usize {
        let on = self.drives.iter().filter(|lane| lane.on).count();
        let busy = on * self.options.depth;
        let ways = (busy / (self.slices_outstanding() + reads).max(1)).clamp(1, self.options.ways as usize);
        if self.options.stripe { ways.max(on) } else { ways }
    }

    /// Cuts one read and puts its slices into the batches of the drives.
    fn take(&mut self, read: &Read, ways: usize) {
        // Nobody waits for a speculative read, and one slice is taken back more easily than four.
        let speculative = read.priority == Priority::Speculative;
        let ways = if speculative && !self.options.stripe { 1 } else { ways };
        let blocks = (read.delta() + read.len).div_ceil(ALIGNMENT);
        let most = (blocks * ALIGNMENT / self.options.slice_bytes_min.max(ALIGNMENT)).max(1);
        let ways = (ways as u64).min(most).min(blocks);
        let whole = self.whole_free.pop().expect("as many reads as `capacity` says");
        self.whole[whole as usize] = Whole { ticket: read.ticket, left: 0, at_drive: None, failure: None };
        let striped = self.options.stripe && ways > 1;
        let rates: f64 = self.drives.iter().filter(|lane| lane.on).map(Lane::bytes_per_s).sum();
        let (mut from, mut share, mut striped_lane) = (0, 0.0, None);
        for i in 0..ways {
            // Cut by the rates of the drives that they go to, or evenly.
            let to = if striped && ways as usize == self.drives.iter().filter(|lane| lane.on).count() {
                let lane = self.next_on(striped_lane);
                striped_lane = Some(lane);
                share += self.drives[lane].bytes_per_s() / rates;
                (blocks as f64 * share).round() as u64
            } else {
                blocks * (i + 1) / ways
            };
            // A block at least for each: a drive that gets nothing cannot show that it has become faster.
            let to = if i + 1 == ways { blocks } else { to.clamp(from + 1, blocks - (ways - 1 - i)) };
            let slice = cut(read, from, to);
            let lane = striped_lane.unwrap_or_else(|| self.soonest(slice.len));
            self.assign(slice, whole, lane);
            from = to;
        }
    }

    /// The first drive after `lane` that gets reads.
    fn next_on(&self, lane: Option<usize>) -> usize {
        let first = lane.map_or(0, |lane| lane + 1);
        let on = (first..self.drives.len()).find(|&lane| self.drives[lane].on);
        on.expect("no more slices than drives that are on")
    }

    /// The drive that will be through with `bytes` first.
    fn soonest(&mut self, bytes: u64) -> usize {
        let forgotten = |lane: &Lane| lane.on && lane.passed_over >= PASSED_OVER_MAX;
        let lane = self.drives.iter().position(forgotten).unwrap_or_else(|| {
            let until = |lane: &Lane| (lane.queued_bytes + bytes) as f64 / lane.bytes_per_s();
            let on = self.drives.iter().enumerate().filter(|(_, lane)| lane.on);
            let first = on.min_by(|(_, a), (_, b)| until(a).total_cmp(&until(b)));
            first.expect("one drive at least is on").0
        });
        for (i, other) in self.drives.iter_mut().enumerate() {
            other.passed_over = if i == lane { 0 } else { other.passed_over.saturating_add(1) };
        }
        lane
    }

    fn assign(&mut self, read: Read, whole: u32, lane: usize) {
        let index = self.slices_free.pop().expect("a place for every slice of every read");
        let read = Read { ticket: Ticket(u64::from(index)), ..read };
        self.slices[index as usize] =
            Slice { read: Some(read), whole, lane: lane as u32, failed: None, cancelled: false };
        self.whole[whole as usize].left += 1;
        self.drives[lane].enqueue(read);
    }

    /// Hands every batch to its drive.
    fn flush(&mut self) {
        for lane in self.drives.iter_mut().filter(|lane| !lane.batch.is_empty()) {
            // SAFETY: each slice is a part of a window that `submit` promised to be ours, no two overlap, and a
            // slice is with one drive at a time. It is over before the whole read is handed back.
            unsafe { lane.drive.reader.submit(&lane.batch) };
            lane.batch.clear();
        }
    }

    /// Books a completion of a drive; the read that is over with it, if one is.
    fn settle(&mut self, lane: usize, completion: Completion) -> Option<Completion> {
        let index = completion.ticket.0 as usize;
        let read = self.slices[index].read.expect("a completion of a slice");
        self.drives[lane].dequeue(read.len, completion.result.is_ok());
        let whole = &mut self.whole[self.slices[index].whole as usize];
        let at_drive = whole.at_drive.map_or(completion.at_drive, |before| before.hull(completion.at_drive));
        whole.at_drive = Some(at_drive);
        let failed = self.slices[index].failed.take();
        let failure = match (completion.result, failed) {
            (Ok(()), None) => None,
            (Ok(()), Some((bad, failure))) => {
                self.switch_off(bad as usize, lane, &read, &failure);
                None
            }
            (Err(failure), None) => match self.another(lane) {
                Some(other) => {
                    self.slices[index].failed = Some((lane as u32, failure));
                    self.slices[index].lane = other as u32;
                    self.drives[other].enqueue(read);
                    self.flush();
                    return None;
                }
                None => Some(self.named(lane, &read, failure)),
            },
            (Err(failure), Some((first, before))) => {
                let path = self.drives[first as usize].drive.files[read.file.0 as usize].display();
                let why = format!("{}; before that {path}: {}", failure.source, before.source);
                let source = std::io::Error::new(failure.source.kind(), why);
                Some(self.named(lane, &read, ReadFailure { source, ..failure }))
            }
        };
        self.end_slice(index, failure)
    }

    /// Another drive than the one that failed, if there is one; one that is on if possible.
    fn another(&self, failed: usize) -> Option<usize> {
        let others = (0..self.drives.len()).filter(|&lane| lane != failed);
        others.max_by_key(|&lane| (self.drives[lane].on, std::cmp::Reverse(lane)))
    }

    /// With one drive the caller knows the path; with several it cannot know which.
    fn named(&self, lane: usize, read: &Read, failure: ReadFailure) -> ReadFailure {
        if self.drives.len() == 1 {
            return failure;
        }
        let path = self.drives[lane].drive.files.get(read.file.0 as usize).cloned();
        ReadFailure { path: failure.path.or(path), ..failure }
    }

    /// `bad` failed where `good` did not.
    fn switch_off(&mut self, bad: usize, good: usize, read: &Read, failure: &ReadFailure) {
        self.drives[good].on = true;
        if std::mem::take(&mut self.drives[bad].on) {
            let path = |lane: usize| self.drives[lane].drive.files[read.file.0 as usize].display();
            self.warning = Some(format!(
                "cannot read {} at offset {}: {}; its drive is left out from now on, the same bytes come from {}",
                path(bad),
                failure.offset,
                failure.source,
                path(good)
            ));
        }
    }

    /// Frees a slice; the completion of its read when it was the last.
    fn end_slice(&mut self, index: usize, failure: Option<ReadFailure>) -> Option<Completion> {
        let slice = &mut self.slices[index];
        slice.read = None;
        self.slices_free.push(index as u32);
        let whole = &mut self.whole[slice.whole as usize];
        // Whatever slice fails first, the read fails where its bytes end.
        whole.failure = match (whole.failure.take(), failure) {
            (Some(a), Some(b)) => Some(if b.offset < a.offset { b } else { a }),
            (a, b) => a.or(b),
        };
        whole.left -= 1;
        if whole.left > 0 {
            return None;
        }
        self.whole_free.push(slice.whole);
        let result = whole.failure.take().map_or(Ok(()), Err);
        // A read that was taken back whole has been at no drive, and nobody sees its completion.
        let at_drive = whole.at_drive.take()?;
        Some(Completion { ticket: whole.ticket, at_drive, result })
    }

    /// Looks at each drive once.
    fn poll(&mut self) -> Option<Completion> {
        for lane in 0..self.drives.len() {
            while self.drives[lane].queued_reads > 0 {
                let Some(completion) = self.drives[lane].drive.reader.wait_any(Some(Duration::ZERO)) else {
                    break;
                };
                if let Some(done) = self.settle(lane, completion) {
                    return Some(done);
                }
            }
        }
        None
    }

    /// Index of an outstanding read.
    fn find(&self, ticket: Ticket) -> Option<u32> {
        let at = self.whole.iter().position(|whole| whole.left > 0 && whole.ticket == ticket);
        at.map(|at| at as u32)
    }
}

impl Lane {
    fn bytes_per_s(&self) -> f64 {
        // A drive that answers at once is no reason to divide by nothing.
        self.done_bytes / self.busy_s.max(1e-9)
    }

    fn enqueue(&mut self, read: Read) {
        if self.queued_reads == 0 {
            self.since = Instant::now();
        }
        self.queued_reads += 1;
        self.queued_bytes += read.len;
        self.batch.push(read);
    }

    /// A read of `len` bytes is over, or taken back: then it brought nothing.
    fn dequeue(&mut self, len: u64, brought: bool) {
        let now = Instant::now();
        self.busy_s += (now - self.since).as_secs_f64();
        self.since = now;
        self.queued_reads -= 1;
        self.queued_bytes -= len;
        if brought {
            self.done_bytes += len as f64;
        }
        if self.done_bytes > FORGET_BYTES {
            (self.done_bytes, self.busy_s) = (self.done_bytes / 2.0, self.busy_s / 2.0);
        }
    }
}

/// The blocks `from..to` of a read.
fn cut(read: &Read, from: u64, to: u64) -> Read {
    let first = if from == 0 { read.delta() } else { from * ALIGNMENT };
    let end = (to * ALIGNMENT).min(read.delta() + read.len);
    let start = read.offset - read.delta();
    // What is behind the last block of the window is the last slice's, as it was the whole read's.
    let last = end == read.delta() + read.len;
    let span = if last { read.span } else { to * ALIGNMENT } - from * ALIGNMENT;
    // SAFETY: `from` is a block of the read, which `assert_bounds` found inside the window.
    let window: NonNull<u8> = unsafe { read.window.add((from * ALIGNMENT) as usize) };
    Read { offset: start + first, len: end - first, window, span, ..*read }
}

// SAFETY: windows are passed on to the drives' readers, cut into parts that do not overlap, each to one drive at a time
// and anew only after the first one has completed it. A completion is handed out when the last slice of the read is
// over, and is without an error only if each slice was brought by some drive, whose files hold the same bytes. `cancel`
// answers true only when no slice is with a drive. Dropping drops the readers, which wait.
unsafe impl Reader for SpreadReader {
    unsafe fn submit(&mut self, reads: &[Read]) {
        assert!(self.outstanding() + reads.len() <= self.capacity, "more reads than the queue holds");
        let ways = self.ways(reads.len());
        for read in reads {
            read.assert_bounds();
            self.take(read, ways);
        }
        self.flush();
    }

    fn promote(&mut self, ticket: Ticket) {
        let Some(whole) = self.find(ticket) else { return };
        for index in 0..self.slices.len() {
            let slice = &mut self.slices[index];
            if slice.whole == whole
                && let Some(read) = &mut slice.read
            {
                read.priority = Priority::Demand;
                self.drives[slice.lane as usize].drive.reader.promote(Ticket(index as u64));
            }
        }
    }

    fn cancel(&mut self, ticket: Ticket) -> bool {
        let Some(whole) = self.find(ticket) else { return false };
        let mut all = true;
        for index in 0..self.slices.len() {
            let slice = &mut self.slices[index];
            let Some(read) = slice.read.filter(|_| slice.whole == whole) else { continue };
            let lane = &mut self.drives[slice.lane as usize];
            slice.cancelled = lane.drive.reader.cancel(Ticket(index as u64));
            all &= slice.cancelled;
            if slice.cancelled {
                lane.dequeue(read.len, false);
            }
        }
        for index in 0..self.slices.len() {
            let slice = &mut self.slices[index];
            if slice.whole != whole || !std::mem::take(&mut slice.cancelled) {
                continue;
            }
            if all {
                // The last one frees the whole read; its completion is what nobody will see.
                let _ = self.end_slice(index, None);
            } else if let Some(read) = slice.read {
                // The read will complete, so all of it has to.
                self.drives[slice.lane as usize].enqueue(read);
            }
        }
        self.flush();
        all
    }

    fn wait_any(&mut self, timeout: Option<Duration>) -> Option<Completion> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        while self.outstanding() > 0 {
            if let Some(done) = self.poll() {
                return Some(done);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if timeout == Some(Duration::ZERO) || left == Some(Duration::ZERO) {
                return None;
            }
            let busy = (0..self.drives.len()).filter(|&lane| self.drives[lane].queued_reads > 0);
            let several = busy.clone().count() > 1;
            let until = |lane: &usize| {
                let lane = &self.drives[*lane];
                lane.queued_bytes as f64 / lane.queued_reads as f64 / lane.bytes_per_s()
            };
            let soonest = busy.min_by(|a, b| until(a).total_cmp(&until(b)));
            let lane = soonest.expect("an outstanding read is with a drive");
            let turn = if several { Some(left.map_or(TURN, |left| left.min(TURN))) } else { left };
            if let Some(completion) = self.drives[lane].drive.reader.wait_any(turn)
                && let Some(done) = self.settle(lane, completion)
            {
                return Some(done);
            }
        }
        None
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn describe(&self) -> String {
        let cut = match self.options.ways {
            1 => String::new(),
            ways => format!(", few reads cut {ways} ways"),
        };
        let drives: Vec<String> = self.drives.iter().map(|lane| lane.drive.reader.describe()).collect();
        let Some((first, others)) = drives.split_first().filter(|(_, others)| !others.is_empty()) else {
            return format!("{}{cut}", drives[0]);
        };
        let how = if self.options.stripe { "each read striped over" } else { "reads spread over" };
        let (n, same) = (drives.len(), others.iter().all(|other| other == first));
        let readers = if same { format!("each {first}") } else { drives.join("; ") };
        format!("{how} {n} copies, {readers}{cut}")
    }

    unsafe fn register(&mut self, regions: &[(NonNull<u8>, usize)]) {
        for lane in &mut self.drives {
            // SAFETY: our caller's promise, handed on.
            unsafe { lane.drive.reader.register(regions) };
        }
    }

    fn take_warning(&mut self) -> Option<String> {
        self.warning
            .take()
            .or_else(|| self.drives.iter_mut().find_map(|lane| lane.drive.reader.take_warning()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::Origin;
    use files::FileIndex;

    /// Slices cover the wanted bytes once, in order, each inside its own part of the window.
    #[test]
    fn slices_cover_a_read_exactly() {
        let mut memory = vec![0u8; 40 << 12];
        let aligned = memory.as_mut_ptr().wrapping_add(memory.as_ptr().align_offset(4096));
        let window = NonNull::new(aligned).unwrap();
        for offset in [0, 1, 4095, 4096, 5000, 8191] {
            for len in [1, 4095, 4096, 4097, 20_000, 65_536] {
                let origin = Origin { layer: 0, expert: 0, part: 0 };
                let (ticket, file, span) = (Ticket(7), FileIndex(0), 20 << 12);
                let priority = Priority::Demand;
                let read = Read { ticket, file, offset, len, window, span, priority, origin };
                let blocks = (read.delta() + len).div_ceil(ALIGNMENT);
                for ways in 1..=blocks.min(5) {
                    let (mut at, mut memory) = (offset, window.as_ptr() as u64);
                    for i in 0..ways {
                        let slice = cut(&read, blocks * i / ways, blocks * (i + 1) / ways);
                        slice.assert_bounds();
                        assert_eq!((slice.offset, slice.window.as_ptr() as u64), (at, memory));
                        at += slice.len;
                        memory += slice.span;
                    }
                    assert_eq!(at, offset + len);
                    assert_eq!(memory, window.as_ptr() as u64 + span);
                }
            }
        }
    }
}
