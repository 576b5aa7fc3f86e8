//! Packed forms of blocks of 256 with NEON: activations are rearranged once for all rows of a call, so that the words of two registers
//! belong to the sixteen groups. Products of a group then add up in sixteen bits, element by element.

use std::arch::aarch64::*;
use std::mem::MaybeUninit;

use super::block256::{self, NeonBlock256};
use super::{Integers, field, four_totals, four_units, load8, load16, signed16};
use crate::activation::Q8kRow;
use crate::quant::packed::p2::{self, P2};
use crate::quant::packed::p3::{self, P3};
use crate::{Kernels, TILE_ROWS};

/// Blocks of an activation row that are rearranged together; longer rows take several turns.
const COLUMNS: usize = 32;
/// From how many activation rows on a tile is faster than rows in fours: activations are rearranged once for all of its rows.
const TILE_FROM: usize = 2;
/// And from how many on a panel is; a guess from counting instructions.
const PANEL_FROM: usize = 8;

/// The steps of a block: the first eight groups, then the others.
type Steps = [Integers; 8];
/// A word per group.
type Words = [int16x8_t; 2];

/// 256 activations and sums of them, as a packed form wants them.
struct Column {
    steps: Steps,
    starts: [Words; 3],
}

/// A packed form as vectors.
pub(in crate::quant) trait Lanes<const N: usize>: NeonBlock256<N> {
    /// What the products of all rows with a column start from, if anything.
    #[inline(always)]
    fn starts(_steps: &Steps) -> [Words; 3] {
        // SAFETY: NEON belongs to the target.
        [[unsafe { vdupq_n_s16(0) }; 2]; 3]
    }

    /// What is multiplied of the steps, of the first eight groups (`h` = 0) or of the others (1): the integers, or what
    /// [`Lanes::finish`] makes their products of.
    ///
    /// # Safety
    /// NEON.
    unsafe fn steps(block: &[u8; N], h: usize) -> [int8x16_t; 8];

    /// Four partial sums of `Σ scale·(Σ q·x)` of the same groups, from the products of [`Lanes::steps`]: of the first six steps and of the
    /// last two, lower and upper eight bytes each.
    ///
    /// # Safety
    /// NEON.
    unsafe fn finish(block: &[u8; N], h: usize, starts: &[Words; 3], products: [Words; 2]) -> int32x4_t;
}

/// The NEON kernels.
pub(in crate::quant) const fn neon<B: Lanes<N>, const N: usize>() -> Kernels {
    Kernels { rows: rows::<B, N>, tile: Some((tile::<B, N>, TILE_FROM)) }
}

/// # Safety
/// That of [`Tile`](crate::Tile), for `dotprod`.
#[target_feature(enable = "neon")]
unsafe fn tile<B: Lanes<N>, const N: usize>(
    weights: &[u8],
    n_rows: usize,
    columns: &[&[u8]],
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    if columns.len() >= PANEL_FROM {
        // SAFETY: the caller's promise.
        return unsafe { block256::tile::<B, N>(weights, n_rows, columns, n, y) };
    }
    for (x, y) in columns.iter().zip(y) {
        // SAFETY: the caller's promise.
        unsafe { rows::<B, N>(weights, x, n, &mut y[..n_rows]) };
    }
}

/// # Safety
/// That of [`Rows`](crate::Rows).
#[target_feature(enable = "neon")]
unsafe fn rows<B: Lanes<N>, const N: usize>(weights: &[u8], x: &[u8], n: usize, y: &mut [f32]) {
    let x = Q8kRow::new(x, n);
    let n_blocks = n / 256;
    let blocks = &weights.as_chunks::<N>().0[..n_blocks * y.len()];
    let mut columns = [const { MaybeUninit::uninit() }; COLUMNS];
    y.fill(0.0);
    for from in (0..n_blocks).step_by(COLUMNS) {
        let to = n_blocks.min(from + COLUMNS);
        let columns = &mut columns[..to - from];
        for (column, x) in columns.iter_mut().zip(&x.q.as_chunks::<256>().0[from..to]) {
            let group = |g: usize| signed16(x, 16 * g);
            let low = transposed(std::array::from_fn(group));
            let high = transposed(std::array::from_fn(|g| group(8 + g)));
            let steps = std::array::from_fn(|t| (low[t], high[t]));
            column.write(Column { steps, starts: B::starts(&steps) });
        }
        // SAFETY: all of these were just written.
        let columns = unsafe { columns.assume_init_ref() };
        for (first, y) in y.chunks_mut(4).enumerate() {
            // Rows past the end are the last one again.
            let row = |r: usize| &blocks[(4 * first + r.min(y.len() - 1)) * n_blocks..][from..to];
            let mut sums = [0.0; 4];
            sums[..y.len()].copy_from_slice(y);
            let d = &x.d[4 * from..];
            // SAFETY: NEON is on.
            unsafe { four_rows::<B, N>([row(0), row(1), row(2), row(3)], columns, d, &mut sums) };
            y.copy_from_slice(&sums[..y.len()]);
        }
    }
}

