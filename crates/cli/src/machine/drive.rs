//! The drive: reads of several sizes, several at a time, past the page cache and through it, at random places.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use experts::read::cache::PageCache;
use experts::read::pread::{Options, PreadReader};
use experts::read::probe::{
    self, Cell, Choice, Failed, LATENCY_READ_BYTES, Measured, Probe, Stretch, Windows,
};
use experts::{Reader, ReaderChoice};
use files::{Checkpoint, Class, FileIndex};
use serde::Serialize;

use crate::machine::system::Filesystem;
use crate::ui::error::{Failure, Report};
use crate::ui::progress::Bar;
use crate::ui::units;

/// Files to read from, and where in them.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) files: Vec<PathBuf>,
    stretches: Vec<Stretch>,
    /// Bytes of the reads that a miss takes.
    pub(crate) expert_read_bytes: u64,
    /// A file of our own, gone with this.
    temporary: Option<Temporary>,
}

/// Where no model says how long its reads are.
const ASSUMED_READ_BYTES: u64 = 2 << 20;

impl Target {
    /// The experts of a model.
    pub(crate) fn experts(checkpoint: &Checkpoint) -> Result<Target, Failure> {
        let mut stretches = probe::stretches(checkpoint.experts());
        // Only the files with experts are opened, so that the indices stay small.
        let mut used: Vec<u32> = stretches.iter().map(|stretch| stretch.file.0).collect();
        used.sort_unstable();
        used.dedup();
        for stretch in &mut stretches {
            let at = used.binary_search(&stretch.file.0).expect("a file of the list");
            stretch.file = FileIndex(at as u32);
        }
        let files = used.iter().map(|&index| checkpoint.files()[index as usize].clone()).collect();
        let expert_read_bytes = probe::read_bytes(checkpoint.experts())?;
        Ok(Target { files, stretches, expert_read_bytes, temporary: None })
    }

    /// A file of random bytes in `folder`, written, synced, and taken out of the page cache as far as the system allows.
    pub(crate) fn temporary(folder: &Path, bytes: u64) -> Result<Target, Failure> {
        let temporary = Temporary::write(folder, bytes)?;
        let files = vec![temporary.path.clone()];
        PageCache::open(&files)?.forget(FileIndex(0), 0, bytes);
        let stretches = vec![Stretch { file: FileIndex(0), offset: 0, len: bytes }];
        Ok(Target { files, stretches, expert_read_bytes: ASSUMED_READ_BYTES, temporary: Some(temporary) })
    }

    pub(crate) fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }

    /// Bytes that may be read.
    pub(crate) fn bytes(&self) -> u64 {
        self.stretches.iter().map(|stretch| stretch.len).sum()
    }

    /// Whether reads of them say nothing about the drive, because a good part is not stored.
    pub(crate) fn is_sparse(&self) -> bool {
        self.files.iter().any(|path| probe::is_sparse(path).unwrap_or(false))
    }

    fn open(&self, choice: ReaderChoice) -> experts::Result<PreadReader> {
        PreadReader::open(&self.files, &Options { choice, threads: DEPTH_MAX, ..Options::default() })
    }

    fn failed(&self, failed: &Failed) -> Failure {
        let path = &self.files[failed.file.index()];
        Report::new(Class::Io, "cannot read")
            .place(format!("{}, offset {}", path.display(), failed.offset))
            .why(failed.source.to_string())
            .hint("`slotbank verify` finds out whether it is the drive or the file")
            .into()
    }
}

/// A file that does not outlive its owner.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn write(folder: &Path, bytes: u64) -> Result<Temporary, Failure> {
        const PIECE_BYTES: usize = 4 << 20;
        let path = folder.join(format!(".slotbank-doctor-{}", std::process::id()));
        let fail =
            |source: std::io::Error| Failure::file("cannot write a file to read from", folder, &source);
        let mut file = std::fs::File::create_new(&path).map_err(fail)?;
        // From here on it is removed, whatever happens.
        let temporary = Temporary { path };
        let mut piece = vec![0u8; PIECE_BYTES];
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let mut left = bytes;
        while left > 0 {
            // Every piece differs: drives and filesystems that store equal blocks once shall find none.
            for word in piece.chunks_exact_mut(8) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                word.copy_from_slice(&random.to_le_bytes());
            }
            let n = left.min(PIECE_BYTES as u64);
            file.write_all(&piece[..n as usize]).map_err(fail)?;
            left -= n;
        }
        file.sync_all().map_err(fail)?;
        Ok(temporary)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Reads in flight at most.
