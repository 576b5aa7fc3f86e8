//! One file per command. Each has its `Args` and a `run` that ends in an exit code or a [`Failure`](crate::ui::error::Failure).

pub(crate) mod chat;
pub(crate) mod eval;
pub(crate) mod extract;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod plan;
pub(crate) mod run;
pub(crate) mod verify;
