//! Matrix products: the input is brought into the kernels' form once and shared by all weights that read it.

use kernels::Activation;

use super::{CpuBackend, Weight};
use crate::backend::{Heads, View, WeightId};

pub(super) const FORMS: [Activation; 3] = [Activation::F32, Activation::Q8_0, Activation::Q8K];

impl CpuBackend {
    pub(super) fn matmul_shared(&mut self, x: View, rows: usize, outs: &[(WeightId, View)]) {
        for form in FORMS {
            let wants = |id: WeightId| self.weights[id.0 as usize].kernel.format().activation == form;
            if !outs.iter().any(|(id, _)| wants(*id)) {
                continue;
            }
            let n_in = self.weights[outs[0].0.0 as usize].n_in;
            let row_bytes = form.row_bytes(n_in);
            for t in 0..rows {
                let target = &mut self.scratch.activations.as_mut_slice()[t * row_bytes..][..row_bytes];
                form.quantize(self.buffers.row(x, t, n_in), target);
            }
            for &(id, out) in outs {
                let Weight { kernel, n_in: n, n_out, bytes, .. } = &self.weights[id.0 as usize];
                if kernel.format().activation != form {
                    continue;
                }
                assert_eq!(*n, n_in, "weights of one product read rows of one width");
                assert_eq!(out.stride, *n_out, "a product writes dense rows");
                let activations = &self.scratch.activations.as_slice()[..rows * row_bytes];
                let y = &mut self.buffers.starting_at(out)[..rows * n_out];
                kernels::matmul(&self.pool, *kernel, bytes.as_slice(), n_in, *n_out, activations, rows, y);
            }
        }
    }

    /// One small matrix per head; see [`crate::backend::Backend::matmul_heads`].
    pub(super) fn matmul_stack(&mut self, id: WeightId, x: Heads, rows: usize, out: View) {
        let Weight { kernel, n_in, n_out, count, bytes } = &self.weights[id.0 as usize];
        assert_eq!(x.count, *count, "one matrix per head");
        assert_eq!(out.stride, count * n_out, "a product writes dense rows");
        let form = kernel.format().activation;
        let row_bytes = form.row_bytes(*n_in);
        for t in 0..rows {
            for h in 0..*count {
                let target = &mut self.scratch.activations.as_mut_slice()[(t * count + h) * row_bytes..];
                form.quantize(self.buffers.row(x.part(h), t, *n_in), &mut target[..row_bytes]);
            }
        }
        let activations = &self.scratch.activations.as_slice()[..rows * count * row_bytes];
        let y = &mut self.buffers.starting_at(out)[..rows * count * n_out];
        kernels::matmul_batched(&self.pool, *kernel, bytes, *n_in, *n_out, *count, activations, rows, y);
    }
}
