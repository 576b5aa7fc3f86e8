//! One routed layer against its definition in f64: every activation, gating, bias, scale and way to store gate and up, with all experts
//! resident and with three slots, for a token and for several; and that each way to get it wrong would be noticed.

use std::path::PathBuf;
use std::sync::Arc;

use experts::{BankPlan, BankSize, LayerExperts, policy};
use files::gguf::Writer;
use files::{Checkpoint, Metadata};
use toy::weights::Stream;

use super::*;
use crate::Want;
use crate::backend::ScratchSpec;
use crate::backend::cpu::{CpuBackend, HostArena};

const HIDDEN: usize = 48;
const WIDTH: usize = 20;
const EXPERTS: usize = 9;
const K: usize = 3;
/// Rows that a run has at most.
const ROWS: usize = 40;
const EPS: f32 = 1e-5;

/// What the layer is.
#[derive(Clone, Copy, Debug)]
struct Case {
    gating: Gating,
    activation: Glu,
    fused: bool,
    /// Gate's and up's in one tensor.
    fused_biases: bool,
    biases: bool,
    scale: bool,
    /// The router norms an input of its own.
    own_input: bool,
    norm_topk_prob: bool,
}

/// gpt-oss.
const CLAMPED: Case = Case {
    gating: Gating::Chosen,
    activation: Glu::Clamped,
    fused: false,
    fused_biases: false,
    biases: true,
    scale: false,
    own_input: false,
    norm_topk_prob: false,
};

/// Gemma 4.
const SCALED: Case = Case {
    gating: Gating::Softmax,
    activation: Glu::Gelu,
    fused: true,
    fused_biases: false,
    biases: false,
    scale: true,
    own_input: true,
    norm_topk_prob: true,
};

/// Ways to get it wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// Each expert adds the biases of the one after it, as if they lay where the experts do.
    BiasOfAnother,
    /// Of one matrix, 0 to 2.
    NoBias(usize),
    /// After the sum's weight instead of before.
    UnweightedDownBias,
    NoRouterBias,
    SoftmaxOverAll,
    NoUpOffset,
    NoLimits,
    Silu,
    UpFirst,
    NoScale,
    /// Before the weights are normalised.
    EarlyScale,
    /// The router reads what the experts read.
    OtherInput,
    NoRouterNorm,
    NoRouterScale,
}

/// Values of a tensor, `spread` times wider than -1..1.
fn values(name: &str, n: usize, spread: f32) -> Vec<f32> {
    let stream = Stream::new(5, name);
    (0..n as u64).map(|i| spread * stream.uniform(i)).collect()
}

fn x(router: bool) -> Vec<f32> {
    values(if router { "router's x" } else { "x" }, ROWS * HIDDEN, 1.0)
}
fn gate() -> Vec<f32> {
    values("gate", EXPERTS * WIDTH * HIDDEN, 1.5) // far enough to reach the limits
}
fn up() -> Vec<f32> {
    values("up", EXPERTS * WIDTH * HIDDEN, 1.5)
}
fn down() -> Vec<f32> {
    values("down", EXPERTS * HIDDEN * WIDTH, 0.3)
}
fn router() -> Vec<f32> {
    values("router", EXPERTS * HIDDEN, 0.4)
}
fn router_bias() -> Vec<f32> {
    values("router bias", EXPERTS, 2.0)
}
fn router_scale() -> Vec<f32> {
    values("router scale", HIDDEN, 20.0)
}
fn biases() -> [Vec<f32>; 3] {
    [("gate bias", WIDTH), ("up bias", WIDTH), ("down bias", HIDDEN)]
        .map(|(name, n)| values(name, EXPERTS * n, 1.0))
}
fn scale() -> Vec<f32> {
    values("scale", EXPERTS, 3.0)
}

/// Per expert the rows of `a`, then those of `b`.
fn interleaved(a: &[f32], b: &[f32]) -> Vec<f32> {
    let size = a.len() / EXPERTS;
    a.chunks_exact(size).zip(b.chunks_exact(size)).flat_map(|(a, b)| [a, b].concat()).collect()
}

