//! Many activation rows at once with AVX2: eight weight rows side by side in the lanes of a register meet broadcast activations, so that
//! no sum across lanes is ever needed. A panel is small enough to stay in the first-level cache while all columns pass by.
//!
//! ```text
//! bytes: | k 0..4 of row 0 | k 0..4 of row 1 | … row 7 | k 4..8 of row 0 | …     u8, made unsigned by an offset
//! words: | k 0,1 of row 0 | k 0,1 of row 1 | … row 7 | k 2,3 of row 0 | …        i16, scale and all
//! ```
//! Bytes are the faster form: products of small integers are added in sixteen bits and widened, with their scale, only every few steps.
//! Words take what is too large for that.

use std::arch::x86_64::*;

use super::load32;
use crate::activation::{Q8Row, Q8kRow};
use crate::{TILE_COLUMNS, TILE_ROWS};

/// Groups of eight rows in a tile.
const GROUPS: usize = TILE_ROWS / 8;
/// Columns that share a load of weights: their sums with two groups of rows fill the registers.
const COLUMNS: usize = 3;

/// 256 elements of 32 rows, unpacked.
#[repr(align(64))]
pub(super) struct Panel {
    /// Words, or bytes in the first half.
    w: [[u8; 2 * 256 * 8]; GROUPS],
    /// Scales of two groups of sixteen per row and step, and minima in the same order.
    scales: [[i16; 16 * 8]; GROUPS],
    mins: [[i16; 16 * 8]; GROUPS],
    /// Scales twice each, one group of sixteen after the other: what pairs of products are widened with.
    twice: [[i16; 2 * 16 * 8]; GROUPS],
    /// Units of scales: of the block of 256, or of its eight blocks of 32.
    pub(super) d: [[f32; TILE_ROWS]; 8],
    /// Units of minima: as `d`.
    pub(super) m: [[f32; TILE_ROWS]; 8],
}

impl Panel {
    pub(super) fn new() -> Panel {
        Panel {
            w: [[0; 2 * 256 * 8]; GROUPS],
            scales: [[0; 16 * 8]; GROUPS],
            mins: [[0; 16 * 8]; GROUPS],
            twice: [[0; 2 * 16 * 8]; GROUPS],
            d: [[0.0; TILE_ROWS]; 8],
            m: [[0.0; TILE_ROWS]; 8],
        }
    }

    /// Interleaves eight rows of bytes into group `v`.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn fill_bytes(&mut self, v: usize, rows: &[[u8; 256]; 8]) {
        interleave(rows, &mut self.w[v][..256 * 8]);
    }

    /// Interleaves eight rows of words into group `v`.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn fill_words(&mut self, v: usize, rows: &[[i16; 256]; 8]) {
        interleave(bytemuck::cast_ref::<_, [[u8; 512]; 8]>(rows), &mut self.w[v]);
    }

    /// Interleaves the minima of eight rows into group `v`.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn fill_mins(&mut self, v: usize, rows: &[[i16; 16]; 8]) {
        let rows = bytemuck::cast_ref::<_, [[u8; 32]; 8]>(rows);
        interleave(rows, bytemuck::cast_slice_mut(&mut self.mins[v]));
    }

    /// Interleaves the scales of eight rows into group `v`.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn fill_scales(&mut self, v: usize, rows: &[[i16; 16]; 8]) {
        let rows = bytemuck::cast_ref::<_, [[u8; 32]; 8]>(rows);
        interleave(rows, bytemuck::cast_slice_mut(&mut self.scales[v]));
        let first = _mm256_set1_epi64x(0x0504_0504_0100_0100);
        let first = _mm256_add_epi8(first, _mm256_set_epi64x(LATER, 0, LATER, 0));
        let second = _mm256_add_epi8(first, _mm256_set1_epi8(2));
        for (pair, out) in
            self.scales[v].as_chunks::<16>().0.iter().zip(self.twice[v].as_chunks_mut::<32>().0)
        {
            // SAFETY: sixteen words read, twice sixteen written, through arrays of these sizes.
            unsafe {
                let pair = _mm256_loadu_si256(pair.as_ptr().cast());
                _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_shuffle_epi8(pair, first));
                _mm256_storeu_si256(out.as_mut_ptr().add(16).cast(), _mm256_shuffle_epi8(pair, second));
            }
        }
    }
}

