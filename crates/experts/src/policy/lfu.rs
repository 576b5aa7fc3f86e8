//! Least frequently used, with ageing: the expert with the fewest uses leaves, of equals the least recently used.
//!
//! Uses are counted for every expert of the model, resident or not, since there are few of them: an expert that
//! comes back is judged by what it did before. All counts are halved after every [`HALVED_AFTER_FILLS`] times as many uses as
//! the bank has slots; otherwise what was hot in an earlier text would never leave. So a large bank, in which experts stay for long, has
//! a long memory, and a small one a short memory.
//!
//! `touch` and `forget` are O(1), but for the halving, which visits each slot. `victim` passes over ineligible slots with fewer uses.

use super::history::History;
use super::ranks::Ranks;
use crate::plan::{BankPlan, SlotId};
use crate::policy::{ExpertKey, Policy};

/// Uses between two halvings of the counts, in slots of the bank.
pub const HALVED_AFTER_FILLS: u64 = 2;

/// Counts end here, so that a bank's worth of buckets fits one word.
const COUNT_MAX: u8 = 63;

/// Aged LFU.
#[derive(Debug)]
pub struct Lfu {
    classes: Vec<Ranks>,
    counts: History<u8>,
    touches: u64,
    halved_after: u64,
}

impl Lfu {
    /// Counts and lists for every expert and every slot of the plan; the only place that allocates.
    pub fn new(plan: &BankPlan) -> Self {
        let halved_after = HALVED_AFTER_FILLS * u64::from(plan.slots_total()).max(1);
        let slots = plan.classes().iter().map(|class| class.slots);
        Self::with_slots(slots, History::new(plan, 0), halved_after)
    }

    fn with_slots(slots: impl Iterator<Item = u32>, counts: History<u8>, halved_after: u64) -> Self {
        let classes = slots.map(|n| Ranks::new(n, usize::from(COUNT_MAX) + 1)).collect();
        Lfu { classes, counts, touches: 0, halved_after }
    }

    fn halve(&mut self) {
        self.counts.values().for_each(|count| *count /= 2);
        for class in &mut self.classes {
            // Upwards: a bucket is filled only when its own slots have gone further down.
            for count in 0..=usize::from(COUNT_MAX) / 2 {
                class.merge(2 * count, 2 * count + 1, count);
            }
        }
    }
}

impl Policy for Lfu {
    fn touch(&mut self, slot: SlotId, expert: ExpertKey) {
        let count = self.counts.of(expert);
        *count = (*count + 1).min(COUNT_MAX);
        self.classes[slot.class as usize].place(slot.index, usize::from(*count));
        self.touches += 1;
        if self.touches.is_multiple_of(self.halved_after) {
            self.halve();
        }
    }

    fn victim(&mut self, class: u16, eligible: &dyn Fn(SlotId) -> bool) -> Option<SlotId> {
        let all = std::iter::once(0..usize::from(COUNT_MAX) + 1);
        self.classes[class as usize].victim(class, all, eligible)
    }

    fn forget(&mut self, slot: SlotId) {
        self.classes[slot.class as usize].take_out(slot.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(index: u32) -> SlotId {
        SlotId { class: 0, index }
    }

    fn key(expert: u32) -> ExpertKey {
        ExpertKey { layer: 4, expert }
    }

    fn lfu(halved_after: u64) -> Lfu {
        Lfu::with_slots([6].into_iter(), History::of_layers([(4, 20)].into_iter(), 0), halved_after)
    }

    #[test]
    fn the_rarest_leaves_and_of_equals_the_oldest() {
        let mut lfu = lfu(1000);
        for (index, expert) in [(0, 7), (1, 8), (0, 7), (2, 9), (1, 8), (3, 10)] {
            lfu.touch(slot(index), key(expert));
        }
        assert_eq!(lfu.victim(0, &|_| true), Some(slot(2)));
        assert_eq!(lfu.victim(0, &|s| s.index != 2), Some(slot(3)));
        assert_eq!(lfu.victim(0, &|s| s.index < 2), Some(slot(0)));
        lfu.forget(slot(2));
        assert_eq!(lfu.victim(0, &|_| true), Some(slot(3)));
        // Expert 9 comes back with the use it had: two now, more than expert 10.
        lfu.touch(slot(2), key(9));
        assert_eq!(lfu.victim(0, &|_| true), Some(slot(3)));
        assert_eq!(lfu.victim(0, &|s| s.index != 3), Some(slot(0)));
    }

    /// A slot stands where its last touch left it; the naive one keeps (count, time) of each slot in a list.
    #[test]
    fn ageing_equals_that_of_a_naive_list() {
        for halved_after in [3, 50, 700] {
            let mut lfu = lfu(halved_after);
            let mut counts = [0u32; 20];
            let mut naive: Vec<Option<(u32, u64)>> = vec![None; 6];
            let mut state = 9u32;
            let mut draw = |bound: u32| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 12) % bound
            };
            let mut touches = 0u64;
            for _ in 0..5000 {
                let (index, expert) = (draw(6), draw(20) * draw(20) / 20);
                if draw(9) == 0 {
                    lfu.forget(slot(index));
                    naive[index as usize] = None;
                } else {
                    lfu.touch(slot(index), key(expert));
                    let count = &mut counts[expert as usize];
                    *count = (*count + 1).min(63);
                    touches += 1;
                    naive[index as usize] = Some((*count, touches));
                    if u64::is_multiple_of(touches, halved_after) {
                        counts.iter_mut().for_each(|count| *count /= 2);
                        naive.iter_mut().flatten().for_each(|held| held.0 /= 2);
                    }
                }
                for odd in [false, true] {
                    let accept = |s: SlotId| !odd || s.index % 2 == 1;
                    let held = (0..6u32).filter(|&i| accept(slot(i)) && naive[i as usize].is_some());
                    let wanted = held.min_by_key(|&i| naive[i as usize]).map(slot);
                    assert_eq!(lfu.victim(0, &accept), wanted);
                }
            }
        }
    }
}
