//! Which experts a token uses, and how much: all in f32, on the host.

use kernels::ops;

/// How a router's outputs become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gating {
    /// Over all experts. A group of experts is then as good as its best one (DeepSeek-V2).
    Softmax,
    /// Each expert for itself. A group of experts is then as good as its two best ones (DeepSeek-V3 and after).
    Sigmoid,
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

/// Routing with a correction bias that decides the choice but not the weight.
///
/// `logits` and `bias` are `[n_experts]`; writes `top_k` ids (best first, ties to the lower id) and weights.
pub(crate) fn route(
    c: &RouterConfig,
    s: &mut RouterState,
    logits: &[f32],
    bias: &[f32],
    ids: &mut [u32],
    weights: &mut [f32],
) {
    match c.gating {
        Gating::Sigmoid => {
            s.prob.iter_mut().zip(logits).for_each(|(prob, &logit)| *prob = 1.0 / (1.0 + ops::exp(-logit)));
        }
        Gating::Softmax => softmax(logits, &mut s.prob),
    }
    s.choice.iter_mut().zip(&s.prob).zip(bias).for_each(|((choice, prob), bias)| *choice = prob + bias);
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
    if c.norm_topk_prob {
        let sum = weights.iter().sum::<f32>() + 1e-20;
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    weights.iter_mut().for_each(|w| *w *= c.routed_scaling_factor);
}

fn softmax(logits: &[f32], out: &mut [f32]) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    out.iter_mut().zip(logits).for_each(|(out, logit)| *out = ops::exp(logit - max));
    let sum: f32 = out.iter().sum();
    out.iter_mut().for_each(|out| *out /= sum);
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
        }
    }

    fn run(c: &RouterConfig, logits: &[f32], bias: &[f32]) -> (Vec<u32>, Vec<f32>) {
        let (mut ids, mut weights) = (vec![0; c.top_k], vec![0.0; c.top_k]);
        route(c, &mut RouterState::new(c), logits, bias, &mut ids, &mut weights);
        (ids, weights)
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
