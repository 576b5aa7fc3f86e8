//! Many activation rows at once with AVX-512 (VNNI): sixteen weight rows side by side in the lanes of a register meet broadcast
//! activations, four bytes a lane and step, so that no sum across lanes is ever needed.
//!
//! ```text
//! bytes:  | k 0..4 of row 0 | k 0..4 of row 1 | … row 15 | k 4..8 of row 0 | …      u8, made unsigned by an offset
//! second: | groups 0,1 of row 0 | … row 15 | groups 2,3 of row 0 | …                i16 per group of sixteen
//! ```
//! The byte products are exact in the 32 bits of a lane, whatever the integers; they are multiplied with their scale once per group.

use std::arch::x86_64::*;

use super::avx512::load64;
use crate::activation::{Q8Row, Q8kRow};
use crate::{TILE_COLUMNS, TILE_ROWS};

/// Groups of sixteen rows in a tile.
const GROUPS: usize = TILE_ROWS / 16;
/// Columns that share a load of weights: their sums with both groups of rows fill the registers.
const COLUMNS: usize = 6;

/// 256 elements of 32 rows, unpacked.
#[repr(align(64))]
pub(super) struct Panel {
    bytes: [[u8; 256 * 16]; GROUPS],
    /// One scale per sixteen elements and row.
    scales: [[[i32; 16]; 16]; GROUPS],
    /// What meets the sums of activations: minima, or the share that the offset of the bytes has in the products.
    second: [[u8; 32 * 16]; GROUPS],
    /// Units of scales: of the block of 256, or of its eight blocks of 32.
    pub(super) d: [[f32; TILE_ROWS]; 8],
    /// Units of minima: as `d`.
    pub(super) m: [[f32; TILE_ROWS]; 8],
}

impl Panel {
    pub(super) fn new() -> Panel {
        Panel {
            bytes: [[0; 256 * 16]; GROUPS],
            scales: [[[0; 16]; 16]; GROUPS],
            second: [[0; 32 * 16]; GROUPS],
            d: [[0.0; TILE_ROWS]; 8],
            m: [[0.0; TILE_ROWS]; 8],
        }
    }

    /// Interleaves sixteen rows into group `v`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn fill_bytes(&mut self, v: usize, rows: &[[u8; 256]; 16]) {
        for (k, out) in self.bytes[v].as_chunks_mut::<1024>().0.iter_mut().enumerate() {
            for (line, out) in interleaved(rows, 64 * k).into_iter().zip(out.as_chunks_mut::<64>().0) {
                // SAFETY: sixty-four bytes into an array of sixty-four.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), line) };
            }
        }
    }

    /// Interleaves the scales and what meets the sums of activations, of sixteen rows, into group `v`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn fill_scales(&mut self, v: usize, rows: &[[[i16; 16]; 2]; 16]) {
        let lines = interleaved(bytemuck::cast_ref::<_, [[u8; 64]; 16]>(rows), 0);
        for (pair, out) in lines[..8].iter().zip(self.scales[v].as_chunks_mut::<2>().0) {
            // SAFETY: sixteen integers into arrays of sixteen.
            unsafe {
                let first = _mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(*pair));
                _mm512_storeu_si512(out[0].as_mut_ptr().cast(), first);
                _mm512_storeu_si512(out[1].as_mut_ptr().cast(), _mm512_srai_epi32::<16>(*pair));
            }
        }
        for (line, out) in lines[8..].iter().zip(self.second[v].as_chunks_mut::<64>().0) {
            // SAFETY: sixty-four bytes into an array of sixty-four.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), *line) };
        }
    }
}

/// Sixteen times four bytes from an offset of sixteen rows: a sixteen by sixteen transposition.
#[inline]
#[target_feature(enable = "avx512f")]
fn interleaved<const N: usize>(rows: &[[u8; N]; 16], at: usize) -> [__m512i; 16] {
    let zero = _mm512_setzero_si512();
    // Four rows at a time: line k of quarters[g] has in its lane l the four bytes 4l + k of rows 4g to 4g + 3.
    let mut quarters = [[zero; 4]; 4];
    for (g, quarter) in quarters.iter_mut().enumerate() {
        let r = |i: usize| load64(&rows[4 * g + i], at);
        let (a0, a1) = (_mm512_unpacklo_epi32(r(0), r(1)), _mm512_unpackhi_epi32(r(0), r(1)));
        let (b0, b1) = (_mm512_unpacklo_epi32(r(2), r(3)), _mm512_unpackhi_epi32(r(2), r(3)));
        quarter[0] = _mm512_unpacklo_epi64(a0, b0);
        quarter[1] = _mm512_unpackhi_epi64(a0, b0);
        quarter[2] = _mm512_unpacklo_epi64(a1, b1);
        quarter[3] = _mm512_unpackhi_epi64(a1, b1);
    }
    let mut lines = [zero; 16];
    for k in 0..4 {
        let [a, b, c, d] = [quarters[0][k], quarters[1][k], quarters[2][k], quarters[3][k]];
        // Lanes 0 and 1 of both, then lanes 2 and 3.
        let (ab0, ab1) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
        let (cd0, cd1) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xee>(c, d));
        lines[k] = _mm512_shuffle_i32x4::<0x88>(ab0, cd0);
        lines[4 + k] = _mm512_shuffle_i32x4::<0xdd>(ab0, cd0);
        lines[8 + k] = _mm512_shuffle_i32x4::<0x88>(ab1, cd1);
        lines[12 + k] = _mm512_shuffle_i32x4::<0xdd>(ab1, cd1);
    }
    lines
}

