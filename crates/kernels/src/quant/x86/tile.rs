//! Many activation rows at once with AVX2: eight weight rows side by side in the lanes of a register meet broadcast activations, so that
//! no sum across lanes is ever needed. A panel is small enough to stay in the first-level cache while all columns pass by.
//!
//! ```text
//! | k 0..4 of row 0 | k 0..4 of row 1 | … row 7 | k 4..8 of row 0 | …
//! ```
//! Thirty-two bytes of these are a *line*, and meet four bytes of a column: a *step*.
//!
//! Most integers are made unsigned by an offset; their products are added in sixteen bits, a *chain* of steps, and only then widened,
//! with their scale. What the offset adds to a chain depends on the activations alone, so a chain starts with that taken off (modulo
//! 2^16, in which all of it is exact): all that must fit sixteen bits is one step of the unsigned integers, and a chain of the signed
//! ones. What is too large for that stays signed, gives its signs to the activations and is widened after every step. Chains that are
//! short because of the largest activations possible become longer where those at hand are small enough.

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::load32;
use crate::activation::{Q8Row, Q8kRow};
use crate::{TILE_COLUMNS, TILE_ROWS};

/// Groups of eight rows in a tile.
const GROUPS: usize = TILE_ROWS / 8;
/// Columns that share a load of weights: their sums with two groups of rows fill the registers.
const COLUMNS: usize = 3;

/// What a tile must know of a format.
pub(in crate::quant) trait Form {
    /// Steps of a chain: 1, 2, 4 or 8, and no more elements than share a scale. 0: signed integers.
    const CHAIN: usize;
    /// Steps of a chain where the activations at hand let it fit sixteen bits; [`Form::CHAIN`] where that is long enough.
    const LONG: usize = Self::CHAIN;
    /// What makes the integers unsigned.
    const OFFSET: i32;
    /// The largest of the unsigned integers.
    const TOP: i32;
    /// Whether there are minima.
    const MIN: bool;
    /// Elements that share a scale: 16 or 32.
    const SHARED: usize;

    /// The largest magnitude of the signed integers.
    const MAGNITUDE: i32 = if Self::TOP > 2 * Self::OFFSET { Self::TOP - Self::OFFSET } else { Self::OFFSET };
    /// Whether what the offset adds to a chain may be taken off the lower words alone: then sums that are at hand say it all.
    const WHOLE: bool =
        Self::CHAIN >= 4 && 2 * 127 * (Self::MAGNITUDE + Self::OFFSET) * Self::CHAIN as i32 <= 32767;
    /// A step has two products per word, activations are in −127..=127: nothing saturates, whatever the weights' bytes are.
    const FITS: () = {
        let top = if Self::CHAIN == 0 { 128 } else { Self::TOP };
        assert!(2 * 127 * top <= 32767, "a step of unsigned integers, or of magnitudes");
        assert!(2 * 127 * Self::MAGNITUDE * Self::CHAIN as i32 <= 32767, "a chain of signed integers");
        assert!(4 * Self::CHAIN <= Self::SHARED && 4 * Self::LONG <= Self::SHARED, "one scale per chain");
    };
}

/// A form whose columns have been found to allow its long chains.
struct Long<F>(PhantomData<F>);

impl<F: Form> Form for Long<F> {
    const CHAIN: usize = F::LONG;
    const OFFSET: i32 = F::OFFSET;
    const TOP: i32 = F::TOP;
    const MIN: bool = F::MIN;
    const SHARED: usize = F::SHARED;
    const WHOLE: bool = false;
}

/// Lines of eight rows: 64 for 256 elements.
pub(in crate::quant) type Lines<const L: usize> = [[u8; 32]; L];

/// 256 elements of 32 rows, unpacked.
#[repr(align(64))]
pub(in crate::quant) struct Panel {
    /// The integers.
    w: [Lines<64>; GROUPS],
    /// A line of scales per group of 16 (or of 32, if so many share one), each scale twice: what pairs of sums are widened with.
    scales: [[[i16; 16]; 16]; GROUPS],
    /// Lines of minima of two neighbouring groups of 16 (or of 32).
    mins: [[[i16; 16]; 8]; GROUPS],
    /// Units of scales: of the block of 256, or of its eight blocks of 32.
    pub(in crate::quant) d: [[f32; TILE_ROWS]; 8],
    /// Units of minima: as `d`.
    pub(in crate::quant) m: [[f32; TILE_ROWS]; 8],
}

