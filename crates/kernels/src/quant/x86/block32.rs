//! Blocks of 32 with AVX2, and with AVX-512's byte dot products (VNNI): what a format gives, and its tiles. Rows are in [`rows32`].

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::tile::{self, Form, Panel};
use super::{fetch, four_units, rows32, tile512};
use crate::quant::block32::Block32;
use crate::{Kernels, TILE_ROWS};

/// A block of 32 as a vector.
pub(in crate::quant) trait X86Block32<const N: usize>: Block32<N> {
    /// What [`X86Block32::load`] adds to the integers to make them unsigned.
    const OFFSET: i32;
    /// Whether two unsigned products may exceed sixteen bits; AVX2 then multiplies signed.
    const WIDE: bool = false;
    /// From how many activation rows on an AVX2 tile is faster than rows.
    const TILE_FROM: usize = 4;
    /// The largest integer with its offset.
    const TILE_TOP: i32;
    /// Steps of four elements whose products are added in sixteen bits, see [`Form`]. With 0 the tile works on words instead.
    const TILE_CHAIN: usize;

    /// The integers plus the offset, as unsigned bytes.
    ///
    /// # Safety
    /// AVX2.
    unsafe fn load(block: &[u8; N]) -> __m256i;

    /// Elements 0 to 15 of two blocks, and elements 16 to 31: as [`X86Block32::load`] has them, or signed where they are `WIDE`.
    ///
    /// # Safety
    /// AVX2.
    unsafe fn load_two(a: &[u8; N], b: &[u8; N]) -> [__m256i; 2];

    /// Sums of pairs of products of what [`X86Block32::load_two`] loads.
    ///
    /// # Safety
    /// AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn multiply(q: __m256i, x: __m256i) -> __m256i {
        _mm256_maddubs_epi16(q, x)
    }

    /// The scales and minima of two block columns of four rows, in the order of [`rows32`].
    ///
    /// # Safety
    /// AVX2 and F16C.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn units_of_two(columns: [[&[u8; N]; 4]; 2]) -> (__m256, __m256) {
        if Self::MIN {
            rows32::halves_of_two::<true, N>(columns)
        } else {
            rows32::halves_of_two::<false, N>(columns)
        }
    }

    /// The scales and minima of four blocks.
    ///
    /// # Safety
    /// AVX2 and F16C.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn units(blocks: [&[u8; N]; 4]) -> (__m128, __m128) {
        let half = |block: &[u8; N], at: usize| u32::from(block[at]) | u32::from(block[at + 1]) << 8;
        let halves = |block| half(block, 0) | if Self::MIN { half(block, 2) << 16 } else { 0 };
        four_units([halves(blocks[0]), halves(blocks[1]), halves(blocks[2]), halves(blocks[3])])
    }
}

/// The AVX2 kernels.
pub(in crate::quant) const fn avx2<B: X86Block32<N>, const N: usize>() -> Kernels {
    Kernels { rows: rows32::rows_avx2::<B, N>, tile: Some((tile_avx2::<B, N>, B::TILE_FROM)) }
}

/// From how many activation rows on an AVX-512 tile is taken (a guess: nobody has timed it).
const TILE_FROM_AVX512: usize = 4;

/// The AVX-512 kernels.
pub(in crate::quant) const fn avx512<B: X86Block32<N>, const N: usize>() -> Kernels {
    Kernels { rows: rows32::rows_avx512::<B, N>, tile: Some((tile_avx512::<B, N>, TILE_FROM_AVX512)) }
}

/// What a tile must know of `B`.
struct Of<B, const N: usize>(PhantomData<B>);

impl<B: X86Block32<N>, const N: usize> Form for Of<B, N> {
    const CHAIN: usize = B::TILE_CHAIN;
    const OFFSET: i32 = B::OFFSET;
    const TOP: i32 = B::TILE_TOP;
    const MIN: bool = B::MIN;
    const SHARED: usize = 32;
}

