//! Gated activations of feed-forward blocks: `out = act(gate) · up`.

use super::exp;
use super::silu::silu_mul;

/// How a block's gate and up become its hidden row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Glu {
    /// SwiGLU: `silu(gate) · up`.
    #[default]
    Silu,
    /// GeGLU: `gelu(gate) · up` with the approximation by tanh.
    Gelu,
    /// gpt-oss: `silu` with a steeper sigmoid, of a gate bounded above, times one more than a bounded up.
    Clamped,
}

impl Glu {
    /// `out = act(gate) · up`, element by element.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn apply(self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        match self {
            Self::Silu => silu_mul(gate, up, out),
            Self::Gelu => gelu_mul(gate, up, out),
            Self::Clamped => clamped_mul(gate, up, out),
        }
    }
}

vectorized! {
    /// `out = gelu(gate) · up`. With `z = √(2/π) · (x + 0.044715 x³)`, `½ x (1 + tanh z)` is `x / (1 + e^−2z)`: one exponential, and no
    /// cancellation where the result is small.
    fn gelu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
        const MINUS_2_ROOT_2_OVER_PI: f32 = -1.595_769_2;
        assert!(gate.len() == up.len() && gate.len() == out.len(), "lengths of gelu_mul");
        for ((out, &g), u) in out.iter_mut().zip(gate).zip(up) {
            let z = g + 0.044_715 * g * g * g;
            *out = g / (1.0 + exp(MINUS_2_ROOT_2_OVER_PI * z)) * u;
        }
    }
}

/// Steepness of the sigmoid and the bound of [`Glu::Clamped`]: constants of gpt-oss that no file states.
const ALPHA: f32 = 1.702;
const LIMIT: f32 = 7.0;

vectorized! {
    /// `out = g · sigmoid(1.702 g) · (u + 1)` with `g = min(gate, 7)` and `u = clamp(up, −7, 7)`.
    fn clamped_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(gate.len() == up.len() && gate.len() == out.len(), "lengths of clamped_mul");
        for ((out, &g), &u) in out.iter_mut().zip(gate).zip(up) {
            // Comparisons rather than min and max, so that NaN passes through.
            let g = if g > LIMIT { LIMIT } else { g };
            let u = if u > LIMIT { LIMIT } else { u };
            let u = if u < -LIMIT { -LIMIT } else { u };
            *out = g / (1.0 + exp(-ALPHA * g)) * (u + 1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, floats};
    use super::*;

    /// The definition of each, in f64.
    fn exact(glu: Glu, g: f32, u: f32) -> f64 {
        let (g, u) = (f64::from(g), f64::from(u));
        match glu {
            Glu::Silu => g / (1.0 + (-g).exp()) * u,
            Glu::Gelu => {
                let z = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
                0.5 * g * (1.0 + z.tanh()) * u
            }
            Glu::Clamped => {
                let (g, u) = (g.min(7.0), u.clamp(-7.0, 7.0));
                (u + 1.0) * g / (1.0 + (-1.702 * g).exp())
            }
        }
    }

    const ALL: [Glu; 3] = [Glu::Silu, Glu::Gelu, Glu::Clamped];

    #[test]
    fn match_f64() {
        for glu in ALL {
            // The second pair stays inside all bounds, the first leaves them on both sides.
            for (n, scale) in [(1, 12.0), (8, 12.0), (37, 3.0), (2048, 12.0)] {
                let (g, u) = (floats(n, 21, scale), floats(n, 22, scale));
                let want: Vec<f64> = g.iter().zip(&u).map(|(g, u)| exact(glu, *g, *u)).collect();
                let mut out = vec![0.0; n];
                glu.apply(&g, &u, &mut out);
                assert_close(&out, &want, 1e-6);
            }
        }
    }

    /// Wide registers and the remainder of a row, which is computed one by one, round alike.
    #[test]
    fn an_element_does_not_depend_on_its_place() {
        let (g, u) = (floats(1003, 23, 15.0), floats(1003, 24, 15.0));
        for glu in ALL {
            let mut row = vec![0.0; g.len()];
            glu.apply(&g, &u, &mut row);
            for i in 0..g.len() {
                let mut one = [0.0];
                glu.apply(&g[i..=i], &u[i..=i], &mut one);
                assert_eq!(row[i].to_bits(), one[0].to_bits(), "{glu:?}, element {i}");
            }
        }
    }

    #[test]
    fn ends_and_special_values() {
        let of = |glu: Glu, g: f32, u: f32| {
            let mut out = [0.0];
            glu.apply(&[g], &[u], &mut out);
            out[0]
        };
        assert_eq!((of(Glu::Gelu, 1e30, 1.0), of(Glu::Gelu, -1e30, 1.0)), (1e30, 0.0));
        // Half of it would be lost where 1 + tanh cancels.
        assert!((of(Glu::Gelu, -4.0, 1.0) + 7.024_595e-5).abs() < 1e-9);
        // Only the gate's upper end is bounded.
        assert_eq!(of(Glu::Clamped, 1e6, 1e6), of(Glu::Clamped, 7.0, 7.0));
        assert_eq!(of(Glu::Clamped, -1e6, 1.0), 0.0);
        assert_eq!(of(Glu::Clamped, 2.0, -1e6), of(Glu::Clamped, 2.0, -7.0));
        // One more than up: a zero does not silence the expert.
        assert!(of(Glu::Clamped, 2.0, 0.0) > 1.9 && of(Glu::Clamped, 2.0, -1.0) == 0.0);
        for glu in ALL {
            assert!(of(glu, f32::NAN, 1.0).is_nan() && of(glu, 1.0, f32::NAN).is_nan(), "{glu:?}");
        }
    }
}
