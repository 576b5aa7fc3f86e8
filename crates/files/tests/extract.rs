//! Extraction: both layouts, restarts, and what is in the way.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{EXPERTS, Fixture, Spec, Toy, fixture, names, tree, write_gguf};
use serde_json::Value;
use slotbank_files::extract::{Options, Progress, Summary, extract};
use slotbank_files::manifest::Layout;
use slotbank_files::{Checkpoint, Class, Error, Family, GgmlType, OpenOptions, Source};

const LAYOUTS: [Layout; 2] = [Layout::LayerMajor, Layout::ExpertMajor];

impl Fixture {
    fn dst(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
    fn run(&self, dst: &Path, options: &Options) -> Result<Summary, Error> {
        extract(&self.src, dst, options, &mut |_| ())
    }
}

fn with(layout: Layout, dense: bool) -> Options {
    Options { layout, dense, ..Options::default() }
}

fn open_loosely(path: &Path) -> Checkpoint {
    Checkpoint::open_with(path, &OpenOptions { allow_incomplete: true, ..OpenOptions::default() }).unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn both_layouts_hold_the_same_bytes() {
    let f = fixture();
    for layout in LAYOUTS {
        let dst = f.dst(layout.name());
        let summary = f.run(&dst, &with(layout, true)).unwrap();
        assert_eq!((summary.tensors, summary.layers, summary.layers_resumed), (9, 3, 0));
        let again = Checkpoint::open(&dst).unwrap();
        assert_eq!(*again.source(), Source::Sidecar { manifest: dst.join("manifest.json"), layout });
        f.toy.check(&again);
        assert_eq!(again.metadata().iter().count(), f.src.metadata().iter().count());
        assert_eq!(
            names(&dst),
            [
                "dense/flashmoe-package.json",
                "dense/model-dense.gguf",
                "layer_001.bin",
                "layer_002.bin",
                "layer_003.bin",
                "manifest.json",
                "manifest.sums.json"
            ]
        );
    }
}

#[test]
fn whole_tensor_bins_are_bare_concatenations() {
    let f = fixture();
    let dst = f.dst("out");
    f.run(&dst, &Options::default()).unwrap();
    for layer in 1..=3 {
        let expected: Vec<u8> = [Family::Gate, Family::Up, Family::Down]
            .iter()
            .flat_map(|family| f.toy.spec(&family.tensor_name(layer)).bytes())
            .collect();
        assert!(fs::read(dst.join(format!("layer_{layer:03}.bin"))).unwrap() == expected, "layer {layer}");
    }
}

#[test]
fn records_begin_on_pages_and_hold_gate_up_down() {
    let f = fixture();
    let dst = f.dst("out");
    f.run(&dst, &with(Layout::ExpertMajor, false)).unwrap();
    let bin = fs::read(dst.join("layer_001.bin")).unwrap();
    let stride = bin.len() / EXPERTS as usize;
    assert_eq!(stride % 4096, 0);
    for expert in 0..EXPERTS as usize {
        let mut record = Vec::new();
        for family in [Family::Gate, Family::Up, Family::Down] {
            let bytes = f.toy.spec(&family.tensor_name(1)).bytes();
            let size = bytes.len() / EXPERTS as usize;
            record.extend_from_slice(&bytes[expert * size..][..size]);
        }
        record.resize(stride, 0);
        assert!(bin[expert * stride..][..stride] == record, "expert {expert}");
    }
    let entry = &json(&dst.join("manifest.json"))["entries"][1];
    assert_eq!(entry["expert_stride"], stride as u64);
    assert_eq!((&entry["expert_major"], &entry["expert_count"]), (&true.into(), &EXPERTS.into()));
    let sizes: Vec<u64> = f.src.experts()[..2].iter().map(|tensor| tensor.expert_bytes).collect();
    assert_eq!(entry["repacked_offset"], sizes[0]);
}

#[test]
fn the_manifest_has_the_forks_keys_in_the_forks_order() {
    let f = fixture();
    let dst = f.dst("out");
    f.run(&dst, &Options { layers: Some(vec![3, 1]), ..Options::default() }).unwrap();
    let text = fs::read_to_string(dst.join("manifest.json")).unwrap();
    assert!(text.starts_with("{\n  \"schema_version\": 1,\n  \"sidecar_kind\": \"flashmoe_gguf\",\n"));
    assert!(text.ends_with("\n  ]\n}\n"));
    let keys: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("  \"").and_then(|rest| Some(rest.split_once('"')?.0)))
        .collect();
    assert_eq!(
        keys,
        [
            "schema_version",
            "sidecar_kind",
            "layout",
            "generated_at",
            "include_shared",
            "filters",
            "source",
            "model",
            "entries"
        ]
    );
    let model = text.split("\"model\": {\n").nth(1).unwrap();
    let model: Vec<&str> = model.lines().take(4).map(str::trim).collect();
    assert_eq!(
        model,
        [
            "\"arch\": \"glm-dsa\",",
            "\"expert_count\": 5,",
            "\"expert_used_count\": 2,",
            "\"leading_dense_block_count\": 1,"
        ]
    );
    let gate = f.src.expert(1, Family::Gate).unwrap();
    let expected = format!(
        r#"    {{
      "layer": 1,
      "tensor_family": "ffn_gate_exps",
      "tensor_name": "blk.1.ffn_gate_exps.weight",
      "original_gguf_tensor_name": "blk.1.ffn_gate_exps.weight",
      "expert_id": null,
      "quant_type": "IQ1_M",
      "block_size": 256,
      "exact_byte_length": {},
      "source_shard": "toy.gguf",
      "source_shard_index": 0,
      "source_offset": {},
      "shape": [
        256,
        256,
        5
      ],
      "bytes_per_expert": {},
      "quant_tier": null,
      "projection_quant_kind": null,
      "alternate_bank_offsets": null,
      "dynamic_quant_policy_tag": null,
      "repacked_file": "layer_001.bin",
      "repacked_offset": 0
    }},
"#,
        gate.total_bytes(),
        gate.offset,
        gate.expert_bytes
    );
    assert!(text.contains(&expected), "{text}");
    let value = json(&dst.join("manifest.json"));
    assert_eq!(value["filters"]["layers"], serde_json::json!([1, 3]));
    assert!(value["filters"]["families"].is_null());
    let order: Vec<(u64, &str)> = value["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["layer"].as_u64().unwrap(), entry["tensor_family"].as_str().unwrap()))
        .collect();
    assert_eq!(order[..3], [(1, "ffn_gate_exps"), (1, "ffn_up_exps"), (1, "ffn_down_exps")]);
    assert_eq!((order.len(), order[3].0), (6, 3));
    assert!(!text.contains(&*f.dir.path().to_string_lossy()), "no path of this machine");
    assert!(
        !fs::read_to_string(dst.join("manifest.sums.json"))
            .unwrap()
            .contains(&*f.dir.path().to_string_lossy())
    );
}

