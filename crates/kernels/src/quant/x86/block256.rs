//! Blocks of 256 with AVX2.

use std::arch::x86_64::*;

use super::{load32, total};
use crate::activation::Q8kRow;
use crate::quant::block256::{Block256, term};

/// A block of 256 as eight vectors.
pub(in crate::quant) trait X86Block256<const N: usize>: Block256<N> {
    /// What [`X86Block256::pairs`] adds to the integers to make them unsigned; its share is taken off afterwards.
    const OFFSET: i32 = 0;

    /// Products of the 32 integers from `32 · s` with `x`, as sixteen sums of neighbouring two.
    ///
    /// # Safety
    /// AVX2.
    unsafe fn pairs(block: &[u8; N], s: usize, x: __m256i) -> __m256i;
}

/// The AVX2 kernel.
///
/// # Safety
/// That of [`Dot`](crate::Dot), for AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
pub(in crate::quant) unsafe fn dot_avx2<B: X86Block256<N>, const N: usize>(
    weights: &[u8],
    x: &[u8],
    n: usize,
) -> f32 {
    let row = Q8kRow::new(x, n);
    let blocks = &weights.as_chunks::<N>().0[..n / 256];
    let (mut scale, mut min) = ([0; 16], [0; 16]);
    let mut sum = 0.0;
    for (b, (block, x)) in blocks.iter().zip(row.q.as_chunks::<256>().0).enumerate() {
        B::scales(block, &mut scale, &mut min);
        let (d, dmin) = B::units(block);
        // SAFETY: thirty-two readable bytes each; the loads need no alignment.
        let (scales, mins) =
            unsafe { (_mm256_loadu_si256(scale.as_ptr().cast()), _mm256_loadu_si256(min.as_ptr().cast())) };
        let by_half = even_then_odd(scales);
        let mut acc = _mm256_setzero_si256();
        macro_rules! step {
            ($($s:literal)*) => {$(
                // SAFETY: AVX2 is on.
                let pairs = unsafe { B::pairs(block, $s, load32(x, 32 * $s)) };
                // The pairs of group 2s are in the lower half, those of group 2s + 1 in the upper.
                let scale = _mm256_shuffle_epi8(by_half, _mm256_set1_epi16($s * 2 | ($s * 2 + 1) << 8));
                acc = _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, scale));
            )*};
        }
        step!(0 1 2 3 4 5 6 7);
        let x_sums = load32(row.sums, 32 * b);
        if B::OFFSET != 0 {
            let share = _mm256_madd_epi16(scales, x_sums);
            acc = _mm256_sub_epi32(acc, _mm256_mullo_epi32(share, _mm256_set1_epi32(B::OFFSET)));
        }
        sum += if B::MIN {
            term::<true>(row.d(b), d, dmin, total(acc), total(_mm256_madd_epi16(mins, x_sums)))
        } else {
            term::<false>(row.d(b), d, dmin, total(acc), 0)
        };
    }
    sum
}

/// Sixteen words: the even ones in the lower half, the odd ones in the upper.
#[inline]
#[target_feature(enable = "avx2")]
fn even_then_odd(v: __m256i) -> __m256i {
    let order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    let sorted = _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(order));
    _mm256_permute4x64_epi64::<0b11_01_10_00>(sorted)
}