const DEPTH_MAX: usize = 16;
/// Memory for them; longer reads are measured with fewer in flight.
const WINDOWS_BYTES_MAX: u64 = 256 << 20;
/// A cell whose last reads would take longer than this is left out: the drive is too slow for it to matter.
const DRAIN_MAX: Duration = Duration::from_millis(1000);
/// A rate this close to the best is as good.
const AS_GOOD: f64 = 0.95;

/// What to measure, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    sizes: &'static [u64],
    depths: &'static [usize],
    cell: Duration,
    latency: Duration,
}

impl Effort {
    /// About 20 seconds.
    pub(crate) const FULL: Effort = Effort {
        sizes: &[128 << 10, 512 << 10, 2 << 20, 8 << 20],
        depths: &[1, 2, 4, 8, 16],
        cell: Duration::from_millis(360),
        latency: Duration::from_millis(600),
    };
    /// About 5 seconds.
    pub(crate) const QUICK: Effort = Effort {
        sizes: &[128 << 10, 2 << 20],
        depths: &[1, 4, 16],
        cell: Duration::from_millis(180),
        latency: Duration::from_millis(300),
    };

    /// The sizes, and that of the model's reads where none of them is near it.
    fn sizes(&self, expert_read_bytes: u64) -> Vec<u64> {
        let near = |&size: &u64| expert_read_bytes.max(size) * 4 <= expert_read_bytes.min(size) * 5;
        let mut sizes = self.sizes.to_vec();
        if !sizes.iter().any(near) {
            sizes.push(expert_read_bytes);
            sizes.sort_unstable();
        }
        sizes
    }
}

/// One measured cell.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DriveCell {
    pub(crate) reader: &'static str,
    pub(crate) read_bytes: u64,
    pub(crate) depth: usize,
    pub(crate) reads: u64,
    pub(crate) gb_per_s: f64,
    pub(crate) latency_us: f64,
}

impl DriveCell {
    fn new(reader: &'static str, cell: &Cell) -> DriveCell {
        let latency_us = cell.latency_ns as f64 / 1e3;
        let (read_bytes, depth, reads) = (cell.read_bytes, cell.depth, cell.reads);
        DriveCell { reader, read_bytes, depth, reads, gb_per_s: cell.gb_per_s(), latency_us }
    }
}

/// Where the bytes of a measurement came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Origin {
    /// The drive, as far as can be told from here.
    Drive,
    /// Memory: the page cache, or something below that answers as fast.
    Memory,
    /// Nowhere: holes.
    Holes,
}

/// The drive under some files.
#[derive(Debug, Serialize)]
pub(crate) struct Drive {
    /// Rate at the model's read size with the smallest depth that reaches the best one; absent when the bytes did not come from
    /// the drive.
    pub(crate) read_gb_per_s: Option<f64>,
    /// One small read at a time.
    pub(crate) read_latency_us: Option<f64>,
    /// The reader that these two are about.
    pub(crate) reader: &'static str,
    pub(crate) origin: Origin,
    /// Why direct reads are refused; absent when they are not.
    pub(crate) direct_refused: Option<String>,
    pub(crate) expert_read_bytes: u64,
    /// The smallest depth as good as the best at that size.
    pub(crate) best_depth: Option<usize>,
    /// The smallest read as good as the best of all.
    pub(crate) best_read_bytes: Option<u64>,
    /// Through the page cache, one small read at a time, the second time: what memory takes.
    pub(crate) cached_latency_us: Option<f64>,
    /// Buffered reads that were left out because the page cache held the places.
    pub(crate) cached_cells: usize,
    pub(crate) cells: Vec<DriveCell>,
    /// What a quick look at both readers, in turns, prefers; absent when the bytes did not come from the drive.
    pub(crate) choice: Option<Choice>,
}

