//! `Q6_K`: 256 weights in 210 bytes (6.5625 bits each), `d·scale·(q − 32)`, a signed scale per 16.
//!
//! ```text
//!  0            128          192             208      210
//! | low: 128 B | high: 64 B | scales: 16 B | d: f16 |
//! ```
//! Per half of the block (128 weights): 64 bytes of low nibbles and 32 of high bit pairs. Element `32·g + l` has its low four bits in
//! byte `32·(g mod 2) + l` (the low nibble for `g < 2`) and its high two in bits `2·g` up of byte `l`.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::half_at;
use super::block256::{self, Block256};
#[cfg(target_arch = "x86_64")]
use super::x86::{self, avx512 as wide};
use crate::{Activation, Format};

pub(super) const BYTES: usize = 210;

pub(super) static FORMAT: Format = Format {
    id: 14,
    name: "Q6_K",
    block_elements: 256,
    block_bytes: BYTES,
    activation: Activation::Q8K,
    dequantize: block256::dequantize::<Q6K, BYTES>,
    quantize: None,
    scalar: block256::scalar::<Q6K, BYTES>(),
    avx2: on_x86!(x86::block256::avx2::<Q6K, BYTES>()),
    avx512: on_x86!(x86::block256::avx512::<Q6K, BYTES>()),
    neon: on_neon!(super::neon::block256::neon::<Q6K, BYTES>()),
};

pub(super) struct Q6K;

impl Block256<BYTES> for Q6K {
    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> (f32, f32) {
        (half_at(block, 208), 0.0)
    }

    #[inline(always)]
    fn scales(block: &[u8; BYTES], scale: &mut [i16; 16], _min: &mut [i16; 16]) {
        for (scale, byte) in scale.iter_mut().zip(&block[192..208]) {
            *scale = i16::from(*byte as i8);
        }
    }

    #[inline(always)]
    fn quants(block: &[u8; BYTES], q: &mut [i8; 256]) {
        for half in 0..2 {
            let (low, high) = (&block[64 * half..][..64], &block[128 + 32 * half..][..32]);
            for g in 0..4 {
                for l in 0..32 {
                    let nibble = low[32 * (g % 2) + l] >> (4 * (g / 2)) & 15;
                    let top = high[l] >> (2 * g) & 3;
                    q[128 * half + 32 * g + l] = (nibble | top << 4) as i8 - 32;
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl x86::block256::X86Block256<BYTES> for Q6K {
    const OFFSET: i32 = 32;
    const UNIT_AT: usize = 208;
    const TILE_TOP: i32 = 63;
    const TILE_CHAIN: usize = 4;
    const SHARED: usize = 16;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn raised(block: &[u8; BYTES], s: usize) -> __m256i {
        let (half, g) = (s / 4, s % 4);
        let low = x86::field(x86::load32(block, 64 * half + 32 * (g % 2)), 4 * (g / 2), 15);
        let top = x86::field(x86::load32(block, 128 + 32 * half), 2 * g, 3);
        _mm256_or_si256(low, _mm256_slli_epi16::<4>(top))
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
    unsafe fn wide(block: &[u8; BYTES], s: usize) -> (__m512i, u64) {
        let (half, shift) = (s / 2, 4 * (s % 2));
        let low = _mm512_srl_epi16(wide::load64(block, 64 * half), _mm_cvtsi32_si128(shift as i32));
        let low = _mm512_and_si512(low, _mm512_set1_epi8(15));
        let top = wide::two_fields(x86::load32(block, 128 + 32 * half), shift, shift + 2, 3);
        (_mm512_or_si512(low, _mm512_slli_epi16::<4>(top)), 0)
    }
}
