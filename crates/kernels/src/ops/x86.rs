//! Dot products with AVX2, and the half-precision conversions with F16C. Same order, same roundings as the portable bodies.

use std::arch::x86_64::*;

use super::half::{narrow, widen};

/// Rounds floats to halves.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn narrow_all(x: &[f32], out: &mut [u16]) {
    let ((blocks, tail), (outs, out_tail)) = (x.as_chunks::<8>(), out.as_chunks_mut::<8>());
    for (x, out) in blocks.iter().zip(outs) {
        // SAFETY: eight floats are read and eight halves written through references to arrays of that size.
        unsafe {
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(x.as_ptr()));
            _mm_storeu_si128(out.as_mut_ptr().cast(), halves);
        }
    }
    tail.iter().zip(out_tail).for_each(|(x, out)| *out = narrow(*x));
}

/// Widens halves to floats.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn widen_all(x: &[u16], out: &mut [f32]) {
    let ((blocks, tail), (outs, out_tail)) = (x.as_chunks::<8>(), out.as_chunks_mut::<8>());
    for (x, out) in blocks.iter().zip(outs) {
        // SAFETY: eight halves are read and eight floats written through references to arrays of that size.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())));
        }
    }
    tail.iter().zip(out_tail).for_each(|(x, out)| *out = widen(*x));
}

/// `y += a·x`, fused.
#[target_feature(enable = "avx2,fma")]
pub(super) fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = a.mul_add(*x, *y));
}

/// `Σ a·b` in the canonical order.
#[target_feature(enable = "avx2,fma")]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a_blocks, a_tail), (b_blocks, b_tail)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let (mut low, mut high) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        let (a, b) = (a.as_ptr(), b.as_ptr());
        // SAFETY: sixteen elements of each are read through references to arrays of that size.
        unsafe {
            low = _mm256_fmadd_ps(_mm256_loadu_ps(a), _mm256_loadu_ps(b), low);
            high = _mm256_fmadd_ps(_mm256_loadu_ps(a.add(8)), _mm256_loadu_ps(b.add(8)), high);
        }
    }
    let mut lanes = [0.0; 16];
    // SAFETY: eight floats each into the halves of an array of sixteen.
    unsafe {
        _mm256_storeu_ps(lanes.as_mut_ptr(), low);
        _mm256_storeu_ps(lanes.as_mut_ptr().add(8), high);
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_tail.iter().zip(b_tail)) {
        *lane = a.mul_add(*b, *lane);
    }
    super::reduce(lanes)
}

/// Adds the lanes `low` (0..8) and `high` (8..16) in the canonical order.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn reduce(low: __m256, high: __m256) -> f32 {
    let v = _mm256_add_ps(low, high);
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
}
