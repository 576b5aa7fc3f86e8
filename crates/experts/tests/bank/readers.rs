//! Every reader on real files, through the bank and alone.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use slotbank_experts::read::paced::{Pace, PacedReader};
use slotbank_experts::read::pread::{self, PreadReader};
use slotbank_experts::read::sim::SimReader;
use slotbank_experts::read::spread::{self, Drive, SpreadReader};
use slotbank_experts::{Bank, BankSize, Error, Lru, Priority, Read, Reader, ReaderChoice, Result, Ticket};

use crate::support::{Placement, TestArena, Toy, Window, assert_maps, rough, serve};

const SIZES: [u64; 3] = [700, 4096, 15_000];

/// The files of a toy on a real disk. Not in the temporary folder, which is often memory and refuses direct
/// reads.
fn on_disk(toy: &Toy) -> (tempfile::TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let paths: Vec<PathBuf> = toy.names().iter().map(|name| folder.path().join(name)).collect();
    paths.iter().zip(&toy.files).for_each(|(path, content)| std::fs::write(path, content).unwrap());
    (folder, paths)
}

/// What reads, and what is wrapped around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Pread,
    Uring,
    /// Every read cut into up to four slices.
    Split,
    /// The same files twice, as if they were copies on two drives.
    Mirror,
    /// The same, each read over both.
    Stripe,
    /// As a slower drive would be.
    Paced,
}

const EVERY: [What; 6] = [What::Pread, What::Uring, What::Split, What::Mirror, What::Stripe, What::Paced];
const CHOICES: [ReaderChoice; 2] = [ReaderChoice::Auto, ReaderChoice::Buffered];

/// With so many reads in flight at a drive.
fn open(what: What, paths: &[PathBuf], choice: ReaderChoice, in_flight: usize) -> Result<Box<dyn Reader>> {
    let pread = || {
        let options = pread::Options { choice, threads: in_flight, ..Default::default() };
        PreadReader::open(paths, &options).map(|reader| Box::new(reader) as Box<dyn Reader>)
    };
    let spread = |drives: usize, ways, stripe| {
        let drive = |_| Ok(Drive { reader: pread()?, files: paths.to_vec() });
        let options = spread::Options { ways, depth: 1 << 20, stripe, slice_bytes_min: 4096 };
        let drives = (0..drives).map(drive).collect::<Result<_>>()?;
        Ok(Box::new(SpreadReader::new(drives, &options)) as Box<dyn Reader>)
    };
    match what {
        What::Pread => pread(),
        What::Uring => uring(paths, choice, in_flight),
        What::Split => spread(1, 4, false),
        What::Mirror => spread(2, 1, false),
        What::Stripe => spread(2, 1, true),
        What::Paced => {
            let pace = Pace { read_bytes_per_s: 1_000_000_000, latency: Duration::from_micros(50) };
            Ok(Box::new(PacedReader::new(pread()?, pace)))
        }
    }
}

#[cfg(target_os = "linux")]
fn uring(paths: &[PathBuf], choice: ReaderChoice, in_flight: usize) -> Result<Box<dyn Reader>> {
    use slotbank_experts::read::uring::{Options, UringReader};
    let (depth, speculative_max) = (in_flight as u32, in_flight);
    let options = Options { choice, depth, speculative_max, ..Default::default() };
    match UringReader::open(paths, &options) {
        // Containers often forbid it; then the pread pool is tested once more.
        Err(Error::UringRefused { .. }) => open(What::Pread, paths, choice, in_flight),
        opened => Ok(Box::new(opened?)),
    }
}

#[cfg(not(target_os = "linux"))]
fn uring(paths: &[PathBuf], choice: ReaderChoice, in_flight: usize) -> Result<Box<dyn Reader>> {
    open(What::Pread, paths, choice, in_flight)
}

fn bank(toy: &Toy, paths: &[PathBuf], size: BankSize, what: What, choice: ReaderChoice) -> Bank {
    let plan = toy.plan(size, 2).unwrap();
    let policy = Box::new(Lru::new(&plan));
    let reader = open(what, paths, choice, 8).unwrap();
    Bank::new(plan, paths, reader, Box::new(TestArena::default()), policy).unwrap()
}

