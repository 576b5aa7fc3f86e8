//! Packed forms: what an expert that is used again and again is rewritten to. It takes more bytes and less work.
//!
//! The weights of IQ1 and IQ2 take six different values. Two or three bits name one of them ([`p2`], [`p3`]), and nothing is looked up in
//! memory. Integers, scales and unit are those of the source, in the same order, so every result has the same bits.
//!
//! Both forms store a block as eight *steps* of 32 weights, two of each group of sixteen: byte `2·j + i` of step `t` is element `2·t + i` of
//! group `j`. The sixteen words of a register thus belong to the sixteen groups, whatever the step: products add up in place, and the
//! scales are applied once, in the order they are stored in.

pub(super) mod p2;
pub(super) mod p3;

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

/// The integers of a block, in steps.
type Steps = [[i8; 32]; 8];

/// Which element of the block byte `l` of step `t` is.
#[inline(always)]
const fn element(t: usize, l: usize) -> usize {
    16 * (l / 2) + 2 * t + l % 2
}

/// A packed form with blocks of `M` bytes.
trait Form<const M: usize>: Block256<M> {
    /// Where the half `d` stands.
    const UNIT_AT: usize;

    /// Writes everything but the half.
    fn encode(steps: &Steps, scales: &[u8; 16], out: &mut [u8; M]);
}

fn pack<F: Form<M>, S: Blocks<N>, const M: usize, const N: usize>(bytes: &[u8], out: &mut [u8]) {
    let (blocks, packed) = (bytes.as_chunks::<N>(), out.as_chunks_mut::<M>());
    assert!(
        blocks.1.is_empty() && packed.1.is_empty() && blocks.0.len() == packed.0.len(),
        "whole blocks and as many packed ones"
    );
    #[cfg(target_arch = "x86_64")]
    if matches!(Isa::current(), Isa::Avx2 | Isa::Avx512) {
        // SAFETY: Isa::current only names an instruction set that this processor has.
        return unsafe { pack_avx2::<F, S, M, N>(blocks.0, packed.0) };
    }
    let (mut q, mut steps) = ([0; 256], [[0; 32]; 8]);
    for (block, out) in blocks.0.iter().zip(packed.0) {
        S::quants(block, &mut q);
        for (t, step) in steps.iter_mut().enumerate() {
            step.iter_mut().enumerate().for_each(|(l, step)| *step = q[element(t, l)]);
        }
        pack_block::<F, S, M, N>(block, &steps, out);
    }
}

/// The same with what AVX2 has for it, and compiled for it.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn pack_avx2<F: Form<M>, S: Blocks<N>, const M: usize, const N: usize>(
    blocks: &[[u8; N]],
    packed: &mut [[u8; M]],
) {
    let (mut q, mut steps) = ([0; 256], [[0; 32]; 8]);
    for (block, out) in blocks.iter().zip(packed) {
        // SAFETY: AVX2 is on.
        unsafe { S::integers(block, &mut q) };
        x86::packed::steps_of(&q, &mut steps);
        pack_block::<F, S, M, N>(block, &steps, out);
    }
}

#[inline(always)]
fn pack_block<F: Form<M>, S: Blocks<N>, const M: usize, const N: usize>(
    block: &[u8; N],
    steps: &Steps,
    out: &mut [u8; M],
) {
    let mut scales = [0; 16];
    S::scales(block, &mut scales, &mut [0; 16]);
    F::encode(steps, &scales.map(|scale| scale as u8), out);
    // The source's unit is a half by 8, so this is that half again.
    let d = narrow(S::units(block).0 * 8.0).to_le_bytes();
    out[F::UNIT_AT..F::UNIT_AT + 2].copy_from_slice(&d);
}

macro_rules! packed {
    ($($name:ident $label:literal $id:expr, $form:ident::$blocks:ident of $file:ident::$source:ident;)*) => {
        $(
            static $name: Format = Format {
                id: $id << 16 | super::$file::FORMAT.id,
                name: $label,
                block_elements: 256,
                block_bytes: $form::BYTES,
                activation: Activation::Q8K,
                dequantize: block256::dequantize::<$form::$blocks, { $form::BYTES }>,
                quantize: None,
                scalar: block256::scalar::<$form::$blocks, { $form::BYTES }>(),
                avx2: on_x86!(x86::packed::avx2::<$form::$blocks, { $form::BYTES }>()),
                avx512: on_x86!(x86::packed::avx512::<$form::$blocks, { $form::BYTES }>()),
                neon: on_neon!(super::neon::packed::neon::<$form::$blocks, { $form::BYTES }>()),
            };
        )*

        /// Every packed form.
        pub static PACKED: &[Packed] = &[$(
            Packed {
                source: &super::$file::FORMAT,
                format: &$name,
                pack: pack::<
                    $form::$blocks,
                    super::$file::$source,
                    { $form::BYTES },
                    { super::$file::BYTES },
                >,
            },
        )*];
    };
}

