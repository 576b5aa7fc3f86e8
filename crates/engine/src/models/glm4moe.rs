//! GLM-4.5, 4.6 and 4.7 (`glm4moe`): grouped-query attention with biases, of whose heads half is rotated; a few leading dense layers, then
//! sigmoid-routed experts beside a shared one.
//!
//! Facts and formulas were checked against transformers' `Glm4MoeForCausalLM` (golden tests of this crate).

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

pub(super) const ARCHITECTURE: Architecture = Architecture { names: &["glm4moe"], load };

const DEFAULTS: MoeDefaults = MoeDefaults { gating: Gating::Sigmoid, norm_topk_prob: true };

fn load(loader: &mut Loader<'_>) -> Result<Box<dyn Model>, Error> {
    no_indexer(loader.options)?;
    let keys = Keys::new(loader.checkpoint);
    let c = TrunkConfig::read(&keys)?;
    let sizes = c.sizes(loader.options)?;
    let gqa = GqaConfig::read(&keys, c.num_hidden_layers)?;
    let rope = RopeConfig::halves(&keys, shortest_head(&gqa))?;
    let moe = MoeConfig::read(&keys, loader.options, DEFAULTS)?;
    let dense_layers = keys.size_or("leading_dense_block_count", 0)?.min(c.num_hidden_layers);
    let dense = [dense_layers, keys.size("feed_forward_length")?];

    // The large models have norms on queries and keys, Air has none.
    let norm = |loader: &Loader<'_>, layer| match loader.has(&format!("blk.{layer}.attn_q_norm.weight")) {
        true => QkNorm::Head,
        false => QkNorm::None,
    };
    let attention = GqaLayers::load(loader, gqa, &rope, sizes, norm)?;
    let mlps = Mlps::load(loader, moe, c.num_hidden_layers, dense, sizes)?;
    Trunk::load(loader, &c, sizes, "post_attention_norm", attention, mlps)
}
