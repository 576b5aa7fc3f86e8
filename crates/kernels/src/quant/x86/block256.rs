//! Blocks of 256 with AVX2 and with AVX-512 (VNNI): four rows at a time, so that the sums of a block column are added and scaled side by side.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::avx512::load64;
use super::tile::{self, Form, Lines, Panel};
use super::{Fours, fetch, fetch_four, four_totals, four_units, load32, tile512};
use crate::activation::Q8kRow;
use crate::quant::block256::{Block256, u32_at};
use crate::{Kernels, TILE_ROWS};

/// A block of 256 as vectors.
pub(in crate::quant) trait X86Block256<const N: usize>: Block256<N> {
    /// What [`X86Block256::pairs`] adds to the integers to make them unsigned; its share is taken off afterwards.
    const OFFSET: i32 = 0;
    /// Where the half `d` stands; with minima `dmin` is the next.
    const UNIT_AT: usize = 0;
    /// What the half is multiplied with to give the unit; a power of two.
    const UNIT_FACTOR: f32 = 1.0;
    /// From how many activation rows on an AVX2 tile is faster than rows.
    const TILE_FROM: usize = 3;
    /// What [`X86Block256::lines`] adds to the integers to make them unsigned; 0 where they stay signed.
    const TILE_OFFSET: i32 = Self::OFFSET;
    /// The largest integer with that offset.
    const TILE_TOP: i32 = 2 * Self::TILE_OFFSET;
    /// Steps of four elements whose products are added in sixteen bits, see [`Form`]. With 0 they stay signed.
    const TILE_CHAIN: usize;
    /// And where the activations are small enough for more.
    const TILE_LONG: usize = Self::TILE_CHAIN;
    /// What [`X86Block256::wide`] adds to the integers.
    const WIDE_OFFSET: i32 = Self::OFFSET;
    /// Elements that share a scale: 16 or 32.
    const SHARED: usize;

    /// The bits of `d`, and above them those of `dmin`.
    #[inline(always)]
    fn halves(block: &[u8; N]) -> u32 {
        let half = |at: usize| u32::from(block[at]) | u32::from(block[at + 1]) << 8;
        half(Self::UNIT_AT) | if Self::MIN { half(Self::UNIT_AT + 2) << 16 } else { 0 }
    }

