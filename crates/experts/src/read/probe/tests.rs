//! The probe against drives whose figures are known because they are made up.

use super::*;
use crate::read::sim::{Clock, Fault, FaultAt, Options as SimOptions, SimReader, Source};
use crate::read::{Completion, Interval, ReadFailure};

const FILE_BYTES: u64 = 8 << 20;

fn drive(options: SimOptions) -> SimReader {
    let content = vec![1u8; FILE_BYTES as usize].into();
    SimReader::new(vec![Source::Memory(content)], SimOptions { clock: Clock::Real, ..options })
}

fn everywhere() -> Vec<Stretch> {
    vec![
        Stretch { file: FileIndex(0), offset: 0, len: FILE_BYTES / 2 },
        Stretch { file: FileIndex(0), offset: FILE_BYTES / 2 + 100, len: FILE_BYTES / 2 - 100 },
    ]
}

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn the_rate_and_the_latency_are_those_of_the_drive() {
    let options = SimOptions { bandwidth: Some(200_000_000), latency: millis(2), ..SimOptions::default() };
    let (mut reader, mut windows, stretches) = (drive(options), Windows::new(64 << 10, 8), everywhere());
    let mut probe = Probe::new(&mut reader, &stretches, &mut windows, None, 1);
    let many = probe.measure(64 << 10, 8, millis(200)).unwrap().cell().unwrap();
    // Never faster than the drive; sleeps overrun on a busy machine, so the other side has room.
    assert!(many.gb_per_s() <= 0.21 && many.gb_per_s() > 0.05, "{many:?}");
    let one = probe.measure(4 << 10, 1, millis(100)).unwrap().cell().unwrap();
    assert!(one.latency_ns >= 2_000_000, "{one:?}");
    assert!(one.gb_per_s() < many.gb_per_s() / 4.0, "one small read at a time is latency alone: {one:?}");
}

#[test]
fn a_measurement_ends_in_time_on_a_slow_drive() {
    let options = SimOptions { bandwidth: Some(4 << 20), ..SimOptions::default() };
    let (mut reader, mut windows, stretches) = (drive(options), Windows::new(64 << 10, 4), everywhere());
    let mut probe = Probe::new(&mut reader, &stretches, &mut windows, None, 1);
    let begun = Instant::now();
    let cell = probe.measure(64 << 10, 4, millis(100)).unwrap().cell().unwrap();
    // 100 ms, and 4 reads of 16 ms that were in flight then.
    assert!(begun.elapsed() < millis(100 + 4 * 16 + 150), "{:?}", begun.elapsed());
    assert!(cell.reads >= 2, "{cell:?}");
}

#[test]
fn no_read_leaves_its_stretch_and_each_is_aligned() {
    let stretches = [Stretch { file: FileIndex(0), offset: 5000, len: 30_000 }];
    let mut random = Random(3);
    let mut touched = Vec::new();
    for _ in 0..200 {
        let place = draw(&stretches, None, &mut random, &mut touched, 8192).unwrap();
        assert!(place.offset >= 5000 && place.offset + place.len <= 35_000, "{place:?}");
        assert_eq!(place.offset % ALIGNMENT, 0);
    }
    let different: std::collections::BTreeSet<u64> = touched.iter().map(|place| place.offset).collect();
    assert_eq!(different, [8192, 12288, 16384, 20480, 24576].into(), "every block that fits, and no other");
    assert_eq!(draw(&stretches, None, &mut random, &mut touched, 32 << 10), None);
}

#[test]
fn what_is_smaller_than_a_read_is_not_measured() {
    let (mut reader, mut windows) = (drive(SimOptions::default()), Windows::new(1 << 20, 2));
    let stretches = [Stretch { file: FileIndex(0), offset: 0, len: 1 << 16 }];
    let mut probe = Probe::new(&mut reader, &stretches, &mut windows, None, 1);
    assert_eq!(probe.measure(1 << 20, 2, millis(10)).unwrap(), Measured::TooSmall);
    assert!(probe.measure(1 << 16, 2, millis(10)).unwrap().cell().is_some());
}

