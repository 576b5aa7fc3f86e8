//! `NVFP4`: 64 weights in 36 bytes (4.5 bits each), `scale · level[q]` with MXFP4's levels and a scale per 16.
//!
//! ```text
//!  0               4                                12
//! | s0 s1 s2 s3 | q0 q8 | q1 q9 | … | q7 q15 | … next 16 … |     two nibbles per byte, the low one first
//! ```
//! A scale is an unsigned float of four exponent and three mantissa bits, halved because the levels are doubled; 0x7f is 0 as well. Files
//! have one more factor per tensor, which is not part of the blocks.
//!
//! Canonical order of a dot with a Q8_0 activation row (scale `a`, quants `x`), 32 elements after 32:
//! `total += a · (s · (Σ q·x) + s' · (Σ q·x)')` with the two groups of sixteen; the sums are exact integers, converted to `f32` once, and every
//! multiplication and addition rounds on its own.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::mxfp4::LEVELS;
#[cfg(target_arch = "x86_64")]
use super::x86::{
    self,
    fours::both_halves,
    tile::{self, Form, Panel},
};
#[cfg(target_arch = "x86_64")]
use crate::TILE_ROWS;
use crate::activation::Q8Row;
use crate::{Activation, Format, Kernels};

pub(super) const BYTES: usize = 36;

pub(super) static FORMAT: Format = Format {
    id: 40,
    name: "NVFP4",
    block_elements: 64,
    block_bytes: BYTES,
    activation: Activation::Q8_0,
    dequantize,
    quantize: None,
    scalar: Kernels { rows: rows_scalar, tile: None },
    avx2: on_x86!(Kernels { rows: rows_avx2, tile: Some((tile_avx2, TILE_FROM)) }),
    avx512: None,
    neon: on_neon!(super::neon::nvfp4::neon()),
};

/// 2^119, which turns the exponent of a float into that of a scale (of bias 7), halved.
pub(super) const REBIAS: f32 = f32::from_bits((127 + 119) << 23);

/// The float of a scale byte; its top bit means nothing.
fn unit(byte: u8) -> f32 {
    if byte == 0x7f { 0.0 } else { f32::from_bits(u32::from(byte & 0x7f) << 20) * REBIAS }
}

/// The integers of group `g`.
fn group(block: &[u8; BYTES], g: usize) -> [i8; 16] {
    let mut q = [0; 16];
    for (j, byte) in block[4 + 8 * g..][..8].iter().enumerate() {
        q[j] = LEVELS[usize::from(byte & 15)];
        q[j + 8] = LEVELS[usize::from(byte >> 4)];
    }
    q
}

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len() / BYTES * 64, out.len(), "whole row");
    for (block, out) in bytes.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<64>().0) {
        for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            *out = group(block, g).map(|q| unit(block[g]) * f32::from(q));
        }
    }
}

/// Row after row: the scalar twin.
///
/// # Safety
/// None needed; the signature is that of [`Rows`](crate::Rows).
unsafe fn rows_scalar(weights: &[u8], x: &[u8], n: usize, y: &mut [f32]) {
    let x = Q8Row::new(x, n);
    let blocks = weights.as_chunks::<BYTES>().0;
    for (r, y) in y.iter_mut().enumerate() {
        *y = 0.0;
        for (b, x_q) in x.q.as_chunks::<32>().0.iter().enumerate() {
            let block = &blocks[r * (n / 64) + b / 2];
            let term = |half: usize| {
                let g = 2 * (b % 2) + half;
                let (q, x) = (group(block, g), &x_q[16 * half..]);
                let sum: i32 = q.iter().zip(x).map(|(&q, &x)| i32::from(q) * i32::from(x as i8)).sum();
                unit(block[g]) * sum as f32
            };
            *y += x.d(b) * (term(0) + term(1));
        }
    }
}

