//! NVFP4 with NEON: four rows at a time, ordered like blocks of 32 with two groups of sixteen each.

use std::arch::aarch64::*;

use super::{four_totals, load8, look_up, sdot, signed16};
use crate::Kernels;
use crate::activation::Q8Row;
use crate::quant::block256::u32_at;
use crate::quant::mxfp4::LEVELS;
use crate::quant::nvfp4::{BYTES, REBIAS};

/// The NEON kernels.
pub(in crate::quant) const fn neon() -> Kernels {
    Kernels { rows, tile: None }
}

/// # Safety
/// That of [`Rows`](crate::Rows), for `dotprod`.
#[target_feature(enable = "neon")]
unsafe fn rows(weights: &[u8], x: &[u8], n: usize, y: &mut [f32]) {
    let x = Q8Row::new(x, n);
    let n_blocks = n / 64;
    let blocks = &weights.as_chunks::<BYTES>().0[..n_blocks * y.len()];
    for (first, y) in y.chunks_mut(4).enumerate() {
        // Rows past the end are the last one again.
        let row = |r: usize| &blocks[(4 * first + r.min(y.len() - 1)) * n_blocks..][..n_blocks];
        let columns = row(0).iter().zip(row(1)).zip(row(2)).zip(row(3));
        let mut total = vdupq_n_f32(0.0);
        for (b, (((w0, w1), w2), w3)) in columns.enumerate() {
            let four = [w0, w1, w2, w3];
            let scales = four.map(|block| u32_at(block, 0));
            for half in 0..2 {
                let at = 2 * b + half;
                let term = |g: usize| {
                    let x = signed16(x.q, 32 * at + 16 * (g % 2));
                    // SAFETY: the caller's promise.
                    let products = four.map(|block| unsafe { sdot(vdupq_n_s32(0), group(block, g), x) });
                    vmulq_f32(units(scales, g), vcvtq_f32_s32(four_totals(products)))
                };
                let sum = vaddq_f32(term(2 * half), term(2 * half + 1));
                total = vaddq_f32(total, vmulq_f32(vdupq_n_f32(x.d(at)), sum));
            }
        }
        let mut sums = [0.0; 4];
        // SAFETY: four floats into an array of four.
        unsafe { vst1q_f32(sums.as_mut_ptr(), total) };
        y.copy_from_slice(&sums[..y.len()]);
    }
}

/// The integers of group `g`.
#[inline]
#[target_feature(enable = "neon")]
fn group(block: &[u8; BYTES], g: usize) -> int8x16_t {
    let bytes = load8(block, 4 + 8 * g);
    let nibbles = vcombine_u8(vand_u8(bytes, vdup_n_u8(15)), vshr_n_u8::<4>(bytes));
    look_up(&LEVELS, (nibbles, nibbles)).0
}

/// The floats of scale byte `g` of four rows; 0x7f is 0 and the top bit means nothing, except that it keeps 0xff from being 0x7f.
#[inline]
#[target_feature(enable = "neon")]
fn units(scales: [u32; 4], g: usize) -> float32x4_t {
    // SAFETY: four readable words.
    let words = unsafe { vld1q_u32(scales.as_ptr()) };
    let bytes = vandq_u32(vshlq_u32(words, vdupq_n_s32(-8 * (g as i32))), vdupq_n_u32(0xff));
    let none = vceqq_u32(bytes, vdupq_n_u32(0x7f));
    let bits = vshlq_n_u32::<20>(vandq_u32(bytes, vdupq_n_u32(0x7f)));
    vmulq_n_f32(vreinterpretq_f32_u32(vbicq_u32(bits, none)), REBIAS)
}
