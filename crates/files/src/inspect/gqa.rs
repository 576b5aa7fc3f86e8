//! Dense tensors that a complete checkpoint with grouped-query attention has. As in `mla`, this only lists what is absent.

use crate::{Checkpoint, Error};

/// What an architecture's layers have beside the projections of attention.
pub(super) struct Architecture {
    /// `general.architecture`
    pub(super) name: &'static str,
    /// In every layer.
    layer: &'static [&'static str],
    /// In layers with experts.
    routed: &'static [&'static str],
}

/// Architectures whose tensors are known here.
static ARCHITECTURES: [Architecture; 4] = [
    Architecture {
        name: "qwen3moe",
        layer: &["attn_q_norm.weight", "attn_k_norm.weight", "ffn_norm.weight"],
        routed: &["ffn_gate_inp.weight"],
    },
    Architecture {
        name: "glm4moe",
        layer: &["post_attention_norm.weight"],
        routed: &["ffn_gate_inp.weight", "exp_probs_b.bias"],
    },
    Architecture {
        name: "minimax-m2",
        layer: &["attn_q_norm.weight", "attn_k_norm.weight", "ffn_norm.weight"],
        routed: &["ffn_gate_inp.weight", "exp_probs_b.bias"],
    },
    Architecture {
        name: "gpt-oss",
        layer: &["attn_sinks.weight", "post_attention_norm.weight"],
        routed: &["ffn_gate_inp.weight", "ffn_gate_inp.bias"],
    },
];

const PER_LAYER: &[&str] = &["attn_norm.weight", "attn_output.weight"];
const PROJECTIONS: &[&str] = &["attn_q.weight", "attn_k.weight", "attn_v.weight"];
/// All three in one.
const PROJECTION: &str = "attn_qkv.weight";
const DENSE_FFN: &[&str] = &["ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"];
const SHARED_FFN: &[&str] = &["ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"];

/// The entry of a checkpoint's architecture.
pub(super) fn architecture(checkpoint: &Checkpoint) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|architecture| architecture.name == checkpoint.architecture())
}

impl Architecture {
    /// Names of absent tensors, of the layers that a decoder runs.
    pub(super) fn missing(&self, checkpoint: &Checkpoint) -> Result<Vec<String>, Error> {
        let number = |name: &str| checkpoint.metadata().u64(&format!("{}.{name}", self.name));
        let Some(blocks) = number("block_count")? else {
            return Ok(vec![format!("metadata `{}.block_count`", self.name)]);
        };
        let trunk = blocks.saturating_sub(number("nextn_predict_layers")?.unwrap_or(0));
        // A hostile count must not keep us busy: no layer beyond the tensors that exist can be complete.
        let trunk = trunk.min(checkpoint.tensors().len() as u64 + 1);
        let leading = number("leading_dense_block_count")?.unwrap_or(0);
        let shared = number("expert_shared_count")?.unwrap_or(0) > 0;
        let mut wanted: Vec<String> = ["token_embd.weight", "output_norm.weight"].map(str::to_owned).into();
        for layer in 0..trunk {
            let together = checkpoint.tensor(&format!("blk.{layer}.{PROJECTION}")).is_some();
            let projections = if together { &[][..] } else { PROJECTIONS };
            let rest = if layer < leading { DENSE_FFN } else { self.routed };
            let shared = if shared && layer >= leading { SHARED_FFN } else { &[] };
            let names = [PER_LAYER, projections, self.layer, rest, shared].concat();
            wanted.extend(names.iter().map(|name| format!("blk.{layer}.{name}")));
        }
        wanted.retain(|name| checkpoint.tensor(name).is_none());
        Ok(wanted)
    }
}
