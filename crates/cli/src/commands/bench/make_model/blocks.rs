//! Random blocks of every format that the kernels know, with weights of a wanted standard deviation.
//!
//! Codes, signs and sub-block scales are random bits, all of which are valid; only the fields that set a block's unit are
//! written. How large a unit gives which deviation is measured on a sample when a tensor begins, not tabulated: the tables
//! below say where the fields are and how a minimum must relate to its scale for weights to be centred.

use files::GgmlType;
use kernels::{Format, ops};

use super::random::Stream;

/// Half-precision fields of a block: offset, and value relative to the block's unit.
fn unit_fields(name: &str) -> Option<&'static [(usize, f32)]> {
    Some(match name {
        "Q4_0" | "Q5_0" | "Q8_0" | "IQ4_NL" => &[(0, 1.0)],
        "Q4_1" => &[(0, 1.0), (2, -7.5)],
        "Q5_1" => &[(0, 1.0), (2, -15.5)],
        "Q2_K" => &[(80, 1.0), (82, 1.5)],
        "Q3_K" => &[(108, 1.0)],
        "Q4_K" => &[(0, 1.0), (2, 7.5)],
        "Q5_K" => &[(0, 1.0), (2, 15.5)],
        "Q6_K" => &[(208, 1.0)],
        "IQ1_S" | "IQ2_XXS" | "IQ2_XS" | "IQ2_S" | "IQ3_XXS" | "IQ3_S" | "IQ4_XS" => &[(0, 1.0)],
        "TQ1_0" => &[(52, 1.0)],
        "TQ2_0" => &[(64, 1.0)],
        _ => return None,
    })
}

/// A format and how its blocks are given a unit.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    pub(super) ty: GgmlType,
    format: &'static Format,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    /// Weights are floats: normal deviates times the wanted deviation.
    Floats,
    /// One or two half-precision fields.
    Halves(&'static [(usize, f32)]),
    /// A half, spread over the top nibbles of the four words of scales.
    Iq1M,
    /// A power of two in the first byte.
    Exponent,
    /// Four small floats (four bits of exponent, three of mantissa) in the first bytes.
    SmallFloats,
}

/// What is written into the blocks of a row for one standard deviation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unit(UnitKind);

#[derive(Clone, Copy, Debug)]
enum UnitKind {
    Deviation(f32),
    Half(f32),
    /// The exponent byte, and how many of 2^16 blocks take the next one: a mixture has any variance between two powers.
    Exponent(u8, u64),
    /// The byte of the small float, and how many of 2^16 groups take the next one.
    SmallFloat(u8, u64),
}

/// The float of such a byte, halved as the format has it.
fn small_float(byte: u8) -> f32 {
    let (exponent, mantissa) = (byte >> 3, f32::from(byte & 7) / 8.0);
    if exponent == 0 { mantissa / 128.0 } else { (1.0 + mantissa) * (f32::from(exponent) - 8.0).exp2() }
}

/// How many of 2^16 take the larger of two units so that the mixture has the variance of `unit`.
fn share_of_larger(unit: f32, low: f32, high: f32) -> u64 {
    let share = (unit * unit - low * low) / (high * high - low * low);
    (f64::from(share.clamp(0.0, 1.0)) * 65_536.0) as u64
}

/// Blocks of the sample on which a deviation is measured.
const SAMPLE_BLOCKS: usize = 512;

impl Blocks {
    /// `None` for types without a kernel, or whose unit this file does not know.
    pub(super) fn of(ty: GgmlType) -> Option<Self> {
        let format = kernels::format(ty.id())?;
        let kind = match ty.name() {
            "F32" | "F16" | "BF16" => Kind::Floats,
            "IQ1_M" => Kind::Iq1M,
            "MXFP4" => Kind::Exponent,
            "NVFP4" => Kind::SmallFloats,
            name => Kind::Halves(unit_fields(name)?),
        };
        Some(Self { ty, format, kind })
    }

    /// Bytes of a row of `n` weights; `None` when it is no whole number of blocks.
    pub(super) fn row_bytes(self, n: u64) -> Option<usize> {
        self.ty.row_bytes(n).and_then(|bytes| usize::try_from(bytes).ok())
    }

    /// The unit with which random blocks have weights of standard deviation `std`, within what a half can express.
    pub(super) fn unit(self, std: f32) -> Unit {
        const PROBE: f32 = 0.0625;
        Unit(match self.kind {
            Kind::Floats => UnitKind::Deviation(std),
            Kind::Halves(_) | Kind::Iq1M => {
                let unit = PROBE * std / self.deviation(Unit(UnitKind::Half(PROBE)));
                // Never zero: the smallest half is 2^-24.
                UnitKind::Half(unit.clamp(6.0e-8, 65_000.0))
            }
            Kind::Exponent => {
                let one = self.deviation(Unit(UnitKind::Exponent(127, 0)));
                let power = (std / one).log2().floor();
                let low = (127.0 + power).clamp(1.0, 250.0);
                let ratio = std / (one * (low - 127.0).exp2()); // 1 to 2 where not clamped
                UnitKind::Exponent(low as u8, share_of_larger(ratio, 1.0, 2.0))
            }
            Kind::SmallFloats => {
                const ONE: u8 = 8 << 3;
                let unit = std / self.deviation(Unit(UnitKind::SmallFloat(ONE, 0)));
                let low = (0..0x7d).rev().find(|b| small_float(*b) <= unit).unwrap_or(0);
                UnitKind::SmallFloat(low, share_of_larger(unit, small_float(low), small_float(low + 1)))
            }
        })
    }

