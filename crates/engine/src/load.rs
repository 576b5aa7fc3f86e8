//! From a checkpoint to a backend: names, shapes and types checked, bytes counted, then read.
//!
//! The same model code runs twice: once without a backend, which only counts (the memory plan), and once with one. So
//! the plan shown before loading and the memory taken by loading cannot drift apart.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use files::{Checkpoint, Extent, GgmlType, Tensor};

use crate::backend::{
    Backend, Buf, CacheId, RopeId, RopeSpec, RoutedSpec, ScratchSpec, SelectionId, StateId, WeightId,
    WeightSpec,
};
use crate::layers::router::Router;
use crate::options::CacheType;
use crate::{EngineOptions, Error};

/// Bytes by kind, as planned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    pub(crate) weights: u64,
    pub(crate) buffers: u64,
    pub(crate) caches: u64,
    pub(crate) selections: u64,
    pub(crate) ropes: u64,
    pub(crate) scratch: u64,
}

impl Ledger {
    pub(crate) fn total(&self) -> u64 {
        self.weights + self.buffers + self.caches + self.selections + self.ropes + self.scratch
    }
}

/// Weights that are resident, and multiplied by in every pass unless they are the embedding.
#[derive(Debug, Clone)]
pub(crate) struct Matrix {
    pub(crate) name: String,
    /// ggml type id.
    pub(crate) format: u32,
    pub(crate) weights: u64,
    pub(crate) bytes: u64,
}

/// What a model's `load` function works with.
pub(crate) struct Loader<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) options: &'a EngineOptions,
    ledger: Ledger,
    matrices: Vec<Matrix>,
    backend: Option<&'a mut dyn Backend>,
    open: Option<(u32, File)>,
    /// Bytes of host vectors really read.
    host_bytes: u64,
    /// The routers loaded so far, in the order of their layers; taken by the state that guesses with them.
    pub(crate) routers: Vec<Router>,
    /// What a user should hear about the file, one sentence each.
    pub(crate) warnings: Vec<String>,
}

