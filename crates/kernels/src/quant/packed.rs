//! Packed forms: what an expert that is used again and again is rewritten to. It takes more bytes and less work.
//!
//! The weights of IQ1 and IQ2 take six different values, so three bits name one of them and a register holds them all: nothing is
//! looked up in memory. Integers, scales and unit are those of the source, in the same order, so every result has the same bits.
//!
//! ```text
//!  0           64           96                112      114
//! | low: 64 B | high: 32 B | scales: 16 bytes | d: f16 |
//! ```
//! `low` and `high` hold two bits and the third as `qs` and `high` of Q3_K do: the low two bits are the magnitude's place in the format's
//! list, the third is its sign. A scale byte is the source's `2·scale + 1`, one per 16; the unit is `d / 8`.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::block32::half_at;
use super::block256::{self, Block256};
#[cfg(target_arch = "x86_64")]
use super::x86::{self, block256::X86Block256};
#[cfg(not(target_arch = "x86_64"))]
use Block256 as Blocks;
#[cfg(target_arch = "x86_64")]
use X86Block256 as Blocks;

use crate::ops::narrow;
use crate::{Activation, Format, Isa};

/// A weight format and its packed form.
#[derive(Debug)]
pub struct Packed {
    /// As in the file.
    pub source: &'static Format,
    /// The packed form: not in [`FORMATS`](crate::FORMATS), its id no ggml type.
    pub format: &'static Format,
    /// Rewrites whole blocks of the source; the output has exactly as many packed ones.
    ///
    /// # Panics
    /// The lengths do not fit.
    pub pack: fn(bytes: &[u8], out: &mut [u8]),
}

impl Packed {
    /// Whether the packed form has kernels of the same instruction set as its source, without which it would not pay.
    pub fn runs_on(&self, isa: Isa) -> bool {
        self.format.kernel(isa).isa() == self.source.kernel(isa).isa()
    }
}

/// The packed form of the format with this ggml type id, if it has one.
pub fn packed(id: u32) -> Option<&'static Packed> {
    PACKED.iter().find(|packed| packed.source.id == id)
}

const BYTES: usize = 114;
const HIGH_AT: usize = 64;
const SCALES_AT: usize = 96;
const UNIT_AT: usize = 112;

/// A format that can be packed.
trait Source<const N: usize>: Blocks<N> {
    /// The magnitudes of its integers, ascending.
    const MAGNITUDES: [i8; 3];
    /// Added to its integers, makes them unsigned.
    #[cfg(target_arch = "x86_64")]
    const RAISE: i8 = Self::MAGNITUDES[2];
    /// The integers by code.
    const VALUES: [i8; 16] = {
        let [a, b, c] = Self::MAGNITUDES;
        [a, b, c, 0, -a, -b, -c, 0, a, b, c, 0, -a, -b, -c, 0]
    };
}

/// The blocks of `S` packed.
struct Codes<S, const N: usize>(PhantomData<S>);

impl<S: Source<N>, const N: usize> Block256<BYTES> for Codes<S, N> {
    #[inline(always)]
    fn units(block: &[u8; BYTES]) -> (f32, f32) {
        (half_at(block, UNIT_AT) / 8.0, 0.0)
    }

    #[inline(always)]
    fn scales(block: &[u8; BYTES], scale: &mut [i16; 16], _min: &mut [i16; 16]) {
        scale.iter_mut().zip(&block[SCALES_AT..]).for_each(|(scale, s)| *scale = i16::from(*s));
    }

    #[inline(always)]
    fn quants(block: &[u8; BYTES], q: &mut [i8; 256]) {
        for half in 0..2 {
            for g in 0..4 {
                for l in 0..32 {
                    let low = block[32 * half + l] >> (2 * g) & 3;
                    let high = block[HIGH_AT + l] >> (4 * half + g) & 1;
                    q[128 * half + 32 * g + l] = S::VALUES[usize::from(low | high << 2)];
                }
            }
        }
    }
}

/// 32 codes from `32 · s`, looked up.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn values(block: &[u8; BYTES], s: usize, table: [i8; 16]) -> __m256i {
    let low = x86::field(x86::load32(block, 32 * (s / 4)), 2 * (s % 4), 3);
    let code = _mm256_or_si256(low, x86::where_bit(x86::load32(block, HIGH_AT), s, 4));
    // SAFETY: sixteen readable bytes; the load needs no alignment.
    let table = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
    _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), code)
}

