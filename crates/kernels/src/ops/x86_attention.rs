//! The tiles of attention and of the index with AVX2: six heads by two registers of rows or columns, so twelve sums, which is what
//! two fused multiply-adds per cycle with a latency of four need, and four registers left for what is loaded. (Four by three
//! does not leave enough: one sum goes through memory, at half the speed.) Same order, same roundings as the portable loops.

#![allow(clippy::needless_range_loop, reason = "indices are those of the tile")]

use std::arch::x86_64::*;

use super::attention::{ATTENTION_CHUNK, padded};
use super::index::INDEX_PANEL;
use super::x86::reduce;

/// Rows that stay in the first-level cache while all heads pass over them.
const ROWS: usize = 6;

/// Heads of the next tile: sixes and fours, which keep the units busy, before a rest of less.
fn tile_heads(left: usize) -> usize {
    match left {
        8 => 4,
        6.. => 6,
        4.. => 4,
        2.. => 2,
        _ => left,
    }
}

/// Calls a tile function of `H` heads and two or one registers, chosen at run time.
macro_rules! tile {
    ($name:ident, $heads:expr, $two:expr, $arguments:tt) => {
        match ($heads, $two) {
            (6, true) => $name::<6, 2> $arguments,
            (6, false) => $name::<6, 1> $arguments,
            (4, true) => $name::<4, 2> $arguments,
            (4, false) => $name::<4, 1> $arguments,
            (2, true) => $name::<2, 2> $arguments,
            (2, false) => $name::<2, 1> $arguments,
            (_, true) => $name::<1, 2> $arguments,
            (_, false) => $name::<1, 1> $arguments,
        }
    };
}

/// `scores[h, r] = queries[h] · rows[r]`; shapes as in [`attend_chunk`](super::attend_chunk).
#[target_feature(enable = "avx2,fma")]
pub(super) fn scores(queries: &[f32], width: usize, rows: &[f32], n_rows: usize, scores: &mut [f32]) {
    let (heads, pitch) = (queries.len() / width.max(1), padded(width));
    assert!(n_rows <= ATTENTION_CHUNK && rows.len() >= n_rows * pitch, "rows");
    assert!(queries.len() == heads * width && scores.len() >= heads * ATTENTION_CHUNK, "heads");
    for first in (0..n_rows).step_by(ROWS) {
        let last = n_rows.min(first + ROWS);
        let mut h = 0;
        while h < heads {
            let n_heads = tile_heads(heads - h);
            for r in (first..last).step_by(2) {
                let (q, x) = (&queries[h * width..], &rows[r * pitch..]);
                let out = &mut scores[h * ATTENTION_CHUNK + r..];
                // SAFETY: heads h..h + n_heads and one or two rows from r on are inside their slices, whose lengths were checked.
                unsafe {
                    let (q, x, out) = (q.as_ptr(), x.as_ptr(), out.as_mut_ptr());
                    tile!(score_tile, n_heads, last - r >= 2, (q, x, width, out));
                }
            }
            h += n_heads;
        }
    }
}

/// Dots of `H` queries and `R` rows. The lanes 0..8 of all of them first, then 8..16: so one register per sum is enough.
///
/// # Safety
/// AVX2 and FMA; `H` queries of `width` and `R` rows of `padded(width)` readable floats; `H` writable rows of scores.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn score_tile<const H: usize, const R: usize>(
    q: *const f32,
    rows: *const f32,
    width: usize,
    out: *mut f32,
) {
    let (pitch, whole) = (padded(width), width - width % 16);
    let mut tails = [[0.0f32; 16]; H];
    if whole < width {
        for (h, tail) in tails.iter_mut().enumerate() {
            for (i, x) in tail.iter_mut().enumerate().take(width - whole) {
                // SAFETY: element whole + i < width of query h.
                *x = unsafe { *q.add(h * width + whole + i) };
            }
        }
    }
    let mut halves = [[[_mm256_setzero_ps(); R]; H]; 2];
    for (half, sums) in halves.iter_mut().enumerate() {
        let mut acc = [[_mm256_setzero_ps(); R]; H];
        let mut at = 8 * half;
        while at < whole {
            // SAFETY: at + 8 <= width.
            unsafe {
                let x: [__m256; R] = std::array::from_fn(|r| _mm256_loadu_ps(rows.add(r * pitch + at)));
                for h in 0..H {
                    let q = _mm256_loadu_ps(q.add(h * width + at));
                    for r in 0..R {
                        acc[h][r] = _mm256_fmadd_ps(q, x[r], acc[h][r]);
                    }
                }
            }
            at += 16;
        }
        if whole < width {
            for h in 0..H {
                for r in 0..R {
                    // SAFETY: eight of sixteen floats; the rows are padded.
                    unsafe {
                        let q = _mm256_loadu_ps(tails[h].as_ptr().add(8 * half));
                        let x = _mm256_loadu_ps(rows.add(r * pitch + at));
                        acc[h][r] = _mm256_fmadd_ps(q, x, acc[h][r]);
                    }
                }
            }
        }
        *sums = acc;
    }
    for h in 0..H {
        for r in 0..R {
            // SAFETY: score (h, r).
            unsafe { *out.add(h * ATTENTION_CHUNK + r) = reduce(halves[0][h][r], halves[1][h][r]) };
        }
    }
}

