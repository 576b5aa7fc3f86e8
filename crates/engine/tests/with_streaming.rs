//! Another bank for a loaded engine: what a load with the same options would have made of it, and the same answer.

mod common;

use common::{OnDisk, assert_same_bits, exact, packable, run, step};
use files::{Class, GgmlType};
use slotbank_engine::{
    AttentionMode, BankSize, CacheType, Engine, EngineOptions, Prefetch, Promote, ReaderChoice, Routing,
};
use toy::weights::tokens;
use toy::{Toy, Types};

const CHUNKS: [usize; 2] = [30, 1];

fn model() -> OnDisk {
    OnDisk::gguf(&Toy::wide(Types::all(GgmlType::Q8_0)))
}

/// Options that differ in everything that can be changed.
fn sides() -> Vec<EngineOptions> {
    let bank = BankSize::SlotsPerLayer(4);
    vec![
        EngineOptions { bank, prefetch: Prefetch::Off, ..exact() },
        EngineOptions { bank, prefetch: Prefetch::NextLayer, prefetch_experts: 2, ..exact() },
        EngineOptions { bank: BankSize::Percent(50), policy: "lru".to_owned(), ..exact() },
        EngineOptions { bank: BankSize::All, ..exact() },
        EngineOptions { bank: BankSize::Auto, reader: ReaderChoice::Buffered, io_threads: 2, ..exact() },
        EngineOptions { bank, hits_first: false, ordered_reads: false, io_split: Some(4), ..exact() },
    ]
}

#[test]
fn it_is_the_engine_that_a_load_would_make() {
    let (model, tokens) = (model(), tokens("streaming", 60, 96));
    let checkpoint = model.open();
    let resident = run(&mut model.load(exact()), &tokens, &CHUNKS);
    let mut engine = model.load(exact());
    for (i, options) in sides().into_iter().chain(sides().into_iter().rev()).enumerate() {
        let what = format!("{i}: {options:?}");
        engine =
            engine.with_streaming(&checkpoint, options.clone()).unwrap_or_else(|e| panic!("{what}: {e}"));
        // The memory that there is must not have changed in between.
        let memory_bytes = Some(engine.memory_plan().available_bytes);
        let fresh = EngineOptions { memory_bytes, ..options.clone() };
        let mut fresh = Engine::load(&checkpoint, fresh).unwrap_or_else(|e| panic!("{what}: {e}"));
        let slots = |engine: &Engine| engine.memory_plan().bank.as_ref().expect("a bank").classes().to_vec();
        assert_eq!(slots(&engine), slots(&fresh), "{what}");
        assert_eq!(engine.stats().allocated_bytes, engine.memory_plan().total_bytes, "{what}");
        assert_eq!(engine.stats().allocated_bytes, fresh.stats().allocated_bytes, "{what}");
        assert_eq!(engine.stats().reader, fresh.stats().reader, "{what}");
        assert_eq!(engine.options(), &options);
        assert_same_bits(&run(&mut engine, &tokens, &CHUNKS), &resident, &what);
        run(&mut fresh, &tokens, &CHUNKS);
        let counted = |engine: &Engine| engine.bank_stats().expect("a bank").total().without_time();
        assert_eq!(counted(&engine), counted(&fresh), "{what}");
    }
}

/// A sequence goes on where it was: its cache is not the bank's.
#[test]
fn a_sequence_survives() {
    let (model, tokens) = (model(), tokens("sequence", 60, 96));
    let checkpoint = model.open();
    let resident = run(&mut model.load(exact()), &tokens, &CHUNKS);
    let mut engine = model.load(exact());
    let mut sequence = engine.new_sequence().expect("a free sequence");
    let mut logits = Vec::new();
    for (part, options) in tokens.chunks(10).zip(sides()) {
        engine = engine.with_streaming(&checkpoint, options).unwrap_or_else(|e| panic!("{e}"));
        logits.extend(step(&mut engine, &mut sequence, part));
    }
    assert_same_bits(&logits, &resident, "a bank for each ten tokens");
}

