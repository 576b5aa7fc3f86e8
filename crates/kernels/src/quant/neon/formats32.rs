//! The blocks of 32 and the floats as vectors. The drawings are in the formats' own files.

use std::arch::aarch64::*;

use super::block32::NeonBlock32;
use super::floats::{self, NeonFloat};
use super::{Integers, four_bytes, less, load32, look_up, masks, nibbles};
use crate::quant::block256::u32_at;
use crate::quant::{bf16, f16, f32, grids, iq4_nl, mxfp4, q4_0, q4_1, q5_0, q5_1, q8_0};

/// Nibbles from byte `at`, with bit 4 from the four bytes at `high`, less a constant.
#[inline]
#[target_feature(enable = "neon")]
fn fives(block: &[u8], high: usize, at: usize, constant: u8) -> Integers {
    let (low, top) = (nibbles(block, at), masks(four_bytes(u32_at(block, high))));
    let join = |low, top| less(vorrq_u8(low, vandq_u8(top, vdupq_n_u8(16))), constant);
    (join(low.0, top.0), join(low.1, top.1))
}

/// Implements a trait's `load` by an expression of the block.
macro_rules! load {
    ($($format:path, $bytes:path, |$block:ident| $load:expr;)*) => {$(
        impl NeonBlock32<{ $bytes }> for $format {
            #[inline]
            #[target_feature(enable = "neon")]
            unsafe fn load($block: &[u8; $bytes]) -> Integers {
                $load
            }
        }
    )*};
}

load! {
    q4_0::Q4_0, q4_0::BYTES, |block| {
        let (low, high) = nibbles(block, 2);
        (less(low, 8), less(high, 8))
    };
    q4_1::Q4_1, q4_1::BYTES, |block| {
        let (low, high) = nibbles(block, 4);
        (less(low, 0), less(high, 0))
    };
    q5_0::Q5_0, q5_0::BYTES, |block| fives(block, 2, 6, 16);
    q5_1::Q5_1, q5_1::BYTES, |block| fives(block, 4, 8, 0);
    q8_0::Q8_0, q8_0::BYTES, |block| {
        let (low, high) = load32(block, 2);
        (less(low, 0), less(high, 0))
    };
    iq4_nl::Iq4Nl, iq4_nl::BYTES, |block| look_up(&grids::IQ4, nibbles(block, 2));
}

impl NeonBlock32<{ mxfp4::BYTES }> for mxfp4::Mxfp4 {
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load(block: &[u8; mxfp4::BYTES]) -> Integers {
        look_up(&mxfp4::LEVELS, nibbles(block, 1))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn units(blocks: [&[u8; mxfp4::BYTES]; 4]) -> (float32x4_t, float32x4_t) {
        let d = blocks.map(|block| mxfp4::unit(block[0]));
        // SAFETY: four readable floats.
        (unsafe { vld1q_f32(d.as_ptr()) }, vdupq_n_f32(0.0))
    }
}

impl NeonFloat<4> for f32::F32 {
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load(weights: &[[u8; 4]; 4]) -> float32x4_t {
        floats::floats(weights)
    }
}

impl NeonFloat<2> for f16::F16 {
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load(weights: &[[u8; 2]; 4]) -> float32x4_t {
        vcvt_f32_f16(vreinterpret_f16_u16(floats::halves(weights)))
    }
}

impl NeonFloat<2> for bf16::Bf16 {
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load(weights: &[[u8; 2]; 4]) -> float32x4_t {
        vreinterpretq_f32_u32(vshll_n_u16::<16>(floats::halves(weights)))
    }
}
