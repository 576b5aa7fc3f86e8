//! Packed forms of blocks of 256 with AVX2 and AVX-512: activations are rearranged once for all rows of a call, so that word `j` of every register
//! belongs to group `j` of sixteen. Products of a whole group then add up in sixteen bits, and one multiplication applies all scales.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::avx512::joined;
use super::block256::{self, X86Block256};
use super::tile::{self, Lines};
use super::{fetch, four_totals, load16, load32};
use crate::activation::Q8kRow;
use crate::{Kernels, TILE_ROWS};

/// Blocks of an activation row that are rearranged together; longer rows take several turns.
const COLUMNS: usize = 32;

/// 256 activations and sums of them, as a packed form wants them.
#[repr(align(32))]
pub(in crate::quant) struct Column {
    steps: [__m256i; 8],
    /// Whatever [`Lanes::starts`] made of the steps.
    pub(in crate::quant) starts: [__m256i; 3],
}

impl Column {
    /// Step `t`: word `j` holds elements `2·t` and `2·t + 1` of group `j`.
    #[inline(always)]
    pub(in crate::quant) fn step(&self, t: usize) -> __m256i {
        self.steps[t]
    }

    /// Steps `t` and `t + 1`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::quant) fn two_steps(&self, t: usize) -> __m512i {
        joined([self.steps[t], self.steps[t + 1]])
    }
}

/// A packed form as vectors.
pub(in crate::quant) trait Lanes<const N: usize>: X86Block256<N> {
    /// What the products of all rows with a column start from.
    ///
    /// # Safety
    /// AVX2.
    unsafe fn starts(steps: &[__m256i; 8]) -> [__m256i; 3];

    /// Eight partial sums of `Σ scale·(Σ q·x)`.
    ///
    /// # Safety
    /// AVX2.
    unsafe fn products(block: &[u8; N], x: &Column) -> __m256i;

    /// The same, two steps at a time.
    ///
    /// # Safety
    /// AVX-512 F, BW, VL and VNNI.
    unsafe fn products_avx512(block: &[u8; N], x: &Column) -> __m256i;
}

/// The AVX2 kernels.
pub(in crate::quant) const fn avx2<B: Lanes<N>, const N: usize>() -> Kernels {
    Kernels { rows: rows_avx2::<B, N>, tile: Some((tile_avx2::<B, N>, TILE_FROM)) }
}

/// The AVX-512 kernels.
pub(in crate::quant) const fn avx512<B: Lanes<N>, const N: usize>() -> Kernels {
    Kernels { rows: rows_avx512::<B, N>, tile: Some((tile_avx512::<B, N>, TILE_FROM)) }
}

/// From how many activation rows on a tile is faster than rows in fours: activations are rearranged once for all of its rows.
const TILE_FROM: usize = 2;
/// And from how many on a panel is.
const PANEL_FROM: usize = 8;