/// Four rows at a time, ordered like those of [`x86::rows32`] with groups of sixteen in the place of block columns.
///
/// # Safety
/// That of [`Rows`](crate::Rows), for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn rows_avx2(weights: &[u8], x: &[u8], n: usize, y: &mut [f32]) {
    let x = Q8Row::new(x, n);
    let n_blocks = n / 64;
    let blocks = &weights.as_chunks::<BYTES>().0[..n_blocks * y.len()];
    let fours = x86::Fours::new(y.len(), n_blocks * BYTES);
    let row = |r: usize| &blocks[r * n_blocks..][..n_blocks];
    for [a, b, c, d] in fours.rows() {
        let rows = [row(a), row(b), row(c), row(d)];
        // SAFETY: this function has its features.
        let sums =
            unsafe { if fours.streams { four_rows::<true>(rows, &x) } else { four_rows::<false>(rows, &x) } };
        (y[a], y[b], y[c], y[d]) = (sums[0], sums[1], sums[2], sums[3]);
    }
}

/// # Safety
/// AVX2.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn four_rows<const STREAMS: bool>(rows: [&[[u8; BYTES]]; 4], x: &Q8Row<'_>) -> [f32; 4] {
    let (start, row_bytes) = (rows[0].as_ptr().cast(), size_of_val(rows[0]));
    let [a, b, c, d] = rows;
    // Rows a and c in the lower half, b and d in the upper; the other places hold what nobody reads.
    let mut total = _mm256_setzero_ps();
    for (i, (((a, b), c), d)) in a.iter().zip(b).zip(c).zip(d).enumerate() {
        x86::fetch_four::<STREAMS>(start, row_bytes, i, [a, b, c, d]);
        let units = units([a, b, c, d]);
        for half in 0..2 {
            let x_q = &x.q.as_chunks::<32>().0[2 * i + half];
            let sums = _mm256_cvtepi32_ps(sums([a, b, c, d], x_q, 4 + 16 * half));
            let t = _mm256_mul_ps(units[half], sums);
            let t = _mm256_add_ps(t, _mm256_shuffle_ps::<0b11_10_11_10>(t, t));
            total = _mm256_add_ps(total, _mm256_mul_ps(_mm256_set1_ps(x.d(2 * i + half)), t));
        }
    }
    let mut sums = [0.0; 8];
    // SAFETY: eight floats into an array of eight.
    unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), total) };
    [sums[0], sums[4], sums[1], sums[5]]
}

/// From how many activation rows on a tile is faster than rows.
#[cfg(target_arch = "x86_64")]
const TILE_FROM: usize = 4;

/// What a tile must know.
#[cfg(target_arch = "x86_64")]
struct Levels;

#[cfg(target_arch = "x86_64")]
impl Form for Levels {
    const CHAIN: usize = 4;
    const OFFSET: i32 = 12;
    const TOP: i32 = 24;
    const MIN: bool = false;
    const SHARED: usize = 16;
    /// Sums of sixteen activations are not at hand.
    const WHOLE: bool = false;
}

/// # Safety
/// That of [`Tile`](crate::Tile), for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn tile_avx2(weights: &[u8], n_rows: usize, columns: &[&[u8]], n: usize, y: &mut [[f32; TILE_ROWS]]) {
    let n_blocks = n / 64;
    let blocks = &weights.as_chunks::<BYTES>().0[..n_blocks * n_rows];
    y.fill([0.0; TILE_ROWS]);
    let (mut panel, mut ready) = (Panel::new(), tile::NONE_READY);
    for first in (0..n_blocks).step_by(4) {
        let count = 4.min(n_blocks - first);
        for v in 0..n_rows.div_ceil(8) {
            for i in 0..count {
                // Rows past the end are the last one again.
                let row = |r: usize| &blocks[(8 * v + r).min(n_rows - 1) * n_blocks + first + i];
                unpack(&mut panel, v, i, std::array::from_fn(row));
            }
        }
        tile::blocks_of_32::<Levels>(&panel, 2 * first, 2 * count, n_rows, columns, &mut ready, n, y);
    }
}

