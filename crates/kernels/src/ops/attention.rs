//! Softmax attention of several heads over shared cached rows, one chunk of rows after the other.
//!
//! All heads of a token read the same rows, so a chunk is decoded once and then used for the scores and the values of every
//! head. A head carries a running softmax from chunk to chunk: the largest score so far, the sum of exponentials and the weighted
//! values, both relative to it.
//!
//! Canonical order, per head and independent of the other heads: chunks of [`ATTENTION_CHUNK`] rows, counted from the head's first
//! row over latents and from position 0 over keys and values; a score is [`dot`](super::dot) times the scale; values are added row by row, fused; exponentials are summed over
//! sixteen lanes inside a chunk, and chunk by chunk.

use super::dot::{dot_body, sum_body};
use super::exp;

/// Rows of a chunk: their floats (110 KiB at a width of 576) stay in the second-level cache while all heads pass over them.
pub const ATTENTION_CHUNK: usize = 48;

/// Elements from one decoded row to the next: the width in whole sixteens. What lies behind the width has to be zero.
pub fn padded(width: usize) -> usize {
    width.next_multiple_of(16)
}

/// What the heads carry from chunk to chunk.
pub struct Running<'a> {
    /// Scratch `[heads, ATTENTION_CHUNK]`.
    pub scores: &'a mut [f32],
    /// Largest score so far `[heads]`; −∞ before the first chunk.
    pub maxima: &'a mut [f32],
    /// Sums of exponentials `[heads]`; 0 before the first chunk.
    pub sums: &'a mut [f32],
    /// Weighted values `[heads, latent]`; 0 before the first chunk.
    pub values: &'a mut [f32],
}

impl Running<'_> {
    /// Makes ready for the first chunk.
    pub fn begin(&mut self) {
        self.maxima.fill(f32::NEG_INFINITY);
        self.sums.fill(0.0);
        self.values.fill(0.0);
    }

    /// The same where each head has a score `[heads]` that takes its share of the softmax and adds nothing.
    ///
    /// # Panics
    /// There is not one score per head.
    pub fn begin_with_sinks(&mut self, sinks: &[f32]) {
        self.maxima.copy_from_slice(sinks);
        self.sums.fill(1.0);
        self.values.fill(0.0);
    }
}

/// Decoded rows: keys to score against and values to add up, which may be the same rows.
#[derive(Clone, Copy)]
pub struct Chunk<'a> {
    /// `[n_rows, padded(width)]`, zeros behind the width.
    pub keys: &'a [f32],
    /// Elements of a key.
    pub width: usize,
    /// `[n_rows, pitch]`; each row begins with the value.
    pub values: &'a [f32],
    /// Elements from one row of values to the next.
    pub pitch: usize,
    /// Rows, at most [`ATTENTION_CHUNK`].
    pub n_rows: usize,
}

