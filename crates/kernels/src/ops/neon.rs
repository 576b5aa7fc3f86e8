//! Halves to floats and back with NEON, four at a time. The other operations need nothing here: their portable bodies become NEON
//! as they are, fused multiply-adds included.

use std::arch::aarch64::*;

use super::half::{narrow, widen};

/// Rounds floats to halves.
#[target_feature(enable = "neon")]
pub(super) fn narrow_all(x: &[f32], out: &mut [u16]) {
    let ((blocks, tail), (outs, out_tail)) = (x.as_chunks::<4>(), out.as_chunks_mut::<4>());
    for (x, out) in blocks.iter().zip(outs) {
        // SAFETY: four floats are read and four halves written through references to arrays of that size.
        unsafe { vst1_u16(out.as_mut_ptr(), vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x.as_ptr())))) };
    }
    tail.iter().zip(out_tail).for_each(|(x, out)| *out = narrow(*x));
}

/// Widens halves to floats.
#[target_feature(enable = "neon")]
pub(super) fn widen_all(x: &[u16], out: &mut [f32]) {
    let ((blocks, tail), (outs, out_tail)) = (x.as_chunks::<4>(), out.as_chunks_mut::<4>());
    for (x, out) in blocks.iter().zip(outs) {
        // SAFETY: four halves are read and four floats written through references to arrays of that size.
        unsafe { vst1q_f32(out.as_mut_ptr(), vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x.as_ptr())))) };
    }
    tail.iter().zip(out_tail).for_each(|(x, out)| *out = widen(*x));
}
