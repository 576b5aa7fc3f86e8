//! `Q3_K`: 256 weights in 110 bytes (3.4375 bits each), `d·(scale − 32)·(q − 4)`, a scale per 16.
//!
//! ```text
//!  0             32          96               108      110
//! | high: 32 B | qs: 64 B | scales: 12 B | d: f16 |
//! ```
//! `qs` as in Q2_K. Bit `4·half + g` of `high[l]` is bit 2 of element `128·half + 32·g + l`. The six bits of scale `i`: the low four are a
//! nibble of `scales[i mod 8]` (low for `i < 8`), the high two are bits `2·(i / 4)` up of `scales[8 + i mod 4]`.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::half_at;
use super::block256::{self, Block256};
#[cfg(target_arch = "x86_64")]
use super::x86::{self, avx512 as wide};
use crate::{Activation, Format};

pub(super) const BYTES: usize = 110;

pub(super) static FORMAT: Format = Format {
    id: 11,
    name: "Q3_K",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Q3K, BYTES>,
    quantize: None,
    scalar: block256::scalar::<Q3K, BYTES>(),
    avx2: on_x86!(x86::block256::avx2::<Q3K, BYTES>()),
    avx512: on_x86!(x86::block256::avx512::<Q3K, BYTES>()),
    neon: on_neon!(super::neon::block256::neon::<Q3K, BYTES>()),
};

pub(super) struct Q3K;

impl Block256<BYTES> for Q3K {
    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> (f32, f32) {
        (half_at(block, 108), 0.0)
    }

    #[inline(always)]
    fn scales(block: &[u8; BYTES], scale: &mut [i16; 16], _min: &mut [i16; 16]) {
        let scales = &block[96..108];
        for i in 0..16 {
            let low = scales[i % 8] >> (4 * (i / 8)) & 15;
            let top = scales[8 + i % 4] >> (2 * (i / 4)) & 3;
            scale[i] = i16::from(low | top << 4) - 32;
        }
    }

    #[inline(always)]
    fn quants(block: &[u8; BYTES], q: &mut [i8; 256]) {
        let high = &block[..32];
        for half in 0..2 {
            let qs = &block[32 + 32 * half..][..32];
            for g in 0..4 {
                for l in 0..32 {
                    let top = (high[l] >> (4 * half + g) & 1) << 2;
                    q[128 * half + 32 * g + l] = (qs[l] >> (2 * g) & 3 | top) as i8 - 4;
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl x86::block256::X86Block256<BYTES> for Q3K {
    const OFFSET: i32 = 4;
    const UNIT_AT: usize = 108;
    const TILE_TOP: i32 = 7;
    const TILE_CHAIN: usize = 4;
    const SHARED: usize = 16;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scale_words(block: &[u8; BYTES]) -> (__m256i, __m256i) {
        // (Two bytes early, so as not to read behind the block.)
        let packed = _mm_srli_si128::<2>(x86::load16(block, 94));
        let low = _mm_unpacklo_epi64(packed, _mm_srli_epi16::<4>(packed));
        let top = _mm_srlv_epi32(_mm_shuffle_epi32::<0b10_10_10_10>(packed), _mm_setr_epi32(0, 2, 4, 6));
        let top = _mm_slli_epi16::<4>(_mm_and_si128(top, _mm_set1_epi8(3)));
        let scales = _mm_or_si128(_mm_and_si128(low, _mm_set1_epi8(15)), top);
        (_mm256_cvtepi8_epi16(_mm_sub_epi8(scales, _mm_set1_epi8(32))), _mm256_setzero_si256())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn raised(block: &[u8; BYTES], s: usize) -> __m256i {
        let low = x86::field(x86::load32(block, 32 + 32 * (s / 4)), 2 * (s % 4), 3);
        let top = x86::where_bit(x86::load32(block, 0), s, 4);
        _mm256_or_si256(low, top)
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn wide(block: &[u8; BYTES], s: usize) -> (__m512i, u64) {
        let shift = 4 * (s % 2);
        let low = wide::two_fields(x86::load32(block, 32 + 32 * (s / 2)), shift, shift + 2, 3);
        (wide::add_where_bit(low, x86::load32(block, 0), 2 * s, 4), 0)
    }
}
