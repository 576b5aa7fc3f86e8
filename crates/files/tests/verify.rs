//! Verification: everything that can go wrong with bytes is found, and all of it at once.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::{EXPERTS, Toy, flip};
use slotbank_files::extract::{self, extract};
use slotbank_files::manifest::Layout;
use slotbank_files::verify::{Bad, Mode, Options, Problem, Report, SumsState, verify};
use slotbank_files::{Checkpoint, Class, Error, Family, GgmlType};

struct Fixture {
    dir: tempfile::TempDir,
    toy: Toy,
}

fn fixture(layout: Layout) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let toy = Toy::default();
    toy.write(&dir.path().join("toy.gguf"));
    let src = Checkpoint::open(&dir.path().join("toy.gguf")).unwrap();
    let options = extract::Options { layout, dense: true, ..extract::Options::default() };
    extract(&src, &dir.path().join("side"), &options, &mut |_| ()).unwrap();
    Fixture { dir, toy }
}

impl Fixture {
    fn side(&self) -> PathBuf {
        self.dir.path().join("side")
    }
    fn gguf(&self) -> PathBuf {
        self.dir.path().join("toy.gguf")
    }
    fn verify(&self, options: &Options) -> Report {
        verify(&self.side(), options, &mut |_| ()).unwrap()
    }
    /// Where an expert's bytes are.
    fn place(&self, layer: u32, family: Family, expert: u32) -> (PathBuf, u64, u64) {
        let checkpoint = Checkpoint::open(&self.side()).unwrap();
        let extent = checkpoint.expert(layer, family).unwrap().extent(expert);
        (checkpoint.files()[extent.file.index()].clone(), extent.offset, extent.len)
    }
}

fn full() -> Options {
    Options::default()
}

fn quick() -> Options {
    Options { mode: Mode::Quick, ..Options::default() }
}

fn experts(report: &Report) -> Vec<(u32, Family, u32)> {
    report.bad.iter().map(|bad| (bad.layer.unwrap(), bad.family.unwrap(), bad.expert.unwrap())).collect()
}

#[test]
fn a_fresh_extraction_is_good() {
    for layout in [Layout::LayerMajor, Layout::ExpertMajor] {
        let f = fixture(layout);
        let report = f.verify(&full());
        assert!(report.is_ok(), "{:?}", report.bad);
        assert!(report.check().is_ok());
        assert_eq!(report.sums, SumsState::Checked(f.side().join("manifest.sums.json")));
        let dense = f.toy.tensors.iter().filter(|spec| !spec.is_expert()).count() as u64;
        assert_eq!(report.slices, 9 * EXPERTS + dense);
        assert_eq!(report.notes, Vec::<String>::new());
        let sampled = f.verify(&quick());
        assert!(sampled.is_ok() && sampled.slices < report.slices && sampled.slices >= 18);
    }
}

#[test]
fn one_flipped_bit_is_found_wherever_it_is() {
    for layout in [Layout::LayerMajor, Layout::ExpertMajor] {
        let f = fixture(layout);
        for (layer, family, expert) in [(1, Family::Gate, 0), (2, Family::Up, 3), (3, Family::Down, 4)] {
            let (file, offset, len) = f.place(layer, family, expert);
            for at in [offset, offset + len / 2, offset + len - 1] {
                flip(&file, at);
                let report = f.verify(&full());
                assert_eq!(experts(&report), [(layer, family, expert)]);
                let bad = &report.bad[0];
                assert_eq!((&bad.file, bad.offset, bad.len), (&file, offset, len));
                assert!(matches!(bad.problem, Problem::Sum { .. }));
                let error = report.check().unwrap_err();
                assert_eq!((error.class(), error.class().exit_code()), (Class::Integrity, 7));
                flip(&file, at);
            }
        }
        assert!(f.verify(&full()).is_ok());
    }
}

