//! Damaged and malicious files: always an error, never a panic, and memory in proportion to the file.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use common::{Spec, Toy, write_gguf};
use proptest::prelude::*;
use slotbank_files::manifest::Manifest;
use slotbank_files::{Checkpoint, GgmlType, Metadata, gguf};

/// Counts what each thread has allocated and not yet freed.
struct Counting;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.with(|live| {
            live.set(live.get().saturating_add(layout.size()));
            live.get()
        });
        PEAK.with(|peak| peak.set(peak.get().max(live)));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.with(|live| live.set(live.get().saturating_sub(layout.size())));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `f` and returns the most memory that it had at once.
fn peak_of<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.with(Cell::get);
    PEAK.with(|peak| peak.set(before));
    let result = f();
    (result, PEAK.with(Cell::get) - before)
}

/// Read buffers and some room; the files here are a few kilobytes.
const MEMORY_MAX: usize = 1 << 20;

/// The file and the length of its header, made once: writing syncs, and there are thousands of cases.
fn small_gguf() -> &'static (Vec<u8>, usize) {
    static SMALL: OnceLock<(Vec<u8>, usize)> = OnceLock::new();
    SMALL.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let bytes = write_small_gguf(&path);
        (bytes, usize::try_from(gguf::read(&path).unwrap().data_offset).unwrap())
    })
}

/// Writes a new file each time: truncating an old one makes some filesystems flush it on close, thousands of times here.
fn put(path: &Path, bytes: &[u8]) {
    drop(fs::remove_file(path));
    fs::write(path, bytes).unwrap();
}

fn write_small_gguf(path: &Path) -> Vec<u8> {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "toy");
    metadata.insert("toy.expert_count", 2u32);
    metadata.insert("tokenizer.ggml.tokens", vec!["a", "bc"]);
    metadata.insert("flags", vec![true, false]);
    metadata.insert("scores", vec![0.5f32, 1.0]);
    metadata.insert("split.count", 1u16);
    let specs = [
        Spec::new("token_embd.weight", GgmlType::F32, &[4, 2]),
        Spec::new("blk.0.ffn_gate_exps.weight", GgmlType::Q8_0, &[32, 2, 2]),
        Spec::new("blk.0.ffn_up_exps.weight", GgmlType::Q8_0, &[32, 2, 2]),
        Spec::new("blk.0.ffn_down_exps.weight", GgmlType::F16, &[2, 32, 2]),
    ];
    write_gguf(path, &metadata, &specs);
    fs::read(path).unwrap()
}

#[test]
fn a_file_cut_at_any_byte_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let bytes = write_small_gguf(&path);
    let last = gguf::read(&path).unwrap().tensors.last().map(|tensor| tensor.offset + tensor.len).unwrap();
    let cut = dir.path().join("cut.gguf");
    for len in 0..usize::try_from(last).unwrap() {
        put(&cut, &bytes[..len]);
        let (result, peak) = peak_of(|| Checkpoint::open(&cut));
        let error = result.err().unwrap_or_else(|| panic!("accepted at {len} of {last} bytes"));
        assert!(error.to_string().contains("cut.gguf"), "{error}");
        assert!(peak < MEMORY_MAX, "{peak} bytes at {len}");
    }
    // Padding after the last tensor may be missing: some writers leave it out.
    fs::write(&cut, &bytes[..usize::try_from(last).unwrap()]).unwrap();
    Checkpoint::open(&cut).unwrap();
}

#[test]
fn every_single_bit_flip_of_the_header_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let (bytes, header) = small_gguf();
    for at in 0..*header {
        for bit in 0..8 {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << bit;
            put(&path, &bad);
            let (result, peak) = peak_of(|| Checkpoint::open(&path));
            assert!(peak < MEMORY_MAX, "{peak} bytes with bit {bit} of byte {at} flipped");
            if let Ok(checkpoint) = result {
                check_extents(&checkpoint);
            }
        }
    }
}

/// Whatever was accepted must stay inside its files.
fn check_extents(checkpoint: &Checkpoint) {
    let sizes: Vec<u64> = checkpoint.files().iter().map(|path| fs::metadata(path).unwrap().len()).collect();
    for tensor in checkpoint.tensors() {
        assert!(tensor.extent.offset + tensor.extent.len <= sizes[tensor.extent.file.index()]);
    }
    for tensor in checkpoint.experts() {
        let extent = tensor.extent(u32::try_from(tensor.n_expert() - 1).unwrap());
        assert!(extent.offset + extent.len <= sizes[extent.file.index()]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_damage_never_panics(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let (mut bytes, header) = small_gguf().clone();
        for (at, value) in damage {
            bytes[at.index(header)] = value;
        }
        put(&path, &bytes);
        let (result, peak) = peak_of(|| Checkpoint::open(&path));
        prop_assert!(peak < MEMORY_MAX);
        if let Ok(checkpoint) = result {
            check_extents(&checkpoint);
        }
    }

    #[test]
    fn random_bytes_after_the_magic_never_panic(tail in prop::collection::vec(any::<u8>(), 0..600), version in 2u32..4) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.extend(tail);
        put(&path, &bytes);
        let (result, peak) = peak_of(|| gguf::read(&path));
        prop_assert!(peak < MEMORY_MAX);
        // Only an empty model could be valid, and that needs sixteen zeros in the right place.
        if let Ok(header) = result {
            prop_assert!(header.tensors.is_empty());
        }
    }

    #[test]
    fn damaged_manifests_never_panic(damage in prop::collection::vec((any::<prop::sample::Index>(), 32u8..127), 1..8)) {
        let mut bytes = MANIFEST.as_bytes().to_vec();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let (result, peak) = peak_of(|| Manifest::parse(&bytes, Path::new("manifest.json"), false));
        prop_assert!(peak < MEMORY_MAX);
        if let Ok(manifest) = result {
            for entry in &manifest.entries {
                prop_assert!(entry.end() >= entry.offset + entry.expert_bytes);
            }
        }
    }
}

const MANIFEST: &str = r#"{"schema_version":1,"layout":"layer_major_expert","model":{"arch":"toy","expert_count":4},"entries":[
{"layer":3,"tensor_family":"ffn_gate_exps","tensor_name":"blk.3.ffn_gate_exps.weight","quant_type":"Q8_0","shape":[32,2,4],
"exact_byte_length":272,"bytes_per_expert":68,"repacked_file":"layer_003.bin","repacked_offset":0,"expert_stride":4096},
{"layer":3,"tensor_family":"ffn_up_exps","tensor_name":"blk.3.ffn_up_exps.weight","quant_type":"Q8_0","shape":[32,2,4],
"exact_byte_length":272,"bytes_per_expert":68,"repacked_file":"layer_003.bin","repacked_offset":68,"expert_stride":4096}]}"#;

#[test]
fn the_manifest_above_is_valid_and_deep_nesting_is_not() {
    assert_eq!(Manifest::parse(MANIFEST.as_bytes(), Path::new("m"), false).unwrap().entries.len(), 2);
    let bomb = format!("{{\"entries\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000));
    let (result, peak) = peak_of(|| Manifest::parse(bomb.as_bytes(), Path::new("m"), false));
    assert!(result.unwrap_err().to_string().contains("recursion limit"));
    assert!(peak < MEMORY_MAX);
}

#[test]
fn a_toy_is_opened_within_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("toy.gguf");
    Toy::default().write(&path);
    let (result, peak) = peak_of(|| Checkpoint::open(&path).unwrap());
    check_extents(&result);
    assert!(peak < MEMORY_MAX, "{peak}");
}