    /// The scales and minima as words; formats with packed ones unpack them in registers.
    ///
    /// # Safety
    /// AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scale_words(block: &[u8; N]) -> (__m256i, __m256i) {
        let (mut scale, mut min) = ([0; 16], [0; 16]);
        Self::scales(block, &mut scale, &mut min);
        // SAFETY: thirty-two readable bytes each; the loads need no alignment.
        unsafe { (_mm256_loadu_si256(scale.as_ptr().cast()), _mm256_loadu_si256(min.as_ptr().cast())) }
    }

    /// The 32 integers from `32 · s` plus [`X86Block256::OFFSET`]. Not used where a format has its own [`X86Block256::sums`] and
    /// [`X86Block256::lines`].
    ///
    /// # Safety
    /// AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn raised(block: &[u8; N], s: usize) -> __m256i {
        let mut q = [0; 256];
        Self::quants(block, &mut q);
        // SAFETY: thirty-two readable bytes; the load needs no alignment.
        let q = unsafe { _mm256_loadu_si256(q.as_chunks::<32>().0[s].as_ptr().cast()) };
        _mm256_add_epi8(q, _mm256_set1_epi8(Self::OFFSET as u8 as i8))
    }

    /// Products of the 32 integers from `32 · s`, raised, with `x`, as sixteen sums of neighbouring two.
    ///
    /// # Safety
    /// AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn pairs(block: &[u8; N], s: usize, x: __m256i) -> __m256i {
        // SAFETY: AVX2 is on.
        _mm256_maddubs_epi16(unsafe { Self::raised(block, s) }, x)
    }

    /// The 64 integers from `64 · s` with their offset as unsigned bytes, of which those with a bit set in the mask count negative.
    /// Two of them times an activation each fit sixteen bits.
    ///
    /// # Safety
    /// AVX-512 F, BW and VL.
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn wide(block: &[u8; N], s: usize) -> (__m512i, u64) {
        let mut q = [0; 256];
        Self::quants(block, &mut q);
        // SAFETY: sixty-four readable bytes; the load needs no alignment.
        let q = unsafe { _mm512_loadu_si512(q.as_chunks::<64>().0[s].as_ptr().cast()) };
        (_mm512_add_epi8(q, _mm512_set1_epi8(Self::WIDE_OFFSET as u8 as i8)), 0)
    }

    /// Eight partial sums each of `Σ scale·(Σ q·x)` and of `Σ min·t` (zero without minima), `t` being the sums of sixteen `x`.
    ///
    /// # Safety
    /// AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn sums(block: &[u8; N], x: &[u8; 256], x_sums: __m256i) -> (__m256i, __m256i) {
        // SAFETY: AVX2 is on.
        let (scales, mins) = unsafe { Self::scale_words(block) };
        let by_half = even_then_odd(scales);
        let mut acc = _mm256_setzero_si256();
        macro_rules! step {
            ($($s:literal)*) => {$(
                // SAFETY: AVX2 is on.
                let pairs = unsafe { Self::pairs(block, $s, load32(x, 32 * $s)) };
                // The pairs of group 2s are in the lower half, those of group 2s + 1 in the upper.
                let scale = _mm256_shuffle_epi8(by_half, _mm256_set1_epi16($s * 2 | ($s * 2 + 1) << 8));
                acc = _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, scale));
            )*};
        }
        step!(0 1 2 3 4 5 6 7);
        if Self::OFFSET != 0 {
            let share = _mm256_madd_epi16(scales, x_sums);
            acc = _mm256_sub_epi32(acc, _mm256_mullo_epi32(share, _mm256_set1_epi32(Self::OFFSET)));
        }
        (acc, if Self::MIN { _mm256_madd_epi16(mins, x_sums) } else { _mm256_setzero_si256() })
    }

    /// The same for the blocks of four rows. Formats that look weights up override it, to have the indices of all four on their way
    /// before the first is needed.
    ///
    /// # Safety
    /// AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn four_sums(
        blocks: [&[u8; N]; 4],
        x: &[u8; 256],
        x_sums: __m256i,
    ) -> ([__m256i; 4], [__m256i; 4]) {
        let [a, b, c, d] = blocks;
        // SAFETY: AVX2 is on.
        let ((p0, m0), (p1, m1), (p2, m2), (p3, m3)) = unsafe {
            (
                Self::sums(a, x, x_sums),
                Self::sums(b, x, x_sums),
                Self::sums(c, x, x_sums),
                Self::sums(d, x, x_sums),
            )
        };
        ([p0, p1, p2, p3], [m0, m1, m2, m3])
    }

    /// The block's integers.
    ///
    /// # Safety
    /// AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn integers(block: &[u8; N], q: &mut [i8; 256]) {
        Self::quants(block, q);
    }

    /// The block's integers plus an offset as unsigned bytes, for a tile.
    ///
    /// # Safety
    /// AVX-512 F, BW and VL.
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn wide_block(block: &[u8; N], offset: i16, out: &mut [u8; 256]) {
        let shift = _mm512_set1_epi8((i32::from(offset) - Self::WIDE_OFFSET) as u8 as i8);
        for (s, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
            // SAFETY: this function has its features; sixty-four bytes into an array of sixty-four.
            unsafe {
                let (q, minus) = Self::wide(block, s);
                let q = _mm512_mask_sub_epi8(q, minus, _mm512_setzero_si512(), q);
                _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_add_epi8(q, shift));
            }
        }
    }

    /// The integers of eight rows' blocks, made unsigned, line by line.
    ///
    /// # Safety
    /// AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn lines(rows: [&[u8; N]; 8], out: &mut Lines<64>) {
        const { assert!(Self::TILE_OFFSET == Self::OFFSET, "as `raised` has it") };
        let [a, b, c, d, e, f, g, h] = rows;
        macro_rules! step {
            ($($s:literal)*) => {$(
                // SAFETY: AVX2 is on.
                let rows = unsafe {
                    [
                        Self::raised(a, $s), Self::raised(b, $s), Self::raised(c, $s), Self::raised(d, $s),
                        Self::raised(e, $s), Self::raised(f, $s), Self::raised(g, $s), Self::raised(h, $s),
                    ]
                };
                tile::put_lines(tile::transposed(rows), &mut out.as_chunks_mut::<8>().0[$s]);
            )*};
        }
        step!(0 1 2 3 4 5 6 7);
    }
}

/// The AVX2 kernels.
pub(in crate::quant) const fn avx2<B: X86Block256<N>, const N: usize>() -> Kernels {
    Kernels { rows: rows_avx2::<B, N>, tile: Some((tile_avx2::<B, N>, B::TILE_FROM)) }
}

/// From how many activation rows on an AVX-512 tile is taken (a guess: nobody has timed it).
const TILE_FROM_AVX512: usize = 4;

