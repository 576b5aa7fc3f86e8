//! What the bank counted. Plain integers, bumped in place; the totals and each layer have the same fields.

use serde::Serialize;

/// Counters over some set of routed layer calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Routed layer calls.
    pub calls: u64,
    /// Expert references: `k · n_tokens` summed over the calls.
    pub refs: u64,
    /// Unique experts summed over the calls; `hits + misses`.
    pub unique: u64,
    /// Unique experts that were resident when asked for.
    pub hits: u64,
    /// Unique experts that had to be read.
    pub misses: u64,
    /// Expert bytes read for those misses and for preloading, without what a direct read takes along at both
    /// ends.
    pub bytes_read: u64,
    /// Reads that brought them.
    pub reads: u64,
    /// Nanoseconds for which the caller stood still because nothing was ready to compute.
    pub stall_ns: u64,
    /// Nanoseconds for which at least one read that a call waits for was at the drive. What of it is not in `stall_ns` was hidden behind
    /// computing. A read that was begun ahead counts here from when the call asked for it.
    pub io_wall_ns: u64,
    /// Nanoseconds for which at least one read ahead of demand was at the drive; these can be the same moments as those above.
    pub ahead_io_wall_ns: u64,
    /// Nanoseconds from a call's request to the end of its last wave: `stall_ns`, and what was computed meanwhile.
    pub open_ns: u64,
    /// Experts that lost their slot to another one.
    pub evictions: u64,
    /// Experts that were placed in an empty slot.
    pub cold: u64,
    /// Requests that ended with an error or were abandoned.
    pub failed: u64,
    /// Experts that were rewritten in packed form.
    pub promotions: u64,
    /// Hits on experts in packed form.
    pub packed_hits: u64,
    /// Experts that were guessed for the calls that had a guess.
    pub guessed: u64,
    /// Those of them that the calls then named.
    pub guessed_right: u64,
    /// Experts whose reading ahead of demand was asked for.
    pub ahead: u64,
    /// Misses that found their bytes read ahead, or on the way.
    pub ahead_used: u64,
    /// Those of them that were still on the way.
    pub ahead_late: u64,
    /// Experts that were given up before the drive began with them.
    pub ahead_cancelled: u64,
    /// Bytes that were read ahead for nothing.
    pub ahead_wasted_bytes: u64,
}

impl Counters {
    /// Hits among unique experts, 0 to 1; 0 when nothing was asked.
    pub fn hit_rate(&self) -> f64 {
        if self.unique == 0 { 0.0 } else { self.hits as f64 / self.unique as f64 }
    }

    /// The counters without what depends on the clock or on who computes: equal for a run and the replay of its trace.
    pub fn without_time(mut self) -> Self {
        (self.stall_ns, self.io_wall_ns, self.ahead_io_wall_ns) = (0, 0, 0);
        (self.open_ns, self.promotions, self.packed_hits) = (0, 0, 0);
        (self.ahead, self.ahead_used, self.ahead_late, self.ahead_cancelled) = (0, 0, 0, 0);
        (self.guessed, self.guessed_right, self.ahead_wasted_bytes) = (0, 0, 0);
        self
    }

    /// What was counted since `before`, a reading of the same counters.
    pub fn since(&self, before: &Counters) -> Self {
        let mut since = *self;
        since.zip(before, |now, before| now - before);
        since
    }

    fn add(&mut self, other: &Counters) {
        self.zip(other, |sum, more| sum + more);
    }

    fn zip(&mut self, other: &Counters, with: impl Fn(u64, u64) -> u64) {
        let Counters {
            calls,
            refs,
            unique,
            hits,
            misses,
            bytes_read,
            reads,
            stall_ns,
            io_wall_ns,
            ahead_io_wall_ns,
            open_ns,
            evictions,
            cold,
            failed,
            promotions,
            packed_hits,
            guessed,
            guessed_right,
            ahead,
            ahead_used,
            ahead_late,
            ahead_cancelled,
            ahead_wasted_bytes,
        } = other;
        let pairs = [
            (&mut self.calls, calls),
            (&mut self.refs, refs),
            (&mut self.unique, unique),
            (&mut self.hits, hits),
            (&mut self.misses, misses),
            (&mut self.bytes_read, bytes_read),
            (&mut self.reads, reads),
            (&mut self.stall_ns, stall_ns),
            (&mut self.io_wall_ns, io_wall_ns),
            (&mut self.ahead_io_wall_ns, ahead_io_wall_ns),
            (&mut self.open_ns, open_ns),
            (&mut self.evictions, evictions),
            (&mut self.cold, cold),
            (&mut self.failed, failed),
            (&mut self.promotions, promotions),
            (&mut self.packed_hits, packed_hits),
            (&mut self.guessed, guessed),
            (&mut self.guessed_right, guessed_right),
            (&mut self.ahead, ahead),
            (&mut self.ahead_used, ahead_used),
            (&mut self.ahead_late, ahead_late),
            (&mut self.ahead_cancelled, ahead_cancelled),
            (&mut self.ahead_wasted_bytes, ahead_wasted_bytes),
        ];
        for (a, b) in pairs {
            *a = with(*a, *b);
        }
    }
}

/// The counters of one layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LayerCounters {
    /// Block index.
    pub layer: u32,
    /// Its counters.
    #[serde(flatten)]
    pub counters: Counters,
}

/// The counters of a bank, by layer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// One entry per routed layer, in order.
    pub layers: Vec<LayerCounters>,
}

impl Stats {
    pub(crate) fn new(layers: impl Iterator<Item = u32>) -> Self {
        let blank = |layer| LayerCounters { layer, counters: Counters::default() };
        Stats { layers: layers.map(blank).collect() }
    }

    /// The sum over all layers.
    pub fn total(&self) -> Counters {
        let mut total = Counters::default();
        self.layers.iter().for_each(|layer| total.add(&layer.counters));
        total
    }

    /// Sets every counter to zero, for a measurement that begins after a warm-up.
    pub fn reset(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.counters = Counters::default());
    }
}
