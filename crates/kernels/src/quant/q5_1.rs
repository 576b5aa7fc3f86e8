//! `Q5_1`: 32 weights in 24 bytes (6 bits each), `d · q + m`.
//!
//! ```text
//!  0        2        4              8                                24
//! | d: f16 | m: f16 | high: u32 LE | q0 q16 | q1 q17 | … | q15 q31 |
//! ```
//! Bit `i` of `high` is bit 4 of `q[i]`; nibbles as in Q4_0.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::{self, Block32, half_at, inverse, nibbles, pack_nibbles};
#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::{Activation, Format};

pub(super) const BYTES: usize = 24;

pub(super) static FORMAT: Format = Format {
    id: 7,
    name: "Q5_1",
    block_elements: 32,
    block_bytes: BYTES,
    activation: Activation::Q8_0,
    dequantize: block32::dequantize::<Q5_1, BYTES>,
    quantize: Some(quantize),
    scalar: block32::scalar::<Q5_1, BYTES>(),
    avx2: on_x86!(x86::block32::avx2::<Q5_1, BYTES>()),
    avx512: on_x86!(x86::block32::avx512::<Q5_1, BYTES>()),
    neon: on_neon!(super::neon::block32::neon::<Q5_1, BYTES>()),
};

pub(super) struct Q5_1;

impl Block32<BYTES> for Q5_1 {
    const MIN: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8; BYTES], q: &mut [i8; 32]) -> (f32, f32) {
        let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
        nibbles(&block[8..], |i, n| q[i] = (n | (((high >> i) & 1) as u8) << 4) as i8);
        (half_at(block, 0), half_at(block, 2))
    }
}

fn quantize(x: &[f32], out: &mut [u8]) {
    assert_eq!(x.len() / 32 * BYTES, out.len(), "whole row");
    for (x, out) in x.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<BYTES>().0) {
        let (min, max) = x.iter().fold((x[0], x[0]), |(a, b), &x| (a.min(x), b.max(x)));
        let d = (max - min) / 31.0;
        let id = inverse(d);
        let q = x.map(|x| (((x - min) * id + 0.5) as u8).min(31));
        let high = q.iter().enumerate().fold(0u32, |h, (i, q)| h | u32::from(q >> 4) << i);
        out[..2].copy_from_slice(&half::f16::from_f32(d).to_le_bytes());
        out[2..4].copy_from_slice(&half::f16::from_f32(min).to_le_bytes());
        out[4..8].copy_from_slice(&high.to_le_bytes());
        pack_nibbles(&q, &mut out[8..]);
    }
}

#[cfg(target_arch = "x86_64")]
impl x86::block32::X86Block32<BYTES> for Q5_1 {
    const OFFSET: i32 = 0;
    const TILE_TOP: i32 = 31;
    const TILE_CHAIN: usize = 4;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(block: &[u8; BYTES]) -> __m256i {
        _mm256_or_si256(x86::nibbles(block, 8), x86::fifth_bits(&block[4..8]))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load_two(a: &[u8; BYTES], b: &[u8; BYTES]) -> [__m256i; 2] {
        let [low, high] = x86::rows32::two_nibbles(a, b, 8);
        let [low_top, high_top] = x86::rows32::two_fifth_bits(a, b, 4);
        [_mm256_or_si256(low, low_top), _mm256_or_si256(high, high_top)]
    }
}
