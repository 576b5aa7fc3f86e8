//! Toy checkpoints for tests: small models whose weights follow from a seed, written in every form in
//! which such models come, with golden numbers from Hugging Face transformers and a plain f64 forward pass to compare with.
//!
//! * [`Fixture`]: the golden numbers of `tests/fixtures`.
//! * [`Listed`]: toys of all other architectures, each described by its fixture alone.
//! * [`Toy`]: a model as one GGUF, a split set, or a dense GGUF with a sidecar ([`Layout`], [`Convention`]).
//! * [`twin`]: the published GLM-5.2 sidecar, scaled down.
//! * [`reference`]: the forward pass as written in the papers, in f64, able to make each known mistake on purpose.
//!
//! Nothing here is optimised, and nothing here ships.

pub mod blocks;
mod config;
mod fixture;
mod listed;
mod model;
mod package;
pub mod reference;
pub mod twin;
mod vocabulary;
pub mod weights;

pub use config::{EXPERT_FAMILIES, Family, Indexer, Role, Rope, Scoring, TensorSpec, ToyConfig, Types, Yarn};
pub use fixture::Fixture;
pub use listed::Listed;
pub use model::Toy;
pub use package::{Convention, Layout, Package};
pub use vocabulary::{BYTES_MIN, Vocabulary};
