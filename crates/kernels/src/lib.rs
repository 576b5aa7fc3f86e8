//! What bytes mean: quantised formats, dot kernels, a worker pool and the small float operations of a transformer.
//!
//! Maths on slices. This crate knows no file and no model.
//!
//! One rule runs through it: **every result has one canonical order of rounding**, the same for every instruction set,
//! thread count, number of rows and position.
//! * Quantised dots are exact integers inside a block; per block one `f32` term is added to the sum, block after block.
//! * Float dots and sums use sixteen lanes (`i mod 16`), each added in order, products fused into their sum (one rounding per
//!   step), and one fixed tree at the end ([`ops::reduce`]).
//! * Attention and index scores are fused as well; their orders stand with [`ops::attend_chunk`] and [`ops::index_scores`].
//!
//! Hence SIMD equals scalar bit for bit in every format, and the tests ask for exactly that.

#[cfg(target_endian = "big")]
compile_error!("model files and activation rows are little endian, and the kernels read them in place");

mod activation;
mod aligned;
pub mod ceilings;
mod format;
mod isa;
mod matmul;
pub mod ops;
mod pool;
pub mod quant;
mod shared;

pub use activation::Activation;
pub use aligned::AlignedBuf;
pub use format::{Dequantize, Format, Kernel, Kernels, Quantize, Rows, TILE_COLUMNS, TILE_ROWS, Tile};
pub use isa::{Isa, IsaError};
pub use matmul::{Product, matmul, rows_per_task};
pub use pool::Pool;
pub use quant::{FORMATS, PACKED, Packed, format, packed};
pub use shared::SharedMut;
