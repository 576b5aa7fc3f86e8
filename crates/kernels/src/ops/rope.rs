//! Rotary position embedding: the frequencies (plain and YaRN), the table of cosines and sines, and the rotation of pairs.
//!
//! Frequencies are rounded to `f32` where transformers rounds them (exponent, power, inverse), and an angle is the `f32` product of
//! position and frequency, so that long contexts rotate by the same angle as the reference; cosine and sine are then taken in `f64`.

/// Context extension by YaRN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// How many times longer than the original the context may be.
    pub factor: f32,
    /// Context length of the pre-training.
    pub original_context: u32,
    /// Rotations above which a frequency is kept; 32 by default.
    pub beta_fast: f32,
    /// Rotations below which a frequency is divided by the factor; 1 by default.
    pub beta_slow: f32,
    /// Whether the pairs at which the ramp begins and ends are rounded outwards to whole ones.
    pub truncate: bool,
    /// Factor on every cosine and sine; see [`yarn_mscale`] for what the model files leave implicit.
    pub attention_factor: f32,
}

/// `0.1 · mscale · ln(factor) + 1`, or 1 without extension. The attention factor is the ratio of this for `mscale` and for
/// `mscale_all_dim` where both are given, else its value for 1; a model with `mscale_all_dim` multiplies its softmax scale by the
/// square of this for `mscale_all_dim`.
pub fn yarn_mscale(factor: f32, mscale: f32) -> f32 {
    if factor <= 1.0 { 1.0 } else { (0.1 * f64::from(mscale) * f64::from(factor).ln() + 1.0) as f32 }
}

/// Which elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// Neighbours: `(x[2i], x[2i + 1])`.
    Interleaved,
    /// Element `i` of the first half and of the second: `(x[i], x[i + n / 2])`.
    Halves,
}

/// The frequencies of one rotary embedding.
#[derive(Clone, Debug)]
pub struct Rope {
    inv_freq: Vec<f32>,
    attention_factor: f32,
}

impl Rope {
    /// Frequencies for `n_rot` rotated dimensions (an even number) and the given base.
    ///
    /// # Panics
    /// `n_rot` is odd.
    pub fn new(n_rot: usize, base: f32, yarn: Option<&Yarn>) -> Rope {
        assert!(n_rot.is_multiple_of(2), "{n_rot} rotated dimensions do not make pairs");
        let power = |pair: usize| {
            let exponent = (2 * pair) as f32 / n_rot as f32;
            f64::from(base).powf(f64::from(exponent)) as f32
        };
        let powers = (0..n_rot / 2).map(power);
        let Some(yarn) = yarn else {
            return Rope { inv_freq: powers.map(|p| 1.0 / p).collect(), attention_factor: 1.0 };
        };
        let (low, length) = yarn_ramp(n_rot, base, yarn);
        let blend = |(pair, power): (usize, f32)| {
            let ramp = ((pair as f32 - low) / length).clamp(0.0, 1.0);
            let keep = 1.0 - ramp;
            1.0 / (yarn.factor * power) * (1.0 - keep) + 1.0 / power * keep
        };
        Rope { inv_freq: powers.enumerate().map(blend).collect(), attention_factor: yarn.attention_factor }
    }

    /// The same with the frequency of each pair divided by its factor.
    ///
    /// # Panics
    /// There is not one factor per pair.
    #[must_use]
    pub fn divided(mut self, factors: &[f32]) -> Rope {
        assert_eq!(factors.len(), self.pairs(), "one factor per pair");
        self.inv_freq.iter_mut().zip(factors).for_each(|(freq, factor)| *freq /= factor);
        self
    }

    /// Number of pairs, the length of a table row.
    pub fn pairs(&self) -> usize {
        self.inv_freq.len()
    }

    /// The frequency of each pair, in radians per position.
    pub fn inv_freq(&self) -> &[f32] {
        &self.inv_freq
    }

    /// Writes the cosines and sines of one position, the attention factor included.
    ///
    /// # Panics
    /// A slice is not [`Rope::pairs`] long.
    pub fn row(&self, position: u32, cos: &mut [f32], sin: &mut [f32]) {
        assert!(cos.len() == self.pairs() && sin.len() == self.pairs(), "length of a rope table row");
        for (i, freq) in self.inv_freq.iter().enumerate() {
            let angle = f64::from(position as f32 * freq);
            let (s, c) = angle.sin_cos();
            cos[i] = c as f32 * self.attention_factor;
            sin[i] = s as f32 * self.attention_factor;
        }
    }

