//! Blocks of 32 with AVX2, and with AVX-512's byte dot products (VNNI): four rows and two block columns at a time, eight sums side by side.
//!
//! Two rows share a register, sixteen elements of each, so that the nibbles of both are split together. With rows `a` to `d` and
//! columns 0 and 1 everything per block stands in the order
//! ```text
//! | a0 c0 a1 c1 | b0 d0 b1 d1 |
//! ```
//! to which the sums fold by themselves.

use std::arch::x86_64::*;

use super::block32::X86Block32;
// (Arrays' own `map` would not be compiled for AVX2 and its vectors would go through memory.)

use super::fours::both_halves;
use super::{Fours, fetch_four, load16};
use crate::activation::Q8Row;

/// One block column of four rows.
type Column<'a, const N: usize> = [&'a [u8; N]; 4];

macro_rules! rows {
    ($name:ident, $four:ident, $terms:ident, $features:literal, $sums:ident, $offset:expr) => {
        /// # Safety
        /// That of [`Rows`](crate::Rows), for the features named.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name<B: X86Block32<N>, const N: usize>(
            weights: &[u8],
            x: &[u8],
            n: usize,
            y: &mut [f32],
        ) {
            let x = Q8Row::new(x, n);
            let n_blocks = n / 32;
            let blocks = &weights.as_chunks::<N>().0[..n_blocks * y.len()];
            let fours = Fours::new(y.len(), n_blocks * N);
            let row = |r: usize| &blocks[r * n_blocks..][..n_blocks];
            for [a, b, c, d] in fours.rows() {
                let rows = [row(a), row(b), row(c), row(d)];
                // SAFETY: this function has its features.
                let sums = unsafe {
                    if fours.streams { $four::<B, N, true>(rows, &x) } else { $four::<B, N, false>(rows, &x) }
                };
                (y[a], y[b], y[c], y[d]) = (sums[0], sums[1], sums[2], sums[3]);
            }
        }

        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $four<B: X86Block32<N>, const N: usize, const STREAMS: bool>(
            rows: [&[[u8; N]]; 4],
            x: &Q8Row<'_>,
        ) -> [f32; 4] {
            // Rows a and c in the lower half, b and d in the upper; the other places hold what nobody reads.
            let row_bytes = size_of_val(rows[0]);
            let mut total = _mm256_setzero_ps();
            let [a, b, c, d] = rows;
            let [a, b, c, d] =
                [a.as_chunks::<2>().0, b.as_chunks::<2>().0, c.as_chunks::<2>().0, d.as_chunks::<2>().0];
            let x_pairs =
                x.q.as_chunks::<64>().0.iter().zip(x.d.as_chunks::<8>().0).zip(x.sum.as_chunks::<8>().0);
            let pairs = a.iter().zip(b).zip(c).zip(d).zip(x_pairs);
            for (step, ((((a, b), c), d), ((x_q, x_d), x_sum))) in pairs.enumerate() {
                let columns = [[&a[0], &b[0], &c[0], &d[0]], [&a[1], &b[1], &c[1], &d[1]]];
                let pieces = [a.as_flattened(), b.as_flattened(), c.as_flattened(), d.as_flattened()];
                fetch_four::<STREAMS>(rows[0].as_ptr().cast(), row_bytes, step, pieces);
                let twice = |pair: &[u8; 8]| {
                    _mm256_shuffle_epi32::<0b01_01_00_00>(_mm256_set1_epi64x(i64::from_le_bytes(*pair)))
                };
                let x_d = _mm256_castsi256_ps(twice(x_d));
                // SAFETY: this function has its features.
                let t = unsafe { $terms::<B, N>(columns, x_q, x_d, twice(x_sum)) };
                // One column after the other, as the canonical order has it.
                total = _mm256_add_ps(total, t);
                total = _mm256_add_ps(total, _mm256_shuffle_ps::<0b11_10_11_10>(t, t));
            }
            let n_blocks = rows[0].len();
            if !n_blocks.is_multiple_of(2) {
                let last = n_blocks - 1;
                let column = rows.map(|row| &row[last]);
                let mut x_q = [0; 64];
                x_q[..32].copy_from_slice(&x.q[32 * last..]);
                let (x_d, x_sum) = (_mm256_set1_ps(x.d(last)), _mm256_set1_epi32(x.sum(last)));
                // SAFETY: this function has their features.
                total = _mm256_add_ps(total, unsafe { $terms::<B, N>([column; 2], &x_q, x_d, x_sum) });
            }
            let mut y = [0.0; 8];
            // SAFETY: eight floats into an array of eight.
            unsafe { _mm256_storeu_ps(y.as_mut_ptr(), total) };
            [y[0], y[4], y[1], y[5]]
        }

        /// What two block columns add to the totals; the same operations in the same order as `term`.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $terms<B: X86Block32<N>, const N: usize>(
            columns: [Column<'_, N>; 2],
            x: &[u8; 64],
            x_d: __m256,
            x_sum: __m256i,
        ) -> __m256 {
            // SAFETY: this function has their features.
            let (first, second, (d, m)) = unsafe {
                ($sums::<B, N>(columns[0], x, 0), $sums::<B, N>(columns[1], x, 32), B::units_of_two(columns))
            };
            let mut p =
                _mm256_add_epi32(_mm256_unpacklo_epi64(first, second), _mm256_unpackhi_epi64(first, second));
            if $offset != 0 {
                p = _mm256_sub_epi32(p, _mm256_mullo_epi32(x_sum, _mm256_set1_epi32($offset)));
            }
            let mut t = _mm256_mul_ps(d, _mm256_cvtepi32_ps(p));
            if B::MIN {
                t = _mm256_add_ps(t, _mm256_mul_ps(m, _mm256_cvtepi32_ps(x_sum)));
            }
            _mm256_mul_ps(x_d, t)
        }
    };
}

