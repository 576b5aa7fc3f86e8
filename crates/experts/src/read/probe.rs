//! How fast a drive brings bytes, measured through a [`Reader`], so that whatever reads experts can be probed.
//!
//! A figure is only worth something if the bytes came from the drive. Three things are looked at: places that the page cache
//! holds are passed over ([`PageCache::holds`], where the system tells); a small read that is no slower than
//! its own repetition through the page cache came from memory ([`looks_cached`]); and files with holes are no measure
//! at all ([`is_sparse`]).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use files::{ExpertTensor, FileIndex};
use serde::Serialize;

use super::cache::PageCache;
use super::pread::{Options, PreadReader};
use super::sim::Random;
use super::{Origin, Priority, Read, Reader, ReaderChoice, Ticket};
use crate::{ALIGNMENT, BankPlan, BankSize, LayerExperts, Result};

mod select;

pub use select::{Selected, probe_reader, select};

/// Part of a file that reads may land in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Index into the files of the reader.
    pub file: FileIndex,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Where the experts of a model lie.
pub fn stretches(experts: &[ExpertTensor]) -> Vec<Stretch> {
    let stretch = |tensor: &ExpertTensor| {
        let last = tensor.stride * tensor.n_expert().saturating_sub(1);
        Stretch { file: tensor.file, offset: tensor.offset, len: last + tensor.expert_bytes }
    };
    experts.iter().map(stretch).collect()
}

/// Bytes of the longest read that a miss takes: one family, or several where the file has them side by side. Errors:
/// [`crate::Error::Geometry`] for tensors that cannot be streamed.
pub fn read_bytes(experts: &[ExpertTensor]) -> Result<u64> {
    let mut longest = 0;
    for layer in experts.chunk_by(|a, b| a.layer == b.layer) {
        let n_expert = u32::try_from(layer[0].n_expert()).unwrap_or(u32::MAX);
        let layer = LayerExperts { layer: layer[0].layer, n_expert, tensors: layer.to_vec() };
        longest = longest.max(BankPlan::new(BankSize::All, 0, 1, &[layer])?.read_bytes_max());
    }
    Ok(longest)
}

/// One measurement: reads of one size, so many in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// Bytes of each read.
    pub read_bytes: u64,
    /// Reads in flight.
    pub depth: usize,
    /// Reads that completed.
    pub reads: u64,
    /// Nanoseconds from the first submission to the last completion.
    pub ns: u64,
    /// Nanoseconds that the median read took from its submission to its completion.
    pub latency_ns: u64,
    /// A quarter of the reads took no longer than this: what a busy processor adds to the others is not in it.
    pub latency_low_ns: u64,
}

impl Cell {
    /// 10⁹ bytes per second; 0 where no time passed.
    pub fn gb_per_s(&self) -> f64 {
        if self.ns == 0 { 0.0 } else { (self.reads * self.read_bytes) as f64 / self.ns as f64 }
    }
}

/// What became of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measured {
    /// It took place.
    Rate(Cell),
    /// There were hardly any places that the page cache does not hold: a rate would be that of memory.
    Cached,
    /// No stretch is as long as a read.
    TooSmall,
}

impl Measured {
    /// The cell, where there is one.
    pub fn cell(self) -> Option<Cell> {
        match self {
            Measured::Rate(cell) => Some(cell),
            Measured::Cached | Measured::TooSmall => None,
        }
    }
}

/// A read of the probe that failed.
#[derive(Debug)]
pub struct Failed {
    /// The file.
    pub file: FileIndex,
    /// Where the read stood, in bytes from the start of the file.
    pub offset: u64,
    /// What the system said.
    pub source: io::Error,
}

/// Memory for reads in flight, touched, so that first touches are not measured as reads.
#[derive(Debug)]
pub struct Windows {
    memory: Vec<u8>,
    span: u64,
    count: usize,
}

impl Windows {
    /// For `count` reads of at most `read_bytes` at a time.
    pub fn new(read_bytes: u64, count: usize) -> Windows {
        let span = read_bytes.next_multiple_of(ALIGNMENT);
        let memory = vec![0x5a; span as usize * count + ALIGNMENT as usize];
        Windows { memory, span, count }
    }

