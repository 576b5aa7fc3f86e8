//! `IQ2_S`: 256 weights in 82 bytes (2.5625 bits each), `d·(2·scale + 1)/8·(±g)`, `g` in 8, 25, 43 from a codebook of 1024 eights.
//!
//! ```text
//!  0        2          34            66          74              82
//! | d: f16 | qs: 32 B | signs: 32 B | high: 8 B | scales: 8 B |
//! ```
//! Eight `i` has index bits `qs[i]` and above them bits `2·(i mod 4)` up of `high[i / 4]`, and a bit per sign in `signs[i]`. Scales as in IQ2_XS.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::half_at;
use super::block256::{self, Block256, apply_signs, put8};
use super::grids;
#[cfg(target_arch = "x86_64")]
use super::x86::{
    self, avx512 as wide,
    codebook::{IN_ORDER, Indices, Scales, Signs, Steps, signed_integers, signed_sums},
    lines::{Eights, put_signed, two_lines},
    tile::Lines,
};
use crate::{Activation, Format};

pub(super) const BYTES: usize = 82;

pub(super) static FORMAT: Format = Format {
    id: 22,
    name: "IQ2_S",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Iq2S, BYTES>,
    quantize: None,
    scalar: block256::scalar::<Iq2S, BYTES>(),
    avx2: on_x86!(x86::block256::avx2::<Iq2S, BYTES>()),
    avx512: on_x86!(x86::block256::avx512::<Iq2S, BYTES>()),
    neon: on_neon!(super::neon::block256::neon::<Iq2S, BYTES>()),
};

pub(super) struct Iq2S;

impl Block256<BYTES> for Iq2S {
    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> (f32, f32) {
        (half_at(block, 0) / 8.0, 0.0)
    }

    #[inline(always)]
    fn scales(block: &[u8; BYTES], scale: &mut [i16; 16], _min: &mut [i16; 16]) {
        for i in 0..16 {
            scale[i] = 2 * i16::from(block[74 + i / 2] >> (4 * (i % 2)) & 15) + 1;
        }
    }

    #[inline(always)]
    fn quants(block: &[u8; BYTES], q: &mut [i8; 256]) {
        for i in 0..32 {
            let index = usize::from(block[2 + i]) | usize::from(block[66 + i / 4] >> (2 * (i % 4)) & 3) << 8;
            let minus = grids::SIGNS[usize::from(block[34 + i])];
            put8(q, i, apply_signs(grids::IQ2_S[index], minus));
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl x86::block256::X86Block256<BYTES> for Iq2S {
    const UNIT_FACTOR: f32 = 0.125;
    const TILE_FROM: usize = 2;
    const TILE_OFFSET: i32 = 43;
    const TILE_CHAIN: usize = 2;
    const TILE_LONG: usize = 4;
    const SHARED: usize = 16;

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
        let (indices, signs) = (indices(block), Signs::new(x86::load32(block, 34)));
        signed_integers(q, IN_ORDER, signs, |steps, s| eights(steps, &indices, s));
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scale_words(block: &[u8; BYTES]) -> (__m256i, __m256i) {
        (x86::odd_nibbles(&block[74..]), _mm256_setzero_si256())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn lines(rows: [&[u8; BYTES]; 8], out: &mut Lines<64>) {
        let (mut own, mut signs) = ([const { Indices::NONE }; 8], [_mm256_setzero_si256(); 8]);
        for r in 0..8 {
            (own[r], signs[r]) = (indices(rows[r]), x86::load32(rows[r], 34));
        }
        // SAFETY: AVX2 is on; ten bits are inside a codebook of 1024.
        let look_up = |e| unsafe { two_lines(&grids::IQ2_S, |r| own[r].of(e)) };
        put_signed(out, &Eights::new(signs), Self::TILE_OFFSET, look_up);
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn wide(block: &[u8; BYTES], s: usize) -> (__m512i, u64) {
        let high = usize::from(block256::u16_at(block, 66 + 2 * s));
        let g = wide::eight_eights(|l| {
            grids::IQ2_S[usize::from(block[2 + 8 * s + l]) | (high >> (2 * l) & 3) << 8]
        });
        (g, block256::u64_at(block, 34 + 8 * s))
    }
}

/// Eight partial sums of a block's scaled products.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn sums(block: &[u8; BYTES], indices: &Indices, x: &[u8; 256], _x_sums: __m256i) -> __m256i {
    let scales = Scales::odd_nibbles(&block[74..], IN_ORDER);
    let signs = Signs::new(x86::load32(block, 34));
    signed_sums(x, IN_ORDER, signs, scales, |steps, s| eights(steps, indices, s))
}

/// Powers of two, by words, that bring two bits from `2·l` to 8.
#[cfg(target_arch = "x86_64")]
const FIELDS: i64 = 4 << 48 | 16 << 32 | 64 << 16 | 256;

/// Ten bits each.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn indices(block: &[u8; BYTES]) -> Indices {
    let high = _mm256_set1_epi64x(i64::from_le_bytes(block[66..].as_chunks::<8>().0[0]));
    let half = |qs: usize, step: u64| {
        // The byte of a step as four words, then bits 2·l up of word l moved to bit 8.
        let four = |s: u64| ((0x80 << 8 | s) * 0x0001_0001_0001_0001).cast_signed();
        let to = _mm256_setr_epi64x(four(step), four(step + 1), four(step + 2), four(step + 3));
        let moved = _mm256_mullo_epi16(_mm256_shuffle_epi8(high, to), _mm256_set1_epi64x(FIELDS));
        let low = _mm256_cvtepu8_epi16(x86::load16(block, qs));
        _mm256_or_si256(low, _mm256_and_si256(moved, _mm256_set1_epi16(3 << 8)))
    };
    Indices::new(half(2, 0), half(18, 4))
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn eights(steps: &mut Steps<'_>, indices: &Indices, s: usize) -> __m256i {
    // SAFETY: AVX2 is on; ten bits are inside a codebook of 1024.
    unsafe { x86::codebook::four_of(&grids::IQ2_S, steps.four_words(indices, s)) }
}
