//! `IQ3_XXS`: 256 weights in 98 bytes (3.0625 bits each), `d·(2·scale + 1)/4·(±g)`, `g` in 4, 12, … 62 from a codebook of 256 fours.
//!
//! ```text
//!  0        2          66               98
//! | d: f16 | qs: 64 B | 8 × w: u32 LE |
//! ```
//! One index per four weights. Per 32 weights `w` holds signs and scale as in IQ2_XXS.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::half_at;
use super::block256::{self, Block256, apply_signs, put8, u32_at};
use super::grids;
#[cfg(target_arch = "x86_64")]
use super::x86::{
    self, avx512 as wide,
    fours::{even_signs, spread_signs},
    lines::{Eights, put_signed},
    tile::Lines,
};
use crate::{Activation, Format};

pub(super) const BYTES: usize = 98;

pub(super) static FORMAT: Format = Format {
    id: 18,
    name: "IQ3_XXS",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Iq3Xxs, BYTES>,
    quantize: None,
    scalar: block256::scalar::<Iq3Xxs, BYTES>(),
    avx2: on_x86!(x86::block256::avx2::<Iq3Xxs, BYTES>()),
    avx512: on_x86!(x86::block256::avx512::<Iq3Xxs, BYTES>()),
    neon: on_neon!(super::neon::block256::neon::<Iq3Xxs, BYTES>()),
};

pub(super) struct Iq3Xxs;

impl Block256<BYTES> for Iq3Xxs {
    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> (f32, f32) {
        (half_at(block, 0) / 4.0, 0.0)
    }

    #[inline(always)]
    fn scales(block: &[u8; BYTES], scale: &mut [i16; 16], _min: &mut [i16; 16]) {
        for s in 0..8 {
            let both = 2 * (u32_at(block, 66 + 4 * s) >> 28) as i16 + 1;
            (scale[2 * s], scale[2 * s + 1]) = (both, both);
        }
    }

    #[inline(always)]
    fn quants(block: &[u8; BYTES], q: &mut [i8; 256]) {
        for s in 0..8 {
            let w = u32_at(block, 66 + 4 * s);
            for l in 0..4 {
                let qs = &block[2 + 8 * s + 2 * l..][..2];
                let low = u64::from(grids::IQ3_XXS[usize::from(qs[0])]);
                let high = u64::from(grids::IQ3_XXS[usize::from(qs[1])]);
                let minus = grids::EVEN_SIGNS[(w >> (7 * l)) as usize & 127];
                put8(q, 4 * s + l, apply_signs(low | high << 32, minus));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
static FOURS: x86::fours::Fours<262> = x86::fours::Fours::new(&grids::IQ3_XXS);

/// 32 weights without their signs.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn unsigned(block: &[u8; BYTES], s: usize) -> __m256i {
    // SAFETY: a byte is an index of 256 rows.
    unsafe { FOURS.eight(|k| usize::from(block[2 + 8 * s + k])) }
}

#[cfg(target_arch = "x86_64")]
impl x86::block256::X86Block256<BYTES> for Iq3Xxs {
    const UNIT_FACTOR: f32 = 0.25;
    const TILE_FROM: usize = 2;
    const TILE_OFFSET: i32 = 62;
    const TILE_CHAIN: usize = 2;
    const TILE_LONG: usize = 4;
    const SHARED: usize = 32;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn sums(block: &[u8; BYTES], x: &[u8; 256], _x_sums: __m256i) -> (__m256i, __m256i) {
        let words = x86::load32(block, 66);
        let signs = x86::halves_doubled(even_signs(words));
        // Twice the top four bits plus one, in both halves of a word.
        let scales = _mm256_or_si256(_mm256_srli_epi32::<27>(words), _mm256_set1_epi32(1));
        let scales = x86::halves_doubled(_mm256_or_si256(scales, _mm256_slli_epi32::<16>(scales)));
        let mut acc = _mm256_setzero_si256();
        macro_rules! step {
            ($($s:literal)*) => {$(
                let minus = spread_signs(signs[$s / 4], $s % 4);
                let pairs = x86::masked_pairs(unsigned(block, $s), minus, x86::load32(x, 32 * $s));
                let scale = _mm256_shuffle_epi32::<{ 0b01_01_01_01 * ($s % 4) }>(scales[$s / 4]);
                acc = _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, scale));
            )*};
        }
        step!(0 1 2 3 4 5 6 7);
        (acc, _mm256_setzero_si256())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scale_words(block: &[u8; BYTES]) -> (__m256i, __m256i) {
        (x86::top_scales(x86::load32(block, 66)), _mm256_setzero_si256())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn lines(rows: [&[u8; BYTES]; 8], out: &mut Lines<64>) {
        let mut minus = [_mm256_setzero_si256(); 8];
        for r in 0..8 {
            minus[r] = even_signs(x86::load32(rows[r], 66));
        }
        // SAFETY: a byte is an index of 256 rows.
        let line = |k: usize| unsafe { FOURS.eight(|r| usize::from(rows[r][2 + k])) };
        let look_up = |e: usize| [line(2 * e), line(2 * e + 1)];
        put_signed(out, &Eights::new(minus), Self::TILE_OFFSET, look_up);
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn wide(block: &[u8; BYTES], s: usize) -> (__m512i, u64) {
        let index = |k: usize| usize::from(block[2 + 16 * s + k]);
        // SAFETY: an index is a byte, for 256 rows.
        let g = unsafe { [FOURS.eight(index), FOURS.eight(|k| index(8 + k))] };
        let at = 66 + 8 * s;
        let minus = wide::even(wide::eight_sevens(u32_at(block, at), u32_at(block, at + 4)));
        (wide::joined(g), minus)
    }
}
