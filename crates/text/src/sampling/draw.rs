//! Stage 6, the draw: one of the remaining tokens, each with its probability.

use super::candidates::{Candidates, weight};
use super::rng::Rng;

/// Draws a token; `None` when there is none. Takes exactly one number from `rng`.
pub(super) fn apply(candidates: &Candidates, rng: &mut Rng) -> Option<u32> {
    let point = rng.next_f64();
    let best = candidates.best()?;
    let weights = || candidates.as_slice().iter().map(|candidate| weight(candidate.logit, best.logit));
    let total: f64 = weights().sum();
    let point = point * total;
    let mut reached = 0.0;
    for (candidate, weight) in candidates.as_slice().iter().zip(weights()) {
        reached += weight;
        if point < reached {
            return Some(candidate.id);
        }
    }
    // Rounding left the point at the very end.
    Some(best.id)
}
