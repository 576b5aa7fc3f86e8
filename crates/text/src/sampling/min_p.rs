//! Stage 4, min-p: tokens less than `p` times as likely as the best one go.

use super::candidates::Candidates;

/// Keeps tokens whose probability is at least `p` times the best one's.
pub(super) fn apply(candidates: &mut Candidates, p: f32) {
    let Some(best) = candidates.best() else { return };
    // p_i ≥ p · p_best on probabilities is this on logits; the best itself must pass when it is infinite, too.
    let least = best.logit + p.ln();
    candidates.retain(|candidate| candidate.logit >= least || candidate.logit == best.logit);
}
