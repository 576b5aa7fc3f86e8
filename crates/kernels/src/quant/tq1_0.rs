//! `TQ1_0`: 256 weights in 54 bytes (1.6875 bits each), `d·(q − 1)`, five base-3 digits per byte.
//!
//! ```text
//!  0          48        52       54
//! | qs: 48 B | qh: 4 B | d: f16 |
//! ```
//! Digit `n` of byte `x` is `((x·3^n mod 256)·3) / 256`. In order: digits 0 to 4 of `qs[0..32]` (all bytes for digit 0, then for digit 1, …), digits 0
//! to 4 of `qs[32..48]`, digits 0 to 3 of `qh`.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::half_at;
use super::block256::{self, Block256};
#[cfg(target_arch = "x86_64")]
use super::x86::{
    self,
    tile::{Lines, put_lines, transposed},
};
use crate::{Activation, Format};

pub(super) const BYTES: usize = 54;

pub(super) static FORMAT: Format = Format {
    id: 34,
    name: "TQ1_0",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Tq1_0, BYTES>,
    quantize: None,
    scalar: block256::scalar::<Tq1_0, BYTES>(),
    avx2: on_x86!(x86::block256::avx2::<Tq1_0, BYTES>()),
    avx512: on_x86!(x86::block256::avx512::<Tq1_0, BYTES>()),
    neon: on_neon!(super::neon::block256::neon::<Tq1_0, BYTES>()),
};

pub(super) struct Tq1_0;

impl Block256<BYTES> for Tq1_0 {
    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> (f32, f32) {
        (half_at(block, 52), 0.0)
    }

    #[inline(always)]
    fn scales(_block: &[u8; BYTES], scale: &mut [i16; 16], _min: &mut [i16; 16]) {
        *scale = [1; 16];
    }

    #[inline(always)]
    fn quants(block: &[u8; BYTES], q: &mut [i8; 256]) {
        let mut at = 0;
        for (bytes, digits) in [(&block[..32], 5), (&block[32..48], 5), (&block[48..52], 4)] {
            let mut power = 1u8;
            for _ in 0..digits {
                for byte in bytes {
                    q[at] = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as i8 - 1;
                    at += 1;
                }
                power = power.wrapping_mul(3);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl x86::block256::X86Block256<BYTES> for Tq1_0 {
    const UNIT_AT: usize = 52;
    const TILE_OFFSET: i32 = 1;
    const TILE_CHAIN: usize = 8;
    const WIDE_OFFSET: i32 = 1;
    const SHARED: usize = 32;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn sums(block: &[u8; BYTES], x: &[u8; 256], _x_sums: __m256i) -> (__m256i, __m256i) {
        // Without scales the pairs of all eight steps fit sixteen bits: at most 8 · 2 · 127.
        let one = _mm256_set1_epi8(1);
        let mut pairs = _mm256_setzero_si256();
        for (s, q) in vectors(block).into_iter().enumerate() {
            let signed = _mm256_sign_epi8(x86::load32(x, 32 * s), q);
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(one, signed));
        }
        (_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)), _mm256_setzero_si256())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scale_words(_block: &[u8; BYTES]) -> (__m256i, __m256i) {
        (_mm256_set1_epi16(1), _mm256_setzero_si256())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn lines(rows: [&[u8; BYTES]; 8], out: &mut Lines<64>) {
        let mut q = [[_mm256_setzero_si256(); 8]; 8];
        for r in 0..8 {
            for (s, v) in vectors(rows[r]).into_iter().enumerate() {
                q[s][r] = _mm256_add_epi8(v, _mm256_set1_epi8(1));
            }
        }
        for (q, out) in q.into_iter().zip(out.as_chunks_mut::<8>().0) {
            put_lines(transposed(q), out);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn wide(block: &[u8; BYTES], s: usize) -> (__m512i, u64) {
        let v = vectors(block);
        let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(v[2 * s]), v[2 * s + 1]);
        (_mm512_add_epi8(both, _mm512_set1_epi8(1)), 0)
    }
}

/// The integers, 32 at a time.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn vectors(block: &[u8; BYTES]) -> [__m256i; 8] {
    let times_3 = |v| _mm256_add_epi8(_mm256_add_epi8(v, v), v);
    // A digit is 0 below 86 and 2 from 171 on. Comparisons are signed, so all bytes carry an offset of 128, which three times is
    // itself again.
    let offset = _mm256_set1_epi8(-128);
    let integer = |v| {
        let below = _mm256_cmpgt_epi8(_mm256_set1_epi8(-128 + 86), v);
        let above = _mm256_cmpgt_epi8(v, _mm256_set1_epi8(-128 + 127 + 43));
        _mm256_sub_epi8(below, above)
    };
    let mut v = [_mm256_setzero_si256(); 8];
    v[0] = _mm256_xor_si256(x86::load32(block, 0), offset);
    for s in 1..5 {
        v[s] = times_3(v[s - 1]);
    }
    // Two digits of the sixteen bytes at a time.
    let sixteen = _mm256_xor_si256(_mm256_broadcastsi128_si256(x86::load16(block, 32)), offset);
    v[5] = _mm256_blend_epi32::<0b1111_0000>(sixteen, times_3(sixteen));
    v[6] = times_3(times_3(v[5]));
    let fifth = times_3(times_3(v[6]));
    // The last four bytes as words, each with four powers of 3.
    let four = _mm_set1_epi32(i32::from_le_bytes([block[48], block[49], block[50], block[51]]));
    let four_times = |power: i64| power * 0x0001_0001_0001_0001;
    let powers = _mm256_setr_epi64x(four_times(1), four_times(3), four_times(9), four_times(27));
    let products = _mm256_mullo_epi16(_mm256_cvtepu8_epi16(four), powers);
    let bytes = _mm256_and_si256(products, _mm256_set1_epi16(255));
    let last = _mm_packus_epi16(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
    let last = _mm_xor_si128(last, _mm256_castsi256_si128(offset));
    v[7] = _mm256_inserti128_si256::<1>(fifth, last);
    v.map(integer)
}
