//! Which experts a token uses, and how much: all in f32, on the host.

use kernels::ops;

/// How scores become choices.
#[derive(Debug, Clone)]
pub(crate) struct RouterConfig {
    pub(crate) n_experts: usize,
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

/// Sigmoid routing with a correction bias that decides the choice but not the weight.
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
    for (((prob, choice), &logit), &bias) in s.prob.iter_mut().zip(&mut s.choice).zip(logits).zip(bias) {
        *prob = 1.0 / (1.0 + ops::exp(-logit));
        *choice = *prob + bias;
    }
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

/// Keeps the `topk_group` groups with the largest sum of their two best choices.
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
        *score = if size > 1 { first + second } else { first };
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
}
