//! On or off, by trying both: decode is timed with and without reading ahead, in alternation, and the faster way is kept for a while.
//!
//! What reading ahead gains depends on the drive, on the guesses and on who else uses both; no figure measured elsewhere says it. A
//! trial takes a sixth of the tokens at most, and the answer is the same either way.

use std::time::Instant;

/// Tokens in a row that are timed together, the first of which does not count: it still sees what the other way left behind.
const STRETCH_TOKENS: u32 = 5;
/// Stretches of a trial, in the order off, on, on, off and so on.
const STRETCHES: u32 = 8;
/// Tokens until the next trial.
const SETTLED_TOKENS: u32 = 200;

/// Times decoded tokens and says what to do for the next one.
#[derive(Debug)]
pub struct Judge {
    /// Start of the token that runs.
    since: Option<Instant>,
    phase: Phase,
    /// Nanoseconds of the tokens that count, off and on.
    spent_ns: [u64; 2],
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Trial { stretch: u32, tokens: u32 },
    Settled { on: bool, tokens: u32 },
}

impl Default for Judge {
    fn default() -> Self {
        Judge { since: None, phase: Phase::Trial { stretch: 0, tokens: 0 }, spent_ns: [0; 2] }
    }
}

impl Judge {
    /// A token begins now; whatever ran since the last call was a token, too.
    pub fn token(&mut self, now: Instant) {
        let took = self.since.replace(now).map(|since| now.saturating_duration_since(since));
        if let Some(took) = took {
            self.book(took.as_nanos() as u64);
        }
    }

    /// Something else than a token begins, such as a prompt.
    pub fn pause(&mut self) {
        self.since = None;
    }

    /// Whether to read ahead for the token that runs.
    pub fn is_on(&self) -> bool {
        match self.phase {
            Phase::Trial { stretch, .. } => matches!(stretch % 4, 1 | 2),
            Phase::Settled { on, .. } => on,
        }
    }

    fn book(&mut self, took_ns: u64) {
        match &mut self.phase {
            Phase::Settled { tokens, .. } => {
                *tokens += 1;
                if *tokens == SETTLED_TOKENS {
                    self.spent_ns = [0; 2];
                    self.phase = Phase::Trial { stretch: 0, tokens: 0 };
                }
            }
            Phase::Trial { stretch, tokens } => {
                if *tokens > 0 {
                    self.spent_ns[usize::from(matches!(*stretch % 4, 1 | 2))] += took_ns;
                }
                *tokens += 1;
                if *tokens == STRETCH_TOKENS {
                    (*stretch, *tokens) = (*stretch + 1, 0);
                }
                if *stretch == STRETCHES {
                    let [off, on] = self.spent_ns;
                    self.phase = Phase::Settled { on: on < off, tokens: 0 };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Tokens that take `off` or `on` milliseconds; how many of the last `count` ran with reading ahead.
    fn run(judge: &mut Judge, count: u32, clock: &mut Instant, off: u64, on: u64) -> u32 {
        let mut ran_on = 0;
        for _ in 0..count {
            judge.token(*clock);
            ran_on += u32::from(judge.is_on());
            *clock += Duration::from_millis(if judge.is_on() { on } else { off });
        }
        ran_on
    }

    #[test]
    fn keeps_what_is_faster() {
        let trial = STRETCH_TOKENS * STRETCHES;
        for (off, on, expected) in [(10, 8, SETTLED_TOKENS), (10, 12, 0), (10, 10, 0)] {
            let (mut judge, mut clock) = (Judge::default(), Instant::now());
            assert_eq!(run(&mut judge, trial, &mut clock, off, on), trial / 2, "half of a trial");
            assert_eq!(run(&mut judge, SETTLED_TOKENS, &mut clock, off, on), expected, "{off} {on}");
            // The world may have changed since.
            run(&mut judge, trial, &mut clock, on, off);
            let turned = if off == on { 0 } else { SETTLED_TOKENS - expected };
            assert_eq!(run(&mut judge, SETTLED_TOKENS, &mut clock, on, off), turned);
        }
    }

    #[test]
    fn a_prompt_is_not_a_slow_token() {
        let (mut judge, mut clock) = (Judge::default(), Instant::now());
        run(&mut judge, STRETCH_TOKENS + 2, &mut clock, 10, 5);
        judge.token(clock);
        judge.pause();
        clock += Duration::from_secs(100);
        run(&mut judge, STRETCH_TOKENS * STRETCHES, &mut clock, 10, 5);
        assert!(judge.is_on());
    }
}