// Names and ids stand in files: another layout is another form.
packed! {
    IQ1_S "IQ1_S-p2" 2, p2::P2 of iq1_s::Iq1S;
    IQ1_M "IQ1_M-p2" 2, p2::P2 of iq1_m::Iq1M;
    IQ2_XXS "IQ2_XXS-p3" 3, p3::P3 of iq2_xxs::Iq2Xxs;
    IQ2_XS "IQ2_XS-p3" 3, p3::P3 of iq2_xs::Iq2Xs;
    IQ2_S "IQ2_S-p3" 3, p3::P3 of iq2_s::Iq2S;
}

#[cfg(test)]
mod tests {
    use super::super::tests::{dot, quantized, random_row};
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

    fn instruction_sets() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_supported())
    }

    /// Rows and tiles, on every instruction set of this processor, against the source's portable kernel.
    #[test]
    fn packed_results_have_the_same_bits() {
        let n = 256 * BLOCKS;
        let columns: Vec<Vec<u8>> = (0..TILE_COLUMNS as u64)
            .map(|c| quantized(Activation::Q8K, &floats(n, c + 3, if c == 0 { 1e3 } else { 2.0 })))
            .collect();
        let columns: Vec<&[u8]> = columns.iter().map(Vec::as_slice).collect();
        for packed in PACKED {
            let (source, out) = both(packed, 2);
            let plain = packed.source.kernel(Isa::Scalar);
            let want = columns.iter().map(|x| {
                let mut want = vec![0.0; ROWS];
                plain.rows(&source, x, n, &mut want);
                want
            });
            let want: Vec<_> = want.collect();
            for isa in instruction_sets() {
                let (what, fast) = (packed.format.name, packed.format.kernel(isa));
                for (x, want) in columns.iter().zip(&want) {
                    let mut got = vec![0.0; ROWS];
                    fast.rows(&out, x, n, &mut got);
                    assert_eq!(&got, want, "{what} on {}", isa.name());
                }
                for (n_columns, n_rows) in [(1, 3), (2, 32), (7, 5), (9, 13), (TILE_COLUMNS, TILE_ROWS)] {
                    let mut tile = vec![[0.0; TILE_ROWS]; n_columns];
                    fast.tile(
                        &out[..n_rows * fast.row_bytes(n)],
                        n_rows,
                        &columns[..n_columns],
                        n,
                        &mut tile,
                    );
                    for (got, want) in tile.iter().zip(&want) {
                        let name = isa.name();
                        assert_eq!(got[..n_rows], want[..n_rows], "{what}, {n_columns} columns on {name}");
                    }
                }
            }
        }
    }

    /// The largest sums there are, in rows of more blocks than are rearranged at a time.
    #[test]
    fn nothing_overflows() {
        let n = 256 * 37;
        let same = |x: f32| vec![x; n];
        let opposed = (0..n).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let halves = (0..n).map(|i| if i / 8 % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let columns = [same(1.0), same(-1.0), opposed, halves];
        let columns = columns.map(|x: Vec<f32>| quantized(Activation::Q8K, &x));
        let columns = columns.each_ref().map(Vec::as_slice);
        for packed in PACKED {
            let bytes = packed.format.block_bytes;
            let largest: [i8; 4] = if bytes == p2::BYTES { [9, -9, 7, -7] } else { [43, -43, 8, -8] };
            for (i, q) in largest.into_iter().enumerate() {
                let mut block = vec![0; bytes];
                // Two eights of different sign too, of which x takes the sign.
                let mut steps = [[q; 32]; 8];
                if i == 1 {
                    steps[4..].fill([-q; 32]);
                }
                let scales = [15; 16];
                match bytes {
                    p2::BYTES => p2::P2::encode(&steps, &scales, block.as_mut_array().unwrap()),
                    _ => p3::P3::encode(&steps, &scales.map(|s| 2 * s + 1), block.as_mut_array().unwrap()),
                }
                block[bytes - 1] = 0x3c;
                let weights = block.repeat(n / 256);
                let plain = packed.format.kernel(Isa::Scalar);
                let want = columns.map(|x| dot(plain, &weights, x, n));
                assert!(want.iter().any(|y| y.abs() > 1e5), "{want:?}");
                for isa in instruction_sets() {
                    let fast = packed.format.kernel(isa);
                    assert_eq!(columns.map(|x| dot(fast, &weights, x, n)), want, "{}", packed.format.name);
                    let (many, mut tile) = (columns.repeat(3), [[0.0; TILE_ROWS]; 12]);
                    fast.tile(&weights, 1, &many, n, &mut tile);
                    assert!(tile.iter().zip(want.iter().cycle()).all(|(y, want)| y[0] == *want));
                }
            }
        }
    }

    #[test]
    fn names_and_ids_are_their_own() {
        for (i, a) in PACKED.iter().enumerate() {
            let (a, others) = (a.format, &PACKED[i + 1..]);
            assert!(crate::format(a.id).is_none() && super::packed(a.id).is_none());
            assert!(crate::FORMATS.iter().all(|b| a.name != b.name));
            assert!(others.iter().all(|b| a.id != b.format.id && a.name != b.format.name));
        }
    }

    #[test]
    #[should_panic(expected = "as many packed ones")]
    fn lengths_must_fit() {
        let packed = &PACKED[0];
        (packed.pack)(&vec![0; packed.source.block_bytes], &mut vec![0; 2 * packed.format.block_bytes]);
    }
}
