//! Slots in numbered buckets, the least recently touched first inside each: what the policies that count have in
//! common.
//!
//! Placing and taking out are O(1); finding the first slot skips empty buckets 64 at a time.

use std::ops::Range;

use crate::plan::SlotId;

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Link {
    older: u32,
    newer: u32,
    /// `NONE`: in no bucket.
    bucket: u32,
    /// When the slot was placed, in placements.
    stamp: u64,
}

#[derive(Debug, Clone, Copy)]
struct Ends {
    oldest: u32,
    newest: u32,
}

const EMPTY: Ends = Ends { oldest: NONE, newest: NONE };

/// The slots of one size class.
#[derive(Debug)]
pub(super) struct Ranks {
    links: Vec<Link>,
    buckets: Vec<Ends>,
    /// A bit for each bucket that holds a slot.
    filled: Vec<u64>,
    stamp: u64,
}

impl Ranks {
    pub(super) fn new(slots: u32, buckets: usize) -> Self {
        let blank = Link { older: NONE, newer: NONE, bucket: NONE, stamp: 0 };
        Ranks {
            links: vec![blank; slots as usize],
            buckets: vec![EMPTY; buckets],
            filled: vec![0; buckets.div_ceil(64)],
            stamp: 0,
        }
    }

    /// The slot is the newest of `bucket` from now on, wherever it was before.
    pub(super) fn place(&mut self, slot: u32, bucket: usize) {
        self.take_out(slot);
        self.stamp += 1;
        self.links[slot as usize].stamp = self.stamp;
        self.push(slot, bucket);
    }

    /// The slot is in no bucket from now on.
    pub(super) fn take_out(&mut self, slot: u32) {
        let Link { older, newer, bucket, .. } = self.links[slot as usize];
        if bucket == NONE {
            return;
        }
        let ends = &mut self.buckets[bucket as usize];
        match older {
            NONE => ends.oldest = newer,
            _ => self.links[older as usize].newer = newer,
        }
        match newer {
            NONE => ends.newest = older,
            _ => self.links[newer as usize].older = older,
        }
        if ends.oldest == NONE {
            self.filled[bucket as usize / 64] &= !(1 << (bucket % 64));
        }
        self.links[slot as usize].bucket = NONE;
    }

    /// Moves the slots of `a` and `b` to `into`, which is one of them or empty, in the order in which they were
    /// placed.
    pub(super) fn merge(&mut self, a: usize, b: usize, into: usize) {
        let nothing = |bucket: usize| bucket == into || self.buckets[bucket].oldest == NONE;
        if nothing(a) && nothing(b) {
            return;
        }
        let (mut left, mut right) = (self.empty(a), self.empty(b));
        while left != NONE || right != NONE {
            let stamp = |slot: u32| if slot == NONE { u64::MAX } else { self.links[slot as usize].stamp };
            let from = if stamp(left) < stamp(right) { &mut left } else { &mut right };
            let slot = *from;
            *from = self.links[slot as usize].newer;
            self.push(slot, into);
        }
    }

    /// The first eligible slot of this class in the buckets of these ranges, one range after the other, lowest bucket first.
    pub(super) fn victim(
        &self,
        class: u16,
        ranges: impl IntoIterator<Item = Range<usize>>,
        eligible: &dyn Fn(SlotId) -> bool,
    ) -> Option<SlotId> {
        let accept = |index| eligible(SlotId { class, index });
        let index = ranges.into_iter().find_map(|range| self.find(range, &accept))?;
        Some(SlotId { class, index })
    }

    /// The first slot that `accept` takes in the buckets of `range`, lowest bucket first.
    fn find(&self, range: Range<usize>, accept: &dyn Fn(u32) -> bool) -> Option<u32> {
        let mut from = range.start;
        while let Some(bucket) = self.next_filled(from, range.end) {
            let mut slot = self.buckets[bucket].oldest;
            while slot != NONE {
                if accept(slot) {
                    return Some(slot);
                }
                slot = self.links[slot as usize].newer;
            }
            from = bucket + 1;
        }
        None
    }

    /// Forgets who is in a bucket, except for the chain from the oldest one, which is returned.
    fn empty(&mut self, bucket: usize) -> u32 {
        self.filled[bucket / 64] &= !(1 << (bucket % 64));
        std::mem::replace(&mut self.buckets[bucket], EMPTY).oldest
    }

    fn push(&mut self, slot: u32, bucket: usize) {
        let ends = &mut self.buckets[bucket];
        let older = std::mem::replace(&mut ends.newest, slot);
        match older {
            NONE => ends.oldest = slot,
            _ => self.links[older as usize].newer = slot,
        }
        self.filled[bucket / 64] |= 1 << (bucket % 64);
        let link = &mut self.links[slot as usize];
        (link.older, link.newer, link.bucket) = (older, NONE, bucket as u32);
    }

    fn next_filled(&self, from: usize, to: usize) -> Option<usize> {
        let mut word = from / 64;
        let mut bits = self.filled.get(word)? & (u64::MAX << (from % 64));
        loop {
            if bits != 0 {
                let bucket = word * 64 + bits.trailing_zeros() as usize;
                return (bucket < to).then_some(bucket);
            }
            word += 1;
            if word * 64 >= to {
                return None;
            }
            bits = self.filled[word];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random placements, removals and merges beside a plain list of (bucket, slot), oldest placement first.
    #[test]
    fn buckets_equal_a_naive_list() {
        const BUCKETS: usize = 130;
        let mut ranks = Ranks::new(9, BUCKETS);
        let mut naive: Vec<(usize, u32)> = Vec::new();
        let mut state = 3u32;
        let mut draw = |bound: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 12) % bound
        };
        for _ in 0..4000 {
            let (slot, bucket) = (draw(9), draw(BUCKETS as u32) as usize);
            match draw(8) {
                0 => {
                    ranks.take_out(slot);
                    naive.retain(|&(_, s)| s != slot);
                }
                1 => {
                    let other = draw(BUCKETS as u32) as usize;
                    if other != bucket {
                        ranks.merge(bucket, other, other);
                        naive.iter_mut().filter(|(b, _)| *b == bucket).for_each(|entry| entry.0 = other);
                    }
                }
                _ => {
                    ranks.place(slot, bucket);
                    naive.retain(|&(_, s)| s != slot);
                    naive.push((bucket, slot));
                }
            }
            let (low, high) = (draw(BUCKETS as u32) as usize, 1 + draw(BUCKETS as u32) as usize);
            for (range, odd) in [(0..BUCKETS, false), (0..BUCKETS, true), (low.min(high)..high, false)] {
                let accept = |s: u32| !odd || s % 2 == 1;
                let inside = naive.iter().filter(|(b, s)| range.contains(b) && accept(*s));
                // Of equals the first in the list, which was placed first.
                let wanted = inside.min_by_key(|(b, _)| *b).map(|&(_, s)| s);
                assert_eq!(ranks.find(range, &accept), wanted);
            }
        }
    }
}