impl Panel {
    pub(in crate::quant) fn new() -> Panel {
        Panel {
            w: [[[0; 32]; 64]; GROUPS],
            scales: [[[0; 16]; 16]; GROUPS],
            mins: [[[0; 16]; 8]; GROUPS],
            d: [[0.0; TILE_ROWS]; 8],
            m: [[0.0; TILE_ROWS]; 8],
        }
    }

    /// Where the integers of group `v` go.
    pub(in crate::quant) fn lines(&mut self, v: usize) -> &mut Lines<64> {
        &mut self.w[v]
    }

    /// The scales of eight rows, two per dword.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn fill_scales<F: Form>(&mut self, v: usize, rows: [__m256i; 8]) {
        // Even words twice, odd words twice.
        let even = _mm256_set1_epi64x(0x0504_0504_0100_0100);
        let even = _mm256_add_epi8(even, _mm256_set_epi64x(LATER, 0, LATER, 0));
        let odd = _mm256_add_epi8(even, _mm256_set1_epi8(2));
        for (i, line) in transposed(rows).into_iter().enumerate() {
            if F::SHARED == 32 {
                put_words(line, &mut self.scales[v][i]);
            } else {
                put_words(_mm256_shuffle_epi8(line, even), &mut self.scales[v][2 * i]);
                put_words(_mm256_shuffle_epi8(line, odd), &mut self.scales[v][2 * i + 1]);
            }
        }
    }

    /// The minima of eight rows, two per dword.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn fill_mins<F: Form>(&mut self, v: usize, rows: [__m256i; 8]) {
        let lines = transposed(rows);
        for i in 0..8 {
            if F::SHARED == 16 {
                put_words(lines[i], &mut self.mins[v][i]);
            } else if i < 4 {
                put_words(
                    _mm256_blend_epi16::<0b1010_1010>(lines[2 * i], lines[2 * i + 1]),
                    &mut self.mins[v][i],
                );
            }
        }
    }
}

/// Eight added to each byte.
const LATER: i64 = 0x0808_0808_0808_0808;

/// Stores sixteen words.
#[inline]
#[target_feature(enable = "avx2")]
fn put_words(v: __m256i, out: &mut [i16; 16]) {
    // SAFETY: sixteen words into an array of sixteen; the store needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), v) };
}

/// Stores a line.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn put_line(v: __m256i, out: &mut [u8; 32]) {
    // SAFETY: thirty-two bytes into an array of thirty-two; the store needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), v) };
}

/// Stores eight lines.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn put_lines(lines: [__m256i; 8], out: &mut Lines<8>) {
    for i in 0..8 {
        put_line(lines[i], &mut out[i]);
    }
}

/// Dword `i` of row `r` becomes dword `r` of line `i`.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn transposed(r: [__m256i; 8]) -> [__m256i; 8] {
    let pairs = |a, b| (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let ((a0, a1), (b0, b1)) = (pairs(r[0], r[1]), pairs(r[2], r[3]));
    let ((c0, c1), (d0, d1)) = (pairs(r[4], r[5]), pairs(r[6], r[7]));
    let fours = |a, b| (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let ((e0, e1), (e2, e3)) = (fours(a0, b0), fours(a1, b1));
    let ((f0, f1), (f2, f3)) = (fours(c0, d0), fours(c1, d1));
    [
        _mm256_permute2x128_si256::<0x20>(e0, f0),
        _mm256_permute2x128_si256::<0x20>(e1, f1),
        _mm256_permute2x128_si256::<0x20>(e2, f2),
        _mm256_permute2x128_si256::<0x20>(e3, f3),
        _mm256_permute2x128_si256::<0x31>(e0, f0),
        _mm256_permute2x128_si256::<0x31>(e1, f1),
        _mm256_permute2x128_si256::<0x31>(e2, f2),
        _mm256_permute2x128_si256::<0x31>(e3, f3),
    ]
}

/// At most 256 elements of a column, made ready for all groups of rows.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(in crate::quant) struct Column {
    /// The activations.
    q: *const u8,
    /// What each chain of words starts with, two words per dword.
    starts: [i32; 32],
    /// Sums of sixteen activations, or eight of 32: those that share a minimum.
    sums: [i16; 16],
    /// Scales and sums: of the block of 256, or of its eight blocks of 32.
    a: [f32; 8],
    s: [f32; 8],
}