#[cfg(target_arch = "x86_64")]
impl<S: Source<N>, const N: usize> X86Block256<BYTES> for Codes<S, N> {
    const OFFSET: i32 = S::RAISE as i32;
    const UNIT_AT: usize = UNIT_AT;
    const UNIT_FACTOR: f32 = 0.125;
    const TILE_FROM: usize = S::TILE_FROM;
    const TILE_CHAIN: usize = S::TILE_CHAIN;
    const SHARED: usize = S::SHARED;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scale_words(block: &[u8; BYTES]) -> (__m256i, __m256i) {
        (_mm256_cvtepu8_epi16(x86::load16(block, SCALES_AT)), _mm256_setzero_si256())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn raised(block: &[u8; BYTES], s: usize) -> __m256i {
        let raised = const {
            let mut table = S::VALUES;
            let mut i = 0;
            while i < 16 {
                table[i] = table[i].wrapping_add(S::RAISE);
                i += 1;
            }
            table
        };
        values(block, s, raised)
    }
}

fn pack<S: Source<N>, const N: usize>(bytes: &[u8], out: &mut [u8]) {
    let (blocks, packed) = (bytes.as_chunks::<N>(), out.as_chunks_mut::<BYTES>());
    assert!(
        blocks.1.is_empty() && packed.1.is_empty() && blocks.0.len() == packed.0.len(),
        "whole blocks and as many packed ones"
    );
    let mut q = [0; 256];
    for (block, out) in blocks.0.iter().zip(packed.0) {
        #[cfg(target_arch = "x86_64")]
        if matches!(Isa::current(), Isa::Avx2 | Isa::Avx512) {
            // SAFETY: Isa::current only names an instruction set that this processor has.
            unsafe { pack_avx2::<S, N>(block, &mut q, out) };
            continue;
        }
        S::quants(block, &mut q);
        pack_block::<S, N>(block, &q, out);
    }
}

/// The same code compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn pack_avx2<S: Source<N>, const N: usize>(block: &[u8; N], q: &mut [i8; 256], out: &mut [u8; BYTES]) {
    // SAFETY: AVX2 is on.
    unsafe { S::integers(block, q) };
    pack_block::<S, N>(block, q, out);
}

#[inline(always)]
fn pack_block<S: Source<N>, const N: usize>(block: &[u8; N], q: &[i8; 256], out: &mut [u8; BYTES]) {
    let [a, b, _] = S::MAGNITUDES;
    let codes = q.map(|q| {
        let magnitude = q.unsigned_abs();
        u8::from(magnitude > a as u8) + u8::from(magnitude > b as u8) + (u8::from(q < 0) << 2)
    });
    let (low, rest) = out.split_at_mut(HIGH_AT);
    rest[..32].fill(0);
    for half in 0..2 {
        let codes = &codes[128 * half..][..128];
        for l in 0..32 {
            let code = |g: usize| codes[32 * g + l];
            let sign = |g: usize| (code(g) >> 2) << g;
            low[32 * half + l] = code(0) & 3 | (code(1) & 3) << 2 | (code(2) & 3) << 4 | (code(3) & 3) << 6;
            rest[l] |= (sign(0) | sign(1) | sign(2) | sign(3)) << (4 * half);
        }
    }
    let mut scales = [0; 16];
    S::scales(block, &mut scales, &mut [0; 16]);
    out[SCALES_AT..UNIT_AT].copy_from_slice(&scales.map(|scale| scale as u8));
    // The source's unit is a half by 8, so this is that half again.
    out[UNIT_AT..].copy_from_slice(&narrow(S::units(block).0 * 8.0).to_le_bytes());
}

macro_rules! packed {
    ($($name:ident $label:literal $file:ident $blocks:ident $magnitudes:expr;)*) => {
        $(
            impl Source<{ super::$file::BYTES }> for super::$file::$blocks {
                const MAGNITUDES: [i8; 3] = $magnitudes;
            }

            static $name: Format = Format {
                id: 1 << 16 | super::$file::FORMAT.id,
                name: $label,
                block_elements: 256,
                block_bytes: BYTES,
                activation: Activation::Q8K,
                dequantize: block256::dequantize::<Codes<super::$file::$blocks, { super::$file::BYTES }>, BYTES>,
                quantize: None,
                scalar: block256::scalar::<Codes<super::$file::$blocks, { super::$file::BYTES }>, BYTES>(),
                avx2: on_x86!(x86::block256::avx2::<Codes<super::$file::$blocks, { super::$file::BYTES }>, BYTES>()),
                avx512: None,
                neon: None,
            };
        )*

        /// Every packed form.
        pub static PACKED: &[Packed] = &[$(
            Packed {
                source: &super::$file::FORMAT,
                format: &$name,
                pack: pack::<super::$file::$blocks, { super::$file::BYTES }>,
            },
        )*];
    };
}

packed! {
    IQ1_S "IQ1_S packed" iq1_s Iq1S [1, 7, 9];
    IQ1_M "IQ1_M packed" iq1_m Iq1M [1, 7, 9];
    IQ2_XXS "IQ2_XXS packed" iq2_xxs Iq2Xxs [8, 25, 43];
    IQ2_XS "IQ2_XS packed" iq2_xs Iq2Xs [8, 25, 43];
    IQ2_S "IQ2_S packed" iq2_s Iq2S [8, 25, 43];
}

#[cfg(test)]
mod tests {
    use super::super::tests::{quantized, random_row};
    use super::*;
    use crate::ops::testing::floats;
    use crate::{TILE_COLUMNS, TILE_ROWS};

    const BLOCKS: usize = 5;
    const ROWS: usize = 37;

