//! Stage 1, repetition penalty: tokens that occurred lately lose some of their logit. As in llama.cpp (and the CTRL
//! paper): positive logits are divided by the penalty, the others multiplied; once per token, however often it occurred.

use super::candidates::Candidates;

/// Which tokens were penalised already in this draw: one bit each.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    bits: Vec<u64>,
}

impl Seen {
    pub(super) fn new(n_vocab: usize) -> Self {
        Self { bits: vec![0; n_vocab.div_ceil(64)] }
    }

    /// Marks `id`; true when it is new and in range.
    fn insert(&mut self, id: u32) -> bool {
        let Some(word) = self.bits.get_mut(id as usize / 64) else { return false };
        let bit = 1 << (id % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    fn remove(&mut self, id: u32) {
        if let Some(word) = self.bits.get_mut(id as usize / 64) {
            *word &= !(1 << (id % 64));
        }
    }
}

/// Penalises each token of `recent`.
pub(super) fn apply(candidates: &mut Candidates, seen: &mut Seen, recent: &[u32], penalty: f32) {
    for id in recent {
        if seen.insert(*id)
            && let Some(candidate) = candidates.get_mut(*id)
        {
            let logit = candidate.logit;
            candidate.logit = if logit > 0.0 { logit / penalty } else { logit * penalty } + 0.0;
        }
    }
    recent.iter().for_each(|id| seen.remove(*id));
}