macro_rules! kernels {
    ($rows:ident, $tile:ident, $four:ident, $panel:expr, $products:ident, $features:literal) => {
        /// # Safety
        /// That of [`Tile`](crate::Tile), for the features named.
        #[target_feature(enable = $features)]
        unsafe fn $tile<B: Lanes<N>, const N: usize>(
            weights: &[u8],
            n_rows: usize,
            columns: &[&[u8]],
            n: usize,
            y: &mut [[f32; TILE_ROWS]],
        ) {
            if columns.len() >= PANEL_FROM {
                // SAFETY: the caller's promise.
                return unsafe { $panel(weights, n_rows, columns, n, y) };
            }
            for (x, y) in columns.iter().zip(y) {
                // SAFETY: the caller's promise.
                unsafe { $rows::<B, N>(weights, x, n, &mut y[..n_rows]) };
            }
        }

        /// # Safety
        /// That of [`Rows`](crate::Rows), for the features named.
        #[target_feature(enable = $features)]
        unsafe fn $rows<B: Lanes<N>, const N: usize>(weights: &[u8], x: &[u8], n: usize, y: &mut [f32]) {
            let x = Q8kRow::new(x, n);
            let n_blocks = n / 256;
            let blocks = &weights.as_chunks::<N>().0[..n_blocks * y.len()];
            let mut columns = [const { MaybeUninit::uninit() }; COLUMNS];
            y.fill(0.0);
            for from in (0..n_blocks).step_by(COLUMNS) {
                let to = n_blocks.min(from + COLUMNS);
                let columns = &mut columns[..to - from];
                for (column, x) in columns.iter_mut().zip(&x.q.as_chunks::<256>().0[from..to]) {
                    let steps = transposed(grouped(x));
                    // SAFETY: AVX2 is on.
                    column.write(Column { steps, starts: unsafe { B::starts(&steps) } });
                }
                // SAFETY: all of these were just written.
                let columns = unsafe { columns.assume_init_ref() };
                for (first, y) in y.chunks_mut(4).enumerate() {
                    // Rows past the end are the last one again.
                    let row = |r: usize| &blocks[(4 * first + r.min(y.len() - 1)) * n_blocks..][from..to];
                    let mut sums = [0.0; 4];
                    sums[..y.len()].copy_from_slice(y);
                    // SAFETY: this function has its features.
                    unsafe {
                        $four::<B, N>(
                            [row(0), row(1), row(2), row(3)],
                            4 * n_blocks * N,
                            columns,
                            &x.d[4 * from..],
                            &mut sums,
                        );
                    }
                    y.copy_from_slice(&sums[..y.len()]);
                }
            }
        }

        /// Adds the block columns of four rows to their sums; `ahead` bytes on are the next rows'.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $four<B: Lanes<N>, const N: usize>(
            rows: [&[[u8; N]]; 4],
            ahead: usize,
            columns: &[Column],
            d: &[u8],
            sums: &mut [f32; 4],
        ) {
            // SAFETY: four readable floats.
            let mut total = unsafe { _mm_loadu_ps(sums.as_ptr()) };
            let blocks = rows[0].iter().zip(rows[1]).zip(rows[2]).zip(rows[3]);
            for (((((w0, w1), w2), w3), column), d) in blocks.zip(columns).zip(d.as_chunks::<4>().0) {
                for w in [w0, w1, w2, w3] {
                    fetch(w, ahead);
                }
                // SAFETY: this function has its features.
                let products = unsafe {
                    [
                        B::$products(w0, column),
                        B::$products(w1, column),
                        B::$products(w2, column),
                        B::$products(w3, column),
                    ]
                };
                let half = |w: &[u8; N]| u16::from_le_bytes([w[B::UNIT_AT], w[B::UNIT_AT + 1]]);
                let halves = [w3, w2, w1].into_iter().fold(0, |all, w| (all | u64::from(half(w))) << 16);
                let halves = halves | u64::from(half(w0));
                let unit =
                    _mm_mul_ps(_mm_cvtph_ps(_mm_cvtsi64_si128(halves as i64)), _mm_set1_ps(B::UNIT_FACTOR));
                // The same operations in the same order as `term`.
                let t = _mm_mul_ps(unit, _mm_cvtepi32_ps(four_totals(products)));
                total = _mm_add_ps(total, _mm_mul_ps(_mm_set1_ps(f32::from_le_bytes(*d)), t));
            }
            // SAFETY: four floats into an array of four.
            unsafe { _mm_storeu_ps(sums.as_mut_ptr(), total) };
        }
    };
}

kernels!(rows_avx2, tile_avx2, four_avx2, block256::tile_avx2::<B, N>, products, "avx2,f16c");
kernels!(
    rows_avx512,
    tile_avx512,
    four_avx512,
    block256::tile_avx512::<B, N>,
    products_avx512,
    "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
);

/// Groups `i` and `8 + i` in the halves of register `i`.
#[inline]
#[target_feature(enable = "avx2")]
fn grouped(q: &[u8; 256]) -> [__m256i; 8] {
    let mut groups = [_mm256_setzero_si256(); 8];
    for (i, group) in groups.iter_mut().enumerate() {
        *group = _mm256_set_m128i(load16(q, 128 + 16 * i), load16(q, 16 * i));
    }
    groups
}