rows!(rows_avx2, four_avx2, terms_avx2, "avx2,f16c", sums_avx2, if B::WIDE { 0 } else { B::OFFSET });
rows!(
    rows_avx512,
    four_avx512,
    terms_avx512,
    "avx2,f16c,avx512f,avx512vl,avx512vnni",
    sums_avx512,
    B::OFFSET
);

/// Per row two partial sums of a block column: `| a c a c | b d b d |`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn sums_avx2<B: X86Block32<N>, const N: usize>(
    column: Column<'_, N>,
    x: &[u8; 64],
    at: usize,
) -> __m256i {
    let x = [both_halves(x, at), both_halves(x, at + 16)];
    let ones = _mm256_set1_epi16(1);
    let products = |a, b| {
        // SAFETY: AVX2 is on.
        unsafe {
            let [low, high] = B::load_two(a, b);
            (B::multiply(low, x[0]), B::multiply(high, x[1]))
        }
    };
    let ((a0, a1), (c0, c1)) = (products(column[0], column[1]), products(column[2], column[3]));
    if B::WIDE {
        let widen = |low, high| _mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones));
        let (a, c) = (widen(a0, a1), widen(c0, c1));
        _mm256_add_epi32(_mm256_unpacklo_epi32(a, c), _mm256_unpackhi_epi32(a, c))
    } else {
        // Eight products of 31 · 127 still fit sixteen bits.
        let (a, c) = (_mm256_add_epi16(a0, a1), _mm256_add_epi16(c0, c1));
        let both = _mm256_add_epi16(_mm256_unpacklo_epi32(a, c), _mm256_unpackhi_epi32(a, c));
        _mm256_madd_epi16(both, ones)
    }
}