/// The AVX-512 kernels.
pub(in crate::quant) const fn avx512<B: X86Block256<N>, const N: usize>() -> Kernels {
    Kernels { rows: rows_avx512::<B, N>, tile: Some((tile_avx512::<B, N>, TILE_FROM_AVX512)) }
}

macro_rules! rows {
    ($name:ident, $four:ident, $features:literal, $sums:expr) => {
        /// # Safety
        /// That of [`Rows`](crate::Rows), for the features named.
        #[target_feature(enable = $features)]
        unsafe fn $name<B: X86Block256<N>, const N: usize>(
            weights: &[u8],
            x: &[u8],
            n: usize,
            y: &mut [f32],
        ) {
            let x = Q8kRow::new(x, n);
            let n_blocks = n / 256;
            let blocks = &weights.as_chunks::<N>().0[..n_blocks * y.len()];
            let fours = Fours::new(y.len(), n_blocks * N);
            let row = |r: usize| &blocks[r * n_blocks..][..n_blocks];
            for [a, b, c, d] in fours.rows() {
                let rows = [row(a), row(b), row(c), row(d)];
                // SAFETY: this function has at least its features.
                let sums = unsafe {
                    if fours.streams { $four::<B, N, true>(rows, &x) } else { $four::<B, N, false>(rows, &x) }
                };
                (y[a], y[b], y[c], y[d]) = (sums[0], sums[1], sums[2], sums[3]);
            }
        }

        /// Four rows, block column by block column.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $four<B: X86Block256<N>, const N: usize, const STREAMS: bool>(
            rows: [&[[u8; N]]; 4],
            x: &Q8kRow<'_>,
        ) -> [f32; 4] {
            let row_bytes = size_of_val(rows[0]);
            let mut total = _mm_setzero_ps();
            let columns = rows[0].iter().zip(rows[1]).zip(rows[2]).zip(rows[3]);
            for (b, (((w0, w1), w2), w3)) in columns.enumerate() {
                let x_q = &x.q.as_chunks::<256>().0[b];
                let x_sums = load32(x.sums, 32 * b);
                fetch_four::<STREAMS>(rows[0].as_ptr().cast(), row_bytes, b, [w0, w1, w2, w3]);
                // SAFETY: this function has its features.
                let (products, mins) = unsafe { $sums([w0, w1, w2, w3], x_q, x_sums) };
                let (mut d, mut dmin) =
                    four_units([B::halves(w0), B::halves(w1), B::halves(w2), B::halves(w3)]);
                if B::UNIT_FACTOR != 1.0 {
                    d = _mm_mul_ps(d, _mm_set1_ps(B::UNIT_FACTOR));
                    dmin = _mm_mul_ps(dmin, _mm_set1_ps(B::UNIT_FACTOR));
                }
                // The same operations in the same order as `term`.
                let mut t = _mm_mul_ps(d, _mm_cvtepi32_ps(four_totals(products)));
                if B::MIN {
                    let mins = _mm_cvtepi32_ps(four_totals(mins));
                    t = _mm_sub_ps(t, _mm_mul_ps(dmin, mins));
                }
                total = _mm_add_ps(total, _mm_mul_ps(_mm_set1_ps(x.d(b)), t));
            }
            let mut y = [0.0; 4];
            // SAFETY: four floats into an array of four.
            unsafe { _mm_storeu_ps(y.as_mut_ptr(), total) };
            y
        }
    };
}

rows!(rows_avx2, four_avx2, "avx2,f16c", B::four_sums);
rows!(rows_avx512, four_avx512, "avx2,f16c,avx512f,avx512bw,avx512vl,avx512vnni", four_sums_avx512::<B, N>);

/// [`X86Block256::four_sums`] with AVX-512.
///
/// # Safety
/// The features named.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn four_sums_avx512<B: X86Block256<N>, const N: usize>(
    blocks: [&[u8; N]; 4],
    x: &[u8; 256],
    x_sums: __m256i,
) -> ([__m256i; 4], [__m256i; 4]) {
    let [a, b, c, d] = blocks;
    // SAFETY: this function has its features.
    let ((p0, m0), (p1, m1), (p2, m2), (p3, m3)) = unsafe {
        (
            sums_avx512::<B, N>(a, x, x_sums),
            sums_avx512::<B, N>(b, x, x_sums),
            sums_avx512::<B, N>(c, x, x_sums),
            sums_avx512::<B, N>(d, x, x_sums),
        )
    };
    ([p0, p1, p2, p3], [m0, m1, m2, m3])
}

