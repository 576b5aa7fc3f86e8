//! `-p2`, the packed form of IQ1: 256 weights in 82 bytes, `d·(2·scale + 1)·(g ± 1/8)` with `g` in −1, 0, 1.
//!
//! ```text
//!  0           64                  80       82
//! | g + 1: 64 B | groups: 16 bytes | d: f16 |
//! ```
//! Two bits per weight, in the order of [steps](super): bits `2·i` up of byte `32·h + l` belong to byte `l` of step `2·i + h`. A group's
//! byte holds `2·scale + 1` in its low four bits, and the signs of the shifts of its two eights: bit 7 of the first, bit 6 of the second
//! (set: minus).
//!
//! With `S` the sums of eight activations each, `Σ (8·g ± 1)·x = 8·(Σ (g + 1)·x) − 8·ΣS ± S ± S`: two bits are multiplied, not a value
//! of six.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::{Form, Steps, element};
use crate::quant::block32::half_at;
use crate::quant::block256::Block256;
#[cfg(target_arch = "x86_64")]
use crate::quant::x86::{self, block256::X86Block256, packed::Column, packed::Lanes, tile::Lines};

pub(in crate::quant) const BYTES: usize = 82;
pub(in crate::quant) const GROUPS_AT: usize = 64;
pub(in crate::quant) const UNIT_AT: usize = 80;
/// Minus signs of the first and the second eight of a group.
const MINUS: [u8; 2] = [1 << 7, 1 << 6];
pub(in crate::quant) const SCALE: u8 = 15;

/// The blocks of IQ1 packed.
pub(in crate::quant) struct P2;

impl Block256<BYTES> for P2 {
    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> (f32, f32) {
        (half_at(block, UNIT_AT) / 8.0, 0.0)
    }

    #[inline(always)]
    fn scales(block: &[u8; BYTES], scale: &mut [i16; 16], _min: &mut [i16; 16]) {
        for (scale, group) in scale.iter_mut().zip(&block[GROUPS_AT..]) {
            *scale = i16::from(group & SCALE);
        }
    }

    #[inline(always)]
    fn quants(block: &[u8; BYTES], q: &mut [i8; 256]) {
        for t in 0..8 {
            for l in 0..32 {
                let g = (block[32 * (t % 2) + l] >> (2 * (t / 2)) & 3) as i8 - 1;
                let minus = block[GROUPS_AT + l / 2] & MINUS[t / 4] != 0;
                q[element(t, l)] = 8 * g + if minus { -1 } else { 1 };
            }
        }
    }
}

impl Form<BYTES> for P2 {
    const UNIT_AT: usize = UNIT_AT;

    #[inline(always)]
    fn encode(steps: &Steps, scales: &[u8; 16], out: &mut [u8; BYTES]) {
        for h in 0..2 {
            for l in 0..32 {
                // 8·g ± 1 is a little above or below what its top bits say.
                let g = |i: usize| ((steps[2 * i + h][l] + 9) >> 3) as u8;
                out[32 * h + l] = g(0) | g(1) << 2 | g(2) << 4 | g(3) << 6;
            }
        }
        for (j, scale) in scales.iter().enumerate() {
            // Of 8·g ± 1, bit 1 is set below a multiple of 8 and clear above.
            let minus = |i: usize| if steps[4 * i][2 * j] & 2 != 0 { MINUS[i] } else { 0 };
            out[GROUPS_AT + j] = scale | minus(0) | minus(1);
        }
    }
}

/// The bytes of the groups as words, signs extended.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn groups(block: &[u8; BYTES]) -> __m256i {
    _mm256_cvtepi8_epi16(x86::load16(block, GROUPS_AT))
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn scale_of(groups: __m256i) -> __m256i {
    _mm256_and_si256(groups, _mm256_set1_epi16(SCALE.into()))
}

/// The sign of the second eight on top of its word, which is never 0.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn second_on_top(groups: __m256i) -> __m256i {
    _mm256_slli_epi16::<9>(groups)
}

/// The integers of the steps, plus `raise`.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn values(block: &[u8; BYTES], raise: i8) -> [__m256i; 8] {
    let groups = groups(block);
    // −8 ± 1 in both bytes of a group's word, per eight.
    let shift = |on_top| {
        let minus = _mm256_srai_epi16::<15>(on_top);
        _mm256_add_epi8(_mm256_add_epi8(minus, minus), _mm256_set1_epi8(raise - 7))
    };
    let shifts = [shift(groups), shift(second_on_top(groups))];
    let (a, b) = (x86::load32(block, 0), x86::load32(block, 32));
    // The two bits on their way to bit 3.
    macro_rules! step {
        ($v:ident, $eight:literal, $shift:ident $by:literal) => {{
            let u = _mm256_and_si256($shift::<$by>($v), _mm256_set1_epi8(3 << 3));
            _mm256_add_epi8(u, shifts[$eight])
        }};
    }
    [
        step!(a, 0, _mm256_slli_epi16 3),
        step!(b, 0, _mm256_slli_epi16 3),
        step!(a, 0, _mm256_slli_epi16 1),
        step!(b, 0, _mm256_slli_epi16 1),
        step!(a, 1, _mm256_srli_epi16 1),
        step!(b, 1, _mm256_srli_epi16 1),
        step!(a, 1, _mm256_srli_epi16 3),
        step!(b, 1, _mm256_srli_epi16 3),
    ]
}

