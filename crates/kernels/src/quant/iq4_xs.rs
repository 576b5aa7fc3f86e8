//! `IQ4_XS`: 256 weights in 136 bytes (4.25 bits each), `d·(scale − 32)·level[q]` with the sixteen uneven levels of IQ4_NL, a scale per 32.
//!
//! ```text
//!  0        2                 4            8           136
//! | d: f16 | high: u16 LE | low: 4 B | qs: 128 B |
//! ```
//! Scale `s` has its low four bits in a nibble of `low[s / 2]` (the low one first) and its high two in bits `2·s` up of `high`. Each 16 bytes of
//! `qs` hold 32 weights: the low nibbles the first 16, the high ones the next.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::half_at;
#[cfg(target_arch = "x86_64")]
use super::block256::u32_at;
use super::block256::{self, Block256, u16_at};
use super::grids;
#[cfg(target_arch = "x86_64")]
use super::x86::{self, avx512 as wide};
use crate::{Activation, Format};

pub(super) const BYTES: usize = 136;

pub(super) static FORMAT: Format = Format {
    id: 23,
    name: "IQ4_XS",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Iq4Xs, BYTES>,
    quantize: None,
    scalar: block256::scalar::<Iq4Xs, BYTES>(),
    avx2: on_x86!(x86::block256::avx2::<Iq4Xs, BYTES>()),
    avx512: on_x86!(x86::block256::avx512::<Iq4Xs, BYTES>()),
    neon: on_neon!(super::neon::block256::neon::<Iq4Xs, BYTES>()),
};

pub(super) struct Iq4Xs;

impl Block256<BYTES> for Iq4Xs {
    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> (f32, f32) {
        (half_at(block, 0), 0.0)
    }

    #[inline(always)]
    fn scales(block: &[u8; BYTES], scale: &mut [i16; 16], _min: &mut [i16; 16]) {
        let high = u16_at(block, 2);
        for (i, scale) in scale.iter_mut().enumerate() {
            let s = i / 2;
            let low = u16::from(block[4 + s / 2] >> (4 * (s % 2)) & 15);
            *scale = (low | (high >> (2 * s) & 3) << 4) as i16 - 32;
        }
    }

    #[inline(always)]
    fn quants(block: &[u8; BYTES], q: &mut [i8; 256]) {
        for s in 0..8 {
            let qs = &block[8 + 16 * s..][..16];
            for l in 0..16 {
                q[32 * s + l] = grids::IQ4[usize::from(qs[l] & 15)];
                q[32 * s + 16 + l] = grids::IQ4[usize::from(qs[l] >> 4)];
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl x86::block256::X86Block256<BYTES> for Iq4Xs {
    const TILE_FROM: usize = 4;
    const TILE_CHAIN: usize = 0; // the levels span −127..=113
    const SHARED: usize = 32;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scale_words(block: &[u8; BYTES]) -> (__m256i, __m256i) {
        let low = _mm_cvtsi32_si128(u32_at(block, 4) as i32);
        let low = _mm_unpacklo_epi8(low, _mm_srli_epi16::<4>(low));
        let low = _mm_cvtepu8_epi16(_mm_and_si128(low, _mm_set1_epi8(15)));
        // A product moves the two bits of each scale to the top.
        let high = _mm_set1_epi16(u16_at(block, 2) as i16);
        let high = _mm_mullo_epi16(high, _mm_setr_epi16(1 << 14, 1 << 12, 1 << 10, 256, 64, 16, 4, 1));
        let high = _mm_slli_epi16::<4>(_mm_srli_epi16::<14>(high));
        let scales = _mm_sub_epi16(_mm_or_si128(low, high), _mm_set1_epi16(32));
        let twice = _mm256_set_m128i(_mm_unpackhi_epi16(scales, scales), _mm_unpacklo_epi16(scales, scales));
        (twice, _mm256_setzero_si256())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn raised(block: &[u8; BYTES], s: usize) -> __m256i {
        x86::look_up(&grids::IQ4, x86::nibbles(block, 8 + 16 * s))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn pairs(block: &[u8; BYTES], s: usize, x: __m256i) -> __m256i {
        // SAFETY: AVX2 is on.
        x86::signed_pairs(x, unsafe { Self::raised(block, s) })
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn wide(block: &[u8; BYTES], s: usize) -> (__m512i, u64) {
        let q = wide::look_up_nibbles(&grids::IQ4, x86::load32(block, 8 + 32 * s));
        (_mm512_abs_epi8(q), _mm512_movepi8_mask(q))
    }
}