#[test]
fn every_layout_is_read_exactly_directly_and_buffered() {
    for layout in [Placement::Whole, Placement::Record, Placement::Split] {
        let toy = Toy::new(12, &[SIZES; 2], layout);
        assert_ne!(toy.files[0].len() % 4096, 0, "the last expert ends within a block");
        let (_folder, paths) = on_disk(&toy);
        for (what, choice) in EVERY.iter().flat_map(|&what| CHOICES.map(|choice| (what, choice))) {
            let mut bank = bank(&toy, &paths, BankSize::SlotsPerLayer(3), what, choice);
            for round in 0..3 {
                for layer in [3, 4] {
                    let ids: Vec<u32> = (0..12).map(|i| (i * 5 + round) % 12).collect();
                    serve(&mut bank, layer, &ids, 2, SIZES).unwrap();
                    serve(&mut bank, layer, &[11, 0], 2, SIZES).unwrap();
                    assert_maps(&bank);
                }
            }
        }
    }
}

/// The time of reads covers the time spent waiting for them and lies inside the time of the run.
#[test]
fn the_time_at_the_drive_covers_the_stall() {
    let toy = Toy::new(12, &[SIZES; 2], Placement::Whole);
    let (_folder, paths) = on_disk(&toy);
    for (what, choice) in EVERY.iter().flat_map(|&what| CHOICES.map(|choice| (what, choice))) {
        let mut bank = bank(&toy, &paths, BankSize::SlotsPerLayer(4), what, choice);
        // Between submission and system call, and between its end and the waiter's waking, lie hand-overs between threads, which a
        // busy machine makes as long as it likes; so one round of several has to show it.
        let covered = (0..20).any(|_| {
            bank.clear();
            bank.reset_stats();
            let begun = Instant::now();
            for layer in [3, 4, 3, 4] {
                serve(&mut bank, layer, &[0, 1, 2, 3, 4, 5, 6, 7], 2, SIZES).unwrap();
            }
            let (wall_ns, total) = (begun.elapsed().as_nanos() as u64, bank.stats().total());
            assert!(total.io_wall_ns > 0 && total.io_wall_ns <= wall_ns, "{what:?} {wall_ns} {total:?}");
            assert_eq!(total.ahead_io_wall_ns, 0);
            total.stall_ns <= total.io_wall_ns + total.reads * 300_000
        });
        assert!(covered, "{what:?} {choice:?}: {:?}", bank.stats().total());
    }
}

#[test]
fn a_whole_record_is_one_read() {
    let toy = Toy::new(4, &[SIZES], Placement::Record);
    let mut bank = toy.rough(BankSize::SlotsPerLayer(2), 2, 0);
    serve(&mut bank, 3, &[0, 1], 2, SIZES).unwrap();
    assert_eq!(bank.stats().total().reads, 2);
    let toy = Toy::new(4, &[SIZES], Placement::Split);
    let mut bank = toy.rough(BankSize::SlotsPerLayer(2), 2, 0);
    serve(&mut bank, 3, &[0, 1], 2, SIZES).unwrap();
    assert_eq!(bank.stats().total().reads, 4);
}

#[test]
fn the_reader_says_how_it_reads() {
    let toy = Toy::new(2, &[SIZES], Placement::Whole);
    let (_folder, paths) = on_disk(&toy);
    let open = |choice| open(What::Pread, &paths, choice, 8);
    assert_eq!(open(ReaderChoice::Buffered).unwrap().describe(), "pread, 8 threads, buffered");
    let auto = open(ReaderChoice::Auto).unwrap().describe();
    match open(ReaderChoice::Direct) {
        Ok(direct) => assert_eq!(direct.describe(), auto),
        Err(error) => {
            assert!(matches!(error, Error::DirectRefused { .. }), "{error}");
            assert!(auto.contains("refused"), "{auto}");
        }
    }
    let wrapped = |what| self::open(what, &paths, ReaderChoice::Buffered, 8).unwrap().describe();
    assert_eq!(wrapped(What::Split), "pread, 8 threads, buffered, few reads cut 4 ways");
    assert_eq!(wrapped(What::Mirror), "reads spread over 2 copies, each pread, 8 threads, buffered");
    assert_eq!(wrapped(What::Stripe), "each read striped over 2 copies, each pread, 8 threads, buffered");
}

#[test]
fn a_missing_file_is_named() {
    for what in EVERY {
        for choice in [ReaderChoice::Auto, ReaderChoice::Direct, ReaderChoice::Buffered] {
            let Err(error) = open(what, &["no/such/file.bin".into()], choice, 8) else {
                panic!("{what:?} {choice:?}");
            };
            assert!(matches!(&error, Error::Open { path, .. } if path.ends_with("file.bin")), "{error}");
            assert_eq!(error.class(), files::Class::Io);
        }
    }
}

