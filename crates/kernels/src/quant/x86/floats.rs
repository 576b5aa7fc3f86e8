//! Float weights with wide registers: the sixteen lanes of the canonical order are two AVX2 registers or one of AVX-512.

use std::arch::x86_64::*;

use super::Fours;
use crate::quant::floats::Float;
use crate::{Kernels, TILE_ROWS};

/// How sixteen weights of `N` bytes become floats.
pub(in crate::quant) trait X86Float<const N: usize>: Float<N> {
    /// Eight weights from `weights`.
    ///
    /// # Safety
    /// AVX2 and F16C; `8 · N` readable bytes.
    unsafe fn load8(weights: *const u8) -> __m256;

    /// Sixteen weights from `weights`.
    ///
    /// # Safety
    /// AVX-512 F and BW; `16 · N` readable bytes.
    unsafe fn load16(weights: *const u8) -> __m512;
}

/// Adds the lanes `low` (0..8) and `high` (8..16) in the canonical order.
#[inline]
#[target_feature(enable = "avx2")]
fn reduce(low: __m256, high: __m256) -> f32 {
    let v = _mm256_add_ps(low, high);
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
}

/// The elements after the last whole sixteen, padded with zeros (which add nothing to a lane).
#[inline(always)]
fn tail<const N: usize>(weights: &[u8], x: &[u8], n: usize) -> ([[u8; N]; 16], [[u8; 4]; 16]) {
    let (mut w_pad, mut x_pad) = ([[0; N]; 16], [[0; 4]; 16]);
    let (from, len) = (n - n % 16, n % 16);
    w_pad[..len].copy_from_slice(&weights.as_chunks::<N>().0[from..n]);
    x_pad[..len].copy_from_slice(&x.as_chunks::<4>().0[from..n]);
    (w_pad, x_pad)
}

/// `R` weight rows with `C` activation rows, each pair in its own sixteen lanes.
///
/// # Safety
/// AVX2, F16C and FMA; every pointer has a row of `n` elements.
#[inline]
#[target_feature(enable = "avx2,f16c,fma")]
unsafe fn block_avx2<F: X86Float<N>, const N: usize, const R: usize, const C: usize>(
    w: [*const u8; R],
    x: [*const u8; C],
    n: usize,
) -> [[f32; R]; C] {
    let mut lanes = [[[_mm256_setzero_ps(); 2]; C]; R];
    for i in 0..n / 16 {
        for half in 0..2 {
            let at = 16 * i + 8 * half;
            let mut columns = [_mm256_setzero_ps(); C];
            for c in 0..C {
                // SAFETY: eight floats from an element below n - 7.
                columns[c] = unsafe { _mm256_loadu_ps(x[c].add(4 * at).cast()) };
            }
            for r in 0..R {
                // SAFETY: eight weights from the same element.
                let row = unsafe { F::load8(w[r].add(N * at)) };
                for c in 0..C {
                    lanes[r][c][half] = _mm256_fmadd_ps(row, columns[c], lanes[r][c][half]);
                }
            }
        }
    }
    let mut y = [[0.0; R]; C];
    for r in 0..R {
        for c in 0..C {
            let [mut low, mut high] = lanes[r][c];
            if !n.is_multiple_of(16) {
                // SAFETY: both rows have n elements; sixteen of each are in the padded arrays.
                unsafe {
                    let rows =
                        (std::slice::from_raw_parts(w[r], n * N), std::slice::from_raw_parts(x[c], n * 4));
                    let (w, x) = tail::<N>(rows.0, rows.1, n);
                    let (w, x): (*const u8, *const f32) = (w.as_ptr().cast(), x.as_ptr().cast());
                    low = _mm256_fmadd_ps(F::load8(w), _mm256_loadu_ps(x), low);
                    high = _mm256_fmadd_ps(F::load8(w.add(8 * N)), _mm256_loadu_ps(x.add(8)), high);
                }
            }
            y[c][r] = reduce(low, high);
        }
    }
    y
}

