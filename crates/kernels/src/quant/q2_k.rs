//! `Q2_K`: 256 weights in 84 bytes (2.625 bits each), `d·scale·q − dmin·min`, a scale and a minimum per 16.
//!
//! ```text
//!  0                 16          80       82          84
//! | scales: 16 bytes | qs: 64 B | d: f16 | dmin: f16 |
//! ```
//! A scale byte holds the scale (low nibble) and the minimum (high nibble) of a group of 16. Byte `l` of each half of `qs` (32 bytes)
//! holds two bits of elements `l`, `l + 32`, `l + 64` and `l + 96` of that half of the block, the first lowest.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::half_at;
use super::block256::{self, Block256};
#[cfg(target_arch = "x86_64")]
use super::x86::{self, avx512 as wide};
use crate::{Activation, Format};

pub(super) const BYTES: usize = 84;

pub(super) static FORMAT: Format = Format {
    id: 10,
    name: "Q2_K",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Q2K, BYTES>,
    quantize: None,
    scalar: block256::scalar::<Q2K, BYTES>(),
    avx2: on_x86!(x86::block256::avx2::<Q2K, BYTES>()),
    avx512: on_x86!(x86::block256::avx512::<Q2K, BYTES>()),
    neon: on_neon!(super::neon::block256::neon::<Q2K, BYTES>()),
};

pub(super) struct Q2K;

impl Block256<BYTES> for Q2K {
    const MIN: bool = true;

    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> (f32, f32) {
        (half_at(block, 80), half_at(block, 82))
    }

    #[inline(always)]
    fn scales(block: &[u8; BYTES], scale: &mut [i16; 16], min: &mut [i16; 16]) {
        for (i, s) in block[..16].iter().enumerate() {
            scale[i] = i16::from(s & 15);
            min[i] = i16::from(s >> 4);
        }
    }

    #[inline(always)]
    fn quants(block: &[u8; BYTES], q: &mut [i8; 256]) {
        for half in 0..2 {
            let qs = &block[16 + 32 * half..][..32];
            for g in 0..4 {
                for l in 0..32 {
                    q[128 * half + 32 * g + l] = (qs[l] >> (2 * g) & 3) as i8;
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl x86::block256::X86Block256<BYTES> for Q2K {
    const UNIT_AT: usize = 80;
    const TILE_TOP: i32 = 3;
    const TILE_CHAIN: usize = 4;
    const SHARED: usize = 16;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scale_words(block: &[u8; BYTES]) -> (__m256i, __m256i) {
        let bytes = x86::load16(block, 0);
        // (Seen through, the shuffles that follow would become dearer ones.)
        let low = |v| x86::codebook::opaque(_mm256_cvtepu8_epi16(_mm_and_si128(v, _mm_set1_epi8(15))));
        (low(bytes), low(_mm_srli_epi16::<4>(bytes)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn raised(block: &[u8; BYTES], s: usize) -> __m256i {
        let qs = x86::load32(block, 16 + 32 * (s / 4));
        x86::field(qs, 2 * (s % 4), 3)
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn wide(block: &[u8; BYTES], s: usize) -> (__m512i, u64) {
        let qs = x86::load32(block, 16 + 32 * (s / 2));
        let shift = 4 * (s % 2);
        (wide::two_fields(qs, shift, shift + 2, 3), 0)
    }
}
