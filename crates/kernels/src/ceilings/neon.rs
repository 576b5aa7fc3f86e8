//! The loops with NEON and its dot-product extension.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Arithmetic, CHAINS};

/// See [`super::multiply_add`].
#[target_feature(enable = "neon,dotprod")]
pub(super) fn neon(kind: Arithmetic, rounds: u64) -> (u64, u32) {
    let bytes = std::hint::black_box(vdupq_n_s8(3));
    let chains = CHAINS as u64;
    match kind {
        Arithmetic::Int8 | Arithmetic::Int8Narrow => {
            let mut sums = [vdupq_n_s32(1); CHAINS];
            for _ in 0..rounds {
                for sum in &mut sums {
                    // SAFETY: registers only, and the function has the extension.
                    unsafe {
                        asm!("sdot {sum:v}.4s, {x:v}.16b, {x:v}.16b", sum = inout(vreg) *sum, x = in(vreg) bytes,
                            options(pure, nomem, nostack, preserves_flags));
                    }
                }
            }
            (rounds * chains * 16, sum(&sums))
        }
        Arithmetic::Int16 => {
            let factor = vreinterpretq_s16_s8(bytes);
            let mut sums = [vdupq_n_s32(1); CHAINS];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = vmlal_high_s16(*sum, vreinterpretq_s16_s32(*sum), factor);
                }
            }
            (rounds * chains * 4, sum(&sums))
        }
        Arithmetic::F32 => {
            let half = std::hint::black_box(vdupq_n_f32(0.5));
            let mut sums = [half; CHAINS];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = vfmaq_f32(half, *sum, half);
                }
            }
            (rounds * chains * 4, sum(&sums.map(|sum| vreinterpretq_s32_f32(sum))))
        }
    }
}

#[target_feature(enable = "neon")]
fn sum(sums: &[int32x4_t; CHAINS]) -> u32 {
    vaddvq_s32(sums.iter().fold(vdupq_n_s32(0), |all, sum| vaddq_s32(all, *sum))) as u32
}
