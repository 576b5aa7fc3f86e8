//! What the engine's tests share: a toy on disk, loaded with some options, run in some chunks, with its choices recorded.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use files::gguf::Writer;
use files::{Checkpoint, GgmlType, Metadata};
use slotbank_engine::{BankSize, CacheType, Dump, Engine, EngineOptions, Sequence, Want};
use tempfile::TempDir;
use toy::reference::{self, Mistake, Options, Outcome};
use toy::{Fixture, Listed, Toy, Types};

/// A checkpoint in a temporary folder that lives as long as this.
pub(crate) struct OnDisk {
    pub(crate) path: PathBuf,
    pub(crate) dir: TempDir,
}

impl OnDisk {
    pub(crate) fn gguf(toy: &Toy) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("toy.gguf");
        toy.write(&path);
        Self { path, dir }
    }

    /// With the tensors that `keep` keeps, and metadata as `edit` leaves it.
    pub(crate) fn edited(toy: &Toy, keep: impl Fn(&str) -> bool, edit: impl FnOnce(&mut Metadata)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("toy.gguf");
        let mut metadata = toy.metadata();
        edit(&mut metadata);
        let mut writer = Writer::new(metadata).expect("sound metadata");
        for spec in toy.tensors().into_iter().filter(|spec| keep(&spec.name)) {
            let (ty, bytes) = (toy.type_of(&spec), toy.bytes(&spec));
            writer.tensor_bytes(spec.name, ty, &spec.shape, bytes).expect("a sound tensor");
        }
        writer.write_file(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { path, dir }
    }

    pub(crate) fn open(&self) -> Checkpoint {
        Checkpoint::open(&self.path).unwrap_or_else(|e| panic!("{}: {e}", self.path.display()))
    }

    pub(crate) fn load(&self, options: EngineOptions) -> Engine {
        Engine::load(&self.open(), options).unwrap_or_else(|e| panic!("{}: {e}", self.path.display()))
    }
}

/// A listed toy, its weights stored as `types`.
pub(crate) fn listed(toy: &Listed, types: &Types) -> OnDisk {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("toy.gguf");
    toy.write(types, &path);
    OnDisk { path, dir }
}

/// Every format with a packed form, beside some without, in one layer also side by side.
pub(crate) fn packable() -> OnDisk {
    use GgmlType as T;
    OnDisk::gguf(&Toy::wide(Types {
        dense: T::Q8_0,
        experts: vec![
            [T::IQ1_M, T::IQ1_M, T::IQ2_XXS],
            [T::IQ1_S, T::Q4_K, T::IQ2_S],
            [T::Q8_0, T::IQ2_XS, T::Q4_0],
        ],
    }))
}

/// Everything resident, caches in f32: the settings of the golden tests.
pub(crate) fn exact() -> EngineOptions {
    EngineOptions {
        bank: BankSize::All,
        cache_type: CacheType::F32,
        context: Some(128),
        threads: Some(2),
        // As large as the micro-batch.
        batch: 1,
        ubatch: 32,
        ..EngineOptions::default()
    }
}

/// `[position][vocab]`.
pub(crate) type Logits = Vec<Vec<f32>>;

/// Ways of feeding `n` tokens: (name, batch and micro-batch, sizes of the calls; the last one repeats).
pub(crate) fn ways(n: usize) -> Vec<(&'static str, [u32; 2], Vec<usize>)> {
    vec![
        ("one prefill", [1, 128], vec![n]),
        ("one prefill in micro-batches of 32", [1, 32], vec![n]),
        ("one prefill in a batch of micro-batches of 7", [128, 7], vec![n]),
        ("chunks of 24 and the rest", [1, 128], vec![24, n]),
        ("chunks of 5 in micro-batches of 3", [1, 3], vec![5]),
        ("prefill, then token by token", [1, 128], vec![n - 24, 1]),
        ("token by token", [1, 1], vec![1]),
    ]
}

/// Runs `tokens` in calls of `chunks` tokens (the last one repeats until they are used up) on a fresh sequence.
pub(crate) fn run(engine: &mut Engine, tokens: &[u32], chunks: &[usize]) -> Logits {
    let mut sequence = engine.new_sequence().expect("a free sequence");
    let mut logits = Vec::new();
    for chunk in split(tokens, chunks) {
        logits.extend(step(engine, &mut sequence, chunk));
    }
    logits
}

/// One call, every position's logits.
pub(crate) fn step(engine: &mut Engine, sequence: &mut Sequence, tokens: &[u32]) -> Logits {
    let (start, mut logits) = (sequence.len(), Vec::new());
    engine
        .forward(sequence, tokens, Want::All, &mut |position, row| {
            assert_eq!(position, start + logits.len(), "positions come in order");
            logits.push(row.to_vec());
        })
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(logits.len(), tokens.len());
    logits
}

