//! How long a token would take: hits and misses in, time out, from a few measured rates.
//!
//! Two bounds. The *ideal* one lets reading and computing overlap freely: whichever takes longer. The *dependency* bound keeps
//! what no engine can escape without knowing the future: the reads of a layer start when its router has spoken (or
//! one layer earlier, for the part of the misses that a look-ahead names), a miss computes when its bytes are there, and the
//! next layer starts when this one is done. Everything else is taken to be perfect: the drive reads at full rate whenever
//! it has something to read, all misses of a layer are in flight at once and arrive one after the other, hits and the shared
//! expert compute while they fly, and nothing is lost between the parts.
//!
//! ```text
//! routers    ──attention──●──shared──hits──miss 1──miss 2──●──attention──● …
//! drive                   └─latency─read 1─read 2┘ [ahead: layer + 1] ┘
//! ```

use serde::Serialize;

/// A drive.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Disk {
    /// Bytes per second with several expert-sized reads in flight, in 10⁹.
    pub read_gb_per_s: f64,
    /// From the first read of a layer's misses to its first byte, in microseconds; the others of the layer wait for theirs meanwhile.
    pub read_latency_us: f64,
}

/// What computing takes, in milliseconds, measured with every expert resident.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Compute {
    /// Of a routed layer before its router has spoken: norms, attention, the router.
    pub layer_ms: f64,
    /// Of a routed layer after that, whatever the router chose: the shared expert.
    pub shared_ms: f64,
    /// Of one routed expert of one token.
    pub expert_ms: f64,
    /// Of a token outside its routed layers: embedding, leading dense layers, head.
    pub other_ms: f64,
    /// Of that, what passes between a guess for the first routed layer and that layer: the FFN of the dense layer before it. 0 where
    /// nobody guesses.
    pub lead_ms: f64,
}

impl Compute {
    /// When only the whole is known: every routed layer takes the same, half of it before its router has spoken and half in its
    /// `top_k` experts.
    pub fn from_total(total_ms: f64, routed_layers: u32, top_k: u32) -> Compute {
        let half_ms = total_ms / f64::from(routed_layers.max(1)) / 2.0;
        Compute {
            layer_ms: half_ms,
            shared_ms: 0.0,
            expert_ms: half_ms / f64::from(top_k.max(1)),
            other_ms: 0.0,
            lead_ms: 0.0,
        }
    }
}

/// What one layer of a one-token pass asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerLoad {
    /// Experts that are resident.
    pub hits: u32,
    /// Experts that have to be read.
    pub misses: u32,
    /// Bytes of one expert.
    pub expert_bytes: u64,
    /// Of the misses, how many may be read as soon as the router of the layer before has spoken. A mean is no whole number.
    pub ahead: f64,
    /// Experts read ahead in vain for each one in `ahead`. They take idle drive time only: what has not been read
    /// when the router speaks is dropped.
    pub waste: f64,
}

/// What a pass takes.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct PassTime {
    /// Its misses at the full rate of the drive.
    pub io_ms: f64,
    /// Its computing.
    pub compute_ms: f64,
    /// The longer of the two.
    pub ideal_ms: f64,
    /// With the dependencies kept; never less than `ideal_ms`.
    pub dependency_ms: f64,
}

/// Times one token through its routed layers, in order.
pub fn pass_time(layers: &[LayerLoad], disk: &Disk, compute: &Compute) -> PassTime {
    let bytes_per_ms = disk.read_gb_per_s * 1e6;
    let mut line = Line {
        now_ms: compute.other_ms,
        free_ms: compute.other_ms - compute.lead_ms,
        bytes_per_ms,
        latency_ms: disk.read_latency_us / 1e3,
    };
    let (mut bytes, mut compute_ms) = (0.0, compute.other_ms);
    for (i, load) in layers.iter().enumerate() {
        line.layer(load, i > 0 || compute.lead_ms > 0.0, compute);
        bytes += f64::from(load.misses) * load.expert_bytes as f64;
        let experts = f64::from(load.hits + load.misses);
        compute_ms += compute.layer_ms + compute.shared_ms + experts * compute.expert_ms;
    }
    let io_ms = if bytes > 0.0 { bytes / bytes_per_ms } else { 0.0 };
    PassTime { io_ms, compute_ms, ideal_ms: io_ms.max(compute_ms), dependency_ms: line.now_ms }
}

