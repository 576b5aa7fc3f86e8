//! Blocks of 256 with NEON: four rows at a time, so that the sums of a block column are added and scaled side by side.

use std::arch::aarch64::*;

use super::tile::{self, Panel};
use super::{Integers, four_totals, four_units, sdot, signed16, words8};
use crate::activation::Q8kRow;
use crate::quant::block256::Block256;
use crate::{Kernels, TILE_ROWS};

/// A block's scales and minima. When they are paired, the first vectors hold one for each 32 elements and the second ones nothing;
/// otherwise there is one for each sixteen.
#[derive(Clone, Copy)]
pub(in crate::quant) struct Factors {
    pub(super) scale: [int16x8_t; 2],
    pub(super) min: [int16x8_t; 2],
}

/// A block of 256 as vectors.
pub(in crate::quant) trait NeonBlock256<const N: usize>: Block256<N> {
    /// Whether two neighbouring groups always share their scale and minimum.
    const PAIRED: bool = false;
    /// Whether there are scales at all (other than 1).
    const SCALED: bool = true;
    /// Where the half `d` stands; with minima `dmin` is the next.
    const UNIT_AT: usize = 0;
    /// What the half is multiplied with to give the unit; a power of two.
    const UNIT_FACTOR: f32 = 1.0;
    /// Whether integers are unpacked by [`NeonBlock256::whole`] blocks, not by [`NeonBlock256::load`].
    const WHOLE: bool = false;

    /// The bits of `d` and `dmin`.
    #[inline(always)]
    fn halves(block: &[u8; N]) -> (u16, u16) {
        let half = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
        (half(Self::UNIT_AT), if Self::MIN { half(Self::UNIT_AT + 2) } else { 0 })
    }

    /// The integers from `32 · s`, `s` being a constant wherever this is inlined.
    ///
    /// # Safety
    /// NEON.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load(block: &[u8; N], s: usize) -> Integers {
        let mut q = [0; 256];
        Self::quants(block, &mut q);
        let q = &q.as_chunks::<32>().0[s];
        // SAFETY: two times sixteen readable bytes.
        unsafe { (vld1q_s8(q.as_ptr()), vld1q_s8(q.as_ptr().add(16))) }
    }

    /// The integers of the block, by 32.
    ///
    /// # Safety
    /// NEON.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn whole(block: &[u8; N]) -> [Integers; 8] {
        // SAFETY: NEON is on.
        std::array::from_fn(|s| unsafe { Self::load(block, s) })
    }

    /// The scales and minima.
    ///
    /// # Safety
    /// NEON.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn factors(block: &[u8; N]) -> Factors {
        let (mut scale, mut min) = ([0; 16], [0; 16]);
        Self::scales(block, &mut scale, &mut min);
        // SAFETY: sixteen readable words each.
        let two =
            |words: &[i16; 16]| unsafe { [vld1q_s16(words.as_ptr()), vld1q_s16(words.as_ptr().add(8))] };
        let (scale, min) = (two(&scale), two(&min));
        if Self::PAIRED {
            let even = |v: [int16x8_t; 2]| [vuzp1q_s16(v[0], v[1]), vdupq_n_s16(0)];
            Factors { scale: even(scale), min: even(min) }
        } else {
            Factors { scale, min }
        }
    }
}

/// The units of four blocks.
#[inline]
#[target_feature(enable = "neon")]
fn units<B: NeonBlock256<N>, const N: usize>(blocks: [&[u8; N]; 4]) -> (float32x4_t, float32x4_t) {
    let halves = blocks.map(|block| B::halves(block));
    let d = vmulq_n_f32(four_units(halves.map(|h| h.0)), B::UNIT_FACTOR);
    let m = if B::MIN { four_units(halves.map(|h| h.1)) } else { vdupq_n_f32(0.0) };
    (d, vmulq_n_f32(m, B::UNIT_FACTOR))
}

/// Four partial sums each of `Σ scale·(Σ q·x)` and of `Σ min·t` (zero without minima), `t` being the sums of sixteen `x`.
///
/// # Safety
/// `dotprod`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn sums<B: NeonBlock256<N>, const N: usize>(
    block: &[u8; N],
    x: &[u8; 256],
    t: [int16x8_t; 2],
) -> (int32x4_t, int32x4_t) {
    let zero = vdupq_n_s32(0);
    // Two sums, so that an addition need not wait for the one before it.
    let (mut even, mut odd) = (zero, zero);
    let at = |s: usize| (signed16(x, 32 * s), signed16(x, 32 * s + 16));
    if !B::SCALED {
        macro_rules! step {
            ($($s:literal)*) => {$(
                // SAFETY: the caller's promise.
                unsafe {
                    let ((q0, q1), (x0, x1)) = (B::load(block, $s), at($s));
                    (even, odd) = (sdot(even, q0, x0), sdot(odd, q1, x1));
                }
            )*};
        }
        step!(0 1 2 3 4 5 6 7);
        return (vaddq_s32(even, odd), zero);
    }
    // SAFETY: NEON is on.
    let Factors { scale, min } = unsafe { B::factors(block) };
    let low = |v| vmovl_s16(vget_low_s16(v));
    let scales = [low(scale[0]), vmovl_high_s16(scale[0]), low(scale[1]), vmovl_high_s16(scale[1])];
    if B::PAIRED {
        macro_rules! step {
            ($($s:literal $lane:literal)*) => {$(
                // SAFETY: the caller's promise.
                let products = unsafe {
                    let ((q0, q1), (x0, x1)) = (B::load(block, $s), at($s));
                    sdot(sdot(zero, q0, x0), q1, x1)
                };
                let sum = if $s % 2 == 0 { &mut even } else { &mut odd };
                *sum = vmlaq_laneq_s32::<$lane>(*sum, products, scales[$s / 4]);
            )*};
        }
        step!(0 0 1 1 2 2 3 3 4 0 5 1 6 2 7 3);
    } else {
        macro_rules! step {
            ($($s:literal $lane:literal $next:literal)*) => {$(
                // SAFETY: the caller's promise.
                let (p0, p1) = unsafe {
                    let ((q0, q1), (x0, x1)) = (B::load(block, $s), at($s));
                    (sdot(zero, q0, x0), sdot(zero, q1, x1))
                };
                even = vmlaq_laneq_s32::<$lane>(even, p0, scales[$s / 2]);
                odd = vmlaq_laneq_s32::<$next>(odd, p1, scales[$s / 2]);
            )*};
        }
        step!(0 0 1 1 2 3 2 0 1 3 2 3 4 0 1 5 2 3 6 0 1 7 2 3);
    }
    let mut mins = zero;
    if B::MIN {
        let add = |sum, a, b| vmlal_high_s16(vmlal_s16(sum, vget_low_s16(a), vget_low_s16(b)), a, b);
        mins = if B::PAIRED {
            add(zero, min[0], vpaddq_s16(t[0], t[1]))
        } else {
            add(add(zero, min[0], t[0]), min[1], t[1])
        };
    }
    (vaddq_s32(even, odd), mins)
}

