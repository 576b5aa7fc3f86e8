//! Sidecar manifests: what is accepted, and every reason for a refusal.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use slotbank_files::manifest::{Layout, Manifest};
use slotbank_files::{Class, Error, Family, GgmlType};

const GATE: u64 = 2048 / 256 * 56 * 256; // IQ1_M, 2048 x 256
const DOWN: u64 = 98 * 2048; // IQ3_XXS, 256 x 2048
const N: u64 = 4;

/// One layer as the fork's tool writes it, with an author's absolute paths.
fn whole() -> Value {
    let entry = |family: &str, ty: &str, shape: [u64; 3], bytes: u64, offset: u64| {
        json!({
            "layer": 3, "tensor_family": family, "tensor_name": format!("blk.3.{family}.weight"),
            "original_gguf_tensor_name": format!("blk.3.{family}.weight"), "expert_id": null,
            "quant_type": ty, "block_size": 256, "exact_byte_length": bytes * N,
            "source_shard": "/Volumes/author/model-00001-of-00005.gguf", "source_shard_index": 0,
            "source_offset": 9_123_456_000_u64, "shape": shape, "bytes_per_expert": bytes,
            "quant_tier": null, "projection_quant_kind": null, "alternate_bank_offsets": null,
            "dynamic_quant_policy_tag": null, "repacked_file": "layer_003.bin", "repacked_offset": offset
        })
    };
    json!({
        "schema_version": 1, "sidecar_kind": "flashmoe_gguf", "layout": "layer_major_whole_tensor",
        "generated_at": "2026-07-01T12:00:00.000000+00:00", "include_shared": false,
        "filters": {"layers": null, "families": null}, "source": {"model_files": ["/Volumes/author/m.gguf"]},
        "model": {"arch": "glm-dsa", "expert_count": N, "expert_used_count": 2, "leading_dense_block_count": 3,
                  "gguf_metadata": {"glm-dsa.context_length": 202_752, "glm-dsa.rope.freq_base": 8e6,
                                    "glm-dsa.attention.indexer.types": [true, false], "odd": {"nested": 1}}},
        "entries": [
            entry("ffn_gate_exps", "IQ1_M", [2048, 256, N], GATE, 0),
            entry("ffn_up_exps", "IQ1_M", [2048, 256, N], GATE, GATE * N),
            entry("ffn_down_exps", "IQ3_XXS", [256, 2048, N], DOWN, 2 * GATE * N),
        ]
    })
}

/// The same in records.
fn records(stride: u64) -> Value {
    let mut manifest = whole();
    manifest["layout"] = json!("layer_major_expert");
    for (at, offset) in [(0, 0), (1, GATE), (2, 2 * GATE)] {
        manifest["entries"][at]["repacked_offset"] = json!(offset);
        manifest["entries"][at]["expert_stride"] = json!(stride);
        manifest["entries"][at]["expert_major"] = json!(true);
    }
    manifest
}

const RECORD: u64 = 2 * GATE + DOWN;
const FILE_BYTES: u64 = RECORD * N;

fn parse(manifest: &Value) -> Result<Manifest, Error> {
    Manifest::parse(manifest.to_string().as_bytes(), Path::new("side/manifest.json"), false)
}

/// Writes manifest and bin, then loads.
fn load(manifest: &Value, bin_bytes: u64) -> Result<Manifest, Error> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("manifest.json"), manifest.to_string()).unwrap();
    fs::File::create(dir.path().join("layer_003.bin")).unwrap().set_len(bin_bytes).unwrap();
    Manifest::load(&dir.path().join("manifest.json"), false)
}

