//! A shared expert with a gate of its own: one number per token, whose sigmoid multiplies what the expert puts out.

use kernels::ops::Glu;

use crate::Error;
use crate::backend::{Backend, Buf, View, WeightId};
use crate::layers::ffn::{Ffn, FfnState};
use crate::load::Loader;

/// Weights of one layer's shared expert.
pub(crate) struct GatedShared {
    ffn: Ffn,
    gate: WeightId, // [hidden]
}

/// Scratch of a pass, shared by all layers.
pub(crate) struct GatedSharedState {
    ffn: FfnState,
    gate: Buf, // [ubatch]
    ubatch: usize,
}

impl GatedSharedState {
    pub(crate) fn new(loader: &mut Loader<'_>, ubatch: usize, width: usize) -> Self {
        Self { ffn: FfnState::new(loader, ubatch, width), gate: loader.buffer(ubatch), ubatch }
    }
}

impl GatedShared {
    /// `shape` is the model's width and the expert's.
    pub(crate) fn load(loader: &mut Loader<'_>, layer: u32, shape: [usize; 2]) -> Result<Self, Error> {
        Ok(Self {
            ffn: Ffn::load(loader, layer, "_shexp", shape, Glu::Silu)?,
            gate: loader.matrix(&format!("blk.{layer}.ffn_gate_inp_shexp.weight"), shape[0], 1)?,
        })
    }

    /// `y = sigmoid(gate · x) * ffn(x)`, rows of the model's width.
    pub(crate) fn forward(&self, b: &mut dyn Backend, s: &GatedSharedState, x: View, rows: usize, y: View) {
        self.ffn.forward(b, &s.ffn, x, rows, y);
        let gate = View::rows(s.gate, 1);
        for first in (0..rows).step_by(s.ubatch) {
            let (n, x, y) = (s.ubatch.min(rows - first), x.from_row(first), y.from_row(first));
            b.matmul(x, n, &[(self.gate, gate)]);
            b.sigmoid_mul(y, y.stride, gate, 1, n);
        }
    }
}
