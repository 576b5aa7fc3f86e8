//! Every way into a package, and the packages that do not belong together.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Spec, Toy, put, write_gguf};
use serde_json::{Value, json};
use slotbank_files::extract::{Options, extract};
use slotbank_files::manifest::Layout;
use slotbank_files::{Checkpoint, Class, Error, Family, GgmlType, Metadata, OpenOptions, Source};

/// Extracts the toy with its dense part: `DST/…` and `DST/dense/…`, which is convention (b).
fn extracted(folder: &Path) -> Toy {
    let toy = Toy::default();
    let source = tempfile::tempdir().unwrap();
    toy.write(&source.path().join("toy.gguf"));
    let src = Checkpoint::open(&source.path().join("toy.gguf")).unwrap();
    let options = Options { dense: true, ..Options::default() };
    extract(&src, folder, &options, &mut |_| ()).unwrap();
    toy
}

fn rename(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::rename(from, to).unwrap();
}

fn opens(toy: &Toy, entries: &[PathBuf]) {
    for entry in entries {
        let checkpoint =
            Checkpoint::open(entry).unwrap_or_else(|e| panic!("{}: {e} {:?}", entry.display(), e.hint()));
        assert!(matches!(checkpoint.source(), Source::Sidecar { layout: Layout::LayerMajor, .. }));
        assert_eq!(checkpoint.gguf_files().len(), 1, "{}", entry.display());
        toy.check(&checkpoint);
    }
}

#[test]
fn convention_b_from_every_entry_point() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("GLM-sidecar");
    let toy = extracted(&root);
    opens(
        &toy,
        &[
            root.clone(),
            root.join("manifest.json"),
            root.join("dense"),
            root.join("dense/model-dense.gguf"),
            root.join("dense/flashmoe-package.json"),
        ],
    );
}

#[test]
fn convention_a_from_every_entry_point() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("pkg");
    let toy = extracted(&root.join("sidecar"));
    for name in ["model-dense.gguf", "flashmoe-package.json"] {
        rename(&root.join("sidecar/dense").join(name), &root.join(name));
    }
    // As the fork writes it, with the author's absolute path.
    let package = root.join("flashmoe-package.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&package).unwrap()).unwrap();
    value["sidecar"]["path"] = json!("/out/GLM-5.2-sidecar");
    fs::write(&package, value.to_string()).unwrap();
    opens(
        &toy,
        &[
            root.clone(),
            root.join("sidecar"),
            root.join("sidecar/manifest.json"),
            root.join("model-dense.gguf"),
            package,
        ],
    );
}

#[test]
fn convention_c_from_every_entry_point() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("pkg");
    let toy = extracted(&root.join("sidecar"));
    rename(&root.join("sidecar/dense/model-dense.gguf"), &root.join("dense/model-dense.gguf"));
    fs::remove_dir_all(root.join("sidecar/dense")).unwrap();
    let package = json!({"package_kind": "flashmoe_ssd", "arch": "glm-dsa", "dense": "dense/model-dense.gguf", "sidecar": "sidecar"});
    fs::write(root.join("flashmoe-package.json"), package.to_string()).unwrap();
    opens(
        &toy,
        &[
            root.clone(),
            root.join("sidecar"),
            root.join("sidecar/manifest.json"),
            root.join("dense"),
            root.join("dense/model-dense.gguf"),
            root.join("flashmoe-package.json"),
        ],
    );
}

#[test]
fn declared_names_are_followed_inside_the_package_only() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("pkg");
    let toy = extracted(&root.join("experts-here"));
    rename(&root.join("experts-here/dense/model-dense.gguf"), &root.join("core/weights.gguf"));
    fs::remove_dir_all(root.join("experts-here/dense")).unwrap();
    let mut package =
        json!({"package_kind": "flashmoe_ssd", "dense": "core/weights.gguf", "sidecar": "experts-here"});
    let path = root.join("flashmoe-package.json");
    fs::write(&path, package.to_string()).unwrap();
    opens(&toy, std::slice::from_ref(&path));
    package["sidecar"] = json!("../pkg/experts-here");
    fs::write(&path, package.to_string()).unwrap();
    let error = Checkpoint::open(&path).unwrap_err();
    assert!(matches!(error, Error::Incomplete { .. }), "{error}");
}

