//! One layer against its definition in f64, and that each way to get it wrong would be noticed.

use std::path::Path;

use files::gguf::Writer;
use files::{Checkpoint, Metadata};
use kernels::ops::Pairing;
use toy::weights::Stream;

use super::*;
use crate::EngineOptions;
use crate::backend::cpu::CpuBackend;
use crate::backend::{RopeSpec, ScratchSpec, Select};
use crate::options::CacheType;

const HIDDEN: usize = 40;
const TOKENS: usize = 23;
const UBATCH: usize = 7;
const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const DIM: usize = 24;
const ROTATED: usize = 8;
const THETA: f32 = 100.0;
const EPS: f32 = 1e-6;

/// Ways to get it wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    NoGate,
    SiluGate,
    /// All queries, then all gates, instead of head by head.
    GatesBehindAllQueries,
    GateFirst,
    /// The gate works on the query.
    GateBeforeAttention,
    NoQueryNorm,
    NoKeyNorm,
    NormAfterRotation,
    RotateNeighbours,
    RotateAll,
    KeysByTurns,
}

fn values(name: &str, n: usize, middle: f32, half_width: f32) -> Vec<f32> {
    let stream = Stream::new(9, name);
    (0..n as u64).map(|i| middle + half_width * stream.uniform(i)).collect()
}

fn tensors() -> [(&'static str, Vec<usize>, Vec<f32>); 7] {
    let tensor = |name, shape: &[usize], middle, half_width| {
        let n = shape.iter().product();
        (name, shape.to_vec(), values(name, n, middle, half_width))
    };
    [
        tensor("token_embd.weight", &[HIDDEN, TOKENS], 0.0, 1.5),
        tensor("blk.0.attn_q.weight", &[HIDDEN, 2 * HEADS * DIM], 0.0, 0.4),
        tensor("blk.0.attn_k.weight", &[HIDDEN, KV_HEADS * DIM], 0.0, 0.4),
        tensor("blk.0.attn_v.weight", &[HIDDEN, KV_HEADS * DIM], 0.0, 0.4),
        tensor("blk.0.attn_q_norm.weight", &[DIM], 1.5, 1.0),
        tensor("blk.0.attn_k_norm.weight", &[DIM], 1.5, 1.0),
        tensor("blk.0.attn_output.weight", &[HEADS * DIM, HIDDEN], 0.0, 0.4),
    ]
}

fn write(path: &Path) {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "toy");
    let mut writer = Writer::new(metadata).expect("sound metadata");
    for (name, shape, values) in tensors() {
        let shape: Vec<u64> = shape.iter().map(|n| *n as u64).collect();
        writer.tensor_f32(name.to_owned(), &shape, &values).expect("a sound tensor");
    }
    writer.write_file(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn config() -> GqaConfig {
    GqaConfig {
        hidden_size: HIDDEN,
        num_attention_heads: HEADS,
        num_key_value_heads: KV_HEADS,
        head_dim: DIM,
        v_head_dim: DIM,
        rms_norm_eps: EPS,
        softmax_scale: 1.0 / (DIM as f32).sqrt(),
        keys_are_values: false,
    }
}

/// The layer in calls of `calls` tokens; each call puts out only the rows from `first_wanted` on.
fn run(calls: &[usize], first_wanted: usize) -> Vec<f32> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("layer.gguf");
    write(&path);
    let checkpoint = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{e}"));
    let options = EngineOptions { cache_type: CacheType::F32, ..EngineOptions::default() };
    let c = config();
    let mut backend = CpuBackend::new(2, 2).expect("an instruction set");
    let mut loader = Loader::wet(&checkpoint, &options, &mut backend);
    let layer = GatedAttention::load(&mut loader, 0, &c).unwrap_or_else(|e| panic!("{e}"));
    let state = GatedAttentionState::new(&mut loader, &[c], UBATCH);
    let cache = KvCache::new(&mut loader, &c, TOKENS);
    let spec = RopeSpec {
        dim: ROTATED,
        pairing: Pairing::Halves,
        rows: UBATCH,
        theta: THETA,
        yarn: None,
        factors: None,
    };
    let (rope, selection) = (loader.rope_table(&spec), loader.selection(UBATCH, 0, 0));
    let around = ScratchSpec { rows: UBATCH, row: HIDDEN, ..ScratchSpec::default() };
    loader.scratch(&crate::layers::gqa::scratch(&[c], [UBATCH; 2]).max(around));
    let table = loader.matrix("token_embd.weight", HIDDEN, TOKENS).expect("an input");
    let [x, y] = [(); 2].map(|()| View::rows(loader.buffer(TOKENS * HIDDEN), HIDDEN));
    let ids: Vec<u32> = (0..TOKENS as u32).collect();
    backend.embed(table, &ids, x);
    let (mut calls, mut at) = (calls.iter().cycle(), 0);
    while at < TOKENS {
        let count = (TOKENS - at).min(*calls.next().expect("a call"));
        backend.begin(count);
        let rows = Rows { start: at, count, first_wanted };
        for (first, rows) in rows.parts(UBATCH) {
            backend.select(selection, Select::All, rows.start, rows.count);
            let [x, y] = [x, y].map(|view| view.from_row(at + first));
            layer.forward(&mut backend, &state, rope, cache, selection, x, rows, y);
        }
        at += count;
    }
    backend.read(y, 0, TOKENS * HIDDEN).to_vec()
}

fn product(rows: &[f32], x: &[f32]) -> Vec<f64> {
    let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
    rows.chunks_exact(x.len()).map(dot).collect()
}

fn norm(x: &[f64], weight: &[f32]) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, w)| x * f64::from(*w) / (mean + f64::from(EPS)).sqrt()).collect()
}

