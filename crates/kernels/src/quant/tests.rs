//! Walks the table: what holds for every format.

use super::{FORMATS, format};
use crate::ops::testing::floats;
use crate::{Activation, Format, Isa, Kernel, Kernels, TILE_ROWS};

/// Random blocks whose scales are ordinary numbers.
pub(super) fn random_row(format: &Format, n: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    let mut row: Vec<u8> = (0..format.row_bytes(n).unwrap()).map(|_| byte()).collect();
    for block in row.chunks_mut(format.block_bytes) {
        // The high byte of each half: sign, exponent 2^-8 … 2^-1, two bits of mantissa.
        let half = |b: u8| b & 0x80 | 0x1c | b & 3 | (b & 4) << 2;
        let highs: &[usize] = match format.name {
            "F16" | "Q4_0" | "Q5_0" | "Q8_0" | "IQ4_NL" => &[1],
            "Q4_1" | "Q5_1" | "Q4_K" | "Q5_K" => &[1, 3],
            "Q2_K" => &[81, 83],
            "Q3_K" => &[109],
            "Q6_K" => &[209],
            "TQ1_0" => &[53],
            "TQ2_0" => &[65],
            "IQ1_S" | "IQ2_XXS" | "IQ2_XS" | "IQ2_S" | "IQ3_XXS" | "IQ3_S" | "IQ4_XS" => &[1],
            _ => &[],
        };
        for &at in highs {
            block[at] = half(block[at]);
        }
        match format.name {
            "F32" => block[3] = block[3] & 0x80 | 0x3e,
            "BF16" => block[1] = block[1] & 0x80 | 0x3e,
            "MXFP4" => block[0] = 120 + block[0] % 8,
            "NVFP4" => block[..4].iter_mut().for_each(|s| *s = 0x28 | *s & 0x97),
            "IQ1_M" => {
                block[55] = block[55] & 15 | 0x20; // exponent
                block[53] = block[53] & 15 | 0xc0;
            }
            _ => {}
        }
    }
    row
}

pub(super) fn quantized(form: Activation, x: &[f32]) -> Vec<u8> {
    let mut row = vec![0; form.row_bytes(x.len())];
    form.quantize(x, &mut row);
    row
}

/// One weight row with one activation row.
pub(super) fn dot(kernel: Kernel, weights: &[u8], x: &[u8], n: usize) -> f32 {
    let mut y = [0.0];
    kernel.rows(weights, x, n, &mut y);
    y[0]
}

fn decoded(format: &Format, row: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; row.len() / format.block_bytes * format.block_elements];
    (format.dequantize)(row, &mut out);
    out
}

/// Row lengths with even and odd numbers of blocks, and tails for the float formats.
fn lengths(format: &Format) -> Vec<usize> {
    match format.block_elements {
        1 => vec![0, 1, 3, 15, 16, 17, 31, 33, 64, 100, 255, 1024],
        block => [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31].iter().map(|n| n * block).collect(),
    }
}

fn simd(format: &'static Format) -> Vec<(Isa, Kernels)> {
    [(Isa::Avx2, format.avx2), (Isa::Avx512, format.avx512), (Isa::Neon, format.neon)]
        .into_iter()
        .filter(|(isa, _)| isa.is_supported())
        .filter_map(|(isa, kernels)| Some((isa, kernels?)))
        .collect()
}

#[test]
fn ids_and_names_are_unique() {
    for (i, a) in FORMATS.iter().enumerate() {
        assert_eq!(format(a.id).unwrap().name, a.name);
        assert!(FORMATS[i + 1..].iter().all(|b| a.id != b.id && a.name != b.name));
    }
    assert!(format(9999).is_none());
}

#[test]
fn blocks_of_weights_are_blocks_of_activations() {
    for f in FORMATS {
        assert!(f.block_elements.is_multiple_of(f.activation.block_elements()), "{}", f.name);
        assert_eq!(f.row_bytes(3 * f.block_elements), Some(3 * f.block_bytes));
        assert!(f.block_elements == 1 || f.row_bytes(f.block_elements + 1).is_none());
    }
}