#[test]
fn a_sidecar_can_be_named() {
    let dir = tempfile::tempdir().unwrap();
    let toy = extracted(&dir.path().join("a-sidecar"));
    let dense = dir.path().join("elsewhere/model.gguf");
    rename(&dir.path().join("a-sidecar/dense/model-dense.gguf"), &dense);
    let error = Checkpoint::open(&dense).unwrap_err();
    assert_eq!(error.class(), Class::BadFile);
    assert!(error.to_string().contains("the routed experts are missing"), "{error}");
    assert!(error.hint().unwrap().contains("--sidecar"), "{:?}", error.hint());
    for sidecar in [dir.path().join("a-sidecar"), dir.path().join("a-sidecar/manifest.json")] {
        let options = OpenOptions { sidecar: Some(sidecar), ..OpenOptions::default() };
        toy.check(&Checkpoint::open_with(&dense, &options).unwrap());
    }
    let options = OpenOptions { sidecar: Some(dir.path().join("elsewhere")), ..OpenOptions::default() };
    let error = Checkpoint::open_with(&dense, &options).unwrap_err().to_string();
    assert!(error.contains("no manifest.json in it"), "{error}");
}

#[test]
fn a_sidecar_without_its_dense_part_opens_only_for_looking() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("sidecar-only");
    extracted(&root);
    fs::remove_dir_all(root.join("dense")).unwrap();
    let error = Checkpoint::open(&root).unwrap_err();
    assert!(error.to_string().contains("a sidecar without the dense part"), "{error}");
    assert!(error.hint().unwrap().contains("model-dense.gguf"), "{:?}", error.hint());
    let options = OpenOptions { allow_incomplete: true, ..OpenOptions::default() };
    let checkpoint = Checkpoint::open_with(&root, &options).unwrap();
    assert_eq!(checkpoint.architecture(), "glm-dsa");
    assert_eq!(checkpoint.metadata().u32("glm-dsa.expert_used_count").unwrap(), Some(2));
    assert_eq!(checkpoint.experts().len(), 9);
}

#[test]
fn a_partial_sidecar_is_refused_unless_only_the_prediction_layer_is_absent() {
    let dir = tempfile::tempdir().unwrap();
    let toy = Toy::default();
    let whole = dir.path().join("toy.gguf");
    toy.write(&whole);
    let src = Checkpoint::open(&whole).unwrap();
    let dense = dir.path().join("dense.gguf");
    toy.write_dense(&dense);
    let open = |layers: &[u32], name: &str| {
        let out = dir.path().join(name);
        let options = Options { layers: Some(layers.to_vec()), ..Options::default() };
        extract(&src, &out, &options, &mut |_| ()).unwrap();
        Checkpoint::open_with(&dense, &OpenOptions { sidecar: Some(out), ..OpenOptions::default() })
    };
    open(&[1, 2], "without-mtp").unwrap();
    let error = open(&[1, 3], "without-2").unwrap_err();
    assert!(
        error.to_string().contains("3 expert tensors are missing, the first is blk.2.ffn_gate_exps.weight"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("partial"));
}

#[test]
fn a_sidecar_wins_over_the_experts_of_a_whole_gguf() {
    let dir = tempfile::tempdir().unwrap();
    let toy = Toy::default();
    let whole = dir.path().join("models/toy.gguf");
    fs::create_dir_all(whole.parent().unwrap()).unwrap();
    toy.write(&whole);
    let src = Checkpoint::open(&whole).unwrap();
    let sidecar = dir.path().join("side");
    let options = Options { layers: Some(vec![2]), ..Options::default() };
    extract(&src, &sidecar, &options, &mut |_| ()).unwrap();
    let options = OpenOptions { sidecar: Some(sidecar.clone()), ..OpenOptions::default() };
    let checkpoint = Checkpoint::open_with(&whole, &options).unwrap();
    toy.check(&checkpoint);
    let file = |layer| &checkpoint.files()[checkpoint.expert(layer, Family::Up).unwrap().file.index()];
    assert_eq!(*file(1), whole);
    assert_eq!(*file(2), sidecar.join("layer_002.bin"));
    assert_eq!(
        checkpoint.notes(),
        ["3 expert tensors come from the sidecar instead of the GGUF, 6 stay with the GGUF"]
    );
    // A manifest that merely lies beside a whole model is not asked for.
    for name in ["manifest.json", "layer_002.bin"] {
        fs::copy(sidecar.join(name), whole.with_file_name(name)).unwrap();
    }
    assert_eq!(*Checkpoint::open(&whole).unwrap().source(), Source::Gguf);
}

#[test]
fn a_sidecar_of_another_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("pkg");
    let toy = extracted(&root);
    let dense = root.join("dense/model-dense.gguf");
    let refuse = |key: &str, value: slotbank_files::Value| {
        let mut other = toy.clone();
        other.metadata.insert(key, value);
        other.write_dense(&dense);
        Checkpoint::open(&root).unwrap_err()
    };
    for (key, value, text) in [
        ("general.architecture", "deepseek2".into(), "it is for `glm-dsa`, the model is `deepseek2`"),
        ("glm-dsa.expert_count", 8u32.into(), "has expert_count 5, the model has 8"),
        ("glm-dsa.embedding_length", 512u32.into(), "has embedding_length 256, the model has 512"),
        (
            "glm-dsa.expert_feed_forward_length",
            128u32.into(),
            "has expert_feed_forward_length 256, the model has 128",
        ),
    ] {
        let error = refuse(key, value);
        assert!(matches!(error, Error::WrongSidecar { .. }), "{error}");
        assert!(error.to_string().starts_with("wrong sidecar: "), "{error}");
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(error.class(), Class::BadFile);
    }
}

