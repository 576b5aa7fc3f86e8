//! `-p3`, the packed form of IQ2: 256 weights in 114 bytes, `d·(2·scale + 1)/8·(±g)` with `g` in 8, 25, 43.
//!
//! ```text
//!  0              96                112      114
//! | codes: 3·32 B | scales: 16 bytes | d: f16 |
//! ```
//! Three bits per weight, in the order of [steps](super): `g`'s place in its list, and above it the sign. Nibbles of the three rows of 32
//! bytes hold the codes of a step each (bits 0 to 2): low those of steps 0, 1 and 4, high those of 2, 3 and 5. Bit 3 of the low nibbles is bit 0,
//! 1 and 2 of step 6, that of the high ones step 7. A scale byte is `2·scale + 1`.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::{Form, Steps, element};
use crate::quant::block32::half_at;
use crate::quant::block256::Block256;
#[cfg(target_arch = "x86_64")]
use crate::quant::x86::{self, block256::X86Block256, packed::Column, packed::Lanes, tile::Lines};

pub(in crate::quant) const BYTES: usize = 114;
pub(in crate::quant) const SCALES_AT: usize = 96;
pub(in crate::quant) const UNIT_AT: usize = 112;

/// The integers by code; bit 3 does not count.
pub(in crate::quant) const VALUES: [i8; 16] = [8, 25, 43, 0, -8, -25, -43, 0, 8, 25, 43, 0, -8, -25, -43, 0];
/// The row of each of the first six steps.
const ROWS: [usize; 6] = [0, 1, 0, 1, 2, 2];
/// And how far up its nibble is.
const SHIFTS: [usize; 6] = [0, 0, 4, 4, 0, 4];

/// The blocks of IQ2 packed.
pub(in crate::quant) struct P3;

impl Block256<BYTES> for P3 {
    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> (f32, f32) {
        (half_at(block, UNIT_AT) / 8.0, 0.0)
    }

    #[inline(always)]
    fn scales(block: &[u8; BYTES], scale: &mut [i16; 16], _min: &mut [i16; 16]) {
        scale.iter_mut().zip(&block[SCALES_AT..]).for_each(|(scale, s)| *scale = i16::from(*s));
    }

    #[inline(always)]
    fn quants(block: &[u8; BYTES], q: &mut [i8; 256]) {
        for l in 0..32 {
            let row = |r: usize| block[32 * r + l];
            for t in 0..6 {
                q[element(t, l)] = VALUES[usize::from(row(ROWS[t]) >> SHIFTS[t] & 7)];
            }
            for t in 6..8 {
                let bit = |r: usize| row(r) >> (4 * (t - 6) + 3) & 1;
                q[element(t, l)] = VALUES[usize::from(bit(0) | bit(1) << 1 | bit(2) << 2)];
            }
        }
    }
}

impl Form<BYTES> for P3 {
    const UNIT_AT: usize = UNIT_AT;

    #[inline(always)]
    fn encode(steps: &Steps, scales: &[u8; 16], out: &mut [u8; BYTES]) {
        for l in 0..32 {
            let code = |t: usize| {
                let (q, g) = (steps[t][l], steps[t][l].unsigned_abs());
                u8::from(g > VALUES[0] as u8) + u8::from(g > VALUES[1] as u8) + (u8::from(q < 0) << 2)
            };
            let last = |bit: u8| (code(6) >> bit & 1) << 3 | (code(7) >> bit & 1) << 7;
            out[l] = code(0) | code(2) << 4 | last(0);
            out[32 + l] = code(1) | code(3) << 4 | last(1);
            out[64 + l] = code(4) | code(5) << 4 | last(2);
        }
        out[SCALES_AT..UNIT_AT].copy_from_slice(scales);
    }
}

/// A row's nibbles without their last bits. (What comes down with the upper ones from the neighbour's lower nibble ends below bit 7.)
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn codes(block: &[u8; BYTES], row: usize) -> __m256i {
    _mm256_and_si256(x86::load32(block, 32 * row), _mm256_set1_epi8(0x77))
}

/// The codes of step 6, and in the upper nibbles those of step 7.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn last_codes(block: &[u8; BYTES]) -> __m256i {
    let row = |r: usize| x86::load32(block, 32 * r);
    let bit = |v, r: u32| _mm256_and_si256(v, _mm256_set1_epi8((0x11 << r) as i8));
    let (low, mid) = (bit(_mm256_srli_epi16::<3>(row(0)), 0), bit(_mm256_srli_epi16::<2>(row(1)), 1));
    _mm256_or_si256(low, _mm256_or_si256(mid, bit(_mm256_srli_epi16::<1>(row(2)), 2)))
}

/// Two times sixteen table entries.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn table(entries: [i8; 16]) -> __m256i {
    // SAFETY: sixteen readable bytes; the load needs no alignment.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(entries.as_ptr().cast()) })
}

