//! The second half of a layer where the first few layers are dense and the others routed.

use crate::Error;
use crate::backend::View;
use crate::layers::ffn::{Ffn, FfnState};
use crate::layers::moe::{Moe, MoeConfig, MoeState};
use crate::load::Loader;
use crate::models::{Rows, Step};
use crate::options::Prefetch;

/// Weights of one layer.
pub(crate) enum Mlp {
    Dense { layer: u32, ffn: Ffn },
    Sparse(Moe),
}

/// Scratch of a pass, shared by all layers.
pub(crate) struct MlpState {
    ffn: FfnState,
    moe: MoeState,
}

impl MlpState {
    /// `dense_width` is that of the dense layers; to be called after all layers are loaded.
    pub(crate) fn new(
        loader: &mut Loader<'_>,
        c: &MoeConfig,
        dense_width: usize,
        rows: [usize; 2],
    ) -> Result<Self, Error> {
        let width = dense_width.max(c.shared_width());
        Ok(Self { ffn: FfnState::new(loader, rows[1], width), moe: MoeState::new(loader, c, rows)? })
    }

    /// As [`MoeState::set_prefetch`].
    pub(crate) fn set_prefetch(&mut self, prefetch: Prefetch) {
        self.moe.set_prefetch(prefetch);
    }
}

impl Mlp {
    /// `dense_width` makes it a dense one.
    pub(crate) fn load(
        loader: &mut Loader<'_>,
        layer: u32,
        c: &MoeConfig,
        dense_width: Option<usize>,
    ) -> Result<Self, Error> {
        match dense_width {
            Some(width) => {
                let ffn = Ffn::load(loader, layer, "", [c.hidden_size, width], c.activation)?;
                Ok(Self::Dense { layer, ffn })
            }
            None => Ok(Self::Sparse(Moe::load(loader, layer, c)?)),
        }
    }

    /// `y = mlp(x)`, rows of the model's width, of which the first is the first wanted one.
    pub(crate) fn forward(
        &self,
        step: &mut Step<'_>,
        c: &MoeConfig,
        s: &mut MlpState,
        x: View,
        rows: Rows,
        y: View,
    ) -> Result<(), Error> {
        match self {
            Self::Dense { layer, ffn } => {
                let n = rows.wanted().len();
                if n == 1 {
                    s.moe.lead(step, c, *layer, x)?; // the first routed layer's experts may come next
                }
                ffn.forward(step.backend, &s.ffn, x, n, y);
                Ok(())
            }
            Self::Sparse(moe) => moe.forward(step, c, &mut s.moe, &s.ffn, x, rows, y),
        }
    }
}
