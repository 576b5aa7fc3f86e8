//! Stage 3, top-p (nucleus): the fewest best tokens whose probabilities reach `p` together stay, at least one.

use super::candidates::{Candidates, weight};

/// How many are put in order at first. Nuclei are small; sorting a whole vocabulary for each token is not.
const FIRST: usize = 64;

/// Keeps the nucleus, in order.
pub(super) fn apply(candidates: &mut Candidates, p: f32) {
    let Some(best) = candidates.best() else { return };
    // Summed before anything moves, so that the order of the sum is fixed.
    let total: f64 = candidates.as_slice().iter().map(|candidate| weight(candidate.logit, best.logit)).sum();
    let wanted = f64::from(p) * total;
    let (mut reached, mut kept) = (0.0, 0);
    let mut front = FIRST;
    while kept < candidates.len() {
        candidates.sort_front(front);
        front = front.saturating_mul(8);
        let sorted = candidates.as_slice().iter().take(front / 8);
        for candidate in sorted.skip(kept) {
            reached += weight(candidate.logit, best.logit);
            kept += 1;
            if reached >= wanted {
                candidates.truncate(kept);
                return;
            }
        }
    }
}
