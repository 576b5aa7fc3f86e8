//! The written form of a manifest: the fork's keys in the fork's order, as its Python tool would print them.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Layout, PACKED, PACKED_LAYOUT, PLAIN};
use crate::{Error, Family, Form, GgmlType};

/// The whole file.
#[derive(Serialize)]
pub(crate) struct ManifestOut {
    pub(crate) schema_version: u64,
    pub(crate) sidecar_kind: &'static str,
    pub(crate) layout: &'static str,
    pub(crate) generated_at: String,
    pub(crate) include_shared: bool,
    pub(crate) filters: Filters,
    pub(crate) source: SourceOut,
    pub(crate) model: Model,
    pub(crate) entries: Vec<EntryOut>,
}

/// What was asked for; `null` means everything.
#[derive(Serialize, Clone, PartialEq)]
pub(crate) struct Filters {
    pub(crate) layers: Option<Vec<u32>>,
    pub(crate) families: Option<Vec<Family>>,
}

/// Where the bytes came from. Plain file names: the fork writes absolute paths, which tell the world about the author's
/// disk and nobody else anything.
#[derive(Serialize)]
pub(crate) struct SourceOut {
    pub(crate) model_files: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) repacked_from_sidecar: Option<String>,
}

/// What the bytes belong to.
#[derive(Serialize)]
pub(crate) struct Model {
    pub(crate) arch: String,
    pub(crate) expert_count: Option<u64>,
    pub(crate) expert_used_count: Option<u64>,
    pub(crate) leading_dense_block_count: Option<u64>,
    pub(crate) gguf_metadata: Map<String, Value>,
    pub(crate) sidecar_layout: &'static str,
}

/// One tensor.
#[derive(Serialize, Clone)]
pub(crate) struct EntryOut {
    pub(crate) layer: u32,
    pub(crate) tensor_family: Family,
    pub(crate) tensor_name: String,
    pub(crate) original_gguf_tensor_name: String,
    pub(crate) expert_id: Option<u64>,
    pub(crate) quant_type: String,
    pub(crate) block_size: u64,
    pub(crate) exact_byte_length: u64,
    /// The plain file name; see [`SourceOut`].
    pub(crate) source_shard: String,
    pub(crate) source_shard_index: u64,
    pub(crate) source_offset: u64,
    pub(crate) shape: [u64; 3],
    pub(crate) bytes_per_expert: u64,
    /// Reserved by the fork, always null; so are the next three.
    pub(crate) quant_tier: Option<u64>,
    pub(crate) projection_quant_kind: Option<u64>,
    pub(crate) alternate_bank_offsets: Option<u64>,
    pub(crate) dynamic_quant_policy_tag: Option<u64>,
    pub(crate) repacked_file: String,
    pub(crate) repacked_offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expert_stride: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expert_major: Option<bool>,
    /// Only in expert-major sidecars, whose verification in the fork needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expert_count: Option<u64>,
    /// Only of packed experts, whose `quant_type` is the name of their form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) packed: Option<PackedOut>,
}

/// What a packed tensor was, and which version of its form it is.
#[derive(Serialize, Clone)]
pub(crate) struct PackedOut {
    pub(crate) source_type: GgmlType,
    pub(crate) version: String,
    pub(crate) block_bytes: u64,
}

impl PackedOut {
    pub(crate) fn new(source_type: GgmlType, form: &Form) -> Self {
        Self { source_type, version: form.version.clone(), block_bytes: form.block_bytes }
    }
}

/// `schema_version`, `sidecar_kind` and `layout` of a manifest.
pub(crate) fn kind_of(layout: Layout, packed: bool) -> (u64, &'static str, &'static str) {
    if packed { (PACKED.0, PACKED.1, PACKED_LAYOUT) } else { (PLAIN.0, PLAIN.1, layout.manifest_name()) }
}

/// JSON as Python's `json.dump(…, indent=2)` writes it, non-ASCII escaped, with a newline at the end.
pub(crate) fn ascii_json(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    let text =
        serde_json::to_string_pretty(value).map_err(|e| Error::Internal { why: format!("json: {e}") })?;
    let mut out = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        // JSON is ASCII outside of strings, so what is left can only be string content.
        if c.is_ascii() {
            out.push(c);
        } else {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
        }
    }
    out.push('\n');
    Ok(out.into_bytes())
}

/// Now, in UTC, as Python's `isoformat` writes it.
pub(crate) fn timestamp() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format_timestamp(now.as_secs(), now.subsec_micros())
}

fn format_timestamp(seconds: u64, micros: u32) -> String {
    let (year, month, day) = civil_date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}+00:00")
}

/// Gregorian date of a day counted from 1970-01-01. Years are taken to begin in March, so that the leap day is the last.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468; // days since 0000-03-01
    let era = shifted / 146_097; // of 400 years
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_iso_8601() {
        assert_eq!(format_timestamp(0, 0), "1970-01-01T00:00:00.000000+00:00");
        assert_eq!(format_timestamp(951_827_696, 5), "2000-02-29T12:34:56.000005+00:00");
        assert_eq!(format_timestamp(1_782_907_200, 0), "2026-07-01T12:00:00.000000+00:00");
        assert_eq!(format_timestamp(4_102_444_799, 0), "2099-12-31T23:59:59.000000+00:00");
    }

    #[test]
    fn json_is_ascii_and_indented_by_two() {
        let json =
            ascii_json(&serde_json::json!({"name": "é😀", "list": [1], "none": null, "empty": []})).unwrap();
        assert_eq!(
            String::from_utf8(json).unwrap(),
            "{\n  \"name\": \"\\u00e9\\ud83d\\ude00\",\n  \"list\": [\n    1\n  ],\n  \"none\": null,\n  \"empty\": []\n}\n"
        );
    }
}
