//! Weights that are floats themselves, with plain float activations.
//!
//! Canonical order: sixteen lanes, element `i` to lane `i mod 16`, fused multiply-adds, and the tree of
//! [`ops::reduce`](crate::ops::reduce) at the end; the same for every instruction set.

use crate::Kernels;
use crate::ops::reduce;

/// How one weight of `N` bytes becomes a float.
pub(super) trait Float<const N: usize> {
    fn decode(bytes: [u8; N]) -> f32;
}

pub(super) fn dequantize<F: Float<N>, const N: usize>(bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * N, "whole row");
    for (bytes, out) in bytes.as_chunks::<N>().0.iter().zip(out) {
        *out = F::decode(*bytes);
    }
}

/// The portable kernels.
pub(super) const fn scalar<B: Float<N>, const N: usize>() -> Kernels {
    Kernels { rows: rows::<B, N>, tile: None }
}

/// Row after row.
///
/// # Safety
/// None needed; the signature is that of [`Rows`](crate::Rows).
unsafe fn rows<B: Float<N>, const N: usize>(weights: &[u8], x: &[u8], n: usize, y: &mut [f32]) {
    let row_bytes = n * N;
    for (r, y) in y.iter_mut().enumerate() {
        *y = dot::<B, N>(&weights[r * row_bytes..][..row_bytes], x, n);
    }
}

/// The scalar twin of every kernel of this family.
fn dot<F: Float<N>, const N: usize>(weights: &[u8], x: &[u8], n: usize) -> f32 {
    // Without the instruction every fused multiply-add is a call: the same result, many times slower.
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("fma") {
        // SAFETY: just checked.
        return unsafe { dot_with_instruction::<F, N>(weights, x, n) };
    }
    dot_body::<F, N>(weights, x, n)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "fma")]
fn dot_with_instruction<F: Float<N>, const N: usize>(weights: &[u8], x: &[u8], n: usize) -> f32 {
    dot_body::<F, N>(weights, x, n)
}

#[inline(always)]
fn dot_body<F: Float<N>, const N: usize>(weights: &[u8], x: &[u8], n: usize) -> f32 {
    let weights = &weights.as_chunks::<N>().0[..n];
    let x = &x.as_chunks::<4>().0[..n];
    let mut lanes = [0.0f32; 16];
    let (w_blocks, w_tail) = weights.as_chunks::<16>();
    let (x_blocks, x_tail) = x.as_chunks::<16>();
    for (w, x) in w_blocks.iter().zip(x_blocks) {
        for lane in 0..16 {
            lanes[lane] = F::decode(w[lane]).mul_add(f32::from_le_bytes(x[lane]), lanes[lane]);
        }
    }
    for (lane, (w, x)) in w_tail.iter().zip(x_tail).enumerate() {
        lanes[lane] = F::decode(*w).mul_add(f32::from_le_bytes(*x), lanes[lane]);
    }
    reduce(lanes)
}