/// Takes in one chunk: `queries` are `[heads, width]`, and the values are as long as those that the heads carry. Which rows make a
/// chunk is the caller's to keep to: see the canonical order.
///
/// # Panics
/// The lengths do not fit each other, or the chunk is too long.
pub fn attend_chunk(queries: &[f32], chunk: &Chunk<'_>, scale: f32, running: &mut Running<'_>) {
    let Chunk { keys, width, values: rows, pitch, n_rows } = *chunk;
    let heads = running.maxima.len();
    let latent = running.values.len() / heads.max(1);
    assert!(n_rows <= ATTENTION_CHUNK && keys.len() >= n_rows * padded(width), "keys of a chunk");
    assert!(rows.len() >= n_rows * pitch && latent <= pitch, "values of a chunk");
    assert!(queries.len() == heads * width, "queries of a chunk");
    assert!(
        running.sums.len() == heads
            && running.values.len() == heads * latent
            && running.scores.len() == heads * ATTENTION_CHUNK,
        "state of a chunk"
    );
    #[cfg(target_arch = "x86_64")]
    let wide = matches!(crate::Isa::current(), crate::Isa::Avx2 | crate::Isa::Avx512);
    #[cfg(target_arch = "x86_64")]
    if wide {
        // SAFETY: Isa::current only names an instruction set that this processor has; lengths are checked above.
        unsafe { super::x86_attention::scores(queries, width, keys, n_rows, running.scores) };
    } else {
        scores(queries, width, keys, n_rows, running.scores);
    }
    #[cfg(not(target_arch = "x86_64"))]
    scores(queries, width, keys, n_rows, running.scores);
    for h in 0..heads {
        let head = &mut running.scores[h * ATTENTION_CHUNK..][..n_rows];
        let values = &mut running.values[h * latent..][..latent];
        weigh(head, scale, &mut running.maxima[h], &mut running.sums[h], values);
    }
    #[cfg(target_arch = "x86_64")]
    if wide {
        // SAFETY: as above.
        unsafe { super::x86_attention::values(running.scores, rows, pitch, n_rows, latent, running.values) };
        return;
    }
    values(running.scores, rows, pitch, n_rows, latent, running.values);
}

/// Divides the values by the sums of exponentials.
pub fn attend_finish(running: &mut Running<'_>) {
    let latent = running.values.len() / running.sums.len().max(1);
    for (values, sum) in running.values.chunks_exact_mut(latent.max(1)).zip(&*running.sums) {
        values.iter_mut().for_each(|z| *z /= sum);
    }
}

vectorized! {
    /// Turns a head's scores into exponentials relative to the largest score so far, to which it rescales what the head carries.
    fn weigh(scores: &mut [f32], scale: f32, largest: &mut f32, sum: &mut f32, values: &mut [f32]) {
        let mut lanes = [f32::NEG_INFINITY; 16];
        let (blocks, tail) = scores.as_chunks_mut::<16>();
        for x in blocks {
            for i in 0..16 {
                x[i] *= scale;
                lanes[i] = if x[i] > lanes[i] { x[i] } else { lanes[i] };
            }
        }
        tail.iter_mut().for_each(|x| *x *= scale);
        let now = lanes.iter().chain(&*tail).fold(*largest, |a, x| if *x > a { *x } else { a });
        if now > *largest {
            let factor = exp(*largest - now);
            *largest = now;
            *sum *= factor;
            values.iter_mut().for_each(|z| *z *= factor);
        }
        scores.iter_mut().for_each(|x| *x = exp(*x - now));
        *sum += sum_body(scores, |x| x);
    }
}

fused! {
    /// `scores[h, r] = queries[h] · rows[r]`.
    fn scores(queries: &[f32], width: usize, rows: &[f32], n_rows: usize, scores: &mut [f32]) {
        let heads = queries.chunks_exact(width.max(1)).zip(scores.chunks_exact_mut(ATTENTION_CHUNK));
        for (query, scores) in heads {
            let rows = rows.chunks_exact(padded(width)).take(n_rows);
            scores.iter_mut().zip(rows).for_each(|(score, row)| *score = dot_body(query, &row[..width]));
        }
    }
}

