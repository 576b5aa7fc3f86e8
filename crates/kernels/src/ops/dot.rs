//! Dot products of float slices and the canonical sum.

/// Adds sixteen lanes in the canonical order: halves onto each other until one is left.
#[inline(always)]
pub fn reduce(lanes: [f32; 16]) -> f32 {
    let mut l = lanes;
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            l[i] += l[i + width];
        }
    }
    l[0]
}

#[inline(always)]
pub(super) fn dot_body(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "lengths of a dot product");
    let (a_blocks, a_tail) = a.as_chunks::<16>();
    let (b_blocks, b_tail) = b.as_chunks::<16>();
    let mut lanes = [0.0f32; 16];
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for i in 0..16 {
            lanes[i] = a[i].mul_add(b[i], lanes[i]);
        }
    }
    for (i, (a, b)) in a_tail.iter().zip(b_tail).enumerate() {
        lanes[i] = a.mul_add(*b, lanes[i]);
    }
    reduce(lanes)
}

#[inline(always)]
pub(super) fn sum_body(x: &[f32], map: impl Fn(f32) -> f32) -> f32 {
    let (blocks, tail) = x.as_chunks::<16>();
    let mut lanes = [0.0f32; 16];
    for x in blocks {
        for i in 0..16 {
            lanes[i] += map(x[i]);
        }
    }
    for (i, x) in tail.iter().enumerate() {
        lanes[i] += map(*x);
    }
    reduce(lanes)
}

fused! {
    fn dot_scalar(a: &[f32], b: &[f32]) -> f32 {
        dot_body(a, b)
    }
}

/// `Σ a·b`, each product fused into the sum of its lane.
///
/// # Panics
/// The lengths differ.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "lengths of a dot product");
    #[cfg(target_arch = "x86_64")]
    if matches!(crate::Isa::current(), crate::Isa::Avx2 | crate::Isa::Avx512) {
        // SAFETY: Isa::current only names an instruction set that this processor has.
        return unsafe { super::x86::dot(a, b) };
    }
    dot_scalar(a, b)
}

vectorized! {
    /// `Σ x`.
    pub fn sum(x: &[f32]) -> f32 {
        sum_body(x, |x| x)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::floats;
    use super::*;

    #[test]
    fn agrees_with_f64_and_with_the_portable_body() {
        for n in [0, 1, 7, 15, 16, 17, 64, 100, 576, 1023] {
            let (a, b) = (floats(n, 1, 1.0), floats(n, 2, 1.0));
            let want: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let size: f64 = a.iter().zip(&b).map(|(a, b)| (f64::from(*a) * f64::from(*b)).abs()).sum();
            // Each of n/16 + 4 additions rounds once.
            let bound = size * (n as f64 / 16.0 + 5.0) * 6e-8;
            let got = dot(&a, &b);
            assert!((f64::from(got) - want).abs() <= bound);
            assert_eq!(got.to_bits(), dot_body(&a, &b).to_bits());
            assert_eq!(got.to_bits(), dot_scalar(&a, &b).to_bits());
            assert_eq!(sum(&a).to_bits(), sum_body(&a, |a| a).to_bits());
        }
    }
}
