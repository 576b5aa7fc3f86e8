//! `IQ1_M`: 256 weights in 56 bytes (1.75 bits each), `d·(2·scale + 1)·(g ± 1/8)`, `g` in −1, 0, 1 from a codebook of 2048 eights.
//!
//! ```text
//!  0          32           48                  56
//! | qs: 32 B | high: 16 B | scales: 4 u16 LE |
//! ```
//! Eight `i` has the nibble `i mod 2` of `high[i / 2]`: three index bits above the eight of `qs[i]`, and the sign of its shift of 1/8 (bit 3
//! set: minus). Each `scales` word holds four scales of three bits, one per 16 weights; its top four bits are a quarter of the half `d`,
//! the first word the lowest.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block256::{self, Block256, u16_at};
use super::grids;
#[cfg(target_arch = "x86_64")]
use super::x86::{
    self, avx512 as wide,
    codebook::{Indices, Repeated, Scales, Steps, lowered_integers, raised_sums},
    lines::{Eights, put_raised, two_lines},
    tile::Lines,
};
use crate::ops::widen;
use crate::{Activation, Format};

pub(super) const BYTES: usize = 56;

pub(super) static FORMAT: Format = Format {
    id: 29,
    name: "IQ1_M",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Iq1M, BYTES>,
    quantize: None,
    scalar: block256::scalar::<Iq1M, BYTES>(),
    avx2: on_x86!(x86::block256::avx2::<Iq1M, BYTES>()),
    avx512: on_x86!(x86::block256::avx512::<Iq1M, BYTES>()),
    neon: on_neon!(super::neon::block256::neon::<Iq1M, BYTES>()),
};

pub(super) struct Iq1M;

impl Block256<BYTES> for Iq1M {
    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> (f32, f32) {
        // With the eighth of the family's integer form.
        (widen(unit_bits(words(block))) / 8.0, 0.0)
    }

    #[inline(always)]
    fn scales(block: &[u8; BYTES], scale: &mut [i16; 16], _min: &mut [i16; 16]) {
        let words = words(block);
        for (i, scale) in scale.iter_mut().enumerate() {
            *scale = 2 * (words[i / 4] >> (3 * (i % 4)) & 7) as i16 + 1;
        }
    }

    #[inline(always)]
    fn quants(block: &[u8; BYTES], q: &mut [i8; 256]) {
        for i in 0..32 {
            let high = block[32 + i / 2] >> (4 * (i % 2));
            let index = usize::from(block[i]) | usize::from(high & 7) << 8;
            let shift = if high & 8 == 0 { 1 } else { -1 };
            let g = grids::IQ1[index].to_le_bytes();
            for (q, g) in q[8 * i..][..8].iter_mut().zip(g) {
                *q = g as i8 + shift;
            }
        }
    }
}

/// The four words of scales.
#[inline(always)]
pub(super) fn words(block: &[u8; BYTES]) -> [u16; 4] {
    [u16_at(block, 48), u16_at(block, 50), u16_at(block, 52), u16_at(block, 54)]
}

/// The half of the block's unit, gathered from the top bits of the scale words.
#[inline(always)]
pub(super) fn unit_bits(words: [u16; 4]) -> u16 {
    words[0] >> 12 | words[1] >> 8 & 0xf0 | words[2] >> 4 & 0xf00 | words[3] & 0xf000
}

#[cfg(target_arch = "x86_64")]
impl x86::block256::X86Block256<BYTES> for Iq1M {
    const UNIT_FACTOR: f32 = 0.125;
    const TILE_FROM: usize = 2;
    const TILE_OFFSET: i32 = 9;
    const TILE_CHAIN: usize = 4;
    const WIDE_OFFSET: i32 = 9;
    const SHARED: usize = 16;

