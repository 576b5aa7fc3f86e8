//! Which experts a token uses, and how much: logits on the backend, everything after them in f32 on the host.

use std::sync::Arc;

use kernels::ops;

use crate::Error;
use crate::backend::{Backend, View, WeightId};
use crate::load::Loader;

/// How a router's outputs become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gating {
    /// Over all experts. A group of experts is then as good as its best one (DeepSeek-V2).
    Softmax,
    /// Each expert for itself. A group of experts is then as good as its two best ones (DeepSeek-V3 and after).
    Sigmoid,
    /// Over the chosen experts only, whose logits are also what they are chosen by (gpt-oss).
    Chosen,
}

/// How scores become choices.
#[derive(Debug, Clone)]
pub(crate) struct RouterConfig {
    pub(crate) n_experts: usize,
    pub(crate) gating: Gating,
    pub(crate) top_k: usize,
    /// Groups of consecutive experts; 1 = no groups.
    pub(crate) n_group: usize,
    pub(crate) topk_group: usize,
    pub(crate) norm_topk_prob: bool,
    pub(crate) routed_scaling_factor: f32,
    /// Where the router norms its input itself (Gemma 4): the epsilon. The experts then see something else than the router.
    pub(crate) norm_eps: Option<f32>,
}

/// One layer's router: what that layer needs to choose, and another one to guess what it will choose.
#[derive(Clone)]
pub(crate) struct Router {
    pub(crate) layer: u32,
    /// Of its own input: see [`RouterConfig::norm_eps`].
    norm: Option<(WeightId, f32)>, // [hidden]
    weight: WeightId, // [n_experts, hidden]
    pub(crate) biases: Biases,
}

/// What is added between logits and choices.
#[derive(Clone)]
pub(crate) struct Biases {
    /// Onto the logits, where the model has such.
    pub(crate) logits: Option<Arc<[f32]>>, // [n_experts]
    /// Onto the scores, and only for the choice.
    pub(crate) choice: Arc<[f32]>, // [n_experts]
}

impl Router {
    pub(crate) fn load(
        loader: &mut Loader<'_>,
        layer: u32,
        c: &RouterConfig,
        hidden: usize,
    ) -> Result<Self, Error> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let (weight, n) = (name("ffn_gate_inp.weight"), c.n_experts);
        let (norm, weight) = match c.norm_eps {
            None => (None, loader.matrix(&weight, hidden, n)?),
            Some(eps) => {
                let factor = (1.0 / (hidden as f64).sqrt()) as f32;
                let scale = loader.scaled_vector(&name("ffn_gate_inp.scale"), hidden, factor)?;
                (Some((scale, eps)), loader.matrix_beside_factor(&weight, hidden, n)?)
            }
        };
        let mut bias = |part: &str| -> Result<Option<Arc<[f32]>>, Error> {
            let name = name(part);
            Ok(if loader.has(&name) { Some(loader.host_vector(&name, n)?.into()) } else { None })
        };
        let choice = bias("exp_probs_b.bias")?.unwrap_or_else(|| vec![0.0; n].into());
        Ok(Self { layer, norm, weight, biases: Biases { logits: bias("ffn_gate_inp.bias")?, choice } })
    }

    /// `logits[t] = W x[t]`, without the bias; `scratch` holds as many rows as `x` where the router norms them itself.
    pub(crate) fn logits(&self, b: &mut dyn Backend, x: View, rows: usize, scratch: View, logits: View) {
        let x = match self.norm {
            None => x,
            Some((weight, eps)) => {
                b.rms_norm(x, weight, eps, rows, scratch);
                scratch
            }
        };
        b.matmul(x, rows, &[(self.weight, logits)]);
    }
}

/// Scratch of one token.
pub(crate) struct RouterState {
    prob: Vec<f32>,
    choice: Vec<f32>,
    group_score: Vec<f32>,
    kept: Vec<u32>,
    scratch: Vec<u64>,
}