/// Experts in packed form and in the file's, in turns: slots have another size, and nobody takes one form for the other.
#[test]
fn promotion_can_be_switched() {
    let (model, tokens) = (packable(), tokens("packed", 60, 96));
    let checkpoint = model.open();
    let options = |promote| EngineOptions { promote, ..exact() };
    let mut engine = model.load(options(Promote::Never));
    let plain = run(&mut engine, &tokens, &CHUNKS);
    for (promote, packs) in [(Promote::Always, true), (Promote::Never, false), (Promote::Auto, true)] {
        engine = engine.with_streaming(&checkpoint, options(promote)).unwrap_or_else(|e| panic!("{e}"));
        assert_same_bits(&run(&mut engine, &tokens, &CHUNKS), &plain, &format!("{promote:?}"));
        let promotions = engine.bank_stats().expect("a bank").total().promotions;
        assert_eq!(promotions > 0, packs, "{promote:?}");
        assert_eq!(engine.stats().allocated_bytes, engine.memory_plan().total_bytes, "{promote:?}");
    }
}

/// One trace for all banks, as for one.
#[test]
fn a_trace_goes_on() {
    let (model, tokens) = (model(), tokens("trace", 20, 96));
    let lines = |switch: bool| {
        let trace = model.dir.path().join(format!("{switch}.jsonl"));
        let bank = BankSize::SlotsPerLayer(12);
        let options = EngineOptions { trace: Some(trace.clone()), prefetch: Prefetch::Off, bank, ..exact() };
        let mut engine = model.load(options.clone());
        let mut sequence = engine.new_sequence().expect("a free sequence");
        step(&mut engine, &mut sequence, &tokens[..10]);
        if switch {
            let other = EngineOptions { hits_first: false, ..options };
            engine = engine.with_streaming(&model.open(), other).unwrap_or_else(|e| panic!("{e}"));
        }
        step(&mut engine, &mut sequence, &tokens[10..]);
        engine.finish_trace().expect("written");
        std::fs::read_to_string(&trace).expect("a trace").lines().count()
    };
    let count = lines(false);
    assert!(count > 0);
    assert_eq!(lines(true), count);
}

#[test]
fn what_only_a_load_can_change_is_refused_by_name() {
    let model = model();
    let checkpoint = model.open();
    let trace = model.dir.path().join("t.jsonl");
    for (name, options) in [
        ("--threads", EngineOptions { threads: Some(1), ..exact() }),
        ("--batch", EngineOptions { batch: 7, ..exact() }),
        ("--ubatch", EngineOptions { ubatch: 7, ..exact() }),
        ("--ctx", EngineOptions { context: Some(64), ..exact() }),
        ("--cache-type", EngineOptions { cache_type: CacheType::Q8, ..exact() }),
        ("--attention", EngineOptions { attention: AttentionMode::Dense, ..exact() }),
        ("--moe-topk", EngineOptions { moe_topk: Some(1), ..exact() }),
        ("--no-slot8", EngineOptions { slot8: false, ..exact() }),
        ("--ram", EngineOptions { memory_bytes: Some(1 << 30), ..exact() }),
        ("--shared-only", EngineOptions { shared_only: true, ..exact() }),
        ("--trace", EngineOptions { trace: Some(trace.clone()), ..exact() }),
        ("--moe-mode", EngineOptions { prefetch: Prefetch::Oracle, oracle: Some(trace), ..exact() }),
        ("routing", EngineOptions { routing: Routing::Force(1), ..exact() }),
    ] {
        let error = model.load(exact()).with_streaming(&checkpoint, options).err().expect(name);
        assert_eq!(error.class(), Class::Usage, "{name}");
        assert!(error.to_string().contains(name), "{name}: {error}");
    }
    for options in sides() {
        assert_eq!(exact().fixed_difference(&options), None, "{options:?}");
    }
    // A load's own errors, too.
    let stripe = EngineOptions { stripe: true, ..exact() };
    assert!(model.load(exact()).with_streaming(&checkpoint, stripe).is_err(), "there is only one copy");
}
