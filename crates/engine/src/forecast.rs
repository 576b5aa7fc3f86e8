//! What one token of a plan costs, and between which bounds that puts the speed. Arithmetic only: who measures rates, and how, is
//! not known here.
//!
//! Left out, and therefore missing from every forecast: attention over the cache, norms and other small operations, and
//! the hand-over between threads. Weights are assumed to be computed in the form that the file has.

use std::collections::BTreeMap;

use files::Checkpoint;

use crate::MemoryPlan;

/// What decoding one token takes on any machine.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Work {
    /// Routed layers.
    pub layers: u32,
    /// Experts per token in each of them.
    pub top_k: u32,
    /// Expert bytes that are read when none is resident.
    pub cold_bytes: u64,
    /// Bytes of weights that pass from memory to the processor, experts included.
    pub memory_bytes: u64,
    /// Weights that are multiplied, by ggml type id.
    pub weights: BTreeMap<u32, u64>,
    /// Part of the experts that has a slot, 0 to 1.
    pub resident_share: f64,
}

impl Work {
    /// Of a planned model.
    pub fn of(checkpoint: &Checkpoint, plan: &MemoryPlan) -> Work {
        let mut work = Work {
            layers: 0,
            top_k: plan.model.top_k,
            cold_bytes: 0,
            memory_bytes: 0,
            weights: BTreeMap::new(),
            resident_share: 1.0,
        };
        let head = plan.matrices.iter().any(|matrix| matrix.name == "output.weight");
        for matrix in &plan.matrices {
            // Of the embedding one row is read; it is the head, too, where there is no other.
            if matrix.name == "token_embd.weight" && head {
                continue;
            }
            work.memory_bytes += matrix.bytes;
            *work.weights.entry(matrix.format).or_default() += matrix.weights;
        }
        let Some(bank) = &plan.bank else { return work };
        work.layers = bank.layers().len() as u32;
        for layer in bank.layers() {
            let used = u64::from(work.top_k.min(layer.n_expert));
            work.cold_bytes += used * layer.expert_bytes;
            for tensor in checkpoint.experts().iter().filter(|tensor| tensor.layer == layer.layer) {
                *work.weights.entry(tensor.ty.id()).or_default() += used * tensor.shape[0] * tensor.shape[1];
            }
        }
        work.memory_bytes += work.cold_bytes;
        let experts: u64 = bank.layers().iter().map(|layer| u64::from(layer.n_expert)).sum();
        work.resident_share = (f64::from(bank.slots_total()) / experts.max(1) as f64).min(1.0);
        work
    }
}

/// What a machine does per second. A rate that is not known leaves its bound out.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize)]
pub struct Rates {
    /// The drive at reads of an expert, several at a time, in 10⁹ bytes.
    pub drive_gb_per_s: Option<f64>,
    /// One small read of the drive, in microseconds.
    pub drive_latency_us: Option<f64>,
    /// Memory, all threads together, in 10⁹ bytes.
    pub memory_gb_per_s: Option<f64>,
    /// Weights that the kernels take, all threads together, in 10⁹, by ggml type id; empty where it is not known.
    pub gweights_per_s: BTreeMap<u32, f64>,
}

/// What the speed is bound by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Expert bytes that the bank does not have.
    Drive,
    /// Weights on their way to the processor.
    Memory,
    /// Multiplications.
    Compute,
}

/// The expectation for one token.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Forecast {
    /// Hits among the experts that a token uses, 0 to 1, as assumed.
    pub hit_rate: f64,
    /// Bytes that are read from the drive.
    pub read_bytes: u64,
    /// Seconds for that, where the rate is known.
    pub drive_s: Option<f64>,
    /// Seconds that the weights take through memory.
    pub memory_s: Option<f64>,
    /// Seconds that multiplying takes.
    pub compute_s: Option<f64>,
    /// The longest of the three.
    pub bound: Option<Bound>,
    /// When nothing overlaps: reads, then computing.
    pub tokens_per_s_low: Option<f64>,
    /// When everything overlaps.
    pub tokens_per_s_high: Option<f64>,
}

