//! GGUF files that are right, and the many ways in which one can be wrong.

mod common;

use std::fs;
use std::path::Path;

use common::{Spec, Toy, bytes_of, write_gguf};
use slotbank_files::gguf::{self, Metadata, Writer};
use slotbank_files::{Array, Checkpoint, Class, Error, GgmlType, Source, Value};

/// Metadata with every value type.
fn all_values() -> Metadata {
    let mut m = Metadata::new();
    m.insert("general.architecture", "toy");
    m.insert("u8", 250u8);
    m.insert("i8", -5i8);
    m.insert("u16", 65_000u16);
    m.insert("i16", -30_000i16);
    m.insert("u32", u32::MAX);
    m.insert("i32", i32::MIN);
    m.insert("u64", u64::MAX);
    m.insert("i64", i64::MIN);
    m.insert("f32", 1.5e-7f32);
    m.insert("f64", std::f64::consts::PI);
    m.insert("bool", true);
    m.insert("str", "tokens: ä 漢 🦀");
    m.insert("empty", "");
    m.insert("a.u8", vec![1u8, 2]);
    m.insert("a.i8", vec![-1i8]);
    m.insert("a.u16", vec![1u16]);
    m.insert("a.i16", vec![-1i16]);
    m.insert("a.u32", vec![1u32, u32::MAX]);
    m.insert("a.i32", vec![-1i32]);
    m.insert("a.u64", vec![u64::MAX]);
    m.insert("a.i64", vec![i64::MIN]);
    m.insert("a.f32", vec![0.25f32, -0.0]);
    m.insert("a.f64", vec![1e300f64]);
    m.insert("a.bool", vec![true, false, true]);
    m.insert("a.str", vec!["", "x", "ä"]);
    m.insert("a.none", Value::Array(Array::U32(vec![])));
    m
}

#[test]
fn everything_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let specs = [
        Spec::new("scalar-ish", GgmlType::F32, &[1]),
        Spec::new("odd", GgmlType::I8, &[33]),
        Spec::new("matrix", GgmlType::Q4_0, &[64, 3]),
        Spec::new("cube", GgmlType::Q2_K, &[256, 2, 3]),
        Spec::new("four", GgmlType::F16, &[2, 3, 4, 5]),
    ];
    write_gguf(&path, &all_values(), &specs);
    let header = gguf::read(&path).unwrap();
    assert_eq!(header.metadata, all_values());
    assert_eq!((header.version, header.alignment, header.data_offset % 32), (3, 32, 0));
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(*checkpoint.source(), Source::Gguf);
    for (spec, info) in specs.iter().zip(&header.tensors) {
        assert_eq!((&info.name, info.ty, &info.shape), (&spec.name, spec.ty, &spec.shape));
        assert_eq!(info.offset % 32, 0);
        let tensor = checkpoint.tensor(&spec.name).unwrap();
        assert_eq!(checkpoint.read(&tensor.extent).unwrap(), spec.bytes(), "{}", spec.name);
    }
}

#[test]
fn alignment_of_the_metadata_is_obeyed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut metadata = all_values();
    metadata.insert("general.alignment", 4096u32);
    write_gguf(&path, &metadata, &[Spec::new("a", GgmlType::F32, &[3]), Spec::new("b", GgmlType::F32, &[3])]);
    let header = gguf::read(&path).unwrap();
    assert!(header.tensors.iter().all(|tensor| tensor.offset % 4096 == 0));
    let bad = {
        metadata.insert("general.alignment", 48u32);
        Writer::new(metadata).err().unwrap().to_string()
    };
    assert!(bad.contains("48"), "{bad}");
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let mut writer = Writer::new(Metadata::new()).unwrap();
    assert!(writer.tensor_f32("a", &[2], &[1.0, 2.0]).is_ok());
    for (name, ty, shape) in [
        ("a", GgmlType::F32, &[2][..]),
        ("b", GgmlType::Q4_0, &[33]),
        ("c", GgmlType::F32, &[]),
        ("d", GgmlType::F32, &[1, 0]),
        ("e", GgmlType::F32, &[1, 1, 1, 1, 1]),
    ] {
        let refused = writer.tensor_bytes(name, ty, shape, vec![]).map(drop).unwrap_err();
        assert_eq!(refused.class(), Class::Usage, "{name}");
    }
}