#[test]
fn a_failing_read_ends_the_probe_with_file_and_offset() {
    let faults = vec![Fault { at: FaultAt::Nth(2), times: 1 }];
    let options = SimOptions { faults, latency: millis(1), ..SimOptions::default() };
    let (mut reader, mut windows, stretches) = (drive(options), Windows::new(4 << 10, 4), everywhere());
    let mut probe = Probe::new(&mut reader, &stretches, &mut windows, None, 1);
    let failed = probe.measure(4 << 10, 4, millis(50)).unwrap_err();
    assert_eq!(failed.file, FileIndex(0));
    assert!(failed.offset < FILE_BYTES);
    // Nothing is left in flight: the reader can be used again.
    assert!(probe.measure(4 << 10, 4, millis(10)).unwrap().cell().is_some());
}

/// A drive under a cache: what was read once comes back at once.
struct Cached {
    inner: SimReader,
    known: Vec<(u64, u64)>,
    ready: Vec<Ticket>,
    all: bool,
}

// SAFETY: windows are only handed on to `inner`; a read that is answered here completes without bytes, which no test looks at.
unsafe impl Reader for Cached {
    unsafe fn submit(&mut self, reads: &[Read]) {
        for read in reads {
            let key = (read.offset, read.len);
            if self.all || self.known.contains(&key) {
                self.ready.push(read.ticket);
            } else {
                self.known.push(key);
                // SAFETY: as promised to us.
                unsafe { self.inner.submit(&[*read]) };
            }
        }
    }
    fn promote(&mut self, ticket: Ticket) {
        self.inner.promote(ticket);
    }
    fn cancel(&mut self, ticket: Ticket) -> bool {
        self.inner.cancel(ticket)
    }
    fn wait_any(&mut self, timeout: Option<Duration>) -> Option<Completion> {
        let Some(ticket) = self.ready.pop() else { return self.inner.wait_any(timeout) };
        std::thread::sleep(Duration::from_micros(50));
        let at_drive = Interval::since(Instant::now());
        Some(Completion { ticket, at_drive, result: Ok::<(), ReadFailure>(()) })
    }
    fn capacity(&self) -> usize {
        self.inner.capacity()
    }
    fn describe(&self) -> String {
        "cached".into()
    }
}

fn cached(all: bool) -> Cached {
    let options = SimOptions { latency: millis(3), ..SimOptions::default() };
    Cached { inner: drive(options), known: Vec::new(), ready: Vec::new(), all }
}

#[test]
fn memory_is_told_from_a_drive_by_reading_twice() {
    let (mut windows, stretches) = (Windows::new(4 << 10, 1), everywhere());
    let mut twice = |mut reader: Cached| {
        let mut probe = Probe::new(&mut reader, &stretches, &mut windows, None, 7);
        probe.measure_twice(millis(80)).unwrap().unwrap()
    };
    let (first, again) = twice(cached(false));
    assert!(!looks_cached(&first, &again), "{first:?} {again:?}");
    let (first, again) = twice(cached(true));
    assert!(looks_cached(&first, &again), "{first:?} {again:?}");
}

/// Files on a real filesystem, because the page cache is asked about them.
fn real_file() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("experts.bin");
    std::fs::write(&path, vec![3u8; FILE_BYTES as usize]).unwrap();
    (dir, path)
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_in_the_page_cache_is_not_measured_through_it() {
    let (_dir, path) = real_file();
    let cache = PageCache::open(std::slice::from_ref(&path)).unwrap();
    if cache.holds(FileIndex(0), 0, FILE_BYTES).is_none() {
        return;
    }
    // Just written: all of it is held.
    let (mut reader, mut windows, stretches) =
        (drive(SimOptions::default()), Windows::new(1 << 20, 2), everywhere());
    let mut probe = Probe::new(&mut reader, &stretches, &mut windows, Some(&cache), 1);
    assert_eq!(probe.measure(1 << 20, 2, millis(50)).unwrap(), Measured::Cached);
    let mut direct = drive(SimOptions { bandwidth: Some(500_000_000), ..SimOptions::default() });
    let mut buffered = drive(SimOptions::default());
    let choice = choose([&mut direct, &mut buffered], &stretches, &cache, 1 << 20, millis(100)).unwrap();
    assert_eq!(choice.reader, ReaderChoice::Direct, "a hot page cache fools nobody: {choice}");
    assert_eq!(choice.buffered_gb_per_s, None);
}

