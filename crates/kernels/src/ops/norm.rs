//! RMS norm, L2 norm and layer norm. Statistics in `f32`, epsilon inside the root.

use super::dot::sum_body;

vectorized! {
    /// `out = x / sqrt(mean(x²) + eps) · weight`; without a weight, without the last factor.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn rms_norm(x: &[f32], weight: Option<&[f32]>, eps: f32, out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "lengths of a norm");
        let scale = 1.0 / (sum_body(x, |x| x * x) / x.len() as f32 + eps).sqrt();
        match weight {
            None => out.iter_mut().zip(x).for_each(|(out, x)| *out = x * scale),
            Some(weight) => {
                assert_eq!(x.len(), weight.len(), "lengths of a norm");
                out.iter_mut().zip(x).zip(weight).for_each(|((out, x), w)| *out = w * (x * scale));
            }
        }
    }
}

vectorized! {
    /// `x = scale · x / sqrt(Σ x² + eps)`, in place.
    pub fn l2_norm(x: &mut [f32], eps: f32, scale: f32) {
        let factor = scale / (sum_body(x, |x| x * x) + eps).sqrt();
        x.iter_mut().for_each(|x| *x *= factor);
    }
}

vectorized! {
    /// `out = (x − mean) / sqrt(variance + eps) · weight + bias`, the variance being the biased one.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        let n = x.len();
        assert!(n == out.len() && n == weight.len() && n == bias.len(), "lengths of a norm");
        let mean = sum_body(x, |x| x) / n as f32;
        let variance = sum_body(x, |x| (x - mean) * (x - mean)) / n as f32;
        let scale = 1.0 / (variance + eps).sqrt();
        for i in 0..n {
            out[i] = (x[i] - mean) * scale * weight[i] + bias[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, floats};
    use super::*;

    #[test]
    fn rms_norm_matches_f64() {
        for n in [1, 5, 16, 48, 2048, 6143] {
            let (x, w) = (floats(n, 6, 3.0), floats(n, 7, 1.0));
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n as f64;
            let plain: Vec<f64> = x.iter().map(|x| f64::from(*x) / (mean + 1e-5).sqrt()).collect();
            let mut out = vec![0.0; n];
            rms_norm(&x, None, 1e-5, &mut out);
            assert_close(&out, &plain, 1e-6);
            rms_norm(&x, Some(&w), 1e-5, &mut out);
            assert_close(
                &out,
                &plain.iter().zip(&w).map(|(p, w)| p * f64::from(*w)).collect::<Vec<_>>(),
                1e-6,
            );
        }
    }

    #[test]
    fn l2_norm_matches_f64() {
        for n in [1, 5, 16, 48, 128] {
            let x = floats(n, 6, 3.0);
            let sum = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            let want: Vec<f64> = x.iter().map(|x| 0.25 * f64::from(*x) / (sum + 1e-6).sqrt()).collect();
            let mut out = x.clone();
            l2_norm(&mut out, 1e-6, 0.25);
            assert_close(&out, &want, 1e-6);
        }
    }

    #[test]
    fn the_epsilon_is_inside_the_root() {
        let mut out = [0.0; 2];
        rms_norm(&[0.0, 2e-3], None, 1.0, &mut out);
        assert!((out[1] - 2e-3).abs() < 1e-8);
        let mut out = [0.0, 2e-3]; // of the sum, not of the mean, and not a lower bound of the root
        l2_norm(&mut out, 1.0, 1.0);
        assert!((out[1] - 2e-3).abs() < 1e-8);
    }

    #[test]
    fn layer_norm_matches_f64() {
        for n in [2, 16, 33, 128] {
            let (x, w, b) = (floats(n, 8, 3.0), floats(n, 9, 1.0), floats(n, 10, 1.0));
            let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n as f64;
            let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n as f64;
            let want: Vec<f64> = (0..n)
                .map(|i| {
                    (f64::from(x[i]) - mean) / (variance + 1e-6).sqrt() * f64::from(w[i]) + f64::from(b[i])
                })
                .collect();
            let mut out = vec![0.0; n];
            layer_norm(&x, &w, &b, 1e-6, &mut out);
            assert_close(&out, &want, 2e-6);
        }
    }
}
