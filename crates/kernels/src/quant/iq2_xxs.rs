//! `IQ2_XXS`: 256 weights in 66 bytes (2.0625 bits each), `d·(2·scale + 1)/8·(±g)`, `g` in 8, 25, 43 from a codebook of 256 eights.
//!
//! ```text
//!  0        2                                      66
//! | d: f16 | 8 × ( 4 indices: 4 B | w: u32 LE ) |
//! ```
//! Per 32 weights: four indices, and in `w` four times seven sign bits from the lowest up (the eighth sign makes the number of minus
//! signs even), the scale in the top four bits.

use super::block32::half_at;
use super::block256::{self, Block256, Unpacked, apply_signs, u32_at};
use super::grids;
use crate::{Activation, Format};

const BYTES: usize = 66;

pub(super) static FORMAT: Format = Format {
    id: 16,
    name: "IQ2_XXS",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Iq2Xxs, BYTES>,
    quantize: None,
    scalar: block256::dot::<Iq2Xxs, BYTES>,
    avx2: None,
    avx512: None,
    neon: None,
};

struct Iq2Xxs;

impl Block256<BYTES> for Iq2Xxs {
    #[inline(always)]
    fn unpack(block: &[u8; BYTES], out: &mut Unpacked) -> (f32, f32) {
        for s in 0..8 {
            let w = u32_at(block, 6 + 8 * s);
            let scale = 2 * (w >> 28) as i16 + 1;
            (out.scale[2 * s], out.scale[2 * s + 1]) = (scale, scale);
            for l in 0..4 {
                let minus = grids::SIGN_BYTES[usize::from(grids::even_signs(w >> (7 * l)))];
                out.put8(4 * s + l, apply_signs(grids::IQ2_XXS[usize::from(block[2 + 8 * s + l])], minus));
            }
        }
        (half_at(block, 0) / 8.0, 0.0)
    }
}
