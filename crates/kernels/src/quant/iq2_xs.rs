//! `IQ2_XS`: 256 weights in 74 bytes (2.3125 bits each), `d·(2·scale + 1)/8·(±g)`, `g` in 8, 25, 43 from a codebook of 512 eights.
//!
//! ```text
//!  0        2                66              74
//! | d: f16 | 32 × u16 LE | scales: 8 B |
//! ```
//! A word holds nine index bits and above them seven sign bits (the eighth makes the number of minus signs even). A scale is four bits
//! per 16 weights, the low nibble first.

use super::block32::half_at;
use super::block256::{self, Block256, Unpacked, apply_signs, u16_at};
use super::grids;
use crate::{Activation, Format};

const BYTES: usize = 74;

pub(super) static FORMAT: Format = Format {
    id: 17,
    name: "IQ2_XS",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Iq2Xs, BYTES>,
    quantize: None,
    scalar: block256::dot::<Iq2Xs, BYTES>,
    avx2: None,
    avx512: None,
    neon: None,
};

struct Iq2Xs;

impl Block256<BYTES> for Iq2Xs {
    #[inline(always)]
    fn unpack(block: &[u8; BYTES], out: &mut Unpacked) -> (f32, f32) {
        for i in 0..16 {
            out.scale[i] = 2 * i16::from(block[66 + i / 2] >> (4 * (i % 2)) & 15) + 1;
        }
        for i in 0..32 {
            let word = u16_at(block, 2 + 2 * i);
            let minus = grids::SIGN_BYTES[usize::from(grids::even_signs(u32::from(word >> 9)))];
            out.put8(i, apply_signs(grids::IQ2_XS[usize::from(word & 511)], minus));
        }
        (half_at(block, 0) / 8.0, 0.0)
    }
}
