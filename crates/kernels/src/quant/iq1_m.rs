//! `IQ1_M`: 256 weights in 56 bytes (1.75 bits each), `d·(2·scale + 1)·(g ± 1/8)`, `g` in −1, 0, 1 from a codebook of 2048 eights.
//!
//! ```text
//!  0          32           48                  56
//! | qs: 32 B | high: 16 B | scales: 4 u16 LE |
//! ```
//! Eight `i` has the nibble `i mod 2` of `high[i / 2]`: three index bits above the eight of `qs[i]`, and the sign of its shift of 1/8 (bit 3
//! set: minus). Each `scales` word holds four scales of three bits, one per 16 weights; its top four bits are a quarter of the half `d`,
//! the first word the lowest.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block256::{self, Block256, u16_at};
use super::grids;
#[cfg(target_arch = "x86_64")]
use super::x86::{self, avx512 as wide};
use crate::ops::widen;
use crate::{Activation, Format};

pub(super) const BYTES: usize = 56;

pub(super) static FORMAT: Format = Format {
    id: 29,
    name: "IQ1_M",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Iq1M, BYTES>,
    quantize: None,
    scalar: block256::scalar::<Iq1M, BYTES>(),
    avx2: on_x86!(x86::block256::avx2::<Iq1M, BYTES>()),
    avx512: on_x86!(x86::block256::avx512::<Iq1M, BYTES>()),
    neon: on_neon!(super::neon::block256::neon::<Iq1M, BYTES>()),
};

pub(super) struct Iq1M;

impl Block256<BYTES> for Iq1M {
    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> (f32, f32) {
        // With the eighth of the family's integer form.
        (widen(unit_bits(words(block))) / 8.0, 0.0)
    }

    #[inline(always)]
    fn scales(block: &[u8; BYTES], scale: &mut [i16; 16], _min: &mut [i16; 16]) {
        let words = words(block);
        for (i, scale) in scale.iter_mut().enumerate() {
            *scale = 2 * (words[i / 4] >> (3 * (i % 4)) & 7) as i16 + 1;
        }
    }

    #[inline(always)]
    fn quants(block: &[u8; BYTES], q: &mut [i8; 256]) {
        for i in 0..32 {
            let high = block[32 + i / 2] >> (4 * (i % 2));
            let index = usize::from(block[i]) | usize::from(high & 7) << 8;
            let shift = if high & 8 == 0 { 1 } else { -1 };
            let g = grids::IQ1[index].to_le_bytes();
            for (q, g) in q[8 * i..][..8].iter_mut().zip(g) {
                *q = g as i8 + shift;
            }
        }
    }
}

/// The four words of scales.
#[inline(always)]
pub(super) fn words(block: &[u8; BYTES]) -> [u16; 4] {
    [u16_at(block, 48), u16_at(block, 50), u16_at(block, 52), u16_at(block, 54)]
}

/// The half of the block's unit, gathered from the top bits of the scale words.
#[inline(always)]
pub(super) fn unit_bits(words: [u16; 4]) -> u16 {
    words[0] >> 12 | words[1] >> 8 & 0xf0 | words[2] >> 4 & 0xf00 | words[3] & 0xf000
}

#[cfg(target_arch = "x86_64")]
impl x86::block256::X86Block256<BYTES> for Iq1M {
    const UNIT_FACTOR: f32 = 0.125;
    const TILE_OFFSET: i32 = 9;
    const TILE_CHAIN: usize = 4;
    const WIDE_OFFSET: i32 = 9;
    const SHARED: usize = 16;

    #[inline(always)]
    fn halves(block: &[u8; BYTES]) -> u32 {
        unit_bits(words(block)).into()
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn pairs(block: &[u8; BYTES], s: usize, x: __m256i) -> __m256i {
        let high = u16_at(block, 32 + 2 * s);
        let g = x86::four_eights(|l| {
            grids::IQ1[usize::from(block[4 * s + l]) | usize::from(high >> (4 * l) & 7) << 8]
        });
        // Eight l looks at bit 3 of nibble l: −1 where it is set, else 1.
        let bits = _mm256_setr_epi64x(
            0x0008_0008_0008_0008,
            0x0080_0080_0080_0080,
            0x0800_0800_0800_0800,
            0x8000_8000_8000_8000u64 as i64,
        );
        let set = _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16(high as i16), bits), bits);
        let shift = _mm256_or_si256(set, _mm256_set1_epi8(1));
        x86::signed_pairs(_mm256_add_epi8(g, shift), x)
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn wide(block: &[u8; BYTES], s: usize) -> (__m512i, u64) {
        let high = block256::u32_at(block, 32 + 4 * s) as usize;
        let g =
            wide::eight_eights(|l| grids::IQ1[usize::from(block[8 * s + l]) | (high >> (4 * l) & 7) << 8]);
        // Eight l looks at bit 3 of nibble l: a shift of −1 where it is set, else 1, with the offset.
        let minus = _mm512_test_epi64_mask(
            _mm512_set1_epi64(high as i64),
            _mm512_setr_epi64(1 << 3, 1 << 7, 1 << 11, 1 << 15, 1 << 19, 1 << 23, 1 << 27, 1 << 31),
        );
        let shift = _mm512_mask_blend_epi64(minus, _mm512_set1_epi8(10), _mm512_set1_epi8(8));
        (_mm512_add_epi8(g, shift), 0)
    }
}