/// Calls the function with the constant number of columns for a count of 1 to [`COLUMNS`], then its further constants.
macro_rules! for_columns {
    ($count:expr, $function:ident, [$($constant:ident),*], ($($argument:expr),*)) => {
        match $count {
            6 => $function::<6, $($constant),*>($($argument),*),
            5 => $function::<5, $($constant),*>($($argument),*),
            4 => $function::<4, $($constant),*>($($argument),*),
            3 => $function::<3, $($constant),*>($($argument),*),
            2 => $function::<2, $($constant),*>($($argument),*),
            _ => $function::<1, $($constant),*>($($argument),*),
        }
    };
}

/// Four bytes of an activation row in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn four(x: &[u8], at: usize) -> __m512i {
    _mm512_set1_epi32(i32::from_le_bytes([x[at], x[at + 1], x[at + 2], x[at + 3]]))
}

/// Adds block `b` of every column to its sums, with a scale per `SHARED` elements (16 or 32).
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn block_of_256<const MIN: bool, const SHARED: usize>(
    panel: &Panel,
    b: usize,
    columns: &[&[u8]],
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    debug_assert!(columns.len() <= TILE_COLUMNS);
    for (columns, y) in columns.chunks(COLUMNS).zip(y.chunks_mut(COLUMNS)) {
        let mut x = [(&[0; 256], &[0; 32], 0.0); COLUMNS];
        for (x, column) in x.iter_mut().zip(columns) {
            let row = Q8kRow::new(column, n);
            *x = (&row.q.as_chunks().0[b], &row.sums.as_chunks().0[b], row.d(b));
        }
        for_columns!(columns.len(), add_256, [MIN, SHARED], (panel, &x, y));
    }
}

/// `y += a · (d · products [− dmin · mins])` for all rows: the canonical order of blocks of 256. A column is its block's integers, their
/// sums, and the scale `a`.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_256<const C: usize, const MIN: bool, const SHARED: usize>(
    panel: &Panel,
    x: &[(&[u8; 256], &[u8; 32], f32); COLUMNS],
    y: &mut [[f32; TILE_ROWS]],
) {
    let zero = _mm512_setzero_si512();
    let mut products = [[zero; GROUPS]; C];
    for group in 0..256 / SHARED {
        let mut sums = [[zero; GROUPS]; C];
        for step in group * SHARED / 4..(group + 1) * SHARED / 4 {
            let w = [load64(&panel.bytes[0], 64 * step), load64(&panel.bytes[1], 64 * step)];
            for c in 0..C {
                let four = four(x[c].0, 4 * step);
                for g in 0..GROUPS {
                    sums[c][g] = _mm512_dpbusd_epi32(sums[c][g], w[g], four);
                }
            }
        }
        for g in 0..GROUPS {
            let scale = sixteen(&panel.scales[g][group * SHARED / 16]);
            for c in 0..C {
                products[c][g] = _mm512_add_epi32(products[c][g], _mm512_mullo_epi32(sums[c][g], scale));
            }
        }
    }
    let mut second = [[zero; GROUPS]; C];
    for step in 0..8 {
        let w = [load64(&panel.second[0], 64 * step), load64(&panel.second[1], 64 * step)];
        for c in 0..C {
            let two = four(x[c].1, 4 * step);
            for g in 0..GROUPS {
                second[c][g] = _mm512_dpwssd_epi32(second[c][g], w[g], two);
            }
        }
    }
    for c in 0..C {
        for g in 0..GROUPS {
            let (d, m) = (floats(&panel.d[0], g), floats(&panel.m[0], g));
            let t = if MIN {
                let t = _mm512_mul_ps(d, _mm512_cvtepi32_ps(products[c][g]));
                _mm512_sub_ps(t, _mm512_mul_ps(m, _mm512_cvtepi32_ps(second[c][g])))
            } else {
                _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_sub_epi32(products[c][g], second[c][g])))
            };
            let sum = _mm512_add_ps(floats(&y[c], g), _mm512_mul_ps(_mm512_set1_ps(x[c].2), t));
            put_floats(&mut y[c], g, sum);
        }
    }
}