/// [`X86Block256::sums`] with AVX-512.
///
/// # Safety
/// The features named.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn sums_avx512<B: X86Block256<N>, const N: usize>(
    block: &[u8; N],
    x: &[u8; 256],
    x_sums: __m256i,
) -> (__m256i, __m256i) {
    // SAFETY: AVX2 is on.
    let (scales, mins) = unsafe { B::scale_words(block) };
    // Quarter k: the scales of groups k, 4 + k, 8 + k and 12 + k, one for each step.
    let first = 0x000c_0008_0004_0000;
    let next = 0x0001_0001_0001_0001;
    let order = _mm512_set_epi64(0, first + 3 * next, 0, first + 2 * next, 0, first + next, 0, first);
    let by_quarter = _mm512_permutexvar_epi16(order, _mm512_castsi256_si512(scales));
    let mut acc = _mm512_setzero_si512();
    macro_rules! step {
        ($($s:literal)*) => {$(
            // SAFETY: this function has its features.
            let (q, minus) = unsafe { B::wide(block, $s) };
            // The signs go to the activations.
            let x_q = load64(x, 64 * $s);
            let pairs = _mm512_maddubs_epi16(q, _mm512_mask_sub_epi8(x_q, minus, _mm512_setzero_si512(), x_q));
            let scale = _mm512_shuffle_epi8(by_quarter, _mm512_set1_epi16($s * 2 | ($s * 2 + 1) << 8));
            acc = _mm512_dpwssd_epi32(acc, pairs, scale);
        )*};
    }
    step!(0 1 2 3);
    let mut acc = _mm256_add_epi32(_mm512_castsi512_si256(acc), _mm512_extracti64x4_epi64::<1>(acc));
    if B::WIDE_OFFSET != 0 {
        let shares = _mm256_mullo_epi16(scales, _mm256_set1_epi16(-B::WIDE_OFFSET as i16));
        acc = _mm256_dpwssd_epi32(acc, shares, x_sums);
    }
    (acc, if B::MIN { _mm256_madd_epi16(mins, x_sums) } else { _mm256_setzero_si256() })
}

/// What a tile must know of `B`.
struct Of<B, const N: usize>(PhantomData<B>);

impl<B: X86Block256<N>, const N: usize> Form for Of<B, N> {
    const CHAIN: usize = B::TILE_CHAIN;
    const LONG: usize = B::TILE_LONG;
    const OFFSET: i32 = B::TILE_OFFSET;
    const TOP: i32 = B::TILE_TOP;
    const MIN: bool = B::MIN;
    const SHARED: usize = B::SHARED;
}

/// # Safety
/// That of [`Tile`](crate::Tile), for AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn tile_avx2<B: X86Block256<N>, const N: usize>(
    weights: &[u8],
    n_rows: usize,
    columns: &[&[u8]],
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    let n_blocks = n / 256;
    let blocks = &weights.as_chunks::<N>().0[..n_blocks * n_rows];
    y.fill([0.0; TILE_ROWS]);
    let (mut panel, mut ready) = (Panel::new(), tile::NONE_READY);
    for b in 0..n_blocks {
        for v in 0..n_rows.div_ceil(8) {
            // Rows past the end are the last one again.
            let rows = std::array::from_fn(|r| &blocks[(8 * v + r).min(n_rows - 1) * n_blocks + b]);
            // SAFETY: AVX2 and F16C are on.
            unsafe { unpack::<B, N>(&mut panel, v, rows) };
        }
        tile::block_of_256::<Of<B, N>>(&panel, b, n_rows, columns, &mut ready, n, y);
    }
}

/// One block each of eight rows into group `v` of a panel.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn unpack<B: X86Block256<N>, const N: usize>(panel: &mut Panel, v: usize, rows: [&[u8; N]; 8]) {
    let mut scales = [_mm256_setzero_si256(); 8];
    let mut mins = scales;
    let (mut d, mut m) = ([0; 8], [0; 8]);
    for r in 0..8 {
        // The next block of this row.
        fetch(rows[r], N);
        // SAFETY: AVX2 is on.
        (scales[r], mins[r]) = unsafe { B::scale_words(rows[r]) };
        let halves = B::halves(rows[r]);
        (d[r], m[r]) = (halves as u16, (halves >> 16) as u16);
    }
    tile::put_units(&d, B::UNIT_FACTOR, &mut panel.d[0].as_chunks_mut().0[v]);
    if B::MIN {
        tile::put_units(&m, B::UNIT_FACTOR, &mut panel.m[0].as_chunks_mut().0[v]);
        panel.fill_mins::<Of<B, N>>(v, mins);
    }
    panel.fill_scales::<Of<B, N>>(v, scales);
    // SAFETY: AVX2 is on.
    unsafe { B::lines(rows, panel.lines(v)) };
}