impl Drive {
    fn nothing(origin: Origin, expert_read_bytes: u64) -> Drive {
        Drive {
            read_gb_per_s: None,
            read_latency_us: None,
            reader: "none",
            origin,
            direct_refused: None,
            expert_read_bytes,
            best_depth: None,
            best_read_bytes: None,
            cached_latency_us: None,
            cached_cells: 0,
            cells: Vec::new(),
            choice: None,
        }
    }

    /// Best rate of the cells of one reader.
    pub(crate) fn best_of(&self, reader: &str) -> Option<f64> {
        let rates = self.cells.iter().filter(|cell| cell.reader == reader).map(|cell| cell.gb_per_s);
        rates.max_by(f64::total_cmp)
    }

    /// The figures that are derived from the cells.
    fn conclude(&mut self) {
        let cells: Vec<&DriveCell> = self.cells.iter().filter(|cell| cell.reader == self.reader).collect();
        let best = |cells: &[&DriveCell]| cells.iter().map(|cell| cell.gb_per_s).fold(0.0, f64::max);
        let distance = |cell: &DriveCell| cell.read_bytes.abs_diff(self.expert_read_bytes);
        let Some(nearest) = cells.iter().map(|cell| distance(cell)).min() else { return };
        let sized: Vec<&DriveCell> = cells.iter().copied().filter(|cell| distance(cell) == nearest).collect();
        let enough = best(&sized) * AS_GOOD;
        let depth = sized.iter().filter(|cell| cell.gb_per_s >= enough).min_by_key(|cell| cell.depth);
        let all = best(&cells) * AS_GOOD;
        let size = cells.iter().filter(|cell| cell.gb_per_s >= all).min_by_key(|cell| cell.read_bytes);
        (self.best_depth, self.best_read_bytes) = (depth.map(|c| c.depth), size.map(|c| c.read_bytes));
        self.read_gb_per_s = depth.map(|cell| cell.gb_per_s).filter(|_| self.origin == Origin::Drive);
    }
}

/// Measures all of it.
pub(crate) fn measure(target: &Target, effort: &Effort, quiet: bool) -> Result<Drive, Failure> {
    if target.is_sparse() {
        return Ok(Drive::nothing(Origin::Holes, target.expert_read_bytes));
    }
    let cache = PageCache::open(&target.files)?;
    let mut buffered = target.open(ReaderChoice::Buffered)?;
    let (mut direct, direct_refused) = match target.open(ReaderChoice::Direct) {
        Ok(reader) => (Some(reader), None),
        Err(experts::Error::DirectRefused { source, .. }) => (None, Some(source.to_string())),
        Err(error) => return Err(error.into()),
    };
    let longest = target.stretches.iter().map(|stretch| stretch.len).max().unwrap_or(0);
    let sizes: Vec<u64> =
        effort.sizes(target.expert_read_bytes).into_iter().filter(|&size| size <= longest).collect();
    let windows_bytes = sizes.iter().copied().max().unwrap_or(0).max(LATENCY_READ_BYTES);
    let at_once = ((WINDOWS_BYTES_MAX / windows_bytes) as usize).clamp(4, DEPTH_MAX);
    let mut stand = Stand { target, cache: &cache, windows: Windows::new(windows_bytes, at_once), seed: 1 };
    let mut drive = Drive { direct_refused, ..Drive::nothing(Origin::Drive, target.expert_read_bytes) };
    stand.latencies(&mut drive, direct.as_mut(), &mut buffered, effort.latency)?;
    let bar = Bar::count(quiet, (sizes.len() * effort.depths.len() * 2) as u64);
    let mut done = 0;
    for &size in &sizes {
        for &depth in effort.depths.iter().filter(|&&depth| depth <= at_once) {
            for side in [ReaderChoice::Direct, ReaderChoice::Buffered] {
                done += 1;
                bar.set(done, done, format!("{} × {depth}", units::bytes(size)));
                let (name, reader, cache): (_, &mut dyn Reader, _) = match (side, direct.as_mut()) {
                    (ReaderChoice::Direct, Some(direct)) => (DIRECT, direct, None),
                    (ReaderChoice::Direct, None) => continue,
                    _ => (BUFFERED, &mut buffered, Some(&cache)),
                };
                if drain(&drive.cells, name, size, depth) > DRAIN_MAX {
                    continue;
                }
                match stand.cell(reader, cache, size, depth, effort.cell)? {
                    Measured::Rate(cell) => drive.cells.push(DriveCell::new(name, &cell)),
                    Measured::Cached => drive.cached_cells += 1,
                    Measured::TooSmall => {}
                }
            }
        }
    }
    drive.conclude();
    if drive.origin == Origin::Drive {
        let read_bytes = target.expert_read_bytes;
        drive.choice = Some(probe::probe_direct_or_buffered(&target.files, &target.stretches, read_bytes)?);
    }
    Ok(drive)
}

