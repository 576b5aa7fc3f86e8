//! Invariant 6: the plan shown before loading is what loading allocates — as the allocators of slots, weights, caches and
//! buffers count it to the byte, and as the process's heap grows but for small change.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use common::{OnDisk, exact, listed, run};
use files::{Class, GgmlType};
use slotbank_engine::{AttentionMode, BankSize, CacheType, Engine, EngineOptions, Promote};
use toy::weights::tokens;
use toy::{Listed, Toy, Types};

struct Weighing;

static LIVE_BYTES: AtomicI64 = AtomicI64::new(0);

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Weighing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LIVE_BYTES.fetch_add(size as i64 - layout.size() as i64, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, size) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Weighing = Weighing;

/// The heap is the process's: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What differs from model to model in bytes that the plan does not list: names, queues, tables of the bank, thread
/// handles. A reader's queue of 4096 reads is the largest of them.
const SMALL_CHANGE: i64 = 1 << 20;

fn model() -> OnDisk {
    use GgmlType as T;
    let mixed = Types {
        dense: T::Q8_0,
        experts: vec![[T::Q4_0, T::Q4_0, T::Q8_0], [T::Q4_K, T::IQ2_XXS, T::Q6_K], [T::F32; 3]],
    };
    OnDisk::gguf(&Toy { mtp: true, stale_indexers: true, ..Toy::wide(mixed) })
}

#[test]
fn planned_bytes_are_allocated_bytes() {
    let _alone = alone();
    let model = model();
    let checkpoint = model.open();
    let large = EngineOptions { context: Some(4096), ubatch: 256, ..exact() };
    for options in [
        exact(),
        EngineOptions { bank: BankSize::SlotsPerLayer(3), ..exact() },
        EngineOptions { bank: BankSize::SlotsPerLayer(12), ..large.clone() },
        EngineOptions { bank: BankSize::Bytes(7_000_000), ..exact() },
        EngineOptions { bank: BankSize::Auto, memory_bytes: Some(14_000_000), ..exact() },
        EngineOptions { cache_type: CacheType::F16, context: Some(4096), ..exact() },
        EngineOptions { cache_type: CacheType::Q8, context: Some(4095), ..exact() },
        EngineOptions { ubatch: 1, threads: Some(1), ..exact() },
        EngineOptions { threads: Some(5), ..large },
        EngineOptions { promote: Promote::Always, bank: BankSize::SlotsPerLayer(5), ..exact() },
        EngineOptions { promote: Promote::Never, ..exact() },
        EngineOptions { attention: AttentionMode::Dense, ..exact() },
        EngineOptions { attention: AttentionMode::Recent, ..exact() },
        EngineOptions { shared_only: true, ..exact() },
        EngineOptions { moe_topk: Some(1), bank: BankSize::SlotsPerLayer(1), ..exact() },
    ] {
        let what = format!("{options:?}");
        let plan = Engine::plan(&checkpoint, &options).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(plan.rows.iter().map(|row| row.bytes).sum::<u64>(), plan.total_bytes);
        assert!(plan.total_bytes <= plan.available_bytes);
        let before = LIVE_BYTES.load(Ordering::Relaxed);
        let mut engine = Engine::load(&checkpoint, options.clone()).unwrap_or_else(|e| panic!("{what}: {e}"));
        let grown = LIVE_BYTES.load(Ordering::Relaxed) - before;
        assert_eq!(engine.memory_plan().total_bytes, plan.total_bytes);
        assert_eq!(engine.stats().allocated_bytes, plan.total_bytes, "{what}");
        let planned = plan.total_bytes as i64;
        assert!(
            (planned..=planned + SMALL_CHANGE + aligned_slack(&plan)).contains(&grown),
            "{what}: the heap grew by {grown}, planned were {planned}"
        );
        // Running takes nothing more that stays.
        let tokens = tokens("memory", 60, 96);
        run(&mut engine, &tokens, &[50, 1]);
        let warm = LIVE_BYTES.load(Ordering::Relaxed);
        run(&mut engine, &tokens, &[50, 1]);
        assert_eq!(LIVE_BYTES.load(Ordering::Relaxed), warm, "{what}: running leaks");
        assert_eq!(engine.stats().allocated_bytes, plan.total_bytes, "{what}");
        drop(engine);
    }
}

