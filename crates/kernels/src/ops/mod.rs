//! The float operations of a transformer, one file each, on slices and without allocation.
//!
//! Each body is written once in the canonical order (dots fused, sums over sixteen lanes) and compiled again with wider
//! registers; the compiler may neither reorder nor fuse by itself, so all instruction sets agree bit for bit.

/// Declares a function whose body is compiled twice, portable and for AVX2, the choice being made at run time.
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn portable($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,f16c")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                portable($($arg),*)
            }
            match $crate::Isa::current() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: Isa::current only names an instruction set that this processor has.
                $crate::Isa::Avx2 | $crate::Isa::Avx512 => unsafe { avx2($($arg),*) },
                _ => portable($($arg),*),
            }
        }
    };
}

/// Declares a scalar function with fused multiply-adds: its body is compiled a second time with the instruction, because
/// without it every one of them is a call into the C library (the same result, many times slower).
macro_rules! fused {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn portable($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "fma")]
                fn with_instruction($($arg: $ty),*) $(-> $ret)? {
                    portable($($arg),*)
                }
                if is_x86_feature_detected!("fma") {
                    // SAFETY: just checked.
                    return unsafe { with_instruction($($arg),*) };
                }
            }
            portable($($arg),*)
        }
    };
}

mod attention;
mod axpy;
mod conv;
mod delta;
mod dot;
mod exp;
mod glu;
mod hadamard;
mod half;
mod index;
#[cfg(target_arch = "aarch64")]
mod neon;
mod norm;
mod q8;
mod rope;
mod silu;
mod soft_cap;
mod top_k;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_attention;
#[cfg(target_arch = "x86_64")]
mod x86_delta;

pub use attention::{ATTENTION_CHUNK, Chunk, Running, attend_chunk, attend_finish, padded};
pub use axpy::axpy;
pub use conv::conv_silu;
pub use delta::{DeltaTokens, delta_decay, delta_rows};
pub use dot::{dot, reduce, sum};
pub use exp::exp;
pub use glu::Glu;
pub use hadamard::hadamard;
pub use half::{f16_to_f32, f32_to_f16, narrow, widen};
pub use index::{INDEX_PANEL, index_panel, index_scores};
pub use norm::{l2_norm, layer_norm, rms_norm};
pub use q8::{Q8_BLOCK, q8_decode, q8_encode};
pub use rope::{Pairing, Rope, Yarn, rope_halves, rope_interleaved, yarn_mscale};
pub use silu::{sigmoid, silu, silu_mul};
pub use soft_cap::soft_cap;
pub use top_k::{TOP_K_BINS, top_k_count, top_k_counted, top_k_ranked};

#[cfg(test)]
pub(crate) mod testing {
    //! Small helpers of the tests of this folder.

    /// Reproducible floats in −scale..scale.
    pub(crate) fn floats(n: usize, seed: u64, scale: f32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next() * scale).collect()
    }

    /// Asserts that the values agree to `tolerance`, relative to the largest expected magnitude.
    pub(crate) fn assert_close(got: &[f32], want: &[f64], tolerance: f64) {
        assert_eq!(got.len(), want.len());
        let scale = want.iter().fold(0.0f64, |a, w| a.max(w.abs())).max(1e-30);
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(*g) - w).abs() <= tolerance * scale, "element {i}: {g} instead of {w}");
        }
    }
}
