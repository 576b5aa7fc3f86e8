//! `F16`: one IEEE half per weight.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::floats::{self, Float};
#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::ops::{narrow, widen};
use crate::{Activation, Format};

pub(super) static FORMAT: Format = Format {
    id: 1,
    name: "F16",
    block_elements: 1,
    block_bytes: 2,
    activation: Activation::F32,
    dequantize: floats::dequantize::<F16, 2>,
    quantize: Some(quantize),
    scalar: floats::scalar::<F16, 2>(),
    avx2: on_x86!(x86::floats::avx2::<F16, 2>()),
    avx512: on_x86!(x86::floats::avx512::<F16, 2>()),
    neon: on_neon!(super::neon::floats::neon::<F16, 2>()),
};

pub(super) struct F16;

impl Float<2> for F16 {
    #[inline(always)]
    fn decode(bytes: [u8; 2]) -> f32 {
        widen(u16::from_le_bytes(bytes))
    }
}

/// Rounds half to even.
fn quantize(x: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), x.len() * 2, "whole row");
    for (x, out) in x.iter().zip(out.as_chunks_mut::<2>().0) {
        *out = narrow(*x).to_le_bytes();
    }
}

#[cfg(target_arch = "x86_64")]
impl x86::floats::X86Float<2> for F16 {
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load8(weights: *const u8) -> __m256 {
        // SAFETY: the caller's promise: eight weights are readable. The load needs no alignment.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(weights.cast())) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn load16(weights: *const u8) -> __m512 {
        // SAFETY: as above, sixteen.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(weights.cast())) }
    }
}
