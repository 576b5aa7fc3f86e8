//! `IQ2_S`: 256 weights in 82 bytes (2.5625 bits each), `d·(2·scale + 1)/8·(±g)`, `g` in 8, 25, 43 from a codebook of 1024 eights.
//!
//! ```text
//!  0        2          34            66          74              82
//! | d: f16 | qs: 32 B | signs: 32 B | high: 8 B | scales: 8 B |
//! ```
//! Eight `i` has index bits `qs[i]` and above them bits `2·(i mod 4)` up of `high[i / 4]`, and a bit per sign in `signs[i]`. Scales as in IQ2_XS.

use super::block32::half_at;
use super::block256::{self, Block256, Unpacked, apply_signs};
use super::grids;
use crate::{Activation, Format};

const BYTES: usize = 82;

pub(super) static FORMAT: Format = Format {
    id: 22,
    name: "IQ2_S",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Iq2S, BYTES>,
    quantize: None,
    scalar: block256::dot::<Iq2S, BYTES>,
    avx2: None,
    avx512: None,
    neon: None,
};

struct Iq2S;

impl Block256<BYTES> for Iq2S {
    #[inline(always)]
    fn unpack(block: &[u8; BYTES], out: &mut Unpacked) -> (f32, f32) {
        for i in 0..16 {
            out.scale[i] = 2 * i16::from(block[74 + i / 2] >> (4 * (i % 2)) & 15) + 1;
        }
        for i in 0..32 {
            let index = usize::from(block[2 + i]) | usize::from(block[66 + i / 4] >> (2 * (i % 4)) & 3) << 8;
            let minus = grids::SIGN_BYTES[usize::from(block[34 + i])];
            out.put8(i, apply_signs(grids::IQ2_S[index], minus));
        }
        (half_at(block, 0) / 8.0, 0.0)
    }
}
