//! One layer against its definition in f64, in every form in which files have it, with tokens at once and in pieces; and that each way to
//! get it wrong would be noticed.

use std::path::Path;

use files::gguf::Writer;
use files::{Checkpoint, Metadata};
use toy::weights::Stream;

use super::*;
use crate::EngineOptions;
use crate::backend::cpu::CpuBackend;
use crate::backend::{ScratchSpec, StateChange};

const HIDDEN: usize = 40;
const TOKENS: usize = 37;
const UBATCH: usize = 7;
const EPS: f32 = 1e-6;

/// What the layer is, and how the file has it.
#[derive(Clone, Copy, Debug)]
struct Case {
    key_head: KeyHead,
    k_heads: usize,
    v_heads: usize,
    dim: usize,
    kernel: usize,
    /// Queries, keys, values and gates in one tensor.
    one_tensor: bool,
}

const TILED: Case =
    Case { key_head: KeyHead::Tiled, k_heads: 3, v_heads: 6, dim: 16, kernel: 4, one_tensor: false };
const GROUPED: Case = Case { key_head: KeyHead::Grouped, ..TILED };
const EARLY: Case =
    Case { key_head: KeyHead::Grouped, k_heads: 2, v_heads: 8, dim: 20, kernel: 3, one_tensor: true };

/// Ways to get it wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// Value heads go with the key heads of the other order.
    OtherKeyHeads,
    TapsReversed,
    NoConvActivation,
    /// The convolution does not see the rows of earlier calls.
    NoHistory,
    /// Every call begins with an empty memory.
    NoMemory,
    NoKeyNorm,
    NoQueryScale,
    NoDecay,
    /// What a token writes fades at once.
    DecayAfterUpdate,
    RawBeta,
    NoBias,
    /// Values are written, not what is wrong about the memory.
    NoCorrection,
    OutputBeforeUpdate,
    GateBeforeNorm,
    SigmoidGate,
    /// The weight is not one of those to which converters add 1.
    NormPlusOne,
    NormOverAllHeads,
    KeysFirst,
    AlphaFirst,
}

fn values(name: &str, n: usize, middle: f32, half_width: f32) -> Vec<f32> {
    let stream = Stream::new(9, name);
    (0..n as u64).map(|i| middle + half_width * stream.uniform(i)).collect()
}

/// The layer's tensors, heads in the order of the file.
struct Tensors {
    x: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    z: Vec<f32>,
    beta: Vec<f32>,
    alpha: Vec<f32>,
    taps: Vec<f32>, // [channels, kernel]
    dt: Vec<f32>,
    a: Vec<f32>,
    norm: Vec<f32>,
    output: Vec<f32>,
}

impl Case {
    fn tensors(&self) -> Tensors {
        let (keys, all) = (self.k_heads * self.dim, self.v_heads * self.dim);
        Tensors {
            x: values("x", TOKENS * HIDDEN, 0.0, 1.5),
            q: values("q", keys * HIDDEN, 0.0, 0.4),
            k: values("k", keys * HIDDEN, 0.0, 0.4),
            v: values("v", all * HIDDEN, 0.0, 0.4),
            z: values("z", all * HIDDEN, 0.0, 0.4),
            beta: values("beta", self.v_heads * HIDDEN, 0.0, 0.4),
            alpha: values("alpha", self.v_heads * HIDDEN, 0.0, 0.2),
            taps: values("taps", (2 * keys + all) * self.kernel, 0.2, 0.6),
            dt: values("dt", self.v_heads, -1.0, 1.0),
            a: values("a", self.v_heads, -0.6, 0.5),
            norm: values("norm", self.dim, 1.0, 0.4),
            output: values("output", HIDDEN * all, 0.0, 0.4),
        }
    }

    fn config(&self) -> DeltaNetConfig {
        DeltaNetConfig {
            hidden_size: HIDDEN,
            linear_num_key_heads: self.k_heads,
            linear_num_value_heads: self.v_heads,
            head_dim: self.dim,
            linear_conv_kernel_dim: self.kernel,
            rms_norm_eps: EPS,
            key_head: self.key_head,
        }
    }

