//! Stage 5, temperature: logits are divided by it; above 1 evens the odds, below 1 sharpens them. Zero is greedy and
//! never comes here.

use super::candidates::Candidates;

/// Divides all logits by `temperature`, taking the best as the origin so that small temperatures cannot overflow
/// into a tie.
pub(super) fn apply(candidates: &mut Candidates, temperature: f32) {
    let Some(best) = candidates.best() else { return };
    candidates.scale(|logit| if logit == best.logit { 0.0 } else { (logit - best.logit) / temperature });
}