/// Eight added to each byte.
const LATER: i64 = 0x0808_0808_0808_0808;

/// Four bytes of eight rows side by side, then the next four: eight by eight transpositions.
#[inline]
#[target_feature(enable = "avx2")]
fn interleave<const N: usize>(rows: &[[u8; N]; 8], out: &mut [u8]) {
    for (k, out) in out.as_chunks_mut::<256>().0.iter_mut().enumerate() {
        let r = |i: usize| load32(&rows[i], 32 * k);
        let pairs = |a, b| (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let ((a0, a1), (b0, b1)) = (pairs(r(0), r(1)), pairs(r(2), r(3)));
        let ((c0, c1), (d0, d1)) = (pairs(r(4), r(5)), pairs(r(6), r(7)));
        let fours = |a, b| (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
        let ((e0, e1), (e2, e3)) = (fours(a0, b0), fours(a1, b1));
        let ((f0, f1), (f2, f3)) = (fours(c0, d0), fours(c1, d1));
        let lines = [
            _mm256_permute2x128_si256::<0x20>(e0, f0),
            _mm256_permute2x128_si256::<0x20>(e1, f1),
            _mm256_permute2x128_si256::<0x20>(e2, f2),
            _mm256_permute2x128_si256::<0x20>(e3, f3),
            _mm256_permute2x128_si256::<0x31>(e0, f0),
            _mm256_permute2x128_si256::<0x31>(e1, f1),
            _mm256_permute2x128_si256::<0x31>(e2, f2),
            _mm256_permute2x128_si256::<0x31>(e3, f3),
        ];
        for (line, out) in lines.into_iter().zip(out.as_chunks_mut::<32>().0) {
            // SAFETY: thirty-two bytes into an array of thirty-two.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), line) };
        }
    }
}

/// `q` times its group's scale; all of these fit sixteen bits.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn scaled(q: &[i8; 256], scale: &[i16; 16], out: &mut [i16; 256]) {
    for ((q, scale), out) in q.as_chunks::<16>().0.iter().zip(scale).zip(out.as_chunks_mut::<16>().0) {
        // SAFETY: sixteen readable bytes, sixteen words written, through arrays of these sizes.
        unsafe {
            let q = _mm256_cvtepi8_epi16(_mm_loadu_si128(q.as_ptr().cast()));
            let product = _mm256_mullo_epi16(q, _mm256_set1_epi16(*scale));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), product);
        }
    }
}

/// `q + offset` as unsigned bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn shifted(q: &[i8; 256], offset: i32, out: &mut [u8; 256]) {
    let offset = offset as u8 as i8;
    for (q, out) in q.iter().zip(out) {
        *out = q.wrapping_add(offset) as u8;
    }
}

/// Signed bytes as words.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn widened(q: __m256i, out: &mut [i16; 32]) {
    let (low, high) = (_mm256_castsi256_si128(q), _mm256_extracti128_si256::<1>(q));
    // SAFETY: two times sixteen words into an array of thirty-two.
    unsafe {
        _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_cvtepi8_epi16(low));
        _mm256_storeu_si256(out.as_mut_ptr().add(16).cast(), _mm256_cvtepi8_epi16(high));
    }
}

/// The floats of two halves, times a power of two.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn units(halves: u32, factor: f32) -> (f32, f32) {
    let both = _mm_mul_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(halves as i32)), _mm_set1_ps(factor));
    (_mm_cvtss_f32(both), _mm_cvtss_f32(_mm_movehdup_ps(both)))
}

/// The addresses of byte `at` of the first `C` columns, which have `len` bytes from there.
#[inline(always)]
fn starts<const C: usize>(x: &[&[u8]], at: usize, len: usize) -> [*const u8; C] {
    let mut starts = [std::ptr::null(); C];
    for c in 0..C {
        starts[c] = x[c][at..at + len].as_ptr();
    }
    starts
}

