//! `TQ1_0`: 256 weights in 54 bytes (1.6875 bits each), `d·(q − 1)`, five base-3 digits per byte.
//!
//! ```text
//!  0          48        52       54
//! | qs: 48 B | qh: 4 B | d: f16 |
//! ```
//! Digit `n` of byte `x` is `((x·3^n mod 256)·3) / 256`. In order: digits 0 to 4 of `qs[0..32]` (all bytes for digit 0, then for digit 1, …), digits 0
//! to 4 of `qs[32..48]`, digits 0 to 3 of `qh`.

use super::block32::half_at;
use super::block256::{self, Block256};
use crate::{Activation, Format};

pub(super) const BYTES: usize = 54;

pub(super) static FORMAT: Format = Format {
    id: 34,
    name: "TQ1_0",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Tq1_0, BYTES>,
    quantize: None,
    scalar: block256::scalar::<Tq1_0, BYTES>(),
    avx2: None,
    avx512: None,
    neon: on_neon!(super::neon::block256::neon::<Tq1_0, BYTES>()),
};

pub(super) struct Tq1_0;

impl Block256<BYTES> for Tq1_0 {
    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> (f32, f32) {
        (half_at(block, 52), 0.0)
    }

    #[inline(always)]
    fn scales(_block: &[u8; BYTES], scale: &mut [i16; 16], _min: &mut [i16; 16]) {
        *scale = [1; 16];
    }

    #[inline(always)]
    fn quants(block: &[u8; BYTES], q: &mut [i8; 256]) {
        let mut at = 0;
        for (bytes, digits) in [(&block[..32], 5), (&block[32..48], 5), (&block[48..52], 4)] {
            let mut power = 1u8;
            for _ in 0..digits {
                for byte in bytes {
                    q[at] = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as i8 - 1;
                    at += 1;
                }
                power = power.wrapping_mul(3);
            }
        }
    }
}