/// The two clocks of a pass.
struct Line {
    /// Until when computing is decided.
    now_ms: f64,
    /// When the drive has read what was demanded, and, if later, when it could begin to read ahead.
    free_ms: f64,
    bytes_per_ms: f64,
    latency_ms: f64,
}

impl Line {
    fn layer(&mut self, load: &LayerLoad, may_read_ahead: bool, compute: &Compute) {
        let spoke_ms = self.now_ms + compute.layer_ms;
        let expert_bytes = load.expert_bytes as f64;
        let expert_read_ms = if load.misses > 0 { expert_bytes / self.bytes_per_ms } else { 0.0 };
        let mut early_ms = 0.0;
        if may_read_ahead && load.ahead > 0.0 {
            // The useful share of what the idle drive reads until the router speaks.
            let idle_ms = (spoke_ms - self.free_ms - self.latency_ms).max(0.0);
            let ahead = load.ahead.min(f64::from(load.misses));
            early_ms = (idle_ms / (1.0 + load.waste)).min(ahead * expert_read_ms);
        }
        // A hair more, so that a sum of tenths counts as the whole that it is.
        let arrived = if early_ms > 0.0 { (early_ms / expert_read_ms + 1e-9).floor() as u32 } else { 0 };
        let begun_ms = (early_ms - f64::from(arrived) * expert_read_ms).max(0.0);
        let mut busy_ms = spoke_ms + compute.shared_ms + f64::from(load.hits + arrived) * compute.expert_ms;
        let mut landed_ms = spoke_ms.max(self.free_ms);
        let first_byte_ms = landed_ms + self.latency_ms;
        for miss in arrived..load.misses {
            if miss == arrived && begun_ms > 0.0 {
                // A read that is under way has its latency behind it.
                landed_ms += expert_read_ms - begun_ms;
            } else {
                landed_ms = landed_ms.max(first_byte_ms) + expert_read_ms;
            }
            busy_ms = busy_ms.max(landed_ms) + compute.expert_ms;
        }
        self.free_ms = landed_ms;
        self.now_ms = busy_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 MB per millisecond, half a millisecond of latency.
    const DISK: Disk = Disk { read_gb_per_s: 1.0, read_latency_us: 500.0 };
    const COMPUTE: Compute =
        Compute { layer_ms: 2.0, shared_ms: 1.0, expert_ms: 1.0, other_ms: 3.0, lead_ms: 0.0 };

    fn load(hits: u32, misses: u32) -> LayerLoad {
        LayerLoad { hits, misses, expert_bytes: 1_000_000, ahead: 0.0, waste: 0.0 }
    }

    #[track_caller]
    fn assert_close(time: PassTime, io: f64, compute: f64, dependency: f64) {
        let wanted = [io, compute, io.max(compute), dependency];
        let found = [time.io_ms, time.compute_ms, time.ideal_ms, time.dependency_ms];
        let close = wanted.iter().zip(found).all(|(a, b)| (a - b).abs() < 1e-9);
        assert!(close, "{found:?}, wanted {wanted:?}");
    }

    #[test]
    fn reads_hide_behind_enough_computing() {
        // Router at 5; shared and two hits until 8; misses land at 6.5 and 7.5 and compute until 10.
        assert_close(pass_time(&[load(2, 2)], &DISK, &COMPUTE), 2.0, 10.0, 10.0);
    }

    #[test]
    fn a_miss_computes_when_it_lands_and_not_before() {
        let quick = Compute { shared_ms: 0.5, expert_ms: 0.25, ..COMPUTE };
        // Router at 5; one hit until 5.75; landings at 6.5, 7.5, 8.5, each computed at once: 8.75.
        assert_close(pass_time(&[load(1, 3)], &DISK, &quick), 3.0, 3.0 + 2.0 + 0.5 + 1.0, 8.75);
    }

    #[test]
    fn the_next_layer_reads_only_after_its_own_router() {
        let quick = Compute { layer_ms: 1.0, shared_ms: 0.0, expert_ms: 0.0, other_ms: 0.0, lead_ms: 0.0 };
        // Router at 1, landings 2.5 and 3.5; router at 4.5, landing 6.
        assert_close(pass_time(&[load(0, 2), load(3, 1)], &DISK, &quick), 3.0, 2.0, 6.0);
        // Without misses nothing waits.
        assert_close(pass_time(&[load(2, 0), load(3, 0)], &DISK, &quick), 0.0, 2.0, 2.0);
    }

    #[test]
    fn reading_ahead_uses_the_time_before_the_router() {
        let compute = Compute { layer_ms: 2.0, shared_ms: 0.0, expert_ms: 1.0, other_ms: 0.0, lead_ms: 0.0 };
        let second = LayerLoad { ahead: 1.0, ..load(0, 2) };
        // Layer 1: router at 2, three hits until 5. Layer 2: router at 7; ahead was read from 2.5 to 3.5; the other miss
        // starts at 7, lands at 8.5. Computing: the early one 7 to 8, the other 8.5 to 9.5.
        assert_close(pass_time(&[load(3, 0), second], &DISK, &compute), 2.0, 9.0, 9.5);
        // Both ahead: hits, in effect.
        let both = LayerLoad { ahead: 2.0, ..second };
        assert_close(pass_time(&[load(3, 0), both], &DISK, &compute), 2.0, 9.0, 9.0);
        // Neither: landings at 8.5 and 9.5.
        assert_close(pass_time(&[load(3, 0), load(0, 2)], &DISK, &compute), 2.0, 9.0, 10.5);
    }

    #[test]
    fn reading_ahead_never_delays_demand() {
        let compute = Compute { layer_ms: 2.0, shared_ms: 0.0, expert_ms: 0.0, other_ms: 0.0, lead_ms: 0.0 };
        // Layer 1: router at 2, landings 3.5, 4.5, 5.5. Layer 2: router at 7.5; the drive idles from 5.5, minus latency: 1.5 ms, one
        // and a half experts. The half one goes on and lands at 8, while the third waits for its first byte: 9.
        let second = LayerLoad { ahead: 3.0, ..load(0, 3) };
        assert_close(pass_time(&[load(0, 3), second], &DISK, &compute), 6.0, 4.0, 9.0);
        // With as much waste as use only 0.75 of an expert: it lands at 7.75, the others begin at 8: 9 and 10.
        let wasteful = LayerLoad { waste: 1.0, ..second };
        assert_close(pass_time(&[load(0, 3), wasteful], &DISK, &compute), 6.0, 4.0, 10.0);
        // The first layer of a token has nobody before it.
        let first = LayerLoad { ahead: 3.0, ..load(0, 3) };
        assert_close(pass_time(&[first], &DISK, &compute), 3.0, 2.0, 5.5);
        // Unless a dense layer has guessed, one millisecond before: 2.5 ms of reading until the router speaks at 4, when the third has
        // half a millisecond left.
        let led = Compute { other_ms: 2.0, lead_ms: 1.0, ..compute };
        assert_close(pass_time(&[first], &DISK, &led), 3.0, 4.0, 4.5);
    }

    #[test]
    fn a_total_is_split_evenly() {
        let compute = Compute::from_total(24.0, 3, 4);
        let even = Compute { layer_ms: 4.0, shared_ms: 0.0, expert_ms: 1.0, other_ms: 0.0, lead_ms: 0.0 };
        assert_eq!(compute, even);
        let layers = [load(4, 0); 3];
        assert_close(pass_time(&layers, &DISK, &compute), 0.0, 24.0, 24.0);
    }
}