#[test]
fn a_manifest_of_the_fork_is_read() {
    let manifest = load(&whole(), FILE_BYTES).unwrap();
    assert_eq!((manifest.layout, manifest.arch.as_deref()), (Layout::LayerMajor, Some("glm-dsa")));
    let down = &manifest.entries[2];
    assert_eq!((down.layer, down.family, down.ty), (3, Family::Down, Some(GgmlType::IQ3_XXS)));
    assert_eq!((down.offset, down.stride, down.end()), (2 * GATE * N, DOWN, FILE_BYTES));
    assert_eq!(down.source_shard.as_deref(), Some("/Volumes/author/model-00001-of-00005.gguf"));
    let metadata = manifest.metadata();
    assert_eq!(metadata.str("general.architecture").unwrap(), Some("glm-dsa"));
    assert_eq!(metadata.u32("glm-dsa.context_length").unwrap(), Some(202_752));
    assert_eq!(metadata.f32("glm-dsa.rope.freq_base").unwrap(), Some(8e6));
    assert_eq!(metadata.bools("glm-dsa.attention.indexer.types").unwrap(), Some(vec![true, false]));
    assert_eq!(metadata.u32("glm-dsa.expert_used_count").unwrap(), Some(2));
}

#[test]
fn records_are_read_under_both_names_and_with_padding() {
    for stride in [RECORD, RECORD.next_multiple_of(4096)] {
        for layout in ["layer_major_expert", "expert_major"] {
            let mut value = records(stride);
            value["layout"] = json!(layout);
            let manifest = load(&value, stride * (N - 1) + RECORD).unwrap();
            assert_eq!(manifest.layout, Layout::ExpertMajor);
            assert!(manifest.entries.iter().all(|entry| entry.stride == stride && entry.expert_major));
        }
    }
    // The flag alone defaults to the layout.
    let mut value = records(RECORD);
    for at in 0..3 {
        value["entries"][at].as_object_mut().unwrap().remove("expert_major");
    }
    assert!(parse(&value).unwrap().entries[0].expert_major);
}

#[test]
fn what_may_be_absent_or_unknown_is_tolerated() {
    let mut value = whole();
    for key in
        ["schema_version", "sidecar_kind", "layout", "generated_at", "filters", "source", "include_shared"]
    {
        value.as_object_mut().unwrap().remove(key);
    }
    value["future_key"] = json!([1, 2]);
    for entry in value["entries"].as_array_mut().unwrap() {
        let entry = entry.as_object_mut().unwrap();
        for key in ["block_size", "source_shard", "source_offset", "expert_id", "original_gguf_tensor_name"] {
            entry.remove(key);
        }
        entry.insert("quant_type".into(), json!(entry["quant_type"].as_str().unwrap().to_lowercase()));
        entry.insert("expert_stride".into(), json!(0));
        entry.insert("more".into(), json!({"a": null}));
    }
    assert_eq!(parse(&value).unwrap().entries.len(), 3);
    value["entries"][0]["quant_type"] = json!("");
    assert_eq!(parse(&value).unwrap().entries[0].ty, None);
    value.as_object_mut().unwrap().remove("model");
    assert_eq!(parse(&value).unwrap().arch, None);
    // Copies of shared experts belong to nobody; they may be there.
    let mut shared = whole();
    let mut copy = shared["entries"][0].clone();
    copy["tensor_family"] = json!("ffn_gate_shexp");
    copy["bytes_per_expert"] = json!(null);
    shared["entries"].as_array_mut().unwrap().push(copy);
    let manifest = parse(&shared).unwrap();
    assert_eq!((manifest.entries.len(), manifest.skipped), (3, 1));
}

/// Changes `key` of entry 1 and returns the refusal.
fn refuse(base: Value, key: &str, value: Value) -> Error {
    let mut manifest = base;
    let entry = manifest["entries"][1].as_object_mut().unwrap();
    match value {
        Value::String(s) if s == "REMOVE" => drop(entry.remove(key)),
        value => drop(entry.insert(key.to_owned(), value)),
    }
    parse(&manifest).map(|_| panic!("accepted {key}")).unwrap_err()
}