/// Keys and values of all positions are planned, also of layers that see a window only.
#[test]
fn keys_and_values_are_planned_as_they_are_allocated() {
    let _alone = alone();
    for name in ["qwen3moe_yarn", "glm4moe", "glm4moe_air", "minimax_m2", "gpt_oss"] {
        let f = Listed::named(name);
        let model = listed(&f, &Types::all(GgmlType::Q8_0));
        for options in [
            exact(),
            EngineOptions { bank: BankSize::SlotsPerLayer(4), context: Some(500), ..exact() },
            EngineOptions { cache_type: CacheType::F16, ubatch: 1, ..exact() },
            EngineOptions { cache_type: CacheType::Q8, threads: Some(5), context: Some(77), ..exact() },
        ] {
            let what = format!("{name}, {options:?}");
            let plan = Engine::plan(&model.open(), &options).unwrap_or_else(|e| panic!("{what}: {e}"));
            let mut engine = model.load(options);
            assert_eq!(engine.stats().allocated_bytes, plan.total_bytes, "{what}");
            run(&mut engine, &f.tokens, &[40, 1]);
            assert_eq!(engine.stats().allocated_bytes, plan.total_bytes, "{what}");
        }
    }
}

#[test]
fn planned_states_are_allocated_states() {
    let _alone = alone();
    for name in ["qwen35moe", "qwen3next_legacy"] {
        let model = listed(&Listed::named(name), &Types::all(GgmlType::Q8_0));
        let checkpoint = model.open();
        let mut cache_bytes = Vec::new();
        for snapshots in [0, 1, 3] {
            for options in [exact(), EngineOptions { ubatch: 1, threads: Some(5), ..exact() }] {
                let options = EngineOptions { snapshots, ..options };
                let what = format!("{name}, {options:?}");
                let plan = Engine::plan(&checkpoint, &options).unwrap_or_else(|e| panic!("{what}: {e}"));
                let mut engine = Engine::load(&checkpoint, options).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_eq!(engine.stats().allocated_bytes, plan.total_bytes, "{what}");
                run(&mut engine, &tokens("memory", 60, 64), &[50, 1]);
                assert_eq!(engine.stats().allocated_bytes, plan.total_bytes, "{what}");
                cache_bytes.push(plan.rows.iter().find(|row| row.name == "cache").expect("a row").bytes);
            }
        }
        // The step's two copies and one per snapshot, whatever the context.
        let one = cache_bytes[2] - cache_bytes[0];
        assert!(one > 0 && cache_bytes[4] - cache_bytes[0] == 3 * one, "{name}: {cache_bytes:?}");
    }
}

/// Every buffer may be longer than planned by its alignment: a page, or 2 MiB where it is at least that long, which in these
/// toys only the bank's regions are.
fn aligned_slack(plan: &slotbank_engine::MemoryPlan) -> i64 {
    const HUGE_PAGE: u64 = 2 << 20;
    let regions = plan.bank.iter().flat_map(|bank| bank.classes());
    let huge = regions.filter(|class| class.bytes() >= HUGE_PAGE).count();
    160 * 4096 + (huge as u64 * HUGE_PAGE) as i64
}

#[test]
fn everything_is_given_back() {
    let _alone = alone();
    let model = model();
    let cycle = || {
        let mut engine = model.load(EngineOptions { bank: BankSize::SlotsPerLayer(4), ..exact() });
        run(&mut engine, &tokens("memory", 40, 96), &[32, 1]);
    };
    cycle();
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    cycle();
    assert_eq!(LIVE_BYTES.load(Ordering::Relaxed), before);
}

#[test]
fn a_plan_never_exceeds_the_memory_it_was_given() {
    let _alone = alone();
    let model = model();
    let checkpoint = model.open();
    let smallest = EngineOptions { bank: BankSize::SlotsPerLayer(3), ..exact() };
    let needed = Engine::plan(&checkpoint, &smallest).expect("fits").total_bytes;
    for memory in [needed / 2, needed - 1, needed, needed + needed / 4, 2 * needed, 10 * needed] {
        let given = EngineOptions { memory_bytes: Some(memory), ..smallest.clone() };
        match Engine::plan(&checkpoint, &given) {
            Ok(plan) => assert!(memory >= needed && plan.total_bytes <= memory),
            Err(error) => {
                assert_eq!(error.class(), Class::DoesNotFit, "{error}");
                assert!(memory < needed, "{memory} bytes are enough for {needed}");
            }
        }
        // `auto` fits itself in, or says that it cannot.
        let auto = EngineOptions { bank: BankSize::Auto, ..given };
        match Engine::plan(&checkpoint, &auto) {
            Ok(plan) => assert!(plan.total_bytes <= memory, "{} of {memory}", plan.total_bytes),
            Err(error) => assert_eq!(error.class(), Class::DoesNotFit, "{error}"),
        }
    }
    let roomy = EngineOptions { bank: BankSize::Auto, memory_bytes: Some(10 * needed), ..exact() };
    let bank = Engine::plan(&checkpoint, &roomy).expect("fits").bank.expect("a bank");
    assert!(bank.is_resident(), "`auto` takes every expert when there is room");
}
