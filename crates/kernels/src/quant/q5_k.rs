//! `Q5_K`: 256 weights in 176 bytes (5.5 bits each), `d·scale·q − dmin·min`, a scale and a minimum per 32.
//!
//! ```text
//!  0        2           4              16           48          176
//! | d: f16 | dmin: f16 | scales: 12 B | high: 32 B | qs: 128 B |
//! ```
//! Scales and `qs` as in Q4_K; bit `s` of `high[l]` is bit 4 of element `32·s + l`.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::half_at;
use super::block256::{self, Block256, scales_and_mins};
#[cfg(target_arch = "x86_64")]
use super::x86::{self, avx512 as wide};
use crate::{Activation, Format};

pub(super) const BYTES: usize = 176;

pub(super) static FORMAT: Format = Format {
    id: 13,
    name: "Q5_K",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Q5K, BYTES>,
    quantize: None,
    scalar: block256::scalar::<Q5K, BYTES>(),
    avx2: on_x86!(x86::block256::avx2::<Q5K, BYTES>()),
    avx512: on_x86!(x86::block256::avx512::<Q5K, BYTES>()),
    neon: on_neon!(super::neon::block256::neon::<Q5K, BYTES>()),
};

pub(super) struct Q5K;

impl Block256<BYTES> for Q5K {
    const MIN: bool = true;

    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> (f32, f32) {
        (half_at(block, 0), half_at(block, 2))
    }

    #[inline(always)]
    fn scales(block: &[u8; BYTES], scale: &mut [i16; 16], min: &mut [i16; 16]) {
        scales_and_mins(&block[4..16], scale, min);
    }

    #[inline(always)]
    fn quants(block: &[u8; BYTES], q: &mut [i8; 256]) {
        let high = &block[16..48];
        for pair in 0..4 {
            let qs = &block[48 + 32 * pair..][..32];
            for l in 0..32 {
                q[64 * pair + l] = (qs[l] & 15 | (high[l] >> (2 * pair) & 1) << 4) as i8;
                q[64 * pair + 32 + l] = (qs[l] >> 4 | (high[l] >> (2 * pair + 1) & 1) << 4) as i8;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl x86::block256::X86Block256<BYTES> for Q5K {
    const TILE_TOP: i32 = 31;
    const TILE_CHAIN: usize = 4;
    const SHARED: usize = 32;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scale_words(block: &[u8; BYTES]) -> (__m256i, __m256i) {
        let packed = block[4..].first_chunk().expect("twelve bytes of scales");
        x86::block256::scale_and_min_words(packed)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn raised(block: &[u8; BYTES], s: usize) -> __m256i {
        let low = x86::field(x86::load32(block, 48 + 32 * (s / 2)), 4 * (s % 2), 15);
        let top = x86::where_bit(x86::load32(block, 16), s, 16);
        _mm256_or_si256(low, top)
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn wide(block: &[u8; BYTES], s: usize) -> (__m512i, u64) {
        let low = wide::two_fields(x86::load32(block, 48 + 32 * s), 0, 4, 15);
        (wide::add_where_bit(low, x86::load32(block, 16), 2 * s, 16), 0)
    }
}