/// Sums of products of two groups of eight rows of bytes with `C` columns; after every `CHAIN` steps of four elements the sums of
/// sixteen bits are widened with the scale of their group of sixteen.
#[inline]
#[target_feature(enable = "avx2")]
fn multiply_bytes<const C: usize, const CHAIN: usize>(
    w: [&[u8]; 2],
    scales: Option<[&[i16; 256]; 2]>,
    x: &[&[u8]],
    at: usize,
    steps: usize,
) -> [[__m256i; 2]; C] {
    let x = starts::<C>(x, at, 4 * steps);
    assert!(w[0].len() >= 32 * steps && w[1].len() >= 32 * steps);
    assert!(steps.is_multiple_of(CHAIN) && steps <= 64);
    let mut acc = [[_mm256_setzero_si256(); 2]; C];
    for chain in 0..steps / CHAIN {
        let mut sums = [[_mm256_setzero_si256(); 2]; C];
        for s in chain * CHAIN..(chain + 1) * CHAIN {
            // SAFETY: the lengths were checked above; no load needs alignment.
            unsafe {
                let w0 = _mm256_loadu_si256(w[0].as_ptr().add(32 * s).cast());
                let w1 = _mm256_loadu_si256(w[1].as_ptr().add(32 * s).cast());
                for c in 0..C {
                    let four = _mm256_set1_epi32(x[c].add(4 * s).cast::<i32>().read_unaligned());
                    sums[c][0] = _mm256_add_epi16(sums[c][0], _mm256_maddubs_epi16(w0, four));
                    sums[c][1] = _mm256_add_epi16(sums[c][1], _mm256_maddubs_epi16(w1, four));
                }
            }
        }
        let scale = |g: usize| match scales {
            // SAFETY: group of sixteen below sixteen, since there are at most 64 steps of four.
            Some(scales) => unsafe {
                _mm256_loadu_si256(scales[g].as_ptr().add(16 * (chain * CHAIN / 4)).cast())
            },
            None => _mm256_set1_epi16(1),
        };
        for g in 0..2 {
            let scale = scale(g);
            for c in 0..C {
                acc[c][g] = _mm256_add_epi32(acc[c][g], _mm256_madd_epi16(sums[c][g], scale));
            }
        }
    }
    acc
}

/// Sums of products of two groups of eight rows of words with `C` columns, `steps` pairs of elements each.
#[inline]
#[target_feature(enable = "avx2")]
fn multiply_words<const C: usize>(w: [&[u8]; 2], x: &[&[u8]], at: usize, steps: usize) -> [[__m256i; 2]; C] {
    let x = starts::<C>(x, at, 4 * steps);
    assert!(w[0].len() >= 32 * steps && w[1].len() >= 32 * steps);
    let mut acc = [[_mm256_setzero_si256(); 2]; C];
    for s in 0..steps {
        // SAFETY: the lengths were checked above; no load needs alignment.
        unsafe {
            let w0 = _mm256_loadu_si256(w[0].as_ptr().add(32 * s).cast());
            let w1 = _mm256_loadu_si256(w[1].as_ptr().add(32 * s).cast());
            for c in 0..C {
                let pair = _mm256_set1_epi32(x[c].add(4 * s).cast::<i32>().read_unaligned());
                acc[c][0] = _mm256_add_epi32(acc[c][0], _mm256_madd_epi16(w0, pair));
                acc[c][1] = _mm256_add_epi32(acc[c][1], _mm256_madd_epi16(w1, pair));
            }
        }
    }
    acc
}

/// Activations of up to [`COLUMNS`] columns as words, one block of 256.
#[repr(align(64))]
struct Wide([[i16; 256]; COLUMNS]);

/// Calls the function with the constant number of columns for a count of 1 to [`COLUMNS`], then its further constants.
macro_rules! for_columns {
    ($count:expr, $function:ident, [$($constant:ident),*], ($($argument:expr),*)) => {
        match $count {
            3 => $function::<3, $($constant),*>($($argument),*),
            2 => $function::<2, $($constant),*>($($argument),*),
            _ => $function::<1, $($constant),*>($($argument),*),
        }
    };
}

