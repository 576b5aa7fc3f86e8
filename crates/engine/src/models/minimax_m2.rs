//! MiniMax-M2 (`minimax-m2`): grouped-query attention with one norm over the queries of all heads and one over the keys, of whose heads
//! half is rotated; sigmoid-routed experts in every layer.
//!
//! Facts and formulas were checked against transformers' `MiniMaxM2ForCausalLM` (golden tests of this crate).

use super::{Architecture, Model, no_indexer};
use crate::Error;
use crate::keys::Keys;
use crate::layers::gqa::{GqaConfig, GqaLayers, QkNorm, shortest_head};
use crate::layers::mlp::Mlps;
use crate::layers::moe::{MoeConfig, MoeDefaults};
use crate::layers::rope::RopeConfig;
use crate::layers::router::Gating;
use crate::layers::trunk::{Trunk, TrunkConfig};
use crate::load::Loader;

pub(super) const ARCHITECTURE: Architecture = Architecture { names: &["minimax-m2"], load };

const DEFAULTS: MoeDefaults = MoeDefaults { gating: Gating::Sigmoid, norm_topk_prob: true };

fn load(loader: &mut Loader<'_>) -> Result<Box<dyn Model>, Error> {
    no_indexer(loader.options)?;
    let keys = Keys::new(loader.checkpoint);
    let c = TrunkConfig::read(&keys)?;
    let sizes = c.sizes(loader.options)?;
    let gqa = GqaConfig::read(&keys, c.num_hidden_layers)?;
    let rope = RopeConfig::halves(&keys, shortest_head(&gqa))?;
    let moe = MoeConfig::read(&keys, loader.options, DEFAULTS)?;

    let attention = GqaLayers::load(loader, gqa, &rope, sizes, |_, _| QkNorm::Row)?;
    let mlps = Mlps::load(loader, moe, c.num_hidden_layers, [0; 2], sizes)?;
    Trunk::load(loader, &c, sizes, "ffn_norm", attention, mlps)
}
