//! Tensor bytes of any ggml type: exact or quantised values where a quantiser exists, and otherwise random blocks that are
//! valid and harmless — random codes under scale fields that keep the values near those of the other weights.
//!
//! Random codes are a stronger test than quantised ones: every grid index, sign pattern and sub-block scale occurs.

use files::GgmlType;
use half::f16;

use crate::weights::{Stream, values};

/// Where the half-precision scale fields of a block lie, with the value to put there. Derived from the block layouts so
/// that the mean magnitude of a weight is about 0.1; a `min` field is chosen so that weights are centred.
fn scale_fields(ty: GgmlType) -> &'static [(usize, f32)] {
    match ty.name() {
        "Q4_0" => &[(0, 0.024)],
        "Q4_1" => &[(0, 0.024), (2, -0.18)],
        "Q5_0" => &[(0, 0.012)],
        "Q5_1" => &[(0, 0.012), (2, -0.186)],
        "Q8_0" => &[(0, 0.0016)],
        "IQ4_NL" => &[(0, 0.0018)],
        "Q1_0" => &[(0, 0.1)],
        "Q2_0" => &[(0, 0.1)],
        "Q2_K" => &[(80, 0.009), (82, 0.0135)],
        "Q3_K" => &[(108, 0.003)],
        "Q4_K" => &[(0, 0.0005), (2, 0.00375)],
        "Q5_K" => &[(0, 0.00024), (2, 0.00372)],
        "Q6_K" => &[(208, 0.0001)],
        "IQ2_XXS" | "IQ2_XS" | "IQ2_S" => &[(0, 0.0025)],
        "IQ3_XXS" => &[(0, 0.0009)],
        "IQ3_S" => &[(0, 0.0008)],
        "IQ1_S" => &[(0, 0.015)],
        "IQ4_XS" => &[(0, 0.0001)],
        "TQ1_0" => &[(52, 0.1)],
        "TQ2_0" => &[(64, 0.1)],
        other => panic!("no toy blocks for type {other}"),
    }
}

/// Bytes of tensor `name` (`n` elements in whole rows) of a model of `seed`, stored as `ty`.
pub fn encode(ty: GgmlType, seed: u64, name: &str, n: usize) -> Vec<u8> {
    match quantise(ty, &|| values(seed, name, n)) {
        Some(bytes) => bytes,
        None => random(ty, seed, name, n),
    }
}

/// The nearest representation of `values` in `ty`, where there is a quantiser for it.
pub fn quantise(ty: GgmlType, values: &dyn Fn() -> Vec<f32>) -> Option<Vec<u8>> {
    let quantize = kernels::format(ty.id())?.quantize?;
    let values = values();
    let bytes = ty.row_bytes(values.len() as u64).expect("whole rows hold whole blocks");
    let mut out = vec![0; bytes as usize];
    quantize(&values, &mut out);
    Some(out)
}

/// Random valid blocks.
pub fn random(ty: GgmlType, seed: u64, name: &str, n: usize) -> Vec<u8> {
    let bytes = ty.row_bytes(n as u64).expect("whole rows hold whole blocks") as usize;
    if kernels::format(ty.id()).is_none() {
        return vec![0; bytes]; // nobody can read these; they are there to be refused
    }
    let stream = Stream::new(seed, &format!("{name} as {ty}"));
    let words = bytes.div_ceil(8) as u64;
    let mut out: Vec<u8> = (0..words).flat_map(|i| stream.bits(i).to_le_bytes()).collect();
    out.truncate(bytes);
    for (i, block) in out.chunks_exact_mut(ty.block_bytes() as usize).enumerate() {
        // Scales differ by up to a factor of 3 from block to block: a block read at the wrong place is noticed.
        let vary = 1.0 + 0.5 * stream.uniform(words + i as u64);
        scale_block(ty, block, vary);
    }
    out
}

fn scale_block(ty: GgmlType, block: &mut [u8], vary: f32) {
    match ty.name() {
        // The half is spread over the top nibbles of four 16-bit scale words.
        "IQ1_M" => {
            let bits = f16::from_f32(0.015 * vary).to_bits();
            for k in 0..4 {
                let high = &mut block[49 + 2 * k];
                *high = (*high & 0x0F) | ((bits >> (4 * k)) as u8 & 0x0F) << 4;
            }
        }
        // One exponent byte: value = 2^(e - 128) times up to 12.
        "MXFP4" => block[0] = 122 + (block[0] & 1),
        // Four unsigned floats with 4 exponent and 3 mantissa bits.
        "NVFP4" => block[..4].iter_mut().for_each(|s| *s = (3 << 3) | (*s & 7)),
        _ => {
            for &(at, scale) in scale_fields(ty) {
                let bits = f16::from_f32(scale * vary).to_bits();
                block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every format with a kernel: random blocks decode to finite, moderate, not all equal weights.
    #[test]
    fn random_blocks_decode_to_moderate_weights() {
        let n = 256 * 64;
        for format in kernels::FORMATS {
            let ty = GgmlType::from_id(format.id).expect("kernels' formats are ggml types");
            if ty.block_elements() == 1 {
                continue;
            }
            let bytes = random(ty, 3, "blk.1.ffn_up_exps.weight", n);
            let mut out = vec![0.0f32; n];
            (format.dequantize)(&bytes, &mut out);
            let mean_abs = out.iter().map(|x| x.abs()).sum::<f32>() / n as f32;
            let mean = out.iter().sum::<f32>() / n as f32;
            let peak = out.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            assert!((0.02..0.3).contains(&mean_abs), "{ty}: mean magnitude {mean_abs}");
            assert!(mean.abs() < 0.6 * mean_abs, "{ty}: mean {mean}, magnitude {mean_abs}");
            assert!(peak < 2.5, "{ty}: {peak}");
        }
    }

    #[test]
    fn exact_types_keep_the_values() {
        let name = "blk.0.attn_q_a.weight";
        let bytes = encode(GgmlType::F32, 5, name, 64);
        assert_eq!(bytes, files::gguf::f32_bytes(&values(5, name, 64)));
    }
}
