//! Recency and frequency in one number: each use of an expert is worth one at first and half as much whenever as many uses as the
//! bank has slots have passed, and the expert with the least worth leaves (the LRFU family of Lee et al., 2001).
//!
//! A short half-life would be LRU, an endless one LFU. Tying it to the slots gives a small bank, in which an expert stays for
//! two or three tokens, a short memory, and a large one a long memory; on our traces the best fixed half-life grows in just that
//! way. One long prompt that uses every expert once gives each of them the same, so that it does not throw out what is used all
//! the time: that is the resistance to scans. As with [`super::lfu`], the worth of experts that are not resident is remembered.
//!
//! Worths are kept as logarithms relative to a fixed time, in which they do not change while nothing is touched: a use at time
//! t adds 2^(t/half-life). They are integers (1/256 half-lives), so that every machine decides alike. Slots
//! lie in buckets of 1/16 half-life, in a ring that moves with time; what falls out behind it is a
//! bucket of its own. `touch` and `forget` are O(1) on average, `victim` passes over ineligible slots of less worth.

use super::history::History;
use super::ranks::Ranks;
use crate::plan::{BankPlan, SlotId};
use crate::policy::{ExpertKey, Policy};

/// Steps of a worth in one half-life.
const STEPS: i64 = 256;
/// Worth steps in a bucket.
const BUCKET_STEPS: i64 = 16;
/// Buckets of the ring: 64 half-lives.
const RING: i64 = 1024;
/// Buckets of it that lie in the future: no worth is more than 8 half-lives above a use that is made now.
const AHEAD: i64 = 8 * STEPS / BUCKET_STEPS;
/// The bucket behind the ring.
const ANCIENT: usize = RING as usize;
/// The worth of an expert that was never used.
const NEVER: i64 = i64::MIN;

/// LRFU.
#[derive(Debug)]
pub struct Lrfu {
    classes: Vec<Ranks>,
    worths: History<i64>,
    touches: u64,
    half_life: u64,
    /// The lowest bucket of the ring, in buckets since the beginning.
    base: i64,
    /// By the distance of two worths in steps: what the smaller one adds to the larger.
    sums: Vec<i64>,
}

impl Lrfu {
    /// Worths and lists for every expert and every slot of the plan; the only place that allocates.
    pub fn new(plan: &BankPlan) -> Self {
        let slots = plan.classes().iter().map(|class| class.slots);
        Self::with_slots(slots, History::new(plan, NEVER), u64::from(plan.slots_total()).max(1))
    }

    fn with_slots(slots: impl Iterator<Item = u32>, worths: History<i64>, half_life: u64) -> Self {
        let sum = |distance: i64| {
            let ratio = (-distance as f64 / STEPS as f64).exp2();
            (ratio.ln_1p() / std::f64::consts::LN_2 * STEPS as f64).round() as i64
        };
        Lrfu {
            classes: slots.map(|n| Ranks::new(n, ANCIENT + 1)).collect(),
            worths,
            touches: 0,
            half_life,
            base: AHEAD - RING,
            sums: (0..).map(sum).take_while(|&sum| sum > 0).collect(),
        }
    }

    /// What a use at this moment is worth.
    fn now(&self) -> i64 {
        (i128::from(self.touches) * i128::from(STEPS) / i128::from(self.half_life)) as i64
    }

    fn sum(&self, a: i64, b: i64) -> i64 {
        if a == NEVER || b == NEVER {
            return a.max(b);
        }
        a.max(b) + self.sums.get(a.abs_diff(b) as usize).copied().unwrap_or(0)
    }

    /// Moves the ring up to the present; its oldest buckets fall out.
    fn advance(&mut self, now: i64) {
        let base = now.div_euclid(BUCKET_STEPS) + AHEAD - RING;
        // After as many steps as there are buckets all of them have fallen out.
        let first = self.base.max(base - RING);
        for bucket in first..base {
            for class in &mut self.classes {
                class.merge(ANCIENT, ring(bucket), ANCIENT);
            }
        }
        self.base = base;
    }
}

fn ring(bucket: i64) -> usize {
    bucket.rem_euclid(RING) as usize
}

