//! Which reader brings the experts of a model fastest, measured at the start for a moment, on the files themselves.
//!
//! The measure costs a fraction of a second once, so it is left out where there is little to gain: experts that a drive brings in that
//! time, and banks that read each expert once. What reads changes how soon bytes come, never which.

use std::path::PathBuf;
use std::time::Duration;

use files::FileIndex;

use super::{CHOICE_BUDGET, Choice, Stretch, direct_or_buffered};
use crate::read::{ReaderChoice, ReaderKind};

/// What reads, how, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// [`ReaderKind::Pread`] or [`ReaderKind::Uring`].
    pub kind: ReaderKind,
    /// Buffered only where that was faster; else direct where the files take it.
    pub choice: ReaderChoice,
    /// The rates and the reason, for people.
    pub why: String,
}

/// Fewer bytes of experts than this are not worth a measurement.
const BYTES_MIN: u64 = 512 << 20;
/// The budget grows with the experts: a millisecond for so many bytes of them.
const BYTES_PER_MS: u64 = 4_000_000;
/// Files that are looked at: opening hundreds of them would take longer than measuring.
const FILES_MAX: usize = 4;
/// io_uring must be faster by this factor, each time: the pool of threads has been measured with whole models, on more machines.
const RING_FASTER: f64 = 1.10;

/// How long the probe may take for so many bytes of experts; none where they are not worth it.
fn budget(expert_bytes: u64) -> Option<Duration> {
    (expert_bytes >= BYTES_MIN).then(|| Duration::from_millis(expert_bytes / BYTES_PER_MS).min(CHOICE_BUDGET))
}

/// Measures on some of `files` what brings reads of `read_bytes` from `stretches` fastest, within [`CHOICE_BUDGET`] and the reads then
/// in flight. None where the experts are few, or their files cannot be opened, which opening the reader then reports.
pub fn probe_reader(files: &[PathBuf], stretches: &[Stretch], read_bytes: u64) -> Option<Selected> {
    let budget = budget(stretches.iter().map(|stretch| stretch.len).sum())?;
    let (files, stretches) = some_files(files, stretches);
    let choice = direct_or_buffered(&files, &stretches, read_bytes, budget * 3 / 5).ok()?;
    let measured = choice.reader == ReaderChoice::Direct && choice.direct_gb_per_s.is_some();
    let rates = if measured { ring_rates(&files, &stretches, read_bytes, budget * 2 / 5) } else { None };
    Some(select(&choice, &rates.unwrap_or_default()))
}

/// The files in which reads may land, or a few of them from one end to the other; stretches name those then.
fn some_files(files: &[PathBuf], stretches: &[Stretch]) -> (Vec<PathBuf>, Vec<Stretch>) {
    let mut used: Vec<u32> = stretches.iter().map(|stretch| stretch.file.0).collect();
    used.sort_unstable();
    used.dedup();
    let n = used.len().min(FILES_MAX);
    let taken: Vec<u32> = (0..n).map(|i| used[i * (used.len() - 1) / (n - 1).max(1)]).collect();
    let of_taken = stretches.iter().filter_map(|stretch| {
        let at = taken.binary_search(&stretch.file.0).ok()?;
        Some(Stretch { file: FileIndex(at as u32), ..*stretch })
    });
    (taken.iter().map(|&file| files[file as usize].clone()).collect(), of_taken.collect())
}

/// GB/s of the pool and of the ring, both direct, in turns; none where there is no ring.
#[cfg(target_os = "linux")]
fn ring_rates(
    files: &[PathBuf],
    stretches: &[Stretch],
    read_bytes: u64,
    budget: Duration,
) -> Option<Vec<[Option<f64>; 2]>> {
    use super::CHOICE_DEPTH;
    use crate::read::pread::{self, PreadReader};
    use crate::read::uring::{self, UringReader};

    let choice = ReaderChoice::Direct;
    let ring = uring::Options { choice, ..Default::default() };
    let mut ring = UringReader::open(files, &ring).ok()?;
    let pool = pread::Options { choice, threads: CHOICE_DEPTH, ..Default::default() };
    let mut pool = PreadReader::open(files, &pool).ok()?;
    super::alternate([(&mut pool, None), (&mut ring, None)], stretches, read_bytes, budget).ok()
}

#[cfg(not(target_os = "linux"))]
fn ring_rates(
    files: &[PathBuf],
    stretches: &[Stretch],
    read_bytes: u64,
    budget: Duration,
) -> Option<Vec<[Option<f64>; 2]>> {
    let _ = (files, stretches, read_bytes, budget);
    None
}