    #[inline(always)]
    fn halves(block: &[u8; BYTES]) -> u32 {
        unit_bits(words(block)).into()
    }

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
        lowered_integers(q, &Repeated::new(shifts(block)), RAISED as i8, |steps, s| {
            eights(steps, &indices, s)
        });
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scale_words(block: &[u8; BYTES]) -> (__m256i, __m256i) {
        (scales(block), _mm256_setzero_si256())
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
        let high = block256::u32_at(block, 32 + 4 * s) as usize;
        let g =
            wide::eight_eights(|l| grids::IQ1[usize::from(block[8 * s + l]) | (high >> (4 * l) & 7) << 8]);
        // Eight l looks at bit 3 of nibble l: a shift of −1 where it is set, else 1, with the offset.
        let minus = _mm512_test_epi64_mask(
            _mm512_set1_epi64(high as i64),
            _mm512_setr_epi64(1 << 3, 1 << 7, 1 << 11, 1 << 15, 1 << 19, 1 << 23, 1 << 27, 1 << 31),
        );
        let shift = _mm512_mask_blend_epi64(minus, _mm512_set1_epi8(10), _mm512_set1_epi8(8));
        (_mm512_add_epi8(g, shift), 0)
    }
}

/// What makes the integers unsigned: 8 in the codebook, 1 in the shifts.
#[cfg(target_arch = "x86_64")]
const RAISED: i16 = 9;

/// Eight partial sums of a block's scaled products.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn sums(block: &[u8; BYTES], indices: &Indices, x: &[u8; 256], x_sums: __m256i) -> __m256i {
    let scales = scales(block);
    let groups = Scales::of_groups(scales);
    let raised =
        raised_sums(x, Some(Repeated::new(shifts(block))), groups, |steps, s| eights(steps, indices, s));
    let share = _mm256_madd_epi16(_mm256_mullo_epi16(scales, _mm256_set1_epi16(RAISED)), x_sums);
    _mm256_sub_epi32(raised, share)
}

/// The nibbles of `high`, each with another above it.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(block: &[u8; BYTES]) -> __m256i {
    let bytes = _mm256_cvtepu8_epi16(x86::load16(block, 32));
    _mm256_or_si256(bytes, _mm256_slli_epi16::<4>(bytes))
}

/// Eleven bits each.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn indices(block: &[u8; BYTES]) -> Indices {
    let qs = x86::load32(block, 0);
    let high = _mm256_and_si256(nibbles(block), _mm256_set1_epi8(7));
    let (a, b) = (_mm256_unpacklo_epi8(qs, high), _mm256_unpackhi_epi8(qs, high));
    Indices::new(_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b))
}

/// The shifts plus 1, a byte per eight.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn shifts(block: &[u8; BYTES]) -> __m256i {
    // Bit 3 becomes 2 where it is clear, 0 where it is set.
    let clear = _mm256_andnot_si256(nibbles(block), _mm256_set1_epi8(8));
    _mm256_srli_epi16::<2>(clear)
}

/// `2·scale + 1` of the sixteen groups.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn scales(block: &[u8; BYTES]) -> __m256i {
    let words = _mm256_set1_epi64x(i64::from_le_bytes(block[48..].as_chunks::<8>().0[0]));
    let four = |i: i64| (((2 * i + 1) << 8) | (2 * i)) * 0x0001_0001_0001_0001;
    let own = _mm256_shuffle_epi8(words, _mm256_setr_epi64x(four(0), four(1), four(2), four(3)));
    // The three bits of scale i to the top of their word, then down to bit 1; the bit below them becomes the 1.
    let shifts = _mm256_set1_epi64x(1 << (48 + 4) | 1 << (32 + 7) | 1 << (16 + 10) | 1 << 13);
    let top = _mm256_mullo_epi16(own, shifts);
    _mm256_or_si256(_mm256_srli_epi16::<12>(top), _mm256_set1_epi16(1))
}

/// Four eights of the raised codebook.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn eights(steps: &mut Steps<'_>, indices: &Indices, s: usize) -> __m256i {
    // SAFETY: AVX2 is on; eleven bits are inside a codebook of 2048.
    unsafe { x86::codebook::four_of(&grids::IQ1_RAISED, steps.four_words(indices, s)) }
}
