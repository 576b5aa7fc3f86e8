//! DeepSeek-V2, V3 and R1, Kimi K2, GLM-4.7-Flash (`deepseek2`): MLA over all earlier positions, YaRN where the context was
//! extended, routed experts (softmax or sigmoid, from all groups or the best ones) beside shared ones, a few leading dense layers.
//!
//! Facts and formulas were checked against transformers' `DeepseekV2ForCausalLM`, `DeepseekV3ForCausalLM` and
//! `Glm4MoeLiteForCausalLM` (golden tests of this crate).

use super::{Architecture, Model, no_indexer};
use crate::Error;
use crate::backend::Select;
use crate::keys::Keys;
use crate::layers::mla::{MlaConfig, MlaLayers};
use crate::layers::mlp::Mlps;
use crate::layers::moe::{MoeConfig, MoeDefaults};
use crate::layers::rope::RopeConfig;
use crate::layers::router::Gating;
use crate::layers::trunk::{Trunk, TrunkConfig};
use crate::load::Loader;

pub(super) const ARCHITECTURE: Architecture = Architecture { names: &["deepseek2"], load };

/// Files of GLM-4.7-Flash may not say how its router scores; these two numbers tell it from DeepSeek-V2.
const FLASH_BLOCKS: [usize; 2] = [47, 48];
const FLASH_VOCAB: usize = 154_880;

fn load(loader: &mut Loader<'_>) -> Result<Box<dyn Model>, Error> {
    no_indexer(loader.options)?;
    let keys = Keys::new(loader.checkpoint);
    let c = TrunkConfig::read(&keys)?;
    let (layers, sizes) = (c.num_hidden_layers, c.sizes(loader.options)?);
    let rope = RopeConfig::read(&keys)?;
    let mla = MlaConfig::read(&keys, loader.options, &rope)?;
    let moe = MoeConfig::read(&keys, loader.options, defaults(layers, c.vocab_size))?;
    let dense =
        [keys.size_or("leading_dense_block_count", 0)?.min(layers), keys.size("feed_forward_length")?];

    let attention = MlaLayers::load(loader, mla, &rope, sizes, vec![false; layers], Some(Select::All))?;
    let mlps = Mlps::load(loader, moe, layers, dense, sizes)?;
    Trunk::load(loader, &c, sizes, "ffn_norm", attention, mlps)
}

/// What a file means that does not say how its router scores: it is DeepSeek-V2's, or GLM-4.7-Flash's.
fn defaults(layers: usize, vocab_size: usize) -> MoeDefaults {
    if FLASH_BLOCKS.contains(&layers) && vocab_size == FLASH_VOCAB {
        MoeDefaults { gating: Gating::Sigmoid, norm_topk_prob: true }
    } else {
        MoeDefaults { gating: Gating::Softmax, norm_topk_prob: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_file_is_v2_unless_it_has_the_shape_of_flash() {
        let of = |layers, vocab| {
            let defaults = defaults(layers, vocab);
            (defaults.gating, defaults.norm_topk_prob)
        };
        assert_eq!(of(47, 154_880), (Gating::Sigmoid, true));
        assert_eq!(of(48, 154_880), (Gating::Sigmoid, true));
        assert_eq!(of(27, 102_400), (Gating::Softmax, false));
        assert_eq!(of(60, 102_400), (Gating::Softmax, false));
        assert_eq!(of(47, 102_400), (Gating::Softmax, false));
    }
}
