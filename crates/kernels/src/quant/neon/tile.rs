//! Many activation rows: 256 elements of 32 weight rows are unpacked to bytes once, interleaved, and stay in the first-level cache
//! while the activation rows pass by, which are read where they lie.
//!
//! Two instructions can multiply, so there are two orders of a panel. Per four rows and sixteen elements, four vectors:
//!
//! ```text
//! Dot     | k 0..4 of row 0 | … of row 1 | … of row 2 | … of row 3 |   k 4..8 of the same   | k 8..12 | k 12..16
//! Matrix  | k 0..8 of row 0 | k 0..8 of row 1 | k 8..16 of rows 0, 1 | k 0..8 of rows 2, 3  | k 8..16 of rows 2, 3
//! ```
//! `Dot` multiplies a vector with four bytes of one column and gets four rows' sums; `Matrix` with eight bytes of two columns and
//! gets two rows' sums for both, twice the products per instruction.

use std::arch::aarch64::*;

use super::block256::{Factors, NeonBlock256};
use super::{sdot_lane, signed16, smmla, words8};
use crate::activation::{Q8Row, Q8kRow};
use crate::{TILE_COLUMNS, TILE_ROWS};

/// From how many activation rows on tiles are used. A guess from counting instructions: unpacking a row to the panel costs about as
/// much as two passes over it.
pub(super) const FROM: usize = 4;
/// Columns that share a load of weights: with eight rows their sums and the products of a group take sixteen registers.
const COLUMNS: usize = 4;

/// 256 elements of 32 rows, unpacked.
#[repr(align(64))]
pub(super) struct Panel {
    /// Per four rows: sixteen times sixteen elements of each, interleaved as drawn above.
    q: [[[i8; 64]; 16]; TILE_ROWS / 4],
    /// Scales of each group of sixteen elements, or of 32 if they are paired.
    scales: [[i16; TILE_ROWS]; 16],
    /// Minima: as `scales`.
    mins: [[i16; TILE_ROWS]; 16],
    /// Units: of the block of 256, or of its eight blocks of 32.
    d: [[f32; TILE_ROWS]; 8],
    /// Minima's units: as `d`.
    m: [[f32; TILE_ROWS]; 8],
}

impl Panel {
    pub(super) fn new() -> Panel {
        Panel {
            q: [[[0; 64]; 16]; TILE_ROWS / 4],
            scales: [[0; TILE_ROWS]; 16],
            mins: [[0; TILE_ROWS]; 16],
            d: [[0.0; TILE_ROWS]; 8],
            m: [[0.0; TILE_ROWS]; 8],
        }
    }

    /// Puts the elements from `32 · s` of four rows in place.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn put<M: Multiply>(&mut self, group: usize, s: usize, rows: [(int8x16_t, int8x16_t); 4]) {
        // SAFETY: NEON is on.
        let (low, high) = unsafe { (M::interleave(rows.map(|r| r.0)), M::interleave(rows.map(|r| r.1))) };
        for (vectors, out) in [low, high].into_iter().zip(&mut self.q[group][2 * s..2 * s + 2]) {
            for (vector, out) in vectors.into_iter().zip(out.as_chunks_mut::<16>().0) {
                // SAFETY: sixteen bytes into an array of sixteen.
                unsafe { vst1q_s8(out.as_mut_ptr(), vector) };
            }
        }
    }

    /// Puts the units of four rows' block `s` in place.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn put_units(&mut self, group: usize, s: usize, d: float32x4_t, m: float32x4_t) {
        let (d_out, m_out) =
            (&mut self.d[s].as_chunks_mut::<4>().0[group], &mut self.m[s].as_chunks_mut::<4>().0[group]);
        // SAFETY: four floats into arrays of four.
        unsafe {
            vst1q_f32(d_out.as_mut_ptr(), d);
            vst1q_f32(m_out.as_mut_ptr(), m);
        }
    }

    /// Puts the scales and minima of eight rows in place.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn put_factors<B: NeonBlock256<N>, const N: usize>(&mut self, v: usize, rows: &[Factors; 8]) {
        for half in 0..if B::PAIRED { 1 } else { 2 } {
            put_transposed(&mut self.scales, v, half, rows.map(|r| r.scale[half]));
            if B::MIN {
                put_transposed(&mut self.mins, v, half, rows.map(|r| r.min[half]));
            }
        }
    }
}

