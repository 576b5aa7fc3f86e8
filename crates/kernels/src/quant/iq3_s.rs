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
#[cfg(target_arch = "x86_64")]
use super::block256::{u16_at, u32_at, u64_at};
use super::grids;
#[cfg(target_arch = "x86_64")]
use super::x86::{
    self,
    fours::{both_halves, spread_signs},
    lines::{Eights, put_signed},
    tile::Lines,
};
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
    avx512: on_x86!(x86::block256::avx512::<Iq3S, BYTES>()),
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
static FOURS: x86::fours::Fours<518> = x86::fours::Fours::new(&grids::IQ3_S);

/// The indices of all fours.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn indices(block: &[u8; BYTES]) -> [u16; 64] {
    let own = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
    let mut indices = [0; 64];
    for (i, out) in indices.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = _mm256_cvtepu8_epi16(x86::load16(block, 2 + 16 * i));
        let high = _mm256_set1_epi16(u16_at(block, 66 + 2 * i) as i16);
        let set = _mm256_cmpeq_epi16(_mm256_and_si256(high, own), own);
        let index = _mm256_or_si256(low, _mm256_and_si256(set, _mm256_set1_epi16(256)));
        // SAFETY: sixteen words into an array of sixteen.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), index) };
    }
    indices
}

/// 32 weights without their signs.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn unsigned(indices: &[u16; 64], s: usize) -> __m256i {
    // SAFETY: an index has nine bits, for 512 rows.
    unsafe { FOURS.eight(|k| usize::from(indices[8 * s + k])) }
}

/// `2 · n + 1` of the low nibbles.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn odd_nibbles(bytes: __m128i) -> __m128i {
    let n = _mm_and_si128(bytes, _mm_set1_epi8(15));
    _mm_or_si128(_mm_add_epi8(n, n), _mm_set1_epi8(1))
}

#[cfg(target_arch = "x86_64")]
impl x86::block256::X86Block256<BYTES> for Iq3S {
    const TILE_FROM: usize = 2;
    const TILE_OFFSET: i32 = 15;
    const TILE_CHAIN: usize = 8;
    const SHARED: usize = 32;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn sums(block: &[u8; BYTES], x: &[u8; 256], _x_sums: __m256i) -> (__m256i, __m256i) {
        let indices = indices(block);
        let signs = [both_halves(block, 74), both_halves(block, 90)];
        // Twice a nibble plus one, a byte each.
        let bytes = _mm_cvtsi32_si128(u32_at(block, 106) as i32);
        let scales = odd_nibbles(_mm_unpacklo_epi8(bytes, _mm_srli_epi16::<4>(bytes)));
        let scales = _mm256_broadcastsi128_si256(scales);
        let mut acc = _mm256_setzero_si256();
        macro_rules! step {
            ($($s:literal)*) => {$(
                let minus = spread_signs(signs[$s / 4], $s % 4);
                let pairs = x86::masked_pairs(unsigned(&indices, $s), minus, x86::load32(x, 32 * $s));
                let scale = _mm256_shuffle_epi8(scales, _mm256_set1_epi16(0x80 << 8 | $s));
                acc = _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, scale));
            )*};
        }
        step!(0 1 2 3 4 5 6 7);
        (acc, _mm256_setzero_si256())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scale_words(block: &[u8; BYTES]) -> (__m256i, __m256i) {
        let bytes = _mm_cvtsi32_si128(u32_at(block, 106) as i32);
        let scales = odd_nibbles(_mm_unpacklo_epi8(bytes, _mm_srli_epi16::<4>(bytes)));
        (x86::each_twice(_mm_cvtepu8_epi16(scales)), _mm256_setzero_si256())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn lines(rows: [&[u8; BYTES]; 8], out: &mut Lines<64>) {
        let (mut own, mut signs) = ([[0; 64]; 8], [_mm256_setzero_si256(); 8]);
        for r in 0..8 {
            (own[r], signs[r]) = (indices(rows[r]), x86::load32(rows[r], 74));
        }
        // SAFETY: an index has nine bits, for 512 rows.
        let line = |k: usize| unsafe { FOURS.eight(|r| usize::from(own[r][k])) };
        put_signed(out, &Eights::new(signs), Self::TILE_OFFSET, |e| [line(2 * e), line(2 * e + 1)]);
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn wide(block: &[u8; BYTES], s: usize) -> (__m512i, u64) {
        let high = usize::from(u16_at(block, 66 + 2 * s));
        let index = |k: usize| usize::from(block[2 + 16 * s + k]) | (high >> k & 1) << 8;
        // SAFETY: an index has nine bits, for 512 rows.
        let g = unsafe { [FOURS.eight(index), FOURS.eight(|k| index(8 + k))] };
        (x86::avx512::joined(g), u64_at(block, 74 + 8 * s))
    }
}
