//! The gated delta rule: a head keeps a matrix that maps keys to values, lets it fade, and corrects it by each token.
//!
//! Per token, with key `k`, query `q` and value `v`: `S ← decay · S + (β (v − decay · S k)) kᵀ`, then `o = S q`. Row `j` of `S` belongs
//! to element `j` of the values and meets no other row, so rows are the unit of work.
//!
//! **One form for one token and for many.** The textbook form for prompts (chunks of 64 tokens, a triangular system per chunk) turns
//! the recurrence into matrix products, because hardware with little memory near its arithmetic cannot hold `S` between tokens. Here two
//! rows of `S` (1 KiB) stay in the first-level cache while all tokens of a block pass over them, and that costs as many operations per
//! token (4 per element of `S`) as the chunked form at this chunk length does; `examples/delta_forms.rs` measures both. Since the
//! recurrence needs no second form, what a token does to the state depends on nothing but the state and the token: the result is
//! the same, bit for bit, however tokens are cut into calls.
//!
//! Canonical order, per row and token: both dots over the old row as [`dot`](super::dot) takes them; `u = β (v − decay · S k)`;
//! `o = (k · q) u + decay · S q`, which is `S q` of the new row; then the row, each element fused.

use super::dot::dot_body;
use super::exp;

/// What the tokens of a block bring along.
#[derive(Clone, Copy)]
pub struct DeltaTokens<'a> {
    /// Key, then query of each token `[tokens, 2, width]`.
    pub pairs: &'a [f32],
    /// Their dot products `[tokens]`.
    pub overlaps: &'a [f32],
    /// What is left of the state `[tokens]`.
    pub decays: &'a [f32],
    /// How much of the error is corrected `[tokens]`.
    pub betas: &'a [f32],
}

/// Passes over some rows of a state `[rows, width]` with all tokens. `values[t * pitch + j]` is the value of token `t` for row `j`
/// and becomes its output.
///
/// # Panics
/// The lengths do not fit each other.
pub fn delta_rows(tokens: &DeltaTokens<'_>, state: &mut [f32], values: &mut [f32], pitch: usize) {
    let n = tokens.decays.len();
    if n == 0 {
        return;
    }
    let width = tokens.pairs.len() / (2 * n);
    assert!(width > 0 && tokens.pairs.len() == 2 * n * width, "keys and queries of a block");
    assert!(tokens.overlaps.len() == n && tokens.betas.len() == n, "tokens of a block");
    let rows = state.len() / width;
    assert!(state.len() == rows * width && rows <= pitch, "rows of a state");
    assert!(values.len() >= (n - 1) * pitch + rows, "values of a block");
    #[cfg(target_arch = "x86_64")]
    if width.is_multiple_of(16) && matches!(crate::Isa::current(), crate::Isa::Avx2 | crate::Isa::Avx512) {
        // SAFETY: Isa::current only names an instruction set that this processor has; lengths are checked above.
        return unsafe { super::x86_delta::delta_rows(tokens, width, state, values, pitch) };
    }
    delta_rows_scalar(tokens, width, state, values, pitch);
}

fused! {
    fn delta_rows_scalar(
        tokens: &DeltaTokens<'_>,
        width: usize,
        state: &mut [f32],
        values: &mut [f32],
        pitch: usize,
    ) {
        for (j, row) in state.chunks_exact_mut(width).enumerate() {
            for (t, pair) in tokens.pairs.chunks_exact(2 * width).enumerate() {
                let (key, query) = pair.split_at(width);
                let (decay, value) = (tokens.decays[t], &mut values[t * pitch + j]);
                let u = tokens.betas[t] * (*value - decay * dot_body(row, key));
                *value = tokens.overlaps[t].mul_add(u, decay * dot_body(row, query));
                row.iter_mut().zip(key).for_each(|(s, k)| *s = k.mul_add(u, decay * *s));
            }
        }
    }
}

/// `ln(1 + e^x)`, without overflow: `max(x, 0) + ln(1 + y)` with `y = e^−|x|`, the logarithm as `2 artanh(y / (2 + y))`.
#[inline(always)]
fn softplus(x: f32) -> f32 {
    let y = exp(-x.abs());
    let z = y / (2.0 + y);
    let w = z * z; // at most 1/9: eight terms leave 2e-9
    let mut p = 1.0 / 15.0;
    for odd in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        p = p * w + 1.0 / odd;
    }
    let positive = if x > 0.0 { x } else { 0.0 };
    positive + 2.0 * z * p
}