#[test]
fn a_sidecar_can_be_repacked_and_keeps_its_origin() {
    let f = fixture();
    for (from, to) in [(LAYOUTS[0], LAYOUTS[1]), (LAYOUTS[1], LAYOUTS[0]), (LAYOUTS[1], LAYOUTS[1])] {
        let first = f.dst(&format!("{}-{}-1", from.name(), to.name()));
        f.run(&first, &with(from, true)).unwrap();
        let second = f.dst(&format!("{}-{}-2", from.name(), to.name()));
        extract(&Checkpoint::open(&first).unwrap(), &second, &with(to, true), &mut |_| ()).unwrap();
        f.toy.check(&Checkpoint::open(&second).unwrap());
        let (a, b) = (json(&first.join("manifest.json")), json(&second.join("manifest.json")));
        for key in ["source_shard", "source_shard_index", "source_offset", "exact_byte_length"] {
            assert_eq!(a["entries"][4][key], b["entries"][4][key], "{key}");
        }
        assert_eq!(b["source"]["repacked_from_sidecar"], "manifest.json");
        let sums = |path: &Path| json(&path.join("manifest.sums.json"))["experts"].clone();
        assert_eq!(sums(&first), sums(&second), "sums do not depend on the layout");
    }
}

#[test]
fn a_bare_sidecar_is_a_source_too() {
    let f = fixture();
    let (first, second) = (f.dst("first"), f.dst("second"));
    f.run(&first, &Options::default()).unwrap();
    extract(&open_loosely(&first), &second, &with(Layout::ExpertMajor, false), &mut |_| ()).unwrap();
    let again = open_loosely(&second);
    assert_eq!(again.experts().len(), 9);
    let model = json(&second.join("manifest.json"))["model"].clone();
    assert_eq!(model["arch"], "glm-dsa");
    assert_eq!(model["expert_used_count"], 2);
    assert_eq!(model["gguf_metadata"]["glm-dsa.context_length"], 512);
}

