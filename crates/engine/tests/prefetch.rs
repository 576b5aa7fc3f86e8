//! Reading ahead, oracles and live resizing: they move bytes and change no bit of the answer.

mod common;

use std::time::Duration;

use common::{Logits, OnDisk, assert_same_bits, exact, run, step};
use experts::Counters;
use experts::read::sim::{Clock, Options as Drive, SimReader};
use files::{Class, GgmlType};
use slotbank_engine::{BankSize, Engine, EngineOptions, Prefetch, Routing};
use toy::weights::tokens;
use toy::{Toy, Types};

const TOKENS: usize = 96;
const CHUNKS: [usize; 2] = [30, 1];

fn model() -> OnDisk {
    OnDisk::gguf(&Toy::wide(Types::all(GgmlType::Q8_0)))
}

/// A drive that delays, reorders and returns short.
fn rough(model: &OnDisk, options: EngineOptions, seed: u64) -> Engine {
    let ms = Duration::from_millis;
    let (latency, jitter, clock) = (ms(1), ms(3), Clock::Virtual);
    let drive = Drive { seed, latency, jitter, clock, short_reads: true, ..Drive::default() };
    let reader =
        |files: &[std::path::PathBuf]| Ok(Box::new(SimReader::open(files, drive.clone())?) as Box<_>);
    Engine::load_with_reader(&model.open(), options, reader).unwrap_or_else(|e| panic!("{e}"))
}

fn total(engine: &Engine) -> Counters {
    engine.bank_stats().expect("a bank").total()
}

fn prompt() -> Vec<u32> {
    tokens("prefetch", TOKENS, 96)
}

#[test]
fn who_guesses_changes_no_bit_and_no_count() {
    let (model, tokens) = (model(), prompt());
    let resident = run(&mut model.load(exact()), &tokens, &CHUNKS);
    for bank in [3, 4, 6].map(BankSize::SlotsPerLayer) {
        let options =
            |prefetch, experts| EngineOptions { bank, prefetch, prefetch_experts: experts, ..exact() };
        let mut engine = rough(&model, options(Prefetch::Off, 4), 1);
        assert_same_bits(&run(&mut engine, &tokens, &CHUNKS), &resident, "off");
        let plain = total(&engine);
        assert_eq!((plain.ahead, plain.guessed), (0, 0));
        for (prefetch, experts) in
            [(Prefetch::Auto, 4), (Prefetch::NextLayer, 1), (Prefetch::NextLayer, 4), (Prefetch::Previous, 2)]
        {
            let what = format!("{bank:?}, {prefetch:?}, {experts} experts");
            let mut engine = rough(&model, options(prefetch, experts), 2);
            assert_same_bits(&run(&mut engine, &tokens, &CHUNKS), &resident, &what);
            let counters = total(&engine);
            assert_eq!(counters.without_time(), plain.without_time(), "{what}");
            assert!(counters.guessed > 0 && counters.guessed_right <= counters.guessed, "{what}");
            if prefetch == Prefetch::NextLayer {
                assert!(counters.ahead_used > 0, "{what}: {counters:?}");
                // The dense layer before the first routed one guesses, too.
                let first = &engine.bank_stats().expect("a bank").layers[0];
                assert!(first.layer > 0 && first.counters.guessed > 0, "{what}: {first:?}");
            }
        }
    }
}

#[test]
fn an_oracle_guesses_right() {
    let (model, tokens) = (model(), prompt());
    let trace = model.dir.path().join("trace.jsonl");
    let base = EngineOptions { bank: BankSize::SlotsPerLayer(4), prefetch: Prefetch::Off, ..exact() };
    let mut engine = rough(&model, EngineOptions { trace: Some(trace.clone()), ..base.clone() }, 1);
    let plain = run(&mut engine, &tokens, &CHUNKS);
    engine.finish_trace().expect("written");
    let oracle = EngineOptions { prefetch: Prefetch::Oracle, oracle: Some(trace.clone()), ..base.clone() };
    let mut engine = rough(&model, oracle.clone(), 2);
    assert_same_bits(&run(&mut engine, &tokens, &CHUNKS), &plain, "oracle");
    let counters = total(&engine);
    assert!(counters.guessed > 100 && counters.guessed_right == counters.guessed, "{counters:?}");
    assert_eq!(counters.ahead_wasted_bytes, 0);

    // Another run than the trace's is noticed at the first call that differs.
    let mut engine = rough(&model, oracle, 2);
    let mut sequence = engine.new_sequence().expect("a free sequence");
    let error = engine
        .forward(&mut sequence, &tokens[..7], slotbank_engine::Want::All, &mut |_, _| ())
        .expect_err("seven tokens are not thirty");
    assert_eq!(error.class(), Class::Usage);
    assert!(error.to_string().contains("trace.jsonl") && error.to_string().contains("call 0"), "{error}");
    // And the engine goes on: the bank has no open request.
    assert!(engine.resize_bank(1).is_err(), "a fixed number of slots");
}