/// Eight words of eight rows become columns `8v..` of eight rows of `out`.
#[inline]
#[target_feature(enable = "neon")]
fn put_transposed(out: &mut [[i16; TILE_ROWS]; 16], v: usize, half: usize, rows: [int16x8_t; 8]) {
    let mut words = [[0i16; 8]; 8];
    for (row, words) in rows.into_iter().zip(&mut words) {
        // SAFETY: eight words into an array of eight.
        unsafe { vst1q_s16(words.as_mut_ptr(), row) };
    }
    for (g, out) in out[8 * half..8 * half + 8].iter_mut().enumerate() {
        out.as_chunks_mut::<8>().0[v] = words.map(|row| row[g]);
    }
}

/// Sums of eight rows (two vectors) and `C` columns, in an order of the multiplication's own.
type Sums<const C: usize> = [[int32x4_t; 2]; C];

/// How a panel is multiplied with columns.
pub(super) trait Multiply {
    /// Sixteen elements of four rows, in the order of this multiplication.
    ///
    /// # Safety
    /// NEON.
    unsafe fn interleave(rows: [int8x16_t; 4]) -> [int8x16_t; 4];

    /// Adds the products of sixteen elements of two times four rows with `C` (2 or 4) columns.
    ///
    /// # Safety
    /// The processor has the instruction.
    unsafe fn add<const C: usize>(sums: &mut Sums<C>, w: [&[i8; 64]; 2], x: [int8x16_t; C]);

    /// The factors of two times four rows, for the even and the odd entries of [`Sums`].
    ///
    /// # Safety
    /// NEON.
    unsafe fn factors(rows: [int32x4_t; 2]) -> [[int32x4_t; 2]; 2];

    /// The sums as rows 0..4 and 4..8 of each column.
    ///
    /// # Safety
    /// NEON.
    unsafe fn sorted<const C: usize>(sums: Sums<C>) -> Sums<C>;
}

/// With `sdot`: needs `dotprod`.
pub(super) struct Dot;

