//! `IQ1_S`: 256 weights in 50 bytes (1.5625 bits each), `d·(2·scale + 1)·(g ± 1/8)`, `g` in −1, 0, 1 from a codebook of 2048 eights.
//!
//! ```text
//!  0        2          34                 50
//! | d: f16 | qs: 32 B | high: 8 u16 LE |
//! ```
//! Per 32 weights one `high`: bits `3·l` up are the top three of the eleven index bits of eight `l` (the low eight are `qs[4·s + l]`), bits 12
//! to 14 the scale, bit 15 the sign of the shift of 1/8 (set: minus).

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::half_at;
use super::block256::{self, Block256, u16_at};
use super::grids;
#[cfg(target_arch = "x86_64")]
use super::x86::{self, avx512 as wide};
use crate::{Activation, Format};

pub(super) const BYTES: usize = 50;

pub(super) static FORMAT: Format = Format {
    id: 19,
    name: "IQ1_S",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Iq1S, BYTES>,
    quantize: None,
    scalar: block256::scalar::<Iq1S, BYTES>(),
    avx2: on_x86!(x86::block256::avx2::<Iq1S, BYTES>()),
    avx512: on_x86!(x86::block256::avx512::<Iq1S, BYTES>()),
    neon: on_neon!(super::neon::block256::neon::<Iq1S, BYTES>()),
};

pub(super) struct Iq1S;

impl Block256<BYTES> for Iq1S {
    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> (f32, f32) {
        (half_at(block, 0) / 8.0, 0.0)
    }

    #[inline(always)]
    fn scales(block: &[u8; BYTES], scale: &mut [i16; 16], _min: &mut [i16; 16]) {
        for s in 0..8 {
            let both = 2 * (u16_at(block, 34 + 2 * s) >> 12 & 7) as i16 + 1;
            (scale[2 * s], scale[2 * s + 1]) = (both, both);
        }
    }

    #[inline(always)]
    fn quants(block: &[u8; BYTES], q: &mut [i8; 256]) {
        for s in 0..8 {
            let high = u16_at(block, 34 + 2 * s);
            let shift = if high >> 15 == 1 { -1 } else { 1 };
            for l in 0..4 {
                let index = usize::from(block[2 + 4 * s + l]) | usize::from(high >> (3 * l) & 7) << 8;
                let g = grids::IQ1[index].to_le_bytes();
                for (q, g) in q[32 * s + 8 * l..][..8].iter_mut().zip(g) {
                    *q = g as i8 + shift;
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl x86::block256::X86Block256<BYTES> for Iq1S {
    const UNIT_FACTOR: f32 = 0.125;
    const TILE_OFFSET: i32 = 9;
    const TILE_CHAIN: usize = 4;
    const WIDE_OFFSET: i32 = 9;
    const SHARED: usize = 32;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn pairs(block: &[u8; BYTES], s: usize, x: __m256i) -> __m256i {
        let high = u16_at(block, 34 + 2 * s);
        let g = x86::four_eights(|l| {
            grids::IQ1[usize::from(block[2 + 4 * s + l]) | usize::from(high >> (3 * l) & 7) << 8]
        });
        let shift = _mm256_set1_epi8(if high >> 15 == 1 { -1 } else { 1 });
        x86::signed_pairs(_mm256_add_epi8(g, shift), x)
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn wide(block: &[u8; BYTES], s: usize) -> (__m512i, u64) {
        let high = block256::u32_at(block, 34 + 4 * s) as usize;
        let g = wide::eight_eights(|l| {
            let top = high >> (16 * (l / 4) + 3 * (l % 4)) & 7;
            grids::IQ1[usize::from(block[2 + 8 * s + l]) | top << 8]
        });
        // A shift of −1 or 1, with the offset.
        let minus = _mm512_test_epi64_mask(
            _mm512_set1_epi64(high as i64),
            _mm512_setr_epi64(1 << 15, 1 << 15, 1 << 15, 1 << 15, 1 << 31, 1 << 31, 1 << 31, 1 << 31),
        );
        let shift = _mm512_mask_blend_epi64(minus, _mm512_set1_epi8(10), _mm512_set1_epi8(8));
        (_mm512_add_epi8(g, shift), 0)
    }
}
