//! Where routing comes from: token embeddings on a ring, routers that read them, and the bias that makes some experts
//! popular. Everything is in the file, so every engine routes the same.
//!
//! The residual stream is cut in two halves. The **signal** half of token `v` is a walk around the ring of ordinary ids,
//! `sqrt(1 − noise²)·walk(v) + noise·white(v)`, where `walk` forgets with a length of `drift` tokens: neighbours on the ring
//! look alike. Layers hardly write there. The **work** half is cut into slices; layer `l` writes into slice `l mod n`, and
//! the router of layer `l + 1` reads the signal half and that slice, the slice with the share `mixing` of a logit's standard
//! deviation. So a router that is applied one layer too early sees everything but what that layer will add.
//!
//! Row `v` of the output head is the signal of the token before `v`: greedy decoding walks the ring, one id per step.

use std::io::{self, Write};
use std::ops::Range;

use kernels::Quantize;

use super::random::Stream;
use super::shape::{Knobs, Shape};

/// Deviation of an embedding's work half; the signal half has 1.
const WORK: f32 = 0.3;
/// Logit of the next token on the ring above that of a far one.
const STEP_LOGIT: f32 = 12.0;
/// Deviation of what the head sees of a work half that all layers have written into, in logits. Small beside the step from
/// one id to the next, or greedy decoding would stumble and stay where it is.
const WORK_LOGIT: f32 = 0.5;

/// Size of the signal half: the first this many channels.
pub(super) fn signal(n_embd: u64) -> u64 {
    n_embd / 2
}

/// Channels into which layer `layer` writes.
pub(super) fn slice(shape: &Shape, layer: u64) -> Range<u64> {
    let first = signal(shape.n_embd);
    let work = shape.n_embd - first;
    let n = shape.layers.max(8).min(work / 8).max(1);
    let width = work / n;
    let start = first + (layer % n) * width;
    start..start + width
}

/// Source of embeddings, head, routers and biases.
pub(super) struct Ring<'a> {
    shape: &'a Shape,
    knobs: Knobs,
    seed: u64,
    /// Ordinary ids, in the order of the walk.
    pub(super) ids: Range<u64>,
}

impl<'a> Ring<'a> {
    pub(super) fn new(shape: &'a Shape, knobs: Knobs, seed: u64, ids: Range<u64>) -> Self {
        Self { shape, knobs, seed, ids }
    }

    fn len(&self) -> u64 {
        self.ids.end - self.ids.start
    }

    /// Rows of the embedding table (`head` false) or of the output head, encoded by `quantize` into `row_bytes` each.
    pub(super) fn write_table(
        &self,
        head: bool,
        quantize: Quantize,
        row_bytes: usize,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let (n, vocab) = (self.shape.n_embd, self.shape.vocab);
        let work = Stream::new(self.seed, if head { "output work" } else { "token_embd work" });
        let mut bytes = vec![0u8; row_bytes];
        let mut row = vec![0.0f32; n as usize];
        let mut walk = Walk::new(self, if head { self.len() - 1 } else { 0 });
        let signal_n = signal(n) as usize;
        let head_signal = STEP_LOGIT / signal_n as f32;
        let head_work = WORK_LOGIT / (n as f32 - signal_n as f32).sqrt();
        for v in 0..vocab {
            let numbers = |i: usize| v * n + i as u64;
            if !self.ids.contains(&v) {
                // Bytes and special tokens: an embedding of their own, and never the likeliest.
                let scale = if head { 0.0 } else { 1.0 };
                row.iter_mut().enumerate().for_each(|(i, x)| *x = scale * work.normal(numbers(i)));
            } else {
                walk.signal(&mut row[..signal_n]);
                walk.step();
                let scale = if head { head_work } else { WORK };
                if head {
                    row[..signal_n].iter_mut().for_each(|x| *x *= head_signal);
                }
                for (i, x) in row.iter_mut().enumerate().skip(signal_n) {
                    *x = scale * work.normal(numbers(i));
                }
            }
            quantize(&row, &mut bytes);
            out.write_all(&bytes)?;
        }
        Ok(())
    }

    /// `ffn_gate_inp` of a layer, `[n_experts, n_embd]` f32.
    pub(super) fn write_router(&self, layer: u64, out: &mut dyn Write) -> io::Result<()> {
        let stream = Stream::new(self.seed, &format!("blk.{layer}.ffn_gate_inp.weight"));
        let (n, signal_n) = (self.shape.n_embd, signal(self.shape.n_embd));
        let mixing = if layer == 0 { 0.0 } else { self.knobs.mixing };
        let read = if layer == 0 { 0..0 } else { slice(self.shape, layer - 1) };
        let from_signal = (1.0 - mixing * mixing).sqrt() / (signal_n as f32).sqrt();
        let from_slice = mixing / ((read.end - read.start).max(1) as f32).sqrt();
        let mut row = Vec::with_capacity(4 * n as usize);
        for e in 0..self.shape.n_experts {
            row.clear();
            for i in 0..n {
                let scale = if i < signal_n {
                    from_signal
                } else if read.contains(&i) {
                    from_slice
                } else {
                    0.0
                };
                row.extend_from_slice(&(scale * stream.normal(e * n + i)).to_le_bytes());
            }
            out.write_all(&row)?;
        }
        Ok(())
    }