/// Columns that pass by a panel together.
pub(in crate::quant) type Ready = [Column; COLUMNS];

/// None yet.
pub(in crate::quant) const NONE_READY: Ready =
    [Column { q: std::ptr::null(), starts: [0; 32], sums: [0; 16], a: [0.0; 8], s: [0.0; 8] }; COLUMNS];

impl Column {
    /// Takes `x`, a whole number of 32 elements.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn take<F: Form>(&mut self, x: &[u8]) {
        self.q = x.as_ptr();
        // (Where chains may be long, it must first be known whether.)
        if F::CHAIN != 0 && F::OFFSET != 0 && !F::WHOLE && F::LONG == F::CHAIN {
            self.start_chains::<F>(x);
        }
    }

    /// Stores what the next eight chains from `8 · i` start with.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn put_starts(&mut self, i: usize, starts: __m256i) {
        let out: &mut [i32; 8] = &mut self.starts.as_chunks_mut::<8>().0[i];
        // SAFETY: eight dwords into an array of eight; the store needs no alignment.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), starts) };
    }

    /// Per chain `−OFFSET` times the sums of what its lower and its upper words will see.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn start_chains<F: Form>(&mut self, x: &[u8]) {
        let ones = _mm256_set1_epi8(1);
        let mut pairs = [_mm256_setzero_si256(); 8];
        for s in 0..8 {
            if 32 * s < x.len() {
                pairs[s] = _mm256_maddubs_epi16(ones, load32(x, 32 * s));
            }
        }
        let sums = chain_sums::<F>(pairs);
        let offset = _mm256_set1_epi16(-F::OFFSET as i16);
        for i in 0..8 / F::CHAIN {
            self.put_starts(i, _mm256_mullo_epi16(sums[i], offset));
        }
    }
}

/// From words of pairs of 256 elements, a dword per step, to those of chains, in order.
#[inline]
#[target_feature(enable = "avx2")]
fn chain_sums<F: Form>(v: [__m256i; 8]) -> [__m256i; 4] {
    // Neighbouring dwords; the results are in order but for the second and third quarter.
    let two = |a, b| {
        let (a, b) = (_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
        let even = _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(a, b));
        let odd = _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(a, b));
        _mm256_add_epi16(even, odd)
    };
    let none = _mm256_setzero_si256();
    let twos = [two(v[0], v[1]), two(v[2], v[3]), two(v[4], v[5]), two(v[6], v[7])];
    if F::CHAIN == 2 {
        let ordered = |i: usize| _mm256_permute4x64_epi64::<0b11_01_10_00>(twos[i]);
        return [ordered(0), ordered(1), ordered(2), ordered(3)];
    }
    let fours = [two(twos[0], twos[1]), two(twos[2], twos[3])];
    if F::CHAIN == 4 {
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let ordered = |i: usize| _mm256_permutevar8x32_epi32(fours[i], order);
        return [ordered(0), ordered(1), none, none];
    }
    let low = _mm256_permute2x128_si256::<0x20>(fours[0], fours[1]);
    let high = _mm256_permute2x128_si256::<0x31>(fours[0], fours[1]);
    [_mm256_add_epi16(low, high), none, none, none]
}

/// Whether long chains of `x`, 256 elements, fit sixteen bits with any weights.
#[inline]
#[target_feature(enable = "avx2")]
fn allows_long<F: Form>(x: &[u8]) -> bool {
    let ones = _mm256_set1_epi8(1);
    let mut pairs = [_mm256_setzero_si256(); 8];
    for s in 0..8 {
        pairs[s] = _mm256_maddubs_epi16(_mm256_abs_epi8(load32(x, 32 * s)), ones);
    }
    let sums = chain_sums::<Long<F>>(pairs);
    let most = _mm256_set1_epi16((32767 / F::MAGNITUDE) as i16);
    let mut over = _mm256_setzero_si256();
    for i in 0..8 / F::LONG {
        over = _mm256_or_si256(over, _mm256_cmpgt_epi16(sums[i], most));
    }
    _mm256_testz_si256(over, over) == 1
}

/// The sum itself, computed before those that come later in the code. Left alone, the optimiser takes one group of rows after the
/// other, keeps activations for it on the stack and spends more on that than on computing.
#[inline]
#[target_feature(enable = "avx2")]
fn in_turn(mut v: __m256i) -> __m256i {
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {v} */", v = inlateout(ymm_reg) v, options(nomem, nostack, preserves_flags)) };
    v
}