#[test]
fn a_file_cut_while_in_use_is_an_error_with_its_place() {
    let toy = Toy::new(12, &[SIZES], Placement::Whole);
    for (what, choice) in EVERY.iter().flat_map(|&what| CHOICES.map(|choice| (what, choice))) {
        let (_folder, paths) = on_disk(&toy);
        let mut bank = bank(&toy, &paths, BankSize::SlotsPerLayer(4), what, choice);
        let file = std::fs::OpenOptions::new().write(true).open(&paths[0]).unwrap();
        file.set_len(toy.files[0].len() as u64 - 4500).unwrap();
        let error = serve(&mut bank, 3, &[0, 11], 2, SIZES).unwrap_err();
        let Error::Read { path, offset, expert, source, .. } = error else { panic!("{error}") };
        assert_eq!((path, expert), (paths[0].clone(), 11));
        assert_eq!(offset, toy.files[0].len() as u64 - 4500, "{what:?}");
        assert_eq!(source.kind(), std::io::ErrorKind::UnexpectedEof);
        assert_maps(&bank);
        serve(&mut bank, 3, &[0, 1, 2, 3, 4, 5], 2, SIZES).unwrap();
    }
}

#[test]
fn direct_reads_cover_unaligned_extents_and_the_ragged_end_of_a_file() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("ragged");
    let content: Vec<u8> = (0..3 * 4096 + 777u32).map(|i| ((i * 31) >> 3) as u8).collect();
    std::fs::write(&path, &content).unwrap();
    let end = content.len() as u64;
    let extents = [
        (0, 1),
        (0, end),
        (4095, 2),
        (4096, 4096),
        (5000, 4000),
        (end - 1, 1),
        (end - 5000, 5000),
        (12_288, 777),
    ];
    for (what, choice) in EVERY.iter().flat_map(|&what| CHOICES.map(|choice| (what, choice))) {
        let windows: Vec<Window> = extents.iter().map(|_| Window::new(5 * 4096)).collect();
        let mut reader = open(what, std::slice::from_ref(&path), choice, 8).unwrap();
        let reads: Vec<Read> = (0..)
            .zip(&windows)
            .zip(extents)
            .map(|((i, window), (offset, len))| window.read(i, offset, len, Priority::Demand))
            .collect();
        // SAFETY: every window is its own memory and outlives the reads, which are all awaited below.
        unsafe { reader.submit(&reads) };
        for _ in 0..reads.len() {
            let completion = reader.wait_any(None).unwrap();
            completion.result.unwrap();
            let at = completion.ticket.0 as usize;
            let (offset, len) = (extents[at].0 as usize, extents[at].1 as usize);
            assert_eq!(windows[at].bytes()[offset % 4096..][..len], content[offset..offset + len]);
        }
        assert!(reader.wait_any(None).is_none(), "nothing is outstanding");
        let beyond = windows[0].read(99, end - 10, 11, Priority::Demand);
        // SAFETY: as above.
        unsafe { reader.submit(&[beyond]) };
        let failure = reader.wait_any(None).unwrap().result.unwrap_err();
        assert_eq!((failure.offset, failure.source.kind()), (end, std::io::ErrorKind::UnexpectedEof));
    }
}

#[test]
fn a_read_that_does_not_fit_its_window_is_never_started() {
    let toy = Toy::new(2, &[SIZES], Placement::Whole);
    let (_folder, paths) = on_disk(&toy);
    for what in EVERY {
        let window = Window::new(4096);
        let mut reader = open(what, &paths, ReaderChoice::Auto, 8).unwrap();
        let read = window.read(0, 4000, 100, Priority::Demand);
        // SAFETY: the window is valid; that the read does not fit it is the point.
        let submit = std::panic::AssertUnwindSafe(|| unsafe { reader.submit(&[read]) });
        let panic = std::panic::catch_unwind(submit).expect_err("refused");
        let message = panic.downcast_ref::<String>().expect("a message");
        assert!(message.contains("beyond its window"), "{message}");
    }
}

