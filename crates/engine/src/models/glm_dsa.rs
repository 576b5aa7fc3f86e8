//! GLM-5, 5.1 and 5.2 (`glm-dsa`): MLA with DeepSeek sparse attention and IndexShare, sigmoid-routed experts with one
//! shared expert, a few leading dense layers.
//!
//! Facts and formulas were checked against transformers' `GlmMoeDsaForCausalLM` (golden tests of this crate).

use files::Checkpoint;

use super::{Architecture, Model};
use crate::Error;
use crate::backend::Select;
use crate::keys::Keys;
use crate::layers::mla::{IndexConfig, MlaConfig, MlaLayers};
use crate::layers::mlp::Mlps;
use crate::layers::moe::{MoeConfig, MoeDefaults};
use crate::layers::rope::RopeConfig;
use crate::layers::router::Gating;
use crate::layers::trunk::{Trunk, TrunkConfig};
use crate::load::Loader;
use crate::options::AttentionMode;

pub(super) const ARCHITECTURE: Architecture = Architecture { names: &["glm-dsa"], load };

/// Files made before the metadata had `attention.indexer.types` are told apart by their context length.
const SHARED_INDEX_CONTEXT: u32 = 1_048_576;

const DEFAULTS: MoeDefaults = MoeDefaults { gating: Gating::Sigmoid, norm_topk_prob: true };

const NO_INDEXER: &str = "the file lacks the sparse-attention indexer: every token attends to all before it, as with \
                          `--attention dense`";

fn load(loader: &mut Loader<'_>) -> Result<Box<dyn Model>, Error> {
    let keys = Keys::new(loader.checkpoint);
    let c = TrunkConfig::read(&keys)?;
    let layers = c.num_hidden_layers;
    let rope = RopeConfig::read(&keys)?;
    let mut mla = MlaConfig::read(&keys, loader.options, &rope)?;
    if mla.q_lora_rank.is_none() {
        return Err(keys.wrong(format!("`{}` is missing", keys.key("attention.q_lora_rank"))));
    }
    if has_indexer(loader.checkpoint, layers) {
        mla.index = Some(IndexConfig::read(&keys, loader.options, &rope)?);
    }
    let moe = MoeConfig::read(&keys, loader.options, DEFAULTS)?;
    let dense =
        [keys.size_or("leading_dense_block_count", 0)?.min(layers), keys.size("feed_forward_length")?];
    let full = full_layers(&keys, layers, c.max_position_embeddings)?;
    let rule = rule(loader, &mla)?;
    let sizes = c.sizes(loader.options)?;

    let attention = MlaLayers::load(loader, mla, &rope, sizes, full, rule)?;
    let mlps = Mlps::load(loader, moe, layers, dense, sizes)?;
    Trunk::load(loader, &c, sizes, "ffn_norm", attention, mlps)
}

/// What selects positions where the indexer does not.
fn rule(loader: &mut Loader<'_>, c: &MlaConfig) -> Result<Option<Select>, Error> {
    match (loader.options.attention, c.index) {
        (AttentionMode::Sparse, Some(_)) => Ok(None),
        (AttentionMode::Sparse, None) => {
            loader.warnings.push(NO_INDEXER.into());
            Ok(Some(Select::All))
        }
        (AttentionMode::Dense, _) => Ok(Some(Select::All)),
        (AttentionMode::Recent, Some(index)) => Ok(Some(Select::Recent(index.topk))),
        (AttentionMode::Recent, None) => {
            let why = "the file lacks the indexer that `recent` would be compared with".into();
            Err(Error::Option { option: "--attention", why })
        }
    }
}

/// Whether any layer that runs has one: some files were made without.
fn has_indexer(checkpoint: &Checkpoint, layers: usize) -> bool {
    checkpoint.tensors().iter().any(|tensor| {
        let numbered = tensor.name.strip_prefix("blk.").and_then(|name| name.split_once(".indexer."));
        numbered.and_then(|(layer, _)| layer.parse().ok()).is_some_and(|layer: usize| layer < layers)
    })
}

/// Which layers run an indexer: the metadata, or the rule of files that predate the key. Never the tensors, which
/// some files carry on shared layers too.
fn full_layers(keys: &Keys<'_>, layers: usize, context_length: u32) -> Result<Vec<bool>, Error> {
    let name = "attention.indexer.types";
    let full = match keys.bools(name)? {
        Some(full) if full.len() < layers => {
            return Err(keys.wrong(format!("`{}` names {} of {layers} layers", keys.key(name), full.len())));
        }
        Some(mut full) => {
            full.truncate(layers);
            full
        }
        None if context_length < SHARED_INDEX_CONTEXT => vec![true; layers],
        None => (0..layers).map(|i| i < 2 || i % 4 == 2).collect(),
    };
    if !full[0] {
        return Err(keys.wrong("layer 0 shares an indexer that no earlier layer runs".into()));
    }
    Ok(full)
}