/// The sums of one chain: two groups of rows with `C` columns, at line `step`.
///
/// # Safety
/// AVX2; there are so many lines, activations and starts.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn chain<F: Form, const C: usize>(
    w: [*const u8; 2],
    columns: &Ready,
    step: usize,
) -> [[__m256i; 2]; C] {
    let mut sums = [[_mm256_setzero_si256(); 2]; C];
    // SAFETY: as promised; no load needs alignment.
    unsafe {
        if F::OFFSET != 0 {
            for c in 0..C {
                sums[c] = [_mm256_set1_epi32(*columns[c].starts.as_ptr().add(step / F::CHAIN)); 2];
            }
        }
        for s in step..step + F::CHAIN {
            let w0 = _mm256_loadu_si256(w[0].add(32 * s).cast());
            let w1 = _mm256_loadu_si256(w[1].add(32 * s).cast());
            for c in 0..C {
                let four = _mm256_set1_epi32(columns[c].q.add(4 * s).cast::<i32>().read_unaligned());
                sums[c][0] = in_turn(_mm256_add_epi16(sums[c][0], _mm256_maddubs_epi16(w0, four)));
                sums[c][1] = in_turn(_mm256_add_epi16(sums[c][1], _mm256_maddubs_epi16(w1, four)));
            }
        }
    }
    sums
}

/// Adds the products of signed integers, each step widened with `scale`: so many steps from line `step`, two groups of rows with `C`
/// columns.
///
/// # Safety
/// AVX2; there are so many lines and activations.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_signed<const C: usize>(
    acc: &mut [[__m256i; 2]; C],
    w: [*const u8; 2],
    columns: &Ready,
    step: usize,
    steps: usize,
    scale: [__m256i; 2],
) {
    for s in step..step + steps {
        // SAFETY: as promised; no load needs alignment.
        unsafe {
            let w0 = _mm256_loadu_si256(w[0].add(32 * s).cast());
            let w1 = _mm256_loadu_si256(w[1].add(32 * s).cast());
            let (m0, m1) = (_mm256_abs_epi8(w0), _mm256_abs_epi8(w1));
            for c in 0..C {
                let four = _mm256_set1_epi32(columns[c].q.add(4 * s).cast::<i32>().read_unaligned());
                // Activations are never −128; weights may be, and their magnitude is then an unsigned 128.
                let p0 = _mm256_maddubs_epi16(m0, _mm256_sign_epi8(four, w0));
                acc[c][0] = in_turn(_mm256_add_epi32(acc[c][0], _mm256_madd_epi16(p0, scale[0])));
                let p1 = _mm256_maddubs_epi16(m1, _mm256_sign_epi8(four, w1));
                acc[c][1] = in_turn(_mm256_add_epi32(acc[c][1], _mm256_madd_epi16(p1, scale[1])));
            }
        }
    }
}

/// Sums of products of words, `steps` lines of two groups with pairs of words of `C` columns.
///
/// # Safety
/// AVX2; there are so many lines and words.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn multiply_words<const C: usize>(
    w: [*const u8; 2],
    x: [*const u8; C],
    steps: usize,
) -> [[__m256i; 2]; C] {
    let mut acc = [[_mm256_setzero_si256(); 2]; C];
    for s in 0..steps {
        // SAFETY: as promised; no load needs alignment.
        unsafe {
            let w0 = _mm256_loadu_si256(w[0].add(32 * s).cast());
            let w1 = _mm256_loadu_si256(w[1].add(32 * s).cast());
            for c in 0..C {
                let pair = _mm256_set1_epi32(x[c].add(4 * s).cast::<i32>().read_unaligned());
                acc[c][0] = in_turn(_mm256_add_epi32(acc[c][0], _mm256_madd_epi16(w0, pair)));
                acc[c][1] = in_turn(_mm256_add_epi32(acc[c][1], _mm256_madd_epi16(w1, pair)));
            }
        }
    }
    acc
}

/// What [`multiply_words`] starts from.
#[inline(always)]
fn starts<const C: usize>(columns: &Ready, start: impl Fn(&Column) -> *const u8) -> [*const u8; C] {
    let mut starts = [std::ptr::null(); C];
    for c in 0..C {
        starts[c] = start(&columns[c]);
    }
    starts
}