vectorized! {
    /// `x = e^(rate · softplus(x + bias))`, in place: how much of a head's state a token leaves. Rates are negative.
    pub fn delta_decay(x: &mut [f32], bias: f32, rate: f32) {
        x.iter_mut().for_each(|x| *x = exp(rate * softplus(*x + bias)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, floats};
    use super::super::{dot, l2_norm};
    use super::*;

    struct Case {
        width: usize,
        rows: usize,
        pairs: Vec<f32>,
        overlaps: Vec<f32>,
        decays: Vec<f32>,
        betas: Vec<f32>,
        values: Vec<f32>, // [tokens, rows]
        state: Vec<f32>,
    }

    impl Case {
        fn new(width: usize, rows: usize, n: usize, seed: u64) -> Self {
            let mut pairs = floats(2 * n * width, seed, 1.0);
            pairs.chunks_exact_mut(width).for_each(|x| l2_norm(x, 1e-6, 1.0));
            let overlaps =
                pairs.chunks_exact(2 * width).map(|pair| dot(&pair[..width], &pair[width..])).collect();
            let unit = |seed: u64, from: f32| {
                floats(n, seed, (1.0 - from) / 2.0).iter().map(|x| x + (1.0 + from) / 2.0).collect()
            };
            Self {
                width,
                rows,
                pairs,
                overlaps,
                decays: unit(seed + 1, 0.6),
                betas: unit(seed + 2, 0.0),
                values: floats(n * rows, seed + 3, 2.0),
                state: floats(rows * width, seed + 4, 0.5),
            }
        }

        fn tokens(&self, range: std::ops::Range<usize>) -> DeltaTokens<'_> {
            DeltaTokens {
                pairs: &self.pairs[2 * range.start * self.width..2 * range.end * self.width],
                overlaps: &self.overlaps[range.clone()],
                decays: &self.decays[range.clone()],
                betas: &self.betas[range],
            }
        }

        /// Outputs and the state afterwards, with tokens in blocks of `block`.
        fn run(&self, block: usize) -> (Vec<f32>, Vec<f32>) {
            let (mut values, mut state) = (self.values.clone(), self.state.clone());
            let n = self.decays.len();
            for first in (0..n).step_by(block) {
                let range = first..n.min(first + block);
                let own = &mut values[range.start * self.rows..range.end * self.rows];
                delta_rows(&self.tokens(range), &mut state, own, self.rows);
            }
            (values, state)
        }

        /// The definition, step by step, in f64.
        fn plain(&self) -> (Vec<f64>, Vec<f64>) {
            let mut state: Vec<f64> = self.state.iter().map(|s| f64::from(*s)).collect();
            let mut outputs = Vec::new();
            for (t, pair) in self.pairs.chunks_exact(2 * self.width).enumerate() {
                let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
                let (key, query) = (wide(&pair[..self.width]), wide(&pair[self.width..]));
                for (j, row) in state.chunks_exact_mut(self.width).enumerate() {
                    row.iter_mut().for_each(|s| *s *= f64::from(self.decays[t]));
                    let held: f64 = row.iter().zip(&key).map(|(s, k)| s * k).sum();
                    let u = f64::from(self.betas[t]) * (f64::from(self.values[t * self.rows + j]) - held);
                    row.iter_mut().zip(&key).for_each(|(s, k)| *s += k * u);
                    outputs.push(row.iter().zip(&query).map(|(s, q)| s * q).sum());
                }
            }
            (outputs, state)
        }
    }

    fn cases() -> Vec<Case> {
        let shapes = [(16, 16, 1), (32, 5, 70), (128, 128, 9), (20, 3, 33), (64, 1, 130), (8, 8, 4)];
        shapes.iter().zip(0..).map(|(&(w, r, n), seed)| Case::new(w, r, n, 700 + 10 * seed)).collect()
    }

    #[test]
    fn is_the_recurrence() {
        for case in cases() {
            let (outputs, state) = case.run(1);
            let (want, want_state) = case.plain();
            assert_close(&outputs, &want, 2e-6);
            assert_close(&state, &want_state, 2e-6);
        }
    }

    /// How tokens are cut into blocks, and rows into pieces, changes nothing.
    #[test]
    fn blocks_and_pieces_change_no_bit() {
        for case in cases() {
            let whole = case.run(case.decays.len());
            for block in [1, 3, 16, 64] {
                assert!(case.run(block) == whole, "blocks of {block}");
            }
            let (mut values, mut state) = (case.values.clone(), case.state.clone());
            for (j, row) in state.chunks_exact_mut(case.width).enumerate() {
                delta_rows(&case.tokens(0..case.decays.len()), row, &mut values[j..], case.rows);
            }
            assert!((values, state) == whole, "row by row");
        }
    }

    #[test]
    fn the_scalar_loop_agrees_bit_for_bit() {
        for case in cases() {
            let (mut values, mut state) = (case.values.clone(), case.state.clone());
            let tokens = case.tokens(0..case.decays.len());
            delta_rows_scalar(&tokens, case.width, &mut state, &mut values, case.rows);
            assert!((values, state) == case.run(case.decays.len()));
        }
    }

    #[test]
    fn the_decay_matches_f64() {
        for (bias, rate) in [(0.0, -1.0), (3.5, -16.0), (-20.0, -0.01), (40.0, -2.0)] {
            let x = floats(65, 31, 12.0);
            let mut got = x.clone();
            delta_decay(&mut got, bias, rate);
            for (x, got) in x.iter().zip(&got) {
                // Of the sum as f32 has it: its rounding is not the kernel's.
                let want = (f64::from(rate) * f64::from(x + bias).exp().ln_1p()).exp();
                assert!(
                    (f64::from(*got) - want).abs() <= 4e-6 * want.max(1e-2),
                    "{x}, {bias}, {rate}: {got} {want}"
                );
            }
        }
    }

    #[test]
    fn softplus_keeps_its_relative_accuracy() {
        for i in -8000..8000 {
            let x = i as f32 * 0.01;
            let want = if x > 30.0 { f64::from(x) } else { f64::from(x).exp().ln_1p() };
            assert!((f64::from(softplus(x)) - want).abs() <= 4e-7 * want, "{x}: {} {want}", softplus(x));
        }
        assert_eq!(softplus(200.0), 200.0);
        assert_eq!(softplus(-200.0), 0.0);
        assert!(softplus(f32::NAN).is_nan());
    }
}