#[test]
fn folders_with_no_or_several_models_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("no model in it"), "{error}");
    put(&dir.path().join("model.safetensors"), b"x");
    assert!(
        Checkpoint::open(dir.path()).unwrap_err().to_string().contains("safetensors, which are not read yet")
    );
    let toy = Toy::default();
    toy.write(&dir.path().join("one.gguf"));
    toy.check(&Checkpoint::open(dir.path()).unwrap());
    put(&dir.path().join("mmproj-F16.gguf"), b"x");
    toy.check(&Checkpoint::open(dir.path()).unwrap());
    toy.write(&dir.path().join("two.gguf"));
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert_eq!(error.class(), Class::Usage);
    assert!(error.to_string().contains("several models: one.gguf, two.gguf"), "{error}");
    assert!(matches!(Checkpoint::open(&dir.path().join("none")).unwrap_err(), Error::NotFound { .. }));
}

#[test]
fn a_manifest_of_something_else_is_nobodys_sidecar() {
    let dir = tempfile::tempdir().unwrap();
    let toy = Toy::default();
    toy.write(&dir.path().join("toy.gguf"));
    put(&dir.path().join("manifest.json"), br#"{"name": "web app", "icons": []}"#);
    toy.check(&Checkpoint::open(dir.path()).unwrap());
    // One that should have been a sidecar's is reported.
    put(&dir.path().join("manifest.json"), b"version https://git-lfs.github.com/spec/v1\n");
    let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("manifest.json is a Git LFS pointer"), "{error}");
    put(&dir.path().join("manifest.json"), br#"{"sidecar_kind": "flashmoe_gguf"}"#);
    let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("the key `entries` is missing"), "{error}");
}

#[test]
fn a_folder_with_one_split_set_is_that_set() {
    let dir = tempfile::tempdir().unwrap();
    let toy = Toy::default();
    toy.write_split(dir.path(), 3);
    toy.check(&Checkpoint::open(dir.path()).unwrap());
}

#[test]
fn a_fused_family_is_an_expert_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fused.gguf");
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "gemma4");
    metadata.insert("gemma4.expert_count", 3u32);
    metadata.insert("gemma4.embedding_length", 32u32);
    metadata.insert("gemma4.expert_feed_forward_length", 64u32);
    let specs = [
        Spec::new("blk.0.ffn_gate_inp.weight", GgmlType::F32, &[32, 3]),
        Spec::new("blk.0.ffn_gate_up_exps.weight", GgmlType::Q8_0, &[32, 128, 3]),
        Spec::new("blk.0.ffn_down_exps.weight", GgmlType::Q8_0, &[64, 32, 3]),
        Spec::new("blk.0.ffn_down_exps.scale", GgmlType::F32, &[3]),
    ];
    write_gguf(&path, &metadata, &specs);
    let toy = Toy { metadata, tensors: specs.to_vec() };
    let src = Checkpoint::open(&path).unwrap();
    toy.check(&src);
    let out = dir.path().join("out");
    extract(&src, &out, &Options { dense: true, ..Options::default() }, &mut |_| ()).unwrap();
    let again = Checkpoint::open(&out).unwrap();
    toy.check(&again);
    assert!(again.tensor("blk.0.ffn_down_exps.scale").is_some(), "scales stay dense");
}

/// Types differ by layer and family, as in the published GLM-5.2 sidecar. Which layers have which is not published; this
/// mix gives exactly its number of bytes.
fn glm_type(layer: u32, family: Family) -> GgmlType {
    match (layer, family) {
        (69..=78, Family::Down) => GgmlType::Q2_K,
        (_, Family::Down) => GgmlType::IQ3_XXS,
        (3..=57, _) => GgmlType::IQ2_XXS,
        _ => GgmlType::IQ1_M,
    }
}

