//! Stage 2, top-k: only the `k` best stay, a tie at the border going to the lower id.

use super::candidates::Candidates;

/// Keeps the `k` best, in order.
pub(super) fn apply(candidates: &mut Candidates, k: usize) {
    if k < candidates.len() {
        candidates.sort_front(k);
        candidates.truncate(k);
    }
}
