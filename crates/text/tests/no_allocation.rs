//! The token loop must not touch the heap: sampling and detokenising, counted by the allocator itself.
#![expect(unsafe_code, reason = "counting allocations means being the allocator")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::FIXTURE;
use slotbank_text::{Detokenizer, Sampler, SamplingOptions};

struct Counting;

thread_local!(static COUNT: Cell<usize> = const { Cell::new(0) });

fn count() {
    COUNT.with(|count| count.set(count.get() + 1));
}

// SAFETY: every call is passed on to the system's allocator unchanged; the counter is a plain thread-local cell that
// needs no allocation of its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    let before = COUNT.with(Cell::get);
    work();
    COUNT.with(Cell::get) - before
}

#[test]
fn the_counter_counts() {
    assert!(allocations(|| drop(std::hint::black_box(vec![1u8]))) > 0);
}

#[test]
fn sampling_allocates_nothing() {
    let n_vocab = 20_000;
    let logits: Vec<f32> = (0..n_vocab).map(|id| ((id * 7919) % 1009) as f32 * 0.01).collect();
    let recent: Vec<u32> = (0..500).collect();
    let default = SamplingOptions { repetition_penalty: 1.1, ..SamplingOptions::default() };
    for options in [
        default.clone(),
        SamplingOptions::greedy(),
        SamplingOptions { top_k: 0, ..default.clone() },
        SamplingOptions { top_k: 0, top_p: 1.0, min_p: 0.0, ..default },
    ] {
        let mut sampler = Sampler::new(&options, n_vocab).unwrap();
        let counted = allocations(|| {
            for _ in 0..5 {
                sampler.try_sample(&logits, &recent).unwrap();
            }
        });
        assert_eq!(counted, 0, "{options:?}");
    }
}

#[test]
fn detokenising_allocates_nothing() {
    let tokenizer = FIXTURE.tokenizer("glm4");
    let mut stream = Detokenizer::new(tokenizer.clone()).show_special(true);
    let counted = allocations(|| {
        for _ in 0..3 {
            for id in 0..tokenizer.n_vocab() as u32 + 5 {
                stream.push(id);
            }
            stream.finish();
            assert!(!tokenizer.is_end(0));
        }
    });
    assert_eq!(counted, 0);
}