#[test]
fn a_payload_of_the_wrong_length_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    for len in [0usize, 7, 9] {
        let mut writer = Writer::new(all_values()).unwrap();
        writer.tensor_bytes("t", GgmlType::F32, &[2], vec![0; len]).unwrap();
        let error = writer.write_file(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("needs 8 bytes, its payload has {len}")), "{error}");
        assert_eq!(common::names(dir.path()), Vec::<String>::new());
    }
}

/// A header by hand, for what the writer refuses to write.
struct Raw(Vec<u8>);

impl Raw {
    fn new(version: u32, n_tensors: u64, n_kv: u64) -> Self {
        let mut raw = Raw(b"GGUF".to_vec());
        raw.u32(version);
        raw.u64(n_tensors);
        raw.u64(n_kv);
        raw
    }
    fn u32(&mut self, n: u32) -> &mut Self {
        self.0.extend_from_slice(&n.to_le_bytes());
        self
    }
    fn u64(&mut self, n: u64) -> &mut Self {
        self.0.extend_from_slice(&n.to_le_bytes());
        self
    }
    fn str(&mut self, s: &str) -> &mut Self {
        self.u64(s.len() as u64);
        self.0.extend_from_slice(s.as_bytes());
        self
    }
    fn tensor(&mut self, name: &str, shape: &[u64], ty: u32, offset: u64) -> &mut Self {
        self.str(name).u32(shape.len() as u32);
        for &n in shape {
            self.u64(n);
        }
        self.u32(ty).u64(offset)
    }
    /// Pads to the data section and appends `data` zeros.
    fn data(&mut self, data: usize) -> &mut Self {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + data, 0);
        self
    }
    fn error(&self) -> Error {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bad.gguf");
        fs::write(&path, &self.0).unwrap();
        gguf::read(&path).map(|header| panic!("accepted: {header:?}")).unwrap_err()
    }
    fn refuses(&self, class: Class, text: &str) {
        let error = self.error();
        assert!(error.to_string().contains(text), "{error} does not say `{text}`");
        assert_eq!(error.class(), class, "{error}");
        assert!(error.to_string().contains("bad.gguf"), "{error}");
        assert!(error.hint().is_some(), "{error}");
    }
}

#[test]
fn versions_and_byte_orders_are_named() {
    Raw::new(1, 0, 0).refuses(Class::Unsupported, "gguf version 1");
    Raw::new(4, 0, 0).refuses(Class::Unsupported, "gguf version 4");
    Raw::new(3u32.swap_bytes(), 0, 0).refuses(Class::Unsupported, "big-endian gguf (version 3)");
    Raw::new(2u32.swap_bytes(), 0, 0).refuses(Class::Unsupported, "big-endian gguf (version 2)");
}

#[test]
fn version_2_is_read_like_version_3() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v2.gguf");
    let mut raw = Raw::new(2, 1, 1);
    raw.str("general.architecture").u32(8).str("toy").tensor("t", &[4], 0, 0).data(16);
    fs::write(&path, &raw.0).unwrap();
    let header = gguf::read(&path).unwrap();
    assert_eq!((header.version, header.tensors[0].len), (2, 16));
}