impl RouterState {
    pub(crate) fn new(c: &RouterConfig) -> Self {
        Self {
            prob: vec![0.0; c.n_experts],
            choice: vec![0.0; c.n_experts],
            group_score: vec![0.0; c.n_group],
            kept: vec![0; c.topk_group],
            scratch: vec![0; c.n_experts],
        }
    }
}

/// Routing from one token's logits, with a correction bias that decides the choice but not the weight.
///
/// `logits` are `[n_experts]`; writes `top_k` ids (best first, ties to the lower id) and weights.
pub(crate) fn route(
    c: &RouterConfig,
    s: &mut RouterState,
    logits: &[f32],
    biases: &Biases,
    ids: &mut [u32],
    weights: &mut [f32],
) {
    s.prob.copy_from_slice(logits);
    if let Some(bias) = &biases.logits {
        s.prob.iter_mut().zip(&bias[..]).for_each(|(logit, bias)| *logit += bias);
    }
    match c.gating {
        Gating::Sigmoid => s.prob.iter_mut().for_each(|x| *x = 1.0 / (1.0 + ops::exp(-*x))),
        Gating::Softmax => softmax(&mut s.prob),
        Gating::Chosen => {}
    }
    s.choice
        .iter_mut()
        .zip(&s.prob)
        .zip(&biases.choice[..])
        .for_each(|((choice, prob), bias)| *choice = prob + bias);
    if c.n_group > 1 {
        limit_groups(c, s);
    }
    ops::top_k_ranked(&s.choice, &mut s.scratch, ids);
    weigh(c, s, ids, weights);
}

/// The weights of given experts for the token that was routed last.
pub(crate) fn weigh(c: &RouterConfig, s: &RouterState, ids: &[u32], weights: &mut [f32]) {
    for (weight, &id) in weights.iter_mut().zip(ids.iter()) {
        *weight = s.prob[id as usize];
    }
    if c.gating == Gating::Chosen {
        softmax(weights);
    }
    if c.norm_topk_prob {
        // As transformers: enough against a division by zero, and no lower bound that could change what a sum of small scores means.
        let sum = weights.iter().sum::<f32>() + 1e-20;
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    weights.iter_mut().for_each(|w| *w *= c.routed_scaling_factor);
}

fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter_mut().for_each(|x| *x = ops::exp(*x - max));
    let sum: f32 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= sum);
}