fn write(case: &Case, path: &std::path::Path) {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "toy");
    let mut writer = Writer::new(metadata).expect("sound metadata");
    let mut add = |name: &str, shape: &[u64], values: Vec<f32>| {
        writer.tensor_f32(name.to_owned(), shape, &values).expect("a sound tensor");
    };
    let [h, w, e] = [HIDDEN, WIDTH, EXPERTS].map(|n| n as u64);
    add("token_embd.weight", &[h, 2 * ROWS as u64], [x(false), x(true)].concat());
    for layer in 0..2 {
        let mut add = |name: &str, shape: &[u64], values| add(&format!("blk.{layer}.{name}"), shape, values);
        add("ffn_gate_inp.weight", &[h, e], router());
        if case.own_input {
            add("ffn_gate_inp.scale", &[h], router_scale());
        }
        if case.fused {
            add("ffn_gate_up_exps.weight", &[h, 2 * w, e], interleaved(&gate(), &up()));
        } else {
            add("ffn_gate_exps.weight", &[h, w, e], gate());
            add("ffn_up_exps.weight", &[h, w, e], up());
        }
        add("ffn_down_exps.weight", &[w, h, e], down());
        if case.biases {
            let [gate, up, down] = biases();
            add("ffn_gate_inp.bias", &[e], router_bias());
            if case.fused_biases {
                add("ffn_gate_up_exps.bias", &[2 * w, e], interleaved(&gate, &up));
            } else {
                add("ffn_gate_exps.bias", &[w, e], gate);
                add("ffn_up_exps.bias", &[w, e], up);
            }
            add("ffn_down_exps.bias", &[h, e], down);
        }
        if case.scale {
            add("ffn_down_exps.scale", &[e], scale());
        }
    }
    writer.write_file(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn config(case: &Case) -> MoeConfig {
    let router = RouterConfig {
        n_experts: EXPERTS,
        gating: case.gating,
        top_k: K,
        n_group: 1,
        topk_group: 1,
        norm_topk_prob: case.norm_topk_prob,
        routed_scaling_factor: 1.0,
        norm_eps: case.own_input.then_some(EPS),
    };
    MoeConfig {
        router,
        hidden_size: HIDDEN,
        moe_intermediate_size: WIDTH,
        n_shared_experts: 0,
        activation: case.activation,
    }
}

/// A layer, everything that it runs on, and its input.
struct Rig {
    backend: CpuBackend,
    bank: Bank,
    c: MoeConfig,
    layers: [Moe; 2],
    state: MoeState,
    inputs: [View; 2],
    y: View,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new(case: &Case, size: BankSize, slot8: bool, prefetch: Prefetch) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("layer.gguf");
        write(case, &path);
        let checkpoint = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{e}"));
        let options = EngineOptions { slot8, prefetch, ..EngineOptions::default() };
        let c = config(case);
        let mut backend = CpuBackend::new(2, 2).expect("an instruction set");
        let mut loader = Loader::wet(&checkpoint, &options, &mut backend);
        let load =
            |loader: &mut Loader<'_>, layer| Moe::load(loader, layer, &c).unwrap_or_else(|e| panic!("{e}"));
        let layers = [load(&mut loader, 0), load(&mut loader, 1)];
        let state = MoeState::new(&mut loader, &c, [ROWS, 7]).unwrap_or_else(|e| panic!("{e}"));
        loader.scratch(&ScratchSpec {
            rows: 7,
            row: HIDDEN.max(WIDTH),
            routed: [ROWS, HIDDEN],
            ..ScratchSpec::default()
        });
        let table = loader.matrix("token_embd.weight", HIDDEN, 2 * ROWS).expect("an input");
        let [experts_x, router_x, y] = [(); 3].map(|()| View::rows(loader.buffer(ROWS * HIDDEN), HIDDEN));
        for (view, first) in [(experts_x, 0), (router_x, ROWS as u32)] {
            let ids: Vec<u32> = (first..first + ROWS as u32).collect();
            backend.embed(table, &ids, view);
        }
        let router_x = if case.own_input { router_x } else { experts_x };
        let bank = bank(&checkpoint, size);
        Self { backend, bank, c, layers, state, inputs: [router_x, experts_x], y, _dir: dir }
    }

    /// The layer's output for `count` rows from `first` on, on top of `base`.
    fn run(&mut self, layer: usize, first: usize, count: usize) -> Vec<Vec<f32>> {
        let tokens = vec![0; count];
        let (y, inputs) = (self.y, self.inputs.map(|view| view.from_row(first)));
        let mut step = Step {
            backend: &mut self.backend,
            bank: Some(&mut self.bank),
            tokens: &tokens,
            start: first,
            slot: 0,
            want: Want::All,
            sink: &mut |_, _| (),
            dump: None,
            watch: None,
        };
        let rows = Rows { start: first, count, first_wanted: 0 };
        let mut ran = 0;
        let mut meanwhile = |b: &mut dyn Backend| {
            b.zero(y, HIDDEN, count);
            ran += 1;
        };
        self.layers[layer]
            .forward_beside(&mut step, &self.c, &mut self.state, inputs, rows, y, &mut meanwhile)
            .unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(ran, 1, "what runs meanwhile runs once");
        (0..count).map(|row| self.backend.read(y, row, HIDDEN).to_vec()).collect()
    }
}