/// What `rates` make of `work` when `hit_rate` of a token's experts are in the bank.
pub fn forecast(work: &Work, hit_rate: f64, rates: &Rates) -> Forecast {
    let hit_rate = hit_rate.clamp(0.0, 1.0);
    let read_bytes = (work.cold_bytes as f64 * (1.0 - hit_rate)).round();
    let over =
        |amount: f64, rate: Option<f64>| rate.filter(|&rate| rate > 0.0).map(|rate| amount / 1e9 / rate);
    let drive_s = if read_bytes == 0.0 { Some(0.0) } else { over(read_bytes, rates.drive_gb_per_s) };
    let memory_s = over(work.memory_bytes as f64, rates.memory_gb_per_s);
    let compute_s: Option<f64> = work
        .weights
        .iter()
        .map(|(format, &weights)| over(weights as f64, rates.gweights_per_s.get(format).copied()))
        .sum::<Option<f64>>()
        .filter(|_| !work.weights.is_empty());
    let named = [(Bound::Drive, drive_s), (Bound::Memory, memory_s), (Bound::Compute, compute_s)];
    let known = named.into_iter().filter_map(|(bound, s)| Some((bound, s?)));
    let longest = known.max_by(|a, b| a.1.total_cmp(&b.1)).filter(|(_, s)| *s > 0.0);
    // A layer with a miss waits for one read at least, however many are in flight.
    let missy = f64::from(work.layers) * (1.0 - hit_rate.powi(work.top_k as i32));
    let waits = missy * rates.drive_latency_us.unwrap_or(0.0) / 1e6;
    let computing = memory_s.into_iter().chain(compute_s).fold(0.0, f64::max);
    // A bound that is missing may be the one that counts.
    let complete = named.iter().all(|(_, s)| s.is_some());
    let serial = drive_s.unwrap_or(0.0) + waits + computing;
    Forecast {
        hit_rate,
        read_bytes: read_bytes as u64,
        drive_s,
        memory_s,
        compute_s,
        bound: longest.map(|(bound, _)| bound),
        tokens_per_s_low: (complete && serial > 0.0).then(|| 1.0 / serial),
        tokens_per_s_high: longest.map(|(_, s)| 1.0 / s),
    }
}

/// Share of the experts that is resident, and hits to expect: GLM-5.2 with a bank of one LRU, as measured by others over long texts
/// (three points are the middle of a range).
const MEASURED: [(f64, f64); 7] =
    [(0.0, 0.0), (0.03, 0.075), (0.10, 0.54), (0.25, 0.66), (0.46, 0.84), (0.76, 0.98), (1.0, 1.0)];

