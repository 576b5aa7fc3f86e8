//! `MXFP4`: 32 weights in 17 bytes (4.25 bits each), `2^(e − 128) · level[q]`, the levels being twice those of FP4 (E2M1).
//!
//! ```text
//!  0       1                                17
//! | e: u8 | q0 q16 | q1 q17 | … | q15 q31 |     two nibbles per byte, the low one first
//! ```

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::{self, Block32, nibbles};
#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::{Activation, Format};

pub(super) const BYTES: usize = 17;

pub(super) static FORMAT: Format = Format {
    id: 39,
    name: "MXFP4",
    block_elements: 32,
    block_bytes: BYTES,
    activation: Activation::Q8_0,
    dequantize: block32::dequantize::<Mxfp4, BYTES>,
    quantize: None,
    scalar: block32::scalar::<Mxfp4, BYTES>(),
    avx2: on_x86!(x86::block32::avx2::<Mxfp4, BYTES>()),
    avx512: on_x86!(x86::block32::avx512::<Mxfp4, BYTES>()),
    neon: on_neon!(super::neon::block32::neon::<Mxfp4, BYTES>()),
};

pub(super) static LEVELS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
/// The levels plus 12.
#[cfg(target_arch = "x86_64")]
static LIFTED: [i8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

pub(super) struct Mxfp4;

impl Block32<BYTES> for Mxfp4 {
    #[inline(always)]
    fn unpack(block: &[u8; BYTES], q: &mut [i8; 32]) -> (f32, f32) {
        nibbles(&block[1..], |i, n| q[i] = LEVELS[usize::from(n)]);
        (unit(block[0]), 0.0)
    }
}

/// `2^(e − 128)`: an exponent one below `e`'s own, so 0 and 1 are subnormal.
#[inline(always)]
pub(super) fn unit(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

#[cfg(target_arch = "x86_64")]
impl x86::block32::X86Block32<BYTES> for Mxfp4 {
    const OFFSET: i32 = 12;
    const TILE_TOP: i32 = 24;
    const TILE_CHAIN: usize = 8;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(block: &[u8; BYTES]) -> __m256i {
        x86::look_up(&LIFTED, x86::nibbles(block, 1))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load_two(a: &[u8; BYTES], b: &[u8; BYTES]) -> [__m256i; 2] {
        let [low, high] = x86::rows32::two_nibbles(a, b, 1);
        [x86::look_up(&LIFTED, low), x86::look_up(&LIFTED, high)]
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn units_of_two(columns: [[&[u8; BYTES]; 4]; 2]) -> (__m256, __m256) {
        let e = x86::rows32::bytes_of_two(columns);
        let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
        let subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
        let small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
        (_mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, small)), _mm256_setzero_ps())
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn units(b: [&[u8; BYTES]; 4]) -> (__m128, __m128) {
        let d = _mm_setr_ps(unit(b[0][0]), unit(b[1][0]), unit(b[2][0]), unit(b[3][0]));
        (d, _mm_setzero_ps())
    }
}
