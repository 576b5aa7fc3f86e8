//! Shapes that can be made, and which combinations of sizes cannot.

use clap::ValueEnum;

/// A preset of sizes; flags change single ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Preset {
    /// GLM-5.2 at full width: 6144 channels, 64 heads, 256 experts, 8 used; few layers
    Glm52,
    /// Another shape: 2048 channels, 16 heads, 128 experts, 6 used; attention is dense at any context
    Small,
    /// For measuring one expert format: 2048 channels, 64 experts, 44 used, which do nine tenths of the work
    FormatProbe,
    /// For tests: 256 channels, 16 experts, 2 used
    Tiny,
}

/// Sizes of a `glm-dsa` model.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(super) struct Shape {
    pub(super) layers: u64,
    pub(super) dense_layers: u64,
    pub(super) n_embd: u64,
    pub(super) n_ff_dense: u64,
    pub(super) n_ff: u64,
    pub(super) n_experts: u64,
    pub(super) top_k: u64,
    pub(super) heads: u64,
    pub(super) q_lora: u64,
    pub(super) kv_lora: u64,
    pub(super) nope: u64,
    pub(super) rope: u64,
    pub(super) v_head: u64,
    pub(super) index_heads: u64,
    pub(super) index_dim: u64,
    pub(super) index_topk: u64,
    pub(super) context: u64,
    pub(super) vocab: u64,
}

/// How routing is made; see [`super::ring`].
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub(super) struct Knobs {
    /// Bias of the most popular expert over the least, in router probability.
    pub(super) skew: f32,
    /// Tokens after which the walk has forgotten all but 1/e.
    pub(super) drift: f32,
    /// Share of a signal that belongs to its token alone, as a deviation.
    pub(super) noise: f32,
    /// Share of a router logit that the layer before adds, as a deviation.
    pub(super) mixing: f32,
}

impl Shape {
    pub(super) fn preset(preset: Preset) -> Self {
        match preset {
            Preset::Glm52 => Self::glm52(),
            Preset::Small => Self::small(),
            Preset::FormatProbe => Self::format_probe(),
            Preset::Tiny => Self::tiny(),
        }
    }

    pub(super) fn glm52() -> Self {
        Self {
            layers: 7,
            dense_layers: 1,
            n_embd: 6144,
            n_ff_dense: 12_288,
            n_ff: 2048,
            n_experts: 256,
            top_k: 8,
            heads: 64,
            q_lora: 2048,
            kv_lora: 512,
            nope: 192,
            rope: 64,
            v_head: 256,
            index_heads: 32,
            index_dim: 128,
            index_topk: 2048,
            context: 1_048_576,
            vocab: 8192,
        }
    }

    fn small() -> Self {
        Self {
            layers: 7,
            dense_layers: 1,
            n_embd: 2048,
            n_ff_dense: 4096,
            n_ff: 1024,
            n_experts: 128,
            top_k: 6,
            heads: 16,
            q_lora: 768,
            kv_lora: 512,
            nope: 192,
            rope: 64,
            v_head: 256,
            index_heads: 16,
            index_dim: 128,
            index_topk: 16_384,
            context: 16_384,
            vocab: 8192,
        }
    }

    /// Everything but the routed experts as small as the architecture allows, and more experts than a token uses, so that
    /// no cache holds them from one token to the next.
    fn format_probe() -> Self {
        Self {
            layers: 2,
            dense_layers: 1,
            n_embd: 2048,
            n_ff_dense: 512,
            n_ff: 512,
            n_experts: 64,
            top_k: 44,
            vocab: 1024,
            context: 4096,
            index_topk: 4096,
            ..Self::tiny()
        }
    }

    pub(super) fn tiny() -> Self {
        Self {
            layers: 3,
            dense_layers: 1,
            n_embd: 256,
            n_ff_dense: 512,
            n_ff: 256,
            n_experts: 16,
            top_k: 2,
            heads: 4,
            q_lora: 256,
            kv_lora: 256,
            nope: 64,
            rope: 64,
            v_head: 64,
            index_heads: 16,
            index_dim: 128,
            index_topk: 64,
            context: 2048,
            vocab: 512,
        }
    }

    /// Whether a layer runs its own indexer: GLM-5.2's schedule.
    pub(super) fn is_full(layer: u64) -> bool {
        layer < 2 || layer % 4 == 2
    }

    pub(super) fn is_dense(&self, layer: u64) -> bool {
        layer < self.dense_layers
    }

    /// What cannot be made, as (what, what to do).
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let wrong = |what: String, hint: &str| Err((what, hint.to_owned()));
        if self.dense_layers >= self.layers {
            return wrong(
                format!(
                    "{} layers of which {} are dense leave no routed one",
                    self.layers, self.dense_layers
                ),
                "give --layers more than --dense-layers",
            );
        }
        if self.top_k > self.n_experts {
            return wrong(
                format!("{} experts per token of {} experts", self.top_k, self.n_experts),
                "lower --top-k or raise --n-experts",
            );
        }
        if !self.n_embd.is_multiple_of(256) || !self.n_ff.is_multiple_of(32) {
            return wrong(
                format!("{} channels and {} expert channels are no whole blocks", self.n_embd, self.n_ff),
                "make --n-embd a multiple of 256, and --n-ff one of 256 (32 for formats with blocks of 32)",
            );
        }
        if self.vocab < super::vocabulary::VOCAB_MIN {
            return wrong(
                format!("a vocabulary of {} has no room for the 256 bytes and a ring", self.vocab),
                "give --vocab at least 512",
            );
        }
        // A program's sizes are 32 bits in the metadata, and an engine refuses far less than that.
        let sizes = [self.layers, self.n_embd, self.n_ff, self.n_experts, self.top_k, self.vocab];
        if let Some(size) = sizes.into_iter().find(|&size| size == 0 || size > 1 << 20) {
            return wrong(format!("a size of {size}"), "give sizes from 1 to 1048576");
        }
        Ok(())
    }
}