fn rotate(x: &mut [f64], position: usize, mistake: Mistake) {
    let dim = if mistake == Mistake::RotateAll { DIM } else { ROTATED };
    for p in 0..dim / 2 {
        let angle = position as f64 * f64::from(THETA).powf(-2.0 * p as f64 / dim as f64);
        let (a, b) = if mistake == Mistake::RotateNeighbours { (2 * p, 2 * p + 1) } else { (p, p + dim / 2) };
        (x[a], x[b]) = (x[a] * angle.cos() - x[b] * angle.sin(), x[a] * angle.sin() + x[b] * angle.cos());
    }
}

fn reference(mistake: Mistake) -> Vec<f64> {
    let is = |m: Mistake| m == mistake;
    let [x, q, k, v, q_norm, k_norm, output] = tensors().map(|(_, _, values)| values);
    let head = |x: &[f64], weight: &[f32], normed: bool, position: usize| {
        let mut x = x.to_vec();
        if is(Mistake::NormAfterRotation) {
            rotate(&mut x, position, mistake);
        }
        if normed {
            x = norm(&x, weight);
        }
        if !is(Mistake::NormAfterRotation) {
            rotate(&mut x, position, mistake);
        }
        x
    };
    let (mut keys, mut vals, mut out) = (Vec::new(), Vec::new(), Vec::new());
    for (t, x) in x.chunks_exact(HIDDEN).enumerate() {
        let all = product(&k, x);
        keys.push(
            all.chunks_exact(DIM).map(|x| head(x, &k_norm, !is(Mistake::NoKeyNorm), t)).collect::<Vec<_>>(),
        );
        vals.push(product(&v, x));
        let q_gate = product(&q, x);
        let mut o = Vec::new();
        for h in 0..HEADS {
            let (query, gate) = match mistake {
                Mistake::GatesBehindAllQueries => (h * DIM, (HEADS + h) * DIM),
                Mistake::GateFirst => ((2 * h + 1) * DIM, 2 * h * DIM),
                _ => (2 * h * DIM, (2 * h + 1) * DIM),
            };
            let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
            let gate: Vec<f64> = q_gate[gate..gate + DIM]
                .iter()
                .map(|z| match mistake {
                    Mistake::NoGate => 1.0,
                    Mistake::SiluGate => z * sigmoid(*z),
                    _ => sigmoid(*z),
                })
                .collect();
            let mut query = head(&q_gate[query..query + DIM], &q_norm, !is(Mistake::NoQueryNorm), t);
            if is(Mistake::GateBeforeAttention) {
                query.iter_mut().zip(&gate).for_each(|(q, g)| *q *= g);
            }
            let kv = if is(Mistake::KeysByTurns) { h % KV_HEADS } else { h / (HEADS / KV_HEADS) };
            let scores: Vec<f64> = keys
                .iter()
                .map(|keys| {
                    keys[kv].iter().zip(&query).map(|(k, q)| k * q).sum::<f64>() / (DIM as f64).sqrt()
                })
                .collect();
            let weights: Vec<f64> = scores.iter().map(|s| s.exp()).collect();
            let total: f64 = weights.iter().sum();
            for i in 0..DIM {
                let mixed = weights.iter().zip(&vals).map(|(w, v)| w / total * v[kv * DIM + i]).sum::<f64>();
                o.push(if is(Mistake::GateBeforeAttention) { mixed } else { mixed * gate[i] });
            }
        }
        out.extend(
            output
                .chunks_exact(HEADS * DIM)
                .map(|row| row.iter().zip(&o).map(|(w, o)| f64::from(*w) * o).sum::<f64>()),
        );
    }
    out
}

fn apart(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.0f64, |a, x| a.max(x.abs()));
    let off = got.iter().zip(want).map(|(got, want)| (f64::from(*got) - want).abs()).fold(0.0, f64::max);
    off / largest
}

#[test]
fn the_layer_is_its_definition() {
    let (right, whole) = (reference(Mistake::None), run(&[TOKENS], 0));
    assert!(apart(&whole, &right) < 3e-6, "{:e}", apart(&whole, &right));
    assert!(run(&[1], 0) == whole && run(&[5, 2], 0) == whole);
    let some = run(&[TOKENS], 10);
    assert!(some[10 * HIDDEN..] == whole[10 * HIDDEN..] && some[..10 * HIDDEN].iter().all(|y| *y == 0.0));
}

#[test]
fn each_mistake_would_be_noticed() {
    use Mistake as M;
    let out = run(&[TOKENS], 0);
    for mistake in [
        M::NoGate,
        M::SiluGate,
        M::GatesBehindAllQueries,
        M::GateFirst,
        M::GateBeforeAttention,
        M::NoQueryNorm,
        M::NoKeyNorm,
        M::NormAfterRotation,
        M::RotateNeighbours,
        M::RotateAll,
        M::KeysByTurns,
    ] {
        assert!(apart(&out, &reference(mistake)) > 1e-3, "{mistake:?} would not be noticed");
    }
}
