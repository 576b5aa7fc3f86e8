//! Blocks of 32 with AVX2, and with AVX-512's byte dot products (VNNI).

use std::arch::x86_64::*;

use super::{half, load16, load32, signed_pairs, total};
use crate::activation::Q8Row;
use crate::quant::block32::{Block32, term};

/// A block of 32 as a vector.
pub(in crate::quant) trait X86Block32<const N: usize>: Block32<N> {
    /// What [`X86Block32::load`] adds to the integers to make them unsigned.
    const OFFSET: i32;
    /// Whether two unsigned products may exceed sixteen bits; AVX2 then multiplies signed.
    const WIDE: bool = false;

    /// The integers plus the offset, as unsigned bytes.
    ///
    /// # Safety
    /// AVX2.
    unsafe fn load(block: &[u8; N]) -> __m256i;

    /// The block's scale and minimum.
    ///
    /// # Safety
    /// AVX2 and F16C.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn units(block: &[u8; N]) -> (f32, f32) {
        (half(block, 0), if Self::MIN { half(block, 2) } else { 0.0 })
    }
}

/// Eight partial sums of the block's products, without the offset's share if it is to be taken off afterwards.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn products_avx2<B: X86Block32<N>, const N: usize>(block: &[u8; N], x: &[u8; 32]) -> __m256i {
    let x = load32(x, 0);
    // SAFETY: AVX2 is on.
    let q = unsafe { B::load(block) };
    let pairs = if B::WIDE {
        signed_pairs(_mm256_sub_epi8(q, _mm256_set1_epi8(B::OFFSET as u8 as i8)), x)
    } else {
        _mm256_maddubs_epi16(q, x)
    };
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

/// The same with VNNI; the offset's share is always in.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512vl,avx512vnni")]
unsafe fn products_vnni<B: X86Block32<N>, const N: usize>(block: &[u8; N], x: &[u8; 32]) -> __m256i {
    // SAFETY: AVX2 is on.
    let q = unsafe { B::load(block) };
    _mm256_dpbusd_epi32(_mm256_setzero_si256(), q, load32(x, 0))
}

macro_rules! kernel {
    ($(#[$meta:meta])* $name:ident, $features:literal, $products:ident, $offset:expr) => {
        $(#[$meta])*
        #[target_feature(enable = $features)]
        pub(in crate::quant) unsafe fn $name<B: X86Block32<N>, const N: usize>(weights: &[u8], x: &[u8], n: usize) -> f32 {
            let row = Q8Row::new(x, n);
            let (fours, rest) = weights.as_chunks::<N>().0[..n / 32].as_chunks::<4>();
            let (x_fours, x_rest) = row.q.as_chunks::<32>().0.as_chunks::<4>();
            let mut sum = 0.0;
            for (i, (w, x)) in fours.iter().zip(x_fours).enumerate() {
                // Spelled out: `array::map` would leave this function's instruction set.
                // SAFETY: this function has at least the features of these.
                let (p, u) = unsafe {
                    (
                        [
                            $products::<B, N>(&w[0], &x[0]),
                            $products::<B, N>(&w[1], &x[1]),
                            $products::<B, N>(&w[2], &x[2]),
                            $products::<B, N>(&w[3], &x[3]),
                        ],
                        [B::units(&w[0]), B::units(&w[1]), B::units(&w[2]), B::units(&w[3])],
                    )
                };
                let p = _mm256_hadd_epi32(_mm256_hadd_epi32(p[0], p[1]), _mm256_hadd_epi32(p[2], p[3]));
                let mut p = _mm_add_epi32(_mm256_castsi256_si128(p), _mm256_extracti128_si256::<1>(p));
                let x_sums = load16(row.sum, 16 * i);
                if $offset != 0 {
                    p = _mm_sub_epi32(p, _mm_mullo_epi32(x_sums, _mm_set1_epi32($offset)));
                }
                let mut t = _mm_mul_ps(_mm_set_ps(u[3].0, u[2].0, u[1].0, u[0].0), _mm_cvtepi32_ps(p));
                if B::MIN {
                    let m = _mm_set_ps(u[3].1, u[2].1, u[1].1, u[0].1);
                    t = _mm_add_ps(t, _mm_mul_ps(m, _mm_cvtepi32_ps(x_sums)));
                }
                t = _mm_mul_ps(_mm_castsi128_ps(load16(row.d, 16 * i)), t);
                // Block after block, as the scalar twin adds them.
                sum += _mm_cvtss_f32(t);
                sum += _mm_cvtss_f32(_mm_shuffle_ps::<1>(t, t));
                sum += _mm_cvtss_f32(_mm_shuffle_ps::<2>(t, t));
                sum += _mm_cvtss_f32(_mm_shuffle_ps::<3>(t, t));
            }
            for (i, (w, x)) in rest.iter().zip(x_rest).enumerate() {
                let b = 4 * fours.len() + i;
                // SAFETY: this function has at least the features of these.
                let (p, (d, m)) = unsafe { (total($products::<B, N>(w, x)), B::units(w)) };
                let p = p - $offset * row.sum(b);
                sum += if B::MIN { term::<true>(row.d(b), d, m, p, row.sum(b)) } else { term::<false>(row.d(b), d, m, p, 0) };
            }
            sum
        }
    };
}

kernel! {
    /// The AVX2 kernel.
    ///
    /// # Safety
    /// That of [`Dot`](crate::Dot), for AVX2 and F16C.
    dot_avx2, "avx2,f16c", products_avx2, if B::WIDE { 0 } else { B::OFFSET }
}

kernel! {
    /// The AVX-512 kernel.
    ///
    /// # Safety
    /// That of [`Dot`](crate::Dot), for AVX2, F16C, AVX-512 VL and VNNI.
    dot_avx512, "avx2,f16c,avx512f,avx512vl,avx512vnni", products_vnni, B::OFFSET
}
