//! The table of weight formats: one file each, one word in the list below.
//!
//! A format's file draws its block, decodes it and names its kernels. What the files share: `floats` (weights that are floats
//! themselves), `block32` and `block256` (blocks of small integers with a scale), each with the canonical order of its family.

#![allow(clippy::needless_range_loop, reason = "indices are those of the block drawings")]

mod block256;
mod block32;
mod floats;
mod grids;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::Format;
pub use packed::{PACKED, Packed, packed};

/// A kernel where the target has its instruction set.
macro_rules! on_x86 {
    ($kernel:expr) => {{
        #[cfg(target_arch = "x86_64")]
        {
            Some($kernel)
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            None
        }
    }};
}

/// The same for 64-bit Arm.
macro_rules! on_neon {
    ($kernel:expr) => {{
        #[cfg(target_arch = "aarch64")]
        {
            Some($kernel)
        }
        #[cfg(not(target_arch = "aarch64"))]
        {
            None
        }
    }};
}

// (rustfmt does not follow modules declared by a macro: format these files by name.)
macro_rules! formats {
    ($($file:ident)*) => {
        $(mod $file;)*
        /// Every weight format that can be computed with.
        pub static FORMATS: &[&Format] = &[$(&$file::FORMAT),*];
    };
}

formats! {
    f32 f16 bf16
    q4_0 q4_1 q5_0 q5_1 q8_0 iq4_nl mxfp4 nvfp4
    q2_k q3_k q4_k q5_k q6_k
    iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s iq4_xs
    tq1_0 tq2_0
}

mod packed; // behind the macros that it uses

/// The format with this ggml type id, or `None` if there are no kernels for it.
pub fn format(id: u32) -> Option<&'static Format> {
    FORMATS.iter().copied().find(|format| format.id == id)
}