const DIRECT: &str = "direct";
const BUFFERED: &str = "buffered";

/// What the last reads of a cell would take, by the best rate so far.
fn drain(cells: &[DriveCell], reader: &str, read_bytes: u64, depth: usize) -> Duration {
    let rates = cells.iter().filter(|cell| cell.reader == reader).map(|cell| cell.gb_per_s);
    match rates.max_by(f64::total_cmp) {
        Some(rate) if rate > 0.0 => Duration::from_secs_f64((read_bytes * depth as u64) as f64 / 1e9 / rate),
        _ => Duration::ZERO,
    }
}

/// What every measurement shares.
struct Stand<'a> {
    target: &'a Target,
    cache: &'a PageCache,
    windows: Windows,
    seed: u64,
}

impl Stand<'_> {
    /// Small reads, one at a time, and whether they came from memory.
    fn latencies(
        &mut self,
        drive: &mut Drive,
        direct: Option<&mut PreadReader>,
        buffered: &mut PreadReader,
        budget: Duration,
    ) -> Result<(), Failure> {
        let twice = {
            let mut probe = Probe::new(buffered, &self.target.stretches, &mut self.windows, None, self.seed);
            let twice = probe.measure_twice(budget).map_err(|failed| self.target.failed(&failed))?;
            forget(self.cache, probe.take_touched());
            twice
        };
        let Some((first, again)) = twice else { return Ok(()) };
        let (name, cell) = match direct {
            None => (BUFFERED, first),
            Some(direct) => match self.cell(direct, None, LATENCY_READ_BYTES, 1, budget / 2)?.cell() {
                Some(cell) => (DIRECT, cell),
                None => return Ok(()),
            },
        };
        drive.reader = name;
        drive.cached_latency_us = Some(again.latency_ns as f64 / 1e3);
        let in_memory = self.target.files.iter().any(|path| Filesystem::of(path).is_memory());
        let from_memory = in_memory || probe::looks_cached(&cell, &again);
        drive.origin = if from_memory { Origin::Memory } else { Origin::Drive };
        drive.read_latency_us = (drive.origin == Origin::Drive).then_some(cell.latency_ns as f64 / 1e3);
        Ok(())
    }

    fn cell(
        &mut self,
        reader: &mut dyn Reader,
        cache: Option<&PageCache>,
        read_bytes: u64,
        depth: usize,
        budget: Duration,
    ) -> Result<Measured, Failure> {
        self.seed += 1;
        let mut probe = Probe::new(reader, &self.target.stretches, &mut self.windows, cache, self.seed);
        let measured =
            probe.measure(read_bytes, depth, budget).map_err(|failed| self.target.failed(&failed))?;
        if let Some(cache) = cache {
            forget(cache, probe.take_touched());
        }
        Ok(measured)
    }
}

/// Leaves the page cache as it was.
fn forget(cache: &PageCache, places: Vec<Stretch>) {
    places.iter().for_each(|place| cache.forget(place.file, place.offset, place.len));
}

