//! The pread pool on real files, through the bank and alone.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::time::Duration;

use files::FileIndex;
use slotbank_experts::read::pread::{Options, PreadReader};
use slotbank_experts::read::sim::SimReader;
use slotbank_experts::{Bank, BankSize, Error, Lru, Origin, Priority, Read, Reader, ReaderChoice, Ticket};

use crate::support::{Placement, TestArena, Toy, assert_maps, rough, serve};

const SIZES: [u64; 3] = [700, 4096, 15_000];

/// The files of a toy on a real disk. Not in the temporary folder, which is often memory and refuses direct
/// reads.
fn on_disk(toy: &Toy) -> (tempfile::TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let paths: Vec<PathBuf> = toy.names().iter().map(|name| folder.path().join(name)).collect();
    paths.iter().zip(&toy.files).for_each(|(path, content)| std::fs::write(path, content).unwrap());
    (folder, paths)
}

fn bank(toy: &Toy, paths: &[PathBuf], size: BankSize, choice: ReaderChoice) -> Bank {
    let plan = toy.plan(size, 2).unwrap();
    let policy = Box::new(Lru::new(&plan));
    let reader = PreadReader::open(paths, &Options { choice, ..Options::default() }).unwrap();
    Bank::new(plan, paths, Box::new(reader), Box::new(TestArena::default()), policy).unwrap()
}

#[test]
fn every_layout_is_read_exactly_directly_and_buffered() {
    for layout in [Placement::Whole, Placement::Record, Placement::Split] {
        let toy = Toy::new(12, &[SIZES; 2], layout);
        assert_ne!(toy.files[0].len() % 4096, 0, "the last expert ends within a block");
        let (_folder, paths) = on_disk(&toy);
        for choice in [ReaderChoice::Auto, ReaderChoice::Buffered] {
            let mut bank = bank(&toy, &paths, BankSize::SlotsPerLayer(3), choice);
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
    let open = |choice| PreadReader::open(&paths, &Options { choice, ..Options::default() });
    assert_eq!(open(ReaderChoice::Buffered).unwrap().describe(), "pread, 8 threads, buffered");
    let auto = open(ReaderChoice::Auto).unwrap().describe();
    match open(ReaderChoice::Direct) {
        Ok(direct) => assert_eq!(direct.describe(), auto),
        Err(error) => {
            assert!(matches!(error, Error::DirectRefused { .. }), "{error}");
            assert!(auto.contains("refused"), "{auto}");
        }
    }
}

#[test]
fn a_missing_file_is_named() {
    for choice in [ReaderChoice::Auto, ReaderChoice::Direct, ReaderChoice::Buffered] {
        let error =
            PreadReader::open(&["no/such/file.bin".into()], &Options { choice, ..Options::default() });
        let error = error.unwrap_err();
        assert!(matches!(&error, Error::Open { path, .. } if path.ends_with("file.bin")), "{error}");
        assert_eq!(error.class(), files::Class::Io);
    }
}

#[test]
fn a_file_cut_while_in_use_is_an_error_with_its_place() {
    let toy = Toy::new(12, &[SIZES], Placement::Whole);
    for choice in [ReaderChoice::Auto, ReaderChoice::Buffered] {
        let (_folder, paths) = on_disk(&toy);
        let mut bank = bank(&toy, &paths, BankSize::SlotsPerLayer(4), choice);
        let file = std::fs::OpenOptions::new().write(true).open(&paths[0]).unwrap();
        file.set_len(toy.files[0].len() as u64 - 4500).unwrap();
        let error = serve(&mut bank, 3, &[0, 11], 2, SIZES).unwrap_err();
        let Error::Read { path, offset, expert, source, .. } = error else { panic!("{error}") };
        assert_eq!((path, expert), (paths[0].clone(), 11));
        assert_eq!(offset, toy.files[0].len() as u64 - 4500);
        assert_eq!(source.kind(), std::io::ErrorKind::UnexpectedEof);
        assert_maps(&bank);
        serve(&mut bank, 3, &[0, 1, 2, 3, 4, 5], 2, SIZES).unwrap();
    }
}

/// Memory for reads outside any bank.
struct Window(NonNull<u8>, Layout);

impl Window {
    fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes, 4096).unwrap();
        // SAFETY: the layout has a size.
        Window(NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap(), layout)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the tests look only after the completions.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), self.1.size()) }
    }

    fn read(&self, ticket: u64, offset: u64, len: u64, priority: Priority) -> Read {
        let (ticket, file, span) = (Ticket(ticket), FileIndex(0), self.1.size() as u64);
        let origin = Origin { layer: 0, expert: 0, part: 0 };
        Read { ticket, file, offset, len, window: self.0, span, priority, origin }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`; readers are gone or idle by then.
        unsafe { dealloc(self.0.as_ptr(), self.1) };
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
    for choice in [ReaderChoice::Auto, ReaderChoice::Buffered] {
        let windows: Vec<Window> = extents.iter().map(|_| Window::new(5 * 4096)).collect();
        let mut reader =
            PreadReader::open(std::slice::from_ref(&path), &Options { choice, ..Options::default() })
                .unwrap();
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
#[should_panic(expected = "beyond its window")]
fn a_read_that_does_not_fit_its_window_is_never_started() {
    let toy = Toy::new(2, &[SIZES], Placement::Whole);
    let (_folder, paths) = on_disk(&toy);
    let window = Window::new(4096);
    let mut reader = PreadReader::open(&paths, &Options::default()).unwrap();
    // SAFETY: the window is valid; that the read does not fit it is the point.
    unsafe { reader.submit(&[window.read(0, 4000, 100, Priority::Demand)]) };
}

/// Speculation waits behind demand, unless it is promoted; what has not started can be taken back.
#[test]
fn speculative_reads_wait_can_be_promoted_and_cancelled() {
    let toy = Toy::new(2, &[SIZES], Placement::Whole);
    let (_folder, paths) = on_disk(&toy);
    let options = Options { threads: 1, ..Options::default() };
    for _ in 0..50 {
        let windows: Vec<Window> = (0..40).map(|_| Window::new(8192)).collect();
        let mut reader = PreadReader::open(&paths, &options).unwrap();
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
        assert!(at(7) < at(19) && at(39) < at(19), "{order:?}");
        for (ticket, gone) in [3u64, 30, 12].into_iter().zip(cancelled) {
            assert_eq!(at(ticket).is_none(), gone);
        }
    }
}

#[test]
fn a_reader_dropped_with_reads_in_flight_leaves_memory_alone() {
    let toy = Toy::new(12, &[SIZES], Placement::Whole);
    let (_folder, paths) = on_disk(&toy);
    for _ in 0..20 {
        let mut bank = bank(&toy, &paths, BankSize::SlotsPerLayer(8), ReaderChoice::Auto);
        bank.request(3, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 2).unwrap();
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