    fn start(&mut self) -> NonNull<u8> {
        let skip = self.memory.as_ptr().align_offset(ALIGNMENT as usize);
        NonNull::from(&mut self.memory[skip..]).cast()
    }
}

/// Reads below this are not asked about beforehand: the question would fetch a good part of what is to be measured.
const QUESTION_BYTES_MIN: u64 = 64 << 10;
/// Places drawn in search of one that the page cache does not hold.
const DRAWS: usize = 64;
/// Fewer reads than this are no measurement of a file that is mostly cached.
const READS_MIN: u64 = 4;
/// Bytes of the reads whose latency tells drive and memory apart: one block.
pub const LATENCY_READ_BYTES: u64 = 4 << 10;

/// A reader on the stand.
pub struct Probe<'a> {
    reader: &'a mut dyn Reader,
    stretches: &'a [Stretch],
    windows: &'a mut Windows,
    /// Asked before each place is read; none reads anywhere, as direct readers may.
    cache: Option<&'a PageCache>,
    random: Random,
    tickets: u64,
    /// Places that were read or asked about since they were last taken.
    touched: Vec<Stretch>,
}

impl fmt::Debug for Probe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe").field("stretches", &self.stretches.len()).finish_non_exhaustive()
    }
}

impl<'a> Probe<'a> {
    /// `cache` is given for readers that go through the page cache: places that it holds are passed over. `seed` decides
    /// which places are read.
    pub fn new(
        reader: &'a mut dyn Reader,
        stretches: &'a [Stretch],
        windows: &'a mut Windows,
        cache: Option<&'a PageCache>,
        seed: u64,
    ) -> Probe<'a> {
        Probe { reader, stretches, windows, cache, random: Random(seed), tickets: 0, touched: Vec::new() }
    }

    /// Reads `read_bytes` at random places, `depth` at a time, for `budget`; reads in flight then are waited for. Lowers
    /// `depth` to what the windows and the reader hold.
    pub fn measure(
        &mut self,
        read_bytes: u64,
        depth: usize,
        budget: Duration,
    ) -> std::result::Result<Measured, Failed> {
        if !self.stretches.iter().any(|stretch| stretch.len >= read_bytes) {
            return Ok(Measured::TooSmall);
        }
        let (cell, ran_out) = self.run(read_bytes, depth, budget, None)?;
        Ok(if ran_out && cell.reads < READS_MIN { Measured::Cached } else { Measured::Rate(cell) })
    }

    /// Small reads one by one, each place once and then again in the same order: (first, repeated).
    pub fn measure_twice(&mut self, budget: Duration) -> std::result::Result<Option<(Cell, Cell)>, Failed> {
        if !self.stretches.iter().any(|stretch| stretch.len >= LATENCY_READ_BYTES) {
            return Ok(None);
        }
        let from = self.touched.len();
        let (first, _) = self.run(LATENCY_READ_BYTES, 1, budget / 2, None)?;
        let places: Vec<Stretch> = self.touched[from..].to_vec();
        let (again, _) = self.run(LATENCY_READ_BYTES, 1, budget / 2, Some(&places))?;
        Ok(Some((first, again)))
    }

    /// What was brought into the page cache by this probe, for [`PageCache::forget`].
    pub fn take_touched(&mut self) -> Vec<Stretch> {
        std::mem::take(&mut self.touched)
    }

    /// Also says whether it ended before its time because there were no more places.
    fn run(
        &mut self,
        read_bytes: u64,
        depth: usize,
        budget: Duration,
        places: Option<&[Stretch]>,
    ) -> std::result::Result<(Cell, bool), Failed> {
        let depth = depth.min(self.windows.count).min(self.reader.capacity()).max(1);
        assert!(read_bytes <= self.windows.span, "the windows are made for the largest read");
        let (start, span) = (self.windows.start(), self.windows.span);
        let mut given = places.map(|places| places.iter().copied());
        let mut flight = Flight { reader: &mut *self.reader, reads: vec![None; depth], outstanding: 0 };
        let (begun, mut last) = (Instant::now(), Duration::ZERO);
        let (mut latencies, mut ran_out) = (Vec::<u64>::with_capacity(4096), false);
        loop {
            while !ran_out && flight.outstanding < depth && begun.elapsed() < budget {
                let place = match &mut given {
                    Some(places) => places.next(),
                    None => draw(self.stretches, self.cache, &mut self.random, &mut self.touched, read_bytes),
                };
                let Some(place) = place else {
                    ran_out = true;
                    break;
                };
                self.tickets += 1;
                // SAFETY: `start` begins `count` spans of memory that `windows` owns and that nobody else touches while this
                // probe borrows it; `submit` uses each span for one read at a time, and the flight is over before the borrow is.
                unsafe { flight.submit(Ticket(self.tickets), place, start, span) };
            }
            let Some((read, result)) = flight.wait() else { break };
            if let Err(failure) = result {
                return Err(Failed { file: read.file, offset: failure.offset, source: failure.source });
            }
            last = begun.elapsed();
            latencies.push(read.submitted.elapsed().as_nanos() as u64);
        }
        latencies.sort_unstable();
        let part = |of: usize| latencies.get(latencies.len() / of).copied().unwrap_or(0);
        let (latency_ns, latency_low_ns) = (part(2), part(4));
        let reads = latencies.len() as u64;
        Ok((
            Cell { read_bytes, depth, reads, ns: last.as_nanos() as u64, latency_ns, latency_low_ns },
            ran_out,
        ))
    }
}

