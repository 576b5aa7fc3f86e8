//! `IQ3_S`: 256 weights in 110 bytes (3.4375 bits each), `d·(2·scale + 1)·(±g)`, `g` in 1, 3, … 15 from a codebook of 512 fours.
//!
//! ```text
//!  0        2          66          74            106             110
//! | d: f16 | qs: 64 B | high: 8 B | signs: 32 B | scales: 4 B |
//! ```
//! Four `i` has index bits `qs[i]` and above them bit `i mod 8` of `high[i / 8]`; a bit per sign; a scale of four bits per 32 weights, the low
//! nibble first.

use super::block32::half_at;
use super::block256::{self, Block256, Unpacked, apply_signs};
use super::grids;
use crate::{Activation, Format};

const BYTES: usize = 110;

pub(super) static FORMAT: Format = Format {
    id: 21,
    name: "IQ3_S",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Iq3S, BYTES>,
    quantize: None,
    scalar: block256::dot::<Iq3S, BYTES>,
    avx2: None,
    avx512: None,
    neon: None,
};

struct Iq3S;

impl Block256<BYTES> for Iq3S {
    #[inline(always)]
    fn unpack(block: &[u8; BYTES], out: &mut Unpacked) -> (f32, f32) {
        for i in 0..16 {
            out.scale[i] = 2 * i16::from(block[106 + i / 4] >> (4 * (i / 2 % 2)) & 15) + 1;
        }
        for i in 0..32 {
            let high = usize::from(block[66 + i / 4] >> (2 * (i % 4)));
            let four = |k: usize| u64::from(grids::IQ3_S[usize::from(block[2 + 2 * i + k]) | (high >> k & 1) << 8]);
            let minus = grids::SIGN_BYTES[usize::from(block[74 + i])];
            out.put8(i, apply_signs(four(0) | four(1) << 32, minus));
        }
        (half_at(block, 0), 0.0)
    }
}
