//! gpt-oss (`gpt-oss`): grouped-query attention with sinks and biases, every other layer over a window of recent positions, YaRN; experts
//! with biases and a clamped activation, weighted among the chosen.
//!
//! The ramp of its YaRN ends between pairs, as in the reference: see docs/models.md for what other engines do.
//!
//! Facts and formulas were checked against transformers' `GptOssForCausalLM` (golden tests of this crate).

use kernels::ops::Glu;

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

pub(super) const ARCHITECTURE: Architecture = Architecture { names: &["gpt-oss"], load };

/// The files do not say it.
const DEFAULTS: MoeDefaults = MoeDefaults { gating: Gating::Chosen, norm_topk_prob: false };

fn load(loader: &mut Loader<'_>) -> Result<Box<dyn Model>, Error> {
    no_indexer(loader.options)?;
    let keys = Keys::new(loader.checkpoint);
    let c = TrunkConfig::read(&keys)?;
    let sizes = c.sizes(loader.options)?;
    let gqa = GqaConfig::read(&keys, c.num_hidden_layers)?;
    let mut rope = RopeConfig::halves(&keys, shortest_head(&gqa))?;
    if let Some(yarn) = &mut rope.yarn {
        yarn.truncate = false;
    }
    let mut moe = MoeConfig::read(&keys, loader.options, DEFAULTS)?;
    moe.activation = Glu::Clamped;
    let sliding_window = keys.size("attention.sliding_window")?;
    let windowed = windowed(&keys, c.num_hidden_layers)?;

    let attention = GqaLayers::load(loader, gqa, &rope, sizes, |_, _| QkNorm::None)?
        .with_window(loader, sliding_window, &windowed, sizes)
        .with_sinks(loader)?;
    let mlps = Mlps::load(loader, moe, c.num_hidden_layers, [0; 2], sizes)?;
    Trunk::load(loader, &c, sizes, "post_attention_norm", attention, mlps)
}

/// Which layers have a window: the metadata, or every other one from the first on.
fn windowed(keys: &Keys<'_>, layers: usize) -> Result<Vec<bool>, Error> {
    let name = "attention.sliding_window_pattern";
    match keys.bools(name)? {
        None => Ok((0..layers).map(|i| i % 2 == 0).collect()),
        Some(windowed) if windowed.len() < layers => {
            Err(keys.wrong(format!("`{}` names {} of {layers} layers", keys.key(name), windowed.len())))
        }
        Some(windowed) => Ok(windowed[..layers].to_vec()),
    }
}