#[test]
fn dense_tensors_headers_and_the_manifest_are_covered() {
    let f = fixture(Layout::LayerMajor);
    let dense = f.side().join("dense/model-dense.gguf");
    let checkpoint = Checkpoint::open(&f.side()).unwrap();
    let extent = checkpoint.tensor("blk.2.attn_q_b.weight").unwrap().extent;
    flip(&dense, extent.offset + 3);
    let report = f.verify(&full());
    assert_eq!(report.bad.len(), 1);
    assert_eq!((report.bad[0].tensor.as_str(), report.bad[0].layer), ("blk.2.attn_q_b.weight", None));
    flip(&dense, extent.offset + 3);

    // A value of the metadata: the header's sum notices, in quick mode too.
    let bytes = fs::read(&dense).unwrap();
    let at = bytes.windows(4).position(|w| w == b"glm4").unwrap() as u64;
    flip(&dense, at + 2);
    for options in [full(), quick()] {
        let report = f.verify(&options);
        assert_eq!(report.bad.len(), 1, "{:?}", report.bad);
        assert_eq!((&report.bad[0].file, report.bad[0].tensor.as_str()), (&dense, ""));
    }
    flip(&dense, at + 2);

    // A type of equal size in the manifest: all expert sums still match.
    let manifest = f.side().join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replacen("\"source_offset\"", "\"source_0ffset\"", 1)).unwrap();
    for options in [full(), quick()] {
        let report = f.verify(&options);
        assert_eq!(report.bad.len(), 1);
        assert_eq!(report.bad[0].file, manifest);
    }
}

#[test]
fn swapped_layer_files_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut toy = Toy::default();
    // The same types everywhere, so that the files differ in nothing but their bytes.
    toy.tensors.iter_mut().filter(|spec| spec.is_expert()).for_each(|spec| spec.ty = GgmlType::Q2_K);
    toy.write(&dir.path().join("toy.gguf"));
    let src = Checkpoint::open(&dir.path().join("toy.gguf")).unwrap();
    let side = dir.path().join("side");
    extract(&src, &side, &extract::Options::default(), &mut |_| ()).unwrap();
    let (a, b, c) = (side.join("layer_001.bin"), side.join("layer_002.bin"), side.join("c"));
    assert_eq!(fs::metadata(&a).unwrap().len(), fs::metadata(&b).unwrap().len());
    for (from, to) in [(&a, &c), (&b, &a), (&c, &b)] {
        fs::rename(from, to).unwrap();
    }
    let report = verify(&side, &full(), &mut |_| ()).unwrap();
    assert_eq!(report.bad.len() as u64, 2 * 3 * EXPERTS);
    assert!(report.bad.iter().all(|bad| bad.layer != Some(3)));
    assert!(!verify(&side, &quick(), &mut |_| ()).unwrap().is_ok());
    let report =
        verify(&side, &Options { against: Some(dir.path().join("toy.gguf")), ..full() }, &mut |_| ())
            .unwrap();
    assert_eq!(report.bad.len() as u64, 2 * 3 * EXPERTS);
}

#[test]
fn every_bad_entry_is_reported_with_its_place() {
    let f = fixture(Layout::ExpertMajor);
    let wrong = [(1, Family::Gate, 1), (1, Family::Gate, 2), (2, Family::Down, 0), (3, Family::Up, 4)];
    for (layer, family, expert) in wrong {
        let (file, offset, _) = f.place(layer, family, expert);
        flip(&file, offset + 7);
    }
    for threads in [1, 2, 5] {
        let report = f.verify(&Options { threads: Some(threads), ..full() });
        assert_eq!(experts(&report), wrong, "{threads} threads");
        assert!(report.check().unwrap_err().to_string().ends_with("4 bad entries"));
    }
    let report = f.verify(&Options { against: Some(f.gguf()), ..full() });
    assert_eq!(experts(&report), wrong);
    for bad in &report.bad {
        let (file, offset, _) = f.place(bad.layer.unwrap(), bad.family.unwrap(), bad.expert.unwrap());
        let Problem::Bytes { at, expected, got } = bad.problem else { panic!("{bad}") };
        assert_eq!((at, &bad.file), (offset + 7, &file));
        assert_eq!(expected ^ got, 0x10);
        assert!(
            bad.to_string().contains(&format!("byte {at} is {got:#04x}, the other checkpoint has")),
            "{bad}"
        );
    }
}

