//! `IQ1_S`: 256 weights in 50 bytes (1.5625 bits each), `d·(2·scale + 1)·(g ± 1/8)`, `g` in −1, 0, 1 from a codebook of 2048 eights.
//!
//! ```text
//!  0        2          34                 50
//! | d: f16 | qs: 32 B | high: 8 u16 LE |
//! ```
//! Per 32 weights one `high`: bits `3·l` up are the top three of the eleven index bits of eight `l` (the low eight are `qs[4·s + l]`), bits 12
//! to 14 the scale, bit 15 the sign of the shift of 1/8 (set: minus).

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::half_at;
use super::block256::{self, Block256, u16_at};
use super::grids;
#[cfg(target_arch = "x86_64")]
use super::x86::{
    self, avx512 as wide,
    codebook::{Indices, Repeated, Scales, Steps, lowered_integers, raised_sums},
    lines::{Eights, put_raised, two_lines},
    tile::Lines,
};
use crate::{Activation, Format};

pub(super) const BYTES: usize = 50;

pub(super) static FORMAT: Format = Format {
    id: 19,
    name: "IQ1_S",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Iq1S, BYTES>,
    quantize: None,
    scalar: block256::scalar::<Iq1S, BYTES>(),
    avx2: on_x86!(x86::block256::avx2::<Iq1S, BYTES>()),
    avx512: on_x86!(x86::block256::avx512::<Iq1S, BYTES>()),
    neon: on_neon!(super::neon::block256::neon::<Iq1S, BYTES>()),
};

pub(super) struct Iq1S;

impl Block256<BYTES> for Iq1S {
    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> (f32, f32) {
        (half_at(block, 0) / 8.0, 0.0)
    }

    #[inline(always)]
    fn scales(block: &[u8; BYTES], scale: &mut [i16; 16], _min: &mut [i16; 16]) {
        for s in 0..8 {
            let both = 2 * (u16_at(block, 34 + 2 * s) >> 12 & 7) as i16 + 1;
            (scale[2 * s], scale[2 * s + 1]) = (both, both);
        }
    }

