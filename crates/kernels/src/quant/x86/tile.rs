//! Many activation rows at once with AVX2: weights become sixteen-bit integers (scale and all), eight rows side by side in the
//! lanes of a register, and meet broadcast pairs of activations. No sum across lanes is ever needed, and a panel is small enough to
//! stay in the first-level cache while all columns pass by.
//!
//! ```text
//! panel.w[v]: | k 0,1 of row 0 | k 0,1 of row 1 | … row 7 | k 2,3 of row 0 | …      8 rows, 256 elements, i16
//! ```

use std::arch::x86_64::*;

use super::load32;
use crate::activation::{Q8Row, Q8kRow};
use crate::{TILE_COLUMNS, TILE_ROWS};

/// Groups of eight rows in a tile.
const GROUPS: usize = TILE_ROWS / 8;
/// Columns that share a load of weights: with two groups of rows their sums fill half of the registers.
const COLUMNS: usize = 4;

/// 256 elements of 32 rows, unpacked.
#[repr(align(64))]
pub(super) struct Panel {
    w: [[i16; 256 * 8]; GROUPS],
    /// One minimum per sixteen elements, in the same order as weights.
    mins: [[i16; 16 * 8]; GROUPS],
    /// Scales: of the block of 256, or of its eight blocks of 32.
    pub(super) d: [[f32; TILE_ROWS]; 8],
    /// Minima's units: as `d`.
    pub(super) m: [[f32; TILE_ROWS]; 8],
}

impl Panel {
    pub(super) fn new() -> Panel {
        Panel {
            w: [[0; 256 * 8]; GROUPS],
            mins: [[0; 16 * 8]; GROUPS],
            d: [[0.0; TILE_ROWS]; 8],
            m: [[0.0; TILE_ROWS]; 8],
        }
    }

    /// Interleaves eight rows into group `v`.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn fill(&mut self, v: usize, rows: &[[i16; 256]; 8]) {
        for (k, out) in self.w[v].as_chunks_mut::<128>().0.iter_mut().enumerate() {
            interleave(rows, 16 * k, out);
        }
    }

    /// Interleaves the minima of eight rows into group `v`.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn fill_mins(&mut self, v: usize, rows: &[[i16; 16]; 8]) {
        interleave(rows, 0, &mut self.mins[v]);
    }
}

/// Sixteen elements of eight rows: an eight by eight transposition of pairs.
#[inline]
#[target_feature(enable = "avx2")]
fn interleave<const N: usize>(rows: &[[i16; N]; 8], from: usize, out: &mut [i16; 128]) {
    let r = |i: usize| {
        let row = &rows[i][from..from + 16];
        // SAFETY: sixteen readable words; the load needs no alignment.
        unsafe { _mm256_loadu_si256(row.as_ptr().cast()) }
    };
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
    for (line, out) in lines.into_iter().zip(out.as_chunks_mut::<16>().0) {
        // SAFETY: sixteen words into an array of sixteen.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), line) };
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

/// Signed bytes as words.
#[inline]
#[target_feature(enable = "avx2")]
fn widened(q: __m256i, out: &mut [i16; 32]) {
    let (low, high) = (_mm256_castsi256_si128(q), _mm256_extracti128_si256::<1>(q));
    // SAFETY: two times sixteen words into an array of thirty-two.
    unsafe {
        _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_cvtepi8_epi16(low));
        _mm256_storeu_si256(out.as_mut_ptr().add(16).cast(), _mm256_cvtepi8_epi16(high));
    }
}

/// Thirty-two signed bytes as words, into a row of a panel.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn widen_into(q: __m256i, row: &mut [i16; 256], block: usize) {
    widened(q, &mut row.as_chunks_mut::<32>().0[block]);
}

/// The floats of two halves, times a power of two.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn units(halves: u32, factor: f32) -> (f32, f32) {
    let both = _mm_mul_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(halves as i32)), _mm_set1_ps(factor));
    (_mm_cvtss_f32(both), _mm_cvtss_f32(_mm_movehdup_ps(both)))
}

/// Activations of up to [`COLUMNS`] columns, one block of 256.
#[repr(align(64))]
struct Wide {
    q: [[i16; 256]; COLUMNS],
    sums: [[i16; 16]; COLUMNS],
}

impl Wide {
    fn new() -> Wide {
        Wide { q: [[0; 256]; COLUMNS], sums: [[0; 16]; COLUMNS] }
    }
}

/// Sums of products of two groups of eight rows with `C` columns, `steps` pairs of elements each.
#[inline]
#[target_feature(enable = "avx2")]
fn multiply<const C: usize>(w: [&[i16]; 2], x: [&[i16]; C], steps: usize) -> [[__m256i; 2]; C] {
    assert!(w.iter().all(|w| w.len() >= 16 * steps) && x.iter().all(|x| x.len() >= 2 * steps));
    let mut acc = [[_mm256_setzero_si256(); 2]; C];
    for s in 0..steps {
        // SAFETY: the lengths were checked above; no load needs alignment.
        unsafe {
            let w0 = _mm256_loadu_si256(w[0].as_ptr().add(16 * s).cast());
            let w1 = _mm256_loadu_si256(w[1].as_ptr().add(16 * s).cast());
            for c in 0..C {
                let pair = _mm256_set1_epi32(x[c].as_ptr().add(2 * s).cast::<i32>().read_unaligned());
                acc[c][0] = _mm256_add_epi32(acc[c][0], _mm256_madd_epi16(w0, pair));
                acc[c][1] = _mm256_add_epi32(acc[c][1], _mm256_madd_epi16(w1, pair));
            }
        }
    }
    acc
}