#[test]
fn kernels_fall_back_to_a_plainer_instruction_set() {
    for f in FORMATS {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            let kernel = f.kernel(isa);
            assert!(kernel.isa() == isa || kernel.isa() == Isa::Scalar || isa == Isa::Avx512);
            assert!(kernel.isa().is_supported());
        }
        assert_eq!(f.kernel(Isa::Scalar).isa(), Isa::Scalar);
    }
}

/// The matrix of formats and instruction sets, so that a hole is a decision.
#[test]
#[cfg(target_arch = "x86_64")]
fn which_formats_have_which_kernels() {
    let without =
        |has: fn(&Format) -> bool| FORMATS.iter().filter(|f| !has(f)).map(|f| f.name).collect::<Vec<_>>();
    assert!(without(|f| f.avx2.is_some()).is_empty());
    assert_eq!(without(|f| f.avx512.is_some()), ["NVFP4"]);
}

/// The same on 64-bit Arm.
#[test]
#[cfg(target_arch = "aarch64")]
fn every_format_has_neon_kernels() {
    assert!(FORMATS.iter().all(|f| f.neon.is_some()));
    let without_tile = FORMATS.iter().filter(|f| f.neon.is_some_and(|kernels| kernels.tile.is_none()));
    assert!(without_tile.map(|f| f.name).eq(["NVFP4"]));
}

/// Row by row, by the portable twin.
fn by_scalar(f: &Format, w: &[u8], x: &[u8], n: usize, n_rows: usize) -> Vec<u32> {
    let mut y = vec![f32::NAN; n_rows];
    // SAFETY: scalar needs nothing; lengths are those of rows.
    unsafe { (f.scalar.rows)(w, x, n, &mut y) };
    y.iter().map(|y| y.to_bits()).collect()
}

/// Every instruction set gives the scalar twin's bits: all lengths, one row and several, any alignment of weights and
/// activations.
#[test]
fn simd_equals_scalar() {
    for f in FORMATS {
        for (isa, kernels) in simd(f) {
            for n in lengths(f) {
                for seed in 0..4 {
                    let n_rows = [1, 4, 7, 2][seed as usize];
                    let x = quantized(f.activation, &floats(n, 100 + seed, 2.0));
                    let w: Vec<u8> =
                        (0..n_rows).flat_map(|r| random_row(f, n, seed + 10 * r as u64)).collect();
                    let want = by_scalar(f, &w, &x, n, n_rows);
                    assert!(want.iter().all(|y| f32::from_bits(*y).is_finite()));
                    for shift in [0, 1, 3] {
                        let place = |bytes: &[u8]| [vec![0xff; shift].as_slice(), bytes].concat();
                        let (w, x) = (place(&w), place(&x));
                        let mut got = vec![f32::NAN; n_rows];
                        // SAFETY: the instruction set is supported; lengths are those of rows.
                        unsafe { (kernels.rows)(&w[shift..], &x[shift..], n, &mut got) };
                        let got: Vec<u32> = got.iter().map(|y| y.to_bits()).collect();
                        assert_eq!(got, want, "{} {} n {n}", f.name, isa.name());
                    }
                }
            }
        }
    }
}