fn bank(checkpoint: &Checkpoint, size: BankSize) -> Bank {
    let layer = |layer: u32| {
        let tensors = checkpoint.experts().iter().filter(|tensor| tensor.layer == layer).cloned().collect();
        LayerExperts { layer, n_expert: EXPERTS as u32, tensors }
    };
    let plan = BankPlan::new(size, 0, K as u32, &[layer(0), layer(1)]).expect("a plan").with_spares(4);
    let files: Vec<PathBuf> = checkpoint.files().to_vec();
    let reader = experts::read::open(&files, &[], &experts::read::Options::default()).expect("a reader");
    let policy = policy::by_name("lru", &plan).expect("a policy");
    let resident = plan.is_resident();
    let mut bank = Bank::new(plan, &files, reader, Box::new(HostArena::new(Arc::default())), policy)
        .unwrap_or_else(|e| panic!("{e}"));
    if resident {
        bank.preload().expect("every expert");
    }
    bank
}

/// Row `i` of the layer's output by the book.
fn exact(case: &Case, row: usize, mistake: Mistake) -> Vec<f64> {
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let times = |matrix: &[f32], e: usize, n_out: usize, x: &[f64]| -> Vec<f64> {
        let rows = matrix[e * n_out * x.len()..(e + 1) * n_out * x.len()].chunks_exact(x.len());
        rows.map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()).collect()
    };
    let (ids, weights) = chosen(case, row, mistake);
    let input = wide(&x(false)[row * HIDDEN..(row + 1) * HIDDEN]);
    let mut sum = vec![0.0; HIDDEN];
    for (e, weight) in ids.into_iter().zip(weights) {
        let owner = if mistake == Mistake::BiasOfAnother { (e + 1) % EXPERTS } else { e };
        let bias = |which: usize, n: usize| -> Vec<f64> {
            let there = case.biases && mistake != Mistake::NoBias(which);
            if there { wide(&biases()[which][owner * n..(owner + 1) * n]) } else { vec![0.0; n] }
        };
        let plus = |mut y: Vec<f64>, bias: Vec<f64>| {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            y
        };
        let mut halves = [
            plus(times(&gate(), e, WIDTH, &input), bias(0, WIDTH)),
            plus(times(&up(), e, WIDTH, &input), bias(1, WIDTH)),
        ];
        if mistake == Mistake::UpFirst {
            halves.reverse();
        }
        let hidden: Vec<f64> =
            halves[0].iter().zip(&halves[1]).map(|(g, u)| activated(case, *g, *u, mistake)).collect();
        let (out, bias) = (times(&down(), e, HIDDEN, &hidden), bias(2, HIDDEN));
        for (i, sum) in sum.iter_mut().enumerate() {
            let unweighted = mistake == Mistake::UnweightedDownBias;
            *sum += if unweighted { weight * out[i] + bias[i] } else { weight * (out[i] + bias[i]) };
        }
    }
    sum
}

