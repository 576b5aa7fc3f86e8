//! The routed-expert table: which bytes of which file are which expert.

use std::fmt;

use crate::{Form, GgmlType};

/// Index into [`crate::Checkpoint::files`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct FileIndex(pub u32);

impl FileIndex {
    /// For indexing.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A byte range of one file, inside the file when it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Extent {
    /// Which file.
    pub file: FileIndex,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

/// A dense tensor: name, type, shape and where its bytes are.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Tensor name.
    pub name: String,
    /// Element type.
    pub ty: GgmlType,
    /// Dimensions, contiguous one first.
    pub shape: Vec<u64>,
    /// Where it is.
    pub extent: Extent,
}

/// Which of an expert's matrices. The order is that of manifests and of records in expert-major files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// `ffn_gate_exps`
    Gate,
    /// `ffn_up_exps`
    Up,
    /// `ffn_down_exps`
    Down,
    /// `ffn_gate_up_exps`: gate rows first, then up rows.
    GateUp,
}

impl Family {
    /// In manifest order.
    pub const ALL: [Family; 4] = [Family::Gate, Family::Up, Family::Down, Family::GateUp];

    /// The name in tensors and manifests.
    pub fn name(self) -> &'static str {
        match self {
            Family::Gate => "ffn_gate_exps",
            Family::Up => "ffn_up_exps",
            Family::Down => "ffn_down_exps",
            Family::GateUp => "ffn_gate_up_exps",
        }
    }

    /// The inverse of [`Family::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        Family::ALL.into_iter().find(|family| family.name() == name)
    }

    /// The tensor's name in layer `layer`.
    pub fn tensor_name(self, layer: u32) -> String {
        format!("blk.{layer}.{}.weight", self.name())
    }

    /// Layer and family of `blk.N.ffn_…_exps.weight`; `None` for every other name (biases and scales stay dense).
    pub fn parse_tensor_name(name: &str) -> Option<(u32, Family)> {
        let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        let family = Family::from_name(rest.strip_suffix(".weight")?)?;
        // No sign, no leading zero: each layer has one spelling.
        let plain = layer == "0" || (!layer.starts_with('0') && layer.bytes().all(|b| b.is_ascii_digit()));
        plain.then_some(())?;
        Some((layer.parse().ok()?, family))
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl serde::Serialize for Family {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// One family of one layer: expert `e` is `expert_bytes` at `offset + e * stride`.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertTensor {
    /// GGUF block number.
    pub layer: u32,
    /// Which matrix.
    pub family: Family,
    /// Tensor name in the GGUF.
    pub name: String,
    /// Element type; where the experts are packed, that which they were packed from.
    pub ty: GgmlType,
    /// What the bytes are, where they are not those of `ty`.
    pub form: Option<Form>,
    /// `[n_in, n_out, n_expert]`
    pub shape: [u64; 3],
    /// Where the experts are.
    pub file: FileIndex,
    /// First byte of expert 0.
    pub offset: u64,
    /// Distance between experts; equal to `expert_bytes` unless the file is expert-major.
    pub stride: u64,
    /// Bytes of one expert.
    pub expert_bytes: u64,
}

impl ExpertTensor {
    /// Number of experts.
    pub fn n_expert(&self) -> u64 {
        self.shape[2]
    }

    /// What the bytes are: the name of the form or of the type.
    pub fn stored_as(&self) -> &str {
        self.form.as_ref().map_or(self.ty.name(), |form| &form.name)
    }

    /// Where `expert` is.
    ///
    /// # Panics
    /// When there is no such expert; ids come from a router that knows how many there are.
    pub fn extent(&self, expert: u32) -> Extent {
        assert!(u64::from(expert) < self.shape[2], "expert {expert} of {} in {}", self.shape[2], self.name);
        Extent {
            file: self.file,
            offset: self.offset + u64::from(expert) * self.stride,
            len: self.expert_bytes,
        }
    }

    /// Bytes of one expert in ggml's form.
    pub fn unpacked_expert_bytes(&self) -> u64 {
        match self.form {
            None => self.expert_bytes,
            // A packed tensor has whole blocks, and packed ones are bounded multiples of them.
            Some(_) => self.ty.tensor_bytes(&self.shape[..2]).unwrap_or(self.expert_bytes),
        }
    }

    /// Bytes of all experts together, gaps not counted.
    pub fn total_bytes(&self) -> u64 {
        self.expert_bytes * self.shape[2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensor_names_parse_strictly() {
        assert_eq!(Family::parse_tensor_name("blk.3.ffn_gate_exps.weight"), Some((3, Family::Gate)));
        assert_eq!(Family::parse_tensor_name("blk.0.ffn_gate_up_exps.weight"), Some((0, Family::GateUp)));
        for name in [
            "blk.3.ffn_gate_exps.bias",
            "blk.3.ffn_down_exps.scale",
            "blk.03.ffn_gate_exps.weight",
            "blk.+3.ffn_gate_exps.weight",
            "blk..ffn_gate_exps.weight",
            "blk.3.ffn_gate_shexp.weight",
            "blk.99999999999.ffn_gate_exps.weight",
            "mm.3.ffn_gate_exps.weight",
        ] {
            assert_eq!(Family::parse_tensor_name(name), None, "{name}");
        }
        for family in Family::ALL {
            assert_eq!(Family::parse_tensor_name(&family.tensor_name(78)), Some((78, family)));
        }
    }

    #[test]
    fn extents_follow_the_stride() {
        let tensor = ExpertTensor {
            layer: 3,
            family: Family::Down,
            name: Family::Down.tensor_name(3),
            ty: GgmlType::IQ3_XXS,
            form: None,
            shape: [2048, 6144, 256],
            file: FileIndex(0),
            offset: 1_409_286_144,
            stride: 4_816_896,
            expert_bytes: 4_816_896,
        };
        // The worked example of the format notes.
        assert_eq!(tensor.extent(17).offset, 1_491_173_376);
        assert_eq!(tensor.total_bytes(), 1_233_125_376);
    }
}