/// What the measured figures say: `rates` are GB/s of the pool of threads and of io_uring, turn by turn, if they were measured.
pub fn select(choice: &Choice, rates: &[[Option<f64>; 2]]) -> Selected {
    let mut selected =
        Selected { kind: ReaderKind::Pread, choice: ReaderChoice::Auto, why: choice.to_string() };
    if choice.reader == ReaderChoice::Buffered {
        // Refused is not chosen: then each file is read directly that takes it.
        if choice.direct_gb_per_s.is_some() {
            selected.choice = ReaderChoice::Buffered;
        }
        return selected;
    }
    let measured: Option<Vec<(f64, f64)>> = rates.iter().map(|&[pool, ring]| pool.zip(ring)).collect();
    let Some(measured) = measured.filter(|measured| !measured.is_empty()) else { return selected };
    let n = measured.len() as f64;
    let (pool, ring) = measured.iter().fold((0.0, 0.0), |sum, pair| (sum.0 + pair.0 / n, sum.1 + pair.1 / n));
    let faster = measured.iter().all(|&(pool, ring)| ring > pool * RING_FASTER);
    let verdict = if faster { "is faster here" } else { "is not faster by a tenth" };
    selected.why += &format!("; io_uring {ring:.2} GB/s beside {pool:.2} {verdict}");
    if faster {
        selected.kind = ReaderKind::Uring;
    }
    selected
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn choice(reader: ReaderChoice, direct: Option<f64>, buffered: Option<f64>) -> Choice {
        Choice { reader, direct_gb_per_s: direct, buffered_gb_per_s: buffered, why: "because" }
    }

    #[test]
    fn the_fastest_reader_is_selected_and_the_pool_in_doubt() {
        use {ReaderChoice as How, ReaderKind as What};
        let pair = |pool, ring| [Some(pool), Some(ring)];
        let direct = choice(How::Direct, Some(2.0), Some(1.0));
        for (choice, rates, expected) in [
            (&direct, vec![pair(2.0, 2.5), pair(2.0, 2.3)], (What::Uring, How::Auto)),
            (&direct, vec![pair(2.0, 2.5), pair(2.0, 2.1)], (What::Pread, How::Auto)),
            (&direct, vec![pair(2.0, 2.2), pair(2.0, 2.2)], (What::Pread, How::Auto)),
            (&direct, vec![pair(2.0, 1.0), pair(2.0, 1.0)], (What::Pread, How::Auto)),
            (&direct, vec![pair(2.0, 9.0), [None, Some(9.0)]], (What::Pread, How::Auto)),
            (&direct, vec![[Some(2.0), None]], (What::Pread, How::Auto)),
            (&direct, vec![], (What::Pread, How::Auto)),
            (&choice(How::Buffered, Some(1.0), Some(2.0)), vec![], (What::Pread, How::Buffered)),
            (
                &choice(How::Buffered, Some(1.0), Some(2.0)),
                vec![pair(1.0, 9.0)],
                (What::Pread, How::Buffered),
            ),
            (&choice(How::Buffered, None, None), vec![], (What::Pread, How::Auto)),
            (&choice(How::Direct, None, None), vec![], (What::Pread, How::Auto)),
            (&choice(How::Direct, Some(2.0), None), vec![pair(1.0, 2.0)], (What::Uring, How::Auto)),
        ] {
            let selected = select(choice, &rates);
            assert_eq!((selected.kind, selected.choice), expected, "{choice} {rates:?}");
            assert!(selected.why.contains("because"), "{selected:?}");
            assert_eq!(selected.why.contains("is faster here"), selected.kind == What::Uring, "{selected:?}");
        }
        let why = select(&direct, &[pair(2.0, 3.0), pair(2.5, 3.5)]).why;
        assert_eq!(
            why,
            "direct 2.00 GB/s, buffered 1.00 GB/s: because; io_uring 3.25 GB/s beside 2.25 is faster here"
        );
    }

    #[test]
    fn few_experts_are_not_measured_and_many_for_no_longer_than_the_budget() {
        assert_eq!(budget(0), None);
        assert_eq!(budget(BYTES_MIN - 1), None);
        assert_eq!(budget(1_000_000_000), Some(Duration::from_millis(250)));
        assert_eq!(budget(213_000_000_000), Some(CHOICE_BUDGET));
        // Nothing is opened: there is no such file.
        let stretch = Stretch { file: FileIndex(0), offset: 0, len: BYTES_MIN - 1 };
        assert_eq!(probe_reader(&["no/such/file".into()], &[stretch], 1 << 20), None);
        let stretch = Stretch { len: BYTES_MIN, ..stretch };
        assert_eq!(probe_reader(&["no/such/file".into()], &[stretch], 1 << 20), None);
    }

    #[test]
    fn a_few_files_stand_for_all() {
        let files: Vec<PathBuf> = (0..90).map(|i| format!("{i}").into()).collect();
        let stretch = |file: u32| Stretch { file: FileIndex(file), offset: u64::from(file), len: 9 };
        let used: Vec<Stretch> = (10..86).flat_map(|file| [stretch(file), stretch(file)]).collect();
        let (taken, stretches) = some_files(&files, &used);
        assert_eq!(taken, ["10", "35", "60", "85"].map(PathBuf::from));
        assert_eq!(stretches.len(), 8);
        for stretch in &stretches {
            assert_eq!(taken[stretch.file.index()], PathBuf::from(stretch.offset.to_string()));
        }
        let (taken, stretches) = some_files(&files, &[stretch(7)]);
        assert_eq!((taken, stretches.len()), (vec![PathBuf::from("7")], 1));
        assert_eq!(some_files(&files, &[]), (vec![], vec![]));
    }

    /// Whatever is found, the file can be read that way.
    #[test]
    fn a_real_file_is_probed_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("experts");
        let content: Vec<u8> = (0..16u32 << 20).map(|i| (i >> 8) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        std::fs::File::open(&path).unwrap().sync_all().unwrap();
        // The same bytes again and again make up the length from which on it is worth it.
        let stretch = Stretch { file: FileIndex(0), offset: 0, len: content.len() as u64 };
        let stretches = vec![stretch; (BYTES_MIN / stretch.len) as usize];
        let begun = Instant::now();
        let selected = probe_reader(std::slice::from_ref(&path), &stretches, 256 << 10).unwrap();
        assert!(matches!(selected.kind, ReaderKind::Pread | ReaderKind::Uring), "{selected:?}");
        assert_ne!(selected.choice, ReaderChoice::Direct, "a refusal must not be an error: {selected:?}");
        assert!(!selected.why.is_empty());
        // 134 ms of measuring, opening, and what a busy machine takes.
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        let options =
            crate::read::Options { kind: selected.kind, choice: selected.choice, ..Default::default() };
        crate::read::open(&[path], &[], &options).unwrap();
    }
}