#[test]
fn a_wrong_byte_in_the_source_is_noticed_on_the_way() {
    let f = fixture();
    let first = f.dst("first");
    f.run(&first, &Options::default()).unwrap();
    common::flip(&first.join("layer_002.bin"), 100);
    let error =
        extract(&open_loosely(&first), &f.dst("second"), &Options::default(), &mut |_| ()).unwrap_err();
    assert_eq!(error.class(), Class::Integrity);
    assert!(error.to_string().contains("layer_002.bin: `blk.2.ffn_gate_exps.weight` expert 0"), "{error}");
}

#[test]
fn a_partial_sidecar_with_its_dense_part_is_still_a_whole_model() {
    let f = fixture();
    let dst = f.dst("out");
    let options = Options {
        layers: Some(vec![2]),
        families: Some(vec![Family::Up, Family::Down]),
        ..with(Layout::ExpertMajor, true)
    };
    f.run(&dst, &options).unwrap();
    let again = Checkpoint::open(&dst).unwrap();
    f.toy.check(&again);
    assert_eq!(again.manifest().unwrap().entries.len(), 2);
    let sums = json(&dst.join("manifest.sums.json"));
    assert_eq!(
        sums["experts"].as_object().unwrap().len(),
        9,
        "experts that stayed in the GGUF have sums, too"
    );
}

#[test]
fn a_split_source_gives_a_single_dense_file() {
    let dir = tempfile::tempdir().unwrap();
    let toy = Toy::default();
    let shards = toy.write_split(dir.path(), 4);
    let src = Checkpoint::open(&shards[2]).unwrap();
    let dst = dir.path().join("out");
    extract(&src, &dst, &with(Layout::LayerMajor, true), &mut |_| ()).unwrap();
    let again = Checkpoint::open(&dst).unwrap();
    toy.check(&again);
    assert!(again.metadata().iter().all(|(key, _)| !key.starts_with("split.")));
    assert_eq!(again.gguf_files().len(), 1);
    let entries = json(&dst.join("manifest.json"))["entries"].clone();
    let shard = entries[0]["source_shard_index"].as_u64().unwrap();
    assert!(shard > 0, "the first shard has no tensors");
    assert_eq!(entries[0]["source_shard"], format!("toy-{:05}-of-00004.gguf", shard + 1));
    let package = json(&dst.join("dense/flashmoe-package.json"));
    assert_eq!(package["kind"], "flashmoe_dense_package");
    assert_eq!(package["routed_removed"]["tensor_count"], 9);
    assert_eq!(package["dense_model"]["tensor_count"], again.tensors().len());
    assert_eq!(package["sidecar"]["summary"]["by_family"]["ffn_up_exps"]["layers"], 3);
}

/// Stops an extraction after `bytes` have been written.
fn interrupted(f: &Fixture, dst: &Path, options: &Options, bytes: u64) -> Error {
    let stop = Arc::new(AtomicBool::new(false));
    let options = Options { stop: Some(Arc::clone(&stop)), ..options.clone() };
    let mut on_progress = |progress: Progress| {
        if progress.bytes_done >= bytes {
            stop.store(true, Ordering::Relaxed);
        }
    };
    extract(&f.src, dst, &options, &mut on_progress).unwrap_err()
}

