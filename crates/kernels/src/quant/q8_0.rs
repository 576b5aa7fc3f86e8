//! `Q8_0`: 32 weights in 34 bytes (8.5 bits each), `d · q`.
//!
//! ```text
//!  0        2                    34
//! | d: f16 | q0 | q1 | … | q31 |     signed bytes
//! ```

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::{self, Block32, half_at, inverse};
#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::{Activation, Format};

pub(super) const BYTES: usize = 34;

pub(super) static FORMAT: Format = Format {
    id: 8,
    name: "Q8_0",
    block_elements: 32,
    block_bytes: BYTES,
    activation: Activation::Q8_0,
    dequantize: block32::dequantize::<Q8_0, BYTES>,
    quantize: Some(quantize),
    scalar: block32::scalar::<Q8_0, BYTES>(),
    avx2: on_x86!(x86::block32::avx2::<Q8_0, BYTES>()),
    avx512: on_x86!(x86::block32::avx512::<Q8_0, BYTES>()),
    neon: on_neon!(super::neon::block32::neon::<Q8_0, BYTES>()),
};

pub(super) struct Q8_0;

impl Block32<BYTES> for Q8_0 {
    #[inline(always)]
    fn unpack(block: &[u8; BYTES], q: &mut [i8; 32]) -> (f32, f32) {
        for (q, byte) in q.iter_mut().zip(&block[2..]) {
            *q = *byte as i8;
        }
        (half_at(block, 0), 0.0)
    }
}

/// Rounds half away from zero, as ggml's reference does.
fn quantize(x: &[f32], out: &mut [u8]) {
    assert_eq!(x.len() / 32 * BYTES, out.len(), "whole row");
    for (x, out) in x.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<BYTES>().0) {
        let d = x.iter().fold(0.0f32, |a, x| a.max(x.abs())) / 127.0;
        let id = inverse(d);
        out[..2].copy_from_slice(&half::f16::from_f32(d).to_le_bytes());
        for (out, x) in out[2..].iter_mut().zip(x) {
            *out = (x * id).round() as i8 as u8;
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl x86::block32::X86Block32<BYTES> for Q8_0 {
    const OFFSET: i32 = 128;
    const WIDE: bool = true;
    const TILE_TOP: i32 = 255;
    const TILE_CHAIN: usize = 0;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(block: &[u8; BYTES]) -> __m256i {
        _mm256_xor_si256(x86::load32(block, 2), _mm256_set1_epi8(-128))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load_two(a: &[u8; BYTES], b: &[u8; BYTES]) -> [__m256i; 2] {
        [x86::rows32::two_halves(a, b, 2), x86::rows32::two_halves(a, b, 18)]
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn multiply(q: __m256i, x: __m256i) -> __m256i {
        x86::signed_pairs(q, x)
    }
}