/// Adds block `b` of every column to its sums. `CHAIN` as in [`multiply_bytes`], 0 for words; `offset` is what made the bytes unsigned.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn block_of_256<const MIN: bool, const CHAIN: usize>(
    panel: &Panel,
    b: usize,
    n_rows: usize,
    offset: i32,
    columns: &[&[u8]],
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    debug_assert!(columns.len() <= TILE_COLUMNS);
    let mut wide = Wide([[0; 256]; COLUMNS]);
    for (columns, y) in columns.chunks(COLUMNS).zip(y.chunks_mut(COLUMNS)) {
        let (mut x, mut sums): ([&[u8]; COLUMNS], [&[u8]; COLUMNS]) = Default::default();
        let mut a = [0.0; COLUMNS];
        for (c, column) in columns.iter().enumerate() {
            let row = Q8kRow::new(column, n);
            (x[c], sums[c]) = (&row.q[256 * b..256 * b + 256], &row.sums[32 * b..32 * b + 32]);
            a[c] = row.d(b);
            if CHAIN == 0 {
                for (s, out) in wide.0[c].as_chunks_mut::<32>().0.iter_mut().enumerate() {
                    widened(load32(x[c], 32 * s), out);
                }
            }
        }
        if CHAIN == 0 {
            x = wide.0.each_ref().map(|q| bytemuck::cast_slice(q));
        }
        for v in (0..n_rows.div_ceil(8)).step_by(2) {
            for_columns!(columns.len(), add_256, [MIN, CHAIN], (panel, v, offset, &x, &sums, &a, y));
        }
    }
}

/// `y += a · (d · products [− dmin · mins])` for two groups of rows: the canonical order of blocks of 256.
#[inline]
#[target_feature(enable = "avx2")]
fn add_256<const C: usize, const MIN: bool, const CHAIN: usize>(
    panel: &Panel,
    v: usize,
    offset: i32,
    x: &[&[u8]; COLUMNS],
    sums: &[&[u8]; COLUMNS],
    a: &[f32; COLUMNS],
    y: &mut [[f32; TILE_ROWS]],
) {
    let w = [&panel.w[v][..], &panel.w[v + 1][..]];
    let twice = Some([&panel.twice[v], &panel.twice[v + 1]]);
    let mut products = match CHAIN {
        0 => multiply_words::<C>(w, x, 0, 128),
        1 => multiply_bytes::<C, 1>(w, twice, x, 0, 64),
        2 => multiply_bytes::<C, 2>(w, twice, x, 0, 64),
        4 => multiply_bytes::<C, 4>(w, twice, x, 0, 64),
        _ => multiply_bytes::<C, 8>(w, twice, x, 0, 64),
    };
    if CHAIN != 0 && offset != 0 {
        let shares = multiply_words::<C>(two(&panel.scales, v), sums, 0, 8);
        for c in 0..C {
            for g in 0..2 {
                let share = _mm256_mullo_epi32(shares[c][g], _mm256_set1_epi32(offset));
                products[c][g] = _mm256_sub_epi32(products[c][g], share);
            }
        }
    }
    let mut mins = [[_mm256_setzero_si256(); 2]; C];
    if MIN {
        mins = multiply_words::<C>(two(&panel.mins, v), sums, 0, 8);
    }
    for c in 0..C {
        for g in 0..2 {
            let from = 8 * (v + g);
            let mut t = _mm256_mul_ps(eight(&panel.d[0], from), _mm256_cvtepi32_ps(products[c][g]));
            if MIN {
                let m = _mm256_mul_ps(eight(&panel.m[0], from), _mm256_cvtepi32_ps(mins[c][g]));
                t = _mm256_sub_ps(t, m);
            }
            let sum = _mm256_add_ps(eight(&y[c], from), _mm256_mul_ps(_mm256_set1_ps(a[c]), t));
            put_eight(&mut y[c], from, sum);
        }
    }
}

/// Groups `v` and `v + 1` as bytes.
#[inline(always)]
fn two<const N: usize>(groups: &[[i16; N]; GROUPS], v: usize) -> [&[u8]; 2] {
    [bytemuck::cast_slice(&groups[v]), bytemuck::cast_slice(&groups[v + 1])]
}

