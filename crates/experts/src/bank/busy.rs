//! For how long the drive had something to do: the time covered by reads, moments with several of them counted once.
//!
//! Completions come in any order and say when the drive had their read. What a read adds to the time covered so far is known at once,
//! so it can be booked for the layer that the read was for, and the sum over all layers is the time covered by all of them.

use std::time::Instant;

use crate::read::Interval;

/// Demanded reads of the open request, and reads ahead of demand.
#[derive(Debug)]
pub(super) struct Busy {
    /// When the open request asked for its reads. What a read ahead was at the drive before that nobody had asked for.
    asked: Instant,
    demand: Covered,
    ahead: Covered,
}

impl Busy {
    pub(super) fn new() -> Self {
        Busy { asked: Instant::now(), demand: Covered::new(), ahead: Covered::new() }
    }

    /// A request begins; all demanded reads of the one before it are over.
    pub(super) fn ask(&mut self) {
        self.asked = Instant::now();
        self.demand.forget_before(self.asked);
    }

    /// Nanoseconds since the open request began.
    pub(super) fn since_asked_ns(&self) -> u64 {
        self.asked.elapsed().as_nanos() as u64
    }

    /// A read is over. Nanoseconds that it adds to the time of demanded reads, and to that of reads ahead.
    pub(super) fn add(&mut self, read: Interval, demanded: bool) -> (u64, u64) {
        if !demanded {
            return (0, self.ahead.add(read));
        }
        let Interval { from, to } = read;
        // (An interval that ends before it begins adds nothing.)
        let ahead = self.ahead.add(Interval { from, to: to.min(self.asked) });
        (self.demand.add(Interval { from: from.max(self.asked), to }), ahead)
    }
}

/// Intervals that are kept apart. Beyond that the oldest is closed, and what an old read would still add before its end is lost.
const KEPT: usize = 64;

/// The union of intervals, as far as later ones may still touch it. Allocates nothing after construction.
#[derive(Debug)]
struct Covered {
    /// Nothing before this counts any more.
    floor: Option<Instant>,
    /// Disjoint, in order.
    spans: Vec<Interval>,
}

impl Covered {
    fn new() -> Self {
        Covered { floor: None, spans: Vec::with_capacity(KEPT) }
    }

    fn forget_before(&mut self, floor: Instant) {
        self.floor = Some(floor);
        self.spans.clear();
    }

    /// Nanoseconds of `span` that were not covered before.
    fn add(&mut self, span: Interval) -> u64 {
        let from = self.floor.map_or(span.from, |floor| span.from.max(floor));
        let mut merged = Interval { from, to: span.to };
        if merged.to <= merged.from {
            return 0;
        }
        let mut added = merged.to - merged.from;
        let first = self.spans.partition_point(|known| known.to < from);
        let end = self.spans.partition_point(|known| known.from <= span.to);
        for known in &self.spans[first..end] {
            added -= known.to.min(span.to) - known.from.max(from);
            merged = merged.hull(*known);
        }
        if first < end {
            self.spans[first] = merged;
            self.spans.drain(first + 1..end);
        } else if self.spans.len() < KEPT {
            self.spans.insert(first, merged);
        } else if first == 0 {
            self.floor = Some(merged.to);
        } else {
            self.floor = Some(self.spans.remove(0).to);
            self.spans.insert(first - 1, merged);
        }
        added.as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    proptest! {
        /// In whatever order they come, each moment counts once.
        #[test]
        fn time_covered_is_that_of_the_union(reads in prop::collection::vec((0..200u64, 0..40u64), 0..60)) {
            let zero = Instant::now();
            let mut covered = Covered::new();
            let mut seen = [false; 240];
            for (from, len) in reads {
                let before = seen.iter().filter(|&&busy| busy).count();
                seen[from as usize..(from + len) as usize].fill(true);
                let after = seen.iter().filter(|&&busy| busy).count();
                let added = covered.add(Interval { from: zero + ms(from), to: zero + ms(from + len) });
                prop_assert_eq!(added, (after - before) as u64 * 1_000_000);
            }
        }

        /// Where there are too many to be kept apart, no moment counts twice all the same.
        #[test]
        fn time_that_is_forgotten_is_never_counted_twice(
            reads in prop::collection::vec((0..2000u64, 1..4u64), 0..900),
        ) {
            let zero = Instant::now();
            let mut covered = Covered::new();
            let mut seen = vec![false; 2010];
            let mut counted = 0;
            for (from, len) in reads {
                seen[from as usize..(from + len) as usize].fill(true);
                counted += covered.add(Interval { from: zero + ms(from), to: zero + ms(from + len) });
                prop_assert!(covered.spans.len() <= KEPT && covered.spans.capacity() == KEPT);
                prop_assert!(covered.spans.windows(2).all(|pair| pair[0].to < pair[1].from));
            }
            prop_assert!(counted <= seen.iter().filter(|&&busy| busy).count() as u64 * 1_000_000);
        }
    }

    #[test]
    fn what_was_read_before_anybody_asked_counts_as_ahead() {
        let mut busy = Busy::new();
        busy.ask();
        let zero = busy.asked;
        let read = |from: u64, to: u64| Interval { from: zero + ms(from), to: zero + ms(to) };
        assert_eq!(busy.add(read(0, 10), false), (0, 10_000_000));
        busy.asked = zero + ms(20);
        busy.demand.forget_before(busy.asked);
        // Begun ahead at 5, asked for at 20, over at 30; ten of the first fifteen are new.
        assert_eq!(busy.add(read(5, 30), true), (10_000_000, 10_000_000));
        assert_eq!(busy.add(read(21, 33), true), (3_000_000, 0));
        assert_eq!(busy.add(read(0, 40), false), (0, 20_000_000));
        assert_eq!(busy.add(read(31, 32), true), (0, 0));
    }
}