#[test]
fn an_interrupted_extraction_goes_on_where_it_was() {
    let f = fixture();
    for layout in LAYOUTS {
        let options = with(layout, true);
        let reference = f.dst(&format!("{}-reference", layout.name()));
        let total = f.run(&reference, &options).unwrap().bytes_written;
        let mut resumed = std::collections::BTreeSet::new();
        for step in 0..12 {
            let dst = f.dst(&format!("{}-{step}", layout.name()));
            let error = interrupted(&f, &dst, &options, total * step / 12);
            assert_eq!(error.class(), Class::Interrupted);
            assert!(!dst.join("manifest.json").exists(), "the manifest comes last");
            assert!(Checkpoint::open(&dst).is_err());
            // What a crash would have left in the middle of a bin.
            fs::write(dst.join(".layer_002.bin.slotbank-tmp"), b"torn").unwrap();
            let untouched: Vec<_> = (1..=3)
                .map(|layer| dst.join(format!("layer_{layer:03}.bin")))
                .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().unwrap(), path)))
                .collect();
            let mut first = None;
            let summary = extract(&f.src, &dst, &options, &mut |p| {
                first.get_or_insert(p);
            })
            .unwrap();
            assert_eq!(summary.layers_resumed, untouched.len(), "step {step}");
            assert_eq!(summary.bytes_resumed + summary.bytes_written, total);
            assert!(first.is_none_or(|p| p.bytes_done > p.bytes_resumed && p.bytes_total == total));
            for (modified, path) in untouched {
                assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), modified, "{}", path.display());
            }
            same_but_for_dates(&reference, &dst);
            resumed.insert(summary.layers_resumed);
        }
        assert!(resumed.len() > 2, "the interruptions fell into different layers: {resumed:?}");
    }
}

/// Equal trees, except that the manifest was written at another time.
fn same_but_for_dates(a: &Path, b: &Path) {
    let (mut a, mut b) = (tree(a), tree(b));
    for tree in [&mut a, &mut b] {
        for name in ["manifest.json", "manifest.sums.json", "dense/flashmoe-package.json"] {
            let mut value: Value = serde_json::from_slice(&tree[name]).unwrap();
            value["generated_at"] = Value::Null;
            if name == "manifest.sums.json" {
                value["manifest"] = Value::Null;
            }
            tree.insert(name.to_owned(), value.to_string().into_bytes());
        }
    }
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in &a {
        assert!(*bytes == b[name], "{name}");
    }
}

#[test]
fn a_finished_bin_that_was_damaged_or_removed_is_written_again() {
    let f = fixture();
    let reference = f.dst("reference");
    let total = f.run(&reference, &Options::default()).unwrap().bytes_written;
    let dst = f.dst("out");
    interrupted(&f, &dst, &Options::default(), total * 3 / 4);
    fs::remove_file(dst.join("layer_001.bin")).unwrap();
    fs::write(dst.join("layer_002.bin"), b"short").unwrap();
    let summary = f.run(&dst, &Options::default()).unwrap();
    assert_eq!(summary.layers_resumed, 0);
    assert!(
        fs::read(dst.join("layer_002.bin")).unwrap() == fs::read(reference.join("layer_002.bin")).unwrap()
    );
}

#[test]
fn the_dense_part_may_be_asked_for_at_the_second_attempt() {
    let f = fixture();
    let dst = f.dst("out");
    interrupted(&f, &dst, &Options::default(), 700_000);
    let summary = f.run(&dst, &with(Layout::LayerMajor, true)).unwrap();
    assert!(summary.layers_resumed > 0 && summary.dense.is_some());
    f.toy.check(&Checkpoint::open(&dst).unwrap());
}

#[test]
fn a_torn_journal_line_costs_one_bin() {
    let f = fixture();
    let dst = f.dst("out");
    let total = f.run(&f.dst("reference"), &Options::default()).unwrap().bytes_written;
    interrupted(&f, &dst, &Options::default(), total * 9 / 10);
    let journal = dst.join(".slotbank-extract.jsonl");
    let text = fs::read(&journal).unwrap();
    fs::write(&journal, &text[..text.len() - 20]).unwrap();
    let before = fs::read_dir(&dst).unwrap().count();
    let summary = f.run(&dst, &Options::default()).unwrap();
    assert!(before >= 3);
    assert_eq!(summary.layers_resumed, 1);
    same_but_for_dates_without_dense(&f.dst("reference"), &dst);
}