#[cfg(target_arch = "x86_64")]
impl X86Block256<BYTES> for P2 {
    const UNIT_AT: usize = UNIT_AT;
    const UNIT_FACTOR: f32 = 0.125;
    const TILE_OFFSET: i32 = 9;
    const TILE_CHAIN: usize = 4;
    const SHARED: usize = 16;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scale_words(block: &[u8; BYTES]) -> (__m256i, __m256i) {
        (scale_of(groups(block)), _mm256_setzero_si256())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn integers(block: &[u8; BYTES], q: &mut [i8; 256]) {
        x86::packed::put_steps(values(block, 0), q);
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn lines(rows: [&[u8; BYTES]; 8], out: &mut Lines<64>) {
        x86::packed::put_lines(rows, |block| values(block, Self::TILE_OFFSET as i8), out);
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn wide_block(block: &[u8; BYTES], offset: i16, out: &mut [u8; 256]) {
        // SAFETY: AVX2 is on.
        unsafe { x86::packed::wide_block::<P2, BYTES>(block, offset, out) };
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes<BYTES> for P2 {
    /// With `a` and `b` the sums of a group's two eights: `−8·(a + b) + a`, `−8·(a + b) − a`, and `b`.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn starts(steps: &[__m256i; 8]) -> [__m256i; 3] {
        let of = |four: &[__m256i]| {
            let zero = _mm256_setzero_si256();
            four.iter().fold(zero, |sum, x| x86::packed::add_pairs(sum, _mm256_set1_epi8(1), *x))
        };
        let (a, b) = (of(&steps[..4]), of(&steps[4..]));
        let offset = _mm256_slli_epi16::<3>(_mm256_add_epi16(a, b));
        let minus_offset = _mm256_sub_epi16(_mm256_setzero_si256(), offset);
        [_mm256_add_epi16(minus_offset, a), _mm256_sub_epi16(minus_offset, a), b]
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn products(block: &[u8; BYTES], x: &Column) -> __m256i {
        let (a, b) = (x86::load32(block, 0), x86::load32(block, 32));
        let (c, d) = (_mm256_srli_epi16::<4>(a), _mm256_srli_epi16::<4>(b));
        // The second two bits of a nibble count four times: their sums are kept apart, not shifted down.
        let sum = |mask: i8, s: usize| {
            let zero = _mm256_setzero_si256();
            let steps = [(a, s), (b, s + 1), (c, s + 4), (d, s + 5)].into_iter();
            steps.fold(zero, |sum, (v, t)| {
                x86::packed::add_pairs(sum, _mm256_and_si256(v, _mm256_set1_epi8(mask)), x.step(t))
            })
        };
        let fourfold = _mm256_add_epi16(_mm256_slli_epi16::<2>(sum(3, 0)), sum(3 << 2, 2));
        with_shifts(block, fourfold, x)
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn products_avx512(block: &[u8; BYTES], x: &Column) -> __m256i {
        let low = x86::avx512::load64(block, 0);
        let high = _mm512_srli_epi16::<4>(low);
        let sum = |mask: i8, s: usize| {
            let pairs =
                |v, t| _mm512_maddubs_epi16(_mm512_and_si512(v, _mm512_set1_epi8(mask)), x.two_steps(t));
            _mm512_add_epi16(pairs(low, s), pairs(high, s + 4))
        };
        let fourfold = _mm512_add_epi16(_mm512_slli_epi16::<2>(sum(3, 0)), sum(3 << 2, 2));
        let (even, odd) = x86::packed::halves(fourfold);
        with_shifts(block, _mm256_add_epi16(even, odd), x)
    }
}

/// From `4·Σ (g + 1)·x` of each group to the scaled sums.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn with_shifts(block: &[u8; BYTES], fourfold: __m256i, x: &Column) -> __m256i {
    let groups = groups(block);
    let first = _mm256_blendv_epi8(x.starts[0], x.starts[1], groups);
    let second = _mm256_sign_epi16(x.starts[2], second_on_top(groups));
    let all = _mm256_add_epi16(_mm256_add_epi16(fourfold, fourfold), _mm256_add_epi16(first, second));
    _mm256_madd_epi16(all, scale_of(groups))
}
