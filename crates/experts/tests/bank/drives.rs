//! Reads cut into slices and spread over several drives, all of them simulated.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use files::FileIndex;
use slotbank_experts::read::sim::{self, Clock, Fault, FaultAt, SimReader};
use slotbank_experts::read::spread::{Drive, Options, SpreadReader};
use slotbank_experts::{Bank, BankSize, Completion, Error, Lru, Origin, Priority, Read, Reader, Ticket};

use crate::support::{Placement, TestArena, Toy, Window, assert_maps, rough, serve};

const SIZES: [u64; 3] = [700, 4096, 15_000];

/// What a drive was asked for.
#[derive(Debug, Default)]
struct Asked {
    reads: AtomicU64,
    bytes: AtomicU64,
}

impl Asked {
    fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Counts and hands on.
struct Counting(SimReader, Arc<Asked>);

// SAFETY: everything is handed on as it is.
unsafe impl Reader for Counting {
    unsafe fn submit(&mut self, reads: &[Read]) {
        self.1.reads.fetch_add(reads.len() as u64, Ordering::Relaxed);
        self.1.bytes.fetch_add(reads.iter().map(|read| read.len).sum(), Ordering::Relaxed);
        // SAFETY: the caller's promise, handed on.
        unsafe { self.0.submit(reads) };
    }
    fn promote(&mut self, ticket: Ticket) {
        self.0.promote(ticket);
    }
    fn cancel(&mut self, ticket: Ticket) -> bool {
        self.0.cancel(ticket)
    }
    fn wait_any(&mut self, timeout: Option<Duration>) -> Option<Completion> {
        self.0.wait_any(timeout)
    }
    fn capacity(&self) -> usize {
        self.0.capacity()
    }
    fn describe(&self) -> String {
        self.0.describe()
    }
}

/// One drive per model of one, all with the same bytes; files are called `0/NAME`, `1/NAME`, …
fn spread(
    names: &[std::path::PathBuf],
    contents: &[Vec<u8>],
    drives: Vec<sim::Options>,
    options: &Options,
) -> (SpreadReader, Vec<Arc<Asked>>) {
    let asked: Vec<Arc<Asked>> = drives.iter().map(|_| Arc::default()).collect();
    let drive = |(i, drive): (usize, sim::Options)| {
        let sources = contents.iter().map(|bytes| sim::Source::Memory(bytes.as_slice().into()));
        let reader = Counting(SimReader::new(sources.collect(), drive), Arc::clone(&asked[i]));
        let files = names.iter().map(|name| std::path::Path::new(&i.to_string()).join(name));
        Drive { reader: Box::new(reader), files: files.collect() }
    };
    let drives = drives.into_iter().enumerate().map(drive).collect();
    (SpreadReader::new(drives, options), asked)
}

fn of(toy: &Toy, drives: Vec<sim::Options>, options: &Options) -> (SpreadReader, Vec<Arc<Asked>>) {
    spread(&toy.names(), &toy.files, drives, options)
}

fn bank(toy: &Toy, reader: SpreadReader) -> Bank {
    let plan = toy.plan(BankSize::SlotsPerLayer(3), 2).unwrap();
    let policy = Box::new(Lru::new(&plan));
    Bank::new(plan, &toy.names(), Box::new(reader), Box::new(TestArena::default()), policy).unwrap()
}

fn options(ways: u32, stripe: bool) -> Options {
    Options { ways, depth: 8, stripe, slice_bytes_min: 4096 }
}

fn failing(seed: u64) -> sim::Options {
    sim::Options { fault_ppm: 1_000_000, ..rough(seed) }
}

/// Serves requests until every expert has come and gone several times.
fn exercise(bank: &mut Bank) {
    for round in 0..6 {
        for layer in [3, 4] {
            let ids: Vec<u32> = (0..12).map(|i| (i * 5 + round) % 12).collect();
            serve(bank, layer, &ids, 2, SIZES).unwrap();
            serve(bank, layer, &[round, 11 - round], 2, SIZES).unwrap();
            assert_maps(bank);
        }
    }
}

#[test]
fn any_number_of_drives_and_slices_brings_the_same_bytes() {
    for layout in [Placement::Whole, Placement::Record, Placement::Split] {
        let toy = Toy::new(12, &[SIZES; 2], layout);
        for (drives, ways, stripe) in
            [(1, 4, false), (2, 1, false), (2, 4, false), (2, 1, true), (3, 2, true)]
        {
            let models = (0..drives).map(|i| rough(i * 7 + u64::from(ways))).collect();
            let (reader, asked) = of(&toy, models, &options(ways, stripe));
            exercise(&mut bank(&toy, reader));
            // How many depends on the time that each seemed to take.
            assert!(asked.iter().all(|drive| drive.reads() > 2), "{asked:?}");
        }
    }
}

/// Few reads are cut so far that the drive has something to do; many are left alone; speculative ones always.
#[test]
fn reads_are_cut_only_while_few_are_outstanding() {
    let content = vec![5u8; 1 << 20];
    let names = ["file".into()];
    let ask = |reads: u64, priority, bytes: u64, ways, least| {
        let options = Options { slice_bytes_min: least, ..options(ways, false) };
        let (mut reader, asked) =
            spread(&names, std::slice::from_ref(&content), vec![sim::Options::default()], &options);
        let windows: Vec<Window> = (0..reads).map(|_| Window::new(1 << 17)).collect();
        let reads: Vec<Read> = (0..).zip(&windows).map(|(i, w)| w.read(i, 9000, bytes, priority)).collect();
        // SAFETY: each window is its own memory and outlives the reader.
        unsafe { reader.submit(&reads) };
        let mut completed = 0;
        while let Some(completion) = reader.wait_any(None) {
            completion.result.unwrap();
            completed += 1;
        }
        assert!(windows.iter().all(|w| w.bytes()[9000 % 4096..][..bytes as usize].iter().all(|&b| b == 5)));
        assert_eq!((completed, asked[0].bytes()), (reads.len(), bytes * reads.len() as u64));
        asked[0].reads()
    };
    use Priority::{Demand, Speculative};
    assert_eq!(ask(1, Demand, 100_000, 4, 4096), 4);
    assert_eq!(ask(1, Demand, 100_000, 2, 4096), 2);
    assert_eq!(ask(3, Demand, 100_000, 4, 4096), 6, "eight in flight make the drive busy");
    assert_eq!(ask(5, Demand, 100_000, 4, 4096), 5);
    assert_eq!(ask(1, Demand, 100_000, 1, 4096), 1);
    assert_eq!(ask(1, Demand, 100_000, 4, 40_000), 2, "slices are not made too small");
    assert_eq!(ask(1, Demand, 300, 4, 4096), 1, "a block is the least there is");
    assert_eq!(ask(1, Speculative, 100_000, 4, 4096), 1);
}

/// One drive fails whatever it is asked for: one warning, all bytes right, and it is asked no more.
#[test]
fn a_failing_drive_is_left_out_and_said_so_once() {
    for stripe in [false, true] {
        for bad in [0, 1] {
            let toy = Toy::new(12, &[SIZES; 2], Placement::Whole);
            let mut models = vec![rough(3), rough(4)];
            models[bad] = failing(5);
            let (reader, asked) = of(&toy, models, &options(1, stripe));
            let mut bank = bank(&toy, reader);
            exercise(&mut bank);
            let warning = bank.take_warning().expect("a warning");
            let (path, other) = (format!("{bad}/toy-0.bin"), format!("{}/toy-0.bin", 1 - bad));
            for part in [&path, "offset", "left out", &other] {
                assert!(warning.contains(part), "`{part}` is not in `{warning}`");
            }
            assert_eq!(bank.take_warning(), None);
            assert_eq!(bank.stats().total().failed, 0);
            let before = asked[bad].reads();
            exercise(&mut bank);
            assert_eq!(asked[bad].reads(), before, "nobody asks a drive that fails");
        }
    }
}

/// A bad place on one drive, another on the other: nothing is lost.
#[test]
fn each_drive_covers_for_the_other() {
    let toy = Toy::new(12, &[SIZES; 2], Placement::Whole);
    let bad_at = |expert, seed| sim::Options {
        faults: vec![Fault { at: FaultAt::Expert { layer: 3, expert }, times: u32::MAX }],
        ..rough(seed)
    };
    let (reader, _) = of(&toy, vec![bad_at(4, 1), bad_at(7, 2)], &options(1, false));
    let mut bank = bank(&toy, reader);
    exercise(&mut bank);
    exercise(&mut bank);
    assert_eq!(bank.stats().total().failed, 0);
    assert!(bank.take_warning().is_some());
}

/// When all copies fail, so does the request, with a path on a drive; the next request works.
#[test]
fn when_every_copy_fails_the_error_names_a_drive() {
    let toy = Toy::new(12, &[SIZES; 2], Placement::Whole);
    let bad = |seed| sim::Options {
        faults: vec![Fault { at: FaultAt::Expert { layer: 4, expert: 9 }, times: u32::MAX }],
        ..rough(seed)
    };
    for stripe in [false, true] {
        let (reader, _) = of(&toy, vec![bad(1), bad(2)], &options(1, stripe));
        let mut bank = bank(&toy, reader);
        serve(&mut bank, 4, &[1, 2], 2, SIZES).unwrap();
        let error = serve(&mut bank, 4, &[9, 2], 2, SIZES).unwrap_err();
        let Error::Read { path, layer, expert, source, .. } = &error else { panic!("{error}") };
        assert_eq!((*layer, *expert), (4, 9));
        let (last, first) = if path.starts_with("0") { ("0", "1") } else { ("1", "0") };
        assert!(path.starts_with(last), "{error}");
        assert!(source.to_string().contains(&format!("before that {first}/toy-0.bin")), "{error}");
        serve(&mut bank, 4, &[1, 2, 3, 4, 5, 6, 7, 8], 2, SIZES).unwrap();
        assert_maps(&bank);
    }
}

/// Real time: a drive ten times as fast gets most of the bytes.
#[test]
fn reads_go_where_they_are_done_first() {
    const READ: u64 = 256 << 10;
    let content: Vec<u8> = (0..4u64 << 20).map(|i| (i / 4096 * 31) as u8).collect();
    for stripe in [false, true] {
        let drive = |bytes_per_s| sim::Options {
            clock: Clock::Real,
            bandwidth: Some(bytes_per_s),
            ..sim::Options::default()
        };
        let models = vec![drive(20_000_000), drive(200_000_000)];
        let (mut reader, asked) =
            spread(&["file".into()], std::slice::from_ref(&content), models, &options(1, stripe));
        let windows: Vec<Window> = (0..16).map(|_| Window::new(READ as usize)).collect();
        for _ in 0..4 {
            let reads: Vec<Read> = (0..)
                .zip(&windows)
                .map(|(i, window)| window.read(i, i * READ, READ, Priority::Demand))
                .collect();
            windows.iter().for_each(Window::clear);
            // SAFETY: each window is its own memory and outlives the reads, which are awaited below.
            unsafe { reader.submit(&reads) };
            for _ in &reads {
                let completion = reader.wait_any(None).unwrap();
                completion.result.unwrap();
                let at = completion.ticket.0 as usize;
                assert!(windows[at].bytes() == &content[at * READ as usize..][..READ as usize]);
            }
        }
        let (slow, fast) = (asked[0].bytes(), asked[1].bytes());
        assert_eq!(slow + fast, 4 * 16 * READ);
        assert!(fast > 2 * slow, "{slow} bytes from the slow drive, {fast} from the fast one");
    }
}

/// A read of several slices is gone only when all of them are; otherwise it completes, with all of its bytes.
#[test]
fn a_cut_read_is_cancelled_whole_or_not_at_all() {
    let content: Vec<u8> = (0..1u32 << 17).map(|i| (i >> 5) as u8).collect();
    let (mut gone, mut completed) = (0, 0);
    for seed in 0..100 {
        let (mut reader, _) = spread(
            &["file".into()],
            std::slice::from_ref(&content),
            vec![rough(seed), rough(seed + 1000)],
            &options(2, seed % 2 == 0),
        );
        let windows: Vec<Window> = (0..3).map(|_| Window::new(1 << 16)).collect();
        let reads: Vec<Read> = (0..)
            .zip(&windows)
            .map(|(i, window)| window.read(10 + i, 5000 * i, 50_000, Priority::Demand))
            .collect();
        // SAFETY: each window is its own memory and outlives the reader.
        unsafe { reader.submit(&reads) };
        let cancelled = [10, 11, 12].map(|ticket| ticket != 11 && reader.cancel(Ticket(ticket)));
        let mut left: Vec<u64> = (10..13).filter(|&ticket| !cancelled[ticket as usize - 10]).collect();
        gone += 3 - left.len();
        while let Some(completion) = reader.wait_any(None) {
            completion.result.unwrap();
            completed += 1;
            let at = left.iter().position(|&ticket| ticket == completion.ticket.0).expect("not cancelled");
            let i = left.swap_remove(at) as usize - 10;
            let (offset, bytes) = (5000 * i, windows[i].bytes());
            assert!(bytes[offset % 4096..][..50_000] == content[offset..][..50_000]);
        }
        assert!(left.is_empty());
        assert!(!reader.cancel(Ticket(10)), "nothing is outstanding");
    }
    assert!(gone > 10 && completed > 100, "{gone} cancelled, {completed} completed");
}

/// What the wrapper promises about windows holds for its own arithmetic at the end of a window too.
#[test]
fn a_window_larger_than_its_read_is_nobodys_but_the_reads() {
    let content = vec![9u8; 40_000];
    let (mut reader, _) =
        spread(&["file".into()], std::slice::from_ref(&content), vec![rough(1); 2], &options(3, true));
    let memory = Window::new(24 << 12);
    let (start, _) = memory.region(0);
    // SAFETY: four blocks into a window of 24.
    let window: NonNull<u8> = unsafe { start.add(4 << 12) };
    let (ticket, file, origin) = (Ticket(1), FileIndex(0), Origin { layer: 0, expert: 0, part: 0 });
    let (span, priority) = (16 << 12, Priority::Demand);
    let read = Read { ticket, file, offset: 100, len: 30_000, window, span, priority, origin };
    // SAFETY: the memory is valid for the span and outlives the reader.
    unsafe { reader.submit(&[read]) };
    reader.wait_any(None).unwrap().result.unwrap();
    let bytes = memory.bytes();
    assert!(bytes[..4 << 12].iter().all(|&b| b == 0) && bytes[20 << 12..].iter().all(|&b| b == 0));
    assert!(bytes[(4 << 12) + 100..][..30_000].iter().all(|&b| b == 9));
}
