//! Qwen3 MoE (`qwen3moe`): grouped-query attention with a norm on each head's query and key, routed experts in every layer.
//!
//! Facts and formulas were checked against transformers' `Qwen3MoeForCausalLM` (golden tests of this crate).

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

pub(super) const ARCHITECTURE: Architecture = Architecture { names: &["qwen3moe"], load };

/// The files do not say it: softmax over all experts, weights that sum to 1.
const DEFAULTS: MoeDefaults = MoeDefaults { gating: Gating::Softmax, norm_topk_prob: true };

fn load(loader: &mut Loader<'_>) -> Result<Box<dyn Model>, Error> {
    no_indexer(loader.options)?;
    let keys = Keys::new(loader.checkpoint);
    let c = TrunkConfig::read(&keys)?;
    let sizes = c.sizes(loader.options)?;
    let gqa = GqaConfig::read(&keys, c.num_hidden_layers)?;
    let rope = RopeConfig::halves(&keys, shortest_head(&gqa))?;
    let moe = MoeConfig::read(&keys, loader.options, DEFAULTS)?;

    let attention = GqaLayers::load(loader, gqa, &rope, sizes, |_, _| QkNorm::Head)?;
    let mlps = Mlps::load(loader, moe, c.num_hidden_layers, [0; 2], sizes)?;
    Trunk::load(loader, &c, sizes, "ffn_norm", attention, mlps)
}
