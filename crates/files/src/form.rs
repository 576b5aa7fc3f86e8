//! Forms other than ggml's in which a sidecar can hold its experts.
//!
//! Nothing here knows what such bytes mean: whoever computes with them hands in a [`Packer`], and finds in each expert tensor which
//! [`Form`] it has. A form is known by its name, the size of its blocks and a version that follows from the bytes themselves, so that
//! a form that was changed without a new name is not taken for the old one.

use std::fmt;

use serde::Serialize;

use crate::GgmlType;

/// Blocks that [`Packer::new`] packs to learn the version.
const PROBE_BLOCKS: usize = 64;
/// Hexadecimal digits of a version.
const VERSION_DIGITS: usize = 16;
/// Longer names are no names.
const NAME_BYTES_MAX: usize = 64;

/// What the bytes of an expert are, where they are not those of its ggml type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Form {
    /// Stable name.
    pub name: String,
    /// Tells different forms of one name apart.
    pub version: String,
    /// Bytes of a block; it has as many elements as a block of the source type.
    pub block_bytes: u64,
}

impl Form {
    /// Bytes of a tensor of `shape` whose blocks were those of `source`; `None` as in [`GgmlType::row_bytes`].
    pub fn tensor_bytes(&self, source: GgmlType, shape: &[u64]) -> Option<u64> {
        let (first, rest) = shape.split_first()?;
        let blocks =
            first.is_multiple_of(source.block_elements()).then(|| first / source.block_elements())?;
        rest.iter().try_fold(blocks.checked_mul(self.block_bytes)?, |bytes, &n| bytes.checked_mul(n))
    }

    /// Why this cannot be a form of experts of type `source`.
    pub(crate) fn check(&self, source: GgmlType) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_graphic() || c == ' ';
        let is_name = !self.name.trim().is_empty() && self.name.len() <= NAME_BYTES_MAX;
        if !is_name || !self.name.chars().all(plain) {
            return Err(format!("\"{}\" is not the name of a packed form", self.name.escape_debug()));
        }
        if GgmlType::from_name(&self.name).is_some() {
            return Err(format!("the packed form has the name of the type {}", self.name));
        }
        if self.version.len() != VERSION_DIGITS || !self.version.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("\"{}\" is not the version of a packed form", self.version.escape_debug()));
        }
        // Far above any form that would be of use, far below what could overflow.
        let most = 64 * source.block_elements();
        if !(1..=most).contains(&self.block_bytes) {
            return Err(format!(
                "packed blocks of {} bytes for {} elements",
                self.block_bytes,
                source.block_elements()
            ));
        }
        Ok(())
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Rewrites experts of one type.
#[derive(Debug, Clone)]
pub struct Packer {
    source: GgmlType,
    form: Form,
    pack: fn(&[u8], &mut [u8]),
}

impl Packer {
    /// `pack` rewrites whole blocks of `source`; its output are as many blocks of `block_bytes`.
    pub fn new(source: GgmlType, name: &str, block_bytes: u64, pack: fn(&[u8], &mut [u8])) -> Self {
        let form = Form { name: name.to_owned(), version: version(source, block_bytes, pack), block_bytes };
        Self { source, form, pack }
    }

    /// The type of the experts that it rewrites.
    pub fn source(&self) -> GgmlType {
        self.source
    }

    /// What it makes of them.
    pub fn form(&self) -> &Form {
        &self.form
    }

    /// Packs `bytes`, whole blocks of the source.
    pub fn pack(&self, bytes: &[u8]) -> Vec<u8> {
        run(self.source, self.form.block_bytes, self.pack, bytes)
    }
}

fn run(source: GgmlType, block_bytes: u64, pack: fn(&[u8], &mut [u8]), bytes: &[u8]) -> Vec<u8> {
    let blocks = bytes.len() as u64 / source.block_bytes();
    let len = usize::try_from(blocks * block_bytes).expect("an expert fits into memory");
    let mut out = vec![0; len];
    pack(bytes, &mut out);
    out
}

/// The sum of what becomes of always the same blocks.
fn version(source: GgmlType, block_bytes: u64, pack: fn(&[u8], &mut [u8])) -> String {
    let len = usize::try_from(source.block_bytes()).expect("a block fits into memory") * PROBE_BLOCKS;
    let mut probe = vec![0; len];
    blake3::Hasher::new().update(b"slotbank packed form").finalize_xof().fill(&mut probe);
    // Wherever a format keeps its scale, in one half or in four nibbles: no exponent of ones only, so that no scale is
    // infinite or NaN, whose bits nobody promises.
    for byte in &mut probe {
        if *byte & 0x70 == 0x70 {
            *byte ^= 0x40;
        }
    }
    let sum = blake3::hash(&run(source, block_bytes, pack, &probe));
    sum.to_hex()[..VERSION_DIGITS].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widen(bytes: &[u8], out: &mut [u8]) {
        for (block, out) in bytes.chunks(18).zip(out.chunks_mut(20)) {
            out[..18].copy_from_slice(block);
        }
    }

    fn widen_otherwise(bytes: &[u8], out: &mut [u8]) {
        for (block, out) in bytes.chunks(18).zip(out.chunks_mut(20)) {
            out[2..].copy_from_slice(block);
        }
    }

    #[test]
    fn the_version_follows_from_the_bytes() {
        let packer = |pack| Packer::new(GgmlType::Q4_0, "wide", 20, pack);
        assert_eq!(packer(widen).form(), packer(widen).form());
        assert_ne!(packer(widen).form().version, packer(widen_otherwise).form().version);
        assert_eq!(packer(widen).pack(&[7; 36])[18..22], [0, 0, 7, 7]);
        packer(widen).form().check(GgmlType::Q4_0).unwrap();
    }

    #[test]
    fn sizes_are_those_of_whole_blocks_and_never_overflow() {
        let form = Packer::new(GgmlType::Q4_0, "wide", 20, widen).form().clone();
        assert_eq!(form.tensor_bytes(GgmlType::Q4_0, &[64, 3]), Some(120));
        assert_eq!(form.tensor_bytes(GgmlType::Q4_0, &[33, 3]), None);
        assert_eq!(form.tensor_bytes(GgmlType::Q4_0, &[1 << 40, 1 << 40]), None);
        assert_eq!(form.tensor_bytes(GgmlType::Q4_0, &[]), None);
    }

    #[test]
    fn what_cannot_be_a_form_is_refused() {
        let good = Form { name: "wide".into(), version: "0123456789abcdef".into(), block_bytes: 20 };
        good.check(GgmlType::Q4_0).unwrap();
        for bad in [
            Form { name: " ".into(), ..good.clone() },
            Form { name: "a\u{1b}[2J".into(), ..good.clone() },
            Form { name: "x".repeat(65), ..good.clone() },
            Form { name: "q4_0".into(), ..good.clone() },
            Form { version: "1".into(), ..good.clone() },
            Form { version: "0123456789abcdeg".into(), ..good.clone() },
            Form { block_bytes: 0, ..good.clone() },
            Form { block_bytes: u64::MAX, ..good },
        ] {
            assert!(bad.check(GgmlType::Q4_0).is_err(), "{bad:?}");
        }
    }
}
