//! Codebooks of eights with AVX2: indices, signs and scales of a whole block are unpacked by vectors; what is left per 32 weights are
//! the look-ups themselves and one multiplication with the activations.
//!
//! A *place* is the turn at which a step of 32 weights is taken: formats whose words unpack in another order than they stand in say
//! which step has which place. Sums of integers do not depend on it.

use std::arch::asm;
use std::arch::x86_64::*;

use super::load32;

/// Four eights of a codebook, the first lowest.
///
/// # Safety
/// AVX2; the indices are inside the codebook.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) unsafe fn four_of<const N: usize>(codebook: &[u64; N], index: [usize; 4]) -> __m256i {
    debug_assert!(index.iter().all(|&i| i < N));
    let at = |i: usize| codebook.as_ptr().wrapping_add(index[i]).cast::<f64>();
    // SAFETY: inside the codebook, as promised; loads of eight bytes need no alignment.
    let (low, high) =
        unsafe { (_mm_loadh_pd(_mm_load_sd(at(0)), at(1)), _mm_loadh_pd(_mm_load_sd(at(2)), at(3))) };
    _mm256_castpd_si256(_mm256_set_m128d(high, low))
}

/// The vector itself, with its origin hidden from the optimiser.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn opaque(mut v: __m256i) -> __m256i {
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {v} */", v = inlateout(ymm_reg) v, options(pure, nomem, nostack, preserves_flags)) };
    v
}

/// The steps of a block, one after the other in the code too. Left alone, the optimiser takes the loads of all steps of four rows
/// together, runs out of registers and spends more on keeping values than on computing them. So what the loads of a step start from
/// passes with the sums so far through a place it cannot see into; the processor still overlaps steps as it likes.
pub(in crate::quant) struct Steps<'a> {
    /// What has been summed up to here.
    acc: __m256i,
    /// The activations.
    x: &'a [u8; 256],
}

macro_rules! load_four {
    ($steps:ident, $from:expr, $b:literal, $c:literal, $d:literal, $size:literal) => {{
        let (from, mut x) = ($from, std::ptr::from_ref($steps.x));
        let (a, b, c, d);
        // SAFETY: the four loads are inside of what `from` was made of; the sums and the address of `x` stay as they are. (The
        // loads are spelt out since an optimiser that sees neighbours makes them one vector, then takes that apart at twice the cost.)
        unsafe {
            asm!(
                concat!("movzx {a:e}, ", $size, " ptr [{at}]"),
                concat!("movzx {b:e}, ", $size, " ptr [{at} + ", $b, "]"),
                concat!("movzx {c:e}, ", $size, " ptr [{at} + ", $c, "]"),
                concat!("movzx {d:e}, ", $size, " ptr [{at} + ", $d, "]"),
                "/* {x} {acc} */",
                at = in(reg) from, a = out(reg) a, b = out(reg) b, c = out(reg) c, d = out(reg) d,
                x = inlateout(reg) x, acc = inlateout(ymm_reg) $steps.acc,
                options(readonly, nostack, preserves_flags)
            );
            $steps.x = &*x;
        }
        [a, b, c, d]
    }};
}

impl<'a> Steps<'a> {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new(x: &'a [u8; 256]) -> Steps<'a> {
        Steps { acc: _mm256_setzero_si256(), x }
    }

    /// Four bytes from an offset, as the indices of the next step.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::quant) fn four_bytes(&mut self, bytes: &[u8], at: usize) -> [usize; 4] {
        load_four!(self, bytes[at..at + 4].as_ptr(), 1, 2, 3, "byte")
    }

