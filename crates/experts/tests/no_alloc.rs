//! After construction, serving requests allocates nothing, whichever thread looks: not the bank, not its
//! readers, not the trace.

#[expect(dead_code, reason = "most of it is for the other tests")]
#[path = "support/mod.rs"]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use slotbank_experts::policy::{NAMES, by_name};
use slotbank_experts::read::pread::{Options, PreadReader};
use slotbank_experts::{Bank, BankSize, Trace};
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

/// One test only: the counter is everybody's in this process.
#[test]
fn serving_requests_allocates_nothing() {
    let toy = Toy::new(16, &[[700, 4096, 5000]; 3], Placement::Whole);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let paths: Vec<_> = toy.names().iter().map(|name| folder.path().join(name)).collect();
    paths.iter().zip(&toy.files).for_each(|(path, content)| std::fs::write(path, content).unwrap());
    let slot = toy.plan(BankSize::All, 4).unwrap().classes()[0].slot_bytes;
    for size in [BankSize::SlotsPerLayer(4), BankSize::Bytes(20 * slot)] {
        for (simulated, name) in
            [true, false].into_iter().flat_map(|s| NAMES.iter().map(move |name| (s, name)))
        {
            let plan = toy.plan(size, 4).unwrap();
            let policy = by_name(name, &plan).unwrap();
            let reader: Box<dyn slotbank_experts::Reader> = match simulated {
                true => toy.sim(rough(1)),
                false => Box::new(PreadReader::open(&paths, &Options::default()).unwrap()),
            };
            let mut bank = Bank::new(plan, &paths, reader, Box::new(TestArena::default()), policy).unwrap();
            bank.set_trace(Trace::create(&folder.path().join("trace.jsonl")).unwrap());
            tokens(&mut bank, 4);
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            tokens(&mut bank, 100);
            let after = ALLOCATIONS.load(Ordering::Relaxed);
            assert_eq!(after - before, 0, "{size}, {name}, simulated: {simulated}");
            assert!(bank.stats().total().evictions > 100);
        }
    }
}