impl Multiply for Dot {
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn interleave(rows: [int8x16_t; 4]) -> [int8x16_t; 4] {
        let [a, b, c, d] = rows.map(|row| vreinterpretq_s32_s8(row));
        let (ab, cd) = ([vtrn1q_s32(a, b), vtrn2q_s32(a, b)], [vtrn1q_s32(c, d), vtrn2q_s32(c, d)]);
        let low = |a, c| vreinterpretq_s8_s64(vtrn1q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(c)));
        let high =
            |a, c| vreinterpretq_s8_s64(vtrn2q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(c)));
        [low(ab[0], cd[0]), low(ab[1], cd[1]), high(ab[0], cd[0]), high(ab[1], cd[1])]
    }

    // (Not left to the inliner, which counts the assembly as long: the sums have to stay in registers.)
    #[inline(always)]
    unsafe fn add<const C: usize>(sums: &mut Sums<C>, w: [&[i8; 64]; 2], x: [int8x16_t; C]) {
        macro_rules! quarter {
            ($($lane:literal)*) => {$(
                // SAFETY: the caller's promise, which includes NEON.
                let rows = unsafe { [vector(w[0], $lane), vector(w[1], $lane)] };
                for c in 0..C {
                    for g in 0..2 {
                        // SAFETY: the caller's promise.
                        sums[c][g] = unsafe { sdot_lane::<$lane>(sums[c][g], rows[g], x[c]) };
                    }
                }
            )*};
        }
        quarter!(0 1 2 3);
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn factors(rows: [int32x4_t; 2]) -> [[int32x4_t; 2]; 2] {
        [rows, rows]
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn sorted<const C: usize>(sums: Sums<C>) -> Sums<C> {
        sums
    }
}

/// With `smmla`: needs `i8mm`. Of columns 2p and 2p + 1, entry 2p of the sums holds rows 0 and 1 and rows 2 and 3 (two rows times two
/// columns a vector), entry 2p + 1 the next four rows.
pub(super) struct Matrix;

impl Multiply for Matrix {
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn interleave(rows: [int8x16_t; 4]) -> [int8x16_t; 4] {
        let [a, b, c, d] = rows;
        [first_halves(a, b), second_halves(a, b), first_halves(c, d), second_halves(c, d)]
    }

    #[inline(always)]
    unsafe fn add<const C: usize>(sums: &mut Sums<C>, w: [&[i8; 64]; 2], x: [int8x16_t; C]) {
        for half in 0..2 {
            let mut columns = x;
            for c in (0..C).step_by(2) {
                // SAFETY: the caller's promise, which includes NEON.
                columns[c] = unsafe {
                    if half == 0 { first_halves(x[c], x[c + 1]) } else { second_halves(x[c], x[c + 1]) }
                };
            }
            for g in 0..2 {
                for pair in 0..2 {
                    // SAFETY: as above.
                    let rows = unsafe { vector(w[g], 2 * pair + half) };
                    for c in (0..C).step_by(2) {
                        // SAFETY: the caller's promise.
                        sums[c + g][pair] = unsafe { smmla(sums[c + g][pair], rows, columns[c]) };
                    }
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn factors(rows: [int32x4_t; 2]) -> [[int32x4_t; 2]; 2] {
        rows.map(|four| [vzip1q_s32(four, four), vzip2q_s32(four, four)])
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn sorted<const C: usize>(sums: Sums<C>) -> Sums<C> {
        std::array::from_fn(|c| {
            let p = c - c % 2;
            [sums[p], sums[p + 1]].map(|[a, b]| if c == p { vuzp1q_s32(a, b) } else { vuzp2q_s32(a, b) })
        })
    }
}

/// The first eight bytes of each.
#[inline]
#[target_feature(enable = "neon")]
fn first_halves(a: int8x16_t, b: int8x16_t) -> int8x16_t {
    vreinterpretq_s8_s64(vzip1q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)))
}

/// The last eight bytes of each.
#[inline]
#[target_feature(enable = "neon")]
fn second_halves(a: int8x16_t, b: int8x16_t) -> int8x16_t {
    vreinterpretq_s8_s64(vzip2q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)))
}

/// Vector `i` of four.
#[inline]
#[target_feature(enable = "neon")]
fn vector(w: &[i8; 64], i: usize) -> int8x16_t {
    let w = &w.as_chunks::<16>().0[i];
    // SAFETY: sixteen readable bytes.
    unsafe { vld1q_s8(w.as_ptr()) }
}

/// Eight words of a row of factors.
#[inline]
#[target_feature(enable = "neon")]
fn eight_words(row: &[i16; TILE_ROWS], v: usize) -> int16x8_t {
    let row = &row.as_chunks::<8>().0[v];
    // SAFETY: eight readable words.
    unsafe { vld1q_s16(row.as_ptr()) }
}

/// Eight words as two times four integers.
#[inline]
#[target_feature(enable = "neon")]
fn wide(v: int16x8_t) -> [int32x4_t; 2] {
    [vmovl_s16(vget_low_s16(v)), vmovl_high_s16(v)]
}

/// Two times four floats of a row of units.
#[inline]
#[target_feature(enable = "neon")]
fn eight_floats(row: &[f32; TILE_ROWS], v: usize) -> [float32x4_t; 2] {
    let row = &row.as_chunks::<8>().0[v];
    // SAFETY: eight readable floats.
    unsafe { [vld1q_f32(row.as_ptr()), vld1q_f32(row.as_ptr().add(4))] }
}

/// `y[8v..8v + 8] += t`.
#[inline]
#[target_feature(enable = "neon")]
fn add_to(y: &mut [f32; TILE_ROWS], v: usize, t: [float32x4_t; 2]) {
    let sums = eight_floats(y, v);
    let y = &mut y.as_chunks_mut::<8>().0[v];
    // SAFETY: eight floats into an array of eight.
    unsafe {
        vst1q_f32(y.as_mut_ptr(), vaddq_f32(sums[0], t[0]));
        vst1q_f32(y.as_mut_ptr().add(4), vaddq_f32(sums[1], t[1]));
    }
}

/// The columns padded to `C` with the last one.
fn padded<'a, const C: usize>(columns: &[&'a [u8]]) -> [&'a [u8]; C] {
    std::array::from_fn(|c| columns[c.min(columns.len() - 1)])
}

