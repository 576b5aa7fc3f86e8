//! Choosing the next token from logits.
//!
//! One stage per file, in llama.cpp's order: repetition penalty, top-k, top-p, min-p, temperature, draw. A
//! temperature of zero takes the best token after the penalty. The choice depends on the logits, the options and the
//! seed alone; equal logits rank by ascending id. Nothing allocates after construction.

mod candidates;
mod draw;
mod min_p;
mod penalties;
mod rng;
mod temperature;
mod top_k;
mod top_p;

use serde::{Deserialize, Serialize};

pub use rng::Rng;

use crate::Error;
use candidates::Candidates;
use penalties::Seen;

/// How to choose. The default is llama.cpp's: temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, no penalty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingOptions {
    /// Divides the logits before the draw; 0 always takes the best token.
    pub temperature: f32,
    /// Keep this many best tokens; 0 is off.
    pub top_k: u32,
    /// Keep the best tokens that reach this probability together; 1 is off.
    pub top_p: f32,
    /// Keep tokens at least this many times as likely as the best; 0 is off.
    pub min_p: f32,
    /// Above 1, tokens of the last `repetition_window` become less likely; 1 is off, below 1 more likely.
    pub repetition_penalty: f32,
    /// How many of the latest tokens the penalty looks at; 0 is off.
    pub repetition_window: u32,
    /// Determines the draws.
    pub seed: u64,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repetition_penalty: 1.0,
            repetition_window: 64,
            seed: 0,
        }
    }
}

impl SamplingOptions {
    /// Always the best token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether every option is in its range.
    pub fn validate(&self) -> Result<(), Error> {
        let in_0_1 = |value: f32| (0.0..=1.0).contains(&value);
        let checks = [
            ("temperature", self.temperature, (0.0..=100.0).contains(&self.temperature), "between 0 and 100"),
            ("top_p", self.top_p, in_0_1(self.top_p) && self.top_p > 0.0, "above 0 and at most 1"),
            ("min_p", self.min_p, in_0_1(self.min_p), "between 0 and 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                (0.01..=100.0).contains(&self.repetition_penalty),
                "between 0.01 and 100",
            ),
        ];
        for (option, value, ok, range) in checks {
            if !ok {
                return Err(Error::Option { option, value: value.to_string(), range });
            }
        }
        Ok(())
    }
}

/// Chooses tokens, one call each.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplingOptions,
    n_vocab: usize,
    rng: Rng,
    candidates: Candidates,
    seen: Seen,
}

impl Sampler {
    /// A sampler for logits of `n_vocab` tokens. Errors name the option that is out of range.
    pub fn new(options: &SamplingOptions, n_vocab: usize) -> Result<Self, Error> {
        options.validate()?;
        Ok(Self {
            rng: Rng::new(options.seed),
            options: options.clone(),
            n_vocab,
            candidates: Candidates::with_capacity(n_vocab),
            seen: Seen::new(n_vocab),
        })
    }

    /// The options it was made with.
    pub fn options(&self) -> &SamplingOptions {
        &self.options
    }

    /// Chooses a token, given what was generated lately (oldest first; ids outside the vocabulary are ignored).
    ///
    /// Logits that are NaN or minus infinity are never chosen; if no other is left, the answer is token 0. Callers
    /// that would rather stop there use [`Sampler::try_sample`].
    ///
    /// # Panics
    /// If `logits` has not the length that the sampler was made for.
    pub fn sample(&mut self, logits: &[f32], recent: &[u32]) -> u32 {
        self.candidates_of(logits);
        self.choose(recent).unwrap_or(0)
    }

    /// As [`Sampler::sample`], but any NaN, and logits that leave no choice, are an error: the computation behind
    /// them is broken.
    ///
    /// # Panics
    /// If `logits` has not the length that the sampler was made for.
    pub fn try_sample(&mut self, logits: &[f32], recent: &[u32]) -> Result<u32, Error> {
        let nan = self.candidates_of(logits);
        let usable = self.candidates.len();
        if nan > 0 || usable == 0 {
            return Err(Error::BrokenLogits { nan, usable, n_vocab: self.n_vocab });
        }
        Ok(self.choose(recent).unwrap_or(0))
    }

    fn candidates_of(&mut self, logits: &[f32]) -> usize {
        assert_eq!(logits.len(), self.n_vocab, "logits for another vocabulary");
        self.candidates.fill(logits)
    }

    fn choose(&mut self, recent: &[u32]) -> Option<u32> {
        let options = &self.options;
        let candidates = &mut self.candidates;
        let window = recent.len().min(options.repetition_window as usize);
        if options.repetition_penalty != 1.0 {
            let recent = &recent[recent.len() - window..];
            penalties::apply(candidates, &mut self.seen, recent, options.repetition_penalty);
        }
        if options.temperature == 0.0 {
            return candidates.best().map(|best| best.id);
        }
        if options.top_k > 0 {
            top_k::apply(candidates, options.top_k as usize);
        }
        if options.top_p < 1.0 {
            top_p::apply(candidates, options.top_p);
        }
        if options.min_p > 0.0 {
            min_p::apply(candidates, options.min_p);
        }
        if options.temperature != 1.0 {
            temperature::apply(candidates, options.temperature);
        }
        draw::apply(candidates, &mut self.rng)
    }
}