/// Tiles give the scalar twin's bits too, whatever their rows and columns.
#[test]
fn tiles_equal_scalar() {
    for f in FORMATS {
        for (isa, kernels) in simd(f) {
            let Some((tile, _)) = kernels.tile else { continue };
            for (n_blocks, n_rows, n_columns) in [
                (1, 1, 1),
                (3, 7, 2),
                (2, 32, 3),
                (9, 9, 4),
                (17, 17, 5),
                (8, 24, 11),
                (1, 32, 128),
                (0, 3, 2),
            ] {
                let n = n_blocks * f.block_elements.max(16);
                let w: Vec<u8> = (0..n_rows).flat_map(|r| random_row(f, n, r as u64 + 7)).collect();
                // Columns at the extremes (±127 throughout), some of mostly small values, and some between: alone and together.
                let column = |c: u64| -> Vec<f32> {
                    let x = floats(n, 30 + c, 2.0).into_iter();
                    match c % 10 {
                        0 | 2 | 4 => x.collect(),
                        1 | 3 => x.map(f32::signum).collect(),
                        _ => x.map(|x| x * x * x).collect(),
                    }
                };
                let x: Vec<_> = (0..n_columns).map(|c| quantized(f.activation, &column(c))).collect();
                let columns: Vec<&[u8]> = x.iter().map(Vec::as_slice).collect();
                let mut y = vec![[f32::NAN; TILE_ROWS]; columns.len()];
                // SAFETY: the instruction set is supported; lengths are those of rows.
                unsafe { tile(&w, n_rows, &columns, n, &mut y) };
                for (x, y) in columns.iter().zip(&y) {
                    let got: Vec<u32> = y[..n_rows].iter().map(|y| y.to_bits()).collect();
                    assert_eq!(
                        got,
                        by_scalar(f, &w, x, n, n_rows),
                        "{} {} {n_rows} rows, {n_columns} columns of {n}",
                        f.name,
                        isa.name()
                    );
                }
            }
        }
    }
}

/// Extreme integers do not saturate anything.
#[test]
fn simd_equals_scalar_at_the_extremes() {
    for f in FORMATS.iter().filter(|f| f.block_elements > 1) {
        for (isa, kernels) in simd(f) {
            for fill in [0x00u8, 0x7f, 0x80, 0xff, 0xf0, 0x0f] {
                let n = 8 * f.block_elements;
                let mut w = vec![fill; f.row_bytes(n).unwrap()];
                let row = random_row(f, n, 1);
                // Keep the random row's scales, wherever they are: only bytes equal in all fills matter here.
                for (i, block) in w.chunks_mut(f.block_bytes).enumerate() {
                    let from = &row[i * f.block_bytes..][..f.block_bytes];
                    for at in halves(f.name) {
                        block[at] = from[at];
                    }
                }
                for sign in [1.0, -1.0] {
                    let x = quantized(f.activation, &vec![sign; n]);
                    let want = by_scalar(f, &w, &x, n, 1);
                    let (mut got, mut tiled) = ([f32::NAN], [[f32::NAN; TILE_ROWS]]);
                    // SAFETY: supported instruction set, whole rows.
                    unsafe { (kernels.rows)(&w, &x, n, &mut got) };
                    assert_eq!(got[0].to_bits(), want[0], "{} {} fill {fill:#x}", f.name, isa.name());
                    if let Some((tile, _)) = kernels.tile {
                        // SAFETY: as above.
                        unsafe { tile(&w, 1, &[&x], n, &mut tiled) };
                        assert_eq!(tiled[0][0].to_bits(), want[0], "{} tile, fill {fill:#x}", f.name);
                    }
                }
            }
        }
    }
}

/// Bytes that carry a format's scale.
fn halves(name: &str) -> Vec<usize> {
    match name {
        "Q4_1" | "Q5_1" | "Q4_K" | "Q5_K" => (0..4).collect(),
        "Q2_K" => (80..84).collect(),
        "Q3_K" => (108..110).collect(),
        "Q6_K" => (208..210).collect(),
        "TQ1_0" => (52..54).collect(),
        "TQ2_0" => (64..66).collect(),
        "IQ1_M" => vec![53, 55],
        "MXFP4" => vec![0],
        "NVFP4" => (0..4).collect(),
        _ => vec![0, 1],
    }
}

