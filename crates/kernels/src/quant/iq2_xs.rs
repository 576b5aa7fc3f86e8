//! `IQ2_XS`: 256 weights in 74 bytes (2.3125 bits each), `d·(2·scale + 1)/8·(±g)`, `g` in 8, 25, 43 from a codebook of 512 eights.
//!
//! ```text
//!  0        2                66              74
//! | d: f16 | 32 × u16 LE | scales: 8 B |
//! ```
//! A word holds nine index bits and above them seven sign bits (the eighth makes the number of minus signs even). A scale is four bits
//! per 16 weights, the low nibble first.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::half_at;
use super::block256::{self, Block256, apply_signs, put8, u16_at};
use super::grids;
#[cfg(target_arch = "x86_64")]
use super::x86::{
    self, avx512 as wide,
    codebook::{
        BY_HALVES, Indices, Scales, Signs, Steps, even_signs, in_order, signed_integers, signed_sums,
    },
    lines::{Eights, put_signed, two_lines},
    tile::Lines,
};
use crate::{Activation, Format};

pub(super) const BYTES: usize = 74;

pub(super) static FORMAT: Format = Format {
    id: 17,
    name: "IQ2_XS",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Iq2Xs, BYTES>,
    quantize: None,
    scalar: block256::scalar::<Iq2Xs, BYTES>(),
    avx2: on_x86!(x86::block256::avx2::<Iq2Xs, BYTES>()),
    avx512: on_x86!(x86::block256::avx512::<Iq2Xs, BYTES>()),
    neon: on_neon!(super::neon::block256::neon::<Iq2Xs, BYTES>()),
};

pub(super) struct Iq2Xs;

impl Block256<BYTES> for Iq2Xs {
    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> (f32, f32) {
        (half_at(block, 0) / 8.0, 0.0)
    }

    #[inline(always)]
    fn scales(block: &[u8; BYTES], scale: &mut [i16; 16], _min: &mut [i16; 16]) {
        for i in 0..16 {
            scale[i] = 2 * i16::from(block[66 + i / 2] >> (4 * (i % 2)) & 15) + 1;
        }
    }

    #[inline(always)]
    fn quants(block: &[u8; BYTES], q: &mut [i8; 256]) {
        for i in 0..32 {
            let word = u16_at(block, 2 + 2 * i);
            let minus = grids::EVEN_SIGNS[usize::from(word >> 9)];
            put8(q, i, apply_signs(grids::IQ2_XS[usize::from(word & 511)], minus));
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl x86::block256::X86Block256<BYTES> for Iq2Xs {
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
        let indices = indices(block);
        signed_integers(q, BY_HALVES, Signs::new(signs(block)), |steps, s| eights(steps, &indices, s));
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scale_words(block: &[u8; BYTES]) -> (__m256i, __m256i) {
        (x86::odd_nibbles(&block[66..]), _mm256_setzero_si256())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn lines(rows: [&[u8; BYTES]; 8], out: &mut Lines<64>) {
        let (mut own, mut minus) = ([const { Indices::NONE }; 8], [_mm256_setzero_si256(); 8]);
        for r in 0..8 {
            (own[r], minus[r]) = (indices(rows[r]), in_order(signs(rows[r])));
        }
        // SAFETY: AVX2 is on; nine bits are inside a codebook of 512.
        let look_up = |e| unsafe { two_lines(&grids::IQ2_XS, |r| own[r].of(e)) };
        put_signed(out, &Eights::new(minus), Self::TILE_OFFSET, look_up);
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn wide(block: &[u8; BYTES], s: usize) -> (__m512i, u64) {
        let at = 2 + 16 * s;
        let g = wide::eight_eights(|l| grids::IQ2_XS[usize::from(u16_at(block, at + 2 * l)) & 511]);
        let sevens = _mm_srli_epi16::<9>(x86::load16(block, at));
        let minus = wide::even(_mm_cvtsi128_si64(_mm_packus_epi16(sevens, sevens)) as u64);
        (g, minus)
    }
}

/// Eight partial sums of a block's scaled products.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn sums(block: &[u8; BYTES], indices: &Indices, x: &[u8; 256], _x_sums: __m256i) -> __m256i {
    let scales = Scales::odd_nibbles(&block[66..], BY_HALVES);
    signed_sums(x, BY_HALVES, Signs::new(signs(block)), scales, |steps, s| eights(steps, indices, s))
}

/// Nine bits each.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn indices(block: &[u8; BYTES]) -> Indices {
    let nine = _mm256_set1_epi16(511);
    let nine_of = |at| _mm256_and_si256(x86::load32(block, at), nine);
    Indices::new(nine_of(2), nine_of(34))
}

/// The signs, from the seven bits above. Packing takes the lower halves first.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn signs(block: &[u8; BYTES]) -> __m256i {
    let seven_of = |at| _mm256_srli_epi16::<9>(x86::load32(block, at));
    even_signs(_mm256_packus_epi16(seven_of(2), seven_of(34)))
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn eights(steps: &mut Steps<'_>, indices: &Indices, s: usize) -> __m256i {
    // SAFETY: AVX2 is on; nine bits are inside a codebook of 512.
    unsafe { x86::codebook::four_of(&grids::IQ2_XS, steps.four_words(indices, s)) }
}
