//! `Q4_K`: 256 weights in 144 bytes (4.5 bits each), `d·scale·q − dmin·min`, a scale and a minimum per 32.
//!
//! ```text
//!  0        2           4              16          144
//! | d: f16 | dmin: f16 | scales: 12 B | qs: 128 B |
//! ```
//! Each 32 bytes of `qs` hold 64 weights: the low nibbles the first 32, the high ones the next. Scales and minima have six bits: for the
//! first four the low six bits of bytes `j` and `j + 4`; for the others the nibbles of byte `j + 8` with the top two bits of those bytes.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::half_at;
use super::block256::{self, Block256, scales_and_mins};
#[cfg(target_arch = "x86_64")]
use super::x86::{self, avx512 as wide};
use crate::{Activation, Format};

pub(super) const BYTES: usize = 144;

pub(super) static FORMAT: Format = Format {
    id: 12,
    name: "Q4_K",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Q4K, BYTES>,
    quantize: None,
    scalar: block256::scalar::<Q4K, BYTES>(),
    avx2: on_x86!(x86::block256::avx2::<Q4K, BYTES>()),
    avx512: on_x86!(x86::block256::avx512::<Q4K, BYTES>()),
    neon: on_neon!(super::neon::block256::neon::<Q4K, BYTES>()),
};

pub(super) struct Q4K;

impl Block256<BYTES> for Q4K {
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
        for pair in 0..4 {
            let qs = &block[16 + 32 * pair..][..32];
            for l in 0..32 {
                q[64 * pair + l] = (qs[l] & 15) as i8;
                q[64 * pair + 32 + l] = (qs[l] >> 4) as i8;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl x86::block256::X86Block256<BYTES> for Q4K {
    const TILE_TOP: i32 = 15;
    const TILE_CHAIN: usize = 8;
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
        let qs = x86::load32(block, 16 + 32 * (s / 2));
        x86::field(qs, 4 * (s % 2), 15)
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn wide(block: &[u8; BYTES], s: usize) -> (__m512i, u64) {
        (wide::two_fields(x86::load32(block, 16 + 32 * s), 0, 4, 15), 0)
    }
}