/// An estimate of the hit rate for a share of resident experts, between the points measured for one model; never below what
/// routing without any pattern gives. A trace of the model at hand is worth more.
pub fn estimated_hit_rate(resident_share: f64) -> f64 {
    let share = resident_share.clamp(0.0, 1.0);
    let between = MEASURED.windows(2).find(|pair| share <= pair[1].0).map(|pair| {
        let [(x0, y0), (x1, y1)] = [pair[0], pair[1]];
        y0 + (y1 - y0) * (share - x0) / (x1 - x0)
    });
    between.unwrap_or(1.0).max(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten layers, two experts each: 4 GB cold; 10 GB through memory; 20 + 10 10⁹ weights in two formats.
    fn work() -> Work {
        Work {
            layers: 10,
            top_k: 2,
            cold_bytes: 4_000_000_000,
            memory_bytes: 10_000_000_000,
            weights: [(8, 20_000_000_000), (12, 10_000_000_000)].into(),
            resident_share: 0.5,
        }
    }

    fn rates(drive: f64, memory: f64) -> Rates {
        Rates {
            drive_gb_per_s: Some(drive),
            drive_latency_us: Some(0.0),
            memory_gb_per_s: Some(memory),
            gweights_per_s: [(8, 40.0), (12, 40.0)].into(),
        }
    }

    fn close(a: Option<f64>, b: f64) {
        assert!(a.is_some_and(|a| (a - b).abs() < 1e-9), "{a:?} is not {b}");
    }

    #[test]
    fn the_drive_bounds_what_misses() {
        // 4 GB · 0.25 at 1 GB/s: 1 s. 10 GB at 20 GB/s: 0.5 s. 30 G at 40 G/s: 0.75 s.
        let expected = forecast(&work(), 0.75, &rates(1.0, 20.0));
        assert_eq!((expected.read_bytes, expected.bound), (1_000_000_000, Some(Bound::Drive)));
        close(expected.drive_s, 1.0);
        close(expected.memory_s, 0.5);
        close(expected.compute_s, 0.75);
        close(expected.tokens_per_s_high, 1.0);
        close(expected.tokens_per_s_low, 1.0 / 1.75);
    }

    #[test]
    fn other_bounds_are_named_when_they_are_the_longest() {
        let expected = forecast(&work(), 0.75, &rates(4.0, 5.0));
        assert_eq!(expected.bound, Some(Bound::Memory));
        close(expected.tokens_per_s_high, 0.5);
        let expected = forecast(&work(), 1.0, &rates(4.0, 50.0));
        assert_eq!((expected.bound, expected.read_bytes), (Some(Bound::Compute), 0));
        close(expected.tokens_per_s_high, 1.0 / 0.75);
        close(expected.tokens_per_s_low, 1.0 / 0.75);
    }

    #[test]
    fn every_layer_with_a_miss_waits_once() {
        // Both of two experts hit with 0.25: 7.5 of 10 layers miss, 2 ms each.
        let slow = Rates { drive_latency_us: Some(2000.0), ..rates(1.0, 20.0) };
        let expected = forecast(&work(), 0.5, &slow);
        close(expected.tokens_per_s_low, 1.0 / (2.0 + 0.015 + 0.75));
        close(expected.tokens_per_s_high, 0.5);
    }

    #[test]
    fn what_is_not_known_is_left_out_and_said() {
        let no_drive = Rates { drive_gb_per_s: None, ..rates(1.0, 20.0) };
        let expected = forecast(&work(), 0.75, &no_drive);
        assert_eq!((expected.drive_s, expected.bound), (None, Some(Bound::Compute)));
        assert_eq!(expected.tokens_per_s_low, None);
        assert!(expected.tokens_per_s_high.is_some());
        // With everything resident the drive does not matter.
        assert!(forecast(&work(), 1.0, &no_drive).tokens_per_s_low.is_some());
        let one_format = Rates { gweights_per_s: [(8, 40.0)].into(), ..rates(1.0, 20.0) };
        assert_eq!(forecast(&work(), 0.75, &one_format).compute_s, None);
        let nothing = forecast(&work(), 0.75, &Rates::default());
        assert_eq!((nothing.bound, nothing.tokens_per_s_high), (None, None));
    }

    #[test]
    fn the_estimate_meets_its_points_and_rises() {
        assert_eq!((estimated_hit_rate(0.0), estimated_hit_rate(1.0)), (0.0, 1.0));
        assert!((estimated_hit_rate(0.10) - 0.54).abs() < 1e-9);
        assert!((estimated_hit_rate(0.355) - 0.75).abs() < 1e-9, "halfway between 25 % and 46 %");
        let all: Vec<f64> = (0..=100).map(|i| estimated_hit_rate(f64::from(i) / 100.0)).collect();
        assert!(all.windows(2).all(|pair| pair[0] <= pair[1]), "{all:?}");
        assert!(all.iter().enumerate().all(|(i, &rate)| rate >= i as f64 / 100.0 && rate <= 1.0));
        assert_eq!(estimated_hit_rate(7.0), 1.0);
    }
}
