//! Every architecture whose toys are listed in `tests/fixtures/families`: the logits and experts that Hugging Face transformers
//! computed in f32, whether the tokens arrive at once, in chunks or one by one; and the same bits streamed as resident.

mod common;

use std::path::{Path, PathBuf};

use common::{Choices, Logits, OnDisk, assert_same_bits, difference, exact, listed, run, run_dumped, ways};
use experts::{ReaderChoice, ReaderKind};
use files::GgmlType as T;
use files::extract::{self, extract};
use files::manifest::Layout;
use slotbank_engine::{BankSize, Engine, EngineOptions, Promote};
use toy::{Listed, Types};

fn check(f: &Listed, logits: &Logits, choices: &Choices, what: &str) {
    let (found, bound) = (difference(logits, &f.logits), 1e-5 * f64::from(f.max_abs_logit()));
    assert_eq!(choices.experts, f.experts, "{what}: experts");
    assert!(found <= bound, "{what}: logits differ by {found:e}, allowed {bound:e}");
    for (layer, rows) in &f.expert_weights {
        for (ours, theirs) in choices.weights[layer].iter().flatten().zip(rows.iter().flatten()) {
            assert!(
                (ours - theirs).abs() <= 1e-5 * theirs.max(1.0),
                "{what}: layer {layer}: {ours} {theirs}"
            );
        }
    }
}

#[test]
fn transformers_computes_the_same() {
    for f in Listed::all() {
        assert!(f.margins.values().all(|margin| *margin > 1e-5), "{}: {:?}", f.name, f.margins);
        let model = listed(&f, &Types::all(T::F32));
        for (way, [batch, ubatch], chunks) in ways(f.tokens.len()) {
            let mut engine = model.load(EngineOptions { batch, ubatch, ..exact() });
            let (logits, choices) = run_dumped(&mut engine, &f.tokens, &chunks);
            check(&f, &logits, &choices, &format!("{}, {way}", f.name));
        }
    }
}

/// Storage types for a toy whose experts' rows are multiples of `divisor` elements.
fn mixtures(divisor: u64) -> Vec<Types> {
    let mixed = |dense, experts: &[[T; 3]]| Types { dense, experts: experts.to_vec() };
    let mut all = vec![Types::all(T::F32)];
    if divisor >= 32 {
        all.push(mixed(
            T::Q8_0,
            &[[T::Q4_0, T::Q4_0, T::Q8_0], [T::MXFP4, T::MXFP4, T::MXFP4], [T::Q5_0, T::Q5_1, T::IQ4_NL]],
        ));
    }
    if divisor >= 256 {
        let experts =
            [[T::IQ1_M, T::IQ1_M, T::IQ2_XXS], [T::Q4_K, T::Q4_K, T::Q6_K], [T::Q2_K, T::IQ3_S, T::IQ4_XS]];
        all.push(mixed(T::Q4_0, &experts));
    }
    all
}

/// The GGUF itself, and sidecars of both layouts extracted from it.
fn forms(model: &OnDisk) -> Vec<PathBuf> {
    let sidecar = |name: &str, layout| {
        let folder = model.dir.path().join(name);
        let options = extract::Options { layout, dense: true, ..Default::default() };
        extract(&model.open(), &folder, &options, &mut |_| ()).unwrap_or_else(|e| panic!("{e}"));
        folder
    };
    let [layers, experts] = [("layers", Layout::LayerMajor), ("experts", Layout::ExpertMajor)]
        .map(|(name, layout)| sidecar(name, layout));
    vec![model.path.clone(), layers, experts]
}

/// Banks, micro-batches, readers, threads and schedules, all in few cases.
fn streamed(top_k: u32, n_experts: u32) -> Vec<EngineOptions> {
    let way = |slots, ubatch, reader, threads, slot8| EngineOptions {
        bank: BankSize::SlotsPerLayer(slots),
        ubatch,
        reader_kind: ReaderKind::Pread,
        reader,
        threads: Some(threads),
        slot8,
        ..exact()
    };
    vec![
        way(top_k, 1, ReaderChoice::Auto, 1, true),
        way(top_k, 7, ReaderChoice::Buffered, 2, false),
        way((top_k + n_experts) / 2, 32, ReaderChoice::Auto, 3, true),
    ]
}

fn same_bits(f: &Listed, types: &Types) {
    let model = listed(f, types);
    let (tokens, chunks) = (&f.tokens[..f.tokens.len().min(40)], [29, 1]);
    let load = |path: &Path, options: EngineOptions| {
        let checkpoint = files::Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"));
        Engine::load(&checkpoint, options).unwrap_or_else(|e| panic!("{}: {e}", f.name))
    };
    let forms = forms(&model);
    let info = model.load(exact()).model().clone();
    for options in streamed(info.top_k, info.n_experts) {
        // The reference computes one expert at a time.
        let all = EngineOptions { ubatch: options.ubatch, promote: Promote::Never, slot8: false, ..exact() };
        let resident = run(&mut load(&model.path, all), tokens, &chunks);
        assert!(resident.iter().flatten().all(|logit| logit.is_finite()), "{} as {types:?}", f.name);
        for path in &forms {
            let mut engine = load(path, options.clone());
            let logits = run(&mut engine, tokens, &chunks);
            let what = format!("{} as {types:?}, {:?}, {}", f.name, options.bank, path.display());
            assert_same_bits(&logits, &resident, &what);
            let bank = engine.bank_stats().expect("a model with experts");
            assert!(bank.total().misses > 0, "{what}: nothing was streamed");
        }
    }
}

#[test]
fn streaming_does_not_change_a_bit() {
    for f in Listed::all() {
        for types in mixtures(f.expert_row_divisor()) {
            same_bits(&f, &types);
        }
    }
}