/// A random place of `read_bytes` on a block boundary, which the page cache does not hold as far as that is known.
fn draw(
    stretches: &[Stretch],
    cache: Option<&PageCache>,
    random: &mut Random,
    touched: &mut Vec<Stretch>,
    read_bytes: u64,
) -> Option<Stretch> {
    let room = |stretch: &Stretch| {
        let first = stretch.offset.next_multiple_of(ALIGNMENT);
        let room = (stretch.offset + stretch.len).checked_sub(first + read_bytes)?;
        Some((first, room / ALIGNMENT + 1))
    };
    let blocks: u64 = stretches.iter().filter_map(room).map(|(_, blocks)| blocks).sum();
    if blocks == 0 {
        return None;
    }
    for _ in 0..DRAWS {
        let mut at = random.below(blocks);
        let place = stretches.iter().find_map(|stretch| {
            let (first, blocks) = room(stretch)?;
            if at < blocks {
                return Some(Stretch { file: stretch.file, offset: first + at * ALIGNMENT, len: read_bytes });
            }
            at -= blocks;
            None
        })?;
        let held = match cache {
            Some(cache) if read_bytes >= QUESTION_BYTES_MIN => {
                cache.holds(place.file, place.offset, read_bytes)
            }
            _ => None,
        };
        if held != Some(true) {
            touched.push(place);
            return Some(place);
        }
    }
    None
}

#[derive(Debug, Clone, Copy)]
struct InFlight {
    ticket: Ticket,
    file: FileIndex,
    submitted: Instant,
}

/// Reads in flight, each in a window of its own. None outlives it: dropping waits for all of them.
struct Flight<'a> {
    reader: &'a mut dyn Reader,
    reads: Vec<Option<InFlight>>,
    outstanding: usize,
}

impl Flight<'_> {
    /// # Safety
    /// `start` begins as many spans of writable memory as there may be reads, valid and untouched until this flight is dropped.
    unsafe fn submit(&mut self, ticket: Ticket, place: Stretch, start: NonNull<u8>, span: u64) {
        let free = self.reads.iter().position(Option::is_none).expect("fewer reads than windows");
        // SAFETY: the caller's memory has a span for every index of `reads`.
        let window = unsafe { start.add(free * span as usize) };
        let read = Read {
            ticket,
            file: place.file,
            offset: place.offset,
            len: place.len,
            window,
            span,
            priority: Priority::Demand,
            origin: Origin { layer: 0, expert: 0, part: 0 },
        };
        self.reads[free] = Some(InFlight { ticket, file: place.file, submitted: Instant::now() });
        self.outstanding += 1;
        // SAFETY: the window is this read's alone: its index was free, and stays taken until the completion.
        unsafe { self.reader.submit(&[read]) };
    }

    /// The next completion, or none when nothing is in flight.
    fn wait(&mut self) -> Option<(InFlight, std::result::Result<(), super::ReadFailure>)> {
        if self.outstanding == 0 {
            return None;
        }
        let completion = self.reader.wait_any(None)?;
        let ours = |read: &Option<InFlight>| read.is_some_and(|read| read.ticket == completion.ticket);
        let at = self.reads.iter().position(ours).expect("a completion of a read of ours");
        self.outstanding -= 1;
        Some((self.reads[at].take()?, completion.result))
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        while self.outstanding > 0 && self.reader.wait_any(None).is_some() {
            self.outstanding -= 1;
        }
    }
}