#[test]
fn every_defect_of_an_entry_is_refused_by_name() {
    let cases: Vec<(&str, Value, &str)> = vec![
        ("layer", json!("REMOVE"), "the key `layer` is missing"),
        ("tensor_name", json!("REMOVE"), "the key `tensor_name` is missing"),
        ("tensor_family", json!("REMOVE"), "the key `tensor_family` is missing"),
        ("repacked_file", json!("REMOVE"), "the key `repacked_file` is missing"),
        ("repacked_offset", json!("REMOVE"), "the key `repacked_offset` is missing"),
        ("exact_byte_length", json!("REMOVE"), "the key `exact_byte_length` is missing"),
        ("bytes_per_expert", json!("REMOVE"), "the key `bytes_per_expert` is missing"),
        ("shape", json!("REMOVE"), "the key `shape` is missing"),
        ("bytes_per_expert", json!(null), "`bytes_per_expert` is null"),
        ("bytes_per_expert", json!(0), "`bytes_per_expert` is 0"),
        (
            "bytes_per_expert",
            json!(GATE + 1),
            "`bytes_per_expert` is 114689, but 2048 x 256 in IQ1_M are 114688 bytes",
        ),
        ("bytes_per_expert", json!("x"), "`bytes_per_expert` is \"x\", not a non-negative integer"),
        ("layer", json!(-3), "`layer` is -3"),
        ("layer", json!(3.5), "`layer` is 3.5"),
        ("layer", json!(1u64 << 40), "too large"),
        ("layer", json!(4), "does not belong to layer 4 and family ffn_up_exps"),
        ("tensor_family", json!(7), "`tensor_family` is a number"),
        (
            "tensor_name",
            json!("blk.3.ffn_gate_exps.weight"),
            "does not belong to layer 3 and family ffn_up_exps",
        ),
        ("tensor_name", json!("evil"), "does not belong"),
        ("expert_id", json!(5), "expert_id is 5: sidecars with one file per expert"),
        ("quant_type", json!(3), "`quant_type` is a number"),
        ("quant_type", json!("Q4_0"), "2048 x 256 in Q4_0 are"),
        ("block_size", json!(32), "`block_size` is 32, IQ1_M has 256"),
        ("exact_byte_length", json!(GATE * N - 1), "not 4 experts of 114688 bytes"),
        ("exact_byte_length", json!(u64::MAX), "`exact_byte_length` is 18446744073709551615"),
        ("expert_count", json!(5), "`expert_count` is 5, the shape has 4 experts"),
        ("shape", json!([2048, 256]), "not [n_in, n_out, n_expert]"),
        ("shape", json!([2048, 256, 4, 1]), "not [n_in, n_out, n_expert]"),
        ("shape", json!([2048, 256, 0]), "not [n_in, n_out, n_expert]"),
        ("shape", json!([2047, 256, 4]), "does not suit type IQ1_M"),
        ("shape", json!([2048, 256, 5]), "`exact_byte_length` is 458752, not 5 experts"),
        ("shape", json!("2048"), "the key `shape` is missing"),
        ("repacked_offset", json!(u64::MAX - 10), "larger than 2^64"),
        ("repacked_offset", json!(5), "overlaps entry 0 (`blk.3.ffn_gate_exps.weight`) in layer_003.bin"),
        (
            "expert_stride",
            json!(GATE + 8),
            "`expert_stride` 114696 in a layout whose experts are 114688 bytes apart",
        ),
        ("expert_major", json!("yes"), "`expert_major` is a string, not a bool"),
        ("repacked_file", json!(""), "`repacked_file` is not a file name"),
        ("repacked_file", json!("a\u{0}b"), "not a file name"),
        ("repacked_file", json!("/etc/passwd"), "leaves the sidecar's folder"),
        ("repacked_file", json!("../layer_003.bin"), "leaves the sidecar's folder"),
        ("repacked_file", json!("a/../../b"), "leaves the sidecar's folder"),
        ("repacked_file", json!("C:\\x.bin"), "leaves the sidecar's folder"),
        ("repacked_file", json!("..\\x.bin"), "leaves the sidecar's folder"),
        ("repacked_file", json!(5), "`repacked_file` is a number"),
    ];
    for (key, value, text) in cases {
        let error = refuse(whole(), key, value.clone());
        let message = error.to_string();
        assert!(message.contains(text), "{key} = {value}: {message}");
        assert!(message.starts_with("side/manifest.json: bad manifest: entry "), "{message}");
        assert_eq!(error.class(), Class::BadFile, "{message}");
        let named = if key == "tensor_name" { "entry 1 (`" } else { "entry 1 (`blk.3.ffn_up_exps.weight`)" };
        // Of two overlapping entries the one further back is named.
        assert!(message.contains(named) || message.contains("overlaps"), "{message}");
    }
}

