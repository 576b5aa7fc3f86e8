//! `y += a·x`.

fused! {
    fn axpy_scalar(a: f32, x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = a.mul_add(*x, *y);
        }
    }
}

/// `y += a·x`, element by element, fused.
///
/// # Panics
/// The lengths differ.
pub fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "lengths of axpy");
    #[cfg(target_arch = "x86_64")]
    if matches!(crate::Isa::current(), crate::Isa::Avx2 | crate::Isa::Avx512) {
        // SAFETY: Isa::current only names an instruction set that this processor has.
        return unsafe { super::x86::axpy(a, x, y) };
    }
    axpy_scalar(a, x, y);
}

#[cfg(test)]
mod tests {
    use super::super::testing::floats;
    use super::*;

    #[test]
    fn is_one_rounding_per_element() {
        for n in [0, 1, 8, 31, 64, 513] {
            let (x, y) = (floats(n, 3, 2.0), floats(n, 4, 2.0));
            let mut got = y.clone();
            axpy(0.3, &x, &mut got);
            let exact = |x: &f32, y: &f32| (f64::from(0.3f32) * f64::from(*x) + f64::from(*y)) as f32;
            // The product of two floats is exact in f64, so only its sum could round twice; it does not for these.
            assert!(got.iter().zip(x.iter().zip(&y)).all(|(g, (x, y))| *g == exact(x, y)));
            let mut scalar = y.clone();
            axpy_scalar(0.3, &x, &mut scalar);
            assert_eq!(got, scalar);
        }
    }
}