/// Calls the function with the constant number of columns for a count of 1 to [`COLUMNS`].
macro_rules! for_columns {
    ($count:expr, $function:ident, $form:ty, ($($argument:expr),*)) => {
        match $count {
            3 => $function::<$form, 3>($($argument),*),
            2 => $function::<$form, 2>($($argument),*),
            _ => $function::<$form, 1>($($argument),*),
        }
    };
}

/// How many of `left` columns go next: no column remains alone, since alone it would wait for its loads.
#[inline(always)]
fn together(left: usize) -> usize {
    if left == 4 { 2 } else { left.min(COLUMNS) }
}

/// Asks for the lines of the cache that hold these bytes.
#[inline(always)]
fn fetch_around(bytes: &[u8]) {
    for at in (0..bytes.len() + 63).step_by(64) {
        // SAFETY: a hint; it does not matter whether there is memory.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(at).cast()) };
    }
}

/// Adds block `b` of every column to its sums.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn block_of_256<F: Form>(
    panel: &Panel,
    b: usize,
    n_rows: usize,
    columns: &[&[u8]],
    ready: &mut Ready,
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    const { F::FITS };
    debug_assert!(columns.len() <= TILE_COLUMNS);
    let mut from = 0;
    while from < columns.len() {
        let count = together(columns.len() - from);
        for (column, ready) in columns[from..from + count].iter().zip(&mut *ready) {
            let row = Q8kRow::new(column, n);
            ready.take::<F>(&row.q[256 * b..256 * b + 256]);
            ready.a[0] = row.d(b);
            let sixteens = load32(row.sums, 32 * b);
            let both = _mm256_madd_epi16(sixteens, _mm256_set1_epi16(1));
            if F::MIN {
                let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(both, both));
                put_words(if F::SHARED == 32 { packed } else { sixteens }, &mut ready.sums);
            }
            if F::OFFSET != 0 && F::WHOLE {
                let share = _mm256_set1_epi32(-F::OFFSET & 0xffff);
                if F::CHAIN == 4 {
                    let [low, high] =
                        [_mm256_castsi256_si128(sixteens), _mm256_extracti128_si256::<1>(sixteens)];
                    ready.put_starts(0, _mm256_mullo_epi16(_mm256_cvtepi16_epi32(low), share));
                    ready.put_starts(1, _mm256_mullo_epi16(_mm256_cvtepi16_epi32(high), share));
                } else {
                    ready.put_starts(0, _mm256_mullo_epi16(both, share));
                }
            }
        }
        // Those after the next are on their way while these are computed with; the rows are too far apart for the processor to see.
        for column in columns[from + count..].iter().take(COLUMNS) {
            fetch_around(&column[256 * b..256 * b + 256]);
            fetch_around(&column[n + n / 64 + 32 * b..][..32]);
        }
        let y = &mut y[from..from + count];
        if F::LONG != F::CHAIN {
            let x = |c: usize| &columns[from + c][256 * b..256 * b + 256];
            if (0..count).all(|c| allows_long::<F>(x(c))) {
                (0..count).for_each(|c| ready[c].start_chains::<Long<F>>(x(c)));
                for v in (0..n_rows.div_ceil(8)).step_by(2) {
                    for_columns!(count, add_256, Long<F>, (panel, v, ready, y));
                }
                from += count;
                continue;
            }
            (0..count).for_each(|c| ready[c].start_chains::<F>(x(c)));
        }
        for v in (0..n_rows.div_ceil(8)).step_by(2) {
            for_columns!(count, add_256, F, (panel, v, ready, y));
        }
        from += count;
    }
}

