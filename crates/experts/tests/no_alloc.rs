//! After construction, serving requests allocates nothing, whichever thread looks: not the bank, not its
//! readers, not the trace.

#[expect(dead_code, reason = "most of it is for the other tests")]
#[path = "support/mod.rs"]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use slotbank_experts::policy::{NAMES, by_name};
use slotbank_experts::read::pread::{Options, PreadReader};
use slotbank_experts::read::spread::{self, Drive, SpreadReader};
use slotbank_experts::{Bank, BankSize, Reader, Trace};
use support::{Placement, TestArena, Toy, rough};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: hands everything on to the system allocator and counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn tokens(bank: &mut Bank, rounds: u32) {
    const ALL: [u32; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    for round in 0..rounds {
        for layer in 3..6 {
            let at = (round * 3 + layer) as usize % 12;
            // Now and then a prompt's worth, which takes groups.
            let ids = if round % 16 == 0 { &ALL[..] } else { &ALL[at..at + 4] };
            bank.request(layer, ids, 4).unwrap();
            while bank.next_wave().unwrap() {
                let slot = bank.wave()[0].slot;
                assert!(!bank.weights(slot, files::Family::Down).is_empty());
                bank.finish_wave();
            }
        }
    }
}

/// Each reader, and what is wrapped around them; none where this machine does not have it. One at a time: threads of
/// another one that only start would be counted too.
fn reader(nth: usize, toy: &Toy, paths: &[PathBuf]) -> Option<Box<dyn Reader>> {
    let pread = || Box::new(PreadReader::open(paths, &Options::default()).unwrap());
    let drive = || Drive { reader: pread(), files: paths.to_vec() };
    let cut = spread::Options { slice_bytes_min: 4096, ..Default::default() };
    let stripe = spread::Options { stripe: true, ..cut.clone() };
    Some(match nth {
        0 => toy.sim(rough(1)),
        1 => pread(),
        2 => Box::new(SpreadReader::new(vec![drive()], &cut)),
        3 => Box::new(SpreadReader::new(vec![drive(), drive()], &cut)),
        4 => Box::new(SpreadReader::new(vec![drive(), drive()], &stripe)),
        _ => return uring(paths),
    })
}

#[cfg(target_os = "linux")]
fn uring(paths: &[PathBuf]) -> Option<Box<dyn Reader>> {
    use slotbank_experts::read::uring::{Options, UringReader};
    Some(Box::new(UringReader::open(paths, &Options::default()).ok()?))
}

#[cfg(not(target_os = "linux"))]
fn uring(_: &[PathBuf]) -> Option<Box<dyn Reader>> {
    None
}

/// The thread of the test harness goes on for a moment after it has started the test, and would be counted.
fn wait_for_the_harness() {
    let count = || ALLOCATIONS.load(Ordering::Relaxed);
    loop {
        let before = count();
        std::thread::sleep(std::time::Duration::from_millis(100));
        if count() == before {
            return;
        }
    }
}

/// One test only: the counter is everybody's in this process.
#[test]
fn serving_requests_allocates_nothing() {
    let toy = Toy::new(16, &[[700, 4096, 5000]; 3], Placement::Whole);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let paths: Vec<_> = toy.names().iter().map(|name| folder.path().join(name)).collect();
    paths.iter().zip(&toy.files).for_each(|(path, content)| std::fs::write(path, content).unwrap());
    wait_for_the_harness();
    let slot = toy.plan(BankSize::All, 4).unwrap().classes()[0].slot_bytes;
    for size in [BankSize::SlotsPerLayer(4), BankSize::Bytes(20 * slot)] {
        for (nth, policy) in (0..6).flat_map(|nth| NAMES.iter().map(move |name| (nth, name))) {
            let Some(reader) = reader(nth, &toy, &paths) else { continue };
            let name = format!("{}, {policy}", reader.describe());
            let plan = toy.plan(size, 4).unwrap();
            let policy = by_name(policy, &plan).unwrap();
            let mut bank = Bank::new(plan, &paths, reader, Box::new(TestArena::default()), policy).unwrap();
            bank.set_trace(Trace::create(&folder.path().join("trace.jsonl")).unwrap());
            tokens(&mut bank, 4);
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            tokens(&mut bank, 100);
            let after = ALLOCATIONS.load(Ordering::Relaxed);
            assert_eq!(after - before, 0, "{size}, {name}");
            assert!(bank.stats().total().evictions > 100);
        }
    }
}