#[test]
fn unknown_types_are_unsupported_rather_than_damaged() {
    let error = refuse(whole(), "quant_type", json!("IQ2_KS"));
    assert_eq!(error.class(), Class::Unsupported);
    assert!(
        error.to_string().contains("`blk.3.ffn_up_exps.weight`: type `IQ2_KS` needs ik_llama.cpp"),
        "{error}"
    );
    assert!(refuse(whole(), "quant_type", json!("WAT")).to_string().contains("unknown type `WAT`"));
}

#[test]
fn duplicates_are_refused() {
    let mut value = whole();
    let copy = value["entries"][0].clone();
    value["entries"].as_array_mut().unwrap().push(copy);
    let error = parse(&value).unwrap_err().to_string();
    assert!(error.contains("entry 3 (`blk.3.ffn_gate_exps.weight`): the same tensor as entry 0"), "{error}");
}

#[test]
fn records_that_do_not_interleave_are_refused() {
    let message = |value: &Value| parse(value).unwrap_err().to_string();
    // A part that leaves its record.
    assert!(message(&records(RECORD - 1)).contains("do not fit a record of `expert_stride`"));
    // Two parts on the same bytes of a record.
    let mut value = records(RECORD);
    value["entries"][1]["repacked_offset"] = json!(GATE - 1);
    assert!(message(&value).contains("overlaps entry 0"), "{}", message(&value));
    // Records of different length in one file.
    let mut value = records(RECORD);
    value["entries"][2]["expert_stride"] = json!(RECORD + 4096);
    assert!(message(&value).contains("overlaps"), "{}", message(&value));
    // A whole tensor among records, under another spelling of the same file.
    let mut value = records(RECORD);
    value["entries"][1]["expert_major"] = json!(false);
    value["entries"][1]["expert_stride"] = json!(0);
    value["entries"][1]["repacked_file"] = json!(".//layer_003.bin");
    assert!(message(&value).contains("leaves the sidecar's folder"), "{}", message(&value));
    value["entries"][1]["repacked_file"] = json!("layer_003.bin");
    assert!(message(&value).contains("overlaps"), "{}", message(&value));
}

#[test]
fn the_same_file_is_seen_under_every_spelling() {
    let mut value = whole();
    value["entries"][0]["repacked_file"] = json!("bins/layer_003.bin");
    value["entries"][1]["repacked_file"] = json!("bins//layer_003.bin");
    value["entries"][1]["repacked_offset"] = json!(0);
    let error = parse(&value).unwrap_err().to_string();
    assert!(
        error.contains("overlaps entry 0 (`blk.3.ffn_gate_exps.weight`) in bins/layer_003.bin"),
        "{error}"
    );
}

