//! What an idea is worth: the same work with it and without it, in alternation, on one thread and by its own processor time.

use kernels::{Format, Kernel, Packed};
use serde::Serialize;

use super::rig::{Figure, Rig, activations, bits_per_weight, fill, multiply, noise, valid_blocks};
use crate::ui::table::{Align, Table};

/// Matrices that read the same input: gate and up of eight experts.
const MATRICES: usize = 16;
/// Rows of one of them.
const MATRIX_ROWS: usize = 2048;

/// The ideas, for one format.
#[derive(Debug, Serialize)]
pub(super) struct Ablations {
    format: &'static str,
    unpack_once: Vec<UnpackOnce>,
    quantize_once: QuantizeOnce,
    /// `null` where the format has no packed form, or that has no kernels of its own here.
    packed: Option<PackedForm>,
}

/// Weights unpacked once for all columns, or again for each.
#[derive(Debug, Serialize)]
struct UnpackOnce {
    columns: usize,
    once_gflop_per_s: Figure,
    each_gflop_per_s: Figure,
}

/// One activation row quantised once for all matrices that read it, or once for each; decode.
#[derive(Debug, Serialize)]
struct QuantizeOnce {
    matrices: usize,
    once_gweights_per_s: Figure,
    each_gweights_per_s: Figure,
}

/// Decode from the packed form and from the file's, and rewriting one into the other.
#[derive(Debug, Serialize)]
struct PackedForm {
    form: &'static str,
    bits_per_weight: f64,
    packed_gweights_per_s: Figure,
    source_gweights_per_s: Figure,
    packing_gweights_per_s: Figure,
}

impl Rig {
    /// All ideas for one format.
    pub(super) fn ablations(&mut self, format: &'static Format, columns: &[usize]) -> Ablations {
        let kernel = format.kernel(self.isa);
        fill(&mut self.weights, &valid_blocks(format));
        Ablations {
            format: format.name,
            unpack_once: columns.iter().map(|&n| self.unpack_once(kernel, n)).collect(),
            quantize_once: self.quantize_once(kernel),
            packed: kernels::packed(format.id).filter(|p| p.runs_on(self.isa)).map(|p| self.packed(p)),
        }
    }

    fn unpack_once(&self, kernel: Kernel, columns: usize) -> UnpackOnce {
        let n_out = self.n_out.min(self.weights.len() / kernel.row_bytes(self.n_in)).max(1);
        let weights = self.matrix(kernel, n_out);
        let x = activations(kernel, self.n_in, columns);
        let x_bytes = kernel.x_bytes(self.n_in);
        let work = 2.0 * (self.n_in * n_out * columns) as f64 / 1e9;
        let (mut y, mut y_each) = (vec![0.0; n_out * columns], vec![0.0; n_out * columns]);
        let [once, each] = self.sides([
            &mut || {
                multiply(&self.one, kernel, weights, self.n_in, n_out, &x, columns, &mut y);
                work
            },
            &mut || {
                for (x, y) in x.chunks(x_bytes).zip(y_each.chunks_mut(n_out)) {
                    multiply(&self.one, kernel, weights, self.n_in, n_out, x, 1, y);
                }
                work
            },
        ]);
        assert!(y.iter().zip(&y_each).all(|(a, b)| a.to_bits() == b.to_bits()), "two ways, one result");
        UnpackOnce { columns, once_gflop_per_s: once, each_gflop_per_s: each }
    }

    fn quantize_once(&self, kernel: Kernel) -> QuantizeOnce {
        let rows = MATRIX_ROWS.min(self.weights.len() / kernel.row_bytes(self.n_in) / MATRICES).max(1);
        let matrices = self.weights.as_slice().chunks(rows * kernel.row_bytes(self.n_in)).take(MATRICES);
        let matrices: Vec<&[u8]> =
            matrices.filter(|m| m.len() == rows * kernel.row_bytes(self.n_in)).collect();
        let (form, x) = (kernel.format().activation, noise(self.n_in));
        let work = (matrices.len() * rows * self.n_in) as f64 / 1e9;
        let side = |each: bool| {
            let (mut quantized, mut y) = (vec![0; kernel.x_bytes(self.n_in)], vec![0.0; rows]);
            let (matrices, x) = (&matrices, &x);
            move || {
                for (i, weights) in matrices.iter().enumerate() {
                    if each || i == 0 {
                        form.quantize(x, &mut quantized);
                    }
                    multiply(&self.one, kernel, weights, self.n_in, rows, &quantized, 1, &mut y);
                }
                work
            }
        };
        let [once, each] = self.sides([&mut side(false), &mut side(true)]);
        QuantizeOnce { matrices: matrices.len(), once_gweights_per_s: once, each_gweights_per_s: each }
    }

    fn packed(&self, packed: &Packed) -> PackedForm {
        let (plain, fast) = (packed.source.kernel(self.isa), packed.format.kernel(self.isa));
        // As many rows as fit in both forms, so that both come from memory.
        let rows = (self.weights.len() / fast.row_bytes(self.n_in)).max(1);
        let source = self.matrix(plain, rows);
        let mut rewritten = vec![0; fast.row_bytes(self.n_in) * rows];
        (packed.pack)(source, &mut rewritten);
        let mut again = vec![0; rewritten.len()];
        let x = activations(plain, self.n_in, 1);
        let work = (self.n_in * rows) as f64 / 1e9;
        let (mut y, mut y_packed) = (vec![0.0; rows], vec![0.0; rows]);
        let [source_side, packed_side, packing] = self.sides([
            &mut || {
                multiply(&self.one, plain, source, self.n_in, rows, &x, 1, &mut y);
                work
            },
            &mut || {
                multiply(&self.one, fast, &rewritten, self.n_in, rows, &x, 1, &mut y_packed);
                work
            },
            &mut || {
                (packed.pack)(source, &mut again);
                work
            },
        ]);
        assert!(y.iter().zip(&y_packed).all(|(a, b)| a.to_bits() == b.to_bits()), "two forms, one result");
        PackedForm {
            form: packed.format.name,
            bits_per_weight: bits_per_weight(packed.format),
            packed_gweights_per_s: packed_side,
            source_gweights_per_s: source_side,
            packing_gweights_per_s: packing,
        }
    }
}

pub(super) fn table(ablations: &[Ablations]) -> String {
    let mut table = Table::new(&[Align::Left, Align::Left, Align::Right, Align::Right, Align::Right]);
    table.row(["format", "idea (1 thread)", "with", "without", "ratio"].map(String::from));
    let mut line = |format: &str, idea: String, with: &Figure, without: &Figure| {
        let (with, without) = (with.spread.median, without.spread.median);
        let ratio = if without > 0.0 { format!("{:.2}", with / without) } else { "–".into() };
        table.row([format.to_owned(), idea, format!("{with:.2}"), format!("{without:.2}"), ratio]);
    };
    for a in ablations {
        for u in &a.unpack_once {
            let idea = format!("unpack once for {} columns, GFLOP/s", u.columns);
            line(a.format, idea, &u.once_gflop_per_s, &u.each_gflop_per_s);
        }
        let q = &a.quantize_once;
        let idea = format!("quantise once for {} matrices, Gweights/s", q.matrices);
        line(a.format, idea, &q.once_gweights_per_s, &q.each_gweights_per_s);
        if let Some(p) = &a.packed {
            let packing = p.packing_gweights_per_s.spread.median;
            let idea = format!("packed as {}, Gweights/s (packing {packing:.2})", p.form);
            line(a.format, idea, &p.packed_gweights_per_s, &p.source_gweights_per_s);
        }
    }
    table.render("  ")
}
