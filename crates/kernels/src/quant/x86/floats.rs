//! Float weights with wide registers: the sixteen lanes of the canonical order are two AVX2 registers or one of AVX-512.

use std::arch::x86_64::*;

use crate::Kernels;
use crate::quant::floats::Float;

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

/// The AVX2 kernel.
///
/// # Safety
/// That of [`Rows`](crate::Rows), for AVX2, F16C and FMA.
#[target_feature(enable = "avx2,f16c,fma")]
unsafe fn dot_avx2<F: X86Float<N>, const N: usize>(weights: &[u8], x: &[u8], n: usize) -> f32 {
    debug_assert!(weights.len() >= n * N && x.len() >= n * 4);
    let (mut low, mut high) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    let mut step = |w: *const u8, x: *const u8| {
        // SAFETY: sixteen weights and sixteen floats are readable at the pointers; see the calls.
        unsafe {
            let (x0, x1) = (_mm256_loadu_ps(x.cast()), _mm256_loadu_ps(x.add(32).cast()));
            low = _mm256_fmadd_ps(F::load8(w), x0, low);
            high = _mm256_fmadd_ps(F::load8(w.add(8 * N)), x1, high);
        }
    };
    for i in 0..n / 16 {
        // SAFETY: the rows hold n elements, by this function's contract.
        unsafe { step(weights.as_ptr().add(16 * N * i), x.as_ptr().add(64 * i)) };
    }
    if !n.is_multiple_of(16) {
        let (w, x) = tail::<N>(weights, x, n);
        step(w.as_ptr().cast(), x.as_ptr().cast());
    }
    reduce(low, high)
}

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

macro_rules! rows {
    ($kernels:ident, $name:ident, $dot:ident, $features:literal) => {
        /// The kernels.
        pub(in crate::quant) const fn $kernels<F: X86Float<N>, const N: usize>() -> Kernels {
            Kernels { rows: $name::<F, N>, tile: None }
        }

        /// # Safety
        /// That of [`Rows`](crate::Rows), for the features named.
        #[target_feature(enable = $features)]
        unsafe fn $name<F: X86Float<N>, const N: usize>(weights: &[u8], x: &[u8], n: usize, y: &mut [f32]) {
            for (r, y) in y.iter_mut().enumerate() {
                // SAFETY: the caller's promise, row by row.
                *y = unsafe { $dot::<F, N>(&weights[r * n * N..][..n * N], x, n) };
            }
        }
    };
}

rows!(avx2, rows_avx2, dot_avx2, "avx2,f16c,fma");
rows!(avx512, rows_avx512, dot_avx512, "avx512f,avx512bw,avx512dq");