#[test]
fn buffered_is_chosen_when_it_is_clearly_faster_each_time() {
    let pair = |d, b| [Some(d), Some(b)];
    assert_eq!(decide(&[pair(1.0, 2.0), pair(1.1, 1.9)]).reader, ReaderChoice::Buffered);
    assert_eq!(decide(&[pair(1.0, 2.0), pair(1.1, 1.2)]).reader, ReaderChoice::Direct, "once is noise");
    assert_eq!(
        decide(&[pair(1.0, 1.2), pair(1.0, 1.2)]).reader,
        ReaderChoice::Direct,
        "the copy and the memory"
    );
    assert_eq!(decide(&[pair(2.0, 1.0), pair(2.0, 1.0)]).reader, ReaderChoice::Direct);
    assert_eq!(decide(&[[Some(1.0), None], pair(1.0, 9.0)]).reader, ReaderChoice::Direct);
    assert_eq!(decide(&[[None, None], [None, None]]).reader, ReaderChoice::Direct);
    let choice = decide(&[pair(1.0, 2.0), pair(1.0, 2.0)]);
    assert_eq!(choice.to_string(), "direct 1.00 GB/s, buffered 2.00 GB/s: buffered is faster here");
}

/// Two made-up drives over one real file whose pages were forgotten: the faster one wins, in time.
#[test]
fn the_choice_follows_the_faster_reader_and_keeps_to_its_budget() {
    let (_dir, path) = real_file();
    std::fs::File::open(&path).unwrap().sync_all().unwrap();
    let cache = PageCache::open(std::slice::from_ref(&path)).unwrap();
    cache.forget(FileIndex(0), 0, FILE_BYTES);
    if cache.holds(FileIndex(0), FILE_BYTES / 2, 64 << 10) == Some(true) {
        // A filesystem in memory: there is nothing to forget, and the test above covers it.
        return;
    }
    let with = |rate| drive(SimOptions { bandwidth: Some(rate), ..SimOptions::default() });
    let stretches = everywhere();
    for (direct, buffered, expected) in
        [(30 << 20, 800 << 20, ReaderChoice::Buffered), (800 << 20, 30 << 20, ReaderChoice::Direct)]
    {
        let (mut direct, mut buffered) = (with(direct), with(buffered));
        let begun = Instant::now();
        let choice = choose([&mut direct, &mut buffered], &stretches, &cache, 64 << 10, millis(300)).unwrap();
        assert_eq!(choice.reader, expected, "{choice}");
        // 300 ms, the reads in flight at the end of each turn, and what a busy machine takes.
        assert!(begun.elapsed() < millis(700), "{:?}", begun.elapsed());
    }
}

/// A turn whose time others have used up says nothing, least of all that its reader is slow.
#[test]
fn a_turn_without_time_is_no_measurement() {
    let slow = || drive(SimOptions { latency: millis(80), ..SimOptions::default() });
    let (mut first, mut second, stretches) = (slow(), slow(), everywhere());
    let sides: [Side<'_>; 2] = [(&mut first, None), (&mut second, None)];
    let rates = alternate(sides, &stretches, 64 << 10, millis(20)).unwrap();
    assert!(rates.iter().flatten().any(Option::is_none), "{rates:?}");
    assert!(rates.iter().flatten().flatten().all(|&rate| rate > 0.0), "{rates:?}");
    assert_eq!(decide(&rates).reader, ReaderChoice::Direct);
}

#[test]
fn a_small_real_file_is_probed_without_harm() {
    let (_dir, path) = real_file();
    let stretches = everywhere();
    let begun = Instant::now();
    let choice = probe_direct_or_buffered(std::slice::from_ref(&path), &stretches, 1 << 20).unwrap();
    assert_ne!(choice.reader, ReaderChoice::Auto);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[cfg(unix)]
#[test]
fn holes_are_seen() {
    let (dir, path) = real_file();
    assert!(!is_sparse(&path).unwrap());
    let holes = dir.path().join("holes");
    let file = std::fs::File::create(&holes).unwrap();
    if file.set_len(1 << 30).is_ok() {
        assert!(is_sparse(&holes).unwrap());
    }
    assert!(is_sparse(&dir.path().join("absent")).is_err());
}
