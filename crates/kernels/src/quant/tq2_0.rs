//! `TQ2_0`: 256 weights in 66 bytes (2.0625 bits each), `d·(q − 1)`.
//!
//! ```text
//!  0          64       66
//! | qs: 64 B | d: f16 |
//! ```
//! `qs` as in Q2_K.

use super::block32::half_at;
use super::block256::{self, Block256, Unpacked};
use crate::{Activation, Format};

const BYTES: usize = 66;

pub(super) static FORMAT: Format = Format {
    id: 35,
    name: "TQ2_0",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Tq2_0, BYTES>,
    quantize: None,
    scalar: block256::dot::<Tq2_0, BYTES>,
    avx2: None,
    avx512: None,
    neon: None,
};

struct Tq2_0;

impl Block256<BYTES> for Tq2_0 {
    #[inline(always)]
    fn unpack(block: &[u8; BYTES], out: &mut Unpacked) -> (f32, f32) {
        out.scale = [1; 16];
        for half in 0..2 {
            let qs = &block[32 * half..][..32];
            for g in 0..4 {
                for l in 0..32 {
                    out.q[128 * half + 32 * g + l] = (qs[l] >> (2 * g) & 3) as i8 - 1;
                }
            }
        }
        (half_at(block, 64), 0.0)
    }
}
