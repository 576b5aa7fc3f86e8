//! `Q6_K`: 256 weights in 210 bytes (6.5625 bits each), `d·scale·(q − 32)`, a signed scale per 16.
//!
//! ```text
//!  0            128          192             208      210
//! | low: 128 B | high: 64 B | scales: 16 B | d: f16 |
//! ```
//! Per half of the block (128 weights): 64 bytes of low nibbles and 32 of high bit pairs. Element `32·g + l` has its low four bits in
//! byte `32·(g mod 2) + l` (the low nibble for `g < 2`) and its high two in bits `2·g` up of byte `l`.

use super::block32::half_at;
use super::block256::{self, Block256, Unpacked};
use crate::{Activation, Format};

const BYTES: usize = 210;

pub(super) static FORMAT: Format = Format {
    id: 14,
    name: "Q6_K",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Q6K, BYTES>,
    quantize: None,
    scalar: block256::dot::<Q6K, BYTES>,
    avx2: None,
    avx512: None,
    neon: None,
};

struct Q6K;

impl Block256<BYTES> for Q6K {
    #[inline(always)]
    fn unpack(block: &[u8; BYTES], out: &mut Unpacked) -> (f32, f32) {
        for (scale, byte) in out.scale.iter_mut().zip(&block[192..208]) {
            *scale = i16::from(*byte as i8);
        }
        for half in 0..2 {
            let (low, high) = (&block[64 * half..][..64], &block[128 + 32 * half..][..32]);
            for g in 0..4 {
                for l in 0..32 {
                    let nibble = low[32 * (g % 2) + l] >> (4 * (g / 2)) & 15;
                    let top = high[l] >> (2 * g) & 3;
                    out.q[128 * half + 32 * g + l] = (nibble | top << 4) as i8 - 32;
                }
            }
        }
        (half_at(block, 208), 0.0)
    }
}
