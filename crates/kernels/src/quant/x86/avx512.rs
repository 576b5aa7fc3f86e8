//! What the AVX-512 kernels of blocks of 256 share: 64 elements in a register, signs as bits of a mask.

use std::arch::x86_64::*;

/// Sixty-four bytes from an offset.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::quant) fn load64(bytes: &[u8], at: usize) -> __m512i {
    let bytes = &bytes[at..at + 64];
    // SAFETY: sixty-four readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// Eight groups of eight bytes, the first lowest.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::quant) fn eight_eights(get: impl Fn(usize) -> u64) -> __m512i {
    let get = |l| get(l) as i64;
    _mm512_set_epi64(get(7), get(6), get(5), get(4), get(3), get(2), get(1), get(0))
}

/// Two halves, the first lower.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::quant) fn joined([low, high]: [__m256i; 2]) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// The bits of `mask` in each byte of `v`, twice: shifted down by `low` in the lower half, by `high` in the upper.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::quant) fn two_fields(v: __m256i, low: usize, high: usize, mask: u8) -> __m512i {
    let counts = _mm512_mask_set1_epi16(_mm512_set1_epi16(low as i16), 0xffff_0000, high as i16);
    let shifted = _mm512_srlv_epi16(_mm512_broadcast_i64x4(v), counts);
    _mm512_and_si512(shifted, _mm512_set1_epi8(mask as i8))
}

/// `value` added to those bytes of `to` for which `v` has a bit set: bit `bit` for the lower 32, the next for the upper.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::quant) fn add_where_bit(to: __m512i, v: __m256i, bit: usize, value: u8) -> __m512i {
    let bits = _mm512_mask_set1_epi8(
        _mm512_set1_epi8((1u8 << bit) as i8),
        0xffff_ffff_0000_0000,
        (2u8 << bit) as i8,
    );
    let set = _mm512_test_epi8_mask(_mm512_broadcast_i64x4(v), bits);
    _mm512_mask_add_epi8(to, set, to, _mm512_set1_epi8(value as i8))
}

/// Looks the nibbles of 32 bytes up in a table of sixteen: per sixteen bytes first the low ones, then the high ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::quant) fn look_up_nibbles(table: &[i8; 16], bytes: __m256i) -> __m512i {
    let twice = _mm512_castsi256_si512(bytes);
    let twice = _mm512_shuffle_i64x2::<0b01_01_00_00>(twice, twice);
    let counts = _mm512_set_epi64(4, 4, 0, 0, 4, 4, 0, 0);
    let nibbles = _mm512_and_si512(_mm512_srlv_epi64(twice, counts), _mm512_set1_epi8(15));
    // SAFETY: sixteen readable bytes; the load needs no alignment.
    let table = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
    _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), nibbles)
}

/// The lower four sevens of bits of two words as bytes.
#[inline(always)]
pub(in crate::quant) fn eight_sevens(low: u32, high: u32) -> u64 {
    let v = u64::from(low) | u64::from(high) << 32;
    let seventh = |k: usize| v << k & (0x0000_007f_0000_007f << (8 * k));
    seventh(0) | seventh(1) | seventh(2) | seventh(3)
}

/// Gives each byte the top bit that makes its number of ones even.
#[inline(always)]
pub(in crate::quant) fn even(sevens: u64) -> u64 {
    let odd = sevens ^ sevens >> 4;
    let odd = odd ^ odd >> 2;
    let odd = odd ^ odd >> 1;
    sevens | (odd & 0x0101_0101_0101_0101) << 7
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::grids::EVEN_SIGNS;

    #[test]
    fn signs_are_those_of_the_table() {
        for i in 0..128u64 {
            let (j, k) = (i * 37 % 128, i * 91 % 128);
            let low = (i | j << 7 | k << 14 | i << 21) as u32 | 0xf000_0000;
            let high = (k | i << 7 | j << 14 | k << 21) as u32 | 0xa000_0000;
            let signs = even(eight_sevens(low, high)).to_le_bytes();
            for (signs, of) in signs.into_iter().zip([i, j, k, i, k, i, j, k]) {
                let minus = EVEN_SIGNS[of as usize].to_le_bytes();
                for (bit, minus) in minus.into_iter().enumerate() {
                    assert_eq!(signs >> bit & 1 == 1, minus == 0xff, "{of} bit {bit}");
                }
            }
        }
    }
}