/// `values[h] += Σ scores[h, r] · rows[r][..latent]`, row by row; shapes as in [`attend_chunk`](super::attend_chunk).
#[target_feature(enable = "avx2,fma")]
pub(super) fn values(
    scores: &[f32],
    rows: &[f32],
    pitch: usize,
    n_rows: usize,
    latent: usize,
    values: &mut [f32],
) {
    let heads = values.len() / latent.max(1);
    assert!(n_rows <= ATTENTION_CHUNK && rows.len() >= n_rows * pitch && latent <= pitch, "rows");
    assert!(scores.len() >= heads * ATTENTION_CHUNK && values.len() == heads * latent, "heads");
    let (p, x, z) = (scores.as_ptr(), rows.as_ptr(), values.as_mut_ptr());
    // Columns outside: their part of the rows stays in the first-level cache while all heads pass over it.
    let mut column = 0;
    while column + 8 <= latent {
        let two = latent - column >= 16;
        let mut h = 0;
        while h < heads {
            let n_heads = tile_heads(heads - h);
            // SAFETY: heads h..h + n_heads and eight or sixteen columns are inside their slices, whose lengths were checked.
            unsafe {
                let (p, x, z) = (p.add(h * ATTENTION_CHUNK), x.add(column), z.add(h * latent + column));
                tile!(value_tile, n_heads, two, (p, x, pitch, n_rows, z, latent));
            }
            h += n_heads;
        }
        column += if two { 16 } else { 8 };
    }
    for (h, values) in values.chunks_exact_mut(latent.max(1)).enumerate() {
        for (r, row) in rows.chunks_exact(pitch).enumerate().take(n_rows) {
            let weight = scores[h * ATTENTION_CHUNK + r];
            let tail = values[column..].iter_mut().zip(&row[column..]);
            tail.for_each(|(z, x)| *z = weight.mul_add(*x, *z));
        }
    }
}

/// # Safety
/// AVX2 and FMA; `H` heads of weights and values, `n_rows` rows, and `8 V` columns of each, at the pointers.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn value_tile<const H: usize, const V: usize>(
    p: *const f32,
    rows: *const f32,
    pitch: usize,
    n_rows: usize,
    z: *mut f32,
    latent: usize,
) {
    // SAFETY: all reads and writes are of the columns named in the contract.
    unsafe {
        let mut acc: [[__m256; V]; H] =
            std::array::from_fn(|h| std::array::from_fn(|v| _mm256_loadu_ps(z.add(h * latent + 8 * v))));
        for r in 0..n_rows {
            let x: [__m256; V] = std::array::from_fn(|v| _mm256_loadu_ps(rows.add(r * pitch + 8 * v)));
            for h in 0..H {
                let weight = _mm256_broadcast_ss(&*p.add(h * ATTENTION_CHUNK + r));
                for v in 0..V {
                    acc[h][v] = _mm256_fmadd_ps(weight, x[v], acc[h][v]);
                }
            }
        }
        for h in 0..H {
            for v in 0..V {
                _mm256_storeu_ps(z.add(h * latent + 8 * v), acc[h][v]);
            }
        }
    }
}

