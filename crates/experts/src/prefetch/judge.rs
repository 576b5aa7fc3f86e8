//! On or off, by trying both: decode is timed with and without reading ahead, in alternation, and the faster way is kept for a while.
//!
//! What reading ahead gains depends on the drive, on the guesses and on who else uses both; no figure measured elsewhere says it. How
//! long a token takes depends first of all on how many experts it misses, and that swings more than what reading ahead gains. So the
//! two ways are compared at equal misses (two lines with one slope, by least squares), and a trial goes on until their distance is
//! beyond doubt or has been looked at long enough. A trial takes a sixth of the tokens at most, and the answer is the same either way.

use std::time::Instant;

/// Tokens in a row that are timed together, the first of which does not count: it still sees what the other way left behind.
const STRETCH_TOKENS: u32 = 5;
/// Stretches between two looks at the outcome, in the order off, on, on, off.
const ROUND_STRETCHES: u32 = 4;
/// Stretches of a trial at most.
const STRETCHES_MAX: u32 = 24;
/// Beyond doubt: so many standard errors.
const SURE: f64 = 2.5;
/// A token that took so many times the mean was held up by something else.
const HELD_UP: f64 = 4.0;
/// Tokens of a trial before anything is called usual.
const USUAL_TOKENS: f64 = 8.0;
/// Tokens until the next trial, for each one that the last trial took.
const SETTLED_PER_TRIAL: u32 = 5;

/// Times decoded tokens and says what to do for the next one.
#[derive(Debug)]
pub struct Judge {
    /// Start of the token that runs, and misses until then.
    since: Option<(Instant, u64)>,
    phase: Phase,
    /// Tokens that count, off and on.
    tallies: [Tally; 2],
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Trial { stretch: u32, tokens: u32 },
    Settled { on: bool, left: u32 },
}

const FIRST: Phase = Phase::Trial { stretch: 0, tokens: 0 };

fn tries(stretch: u32) -> bool {
    matches!(stretch % ROUND_STRETCHES, 1 | 2)
}

impl Default for Judge {
    fn default() -> Self {
        Judge { since: None, phase: FIRST, tallies: Default::default() }
    }
}

impl Judge {
    /// A token begins now, until which the bank has counted `misses`; whatever ran since the last call was a token, too.
    pub fn token(&mut self, now: Instant, misses: u64) {
        if let Some((since, before)) = self.since.replace((now, misses)) {
            let took_ms = now.saturating_duration_since(since).as_secs_f64() * 1e3;
            self.book(misses.saturating_sub(before) as f64, took_ms);
        }
    }

    /// Something else than a token begins, such as a prompt.
    pub fn pause(&mut self) {
        self.since = None;
    }

    /// Whether to read ahead for the token that runs.
    pub fn is_on(&self) -> bool {
        match self.phase {
            Phase::Trial { stretch, .. } => tries(stretch),
            Phase::Settled { on, .. } => on,
        }
    }

    fn book(&mut self, misses: f64, took_ms: f64) {
        match self.phase {
            Phase::Settled { left: 0 | 1, .. } => (self.phase, self.tallies) = (FIRST, Default::default()),
            Phase::Settled { ref mut left, .. } => *left -= 1,
            Phase::Trial { mut stretch, mut tokens } => {
                if tokens > 0 && !self.held_up(took_ms) {
                    self.tallies[usize::from(tries(stretch))].add(misses, took_ms);
                }
                tokens += 1;
                if tokens == STRETCH_TOKENS {
                    (stretch, tokens) = (stretch + 1, 0);
                }
                self.phase = Phase::Trial { stretch, tokens };
                if tokens == 0 && stretch.is_multiple_of(ROUND_STRETCHES) {
                    self.look(stretch);
                }
            }
        }
    }

    fn held_up(&self, took_ms: f64) -> bool {
        let [off, on] = &self.tallies;
        let n = off.n + on.n;
        n >= USUAL_TOKENS && took_ms > HELD_UP * (off.y + on.y) / n
    }

    /// Ends the trial where more of it would not change the outcome.
    fn look(&mut self, stretches: u32) {
        let [off, on] = &self.tallies;
        let (gain_ms, error_ms) = gain(off, on);
        if gain_ms.abs() > SURE * error_ms || stretches >= STRETCHES_MAX {
            let left = stretches * STRETCH_TOKENS * SETTLED_PER_TRIAL;
            self.phase = Phase::Settled { on: gain_ms > 0.0, left };
        }
    }
}

/// Sums over tokens: x are misses, y milliseconds.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    n: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
    yy: f64,
}

impl Tally {
    fn add(&mut self, x: f64, y: f64) {
        let Tally { n, x: sum_x, y: sum_y, xx, xy, yy } = self;
        for (sum, value) in [(n, 1.0), (sum_x, x), (sum_y, y), (xx, x * x), (xy, x * y), (yy, y * y)] {
            *sum += value;
        }
    }

    /// Means of x and y.
    fn means(&self) -> [f64; 2] {
        [self.x / self.n.max(1.0), self.y / self.n.max(1.0)]
    }

    /// Sums of squares and products about the means: xx, xy, yy.
    fn about_means(&self) -> [f64; 3] {
        let [x, y] = self.means();
        [self.xx - self.n * x * x, self.xy - self.n * x * y, self.yy - self.n * y * y]
    }
}

