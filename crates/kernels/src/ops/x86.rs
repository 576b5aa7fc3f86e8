//! Dot products with AVX2, and the half-precision loops with F16C. Same order, same roundings as the portable bodies.

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

/// `Σ a·b` in the canonical order.
#[target_feature(enable = "avx2")]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a_blocks, a_tail), (b_blocks, b_tail)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let (mut low, mut high) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        let (a, b) = (a.as_ptr(), b.as_ptr());
        // SAFETY: sixteen elements of each are read through references to arrays of that size.
        unsafe {
            low = _mm256_add_ps(low, _mm256_mul_ps(_mm256_loadu_ps(a), _mm256_loadu_ps(b)));
            high = _mm256_add_ps(high, _mm256_mul_ps(_mm256_loadu_ps(a.add(8)), _mm256_loadu_ps(b.add(8))));
        }
    }
    let mut lanes = stored(low, high);
    for (lane, (a, b)) in lanes.iter_mut().zip(a_tail.iter().zip(b_tail)) {
        *lane += a * b;
    }
    super::reduce(lanes)
}

/// `Σ a·b` in the canonical order, `b` being halves.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn dot_f16(a: &[f32], b: &[u16]) -> f32 {
    let ((a_blocks, a_tail), (b_blocks, b_tail)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let (mut low, mut high) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        // SAFETY: sixteen elements of each are read through references to arrays of that size.
        unsafe {
            let b0 = _mm256_cvtph_ps(_mm_loadu_si128(b.as_ptr().cast()));
            let b1 = _mm256_cvtph_ps(_mm_loadu_si128(b.as_ptr().add(8).cast()));
            low = _mm256_add_ps(low, _mm256_mul_ps(_mm256_loadu_ps(a.as_ptr()), b0));
            high = _mm256_add_ps(high, _mm256_mul_ps(_mm256_loadu_ps(a.as_ptr().add(8)), b1));
        }
    }
    let mut lanes = stored(low, high);
    for (lane, (a, b)) in lanes.iter_mut().zip(a_tail.iter().zip(b_tail)) {
        *lane += a * widen(*b);
    }
    super::reduce(lanes)
}

#[inline]
#[target_feature(enable = "avx2")]
fn stored(low: __m256, high: __m256) -> [f32; 16] {
    let mut lanes = [0.0; 16];
    // SAFETY: eight floats each into the halves of an array of sixteen.
    unsafe {
        _mm256_storeu_ps(lanes.as_mut_ptr(), low);
        _mm256_storeu_ps(lanes.as_mut_ptr().add(8), high);
    }
    lanes
}

/// `y += a·x`, `x` being halves.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn axpy_f16(a: f32, x: &[u16], y: &mut [f32]) {
    let ((x_blocks, x_tail), (y_blocks, y_tail)) = (x.as_chunks::<8>(), y.as_chunks_mut::<8>());
    let factor = _mm256_set1_ps(a);
    for (x, y) in x_blocks.iter().zip(y_blocks) {
        // SAFETY: eight elements of each through references to arrays of that size.
        unsafe {
            let x = _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast()));
            _mm256_storeu_ps(
                y.as_mut_ptr(),
                _mm256_add_ps(_mm256_loadu_ps(y.as_ptr()), _mm256_mul_ps(factor, x)),
            );
        }
    }
    y_tail.iter_mut().zip(x_tail).for_each(|(y, x)| *y += a * widen(*x));
}
