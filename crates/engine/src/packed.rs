//! Experts that a sidecar holds in packed form: where the forms of `kernels` meet the records of `files`.

use experts::plan::human_bytes;
use experts::{BankPlan, BankSize, LayerExperts};
use files::{ExpertTensor, GgmlType, Packer};
use kernels::{Format, Isa};

use crate::{Error, plan};

/// Records of an expert-major sidecar begin on pages.
const RECORD_ALIGNMENT: u64 = 4096;

/// Rewrites experts of each type that has a packed form with kernels as fast as any on this processor: what is worth packing here.
pub fn packers() -> Vec<Packer> {
    GgmlType::all().filter(|ty| plan::packed_form(ty.id()).is_some()).filter_map(packer).collect()
}

/// Rewrites experts of each type that has a packed form at all: what this version knows.
pub fn known_packers() -> Vec<Packer> {
    GgmlType::all().filter_map(packer).collect()
}

/// Why [`packers`] has nothing for `ty`.
pub fn why_unpacked(ty: GgmlType) -> &'static str {
    match kernels::packed(ty.id()) {
        None => "no packed form",
        Some(_) => "the kernels of its packed form are no faster on this processor",
    }
}

fn packer(ty: GgmlType) -> Option<Packer> {
    let packed = kernels::packed(ty.id())?;
    Some(Packer::new(ty, packed.format.name, packed.format.block_bytes as u64, packed.pack))
}

/// The format with this id, be it ggml's or a packed one.
pub(crate) fn format(id: u32) -> Option<&'static Format> {
    let packed = || GgmlType::all().filter_map(|ty| kernels::packed(ty.id())).map(|packed| packed.format);
    kernels::format(id).or_else(|| packed().find(|format| format.id == id))
}

/// What the bytes of a tensor's experts are.
///
/// # Errors
/// [`Error::TensorType`], or [`Error::Form`] where they are packed in a way that this version does not know.
pub(crate) fn format_of(tensor: &ExpertTensor) -> Result<&'static Format, Error> {
    let Some(form) = &tensor.form else {
        let unknown = || Error::TensorType { tensor: tensor.name.clone(), ty: tensor.ty.name() };
        return kernels::format(tensor.ty.id()).ok_or_else(unknown);
    };
    let known = packer(tensor.ty).filter(|packer| packer.form() == form);
    known.and_then(|_| kernels::packed(tensor.ty.id())).map(|packed| packed.format).ok_or_else(|| {
        Error::Form {
            tensor: tensor.name.clone(),
            ty: tensor.ty.name(),
            form: form.name.clone(),
            version: form.version.clone(),
        }
    })
}

/// What a user should know about packed experts: what they cost in reads and slots, and where they are slow. Empty when none are packed.
pub(crate) fn notes(layers: &[LayerExperts], bank: &BankPlan, isa: Isa) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    let tensors = || layers.iter().flat_map(|layer| &layer.tensors);
    if tensors().all(|tensor| tensor.form.is_none()) {
        return notes;
    }
    notes.push(cost(layers, bank));
    let mut types: Vec<GgmlType> =
        tensors().filter(|tensor| tensor.form.is_some()).map(|tensor| tensor.ty).collect();
    types.sort_unstable();
    types.dedup();
    notes.extend(types.iter().filter_map(|ty| kernels::packed(ty.id())).filter_map(|packed| {
        let kernel = |format: &'static Format| (format.name, format.kernel(isa).isa());
        slow(kernel(packed.format), kernel(packed.source))
    }));
    notes
}

/// What to say where a form has lesser kernels than its source.
fn slow((form, here): (&str, Isa), (source, plain): (&str, Isa)) -> Option<String> {
    let (here_name, plain_name) = (here.name(), plain.name());
    (here != plain).then(|| {
        format!("slow: for {form} this processor has {here_name} kernels only, for {source} {plain_name}; run the model unpacked here")
    })
}

/// Bytes of a token's reads and slots of the bank beside those of the same model unpacked.
fn cost(layers: &[LayerExperts], bank: &BankPlan) -> String {
    let per_token = |bytes: fn(&ExpertTensor) -> u64| -> u64 {
        let layer = |layer: &LayerExperts| layer.tensors.iter().map(bytes).sum::<u64>();
        u64::from(bank.top_k()) * layers.iter().map(layer).sum::<u64>()
    };
    let [packed, plain] =
        [per_token(|tensor| tensor.expert_bytes), per_token(ExpertTensor::unpacked_expert_bytes)];
    let reads = format!(
        "experts are packed: a token without a hit reads {} instead of {}, {:.2} times as much",
        human_bytes(packed),
        human_bytes(plain),
        packed as f64 / plain.max(1) as f64
    );
    let unpacked: Vec<LayerExperts> = layers.iter().map(unpacked).collect();
    let Ok(same) = BankPlan::new(BankSize::Bytes(bank.arena_bytes()), 0, bank.top_k(), &unpacked) else {
        return reads;
    };
    let (here, there) = (bank.slots_total(), same.slots_total());
    if bank.is_resident() {
        let more = bank.arena_bytes().saturating_sub(same.all_bytes());
        format!("{reads}; the bank takes {} more", human_bytes(more))
    } else if here < there {
        format!(
            "{reads}; {here} slots take the memory of {there} unpacked ones, so more experts miss as well"
        )
    } else {
        reads
    }
}

/// The layer as an expert-major sidecar would have it without packing.
fn unpacked(layer: &LayerExperts) -> LayerExperts {
    let record: u64 = layer.tensors.iter().map(ExpertTensor::unpacked_expert_bytes).sum();
    let mut offset = 0;
    let tensors = layer.tensors.iter().map(|tensor| {
        let mut tensor = tensor.clone();
        tensor.expert_bytes = tensor.unpacked_expert_bytes();
        (tensor.form, tensor.offset, tensor.stride) =
            (None, offset, record.next_multiple_of(RECORD_ALIGNMENT));
        offset += tensor.expert_bytes;
        tensor
    });
    LayerExperts { layer: layer.layer, n_expert: layer.n_expert, tensors: tensors.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_with_lesser_kernels_is_called_slow() {
        let note = slow(("packed", Isa::Scalar), ("IQ1_M", Isa::Neon)).expect("scalar is slower");
        assert!(
            note.starts_with("slow: for packed this processor has scalar kernels only, for IQ1_M neon"),
            "{note}"
        );
        assert!(slow(("packed", Isa::Avx2), ("IQ1_M", Isa::Avx512)).is_some());
        assert_eq!(slow(("packed", Isa::Avx2), ("IQ1_M", Isa::Avx2)), None);
    }
}