/// # Safety
/// That of [`Tile`](crate::Tile), for AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
unsafe fn tile_avx2<B: X86Block32<N>, const N: usize>(
    weights: &[u8],
    n_rows: usize,
    columns: &[&[u8]],
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    let n_blocks = n / 32;
    let blocks = &weights.as_chunks::<N>().0[..n_blocks * n_rows];
    y.fill([0.0; TILE_ROWS]);
    let (mut panel, mut ready) = (Panel::new(), tile::NONE_READY);
    for first in (0..n_blocks).step_by(8) {
        let count = 8.min(n_blocks - first);
        for row in blocks.chunks_exact(n_blocks) {
            // The next eight blocks of this row.
            fetch(row[first..first + count].as_flattened(), count * N);
        }
        for v in 0..n_rows.div_ceil(8) {
            for s in 0..count {
                // Rows past the end are the last one again.
                let row = |r: usize| &blocks[(8 * v + r).min(n_rows - 1) * n_blocks + first + s];
                // SAFETY: this function has its features.
                unsafe { unpack::<B, N>(&mut panel, v, s, std::array::from_fn(row)) };
            }
        }
        tile::blocks_of_32::<Of<B, N>>(&panel, first, count, n_rows, columns, &mut ready, n, y);
    }
}

/// One block each of eight rows into place `s` of group `v` of a panel.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn unpack<B: X86Block32<N>, const N: usize>(
    panel: &mut Panel,
    v: usize,
    s: usize,
    rows: [&[u8; N]; 8],
) {
    let [a, b, c, d, e, f, g, h] = rows;
    // SAFETY: this function has their features; four floats into halves of eight.
    let q = unsafe {
        for (half, four) in [[a, b, c, d], [e, f, g, h]].into_iter().enumerate() {
            let (d, m) = B::units(four);
            _mm_storeu_ps(panel.d[s].as_chunks_mut::<4>().0[2 * v + half].as_mut_ptr(), d);
            _mm_storeu_ps(panel.m[s].as_chunks_mut::<4>().0[2 * v + half].as_mut_ptr(), m);
        }
        [B::load(a), B::load(b), B::load(c), B::load(d), B::load(e), B::load(f), B::load(g), B::load(h)]
    };
    if B::TILE_CHAIN > 0 {
        tile::put_lines(tile::transposed(q), &mut panel.bytes(v).as_chunks_mut::<8>().0[s]);
        return;
    }
    let (mut low, mut high) = (q, q);
    for r in 0..8 {
        [low[r], high[r]] = tile::widened(_mm256_sub_epi8(q[r], _mm256_set1_epi8(B::OFFSET as u8 as i8)));
    }
    panel.fill_words(v, 2 * s, low);
    panel.fill_words(v, 2 * s + 1, high);
}

/// # Safety
/// That of [`Tile`](crate::Tile), for AVX2, F16C and AVX-512 F, BW, VL and VNNI.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile_avx512<B: X86Block32<N>, const N: usize>(
    weights: &[u8],
    n_rows: usize,
    columns: &[&[u8]],
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    let n_blocks = n / 32;
    let blocks = &weights.as_chunks::<N>().0[..n_blocks * n_rows];
    y.fill([0.0; TILE_ROWS]);
    let mut panel = tile512::Panel::new();
    for first in (0..n_blocks).step_by(8) {
        let count = 8.min(n_blocks - first);
        for v in 0..n_rows.div_ceil(16) {
            let mut bytes = [[0; 256]; 16];
            for r in 0..16.min(n_rows - 16 * v) {
                let at = 16 * v + r;
                let row = &blocks[at * n_blocks + first..][..count];
                for (s, (block, out)) in row.iter().zip(bytes[r].as_chunks_mut::<32>().0).enumerate() {
                    // SAFETY: this function has their features; thirty-two bytes into an array of thirty-two.
                    let (d, m) = unsafe {
                        _mm256_storeu_si256(out.as_mut_ptr().cast(), B::load(block));
                        B::units([block; 4])
                    };
                    (panel.d[s][at], panel.m[s][at]) = (_mm_cvtss_f32(d), _mm_cvtss_f32(m));
                }
            }
            panel.fill_bytes(v, &bytes);
        }
        if B::MIN {
            tile512::blocks_of_32::<true>(&panel, first, count, B::OFFSET, columns, n, y);
        } else {
            tile512::blocks_of_32::<false>(&panel, first, count, B::OFFSET, columns, n, y);
        }
    }
}