    /// The indices of step `s`, which is the next.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::quant) fn four_words(&mut self, indices: &Indices, s: usize) -> [usize; 4] {
        load_four!(self, indices.0.as_chunks::<4>().0[s].as_ptr(), 2, 4, 6, "word")
    }

    /// Adds the products of pairs, scaled, of the 32 unsigned bytes `u` with `x`.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn add(&mut self, u: __m256i, x: __m256i, scale: __m256i) {
        let pairs = _mm256_maddubs_epi16(u, x);
        self.acc = _mm256_add_epi32(self.acc, _mm256_madd_epi16(pairs, scale));
    }

    /// The sums, complete before another row begins.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn end(self) -> __m256i {
        let mut acc = self.acc;
        // SAFETY: no instruction at all.
        unsafe {
            asm!("/* {acc} */", acc = inlateout(ymm_reg) acc, options(nomem, nostack, preserves_flags))
        };
        acc
    }
}

/// The indices of a block's eights, in the order of the block, all below a power of two.
#[repr(align(32))]
pub(in crate::quant) struct Indices([u16; 32]);

impl Indices {
    /// For an array that is about to be filled.
    pub(in crate::quant) const NONE: Indices = Indices([0; 32]);

    /// That of eight `e`.
    #[inline(always)]
    pub(in crate::quant) fn of(&self, e: usize) -> usize {
        self.0[e].into()
    }

    /// From words 0–15 and 16–31.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::quant) fn new(low: __m256i, high: __m256i) -> Indices {
        let mut indices = Indices([0; 32]);
        let at: *mut u16 = indices.0.as_mut_ptr();
        // SAFETY: two times sixteen words into an array of thirty-two.
        unsafe {
            _mm256_storeu_si256(at.cast(), low);
            _mm256_storeu_si256(at.add(16).cast(), high);
        }
        indices
    }
}

/// Two bytes per eight weights, on the way to eight: vector `i` holds places `2·i` and `2·i + 1`, each byte pair twice.
struct Spread([__m256i; 4]);

impl Spread {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new(even: __m256i, odd: __m256i) -> Spread {
        let (a, b) = (_mm256_unpacklo_epi8(even, odd), _mm256_unpackhi_epi8(even, odd));
        // Seen through, these two layers of shuffles would become three.
        Spread([
            opaque(_mm256_unpacklo_epi16(a, a)),
            opaque(_mm256_unpackhi_epi16(a, a)),
            opaque(_mm256_unpacklo_epi16(b, b)),
            opaque(_mm256_unpackhi_epi16(b, b)),
        ])
    }

    /// The step with place `P`: the pair of bytes of each eight, four times.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn of<const P: usize>(&self) -> __m256i {
        if P.is_multiple_of(2) {
            _mm256_shuffle_epi32::<0b01_01_00_00>(self.0[P / 2])
        } else {
            _mm256_shuffle_epi32::<0b11_11_10_10>(self.0[P / 2])
        }
    }
}

/// A byte per eight weights, repeated for each of the eight.
pub(in crate::quant) struct Repeated(Spread);

impl Repeated {
    /// From a byte per eight; the dwords (a step each) stand in the order of places 0, 1, 2, 3, then 4, 5, 6, 7.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::quant) fn new(eights: __m256i) -> Repeated {
        let by_half = halves_of_steps(eights);
        Repeated(Spread::new(by_half, by_half))
    }

    /// Those of the step with place `P`.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::quant) fn of<const P: usize>(&self) -> __m256i {
        self.0.of::<P>()
    }
}

/// A sign bit per weight.
pub(in crate::quant) struct Signs(Spread);

impl Signs {
    /// From a byte per eight, in the order of [`Repeated::new`].
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::quant) fn new(eights: __m256i) -> Signs {
        let by_half = halves_of_steps(eights);
        // The second byte of a pair is shifted by one, so that one shift of the word serves both. What comes in from its neighbour
        // is shifted out later.
        Signs(Spread::new(by_half, _mm256_srli_epi16::<1>(by_half)))
    }

    /// Negates the bytes of `v` whose bit is set, for the step with place `P`.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::quant) fn apply<const P: usize>(&self, v: __m256i) -> __m256i {
        // Word i of an eight: its bit 2·i to the top of the lower byte, bit 2·i + 1 to the top of the upper one.
        let shifts = _mm256_set1_epi64x(2 << 48 | 8 << 32 | 32 << 16 | 128);
        let minus = _mm256_mullo_epi16(self.0.of::<P>(), shifts);
        _mm256_sign_epi8(v, _mm256_or_si256(minus, _mm256_set1_epi8(1)))
    }
}