impl Policy for Lrfu {
    fn touch(&mut self, slot: SlotId, expert: ExpertKey) {
        let now = self.now();
        self.advance(now);
        let before = *self.worths.of(expert);
        let worth = self.sum(before, now);
        *self.worths.of(expert) = worth;
        let bucket = worth.div_euclid(BUCKET_STEPS).min(self.base + RING - 1);
        self.classes[slot.class as usize].place(slot.index, ring(bucket));
        self.touches += 1;
    }

    fn victim(&mut self, class: u16, eligible: &dyn Fn(SlotId) -> bool) -> Option<SlotId> {
        let (start, end) = (ring(self.base), ANCIENT);
        self.classes[class as usize].victim(class, [ANCIENT..ANCIENT + 1, start..end, 0..start], eligible)
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
        ExpertKey { layer: 2, expert }
    }

    fn lrfu(half_life: u64) -> Lrfu {
        Lrfu::with_slots([6].into_iter(), History::of_layers([(2, 20)].into_iter(), NEVER), half_life)
    }

    #[test]
    fn two_uses_outlast_one_for_a_half_life() {
        // Expert 0 twice, then nothing but experts 1 and 2 in turn.
        let mut lrfu = lrfu(100);
        lrfu.touch(slot(0), key(0));
        lrfu.touch(slot(0), key(0));
        lrfu.touch(slot(1), key(1));
        assert_eq!(lrfu.victim(0, &|_| true), Some(slot(1)));
        for expert in 3..19 {
            // Each of them once, in a slot that nobody looks at: a scan.
            lrfu.touch(slot(5), key(expert));
        }
        lrfu.touch(slot(2), key(19));
        assert_eq!(
            lrfu.victim(0, &|s| s.index != 1 && s.index != 5),
            Some(slot(2)),
            "the scan does not push it out"
        );
        for _ in 0..150 {
            lrfu.touch(slot(5), key(3));
        }
        lrfu.touch(slot(2), key(18));
        assert_eq!(lrfu.victim(0, &|s| s.index == 0 || s.index == 2), Some(slot(0)), "its uses have faded");
    }

    /// The naive one adds up every past use of an expert in floating point.
    #[test]
    fn the_order_equals_that_of_summed_uses() {
        for half_life in [2u64, 40, 900] {
            let mut lrfu = lrfu(half_life);
            let mut worths = [0f64; 20];
            let mut held: Vec<Option<f64>> = vec![None; 6];
            let mut state = 5u32;
            let mut draw = |bound: u32| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 12) % bound
            };
            let mut decided = 0;
            for _ in 0..6000 {
                let (index, expert) = (draw(6), draw(20) * draw(20) / 20);
                lrfu.touch(slot(index), key(expert));
                // Here everything fades with every touch.
                let fade = (-1.0 / half_life as f64).exp2();
                worths.iter_mut().for_each(|worth| *worth *= fade);
                held.iter_mut().flatten().for_each(|worth| *worth *= fade);
                worths[expert as usize] += 1.0;
                held[index as usize] = Some(worths[expert as usize]);
                let victim = lrfu.victim(0, &|_| true).expect("somebody is there");
                let theirs = held[victim.index as usize].expect("it is listed");
                let least = held.iter().flatten().copied().fold(f64::INFINITY, f64::min);
                // A bucket is 1/16 half-life wide and worths are rounded at every use.
                let close = theirs <= least * 1.25 || theirs < 1e-12;
                assert!(close, "half-life {half_life}: {theirs} leaves before {least}");
                decided += usize::from(theirs == least);
            }
            assert!(decided > 3000, "{decided}");
        }
    }

    #[test]
    fn what_was_not_used_for_ages_leaves_first_and_in_order() {
        let mut lrfu = lrfu(1);
        for index in [3, 0, 4] {
            lrfu.touch(slot(index), key(index));
        }
        for _ in 0..3000 {
            lrfu.touch(slot(5), key(9));
        }
        lrfu.touch(slot(1), key(1));
        for gone in [3, 0, 4] {
            assert_eq!(lrfu.victim(0, &|_| true), Some(slot(gone)));
            lrfu.forget(slot(gone));
        }
        assert_eq!(lrfu.victim(0, &|s| s.index != 5), Some(slot(1)));
        assert_eq!(lrfu.victim(0, &|_| false), None);
    }
}
