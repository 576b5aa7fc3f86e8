//! Sigmoid and the gated activation of SwiGLU.

use super::exp;

vectorized! {
    /// `x = 1 / (1 + e^−x)`, in place.
    pub fn sigmoid(x: &mut [f32]) {
        x.iter_mut().for_each(|x| *x = 1.0 / (1.0 + exp(-*x)));
    }
}

vectorized! {
    /// `x = x / (1 + e^−x)`, in place.
    pub fn silu(x: &mut [f32]) {
        x.iter_mut().for_each(|x| *x /= 1.0 + exp(-*x));
    }
}

vectorized! {
    /// `out = silu(gate) · up`.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(gate.len() == up.len() && gate.len() == out.len(), "lengths of silu_mul");
        for ((out, g), u) in out.iter_mut().zip(gate).zip(up) {
            *out = g / (1.0 + exp(-g)) * u;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, floats};
    use super::*;

    #[test]
    fn match_f64() {
        for n in [1, 8, 37, 2048] {
            let (g, u) = (floats(n, 11, 20.0), floats(n, 12, 3.0));
            let sig = |x: f32| 1.0 / (1.0 + (-f64::from(x)).exp());
            let mut x = g.clone();
            sigmoid(&mut x);
            assert_close(&x, &g.iter().map(|g| sig(*g)).collect::<Vec<_>>(), 1e-6);
            let mut x = g.clone();
            silu(&mut x);
            assert_close(&x, &g.iter().map(|g| f64::from(*g) * sig(*g)).collect::<Vec<_>>(), 1e-6);
            let want: Vec<f64> =
                g.iter().zip(&u).map(|(g, u)| f64::from(*g) * sig(*g) * f64::from(*u)).collect();
            silu_mul(&g, &u, &mut x);
            assert_close(&x, &want, 1e-6);
        }
    }

    #[test]
    fn saturate_instead_of_overflowing() {
        let mut x = [-1000.0, 1000.0];
        sigmoid(&mut x);
        assert_eq!(x, [0.0, 1.0]);
        let mut x = [-1000.0, 1000.0];
        silu(&mut x);
        assert_eq!(x, [0.0, 1000.0]);
    }
}
