//! A scaled-down twin of the published GLM-5.2 sidecar: the same 79 blocks, 228 sidecar entries for layers 3 to 78, types
//! that differ by layer and family, foreign source paths, and a block 78 that decoding never runs — in about 45 MB.

use files::GgmlType;

use crate::config::{Indexer, ToyConfig, Types};
use crate::fixture::Fixture;
use crate::model::Toy;
use crate::vocabulary::Vocabulary;

/// Layers of the trunk.
pub const LAYERS: u32 = 78;
/// Sidecar entries: three families of layers 3 to 78.
pub const ENTRIES: usize = 228;
/// Layers that run an indexer.
pub const FULL_LAYERS: usize = 21;

/// The twin as a toy; write it with [`Toy::write_package`].
pub fn glm_5_2() -> Toy {
    let config = ToyConfig {
        vocab_size: 512,
        hidden_size: 256,
        intermediate_size: 256,
        moe_intermediate_size: 256,
        num_hidden_layers: LAYERS,
        first_k_dense_replace: 3,
        index_topk: 32,
        max_position_embeddings: 1_048_576,
        indexer_types: (0..LAYERS)
            .map(|i| if i < 2 || i % 4 == 2 { Indexer::Full } else { Indexer::Shared })
            .collect(),
        ..Fixture::named("share").config
    };
    use GgmlType as T;
    // Gate, up, down: low bits in the middle of the pattern, a better `down` now and then, and gate and up that differ.
    let experts = vec![
        [T::IQ2_XXS, T::IQ2_XXS, T::IQ3_XXS],
        [T::IQ1_M, T::IQ1_M, T::IQ2_XXS],
        [T::IQ1_M, T::IQ1_M, T::IQ1_M],
        [T::IQ1_M, T::IQ2_XXS, T::IQ3_XXS],
        [T::IQ1_S, T::IQ1_M, T::IQ2_S],
        [T::IQ2_XS, T::IQ2_XXS, T::IQ4_XS],
        [T::IQ1_M, T::IQ1_M, T::Q2_K],
    ];
    Toy {
        types: Types { dense: T::Q4_0, experts },
        mtp: true,
        vocabulary: Vocabulary::Bytes,
        ..Toy::new(config, 52, T::F32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Convention, Layout, Role};
    use files::Checkpoint;

    #[test]
    fn the_twin_has_the_published_peculiarities_and_opens() {
        let toy = glm_5_2();
        let dir = tempfile::tempdir().expect("a temporary folder");
        let package = toy.write_package(dir.path(), Convention::DenseFolder, Layout::WholeTensor);
        let manifest: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&package.manifest).expect("manifest")).expect("JSON");
        let entries = manifest["entries"].as_array().expect("entries");
        assert_eq!(entries.len(), ENTRIES);
        assert_eq!((entries[0]["layer"].as_u64(), entries[227]["layer"].as_u64()), (Some(3), Some(78)));
        assert!(entries[0]["source_shard"].as_str().is_some_and(|s| s.starts_with('/')));
        let types: std::collections::BTreeSet<_> =
            entries.iter().filter_map(|e| e["quant_type"].as_str()).collect();
        assert!(types.len() >= 6, "{types:?}");
        let total: u64 = walk(dir.path());
        assert!(total < 60_000_000, "{total} bytes");
        let full = toy.config.indexer_types.iter().filter(|t| **t == Indexer::Full).count();
        assert_eq!(full, FULL_LAYERS);

        let checkpoint = Checkpoint::open(&package.root).expect("the twin opens");
        assert_eq!(checkpoint.experts().len(), ENTRIES);
        let routed = |t: &&crate::TensorSpec| matches!(t.role, Role::Expert(..));
        for spec in toy.tensors().iter().filter(|t| !routed(t)) {
            assert!(checkpoint.tensor(&spec.name).is_some(), "{}", spec.name);
        }
        for spec in toy.tensors().iter().filter(routed).step_by(37) {
            let Role::Expert(layer, family) = spec.role else { unreachable!() };
            let whole = toy.bytes(spec);
            let family = [files::Family::Gate, files::Family::Up, files::Family::Down][family];
            let tensor = checkpoint.expert(layer, family).expect("an entry");
            let n = whole.len() / 8;
            let read = checkpoint.read(&tensor.extent(5)).expect("readable");
            assert_eq!(read, whole[5 * n..6 * n], "{}", spec.name);
        }
    }

    fn walk(dir: &std::path::Path) -> u64 {
        std::fs::read_dir(dir)
            .expect("a folder")
            .map(|e| e.expect("an entry").path())
            .map(|p| if p.is_dir() { walk(&p) } else { p.metadata().map_or(0, |m| m.len()) })
            .sum()
    }
}
