//! The forms activations take before they meet weights, quantised once per input and shared by every matmul that reads them.
//!
//! These are internal forms (never stored), laid out as planes so that vector loads are contiguous and sums are at hand:
//!
//! ```text
//! F32   n f32
//! Q8_0  | n i8 quants | n/32  f32 scales | n/32 i32 sums of 32 quants |      1.25 n bytes,        n a multiple of 32
//! Q8K   | n i8 quants | n/256 f32 scales | n/16 i16 sums of 16 quants |      1.140625 n bytes,    n a multiple of 256
//! ```
//!
//! For a block with largest magnitude `a`: scale `d = a / 127`, quant `q = round_half_even(x * (127 / a))`, so `q` is in
//! −127..=127 and `x ≈ d·q`. Unlike ggml the scale keeps all its bits (ggml rounds Q8_0's to f16), and both forms round alike.
//! A NaN or infinity in a block makes the block's scale NaN or infinite, so it reaches the result instead of vanishing.

#[cfg(target_arch = "x86_64")]
use crate::Isa;

/// What a weight format's dot kernels read beside the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Plain floats.
    F32,
    /// Eight bits with a scale per 32 elements.
    Q8_0,
    /// Eight bits with a scale per 256 elements.
    Q8K,
}

impl Activation {
    /// Elements per block.
    pub fn block_elements(self) -> usize {
        match self {
            Activation::F32 => 1,
            Activation::Q8_0 => 32,
            Activation::Q8K => 256,
        }
    }

    /// Bytes of a row of `n` elements; a multiple of 4.
    ///
    /// # Panics
    /// `n` is not a whole number of blocks.
    pub fn row_bytes(self, n: usize) -> usize {
        assert!(n.is_multiple_of(self.block_elements()), "{n} elements are not whole blocks of {self:?}");
        match self {
            Activation::F32 => n * 4,
            Activation::Q8_0 => n + n / 4,
            Activation::Q8K => n + n / 64 + n / 8,
        }
    }

    /// Writes consecutive rows of `n` elements in this form, one after the other.
    ///
    /// # Panics
    /// `x` is not whole rows of whole blocks, or `out` is not exactly their rows.
    pub fn quantize_rows(self, x: &[f32], n: usize, out: &mut [u8]) {
        let row_bytes = self.row_bytes(n);
        assert!(
            x.len().is_multiple_of(n.max(1)) && out.len() == x.len() / n.max(1) * row_bytes,
            "activation rows length"
        );
        if n > 0 {
            x.chunks_exact(n).zip(out.chunks_exact_mut(row_bytes)).for_each(|(x, out)| self.quantize(x, out));
        }
    }

    /// Writes the row `x` in this form.
    ///
    /// # Panics
    /// `x` is not a whole number of blocks, or `out` is not exactly its row.
    pub fn quantize(self, x: &[f32], out: &mut [u8]) {
        assert_eq!(out.len(), self.row_bytes(x.len()), "activation row length");
        if self == Activation::F32 {
            return out.copy_from_slice(bytemuck::cast_slice(x));
        }
        #[cfg(target_arch = "x86_64")]
        match Isa::current() {
            // SAFETY: Isa::current only names an instruction set that this processor has.
            Isa::Avx512 | Isa::Avx2 => return unsafe { quantize_avx2(self, x, out) },
            Isa::Scalar | Isa::Neon => {}
        }
        quantize_row(self, x, out);
    }
}

/// The same code compiled for AVX2: additions and comparisons only, so every bit agrees.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn quantize_avx2(form: Activation, x: &[f32], out: &mut [u8]) {
    quantize_row(form, x, out);
}

#[inline(always)]
fn quantize_row(form: Activation, x: &[f32], out: &mut [u8]) {
    let n = x.len();
    let (quants, rest) = out.split_at_mut(n);
    if form == Activation::Q8_0 {
        let (scales, sums) = rest.split_at_mut(n / 8);
        for (b, (x, q)) in x.as_chunks::<32>().0.iter().zip(quants.as_chunks_mut::<32>().0).enumerate() {
            let d = quantize_block(x, q);
            let sum: i32 = q.iter().map(|&q| i32::from(q as i8)).sum();
            scales[4 * b..4 * b + 4].copy_from_slice(&d.to_le_bytes());
            sums[4 * b..4 * b + 4].copy_from_slice(&sum.to_le_bytes());
        }
    } else {
        let (scales, sums) = rest.split_at_mut(n / 64);
        for (b, (x, q)) in x.as_chunks::<256>().0.iter().zip(quants.as_chunks_mut::<256>().0).enumerate() {
            let d = quantize_block(x, q);
            scales[4 * b..4 * b + 4].copy_from_slice(&d.to_le_bytes());
            for (q, sum) in q.as_chunks::<16>().0.iter().zip(sums[32 * b..32 * b + 32].as_chunks_mut::<2>().0)
            {
                *sum = q.iter().map(|&q| i16::from(q as i8)).sum::<i16>().to_le_bytes();
            }
        }
    }
}

