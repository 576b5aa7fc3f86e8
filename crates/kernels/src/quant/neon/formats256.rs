//! The blocks of 256 as vectors. The drawings are in the formats' own files.

use std::arch::aarch64::*;

use super::block256::{Factors, NeonBlock256};
use super::{
    Integers, eight_fours, even, field, four_bytes, four_eights, four_sevens, less, load8, load16, load32,
    look_up, masks, negated, nibbles, where_bit, words8,
};
use crate::quant::block256::{u16_at, u32_at};
use crate::quant::{
    grids, iq1_m, iq1_s, iq2_s, iq2_xs, iq2_xxs, iq3_s, iq3_xxs, iq4_xs, q2_k, q3_k, q4_k, q5_k, q6_k, tq1_0,
    tq2_0,
};

/// Sixteen scales from signed bytes, without minima.
#[inline]
#[target_feature(enable = "neon")]
fn sixteen(bytes: int8x16_t) -> Factors {
    let min = [vdupq_n_s16(0); 2];
    Factors { scale: [vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)], min }
}

/// Eight paired scales from signed bytes, without minima.
#[inline]
#[target_feature(enable = "neon")]
fn eight(bytes: int8x8_t) -> Factors {
    let zero = vdupq_n_s16(0);
    Factors { scale: [vmovl_s8(bytes), zero], min: [zero; 2] }
}

/// `2 s + 1`.
#[inline]
#[target_feature(enable = "neon")]
fn odd(s: uint8x16_t) -> int8x16_t {
    vreinterpretq_s8_u8(vorrq_u8(vaddq_u8(s, s), vdupq_n_u8(1)))
}

/// Eight bytes of nibbles as sixteen bytes, low and high in turn.
#[inline]
#[target_feature(enable = "neon")]
fn nibbles_in_turn(bytes: uint8x8_t) -> uint8x16_t {
    let (low, high) = (vand_u8(bytes, vdup_n_u8(15)), vshr_n_u8::<4>(bytes));
    vcombine_u8(vzip1_u8(low, high), vzip2_u8(low, high))
}

/// The eight six-bit scales and minima of Q4_K and Q5_K.
#[inline]
#[target_feature(enable = "neon")]
fn scales_and_mins(block: &[u8]) -> Factors {
    let (a, b, c) = (u32_at(block, 4), u32_at(block, 8), u32_at(block, 12));
    let join = |low: u32, high: u32| {
        let bytes =
            u64::from(low & 0x3f3f_3f3f) | u64::from(high & 0x0f0f_0f0f | low >> 2 & 0x3030_3030) << 32;
        vreinterpretq_s16_u16(vmovl_u8(vcreate_u8(bytes)))
    };
    let zero = vdupq_n_s16(0);
    Factors { scale: [join(a, c), zero], min: [join(b, c >> 4), zero] }
}

/// The scales in the top four bits of eight words, doubled and one added.
#[inline]
#[target_feature(enable = "neon")]
fn top_nibbles(first: uint32x4_t, last: uint32x4_t) -> Factors {
    // The upper half of a word, less its twelve low bits.
    let upper = vuzp2q_u16(vreinterpretq_u16_u32(first), vreinterpretq_u16_u32(last));
    let scale = vorrq_u16(vshlq_n_u16::<1>(vshrq_n_u16::<12>(upper)), vdupq_n_u16(1));
    let zero = vdupq_n_s16(0);
    Factors { scale: [vreinterpretq_s16_u16(scale), zero], min: [zero; 2] }
}

/// Implements a format by expressions of the block: the 32 integers from `32 · s`, then the scales and minima if there are any.
macro_rules! blocks {
    ($(
        $format:path, $bytes:path { $($constant:ident: $type:ty = $value:expr;)* }
        |$block:ident, $s:ident| $load:expr;
        $(|$scales:ident| $factors:expr;)?
    )*) => {$(
        impl NeonBlock256<{ $bytes }> for $format {
            $(const $constant: $type = $value;)*

            #[inline]
            #[target_feature(enable = "neon")]
            unsafe fn load($block: &[u8; $bytes], $s: usize) -> Integers {
                $load
            }

            $(#[inline]
            #[target_feature(enable = "neon")]
            unsafe fn factors($scales: &[u8; $bytes]) -> Factors {
                $factors
            })?
        }
    )*};
}