#[test]
fn counts_and_lengths_are_bounded_by_the_file() {
    let huge = u64::MAX;
    Raw::new(3, huge, 0).refuses(Class::BadFile, "tensor count");
    Raw::new(3, 0, huge).refuses(Class::BadFile, "metadata count");
    Raw::new(3, 0, 1).u64(huge).data(64).refuses(Class::BadFile, "metadata key");
    Raw::new(3, 0, 1).u64(1 << 40).data(64).refuses(Class::BadFile, "metadata key");
    Raw::new(3, 0, 1).str("k").u32(8).u64(huge).data(64).refuses(Class::BadFile, "k: ");
    for element in 0..=12 {
        Raw::new(3, 0, 1).str("k").u32(9).u32(element).u64(huge).data(64).refuses(Class::BadFile, "k: ");
    }
    Raw::new(3, 0, 1).str(&"k".repeat(2000)).u32(0).data(64).refuses(Class::BadFile, "at most 1024");
    Raw::new(3, 1, 0).str(&"t".repeat(2000)).data(64).refuses(Class::BadFile, "at most 1024");
}

#[test]
fn nested_arrays_cannot_recurse() {
    let mut raw = Raw::new(3, 0, 1);
    raw.str("k").u32(9);
    for _ in 0..100_000 {
        raw.u32(9).u64(1);
    }
    raw.refuses(Class::BadFile, "nested arrays");
}

#[test]
fn unknown_value_types_and_bad_bools_and_text() {
    Raw::new(3, 0, 1).str("k").u32(13).data(64).refuses(Class::BadFile, "unknown value type 13");
    Raw::new(3, 0, 1)
        .str("k")
        .u32(9)
        .u32(77)
        .u64(0)
        .data(64)
        .refuses(Class::BadFile, "unknown element type 77");
    let mut raw = Raw::new(3, 0, 1);
    raw.str("k").u32(7).0.push(2);
    raw.data(64).refuses(Class::BadFile, "a bool is 0 or 1");
    let mut raw = Raw::new(3, 0, 1);
    raw.u64(2).0.extend([0xff, 0xfe]);
    raw.data(64).refuses(Class::BadFile, "utf-8");
}

#[test]
fn duplicates_are_rejected() {
    let mut raw = Raw::new(3, 0, 2);
    raw.str("k").u32(4).u32(1).str("k").u32(4).u32(1);
    raw.refuses(Class::BadFile, "`k`: the key appears twice");
    let mut raw = Raw::new(3, 2, 0);
    raw.tensor("t", &[8], 0, 0).tensor("t", &[8], 0, 32).data(64);
    let error = raw.error();
    assert!(matches!(error, Error::DuplicateTensor { .. }), "{error}");
}

#[test]
fn shapes_offsets_and_alignment_are_checked() {
    let one = |shape: &[u64], ty: u32, offset: u64| {
        let mut raw = Raw::new(3, 1, 0);
        raw.tensor("t", shape, ty, offset).data(256);
        raw
    };
    one(&[], 0, 0).refuses(Class::BadFile, "0 dimensions");
    one(&[1, 1, 1, 1, 1], 0, 0).refuses(Class::BadFile, "5 dimensions");
    one(&[4, 0], 0, 0).refuses(Class::BadFile, "empty dimension");
    one(&[33], 2, 0).refuses(Class::BadFile, "does not suit type Q4_0");
    one(&[u64::MAX, u64::MAX], 0, 0).refuses(Class::BadFile, "does not suit");
    one(&[4], 0, 7).refuses(Class::BadFile, "not a multiple of the alignment 32");
    one(&[4], 0, u64::MAX - 31).refuses(Class::BadFile, "overflows");
    let mut overlap = Raw::new(3, 2, 0);
    overlap.tensor("a", &[16], 0, 0).tensor("b", &[8], 0, 32).data(128);
    overlap.refuses(Class::BadFile, "overlap the next tensor");
    let mut same = Raw::new(3, 2, 0);
    same.tensor("a", &[8], 0, 0).tensor("b", &[8], 0, 0).data(128);
    same.refuses(Class::BadFile, "overlap");
    let mut alignment = Raw::new(3, 0, 1);
    alignment.str("general.alignment").u32(4).u32(0).data(32);
    alignment.refuses(Class::BadFile, "small power of two");
}

