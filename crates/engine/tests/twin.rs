//! The scaled-down twin of the published GLM-5.2 sidecar: it opens from every entry point, runs at the floor like with
//! everything resident, never touches block 78, and writes a trace whose replay counts what the run counted.

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use common::{assert_same_bits, exact, run};
use experts::{policy, replay};
use files::Checkpoint;
use slotbank_engine::{BankSize, Engine, EngineOptions, GenerateOptions, SamplingOptions};
use toy::{Convention, Layout, twin};

fn options(bank: BankSize) -> EngineOptions {
    EngineOptions { bank, ubatch: 16, ..exact() }
}

fn load(path: &std::path::Path, options: EngineOptions) -> Engine {
    let checkpoint = Checkpoint::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Engine::load(&checkpoint, options).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn the_published_sidecar_in_small_runs_from_every_entry_point() {
    let toy = twin::glm_5_2();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let package = toy.write_package(dir.path(), Convention::DenseFolder, Layout::WholeTensor);
    let tokens = toy::weights::tokens("twin", 40, toy.config.vocab_size);
    let chunks = [36, 1];

    let mut resident = load(&package.root, options(BankSize::All));
    assert_eq!(resident.model().full_layers.len(), twin::FULL_LAYERS);
    assert_eq!(resident.model().expert_layers, (3..twin::LAYERS).collect::<Vec<u32>>());
    let bank = resident.memory_plan().bank.clone().expect("a bank");
    assert_eq!(bank.layers().len(), 75, "block 78 has sidecar entries and no slots");
    let expected = run(&mut resident, &tokens, &chunks);
    assert!(expected.iter().flatten().all(|x| x.is_finite()));
    drop(resident);

    // Block 78 could be rubbish: nobody reads it.
    let layer_78 = package.layer_file(78);
    let len = std::fs::metadata(&layer_78).expect("block 78 is in the sidecar").len();
    std::fs::write(&layer_78, vec![0xFF; len as usize]).expect("overwritten");
    for entry in package.entry_points() {
        let mut streamed = load(&entry, options(BankSize::SlotsPerLayer(2)));
        let logits = run(&mut streamed, &tokens, &chunks);
        assert_same_bits(&logits, &expected, &entry.display().to_string());
        let total = streamed.bank_stats().expect("a bank").total();
        assert!(total.evictions > 0 && total.hits > 0, "{total:?}");
    }
}

#[test]
fn text_is_the_same_at_the_floor_and_with_everything_resident() {
    let toy = twin::glm_5_2();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let package = toy.write_package(dir.path(), Convention::Flat, Layout::ExpertMajor { stride: 4096 });
    let generate = |bank, threads| {
        let mut engine = load(&package.root, EngineOptions { threads: Some(threads), ..options(bank) });
        let tokenizer = engine.tokenizer().expect("the twin has a vocabulary").clone();
        let prompt = tokenizer.encode("Once upon a time", text::Specials::Plain).expect("encodes");
        let sampling = SamplingOptions { temperature: 0.8, seed: 7, ..SamplingOptions::default() };
        let request = GenerateOptions {
            max_tokens: Some(24),
            sampling,
            ignore_eos: true,
            ..GenerateOptions::default()
        };
        let mut sequence = engine.new_sequence().expect("a free sequence");
        engine
            .generate(&mut sequence, &prompt, &request, &AtomicBool::new(false), &mut |_| {})
            .expect("generates")
            .tokens
    };
    let resident = generate(BankSize::All, 2);
    assert_eq!(resident.len(), 24);
    assert!(resident.windows(2).any(|pair| pair[0] != pair[1]));
    assert_eq!(generate(BankSize::SlotsPerLayer(2), 1), resident);
    assert_eq!(generate(BankSize::SlotsPerLayer(3), 3), resident);
}

/// Invariant 5: the replay of a trace counts what the run counted, with the bank of the run; and a line has the fork's keys.
#[test]
fn a_replayed_trace_counts_what_the_run_counted() {
    let toy = twin::glm_5_2();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let package = toy.write_package(&dir.path().join("twin"), Convention::TwoFolders, Layout::WholeTensor);
    let tokens = toy::weights::tokens("trace", 30, toy.config.vocab_size);
    let trace = dir.path().join("trace.jsonl");
    let checkpoint = Checkpoint::open(&package.root).expect("opens");
    let floor = Engine::plan(&checkpoint, &options(BankSize::All))
        .expect("a plan")
        .bank
        .expect("a bank")
        .floor_bytes();
    let banks =
        [BankSize::SlotsPerLayer(2), BankSize::SlotsPerLayer(5), BankSize::Bytes(floor * 2), BankSize::All];
    for (bank, name) in banks.into_iter().zip(policy::NAMES.iter().cycle().skip(1)) {
        let named = EngineOptions { policy: (*name).to_owned(), ..options(bank) };
        let mut engine = load(&package.root, EngineOptions { trace: Some(trace.clone()), ..named });
        run(&mut engine, &tokens, &[20, 1]);
        engine.finish_trace().expect("every line is written");
        let text = std::fs::read_to_string(&trace).expect("the trace");
        // Two micro-batches of the prompt (16 + 4) and ten tokens, in 75 layers each.
        assert_eq!(text.lines().count(), 12 * 75);
        let plan = engine.memory_plan().bank.clone().expect("a bank");
        let records = experts::trace::open(&trace).expect("the trace");
        let policy = policy::by_name(name, &plan).expect("a policy of that name");
        let counted = replay(records, &plan, policy, bank == BankSize::All).expect("replays");
        let live = engine.bank_stats().expect("a bank");
        for (ours, theirs) in counted.layers.iter().zip(&live.layers) {
            assert_eq!(ours.layer, theirs.layer);
            assert_eq!(
                ours.counters.without_time(),
                theirs.counters.without_time(),
                "{bank:?}, layer {}",
                ours.layer
            );
        }
        if let BankSize::SlotsPerLayer(slots) = bank {
            text.lines().for_each(|line| check_line(line, slots));
        }
    }
}

/// The fork's keys, and behind them at most what was guessed for the call; one slot per expert, numbered per layer.
fn check_line(line: &str, slots: u32) {
    let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
    let mut keys: BTreeSet<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.remove("predicted");
    assert_eq!(keys, BTreeSet::from(["experts", "layer", "n_expert_used", "n_tokens", "seq", "slots"]));
    let pairs = value["n_expert_used"].as_u64().expect("k") * value["n_tokens"].as_u64().expect("n");
    assert_eq!(value["experts"].as_array().map(Vec::len), Some(pairs as usize));
    let given = value["slots"].as_array().expect("slots");
    assert_eq!(given.len(), pairs as usize);
    assert!(given.iter().all(|slot| slot.as_u64().is_some_and(|slot| slot < u64::from(slots))), "{line}");
}
