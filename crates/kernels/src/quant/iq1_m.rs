//! `IQ1_M`: 256 weights in 56 bytes (1.75 bits each), `d·(2·scale + 1)·(g ± 1/8)`, `g` in −1, 0, 1 from a codebook of 2048 eights.
//!
//! ```text
//!  0          32           48                  56
//! | qs: 32 B | high: 16 B | scales: 4 u16 LE |
//! ```
//! Eight `i` has the nibble `i mod 2` of `high[i / 2]`: three index bits above the eight of `qs[i]`, and the sign of its shift of 1/8 (bit 3
//! set: minus). Each `scales` word holds four scales of three bits, one per 16 weights; its top four bits are a quarter of the half `d`,
//! the first word the lowest.

use super::block256::{self, Block256, Unpacked, u16_at};
use super::grids;
use crate::{Activation, Format};

const BYTES: usize = 56;

pub(super) static FORMAT: Format = Format {
    id: 29,
    name: "IQ1_M",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Iq1M, BYTES>,
    quantize: None,
    scalar: block256::dot::<Iq1M, BYTES>,
    avx2: None,
    avx512: None,
    neon: None,
};

struct Iq1M;

impl Block256<BYTES> for Iq1M {
    #[inline(always)]
    fn unpack(block: &[u8; BYTES], out: &mut Unpacked) -> (f32, f32) {
        let words = [u16_at(block, 48), u16_at(block, 50), u16_at(block, 52), u16_at(block, 54)];
        for (i, scale) in out.scale.iter_mut().enumerate() {
            *scale = 2 * (words[i / 4] >> (3 * (i % 4)) & 7) as i16 + 1;
        }
        for i in 0..32 {
            let high = block[32 + i / 2] >> (4 * (i % 2));
            let index = usize::from(block[i]) | usize::from(high & 7) << 8;
            let shift = if high & 8 == 0 { 1 } else { -1 };
            let g = grids::IQ1[index].to_le_bytes();
            for (q, g) in out.q[8 * i..][..8].iter_mut().zip(g) {
                *q = 8 * g as i8 + shift;
            }
        }
        (unit(words), 0.0)
    }
}

/// The block's unit, gathered from the top bits of the scale words, with the eighth of the family's integer form.
#[inline(always)]
fn unit(words: [u16; 4]) -> f32 {
    let bits = words[0] >> 12 | words[1] >> 8 & 0xf0 | words[2] >> 4 & 0xf00 | words[3] & 0xf000;
    half::f16::from_bits(bits).to_f32() / 8.0
}