#[test]
fn a_replay_reads_nothing_while_it_runs_and_gives_the_same_answer() {
    let (model, tokens) = (model(), prompt());
    let trace = model.dir.path().join("trace.jsonl");
    let mut engine = model.load(EngineOptions { trace: Some(trace.clone()), ..exact() });
    let plain = run(&mut engine, &tokens, &CHUNKS);
    engine.finish_trace().expect("written");
    let options = EngineOptions {
        routing: Routing::Replay,
        oracle: Some(trace.clone()),
        bank: BankSize::All,
        ..exact()
    };
    assert_same_bits(&run(&mut model.load(options.clone()), &tokens, &CHUNKS), &plain, "replay");

    let few = &tokens[..2];
    let trace = model.dir.path().join("few.jsonl");
    let mut engine = model.load(EngineOptions { trace: Some(trace.clone()), ..exact() });
    let plain = run(&mut engine, few, &[1]);
    engine.finish_trace().expect("written");
    let bank = BankSize::SlotsPerLayer(8);
    let options = EngineOptions { oracle: Some(trace), bank, ..options };
    let mut engine = rough(&model, options, 3);
    let before = total(&engine);
    assert_same_bits(&run(&mut engine, few, &[1]), &plain, "replay in a small bank");
    let after = total(&engine);
    assert_eq!((after.misses, after.bytes_read), (0, before.bytes_read));
}

#[test]
fn diagnostic_routings_are_other_answers() {
    let (model, tokens) = (model(), prompt());
    let plain = run(&mut model.load(exact()), &tokens, &CHUNKS);
    let forced = |expert, bank| {
        let options = EngineOptions { routing: Routing::Force(expert), bank, ..exact() };
        let mut engine = model.load(options);
        let logits = run(&mut engine, &tokens, &CHUNKS);
        let counters = total(&engine);
        assert_eq!(counters.refs, counters.calls * TOKENS as u64 / (TOKENS as u64 - 29));
        logits
    };
    let five = forced(5, BankSize::All);
    assert_ne!(five, plain);
    assert_ne!(five, forced(2, BankSize::All));
    assert_same_bits(&forced(5, BankSize::SlotsPerLayer(1)), &five, "streamed");
    let mut engine = model.load(EngineOptions { routing: Routing::RouterOnly, ..exact() });
    let none = run(&mut engine, &tokens, &CHUNKS);
    assert_eq!(total(&engine).calls, 0);
    let shared = run(&mut model.load(EngineOptions { shared_only: true, ..exact() }), &tokens, &CHUNKS);
    assert_same_bits(&none, &shared, "the shared experts alone");
    let checkpoint = model.open();
    let bad = EngineOptions { routing: Routing::Force(1000), ..exact() };
    assert_eq!(Engine::load(&checkpoint, bad).err().expect("no such expert").class(), Class::Usage);
}

#[test]
fn the_order_of_service_changes_nothing() {
    let (model, tokens) = (model(), prompt());
    let resident = run(&mut model.load(exact()), &tokens, &CHUNKS);
    for (hits_first, ordered_reads) in [(true, false), (false, true), (false, false)] {
        let bank = BankSize::SlotsPerLayer(5);
        let mut engine = rough(&model, EngineOptions { bank, hits_first, ordered_reads, ..exact() }, 6);
        assert_same_bits(
            &run(&mut engine, &tokens, &CHUNKS),
            &resident,
            &format!("{hits_first} {ordered_reads}"),
        );
    }
}

#[test]
fn resizing_while_it_runs_changes_nothing() {
    let (model, tokens) = (model(), prompt());
    let resident = run(&mut model.load(exact()), &tokens, &CHUNKS);
    let bank = Engine::plan(&model.open(), &exact()).expect("a plan").bank.expect("a bank");
    let options = EngineOptions { bank: BankSize::Bytes(bank.all_bytes() * 2 / 3), ..exact() };
    let mut engine = rough(&model, options, 4);
    let mut sequence = engine.new_sequence().expect("a free sequence");
    let mut logits: Logits = Vec::new();
    let mut sizes = std::collections::BTreeSet::new();
    for (i, part) in tokens.chunks(5).enumerate() {
        let bytes = bank.all_bytes() * [2, 1, 0, 3, 1][i % 5] / 4;
        sizes.insert(engine.resize_bank(bytes).expect("no fixed number of slots"));
        logits.extend(step(&mut engine, &mut sequence, part));
    }
    assert!(sizes.len() > 2, "{sizes:?}");
    assert_same_bits(&logits, &resident, "resized");
}