/// Thirty-two bytes, a dword per step, as pairs of bytes: the first two of each step in the lower half, the last two in the upper.
/// Steps of the lower half come first.
#[inline]
#[target_feature(enable = "avx2")]
fn halves_of_steps(eights: __m256i) -> __m256i {
    let pairs = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    let sorted = _mm256_shuffle_epi8(eights, _mm256_broadcastsi128_si256(pairs));
    _mm256_permute4x64_epi64::<0b11_01_10_00>(sorted)
}

/// Scales in the order of places, one dword of two equal words each: places 0 to 3, then 4 to 7; the lower half for the first sixteen
/// weights of a step, the upper for the others.
pub(in crate::quant) struct Scales([__m256i; 2]);

impl Scales {
    /// From places 0 to 3 and 4 to 7.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::quant) fn new(first: __m256i, last: __m256i) -> Scales {
        // Seen through, the one shuffle of a step would become two.
        Scales([opaque(first), opaque(last)])
    }

    /// The scales of the step with place `P`, a word per pair of products.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::quant) fn of<const P: usize>(&self) -> __m256i {
        let four = self.0[P / 4];
        match P % 4 {
            0 => _mm256_shuffle_epi32::<0b00_00_00_00>(four),
            1 => _mm256_shuffle_epi32::<0b01_01_01_01>(four),
            2 => _mm256_shuffle_epi32::<0b10_10_10_10>(four),
            _ => _mm256_shuffle_epi32::<0b11_11_11_11>(four),
        }
    }

    /// From the scales of the sixteen groups, for steps in order.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::quant) fn of_groups(scales: __m256i) -> Scales {
        // Even groups below, odd ones above.
        let even = _mm_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13);
        let to = _mm256_set_m128i(_mm_add_epi8(even, _mm_set1_epi8(2)), even);
        Scales::new(
            _mm256_shuffle_epi8(_mm256_permute2x128_si256::<0x00>(scales, scales), to),
            _mm256_shuffle_epi8(_mm256_permute2x128_si256::<0x11>(scales, scales), to),
        )
    }

    /// `2 · n + 1` from eight bytes of nibbles, a byte per step, the low nibble for its first sixteen weights.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::quant) fn odd_nibbles(bytes: &[u8], step_of: [usize; 8]) -> Scales {
        let both = _mm256_set1_epi64x(i64::from_le_bytes(bytes.as_chunks::<8>().0[0]));
        let n =
            _mm256_and_si256(_mm256_srlv_epi64(both, _mm256_setr_epi64x(0, 0, 4, 4)), _mm256_set1_epi8(15));
        let scales = _mm256_or_si256(_mm256_add_epi8(n, n), _mm256_set1_epi8(1));
        let places = |from: usize| {
            let step = |p: usize| 0x8000_8000u32.cast_signed() | (step_of[from + p] * 0x0001_0001) as i32;
            let to = _mm_setr_epi32(step(0), step(1), step(2), step(3));
            _mm256_shuffle_epi8(scales, _mm256_broadcastsi128_si256(to))
        };
        Scales::new(places(0), places(4))
    }
}

/// The step of each place where words unpack in their own order.
pub(in crate::quant) const IN_ORDER: [usize; 8] = [0, 1, 2, 3, 4, 5, 6, 7];
/// The step of each place where two vectors of words were put together half by half.
pub(in crate::quant) const BY_HALVES: [usize; 8] = [0, 1, 4, 5, 2, 3, 6, 7];

/// Two vectors put together half by half, in order.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn in_order(by_halves: __m256i) -> __m256i {
    _mm256_permute4x64_epi64::<0b11_01_10_00>(by_halves)
}

