//! What the x86-64 kernels share. Loads take slices and check them (the checks fold away), so that the formats' own code is safe.

pub(super) mod avx512;
pub(super) mod block256;
pub(super) mod block32;
pub(super) mod codebook;
pub(super) mod floats;
pub(super) mod fours;
pub(super) mod lines;
pub(super) mod packed;
pub(super) mod rows32;
pub(super) mod tile;
mod tile512;

use std::arch::x86_64::*;

/// Sixteen bytes from an offset.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load16(bytes: &[u8], at: usize) -> __m128i {
    let bytes = &bytes[at..at + 16];
    // SAFETY: sixteen readable bytes; the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Thirty-two bytes from an offset.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load32(bytes: &[u8], at: usize) -> __m256i {
    let bytes = &bytes[at..at + 32];
    // SAFETY: thirty-two readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// From so many bytes on a quarter of the rows is a stream that the processor sees coming.
const STREAM_BYTES: usize = 8192;
/// What a core reads while one line is on its way from memory, and more.
const AHEAD_BYTES: usize = 4096;

/// Which rows are computed together, four and four, and what they ask for ahead of themselves.
#[derive(Clone, Copy)]
pub(super) struct Fours {
    n_rows: usize,
    /// Rows at a quarter's distance: four rising streams of memory, faster than one where they are long enough. Else neighbours.
    pub(super) streams: bool,
}

impl Fours {
    pub(super) fn new(n_rows: usize, row_bytes: usize) -> Fours {
        Fours { n_rows, streams: n_rows.div_ceil(4) * row_bytes >= STREAM_BYTES }
    }

    /// Rows past the end are the last one again.
    pub(super) fn rows(self) -> impl Iterator<Item = [usize; 4]> {
        let turns = self.n_rows.div_ceil(4);
        let (turn, place) = if self.streams { (1, turns) } else { (4, 1) };
        (0..turns).map(move |t| {
            let row = |p: usize| (turn * t + place * p).min(self.n_rows - 1);
            [row(0), row(1), row(2), row(3)]
        })
    }
}

/// Asks for memory while step `step` reads `pieces` of four rows of `row_bytes` that start with `first`: of `STREAMS` what comes next in
/// each; of neighbours what comes after all four, in the order of memory, since the processor follows one rising stream and loses
/// four short ones.
#[inline(always)]
pub(super) fn fetch_four<const STREAMS: bool>(
    first: *const u8,
    row_bytes: usize,
    step: usize,
    pieces: [&[u8]; 4],
) {
    if STREAMS {
        return pieces.into_iter().for_each(|piece| fetch(piece, row_bytes.max(AHEAD_BYTES / 4)));
    }
    let (ahead, bytes) = ((4 * row_bytes).max(AHEAD_BYTES), 4 * pieces[0].len());
    for line in (0..bytes).step_by(64) {
        // SAFETY: a hint; it does not matter whether there is memory.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(first.wrapping_add(ahead + step * bytes + line).cast()) };
    }
}

/// Asks for the block `ahead` bytes on.
#[inline(always)]
fn fetch(block: &[u8], ahead: usize) {
    for line in (0..block.len()).step_by(64) {
        let at = block.as_ptr().wrapping_add(ahead + line);
        // SAFETY: a hint; it does not matter whether there is memory.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
}

/// The floats of four halves, and of the four above them in the same words.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn four_units(halves: [u32; 4]) -> (__m128, __m128) {
    let [a, b, c, d] = halves.map(|h| h as i32);
    let both = _mm256_cvtph_ps(_mm_setr_epi32(a, b, c, d));
    let (low, high) = (_mm256_castps256_ps128(both), _mm256_extractf128_ps::<1>(both));
    (_mm_shuffle_ps::<0b10_00_10_00>(low, high), _mm_shuffle_ps::<0b11_01_11_01>(low, high))
}

/// Shifts sixteen-bit lanes right by a count that the optimiser sees.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn shift_right(v: __m256i, bits: usize) -> __m256i {
    _mm256_srl_epi16(v, _mm_cvtsi32_si128(bits as i32))
}