impl<'a> Loader<'a> {
    /// Counts only.
    pub(crate) fn dry(checkpoint: &'a Checkpoint, options: &'a EngineOptions) -> Self {
        Self {
            checkpoint,
            options,
            ledger: Ledger::default(),
            matrices: Vec::new(),
            backend: None,
            open: None,
            host_bytes: 0,
            routers: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Allocates in `backend` and reads.
    pub(crate) fn wet(
        checkpoint: &'a Checkpoint,
        options: &'a EngineOptions,
        backend: &'a mut dyn Backend,
    ) -> Self {
        Self {
            checkpoint,
            options,
            ledger: Ledger::default(),
            matrices: Vec::new(),
            backend: Some(backend),
            open: None,
            host_bytes: 0,
            routers: Vec::new(),
            warnings: Vec::new(),
        }
    }

    pub(crate) fn ledger(&self) -> Ledger {
        self.ledger
    }

    /// Every weight so far, norms as matrices of one row.
    pub(crate) fn take_matrices(&mut self) -> Vec<Matrix> {
        std::mem::take(&mut self.matrices)
    }

    pub(crate) fn host_bytes(&self) -> u64 {
        self.host_bytes
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.checkpoint.tensor(name).is_some()
    }

    /// Whether there is a tensor `name` of `count` stacked matrices of `n_out` rows of `n_in`.
    pub(crate) fn has_heads(&self, name: &str, n_in: usize, n_out: usize, count: usize) -> bool {
        let tensor = self.checkpoint.tensor(name);
        tensor.is_some_and(|tensor| check_shape(tensor, &[n_in as u64, n_out as u64, count as u64]).is_ok())
    }

    fn tensor(&self, name: &str) -> Result<&'a Tensor, Error> {
        self.checkpoint.tensor(name).ok_or_else(|| Error::MissingTensor {
            tensor: name.to_owned(),
            path: self.checkpoint.root().to_owned(),
        })
    }

    /// Refuses a tensor with weights that comes with a factor (`x.weight` with `x.scale`, as NVFP4 files have them): no operation
    /// multiplies by it, and without it the results would be wrong.
    pub(crate) fn check_factor(&self, name: &str) -> Result<(), Error> {
        let factor = name.strip_suffix(".weight").map(|base| format!("{base}.scale"));
        match factor.filter(|factor| self.has(factor)) {
            Some(factor) => Err(Error::TensorFactor { tensor: name.to_owned(), factor }),
            None => Ok(()),
        }
    }

    /// A vector of `n` values, f32 in memory whatever it is in the file (norms are used element by element).
    pub(crate) fn vector(&mut self, name: &str, n: usize) -> Result<WeightId, Error> {
        if self.tensor(name)?.ty == GgmlType::F32 {
            return self.weight(name, n, 1, 1);
        }
        self.table(name, n, 1)
    }

    /// A part of a vector of `n` values.
    pub(crate) fn elements(&mut self, name: &str, n: usize, part: Range<usize>) -> Result<WeightId, Error> {
        let values = self.read_values(self.tensor(name)?, n, 1)?;
        self.floats(name, part.len(), 1, &values[part])
    }

    /// The same, each value times `factor`.
    pub(crate) fn scaled_vector(&mut self, name: &str, n: usize, factor: f32) -> Result<WeightId, Error> {
        let mut values = self.read_values(self.tensor(name)?, n, 1)?;
        values.iter_mut().for_each(|value| *value *= factor);
        self.floats(name, n, 1, &values)
    }

    /// `rows` vectors of `n` values, of which a pass needs a few, f32 in memory whatever they are in the file.
    pub(crate) fn table(&mut self, name: &str, n: usize, rows: usize) -> Result<WeightId, Error> {
        let values = self.read_values(self.tensor(name)?, n, rows)?;
        self.floats(name, n, rows, &values)
    }

    /// `n` ones: the weight of a norm that has none.
    pub(crate) fn ones(&mut self, n: usize) -> Result<WeightId, Error> {
        self.floats("ones", n, 1, &vec![1.0; n])
    }

    /// A vector of `n` values that is looked at while loading and not kept; zeros while only counting.
    pub(crate) fn read_once(&self, name: &str, n: usize) -> Result<Vec<f32>, Error> {
        self.read_values(self.tensor(name)?, n, 1)
    }

    /// A weight in f32 that no file has as it is.
    fn floats(&mut self, name: &str, n: usize, rows: usize, values: &[f32]) -> Result<WeightId, Error> {
        let spec =
            WeightSpec { name: name.to_owned(), format: GgmlType::F32.id(), n_in: n, n_out: rows, count: 1 };
        self.ledger.weights += 4 * (n * rows) as u64;
        let Some(backend) = self.backend.as_deref_mut() else { return Ok(WeightId(u32::MAX)) };
        backend.weight(&spec, &mut |out| {
            out.copy_from_slice(bytemuck::cast_slice(values));
            Ok(())
        })
    }

    /// `rows` times `n` values of a small tensor of any type; zeros while only counting.
    fn read_values(&self, tensor: &Tensor, n: usize, rows: usize) -> Result<Vec<f32>, Error> {
        check_shape(tensor, &[n as u64, rows as u64, 1])?;
        let format = kernels::format(tensor.ty.id()).filter(|f| n.is_multiple_of(f.block_elements));
        let format =
            format.ok_or_else(|| Error::TensorType { tensor: tensor.name.clone(), ty: tensor.ty.name() })?;
        let mut values = vec![0.0; n * rows];
        if self.backend.is_some() {
            (format.dequantize)(&self.checkpoint.read(&tensor.extent)?, &mut values);
        }
        Ok(values)
    }

    /// A matrix of `n_out` rows of `n_in`.
    pub(crate) fn matrix(&mut self, name: &str, n_in: usize, n_out: usize) -> Result<WeightId, Error> {
        self.weight(name, n_in, n_out, 1)
    }

    /// `count` stacked matrices.
    pub(crate) fn heads(
        &mut self,
        name: &str,
        n_in: usize,
        n_out: usize,
        count: usize,
    ) -> Result<WeightId, Error> {
        self.weight(name, n_in, n_out, count)
    }

    fn weight(&mut self, name: &str, n_in: usize, n_out: usize, count: usize) -> Result<WeightId, Error> {
        self.check_factor(name)?;
        self.unscaled(name, n_in, n_out, count)
    }

    /// A matrix as [`Loader::matrix`], whose factor, if the file has one, the caller sees to.
    pub(crate) fn matrix_beside_factor(
        &mut self,
        name: &str,
        n_in: usize,
        n_out: usize,
    ) -> Result<WeightId, Error> {
        self.unscaled(name, n_in, n_out, 1)
    }

    fn unscaled(&mut self, name: &str, n_in: usize, n_out: usize, count: usize) -> Result<WeightId, Error> {
        let tensor = self.tensor(name)?;
        check_shape(tensor, &[n_in as u64, n_out as u64, count as u64])?;
        let spec = WeightSpec { name: name.to_owned(), format: tensor.ty.id(), n_in, n_out, count };
        let bytes = spec
            .bytes()
            .ok_or_else(|| Error::TensorType { tensor: name.to_owned(), ty: tensor.ty.name() })?;
        // `files` derived the extent from the same table; a disagreement would be a bug, not a bad file.
        assert_eq!(bytes, tensor.extent.len, "extent of {name}");
        self.ledger.weights += bytes;
        let weights = n_in as u64 * n_out as u64 * count as u64;
        self.matrices.push(Matrix { name: name.to_owned(), format: spec.format, weights, bytes });
        let Some(backend) = self.backend.as_deref_mut() else { return Ok(WeightId(u32::MAX)) };
        let path = &self.checkpoint.files()[tensor.extent.file.0 as usize];
        if self.open.as_ref().is_none_or(|(index, _)| *index != tensor.extent.file.0) {
            let file = File::open(path).map_err(|source| files::Error::io(path, source))?;
            self.open = Some((tensor.extent.file.0, file));
        }
        let Some((_, file)) = self.open.as_mut() else { unreachable!("opened above") };
        let offset = tensor.extent.offset;
        backend.weight(&spec, &mut |out| {
            file.seek(SeekFrom::Start(offset))
                .and_then(|_| file.read_exact(out))
                .map_err(|source| files::Error::io(path, source).into())
        })
    }

    /// Rows `rows` of a tensor of `n_out` rows that holds several matrices, one below the other.
    pub(crate) fn rows(
        &mut self,
        name: &str,
        n_in: usize,
        n_out: usize,
        rows: Range<usize>,
    ) -> Result<WeightId, Error> {
        let (tensor, format) = self.stack(name, n_in, n_out)?;
        let row_bytes = (n_in / format.block_elements * format.block_bytes) as u64;
        let extent = Extent {
            offset: tensor.extent.offset + rows.start as u64 * row_bytes,
            len: rows.len() as u64 * row_bytes,
            ..tensor.extent
        };
        let name = format!("{name} (rows {}..{})", rows.start, rows.end);
        let spec = WeightSpec { name, format: format.id, n_in, n_out: rows.len(), count: 1 };
        self.cut(spec, &Tensor { extent, ..tensor.clone() }, &|bytes, out| out.copy_from_slice(bytes))
    }

    /// Stacked matrices cut from one tensor in which every head has `per_head` rows: of each head the rows `rows`, as stored.
    pub(crate) fn head_rows(
        &mut self,
        name: &str,
        n_in: usize,
        per_head: usize,
        rows: Range<usize>,
        count: usize,
    ) -> Result<WeightId, Error> {
        let (tensor, format) = self.stack(name, n_in, per_head * count)?;
        let row_bytes = n_in / format.block_elements * format.block_bytes;
        let (head_bytes, n_out) = (per_head * row_bytes, rows.len());
        let spec = WeightSpec { name: format!("{name} (values)"), format: format.id, n_in, n_out, count };
        self.cut(spec, tensor, &|bytes, out| {
            let heads = out.chunks_exact_mut(n_out * row_bytes).zip(bytes.chunks_exact(head_bytes));
            for (own, head) in heads {
                own.copy_from_slice(&head[rows.start * row_bytes..rows.end * row_bytes]);
            }
        })
    }

    /// The same, transposed. Blocks do not survive that, so the values are kept in 16 bits (32 where the file has as many), whose
    /// rounding is far below that of any format with blocks.
    pub(crate) fn head_columns(
        &mut self,
        name: &str,
        n_in: usize,
        per_head: usize,
        rows: Range<usize>,
        count: usize,
    ) -> Result<WeightId, Error> {
        let (tensor, format) = self.stack(name, n_in, per_head * count)?;
        let ty = if tensor.ty == GgmlType::F32 { GgmlType::F32 } else { GgmlType::F16 };
        let Some((kernel, encode)) = kernels::format(ty.id()).and_then(|k| Some((k, k.quantize?))) else {
            unreachable!("floats have kernels");
        };
        let row_bytes = n_in / format.block_elements * format.block_bytes;
        let spec = WeightSpec {
            name: format!("{name} (keys)"),
            format: ty.id(),
            n_in: rows.len(),
            n_out: n_in,
            count,
        };
        self.cut(spec, tensor, &|bytes, out| {
            let mut plain = vec![0.0; rows.len() * n_in];
            let mut turned = vec![0.0; plain.len()];
            let heads = out
                .chunks_exact_mut(plain.len() * kernel.block_bytes)
                .zip(bytes.chunks_exact(per_head * row_bytes));
            for (own, head) in heads {
                (format.dequantize)(&head[rows.start * row_bytes..rows.end * row_bytes], &mut plain);
                for (i, row) in plain.chunks_exact(n_in).enumerate() {
                    row.iter().enumerate().for_each(|(j, x)| turned[j * rows.len() + i] = *x);
                }
                encode(&turned, own);
            }
        })
    }

    /// A matrix made of some rows of a tensor of `n_rows` rows, in this order, as stored. `part` names them in messages.
    pub(crate) fn gather(
        &mut self,
        name: &str,
        part: &str,
        [n_in, n_rows]: [usize; 2],
        rows: impl Iterator<Item = Range<usize>>,
    ) -> Result<WeightId, Error> {
        let (tensor, format) = self.stack(name, n_in, n_rows)?;
        let row_bytes = n_in / format.block_elements * format.block_bytes;
        let rows: Vec<_> = rows.collect();
        let n_out = rows.iter().map(Range::len).sum();
        let spec = WeightSpec { name: format!("{name} ({part})"), format: format.id, n_in, n_out, count: 1 };
        self.cut(spec, tensor, &|bytes, out| {
            let mut out = out.chunks_exact_mut(row_bytes);
            for (row, own) in rows.iter().cloned().flatten().zip(&mut out) {
                own.copy_from_slice(&bytes[row * row_bytes..(row + 1) * row_bytes]);
            }
        })
    }

    /// A small matrix of `n_out` rows of `n_in`, of any type, transposed and in f32: `n_in` rows of `n_out`.
    pub(crate) fn columns(&mut self, name: &str, n_in: usize, n_out: usize) -> Result<WeightId, Error> {
        let values = self.read_values(self.tensor(name)?, n_in, n_out)?;
        let turned: Vec<f32> = (0..values.len()).map(|i| values[i % n_out * n_in + i / n_out]).collect();
        self.floats(name, n_out, n_in, &turned)
    }

    /// A tensor that is to be cut, and its format.
    fn stack(
        &self,
        name: &str,
        n_in: usize,
        n_out: usize,
    ) -> Result<(&'a Tensor, &'static kernels::Format), Error> {
        let tensor = self.tensor(name)?;
        check_shape(tensor, &[n_in as u64, n_out as u64, 1])?;
        self.check_factor(name)?;
        let format = kernels::format(tensor.ty.id()).filter(|f| n_in.is_multiple_of(f.block_elements));
        let format =
            format.ok_or_else(|| Error::TensorType { tensor: name.to_owned(), ty: tensor.ty.name() })?;
        Ok((tensor, format))
    }

    /// A weight that is made from the bytes of `tensor` by `fill`.
    fn cut(
        &mut self,
        spec: WeightSpec,
        tensor: &Tensor,
        fill: &dyn Fn(&[u8], &mut [u8]),
    ) -> Result<WeightId, Error> {
        let Some(bytes) = spec.bytes() else {
            return Err(Error::TensorType { tensor: tensor.name.clone(), ty: tensor.ty.name() });
        };
        self.ledger.weights += bytes;
        let weights = spec.n_in as u64 * spec.n_out as u64 * spec.count as u64;
        self.matrices.push(Matrix { name: spec.name.clone(), format: spec.format, weights, bytes });
        let Some(backend) = self.backend.as_deref_mut() else { return Ok(WeightId(u32::MAX)) };
        let stored = self.checkpoint.read(&tensor.extent)?;
        backend.weight(&spec, &mut |out| {
            fill(&stored, out);
            Ok(())
        })
    }

    /// A small vector on the host (router bias).
    pub(crate) fn host_vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>, Error> {
        let values = self.read_values(self.tensor(name)?, n, 1)?;
        self.ledger.weights += 4 * n as u64;
        if self.backend.is_some() {
            self.host_bytes += 4 * n as u64;
        }
        Ok(values)
    }

    pub(crate) fn buffer(&mut self, len: usize) -> Buf {
        self.ledger.buffers += 4 * len as u64;
        self.backend.as_deref_mut().map_or(Buf(u32::MAX), |b| b.buffer(len))
    }

    /// See [`Backend::cache`].
    pub(crate) fn cache(&mut self, rows: usize, width: usize, coarse: usize, ty: CacheType) -> CacheId {
        self.ledger.caches += rows as u64 * ty.row_bytes(width, coarse);
        self.backend.as_deref_mut().map_or(CacheId(u32::MAX), |b| b.cache(rows, width, coarse, ty))
    }

    /// See [`Backend::state`].
    pub(crate) fn state(&mut self, len: usize, places: usize) -> StateId {
        self.ledger.caches += crate::backend::cpu::state_bytes(len, places);
        self.backend.as_deref_mut().map_or(StateId(u32::MAX), |b| b.state(len, places))
    }

    pub(crate) fn selection(&mut self, tokens: usize, top_k: usize, context: usize) -> SelectionId {
        self.ledger.selections += crate::backend::cpu::selection_bytes(tokens, top_k, context);
        self.backend.as_deref_mut().map_or(SelectionId(u32::MAX), |b| b.selection(tokens, top_k, context))
    }

    pub(crate) fn rope_table(&mut self, spec: &RopeSpec) -> RopeId {
        self.ledger.ropes += crate::backend::cpu::rope_bytes(spec);
        self.backend.as_deref_mut().map_or(RopeId(u32::MAX), |b| b.rope_table(spec))
    }

    /// Operation scratch: see [`Backend::scratch`].
    pub(crate) fn scratch(&mut self, spec: &ScratchSpec) {
        self.ledger.scratch += crate::backend::cpu::scratch_bytes(self.options.threads_max(), spec);
        if let Some(backend) = self.backend.as_deref_mut() {
            backend.scratch(spec);
        }
    }

    /// Scratch of the routed experts: see [`Backend::routed_scratch`].
    pub(crate) fn routed_scratch(&mut self, spec: &RoutedSpec) {
        self.ledger.scratch += crate::backend::cpu::routed_bytes(spec);
        if let Some(backend) = self.backend.as_deref_mut() {
            backend.routed_scratch(spec);
        }
    }
}

/// Trailing dimensions of 1 may be absent.
fn check_shape(tensor: &Tensor, expected: &[u64; 3]) -> Result<(), Error> {
    let mut found = [1u64; 3];
    let fits = tensor.shape.len() <= 3;
    if fits {
        found[..tensor.shape.len()].copy_from_slice(&tensor.shape);
    }
    if !fits || found != *expected {
        let mut expected = expected.to_vec();
        while expected.len() > 1 && expected.last() == Some(&1) {
            expected.pop();
        }
        return Err(Error::Shape { tensor: tensor.name.clone(), found: tensor.shape.clone(), expected });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::GgmlType;

    #[test]
    fn kernels_and_files_know_the_same_types() {
        for format in kernels::FORMATS {
            let ty = GgmlType::from_id(format.id).expect("a kernel's type is in the table of files");
            assert_eq!(ty.name(), format.name);
            assert_eq!(ty.block_elements(), format.block_elements as u64, "{}", format.name);
            assert_eq!(ty.block_bytes(), format.block_bytes as u64, "{}", format.name);
        }
        assert!(kernels::FORMATS.len() >= 19);
    }
}
