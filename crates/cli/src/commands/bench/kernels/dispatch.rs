//! What it costs to hand work to the threads and to wait for them, also with more threads than cores.

use std::time::{Duration, Instant};

use kernels::Pool;
use serde::Serialize;

use crate::commands::bench::measure::Spread;
use crate::ui::table::{Align, Table};

/// Tasks of a dispatch.
const TASKS: usize = 16;
/// Turns of a spin loop in a short task: some microseconds.
const SHORT: u32 = 100;

/// Microseconds from handing out the tasks to having all of them done; over rounds of many dispatches.
#[derive(Debug, Serialize)]
pub(super) struct Dispatch {
    threads: usize,
    tasks: usize,
    /// Tasks that do nothing.
    empty_us: Spread,
    /// Tasks of some microseconds.
    short_us: Spread,
    /// The same after a millisecond in which nothing happened.
    short_after_silence_us: Spread,
}

/// One to four times as many threads as cores.
pub(super) fn measure(rounds: u32) -> Vec<Dispatch> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut counts = vec![1, cores, 2 * cores, 4 * cores];
    counts.dedup();
    counts
        .into_iter()
        .map(|threads| {
            let pool = Pool::new(threads);
            let spread = |spins, n, pause| {
                let rounds = (0..rounds.max(1)).map(|_| micros(&pool, spins, n, pause));
                Spread::of(rounds).expect("one round at least")
            };
            Dispatch {
                threads,
                tasks: TASKS,
                empty_us: spread(0, 20_000, Duration::ZERO),
                short_us: spread(SHORT, 1_000, Duration::ZERO),
                short_after_silence_us: spread(SHORT, 30, Duration::from_millis(1)),
            }
        })
        .collect()
}

/// Mean of `n` dispatches, each after a pause.
fn micros(pool: &Pool, spins: u32, n: u32, pause: Duration) -> f64 {
    let mut spent = Duration::ZERO;
    for _ in 0..n {
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        let since = Instant::now();
        pool.run(TASKS, &|_| (0..spins).for_each(|_| std::hint::spin_loop()));
        spent += since.elapsed();
    }
    spent.as_secs_f64() * 1e6 / f64::from(n)
}

pub(super) fn table(figures: &[Dispatch]) -> String {
    let mut table = Table::new(&[Align::Right; 4]);
    let head = [format!("threads, {TASKS} tasks"), "empty µs".into(), "short µs".into(), "after 1 ms".into()];
    table.row(head);
    for d in figures {
        let cell = |s: &Spread| format!("{:.2} ({:.2} – {:.2})", s.median, s.min, s.max);
        table.row([
            d.threads.to_string(),
            cell(&d.empty_us),
            cell(&d.short_us),
            cell(&d.short_after_silence_us),
        ]);
    }
    table.render("  ")
}