    /// Standard deviation (about zero) of the weights of random blocks with this unit.
    fn deviation(self, unit: Unit) -> f32 {
        let n = SAMPLE_BLOCKS * self.format.block_elements;
        let mut bytes = vec![0u8; SAMPLE_BLOCKS * self.format.block_bytes];
        self.fill_row(unit, Stream::new(0, "sample of blocks"), 0, &mut bytes);
        let mut weights = vec![0.0f32; n];
        (self.format.dequantize)(&bytes, &mut weights);
        let squares: f64 = weights.iter().map(|w| f64::from(*w) * f64::from(*w)).sum();
        (squares / n as f64).sqrt() as f32
    }

    /// Random numbers of `stream` that a row of `row_bytes` takes; row `r` begins at number `r` times this.
    pub(super) fn numbers_per_row(self, row_bytes: usize) -> u64 {
        match self.kind {
            Kind::Floats => (row_bytes / self.format.block_bytes) as u64,
            _ => (row_bytes.div_ceil(8) + row_bytes / self.format.block_bytes) as u64,
        }
    }

    /// Writes whole blocks into `row` from the numbers `first` on.
    pub(super) fn fill_row(self, unit: Unit, stream: Stream, first: u64, row: &mut [u8]) {
        match (self.kind, unit.0) {
            (Kind::Floats, UnitKind::Deviation(std)) => self.fill_floats(std, stream, first, row),
            (Kind::Halves(fields), UnitKind::Half(unit)) => {
                stream.fill(first, row);
                let ternary = self.ty == GgmlType::TQ2_0;
                for block in row.chunks_exact_mut(self.format.block_bytes) {
                    if ternary {
                        block[..64].iter_mut().for_each(without_threes);
                    }
                    for &(at, relative) in fields {
                        let half = ops::narrow(unit * relative);
                        block[at..at + 2].copy_from_slice(&half.to_le_bytes());
                    }
                }
            }
            (Kind::Iq1M, UnitKind::Half(unit)) => {
                stream.fill(first, row);
                let half = ops::narrow(unit);
                for block in row.chunks_exact_mut(self.format.block_bytes) {
                    for k in 0..4 {
                        let high = &mut block[49 + 2 * k];
                        *high = (*high & 0x0F) | ((half >> (4 * k)) as u8 & 0x0F) << 4;
                    }
                }
            }
            (Kind::Exponent, UnitKind::Exponent(exponent, share)) => {
                stream.fill(first, row);
                let choice = first + row.len().div_ceil(8) as u64;
                for (i, block) in row.chunks_exact_mut(self.format.block_bytes).enumerate() {
                    let next = stream.bits(choice + i as u64) >> 48 < share;
                    block[0] = exponent + u8::from(next);
                }
            }
            (Kind::SmallFloats, UnitKind::SmallFloat(low, share)) => {
                stream.fill(first, row);
                let choice = first + row.len().div_ceil(8) as u64;
                for (i, block) in row.chunks_exact_mut(self.format.block_bytes).enumerate() {
                    let bits = stream.bits(choice + i as u64);
                    for (g, byte) in block[..4].iter_mut().enumerate() {
                        *byte = low + u8::from(bits >> (16 * g) & 0xffff < share);
                    }
                }
            }
            _ => unreachable!("a unit is made for its own format"),
        }
    }

    fn fill_floats(self, std: f32, stream: Stream, first: u64, row: &mut [u8]) {
        let size = self.format.block_bytes;
        for (i, out) in (first..).zip(row.chunks_exact_mut(size)) {
            let x = std * stream.normal(i);
            match self.ty.name() {
                "F32" => out.copy_from_slice(&x.to_le_bytes()),
                "F16" => out.copy_from_slice(&ops::narrow(x).to_le_bytes()),
                // Truncated: random weights need no rounding.
                _ => out.copy_from_slice(&x.to_le_bytes()[2..]),
            }
        }
    }
}

/// Of the four codes of two bits only 0, 1 and 2 are weights (−1, 0, 1): a 3 becomes a 1, which keeps the mean at 0.
fn without_threes(byte: &mut u8) {
    let threes = *byte & (*byte >> 1) & 0x55;
    *byte ^= threes << 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(blocks: Blocks, std: f32, n: u64) -> Vec<f32> {
        let mut bytes = vec![0; blocks.row_bytes(n).expect("whole blocks")];
        blocks.fill_row(blocks.unit(std), Stream::new(9, "blk.1.ffn_up_exps.weight"), 0, &mut bytes);
        let mut out = vec![0.0; n as usize];
        (blocks.format.dequantize)(&bytes, &mut out);
        out
    }

    #[test]
    fn every_format_has_the_wanted_deviation() {
        for format in kernels::FORMATS {
            let ty = GgmlType::from_id(format.id).expect("kernels' formats are ggml types");
            let blocks = Blocks::of(ty).unwrap_or_else(|| panic!("{ty} has no random blocks"));
            // Rows of 6,144 and of 256 weights, and a matrix that is written twenty times too quiet.
            for wanted in [0.0128f32, 0.0625, 0.0011] {
                let w = weights(blocks, wanted, 256 * 256);
                assert!(w.iter().all(|x| x.is_finite()), "{ty}");
                let n = w.len() as f64;
                let mean = w.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
                let rms = (w.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>() / n).sqrt();
                let off = (rms / f64::from(wanted) - 1.0).abs();
                assert!(off < 0.05, "{ty}: {rms} instead of {wanted}");
                assert!(mean.abs() < 0.15 * rms, "{ty}: mean {mean} of {rms}");
            }
        }
    }

    #[test]
    fn ternary_codes_stay_ternary() {
        for mut byte in 0..=255u8 {
            without_threes(&mut byte);
            assert!((0..4).all(|i| byte >> (2 * i) & 3 != 3), "{byte:08b}");
        }
    }
}