/// Adds the block columns of four rows to their sums.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn four_rows<B: Lanes<N>, const N: usize>(
    rows: [&[[u8; N]]; 4],
    columns: &[Column],
    d: &[u8],
    sums: &mut [f32; 4],
) {
    // SAFETY: four readable floats.
    let mut total = unsafe { vld1q_f32(sums.as_ptr()) };
    let blocks = rows[0].iter().zip(rows[1]).zip(rows[2]).zip(rows[3]);
    for (((((w0, w1), w2), w3), column), d) in blocks.zip(columns).zip(d.as_chunks::<4>().0) {
        let four = [w0, w1, w2, w3];
        // SAFETY: NEON is on.
        let products = four.map(|w| unsafe { products::<B, N>(w, column) });
        let unit = vmulq_n_f32(four_units(four.map(|w| B::halves(w).0)), B::UNIT_FACTOR);
        // The same operations in the same order as `term`.
        let t = vmulq_f32(unit, vcvtq_f32_s32(four_totals(products)));
        total = vaddq_f32(total, vmulq_f32(vdupq_n_f32(f32::from_le_bytes(*d)), t));
    }
    // SAFETY: four floats into an array of four.
    unsafe { vst1q_f32(sums.as_mut_ptr(), total) };
}

/// Four partial sums of `Σ scale·(Σ q·x)`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn products<B: Lanes<N>, const N: usize>(block: &[u8; N], x: &Column) -> int32x4_t {
    let mut total = vdupq_n_s32(0);
    for h in 0..2 {
        // SAFETY: NEON is on.
        let q = unsafe { B::steps(block, h) };
        let sum = |steps: std::ops::Range<usize>| {
            steps.fold([vdupq_n_s16(0); 2], |[low, high], t| {
                let x = if h == 0 { x.steps[t].0 } else { x.steps[t].1 };
                [vmlal_s8(low, vget_low_s8(q[t]), vget_low_s8(x)), vmlal_high_s8(high, q[t], x)]
            })
        };
        // SAFETY: NEON is on.
        total = vaddq_s32(total, unsafe { B::finish(block, h, &x.starts, [sum(0..6), sum(6..8)]) });
    }
    total
}

/// Word `i` of register `t` becomes word `t` of register `i`: groups become steps, and steps groups.
#[inline]
#[target_feature(enable = "neon")]
fn transposed(v: [int8x16_t; 8]) -> [int8x16_t; 8] {
    let words = |a: int8x16_t, b: int8x16_t| {
        let (a, b) = (vreinterpretq_s16_s8(a), vreinterpretq_s16_s8(b));
        (vreinterpretq_s32_s16(vzip1q_s16(a, b)), vreinterpretq_s32_s16(vzip2q_s16(a, b)))
    };
    let ((a0, a1), (b0, b1)) = (words(v[0], v[1]), words(v[2], v[3]));
    let ((c0, c1), (d0, d1)) = (words(v[4], v[5]), words(v[6], v[7]));
    let pairs = |a, b| (vreinterpretq_s64_s32(vzip1q_s32(a, b)), vreinterpretq_s64_s32(vzip2q_s32(a, b)));
    let ((e0, e1), (e2, e3)) = (pairs(a0, b0), pairs(a1, b1));
    let ((f0, f1), (f2, f3)) = (pairs(c0, d0), pairs(c1, d1));
    let fours = |a, b| (vreinterpretq_s8_s64(vzip1q_s64(a, b)), vreinterpretq_s8_s64(vzip2q_s64(a, b)));
    let ((g0, g1), (g2, g3)) = (fours(e0, f0), fours(e1, f1));
    let ((g4, g5), (g6, g7)) = (fours(e2, f2), fours(e3, f3));
    [g0, g1, g2, g3, g4, g5, g6, g7]
}

/// The integers of eight steps, in two halves, in the order of the block.
#[inline]
#[target_feature(enable = "neon")]
fn in_order(low: [int8x16_t; 8], high: [int8x16_t; 8]) -> [Integers; 8] {
    let groups = [transposed(low), transposed(high)];
    std::array::from_fn(|s| (groups[s / 4][2 * s % 8], groups[s / 4][2 * s % 8 + 1]))
}

/// Minus where the top bit of a word is set, as all ones.
#[inline]
#[target_feature(enable = "neon")]
fn minus(v: int16x8_t) -> int16x8_t {
    vreinterpretq_s16_u16(vcltzq_s16(v))
}

impl NeonBlock256<{ p2::BYTES }> for P2 {
    const UNIT_AT: usize = p2::UNIT_AT;
    const UNIT_FACTOR: f32 = 0.125;
    const WHOLE: bool = true;

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn whole(block: &[u8; p2::BYTES]) -> [Integers; 8] {
        let half = |h: usize| {
            // SAFETY: NEON is on.
            let u = unsafe { <P2 as Lanes<{ p2::BYTES }>>::steps(block, h) };
            let groups = p2_groups(block, h);
            // −8 ± 1 in both bytes of a group's word, per eight.
            let shift = |v| {
                let minus = vreinterpretq_s8_s16(minus(v));
                vaddq_s8(vaddq_s8(minus, minus), vdupq_n_s8(-7))
            };
            let shifts = [shift(groups), shift(vshlq_n_s16::<9>(groups))];
            std::array::from_fn(|t| vaddq_s8(vshlq_n_s8::<3>(u[t]), shifts[t / 4]))
        };
        in_order(half(0), half(1))
    }
}

