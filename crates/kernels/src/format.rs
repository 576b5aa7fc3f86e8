//! One entry per weight format: its sizes, its activation form and its kernels.

use crate::{Activation, Isa};

/// Consecutive weight rows with one activation row: `y[r] = weights[r] · x`, `n` elements each.
///
/// # Safety
/// The processor has the instruction set that the kernel was written for (see the field of [`Format`] it came from), `n` is a
/// multiple of the format's block, `weights` holds at least the bytes of `y.len()` rows and `x` at least an activation row's.
/// Neither needs any alignment.
pub type Rows = unsafe fn(weights: &[u8], x: &[u8], n: usize, y: &mut [f32]);

/// At most [`TILE_ROWS`] consecutive weight rows with at most [`TILE_COLUMNS`] activation rows, the weights unpacked once
/// for all of them: `y[c][r] = weights[r] · columns[c]`.
///
/// # Safety
/// As for [`Rows`], with `weights` holding `n_rows` rows and `y` at least `columns.len()` entries.
pub type Tile =
    unsafe fn(weights: &[u8], n_rows: usize, columns: &[&[u8]], n: usize, y: &mut [[f32; TILE_ROWS]]);

/// Weight rows of a tile.
pub const TILE_ROWS: usize = 32;
/// Activation rows of a tile at most.
pub const TILE_COLUMNS: usize = 128;

/// Decodes whole blocks to floats.
pub type Dequantize = fn(bytes: &[u8], out: &mut [f32]);

/// Encodes floats to whole blocks.
pub type Quantize = fn(x: &[f32], out: &mut [u8]);

/// What one instruction set has for a format. Both forms give the same bits.
#[derive(Clone, Copy, Debug)]
pub struct Kernels {
    /// Few activation rows: weights are read, not stored.
    pub rows: Rows,
    /// Many activation rows, and from how many on it is the faster form. `None`: always `rows`.
    pub tile: Option<(Tile, usize)>,
}

/// What a weight format is. There is one static per format, listed in [`FORMATS`](crate::FORMATS).
#[derive(Debug)]
#[non_exhaustive]
pub struct Format {
    /// The ggml type id, as in GGUF files.
    pub id: u32,
    /// The ggml name, such as `Q4_K`.
    pub name: &'static str,
    /// Elements per block.
    pub block_elements: usize,
    /// Bytes per block.
    pub block_bytes: usize,
    /// The form activations must have for the kernels.
    pub activation: Activation,
    /// Decodes whole blocks to floats: `bytes.len() / block_bytes * block_elements` values.
    pub dequantize: Dequantize,
    /// Encodes floats (a whole number of blocks), where a simple encoder exists.
    pub quantize: Option<Quantize>,
    /// The portable kernels.
    pub scalar: Kernels,
    /// For [`Isa::Avx2`].
    pub avx2: Option<Kernels>,
    /// For [`Isa::Avx512`].
    pub avx512: Option<Kernels>,
    /// For [`Isa::Neon`].
    pub neon: Option<Kernels>,
}

impl Format {
    /// Bytes of a row of `n` elements, or `None` when `n` is not a whole number of blocks (or overflows).
    pub fn row_bytes(&self, n: usize) -> Option<usize> {
        if n.is_multiple_of(self.block_elements) {
            (n / self.block_elements).checked_mul(self.block_bytes)
        } else {
            None
        }
    }

    /// The best kernels of this format for `isa`; formats without any for it fall back to the next plainer.
    /// Picked once, when a tensor is loaded.
    ///
    /// # Panics
    /// This processor does not support `isa`.
    pub fn kernel(&'static self, isa: Isa) -> Kernel {
        assert!(isa.is_supported(), "this processor does not support {}", isa.name());
        let candidates = match isa {
            Isa::Avx512 => [(Isa::Avx512, self.avx512), (Isa::Avx2, self.avx2)],
            Isa::Avx2 => [(Isa::Avx2, self.avx2), (Isa::Avx2, None)],
            Isa::Neon => [(Isa::Neon, self.neon), (Isa::Neon, None)],
            Isa::Scalar => [(Isa::Scalar, None); 2],
        };
        for (isa, kernels) in candidates {
            if let Some(kernels) = kernels {
                return Kernel { format: self, isa, kernels };
            }
        }
        Kernel { format: self, isa: Isa::Scalar, kernels: self.scalar }
    }
}