/// # Safety
/// That of [`Tile`](crate::Tile), for AVX2, F16C and AVX-512 F, BW, DQ, VL and VNNI.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn tile_avx512<B: X86Block256<N>, const N: usize>(
    weights: &[u8],
    n_rows: usize,
    columns: &[&[u8]],
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    let n_blocks = n / 256;
    let blocks = &weights.as_chunks::<N>().0[..n_blocks * n_rows];
    y.fill([0.0; TILE_ROWS]);
    let mut panel = tile512::Panel::new();
    for b in 0..n_blocks {
        for v in 0..n_rows.div_ceil(16) {
            let rows = (16 * v..n_rows.min(16 * v + 16)).map(|r| &blocks[r * n_blocks + b]);
            // SAFETY: this function has its features.
            unsafe { unpack_wide::<B, N>(&mut panel, v, rows) };
        }
        match (B::MIN, B::SHARED) {
            (true, 16) => tile512::block_of_256::<true, 16>(&panel, b, columns, n, y),
            (true, _) => tile512::block_of_256::<true, 32>(&panel, b, columns, n, y),
            (false, 16) => tile512::block_of_256::<false, 16>(&panel, b, columns, n, y),
            (false, _) => tile512::block_of_256::<false, 32>(&panel, b, columns, n, y),
        }
    }
}

/// One block each of up to sixteen rows into group `v` of a panel.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
unsafe fn unpack_wide<'a, B: X86Block256<N>, const N: usize>(
    panel: &mut tile512::Panel,
    v: usize,
    rows: impl Iterator<Item = &'a [u8; N]>,
) {
    const { assert!(!B::MIN || B::OFFSET == 0, "a panel has minima or an offset, not both") };
    // Half of the range makes all integers unsigned; those with minima are so already.
    let offset: i16 = if B::MIN { 0 } else { 128 };
    let mut bytes = [[0; 256]; 16];
    let mut scales = [[[0i16; 16]; 2]; 16];
    for (r, block) in rows.enumerate() {
        // SAFETY: this function has its features.
        unsafe { B::wide_block(block, offset, &mut bytes[r]) };
        // SAFETY: AVX2 is on; two times sixteen words into arrays of sixteen.
        unsafe {
            let (scale, min) = B::scale_words(block);
            let second = if B::MIN { min } else { _mm256_mullo_epi16(scale, _mm256_set1_epi16(offset)) };
            _mm256_storeu_si256(scales[r][0].as_mut_ptr().cast(), scale);
            _mm256_storeu_si256(scales[r][1].as_mut_ptr().cast(), second);
        }
        (panel.d[0][16 * v + r], panel.m[0][16 * v + r]) = tile::units(B::halves(block), B::UNIT_FACTOR);
    }
    panel.fill_bytes(v, &bytes);
    panel.fill_scales(v, &scales);
}

/// Sixteen words: the even ones in the lower half, the odd ones in the upper.
#[inline]
#[target_feature(enable = "avx2")]
fn even_then_odd(v: __m256i) -> __m256i {
    let order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    let sorted = _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(order));
    _mm256_permute4x64_epi64::<0b11_01_10_00>(sorted)
}

/// [`scales_and_mins`](crate::quant::block256::scales_and_mins) in registers.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn scale_and_min_words(packed: &[u8; 12]) -> (__m256i, __m256i) {
    let word = |i: usize| u32_at(packed, 4 * i);
    let (a, b, c) = (word(0), word(1), word(2));
    let (low, nibble, top) = (0x3f3f_3f3f, 0x0f0f_0f0f, 0x3030_3030);
    let scales = u64::from(a & low) | u64::from(c & nibble | a >> 2 & top) << 32;
    let mins = u64::from(b & low) | u64::from(c >> 4 & nibble | b >> 2 & top) << 32;
    // Each byte as two words.
    let order = _mm256_setr_epi64x(
        0x8001_8001_8000_8000u64 as i64,
        0x8003_8003_8002_8002u64 as i64,
        0x8005_8005_8004_8004u64 as i64,
        0x8007_8007_8006_8006u64 as i64,
    );
    let words = |bytes: u64| _mm256_shuffle_epi8(_mm256_set1_epi64x(bytes as i64), order);
    (words(scales), words(mins))
}
