//! Invariant 7: after a warm-up, decoding a token allocates nothing on the heap — no thread of the process does, whether the
//! expert is a hit or a miss, whoever reads it, and whether a sampler runs.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{OnDisk, exact, listed};
use files::GgmlType;
use slotbank_engine::{
    AttentionMode, BankSize, CacheType, Engine, EngineOptions, Event, GenerateOptions, Promote, ReaderChoice,
    SamplingOptions, Want,
};
use toy::weights::tokens;
use toy::{Listed, Toy, Types};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, size) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The counter is the process's: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

const WARM_UP: usize = 24;
const COUNTED: usize = 40;

/// Allocations of `COUNTED` single-token passes after a prompt and `WARM_UP` of them.
fn allocations_per_run(engine: &mut Engine) -> (u64, u64) {
    let tokens = tokens("allocations", 20 + WARM_UP + COUNTED, engine.model().n_vocab.min(80));
    let mut sequence = engine.new_sequence().expect("a free sequence");
    let (mut sum, mut before, mut misses) = (0.0, 0, 0);
    engine
        .forward(&mut sequence, &tokens[..20], Want::Last, &mut |_, row| sum += row[0])
        .expect("the prompt runs");
    for (i, token) in tokens[20..].iter().enumerate() {
        if i == WARM_UP {
            misses = engine.bank_stats().map_or(0, |stats| stats.total().misses);
            before = ALLOCATIONS.load(Ordering::Relaxed);
        }
        engine
            .forward(&mut sequence, std::slice::from_ref(token), Want::Last, &mut |_, row| sum += row[0])
            .expect("the token runs");
    }
    let after = ALLOCATIONS.load(Ordering::Relaxed);
    assert!(sum.is_finite());
    (after - before, engine.bank_stats().map_or(0, |stats| stats.total().misses) - misses)
}

#[test]
fn decoding_allocates_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    use GgmlType as T;
    let mixed =
        Types { dense: T::Q8_0, experts: vec![[T::Q4_0, T::Q4_0, T::Q8_0], [T::Q4_K, T::IQ2_XXS, T::Q6_K]] };
    let model = OnDisk::gguf(&Toy::wide(mixed));
    let floor = || EngineOptions { bank: BankSize::SlotsPerLayer(3), ..exact() };
    for (options, streams) in [
        (exact(), false),
        (floor(), true),
        (EngineOptions { bank: BankSize::SlotsPerLayer(5), reader: ReaderChoice::Buffered, ..floor() }, true),
        (EngineOptions { threads: Some(3), cache_type: CacheType::F16, ..floor() }, true),
        (EngineOptions { cache_type: CacheType::Q8, ..floor() }, true),
        (EngineOptions { promote: Promote::Always, bank: BankSize::SlotsPerLayer(6), ..floor() }, true),
        (EngineOptions { attention: AttentionMode::Dense, ..floor() }, true),
        (EngineOptions { attention: AttentionMode::Recent, threads: Some(1), ..floor() }, true),
    ] {
        let what = format!("{options:?}");
        let (allocations, misses) = allocations_per_run(&mut model.load(options));
        assert_eq!(misses > 0, streams, "{what}: {misses} misses");
        assert_eq!(allocations, 0, "{what}: in {COUNTED} tokens with {misses} misses");
    }
}

#[test]
fn decoding_without_an_indexer_allocates_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let model = OnDisk::gguf(&Toy::wide_deepseek2(Types::all(GgmlType::Q8_0)));
    let floor = EngineOptions { bank: BankSize::SlotsPerLayer(3), ..exact() };
    for options in [exact(), EngineOptions { threads: Some(3), cache_type: CacheType::F16, ..floor }] {
        assert_eq!(allocations_per_run(&mut model.load(options)).0, 0);
    }
}

/// Keys and values instead of latents, windows, sinks and biases.
#[test]
fn decoding_with_grouped_queries_allocates_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for name in ["gemma4", "glm4moe", "gpt_oss"] {
        let model = listed(&Listed::named(name), &Types::all(GgmlType::Q8_0));
        let floor = EngineOptions { bank: BankSize::SlotsPerLayer(4), ..exact() };
        let small = EngineOptions { threads: Some(3), cache_type: CacheType::Q8, ..floor.clone() };
        for options in [exact(), floor, small] {
            assert_eq!(allocations_per_run(&mut model.load(options)).0, 0, "{name}");
        }
    }
}

/// States of sequences are copied and written in place.
#[test]
fn decoding_with_states_allocates_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for name in ["qwen35moe", "qwen3next_legacy"] {
        let model = listed(&Listed::named(name), &Types::all(GgmlType::Q8_0));
        let floor = EngineOptions { bank: BankSize::SlotsPerLayer(4), snapshots: 1, ..exact() };
        for options in [exact(), EngineOptions { threads: Some(3), cache_type: CacheType::F16, ..floor }] {
            assert_eq!(allocations_per_run(&mut model.load(options)).0, 0, "{name}");
        }
    }
}

/// The whole loop: sampler with every stage, history, stop flag, callback.
#[test]
fn generating_allocates_nothing_per_token() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let model = OnDisk::gguf(&Toy::wide(Types::all(GgmlType::Q8_0)));
    let sampling = SamplingOptions {
        temperature: 0.9,
        top_k: 20,
        top_p: 0.95,
        min_p: 0.01,
        repetition_penalty: 1.1,
        ..SamplingOptions::default()
    };
    for sampling in [SamplingOptions { temperature: 0.0, ..SamplingOptions::default() }, sampling] {
        let mut engine = model.load(EngineOptions { bank: BankSize::SlotsPerLayer(3), ..exact() });
        let mut sequence = engine.new_sequence().expect("a free sequence");
        let options =
            GenerateOptions { max_tokens: Some(WARM_UP + COUNTED), sampling, ..GenerateOptions::default() };
        let (mut count, mut first, mut last) = (0, 0, 0);
        let generation = engine
            .generate(
                &mut sequence,
                &tokens("prompt", 10, 96),
                &options,
                &AtomicBool::new(false),
                &mut |event| {
                    if !matches!(event, Event::Token(_)) {
                        return;
                    }
                    count += 1;
                    last = ALLOCATIONS.load(Ordering::Relaxed);
                    if count == WARM_UP {
                        first = last;
                    }
                },
            )
            .expect("generates");
        assert_eq!((generation.tokens.len(), count), (WARM_UP + COUNTED, WARM_UP + COUNTED));
        assert_eq!(last - first, 0, "allocations in {COUNTED} tokens");
    }
}

/// The counter counts.
#[test]
fn an_allocation_would_be_seen() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    drop(std::hint::black_box(vec![0u8; 100]));
    assert!(ALLOCATIONS.load(Ordering::Relaxed) > before);
}
