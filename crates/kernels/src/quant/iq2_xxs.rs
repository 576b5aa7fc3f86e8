//! `IQ2_XXS`: 256 weights in 66 bytes (2.0625 bits each), `d·(2·scale + 1)/8·(±g)`, `g` in 8, 25, 43 from a codebook of 256 eights.
//!
//! ```text
//!  0        2                                      66
//! | d: f16 | 8 × ( 4 indices: 4 B | w: u32 LE ) |
//! ```
//! Per 32 weights: four indices, and in `w` four times seven sign bits from the lowest up (the eighth sign makes the number of minus
//! signs even), the scale in the top four bits.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::half_at;
use super::block256::{self, Block256, apply_signs, put8, u32_at};
use super::grids;
#[cfg(target_arch = "x86_64")]
use super::x86::{
    self, avx512 as wide,
    codebook::{BY_HALVES, Scales, Signs, Steps, even_signs, in_order, signed_integers, signed_sums},
    lines::{Eights, put_signed, two_lines},
    tile::Lines,
};
use crate::{Activation, Format};

pub(super) const BYTES: usize = 66;

pub(super) static FORMAT: Format = Format {
    id: 16,
    name: "IQ2_XXS",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Iq2Xxs, BYTES>,
    quantize: None,
    scalar: block256::scalar::<Iq2Xxs, BYTES>(),
    avx2: on_x86!(x86::block256::avx2::<Iq2Xxs, BYTES>()),
    avx512: on_x86!(x86::block256::avx512::<Iq2Xxs, BYTES>()),
    neon: on_neon!(super::neon::block256::neon::<Iq2Xxs, BYTES>()),
};

pub(super) struct Iq2Xxs;

impl Block256<BYTES> for Iq2Xxs {
    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> (f32, f32) {
        (half_at(block, 0) / 8.0, 0.0)
    }

    #[inline(always)]
    fn scales(block: &[u8; BYTES], scale: &mut [i16; 16], _min: &mut [i16; 16]) {
        for s in 0..8 {
            let both = 2 * (u32_at(block, 6 + 8 * s) >> 28) as i16 + 1;
            (scale[2 * s], scale[2 * s + 1]) = (both, both);
        }
    }

    #[inline(always)]
    fn quants(block: &[u8; BYTES], q: &mut [i8; 256]) {
        for s in 0..8 {
            let w = u32_at(block, 6 + 8 * s);
            for l in 0..4 {
                let minus = grids::EVEN_SIGNS[(w >> (7 * l)) as usize & 127];
                put8(q, 4 * s + l, apply_signs(grids::IQ2_XXS[usize::from(block[2 + 8 * s + l])], minus));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl x86::block256::X86Block256<BYTES> for Iq2Xxs {
    const UNIT_FACTOR: f32 = 0.125;
    const TILE_FROM: usize = 2;
    const TILE_OFFSET: i32 = 43;
    const TILE_CHAIN: usize = 2;
    const TILE_LONG: usize = 4;
    const SHARED: usize = 32;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn sums(block: &[u8; BYTES], x: &[u8; 256], _x_sums: __m256i) -> (__m256i, __m256i) {
        let w = words(block);
        let sums =
            signed_sums(x, BY_HALVES, Signs::new(signs(w)), scales(w), |steps, s| eights(steps, block, s));
        (sums, _mm256_setzero_si256())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn integers(block: &[u8; BYTES], q: &mut [i8; 256]) {
        signed_integers(q, BY_HALVES, Signs::new(signs(words(block))), |steps, s| eights(steps, block, s));
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scale_words(block: &[u8; BYTES]) -> (__m256i, __m256i) {
        (x86::top_scales(in_order(words(block))), _mm256_setzero_si256())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn lines(rows: [&[u8; BYTES]; 8], out: &mut Lines<64>) {
        let mut minus = [_mm256_setzero_si256(); 8];
        for r in 0..8 {
            minus[r] = in_order(signs(words(rows[r])));
        }
        // SAFETY: AVX2 is on; a byte is inside a codebook of 256.
        let look_up =
            |e: usize| unsafe { two_lines(&grids::IQ2_XXS, |r| rows[r][2 + 8 * (e / 4) + e % 4].into()) };
        put_signed(out, &Eights::new(minus), Self::TILE_OFFSET, look_up);
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn wide(block: &[u8; BYTES], s: usize) -> (__m512i, u64) {
        let at = 2 + 16 * s;
        let g = wide::eight_eights(|l| grids::IQ2_XXS[usize::from(block[at + 8 * (l / 4) + l % 4])]);
        let minus = wide::even(wide::eight_sevens(u32_at(block, at + 4), u32_at(block, at + 12)));
        (g, minus)
    }
}

/// The eight words `w`, by halves.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn words(block: &[u8; BYTES]) -> __m256i {
    let (a, b) = (x86::load32(block, 2), x86::load32(block, 34));
    let w = _mm256_shuffle_ps::<0b11_01_11_01>(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
    _mm256_castps_si256(w)
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn eights(steps: &mut Steps<'_>, block: &[u8; BYTES], s: usize) -> __m256i {
    // SAFETY: AVX2 is on; a byte is inside a codebook of 256.
    unsafe { x86::codebook::four_of(&grids::IQ2_XXS, steps.four_bytes(block, 2 + 8 * s)) }
}

/// Four times seven bits of a word become four bytes, then eight bits each.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn signs(w: __m256i) -> __m256i {
    // The upper part of a word or of its halves moves up, the lower stays.
    let fourteens = _mm256_or_si256(
        _mm256_and_si256(w, _mm256_set1_epi32(0x3fff)),
        _mm256_and_si256(_mm256_slli_epi32::<2>(w), _mm256_set1_epi32(0x3fff << 16)),
    );
    let sevens = _mm256_or_si256(
        _mm256_and_si256(fourteens, _mm256_set1_epi16(0x7f)),
        _mm256_and_si256(_mm256_slli_epi16::<1>(fourteens), _mm256_set1_epi16(0x7f << 8)),
    );
    even_signs(sevens)
}

/// `2·scale + 1` from the top four bits of each word.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn scales(w: __m256i) -> Scales {
    let top = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        -1, 3, -1, 3, -1, 7, -1, 7, -1, 11, -1, 11, -1, 15, -1, 15,
    ));
    // The bit below the four becomes the 1.
    let scale = _mm256_or_si256(_mm256_srli_epi16::<11>(_mm256_shuffle_epi8(w, top)), _mm256_set1_epi16(1));
    Scales::new(
        _mm256_permute2x128_si256::<0x00>(scale, scale),
        _mm256_permute2x128_si256::<0x11>(scale, scale),
    )
}
