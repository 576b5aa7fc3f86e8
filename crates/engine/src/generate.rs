//! The decode loop: prompt, then one token at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use text::{Sampler, SamplingOptions};

use crate::{Engine, Error, Sequence, Want};

/// What to generate.
#[derive(Debug, Clone, Default)]
pub struct GenerateOptions {
    /// Tokens at most; `None` = until an end token or the context is full.
    pub max_tokens: Option<usize>,
    /// How tokens are drawn.
    pub sampling: SamplingOptions,
    /// Go on after an end token.
    pub ignore_eos: bool,
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// An end token.
    Stop,
    /// `max_tokens`.
    Length,
    /// The planned context is full.
    Context,
    /// The caller's flag.
    Interrupted,
}

/// What a generation did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Generation {
    /// Generated tokens, the end token included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Prompt tokens run.
    pub prompt_tokens: usize,
    /// Time of the prompt.
    pub prompt_ns: u64,
    /// Time of the generated tokens' passes.
    pub decode_ns: u64,
    /// Passes timed in `decode_ns`.
    pub decode_passes: usize,
    /// The bank's counters since load when the prompt was done: what came later is the generated tokens' own.
    #[serde(skip)]
    pub at_decode: Option<experts::Counters>,
}

impl Engine {
    /// Runs `prompt`, then samples until something ends it. `on_token` sees every token that is not an end token.
    ///
    /// The prompt must not be empty. `stop` is looked at between micro-batches.
    pub fn generate(
        &mut self,
        sequence: &mut Sequence,
        prompt: &[u32],
        options: &GenerateOptions,
        stop: &AtomicBool,
        on_token: &mut dyn FnMut(u32),
    ) -> Result<Generation, Error> {
        if prompt.is_empty() {
            return Err(Error::Option { option: "prompt", why: "it holds no token".into() });
        }
        self.check_tokens(sequence, prompt)?;
        let n_vocab = self.model().n_vocab as usize;
        let room = self.model().context as usize - sequence.len() - prompt.len();
        // One more token than there is room for can be sampled: the last one is never run.
        let max_tokens = options.max_tokens.unwrap_or(usize::MAX).min(room + 1);
        let mut sampler = Sampler::new(&options.sampling, n_vocab)?;
        let mut logits = vec![0.0; n_vocab];
        // Everything the penalties may look at, with room for what will be generated: the loop allocates nothing.
        let mut history = Vec::with_capacity(prompt.len() + max_tokens.min(room + 1));
        history.extend_from_slice(prompt);

        let begun = Instant::now();
        let interrupted = self.run_prompt(sequence, prompt, stop, &mut logits)?;
        let mut generation = Generation {
            tokens: Vec::with_capacity(max_tokens.min(room + 1)),
            finish: if interrupted { Finish::Interrupted } else { Finish::Length },
            prompt_tokens: prompt.len(),
            prompt_ns: begun.elapsed().as_nanos() as u64,
            decode_ns: 0,
            decode_passes: 0,
            at_decode: self.bank_stats().map(experts::Stats::total),
        };
        if interrupted {
            return Ok(generation);
        }
        while generation.tokens.len() < max_tokens {
            let token = sampler.try_sample(&logits, &history)?;
            generation.tokens.push(token);
            history.push(token);
            if !options.ignore_eos && self.tokenizer().is_some_and(|t| t.is_end(token)) {
                generation.finish = Finish::Stop;
                return Ok(generation);
            }
            on_token(token);
            if generation.tokens.len() == max_tokens {
                break;
            }
            if stop.load(Ordering::Relaxed) {
                generation.finish = Finish::Interrupted;
                return Ok(generation);
            }
            let pass = Instant::now();
            self.micro_batch(sequence, &[token], Want::Last, &mut |_, row| logits.copy_from_slice(row))?;
            generation.decode_ns += pass.elapsed().as_nanos() as u64;
            generation.decode_passes += 1;
        }
        if options.max_tokens.is_none_or(|n| n > max_tokens) {
            generation.finish = Finish::Context;
        }
        Ok(generation)
    }

    /// True when `stop` was raised before the prompt was through.
    fn run_prompt(
        &mut self,
        sequence: &mut Sequence,
        prompt: &[u32],
        stop: &AtomicBool,
        logits: &mut [f32],
    ) -> Result<bool, Error> {
        let ubatch = self.options().ubatch as usize;
        let mut done = 0;
        for chunk in prompt.chunks(ubatch) {
            if stop.load(Ordering::Relaxed) {
                return Ok(true);
            }
            done += chunk.len();
            let want = if done == prompt.len() { Want::Last } else { Want::None };
            self.micro_batch(sequence, chunk, want, &mut |_, row| logits.copy_from_slice(row))?;
        }
        Ok(false)
    }
}