/// Two bits of each of 32 bytes from `at`, less a constant.
#[inline]
#[target_feature(enable = "neon")]
fn twos(block: &[u8], at: usize, s: usize, constant: u8) -> Integers {
    let (a, b) = load32(block, at + 32 * (s / 4));
    let bits = 2 * (s % 4);
    (less(field(a, bits, 3), constant), less(field(b, bits, 3), constant))
}

blocks! {
    q2_k::Q2K, q2_k::BYTES { UNIT_AT: usize = 80; }
    |block, s| twos(block, 16, s, 0);
    |block| {
        let bytes = load16(block, 0);
        let scale = sixteen(less(vandq_u8(bytes, vdupq_n_u8(15)), 0)).scale;
        Factors { scale, min: sixteen(less(vshrq_n_u8::<4>(bytes), 0)).scale }
    };

    q3_k::Q3K, q3_k::BYTES { UNIT_AT: usize = 108; }
    |block, s| {
        let ((a, b), (high_a, high_b)) = (load32(block, 32 + 32 * (s / 4)), load32(block, 0));
        let join = |low, high| less(vorrq_u8(field(low, 2 * (s % 4), 3), where_bit(high, s, 4)), 4);
        (join(a, high_a), join(b, high_b))
    };
    |block| {
        let low = load8(block, 96);
        let low = vcombine_u8(vand_u8(low, vdup_n_u8(15)), vshr_n_u8::<4>(low));
        // Two bits of four bytes, then the next two of the same, …
        let down = vreinterpretq_s8_u32(vcombine_u32(
            vcreate_u32(0xfefe_fefe_0000_0000),
            vcreate_u32(0xfafa_fafa_fcfc_fcfc),
        ));
        let top = vandq_u8(vshlq_u8(four_bytes(u32_at(block, 104)), down), vdupq_n_u8(3));
        sixteen(less(vorrq_u8(low, vshlq_n_u8::<4>(top)), 32))
    };

    q4_k::Q4K, q4_k::BYTES { PAIRED: bool = true; }
    |block, s| {
        let (a, b) = load32(block, 16 + 32 * (s / 2));
        (less(field(a, 4 * (s % 2), 15), 0), less(field(b, 4 * (s % 2), 15), 0))
    };
    |block| scales_and_mins(block);

    q5_k::Q5K, q5_k::BYTES { PAIRED: bool = true; }
    |block, s| {
        let ((a, b), (high_a, high_b)) = (load32(block, 48 + 32 * (s / 2)), load32(block, 16));
        let join = |low, high| less(vorrq_u8(field(low, 4 * (s % 2), 15), where_bit(high, s, 16)), 0);
        (join(a, high_a), join(b, high_b))
    };
    |block| scales_and_mins(block);

    q6_k::Q6K, q6_k::BYTES { UNIT_AT: usize = 208; }
    |block, s| {
        let (half, g) = (s / 4, s % 4);
        let ((a, b), (high_a, high_b)) =
            (load32(block, 64 * half + 32 * (g % 2)), load32(block, 128 + 32 * half));
        let join = |low, high| {
            let top = vshlq_n_u8::<4>(field(high, 2 * g, 3));
            less(vorrq_u8(field(low, 4 * (g / 2), 15), top), 32)
        };
        (join(a, high_a), join(b, high_b))
    };
    |block| sixteen(less(load16(block, 192), 0));

    iq1_s::Iq1S, iq1_s::BYTES { PAIRED: bool = true; UNIT_FACTOR: f32 = 0.125; }
    |block, s| {
        let high = u16_at(block, 34 + 2 * s);
        let (a, b) = four_eights(|l| {
            grids::IQ1[usize::from(block[2 + 4 * s + l]) | usize::from(high >> (3 * l) & 7) << 8]
        });
        let shift = vdupq_n_s8(if high >> 15 == 1 { -1 } else { 1 });
        (vaddq_s8(a, shift), vaddq_s8(b, shift))
    };
    |block| {
        let words = vreinterpretq_u16_s16(words8(block, 34));
        // Bits 12 to 14 to bits 1 to 3.
        let doubled = vandq_u16(vshrq_n_u16::<11>(words), vdupq_n_u16(14));
        let zero = vdupq_n_s16(0);
        Factors { scale: [vreinterpretq_s16_u16(vorrq_u16(doubled, vdupq_n_u16(1))), zero], min: [zero; 2] }
    };

    iq2_xxs::Iq2Xxs, iq2_xxs::BYTES { PAIRED: bool = true; UNIT_FACTOR: f32 = 0.125; }
    |block, s| {
        let g = four_eights(|l| grids::IQ2_XXS[usize::from(block[2 + 8 * s + l])]);
        negated(g, masks(even(four_sevens(u32_at(block, 6 + 8 * s)))))
    };
    |block| {
        let words = |at: usize| vreinterpretq_u32_u8(load16(block, at));
        top_nibbles(vuzp2q_u32(words(2), words(18)), vuzp2q_u32(words(34), words(50)))
    };

    iq2_xs::Iq2Xs, iq2_xs::BYTES { UNIT_FACTOR: f32 = 0.125; }
    |block, s| {
        let words = vreinterpret_u16_u8(load8(block, 2 + 8 * s));
        let word = |l: usize| usize::from(u16_at(block, 2 + 8 * s + 2 * l));
        let sevens = vmovn_u16(vcombine_u16(vshr_n_u16::<9>(words), vdup_n_u16(0)));
        let g = four_eights(|l| grids::IQ2_XS[word(l) & 511]);
        negated(g, masks(even(vcombine_u8(sevens, vdup_n_u8(0)))))
    };
    |block| sixteen(odd(nibbles_in_turn(load8(block, 66))));

    iq2_s::Iq2S, iq2_s::BYTES { UNIT_FACTOR: f32 = 0.125; }
    |block, s| {
        let high = usize::from(block[66 + s]);
        let g = four_eights(|l| {
            grids::IQ2_S[usize::from(block[2 + 4 * s + l]) | (high >> (2 * l) & 3) << 8]
        });
        negated(g, masks(four_bytes(u32_at(block, 34 + 4 * s))))
    };
    |block| sixteen(odd(nibbles_in_turn(load8(block, 74))));

    iq3_xxs::Iq3Xxs, iq3_xxs::BYTES { PAIRED: bool = true; UNIT_FACTOR: f32 = 0.25; }
    |block, s| {
        let g = eight_fours(|k| grids::IQ3_XXS[usize::from(block[2 + 8 * s + k])]);
        negated(g, masks(even(four_sevens(u32_at(block, 66 + 4 * s)))))
    };
    |block| {
        let words = |at: usize| vreinterpretq_u32_u8(load16(block, at));
        top_nibbles(words(66), words(82))
    };

    iq3_s::Iq3S, iq3_s::BYTES { PAIRED: bool = true; }
    |block, s| {
        let high = usize::from(block[66 + s]);
        let g = eight_fours(|k| {
            grids::IQ3_S[usize::from(block[2 + 8 * s + k]) | (high >> k & 1) << 8]
        });
        negated(g, masks(four_bytes(u32_at(block, 74 + 4 * s))))
    };
    |block| eight(vget_low_s8(odd(nibbles_in_turn(vcreate_u8(u32_at(block, 106).into())))));

    iq4_xs::Iq4Xs, iq4_xs::BYTES { PAIRED: bool = true; }
    |block, s| look_up(&grids::IQ4, nibbles(block, 8 + 16 * s));
    |block| {
        let low = vget_low_u8(nibbles_in_turn(vcreate_u8(u32_at(block, 4).into())));
        // Two bits of the word to each scale, the first from the lowest ones, as bits 4 and 5.
        let down = vcombine_s16(vcreate_s16(0xfffe_0000_0002_0004), vcreate_s16(0xfff6_fff8_fffa_fffc));
        let top = vandq_u16(vshlq_u16(vdupq_n_u16(u16_at(block, 2)), down), vdupq_n_u16(0x30));
        let scale = vsubq_s16(vreinterpretq_s16_u16(vorrq_u16(vmovl_u8(low), top)), vdupq_n_s16(32));
        let zero = vdupq_n_s16(0);
        Factors { scale: [scale, zero], min: [zero; 2] }
    };

    tq2_0::Tq2_0, tq2_0::BYTES { SCALED: bool = false; UNIT_AT: usize = 64; }
    |block, s| twos(block, 0, s, 1);

    tq1_0::Tq1_0, tq1_0::BYTES { SCALED: bool = false; UNIT_AT: usize = 52; }
    |block, s| match s {
        // Digit s of the first 32 bytes.
        0..5 => {
            let (a, b) = load32(block, 0);
            (digit(a, vdupq_n_u8(POWERS[s])), digit(b, vdupq_n_u8(POWERS[s])))
        }
        // Digits 0 to 3 of the next sixteen.
        5 | 6 => {
            let v = load16(block, 32);
            (digit(v, vdupq_n_u8(POWERS[2 * s - 10])), digit(v, vdupq_n_u8(POWERS[2 * s - 9])))
        }
        // Their digit 4, and digits 0 to 3 of the last four bytes.
        _ => {
            let each = vreinterpretq_u8_u32(vcombine_u32(
                vcreate_u32(0x0303_0303_0101_0101),
                vcreate_u32(0x1b1b_1b1b_0909_0909),
            ));
            (digit(load16(block, 32), vdupq_n_u8(POWERS[4])), digit(four_bytes(u32_at(block, 48)), each))
        }
    };
}

