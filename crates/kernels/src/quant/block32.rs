//! Blocks of 32 small integers with one scale `d`, and for some formats one minimum `m`: weight `= d·q + m`.
//!
//! Canonical order of a dot with a Q8_0 activation row (scale `a`, quants `x`, sum `s = Σx` per block), blocks in order:
//! `total += a · (d · (Σ q·x) [+ m · s])`, where the sum of products is an exact integer, converted to `f32` once, and every
//! multiplication and addition rounds on its own. Every instruction set does exactly this.

use crate::Kernels;
use crate::activation::Q8Row;
use crate::ops::widen;

/// A format of this family with blocks of `N` bytes.
pub(super) trait Block32<const N: usize> {
    /// Whether blocks have a minimum.
    const MIN: bool = false;

    /// The block's integers, its scale and its minimum (0 without one).
    fn unpack(block: &[u8; N], q: &mut [i8; 32]) -> (f32, f32);
}

/// The half at a byte offset.
#[inline(always)]
pub(super) fn half_at(bytes: &[u8], at: usize) -> f32 {
    widen(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

pub(super) fn dequantize<B: Block32<N>, const N: usize>(bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len() / N * 32, out.len(), "whole row");
    let mut q = [0; 32];
    for (block, out) in bytes.as_chunks::<N>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let (d, m) = B::unpack(block, &mut q);
        for (out, &q) in out.iter_mut().zip(&q) {
            *out = if B::MIN { d * f32::from(q) + m } else { d * f32::from(q) };
        }
    }
}

/// What a block adds to the total.
#[inline(always)]
pub(super) fn term<const MIN: bool>(a: f32, d: f32, m: f32, products: i32, sum: i32) -> f32 {
    if MIN { a * (d * products as f32 + m * sum as f32) } else { a * (d * products as f32) }
}

/// The portable kernels.
pub(super) const fn scalar<B: Block32<N>, const N: usize>() -> Kernels {
    Kernels { rows: rows::<B, N>, tile: None }
}

/// Row after row.
///
/// # Safety
/// None needed; the signature is that of [`Rows`](crate::Rows).
unsafe fn rows<B: Block32<N>, const N: usize>(weights: &[u8], x: &[u8], n: usize, y: &mut [f32]) {
    let row_bytes = n / 32 * N;
    for (r, y) in y.iter_mut().enumerate() {
        *y = dot::<B, N>(&weights[r * row_bytes..][..row_bytes], x, n);
    }
}

/// The scalar twin of every kernel of this family.
fn dot<B: Block32<N>, const N: usize>(weights: &[u8], x: &[u8], n: usize) -> f32 {
    let x = Q8Row::new(x, n);
    let mut q = [0; 32];
    let mut total = 0.0;
    for (b, block) in weights.as_chunks::<N>().0[..n / 32].iter().enumerate() {
        let (d, m) = B::unpack(block, &mut q);
        let x_q = &x.q.as_chunks::<32>().0[b];
        let products = q.iter().zip(x_q).map(|(&q, &x)| i32::from(q) * i32::from(x as i8)).sum();
        let sum = if B::MIN { x.sum(b) } else { 0 };
        total += if B::MIN {
            term::<true>(x.d(b), d, m, products, sum)
        } else {
            term::<false>(x.d(b), d, m, products, sum)
        };
    }
    total
}

/// Sixteen bytes of nibbles: the low ones are elements 0..16, the high ones 16..32.
#[inline(always)]
pub(super) fn nibbles(bytes: &[u8], mut put: impl FnMut(usize, u8)) {
    for (j, byte) in bytes[..16].iter().enumerate() {
        put(j, byte & 15);
        put(j + 16, byte >> 4);
    }
}

/// Packs 32 values of four bits the way [`nibbles`] reads them.
pub(super) fn pack_nibbles(q: &[u8; 32], bytes: &mut [u8]) {
    for (j, byte) in bytes[..16].iter_mut().enumerate() {
        *byte = (q[j] & 15) | (q[j + 16] & 15) << 4;
    }
}

/// The value of largest magnitude (the first of equals) with its sign.
pub(super) fn largest(x: &[f32; 32]) -> f32 {
    x.iter().fold(0.0f32, |a, &x| if x.abs() > a.abs() { x } else { a })
}

/// `1 / d`, or 0 for 0.
pub(super) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}
