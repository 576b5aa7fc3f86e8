//! `y += a·x`.

use ::half::f16;

use super::vectorized;

vectorized! {
    /// `y += a·x`, element by element.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "lengths of axpy");
        for (y, x) in y.iter_mut().zip(x) {
            *y += a * x;
        }
    }
}

/// `y += a·x` where `x` holds halves as bits.
///
/// # Panics
/// The lengths differ.
pub fn axpy_f16(a: f32, x: &[u16], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "lengths of axpy");
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * f16::from_bits(*x).to_f32();
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::floats;
    use super::*;

    #[test]
    fn is_multiply_then_add() {
        for n in [0, 1, 8, 31, 64, 513] {
            let (x, y) = (floats(n, 3, 2.0), floats(n, 4, 2.0));
            let mut got = y.clone();
            axpy(0.3, &x, &mut got);
            assert!(got.iter().zip(x.iter().zip(&y)).all(|(g, (x, y))| *g == 0.3 * x + y));
            let h: Vec<u16> = x.iter().map(|x| f16::from_f32(*x).to_bits()).collect();
            let mut got = y.clone();
            axpy_f16(0.3, &h, &mut got);
            assert!(
                got.iter()
                    .zip(h.iter().zip(&y))
                    .all(|(g, (h, y))| *g == 0.3 * f16::from_bits(*h).to_f32() + y)
            );
        }
    }
}