/// `y += a · (d · products [− dmin · mins])` for two groups of rows: the canonical order of blocks of 256.
///
/// (Never inlined: the optimiser would move the panel's loads out of the loop over columns, and then all of the panel to the stack.)
#[inline(never)]
#[target_feature(enable = "avx2")]
fn add_256<F: Form, const C: usize>(panel: &Panel, v: usize, columns: &Ready, y: &mut [[f32; TILE_ROWS]]) {
    let w = [panel.w[v].as_ptr().cast(), panel.w[v + 1].as_ptr().cast()];
    let mut products = [[_mm256_setzero_si256(); 2]; C];
    for step in (0..64).step_by(if F::CHAIN == 0 { F::SHARED / 4 } else { F::CHAIN }) {
        let scale = |g: usize| {
            let scale: &[i16; 16] = &panel.scales[v + g][4 * step / F::SHARED];
            // SAFETY: sixteen readable words; the load needs no alignment.
            unsafe { _mm256_loadu_si256(scale.as_ptr().cast()) }
        };
        if F::CHAIN == 0 {
            // SAFETY: AVX2 is on; 64 lines and 256 activations.
            unsafe { add_signed(&mut products, w, columns, step, F::SHARED / 4, [scale(0), scale(1)]) };
            continue;
        }
        // SAFETY: AVX2 is on; 64 lines, 256 activations and a start per chain.
        let sums = unsafe { chain::<F, C>(w, columns, step) };
        for g in 0..2 {
            let scale = scale(g);
            for c in 0..C {
                products[c][g] = _mm256_add_epi32(products[c][g], _mm256_madd_epi16(sums[c][g], scale));
            }
        }
    }
    let mut mins = [[_mm256_setzero_si256(); 2]; C];
    if F::MIN {
        let w = [panel.mins[v].as_ptr().cast(), panel.mins[v + 1].as_ptr().cast()];
        let x = starts(columns, |column| column.sums.as_ptr().cast());
        // SAFETY: AVX2 is on; sixteen or eight minima and sums.
        mins = unsafe { multiply_words(w, x, 128 / F::SHARED) };
    }
    for c in 0..C {
        for g in 0..2 {
            let from = 8 * (v + g);
            let mut t = _mm256_mul_ps(eight(&panel.d[0], from), _mm256_cvtepi32_ps(products[c][g]));
            if F::MIN {
                let m = _mm256_mul_ps(eight(&panel.m[0], from), _mm256_cvtepi32_ps(mins[c][g]));
                t = _mm256_sub_ps(t, m);
            }
            let sum = _mm256_add_ps(eight(&y[c], from), _mm256_mul_ps(_mm256_set1_ps(columns[c].a[0]), t));
            put_eight(&mut y[c], from, sum);
        }
    }
}

/// Adds `n_blocks` (at most eight) blocks of 32 from block `b` of every column to its sums.
#[inline]
#[target_feature(enable = "avx2")]
#[expect(clippy::too_many_arguments, reason = "a panel and its place, columns and theirs")]
pub(in crate::quant) fn blocks_of_32<F: Form>(
    panel: &Panel,
    b: usize,
    n_blocks: usize,
    n_rows: usize,
    columns: &[&[u8]],
    ready: &mut Ready,
    n: usize,
    y: &mut [[f32; TILE_ROWS]],
) {
    const { F::FITS };
    let mut from = 0;
    while from < columns.len() {
        let count = together(columns.len() - from);
        for (column, ready) in columns[from..from + count].iter().zip(&mut *ready) {
            let row = Q8Row::new(column, n);
            ready.take::<F>(&row.q[32 * b..32 * (b + n_blocks)]);
            for s in 0..n_blocks {
                let sum = row.sum(b + s);
                (ready.a[s], ready.s[s]) = (row.d(b + s), sum as f32);
                if F::OFFSET != 0 && F::WHOLE {
                    ready.starts[s] = (-F::OFFSET * sum) & 0xffff;
                }
            }
        }
        for column in columns[from + count..].iter().take(COLUMNS) {
            fetch_around(&column[32 * b..32 * (b + n_blocks)]);
        }
        for v in (0..n_rows.div_ceil(8)).step_by(2) {
            let y = &mut y[from..from + count];
            if F::SHARED == 16 {
                for_columns!(count, add_halves, F, (panel, v, n_blocks, ready, y));
            } else {
                for_columns!(count, add_32, F, (panel, v, n_blocks, ready, y));
            }
        }
        from += count;
    }
}