/// Speculation waits behind demand, unless it is promoted; what has not started can be taken back.
#[test]
fn speculative_reads_wait_can_be_promoted_and_cancelled() {
    let toy = Toy::new(2, &[SIZES], Placement::Whole);
    let (_folder, paths) = on_disk(&toy);
    for what in [What::Pread, What::Uring, What::Split].into_iter().cycle().take(60) {
        let windows: Vec<Window> = (0..40).map(|_| Window::new(8192)).collect();
        let mut reader = open(what, &paths, ReaderChoice::Auto, 1).unwrap();
        let reads: Vec<Read> = (0..)
            .zip(&windows)
            .map(|(i, w)| {
                w.read(i, 4000, 4000, if i < 20 { Priority::Speculative } else { Priority::Demand })
            })
            .collect();
        // SAFETY: every window is its own memory and outlives the reader.
        unsafe { reader.submit(&reads) };
        reader.promote(Ticket(7));
        let cancelled = [3u64, 30, 12].map(|ticket| reader.cancel(Ticket(ticket)));
        let mut order = Vec::new();
        while let Some(completion) = reader.wait_any(Some(Duration::from_secs(20))) {
            completion.result.unwrap();
            order.push(completion.ticket.0);
        }
        assert_eq!(order.len(), 40 - cancelled.iter().filter(|&&gone| gone).count());
        let at = |ticket: u64| order.iter().position(|&t| t == ticket);
        assert!(at(7) < at(19) && at(39) < at(19), "{what:?} {order:?}");
        for (ticket, gone) in [3u64, 30, 12].into_iter().zip(cancelled) {
            assert_eq!(at(ticket).is_none(), gone);
        }
    }
}

#[test]
fn a_reader_dropped_with_reads_in_flight_leaves_memory_alone() {
    let toy = Toy::new(12, &[SIZES], Placement::Whole);
    let (_folder, paths) = on_disk(&toy);
    for what in EVERY.into_iter().cycle().take(50) {
        let mut bank = bank(&toy, &paths, BankSize::SlotsPerLayer(8), what, ReaderChoice::Auto);
        bank.request(3, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 2).unwrap();
    }
}

/// Windows in registered memory, partly in it, and outside; before and after other memory is registered in its place.
#[test]
#[cfg(target_os = "linux")]
fn registered_memory_and_any_other_are_read_alike() {
    let toy = Toy::new(12, &[SIZES], Placement::Whole);
    let (_folder, paths) = on_disk(&toy);
    let mut reader = open(What::Uring, &paths, ReaderChoice::Auto, 8).unwrap();
    let windows: Vec<Window> = (0..6).map(|_| Window::new(5 * 4096)).collect();
    for regions in [0..0, 0..6, 2..4, 5..6, 0..0] {
        let whole = windows[regions.clone()].iter().map(|w| w.region(5 * 4096));
        // Of the last one only a part, so that a read there crosses its end.
        let last = regions.len().saturating_sub(1);
        let regions: Vec<_> = whole
            .enumerate()
            .map(|(i, (start, bytes))| (start, if i == last { 8192 } else { bytes }))
            .collect();
        // SAFETY: the windows live, and stay where they are, until the reader is gone.
        unsafe { reader.register(&regions) };
        let reads: Vec<Read> =
            (0..).zip(&windows).map(|(i, w)| w.read(i, 5000 + 64 * i, 9000, Priority::Demand)).collect();
        windows.iter().for_each(Window::clear);
        // SAFETY: as above, and no two windows overlap.
        unsafe { reader.submit(&reads) };
        for _ in &reads {
            let completion = reader.wait_any(None).unwrap();
            completion.result.unwrap();
            let at = completion.ticket.0 as usize;
            let offset = 5000 + 64 * at;
            assert_eq!(windows[at].bytes()[offset % 4096..][..9000], toy.files[0][offset..offset + 9000]);
        }
    }
    drop(reader);
}