/// Milliseconds per token that `on` saves at equal misses, and the standard error of that.
fn gain(off: &Tally, on: &Tally) -> (f64, f64) {
    let ([x_off, y_off], [x_on, y_on]) = (off.means(), on.means());
    let ([xx, xy, yy], other) = (off.about_means(), on.about_means());
    let [xx, xy, yy] = [xx + other[0], xy + other[1], yy + other[2]];
    let slope = if xx > 0.0 { xy / xx } else { 0.0 };
    let apart = x_off - x_on;
    let gain = (y_off - y_on) - slope * apart;
    let freedom = (off.n + on.n - 3.0).max(1.0);
    let variance = (yy - slope * xy).max(0.0) / freedom;
    let leverage = if xx > 0.0 { apart * apart / xx } else { 0.0 };
    (gain, (variance * (1.0 / off.n.max(1.0) + 1.0 / on.n.max(1.0) + leverage)).sqrt())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TRIAL_TOKENS_MIN: u32 = STRETCH_TOKENS * ROUND_STRETCHES;
    const TRIAL_TOKENS_MAX: u32 = STRETCH_TOKENS * STRETCHES_MAX;

    /// A machine that decodes.
    struct World {
        judge: Judge,
        clock: Instant,
        random: u64,
        misses: u64,
    }

    impl World {
        fn new(seed: u64) -> World {
            World { judge: Judge::default(), clock: Instant::now(), random: seed * 2 + 1, misses: 0 }
        }

        fn below(&mut self, n: u64) -> u64 {
            self.random =
                self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.random >> 33) % n
        }

        /// Tokens of 100 ms, 0 to 7 misses of `off` or `on` ms each and up to 2 ms that nobody knows why; how many of them ran
        /// with reading ahead.
        fn run(&mut self, tokens: u32, off: u64, on: u64) -> u32 {
            let mut ran_on = 0;
            for _ in 0..tokens {
                self.judge.token(self.clock, self.misses);
                let is_on = self.judge.is_on();
                ran_on += u32::from(is_on);
                let misses = self.below(8);
                self.misses += misses;
                let us = 100_000 + 1000 * misses * if is_on { on } else { off } + self.below(2000);
                self.clock += Duration::from_micros(us);
            }
            ran_on
        }

        /// Runs on to the end of a trial.
        fn settle(&mut self, off: u64, on: u64) {
            (0..TRIAL_TOKENS_MAX + 1).find(|_| {
                self.run(1, off, on);
                self.is_settled()
            });
            assert!(self.is_settled());
        }

        fn is_settled(&self) -> bool {
            matches!(self.judge.phase, Phase::Settled { .. })
        }
    }

    #[test]
    fn keeps_what_is_faster_though_misses_swing_more() {
        for seed in 0..20 {
            // A miss takes 10 ms or 8 of a hundred and some: a gain of 7 ms on average among swings of 70.
            for (off, on) in [(10, 8), (8, 10)] {
                let mut world = World::new(seed);
                world.settle(off, on);
                assert_eq!(world.judge.is_on(), on < off, "{seed}");
                // The world changes, perhaps in the middle of a trial: the next one that is all of the new world finds out.
                world.run(2 * TRIAL_TOKENS_MAX * (SETTLED_PER_TRIAL + 1), on, off);
                world.settle(on, off);
                assert_eq!(world.judge.is_on(), on > off, "{seed}");
            }
        }
    }

    #[test]
    fn a_clear_case_is_settled_soon_and_a_trial_takes_a_sixth_at_most() {
        let mut world = World::new(1);
        world.run(TRIAL_TOKENS_MIN, 20, 5);
        assert!(!world.is_settled());
        world.run(1, 20, 5);
        assert!(world.is_settled() && world.judge.is_on());
        let Phase::Settled { left, .. } = world.judge.phase else { unreachable!() };
        assert_eq!(left, TRIAL_TOKENS_MIN * SETTLED_PER_TRIAL);
        world.run(left - 1, 20, 5);
        assert!(world.is_settled());
        world.run(1, 20, 5);
        assert!(!world.is_settled());
    }

    #[test]
    fn no_difference_is_no_reason_to_go_on_for_ever() {
        for seed in 0..20 {
            let mut world = World::new(seed);
            world.settle(10, 10);
        }
    }

    #[test]
    fn prompts_and_tokens_that_were_held_up_do_not_count() {
        for seed in 0..20 {
            let mut world = World::new(seed);
            for i in 0..30 {
                world.run(3, 10, 7);
                if i % 2 == 0 {
                    // A prompt: announced before it runs.
                    world.judge.token(world.clock, world.misses);
                    world.judge.pause();
                }
                if i % 3 > 0 || i % 2 == 0 {
                    // Or the machine was busy, with nobody to say so. What is usual has to be known first.
                    world.clock += Duration::from_secs(if i > 4 || i % 2 == 0 { 3 } else { 0 });
                }
                world.misses += 100 * u64::from(i % 2 == 0);
            }
            world.settle(10, 7);
            assert!(world.judge.is_on(), "{seed}");
        }
    }
}