#[test]
fn manifests_of_other_kinds_are_unsupported() {
    for (key, value, text) in [
        ("schema_version", json!(2), "schema_version 2"),
        ("schema_version", json!("1"), "schema_version \"1\""),
        ("layout", json!("diagonal"), "layout `diagonal`"),
        ("sidecar_kind", json!("flashmoe_affine_2bit_qwen397b"), "flashmoe_affine_2bit_qwen397b"),
    ] {
        let mut manifest = whole();
        manifest[key] = value;
        let error = parse(&manifest).unwrap_err();
        assert_eq!(error.class(), Class::Unsupported, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn malformed_manifests_are_refused() {
    let message = |bytes: &[u8]| Manifest::parse(bytes, Path::new("m.json"), false).unwrap_err().to_string();
    assert!(message(b"{").contains("not valid json"));
    assert!(message(b"[]").contains("not a json object"));
    assert!(message(b"{}").contains("the key `entries` is missing"));
    assert!(message(b"{\"entries\":{}}").contains("`entries` is an object, not an array"));
    assert!(message(b"{\"entries\":[]}").contains("no routed-expert entries"));
    assert!(message(b"{\"entries\":[7]}").contains("entry 0 (`?`): is a number, not an object"));
    assert!(message(b"{\"layout\":7,\"entries\":[]}").contains("`layout` is a number"));
    assert!(message(b"{\"model\":[],\"entries\":[]}").contains("`model` is an array"));
    let mut value = whole();
    value["model"]["expert_count"] = json!(8);
    assert!(
        parse(&value).unwrap_err().to_string().contains("`model.expert_count` is 8, the shape has 4 experts")
    );
}

#[test]
fn bins_are_held_against_their_entries() {
    load(&whole(), FILE_BYTES).unwrap();
    load(&whole(), FILE_BYTES + 100).unwrap();
    let error = load(&whole(), FILE_BYTES - 1).unwrap_err();
    let text = format!(
        "layer_003.bin is truncated: entry 2 (`blk.3.ffn_down_exps.weight`) needs {FILE_BYTES} bytes, the file has {}",
        FILE_BYTES - 1
    );
    assert!(error.to_string().ends_with(&text), "{error}");
    assert_eq!(error.hint().unwrap(), "download layer_003.bin again; the other files can stay");
    let error = load(&records(RECORD + 4096), (RECORD + 4096) * N - 4097).unwrap_err();
    assert!(matches!(error, Error::Truncated { .. }), "{error}");
    let error = load(&whole(), 0).unwrap_err().to_string();
    assert!(error.ends_with("layer_003.bin is an empty file, not a sidecar bin"), "{error}");
}

#[test]
fn missing_bins_and_pointers_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("manifest.json");
    let mut value = whole();
    value["entries"][2]["repacked_file"] = json!("sub/other.bin");
    value["entries"][2]["repacked_offset"] = json!(0);
    fs::write(&path, value.to_string()).unwrap();
    let error = Manifest::load(&path, false).unwrap_err().to_string();
    assert!(error.ends_with("layer_003.bin is missing, and 1 more of 2 bins"), "{error}");
    fs::write(dir.path().join("layer_003.bin"), "version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        .unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::File::create(dir.path().join("sub/other.bin")).unwrap().set_len(FILE_BYTES).unwrap();
    let error = Manifest::load(&path, false).unwrap_err();
    assert!(error.to_string().ends_with("layer_003.bin is a Git LFS pointer, not a sidecar bin"), "{error}");
    fs::remove_file(dir.path().join("layer_003.bin")).unwrap();
    fs::create_dir(dir.path().join("layer_003.bin")).unwrap();
    assert!(Manifest::load(&path, false).unwrap_err().to_string().contains("layer_003.bin is not a file"));
    fs::write(&path, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    assert!(Manifest::load(&path, false).unwrap_err().to_string().contains("is a Git LFS pointer"));
    fs::write(&path, "").unwrap();
    assert!(Manifest::load(&path, false).unwrap_err().to_string().contains("is an empty file"));
}

#[test]
fn bins_elsewhere_only_when_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let bin = elsewhere.path().join("x.bin");
    fs::File::create(&bin).unwrap().set_len(FILE_BYTES).unwrap();
    let mut value = whole();
    for at in 0..3 {
        value["entries"][at]["repacked_file"] = json!(bin.to_string_lossy());
    }
    let path = dir.path().join("manifest.json");
    fs::write(&path, value.to_string()).unwrap();
    assert!(Manifest::load(&path, false).unwrap_err().to_string().contains("leaves the sidecar's folder"));
    let manifest = Manifest::load(&path, true).unwrap();
    assert_eq!(manifest.folder().join(&manifest.entries[0].file), bin);
}
