//! Blocks of 32 with NEON: four rows at a time, so that the sums of a block column are added and scaled side by side.

use std::arch::aarch64::*;

use super::tile::{self, Panel};
use super::{Integers, four_totals, four_units, sdot, signed16};
use crate::activation::Q8Row;
use crate::quant::block32::Block32;
use crate::{Kernels, TILE_ROWS};

/// A block of 32 as vectors.
pub(in crate::quant) trait NeonBlock32<const N: usize>: Block32<N> {
    /// The integers.
    ///
    /// # Safety
    /// NEON.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load(block: &[u8; N]) -> Integers {
        let mut q = [0; 32];
        Self::unpack(block, &mut q);
        // SAFETY: two times sixteen readable bytes.
        unsafe { (vld1q_s8(q.as_ptr()), vld1q_s8(q.as_ptr().add(16))) }
    }

    /// The scales and minima of four blocks.
    ///
    /// # Safety
    /// NEON.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn units(blocks: [&[u8; N]; 4]) -> (float32x4_t, float32x4_t) {
        let halves = |at: usize| four_units(blocks.map(|b| u16::from_le_bytes([b[at], b[at + 1]])));
        (halves(0), if Self::MIN { halves(2) } else { vdupq_n_f32(0.0) })
    }
}

/// The NEON kernels.
pub(in crate::quant) const fn neon<B: NeonBlock32<N>, const N: usize>() -> Kernels {
    Kernels { rows: rows::<B, N>, tile: Some((tile::<B, N>, tile::FROM)) }
}

/// # Safety
/// That of [`Rows`](crate::Rows), for `dotprod`.
#[target_feature(enable = "neon")]
unsafe fn rows<B: NeonBlock32<N>, const N: usize>(weights: &[u8], x: &[u8], n: usize, y: &mut [f32]) {
    let x = Q8Row::new(x, n);
    let n_blocks = n / 32;
    let blocks = &weights.as_chunks::<N>().0[..n_blocks * y.len()];
    for (first, y) in y.chunks_mut(4).enumerate() {
        // Rows past the end are the last one again.
        let row = |r: usize| &blocks[(4 * first + r.min(y.len() - 1)) * n_blocks..][..n_blocks];
        // SAFETY: the caller's promise.
        let sums = unsafe { four_rows::<B, N>([row(0), row(1), row(2), row(3)], &x) };
        y.copy_from_slice(&sums[..y.len()]);
    }
}

/// Four rows, block column by block column.
///
/// # Safety
/// `dotprod`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn four_rows<B: NeonBlock32<N>, const N: usize>(rows: [&[[u8; N]]; 4], x: &Q8Row<'_>) -> [f32; 4] {
    let mut total = vdupq_n_f32(0.0);
    let columns = rows[0].iter().zip(rows[1]).zip(rows[2]).zip(rows[3]);
    for ((b, (((w0, w1), w2), w3)), x_q) in columns.enumerate().zip(x.q.as_chunks::<32>().0) {
        let (x0, x1) = (signed16(x_q, 0), signed16(x_q, 16));
        // SAFETY: the caller's promise.
        let products = |block| unsafe {
            let (q0, q1) = B::load(block);
            sdot(sdot(vdupq_n_s32(0), q0, x0), q1, x1)
        };
        let p = four_totals([products(w0), products(w1), products(w2), products(w3)]);
        // SAFETY: NEON is on.
        let (d, m) = unsafe { B::units([w0, w1, w2, w3]) };
        // The same operations in the same order as `term`.
        let mut t = vmulq_f32(d, vcvtq_f32_s32(p));
        if B::MIN {
            t = vaddq_f32(t, vmulq_f32(m, vdupq_n_f32(x.sum(b) as f32)));
        }
        total = vaddq_f32(total, vmulq_f32(vdupq_n_f32(x.d(b)), t));
    }
    let mut y = [0.0; 4];
    // SAFETY: four floats into an array of four.
    unsafe { vst1q_f32(y.as_mut_ptr(), total) };
    y
}

/// # Safety
/// That of [`Tile`](crate::Tile), for `dotprod`.
#[target_feature(enable = "neon")]
unsafe fn tile<B: NeonBlock32<N>, const N: usize>(
    weights: &[u8],
    n_rows: usize,
    columns: &[&[u8]],
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    if std::arch::is_aarch64_feature_detected!("i8mm") {
        // SAFETY: the caller's promise, and i8mm is there.
        unsafe { tile_by::<tile::Matrix, B, N>(weights, n_rows, columns, n, y) }
    } else {
        // SAFETY: the caller's promise.
        unsafe { tile_by::<tile::Dot, B, N>(weights, n_rows, columns, n, y) }
    }
}

/// # Safety
/// That of [`Tile`](crate::Tile), for what `M` needs.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn tile_by<M: tile::Multiply, B: NeonBlock32<N>, const N: usize>(
    weights: &[u8],
    n_rows: usize,
    columns: &[&[u8]],
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    let n_blocks = n / 32;
    let blocks = &weights.as_chunks::<N>().0[..n_blocks * n_rows];
    y.fill([0.0; TILE_ROWS]);
    let mut panel = Panel::new();
    for first in (0..n_blocks).step_by(8) {
        let count = 8.min(n_blocks - first);
        for group in 0..n_rows.div_ceil(4) {
            // Rows past the end are the last one again.
            let row = |r: usize| &blocks[(4 * group + r).min(n_rows - 1) * n_blocks + first..][..count];
            let rows = [row(0), row(1), row(2), row(3)];
            for s in 0..count {
                let four = rows.map(|row| &row[s]);
                // SAFETY: NEON is on.
                let (q, (d, m)) = unsafe { (four.map(|block| B::load(block)), B::units(four)) };
                panel.put::<M>(group, s, q);
                panel.put_units(group, s, d, m);
            }
        }
        // SAFETY: the caller's promise.
        unsafe {
            if B::MIN {
                tile::blocks_of_32::<M, true>(&panel, first, count, n_rows, columns, n, y);
            } else {
                tile::blocks_of_32::<M, false>(&panel, first, count, n_rows, columns, n, y);
            }
        }
    }
}
