//! Blocks shared by the models. `moe` is the only one that knows the bank.

pub(crate) mod delta_net;
pub(crate) mod ffn;
pub(crate) mod gated_attention;
pub(crate) mod gqa;
pub(crate) mod head;
pub(crate) mod lookahead;
pub(crate) mod mla;
pub(crate) mod mlp;
pub(crate) mod moe;
pub(crate) mod oracle;
pub(crate) mod rope;
pub(crate) mod router;
pub(crate) mod shared_expert;
pub(crate) mod trunk;
