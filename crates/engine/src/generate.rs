//! The decode loop: prompt, then one token at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use text::{Sampler, SamplingOptions};

use crate::backend::PartTimes;
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
    /// Prompt tokens after which the sequence is saved ([`Engine::save`]): as much of it as will come again. Nothing happens with
    /// models that can come back to every position.
    pub save_after: Option<usize>,
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

/// What happens while a generation runs.
#[derive(Debug, Clone, Copy)]
pub enum Event {
    /// A layer of the prompt is done.
    Prompt(PromptProgress),
    /// A token that is not an end token.
    Token(u32),
}

/// How far a prompt has come.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct PromptProgress {
    /// Tokens of the batches that are through all layers.
    pub tokens_done: usize,
    /// Tokens in the batch that runs.
    pub tokens_running: usize,
    /// Tokens of the prompt.
    pub tokens_total: usize,
    /// Layers that the running batch is through.
    pub layers_done: usize,
    /// Layers of the model.
    pub layers_total: usize,
    /// Time since the prompt began.
    pub elapsed_ns: u64,
    /// Expert bytes read since then.
    pub bytes_read: u64,
    /// Experts that tokens have asked for, and how many different ones per call that were: their ratio is how often a read was shared.
    pub refs: u64,
    /// See `refs`.
    pub unique: u64,
}

impl PromptProgress {
    /// Token-layers done of all, 0 to 1.
    pub fn share(&self) -> f64 {
        let running = self.tokens_running as f64 * self.layers_done as f64 / self.layers_total.max(1) as f64;
        (self.tokens_done as f64 + running) / self.tokens_total.max(1) as f64
    }
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
    /// Where the prompt's time went.
    pub prompt: Phase,
    /// Where the time of the generated tokens' passes went.
    pub decode: Phase,
}

/// What happened during a part of a generation.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct Phase {
    /// Computing, by kind of operation. What is missing to the whole is waiting for reads ([`experts::Counters::stall_ns`]) and the
    /// little that lies between operations.
    pub parts: PartTimes,
    /// What the bank counted.
    pub experts: experts::Counters,
}

impl Phase {
    fn since(self, before: Phase) -> Phase {
        Phase { parts: self.parts.since(before.parts), experts: self.experts.since(&before.experts) }
    }
}

impl Engine {
    /// Runs `prompt`, then samples until something ends it. `on_event` hears of every layer of the prompt and of every token.
    ///
    /// The prompt must not be empty. `stop` is looked at between the layers of a prompt and between tokens.
    pub fn generate(
        &mut self,
        sequence: &mut Sequence,
        prompt: &[u32],
        options: &GenerateOptions,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(Event),
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

        let (begun, before) = (Instant::now(), self.phase());
        let save_after = options.save_after.filter(|_| sequence.carries_state());
        let interrupted = self.run_prompt(sequence, prompt, save_after, stop, &mut logits, on_event)?;
        let mut generation = Generation {
            tokens: Vec::with_capacity(max_tokens.min(room + 1)),
            finish: if interrupted { Finish::Interrupted } else { Finish::Length },
            prompt_tokens: prompt.len(),
            prompt_ns: begun.elapsed().as_nanos() as u64,
            decode_ns: 0,
            decode_passes: 0,
            prompt: self.phase().since(before),
            decode: Phase::default(),
        };
        let before = self.phase();
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
            on_event(Event::Token(token));
            if generation.tokens.len() == max_tokens {
                break;
            }
            if stop.load(Ordering::Relaxed) {
                generation.finish = Finish::Interrupted;
                return Ok(generation);
            }
            let pass = Instant::now();
            let mut keep = |_, row: &[f32]| logits.copy_from_slice(row);
            self.batch(sequence, &[token], Want::Last, &mut keep, None)?;
            generation.decode_ns += pass.elapsed().as_nanos() as u64;
            generation.decode_passes += 1;
            generation.decode = self.phase().since(before);
        }
        if options.max_tokens.is_none_or(|n| n > max_tokens) {
            generation.finish = Finish::Context;
        }
        Ok(generation)
    }

    /// Everything that is counted, so far.
    fn phase(&self) -> Phase {
        Phase {
            parts: self.parts(),
            experts: self.bank_stats().map(experts::Stats::total).unwrap_or_default(),
        }
    }

    /// True when `stop` was raised before the prompt was through.
    fn run_prompt(
        &mut self,
        sequence: &mut Sequence,
        prompt: &[u32],
        save_after: Option<usize>,
        stop: &AtomicBool,
        logits: &mut [f32],
        on_event: &mut dyn FnMut(Event),
    ) -> Result<bool, Error> {
        let [batch, _] = self.options().rows(self.model().context);
        let (begun, before) =
            (Instant::now(), self.bank_stats().map(experts::Stats::total).unwrap_or_default());
        let mut progress = PromptProgress {
            tokens_total: prompt.len(),
            layers_total: self.model().n_layers as usize,
            ..PromptProgress::default()
        };
        while progress.tokens_done < prompt.len() {
            if stop.load(Ordering::Relaxed) {
                return Ok(true);
            }
            let chunk = next_chunk(prompt, progress.tokens_done, batch, save_after);
            let last = progress.tokens_done + chunk.len() == prompt.len();
            progress.tokens_running = chunk.len();
            let mut watch = |layer: usize, counters: experts::Counters| {
                progress.layers_done = layer + 1;
                progress.elapsed_ns = begun.elapsed().as_nanos() as u64;
                progress.bytes_read = counters.bytes_read - before.bytes_read;
                progress.refs = counters.refs - before.refs;
                progress.unique = counters.unique - before.unique;
                on_event(Event::Prompt(progress));
                !stop.load(Ordering::Relaxed)
            };
            let want = if last { Want::Last } else { Want::None };
            match self.batch(
                sequence,
                chunk,
                want,
                &mut |_, row| logits.copy_from_slice(row),
                Some(&mut watch),
            ) {
                Ok(()) => {}
                // Between two layers; the sequence is where it was before this batch.
                Err(Error::Interrupted) => return Ok(true),
                Err(error) => return Err(error),
            }
            progress.tokens_done += chunk.len();
            if save_after == Some(progress.tokens_done) {
                self.save(sequence);
            }
            (progress.tokens_running, progress.layers_done) = (0, 0);
        }
        Ok(false)
    }
}

/// What of the prompt runs next: a batch, which ends where the sequence is to be saved.
fn next_chunk(prompt: &[u32], done: usize, batch: usize, save_after: Option<usize>) -> &[u32] {
    let stop = save_after.filter(|&at| at > done).unwrap_or(usize::MAX);
    &prompt[done..prompt.len().min(done + batch).min(stop)]
}