/// The values of the steps, looked up by codes; bits 4 to 6 of an index do not count either.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn values(block: &[u8; BYTES], entries: [i8; 16]) -> [__m256i; 8] {
    let (a, b, c) = (codes(block, 0), codes(block, 1), codes(block, 2));
    let last = last_codes(block);
    let up = |v| _mm256_srli_epi16::<4>(v);
    [a, b, up(a), up(b), c, up(c), last, up(last)].map(|code| _mm256_shuffle_epi8(table(entries), code))
}

/// Added to the integers, makes them unsigned.
#[cfg(target_arch = "x86_64")]
const RAISE: i8 = VALUES[2];

/// How products of steps are added in sixteen bits: without the offset no six of a group's exceed them.
#[cfg(target_arch = "x86_64")]
const CHAINS: [&[usize]; 3] = [&[0, 2, 4], &[1, 3, 5], &[6, 7]];

/// The integers by code, unsigned.
#[cfg(target_arch = "x86_64")]
const RAISED: [i8; 16] = {
    let mut table = VALUES;
    let mut i = 0;
    while i < 16 {
        table[i] += RAISE;
        i += 1;
    }
    table
};

#[cfg(target_arch = "x86_64")]
impl X86Block256<BYTES> for P3 {
    const OFFSET: i32 = RAISE as i32;
    const UNIT_AT: usize = UNIT_AT;
    const UNIT_FACTOR: f32 = 0.125;
    const TILE_CHAIN: usize = 2;
    const TILE_LONG: usize = 4;
    const SHARED: usize = 16;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scale_words(block: &[u8; BYTES]) -> (__m256i, __m256i) {
        (_mm256_cvtepu8_epi16(x86::load16(block, SCALES_AT)), _mm256_setzero_si256())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn integers(block: &[u8; BYTES], q: &mut [i8; 256]) {
        x86::packed::put_steps(values(block, VALUES), q);
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn lines(rows: [&[u8; BYTES]; 8], out: &mut Lines<64>) {
        x86::packed::put_lines(rows, |block| values(block, RAISED), out);
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn wide_block(block: &[u8; BYTES], offset: i16, out: &mut [u8; 256]) {
        // SAFETY: AVX2 is on.
        unsafe { x86::packed::wide_block::<P3, BYTES>(block, offset, out) };
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes<BYTES> for P3 {
    /// What the offset takes off each chain.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn starts(steps: &[__m256i; 8]) -> [__m256i; 3] {
        CHAINS.map(|chain| {
            let zero = _mm256_setzero_si256();
            let add = |sum, t: &usize| x86::packed::add_pairs(sum, _mm256_set1_epi8(RAISE), steps[*t]);
            _mm256_sub_epi16(zero, chain.iter().fold(zero, add))
        })
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn products(block: &[u8; BYTES], x: &Column) -> __m256i {
        let u = values(block, RAISED);
        let scales = _mm256_cvtepu8_epi16(x86::load16(block, SCALES_AT));
        // (Sums wrap around on the way, and are exact in the end.)
        let chain = |i: usize| {
            let add = |sum, t: &usize| x86::packed::add_pairs(sum, u[*t], x.step(*t));
            _mm256_madd_epi16(CHAINS[i].iter().fold(x.starts[i], add), scales)
        };
        _mm256_add_epi32(_mm256_add_epi32(chain(0), chain(1)), chain(2))
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn products_avx512(block: &[u8; BYTES], x: &Column) -> __m256i {
        use x86::avx512::{joined, load64};
        let table = _mm512_broadcast_i64x4(table(RAISED));
        let pairs = |codes, t| _mm512_maddubs_epi16(_mm512_shuffle_epi8(table, codes), x.two_steps(t));
        let first = _mm512_and_si512(load64(block, 0), _mm512_set1_epi8(0x77));
        let with_upper = |v| joined([v, _mm256_srli_epi16::<4>(v)]);
        // The lower half has the first chain and the start of the third, the upper half the second and nothing.
        let mut sum = _mm512_add_epi16(joined([x.starts[0], x.starts[1]]), pairs(first, 0));
        sum = _mm512_add_epi16(sum, pairs(_mm512_srli_epi16::<4>(first), 2));
        sum = _mm512_add_epi16(sum, pairs(with_upper(codes(block, 2)), 4));
        let last = pairs(with_upper(last_codes(block)), 6);
        let last = _mm512_add_epi16(_mm512_zextsi256_si512(x.starts[2]), last);
        let scales = _mm512_broadcast_i64x4(_mm256_cvtepu8_epi16(x86::load16(block, SCALES_AT)));
        let acc = _mm512_dpwssd_epi32(_mm512_setzero_si512(), sum, scales);
        let (even, odd) = x86::packed::halves(_mm512_dpwssd_epi32(acc, last, scales));
        _mm256_add_epi32(even, odd)
    }
}
