//! Copies experts, summing them on the way.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::plan::{LayerPlan, Part};
use crate::handles::Handles;
use crate::sums::{Sum, Sums};
use crate::{Error, ExpertTensor, Extent, Packer, atomic};

/// What a copy needs besides its plan.
pub(super) struct Copier<'a> {
    pub(super) handles: RefCell<Handles<'a>>,
    /// Sums that the source has, checked while its bytes pass by.
    pub(super) known: Option<Sums>,
    /// Called with each number of bytes copied; an error stops the copy.
    pub(super) on_bytes: RefCell<&'a mut dyn FnMut(u64) -> Result<(), Error>>,
}

impl Copier<'_> {
    /// Writes one bin and returns the sums of its experts.
    pub(super) fn layer(&self, plan: &LayerPlan, folder: &Path) -> Result<BTreeMap<String, Vec<Sum>>, Error> {
        let path = folder.join(&plan.file);
        let temporary = atomic::temporary_path(&path);
        let result = File::create(&temporary).map_err(|e| Error::io(&temporary, e)).and_then(|file| {
            let mut out = BufWriter::with_capacity(1 << 20, file);
            let sums = match plan.stride {
                None => self.whole_tensors(plan, &mut out, &temporary)?,
                Some(stride) => self.records(plan, stride, &mut out, &temporary)?,
            };
            let file = out.into_inner().map_err(|e| Error::io(&temporary, e.into_error()))?;
            atomic::publish(file, &temporary, &path)?;
            Ok(sums)
        });
        if result.is_err() {
            // Best effort: a restart discards it anyway.
            drop(fs::remove_file(&temporary));
        }
        result
    }

    fn whole_tensors(
        &self,
        plan: &LayerPlan,
        out: &mut impl Write,
        path: &Path,
    ) -> Result<BTreeMap<String, Vec<Sum>>, Error> {
        let mut sums = BTreeMap::new();
        for part in &plan.parts {
            let experts = experts(part.tensor).map(|expert| self.part(part, expert, out, path));
            sums.insert(part.tensor.name.clone(), experts.collect::<Result<_, _>>()?);
        }
        Ok(sums)
    }

    /// All experts of one tensor, one after the other.
    pub(super) fn tensor(
        &self,
        tensor: &ExpertTensor,
        out: &mut (impl Write + ?Sized),
        path: &Path,
    ) -> Result<Vec<Sum>, Error> {
        experts(tensor).map(|expert| self.expert(tensor, expert, out, path)).collect()
    }

    fn records(
        &self,
        plan: &LayerPlan,
        stride: u64,
        out: &mut impl Write,
        path: &Path,
    ) -> Result<BTreeMap<String, Vec<Sum>>, Error> {
        let mut sums: BTreeMap<String, Vec<Sum>> = BTreeMap::new();
        let used: u64 = plan.parts.iter().map(|part| part.expert_bytes).sum();
        let padding = vec![0; usize::try_from(stride - used).expect("less than a page")];
        for expert in experts(plan.parts[0].tensor) {
            for part in &plan.parts {
                let sum = self.part(part, expert, out, path)?;
                sums.entry(part.tensor.name.clone()).or_default().push(sum);
            }
            out.write_all(&padding).map_err(|e| Error::io(path, e))?;
            (self.on_bytes.borrow_mut())(padding.len() as u64)?;
        }
        Ok(sums)
    }

    /// One expert of a part, as the bin has it; the sum is that of the bytes there.
    fn part(&self, part: &Part, expert: u32, out: &mut impl Write, path: &Path) -> Result<Sum, Error> {
        match part.packer {
            None => self.expert(part.tensor, expert, out, path),
            Some(packer) => self.packed(part.tensor, expert, packer, out, path),
        }
    }

    fn packed(
        &self,
        tensor: &ExpertTensor,
        expert: u32,
        packer: &Packer,
        out: &mut impl Write,
        path: &Path,
    ) -> Result<Sum, Error> {
        let extent = tensor.extent(expert);
        let (mut hasher, mut buf) = (blake3::Hasher::new(), Vec::new());
        let mut bytes = Vec::with_capacity(usize::try_from(extent.len).unwrap_or(0));
        let read = self.handles.borrow_mut().read_chunks(&extent, &mut buf, |_, piece| {
            hasher.update(piece);
            bytes.extend_from_slice(piece);
            Ok(())
        });
        read.map_err(|e| name_expert(e, tensor, expert))?;
        self.check_known(tensor, expert, hasher.finalize().into())?;
        let packed = packer.pack(&bytes);
        out.write_all(&packed).map_err(|e| Error::io(path, e))?;
        (self.on_bytes.borrow_mut())(packed.len() as u64)?;
        Ok(blake3::hash(&packed).into())
    }

    fn expert(
        &self,
        tensor: &ExpertTensor,
        expert: u32,
        out: &mut (impl Write + ?Sized),
        path: &Path,
    ) -> Result<Sum, Error> {
        let sum =
            self.extent(&tensor.extent(expert), out, path).map_err(|e| name_expert(e, tensor, expert))?;
        self.check_known(tensor, expert, sum)?;
        Ok(sum)
    }

    /// Compares the sum of an expert of the source with the recorded one.
    fn check_known(&self, tensor: &ExpertTensor, expert: u32, sum: Sum) -> Result<(), Error> {
        let extent = tensor.extent(expert);
        let known = self.known.as_ref().and_then(|sums| sums.experts.get(&tensor.name)?.get(expert as usize));
        match known.filter(|known| **known != sum) {
            None => Ok(()),
            Some(known) => Err(Error::Integrity {
                path: tensor_file(self, &extent),
                why: format!(
                    "`{}` expert {expert} at byte {} has the sum {sum}, {known} is recorded",
                    tensor.name, extent.offset
                ),
            }),
        }
    }

    /// Any byte range.
    pub(super) fn extent(
        &self,
        extent: &Extent,
        out: &mut (impl Write + ?Sized),
        path: &Path,
    ) -> Result<Sum, Error> {
        let mut hasher = blake3::Hasher::new();
        let mut buf = Vec::new();
        self.handles.borrow_mut().read_chunks(extent, &mut buf, |_, bytes| {
            hasher.update(bytes);
            out.write_all(bytes).map_err(|e| Error::io(path, e))?;
            (self.on_bytes.borrow_mut())(bytes.len() as u64)
        })?;
        Ok(hasher.finalize().into())
    }
}

/// Says which expert it was that a file is too short for.
fn name_expert(error: Error, tensor: &ExpertTensor, expert: u32) -> Error {
    match error {
        Error::Truncated { path, needs, has, .. } => {
            Error::Truncated { path, what: format!("`{}` expert {expert}", tensor.name), needs, has }
        }
        other => other,
    }
}

fn tensor_file(copier: &Copier, extent: &Extent) -> std::path::PathBuf {
    copier.handles.borrow().path(extent.file).to_path_buf()
}

/// Ids of a tensor's experts.
pub(super) fn experts(tensor: &ExpertTensor) -> std::ops::Range<u32> {
    0..u32::try_from(tensor.n_expert()).unwrap_or(u32::MAX)
}

/// Carries an error of this crate through an interface that only knows the system's.
pub(super) fn smuggle(error: Error) -> io::Error {
    io::Error::other(error)
}