/// Whether reads as quick as `first` came from memory: `repeated` is the same size through the page cache, twice in a row. A
/// drive takes several times as long for its first block.
pub fn looks_cached(first: &Cell, repeated: &Cell) -> bool {
    first.latency_low_ns < repeated.latency_low_ns * 2
}

/// Whether a good part of the file is not stored anywhere (holes, or blocks that the filesystem has compressed), so that reading
/// it says nothing about the drive. False where the system does not tell.
pub fn is_sparse(path: &Path) -> io::Result<bool> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        const BLOCK_BYTES: u64 = 512;
        let meta = std::fs::metadata(path)?;
        Ok(meta.blocks() * BLOCK_BYTES < meta.len() / 10 * 9)
    }
    #[cfg(not(unix))]
    {
        std::fs::metadata(path).map(|_| false)
    }
}

/// Which of two readers brings the experts of a model faster, and how that came about.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Choice {
    /// [`ReaderChoice::Direct`] or [`ReaderChoice::Buffered`].
    #[serde(serialize_with = "name_of")]
    pub reader: ReaderChoice,
    /// Through the direct reader, where it was measured.
    pub direct_gb_per_s: Option<f64>,
    /// Through the buffered one, from places that the page cache did not hold.
    pub buffered_gb_per_s: Option<f64>,
    /// The reason, in a few words.
    pub why: &'static str,
}

fn name_of<S: serde::Serializer>(choice: &ReaderChoice, out: S) -> std::result::Result<S::Ok, S::Error> {
    out.serialize_str(match choice {
        ReaderChoice::Auto => "auto",
        ReaderChoice::Direct => "direct",
        ReaderChoice::Buffered => "buffered",
    })
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate =
            |rate: Option<f64>| rate.map_or("not measured".to_owned(), |rate| format!("{rate:.2} GB/s"));
        let (direct, buffered) = (rate(self.direct_gb_per_s), rate(self.buffered_gb_per_s));
        write!(f, "direct {direct}, buffered {buffered}: {}", self.why)
    }
}

/// The choice takes at most this long on a drive that brings 50 MB/s or more.
pub const CHOICE_BUDGET: Duration = Duration::from_millis(300);
/// Buffered reads cost a copy and the memory of the page cache: they must be clearly faster, each time, to be worth it.
const CLEARLY_FASTER: f64 = 1.25;
/// Reads in flight, enough for any drive to show what it can do, few enough to end in time.
const CHOICE_DEPTH: usize = 4;
const CHOICE_READ_BYTES_MAX: u64 = 1 << 20;

/// Reads experts of `files` directly and through the page cache, in turns, within [`CHOICE_BUDGET`].
///
/// Direct wins ties, and whenever the page cache holds so much of the files that buffered reads would say nothing about the
/// drive: what it holds now competes for memory with the bank later. Errors: a file that cannot be opened.
pub fn probe_direct_or_buffered(files: &[PathBuf], stretches: &[Stretch], read_bytes: u64) -> Result<Choice> {
    direct_or_buffered(files, stretches, read_bytes, CHOICE_BUDGET)
}

/// The same within another budget.
fn direct_or_buffered(
    files: &[PathBuf],
    stretches: &[Stretch],
    read_bytes: u64,
    budget: Duration,
) -> Result<Choice> {
    let open = |choice| {
        let options = Options { choice, threads: CHOICE_DEPTH, ..Options::default() };
        PreadReader::open(files, &options)
    };
    let chosen = |reader, why| Choice { reader, direct_gb_per_s: None, buffered_gb_per_s: None, why };
    let mut direct = match open(ReaderChoice::Direct) {
        Ok(reader) => reader,
        Err(crate::Error::DirectRefused { .. }) => {
            return Ok(chosen(ReaderChoice::Buffered, "direct reads are refused"));
        }
        Err(error) => return Err(error),
    };
    if files.iter().any(|path| is_sparse(path).unwrap_or(false)) {
        return Ok(chosen(ReaderChoice::Direct, "the files have holes, so nothing was measured"));
    }
    let mut buffered = open(ReaderChoice::Buffered)?;
    let cache = PageCache::open(files)?;
    let readers: [&mut dyn Reader; 2] = [&mut direct, &mut buffered];
    // A read that fails here fails again when the bank wants it, and is reported there with layer and expert.
    let failed = |_: Failed| chosen(ReaderChoice::Direct, "a read failed, so nothing was measured");
    Ok(choose(readers, stretches, &cache, read_bytes, budget).unwrap_or_else(failed))
}

