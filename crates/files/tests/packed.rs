//! Sidecars with packed experts: written, resumed, copied, verified, and every reason to refuse one.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{EMBD, EXPERTS, FF, Fixture, fixture, packer, tree};
use serde_json::{Value, json};
use slotbank_files::extract::{Options, Summary, extract};
use slotbank_files::inspect::inspect;
use slotbank_files::manifest::{Layout, Manifest};
use slotbank_files::verify::{self, Problem, verify};
use slotbank_files::{Checkpoint, Class, Error, Family, GgmlType, OpenOptions, Packer};

/// Bytes of one expert, as it was and packed.
const PLAIN: u64 = EMBD * FF / 256 * 56;
const PACKED: u64 = EMBD * FF / 256 * 80;

impl Fixture {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn pack(&self, name: &str) -> Summary {
        extract(&self.src, &self.path(name), &options(), &mut |_| ()).unwrap()
    }
}

fn options() -> Options {
    Options { layout: Layout::ExpertMajor, dense: true, pack: Some(vec![packer()]), ..Options::default() }
}

fn refused(src: &Checkpoint, dst: &Path, options: &Options) -> Error {
    let error = extract(src, dst, options, &mut |_| ()).unwrap_err();
    assert_eq!(error.class(), Class::Usage, "{error}");
    assert!(error.hint().is_some() && !dst.exists(), "{error}: nothing is written");
    error
}

/// Every expert of the checkpoint against what it was packed from.
fn check_bytes(f: &Fixture, packed: &Checkpoint) {
    let mut seen = 0;
    for tensor in packed.experts() {
        let whole = f.toy.spec(&tensor.name).bytes();
        let size = whole.len() / EXPERTS as usize;
        for expert in 0..EXPERTS as u32 {
            let plain = &whole[size * expert as usize..][..size];
            let stored = packed.read(&tensor.extent(expert)).unwrap();
            match &tensor.form {
                None => assert!(stored == plain, "{} expert {expert}", tensor.name),
                Some(form) => {
                    assert_eq!((form, tensor.ty), (packer().form(), GgmlType::IQ1_M));
                    assert!(stored == packer().pack(plain), "{} expert {expert}", tensor.name);
                    seen += 1;
                }
            }
        }
    }
    // Gate of layer 1, all of layer 3.
    assert_eq!(seen, 4 * EXPERTS);
}

#[test]
fn a_packed_sidecar_holds_the_packed_bytes() {
    let f = fixture();
    let summary = f.pack("out");
    let line = |ty, form: Option<&str>, tensors, expert: u64, stored: u64| {
        let found = summary.forms.iter().find(|line| line.ty == ty).unwrap();
        let expected = (form, tensors, expert * EXPERTS * tensors, stored * EXPERTS * tensors);
        assert_eq!((found.form.as_deref(), found.tensors, found.source_bytes, found.bytes), expected);
    };
    line(GgmlType::IQ1_M, Some("IQ1_M spacious"), 4, PLAIN, PACKED);
    line(GgmlType::Q2_K, None, 2, EMBD * FF / 256 * 84, EMBD * FF / 256 * 84);
    let again = Checkpoint::open(&f.path("out")).unwrap();
    check_bytes(&f, &again);
    let tensor = again.expert(3, Family::Up).unwrap();
    assert_eq!((tensor.expert_bytes, tensor.unpacked_expert_bytes()), (PACKED, PLAIN));
    assert_eq!((tensor.stored_as(), tensor.stride % 4096), ("IQ1_M spacious", 0));
    let text = fs::read_to_string(f.path("out/manifest.json")).unwrap();
    assert!(
        text.starts_with(
            "{\n  \"schema_version\": 2,\n  \"sidecar_kind\": \"slotbank_packed\",\n  \"layout\": \"slotbank_packed_expert\",\n"
        ),
        "{text}"
    );
    let manifest: Value = serde_json::from_str(&text).unwrap();
    let entry = &manifest["entries"][0];
    assert_eq!(entry["quant_type"], "IQ1_M spacious");
    assert_eq!(
        entry["packed"],
        json!({"source_type": "IQ1_M", "version": packer().form().version, "block_bytes": 80})
    );
    assert!(manifest["entries"][1].get("packed").is_none());
    // No reader that goes by types alone finds one that it knows.
    let packed = manifest["entries"].as_array().unwrap().iter().filter(|entry| entry.get("packed").is_some());
    assert!(
        packed
            .map(|entry| entry["quant_type"].as_str().unwrap())
            .all(|name| GgmlType::from_name(name).is_none())
    );
}