/// The NEON kernels.
pub(in crate::quant) const fn neon<B: NeonBlock256<N>, const N: usize>() -> Kernels {
    Kernels { rows: rows::<B, N>, tile: Some((tile::<B, N>, tile::FROM)) }
}

/// # Safety
/// That of [`Rows`](crate::Rows), for `dotprod`.
#[target_feature(enable = "neon")]
unsafe fn rows<B: NeonBlock256<N>, const N: usize>(weights: &[u8], x: &[u8], n: usize, y: &mut [f32]) {
    let x = Q8kRow::new(x, n);
    let n_blocks = n / 256;
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
unsafe fn four_rows<B: NeonBlock256<N>, const N: usize>(rows: [&[[u8; N]]; 4], x: &Q8kRow<'_>) -> [f32; 4] {
    let mut total = vdupq_n_f32(0.0);
    let columns = rows[0].iter().zip(rows[1]).zip(rows[2]).zip(rows[3]);
    for (b, (((w0, w1), w2), w3)) in columns.enumerate() {
        let x_q = &x.q.as_chunks::<256>().0[b];
        let t = [words8(x.sums, 32 * b), words8(x.sums, 32 * b + 16)];
        // SAFETY: the caller's promise.
        let ((p0, m0), (p1, m1), (p2, m2), (p3, m3)) = unsafe {
            (
                sums::<B, N>(w0, x_q, t),
                sums::<B, N>(w1, x_q, t),
                sums::<B, N>(w2, x_q, t),
                sums::<B, N>(w3, x_q, t),
            )
        };
        let (d, dmin) = units::<B, N>([w0, w1, w2, w3]);
        // The same operations in the same order as `term`.
        let mut terms = vmulq_f32(d, vcvtq_f32_s32(four_totals([p0, p1, p2, p3])));
        if B::MIN {
            let mins = vcvtq_f32_s32(four_totals([m0, m1, m2, m3]));
            terms = vsubq_f32(terms, vmulq_f32(dmin, mins));
        }
        total = vaddq_f32(total, vmulq_f32(vdupq_n_f32(x.d(b)), terms));
    }
    let mut y = [0.0; 4];
    // SAFETY: four floats into an array of four.
    unsafe { vst1q_f32(y.as_mut_ptr(), total) };
    y
}

/// # Safety
/// That of [`Tile`](crate::Tile), for `dotprod`.
#[target_feature(enable = "neon")]
pub(super) unsafe fn tile<B: NeonBlock256<N>, const N: usize>(
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
unsafe fn tile_by<M: tile::Multiply, B: NeonBlock256<N>, const N: usize>(
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
    for b in 0..n_blocks {
        // Rows past the end are the last one again.
        let row = |r: usize| &blocks[r.min(n_rows - 1) * n_blocks + b];
        for group in 0..n_rows.div_ceil(4) {
            let four = [row(4 * group), row(4 * group + 1), row(4 * group + 2), row(4 * group + 3)];
            macro_rules! step {
                ($($s:literal)*) => {$(
                    // SAFETY: NEON is on.
                    panel.put::<M>(group, $s, four.map(|block| unsafe { B::load(block, $s) }));
                )*};
            }
            if B::WHOLE {
                // SAFETY: NEON is on.
                let four = four.map(|block| unsafe { B::whole(block) });
                (0..8).for_each(|s| panel.put::<M>(group, s, four.map(|integers| integers[s])));
            } else {
                step!(0 1 2 3 4 5 6 7);
            }
            let (d, m) = units::<B, N>(four);
            panel.put_units(group, 0, d, m);
        }
        if B::SCALED {
            for v in 0..n_rows.div_ceil(8) {
                // SAFETY: NEON is on.
                let factors = std::array::from_fn(|r| unsafe { B::factors(row(8 * v + r)) });
                panel.put_factors::<B, N>(v, &factors);
            }
        }
        // SAFETY: the caller's promise.
        unsafe { tile::block_of_256::<M, B, N>(&panel, b, n_rows, columns, n, y) };
    }
}