/// 3^n.
const POWERS: [u8; 5] = [1, 3, 9, 27, 81];

/// The base-3 digit that comes to the top when bytes are multiplied with a power of three, less one.
#[inline]
#[target_feature(enable = "neon")]
fn digit(v: uint8x16_t, power: uint8x16_t) -> int8x16_t {
    let v = vmulq_u8(v, power);
    // 3 v / 256 is 1 from 86 and 2 from 171 on; a comparison that holds is −1.
    let (one, two) = (vcgeq_u8(v, vdupq_n_u8(86)), vcgeq_u8(v, vdupq_n_u8(171)));
    vreinterpretq_s8_u8(vsubq_u8(vsubq_u8(vdupq_n_u8(255), one), two))
}

impl NeonBlock256<{ iq1_m::BYTES }> for iq1_m::Iq1M {
    const UNIT_FACTOR: f32 = 0.125;

    #[inline(always)]
    fn halves(block: &[u8; iq1_m::BYTES]) -> (u16, u16) {
        (iq1_m::unit_bits(iq1_m::words(block)), 0)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load(block: &[u8; iq1_m::BYTES], s: usize) -> Integers {
        let high = u16_at(block, 32 + 2 * s);
        let (a, b) = four_eights(|l| {
            grids::IQ1[usize::from(block[4 * s + l]) | usize::from(high >> (4 * l) & 7) << 8]
        });
        // Eight l looks at bit 3 of nibble l: −1 where it is set, else 1.
        let shift = |a: u64, b: u64| {
            let bits = vcombine_u16(vcreate_u16(a), vcreate_u16(b));
            let set = vtstq_u16(vdupq_n_u16(high), bits);
            vreinterpretq_s8_u8(vorrq_u8(vreinterpretq_u8_u16(set), vdupq_n_u8(1)))
        };
        (
            vaddq_s8(a, shift(0x0008_0008_0008_0008, 0x0080_0080_0080_0080)),
            vaddq_s8(b, shift(0x0800_0800_0800_0800, 0x8000_8000_8000_8000)),
        )
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn factors(block: &[u8; iq1_m::BYTES]) -> Factors {
        let words = vreinterpret_u16_u8(load8(block, 48));
        // Three bits from bit 0, 3, 6 and 9 of each word, to bits 1 to 3.
        let down = vcombine_s16(vcreate_s16(0xfff8_fffb_fffe_0001), vcreate_s16(0xfff8_fffb_fffe_0001));
        let odd = |two| {
            let doubled = vandq_u16(vshlq_u16(two, down), vdupq_n_u16(14));
            vreinterpretq_s16_u16(vorrq_u16(doubled, vdupq_n_u16(1)))
        };
        let first = vcombine_u16(vdup_lane_u16::<0>(words), vdup_lane_u16::<1>(words));
        let last = vcombine_u16(vdup_lane_u16::<2>(words), vdup_lane_u16::<3>(words));
        Factors { scale: [odd(first), odd(last)], min: [vdupq_n_s16(0); 2] }
    }
}
