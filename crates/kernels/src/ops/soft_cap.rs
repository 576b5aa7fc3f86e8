//! A bound that values approach but do not pass.

use super::exp;

vectorized! {
    /// `x = cap · tanh(x / cap)`, in place.
    pub fn soft_cap(x: &mut [f32], cap: f32) {
        x.iter_mut().for_each(|x| *x = cap * tanh(*x / cap));
    }
}

/// Near zero by its series, elsewhere by one exponential, whose result would cancel there.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let square = x * x;
    let near = x * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0 - square * (17.0 / 315.0))));
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    // NaN is not below, and comes out of the second.
    if x.abs() < 0.2 { near } else { far }
}

#[cfg(test)]
mod tests {
    use super::super::testing::floats;
    use super::*;

    #[test]
    fn matches_f64() {
        for (cap, scale) in [(30.0, 90.0), (30.0, 3.0), (1.5, 1.0), (2.0, 40.0)] {
            let x = floats(1001, 31, scale);
            let mut ours = x.clone();
            soft_cap(&mut ours, cap);
            for (&ours, &x) in ours.iter().zip(&x) {
                let exact = f64::from(cap) * (f64::from(x) / f64::from(cap)).tanh();
                assert!(
                    (f64::from(ours) - exact).abs() <= 5e-7 * exact.abs(),
                    "{x}: {ours} instead of {exact}"
                );
                // In a register of eight as alone.
                let mut alone = [x];
                soft_cap(&mut alone, cap);
                assert_eq!(alone[0].to_bits(), ours.to_bits());
            }
        }
    }

    #[test]
    fn ends_and_special_values() {
        let mut x = [0.0, -0.0, 1e30, -1e30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        soft_cap(&mut x, 30.0);
        assert_eq!(x[..6], [0.0, 0.0, 30.0, -30.0, 30.0, -30.0]);
        assert!(x[1].is_sign_negative() && x[6].is_nan());
    }
}