/// Manifest and sparse bins with the structure of the published package: 228 entries, layers 3 to 78, an author's paths.
fn glm_twin(root: &Path, embd: u64, ff: u64, experts: u64) -> std::io::Result<u64> {
    let mut entries = Vec::new();
    let mut total = 0;
    for layer in 3u32..=78 {
        let mut at = 0u64;
        for family in [Family::Gate, Family::Up, Family::Down] {
            let ty = glm_type(layer, family);
            let (n_in, n_out) = if family == Family::Down { (ff, embd) } else { (embd, ff) };
            let bytes = ty.tensor_bytes(&[n_in, n_out]).unwrap();
            entries.push(json!({
                "layer": layer, "tensor_family": family.name(), "tensor_name": family.tensor_name(layer),
                "original_gguf_tensor_name": family.tensor_name(layer), "expert_id": null, "quant_type": ty.name(),
                "block_size": 256, "exact_byte_length": bytes * experts,
                "source_shard": "/Volumes/T7/models/GLM-5.2-UD-IQ1_M-00002-of-00005.gguf", "source_shard_index": 1,
                "source_offset": 9_123_456_000_u64 + at, "shape": [n_in, n_out, experts], "bytes_per_expert": bytes,
                "quant_tier": null, "projection_quant_kind": null, "alternate_bank_offsets": null,
                "dynamic_quant_policy_tag": null, "repacked_file": format!("layer_{layer:03}.bin"), "repacked_offset": at
            }));
            at += bytes * experts;
        }
        total += at;
        fs::File::create(root.join(format!("layer_{layer:03}.bin")))?.set_len(at)?;
    }
    let manifest = json!({
        "schema_version": 1, "sidecar_kind": "flashmoe_gguf", "layout": "layer_major_whole_tensor",
        "generated_at": "2026-07-01T12:00:00.000000+00:00", "include_shared": false,
        "filters": {"layers": null, "families": null},
        "source": {"model_files": ["/Volumes/T7/models/GLM-5.2-UD-IQ1_M-00001-of-00005.gguf"]},
        "model": {"arch": "glm-dsa", "expert_count": experts, "expert_used_count": 8, "leading_dense_block_count": 3,
                  "sidecar_layout": "layer-major",
                  "gguf_metadata": {"glm-dsa.context_length": 1_048_576, "glm-dsa.attention.indexer.top_k": 2048}},
        "entries": entries
    });
    fs::write(root.join("manifest.json"), serde_json::to_string_pretty(&manifest).unwrap())?;
    Ok(total)
}

fn glm_dense(path: &Path, embd: u64, ff: u64, experts: u64) {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "glm-dsa");
    for (key, value) in [
        ("block_count", 79),
        ("nextn_predict_layers", 1),
        ("context_length", 1_048_576),
        ("embedding_length", embd),
        ("expert_feed_forward_length", ff),
        ("expert_count", experts),
        ("expert_used_count", 8),
        ("leading_dense_block_count", 3),
    ] {
        metadata.insert(format!("glm-dsa.{key}"), u32::try_from(value).unwrap());
    }
    // Layer 78 predicts further tokens; its dense part is in the published file, too.
    let specs: Vec<Spec> = (3..=78)
        .map(|layer| Spec::new(format!("blk.{layer}.ffn_gate_inp.weight"), GgmlType::F32, &[4]))
        .chain([Spec::new("blk.78.nextn.eh_proj.weight", GgmlType::F32, &[4])])
        .collect();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    write_gguf(path, &metadata, &specs);
}

#[test]
fn a_twin_of_the_published_sidecar_opens_unmodified() {
    let dir = tempfile::tempdir().unwrap();
    glm_twin(dir.path(), 256, 256, 8).unwrap();
    glm_dense(&dir.path().join("dense/model-dense.gguf"), 256, 256, 8);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.experts().len(), 228);
    assert_eq!(checkpoint.expert_layers().collect::<Vec<_>>(), (3..=78).collect::<Vec<_>>());
    assert!(checkpoint.is_mtp_layer(78) && !checkpoint.is_mtp_layer(77));
    assert_eq!(checkpoint.expert(57, Family::Gate).unwrap().ty, GgmlType::IQ2_XXS);
    assert_eq!(checkpoint.expert(58, Family::Gate).unwrap().ty, GgmlType::IQ1_M);
    assert_eq!(checkpoint.expert(78, Family::Down).unwrap().ty, GgmlType::Q2_K);
}

