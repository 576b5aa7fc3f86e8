//! `TQ2_0`: 256 weights in 66 bytes (2.0625 bits each), `d·(q − 1)`.
//!
//! ```text
//!  0          64       66
//! | qs: 64 B | d: f16 |
//! ```
//! `qs` as in Q2_K.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::half_at;
use super::block256::{self, Block256};
#[cfg(target_arch = "x86_64")]
use super::x86::{self, avx512 as wide};
use crate::{Activation, Format};

pub(super) const BYTES: usize = 66;

pub(super) static FORMAT: Format = Format {
    id: 35,
    name: "TQ2_0",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Tq2_0, BYTES>,
    quantize: None,
    scalar: block256::scalar::<Tq2_0, BYTES>(),
    avx2: on_x86!(x86::block256::avx2::<Tq2_0, BYTES>()),
    avx512: on_x86!(x86::block256::avx512::<Tq2_0, BYTES>()),
    neon: on_neon!(super::neon::block256::neon::<Tq2_0, BYTES>()),
};

pub(super) struct Tq2_0;

impl Block256<BYTES> for Tq2_0 {
    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> (f32, f32) {
        (half_at(block, 64), 0.0)
    }

    #[inline(always)]
    fn scales(_block: &[u8; BYTES], scale: &mut [i16; 16], _min: &mut [i16; 16]) {
        *scale = [1; 16];
    }

    #[inline(always)]
    fn quants(block: &[u8; BYTES], q: &mut [i8; 256]) {
        for half in 0..2 {
            let qs = &block[32 * half..][..32];
            for g in 0..4 {
                for l in 0..32 {
                    q[128 * half + 32 * g + l] = (qs[l] >> (2 * g) & 3) as i8 - 1;
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl x86::block256::X86Block256<BYTES> for Tq2_0 {
    const OFFSET: i32 = 1;
    const UNIT_AT: usize = 64;
    const TILE_TOP: i32 = 3;
    const TILE_CHAIN: usize = 8;
    const SHARED: usize = 32;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scale_words(_block: &[u8; BYTES]) -> (__m256i, __m256i) {
        (_mm256_set1_epi16(1), _mm256_setzero_si256())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn raised(block: &[u8; BYTES], s: usize) -> __m256i {
        let qs = x86::load32(block, 32 * (s / 4));
        x86::field(qs, 2 * (s % 4), 3)
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn wide(block: &[u8; BYTES], s: usize) -> (__m512i, u64) {
        let qs = x86::load32(block, 32 * (s / 2));
        let shift = 4 * (s % 2);
        (wide::two_fields(qs, shift, shift + 2, 3), 0)
    }
}