/// `y += a · (d · products [+ m · sum])` for two groups of rows: the canonical order of blocks of 32. (Never inlined: see [`add_256`].)
#[inline(never)]
#[target_feature(enable = "avx2")]
fn add_32<F: Form, const C: usize>(
    panel: &Panel,
    v: usize,
    n_blocks: usize,
    columns: &Ready,
    y: &mut [[f32; TILE_ROWS]],
) {
    let w: [*const u8; 2] = [panel.w[v].as_ptr().cast(), panel.w[v + 1].as_ptr().cast()];
    let ones = _mm256_set1_epi16(1);
    let mut sums = [[_mm256_setzero_ps(); 2]; C];
    for c in 0..C {
        sums[c] = [eight(&y[c], 8 * v), eight(&y[c], 8 * v + 8)];
    }
    for s in 0..n_blocks {
        let mut products = [[_mm256_setzero_si256(); 2]; C];
        if F::CHAIN == 0 {
            // SAFETY: AVX2 is on; eight of the lines and activations of so many blocks.
            unsafe { add_signed(&mut products, w, columns, 8 * s, 8, [ones; 2]) };
        } else {
            for step in (8 * s..8 * s + 8).step_by(F::CHAIN) {
                // SAFETY: AVX2 is on; eight of the lines and activations of so many blocks.
                let sums = unsafe { chain::<F, C>(w, columns, step) };
                for c in 0..C {
                    for g in 0..2 {
                        products[c][g] =
                            _mm256_add_epi32(products[c][g], _mm256_madd_epi16(sums[c][g], ones));
                    }
                }
            }
        }
        for g in 0..2 {
            let (d, m) = (eight(&panel.d[s], 8 * (v + g)), eight(&panel.m[s], 8 * (v + g)));
            for c in 0..C {
                let mut t = _mm256_mul_ps(d, _mm256_cvtepi32_ps(products[c][g]));
                if F::MIN {
                    t = _mm256_add_ps(t, _mm256_mul_ps(m, _mm256_set1_ps(columns[c].s[s])));
                }
                sums[c][g] = _mm256_add_ps(sums[c][g], _mm256_mul_ps(_mm256_set1_ps(columns[c].a[s]), t));
            }
        }
    }
    for c in 0..C {
        put_eight(&mut y[c], 8 * v, sums[c][0]);
        put_eight(&mut y[c], 8 * v + 8, sums[c][1]);
    }
}

/// `y += a · (d · products + m · the next products)` for two groups of rows: blocks of 32 with a scale per sixteen, the second
/// where others have a minimum. (Never inlined: see [`add_256`].)
#[inline(never)]
#[target_feature(enable = "avx2")]
fn add_halves<F: Form, const C: usize>(
    panel: &Panel,
    v: usize,
    n_blocks: usize,
    columns: &Ready,
    y: &mut [[f32; TILE_ROWS]],
) {
    const { assert!(F::CHAIN == 4 || F::SHARED == 32, "a chain is sixteen elements") };
    let w: [*const u8; 2] = [panel.w[v].as_ptr().cast(), panel.w[v + 1].as_ptr().cast()];
    let ones = _mm256_set1_epi16(1);
    for s in 0..n_blocks {
        let mut terms = [[_mm256_setzero_ps(); 2]; C];
        for (half, units) in [&panel.d[s], &panel.m[s]].into_iter().enumerate() {
            // SAFETY: AVX2 is on; eight of the lines and activations of so many blocks.
            let sums = unsafe { chain::<F, C>(w, columns, 8 * s + 4 * half) };
            for g in 0..2 {
                let unit = eight(units, 8 * (v + g));
                for c in 0..C {
                    let products = _mm256_cvtepi32_ps(_mm256_madd_epi16(sums[c][g], ones));
                    let term = _mm256_mul_ps(unit, products);
                    terms[c][g] = if half == 0 { term } else { _mm256_add_ps(terms[c][g], term) };
                }
            }
        }
        for c in 0..C {
            for g in 0..2 {
                let from = 8 * (v + g);
                let term = _mm256_mul_ps(_mm256_set1_ps(columns[c].a[s]), terms[c][g]);
                let sum = _mm256_add_ps(eight(&y[c], from), term);
                put_eight(&mut y[c], from, sum);
            }
        }
    }
}

/// The floats of two halves, times a power of two.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn units(halves: u32, factor: f32) -> (f32, f32) {
    let both = _mm_mul_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(halves as i32)), _mm_set1_ps(factor));
    (_mm_cvtss_f32(both), _mm_cvtss_f32(_mm_movehdup_ps(both)))
}

/// The floats of eight halves, times a power of two.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn put_units(halves: &[u16; 8], factor: f32, out: &mut [f32; 8]) {
    // SAFETY: eight readable halves, eight floats into an array of eight; neither needs alignment.
    unsafe {
        let units = _mm256_cvtph_ps(_mm_loadu_si128(halves.as_ptr().cast()));
        _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(units, _mm256_set1_ps(factor)));
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