/// Calls `$body` with the constant `C` columns for a count of 1 to [`COLUMNS`].
macro_rules! for_columns {
    ($count:expr, $function:ident, $min:ident, ($($argument:expr),*)) => {
        match $count {
            4 => $function::<4, $min>($($argument),*),
            3 => $function::<3, $min>($($argument),*),
            2 => $function::<2, $min>($($argument),*),
            _ => $function::<1, $min>($($argument),*),
        }
    };
}

/// Adds block `b` of every column to its sums.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn block_of_256<const MIN: bool>(
    panel: &Panel,
    b: usize,
    n_rows: usize,
    columns: &[&[u8]],
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    debug_assert!(columns.len() <= TILE_COLUMNS);
    let mut wide = Wide::new();
    for (columns, y) in columns.chunks(COLUMNS).zip(y.chunks_mut(COLUMNS)) {
        let mut a = [0.0; COLUMNS];
        for (c, x) in columns.iter().enumerate() {
            let x = Q8kRow::new(x, n);
            a[c] = x.d(b);
            for (s, out) in wide.q[c].as_chunks_mut::<32>().0.iter_mut().enumerate() {
                widened(load32(x.q, 256 * b + 32 * s), out);
            }
            if MIN {
                let sums = load32(x.sums, 32 * b);
                // SAFETY: sixteen words into an array of sixteen.
                unsafe { _mm256_storeu_si256(wide.sums[c].as_mut_ptr().cast(), sums) };
            }
        }
        for v in (0..n_rows.div_ceil(8)).step_by(2) {
            for_columns!(columns.len(), add_256, MIN, (panel, v, &wide, &a, y));
        }
    }
}

/// `y += a · (d · products [− dmin · mins])` for two groups of rows: the canonical order of blocks of 256.
#[inline]
#[target_feature(enable = "avx2")]
fn add_256<const C: usize, const MIN: bool>(
    panel: &Panel,
    v: usize,
    wide: &Wide,
    a: &[f32; COLUMNS],
    y: &mut [[f32; TILE_ROWS]],
) {
    let x: [&[i16]; C] = std::array::from_fn(|c| wide.q[c].as_slice());
    let products = multiply::<C>([&panel.w[v], &panel.w[v + 1]], x, 128);
    let mins = if MIN {
        let sums: [&[i16]; C] = std::array::from_fn(|c| wide.sums[c].as_slice());
        multiply::<C>([&panel.mins[v], &panel.mins[v + 1]], sums, 8)
    } else {
        [[_mm256_setzero_si256(); 2]; C]
    };
    for c in 0..C {
        for g in 0..2 {
            let from = 8 * (v + g);
            let mut t = _mm256_mul_ps(eight(&panel.d[0], from), _mm256_cvtepi32_ps(products[c][g]));
            if MIN {
                let m = _mm256_mul_ps(eight(&panel.m[0], from), _mm256_cvtepi32_ps(mins[c][g]));
                t = _mm256_sub_ps(t, m);
            }
            add_to(&mut y[c], from, _mm256_mul_ps(_mm256_set1_ps(a[c]), t));
        }
    }
}

/// Adds `n_blocks` (at most eight) blocks of 32 from block `b` of every column to its sums.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn blocks_of_32<const MIN: bool>(
    panel: &Panel,
    b: usize,
    n_blocks: usize,
    n_rows: usize,
    columns: &[&[u8]],
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    let mut wide = Wide::new();
    for (columns, y) in columns.chunks(COLUMNS).zip(y.chunks_mut(COLUMNS)) {
        let mut factors = [[(0.0, 0.0); 8]; COLUMNS];
        for (c, x) in columns.iter().enumerate() {
            let x = Q8Row::new(x, n);
            for s in 0..n_blocks {
                widened(load32(x.q, 32 * (b + s)), &mut wide.q[c].as_chunks_mut::<32>().0[s]);
                factors[c][s] = (x.d(b + s), if MIN { x.sum(b + s) as f32 } else { 0.0 });
            }
        }
        for v in (0..n_rows.div_ceil(8)).step_by(2) {
            for s in 0..n_blocks {
                for_columns!(columns.len(), add_32, MIN, (panel, v, s, &wide, &factors, y));
            }
        }
    }
}

/// `y += a · (d · products [+ m · sum])` for two groups of rows: the canonical order of blocks of 32.
#[inline]
#[target_feature(enable = "avx2")]
fn add_32<const C: usize, const MIN: bool>(
    panel: &Panel,
    v: usize,
    s: usize,
    wide: &Wide,
    factors: &[[(f32, f32); 8]; COLUMNS],
    y: &mut [[f32; TILE_ROWS]],
) {
    let x: [&[i16]; C] = std::array::from_fn(|c| &wide.q[c][32 * s..32 * s + 32]);
    let products = multiply::<C>([&panel.w[v][256 * s..], &panel.w[v + 1][256 * s..]], x, 16);
    for c in 0..C {
        let (a, sum) = factors[c][s];
        for g in 0..2 {
            let from = 8 * (v + g);
            let mut t = _mm256_mul_ps(eight(&panel.d[s], from), _mm256_cvtepi32_ps(products[c][g]));
            if MIN {
                t = _mm256_add_ps(t, _mm256_mul_ps(eight(&panel.m[s], from), _mm256_set1_ps(sum)));
            }
            add_to(&mut y[c], from, _mm256_mul_ps(_mm256_set1_ps(a), t));
        }
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

/// `y[from..from + 8] += t`.
#[inline]
#[target_feature(enable = "avx2")]
fn add_to(y: &mut [f32; TILE_ROWS], from: usize, t: __m256) {
    let y = &mut y[from..from + 8];
    // SAFETY: eight floats read and written in place.
    unsafe { _mm256_storeu_ps(y.as_mut_ptr(), _mm256_add_ps(_mm256_loadu_ps(y.as_ptr()), t)) };
}