#[test]
fn truncation_says_how_many_bytes_are_missing() {
    let mut raw = Raw::new(3, 1, 0);
    raw.tensor("t", &[100], 0, 0).data(399);
    let (needs, has) = (raw.0.len() + 1, raw.0.len());
    raw.refuses(Class::BadFile, &format!("is truncated: tensor `t` needs {needs} bytes, the file has {has}"));
    assert_eq!(raw.error().hint().unwrap(), "download bad.gguf again; the other files can stay");
}

#[test]
fn foreign_types_are_named() {
    let typed = |ty: u32| {
        let mut raw = Raw::new(3, 1, 0);
        raw.tensor("t", &[256], ty, 0).data(1024);
        raw
    };
    typed(144).refuses(Class::Unsupported, "`t`: type 144 (IQ4_KS) needs ik_llama.cpp");
    typed(142).refuses(Class::Unsupported, "needs ik_llama.cpp");
    typed(4).refuses(Class::Unsupported, "type 4 (Q4_2) was removed from ggml");
    typed(38).refuses(Class::Unsupported, "was removed");
    typed(7777).refuses(Class::Unsupported, "unknown type 7777");
}

#[test]
fn a_number_with_two_meanings_is_resolved_by_the_room_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    for ty in [GgmlType::Q2_0, GgmlType::F8_E4M3_B128] {
        assert_eq!(ty.file_id(), 42);
        // Once between other tensors, once at the end of the file.
        let specs = [
            Spec::new("a", ty, &[256, 3]),
            Spec::new("b", GgmlType::F32, &[5]),
            Spec::new("c", ty, &[128, 7]),
        ];
        write_gguf(&path, &all_values(), &specs);
        let header = gguf::read(&path).unwrap();
        let types: Vec<GgmlType> = header.tensors.iter().map(|tensor| tensor.ty).collect();
        assert_eq!(types, [ty, GgmlType::F32, ty]);
    }
}

#[test]
fn files_of_other_kinds_are_recognised() {
    let dir = tempfile::tempdir().unwrap();
    for (content, what, hint) in [
        (&b""[..], "an empty file", "download"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
            "a Git LFS pointer",
            "git lfs pull",
        ),
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page", "download"),
        (b"\x40\0\0\0\0\0\0\0{\"__metadata__\":{}}", "a safetensors file", "convert"),
    ] {
        let path = dir.path().join("model.gguf");
        fs::write(&path, content).unwrap();
        let error = Checkpoint::open(&path).unwrap_err();
        assert!(error.to_string().ends_with(&format!("is {what}, not a gguf file")), "{error}");
        assert!(error.hint().unwrap().contains(hint), "{:?}", error.hint());
        assert_eq!(error.class(), Class::BadFile);
    }
    let error = Checkpoint::open(&dir.path().join("nothing.gguf")).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
}

#[test]
fn one_tensor_per_expert_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.gguf");
    write_gguf(&path, &all_values(), &[Spec::new("blk.0.ffn_gate.7.weight", GgmlType::F32, &[4, 4])]);
    let error = Checkpoint::open(&path).unwrap_err();
    assert_eq!(error.class(), Class::Unsupported);
    assert!(error.to_string().contains("one tensor per expert"), "{error}");
}

#[test]
fn experts_of_a_plain_gguf_are_read_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("toy.gguf");
    let toy = Toy::default();
    toy.write(&path);
    let checkpoint = Checkpoint::open(&path).unwrap();
    toy.check(&checkpoint);
    assert_eq!(checkpoint.architecture(), "glm-dsa");
    assert_eq!(checkpoint.expert_layers().collect::<Vec<_>>(), [1, 2, 3]);
    assert!(checkpoint.tensor("blk.1.ffn_gate_exps.weight").is_none(), "experts are not dense tensors");
    assert!(checkpoint.experts().windows(2).all(|w| (w[0].layer, w[0].family) < (w[1].layer, w[1].family)));
    assert!(checkpoint.is_mtp_layer(3) && !checkpoint.is_mtp_layer(2));
}

