//! What the kernels for 64-bit Arm share. Loads take slices and check them (the checks fold away), so that the formats' own code is
//! safe.
//!
//! The formats' vector decoding stands here beside the kernels: `formats32` and `formats256`, a few lines each. A format without
//! any still works, through its portable decoding.
//!
//! NEON itself belongs to every 64-bit Arm target; what has to be asked for at run time are the dot products
//! (`dotprod`, which [`Isa::Neon`](crate::Isa::Neon) means) and the matrix products (`i8mm`, used by tiles where the processor has them).

pub(super) mod block256;
pub(super) mod block32;
pub(super) mod floats;
mod formats256;
mod formats32;
pub(super) mod nvfp4;
pub(super) mod packed;
mod tile;

use std::arch::aarch64::*;
use std::arch::asm;

/// `acc[i] += Σ a[4i + j] · b[4i + j]` over four `j`, exact.
///
/// The compiler's own intrinsic is not stable yet. The directive lets the assembler take the instruction whatever the target's
/// features are, so that it inlines everywhere; like the intrinsic this touches neither memory nor flags.
///
/// # Safety
/// The processor has `dotprod`.
#[inline(always)]
unsafe fn sdot(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's promise; registers only.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {acc:v}.4s, {a:v}.16b, {b:v}.16b",
            acc = inout(vreg) acc,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// `acc[i] += Σ a[4i + j] · b[4 · LANE + j]` over four `j`, exact: [`sdot`] with the same four bytes of `b` for all sums.
///
/// # Safety
/// The processor has `dotprod`.
#[inline(always)]
unsafe fn sdot_lane<const LANE: usize>(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's promise; registers only.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {acc:v}.4s, {a:v}.16b, {b:v}.4b[{lane}]",
            acc = inout(vreg) acc,
            a = in(vreg) a,
            b = in(vreg) b,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// Two rows of eight bytes times two rows of eight: `acc[2i + j] += Σ a[8i + k] · b[8j + k]` over eight `k`, exact.
///
/// # Safety
/// The processor has `i8mm`.
#[inline(always)]
unsafe fn smmla(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's promise; registers only.
    unsafe {
        asm!(
            ".arch_extension i8mm",
            "smmla {acc:v}.4s, {a:v}.16b, {b:v}.16b",
            acc = inout(vreg) acc,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// Sixteen bytes from an offset.
#[inline]
#[target_feature(enable = "neon")]
fn load16(bytes: &[u8], at: usize) -> uint8x16_t {
    let bytes = &bytes[at..at + 16];
    // SAFETY: sixteen readable bytes; the load needs no alignment.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

/// Sixteen signed bytes from an offset.
#[inline]
#[target_feature(enable = "neon")]
fn signed16(bytes: &[u8], at: usize) -> int8x16_t {
    vreinterpretq_s8_u8(load16(bytes, at))
}

/// Eight bytes from an offset.
#[inline]
#[target_feature(enable = "neon")]
fn load8(bytes: &[u8], at: usize) -> uint8x8_t {
    let bytes = &bytes[at..at + 8];
    // SAFETY: eight readable bytes; the load needs no alignment.
    unsafe { vld1_u8(bytes.as_ptr()) }
}

/// Eight words of the sixteen bytes from an offset.
#[inline]
#[target_feature(enable = "neon")]
fn words8(bytes: &[u8], at: usize) -> int16x8_t {
    vreinterpretq_s16_u8(load16(bytes, at))
}

/// The floats of four halves.
#[inline]
#[target_feature(enable = "neon")]
fn four_units(halves: [u16; 4]) -> float32x4_t {
    let bits = halves.into_iter().rev().fold(0, |bits, half| bits << 16 | u64::from(half));
    vcvt_f32_f16(vreinterpret_f16_u64(vcreate_u64(bits)))
}

/// The bits of `mask` in each byte, shifted down to bit 0 by `bits`, a count that the optimiser sees.
#[inline]
#[target_feature(enable = "neon")]
fn field(v: uint8x16_t, bits: usize, mask: u8) -> uint8x16_t {
    vandq_u8(vshlq_u8(v, vdupq_n_s8(-(bits as i8))), vdupq_n_u8(mask))
}

/// `value` in each byte of `v` whose bit `bit` is set, else 0.
#[inline]
#[target_feature(enable = "neon")]
fn where_bit(v: uint8x16_t, bit: usize, value: u8) -> uint8x16_t {
    vandq_u8(vtstq_u8(v, vdupq_n_u8(1 << bit)), vdupq_n_u8(value))
}

/// Unsigned bytes less a constant, as signed ones.
#[inline]
#[target_feature(enable = "neon")]
fn less(v: uint8x16_t, constant: u8) -> int8x16_t {
    vreinterpretq_s8_u8(vsubq_u8(v, vdupq_n_u8(constant)))
}

/// Two vectors of sixteen bytes: 32 elements in order.
type Bytes = (uint8x16_t, uint8x16_t);
/// The same, signed.
type Integers = (int8x16_t, int8x16_t);

/// Thirty-two bytes from an offset.
#[inline]
#[target_feature(enable = "neon")]
fn load32(bytes: &[u8], at: usize) -> Bytes {
    (load16(bytes, at), load16(bytes, at + 16))
}

/// Sixteen bytes of nibbles as 32 bytes: the low ones first.
#[inline]
#[target_feature(enable = "neon")]
fn nibbles(bytes: &[u8], at: usize) -> Bytes {
    let v = load16(bytes, at);
    (vandq_u8(v, vdupq_n_u8(15)), vshrq_n_u8::<4>(v))
}

/// Looks nibbles up in a table.
#[inline]
#[target_feature(enable = "neon")]
fn look_up(table: &[i8; 16], nibbles: Bytes) -> Integers {
    // SAFETY: sixteen readable bytes; the load needs no alignment.
    let table = unsafe { vld1q_s8(table.as_ptr()) };
    (vqtbl1q_s8(table, nibbles.0), vqtbl1q_s8(table, nibbles.1))
}

/// All ones in byte `i` where bit `i` of the first four bytes of `bits` is set, else 0.
#[inline]
#[target_feature(enable = "neon")]
fn masks(bits: uint8x16_t) -> Bytes {
    // Byte i gets byte i / 8 of the four, and keeps its bit i mod 8.
    let eights = |a: u8, b: u8| vcombine_u8(vdup_n_u8(a), vdup_n_u8(b));
    let own = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
    (vtstq_u8(vqtbl1q_u8(bits, eights(0, 1)), own), vtstq_u8(vqtbl1q_u8(bits, eights(2, 3)), own))
}

/// Four bytes at the start of a vector.
#[inline]
#[target_feature(enable = "neon")]
fn four_bytes(bits: u32) -> uint8x16_t {
    vreinterpretq_u8_u32(vdupq_n_u32(bits))
}

/// Bytes of seven sign bits with the eighth that makes the number of set ones even.
#[inline]
#[target_feature(enable = "neon")]
fn even(sevens: uint8x16_t) -> uint8x16_t {
    vorrq_u8(sevens, vshlq_n_u8::<7>(vcntq_u8(sevens)))
}

/// Four times seven sign bits, from the lowest up, as four bytes at the start of a vector.
#[inline]
#[target_feature(enable = "neon")]
fn four_sevens(bits: u32) -> uint8x16_t {
    let seven = |l: u32| (bits >> (7 * l) & 127) << (8 * l);
    four_bytes(seven(0) | seven(1) | seven(2) | seven(3))
}

/// Negates `g` under masks of all ones.
#[inline]
#[target_feature(enable = "neon")]
fn negated(g: Integers, minus: Bytes) -> Integers {
    let one = |g, minus| vsubq_s8(veorq_s8(g, vreinterpretq_s8_u8(minus)), vreinterpretq_s8_u8(minus));
    (one(g.0, minus.0), one(g.1, minus.1))
}

/// Four groups of eight bytes.
#[inline]
#[target_feature(enable = "neon")]
fn four_eights(get: impl Fn(usize) -> u64) -> Integers {
    let two = |a, b| vreinterpretq_s8_u64(vcombine_u64(vcreate_u64(a), vcreate_u64(b)));
    (two(get(0), get(1)), two(get(2), get(3)))
}

/// Eight groups of four bytes.
#[inline]
#[target_feature(enable = "neon")]
fn eight_fours(get: impl Fn(usize) -> u32) -> Integers {
    let four = |from| {
        let words = [get(from), get(from + 1), get(from + 2), get(from + 3)];
        // SAFETY: four readable words.
        vreinterpretq_s8_u32(unsafe { vld1q_u32(words.as_ptr()) })
    };
    (four(0), four(4))
}

/// The sums of four times four integers.
#[inline]
#[target_feature(enable = "neon")]
fn four_totals(v: [int32x4_t; 4]) -> int32x4_t {
    vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]))
}