/// Keeps the `topk_group` best groups: see [`Gating`].
fn limit_groups(c: &RouterConfig, s: &mut RouterState) {
    let size = c.n_experts / c.n_group;
    for (score, group) in s.group_score.iter_mut().zip(s.choice.chunks_exact(size)) {
        let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for &x in group {
            if x > first {
                (first, second) = (x, first);
            } else if x > second {
                second = x;
            }
        }
        *score = if c.gating == Gating::Sigmoid && size > 1 { first + second } else { first };
    }
    ops::top_k_ranked(&s.group_score, &mut s.scratch[..c.n_group], &mut s.kept);
    for (g, group) in s.choice.chunks_exact_mut(size).enumerate() {
        if !s.kept.contains(&(g as u32)) {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> RouterConfig {
        RouterConfig {
            n_experts: 8,
            gating: Gating::Sigmoid,
            top_k: 2,
            n_group: 1,
            topk_group: 1,
            norm_topk_prob: true,
            routed_scaling_factor: 2.5,
            norm_eps: None,
        }
    }

    fn run(c: &RouterConfig, logits: &[f32], bias: &[f32]) -> (Vec<u32>, Vec<f32>) {
        run_with(c, logits, &Biases { logits: None, choice: bias.into() })
    }

    fn run_with(c: &RouterConfig, logits: &[f32], biases: &Biases) -> (Vec<u32>, Vec<f32>) {
        let (mut ids, mut weights) = (vec![0; c.top_k], vec![0.0; c.top_k]);
        route(c, &mut RouterState::new(c), logits, biases, &mut ids, &mut weights);
        (ids, weights)
    }

    /// Top-k first: a softmax over all experts would give the chosen ones less than everything.
    #[test]
    fn the_chosen_share_everything_and_their_logits_have_a_bias() {
        let c = RouterConfig {
            gating: Gating::Chosen,
            norm_topk_prob: false,
            routed_scaling_factor: 1.0,
            ..config()
        };
        let logits = [2.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 1.9];
        let mut bias = [0.0; 8];
        (bias[0], bias[5]) = (-3.0, 3.5);
        let biases = Biases { logits: Some(bias.into()), choice: [0.0; 8].into() };
        // Of 2.5 and 1.9.
        let (ids, weights) = run_with(&c, &logits, &biases);
        let first = 1.0 / (1.0 + (1.9f32 - 2.5).exp());
        assert_eq!(ids, [5, 7]);
        assert!((weights[0] - first).abs() < 1e-6 && (weights[1] - (1.0 - first)).abs() < 1e-6);
    }

    /// All scores underflow: the sum that divides them is zero.
    #[test]
    fn nothing_divided_by_nothing_is_nothing() {
        let (_, weights) = run(&config(), &[-200.0; 8], &[0.0; 8]);
        assert_eq!(weights, [0.0, 0.0]);
        let (_, weights) = run(&config(), &[-20.0; 8], &[0.0; 8]);
        assert!(weights.iter().all(|w| (w - 1.25).abs() < 1e-6), "{weights:?}");
    }

    #[test]
    fn the_bias_chooses_but_does_not_weigh() {
        let mut bias = [0.0; 8];
        bias[5] = 10.0;
        let (ids, weights) = run(&config(), &[3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], &bias);
        assert_eq!(ids, [5, 0]);
        let (a, b) = (0.5f32, 1.0 / (1.0 + (-3.0f32).exp()));
        assert!((weights[0] - 2.5 * a / (a + b)).abs() < 1e-6);
        assert!((weights[1] - 2.5 * b / (a + b)).abs() < 1e-6);
    }

    #[test]
    fn ties_go_to_the_lower_id() {
        assert_eq!(run(&config(), &[1.0; 8], &[0.0; 8]).0, [0, 1]);
    }

    #[test]
    fn groups_bound_the_choice() {
        let c = RouterConfig { n_group: 4, topk_group: 1, ..config() };
        // Group 0 holds the best single expert, group 2 the best pair.
        let (ids, _) = run(&c, &[5.0, -9.0, 0.0, 0.0, 3.0, 3.0, 0.0, 0.0], &[0.0; 8]);
        assert_eq!(ids, [4, 5]);
    }

    #[test]
    fn weights_stay_unnormalised_when_asked() {
        let c = RouterConfig { norm_topk_prob: false, routed_scaling_factor: 1.0, ..config() };
        let (_, weights) = run(&c, &[0.0; 8], &[0.0; 8]);
        assert_eq!(weights, [0.5, 0.5]);
    }

    #[test]
    fn softmax_weighs_against_all_experts_and_scales() {
        let c = RouterConfig {
            gating: Gating::Softmax,
            norm_topk_prob: false,
            routed_scaling_factor: 16.0,
            ..config()
        };
        // Far above what an exponential of its own could hold.
        let logits = [500.0, 501.0, 499.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let (ids, weights) = run(&c, &logits, &[0.0; 8]);
        assert_eq!(ids, [1, 0]);
        let sum = 1.0 + (-1.0f32).exp() + (-2.0f32).exp();
        assert!(
            (weights[0] - 16.0 / sum).abs() < 1e-5
                && (weights[1] - 16.0 * (-1.0f32).exp() / sum).abs() < 1e-5
        );
    }

    #[test]
    fn under_softmax_the_best_expert_speaks_for_its_group() {
        let c = RouterConfig { gating: Gating::Softmax, n_group: 4, topk_group: 1, ..config() };
        // As above: the pair of group 2 would win if two counted.
        let (ids, _) = run(&c, &[5.0, -9.0, 0.0, 0.0, 4.9, 4.9, 0.0, 0.0], &[0.0; 8]);
        assert_eq!(ids, [0, 1]);
    }
}
