//! One entry per weight format: its sizes, its activation form and its dot kernels.

use crate::{Activation, Isa};

/// A dot kernel: one weight row with one activation row of `n` elements.
///
/// # Safety
/// The processor has the instruction set that the kernel was written for (see the field of [`Format`] it came from), `n` is a
/// multiple of the format's block, `weights` holds at least the row's bytes and `x` at least the activation row's.
/// Neither needs any alignment.
pub type Dot = unsafe fn(weights: &[u8], x: &[u8], n: usize) -> f32;

/// Decodes whole blocks to floats.
pub type Dequantize = fn(bytes: &[u8], out: &mut [f32]);

/// Encodes floats to whole blocks.
pub type Quantize = fn(x: &[f32], out: &mut [u8]);

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
    /// The form activations must have for the dot kernels.
    pub activation: Activation,
    /// Decodes whole blocks to floats: `bytes.len() / block_bytes * block_elements` values.
    pub dequantize: Dequantize,
    /// Encodes floats (a whole number of blocks), where a simple encoder exists.
    pub quantize: Option<Quantize>,
    /// The portable kernel.
    pub scalar: Dot,
    /// For [`Isa::Avx2`].
    pub avx2: Option<Dot>,
    /// For [`Isa::Avx512`].
    pub avx512: Option<Dot>,
    /// For [`Isa::Neon`].
    pub neon: Option<Dot>,
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

    /// The best kernel of this format for `isa`; formats without one for it fall back to the next plainer.
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
        for (isa, dot) in candidates {
            if let Some(dot) = dot {
                return Kernel { format: self, isa, dot };
            }
        }
        Kernel { format: self, isa: Isa::Scalar, dot: self.scalar }
    }
}

/// A format together with the dot kernel picked for this processor.
#[derive(Clone, Copy)]
pub struct Kernel {
    format: &'static Format,
    isa: Isa,
    dot: Dot,
}

impl Kernel {
    /// The weight format.
    pub fn format(&self) -> &'static Format {
        self.format
    }

    /// The instruction set that the kernel really uses, which may be plainer than the one asked for.
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

    /// One weight row with one activation row.
    ///
    /// # Panics
    /// A length does not fit `n`.
    #[inline]
    pub fn dot(&self, weights: &[u8], x: &[u8], n: usize) -> f32 {
        assert_eq!(weights.len(), self.row_bytes(n), "weight row length");
        assert_eq!(x.len(), self.x_bytes(n), "activation row length");
        // SAFETY: Format::kernel checked the instruction set; the lengths were checked above.
        unsafe { (self.dot)(weights, x, n) }
    }

    /// `y.len()` consecutive weight rows with one activation row, on the calling thread: the body of a task in dispatches
    /// that the caller fuses itself.
    ///
    /// # Panics
    /// A length does not fit `n`.
    pub fn rows(&self, weights: &[u8], x: &[u8], n: usize, y: &mut [f32]) {
        let row_bytes = self.row_bytes(n);
        assert_eq!(weights.len(), row_bytes * y.len(), "weight rows length");
        assert_eq!(x.len(), self.x_bytes(n), "activation row length");
        if row_bytes == 0 {
            return y.fill(0.0);
        }
        for (row, y) in weights.chunks_exact(row_bytes).zip(y) {
            // SAFETY: as in dot.
            *y = unsafe { (self.dot)(row, x, n) };
        }
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {}", self.format.name, self.isa.name())
    }
}