    fn both(packed: &Packed, seed: u64) -> (Vec<u8>, Vec<u8>) {
        let source = random_row(packed.source, 256 * BLOCKS * ROWS, seed);
        let mut out = vec![0xaa; packed.format.row_bytes(256 * BLOCKS * ROWS).unwrap()];
        (packed.pack)(&source, &mut out);
        (source, out)
    }

    #[test]
    fn packed_weights_are_the_same_weights() {
        for packed in PACKED {
            let (source, out) = both(packed, 1);
            let (mut a, mut b) = (vec![0.0f32; 256 * BLOCKS * ROWS], vec![1.0; 256 * BLOCKS * ROWS]);
            (packed.source.dequantize)(&source, &mut a);
            (packed.format.dequantize)(&out, &mut b);
            assert!(a.iter().any(|x| *x != 0.0));
            assert!(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()), "{}", packed.format.name);
            assert_eq!(packed.format.activation, packed.source.activation);
            assert!(packed.format.block_bytes > packed.source.block_bytes);
        }
    }

    /// Rows and tiles, on every instruction set of this processor, against the source's portable kernel.
    #[test]
    fn packed_results_have_the_same_bits() {
        let n = 256 * BLOCKS;
        for packed in PACKED {
            let (source, out) = both(packed, 2);
            for isa in
                [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Neon].into_iter().filter(|i| i.is_supported())
            {
                let (plain, fast) = (packed.source.kernel(Isa::Scalar), packed.format.kernel(isa));
                let columns: Vec<Vec<u8>> = (0..TILE_COLUMNS as u64)
                    .map(|c| quantized(Activation::Q8K, &floats(n, c + 3, if c == 0 { 1e3 } else { 2.0 })))
                    .collect();
                let columns: Vec<&[u8]> = columns.iter().map(Vec::as_slice).collect();
                let mut want = vec![0.0; ROWS];
                let mut tile = vec![[0.0; TILE_ROWS]; TILE_COLUMNS];
                let tile_bytes = TILE_ROWS * fast.row_bytes(n);
                fast.tile(&out[..tile_bytes], TILE_ROWS, &columns, n, &mut tile);
                for (x, tile) in columns.iter().zip(&tile) {
                    plain.rows(&source, x, n, &mut want);
                    let mut got = vec![0.0; ROWS];
                    fast.rows(&out, x, n, &mut got);
                    assert_eq!(got, want, "{} on {}", packed.format.name, isa.name());
                    assert_eq!(tile[..], want[..TILE_ROWS], "{} on {}", packed.format.name, isa.name());
                }
            }
        }
    }

    /// Nanoseconds that this thread has had a processor, as the kernel's scheduler counts them in ticks; by the clock elsewhere.
    fn processor_ns(since: std::time::Instant) -> u64 {
        let counted = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
        let counted = counted.and_then(|line| line.split(' ').next()?.parse().ok());
        counted.unwrap_or_else(|| since.elapsed().as_nanos() as u64)
    }

    /// Figures for docs/kernels.md: `cargo test --release -p slotbank-kernels packed_speed -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn packed_speed() {
        let start = std::time::Instant::now();
        let n = 6144;
        let x = quantized(Activation::Q8K, &floats(n, 1, 2.0));
        // In a near cache and beyond any.
        for (rows, repeats) in [(256, 512), (32768, 4)] {
            let mut y = vec![0.0; rows];
            for packed in PACKED {
                let source = random_row(packed.source, n * rows, 3);
                let mut out = vec![0; packed.format.row_bytes(n * rows).unwrap()];
                let (plain, fast) = (packed.source.kernel(Isa::best()), packed.format.kernel(Isa::best()));
                let mut rates = [const { Vec::new() }; 3];
                for round in 0..7 {
                    for turn in 0..3 {
                        // A B C, C B A, …
                        let what = if round % 2 == 0 { turn } else { 2 - turn };
                        let since = processor_ns(start);
                        for _ in 0..repeats {
                            match what {
                                0 => plain.rows(&source, &x, n, &mut y),
                                1 => fast.rows(&out, &x, n, &mut y),
                                _ => (packed.pack)(&source, &mut out),
                            }
                            std::hint::black_box(&mut y);
                        }
                        let ns = (processor_ns(start) - since) as f64;
                        rates[what].push((n * rows * repeats) as f64 / ns);
                    }
                }
                let [plain, fast, pack] = rates.map(|mut rates| {
                    rates.sort_by(f64::total_cmp);
                    format!("{:.1} (best {:.1})", rates[rates.len() / 2], rates[rates.len() - 1])
                });
                let name = packed.source.name;
                println!("{rows} rows of {n}, {name}: {plain}, packed {fast}, packing {pack} Gweights/s");
            }
        }
    }

    #[test]
    #[should_panic(expected = "as many packed ones")]
    fn lengths_must_fit() {
        let packed = &PACKED[0];
        (packed.pack)(&vec![0; packed.source.block_bytes], &mut [0; 2 * BYTES]);
    }
}