fn activated(case: &Case, g: f64, u: f64, mistake: Mistake) -> f64 {
    let silu = |g: f64, steepness: f64| g / (1.0 + (-steepness * g).exp());
    match case.activation {
        _ if mistake == Mistake::Silu => silu(g, 1.0) * u,
        Glu::Silu => silu(g, 1.0) * u,
        Glu::Gelu => {
            let z = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
            0.5 * g * (1.0 + z.tanh()) * u
        }
        Glu::Clamped => {
            let limited = mistake != Mistake::NoLimits;
            let (g, u) = if limited { (g.min(7.0), u.clamp(-7.0, 7.0)) } else { (g, u) };
            silu(g, 1.702) * (u + f64::from(u8::from(mistake != Mistake::NoUpOffset)))
        }
    }
}

/// Experts of a row, best first, and their weights.
fn chosen(case: &Case, row: usize, mistake: Mistake) -> (Vec<usize>, Vec<f64>) {
    let own = case.own_input && mistake != Mistake::OtherInput;
    let mut input: Vec<f64> =
        x(own)[row * HIDDEN..(row + 1) * HIDDEN].iter().map(|&x| f64::from(x)).collect();
    if case.own_input && mistake != Mistake::NoRouterNorm {
        let mean = input.iter().map(|x| x * x).sum::<f64>() / HIDDEN as f64;
        input.iter_mut().for_each(|x| *x /= (mean + f64::from(EPS)).sqrt());
    }
    if case.own_input && mistake != Mistake::NoRouterScale {
        let scale = router_scale();
        input.iter_mut().zip(scale).for_each(|(x, s)| *x *= f64::from(s) / (HIDDEN as f64).sqrt());
    }
    let bias =
        if case.biases && mistake != Mistake::NoRouterBias { router_bias() } else { vec![0.0; EXPERTS] };
    let weights = router();
    let logits: Vec<f64> = (0..EXPERTS)
        .map(|e| {
            let row = weights[e * HIDDEN..(e + 1) * HIDDEN].iter().zip(&input);
            row.map(|(w, x)| f64::from(*w) * x).sum::<f64>() + f64::from(bias[e])
        })
        .collect();
    let mut ids: Vec<usize> = (0..EXPERTS).collect();
    ids.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let over_all = case.gating == Gating::Softmax || mistake == Mistake::SoftmaxOverAll;
    let shared: f64 = ids[..if over_all { EXPERTS } else { K }].iter().map(|&e| logits[e].exp()).sum();
    ids.truncate(K);
    let mut weights: Vec<f64> = ids.iter().map(|&e| logits[e].exp() / shared).collect();
    let scaled = |weights: &mut [f64]| {
        if case.scale && mistake != Mistake::NoScale {
            let scale = scale();
            weights.iter_mut().zip(&ids).for_each(|(w, &e)| *w *= f64::from(scale[e]));
        }
    };
    if mistake == Mistake::EarlyScale {
        scaled(&mut weights);
    }
    if case.norm_topk_prob {
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    if mistake != Mistake::EarlyScale {
        scaled(&mut weights);
    }
    (ids, weights)
}

/// Largest difference, relative to the largest value.
fn apart(ours: &[Vec<f32>], exact: &[Vec<f64>]) -> f64 {
    let scale = exact.iter().flatten().fold(0.0f64, |max, x| max.max(x.abs()));
    let pairs = ours.iter().flatten().zip(exact.iter().flatten());
    pairs.map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max) / scale
}

/// Each shape of expert with each kind of bank, in tiles and alone; the bits must not depend on any of that.
fn check(case: &Case) -> Vec<Vec<f32>> {
    let wanted: Vec<Vec<f64>> = (0..ROWS).map(|row| exact(case, row, Mistake::None)).collect();
    let mut first: Option<Vec<Vec<f32>>> = None;
    for (size, slot8) in [
        (BankSize::All, false),
        (BankSize::All, true),
        (BankSize::SlotsPerLayer(3), true),
        (BankSize::SlotsPerLayer(5), false),
    ] {
        let mut rig = Rig::new(case, size, slot8, Prefetch::Off);
        let mut ours = rig.run(0, 0, ROWS - 6);
        ours.extend((ROWS - 6..ROWS).flat_map(|row| rig.run(0, row, 1)));
        let off = apart(&ours, &wanted);
        assert!(off < 2e-6, "{case:?}, {size:?}: off by {off:e}");
        assert_eq!(first.get_or_insert_with(|| ours.clone()), &ours, "{case:?}, {size:?}, slot8 {slot8}");
    }
    first.unwrap_or_default()
}