fn split<'a>(tokens: &'a [u32], chunks: &[usize]) -> Vec<&'a [u32]> {
    let (mut rest, mut parts, mut i) = (tokens, Vec::new(), 0);
    while !rest.is_empty() {
        let n = chunks[i.min(chunks.len() - 1)].min(rest.len());
        let (part, tail) = rest.split_at(n);
        (rest, i) = (tail, i + 1);
        parts.push(part);
    }
    parts
}

/// Selected positions, expert ids and their weights, per layer and position.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Choices {
    pub(crate) selections: BTreeMap<u32, Vec<Vec<u32>>>,
    pub(crate) experts: BTreeMap<u32, Vec<Vec<u32>>>,
    pub(crate) weights: BTreeMap<u32, Vec<Vec<f32>>>,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic while locked").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// As [`run`], with what the dump facility recorded.
pub(crate) fn run_dumped(engine: &mut Engine, tokens: &[u32], chunks: &[usize]) -> (Logits, Choices) {
    let out = Shared::default();
    engine.set_dump(Some(Dump::new(Box::new(out.clone()))));
    let logits = run(engine, tokens, chunks);
    engine.set_dump(None).expect("the recorder").finish().expect("memory takes every line");
    let bytes = out.0.lock().expect("no panic while locked").clone();
    let mut choices = Choices::default();
    for line in bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let record: serde_json::Value = serde_json::from_slice(line).expect("a JSON line");
        let layer = record["layer"].as_u64().expect("a layer") as u32;
        let position = record["position"].as_u64().expect("a position") as usize;
        if !record["selected"].is_null() {
            put(&mut choices.selections, layer, position, ids(&record["selected"]));
        } else {
            put(&mut choices.experts, layer, position, ids(&record["experts"]));
            let weights = record["weights"].as_array().expect("weights");
            let weights = weights.iter().map(|w| w.as_f64().expect("a number") as f32).collect();
            put(&mut choices.weights, layer, position, weights);
        }
    }
    (logits, choices)
}

fn put<T>(map: &mut BTreeMap<u32, Vec<T>>, layer: u32, position: usize, value: T) {
    let rows = map.entry(layer).or_default();
    assert_eq!(rows.len(), position, "layer {layer}: one record per position, in order");
    rows.push(value);
}

fn ids(list: &serde_json::Value) -> Vec<u32> {
    list.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// The largest difference between two sets of logits.
pub(crate) fn difference(ours: &Logits, theirs: &Logits) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let pairs = ours.iter().flatten().zip(theirs.iter().flatten());
    pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).fold(0.0, worst)
}

/// The same against the f64 reference.
pub(crate) fn difference_to(ours: &Logits, reference: &Outcome) -> f64 {
    assert_eq!(ours.len(), reference.logits.len());
    let pairs = ours.iter().flatten().zip(reference.logits.iter().flatten());
    pairs.map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, worst)
}

/// A NaN is worse than anything.
fn worst(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// Equal to the last bit.
#[track_caller]
pub(crate) fn assert_same_bits(ours: &Logits, theirs: &Logits, what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (position, (a, b)) in ours.iter().zip(theirs).enumerate() {
        let first = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits());
        if let Some(token) = first {
            panic!("{what}: position {position}, token {token}: {} is not {}", a[token], b[token]);
        }
    }
}

/// Runs in the golden tests' way, except where `options` says otherwise.
pub(crate) fn engine_logits(toy: &Toy, tokens: &[u32], options: EngineOptions) -> Logits {
    let logits = run(&mut OnDisk::gguf(toy).load(options), tokens, &[tokens.len()]);
    assert!(logits.iter().flatten().all(|x| x.is_finite()));
    logits
}

pub(crate) fn bound(reference: &Outcome) -> f64 {
    1e-5 * reference.max_abs_logit()
}

/// The engine agrees with the reference and is a hundred tolerances away from the reference with `mistake`.
#[track_caller]
pub(crate) fn avoids(name: &str, mistake: Mistake) {
    let f = Fixture::named(name);
    let toy = Toy::from_fixture(&f);
    let logits = engine_logits(&toy, &f.tokens, exact());
    agrees(&toy, &f.tokens, &logits, Options::default());
    let wrong = reference::forward(&toy, &f.tokens, mistake);
    let apart = difference_to(&logits, &wrong);
    assert!(apart > 100.0 * bound(&wrong), "{mistake:?} would not be noticed: {apart:e}");
}

#[track_caller]
pub(crate) fn agrees(toy: &Toy, tokens: &[u32], logits: &Logits, options: Options) -> Outcome {
    let right = reference::forward(toy, tokens, options);
    let off = difference_to(logits, &right);
    assert!(off <= bound(&right), "off by {off:e}, allowed {:e}", bound(&right));
    right
}
