//! The second half of a layer where the first few layers are dense and the others routed.

use crate::Error;
use crate::backend::{ScratchSpec, View};
use crate::layers::ffn::{Ffn, FfnState};
use crate::layers::moe::{Moe, MoeConfig, MoeState};
use crate::layers::trunk::{FeedForward, Sizes};
use crate::load::Loader;
use crate::models::{ModelInfo, Rows, Step};
use crate::options::Prefetch;

/// Weights of one layer.
enum Mlp {
    Dense { layer: u32, ffn: Ffn },
    Sparse(Moe),
}

/// All layers of a model, and the scratch that they share.
pub(crate) struct Mlps {
    c: MoeConfig,
    layers: Vec<Mlp>,
    /// Of the dense layers and the shared experts.
    width: usize,
    ffn: FfnState,
    moe: MoeState,
}

impl Mlps {
    /// `layers` in all, of which the first `dense[0]` are dense and `dense[1]` wide.
    pub(crate) fn load(
        loader: &mut Loader<'_>,
        c: MoeConfig,
        layers: usize,
        dense: [usize; 2],
        sizes: Sizes,
    ) -> Result<Self, Error> {
        let mut all = Vec::with_capacity(layers);
        for i in 0..layers {
            let layer = i as u32;
            all.push(if i < dense[0] {
                Mlp::Dense {
                    layer,
                    ffn: Ffn::load(loader, layer, "", [c.hidden_size, dense[1]], c.activation)?,
                }
            } else {
                Mlp::Sparse(Moe::load(loader, layer, &c)?)
            });
        }
        let width = dense[1].max(c.shared_width());
        let ffn = FfnState::new(loader, sizes.rows[1], width);
        let moe = MoeState::new(loader, &c, sizes.rows)?;
        Ok(Self { c, layers: all, width, ffn, moe })
    }
}

impl FeedForward for Mlps {
    fn scratch(&self, [batch, ubatch]: [usize; 2]) -> ScratchSpec {
        ScratchSpec {
            rows: ubatch,
            row: self.width,
            routed: [batch, self.c.hidden_size],
            ..ScratchSpec::default()
        }
    }

    fn describe(&self, info: &mut ModelInfo) {
        let routed = (0..).zip(&self.layers).filter(|(_, mlp)| matches!(mlp, Mlp::Sparse(_)));
        info.expert_layers = routed.map(|(layer, _)| layer).collect();
        self.c.describe(info);
    }

    fn set_prefetch(&mut self, prefetch: Prefetch) {
        self.moe.set_prefetch(prefetch);
    }

    fn forward(
        &mut self,
        step: &mut Step<'_>,
        layer: usize,
        x: View,
        rows: Rows,
        y: View,
    ) -> Result<(), Error> {
        match &self.layers[layer] {
            Mlp::Dense { layer, ffn } => {
                let n = rows.wanted().len();
                if n == 1 {
                    self.moe.lead(step, &self.c, *layer, x)?; // the first routed layer's experts may come next
                }
                ffn.forward(step.backend, &self.ffn, x, n, y);
                Ok(())
            }
            Mlp::Sparse(moe) => moe.forward(step, &self.c, &mut self.moe, &self.ffn, x, rows, y),
        }
    }
}
