//! The tokens still in the running, and their logits.
//!
//! The order of candidates decides the order in which floats are summed and probabilities are laid out, so it is
//! always one of two: ascending ids, or descending logits with ties by ascending id. What the standard library's
//! partial sorts leave in between is never looked at.

use std::cmp::Ordering;

/// A token that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) logit: f32,
}

impl Candidate {
    /// Better first. Total, because NaN is replaced on entry.
    fn rank(&self, other: &Self) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.id.cmp(&other.id))
    }
}

/// The candidates of one draw. Capacity for the whole vocabulary is allocated once.
#[derive(Debug, Clone)]
pub(super) struct Candidates {
    list: Vec<Candidate>,
    /// How many at the front are in order and better than the rest; when the list is longer than that and this is
    /// 0, it is in the order of ids.
    sorted: usize,
}

impl Candidates {
    pub(super) fn with_capacity(n_vocab: usize) -> Self {
        Self { list: Vec::with_capacity(n_vocab), sorted: 0 }
    }

    /// Starts over with every token whose logit is above minus infinity; NaN is not. Returns how many were NaN.
    pub(super) fn fill(&mut self, logits: &[f32]) -> usize {
        self.list.clear();
        self.sorted = 0;
        let usable = (0u32..).zip(logits).filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        // Adding zero turns -0.0 into 0.0, which the total order would tell apart.
        self.list.extend(usable.map(|(id, logit)| Candidate { id, logit: *logit + 0.0 }));
        logits.iter().filter(|logit| logit.is_nan()).count()
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn as_slice(&self) -> &[Candidate] {
        &self.list
    }

    /// Whether the whole list is in order of rank.
    pub(super) fn is_sorted(&self) -> bool {
        self.sorted >= self.list.len()
    }

    /// Changes logits in place, keeping them in order; for monotonic changes only.
    pub(super) fn scale(&mut self, change: impl Fn(f32) -> f32) {
        self.list.iter_mut().for_each(|candidate| candidate.logit = change(candidate.logit));
    }

    /// The candidate of token `id`, while the list still has ids in order.
    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Candidate> {
        debug_assert_eq!(self.sorted, 0);
        let index = self.list.binary_search_by_key(&id, |candidate| candidate.id).ok()?;
        self.list.get_mut(index)
    }

    /// The best candidate.
    pub(super) fn best(&self) -> Option<Candidate> {
        if self.sorted > 0 {
            return self.list.first().copied();
        }
        self.list.iter().copied().min_by(Candidate::rank)
    }

    /// Brings the `count` best to the front, in order.
    pub(super) fn sort_front(&mut self, count: usize) {
        let count = count.min(self.list.len());
        if count <= self.sorted {
            return;
        }
        let rest = &mut self.list[self.sorted..];
        let wanted = count - self.sorted;
        if wanted < rest.len() {
            rest.select_nth_unstable_by(wanted - 1, Candidate::rank);
        }
        rest[..wanted].sort_unstable_by(Candidate::rank);
        self.sorted = count;
    }

    /// Keeps the `count` best, which must be in order already.
    pub(super) fn truncate(&mut self, count: usize) {
        debug_assert!(count <= self.sorted);
        self.list.truncate(count);
        self.sorted = self.sorted.min(self.list.len());
    }

    /// Keeps those that pass, in their order.
    pub(super) fn retain(&mut self, pass: impl Fn(&Candidate) -> bool) {
        debug_assert!(self.sorted == 0 || self.is_sorted());
        let was_sorted = self.sorted > 0;
        self.list.retain(pass);
        self.sorted = if was_sorted { self.list.len() } else { 0 };
    }
}

/// The unnormalised probability of `logit` next to the best one: 1 for the best, and for every infinite logit if the
/// best is infinite.
pub(super) fn weight(logit: f32, best: f32) -> f64 {
    if logit == best { 1.0 } else { f64::from(logit - best).exp() }
}
