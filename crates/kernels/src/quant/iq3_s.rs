//! `IQ3_S`: 256 weights in 110 bytes (3.4375 bits each), `d·(2·scale + 1)·(±g)`, `g` in 1, 3, … 15 from a codebook of 512 fours.
//!
//! ```text
//!  0        2          66          74            106             110
//! | d: f16 | qs: 64 B | high: 8 B | signs: 32 B | scales: 4 B |
//! ```
//! Four `i` has index bits `qs[i]` and above them bit `i mod 8` of `high[i / 8]`; a bit per sign; a scale of four bits per 32 weights, the low
//! nibble first.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::half_at;
use super::block256::{self, Block256, apply_signs, put8};
use super::grids;
#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::{Activation, Format};

pub(super) const BYTES: usize = 110;

pub(super) static FORMAT: Format = Format {
    id: 21,
    name: "IQ3_S",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Iq3S, BYTES>,
    quantize: None,
    scalar: block256::scalar::<Iq3S, BYTES>(),
    avx2: on_x86!(x86::block256::avx2::<Iq3S, BYTES>()),
    avx512: None,
    neon: on_neon!(super::neon::block256::neon::<Iq3S, BYTES>()),
};

pub(super) struct Iq3S;

impl Block256<BYTES> for Iq3S {
    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> (f32, f32) {
        (half_at(block, 0), 0.0)
    }

    #[inline(always)]
    fn scales(block: &[u8; BYTES], scale: &mut [i16; 16], _min: &mut [i16; 16]) {
        for i in 0..16 {
            scale[i] = 2 * i16::from(block[106 + i / 4] >> (4 * (i / 2 % 2)) & 15) + 1;
        }
    }

    #[inline(always)]
    fn quants(block: &[u8; BYTES], q: &mut [i8; 256]) {
        for i in 0..32 {
            let high = usize::from(block[66 + i / 4] >> (2 * (i % 4)));
            let four =
                |k: usize| u64::from(grids::IQ3_S[usize::from(block[2 + 2 * i + k]) | (high >> k & 1) << 8]);
            let minus = grids::SIGNS[usize::from(block[74 + i])];
            put8(q, i, apply_signs(four(0) | four(1) << 32, minus));
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl x86::block256::X86Block256<BYTES> for Iq3S {
    const TILE_OFFSET: i32 = 15;
    const TILE_CHAIN: usize = 4;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn pairs(block: &[u8; BYTES], s: usize, x: __m256i) -> __m256i {
        let high = usize::from(block[66 + s]);
        let four =
            |k: usize| u64::from(grids::IQ3_S[usize::from(block[2 + 8 * s + k]) | (high >> k & 1) << 8]);
        let g = x86::four_eights(|l| four(2 * l) | four(2 * l + 1) << 32);
        let minus = x86::four_eights(|l| grids::SIGNS[usize::from(block[74 + 4 * s + l])]);
        x86::masked_pairs(g, minus, x)
    }
}