/// A dot is that of the decoded weights with the true activations, up to what quantising the activations costs: half a step
/// of a block's scale per element, times the weights.
#[test]
fn dot_is_close_to_the_decoded_weights() {
    for f in FORMATS {
        let n = 5 * 256;
        for seed in 0..5 {
            let (x, w) = (floats(n, seed, 1.0), random_row(f, n, seed + 50));
            let values = decoded(f, &w);
            let got = dot(f.kernel(Isa::Scalar), &w, &quantized(f.activation, &x), n);
            let (mut want, mut bound) = (0.0, 0.0);
            let step = f.activation.block_elements();
            for (w, x) in values.chunks(step).zip(x.chunks(step)) {
                let largest = x.iter().fold(0.0f64, |a, x| a.max(f64::from(x.abs())));
                let error = if f.activation == Activation::F32 { 0.0 } else { largest / 127.0 * 0.5001 };
                for (w, x) in w.iter().zip(x) {
                    want += f64::from(*w) * f64::from(*x);
                    bound += f64::from(w.abs()) * (error + 1e-5 * f64::from(x.abs()));
                }
            }
            assert!((f64::from(got) - want).abs() <= bound, "{}: {got} {want} ± {bound}", f.name);
            // The bound is a worst case; chance keeps the error far below it.
            assert!(
                (f64::from(got) - want).abs() <= 0.2 * bound + 1e-6,
                "{}: {got} {want} ± {bound}",
                f.name
            );
        }
    }
}

struct Golden<'a> {
    format: &'static Format,
    blocks: &'a [u8],
    values: Vec<f32>,
}

/// The records of a golden file (see tools/goldens/quant_goldens.py).
fn goldens(mut file: &[u8]) -> Vec<Golden<'_>> {
    let mut records = Vec::new();
    while !file.is_empty() {
        let word = |i: usize| u32::from_le_bytes(file[4 * i..4 * i + 4].try_into().unwrap());
        let (id, bytes, values) = (word(0), word(1) as usize, word(2) as usize);
        let (blocks, rest) = file[12..].split_at(bytes);
        let (floats, rest) = rest.split_at(4 * values);
        let values =
            floats.as_chunks::<4>().0.iter().map(|b| core::primitive::f32::from_le_bytes(*b)).collect();
        records.push(Golden { format: format(id).unwrap(), blocks, values });
        file = rest;
    }
    records
}

#[test]
fn decoding_equals_gguf_py_bit_for_bit() {
    let records = goldens(include_bytes!("../../../../tests/fixtures/quant/blocks.bin"));
    assert!(
        FORMATS.iter().all(|f| records.iter().any(|r| r.format.id == f.id)),
        "a format without golden blocks"
    );
    for Golden { format, blocks, values } in records {
        let got = decoded(format, blocks);
        assert_eq!(got.len(), values.len(), "{}", format.name);
        for (i, (got, want)) in got.iter().zip(&values).enumerate() {
            assert_eq!(got.to_bits(), want.to_bits(), "{} element {i}: {got} {want}", format.name);
        }
    }
}

#[test]
fn encoding_equals_gguf_py_byte_for_byte() {
    let records = goldens(include_bytes!("../../../../tests/fixtures/quant/encoded.bin"));
    for Golden { format, blocks, values } in records {
        let mut got = vec![0; blocks.len()];
        format.quantize.unwrap()(&values, &mut got);
        assert!(got == blocks, "{}", format.name);
    }
}

#[test]
fn encoding_then_decoding_is_close() {
    for f in FORMATS {
        let Some(quantize) = f.quantize else { continue };
        let x = floats(512, 9, 1.0);
        let mut row = vec![0; f.row_bytes(512).unwrap()];
        quantize(&x, &mut row);
        let bound = match f.name {
            "F32" => 0.0,
            "F16" => 5e-4,
            "BF16" => 4e-3,
            "Q8_0" => 5e-3,
            "Q5_0" | "Q5_1" => 0.07,
            _ => 0.14,
        };
        for (x, y) in x.iter().zip(decoded(f, &row)) {
            assert!((x - y).abs() <= bound, "{}: {x} became {y}", f.name);
        }
    }
}
