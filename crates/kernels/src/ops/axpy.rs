//! `y += a·x`.

use super::widen;

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
    #[cfg(target_arch = "x86_64")]
    if matches!(crate::Isa::current(), crate::Isa::Avx2 | crate::Isa::Avx512) {
        // SAFETY: Isa::current only names an instruction set that this processor has.
        return unsafe { super::x86::axpy_f16(a, x, y) };
    }
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * widen(*x);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{narrow, testing::floats};
    use super::*;

    #[test]
    fn is_multiply_then_add() {
        for n in [0, 1, 8, 31, 64, 513] {
            let (x, y) = (floats(n, 3, 2.0), floats(n, 4, 2.0));
            let mut got = y.clone();
            axpy(0.3, &x, &mut got);
            assert!(got.iter().zip(x.iter().zip(&y)).all(|(g, (x, y))| *g == 0.3 * x + y));
            let h: Vec<u16> = x.iter().map(|x| narrow(*x)).collect();
            let mut got = y.clone();
            axpy_f16(0.3, &h, &mut got);
            assert!(got.iter().zip(h.iter().zip(&y)).all(|(g, (h, y))| *g == 0.3 * widen(*h) + y));
        }
    }
}
