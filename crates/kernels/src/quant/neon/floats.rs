//! Float weights with NEON: the sixteen lanes of the canonical order are four registers.

use std::arch::aarch64::*;

use crate::quant::floats::Float;
use crate::{Kernels, TILE_ROWS};

/// How weights of `N` bytes become floats.
pub(in crate::quant) trait NeonFloat<const N: usize>: Float<N> {
    /// Four weights.
    ///
    /// # Safety
    /// NEON.
    unsafe fn load(weights: &[[u8; N]; 4]) -> float32x4_t;
}

/// From how many activation rows on tiles are used, which read half of the weights' vectors again for three times the products.
const TILE_FROM: usize = 2;

/// The NEON kernels.
pub(in crate::quant) const fn neon<F: NeonFloat<N>, const N: usize>() -> Kernels {
    Kernels { rows: rows::<F, N>, tile: Some((tile::<F, N>, TILE_FROM)) }
}

/// # Safety
/// That of [`Rows`](crate::Rows); nothing beyond NEON is used.
#[target_feature(enable = "neon")]
unsafe fn rows<F: NeonFloat<N>, const N: usize>(weights: &[u8], x: &[u8], n: usize, y: &mut [f32]) {
    let weights = &weights.as_chunks::<N>().0[..n * y.len()];
    let x = &x.as_chunks::<4>().0[..n];
    for (first, y) in y.chunks_mut(4).enumerate() {
        // Rows past the end are the last one again.
        let row = |r: usize| &weights[(4 * first + r.min(y.len() - 1)) * n..][..n];
        let [sums] = block::<F, N, 4, 1>([row(0), row(1), row(2), row(3)], [x]);
        y.copy_from_slice(&sums[..y.len()]);
    }
}

/// # Safety
/// That of [`Tile`](crate::Tile); nothing beyond NEON is used.
#[target_feature(enable = "neon")]
unsafe fn tile<F: NeonFloat<N>, const N: usize>(
    weights: &[u8],
    n_rows: usize,
    columns: &[&[u8]],
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    let weights = &weights.as_chunks::<N>().0[..n * n_rows];
    // Two rows at a time stay in the first-level cache while the columns pass by.
    for first in (0..n_rows).step_by(2) {
        let row = |r: usize| &weights[(first + r).min(n_rows - 1) * n..][..n];
        let rows = [row(0), row(1)];
        for (columns, y) in columns.chunks(3).zip(y.chunks_mut(3)) {
            let x = |c: usize| &columns[c].as_chunks::<4>().0[..n];
            let mut put = |c: usize, sums: [f32; 2]| y[c][first..first + 2].copy_from_slice(&sums);
            match columns.len() {
                3 => {
                    let sums = block::<F, N, 2, 3>(rows, [x(0), x(1), x(2)]);
                    (0..3).for_each(|c| put(c, sums[c]));
                }
                2 => {
                    let sums = block::<F, N, 2, 2>(rows, [x(0), x(1)]);
                    (0..2).for_each(|c| put(c, sums[c]));
                }
                _ => put(0, block::<F, N, 2, 1>(rows, [x(0)])[0]),
            }
        }
    }
}

/// `R` weight rows with `C` activation rows, each pair in its own sixteen lanes, sixteen elements at a time.
#[inline]
#[target_feature(enable = "neon")]
fn block<F: NeonFloat<N>, const N: usize, const R: usize, const C: usize>(
    rows: [&[[u8; N]]; R],
    columns: [&[[u8; 4]]; C],
) -> [[f32; R]; C] {
    let mut lanes = [[[vdupq_n_f32(0.0); 4]; R]; C];
    let rows = rows.map(|row| row.as_chunks::<16>());
    let columns = columns.map(|x| x.as_chunks::<16>());
    let n_blocks = columns[0].0.len();
    assert!(rows.iter().all(|w| w.0.len() == n_blocks) && columns.iter().all(|x| x.0.len() == n_blocks));
    for i in 0..n_blocks {
        add::<F, N, R, C>(&mut lanes, rows.map(|w| &w.0[i]), columns.map(|x| &x.0[i]));
    }
    if !columns[0].1.is_empty() {
        // Zeros add nothing to a lane.
        let w = rows.map(|(_, tail)| padded(tail));
        let x = columns.map(|(_, tail)| padded(tail));
        add::<F, N, R, C>(&mut lanes, w.each_ref(), x.each_ref());
    }
    lanes.map(|rows| rows.map(|lanes| reduce(lanes)))
}

/// Sixteen elements, the last of them zeros.
fn padded<const N: usize>(tail: &[[u8; N]]) -> [[u8; N]; 16] {
    let mut whole = [[0; N]; 16];
    whole[..tail.len()].copy_from_slice(tail);
    whole
}

/// Adds the products of sixteen elements to their lanes.
#[inline]
#[target_feature(enable = "neon")]
fn add<F: NeonFloat<N>, const N: usize, const R: usize, const C: usize>(
    lanes: &mut [[[float32x4_t; 4]; R]; C],
    w: [&[[u8; N]; 16]; R],
    x: [&[[u8; 4]; 16]; C],
) {
    for i in 0..4 {
        let x = x.map(|x| four_floats(x, i));
        for r in 0..R {
            // SAFETY: NEON is on.
            let w = unsafe { F::load(&w[r].as_chunks::<4>().0[i]) };
            for c in 0..C {
                lanes[c][r][i] = vfmaq_f32(lanes[c][r][i], w, x[c]);
            }
        }
    }
}

/// Adds sixteen lanes in the canonical order.
#[inline]
#[target_feature(enable = "neon")]
fn reduce(lanes: [float32x4_t; 4]) -> f32 {
    let v = vaddq_f32(vaddq_f32(lanes[0], lanes[2]), vaddq_f32(lanes[1], lanes[3]));
    let v = vadd_f32(vget_low_f32(v), vget_high_f32(v));
    vget_lane_f32::<0>(v) + vget_lane_f32::<1>(v)
}

/// Four floats of sixteen.
#[inline]
#[target_feature(enable = "neon")]
fn four_floats(x: &[[u8; 4]; 16], i: usize) -> float32x4_t {
    floats(&x.as_chunks::<4>().0[i])
}

/// Four floats.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn floats(x: &[[u8; 4]; 4]) -> float32x4_t {
    // SAFETY: sixteen readable bytes; the load needs no alignment.
    vreinterpretq_f32_u8(unsafe { vld1q_u8(x.as_ptr().cast()) })
}

/// The bits of four halves.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn halves(x: &[[u8; 2]; 4]) -> uint16x4_t {
    // SAFETY: eight readable bytes; the load needs no alignment.
    vreinterpret_u16_u8(unsafe { vld1_u8(x.as_ptr().cast()) })
}
