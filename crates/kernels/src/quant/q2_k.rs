//! `Q2_K`: 256 weights in 84 bytes (2.625 bits each), `d·scale·q − dmin·min`, a scale and a minimum per 16.
//!
//! ```text
//!  0                 16          80       82          84
//! | scales: 16 bytes | qs: 64 B | d: f16 | dmin: f16 |
//! ```
//! A scale byte holds the scale (low nibble) and the minimum (high nibble) of a group of 16. Byte `l` of each half of `qs` (32 bytes)
//! holds two bits of elements `l`, `l + 32`, `l + 64` and `l + 96` of that half of the block, the first lowest.

use super::block32::half_at;
use super::block256::{self, Block256, Unpacked};
use crate::{Activation, Format};

const BYTES: usize = 84;

pub(super) static FORMAT: Format = Format {
    id: 10,
    name: "Q2_K",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Q2K, BYTES>,
    quantize: None,
    scalar: block256::dot::<Q2K, BYTES>,
    avx2: None,
    avx512: None,
    neon: None,
};

struct Q2K;

impl Block256<BYTES> for Q2K {
    const MIN: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8; BYTES], out: &mut Unpacked) -> (f32, f32) {
        for (i, s) in block[..16].iter().enumerate() {
            out.scale[i] = i16::from(s & 15);
            out.min[i] = i16::from(s >> 4);
        }
        for half in 0..2 {
            let qs = &block[16 + 32 * half..][..32];
            for g in 0..4 {
                for l in 0..32 {
                    out.q[128 * half + 32 * g + l] = (qs[l] >> (2 * g) & 3) as i8;
                }
            }
        }
        (half_at(block, 80), half_at(block, 82))
    }
}
