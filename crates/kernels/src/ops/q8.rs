//! Cached values in eight bits: blocks of 32, each with a float scale.

/// Elements that share a scale.
pub const Q8_BLOCK: usize = 32;

vectorized! {
    /// Rounds each block to `scale · (−127..=127)`, half to even; the last block may be short. A block that is not finite comes
    /// back as NaN.
    ///
    /// # Panics
    /// The lengths differ, or there is not one scale per block.
    pub fn q8_encode(x: &[f32], scales: &mut [f32], out: &mut [i8]) {
        assert!(x.len() == out.len() && scales.len() == x.len().div_ceil(Q8_BLOCK), "lengths of q8 values");
        for ((x, out), scale) in x.chunks(Q8_BLOCK).zip(out.chunks_mut(Q8_BLOCK)).zip(scales) {
            // Infinity and NaN are larger than anything finite as bits.
            let largest = f32::from_bits(x.iter().fold(0, |a, x| a.max(x.abs().to_bits())));
            *scale = if largest.is_finite() { largest / 127.0 } else { f32::NAN };
            let inverse = if *scale > 0.0 { 127.0 / largest } else { 0.0 };
            // A block of subnormals may have an infinite inverse; the cast saturates.
            x.iter().zip(out).for_each(|(x, out)| *out = (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8);
        }
    }
}

vectorized! {
    /// The values of [`q8_encode`]: one rounding each.
    ///
    /// # Panics
    /// Like [`q8_encode`].
    pub fn q8_decode(x: &[i8], scales: &[f32], out: &mut [f32]) {
        assert!(x.len() == out.len() && scales.len() == x.len().div_ceil(Q8_BLOCK), "lengths of q8 values");
        for ((x, out), scale) in x.chunks(Q8_BLOCK).zip(out.chunks_mut(Q8_BLOCK)).zip(scales) {
            x.iter().zip(out).for_each(|(x, out)| *out = f32::from(*x) * scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::floats;
    use super::*;

    fn there_and_back(x: &[f32]) -> Vec<f32> {
        let (mut scales, mut q) = (vec![0.0; x.len().div_ceil(Q8_BLOCK)], vec![0; x.len()]);
        q8_encode(x, &mut scales, &mut q);
        let mut back = vec![f32::NAN; x.len()];
        q8_decode(&q, &scales, &mut back);
        back
    }

    #[test]
    fn is_within_half_a_step() {
        for n in [1, 31, 32, 33, 512] {
            let x = floats(n, 30, 3.0);
            for (x, back) in x.chunks(Q8_BLOCK).zip(there_and_back(&x).chunks(Q8_BLOCK)) {
                let step = x.iter().fold(0.0f32, |a, x| a.max(x.abs())) / 127.0;
                assert!(x.iter().zip(back).all(|(x, b)| (x - b).abs() <= step * 0.5001));
                let peak = x.iter().position(|x| x.abs() >= step * 126.9).unwrap();
                assert!((x[peak] / back[peak] - 1.0).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn zeros_stay_and_what_is_not_finite_shows() {
        assert_eq!(there_and_back(&[0.0, -0.0]), [0.0, 0.0]);
        assert!(there_and_back(&[1.0, f32::NAN]).iter().all(|x| x.is_nan()));
        assert!(there_and_back(&[1.0, f32::NEG_INFINITY]).iter().all(|x| x.is_nan()));
        assert!(there_and_back(&[1e-44, -1e-45]).iter().all(|x| x.abs() < 1e-43));
    }
}