/// A bank that shrinks, grows and is emptied while it streams through registered memory brings the files' bytes, and registers
/// again what is left.
#[test]
fn registered_memory_follows_the_size_of_the_bank() {
    let toy = Toy::new(12, &[SIZES; 3], Placement::Whole);
    let (_folder, paths) = on_disk(&toy);
    let slot_bytes = toy.plan(BankSize::All, 2).unwrap().classes()[0].slot_bytes;
    for what in [What::Uring, What::Pread] {
        let plan = toy.plan(BankSize::Bytes(30 * slot_bytes), 2).unwrap().with_spares(2);
        let policy = Box::new(Lru::new(&plan));
        let reader = open(what, &paths, ReaderChoice::Auto, 8).unwrap();
        let mut bank = Bank::new(plan, &paths, reader, Box::new(TestArena::default()), policy).unwrap();
        let described = bank.describe_reader();
        let mut turn = 0;
        for slots in [30, 9, 8, 25, 12, 30, 8, 30] {
            assert_eq!(bank.resize(slots * slot_bytes).unwrap(), slots * slot_bytes);
            assert_eq!(bank.describe_reader(), described, "{slots} slots");
            for round in 0..6 {
                for layer in 3..6 {
                    turn += 1;
                    bank.read_ahead(3 + (layer + 1 - 3) % 3, &[turn % 12, (turn + 5) % 12]).unwrap();
                    let ids: Vec<u32> = (0..4).map(|i| (i * 5 + turn + round) % 12).collect();
                    serve(&mut bank, layer, &ids, 2, SIZES).unwrap();
                    assert_maps(&bank);
                }
            }
            // In the middle of a request, with reads of guesses under way.
            bank.read_ahead(4, &[turn % 12]).unwrap();
            bank.request(3, &[turn % 12, (turn + 3) % 12, (turn + 7) % 12], 3).unwrap();
            if turn % 2 == 0 {
                bank.clear();
            }
        }
    }
}

/// A ring may be made by one thread and used by another, and reads may outlive the thread that submitted them.
#[test]
fn a_reader_may_change_threads() {
    let toy = Toy::new(12, &[SIZES], Placement::Whole);
    let (_folder, paths) = on_disk(&toy);
    for what in EVERY {
        let mut bank = bank(&toy, &paths, BankSize::SlotsPerLayer(8), what, ReaderChoice::Auto);
        for _ in 0..5 {
            bank = std::thread::spawn(move || {
                bank.abandon();
                bank.request(3, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 2).unwrap();
                bank
            })
            .join()
            .unwrap();
            let mut served = 0;
            while bank.next_wave().unwrap() {
                served += bank.wave().len();
                bank.finish_wave();
            }
            assert_eq!(served, 10);
        }
    }
}

#[test]
fn the_simulated_reader_serves_files_on_disk_too() {
    let toy = Toy::new(12, &[SIZES], Placement::Split);
    let (_folder, paths) = on_disk(&toy);
    let reader = SimReader::open(&paths, rough(8)).unwrap();
    assert!(reader.describe().contains("seed 8"));
    let mut bank = toy.bank(toy.plan(BankSize::SlotsPerLayer(2), 2).unwrap(), Box::new(reader));
    serve(&mut bank, 3, &(0..12).collect::<Vec<_>>(), 2, SIZES).unwrap();
}

/// A drive of 20 MB/s over `paths`.
fn slow(paths: &[PathBuf]) -> PacedReader {
    let pace = Pace { read_bytes_per_s: 20_000_000, latency: Duration::from_millis(1) };
    PacedReader::new(open(What::Pread, paths, ReaderChoice::Buffered, 4).unwrap(), pace)
}

#[test]
fn a_paced_drive_serves_one_read_after_the_other_demand_first() {
    let toy = Toy::new(8, &[[20_000; 3]], Placement::Record);
    let (_folder, paths) = on_disk(&toy);
    let windows: Vec<Window> = (0..4).map(|_| Window::new(65_536)).collect();
    let read = |ticket: u64, priority| windows[ticket as usize].read(ticket, 0, 60_000, priority);
    let mut reader = slow(&paths);
    let begun = std::time::Instant::now();
    // SAFETY: four windows of their own that outlive the reader's use of them: everything is waited for or cancelled below.
    unsafe {
        reader.submit(&[read(0, Priority::Speculative), read(1, Priority::Speculative)]);
        reader.submit(&[read(2, Priority::Demand), read(3, Priority::Speculative)]);
    }
    // The first was begun before the demand came; the last has not begun when it is taken back.
    let order: Vec<u64> = (0..2).map(|_| reader.wait_any(None).unwrap().ticket.0).collect();
    assert_eq!(order, [0, 2]);
    // 60,000 bytes at 20 MB/s are 3 ms.
    assert!(begun.elapsed() >= Duration::from_millis(7), "{:?}", begun.elapsed());
    assert_eq!(reader.wait_any(Some(Duration::ZERO)).map(|done| done.ticket), None);
    let cancelled = reader.cancel(Ticket(3));
    assert_eq!(reader.wait_any(None).unwrap().ticket, Ticket(1));
    assert!(cancelled, "it had landed long ago, and the slower drive had not begun with it");
    assert!(reader.wait_any(None).is_none());
    assert!(begun.elapsed() >= Duration::from_millis(10), "{:?}", begun.elapsed());
}
