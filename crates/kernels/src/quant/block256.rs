//! Blocks of 256 small integers in sixteen groups of sixteen, each group with an integer scale, the block with a float unit `d`; some
//! formats also have an integer minimum per group with a unit `dmin`: weight `= d·scale·q − dmin·min`.
//!
//! The IQ formats fit in too, once their fractions move into the unit: IQ2's `(0.5 + s)/4 · g` is `(2s + 1)·g / 8`, and IQ1's
//! `(2s + 1)·(g ± 1/8)` is `(2s + 1)·(8g ± 1) / 8`.
//!
//! Canonical order of a dot with a Q8K activation row (scale `a`, quants `x`, sums `t` of sixteen), blocks in order:
//! `total += a · (d · Σ scale·(Σ q·x) [− dmin · Σ min·t])`, where both sums are exact integers, converted to `f32` once, and every
//! multiplication and addition rounds on its own. Every instruction set does exactly this.

use crate::Kernels;
use crate::activation::Q8kRow;

/// A format of this family with blocks of `N` bytes.
pub(super) trait Block256<const N: usize> {
    /// Whether blocks have minima.
    const MIN: bool = false;

    /// The units `d` and `dmin` (0 without minima).
    fn units(block: &[u8; N]) -> (f32, f32);

    /// The scales, and the minima if there are any.
    fn scales(block: &[u8; N], scale: &mut [i16; 16], min: &mut [i16; 16]);

    /// The integers.
    fn quants(block: &[u8; N], q: &mut [i8; 256]);
}

/// Writes eight integers, the first from the lowest byte.
#[inline(always)]
pub(super) fn put8(q: &mut [i8; 256], group: usize, bytes: u64) {
    q.as_chunks_mut::<8>().0[group] = bytes.to_le_bytes().map(|b| b as i8);
}

pub(super) fn dequantize<B: Block256<N>, const N: usize>(bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len() / N * 256, out.len(), "whole row");
    let (mut q, mut scales, mut mins) = ([0; 256], [0; 16], [0; 16]);
    for (block, out) in bytes.as_chunks::<N>().0.iter().zip(out.as_chunks_mut::<256>().0) {
        let (d, dmin) = B::units(block);
        B::scales(block, &mut scales, &mut mins);
        B::quants(block, &mut q);
        for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * f32::from(scales[group]);
            let min = dmin * f32::from(mins[group]);
            for (out, q) in out.iter_mut().zip(&q[16 * group..]) {
                *out = if B::MIN { scale * f32::from(*q) - min } else { scale * f32::from(*q) };
            }
        }
    }
}

/// What a block adds to the total.
#[inline(always)]
pub(super) fn term<const MIN: bool>(a: f32, d: f32, dmin: f32, products: i32, mins: i32) -> f32 {
    if MIN { a * (d * products as f32 - dmin * mins as f32) } else { a * (d * products as f32) }
}

/// The portable kernels.
pub(super) const fn scalar<B: Block256<N>, const N: usize>() -> Kernels {
    Kernels { rows: rows::<B, N>, tile: None }
}

/// Row after row.
///
/// # Safety
/// None needed; the signature is that of [`Rows`](crate::Rows).
unsafe fn rows<B: Block256<N>, const N: usize>(weights: &[u8], x: &[u8], n: usize, y: &mut [f32]) {
    let row_bytes = n / 256 * N;
    for (r, y) in y.iter_mut().enumerate() {
        *y = dot::<B, N>(&weights[r * row_bytes..][..row_bytes], x, n);
    }
}

/// The scalar twin of every kernel of this family.
fn dot<B: Block256<N>, const N: usize>(weights: &[u8], x: &[u8], n: usize) -> f32 {
    let x = Q8kRow::new(x, n);
    let (mut q, mut scales, mut mins) = ([0; 256], [0; 16], [0; 16]);
    let mut total = 0.0;
    for (b, block) in weights.as_chunks::<N>().0[..n / 256].iter().enumerate() {
        let (d, dmin) = B::units(block);
        B::scales(block, &mut scales, &mut mins);
        B::quants(block, &mut q);
        let x_q = &x.q.as_chunks::<256>().0[b];
        let mut products = 0;
        for (group, (q, x)) in q.as_chunks::<16>().0.iter().zip(x_q.as_chunks::<16>().0).enumerate() {
            let sum: i32 = q.iter().zip(x).map(|(&q, &x)| i32::from(q) * i32::from(x as i8)).sum();
            products += sum * i32::from(scales[group]);
        }
        if B::MIN {
            let sums = &x.sums.as_chunks::<32>().0[b];
            let sums = sums.as_chunks::<2>().0.iter().map(|t| i32::from(i16::from_le_bytes(*t)));
            let mins = sums.zip(&mins).map(|(t, m)| t * i32::from(*m)).sum();
            total += term::<true>(x.d(b), d, dmin, products, mins);
        } else {
            total += term::<false>(x.d(b), d, dmin, products, 0);
        }
    }
    total
}

/// The eight six-bit scales and minima of Q4_K and Q5_K, twelve bytes, doubled to sixteen groups.
#[inline(always)]
pub(super) fn scales_and_mins(packed: &[u8], scale: &mut [i16; 16], min: &mut [i16; 16]) {
    for j in 0..4 {
        let (a, b, c) = (packed[j], packed[j + 4], packed[j + 8]);
        let low = (a & 63, b & 63);
        let high = (c & 15 | (a >> 6) << 4, c >> 4 | (b >> 6) << 4);
        for i in 0..2 {
            scale[2 * j + i] = i16::from(low.0);
            min[2 * j + i] = i16::from(low.1);
            scale[2 * j + 8 + i] = i16::from(high.0);
            min[2 * j + 8 + i] = i16::from(high.1);
        }
    }
}

/// Little-endian `u16` at a byte offset.
#[inline(always)]
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Little-endian `u32` at a byte offset.
#[inline(always)]
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Little-endian `u64` at a byte offset.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Negates the bytes of `values` (each below 128) where `minus` is −1.
#[inline(always)]
pub(super) fn apply_signs(values: u64, minus: u64) -> u64 {
    // −v is !v + 1; no byte carries, since v is never 0 where it is negated.
    (values ^ minus) + (minus & 0x0101_0101_0101_0101)
}