/// Adds block `b` of every column to its sums.
///
/// # Safety
/// The processor has the instruction of `M`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn block_of_256<M: Multiply, B: NeonBlock256<N>, const N: usize>(
    panel: &Panel,
    b: usize,
    n_rows: usize,
    columns: &[&[u8]],
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    debug_assert!(columns.len() <= TILE_COLUMNS);
    for (columns, y) in columns.chunks(COLUMNS).zip(y.chunks_mut(COLUMNS)) {
        // SAFETY: the caller's promise.
        unsafe {
            if columns.len() > 2 {
                add_256::<M, B, N, 4>(panel, b, n_rows, padded(columns), n, y);
            } else {
                add_256::<M, B, N, 2>(panel, b, n_rows, padded(columns), n, y);
            }
        }
    }
}

/// `y += a · (d · products [− dmin · mins])`: the canonical order of blocks of 256.
///
/// # Safety
/// The processor has the instruction of `M`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn add_256<M: Multiply, B: NeonBlock256<N>, const N: usize, const C: usize>(
    panel: &Panel,
    b: usize,
    n_rows: usize,
    columns: [&[u8]; C],
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    let rows = columns.map(|x| Q8kRow::new(x, n));
    let x = rows.map(|row| &row.q.as_chunks::<256>().0[b]);
    for v in 0..n_rows.div_ceil(8) {
        // SAFETY: the caller's promise.
        let products = unsafe { products_256::<M, B, N, C>(panel, v, x) };
        let mins = if B::MIN { mins_256::<B, N, C>(panel, b, v, &rows) } else { products };
        let (d, m) = (eight_floats(&panel.d[0], v), eight_floats(&panel.m[0], v));
        for (c, y) in y.iter_mut().enumerate() {
            let term = |g: usize| {
                let mut t = vmulq_f32(d[g], vcvtq_f32_s32(products[c][g]));
                if B::MIN {
                    t = vsubq_f32(t, vmulq_f32(m[g], vcvtq_f32_s32(mins[c][g])));
                }
                vmulq_f32(vdupq_n_f32(rows[c].d(b)), t)
            };
            add_to(y, v, [term(0), term(1)]);
        }
    }
}

/// `Σ scale·(Σ q·x)` of eight rows and `C` columns.
///
/// # Safety
/// The processor has the instruction of `M`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn products_256<M: Multiply, B: NeonBlock256<N>, const N: usize, const C: usize>(
    panel: &Panel,
    v: usize,
    x: [&[u8; 256]; C],
) -> Sums<C> {
    let w = [&panel.q[2 * v], &panel.q[2 * v + 1]];
    let zero = [[vdupq_n_s32(0); 2]; C];
    let mut sums = zero;
    let add = |sums: &mut Sums<C>, k: usize| {
        // SAFETY: the caller's promise.
        unsafe { M::add(sums, [&w[0][k], &w[1][k]], x.map(|x| signed16(x, 16 * k))) }
    };
    if !B::SCALED {
        for k in 0..16 {
            add(&mut sums, k);
        }
    } else {
        let steps = if B::PAIRED { 2 } else { 1 };
        for group in 0..16 / steps {
            let mut products = zero;
            for k in 0..steps {
                add(&mut products, steps * group + k);
            }
            // SAFETY: NEON is on.
            let scales = unsafe { M::factors(wide(eight_words(&panel.scales[group], v))) };
            for c in 0..C {
                for g in 0..2 {
                    sums[c][g] = vmlaq_s32(sums[c][g], products[c][g], scales[c % 2][g]);
                }
            }
        }
    }
    // SAFETY: NEON is on.
    unsafe { M::sorted(sums) }
}

