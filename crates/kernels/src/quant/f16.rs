//! `F16`: one IEEE half per weight.

use half::f16;

use super::floats::{self, Float};
use crate::{Activation, Format};

pub(super) static FORMAT: Format = Format {
    id: 1,
    name: "F16",
    block_elements: 1,
    block_bytes: 2,
    activation: Activation::F32,
    dequantize: floats::dequantize::<F16, 2>,
    quantize: Some(quantize),
    scalar: floats::dot::<F16, 2>,
    avx2: None,
    avx512: None,
    neon: None,
};

struct F16;

impl Float<2> for F16 {
    #[inline(always)]
    fn decode(bytes: [u8; 2]) -> f32 {
        f16::from_le_bytes(bytes).to_f32()
    }
}

/// Rounds half to even.
fn quantize(x: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), x.len() * 2, "whole row");
    for (x, out) in x.iter().zip(out.as_chunks_mut::<2>().0) {
        *out = f16::from_f32(*x).to_le_bytes();
    }
}