/// A format together with the kernels picked for this processor.
#[derive(Clone, Copy)]
pub struct Kernel {
    format: &'static Format,
    isa: Isa,
    kernels: Kernels,
}

impl Kernel {
    /// The weight format.
    pub fn format(&self) -> &'static Format {
        self.format
    }

    /// The instruction set that the kernels really use, which may be plainer than the one asked for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Bytes of a weight row.
    ///
    /// # Panics
    /// `n` is not a whole number of blocks.
    pub fn row_bytes(&self, n: usize) -> usize {
        match self.format.row_bytes(n) {
            Some(bytes) => bytes,
            None => panic!("a row of {n} elements is not a whole number of {} blocks", self.format.name),
        }
    }

    /// Bytes of an activation row in this format's activation form.
    pub fn x_bytes(&self, n: usize) -> usize {
        self.format.activation.row_bytes(n)
    }

    /// Whether so many activation rows are worth unpacking the weights for.
    pub fn prefers_tiles(&self, n_columns: usize) -> bool {
        self.kernels.tile.is_some_and(|(_, from)| n_columns >= from)
    }

    /// `y.len()` consecutive weight rows with one activation row, on the calling thread: the body of a task in dispatches
    /// that the caller fuses itself.
    ///
    /// # Panics
    /// A length does not fit `n`.
    pub fn rows(&self, weights: &[u8], x: &[u8], n: usize, y: &mut [f32]) {
        assert_eq!(weights.len(), self.row_bytes(n) * y.len(), "weight rows length");
        assert_eq!(x.len(), self.x_bytes(n), "activation row length");
        // SAFETY: Format::kernel checked the instruction set; the lengths were checked above, n by row_bytes.
        unsafe { (self.kernels.rows)(weights, x, n, y) }
    }

    /// `y[c][r] = weights[r] · columns[c]` for at most [`TILE_ROWS`] consecutive weight rows, on the calling thread. As fast as
    /// can be for the number of columns, with the same bits as [`Kernel::rows`]. Places `y[c][n_rows..]` are left undefined.
    ///
    /// # Panics
    /// A length does not fit, or there are more rows or columns than a tile has.
    pub fn tile(
        &self,
        weights: &[u8],
        n_rows: usize,
        columns: &[&[u8]],
        n: usize,
        y: &mut [[f32; TILE_ROWS]],
    ) {
        assert!(n_rows <= TILE_ROWS && columns.len() <= TILE_COLUMNS, "tile size");
        assert_eq!(weights.len(), self.row_bytes(n) * n_rows, "weight rows length");
        assert_eq!(y.len(), columns.len(), "output length");
        let x_bytes = self.x_bytes(n);
        assert!(columns.iter().all(|x| x.len() == x_bytes), "activation row length");
        match self.kernels.tile {
            // SAFETY: as in rows.
            Some((tile, from)) if columns.len() >= from => unsafe { tile(weights, n_rows, columns, n, y) },
            _ => {
                // Four rows stay in the first-level cache while every column passes by.
                let group_bytes = self.row_bytes(n) * 4;
                for first in (0..n_rows).step_by(4) {
                    let rows = (n_rows - first).min(4);
                    let w = &weights[first / 4 * group_bytes..][..self.row_bytes(n) * rows];
                    for (x, y) in columns.iter().zip(y.iter_mut()) {
                        // SAFETY: as in rows.
                        unsafe { (self.kernels.rows)(w, x, n, &mut y[first..first + rows]) };
                    }
                }
            }
        }
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {}", self.format.name, self.isa.name())
    }
}
