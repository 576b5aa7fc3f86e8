//! Flag groups that several commands share, as plain data; each command flattens those it needs: [`ModelArgs`] /
//! [`ModelPath`] (which checkpoint),
//! [`BankArgs`] (how it is loaded and streamed), [`SamplingArgs`] (how tokens are chosen), [`GenerateArgs`] (both, for commands that
//! generate).

mod bank;
mod flash_moe;
mod generate;
mod model;
mod sampling;

pub(crate) use bank::{BankArgs, parse_bank, policies};
pub(crate) use generate::GenerateArgs;
pub(crate) use model::{ModelArgs, ModelPath, SidecarArgs};
pub(crate) use sampling::SamplingArgs;