/// The bits of `mask` in each byte, shifted down to bit 0 by `bits`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn field(v: __m256i, bits: usize, mask: u8) -> __m256i {
    _mm256_and_si256(shift_right(v, bits), _mm256_set1_epi8(mask as i8))
}

/// `value` in each byte of `v` whose bit `bit` is set, else 0.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn where_bit(v: __m256i, bit: usize, value: u8) -> __m256i {
    let bit = _mm256_set1_epi8((1u8 << bit) as i8);
    let set = _mm256_cmpeq_epi8(_mm256_and_si256(v, bit), bit);
    _mm256_and_si256(set, _mm256_set1_epi8(value as i8))
}

/// Sixteen bytes of nibbles as 32 bytes: the low ones first.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn nibbles(bytes: &[u8], at: usize) -> __m256i {
    let v = load16(bytes, at);
    let both = _mm256_set_m128i(_mm_srli_epi16::<4>(v), v);
    _mm256_and_si256(both, _mm256_set1_epi8(15))
}

/// Bit `i` of four bytes as bit 4 of byte `i`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn fifth_bits(bytes: &[u8]) -> __m256i {
    let bits = _mm256_set1_epi32(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    // Byte i gets byte i / 8 of the four, and keeps its bit i mod 8.
    let eights = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let own = _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
    let kept = _mm256_and_si256(_mm256_shuffle_epi8(bits, eights), own);
    _mm256_and_si256(_mm256_cmpeq_epi8(kept, own), _mm256_set1_epi8(16))
}

/// Looks nibbles up in a table of sixteen bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn look_up(table: &[i8; 16], nibbles: __m256i) -> __m256i {
    // SAFETY: sixteen readable bytes; the load needs no alignment.
    let table = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
    _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), nibbles)
}

/// Sums of pairs of products of signed bytes, `x` never being −128.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn signed_pairs(q: __m256i, x: __m256i) -> __m256i {
    _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q))
}

/// Sums of pairs of products where the bytes `g` (positive) count negative under a mask of −1.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn masked_pairs(g: __m256i, minus: __m256i, x: __m256i) -> __m256i {
    _mm256_maddubs_epi16(g, _mm256_sub_epi8(_mm256_xor_si256(x, minus), minus))
}

/// The sums of four times eight integers.
#[inline]
#[target_feature(enable = "avx2")]
fn four_totals(v: [__m256i; 4]) -> __m128i {
    let fold = |a, b| _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let (a, b) = (fold(v[0], v[1]), fold(v[2], v[3]));
    let sums = _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums))
}

/// The lower half twice, and the upper half twice.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn halves_doubled(v: __m256i) -> [__m256i; 2] {
    [_mm256_permute2x128_si256::<0x00>(v, v), _mm256_permute2x128_si256::<0x11>(v, v)]
}

/// Eight words, each twice.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn each_twice(v: __m128i) -> __m256i {
    _mm256_set_m128i(_mm_unpackhi_epi16(v, v), _mm_unpacklo_epi16(v, v))
}

/// `2 · n + 1` of the sixteen nibbles of eight bytes, the low ones first, as words.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn odd_nibbles(bytes: &[u8]) -> __m256i {
    let bytes = _mm_cvtsi64_si128(i64::from_le_bytes(bytes.as_chunks::<8>().0[0]));
    let both = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(bytes, _mm_srli_epi16::<4>(bytes)));
    let n = _mm256_and_si256(both, _mm256_set1_epi16(15));
    _mm256_or_si256(_mm256_add_epi16(n, n), _mm256_set1_epi16(1))
}

/// `2 · n + 1` of the top four bits of eight dwords, each as two words.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn top_scales(dwords: __m256i) -> __m256i {
    // The bit below the four becomes the 1.
    let scale = _mm256_or_si256(_mm256_srli_epi32::<27>(dwords), _mm256_set1_epi32(1));
    _mm256_or_si256(scale, _mm256_slli_epi32::<16>(scale))
}