#[test]
fn real_geometry_opens_in_no_time() {
    let dir = tempfile::tempdir().unwrap();
    let total = match glm_twin(dir.path(), 6144, 2048, 256) {
        Ok(total) => total,
        Err(e) => {
            // Not every filesystem has sparse files of this length; then there is nothing to measure.
            assert!(e.raw_os_error().is_some(), "{e}");
            return;
        }
    };
    assert_eq!(total, 212_902_871_040, "the published number of bytes");
    glm_dense(&dir.path().join("dense/model-dense.gguf"), 6144, 2048, 256);
    let start = Instant::now();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(checkpoint.experts().len(), 228);
    let routed: u64 = checkpoint.experts().iter().map(|tensor| tensor.total_bytes()).sum();
    assert_eq!(routed, total);
    let last = checkpoint.expert(78, Family::Down).unwrap();
    assert_eq!(
        checkpoint.read(&last.extent(255)).unwrap(),
        vec![0; usize::try_from(last.expert_bytes).unwrap()]
    );
}

/// Further copies are compared with the first in all that can be seen without reading experts.
#[test]
fn copies_of_a_sidecar_are_compared_when_opened() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second] = ["a", "b"].map(|name| dir.path().join(name));
    extracted(&first);
    extracted(&second);
    let open = |copies: &[&Path]| {
        let copies = copies.iter().map(|path| path.to_path_buf()).collect();
        Checkpoint::open_with(&first, &OpenOptions { copies, ..OpenOptions::default() })
    };
    let checkpoint = open(&[&second]).unwrap();
    let [copy] = checkpoint.copies() else { panic!("one copy") };
    assert_eq!(copy.len(), checkpoint.files().len());
    for (here, there) in checkpoint.files().iter().zip(copy) {
        let is_gguf = here.extension().is_some_and(|e| e == "gguf");
        assert_eq!(here == there, is_gguf, "{}", there.display());
        assert_eq!(fs::read(here).unwrap(), fs::read(there).unwrap());
    }
    for twice in [&[first.as_path()][..], &[&second, &second]] {
        let error = open(twice).unwrap_err();
        assert!(error.class() == Class::Usage && error.to_string().contains("twice"), "{error}");
    }
    let refused = |what: &str| {
        let error = open(&[&second]).unwrap_err();
        assert!(matches!(&error, Error::CopyDiffers { why, .. } if why.contains(what)), "{error}");
        assert!(error.hint().is_some() && error.class() == Class::BadFile);
    };
    // Longer by a byte: still a sound sidecar, but no copy.
    let bin = fs::read_dir(&second).unwrap().map(|item| item.unwrap().path());
    let bin = bin.filter(|path| path.extension().is_some_and(|e| e == "bin")).min().unwrap();
    let mut bytes = fs::read(&bin).unwrap();
    bytes.push(0);
    fs::write(&bin, &bytes).unwrap();
    refused("bytes in place of");
    bytes.pop();
    fs::write(&bin, &bytes).unwrap();
    open(&[&second]).unwrap();
    let manifest = second.join("manifest.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    json["generated_at"] = json!("another day");
    put(&manifest, &serde_json::to_vec(&json).unwrap());
    open(&[&second]).unwrap();
    let sums = second.join("manifest.sums.json");
    let recorded = fs::read_to_string(&sums).unwrap();
    let mut other: Value = serde_json::from_str(&recorded).unwrap();
    let lists = other["experts"].as_object_mut().unwrap();
    lists.values_mut().next().unwrap()[0] = json!("0".repeat(64));
    put(&sums, &serde_json::to_vec(&other).unwrap());
    refused("recorded sums");
    put(&sums, recorded.as_bytes());
    json["entries"].as_array_mut().unwrap().swap(0, 1);
    put(&manifest, &serde_json::to_vec(&json).unwrap());
    refused("is another one");
    json["entries"].as_array_mut().unwrap().pop();
    put(&manifest, &serde_json::to_vec(&json).unwrap());
    refused("entries, not");
    fs::remove_file(&bin).unwrap();
    assert!(open(&[&second]).is_err());
    let whole = Checkpoint::open_with(
        &first.join("dense/model-dense.gguf"),
        &OpenOptions { copies: vec![second.clone()], allow_incomplete: true, ..OpenOptions::default() },
    );
    assert!(whole.is_err(), "a copy that lacks a bin is no copy");
}
