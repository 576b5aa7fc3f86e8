//! Qwen3-Next and Qwen3-Coder-Next (`qwen3next`): the layers of [`qwen35moe`](super::qwen35moe), except that files keep the value heads
//! of Gated DeltaNet in the model's own order, and some of its projections in one tensor.
//!
//! Checked against transformers' `Qwen3NextForCausalLM` (golden tests of this crate).

use super::{Architecture, qwen35moe};
use crate::backend::KeyHead;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { names: &["qwen3next"], load: |loader| qwen35moe::load(loader, KeyHead::Grouped) };