#[test]
fn truncated_missing_and_overlong_bins_are_reported_together() {
    let f = fixture(Layout::LayerMajor);
    let size = |name: &str| fs::metadata(f.side().join(name)).unwrap().len();
    let set_len = |name: &str, len: u64| {
        fs::OpenOptions::new().write(true).open(f.side().join(name)).unwrap().set_len(len).unwrap();
    };
    let (one, three) = (size("layer_001.bin"), size("layer_003.bin"));
    let (_, offset, len) = f.place(1, Family::Down, 3);
    set_len("layer_001.bin", offset + 10);
    fs::remove_file(f.side().join("layer_002.bin")).unwrap();
    set_len("layer_003.bin", three + 1);
    let report = f.verify(&full());
    let whole: Vec<&Bad> = report.bad.iter().filter(|bad| bad.tensor.is_empty()).collect();
    assert_eq!(
        whole.iter().map(|bad| bad.problem.clone()).collect::<Vec<_>>(),
        [
            Problem::Size { expected: one, got: offset + 10 },
            Problem::Missing,
            Problem::Size { expected: three, got: three + 1 }
        ]
    );
    let cut: Vec<&Bad> = report.bad.iter().filter(|bad| !bad.tensor.is_empty()).collect();
    assert_eq!(cut.iter().map(|bad| bad.expert.unwrap()).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(cut[0].problem, Problem::Truncated { needs: offset + len, has: offset + 10 });
    assert!(Checkpoint::open(&f.side()).is_err(), "which could not be opened for use");
    assert!(!f.verify(&quick()).is_ok());
}

#[test]
fn a_truncated_gguf_is_a_report_and_not_a_refusal() {
    let f = fixture(Layout::LayerMajor);
    let path = f.gguf();
    let len = fs::metadata(&path).unwrap().len();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len / 2).unwrap();
    let report = verify(&path, &full(), &mut |_| ()).unwrap();
    assert_eq!(report.bad.len(), 1);
    assert!(
        matches!(report.bad[0].problem, Problem::Truncated { has, .. } if has == len / 2),
        "{}",
        report.bad[0]
    );
}

#[test]
fn a_plain_gguf_without_sums_says_how_to_make_them() {
    let f = fixture(Layout::LayerMajor);
    let report = verify(&f.gguf(), &full(), &mut |_| ()).unwrap();
    assert!(report.is_ok());
    assert_eq!((report.sums.clone(), report.slices), (SumsState::Absent, 0));
    assert!(report.notes[0].contains("slotbank verify --write-sums"), "{:?}", report.notes);

    let written = verify(&f.gguf(), &Options { write_sums: true, ..full() }, &mut |_| ()).unwrap();
    let sums = f.dir.path().join("toy.gguf.sums.json");
    assert_eq!(written.sums, SumsState::Written(sums.clone()));
    assert!(verify(&f.gguf(), &full(), &mut |_| ()).unwrap().is_ok());
    let again = verify(&f.gguf(), &Options { write_sums: true, ..full() }, &mut |_| ()).unwrap_err();
    assert!(matches!(again, Error::Exists { .. }), "{again}");
    let src = Checkpoint::open(&f.gguf()).unwrap();
    let extent = src.expert(2, Family::Up).unwrap().extent(1);
    flip(&f.gguf(), extent.offset);
    let report = verify(&f.gguf(), &full(), &mut |_| ()).unwrap();
    assert_eq!(experts(&report), [(2, Family::Up, 1)]);
    let refused = verify(&f.gguf(), &Options { write_sums: true, mode: Mode::Quick, ..full() }, &mut |_| ())
        .unwrap_err();
    assert_eq!(refused.class(), Class::Usage);
}

#[test]
fn sums_written_afterwards_equal_those_of_the_extraction() {
    let f = fixture(Layout::ExpertMajor);
    let path = f.side().join("manifest.sums.json");
    let load = || {
        let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        value["generated_at"] = serde_json::Value::Null;
        value
    };
    let before = load();
    let manifest = fs::read(f.side().join("manifest.json")).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(f.verify(&full()).sums, SumsState::Absent);
    assert_eq!(f.verify(&Options { write_sums: true, ..full() }).sums, SumsState::Written(path.clone()));
    assert_eq!(load(), before);
    assert!(fs::read(f.side().join("manifest.json")).unwrap() == manifest, "the manifest is left alone");
}

#[test]
fn sums_are_not_written_over_a_difference() {
    let f = fixture(Layout::LayerMajor);
    let path = f.side().join("manifest.sums.json");
    fs::remove_file(&path).unwrap();
    let (file, offset, _) = f.place(1, Family::Up, 2);
    flip(&file, offset);
    let report = f.verify(&Options { write_sums: true, against: Some(f.gguf()), ..full() });
    assert_eq!(experts(&report), [(1, Family::Up, 2)]);
    assert!(!path.exists());
    assert!(report.notes.iter().any(|note| note.contains("no sums were written")), "{:?}", report.notes);
}