/// The bytes of eight groups as words, signs extended.
#[inline]
#[target_feature(enable = "neon")]
fn p2_groups(block: &[u8; p2::BYTES], h: usize) -> int16x8_t {
    vmovl_s8(vreinterpret_s8_u8(load8(block, p2::GROUPS_AT + 8 * h)))
}

impl Lanes<{ p2::BYTES }> for P2 {
    /// With `a` and `b` the sums of a group's two eights: `−8·(a + b) + a`, `−8·(a + b) − a`, and `b`.
    #[inline(always)]
    fn starts(steps: &Steps) -> [Words; 3] {
        // SAFETY: NEON belongs to the target.
        unsafe {
            let of = |four: &[Integers]| {
                four.iter()
                    .fold([vdupq_n_s16(0); 2], |[low, high], x| [vpadalq_s8(low, x.0), vpadalq_s8(high, x.1)])
            };
            let (a, b) = (of(&steps[..4]), of(&steps[4..]));
            let offset = |h: usize| vnegq_s16(vshlq_n_s16::<3>(vaddq_s16(a[h], b[h])));
            let plus = |h: usize| vaddq_s16(offset(h), a[h]);
            let less = |h: usize| vsubq_s16(offset(h), a[h]);
            [[plus(0), plus(1)], [less(0), less(1)], b]
        }
    }

    /// `g + 1`.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn steps(block: &[u8; p2::BYTES], h: usize) -> [int8x16_t; 8] {
        let rows = [load16(block, 16 * h), load16(block, 32 + 16 * h)];
        std::array::from_fn(|t| vreinterpretq_s8_u8(field(rows[t % 2], 2 * (t / 2), 3)))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn finish(
        block: &[u8; p2::BYTES],
        h: usize,
        starts: &[Words; 3],
        [a, b]: [Words; 2],
    ) -> int32x4_t {
        let sum = vpaddq_s16(vaddq_s16(a[0], b[0]), vaddq_s16(a[1], b[1]));
        let groups = p2_groups(block, h);
        let first = vbslq_s16(vcltzq_s16(groups), starts[1][h], starts[0][h]);
        let second = minus(vshlq_n_s16::<9>(groups));
        let second = vsubq_s16(veorq_s16(starts[2][h], second), second);
        let all = vaddq_s16(vshlq_n_s16::<3>(sum), vaddq_s16(first, second));
        let scale = vandq_s16(groups, vdupq_n_s16(p2::SCALE.into()));
        vmlal_high_s16(vmull_s16(vget_low_s16(all), vget_low_s16(scale)), all, scale)
    }
}

impl NeonBlock256<{ p3::BYTES }> for P3 {
    const UNIT_AT: usize = p3::UNIT_AT;
    const UNIT_FACTOR: f32 = 0.125;
    const WHOLE: bool = true;

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn whole(block: &[u8; p3::BYTES]) -> [Integers; 8] {
        // SAFETY: NEON is on.
        let half = |h| unsafe { <P3 as Lanes<{ p3::BYTES }>>::steps(block, h) };
        in_order(half(0), half(1))
    }
}

impl Lanes<{ p3::BYTES }> for P3 {
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn steps(block: &[u8; p3::BYTES], h: usize) -> [int8x16_t; 8] {
        let [a, b, c] = [load16(block, 16 * h), load16(block, 32 + 16 * h), load16(block, 64 + 16 * h)];
        let last = vorrq_u8(field(a, 3, 0x11), vorrq_u8(field(b, 2, 0x22), field(c, 1, 0x44)));
        let codes = [
            field(a, 0, 7),
            field(b, 0, 7),
            field(a, 4, 7),
            field(b, 4, 7),
            field(c, 0, 7),
            field(c, 4, 7),
            field(last, 0, 7),
            field(last, 4, 7),
        ];
        // SAFETY: sixteen readable bytes.
        let table = unsafe { vld1q_s8(p3::VALUES.as_ptr()) };
        codes.map(|code| vqtbl1q_s8(table, code))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn finish(
        block: &[u8; p3::BYTES],
        h: usize,
        _starts: &[Words; 3],
        [a, b]: [Words; 2],
    ) -> int32x4_t {
        let sum = |i: usize| vpadalq_s16(vpaddlq_s16(a[i]), b[i]);
        let scale = vreinterpretq_s16_u16(vmovl_u8(load8(block, p3::SCALES_AT + 8 * h)));
        let (low, high) = (vmovl_s16(vget_low_s16(scale)), vmovl_high_s16(scale));
        vmlaq_s32(vmulq_s32(sum(0), low), sum(1), high)
    }
}
