//! Matrix products: the input is brought into the kernels' form once and shared by all weights that read it.

use kernels::{Activation, Pool, Product, SharedMut};

use super::{CpuBackend, Weight};
use crate::backend::{Heads, View, WeightId};

pub(super) const FORMS: [Activation; 3] = [Activation::F32, Activation::Q8_0, Activation::Q8K];

/// Elements from which on quantising rows is worth a dispatch.
const QUANTIZE_TOGETHER: usize = 1 << 15;
/// Products of one dispatch at most.
const PRODUCTS: usize = 4;

impl CpuBackend {
    pub(super) fn matmul_shared(&mut self, x: View, rows: usize, outs: &[(WeightId, View)]) {
        let n_in = self.weights[outs[0].0.0 as usize].n_in;
        let forms = outs.iter().map(|(id, _)| self.weights[id.0 as usize].kernel.format().activation);
        let starts = FormStarts::new(forms, rows, n_in);
        for (form, at) in starts.forms() {
            let target = &mut self.scratch.activations.as_mut_slice()[at..][..rows * form.row_bytes(n_in)];
            quantize(&self.pool, form, n_in, &|t| self.buffers.row(x, t, n_in), target);
        }
        for outs in outs.chunks(PRODUCTS) {
            match outs.len() {
                1 => self.products::<1>(n_in, rows, &starts, outs),
                2 => self.products::<2>(n_in, rows, &starts, outs),
                3 => self.products::<3>(n_in, rows, &starts, outs),
                _ => self.products::<PRODUCTS>(n_in, rows, &starts, outs),
            }
        }
    }

    /// `N` weights over the same rows, in one dispatch.
    fn products<const N: usize>(
        &mut self,
        n_in: usize,
        rows: usize,
        starts: &FormStarts,
        outs: &[(WeightId, View)],
    ) {
        let mut targets = self.buffers.several::<N>(std::array::from_fn(|i| outs[i].1)).map(Some);
        let products: [Product<'_>; N] = std::array::from_fn(|i| {
            let (id, out) = outs[i];
            let Weight { kernel, n_in: n, n_out, count, bytes } = &self.weights[id.0 as usize];
            assert_eq!((*n, *count), (n_in, 1), "weights of one product read rows of one width");
            assert_eq!(out.stride, *n_out, "a product writes dense rows");
            let form = kernel.format().activation;
            let x = &self.scratch.activations.as_slice()[starts.at(form)..][..rows * form.row_bytes(n_in)];
            let y = targets[i].take().map_or(&mut [][..], |y| &mut y[..rows * n_out]);
            Product {
                kernel: *kernel,
                weights: bytes,
                n_in,
                n_out: *n_out,
                n_batch: 1,
                x,
                y: SharedMut::new(y),
            }
        });
        kernels::matmul(&self.pool, &products, rows);
    }

    /// One small matrix per head; see [`crate::backend::Backend::matmul_heads`].
    pub(super) fn matmul_stack(&mut self, id: WeightId, x: Heads, rows: usize, out: View) {
        let Weight { kernel, n_in, n_out, count, bytes } = &self.weights[id.0 as usize];
        let (n_in, n_out, count) = (*n_in, *n_out, *count);
        assert_eq!(x.count, count, "one matrix per head");
        assert_eq!(out.stride, count * n_out, "a product writes dense rows");
        let form = kernel.format().activation;
        let activations = &mut self.scratch.activations.as_mut_slice()[..rows * count * form.row_bytes(n_in)];
        let row = |i: usize| self.buffers.row(x.part(i % count), i / count, n_in);
        quantize(&self.pool, form, n_in, &row, activations);
        let y = SharedMut::new(&mut self.buffers.starting_at(out)[..rows * count * n_out]);
        let product =
            Product { kernel: *kernel, weights: bytes, n_in, n_out, n_batch: count, x: activations, y };
        kernels::matmul(&self.pool, &[product], rows);
    }
}

/// Brings rows of `n` elements into `form`, one after the other until `target` is full.
pub(super) fn quantize<'a>(
    pool: &Pool,
    form: Activation,
    n: usize,
    row: &(dyn Fn(usize) -> &'a [f32] + Sync),
    target: &mut [u8],
) {
    let row_bytes = form.row_bytes(n);
    let rows = target.len() / row_bytes.max(1);
    let per_task = if rows * n < QUANTIZE_TOGETHER { rows } else { rows.div_ceil(4 * pool.threads()) };
    pool.run_pieces(target, per_task.max(1) * row_bytes.max(1), &|task, piece| {
        for (i, out) in piece.chunks_exact_mut(row_bytes).enumerate() {
            form.quantize(row(task * per_task + i), out);
        }
    });
}

/// Where rows in the forms that some weights read lie in the scratch, one form after the other.
pub(super) struct FormStarts {
    starts: [Option<usize>; FORMS.len()],
}

impl FormStarts {
    pub(super) fn new(wanted: impl Iterator<Item = Activation> + Clone, rows: usize, n: usize) -> Self {
        let mut next = 0;
        let starts = FORMS.map(|form| {
            wanted.clone().any(|wanted| wanted == form).then(|| {
                let at = next;
                next += rows * form.row_bytes(n);
                at
            })
        });
        Self { starts }
    }

    /// The wanted forms and their places.
    pub(super) fn forms(&self) -> impl Iterator<Item = (Activation, usize)> {
        FORMS.into_iter().zip(self.starts).filter_map(|(form, at)| Some((form, at?)))
    }

    /// The place of a wanted form.
    pub(super) fn at(&self, form: Activation) -> usize {
        let index = FORMS.iter().position(|f| *f == form).expect("every form is listed");
        self.starts[index].expect("a form that was asked for")
    }
}