/// `Σ scale·(Σ ±g·x)` of a block in eight partial sums; `eights` gives the `g` of a step.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn signed_sums(
    x: &[u8; 256],
    step_of: [usize; 8],
    signs: Signs,
    scales: Scales,
    eights: impl Fn(&mut Steps<'_>, usize) -> __m256i,
) -> __m256i {
    let mut steps = Steps::new(x);
    macro_rules! step {
        ($($place:literal)*) => {$(
            let s = step_of[$place];
            let g = eights(&mut steps, s);
            let x = signs.apply::<$place>(load32(steps.x, 32 * s));
            steps.add(g, x, scales.of::<$place>());
        )*};
    }
    step!(0 1 2 3 4 5 6 7);
    steps.end()
}

/// `Σ scale·(Σ u·x)` of a block in eight partial sums, for steps in order; `bytes` gives the unsigned `u` of a step, to
/// which `repeated` is added.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn raised_sums(
    x: &[u8; 256],
    repeated: Option<Repeated>,
    scales: Scales,
    bytes: impl Fn(&mut Steps<'_>, usize) -> __m256i,
) -> __m256i {
    let mut steps = Steps::new(x);
    macro_rules! step {
        ($($s:literal)*) => {$(
            let mut u = bytes(&mut steps, $s);
            if let Some(repeated) = &repeated {
                u = _mm256_add_epi8(u, repeated.of::<$s>());
            }
            steps.add(u, load32(steps.x, 32 * $s), scales.of::<$s>());
        )*};
    }
    step!(0 1 2 3 4 5 6 7);
    steps.end()
}

/// Writes the integers `±g` of a block.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn signed_integers(
    q: &mut [i8; 256],
    step_of: [usize; 8],
    signs: Signs,
    eights: impl Fn(&mut Steps<'_>, usize) -> __m256i,
) {
    let mut steps = Steps::new(&[0; 256]);
    macro_rules! step {
        ($($place:literal)*) => {$(
            let s = step_of[$place];
            put32(q, s, signs.apply::<$place>(eights(&mut steps, s)));
        )*};
    }
    step!(0 1 2 3 4 5 6 7);
}

/// Writes the integers `u + repeated − by` of a block, for steps in order.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn lowered_integers(
    q: &mut [i8; 256],
    repeated: &Repeated,
    by: i8,
    bytes: impl Fn(&mut Steps<'_>, usize) -> __m256i,
) {
    let mut steps = Steps::new(&[0; 256]);
    macro_rules! step {
        ($($s:literal)*) => {$(
            let u = _mm256_add_epi8(bytes(&mut steps, $s), repeated.of::<$s>());
            put32(q, $s, _mm256_sub_epi8(u, _mm256_set1_epi8(by)));
        )*};
    }
    step!(0 1 2 3 4 5 6 7);
}

/// Writes 32 integers.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn put32(q: &mut [i8; 256], step: usize, v: __m256i) {
    let q = &mut q.as_chunks_mut::<32>().0[step];
    // SAFETY: thirty-two bytes into an array of thirty-two.
    unsafe { _mm256_storeu_si256(q.as_mut_ptr().cast(), v) };
}

/// Seven sign bits per byte, completed by an eighth that makes their number even.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::quant) fn even_signs(seven: __m256i) -> __m256i {
    // The parity of a nibble, in bit 7.
    const ODD: i64 = 0x0080_8000_8000_0080u64.cast_signed();
    const EVEN: i64 = 0x8000_0080_0080_8000u64.cast_signed();
    let folded = _mm256_xor_si256(seven, _mm256_srli_epi16::<4>(seven));
    let nibble = _mm256_and_si256(folded, _mm256_set1_epi8(15));
    let parity = _mm256_shuffle_epi8(_mm256_setr_epi64x(EVEN, ODD, EVEN, ODD), nibble);
    _mm256_xor_si256(seven, parity)
}