    fn write(&self, path: &Path) {
        let mut metadata = Metadata::new();
        metadata.insert("general.architecture", "toy");
        let mut writer = Writer::new(metadata).expect("sound metadata");
        let mut add = |name: &str, shape: &[usize], values: &[f32]| {
            let shape: Vec<u64> = shape.iter().map(|n| *n as u64).collect();
            writer.tensor_f32(name.to_owned(), &shape, values).expect("a sound tensor");
        };
        let t = self.tensors();
        let (keys, all) = (self.k_heads * self.dim, self.v_heads * self.dim);
        add("token_embd.weight", &[HIDDEN, TOKENS], &t.x);
        if self.one_tensor {
            let groups = [&t.q, &t.k, &t.v, &t.z].map(|part| part.len() / self.k_heads);
            let rows: Vec<f32> = (0..self.k_heads)
                .flat_map(|g| {
                    let part = |i: usize, of: &[f32]| of[g * groups[i]..(g + 1) * groups[i]].to_vec();
                    [part(0, &t.q), part(1, &t.k), part(2, &t.v), part(3, &t.z)].concat()
                })
                .collect();
            add("blk.0.ssm_in.weight", &[HIDDEN, 2 * (keys + all)], &rows);
        } else {
            let qkv = [&t.q[..], &t.k, &t.v].concat();
            add("blk.0.attn_qkv.weight", &[HIDDEN, 2 * keys + all], &qkv);
            add("blk.0.attn_gate.weight", &[HIDDEN, all], &t.z);
        }
        if self.key_head == KeyHead::Grouped {
            let group = t.beta.len() / self.k_heads;
            let pairs = t.beta.chunks(group).zip(t.alpha.chunks(group));
            let rows: Vec<f32> = pairs.flat_map(|(beta, alpha)| [beta, alpha].concat()).collect();
            add("blk.0.ssm_ba.weight", &[HIDDEN, 2 * self.v_heads], &rows);
        } else {
            add("blk.0.ssm_beta.weight", &[HIDDEN, self.v_heads], &t.beta);
            add("blk.0.ssm_alpha.weight", &[HIDDEN, self.v_heads], &t.alpha);
        }
        add("blk.0.ssm_conv1d.weight", &[self.kernel, 2 * keys + all], &t.taps);
        add("blk.0.ssm_dt.bias", &[self.v_heads], &t.dt);
        add("blk.0.ssm_a", &[self.v_heads], &t.a);
        add("blk.0.ssm_norm.weight", &[self.dim], &t.norm);
        add("blk.0.ssm_out.weight", &[all, HIDDEN], &t.output);
        writer.write_file(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    /// The definition, in calls of `calls` tokens (which matters only to those who forget).
    fn reference(&self, calls: &[usize], mistake: Mistake) -> Vec<f64> {
        let t = self.tensors();
        let is = |m: Mistake| m == mistake;
        let (k_heads, dim) = (self.k_heads, self.dim);
        let keys = k_heads * dim;
        let rows = if is(Mistake::KeysFirst) {
            [&t.k[..], &t.q, &t.v].concat()
        } else {
            [&t.q[..], &t.k, &t.v].concat()
        };
        let (beta_rows, alpha_rows) =
            if is(Mistake::AlphaFirst) { (&t.alpha, &t.beta) } else { (&t.beta, &t.alpha) };
        let mut history: Vec<Vec<f64>> = Vec::new();
        let mut memory = vec![0.0; self.v_heads * dim * dim];
        let (mut out, mut left) = (Vec::new(), 0);
        let mut calls = calls.iter().cycle();
        for x in t.x.chunks_exact(HIDDEN) {
            if left == 0 {
                left = *calls.next().expect("a call");
                if is(Mistake::NoHistory) {
                    history.clear();
                }
                if is(Mistake::NoMemory) {
                    memory.fill(0.0);
                }
            }
            left -= 1;
            history.push(product(&rows, x));
            let mut mixed: Vec<f64> = (0..rows.len() / HIDDEN)
                .map(|channel| {
                    (0..self.kernel.min(history.len()))
                        .map(|back| {
                            let tap = if is(Mistake::TapsReversed) { back } else { self.kernel - 1 - back };
                            let weight = f64::from(t.taps[channel * self.kernel + tap]);
                            weight * history[history.len() - 1 - back][channel]
                        })
                        .sum()
                })
                .collect();
            if !is(Mistake::NoConvActivation) {
                mixed.iter_mut().for_each(|y| *y = silu(*y));
            }
            let (z, beta, alpha) = (product(&t.z, x), product(beta_rows, x), product(alpha_rows, x));
            let mut heads = Vec::new();
            for j in 0..self.v_heads {
                let other = match self.key_head {
                    KeyHead::Tiled => KeyHead::Grouped,
                    KeyHead::Grouped => KeyHead::Tiled,
                };
                let order = if is(Mistake::OtherKeyHeads) { other } else { self.key_head };
                let kh = order.of(j, [k_heads, self.v_heads]);
                let unit = |from: usize, scale: f64| -> Vec<f64> {
                    let head = &mixed[from + kh * dim..][..dim];
                    let norm = (head.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
                    head.iter().map(|x| scale * x / norm).collect()
                };
                let scale = if is(Mistake::NoQueryScale) { 1.0 } else { (dim as f64).powf(-0.5) };
                let (query, mut key) = (unit(0, scale), unit(keys, 1.0));
                if is(Mistake::NoKeyNorm) {
                    key = mixed[keys + kh * dim..][..dim].to_vec();
                }
                let value = &mixed[2 * keys + j * dim..][..dim];
                let bias = if is(Mistake::NoBias) { 0.0 } else { f64::from(t.dt[j]) };
                let decay = (f64::from(t.a[j]) * (alpha[j] + bias).exp().ln_1p()).exp();
                let decay = if is(Mistake::NoDecay) { 1.0 } else { decay };
                let beta = if is(Mistake::RawBeta) { beta[j] } else { 1.0 / (1.0 + (-beta[j]).exp()) };
                let own = &mut memory[j * dim * dim..][..dim * dim];
                for (row, value) in own.chunks_exact_mut(dim).zip(value) {
                    let read = |row: &[f64], x: &[f64]| row.iter().zip(x).map(|(s, x)| s * x).sum::<f64>();
                    let before = read(row, &query);
                    if !is(Mistake::DecayAfterUpdate) {
                        row.iter_mut().for_each(|s| *s *= decay);
                    }
                    let held = if is(Mistake::NoCorrection) { 0.0 } else { read(row, &key) };
                    let u = beta * (value - held);
                    row.iter_mut().zip(&key).for_each(|(s, k)| *s += k * u);
                    if is(Mistake::DecayAfterUpdate) {
                        row.iter_mut().for_each(|s| *s *= decay);
                    }
                    heads.push(if is(Mistake::OutputBeforeUpdate) { before } else { read(row, &query) });
                }
            }
            let gate = |z: f64| if is(Mistake::SigmoidGate) { 1.0 / (1.0 + (-z).exp()) } else { silu(z) };
            if is(Mistake::GateBeforeNorm) {
                heads.iter_mut().zip(&z).for_each(|(o, z)| *o *= gate(*z));
            }
            let part = if is(Mistake::NormOverAllHeads) { heads.len() } else { dim };
            for head in heads.chunks_exact_mut(part) {
                let mean = head.iter().map(|o| o * o).sum::<f64>() / part as f64;
                let offset = if is(Mistake::NormPlusOne) { 1.0 } else { 0.0 };
                for (i, o) in head.iter_mut().enumerate() {
                    *o *= (f64::from(t.norm[i % dim]) + offset) / (mean + f64::from(EPS)).sqrt();
                }
            }
            if !is(Mistake::GateBeforeNorm) {
                heads.iter_mut().zip(&z).for_each(|(o, z)| *o *= gate(*z));
            }
            out.extend(
                t.output
                    .chunks_exact(heads.len())
                    .map(|row| row.iter().zip(&heads).map(|(w, o)| f64::from(*w) * o).sum::<f64>()),
            );
        }
        out
    }
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// `W x`.
fn product(rows: &[f32], x: &[f32]) -> Vec<f64> {
    let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
    rows.chunks_exact(x.len()).map(dot).collect()
}

/// A layer, what it runs on, and its input.
struct Rig {
    backend: CpuBackend,
    c: DeltaNetConfig,
    layer: DeltaNet,
    state: DeltaNetState,
    cache: DeltaNetCache,
    x: View,
    y: View,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new(case: &Case, threads: usize) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("layer.gguf");
        case.write(&path);
        let checkpoint = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{e}"));
        let (options, c) = (EngineOptions::default(), case.config());
        let mut backend = CpuBackend::new(threads, threads).expect("an instruction set");
        let mut loader = Loader::wet(&checkpoint, &options, &mut backend);
        let layer = DeltaNet::load(&mut loader, 0, &c).unwrap_or_else(|e| panic!("{e}"));
        let state = DeltaNetState::new(&mut loader, &c, UBATCH);
        let cache = DeltaNetCache::new(&mut loader, &c, 1);
        loader.scratch(&ScratchSpec {
            rows: UBATCH,
            row: HIDDEN.max(c.value_dim()),
            delta: c.head_dim,
            ..ScratchSpec::default()
        });
        let table = loader.matrix("token_embd.weight", HIDDEN, TOKENS).expect("an input");
        let [x, y] = [(); 2].map(|()| View::rows(loader.buffer(TOKENS * HIDDEN), HIDDEN));
        let ids: Vec<u32> = (0..TOKENS as u32).collect();
        backend.embed(table, &ids, x);
        let mut rig = Self { backend, c, layer, state, cache, x, y, _dir: dir };
        rig.change(StateChange::Clear);
        rig
    }

    fn change(&mut self, change: StateChange) {
        for state in [self.cache.conv, self.cache.memory] {
            self.backend.change_state(state, change);
        }
    }

    /// Rows `range` as one step, of which those from `first_wanted` on put something out.
    fn step(&mut self, range: std::ops::Range<usize>, first_wanted: usize) {
        let Self { backend, c, layer, state, cache, x, y, .. } = self;
        backend.begin(range.len());
        let rows = Rows { start: range.start, count: range.len(), first_wanted };
        for (first, rows) in rows.parts(UBATCH) {
            let [x, y] = [*x, *y].map(|view| view.from_row(range.start + first));
            layer.forward(backend, c, state, *cache, x, rows, y);
        }
    }

    /// All rows in calls of `calls` tokens.
    fn run(&mut self, calls: &[usize]) -> Vec<f32> {
        let (mut calls, mut at) = (calls.iter().cycle(), 0);
        while at < TOKENS {
            let to = TOKENS.min(at + calls.next().expect("a call"));
            self.step(at..to, 0);
            self.change(StateChange::Finish);
            at = to;
        }
        self.out()
    }

    fn out(&mut self) -> Vec<f32> {
        self.backend.read(self.y, 0, TOKENS * HIDDEN).to_vec()
    }
}

fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |a, x| a.max(x.abs()))
}

fn apart(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let off = got.iter().zip(want).map(|(got, want)| (f64::from(*got) - want).abs()).fold(0.0, f64::max);
    off / largest(want)
}

#[test]
fn the_layer_is_its_definition() {
    for case in [TILED, GROUPED, EARLY] {
        let right = case.reference(&[TOKENS], Mistake::None);
        let whole = Rig::new(&case, 2).run(&[TOKENS]);
        assert!(apart(&whole, &right) < 3e-6, "{case:?}: {:e}", apart(&whole, &right));
        for (calls, threads) in [(&[1][..], 1), (&[2, 1, 9], 3), (&[7], 5)] {
            assert!(Rig::new(&case, threads).run(calls) == whole, "{case:?} in calls of {calls:?}");
        }
    }
}

#[test]
fn each_mistake_would_be_noticed() {
    use Mistake as M;
    let calls = [5, 1, 11];
    for case in [TILED, GROUPED, EARLY] {
        let out = Rig::new(&case, 2).run(&calls);
        for mistake in [
            M::OtherKeyHeads,
            M::TapsReversed,
            M::NoConvActivation,
            M::NoHistory,
            M::NoMemory,
            M::NoKeyNorm,
            M::NoQueryScale,
            M::NoDecay,
            M::DecayAfterUpdate,
            M::RawBeta,
            M::NoBias,
            M::NoCorrection,
            M::OutputBeforeUpdate,
            M::GateBeforeNorm,
            M::SigmoidGate,
            M::NormPlusOne,
            M::NormOverAllHeads,
            M::KeysFirst,
            M::AlphaFirst,
        ] {
            let wrong = case.reference(&calls, mistake);
            assert!(apart(&out, &wrong) > 1e-3, "{case:?}: {mistake:?} would not be noticed");
        }
    }
}

/// Rows that nobody wants leave the same memory behind.
#[test]
fn unwanted_rows_pass_through_the_memory() {
    let whole = Rig::new(&TILED, 2).run(&[TOKENS]);
    for first_wanted in [0, 3, 19, 20] {
        let mut rig = Rig::new(&TILED, 2);
        rig.step(0..20, first_wanted);
        rig.change(StateChange::Finish);
        rig.step(20..TOKENS, 0);
        let out = rig.out();
        assert!(out[first_wanted * HIDDEN..] == whole[first_wanted * HIDDEN..], "from {first_wanted} on");
        assert!(out[..first_wanted * HIDDEN].iter().all(|y| *y == 0.0), "nothing else was put out");
    }
}

/// A step that does not finish, and one that is undone by a snapshot, have never been.
#[test]
fn steps_can_be_taken_back() {
    let whole = Rig::new(&GROUPED, 2).run(&[TOKENS]);
    let mut rig = Rig::new(&GROUPED, 2);
    rig.step(0..9, 0);
    rig.change(StateChange::Finish);
    rig.change(StateChange::Save(0));
    rig.step(20..31, 0); // fails in a later layer
    rig.change(StateChange::Begin);
    rig.step(9..18, 0);
    rig.change(StateChange::Finish);
    rig.step(18..20, 0);
    rig.change(StateChange::Finish);
    rig.step(31..TOKENS, 0); // other tokens than those that were to come
    rig.change(StateChange::Finish);
    rig.change(StateChange::Restore(0));
    rig.step(9..TOKENS, 0);
    assert!(rig.out() == whole);
}
