//! Blocks of 256 with AVX2: four rows at a time, so that the sums of a block column are added and scaled side by side.

use std::arch::x86_64::*;

use super::tile::{self, Panel};
use super::{four_totals, four_units, load32, signed_pairs};
use crate::activation::Q8kRow;
use crate::quant::block256::Block256;
use crate::{Kernels, TILE_ROWS};

/// A block of 256 as vectors.
pub(in crate::quant) trait X86Block256<const N: usize>: Block256<N> {
    /// What [`X86Block256::pairs`] adds to the integers to make them unsigned; its share is taken off afterwards.
    const OFFSET: i32 = 0;
    /// Where the half `d` stands; with minima `dmin` is the next.
    const UNIT_AT: usize = 0;
    /// What the half is multiplied with to give the unit; a power of two.
    const UNIT_FACTOR: f32 = 1.0;
    /// From how many activation rows on a tile is faster than rows.
    const TILE_FROM: usize = 4;

    /// The bits of `d`, and above them those of `dmin`.
    #[inline(always)]
    fn halves(block: &[u8; N]) -> u32 {
        let half = |at: usize| u32::from(block[at]) | u32::from(block[at + 1]) << 8;
        half(Self::UNIT_AT) | if Self::MIN { half(Self::UNIT_AT + 2) << 16 } else { 0 }
    }

    /// Products of the 32 integers from `32 · s` with `x`, as sixteen sums of neighbouring two. Not used where a format has its own
    /// [`X86Block256::sums`].
    ///
    /// # Safety
    /// AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn pairs(block: &[u8; N], s: usize, x: __m256i) -> __m256i {
        let mut q = [0; 256];
        Self::quants(block, &mut q);
        // SAFETY: thirty-two readable bytes; the load needs no alignment.
        let q = unsafe { _mm256_loadu_si256(q.as_chunks::<32>().0[s].as_ptr().cast()) };
        signed_pairs(q, x)
    }

    /// Eight partial sums each of `Σ scale·(Σ q·x)` and of `Σ min·t` (zero without minima), `t` being the sums of sixteen `x`.
    ///
    /// # Safety
    /// AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn sums(block: &[u8; N], x: &[u8; 256], x_sums: __m256i) -> (__m256i, __m256i) {
        let (mut scale, mut min) = ([0; 16], [0; 16]);
        Self::scales(block, &mut scale, &mut min);
        // SAFETY: thirty-two readable bytes each; the loads need no alignment.
        let (scales, mins) =
            unsafe { (_mm256_loadu_si256(scale.as_ptr().cast()), _mm256_loadu_si256(min.as_ptr().cast())) };
        let by_half = even_then_odd(scales);
        let mut acc = _mm256_setzero_si256();
        macro_rules! step {
            ($($s:literal)*) => {$(
                // SAFETY: AVX2 is on.
                let pairs = unsafe { Self::pairs(block, $s, load32(x, 32 * $s)) };
                // The pairs of group 2s are in the lower half, those of group 2s + 1 in the upper.
                let scale = _mm256_shuffle_epi8(by_half, _mm256_set1_epi16($s * 2 | ($s * 2 + 1) << 8));
                acc = _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, scale));
            )*};
        }
        step!(0 1 2 3 4 5 6 7);
        if Self::OFFSET != 0 {
            let share = _mm256_madd_epi16(scales, x_sums);
            acc = _mm256_sub_epi32(acc, _mm256_mullo_epi32(share, _mm256_set1_epi32(Self::OFFSET)));
        }
        (acc, if Self::MIN { _mm256_madd_epi16(mins, x_sums) } else { _mm256_setzero_si256() })
    }

    /// The same for the blocks of four rows. Formats that look weights up override it, to have the indices of all four on their way
    /// before the first is needed.
    ///
    /// # Safety
    /// AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn four_sums(
        blocks: [&[u8; N]; 4],
        x: &[u8; 256],
        x_sums: __m256i,
    ) -> ([__m256i; 4], [__m256i; 4]) {
        let [a, b, c, d] = blocks;
        // SAFETY: AVX2 is on.
        let ((p0, m0), (p1, m1), (p2, m2), (p3, m3)) = unsafe {
            (
                Self::sums(a, x, x_sums),
                Self::sums(b, x, x_sums),
                Self::sums(c, x, x_sums),
                Self::sums(d, x, x_sums),
            )
        };
        ([p0, p1, p2, p3], [m0, m1, m2, m3])
    }

    /// The block's integers, for a tile.
    ///
    /// # Safety
    /// AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn integers(block: &[u8; N], q: &mut [i8; 256]) {
        Self::quants(block, q);
    }
}