    /// The tables of positions `0..n_positions`, row-major `[n_positions, pairs]`: cosines and sines.
    pub fn table(&self, n_positions: u32) -> (Vec<f32>, Vec<f32>) {
        let len = n_positions as usize * self.pairs();
        let (mut cos, mut sin) = (vec![0.0; len], vec![0.0; len]);
        let rows = cos.chunks_exact_mut(self.pairs().max(1)).zip(sin.chunks_exact_mut(self.pairs().max(1)));
        rows.enumerate().for_each(|(position, (cos, sin))| self.row(position as u32, cos, sin));
        (cos, sin)
    }
}

/// The pair from which YaRN passes from keeping a frequency to dividing it, and over how many pairs it does.
fn yarn_ramp(n_rot: usize, base: f32, yarn: &Yarn) -> (f32, f32) {
    let n = n_rot as f64;
    let pair = |rotations: f32| {
        let turns = f64::from(yarn.original_context) / (f64::from(rotations) * 2.0 * std::f64::consts::PI);
        n * turns.ln() / (2.0 * f64::from(base).ln())
    };
    let (low, high) = (pair(yarn.beta_fast), pair(yarn.beta_slow));
    let (low, high) = if yarn.truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(n - 1.0));
    let length = if low == high { 0.001 } else { high - low };
    (low as f32, length as f32)
}

/// Rotates each pair `(x[2i], x[2i + 1])` by its angle, in place.
///
/// # Panics
/// `x` is not twice as long as `cos` and `sin`.
pub fn rope_interleaved(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert!(x.len() == 2 * cos.len() && cos.len() == sin.len(), "lengths of a rotation");
    for ([a, b], (c, s)) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin)) {
        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
    }
}

