//! Least recently used, exactly: one intrusive doubly linked list per size class, oldest at the head.
//!
//! `touch` and `forget` are O(1). `victim` walks from the oldest slot and skips the ineligible; the layer
//! that is about to evict is usually the one whose slots are oldest, so the walk is short.

use crate::plan::{BankPlan, SlotId};
use crate::policy::{ExpertKey, Policy};

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Link {
    older: u32,
    newer: u32,
    listed: bool,
}

#[derive(Debug)]
struct List {
    links: Vec<Link>,
    oldest: u32,
    newest: u32,
}

/// Exact LRU.
#[derive(Debug)]
pub struct Lru {
    lists: Vec<List>,
}

impl Lru {
    /// Lists for every slot of the plan; the only place that allocates.
    pub fn new(plan: &BankPlan) -> Self {
        Self::with_slots(plan.classes().iter().map(|class| class.slots))
    }

    fn with_slots(slots: impl Iterator<Item = u32>) -> Self {
        let blank = Link { older: NONE, newer: NONE, listed: false };
        let list = |n: u32| List { links: vec![blank; n as usize], oldest: NONE, newest: NONE };
        Lru { lists: slots.map(list).collect() }
    }
}

impl List {
    fn unlink(&mut self, slot: u32) {
        let Link { older, newer, listed } = self.links[slot as usize];
        if !listed {
            return;
        }
        match older {
            NONE => self.oldest = newer,
            _ => self.links[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            _ => self.links[newer as usize].older = older,
        }
        self.links[slot as usize].listed = false;
    }

    fn push_newest(&mut self, slot: u32) {
        let older = self.newest;
        self.links[slot as usize] = Link { older, newer: NONE, listed: true };
        match older {
            NONE => self.oldest = slot,
            _ => self.links[older as usize].newer = slot,
        }
        self.newest = slot;
    }
}

impl Policy for Lru {
    fn touch(&mut self, slot: SlotId, _: ExpertKey) {
        let list = &mut self.lists[slot.class as usize];
        list.unlink(slot.index);
        list.push_newest(slot.index);
    }

    fn victim(&mut self, class: u16, eligible: &dyn Fn(SlotId) -> bool) -> Option<SlotId> {
        let list = &self.lists[class as usize];
        let mut index = list.oldest;
        while index != NONE {
            let slot = SlotId { class, index };
            if eligible(slot) {
                return Some(slot);
            }
            index = list.links[index as usize].newer;
        }
        None
    }

    fn forget(&mut self, slot: SlotId) {
        self.lists[slot.class as usize].unlink(slot.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: ExpertKey = ExpertKey { layer: 0, expert: 0 };

    fn slot(index: u32) -> SlotId {
        SlotId { class: 0, index }
    }

    #[test]
    fn the_oldest_eligible_slot_leaves() {
        let mut lru = Lru::with_slots([4, 2].into_iter());
        for index in [2, 0, 3, 1] {
            lru.touch(slot(index), KEY);
        }
        assert_eq!(lru.victim(0, &|_| true), Some(slot(2)));
        lru.touch(slot(2), KEY);
        assert_eq!(lru.victim(0, &|_| true), Some(slot(0)));
        assert_eq!(lru.victim(0, &|s| s.index != 0 && s.index != 3), Some(slot(1)));
        lru.forget(slot(0));
        assert_eq!(lru.victim(0, &|_| true), Some(slot(3)));
        assert_eq!(lru.victim(0, &|_| false), None);
        assert_eq!(lru.victim(1, &|_| true), None, "classes have lists of their own");
    }

    #[test]
    fn the_order_equals_that_of_a_naive_list() {
        let mut lru = Lru::with_slots([7].into_iter());
        let mut naive: Vec<u32> = Vec::new();
        let mut state = 1u32;
        for _ in 0..2000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let index = (state >> 16) % 7;
            naive.retain(|&s| s != index);
            if state >> 29 == 0 {
                lru.forget(slot(index));
            } else {
                lru.touch(slot(index), KEY);
                naive.push(index);
            }
            let odd = |s: SlotId| s.index % 2 == 1;
            assert_eq!(lru.victim(0, &|_| true), naive.first().map(|&s| slot(s)));
            assert_eq!(lru.victim(0, &odd), naive.iter().find(|&&s| s % 2 == 1).map(|&s| slot(s)));
        }
    }
}
