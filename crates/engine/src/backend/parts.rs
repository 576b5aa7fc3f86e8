//! Where the time of a step goes: operations by kind. It can be switched off, since a clock is read twice per operation.

use std::time::Instant;

use serde::Serialize;

/// Kinds of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Resident matrices: projections, dense feed-forward, shared expert, router, head.
    Dense,
    /// Routed experts, their input and their sum.
    Experts,
    /// Softmax attention, and the delta rule in its place.
    Attention,
    /// The indexer's scores and choice.
    Indexer,
    /// Norms, rotations, copies, sums and caches.
    Rows,
    /// Experts rewritten in packed form.
    Packing,
}

/// Nanoseconds by kind. What is in none of them was spent waiting for reads, or between operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "see Part")]
pub struct PartTimes {
    pub dense_ns: u64,
    pub experts_ns: u64,
    pub attention_ns: u64,
    pub indexer_ns: u64,
    pub rows_ns: u64,
    pub packing_ns: u64,
}

impl PartTimes {
    /// Names and nanoseconds, in the order of [`Part`].
    pub fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("dense", self.dense_ns),
            ("experts", self.experts_ns),
            ("attention", self.attention_ns),
            ("indexer", self.indexer_ns),
            ("rows", self.rows_ns),
            ("packing", self.packing_ns),
        ]
    }

    /// What was measured since `before`, a reading of the same clock.
    pub fn since(mut self, before: PartTimes) -> PartTimes {
        for part in [Part::Dense, Part::Experts, Part::Attention, Part::Indexer, Part::Rows, Part::Packing] {
            let mut before = before;
            *self.of(part) -= *before.of(part);
        }
        self
    }

    fn of(&mut self, part: Part) -> &mut u64 {
        match part {
            Part::Dense => &mut self.dense_ns,
            Part::Experts => &mut self.experts_ns,
            Part::Attention => &mut self.attention_ns,
            Part::Indexer => &mut self.indexer_ns,
            Part::Rows => &mut self.rows_ns,
            Part::Packing => &mut self.packing_ns,
        }
    }
}

/// Adds up what operations take.
#[derive(Debug, Default)]
pub(crate) struct PartClock {
    pub(crate) on: bool,
    pub(crate) times: PartTimes,
}

impl PartClock {
    /// When an operation begins; `None` while the clock is off.
    pub(crate) fn start(&self) -> Option<Instant> {
        self.on.then(Instant::now)
    }

    /// The operation that began at `start` has ended.
    pub(crate) fn stop(&mut self, part: Part, start: Option<Instant>) {
        if let Some(start) = start {
            *self.times.of(part) += start.elapsed().as_nanos() as u64;
        }
    }
}