/// One block each of eight rows into places `2 · i` and `2 · i + 1` of group `v` of a panel.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn unpack(panel: &mut Panel, v: usize, i: usize, rows: [&[u8; BYTES]; 8]) {
    let raised = const {
        let mut levels = LEVELS;
        let mut q = 0;
        while q < 16 {
            levels[q] += Levels::OFFSET as i8;
            q += 1;
        }
        levels
    };
    for half in 0..2 {
        let s = 2 * i + half;
        for (group, out) in [&mut panel.d[s], &mut panel.m[s]].into_iter().enumerate() {
            let [a, b, c, d, e, f, g, h] = rows.map(|block| i32::from(block[2 * half + group]));
            let units = floats(_mm256_setr_epi32(a, b, c, d, e, f, g, h));
            // SAFETY: eight floats into an array of eight; the store needs no alignment.
            unsafe { _mm256_storeu_ps(out.as_chunks_mut::<8>().0[v].as_mut_ptr(), units) };
        }
        let mut q = [_mm256_setzero_si256(); 8];
        for (q, block) in q.iter_mut().zip(rows) {
            let bytes = x86::load16(block, 4 + 16 * half);
            let low = _mm_and_si128(bytes, _mm_set1_epi8(15));
            let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), _mm_set1_epi8(15));
            let codes = _mm256_set_m128i(_mm_unpackhi_epi64(low, high), _mm_unpacklo_epi64(low, high));
            *q = x86::look_up(&raised, codes);
        }
        tile::put_lines(tile::transposed(q), &mut panel.lines(v).as_chunks_mut::<8>().0[s]);
    }
}

/// The floats of scale bytes, a dword each.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn floats(bytes: __m256i) -> __m256 {
    let none = _mm256_cmpeq_epi32(bytes, _mm256_set1_epi32(0x7f));
    let bytes = _mm256_and_si256(bytes, _mm256_set1_epi32(0x7f));
    let normal = _mm256_add_epi32(_mm256_slli_epi32::<20>(bytes), _mm256_set1_epi32(119 << 23));
    // (A product with a subnormal would do as well, and take the slow path of the processor.)
    let subnormal = _mm256_mul_ps(_mm256_cvtepi32_ps(bytes), _mm256_set1_ps(1.0 / 1024.0));
    let small = _mm256_cmpgt_epi32(_mm256_set1_epi32(8), bytes);
    let bits = _mm256_blendv_epi8(normal, _mm256_castps_si256(subnormal), small);
    _mm256_castsi256_ps(_mm256_andnot_si256(none, bits))
}

/// The scales of four blocks, of groups 0 and 1 and of groups 2 and 3: `| a0 c0 a1 c1 | b0 d0 b1 d1 |`.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn units([a, b, c, d]: [&[u8; BYTES]; 4]) -> [__m256; 2] {
    let start = |block: &[u8; BYTES]| x86::load16(block, 0);
    let (a_c, b_d) = (_mm_unpacklo_epi8(start(a), start(c)), _mm_unpacklo_epi8(start(b), start(d)));
    let bytes = _mm_unpacklo_epi32(a_c, b_d);
    let floats = |bytes| floats(_mm256_cvtepu8_epi32(bytes));
    [floats(bytes), floats(_mm_srli_si128::<8>(bytes))]
}

/// The sums of products of two groups of four blocks, whose nibbles start at `at`, in the order of [`units`].
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn sums([a, b, c, d]: [&[u8; BYTES]; 4], x: &[u8; 32], at: usize) -> __m256i {
    let x = [both_halves(x, 0), both_halves(x, 16)];
    // No level is −128, so the signs may go to the weights; sixteen products of 12 · 127 fit sixteen bits.
    let pair = |a, b| {
        let [low, high] = x86::rows32::two_nibbles(a, b, at);
        let first = x86::look_up(&LEVELS, _mm256_unpacklo_epi64(low, high));
        let second = x86::look_up(&LEVELS, _mm256_unpackhi_epi64(low, high));
        (x86::signed_pairs(x[0], first), x86::signed_pairs(x[1], second))
    };
    let ((a0, a1), (c0, c1)) = (pair(a, b), pair(c, d));
    let fold = |a, c| _mm256_add_epi16(_mm256_unpacklo_epi32(a, c), _mm256_unpackhi_epi32(a, c));
    let (first, second) = (fold(a0, c0), fold(a1, c1));
    let sums = _mm256_add_epi16(_mm256_unpacklo_epi64(first, second), _mm256_unpackhi_epi64(first, second));
    _mm256_madd_epi16(sums, _mm256_set1_epi16(1))
}
