//! Dense tensors that a complete `glm-dsa` or `deepseek2` checkpoint has. The engine checks shapes too; this only lists what is
//! absent, so that all of it can be shown at once.

use crate::{Checkpoint, Error};

/// Architectures whose tensors are known here.
pub(super) const ARCHITECTURES: [&str; 2] = [GLM_DSA, "deepseek2"];

const GLM_DSA: &str = "glm-dsa";

/// Context length from which files without `indexer.types` follow the table of GLM-5.2.
const LONG_CONTEXT: u64 = 1_048_576;

const PER_LAYER: &[&str] = &[
    "attn_norm.weight",
    "ffn_norm.weight",
    "attn_kv_a_mqa.weight",
    "attn_kv_a_norm.weight",
    "attn_output.weight",
];
const QUERY_LATENT: &[&str] = &["attn_q_a.weight", "attn_q_a_norm.weight", "attn_q_b.weight"];
const QUERY: &[&str] = &["attn_q.weight"];
const KEY_AND_VALUE: &[&str] = &["attn_k_b.weight", "attn_v_b.weight"];
/// Both in one, in older files.
const KEY_VALUE: &str = "attn_kv_b.weight";
const INDEXER: &[&str] = &[
    "indexer.attn_q_b.weight",
    "indexer.attn_k.weight",
    "indexer.k_norm.weight",
    "indexer.k_norm.bias",
    "indexer.proj.weight",
];
const DENSE_FFN: &[&str] = &["ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"];
const ROUTER: &str = "ffn_gate_inp.weight";
/// Routers with a softmax have none.
const ROUTER_BIAS: &str = "exp_probs_b.bias";
const SIGMOID: u64 = 2;
const SHARED_FFN: &[&str] = &["ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"];

/// Names of absent tensors. The layers of next-token prediction are not looked at: trunk-only files are legal.
pub(super) fn missing(checkpoint: &Checkpoint) -> Result<Vec<String>, Error> {
    let (metadata, arch) = (checkpoint.metadata(), checkpoint.architecture());
    let number = |name: &str| metadata.u64(&format!("{arch}.{name}"));
    let Some(blocks) = number("block_count")? else {
        return Ok(vec![format!("metadata `{arch}.block_count`")]);
    };
    let glm = arch == GLM_DSA;
    let trunk = blocks.saturating_sub(number("nextn_predict_layers")?.unwrap_or(0));
    // A hostile count must not keep us busy: no layer beyond the tensors that exist can be complete.
    let trunk = trunk.min(checkpoint.tensors().len() as u64 + 1);
    let leading = number("leading_dense_block_count")?.unwrap_or(0);
    let shared = number("expert_shared_count")?.unwrap_or(0) > 0;
    let biased = glm || number("expert_gating_func")? == Some(SIGMOID);
    let query = if glm || number("attention.q_lora_rank")?.unwrap_or(0) > 0 { QUERY_LATENT } else { QUERY };
    let full = full_layers(checkpoint)?;
    // A file without any indexer runs, with dense attention.
    let indexed =
        glm && checkpoint.tensors().iter().filter_map(|t| indexer_layer(&t.name)).any(|i| i < trunk);
    let has = |layer: u64, name: &str| checkpoint.tensor(&format!("blk.{layer}.{name}")).is_some();
    let mut missing = Vec::new();
    let mut need = |name: String| {
        if checkpoint.tensor(&name).is_none() {
            missing.push(name);
        }
    };
    ["token_embd.weight", "output_norm.weight"].into_iter().for_each(|name| need(name.to_owned()));
    for layer in 0..trunk {
        let mut names: Vec<&str> = [PER_LAYER, query].concat();
        if !has(layer, KEY_VALUE) {
            names.extend(KEY_AND_VALUE);
        }
        if indexed && full(layer) {
            names.extend(INDEXER);
        }
        if layer < leading {
            names.extend(DENSE_FFN);
        } else {
            names.push(ROUTER);
            names.extend(biased.then_some(ROUTER_BIAS));
            names.extend(if shared { SHARED_FFN } else { &[] });
        }
        names.iter().for_each(|name| need(format!("blk.{layer}.{name}")));
    }
    Ok(missing)
}

/// The layer whose indexer a tensor belongs to.
fn indexer_layer(name: &str) -> Option<u64> {
    name.strip_prefix("blk.")?.split_once(".indexer.")?.0.parse().ok()
}

/// Which layers run their own indexer: by metadata, else as llama.cpp assumes.
fn full_layers(checkpoint: &Checkpoint) -> Result<impl Fn(u64) -> bool, Error> {
    let metadata = checkpoint.metadata();
    let types = metadata.bools("glm-dsa.attention.indexer.types")?;
    let long = metadata.u64("glm-dsa.context_length")?.is_some_and(|n| n >= LONG_CONTEXT);
    Ok(move |layer: u64| match &types {
        Some(types) => {
            usize::try_from(layer).ok().and_then(|layer| types.get(layer).copied()).unwrap_or(true)
        }
        None => !long || layer < 2 || layer % 4 == 2,
    })
}