fused! {
    /// `values[h] += Σ scores[h, r] · rows[r][..latent]`, row by row.
    fn values(scores: &[f32], rows: &[f32], pitch: usize, n_rows: usize, latent: usize, values: &mut [f32]) {
        let heads = scores.chunks_exact(ATTENTION_CHUNK).zip(values.chunks_exact_mut(latent.max(1)));
        for (weights, values) in heads {
            for (weight, row) in weights.iter().zip(rows.chunks_exact(pitch.max(1))).take(n_rows) {
                values.iter_mut().zip(row).for_each(|(z, x)| *z = weight.mul_add(*x, *z));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, floats};
    use super::super::{axpy, dot};
    use super::*;

    struct Case {
        heads: usize,
        width: usize,
        latent: usize,
        #[cfg_attr(
            not(target_arch = "x86_64"),
            expect(dead_code, reason = "only the comparison with AVX2 asks")
        )]
        n: usize,
        queries: Vec<f32>,
        rows: Vec<f32>, // [n, width]
    }

    impl Case {
        fn new(heads: usize, width: usize, latent: usize, n: usize, seed: u64) -> Self {
            let (queries, rows) = (floats(heads * width, seed, 1.0), floats(n * width, seed + 1, 2.0));
            Self { heads, width, latent, n, queries, rows }
        }

        fn run(&self, heads: std::ops::Range<usize>) -> Vec<f32> {
            let n_heads = heads.len();
            let mut running = Running {
                scores: &mut vec![f32::NAN; n_heads * ATTENTION_CHUNK],
                maxima: &mut vec![f32::NAN; n_heads],
                sums: &mut vec![f32::NAN; n_heads],
                values: &mut vec![f32::NAN; n_heads * self.latent],
            };
            running.begin();
            self.attend(heads, &mut running);
            running.values.to_vec()
        }

        /// Of a softmax that has begun.
        fn attend(&self, heads: std::ops::Range<usize>, running: &mut Running<'_>) {
            for chunk in self.rows.chunks(ATTENTION_CHUNK * self.width) {
                let mut rows = vec![0.0; ATTENTION_CHUNK * padded(self.width)];
                for (to, from) in rows.chunks_exact_mut(padded(self.width)).zip(chunk.chunks(self.width)) {
                    to[..self.width].copy_from_slice(from);
                }
                let queries = &self.queries[heads.start * self.width..heads.end * self.width];
                let chunk = Chunk {
                    keys: &rows,
                    width: self.width,
                    values: &rows,
                    pitch: padded(self.width),
                    n_rows: chunk.len() / self.width,
                };
                attend_chunk(queries, &chunk, SCALE, running);
            }
            attend_finish(running);
        }
    }

    const SCALE: f32 = 0.3;

    fn cases() -> Vec<Case> {
        let shapes = [
            (1, 4, 3, 1),
            (3, 24, 16, 5),
            (4, 40, 32, 48),
            (7, 41, 33, 49),
            (6, 64, 56, 130),
            (9, 576, 512, 101),
        ];
        shapes.iter().zip(0..).map(|(&(h, w, l, n), seed)| Case::new(h, w, l, n, 50 + 2 * seed)).collect()
    }

    #[test]
    fn is_softmax_attention() {
        for case in cases() {
            let got = case.run(0..case.heads);
            let mut want = Vec::new();
            for query in case.queries.chunks(case.width) {
                let rows = || case.rows.chunks(case.width);
                let score = |row: &[f32]| -> f64 {
                    row.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
                        * f64::from(SCALE)
                };
                let scores: Vec<f64> = rows().map(score).collect();
                let largest = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                let z =
                    |i: usize| rows().zip(&weights).map(|(r, w)| w / total * f64::from(r[i])).sum::<f64>();
                want.extend((0..case.latent).map(z));
            }
            assert_close(&got, &want, 1e-5);
        }
    }

    /// The canonical order, spelled out with the one-row operations: neither tiles nor the heads beside it change a result.
    #[test]
    fn equals_one_head_after_the_other_bit_for_bit() {
        for case in cases() {
            let all = case.run(0..case.heads);
            for h in 0..case.heads {
                let query = &case.queries[h * case.width..][..case.width];
                let (mut largest, mut sum, mut z) = (f32::NEG_INFINITY, 0.0, vec![0.0; case.latent]);
                for chunk in case.rows.chunks(ATTENTION_CHUNK * case.width) {
                    let mut s: Vec<f32> = chunk.chunks(case.width).map(|row| dot(query, row)).collect();
                    weigh(&mut s, SCALE, &mut largest, &mut sum, &mut z);
                    for (weight, row) in s.iter().zip(chunk.chunks(case.width)) {
                        axpy(*weight, &row[..case.latent], &mut z);
                    }
                }
                z.iter_mut().for_each(|z| *z /= sum);
                assert_eq!(all[h * case.latent..][..case.latent], z);
                assert_eq!(case.run(h..h + 1), z);
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_scalar_loops_agree_bit_for_bit() {
        for case in cases().into_iter().filter(|c| c.n <= ATTENTION_CHUNK) {
            let pitch = padded(case.width);
            let mut rows = vec![0.0; case.n * pitch];
            for (to, from) in rows.chunks_exact_mut(pitch).zip(case.rows.chunks(case.width)) {
                to[..case.width].copy_from_slice(from);
            }
            let mut s = vec![0.0; case.heads * ATTENTION_CHUNK];
            scores(&case.queries, case.width, &rows, case.n, &mut s);
            let mut z = floats(case.heads * case.latent, 9, 1.0);
            let before = z.clone();
            values(&s, &rows, pitch, case.n, case.latent, &mut z);
            let (mut s_wide, mut z_wide) = (vec![0.0; s.len()], before);
            if crate::Isa::Avx2.is_supported() {
                // SAFETY: just checked.
                unsafe {
                    super::super::x86_attention::scores(
                        &case.queries,
                        case.width,
                        &rows,
                        case.n,
                        &mut s_wide,
                    );
                    super::super::x86_attention::values(&s, &rows, pitch, case.n, case.latent, &mut z_wide);
                }
                assert_eq!(s, s_wide);
                assert_eq!(z, z_wide);
            }
        }
    }

    /// A sink is one more row with the value zero, whose score is not scaled.
    #[test]
    fn a_sink_takes_its_share() {
        let case = Case::new(3, 24, 16, 60, 80);
        let plain = case.run(0..3);
        for sink in [-1e30, -2.0, 0.5, 40.0] {
            let mut running = Running {
                scores: &mut [f32::NAN; 3 * ATTENTION_CHUNK],
                maxima: &mut [f32::NAN; 3],
                sums: &mut [f32::NAN; 3],
                values: &mut [f32::NAN; 48],
            };
            running.begin_with_sinks(&[sink; 3]);
            case.attend(0..3, &mut running);
            let z = running.values.to_vec();
            for h in 0..3 {
                let query = &case.queries[h * 24..][..24];
                let scores = case.rows.chunks(24).map(|row| f64::from(dot(query, row)) * f64::from(SCALE));
                let total: f64 = scores.map(f64::exp).sum();
                let share = total / (total + f64::from(sink).exp());
                let want: Vec<f64> = plain[h * 16..][..16].iter().map(|z| f64::from(*z) * share).collect();
                assert_close(&z[h * 16..][..16], &want, 1e-5);
            }
        }
    }

    /// Values beside the keys are what values among them are.
    #[test]
    fn values_may_lie_elsewhere() {
        let case = Case::new(5, 40, 24, 48, 82);
        let rows: Vec<f32> = case.rows.chunks(40).flat_map(|row| [row, &[0.0; 8]].concat()).collect();
        let values: Vec<f32> = case.rows.chunks(40).flat_map(|row| row[..24].to_vec()).collect();
        let mut running = Running {
            scores: &mut [f32::NAN; 5 * ATTENTION_CHUNK],
            maxima: &mut [f32::NAN; 5],
            sums: &mut [f32::NAN; 5],
            values: &mut [f32::NAN; 5 * 24],
        };
        running.begin();
        let chunk = Chunk { keys: &rows, width: 40, values: &values, pitch: 24, n_rows: 48 };
        attend_chunk(&case.queries, &chunk, SCALE, &mut running);
        attend_finish(&mut running);
        assert_eq!(running.values, case.run(0..5));
    }

    #[test]
    fn nan_is_not_hidden() {
        let mut case = Case::new(2, 16, 16, 3, 90);
        case.rows[20] = f32::NAN;
        assert!(case.run(0..2).iter().all(|z| z.is_nan()));
    }
}
