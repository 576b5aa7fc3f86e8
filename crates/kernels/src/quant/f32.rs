//! `F32`: one little-endian float per weight.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::floats::{self, Float};
#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::{Activation, Format};

pub(super) static FORMAT: Format = Format {
    id: 0,
    name: "F32",
    block_elements: 1,
    block_bytes: 4,
    activation: Activation::F32,
    dequantize: floats::dequantize::<F32, 4>,
    quantize: Some(quantize),
    scalar: floats::scalar::<F32, 4>(),
    avx2: on_x86!(x86::floats::avx2::<F32, 4>()),
    avx512: on_x86!(x86::floats::avx512::<F32, 4>()),
    neon: on_neon!(super::neon::floats::neon::<F32, 4>()),
};

pub(super) struct F32;

impl Float<4> for F32 {
    #[inline(always)]
    fn decode(bytes: [u8; 4]) -> f32 {
        f32::from_le_bytes(bytes)
    }
}

fn quantize(x: &[f32], out: &mut [u8]) {
    out.copy_from_slice(bytemuck::cast_slice(x));
}

#[cfg(target_arch = "x86_64")]
impl x86::floats::X86Float<4> for F32 {
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load8(weights: *const u8) -> __m256 {
        // SAFETY: the caller's promise: eight weights are readable. The load needs no alignment.
        unsafe { _mm256_loadu_ps(weights.cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn load16(weights: *const u8) -> __m512 {
        // SAFETY: as above, sixteen.
        unsafe { _mm512_loadu_ps(weights.cast()) }
    }
}
