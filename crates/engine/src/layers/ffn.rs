//! Gated feed-forward: `down(act(gate x) * up x)`; the dense layers and the shared expert.

use kernels::ops::Glu;

use crate::Error;
use crate::backend::{Backend, Buf, View, WeightId};
use crate::load::Loader;

/// Weights of one feed-forward block.
pub(crate) struct Ffn {
    gate: WeightId, // [width, hidden]
    up: WeightId,   // [width, hidden]
    down: WeightId, // [hidden, width]
    width: usize,
    activation: Glu,
}

/// Scratch for the widest block of a model.
pub(crate) struct FfnState {
    gate: Buf, // [ubatch, width]
    up: Buf,   // [ubatch, width]
    ubatch: usize,
}

impl FfnState {
    pub(crate) fn new(loader: &mut Loader<'_>, ubatch: usize, width: usize) -> Self {
        Self { gate: loader.buffer(ubatch * width), up: loader.buffer(ubatch * width), ubatch }
    }
}

impl Ffn {
    /// `suffix` is empty for a dense layer and `_shexp` for the shared expert.
    pub(crate) fn load(
        loader: &mut Loader<'_>,
        layer: u32,
        suffix: &str,
        [hidden, width]: [usize; 2],
        activation: Glu,
    ) -> Result<Self, Error> {
        let name = |part: &str| format!("blk.{layer}.ffn_{part}{suffix}.weight");
        Ok(Self {
            gate: loader.matrix(&name("gate"), hidden, width)?,
            up: loader.matrix(&name("up"), hidden, width)?,
            down: loader.matrix(&name("down"), width, hidden)?,
            width,
            activation,
        })
    }

    /// `y = ffn(x)`, rows of `hidden`.
    pub(crate) fn forward(&self, b: &mut dyn Backend, s: &FfnState, x: View, rows: usize, y: View) {
        let gate = View::rows(s.gate, self.width);
        let up = View::rows(s.up, self.width);
        for first in (0..rows).step_by(s.ubatch) {
            let (rows, x, y) = (s.ubatch.min(rows - first), x.from_row(first), y.from_row(first));
            b.matmul(x, rows, &[(self.gate, gate), (self.up, up)]);
            b.glu(self.activation, gate, up, self.width, rows);
            b.matmul(gate, rows, &[(self.down, y)]);
        }
    }
}
