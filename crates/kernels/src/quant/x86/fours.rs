//! Codebooks whose rows are four bytes (IQ3): eight rows fill a register, and so do the signs of their 32 weights.
//!
//! A row is loaded together with its neighbours so that it stands in its own lane, and a blend takes that lane: one instruction
//! per row, where inserting a scalar takes two.

use std::arch::x86_64::*;

/// A codebook of `P − 6` rows between three rows of nothing on each side, for the loads of neighbours.
#[repr(align(64))]
pub(in crate::quant) struct Fours<const P: usize>([u32; P]);

impl<const P: usize> Fours<P> {
    /// Pads `rows`.
    pub(in crate::quant) const fn new<const N: usize>(rows: &[u32; N]) -> Fours<P> {
        assert!(P == N + 6);
        let mut padded = [0; P];
        let mut i = 0;
        while i < N {
            padded[3 + i] = rows[i];
            i += 1;
        }
        Fours(padded)
    }

    /// Eight rows, the first lowest.
    ///
    /// # Safety
    /// AVX2; every index is that of a row.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::quant) unsafe fn eight(&self, index: impl Fn(usize) -> usize) -> __m256i {
        // Row `index(k)` and its neighbours, itself in lane k mod 4.
        let lane = |k: usize| {
            debug_assert!(index(k) + 6 < P);
            // SAFETY: a row has three rows before it and three behind.
            unsafe { _mm_loadu_si128(self.0.as_ptr().add(3 + index(k) - k % 4).cast()) }
        };
        let four = |k: usize| {
            let pair = _mm_blend_epi32::<2>(lane(k), lane(k + 1));
            _mm_blend_epi32::<8>(_mm_blend_epi32::<4>(pair, lane(k + 2)), lane(k + 3))
        };
        _mm256_set_m128i(four(4), four(0))
    }
}

/// The sixteen bytes from an offset in both halves.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn both_halves(bytes: &[u8], at: usize) -> __m256i {
    _mm256_broadcastsi128_si256(super::load16(bytes, at))
}

/// Spreads the four sign bytes `4·g..` (of sixteen in either half) to bytes of −1 where a bit is set.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn spread_signs(signs: __m256i, g: usize) -> __m256i {
    let eights = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let own = _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
    let order = _mm256_add_epi8(eights, _mm256_set1_epi8(4 * g as i8));
    _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(signs, order), own), own)
}

/// In each of eight words: four fields of seven sign bits become four bytes, whose top bit makes their number even.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn even_signs(words: __m256i) -> __m256i {
    let keep = |v, mask| _mm256_and_si256(v, _mm256_set1_epi32(mask));
    let fields = _mm256_or_si256(
        _mm256_or_si256(keep(words, 0x7f), keep(_mm256_slli_epi32::<1>(words), 0x7f00)),
        _mm256_or_si256(
            keep(_mm256_slli_epi32::<2>(words), 0x7f_0000),
            keep(_mm256_slli_epi32::<3>(words), 0x7f00_0000),
        ),
    );
    // The parity of a nibble, in the top bit.
    let odd = |n| {
        let table = _mm256_set_epi64x(
            0x0080_8000_8000_0080u64 as i64,
            0x8000_0080_0080_8000u64 as i64,
            0x0080_8000_8000_0080u64 as i64,
            0x8000_0080_0080_8000u64 as i64,
        );
        _mm256_shuffle_epi8(table, n)
    };
    let nibble = |v| _mm256_and_si256(v, _mm256_set1_epi8(15));
    let parity = _mm256_xor_si256(odd(nibble(fields)), odd(nibble(_mm256_srli_epi16::<4>(fields))));
    _mm256_or_si256(fields, parity)
}
