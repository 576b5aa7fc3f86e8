//! What both measurements share: clocks, and the middle and the ends of a handful of figures.

use std::time::Instant;

use serde::Serialize;

/// Whose processor time counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cpu {
    /// The calling thread's: exact for work that it does alone, whatever else the machine does.
    Thread,
    /// That of all threads together, waiting in spin loops included.
    Process,
}

impl Cpu {
    /// Nanoseconds so far; `None` where the system does not tell.
    #[cfg(unix)]
    fn now_ns(self) -> Option<u64> {
        use rustix::time::{ClockId, clock_gettime};
        let clock = match self {
            Cpu::Thread => ClockId::ThreadCPUTime,
            Cpu::Process => ClockId::ProcessCPUTime,
        };
        let time = clock_gettime(clock);
        Some(u64::try_from(time.tv_sec).ok()? * 1_000_000_000 + u64::try_from(time.tv_nsec).ok()?)
    }

    #[cfg(not(unix))]
    fn now_ns(self) -> Option<u64> {
        None
    }
}

/// What one piece of work took.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Took {
    pub(super) wall_ns: u64,
    /// Absent where the system does not tell.
    pub(super) cpu_ns: Option<u64>,
}

/// Runs `work` and says what it took.
pub(super) fn timed<T>(cpu: Cpu, work: impl FnOnce() -> T) -> (T, Took) {
    let (begun_cpu, begun) = (cpu.now_ns(), Instant::now());
    let value = work();
    let wall_ns = begun.elapsed().as_nanos() as u64;
    let cpu_ns = cpu.now_ns().zip(begun_cpu).map(|(now, begun)| now.saturating_sub(begun));
    (value, Took { wall_ns, cpu_ns })
}

/// Median, minimum and maximum.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    /// `None` of no values.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Spread { median: (low + high) / 2.0, min, max })
    }
}

/// Events per second; 0 where no time passed.
pub(super) fn per_second(events: f64, ns: u64) -> f64 {
    if ns == 0 { 0.0 } else { events * 1e9 / ns as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_odd_and_even_counts() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn work_takes_time_and_waiting_takes_no_processor() {
        let (sum, took) = timed(Cpu::Thread, || (0..2_000_000u64).fold(1u64, |a, i| a.rotate_left(5) ^ i));
        assert_ne!(sum, 0);
        assert!(took.wall_ns > 0);
        let ((), slept) = timed(Cpu::Thread, || std::thread::sleep(std::time::Duration::from_millis(30)));
        assert!(slept.wall_ns >= 30_000_000);
        if let (Some(busy), Some(idle)) = (took.cpu_ns, slept.cpu_ns) {
            assert!(busy > 0 && idle < 20_000_000, "{busy} {idle}");
        }
    }
}
