//! The GGUF container: header, metadata, tensor table, split sets, and a writer.
//!
//! ```text
//! "GGUF" | u32 version | u64 n_tensors | u64 n_kv
//! n_kv      × { string key | u32 type | value }
//! n_tensors × { string name | u32 n_dims | u64 dims[n_dims] | u32 type | u64 offset }     offset is relative to the data section
//! padding to the alignment | data section
//! ```
//! All numbers little-endian; a string is a u64 length and its bytes. See docs of ggml for the value types.

mod metadata;
mod read;
mod shards;
mod sniff;
mod write;

pub use metadata::{Array, Metadata, Value};
pub use read::{Header, TensorInfo, read};
pub(crate) use shards::open_set_with;
pub use shards::{Shards, open_set, shard_name};
pub(crate) use sniff::{expect_gguf, sniff};
pub use write::{WriteError, Writer, f32_bytes};

/// Alignment of the data section and of each tensor in it when the file does not say otherwise.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// Header numbers of the value types.
pub(crate) mod value_type {
    pub(crate) const U8: u32 = 0;
    pub(crate) const I8: u32 = 1;
    pub(crate) const U16: u32 = 2;
    pub(crate) const I16: u32 = 3;
    pub(crate) const U32: u32 = 4;
    pub(crate) const I32: u32 = 5;
    pub(crate) const F32: u32 = 6;
    pub(crate) const BOOL: u32 = 7;
    pub(crate) const STR: u32 = 8;
    pub(crate) const ARRAY: u32 = 9;
    pub(crate) const U64: u32 = 10;
    pub(crate) const I64: u32 = 11;
    pub(crate) const F64: u32 = 12;
}
