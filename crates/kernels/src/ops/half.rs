//! Floats to halves and back.

use ::half::f16;

/// The float of a half's bits. Written out so that it is inlined everywhere and vectorises: the exponent is rebased by a
/// multiplication, which also normalises subnormals exactly.
#[inline(always)]
pub fn widen(bits: u16) -> f32 {
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000); // 2^112
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | u32::from(bits & 0x8000) << 16)
}

/// The bits of a float rounded to a half (half to even).
#[inline]
pub fn narrow(x: f32) -> u16 {
    f16::from_f32(x).to_bits()
}

/// Rounds floats to halves (half to even), stored as bits.
///
/// # Panics
/// The lengths differ.
pub fn f32_to_f16(x: &[f32], out: &mut [u16]) {
    assert_eq!(x.len(), out.len(), "lengths of a conversion");
    #[cfg(target_arch = "x86_64")]
    if matches!(crate::Isa::current(), crate::Isa::Avx2 | crate::Isa::Avx512) {
        // SAFETY: Isa::current only names an instruction set that this processor has.
        return unsafe { super::x86::narrow_all(x, out) };
    }
    #[cfg(target_arch = "aarch64")]
    if crate::Isa::current() == crate::Isa::Neon {
        // SAFETY: Isa::current only names an instruction set that this processor has.
        return unsafe { super::neon::narrow_all(x, out) };
    }
    for (x, out) in x.iter().zip(out) {
        *out = narrow(*x);
    }
}

/// Widens halves, stored as bits, to floats.
///
/// # Panics
/// The lengths differ.
pub fn f16_to_f32(x: &[u16], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "lengths of a conversion");
    #[cfg(target_arch = "x86_64")]
    if matches!(crate::Isa::current(), crate::Isa::Avx2 | crate::Isa::Avx512) {
        // SAFETY: Isa::current only names an instruction set that this processor has.
        return unsafe { super::x86::widen_all(x, out) };
    }
    #[cfg(target_arch = "aarch64")]
    if crate::Isa::current() == crate::Isa::Neon {
        // SAFETY: Isa::current only names an instruction set that this processor has.
        return unsafe { super::neon::widen_all(x, out) };
    }
    for (x, out) in x.iter().zip(out) {
        *out = widen(*x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_widens_and_comes_back() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let mut wide = vec![0.0; all.len()];
        f16_to_f32(&all, &mut wide);
        for (bits, wide) in all.iter().zip(&wide) {
            let want = f16::from_bits(*bits);
            assert!(*wide == want.to_f32() || wide.is_nan() && want.is_nan());
            // The instruction quiets a NaN, the portable form keeps its bits; both are NaN.
            assert!(wide.to_bits() == widen(*bits).to_bits() || want.is_nan());
        }
        let mut back = vec![0; all.len()];
        f32_to_f16(&wide, &mut back);
        assert!(all.iter().zip(&back).all(|(a, b)| a == b || f16::from_bits(*a).is_nan()));
    }

    #[test]
    fn narrowing_rounds_half_to_even_everywhere() {
        let x = super::super::testing::floats(1003, 20, 70_000.0);
        let mut out = vec![0; x.len()];
        f32_to_f16(&x, &mut out);
        assert!(x.iter().zip(&out).all(|(x, h)| narrow(*x) == *h));
        assert_eq!(narrow(1.0 + 1.0 / 2048.0), narrow(1.0));
    }
}