#[test]
fn a_split_set_opens_from_any_shard() {
    let dir = tempfile::tempdir().unwrap();
    let toy = Toy::default();
    let paths = toy.write_split(dir.path(), 4);
    assert_eq!(gguf::read(&paths[0]).unwrap().tensors.len(), 0, "the first shard is metadata only");
    for path in &paths {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!(*checkpoint.source(), Source::Split { shards: 4 });
        assert_eq!(checkpoint.files(), paths);
        assert_eq!(checkpoint.metadata().str("general.name").unwrap(), Some("toy"));
        toy.check(&checkpoint);
    }
}

fn split_error(break_it: impl Fn(&[std::path::PathBuf])) -> Error {
    let dir = tempfile::tempdir().unwrap();
    let paths = Toy::default().write_split(dir.path(), 3);
    break_it(&paths);
    Checkpoint::open(&paths[1]).unwrap_err()
}

#[test]
fn incomplete_and_mixed_split_sets_are_refused() {
    let error = split_error(|paths| fs::remove_file(&paths[2]).unwrap());
    assert!(error.to_string().starts_with("shard 3 of 3 is missing: "), "{error}");
    assert!(error.to_string().contains("toy-00003-of-00003.gguf"), "{error}");
    assert_eq!(error.class(), Class::BadFile);

    let error = split_error(|paths| {
        fs::copy(&paths[1], &paths[2]).unwrap();
    });
    assert!(error.to_string().contains("shard 3 of 3 is expected here, the header says 2 of 3"), "{error}");

    let error = split_error(|paths| {
        let len = fs::metadata(&paths[2]).unwrap().len();
        fs::OpenOptions::new().write(true).open(&paths[2]).unwrap().set_len(len - 64).unwrap();
    });
    assert!(matches!(error, Error::Truncated { .. }), "{error}");
    assert!(error.to_string().contains("toy-00003-of-00003.gguf"), "{error}");
    assert!(error.hint().unwrap().contains("toy-00003-of-00003.gguf"));

    let dir = tempfile::tempdir().unwrap();
    let paths = Toy::default().write_split(dir.path(), 3);
    let renamed = dir.path().join("renamed.gguf");
    fs::rename(&paths[0], &renamed).unwrap();
    let error = Checkpoint::open(&renamed).unwrap_err().to_string();
    assert!(error.contains("its name does not end in"), "{error}");
}

#[test]
fn shards_with_a_common_tensor_or_a_wrong_count_are_refused() {
    let write = |names: [&str; 2], total: i32| {
        let dir = tempfile::tempdir().unwrap();
        for (at, name) in names.into_iter().enumerate() {
            let mut metadata = Metadata::new();
            metadata.insert("general.architecture", "toy");
            metadata.insert("split.no", at as u16);
            metadata.insert("split.count", 2u16);
            metadata.insert("split.tensors.count", total);
            let path = dir.path().join(gguf::shard_name("m", at as u32 + 1, 2));
            write_gguf(&path, &metadata, &[Spec::new(name, GgmlType::F32, &[4])]);
        }
        Checkpoint::open(&dir.path().join(gguf::shard_name("m", 1, 2))).map(drop)
    };
    write(["a", "b"], 2).unwrap();
    assert!(matches!(write(["a", "a"], 2).unwrap_err(), Error::DuplicateTensor { .. }));
    let error = write(["a", "b"], 3).unwrap_err().to_string();
    assert!(error.contains("should have 3 tensors, its shards have 2"), "{error}");
}

#[test]
fn extents_are_read_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    write_gguf(&path, &all_values(), &[Spec::new("t", GgmlType::I8, &[1000])]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let mut extent = checkpoint.tensor("t").unwrap().extent;
    extent.offset += 10;
    extent.len = 5;
    assert_eq!(checkpoint.read(&extent).unwrap(), &bytes_of("t", 1000)[10..15]);
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(extent.offset).unwrap();
    assert!(matches!(checkpoint.read(&extent).unwrap_err(), Error::Truncated { .. }));
    assert_eq!(Path::new(&checkpoint.files()[0]), path);
}