/// The same with any two readers over the same files, the direct one first.
pub fn choose(
    readers: [&mut dyn Reader; 2],
    stretches: &[Stretch],
    cache: &PageCache,
    read_bytes: u64,
    budget: Duration,
) -> std::result::Result<Choice, Failed> {
    let [direct, buffered] = readers;
    alternate([(direct, None), (buffered, Some(cache))], stretches, read_bytes, budget)
        .map(|rates| decide(&rates))
}

/// A reader, and the page cache where it goes through that.
type Side<'a> = (&'a mut dyn Reader, Option<&'a PageCache>);

/// GB/s of two readers, in turns (A B, B A); none where nothing could be measured.
fn alternate(
    mut sides: [Side<'_>; 2],
    stretches: &[Stretch],
    read_bytes: u64,
    budget: Duration,
) -> std::result::Result<Vec<[Option<f64>; 2]>, Failed> {
    const TURNS: u32 = 2;
    let read_bytes = read_bytes.clamp(LATENCY_READ_BYTES, CHOICE_READ_BYTES_MAX);
    let end = Instant::now() + budget;
    let mut windows = Windows::new(read_bytes, CHOICE_DEPTH);
    let mut rates: Vec<[Option<f64>; 2]> = Vec::new();
    for turn in 0..TURNS {
        let mut pair = [None; 2];
        for side in if turn % 2 == 0 { [0, 1] } else { [1, 0] } {
            let (reader, cache) = &mut sides[side];
            let (cache, seed) = (*cache, u64::from(turn) + 1);
            let mut probe = Probe::new(&mut **reader, stretches, &mut windows, cache, seed);
            // What is left for all the turns to come, less what is in flight when time is up.
            let turns_left = 2 * (TURNS - turn) - u32::from(side != turn as usize % 2);
            let share = end.saturating_duration_since(Instant::now()) / turns_left;
            // A turn that came too late for more than a read or two, because those before it took all the time, is no measurement.
            let cell = probe.measure(read_bytes, CHOICE_DEPTH, share * 3 / 4)?.cell();
            pair[side] = cell.filter(|cell| cell.reads >= READS_MIN).map(|cell| cell.gb_per_s());
            if let Some(cache) = cache {
                probe
                    .take_touched()
                    .iter()
                    .for_each(|place| cache.forget(place.file, place.offset, place.len));
            }
        }
        rates.push(pair);
    }
    Ok(rates)
}

/// Direct unless buffered was clearly faster each time.
fn decide(rates: &[[Option<f64>; 2]]) -> Choice {
    let mean = |side: usize| {
        let all: Option<Vec<f64>> = rates.iter().map(|pair| pair[side]).collect();
        all.filter(|all| !all.is_empty()).map(|all| all.iter().sum::<f64>() / all.len() as f64)
    };
    let (direct, buffered) = (mean(0), mean(1));
    let each_time = rates.iter().all(|pair| matches!(pair, [Some(d), Some(b)] if *b > *d * CLEARLY_FASTER));
    let (reader, why) = match (direct, buffered) {
        (Some(_), Some(_)) if each_time => (ReaderChoice::Buffered, "buffered is faster here"),
        (Some(direct), Some(buffered)) if buffered > direct => {
            (ReaderChoice::Direct, "buffered is not faster by enough to pay for its memory")
        }
        (Some(_), Some(_)) => (ReaderChoice::Direct, "direct is faster here"),
        (Some(_), None) => (
            ReaderChoice::Direct,
            "buffered could not be measured: the page cache holds the files, or time ran out",
        ),
        (None, _) => (ReaderChoice::Direct, "too few reads in the time to compare"),
    };
    Choice { reader, direct_gb_per_s: direct, buffered_gb_per_s: buffered, why }
}

#[cfg(test)]
mod tests;
