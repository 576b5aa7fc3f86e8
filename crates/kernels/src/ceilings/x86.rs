//! The loops with AVX2 and AVX-512 (VNNI).

use std::arch::x86_64::*;

use super::{AHEAD_BYTES, Arithmetic, CHAINS, read_words};

/// See [`super::read`]: the portable loop, compiled for AVX2.
#[target_feature(enable = "avx2")]
pub(super) fn read(data: &[u8]) -> u32 {
    read_words(data, |block| {
        // A hint; it does not matter whether there is memory.
        _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().wrapping_add(AHEAD_BYTES).cast());
    })
}

/// See [`super::multiply_add`]. Each sum is also a factor, so that no product can be taken out of the loop.
#[target_feature(enable = "avx2,fma")]
pub(super) fn avx2(kind: Arithmetic, rounds: u64) -> (u64, u32) {
    let bytes = std::hint::black_box(_mm256_set1_epi8(3));
    let ones = std::hint::black_box(_mm256_set1_epi16(1));
    let chains = CHAINS as u64;
    match kind {
        Arithmetic::Int8 => {
            let mut sums = [ones; CHAINS];
            for _ in 0..rounds {
                for sum in &mut sums {
                    let pairs = _mm256_maddubs_epi16(bytes, *sum);
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
                }
            }
            (rounds * chains * 32, sum256(&sums))
        }
        Arithmetic::Int8Narrow => {
            let mut sums = [ones; CHAINS];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(bytes, *sum));
                }
            }
            (rounds * chains * 32, sum256(&sums))
        }
        Arithmetic::Int16 => {
            let mut sums = [ones; CHAINS];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(bytes, *sum));
                }
            }
            (rounds * chains * 16, sum256(&sums))
        }
        Arithmetic::F32 => {
            // Converges to 1: never infinite, never denormal.
            let half = std::hint::black_box(_mm256_set1_ps(0.5));
            let mut sums = [half; CHAINS];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = _mm256_fmadd_ps(*sum, half, half);
                }
            }
            (rounds * chains * 8, sum256(&sums.map(|sum| _mm256_castps_si256(sum))))
        }
    }
}

#[target_feature(enable = "avx2")]
fn sum256(sums: &[__m256i; CHAINS]) -> u32 {
    let all = sums.iter().fold(_mm256_setzero_si256(), |all, sum| _mm256_add_epi32(all, *sum));
    let mut lanes = [0u32; 8];
    // SAFETY: 32 bytes are written to an array of that size.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), all) };
    lanes.into_iter().fold(0, u32::wrapping_add)
}

/// See [`super::multiply_add`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn avx512(kind: Arithmetic, rounds: u64) -> (u64, u32) {
    let bytes = std::hint::black_box(_mm512_set1_epi8(3));
    let ones = std::hint::black_box(_mm512_set1_epi16(1));
    let chains = CHAINS as u64;
    match kind {
        Arithmetic::Int8 | Arithmetic::Int8Narrow => {
            let mut sums = [ones; CHAINS];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = _mm512_dpbusd_epi32(*sum, bytes, bytes);
                }
            }
            (rounds * chains * 64, sum512(&sums))
        }
        Arithmetic::Int16 => {
            let mut sums = [ones; CHAINS];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = _mm512_dpwssd_epi32(*sum, bytes, bytes);
                }
            }
            (rounds * chains * 32, sum512(&sums))
        }
        Arithmetic::F32 => {
            let half = std::hint::black_box(_mm512_set1_ps(0.5));
            let mut sums = [half; CHAINS];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = _mm512_fmadd_ps(*sum, half, half);
                }
            }
            (rounds * chains * 16, sum512(&sums.map(|sum| _mm512_castps_si512(sum))))
        }
    }
}

#[target_feature(enable = "avx512f")]
fn sum512(sums: &[__m512i; CHAINS]) -> u32 {
    let all = sums.iter().fold(_mm512_setzero_si512(), |all, sum| _mm512_add_epi32(all, *sum));
    _mm512_reduce_add_epi32(all) as u32
}