/// Word `i` of half `h` of register `t` becomes word `t` of half `h` of register `i`: groups become steps, and steps groups.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed(v: [__m256i; 8]) -> [__m256i; 8] {
    let words = |a, b| (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
    let ((a0, a1), (b0, b1)) = (words(v[0], v[1]), words(v[2], v[3]));
    let ((c0, c1), (d0, d1)) = (words(v[4], v[5]), words(v[6], v[7]));
    let pairs = |a, b| (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let ((e0, e1), (e2, e3)) = (pairs(a0, b0), pairs(a1, b1));
    let ((f0, f1), (f2, f3)) = (pairs(c0, d0), pairs(c1, d1));
    let fours = |a, b| (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let ((g0, g1), (g2, g3)) = (fours(e0, f0), fours(e1, f1));
    let ((g4, g5), (g6, g7)) = (fours(e2, f2), fours(e3, f3));
    [g0, g1, g2, g3, g4, g5, g6, g7]
}

/// The bytes of eight steps in the order of the block.
#[inline]
#[target_feature(enable = "avx2")]
fn in_order(steps: [__m256i; 8]) -> [__m256i; 8] {
    let [a, b, c, d, e, f, g, h] = transposed(steps);
    let low = |a, b| _mm256_permute2x128_si256::<0x20>(a, b);
    let high = |a, b| _mm256_permute2x128_si256::<0x31>(a, b);
    [low(a, b), low(c, d), low(e, f), low(g, h), high(a, b), high(c, d), high(e, f), high(g, h)]
}

/// Writes the integers of eight steps in the order of the block.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn put_steps(steps: [__m256i; 8], q: &mut [i8; 256]) {
    in_order(steps).into_iter().zip(q.as_chunks_mut().0).for_each(|(v, q)| store32(v, q));
}

/// The lines of eight rows, whose unsigned steps are given.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn put_lines<const N: usize>(
    rows: [&[u8; N]; 8],
    steps: impl Fn(&[u8; N]) -> [__m256i; 8],
    out: &mut Lines<64>,
) {
    let mut bytes = [[[0; 32]; 8]; 8];
    for (row, bytes) in rows.into_iter().zip(&mut bytes) {
        // (By 32, as they are read again: halves would have to be written back first.)
        in_order(steps(row)).into_iter().zip(bytes).for_each(|(v, out)| tile::put_line(v, out));
    }
    for (s, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let row = |r: usize| load32(&bytes[r][s], 0);
        let rows = [row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)];
        tile::put_lines(tile::transposed(rows), out);
    }
}

/// The integers of a block as steps.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn steps_of(q: &[i8; 256], steps: &mut [[i8; 32]; 8]) {
    for (step, out) in transposed(grouped(bytemuck::cast_ref(q))).into_iter().zip(steps) {
        store32(step, out);
    }
}

/// The integers of a block plus an offset, as unsigned bytes.
///
/// # Safety
/// AVX2.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) unsafe fn wide_block<B: Lanes<N>, const N: usize>(
    block: &[u8; N],
    offset: i16,
    out: &mut [u8; 256],
) {
    let mut q = [0; 256];
    // SAFETY: AVX2 is on.
    unsafe { B::integers(block, &mut q) };
    q.iter().zip(out).for_each(|(q, out)| *out = q.wrapping_add(offset as i8) as u8);
}

/// Stores 32 integers.
#[inline]
#[target_feature(enable = "avx2")]
fn store32(v: __m256i, out: &mut [i8; 32]) {
    // SAFETY: thirty-two bytes into an array of thirty-two; the store needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), v) };
}

/// Products of a step's unsigned bytes, added in pairs to the sums of the groups.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn add_pairs(sums: __m256i, u: __m256i, x: __m256i) -> __m256i {
    _mm256_add_epi16(sums, _mm256_maddubs_epi16(u, x))
}

/// The lower and the upper half.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::quant) fn halves(v: __m512i) -> (__m256i, __m256i) {
    (_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64::<1>(v))
}
