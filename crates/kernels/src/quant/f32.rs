//! `F32`: one little-endian float per weight.

use super::floats::{self, Float};
use crate::{Activation, Format};

pub(super) static FORMAT: Format = Format {
    id: 0,
    name: "F32",
    block_elements: 1,
    block_bytes: 4,
    activation: Activation::F32,
    dequantize: floats::dequantize::<F32, 4>,
    quantize: Some(quantize),
    scalar: floats::dot::<F32, 4>,
    avx2: None,
    avx512: None,
    neon: None,
};

struct F32;

impl Float<4> for F32 {
    #[inline(always)]
    fn decode(bytes: [u8; 4]) -> f32 {
        f32::from_le_bytes(bytes)
    }
}

fn quantize(x: &[f32], out: &mut [u8]) {
    out.copy_from_slice(bytemuck::cast_slice(x));
}