/// Scores of a panel of keys; see [`index_scores`](super::index_scores), which checked the lengths.
#[target_feature(enable = "avx2,fma")]
pub(super) fn index_scores(
    queries: &[f32],
    dim: usize,
    weights: &[f32],
    panel: &[f32],
    scores: &mut [f32; INDEX_PANEL],
) {
    assert!(panel.len() >= dim * INDEX_PANEL && queries.len() == weights.len() * dim, "panel");
    let mut sums = [_mm256_setzero_ps(); 2];
    let mut h = 0;
    while h < weights.len() {
        let n = tile_heads(weights.len() - h);
        // SAFETY: heads h..h + n of the queries and the whole panel are inside their slices.
        unsafe {
            let (q, k, w) = (queries.as_ptr().add(h * dim), panel.as_ptr(), &weights[h..]);
            match n {
                6 => index_tile::<6>(q, dim, w, k, &mut sums),
                4 => index_tile::<4>(q, dim, w, k, &mut sums),
                2 => index_tile::<2>(q, dim, w, k, &mut sums),
                _ => index_tile::<1>(q, dim, w, k, &mut sums),
            }
        }
        h += n;
    }
    for (v, sum) in sums.iter().enumerate() {
        // SAFETY: eight floats each into an array of twice as many.
        unsafe { _mm256_storeu_ps(scores.as_mut_ptr().add(8 * v), *sum) };
    }
}

/// Adds `H` heads' weighted relevances to the sums of a panel's keys.
///
/// # Safety
/// AVX2 and FMA; `H` queries of `dim` floats and a panel of `dim` rows.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn index_tile<const H: usize>(
    q: *const f32,
    dim: usize,
    weights: &[f32],
    panel: *const f32,
    sums: &mut [__m256; 2],
) {
    let mut acc = [[_mm256_setzero_ps(); 2]; H];
    for d in 0..dim {
        // SAFETY: row d of the panel and element d of the queries.
        unsafe {
            let k: [__m256; 2] = std::array::from_fn(|v| _mm256_loadu_ps(panel.add(d * INDEX_PANEL + 8 * v)));
            for h in 0..H {
                let q = _mm256_broadcast_ss(&*q.add(h * dim + d));
                for v in 0..2 {
                    acc[h][v] = _mm256_fmadd_ps(q, k[v], acc[h][v]);
                }
            }
        }
    }
    for h in 0..H {
        let weight = _mm256_set1_ps(weights[h]);
        for v in 0..2 {
            // The second operand where the first is NaN, like the portable form.
            let relevance = _mm256_max_ps(acc[h][v], _mm256_setzero_ps());
            sums[v] = _mm256_fmadd_ps(weight, relevance, sums[v]);
        }
    }
}

/// Eight rows of `dim` floats into columns `at..at + 8` of a panel; returns how many elements of each it did (whole eights).
#[target_feature(enable = "avx2")]
pub(super) fn transpose8(rows: &[f32], dim: usize, panel: &mut [f32], at: usize) -> usize {
    assert!(rows.len() >= 8 * dim && panel.len() >= dim * INDEX_PANEL && at + 8 <= INDEX_PANEL, "panel");
    for d in (0..dim / 8).map(|i| 8 * i) {
        // SAFETY: elements d..d + 8 of eight rows, and rows d..d + 8 of the panel.
        unsafe {
            let r: [__m256; 8] = std::array::from_fn(|i| _mm256_loadu_ps(rows.as_ptr().add(i * dim + d)));
            let pairs = |a: __m256, b: __m256| (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let ((a0, a1), (a2, a3)) = (pairs(r[0], r[1]), pairs(r[2], r[3]));
            let ((a4, a5), (a6, a7)) = (pairs(r[4], r[5]), pairs(r[6], r[7]));
            let fours =
                |a: __m256, b: __m256| (_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b));
            let ((b0, b1), (b2, b3)) = (fours(a0, a2), fours(a1, a3));
            let ((b4, b5), (b6, b7)) = (fours(a4, a6), fours(a5, a7));
            for (i, (low, high)) in [(b0, b4), (b1, b5), (b2, b6), (b3, b7)].into_iter().enumerate() {
                let out = panel.as_mut_ptr().add((d + i) * INDEX_PANEL + at);
                _mm256_storeu_ps(out, _mm256_permute2f128_ps::<0x20>(low, high));
                _mm256_storeu_ps(out.add(4 * INDEX_PANEL), _mm256_permute2f128_ps::<0x31>(low, high));
            }
        }
    }
    dim - dim % 8
}
