//! `IQ4_NL`: 32 weights in 18 bytes (4.5 bits each), `d · level[q]` with sixteen uneven levels.
//!
//! ```text
//!  0       2                                18
//! | d: f16 | q0 q16 | q1 q17 | … | q15 q31 |     two nibbles per byte, the low one first
//! ```

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::block32::{self, Block32, half_at, nibbles};
use super::grids;
#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::{Activation, Format};

pub(super) const BYTES: usize = 18;

pub(super) static FORMAT: Format = Format {
    id: 20,
    name: "IQ4_NL",
    block_elements: 32,
    block_bytes: BYTES,
    activation: Activation::Q8_0,
    dequantize: block32::dequantize::<Iq4Nl, BYTES>,
    quantize: None,
    scalar: block32::scalar::<Iq4Nl, BYTES>(),
    avx2: on_x86!(x86::block32::avx2::<Iq4Nl, BYTES>()),
    avx512: on_x86!(x86::block32::avx512::<Iq4Nl, BYTES>()),
    neon: on_neon!(super::neon::block32::neon::<Iq4Nl, BYTES>()),
};

pub(super) struct Iq4Nl;

impl Block32<BYTES> for Iq4Nl {
    #[inline(always)]
    fn unpack(block: &[u8; BYTES], q: &mut [i8; 32]) -> (f32, f32) {
        nibbles(&block[2..], |i, n| q[i] = grids::IQ4[usize::from(n)]);
        (half_at(block, 0), 0.0)
    }
}

#[cfg(target_arch = "x86_64")]
impl x86::block32::X86Block32<BYTES> for Iq4Nl {
    const OFFSET: i32 = 128;
    const WIDE: bool = true;
    const TILE_FROM: usize = 6;
    const TILE_TOP: i32 = 255;
    const TILE_CHAIN: usize = 0;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(block: &[u8; BYTES]) -> __m256i {
        _mm256_xor_si256(x86::look_up(&grids::IQ4, x86::nibbles(block, 2)), _mm256_set1_epi8(-128))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load_two(a: &[u8; BYTES], b: &[u8; BYTES]) -> [__m256i; 2] {
        let [low, high] = x86::rows32::two_nibbles(a, b, 2);
        [x86::look_up(&grids::IQ4, low), x86::look_up(&grids::IQ4, high)]
    }

    /// No level is −128, so the signs may go to the weights; the activations' magnitudes are then shared by all rows.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn multiply(q: __m256i, x: __m256i) -> __m256i {
        x86::signed_pairs(x, q)
    }
}
