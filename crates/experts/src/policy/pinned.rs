//! A hot set that stays: experts that a trace used most are evicted only where nothing else is left to evict.
//!
//! A wrapper around any other policy. It hides pinned slots from it; when the bank finds no victim that way
//! (a layer whose other slots are all in use), it looks again with nothing hidden, so that a pin can never make a
//! request fail. The floors of the layers are the bank's affair and hold as ever.

use super::history::History;
use crate::plan::{BankPlan, SlotId};
use crate::policy::{ExpertKey, Policy};

/// Another policy with pins.
pub struct Pinned {
    inner: Box<dyn Policy>,
    pinned: History<bool>,
    /// By class and slot: whether a pinned expert was the last one there.
    held: Vec<Vec<bool>>,
}

impl Pinned {
    /// `inner`, but the experts of `hot` stay. Those that the plan does not know are passed over.
    pub fn new(inner: Box<dyn Policy>, plan: &BankPlan, hot: &[ExpertKey]) -> Self {
        let mut pinned = History::new(plan, false);
        let known = |key: &&ExpertKey| {
            plan.layers().iter().any(|layer| layer.layer == key.layer && key.expert < layer.n_expert)
        };
        hot.iter().filter(known).for_each(|&key| *pinned.of(key) = true);
        let held = plan.classes().iter().map(|class| vec![false; class.slots as usize]).collect();
        Pinned { inner, pinned, held }
    }
}

impl Policy for Pinned {
    fn touch(&mut self, slot: SlotId, expert: ExpertKey) {
        self.held[slot.class as usize][slot.index as usize] = *self.pinned.of(expert);
        self.inner.touch(slot, expert);
    }

    fn victim(&mut self, class: u16, eligible: &dyn Fn(SlotId) -> bool) -> Option<SlotId> {
        let held = &self.held[class as usize];
        let free = |slot: SlotId| !held[slot.index as usize] && eligible(slot);
        self.inner.victim(class, &free).or_else(|| self.inner.victim(class, eligible))
    }

    fn forget(&mut self, slot: SlotId) {
        self.held[slot.class as usize][slot.index as usize] = false;
        self.inner.forget(slot);
    }
}
