//! Models, backends and the loop: everything between token ids and logits.
//!
//! A model file (`models/`) reads like a forward pass: it is written against `layers/` and the operations of
//! `backend/`, and never learns that its experts are streamed — only `layers::moe` talks to the bank.

pub mod backend;
pub mod forecast;
pub mod memory;

mod dump;
mod engine;
mod error;
mod generate;
mod keys;
mod layers;
mod load;
mod models;
mod options;
mod packed;
mod plan;
mod sequence;
mod vocabulary;

pub use backend::PartTimes;
pub use dump::Dump;
pub use engine::{Engine, EngineStats, Want};
pub use error::Error;
pub use generate::{Event, Finish, GenerateOptions, Generation, Phase, PromptProgress};
pub use models::ModelInfo;
pub use options::{
    AttentionMode, CacheType, EngineOptions, Prefetch, Promote, ReaderChoice, ReaderKind, Routing,
};
pub use packed::{known_packers, packers, why_unpacked};
pub use plan::{MemoryPlan, PlanRow, expert_geometry};
pub use sequence::Sequence;
pub use vocabulary::vocabulary;

// The parts of lower rooms that appear in this crate's interface.
pub use experts::BankSize;
pub use text::{SamplingOptions, Tokenizer};