    /// `exp_probs_b` of a layer: falls with the logarithm of an expert's rank, as the log of Zipf's law does; ranks are dealt
    /// anew in each layer.
    pub(super) fn bias(&self, layer: u64) -> Vec<f32> {
        let stream = Stream::new(self.seed, &format!("blk.{layer}.exp_probs_b.bias"));
        let n = self.shape.n_experts;
        let mut order: Vec<u64> = (0..n).collect();
        order.sort_by_key(|&e| stream.bits(e));
        let mut bias = vec![0.0; n as usize];
        for (rank, &e) in order.iter().enumerate() {
            let log = ((rank + 1) as f32).ln() / (n.max(2) as f32).ln();
            bias[e as usize] = self.knobs.skew * (1.0 - log);
        }
        bias
    }
}

/// A first-order autoregression along the ring, closed: the state at an id depends on the noise of the ids before it,
/// across the seam, and not on where the walk began.
struct Walk<'a> {
    ring: &'a Ring<'a>,
    steps: Stream,
    white: Stream,
    /// Place on the ring.
    at: u64,
    keep: f32,
    state: Vec<f32>,
}

impl<'a> Walk<'a> {
    /// Standing at place `at`.
    fn new(ring: &'a Ring<'a>, at: u64) -> Self {
        let keep = (-1.0 / ring.knobs.drift).exp();
        let n = signal(ring.shape.n_embd) as usize;
        let mut walk = Walk {
            ring,
            steps: Stream::new(ring.seed, "ring walk"),
            white: Stream::new(ring.seed, "ring white"),
            at,
            keep,
            state: vec![0.0; n],
        };
        // What is older than twelve lengths has faded below the rounding of any stored embedding.
        let run_up = ((12.0 * ring.knobs.drift).ceil() as u64).max(1);
        let len = ring.len();
        walk.at = (at + len - run_up % len) % len;
        for _ in 0..run_up {
            walk.step();
        }
        walk
    }

    fn step(&mut self) {
        self.at = (self.at + 1) % self.ring.len();
        let n = self.state.len() as u64;
        let (keep, add) = (self.keep, (1.0 - self.keep * self.keep).sqrt());
        for (i, x) in (0..n).zip(&mut self.state) {
            *x = keep * *x + add * self.steps.normal(self.at * n + i);
        }
    }

    /// The signal half of the token at this place.
    fn signal(&self, out: &mut [f32]) {
        let noise = self.ring.knobs.noise;
        let n = self.state.len() as u64;
        let slow = (1.0 - noise * noise).sqrt();
        for ((i, x), s) in (0..n).zip(out).zip(&self.state) {
            *x = slow * s + noise * self.white.normal(self.at * n + i);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knobs() -> Knobs {
        Knobs { skew: 0.2, drift: 10.0, noise: 0.5, mixing: 0.3 }
    }

    #[test]
    fn the_walk_is_closed_and_forgets_as_told() {
        let shape = Shape { n_embd: 4096, ..Shape::tiny() };
        let ring = Ring::new(&shape, knobs(), 1, 256..756);
        let at = |place| {
            let mut out = vec![0.0; 2048];
            Walk::new(&ring, place).signal(&mut out);
            out
        };
        let cos = |a: &[f32], b: &[f32]| {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        // Walking to a place and starting there are the same.
        let mut walk = Walk::new(&ring, 495);
        (0..10).for_each(|_| walk.step());
        let mut walked = vec![0.0; 2048];
        walk.signal(&mut walked);
        let started = at(5);
        assert!(cos(&walked, &started) > 0.999_99);
        // Neighbours, across the seam too: 0.75·exp(-1/10).
        for (a, b) in [(100, 101), (499, 0)] {
            let c = cos(&at(a), &at(b));
            assert!((c - 0.68).abs() < 0.06, "{c}");
        }
        assert!(cos(&at(0), &at(250)).abs() < 0.1);
    }

    #[test]
    fn slices_lie_in_the_work_half() {
        for layers in [1, 3, 7, 79] {
            let shape = Shape { layers, ..Shape::glm52() };
            for layer in 0..layers {
                let slice = slice(&shape, layer);
                assert!(
                    slice.start >= 3072 && slice.end <= 6144 && slice.end - slice.start >= 8,
                    "{slice:?}"
                );
            }
            assert_eq!(slice(&shape, 0).end, slice(&shape, 1).start);
        }
    }

    #[test]
    fn the_bias_is_a_permutation_of_one_curve() {
        let shape = Shape::tiny();
        let ring = Ring::new(&shape, knobs(), 1, 256..499);
        let (mut a, mut b) = (ring.bias(1), ring.bias(2));
        assert_ne!(a, b);
        a.sort_by(f32::total_cmp);
        b.sort_by(f32::total_cmp);
        assert_eq!(a, b);
        assert_eq!(a.last(), Some(&0.2));
    }
}
