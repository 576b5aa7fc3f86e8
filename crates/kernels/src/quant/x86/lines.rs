//! Lines of a tile (see [`tile`](super::tile)) for codebook formats: what is looked up for eight rows goes straight to its lanes, and
//! signs or shifts are spread over eight rows at a time.

use std::arch::x86_64::*;

use super::tile::{Lines, put_line};

/// A byte per eight weights, of eight rows side by side.
pub(in crate::quant) struct Eights([[u8; 8]; 32]);

impl Eights {
    /// From the 32 bytes of each row.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::quant) fn new(r: [__m256i; 8]) -> Eights {
        let mut eights = Eights([[0; 8]; 32]);
        let bytes = |a, b| [_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)];
        let words = |a, b| [_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)];
        let pairs = [bytes(r[0], r[1]), bytes(r[2], r[3]), bytes(r[4], r[5]), bytes(r[6], r[7])];
        for i in 0..2 {
            let (low, high) = (words(pairs[0][i], pairs[1][i]), words(pairs[2][i], pairs[3][i]));
            for j in 0..2 {
                let dwords = [_mm256_unpacklo_epi32(low[j], high[j]), _mm256_unpackhi_epi32(low[j], high[j])];
                for (k, v) in dwords.into_iter().enumerate() {
                    let at = 8 * i + 4 * j + 2 * k;
                    let halves = [_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v)];
                    for (half, at) in halves.into_iter().zip([at, at + 16]) {
                        let out: &mut [u8; 16] =
                            eights.0[at..at + 2].as_flattened_mut().first_chunk_mut().expect("two");
                        // SAFETY: sixteen bytes into an array of sixteen; the store needs no alignment.
                        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), half) };
                    }
                }
            }
        }
        eights
    }

    /// The bytes of eight `e`, each four times: a line.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn of(&self, e: usize) -> __m256i {
        let four = |r: i64| r * 0x0101_0101;
        let (low, high) = (four(1) << 32, four(3) << 32 | four(2));
        let to =
            _mm256_setr_epi64x(low, high, low + (four(4) << 32 | four(4)), high + (four(4) << 32 | four(4)));
        _mm256_shuffle_epi8(_mm256_set1_epi64x(i64::from_le_bytes(self.0[e])), to)
    }
}

/// The eights of eight rows as two lines.
///
/// # Safety
/// AVX2; `index`, given a row, is inside the codebook.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) unsafe fn two_lines<const M: usize>(
    codebook: &[u64; M],
    index: impl Fn(usize) -> usize,
) -> [__m256i; 2] {
    let two = |r: usize| {
        let (a, b) = (index(r), index(r + 1));
        debug_assert!(a < M && b < M);
        let codebook: *const f64 = codebook.as_ptr().cast();
        // SAFETY: inside the codebook, as promised; loads of eight bytes need no alignment.
        unsafe { _mm_castpd_ps(_mm_loadh_pd(_mm_load_sd(codebook.add(a)), codebook.add(b))) }
    };
    let (even, odd) = (_mm256_set_m128(two(4), two(0)), _mm256_set_m128(two(6), two(2)));
    [
        _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(even, odd)),
        _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(even, odd)),
    ]
}

/// Writes two lines per eight: what `look_up` has for it, plus a byte per eight.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn put_raised(
    out: &mut Lines<64>,
    repeated: &Eights,
    look_up: impl Fn(usize) -> [__m256i; 2],
) {
    for (e, out) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let (lines, repeated) = (look_up(e), repeated.of(e));
        put_line(_mm256_add_epi8(lines[0], repeated), &mut out[0]);
        put_line(_mm256_add_epi8(lines[1], repeated), &mut out[1]);
    }
}

/// Writes two lines per eight: what `look_up` has for it, negative where its sign bit is set, plus an offset.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn put_signed(
    out: &mut Lines<64>,
    signs: &Eights,
    offset: i32,
    look_up: impl Fn(usize) -> [__m256i; 2],
) {
    let own = [_mm256_set1_epi32(0x0804_0201), _mm256_set1_epi32(0x8040_2010u32.cast_signed())];
    let offset = _mm256_set1_epi8(offset as i8);
    for (e, out) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let (lines, signs) = (look_up(e), signs.of(e));
        for half in 0..2 {
            let minus = _mm256_cmpeq_epi8(_mm256_and_si256(signs, own[half]), own[half]);
            // Without its sign −1 is 1; zero stays what it is.
            let signed = _mm256_sign_epi8(lines[half], _mm256_or_si256(minus, _mm256_set1_epi8(1)));
            put_line(_mm256_add_epi8(signed, offset), &mut out[half]);
        }
    }
}