/// The rate at the reads of a model, in half a second; or why there is none.
pub(crate) fn quick(target: &Target) -> Result<Result<DriveCell, &'static str>, Failure> {
    const DEPTH: usize = 8;
    const LATENCY: Duration = Duration::from_millis(100);
    const RATE: Duration = Duration::from_millis(300);
    if target.is_sparse() {
        return Ok(Err("the files have holes"));
    }
    let cache = PageCache::open(&target.files)?;
    let mut buffered = target.open(ReaderChoice::Buffered)?;
    let mut direct = match target.open(ReaderChoice::Direct) {
        Ok(reader) => Some(reader),
        Err(experts::Error::DirectRefused { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let read_bytes = target.expert_read_bytes;
    let windows = Windows::new(read_bytes.max(LATENCY_READ_BYTES), DEPTH);
    let mut stand = Stand { target, cache: &cache, windows, seed: 1 };
    let mut drive = Drive::nothing(Origin::Drive, read_bytes);
    stand.latencies(&mut drive, direct.as_mut(), &mut buffered, LATENCY)?;
    if drive.origin != Origin::Drive {
        return Ok(Err("the reads came from memory, not from the drive"));
    }
    let (name, reader, cache): (_, &mut dyn Reader, _) = match &mut direct {
        Some(direct) => (DIRECT, direct, None),
        None => (BUFFERED, &mut buffered, Some(&cache)),
    };
    Ok(match stand.cell(reader, cache, read_bytes, DEPTH, RATE)? {
        Measured::Rate(cell) => {
            let latency_us = drive.read_latency_us.unwrap_or_default();
            Ok(DriveCell { latency_us, ..DriveCell::new(name, &cell) })
        }
        Measured::Cached => Err("the page cache holds the files"),
        Measured::TooSmall => Err("the files are too small"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(reader: &'static str, read_bytes: u64, depth: usize, gb_per_s: f64) -> DriveCell {
        DriveCell { reader, read_bytes, depth, reads: 10, gb_per_s, latency_us: 1.0 }
    }

    fn drive(cells: Vec<DriveCell>) -> Drive {
        let mut drive = Drive { reader: DIRECT, cells, ..Drive::nothing(Origin::Drive, 3 << 20) };
        drive.conclude();
        drive
    }

    #[test]
    fn the_least_depth_and_size_that_are_as_good_as_the_best() {
        let drive = drive(vec![
            cell(DIRECT, 128 << 10, 16, 0.9),
            cell(DIRECT, 2 << 20, 1, 0.6),
            cell(DIRECT, 2 << 20, 4, 1.16),
            cell(DIRECT, 2 << 20, 16, 1.2),
            cell(DIRECT, 8 << 20, 16, 1.22),
            cell(BUFFERED, 2 << 20, 16, 9.0),
        ]);
        assert_eq!(drive.best_depth, Some(4), "2 MiB is nearest to the model's 3 MiB");
        assert_eq!(drive.read_gb_per_s, Some(1.16));
        assert_eq!(drive.best_read_bytes, Some(2 << 20));
        assert_eq!(drive.best_of(BUFFERED), Some(9.0));
    }

    #[test]
    fn memory_gives_no_rate() {
        let mut from_memory = drive(vec![cell(DIRECT, 2 << 20, 4, 6.0)]);
        assert_eq!(from_memory.read_gb_per_s, Some(6.0));
        from_memory.origin = Origin::Memory;
        from_memory.conclude();
        assert_eq!(from_memory.read_gb_per_s, None);
        assert_eq!(drive(Vec::new()).read_gb_per_s, None);
    }

    #[test]
    fn the_models_own_size_is_measured_where_none_is_near() {
        assert_eq!(Effort::QUICK.sizes(2_100_000), [128 << 10, 2 << 20]);
        assert_eq!(Effort::QUICK.sizes(700_000), [128 << 10, 700_000, 2 << 20]);
        assert_eq!(Effort::FULL.sizes(40 << 20).last(), Some(&(40 << 20)));
    }

    #[test]
    fn slow_drives_are_spared_the_deepest_reads() {
        let cells = [cell(DIRECT, 128 << 10, 1, 0.02)];
        assert!(drain(&cells, DIRECT, 8 << 20, 16) > DRAIN_MAX);
        assert!(drain(&cells, DIRECT, 128 << 10, 4) < DRAIN_MAX);
        assert_eq!(drain(&cells, BUFFERED, 8 << 20, 16), Duration::ZERO);
    }

    #[test]
    fn a_temporary_file_is_gone_afterwards() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = Target::temporary(folder.path(), 1 << 20).expect("written");
        assert_eq!(target.bytes(), 1 << 20);
        assert!(target.files[0].exists() && !target.is_sparse());
        drop(target);
        assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 0);
        assert!(Target::temporary(&folder.path().join("absent"), 1 << 20).is_err());
    }
}