vectorized! {
    /// Rotates each pair `(x[i], x[i + n / 2])` by its angle, in place.
    ///
    /// # Panics
    /// `x` is not twice as long as `cos` and `sin`.
    pub fn rope_halves(x: &mut [f32], cos: &[f32], sin: &[f32]) {
        assert!(x.len() == 2 * cos.len() && cos.len() == sin.len(), "lengths of a rotation");
        let (first, second) = x.split_at_mut(cos.len());
        for ((a, b), (c, s)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_frequencies() {
        let rope = Rope::new(64, 8e6, None);
        for (i, f) in rope.inv_freq().iter().enumerate() {
            let want = 8e6f64.powf(-(i as f64) / 32.0);
            assert!((f64::from(*f) / want - 1.0).abs() < 2e-6, "pair {i}");
        }
        // As transformers' float32 has them.
        let some = [
            1.0,
            0.608_525_04,
            0.370_302_7,
            0.225_338_46,
            0.137_124_09,
            0.083_443_43,
            0.050_777_42,
            0.030_899_333,
        ];
        assert_eq!(rope.inv_freq()[..8], some);
        assert_eq!(rope.inv_freq()[31], 2.054_147_4e-7);
    }

    /// Numbers from transformers 5.23.0, `_compute_yarn_parameters` with n_rot 16, base 10000, factor 4, original context 64.
    #[test]
    fn yarn_frequencies_like_transformers() {
        let mscale = yarn_mscale(4.0, 1.0);
        let yarn = Yarn {
            factor: 4.0,
            original_context: 64,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: mscale,
        };
        let rope = Rope::new(16, 1e4, Some(&yarn));
        assert_eq!(rope.inv_freq(), YARN_INV_FREQ);
        assert_eq!(mscale, YARN_ATTENTION_FACTOR);
        let (mut cos, mut sin) = ([0.0; 8], [0.0; 8]);
        rope.row(0, &mut cos, &mut sin);
        assert_eq!((cos, sin), ([mscale; 8], [0.0; 8]));
    }
    const YARN_INV_FREQ: [f32; 8] =
        [1.0, 0.237_170_82, 0.049_999_997, 0.007_905_695, 0.002_5, 0.000_790_569_47, 0.000_25, 7.905_695e-5];
    const YARN_ATTENTION_FACTOR: f32 = 1.138_629_4;

    /// Numbers from transformers 5.23.0, `_compute_yarn_parameters` with `truncate` false: gpt-oss, n_rot 64.
    #[test]
    fn yarn_ramps_may_end_between_pairs() {
        let yarn = Yarn {
            factor: 32.0,
            original_context: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: false,
            attention_factor: 1.0,
        };
        let exact = Rope::new(64, 150_000.0, Some(&yarn));
        // torch's powers are not always the nearest floats.
        for (i, (ours, theirs)) in exact.inv_freq().iter().zip(UNTRUNCATED_INV_FREQ).enumerate() {
            assert!((ours / theirs - 1.0).abs() < 1.5e-7, "pair {i}: {ours} {theirs}");
        }
        let rounded = Rope::new(64, 150_000.0, Some(&Yarn { truncate: true, ..yarn }));
        let differ = |i: &usize| exact.inv_freq()[*i] != rounded.inv_freq()[*i];
        assert_eq!((0..32).filter(differ).collect::<Vec<_>>(), (9..18).collect::<Vec<_>>());
    }
    const UNTRUNCATED_INV_FREQ: [f32; 32] = [
        1.0,
        0.689_044_3,
        0.474_782_05,
        0.327_145_87,
        0.225_418,
        0.155_322_98,
        0.107_024_424,
        0.073_744_565,
        0.050_813_273,
        0.031_705_696,
        0.019_335,
        0.011_592_049,
        0.006_794_959_3,
        0.003_860_359,
        0.002_093_792_7,
        0.001_052_602_2,
        0.000_456_483_92,
        0.000_129_318_7,
        3.830_881e-5,
        2.639_646_8e-5,
        1.818_833_7e-5,
        1.253_257e-5,
        8.635_496e-6,
        5.950_239_5e-6,
        4.099_978_5e-6,
        2.825_066_8e-6,
        1.946_596_3e-6,
        1.341_291e-6,
        9.242_089_6e-7,
        6.368_209e-7,
        4.387_978_5e-7,
        3.023_511_4e-7,
    ];

    #[test]
    fn factors_divide_frequencies() {
        let plain = Rope::new(8, 1e4, None);
        let divided = plain.clone().divided(&[1.0, 2.0, 4.0, 1e30]);
        let expected = [plain.inv_freq()[0], plain.inv_freq()[1] / 2.0, plain.inv_freq()[2] / 4.0];
        assert_eq!(divided.inv_freq()[..3], expected);
        let (cos, sin) = divided.table(2);
        let mut x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        rope_halves(&mut x, &cos[4..], &sin[4..]);
        assert_eq!([x[3], x[7]], [4.0, 8.0]);
    }

    #[test]
    fn halves_turn_as_neighbours_do() {
        for n in [2, 8, 20, 64] {
            let rope = Rope::new(n, 1e4, None);
            let (cos, sin) = rope.table(6);
            let (cos, sin) = (&cos[5 * n / 2..], &sin[5 * n / 2..]);
            let x = super::super::testing::floats(n, 17, 2.0);
            let mut halves = x.clone();
            rope_halves(&mut halves, cos, sin);
            let mut pairs: Vec<f32> = (0..n).map(|i| x[i / 2 + i % 2 * (n / 2)]).collect();
            rope_interleaved(&mut pairs, cos, sin);
            let back: Vec<f32> =
                (0..n).map(|i| pairs[if i < n / 2 { 2 * i } else { 2 * i - n + 1 }]).collect();
            assert_eq!(halves, back);
        }
    }

    #[test]
    fn a_degenerate_range_does_not_divide_by_zero() {
        let yarn = Yarn {
            factor: 2.0,
            original_context: 4,
            beta_fast: 1.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: 1.0,
        };
        assert!(Rope::new(8, 1e4, Some(&yarn)).inv_freq().iter().all(|f| f.is_finite() && *f > 0.0));
    }

    #[test]
    fn no_extension_no_factor() {
        assert_eq!(yarn_mscale(1.0, 0.7), 1.0);
        assert!((yarn_mscale(40.0, 1.0) - 1.368_888).abs() < 1e-5);
    }

    #[test]
    fn rotation_keeps_lengths_and_relative_angles() {
        let rope = Rope::new(8, 1e4, None);
        let (cos, sin) = rope.table(50);
        let at = |p: usize, x: &[f32]| {
            let mut x = x.to_vec();
            rope_interleaved(&mut x, &cos[p * 4..][..4], &sin[p * 4..][..4]);
            x
        };
        let (q, k) =
            ([1.0, 2.0, -1.0, 0.5, 0.1, 0.2, 3.0, -2.0], [0.3, 1.0, 2.0, -1.0, 1.0, 1.0, -0.5, 0.25]);
        let dot = |a: Vec<f32>, b: Vec<f32>| a.iter().zip(&b).map(|(a, b)| a * b).sum::<f32>();
        let (near, far) = (dot(at(7, &q), at(4, &k)), dot(at(43, &q), at(40, &k)));
        assert!((near - far).abs() < 1e-5);
        // The first pair turns by one radian per position, and counter-clockwise.
        let first = at(1, &[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert!((first[0] - 1f32.cos()).abs() < 1e-7 && (first[1] - 1f32.sin()).abs() < 1e-7);
    }
}
