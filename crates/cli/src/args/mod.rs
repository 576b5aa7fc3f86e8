//! Flag groups that several commands share, as plain data; each command flattens those it needs: [`ModelArgs`] /
//! [`ModelPath`] (which checkpoint),
//! [`BankArgs`] (how it is loaded and streamed), [`SamplingArgs`] (how tokens are chosen).

mod bank;
mod flash_moe;
mod model;
mod sampling;

pub(crate) use bank::BankArgs;
pub(crate) use model::{ModelArgs, ModelPath};
pub(crate) use sampling::SamplingArgs;