    #[inline(always)]
    fn quants(block: &[u8; BYTES], q: &mut [i8; 256]) {
        for s in 0..8 {
            let high = u16_at(block, 34 + 2 * s);
            let shift = if high >> 15 == 1 { -1 } else { 1 };
            for l in 0..4 {
                let index = usize::from(block[2 + 4 * s + l]) | usize::from(high >> (3 * l) & 7) << 8;
                let g = grids::IQ1[index].to_le_bytes();
                for (q, g) in q[32 * s + 8 * l..][..8].iter_mut().zip(g) {
                    *q = g as i8 + shift;
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl x86::block256::X86Block256<BYTES> for Iq1S {
    const UNIT_FACTOR: f32 = 0.125;
    const TILE_FROM: usize = 2;
    const TILE_OFFSET: i32 = 9;
    const TILE_CHAIN: usize = 8;
    const WIDE_OFFSET: i32 = 9;
    const SHARED: usize = 32;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn sums(block: &[u8; BYTES], x: &[u8; 256], x_sums: __m256i) -> (__m256i, __m256i) {
        (sums(block, &indices(block), x, x_sums), _mm256_setzero_si256())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn four_sums(
        blocks: [&[u8; BYTES]; 4],
        x: &[u8; 256],
        x_sums: __m256i,
    ) -> ([__m256i; 4], [__m256i; 4]) {
        let [a, b, c, d] = blocks;
        let [i, j, k, l] = [indices(a), indices(b), indices(c), indices(d)];
        (
            [sums(a, &i, x, x_sums), sums(b, &j, x, x_sums), sums(c, &k, x, x_sums), sums(d, &l, x, x_sums)],
            [_mm256_setzero_si256(); 4],
        )
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn integers(block: &[u8; BYTES], q: &mut [i8; 256]) {
        let indices = indices(block);
        lowered_integers(q, &Repeated::new(shifts(block)), RAISED + 1, |steps, s| eights(steps, &indices, s));
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scale_words(block: &[u8; BYTES]) -> (__m256i, __m256i) {
        let high = x86::load16(block, 34);
        let twice = _mm_and_si128(_mm_srli_epi16::<11>(high), _mm_set1_epi16(14));
        let scale = _mm_or_si128(twice, _mm_set1_epi16(1));
        (x86::each_twice(scale), _mm256_setzero_si256())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn lines(rows: [&[u8; BYTES]; 8], out: &mut Lines<64>) {
        let (mut own, mut raise) = ([const { Indices::NONE }; 8], [_mm256_setzero_si256(); 8]);
        for r in 0..8 {
            (own[r], raise[r]) = (indices(rows[r]), shifts(rows[r]));
        }
        // SAFETY: AVX2 is on; eleven bits are inside a codebook of 2048.
        put_raised(out, &Eights::new(raise), |e| unsafe { two_lines(&grids::IQ1_RAISED, |r| own[r].of(e)) });
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn wide(block: &[u8; BYTES], s: usize) -> (__m512i, u64) {
        let high = block256::u32_at(block, 34 + 4 * s) as usize;
        let g = wide::eight_eights(|l| {
            let top = high >> (16 * (l / 4) + 3 * (l % 4)) & 7;
            grids::IQ1[usize::from(block[2 + 8 * s + l]) | top << 8]
        });
        // A shift of −1 or 1, with the offset.
        let minus = _mm512_test_epi64_mask(
            _mm512_set1_epi64(high as i64),
            _mm512_setr_epi64(1 << 15, 1 << 15, 1 << 15, 1 << 15, 1 << 31, 1 << 31, 1 << 31, 1 << 31),
        );
        let shift = _mm512_mask_blend_epi64(minus, _mm512_set1_epi8(10), _mm512_set1_epi8(8));
        (_mm512_add_epi8(g, shift), 0)
    }
}

/// What makes the codebook unsigned.
#[cfg(target_arch = "x86_64")]
const RAISED: i8 = 8;

/// The shifts plus 1, a byte per eight; there is one per step.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn shifts(block: &[u8; BYTES]) -> __m256i {
    let minus = _mm256_cvtepi16_epi32(_mm_srai_epi16::<15>(x86::load16(block, 34)));
    _mm256_andnot_si256(minus, _mm256_set1_epi8(2))
}

/// Eight partial sums of a block's scaled products.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn sums(block: &[u8; BYTES], indices: &Indices, x: &[u8; 256], x_sums: __m256i) -> __m256i {
    let (scales, shares) = scales(block);
    let raised = raised_sums(x, None, scales, |steps, s| eights(steps, indices, s));
    _mm256_add_epi32(raised, _mm256_madd_epi16(shares, x_sums))
}

/// Eleven bits each.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn indices(block: &[u8; BYTES]) -> Indices {
    let high = _mm256_broadcastsi128_si256(x86::load16(block, 34));
    let half = |qs: usize, step: i64| {
        // The word of a step four times, then bits 3·l up of word l moved to bit 9 and down to 8.
        let four = |s: i64| (((2 * s + 1) << 8) | (2 * s)) * 0x0001_0001_0001_0001;
        let to = _mm256_setr_epi64x(four(step), four(step + 1), four(step + 2), four(step + 3));
        let fields = _mm256_set1_epi64x(1 << 48 | 1 << (32 + 3) | 1 << (16 + 6) | 1 << 9);
        let moved = _mm256_srli_epi16::<1>(_mm256_mullo_epi16(_mm256_shuffle_epi8(high, to), fields));
        let low = _mm256_cvtepu8_epi16(x86::load16(block, qs));
        _mm256_or_si256(low, _mm256_and_si256(moved, _mm256_set1_epi16(7 << 8)))
    };
    Indices::new(half(2, 0), half(18, 4))
}

/// `2·scale + 1` of the steps; and for the sixteen groups that scale times the shift, less what the raised codebook has too much.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn scales(block: &[u8; BYTES]) -> (Scales, __m256i) {
    let high = _mm256_broadcastsi128_si256(x86::load16(block, 34));
    let twice = _mm256_and_si256(_mm256_srli_epi16::<11>(high), _mm256_set1_epi16(14));
    let scale = _mm256_or_si256(twice, _mm256_set1_epi16(1));
    // −1 or 0 becomes a shift of −1 or 1.
    let minus = _mm256_srai_epi16::<15>(high);
    let shift = _mm256_add_epi16(_mm256_add_epi16(minus, minus), _mm256_set1_epi16(1 - i16::from(RAISED)));
    let share = _mm256_mullo_epi16(scale, shift);
    let (first, last) = (_mm256_unpacklo_epi16(share, share), _mm256_unpackhi_epi16(share, share));
    (
        Scales::new(_mm256_unpacklo_epi16(scale, scale), _mm256_unpackhi_epi16(scale, scale)),
        _mm256_blend_epi32::<0b1111_0000>(first, last),
    )
}

/// Four eights of the raised codebook.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn eights(steps: &mut Steps<'_>, indices: &Indices, s: usize) -> __m256i {
    // SAFETY: AVX2 is on; eleven bits are inside a codebook of 2048.
    unsafe { x86::codebook::four_of(&grids::IQ1_RAISED, steps.four_words(indices, s)) }
}
