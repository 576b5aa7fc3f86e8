//! Floats to halves and back.

use ::half::f16;

/// Rounds floats to halves (half to even), stored as bits.
///
/// # Panics
/// The lengths differ.
pub fn f32_to_f16(x: &[f32], out: &mut [u16]) {
    assert_eq!(x.len(), out.len(), "lengths of a conversion");
    for (x, out) in x.iter().zip(out) {
        *out = f16::from_f32(*x).to_bits();
    }
}

/// Widens halves, stored as bits, to floats.
///
/// # Panics
/// The lengths differ.
pub fn f16_to_f32(x: &[u16], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "lengths of a conversion");
    for (x, out) in x.iter().zip(out) {
        *out = f16::from_bits(*x).to_f32();
    }
}
