//! `Q5_0`: 32 weights in 22 bytes (5.5 bits each), `d · (q − 16)`.
//!
//! ```text
//!  0        2              6                                22
//! | d: f16 | high: u32 LE | q0 q16 | q1 q17 | … | q15 q31 |
//! ```
//! Bit `i` of `high` is bit 4 of `q[i]`; nibbles as in Q4_0.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::{self, Block32, half_at, inverse, largest, nibbles, pack_nibbles};
#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::{Activation, Format};

pub(super) const BYTES: usize = 22;

pub(super) static FORMAT: Format = Format {
    id: 6,
    name: "Q5_0",
    block_elements: 32,
    block_bytes: BYTES,
    activation: Activation::Q8_0,
    dequantize: block32::dequantize::<Q5_0, BYTES>,
    quantize: Some(quantize),
    scalar: block32::scalar::<Q5_0, BYTES>(),
    avx2: on_x86!(x86::block32::avx2::<Q5_0, BYTES>()),
    avx512: on_x86!(x86::block32::avx512::<Q5_0, BYTES>()),
    neon: on_neon!(super::neon::block32::neon::<Q5_0, BYTES>()),
};

pub(super) struct Q5_0;

impl Block32<BYTES> for Q5_0 {
    #[inline(always)]
    fn unpack(block: &[u8; BYTES], q: &mut [i8; 32]) -> (f32, f32) {
        let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
        nibbles(&block[6..], |i, n| q[i] = (n | (((high >> i) & 1) as u8) << 4) as i8 - 16);
        (half_at(block, 0), 0.0)
    }
}

/// The value of largest magnitude becomes −16 exactly.
fn quantize(x: &[f32], out: &mut [u8]) {
    assert_eq!(x.len() / 32 * BYTES, out.len(), "whole row");
    for (x, out) in x.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<BYTES>().0) {
        let d = largest(x) / -16.0;
        let id = inverse(d);
        let q = x.map(|x| ((x * id + 16.5) as u8).min(31));
        let high = q.iter().enumerate().fold(0u32, |h, (i, q)| h | u32::from(q >> 4) << i);
        out[..2].copy_from_slice(&half::f16::from_f32(d).to_le_bytes());
        out[2..6].copy_from_slice(&high.to_le_bytes());
        pack_nibbles(&q, &mut out[6..]);
    }
}

#[cfg(target_arch = "x86_64")]
impl x86::block32::X86Block32<BYTES> for Q5_0 {
    const OFFSET: i32 = 16;
    const TILE_TOP: i32 = 31;
    const TILE_CHAIN: usize = 8;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(block: &[u8; BYTES]) -> __m256i {
        _mm256_or_si256(x86::nibbles(block, 6), x86::fifth_bits(&block[2..6]))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load_two(a: &[u8; BYTES], b: &[u8; BYTES]) -> [__m256i; 2] {
        let [low, high] = x86::rows32::two_nibbles(a, b, 6);
        let [low_top, high_top] = x86::rows32::two_fifth_bits(a, b, 2);
        [_mm256_or_si256(low, low_top), _mm256_or_si256(high, high_top)]
    }
}