/// Adds `n_blocks` (at most eight) blocks of 32 from block `b` of every column to its sums; `offset` is what made the bytes unsigned.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn blocks_of_32<const MIN: bool>(
    panel: &Panel,
    b: usize,
    n_blocks: usize,
    offset: i32,
    columns: &[&[u8]],
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    for (columns, y) in columns.chunks(COLUMNS).zip(y.chunks_mut(COLUMNS)) {
        let mut x: [&[[u8; 32]]; COLUMNS] = Default::default();
        let mut factors = [[(0.0, 0); 8]; COLUMNS];
        for (c, column) in columns.iter().enumerate() {
            let row = Q8Row::new(column, n);
            x[c] = &row.q.as_chunks().0[b..b + n_blocks];
            for s in 0..n_blocks {
                factors[c][s] = (row.d(b + s), row.sum(b + s));
            }
        }
        for_columns!(columns.len(), add_32, [MIN], (panel, n_blocks, offset, &x, &factors, y));
    }
}

/// `y += a · (d · products [+ m · sum])` for all rows: the canonical order of blocks of 32.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_32<const C: usize, const MIN: bool>(
    panel: &Panel,
    n_blocks: usize,
    offset: i32,
    x: &[&[[u8; 32]]; COLUMNS],
    factors: &[[(f32, i32); 8]; COLUMNS],
    y: &mut [[f32; TILE_ROWS]],
) {
    let mut sums = [[_mm512_setzero_ps(); GROUPS]; C];
    for c in 0..C {
        sums[c] = [floats(&y[c], 0), floats(&y[c], 1)];
    }
    for s in 0..n_blocks {
        let mut products = [[_mm512_setzero_si512(); GROUPS]; C];
        for c in 0..C {
            // The offset's share is taken off beforehand.
            products[c] = [_mm512_set1_epi32(-offset * factors[c][s].1); GROUPS];
        }
        let x: [&[u8; 32]; C] = std::array::from_fn(|c| &x[c][s]);
        for step in 0..8 {
            let at = 64 * (8 * s + step);
            let w = [load64(&panel.bytes[0], at), load64(&panel.bytes[1], at)];
            for c in 0..C {
                let four = four(x[c], 4 * step);
                for g in 0..GROUPS {
                    products[c][g] = _mm512_dpbusd_epi32(products[c][g], w[g], four);
                }
            }
        }
        for g in 0..GROUPS {
            let (d, m) = (floats(&panel.d[s], g), floats(&panel.m[s], g));
            for c in 0..C {
                let (a, sum) = factors[c][s];
                let mut t = _mm512_mul_ps(d, _mm512_cvtepi32_ps(products[c][g]));
                if MIN {
                    t = _mm512_add_ps(t, _mm512_mul_ps(m, _mm512_set1_ps(sum as f32)));
                }
                sums[c][g] = _mm512_add_ps(sums[c][g], _mm512_mul_ps(_mm512_set1_ps(a), t));
            }
        }
    }
    for c in 0..C {
        for g in 0..GROUPS {
            put_floats(&mut y[c], g, sums[c][g]);
        }
    }
}

/// Sixteen integers.
#[inline]
#[target_feature(enable = "avx512f")]
fn sixteen(x: &[i32; 16]) -> __m512i {
    // SAFETY: sixteen readable integers; the load needs no alignment.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

/// The floats of a group of sixteen rows.
#[inline]
#[target_feature(enable = "avx512f")]
fn floats(x: &[f32; TILE_ROWS], group: usize) -> __m512 {
    let x = &x.as_chunks::<16>().0[group];
    // SAFETY: sixteen readable floats; the load needs no alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

/// Stores the floats of a group of sixteen rows.
#[inline]
#[target_feature(enable = "avx512f")]
fn put_floats(y: &mut [f32; TILE_ROWS], group: usize, t: __m512) {
    let y = &mut y.as_chunks_mut::<16>().0[group];
    // SAFETY: sixteen floats into an array of sixteen; the store needs no alignment.
    unsafe { _mm512_storeu_ps(y.as_mut_ptr(), t) };
}
