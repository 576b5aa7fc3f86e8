//! Where bytes are: model files, their extents, and the copies made of them.
//!
//! [`Checkpoint::open`] is the one door. It takes a GGUF, any shard of a split set, a dense GGUF with a sidecar, or any entry
//! point of a package, and always yields the same thing: metadata, a table of dense tensors and a table of experts. The
//! tables hold extents only; no parser here reads tensor data. Everything read from disk is treated as hostile: each count,
//! length and offset is bounded by the file it came from before it is used.
//!
//! No arithmetic on weights happens here, and nothing here knows a model.
#![forbid(unsafe_code)]

mod atomic;
mod checkpoint;
mod copies;
mod error;
mod expert;
pub mod extract;
mod form;
mod ggml_type;
pub mod gguf;
mod handles;
pub mod inspect;
pub mod manifest;
pub mod package;
pub mod sums;
pub mod verify;

pub use checkpoint::{Checkpoint, OpenOptions, Source};
pub use error::{Class, Error};
pub use expert::{ExpertTensor, Extent, Family, FileIndex, Tensor};
pub use form::{Form, Packer};
pub use ggml_type::GgmlType;
pub use gguf::{Array, Metadata, Value};
