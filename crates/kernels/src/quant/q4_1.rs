//! `Q4_1`: 32 weights in 20 bytes (5 bits each), `d · q + m`.
//!
//! ```text
//!  0        2        4                                20
//! | d: f16 | m: f16 | q0 q16 | q1 q17 | … | q15 q31 |     two nibbles per byte, the low one first
//! ```

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::{self, Block32, half_at, inverse, nibbles, pack_nibbles};
#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::{Activation, Format};

pub(super) const BYTES: usize = 20;

pub(super) static FORMAT: Format = Format {
    id: 3,
    name: "Q4_1",
    block_elements: 32,
    block_bytes: BYTES,
    activation: Activation::Q8_0,
    dequantize: block32::dequantize::<Q4_1, BYTES>,
    quantize: Some(quantize),
    scalar: block32::scalar::<Q4_1, BYTES>(),
    avx2: on_x86!(x86::block32::avx2::<Q4_1, BYTES>()),
    avx512: on_x86!(x86::block32::avx512::<Q4_1, BYTES>()),
    neon: on_neon!(super::neon::block32::neon::<Q4_1, BYTES>()),
};

pub(super) struct Q4_1;

impl Block32<BYTES> for Q4_1 {
    const MIN: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8; BYTES], q: &mut [i8; 32]) -> (f32, f32) {
        nibbles(&block[4..], |i, n| q[i] = n as i8);
        (half_at(block, 0), half_at(block, 2))
    }
}

fn quantize(x: &[f32], out: &mut [u8]) {
    assert_eq!(x.len() / 32 * BYTES, out.len(), "whole row");
    for (x, out) in x.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<BYTES>().0) {
        let (min, max) = x.iter().fold((x[0], x[0]), |(a, b), &x| (a.min(x), b.max(x)));
        let d = (max - min) / 15.0;
        let id = inverse(d);
        out[..2].copy_from_slice(&half::f16::from_f32(d).to_le_bytes());
        out[2..4].copy_from_slice(&half::f16::from_f32(min).to_le_bytes());
        pack_nibbles(&x.map(|x| (((x - min) * id + 0.5) as u8).min(15)), &mut out[4..]);
    }
}

#[cfg(target_arch = "x86_64")]
impl x86::block32::X86Block32<BYTES> for Q4_1 {
    const OFFSET: i32 = 0;
    const TILE_TOP: i32 = 15;
    const TILE_CHAIN: usize = 8;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(block: &[u8; BYTES]) -> __m256i {
        x86::nibbles(block, 4)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load_two(a: &[u8; BYTES], b: &[u8; BYTES]) -> [__m256i; 2] {
        x86::rows32::two_nibbles(a, b, 4)
    }
}
