//! `BF16`: the upper half of a float per weight.

use half::bf16;

use super::floats::{self, Float};
use crate::{Activation, Format};

pub(super) static FORMAT: Format = Format {
    id: 30,
    name: "BF16",
    block_elements: 1,
    block_bytes: 2,
    activation: Activation::F32,
    dequantize: floats::dequantize::<Bf16, 2>,
    quantize: Some(quantize),
    scalar: floats::dot::<Bf16, 2>,
    avx2: None,
    avx512: None,
    neon: None,
};

struct Bf16;

impl Float<2> for Bf16 {
    #[inline(always)]
    fn decode(bytes: [u8; 2]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
    }
}

/// Rounds half to even.
fn quantize(x: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), x.len() * 2, "whole row");
    for (x, out) in x.iter().zip(out.as_chunks_mut::<2>().0) {
        *out = bf16::from_f32(*x).to_le_bytes();
    }
}