#[test]
fn against_needs_no_sums_and_ignores_where_the_bytes_came_from() {
    let f = fixture(Layout::LayerMajor);
    fs::remove_file(f.side().join("manifest.sums.json")).unwrap();
    let manifest = f.side().join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap().replace("\"toy.gguf\"", "\"/Volumes/other/x.gguf\"");
    fs::write(&manifest, text.replace("\"source_shard_index\": 0", "\"source_shard_index\": 4")).unwrap();
    let report = f.verify(&Options { against: Some(f.gguf()), ..full() });
    assert!(report.is_ok(), "{:?}", report.bad);
    assert!(report.slices > 0);
    // The other way round, too.
    let report = verify(&f.gguf(), &Options { against: Some(f.side()), ..full() }, &mut |_| ()).unwrap();
    assert!(report.is_ok(), "{:?}", report.bad);
}

#[test]
fn another_model_is_not_this_one() {
    let f = fixture(Layout::LayerMajor);
    let mut other = f.toy.clone();
    other.tensors.iter_mut().find(|spec| spec.name == "blk.1.ffn_up_exps.weight").unwrap().ty =
        GgmlType::Q2_K;
    other
        .tensors
        .retain(|spec| spec.name != "blk.3.ffn_gate_exps.weight" && spec.name != "blk.0.attn_norm.weight");
    let path = f.dir.path().join("other.gguf");
    other.write(&path);
    let report = f.verify(&Options { against: Some(path), ..full() });
    let found: Vec<(&str, bool)> = report
        .bad
        .iter()
        .map(|bad| (bad.tensor.as_str(), matches!(bad.problem, Problem::Geometry { .. })))
        .collect();
    assert_eq!(
        found,
        [
            ("blk.0.attn_norm.weight", true),
            ("blk.1.ffn_up_exps.weight", true),
            ("blk.3.ffn_gate_exps.weight", true)
        ]
    );
    let partial = f.dir.path().join("partial");
    let src = Checkpoint::open(&f.gguf()).unwrap();
    let options = extract::Options { layers: Some(vec![1]), ..extract::Options::default() };
    extract(&src, &partial, &options, &mut |_| ()).unwrap();
    let report = verify(&partial, &Options { against: Some(f.gguf()), ..full() }, &mut |_| ()).unwrap();
    assert!(report.is_ok(), "{:?}", report.bad);
    assert!(report.notes.iter().any(|note| note.starts_with("6 expert tensors of ")), "{:?}", report.notes);
}

#[test]
fn an_entry_that_lost_its_place_in_the_manifest_is_missing() {
    let f = fixture(Layout::LayerMajor);
    let manifest = f.side().join("manifest.json");
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    value["entries"].as_array_mut().unwrap().remove(4);
    fs::write(&manifest, value.to_string()).unwrap();
    let report = f.verify(&full());
    let missing: Vec<&str> = report
        .bad
        .iter()
        .filter(|bad| bad.problem == Problem::Missing)
        .map(|bad| bad.tensor.as_str())
        .collect();
    assert!(missing.contains(&"blk.2.ffn_up_exps.weight"), "{:?}", report.bad);
}

#[test]
fn damaged_sums_are_an_error_of_their_own() {
    let f = fixture(Layout::LayerMajor);
    let path = f.side().join("manifest.sums.json");
    let good = fs::read_to_string(&path).unwrap();
    for bad in [
        "{".to_owned(),
        good.replace("\"blake3\"", "\"md5\""),
        good.replace("\"schema_version\": 1", "\"schema_version\": 2"),
        good.replacen("\"header\": \"", "\"header\": \"zz", 1),
    ] {
        assert_ne!(bad, good);
        fs::write(&path, bad).unwrap();
        let error = verify(&f.side(), &full(), &mut |_| ()).unwrap_err();
        assert!(matches!(error, Error::Sums { .. }), "{error}");
    }
}

#[test]
fn progress_reaches_the_end_and_a_stop_is_obeyed() {
    let f = fixture(Layout::LayerMajor);
    let mut last = (0, 0);
    let report = verify(&f.side(), &full(), &mut |p| last = (p.bytes_done, p.bytes_total)).unwrap();
    assert_eq!(last, (report.bytes, report.bytes));
    let stop = Some(Arc::new(AtomicBool::new(true)));
    let error = verify(&f.side(), &Options { stop, ..full() }, &mut |_| ()).unwrap_err();
    assert_eq!(error.class().exit_code(), 130);
}

#[test]
fn reports_serialize() {
    let f = fixture(Layout::LayerMajor);
    flip(Path::new(&f.side().join("layer_001.bin")), 0);
    let json = serde_json::to_value(f.verify(&full())).unwrap();
    assert_eq!(json["bad"][0]["family"], "ffn_gate_exps");
    assert_eq!(json["bad"][0]["problem"]["sum"]["got"].as_str().unwrap().len(), 64);
}