/// The AVX2 kernels.
pub(in crate::quant) const fn avx2<B: X86Block256<N>, const N: usize>() -> Kernels {
    Kernels { rows: rows_avx2::<B, N>, tile: Some((tile_avx2::<B, N>, B::TILE_FROM)) }
}

/// # Safety
/// That of [`Rows`](crate::Rows), for AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
unsafe fn rows_avx2<B: X86Block256<N>, const N: usize>(weights: &[u8], x: &[u8], n: usize, y: &mut [f32]) {
    let x = Q8kRow::new(x, n);
    let n_blocks = n / 256;
    let blocks = &weights.as_chunks::<N>().0[..n_blocks * y.len()];
    for (first, y) in y.chunks_mut(4).enumerate() {
        // Rows past the end are the last one again.
        let row = |r: usize| &blocks[(4 * first + r.min(y.len() - 1)) * n_blocks..][..n_blocks];
        // SAFETY: this function has at least its features.
        let sums = unsafe { four_rows::<B, N>([row(0), row(1), row(2), row(3)], &x) };
        y.copy_from_slice(&sums[..y.len()]);
    }
}

/// Four rows, block column by block column.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn four_rows<B: X86Block256<N>, const N: usize>(rows: [&[[u8; N]]; 4], x: &Q8kRow<'_>) -> [f32; 4] {
    let mut total = _mm_setzero_ps();
    let columns = rows[0].iter().zip(rows[1]).zip(rows[2]).zip(rows[3]);
    for (b, (((w0, w1), w2), w3)) in columns.enumerate() {
        let x_q = &x.q.as_chunks::<256>().0[b];
        let x_sums = load32(x.sums, 32 * b);
        // SAFETY: AVX2 is on.
        let (products, mins) = unsafe { B::four_sums([w0, w1, w2, w3], x_q, x_sums) };
        let (mut d, mut dmin) = four_units([B::halves(w0), B::halves(w1), B::halves(w2), B::halves(w3)]);
        if B::UNIT_FACTOR != 1.0 {
            d = _mm_mul_ps(d, _mm_set1_ps(B::UNIT_FACTOR));
            dmin = _mm_mul_ps(dmin, _mm_set1_ps(B::UNIT_FACTOR));
        }
        // The same operations in the same order as `term`.
        let mut t = _mm_mul_ps(d, _mm_cvtepi32_ps(four_totals(products)));
        if B::MIN {
            let mins = _mm_cvtepi32_ps(four_totals(mins));
            t = _mm_sub_ps(t, _mm_mul_ps(dmin, mins));
        }
        total = _mm_add_ps(total, _mm_mul_ps(_mm_set1_ps(x.d(b)), t));
    }
    let mut y = [0.0; 4];
    // SAFETY: four floats into an array of four.
    unsafe { _mm_storeu_ps(y.as_mut_ptr(), total) };
    y
}

/// # Safety
/// That of [`Tile`](crate::Tile), for AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
unsafe fn tile_avx2<B: X86Block256<N>, const N: usize>(
    weights: &[u8],
    n_rows: usize,
    columns: &[&[u8]],
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    let n_blocks = n / 256;
    let blocks = &weights.as_chunks::<N>().0[..n_blocks * n_rows];
    y.fill([0.0; TILE_ROWS]);
    let mut panel = Panel::new();
    let (mut q, mut scale, mut min) = ([0; 256], [0; 16], [0; 16]);
    let mut products = [[0; 256]; 8];
    let mut mins = [[0; 16]; 8];
    for b in 0..n_blocks {
        for v in 0..n_rows.div_ceil(8) {
            for r in 0..8.min(n_rows - 8 * v) {
                let block = &blocks[(8 * v + r) * n_blocks + b];
                // SAFETY: AVX2 is on.
                unsafe { B::integers(block, &mut q) };
                B::scales(block, &mut scale, &mut min);
                tile::scaled(&q, &scale, &mut products[r]);
                let halves = B::halves(block);
                (panel.d[0][8 * v + r], panel.m[0][8 * v + r]) = tile::units(halves, B::UNIT_FACTOR);
                mins[r] = min;
            }
            panel.fill(v, &products);
            if B::MIN {
                panel.fill_mins(v, &mins);
            }
        }
        if B::MIN {
            tile::block_of_256::<true>(&panel, b, n_rows, columns, n, y);
        } else {
            tile::block_of_256::<false>(&panel, b, n_rows, columns, n, y);
        }
    }
}

/// Sixteen words: the even ones in the lower half, the odd ones in the upper.
#[inline]
#[target_feature(enable = "avx2")]
fn even_then_odd(v: __m256i) -> __m256i {
    let order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    let sorted = _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(order));
    _mm256_permute4x64_epi64::<0b11_01_10_00>(sorted)
}