/// `Σ min·t` of eight rows and `C` columns, `t` being the sums of sixteen `x`.
#[inline]
#[target_feature(enable = "neon")]
fn mins_256<B: NeonBlock256<N>, const N: usize, const C: usize>(
    panel: &Panel,
    b: usize,
    v: usize,
    rows: &[Q8kRow<'_>; C],
) -> Sums<C> {
    let mut sums = [[vdupq_n_s32(0); 2]; C];
    for half in 0..if B::PAIRED { 1 } else { 2 } {
        let t: [int16x8_t; C] = std::array::from_fn(|c| {
            let t = |half: usize| words8(rows[c].sums, 32 * b + 16 * half);
            if B::PAIRED { vpaddq_s16(t(0), t(1)) } else { t(half) }
        });
        macro_rules! step {
            ($($lane:literal)*) => {$(
                let mins = eight_words(&panel.mins[8 * half + $lane], v);
                for c in 0..C {
                    sums[c][0] = vmlal_laneq_s16::<$lane>(sums[c][0], vget_low_s16(mins), t[c]);
                    sums[c][1] = vmlal_high_laneq_s16::<$lane>(sums[c][1], mins, t[c]);
                }
            )*};
        }
        step!(0 1 2 3 4 5 6 7);
    }
    sums
}

/// Adds `n_blocks` (at most eight) blocks of 32 from block `b` of every column to its sums.
///
/// # Safety
/// The processor has the instruction of `M`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn blocks_of_32<M: Multiply, const MIN: bool>(
    panel: &Panel,
    b: usize,
    n_blocks: usize,
    n_rows: usize,
    columns: &[&[u8]],
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    debug_assert!(columns.len() <= TILE_COLUMNS);
    for (columns, y) in columns.chunks(COLUMNS).zip(y.chunks_mut(COLUMNS)) {
        // SAFETY: the caller's promise.
        unsafe {
            if columns.len() > 2 {
                add_32::<M, MIN, 4>(panel, b, n_blocks, n_rows, padded(columns), n, y);
            } else {
                add_32::<M, MIN, 2>(panel, b, n_blocks, n_rows, padded(columns), n, y);
            }
        }
    }
}

/// `y += a · (d · products [+ m · sum])`, block after block: the canonical order of blocks of 32.
///
/// # Safety
/// The processor has the instruction of `M`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn add_32<M: Multiply, const MIN: bool, const C: usize>(
    panel: &Panel,
    b: usize,
    n_blocks: usize,
    n_rows: usize,
    columns: [&[u8]; C],
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    let rows = columns.map(|x| Q8Row::new(x, n));
    for v in 0..n_rows.div_ceil(8) {
        let w = [&panel.q[2 * v], &panel.q[2 * v + 1]];
        for s in 0..n_blocks {
            let mut products = [[vdupq_n_s32(0); 2]; C];
            for k in 2 * s..2 * s + 2 {
                let x = rows.map(|row| signed16(row.q, 32 * b + 16 * k));
                // SAFETY: the caller's promise.
                unsafe { M::add(&mut products, [&w[0][k], &w[1][k]], x) };
            }
            // SAFETY: NEON is on.
            let products = unsafe { M::sorted(products) };
            let (d, m) = (eight_floats(&panel.d[s], v), eight_floats(&panel.m[s], v));
            for (c, y) in y.iter_mut().enumerate() {
                let term = |g: usize| {
                    let mut t = vmulq_f32(d[g], vcvtq_f32_s32(products[c][g]));
                    if MIN {
                        t = vaddq_f32(t, vmulq_f32(m[g], vdupq_n_f32(rows[c].sum(b + s) as f32)));
                    }
                    vmulq_f32(vdupq_n_f32(rows[c].d(b + s)), t)
                };
                add_to(y, v, [term(0), term(1)]);
            }
        }
    }
}
