//! `IQ3_XXS`: 256 weights in 98 bytes (3.0625 bits each), `d·(2·scale + 1)/4·(±g)`, `g` in 4, 12, … 62 from a codebook of 256 fours.
//!
//! ```text
//!  0        2          66               98
//! | d: f16 | qs: 64 B | 8 × w: u32 LE |
//! ```
//! One index per four weights. Per 32 weights `w` holds signs and scale as in IQ2_XXS.

use super::block32::half_at;
use super::block256::{self, Block256, Unpacked, apply_signs, u32_at};
use super::grids;
use crate::{Activation, Format};

const BYTES: usize = 98;

pub(super) static FORMAT: Format = Format {
    id: 18,
    name: "IQ3_XXS",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Iq3Xxs, BYTES>,
    quantize: None,
    scalar: block256::dot::<Iq3Xxs, BYTES>,
    avx2: None,
    avx512: None,
    neon: None,
};

struct Iq3Xxs;

impl Block256<BYTES> for Iq3Xxs {
    #[inline(always)]
    fn unpack(block: &[u8; BYTES], out: &mut Unpacked) -> (f32, f32) {
        for s in 0..8 {
            let w = u32_at(block, 66 + 4 * s);
            let scale = 2 * (w >> 28) as i16 + 1;
            (out.scale[2 * s], out.scale[2 * s + 1]) = (scale, scale);
            for l in 0..4 {
                let qs = &block[2 + 8 * s + 2 * l..][..2];
                let low = u64::from(grids::IQ3_XXS[usize::from(qs[0])]);
                let high = u64::from(grids::IQ3_XXS[usize::from(qs[1])]);
                let minus = grids::SIGN_BYTES[usize::from(grids::even_signs(w >> (7 * l)))];
                out.put8(4 * s + l, apply_signs(low | high << 32, minus));
            }
        }
        (half_at(block, 0) / 4.0, 0.0)
    }
}