#[track_caller]
fn avoids(case: &Case, mistakes: &[Mistake]) {
    let ours = check(case);
    for &mistake in mistakes {
        let wrong: Vec<Vec<f64>> = (0..ROWS).map(|row| exact(case, row, mistake)).collect();
        let off = apart(&ours, &wrong);
        assert!(off > 1e-3, "{mistake:?} would not be noticed: {off:e}");
    }
}

#[test]
fn clamped_experts_with_biases_are_chosen_by_logits() {
    use Mistake as M;
    avoids(
        &CLAMPED,
        &[
            M::BiasOfAnother,
            M::NoBias(0),
            M::NoBias(1),
            M::NoBias(2),
            M::UnweightedDownBias,
            M::NoRouterBias,
            M::SoftmaxOverAll,
            M::NoUpOffset,
            M::NoLimits,
            M::Silu,
        ],
    );
}

#[test]
fn scaled_experts_are_chosen_by_a_router_with_an_input_of_its_own() {
    use Mistake as M;
    avoids(
        &SCALED,
        &[M::UpFirst, M::Silu, M::NoScale, M::EarlyScale, M::OtherInput, M::NoRouterNorm, M::NoRouterScale],
    );
}

/// However gate, up and their biases are stored, the bits are the same.
#[test]
fn fused_and_split_are_the_same_layer() {
    let biased = Case { norm_topk_prob: true, own_input: true, ..CLAMPED };
    for case in [CLAMPED, SCALED, biased] {
        let split = check(&Case { fused: false, fused_biases: false, ..case });
        assert_eq!(check(&Case { fused: true, fused_biases: false, ..case }), split, "{case:?}");
        if case.biases {
            assert_eq!(check(&Case { fused: true, fused_biases: true, ..case }), split, "{case:?}");
        }
    }
}

/// The layer after this one has the same router here, and sees the same row: a guess from any other input than its own is wrong.
#[test]
fn guesses_come_from_the_routers_own_input() {
    for case in [SCALED, CLAMPED] {
        let mut rig = Rig::new(&case, BankSize::SlotsPerLayer(3), true, Prefetch::NextLayer);
        for row in 0..ROWS {
            let [a, b] = [0, 1].map(|layer| rig.run(layer, row, 1));
            assert_eq!(a, b);
        }
        let counters = rig.bank.stats().total();
        assert_eq!((counters.guessed, counters.guessed_right), ((K * ROWS) as u64, (K * ROWS) as u64));
        assert!(counters.ahead_used > 0, "{counters:?}");
    }
}

/// Factors that are not one per expert, or that would multiply a bias, are refused.
#[test]
fn other_factors_are_refused() {
    let load = |case: &Case| {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("layer.gguf");
        write(case, &path);
        let checkpoint = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{e}"));
        let options = EngineOptions::default();
        Moe::load(&mut Loader::dry(&checkpoint, &options), 0, &config(case)).map(drop)
    };
    load(&SCALED).expect("one per expert");
    match load(&Case { biases: true, ..SCALED }) {
        Err(Error::TensorFactor { tensor, factor }) => {
            assert_eq!((&*tensor, &*factor), ("blk.0.ffn_down_exps.weight", "blk.0.ffn_down_exps.scale"));
        }
        other => panic!("{other:?}"),
    }
    // A router that does not norm its input has no use for a scale.
    assert!(matches!(load(&Case { own_input: true, scale: false, ..CLAMPED }), Ok(())));
    let mut silent = config(&SCALED);
    silent.router.norm_eps = None;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("layer.gguf");
    write(&SCALED, &path);
    let checkpoint = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{e}"));
    let refused = Moe::load(&mut Loader::dry(&checkpoint, &EngineOptions::default()), 0, &silent);
    assert!(
        matches!(refused, Err(Error::TensorFactor { factor, .. }) if factor == "blk.0.ffn_gate_inp.scale")
    );
}