fn same_but_for_dates_without_dense(a: &Path, b: &Path) {
    for layer in 1..=3 {
        let name = format!("layer_{layer:03}.bin");
        assert!(fs::read(a.join(&name)).unwrap() == fs::read(b.join(&name)).unwrap(), "{name}");
    }
    assert_eq!(names(a), names(b));
}

#[test]
fn nothing_is_overwritten_without_force() {
    let f = fixture();
    let dst = f.dst("out");
    f.run(&dst, &with(Layout::LayerMajor, true)).unwrap();
    let before = tree(&dst);
    for options in
        [with(Layout::LayerMajor, false), with(Layout::LayerMajor, true), with(Layout::ExpertMajor, true)]
    {
        let error = f.run(&dst, &options).unwrap_err();
        assert!(matches!(error, Error::Exists { .. }), "{error}");
        assert_eq!(error.class(), Class::Usage);
        assert!(error.hint().unwrap().contains("--force"), "{:?}", error.hint());
    }
    assert!(tree(&dst) == before);
    // Bins without manifest and journal belong to somebody else.
    let other = f.dst("other");
    common::put(&other.join("layer_001.bin"), b"precious");
    assert!(matches!(f.run(&other, &Options::default()).unwrap_err(), Error::Exists { .. }));
    assert_eq!(fs::read(other.join("layer_001.bin")).unwrap(), b"precious");
    // Files that are none of ours are in nobody's way.
    let notes = f.dst("notes");
    common::put(&notes.join("README.md"), b"mine");
    f.run(&notes, &Options::default()).unwrap();
    assert_eq!(fs::read(notes.join("README.md")).unwrap(), b"mine");
}

#[test]
fn force_replaces_and_removes_stale_bins() {
    let f = fixture();
    let dst = f.dst("out");
    f.run(&dst, &Options::default()).unwrap();
    common::put(&dst.join("layer_007.bin"), b"of an older model");
    common::put(&dst.join("README.md"), b"mine");
    let options = Options { force: true, layers: Some(vec![2]), ..with(Layout::ExpertMajor, false) };
    let summary = f.run(&dst, &options).unwrap();
    assert_eq!(summary.removed.len(), 6);
    assert_eq!(names(&dst), ["README.md", "layer_002.bin", "manifest.json", "manifest.sums.json"]);
    assert_eq!(open_loosely(&dst).experts().len(), 3);
}

#[test]
fn another_unfinished_extraction_is_not_continued() {
    let f = fixture();
    let dst = f.dst("out");
    interrupted(&f, &dst, &Options::default(), 400_000);
    let error = f.run(&dst, &with(Layout::ExpertMajor, false)).unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error}");
    assert!(error.hint().unwrap().contains("same arguments"), "{:?}", error.hint());
    // A source that changed in between is another source.
    let mut changed = f.toy.clone();
    changed.metadata.insert("general.name", "changed");
    changed.write(&f.dst("toy.gguf"));
    let src = Checkpoint::open(&f.dst("toy.gguf")).unwrap();
    assert!(matches!(
        extract(&src, &dst, &Options::default(), &mut |_| ()).unwrap_err(),
        Error::Exists { .. }
    ));
    let forced = Options { force: true, ..with(Layout::ExpertMajor, true) };
    extract(&src, &dst, &forced, &mut |_| ()).unwrap();
    f.toy.check(&Checkpoint::open(&dst).unwrap());
}

#[test]
fn the_dense_part_can_follow_later() {
    let f = fixture();
    let dst = f.dst("out");
    f.run(&dst, &Options::default()).unwrap();
    let before = tree(&dst);
    let summary = f.run(&dst, &with(Layout::LayerMajor, true)).unwrap();
    assert_eq!(summary.layers_resumed, 3);
    f.toy.check(&Checkpoint::open(&dst).unwrap());
    let after = tree(&dst);
    for (name, bytes) in before.iter().filter(|(name, _)| *name != "manifest.sums.json") {
        assert!(after[name] == *bytes, "{name} was left alone");
    }
    assert_eq!(json(&dst.join("manifest.sums.json"))["gguf"][0]["file"], "model-dense.gguf");
    // Only for the same experts.
    let other = f.dst("other");
    f.run(&other, &Options { layers: Some(vec![1]), ..Options::default() }).unwrap();
    assert!(matches!(f.run(&other, &with(Layout::LayerMajor, true)).unwrap_err(), Error::Exists { .. }));
}