/// # Safety
/// That of [`Rows`](crate::Rows), for AVX2, F16C and FMA.
#[target_feature(enable = "avx2,f16c,fma")]
unsafe fn rows_avx2<F: X86Float<N>, const N: usize>(weights: &[u8], x: &[u8], n: usize, y: &mut [f32]) {
    let (weights, x) = (&weights[..n * N * y.len()], &x[..n * 4]);
    let row = |r: usize| weights[r * n * N..].as_ptr();
    for [a, b, c, d] in Fours::new(y.len(), n * N).rows() {
        // SAFETY: each row starts n elements before the end at the latest.
        let [sums] = unsafe { block_avx2::<F, N, 4, 1>([row(a), row(b), row(c), row(d)], [x.as_ptr()], n) };
        (y[a], y[b], y[c], y[d]) = (sums[0], sums[1], sums[2], sums[3]);
    }
}

/// # Safety
/// That of [`Tile`](crate::Tile), for AVX2, F16C and FMA.
#[target_feature(enable = "avx2,f16c,fma")]
unsafe fn tile_avx2<F: X86Float<N>, const N: usize>(
    weights: &[u8],
    n_rows: usize,
    columns: &[&[u8]],
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    let weights = &weights[..n * N * n_rows];
    // Two rows at a time stay in the first-level cache while the columns pass by.
    for first in (0..n_rows).step_by(2) {
        let row = |r: usize| weights[(first + r).min(n_rows - 1) * n * N..].as_ptr();
        let w = [row(0), row(1)];
        for (columns, y) in columns.chunks(3).zip(y.chunks_mut(3)) {
            let x = |c: usize| columns[c][..n * 4].as_ptr();
            let mut put = |c: usize, sums: [f32; 2]| y[c][first..first + 2].copy_from_slice(&sums);
            // SAFETY: each row starts n elements before the end at the latest; columns were cut to n elements.
            unsafe {
                match columns.len() {
                    3 => {
                        let sums = block_avx2::<F, N, 2, 3>(w, [x(0), x(1), x(2)], n);
                        (0..3).for_each(|c| put(c, sums[c]));
                    }
                    2 => {
                        let sums = block_avx2::<F, N, 2, 2>(w, [x(0), x(1)], n);
                        (0..2).for_each(|c| put(c, sums[c]));
                    }
                    _ => put(0, block_avx2::<F, N, 2, 1>(w, [x(0)], n)[0]),
                }
            }
        }
    }
}

/// The AVX2 kernels.
pub(in crate::quant) const fn avx2<F: X86Float<N>, const N: usize>() -> Kernels {
    Kernels { rows: rows_avx2::<F, N>, tile: Some((tile_avx2::<F, N>, TILE_FROM)) }
}

/// From how many activation rows on a tile is faster than rows.
const TILE_FROM: usize = 2;

/// The AVX-512 kernel.
///
/// # Safety
/// That of [`Rows`](crate::Rows), for AVX-512 F, BW and DQ.
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
unsafe fn dot_avx512<F: X86Float<N>, const N: usize>(weights: &[u8], x: &[u8], n: usize) -> f32 {
    debug_assert!(weights.len() >= n * N && x.len() >= n * 4);
    let mut lanes = _mm512_setzero_ps();
    let mut step = |w: *const u8, x: *const u8| {
        // SAFETY: sixteen weights and sixteen floats are readable at the pointers; see the calls.
        lanes = unsafe { _mm512_fmadd_ps(F::load16(w), _mm512_loadu_ps(x.cast()), lanes) };
    };
    for i in 0..n / 16 {
        // SAFETY: the rows hold n elements, by this function's contract.
        unsafe { step(weights.as_ptr().add(16 * N * i), x.as_ptr().add(64 * i)) };
    }
    if !n.is_multiple_of(16) {
        let (w, x) = tail::<N>(weights, x, n);
        step(w.as_ptr().cast(), x.as_ptr().cast());
    }
    reduce(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps::<1>(lanes))
}

/// The AVX-512 kernels.
pub(in crate::quant) const fn avx512<F: X86Float<N>, const N: usize>() -> Kernels {
    Kernels { rows: rows_avx512::<F, N>, tile: Some((tile_avx2::<F, N>, TILE_FROM)) }
}

/// # Safety
/// That of [`Rows`](crate::Rows), for AVX-512 F, BW and DQ.
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
unsafe fn rows_avx512<F: X86Float<N>, const N: usize>(weights: &[u8], x: &[u8], n: usize, y: &mut [f32]) {
    for (r, y) in y.iter_mut().enumerate() {
        // SAFETY: the caller's promise, row by row.
        *y = unsafe { dot_avx512::<F, N>(&weights[r * n * N..][..n * N], x, n) };
    }
}