/// Quantises one block and returns its scale.
#[inline(always)]
fn quantize_block<const N: usize>(x: &[f32; N], q: &mut [u8; N]) -> f32 {
    // Magnitudes compare as integers, and NaN is above infinity there: it wins and poisons the scale.
    let largest = x.iter().fold(0u32, |a, x| a.max(x.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(largest);
    let inverse = 127.0 / largest;
    // Zero, and magnitudes whose inverse overflows, count as zero; their products would underflow anyway.
    let inverse = if inverse.is_finite() { inverse } else { 0.0 };
    // Adding 1.5 · 2^23 rounds to an integer, half to even, and leaves it in the low bits of the mantissa.
    const MAGIC: f32 = 12_582_912.0;
    for (q, x) in q.iter_mut().zip(x) {
        *q = ((x * inverse + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits())) as u8;
    }
    largest / 127.0
}

/// One activation row in the form [`Activation::Q8_0`].
#[derive(Clone, Copy)]
pub(crate) struct Q8Row<'a> {
    pub(crate) q: &'a [u8],
    pub(crate) d: &'a [u8],
    pub(crate) sum: &'a [u8],
}

impl<'a> Q8Row<'a> {
    #[inline(always)]
    pub(crate) fn new(x: &'a [u8], n: usize) -> Q8Row<'a> {
        Q8Row { q: &x[..n], d: &x[n..n + n / 8], sum: &x[n + n / 8..n + n / 4] }
    }

    #[inline(always)]
    pub(crate) fn d(&self, block: usize) -> f32 {
        f32::from_le_bytes(self.d.as_chunks::<4>().0[block])
    }

    #[inline(always)]
    pub(crate) fn sum(&self, block: usize) -> i32 {
        i32::from_le_bytes(self.sum.as_chunks::<4>().0[block])
    }
}

/// One activation row in the form [`Activation::Q8K`].
#[derive(Clone, Copy)]
pub(crate) struct Q8kRow<'a> {
    pub(crate) q: &'a [u8],
    pub(crate) d: &'a [u8],
    pub(crate) sums: &'a [u8],
}

impl<'a> Q8kRow<'a> {
    #[inline(always)]
    pub(crate) fn new(x: &'a [u8], n: usize) -> Q8kRow<'a> {
        let (d_end, end) = (n + n / 64, n + n / 64 + n / 8);
        Q8kRow { q: &x[..n], d: &x[n..d_end], sums: &x[d_end..end] }
    }

    #[inline(always)]
    pub(crate) fn d(&self, block: usize) -> f32 {
        f32::from_le_bytes(self.d.as_chunks::<4>().0[block])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(n: usize, seed: u32) -> Vec<f32> {
        let mut s = seed;
        let mut next = || {
            s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (s >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..n).map(|_| next() * 8.0).collect()
    }

    #[test]
    fn quantised_rows_are_within_half_a_step_and_carry_their_sums() {
        let x = floats(512, 1);
        let mut row = vec![0; Activation::Q8_0.row_bytes(512)];
        Activation::Q8_0.quantize(&x, &mut row);
        let view = Q8Row::new(&row, 512);
        for (b, block) in x.chunks(32).enumerate() {
            let q = &view.q[32 * b..][..32];
            for (x, &q) in block.iter().zip(q) {
                assert!((x - view.d(b) * f32::from(q as i8)).abs() <= view.d(b) * 0.5001);
            }
            assert_eq!(view.sum(b), q.iter().map(|&q| i32::from(q as i8)).sum::<i32>());
        }
        let mut row = vec![0; Activation::Q8K.row_bytes(512)];
        Activation::Q8K.quantize(&x, &mut row);
        let view = Q8kRow::new(&row, 512);
        for (i, x) in x.iter().enumerate() {
            let d = view.d(i / 256);
            assert!((x - d * f32::from(view.q[i] as i8)).abs() <= d * 0.5001);
        }
        for (s, q) in view.q.chunks(16).enumerate() {
            let sum = i16::from_le_bytes(view.sums.as_chunks::<2>().0[s]);
            assert_eq!(sum, q.iter().map(|&q| i16::from(q as i8)).sum::<i16>());
        }
    }

    #[test]
    fn the_detected_instruction_set_rounds_like_scalar() {
        for form in [Activation::Q8_0, Activation::Q8K] {
            for seed in 0..50 {
                let x = floats(768, seed);
                let (mut a, mut b) = (vec![0; form.row_bytes(768)], vec![1; form.row_bytes(768)]);
                form.quantize(&x, &mut a);
                quantize_row(form, &x, &mut b);
                assert_eq!(a, b);
            }
        }
    }

    #[test]
    fn zero_tiny_and_poisoned_blocks() {
        for form in [Activation::Q8_0, Activation::Q8K] {
            let mut row = vec![9; form.row_bytes(256)];
            form.quantize(&[0.0; 256], &mut row);
            assert!(row.iter().all(|&b| b == 0));
            form.quantize(&[1e-40; 256], &mut row);
            assert!(row[..256].iter().all(|&b| b == 0));
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = [1.0; 256];
                x[17] = bad;
                form.quantize(&x, &mut row);
                let d = f32::from_le_bytes(row[256..260].try_into().unwrap());
                assert!(!d.is_finite(), "{bad} vanished");
            }
        }
    }
}