#[test]
fn a_sidecar_is_never_extracted_onto_itself() {
    let f = fixture();
    let dst = f.dst("out");
    f.run(&dst, &with(Layout::LayerMajor, true)).unwrap();
    let before = tree(&dst);
    let own = Checkpoint::open(&dst).unwrap();
    let options = Options { force: true, ..with(Layout::ExpertMajor, false) };
    let error = extract(&own, &dst, &options, &mut |_| ()).unwrap_err();
    assert_eq!(error.class(), Class::Usage);
    assert!(error.to_string().contains("holds the source itself"), "{error}");
    assert!(tree(&dst) == before);
}

#[test]
fn two_extractions_into_one_folder_are_refused() {
    let f = fixture();
    let dst = f.dst("out");
    let mut second = None;
    extract(&f.src, &dst, &Options::default(), &mut |_| {
        let options = Options { force: true, ..Options::default() };
        second.get_or_insert_with(|| extract(&f.src, &dst, &options, &mut |_| ()));
    })
    .unwrap();
    let error = second.unwrap().unwrap_err();
    assert!(error.to_string().contains("another extraction into"), "{error}");
    assert_eq!(open_loosely(&dst).experts().len(), 9, "and the first one is not disturbed");
}

#[test]
fn wrong_selections_are_refused_before_anything_is_written() {
    let f = fixture();
    let dst = f.dst("out");
    let error = f.run(&dst, &Options { layers: Some(vec![1, 9]), ..Options::default() }).unwrap_err();
    assert!(error.to_string().contains("layer 9 of "), "{error}");
    assert_eq!(error.hint().unwrap(), "its expert layers are 1-3");
    let options = Options { families: Some(vec![Family::GateUp]), ..Options::default() };
    assert!(f.run(&dst, &options).unwrap_err().to_string().contains("no routed experts to extract"));
    assert!(!dst.exists());
}

#[test]
fn families_with_different_numbers_of_experts_cannot_share_records() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.gguf");
    let mut metadata = slotbank_files::Metadata::new();
    metadata.insert("general.architecture", "toy");
    write_gguf(
        &path,
        &metadata,
        &[
            Spec::new("blk.0.ffn_gate_exps.weight", GgmlType::F32, &[8, 4, 3]),
            Spec::new("blk.0.ffn_down_exps.weight", GgmlType::F32, &[4, 8, 2]),
        ],
    );
    let src = Checkpoint::open(&path).unwrap();
    let error =
        extract(&src, &dir.path().join("out"), &with(Layout::ExpertMajor, false), &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("different numbers of experts"), "{error}");
    extract(&src, &dir.path().join("out"), &Options::default(), &mut |_| ()).unwrap();
}

#[test]
fn progress_counts_every_byte_once() {
    let f = fixture();
    for layout in LAYOUTS {
        let mut last = 0;
        let mut total = 0;
        let summary = extract(&f.src, &f.dst(layout.name()), &with(layout, true), &mut |p| {
            assert!(p.bytes_done >= last && p.bytes_done <= p.bytes_total);
            (last, total) = (p.bytes_done, p.bytes_total);
        })
        .unwrap();
        assert_eq!((last, summary.bytes_written), (total, total));
    }
}

#[test]
fn a_source_that_became_shorter_is_an_error_and_leaves_no_bin() {
    let f = fixture();
    let last = f.src.experts().iter().map(|tensor| tensor.offset).max().unwrap();
    fs::OpenOptions::new().write(true).open(f.dst("toy.gguf")).unwrap().set_len(last + 10).unwrap();
    let dst = f.dst("out");
    let error = f.run(&dst, &Options::default()).unwrap_err();
    assert!(matches!(error, Error::Truncated { .. }), "{error}");
    assert!(
        error.to_string().contains("toy.gguf is truncated: `blk.3.ffn_down_exps.weight` expert 0"),
        "{error}"
    );
    assert!(!names(&dst).iter().any(|name| name.contains("layer_003") || name.contains("manifest")));
}