#[test]
fn inspect_shows_forms_and_what_they_cost() {
    let f = fixture();
    f.pack("out");
    let found = inspect(&Checkpoint::open(&f.path("out")).unwrap()).unwrap().experts.unwrap();
    let gate = &found.families[0];
    let types: Vec<_> = gate.types.iter().map(|line| (line.ty, line.form.as_deref(), line.tensors)).collect();
    assert_eq!(types, [(GgmlType::IQ1_M, Some("IQ1_M spacious"), 2), (GgmlType::Q2_K, None, 1)]);
    assert_eq!(found.expert_bytes.min, 3 * PACKED);
    assert_eq!(found.unpacked_expert_bytes.unwrap().min, 3 * PLAIN);
    assert!(inspect(&f.src).unwrap().experts.unwrap().unpacked_expert_bytes.is_none());
}

#[test]
fn an_interrupted_packing_goes_on_where_it_was() {
    let f = fixture();
    let total = f.pack("reference").bytes_written;
    let mut resumed = std::collections::BTreeSet::new();
    for step in 0..8 {
        let dst = f.path(&format!("out-{step}"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Options { stop: Some(Arc::clone(&stop)), ..options() };
        let error = extract(&f.src, &dst, &stopping, &mut |progress| {
            assert_eq!(progress.bytes_total, total);
            stop.store(progress.bytes_done >= total * step / 8, Ordering::Relaxed);
        })
        .unwrap_err();
        assert_eq!(error.class(), Class::Interrupted);
        assert!(!dst.join("manifest.json").exists());
        // Neither other forms nor none go on with this.
        let plain = Options { pack: None, ..options() };
        let error = extract(&f.src, &dst, &plain, &mut |_| ()).unwrap_err();
        assert!(matches!(error, Error::Exists { .. }), "{error}");
        let summary = extract(&f.src, &dst, &options(), &mut |_| ()).unwrap();
        assert_eq!(summary.bytes_resumed + summary.bytes_written, total);
        resumed.insert(summary.layers_resumed);
        let (reference, found) = (tree(&f.path("reference")), tree(&dst));
        assert_eq!(reference.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
        for (name, bytes) in reference.iter().filter(|(name, _)| name.ends_with(".bin")) {
            assert!(*bytes == found[name], "step {step}: {name}");
        }
    }
    assert!(resumed.len() > 2, "{resumed:?}");
}

#[test]
fn the_dense_part_may_be_added_later() {
    let f = fixture();
    let dst = f.path("out");
    extract(&f.src, &dst, &Options { dense: false, ..options() }, &mut |_| ()).unwrap();
    let other = Options { pack: None, ..options() };
    assert!(matches!(extract(&f.src, &dst, &other, &mut |_| ()).unwrap_err(), Error::Exists { .. }));
    extract(&f.src, &dst, &options(), &mut |_| ()).unwrap();
    check_bytes(&f, &Checkpoint::open(&dst).unwrap());
}

#[test]
fn packed_experts_are_copied_as_they_are_and_never_unpacked() {
    let f = fixture();
    f.pack("first");
    let src = Checkpoint::open(&f.path("first")).unwrap();
    // A version that knows no form can still copy.
    let copy = Options { pack: Some(Vec::new()), ..options() };
    extract(&src, &f.path("second"), &copy, &mut |_| ()).unwrap();
    check_bytes(&f, &Checkpoint::open(&f.path("second")).unwrap());
    let [first, second] = ["first", "second"].map(|name| tree(&f.path(name)));
    assert!(first["layer_003.bin"] == second["layer_003.bin"]);
    let error = refused(&src, &f.path("third"), &Options { pack: None, ..options() });
    assert!(error.to_string().contains("cannot be undone"), "{error}");
    refused(&src, &f.path("third"), &Options { layout: Layout::LayerMajor, ..options() });
    let error = refused(&src, &f.path("third"), &Options { layers: Some(vec![1]), ..copy });
    assert!(error.to_string().contains("stay in the dense GGUF"), "{error}");
}

#[test]
fn packing_needs_records_and_something_to_pack() {
    let f = fixture();
    let error = refused(&f.src, &f.path("out"), &Options { layout: Layout::LayerMajor, ..options() });
    assert!(error.hint().unwrap().contains("--layout expert-major"), "{error}");
    let error =
        refused(&f.src, &f.path("out"), &Options { layers: Some(vec![2]), dense: false, ..options() });
    assert!(error.to_string().contains("faster here for Q2_K, Q3_K"), "{error}");
}

#[test]
fn verify_checks_the_stored_bytes_and_those_that_they_came_from() {
    let f = fixture();
    f.pack("out");
    let check = |against: bool, packers: Vec<Packer>| {
        let against = against.then(|| f.path("toy.gguf"));
        let options = verify::Options { against, packers, ..Default::default() };
        verify(&f.path("out"), &options, &mut |_| ()).unwrap()
    };
    assert!(check(false, Vec::new()).is_ok());
    assert!(check(true, vec![packer()]).is_ok());
    // Without the form there is nothing to compare with, and that is said.
    let blind = check(true, Vec::new());
    assert_eq!(blind.bad.len(), 4);
    let geometry = |bad: &verify::Bad| matches!(&bad.problem, Problem::Geometry { got, .. } if got.starts_with("IQ1_M spacious"));
    assert!(blind.bad.iter().all(geometry), "{:?}", blind.bad);
    // The sums belong to what is stored, so a flipped byte is found by both.
    let tensor = Checkpoint::open(&f.path("out")).unwrap().expert(3, Family::Down).unwrap().clone();
    let at = tensor.extent(2).offset + 1000;
    common::flip(&f.path("out/layer_003.bin"), at);
    let bad = check(false, Vec::new()).bad;
    assert!(
        bad.len() == 1 && bad[0].expert == Some(2) && matches!(bad[0].problem, Problem::Sum { .. }),
        "{bad:?}"
    );
    let bad = check(true, vec![packer()]).bad;
    assert!(
        bad.len() == 1 && matches!(bad[0].problem, Problem::Bytes { at: found, .. } if found == at),
        "{bad:?}"
    );
}

#[test]
fn a_wrong_byte_in_the_source_is_noticed_while_packing() {
    let f = fixture();
    let first = f.path("plain");
    extract(&f.src, &first, &Options { dense: false, ..Options::default() }, &mut |_| ()).unwrap();
    common::flip(&first.join("layer_003.bin"), 100);
    let loose = OpenOptions { allow_incomplete: true, ..OpenOptions::default() };
    let src = Checkpoint::open_with(&first, &loose).unwrap();
    let error =
        extract(&src, &f.path("out"), &Options { dense: false, ..options() }, &mut |_| ()).unwrap_err();
    assert_eq!(error.class(), Class::Integrity, "{error}");
    assert!(error.to_string().contains("`blk.3.ffn_gate_exps.weight` expert 0"), "{error}");
}

/// A change of the manifest, part of the message, and its class.
type Hostile = (&'static str, fn(&mut Value), &'static str, Class);

const HOSTILE: &[Hostile] = &[
    ("newer schema", |m| m["schema_version"] = json!(3), "schema_version 3", Class::Unsupported),
    ("plain kind", |m| m["sidecar_kind"] = json!("flashmoe_gguf"), "sidecar_kind", Class::Unsupported),
    ("no kind", |m| m["sidecar_kind"] = Value::Null, "sidecar_kind null", Class::Unsupported),
    ("plain layout", |m| m["layout"] = json!("layer_major_expert"), "layout", Class::Unsupported),
    ("no layout", |m| m["layout"] = Value::Null, "`layout`", Class::BadFile),
    (
        "no longer said to be packed",
        |m| m["entries"][0]["packed"] = Value::Null,
        "IQ1_M spacious",
        Class::Unsupported,
    ),
    ("not an object", |m| m["entries"][0]["packed"] = json!("IQ1_M"), "`packed` is a string", Class::BadFile),
    ("a ggml type's name", |m| m["entries"][0]["quant_type"] = json!("Q4_K"), "Q4_K", Class::BadFile),
    ("no name", |m| m["entries"][0]["quant_type"] = json!(""), "not the name", Class::BadFile),
    (
        "a name that paints",
        |m| m["entries"][0]["quant_type"] = json!("\u{1b}[31m"),
        "not the name",
        Class::BadFile,
    ),
    (
        "an unknown source",
        |m| m["entries"][0]["packed"]["source_type"] = json!("IQ9"),
        "IQ9",
        Class::Unsupported,
    ),
    ("another source", |m| m["entries"][0]["packed"]["source_type"] = json!("Q8_0"), "bytes", Class::BadFile),
    (
        "no source",
        |m| drop(m["entries"][0]["packed"].as_object_mut().unwrap().remove("source_type")),
        "source_type",
        Class::BadFile,
    ),
    ("no version", |m| m["entries"][0]["packed"]["version"] = json!(""), "not the version", Class::BadFile),
    ("a numeric version", |m| m["entries"][0]["packed"]["version"] = json!(1), "version", Class::BadFile),
    ("other blocks", |m| m["entries"][0]["packed"]["block_bytes"] = json!(79), "20224 bytes", Class::BadFile),
    (
        "blocks of nothing",
        |m| m["entries"][0]["packed"]["block_bytes"] = json!(0),
        "blocks of 0",
        Class::BadFile,
    ),
    (
        "endless blocks",
        |m| m["entries"][0]["packed"]["block_bytes"] = json!(u64::MAX),
        "blocks of",
        Class::BadFile,
    ),
    (
        "fewer bytes",
        |m| m["entries"][0]["bytes_per_expert"] = json!(PLAIN),
        "`bytes_per_expert`",
        Class::BadFile,
    ),
    ("a record too short", |m| m["entries"][2]["expert_stride"] = json!(4096), "record", Class::BadFile),
    ("overlapping", |m| m["entries"][1]["repacked_offset"] = json!(PACKED - 1), "overlaps", Class::BadFile),
];

#[test]
fn hostile_manifests_are_clear_errors() {
    let f = fixture();
    f.pack("out");
    let path = f.path("out/manifest.json");
    let good: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let parse = |manifest: &Value| Manifest::parse(manifest.to_string().as_bytes(), &path, false);
    parse(&good).unwrap();
    for (what, change, message, class) in HOSTILE {
        let mut bad = good.clone();
        change(&mut bad);
        let error = parse(&bad).expect_err(what);
        assert_eq!(error.class(), *class, "{what}: {error}");
        assert!(error.to_string().contains(message), "{what}: {error}");
    }
}

#[test]
fn a_plain_manifest_cannot_smuggle_packed_experts_in() {
    let f = fixture();
    f.pack("out");
    let path = f.path("out/manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    (manifest["schema_version"], manifest["sidecar_kind"]) = (json!(1), json!("flashmoe_gguf"));
    manifest["layout"] = json!("layer_major_expert");
    let error = Manifest::parse(manifest.to_string().as_bytes(), &path, false).unwrap_err();
    assert_eq!(error.class(), Class::BadFile, "{error}");
    assert!(error.to_string().contains("`packed` experts in a manifest"), "{error}");
}