/// Adds `n_blocks` (at most eight) blocks of 32 from block `b` of every column to its sums; the rest as in [`block_of_256`].
#[inline]
#[target_feature(enable = "avx2")]
#[expect(clippy::too_many_arguments, reason = "a panel and its place, columns and theirs")]
pub(super) fn blocks_of_32<const MIN: bool, const CHAIN: usize>(
    panel: &Panel,
    b: usize,
    n_blocks: usize,
    n_rows: usize,
    offset: i32,
    columns: &[&[u8]],
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    let mut wide = Wide([[0; 256]; COLUMNS]);
    for (columns, y) in columns.chunks(COLUMNS).zip(y.chunks_mut(COLUMNS)) {
        let mut x: [&[u8]; COLUMNS] = Default::default();
        let mut factors = [[(0.0, 0); 8]; COLUMNS];
        for (c, column) in columns.iter().enumerate() {
            let row = Q8Row::new(column, n);
            x[c] = &row.q[32 * b..32 * (b + n_blocks)];
            for s in 0..n_blocks {
                factors[c][s] = (row.d(b + s), row.sum(b + s));
                if CHAIN == 0 {
                    widened(load32(x[c], 32 * s), &mut wide.0[c].as_chunks_mut::<32>().0[s]);
                }
            }
        }
        if CHAIN == 0 {
            x = wide.0.each_ref().map(|q| bytemuck::cast_slice(q));
        }
        for v in (0..n_rows.div_ceil(8)).step_by(2) {
            for_columns!(columns.len(), add_32, [MIN, CHAIN], (panel, v, n_blocks, offset, &x, &factors, y));
        }
    }
}

/// `y += a · (d · products [+ m · sum])` for two groups of rows: the canonical order of blocks of 32.
#[inline]
#[target_feature(enable = "avx2")]
fn add_32<const C: usize, const MIN: bool, const CHAIN: usize>(
    panel: &Panel,
    v: usize,
    n_blocks: usize,
    offset: i32,
    x: &[&[u8]; COLUMNS],
    factors: &[[(f32, i32); 8]; COLUMNS],
    y: &mut [[f32; TILE_ROWS]],
) {
    let mut sums = [[_mm256_setzero_ps(); 2]; C];
    for c in 0..C {
        sums[c] = [eight(&y[c], 8 * v), eight(&y[c], 8 * v + 8)];
    }
    for s in 0..n_blocks {
        let block_bytes = if CHAIN == 0 { 512 } else { 256 };
        let w = [&panel.w[v][block_bytes * s..], &panel.w[v + 1][block_bytes * s..]];
        let products = match CHAIN {
            0 => multiply_words::<C>(w, x, 64 * s, 16),
            4 => multiply_bytes::<C, 4>(w, None, x, 32 * s, 8),
            _ => multiply_bytes::<C, 8>(w, None, x, 32 * s, 8),
        };
        for g in 0..2 {
            let (d, m) = (eight(&panel.d[s], 8 * (v + g)), eight(&panel.m[s], 8 * (v + g)));
            for c in 0..C {
                let (a, sum) = factors[c][s];
                let mut p = products[c][g];
                if CHAIN != 0 && offset != 0 {
                    p = _mm256_sub_epi32(p, _mm256_set1_epi32(offset * sum));
                }
                let mut t = _mm256_mul_ps(d, _mm256_cvtepi32_ps(p));
                if MIN {
                    t = _mm256_add_ps(t, _mm256_mul_ps(m, _mm256_set1_ps(sum as f32)));
                }
                sums[c][g] = _mm256_add_ps(sums[c][g], _mm256_mul_ps(_mm256_set1_ps(a), t));
            }
        }
    }
    for c in 0..C {
        put_eight(&mut y[c], 8 * v, sums[c][0]);
        put_eight(&mut y[c], 8 * v + 8, sums[c][1]);
    }
}

/// Eight floats from an offset.
#[inline]
#[target_feature(enable = "avx2")]
fn eight(x: &[f32; TILE_ROWS], from: usize) -> __m256 {
    let x = &x[from..from + 8];
    // SAFETY: eight readable floats; the load needs no alignment.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

/// Stores eight floats at an offset.
#[inline]
#[target_feature(enable = "avx2")]
fn put_eight(y: &mut [f32; TILE_ROWS], from: usize, t: __m256) {
    let y = &mut y[from..from + 8];
    // SAFETY: eight floats into a slice of eight; the store needs no alignment.
    unsafe { _mm256_storeu_ps(y.as_mut_ptr(), t) };
}
