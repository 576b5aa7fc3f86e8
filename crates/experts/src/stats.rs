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
}

impl Counters {
    /// Hits among unique experts, 0 to 1; 0 when nothing was asked.
    pub fn hit_rate(&self) -> f64 {
        if self.unique == 0 { 0.0 } else { self.hits as f64 / self.unique as f64 }
    }

    /// The counters without what depends on the clock or on who computes: equal for a run and the replay of its trace.
    pub fn without_time(mut self) -> Self {
        (self.stall_ns, self.promotions, self.packed_hits) = (0, 0, 0);
        self
    }

    fn add(&mut self, other: &Counters) {
        let Counters {
            calls,
            refs,
            unique,
            hits,
            misses,
            bytes_read,
            reads,
            stall_ns,
            evictions,
            cold,
            failed,
            promotions,
            packed_hits,
        } = other;
        self.calls += calls;
        self.refs += refs;
        self.unique += unique;
        self.hits += hits;
        self.misses += misses;
        self.bytes_read += bytes_read;
        self.reads += reads;
        self.stall_ns += stall_ns;
        self.evictions += evictions;
        self.cold += cold;
        self.failed += failed;
        self.promotions += promotions;
        self.packed_hits += packed_hits;
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