/// The same with VNNI; the offset's share is always in.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512vl,avx512vnni")]
unsafe fn sums_avx512<B: X86Block32<N>, const N: usize>(
    column: Column<'_, N>,
    x: &[u8; 64],
    at: usize,
) -> __m256i {
    let x = [both_halves(x, at), both_halves(x, at + 16)];
    let products = |a, b| {
        // SAFETY: AVX2 is on.
        let [mut low, mut high] = unsafe { B::load_two(a, b) };
        if B::WIDE {
            let offset = _mm256_set1_epi8(B::OFFSET as u8 as i8);
            (low, high) = (_mm256_add_epi8(low, offset), _mm256_add_epi8(high, offset));
        }
        _mm256_dpbusd_epi32(_mm256_dpbusd_epi32(_mm256_setzero_si256(), low, x[0]), high, x[1])
    };
    let (a, c) = (products(column[0], column[1]), products(column[2], column[3]));
    _mm256_add_epi32(_mm256_unpacklo_epi32(a, c), _mm256_unpackhi_epi32(a, c))
}

/// The halves at the start of eight blocks, as floats: the scales, and with a second half per block the minima.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn halves_of_two<const MIN: bool, const N: usize>(
    columns: [Column<'_, N>; 2],
) -> (__m256, __m256) {
    let start = |column: usize, row: usize| load16(columns[column][row], 0);
    let (a0, b0, c0, d0) = (start(0, 0), start(0, 1), start(0, 2), start(0, 3));
    let (a1, b1, c1, d1) = (start(1, 0), start(1, 1), start(1, 2), start(1, 3));
    if MIN {
        let both = |a, c, b, d| {
            let halves = _mm_unpacklo_epi64(_mm_unpacklo_epi32(a, c), _mm_unpacklo_epi32(b, d));
            _mm256_cvtph_ps(halves)
        };
        let (first, second) = (both(a0, c0, b0, d0), both(a1, c1, b1, d1));
        (_mm256_shuffle_ps::<0b10_00_10_00>(first, second), _mm256_shuffle_ps::<0b11_01_11_01>(first, second))
    } else {
        let four = |a, c, a1, c1| _mm_unpacklo_epi32(_mm_unpacklo_epi16(a, c), _mm_unpacklo_epi16(a1, c1));
        let halves = _mm_unpacklo_epi64(four(a0, c0, a1, c1), four(b0, d0, b1, d1));
        (_mm256_cvtph_ps(halves), _mm256_setzero_ps())
    }
}

/// The first bytes of eight blocks, as words.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn bytes_of_two<const N: usize>(columns: [Column<'_, N>; 2]) -> __m256i {
    let start = |column: usize, row: usize| load16(columns[column][row], 0);
    let (a0, b0, c0, d0) = (start(0, 0), start(0, 1), start(0, 2), start(0, 3));
    let (a1, b1, c1, d1) = (start(1, 0), start(1, 1), start(1, 2), start(1, 3));
    let four = |a, c, a1, c1| _mm_unpacklo_epi16(_mm_unpacklo_epi8(a, c), _mm_unpacklo_epi8(a1, c1));
    _mm256_cvtepu8_epi32(_mm_unpacklo_epi32(four(a0, c0, a1, c1), four(b0, d0, b1, d1)))
}

/// Sixteen bytes each of two rows.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn two_halves(a: &[u8], b: &[u8], at: usize) -> __m256i {
    _mm256_set_m128i(load16(b, at), load16(a, at))
}

/// Sixteen bytes of nibbles each of two rows: the low ones and the high ones.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn two_nibbles(a: &[u8], b: &[u8], at: usize) -> [__m256i; 2] {
    let v = two_halves(a, b, at);
    let mask = _mm256_set1_epi8(15);
    [_mm256_and_si256(v, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(v), mask)]
}

/// Four bytes each of two rows: bit `i` as bit 4 of byte `i` of the row, sixteen to a register.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn two_fifth_bits(a: &[u8], b: &[u8], at: usize) -> [__m256i; 2] {
    let bits = two_halves(a, b, at);
    let own = _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
    let top = |low, high| {
        let kept = _mm256_and_si256(_mm256_shuffle_epi8(bits, _mm256_setr_epi64x(low, high, low, high)), own);
        _mm256_and_si256(_mm256_cmpeq_epi8(kept, own), _mm256_set1_epi8(16))
    };
    [top(0, 0x0101_0101_0101_0101), top(0x0202_0202_0202_0202, 0x0303_0303_0303_0303)]
}
