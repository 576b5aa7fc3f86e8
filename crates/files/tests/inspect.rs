//! Inspection: the numbers of a toy, computed here once more by hand.

mod common;

use common::{EMBD, EXPERTS, FF, Toy};
use slotbank_files::extract::{Options, extract};
use slotbank_files::inspect::{Inspection, inspect};
use slotbank_files::manifest::Layout;
use slotbank_files::{Checkpoint, Family, GgmlType, Metadata, OpenOptions, Value};

fn open(path: &std::path::Path) -> Checkpoint {
    Checkpoint::open_with(path, &OpenOptions { allow_incomplete: true, ..OpenOptions::default() }).unwrap()
}

fn inspected(toy: &Toy) -> Inspection {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("toy.gguf");
    toy.write(&path);
    inspect(&open(&path)).unwrap()
}

#[test]
fn a_toy_in_numbers() {
    let toy = Toy::default();
    let it = inspected(&toy);
    assert_eq!((it.architecture.as_str(), it.source, it.name.as_deref()), ("glm-dsa", "gguf", Some("toy")));
    assert_eq!((it.geometry.expert_count, it.geometry.expert_used_count), (Some(5), Some(2)));
    assert_eq!(it.geometry.expert_feed_forward_length, [256]);
    assert_eq!(it.geometry.vocabulary, Some(3));
    assert_eq!(it.mtp_layers, [3]);
    assert_eq!(it.missing, Vec::<String>::new());
    let tokenizer = it.tokenizer.unwrap();
    assert_eq!(
        (tokenizer.model.as_str(), tokenizer.pre.as_deref(), tokenizer.tokens),
        ("gpt2", Some("glm4"), Some(3))
    );
    assert!(it.chat_template);

    let matrix = EMBD * FF;
    assert_eq!(it.parameters.experts, 3 * 3 * matrix * EXPERTS);
    assert_eq!(it.parameters.total, it.parameters.dense + it.parameters.experts);
    let mtp_dense: u64 = toy
        .tensors
        .iter()
        .filter(|s| s.name.starts_with("blk.3.") && !s.is_expert())
        .map(|s| s.shape.iter().product::<u64>())
        .sum();
    assert_eq!(it.parameters.active, Some(it.parameters.dense - mtp_dense + 2 * 3 * matrix * 2));

    let experts = it.experts.unwrap();
    // Bytes of one 256 x 256 matrix.
    let size = |ty: GgmlType| ty.tensor_bytes(&[EMBD, FF]).unwrap();
    let one = size(GgmlType::IQ1_M) + size(GgmlType::IQ2_XXS) + size(GgmlType::IQ3_XXS);
    let two = 2 * size(GgmlType::Q2_K) + size(GgmlType::Q3_K);
    let three = 3 * size(GgmlType::IQ1_M);
    assert_eq!((experts.layout, experts.layers.as_slice()), ("in place", &[1, 2, 3][..]));
    assert_eq!((experts.expert_bytes.min, experts.expert_bytes.max), (three, two));
    assert_eq!(experts.expert_bytes.mean, (one + two + three) / 3);
    assert_eq!(experts.slot_bytes_all_layers, one + two, "the prediction layer has no slots");
    assert_eq!(experts.cold_bytes_per_token, Some(2 * (one + two)));
    assert_eq!(experts.bytes, EXPERTS * (one + two + three));
    let up = experts.families.iter().find(|line| line.family == Family::Up).unwrap();
    assert_eq!((up.tensors, up.types.len()), (3, 3));
    assert_eq!((up.expert_bytes.min, up.expert_bytes.max), (size(GgmlType::IQ1_M), size(GgmlType::Q2_K)));
    assert_eq!(experts.families.iter().map(|line| line.bytes).sum::<u64>(), experts.bytes);
    let dense_bytes: u64 =
        toy.tensors.iter().filter(|s| !s.is_expert()).map(|s| s.bytes().len() as u64).sum();
    assert_eq!(it.dense_bytes, dense_bytes);
    assert_eq!(it.dense.iter().map(|line| line.tensors).sum::<u64>() as usize, toy.tensors.len() - 9);
}

#[test]
fn alignment_is_counted_slice_by_slice() {
    let dir = tempfile::tempdir().unwrap();
    let toy = Toy::default();
    toy.write(&dir.path().join("toy.gguf"));
    let src = open(&dir.path().join("toy.gguf"));
    for layout in [Layout::LayerMajor, Layout::ExpertMajor] {
        let out = dir.path().join(layout.name());
        extract(&src, &out, &Options { layout, dense: true, ..Options::default() }, &mut |_| ()).unwrap();
        let checkpoint = Checkpoint::open(&out).unwrap();
        let mut aligned = 0u64;
        for tensor in checkpoint.experts() {
            for expert in 0..u32::try_from(tensor.n_expert()).unwrap() {
                let extent = tensor.extent(expert);
                aligned += u64::from(extent.offset % 4096 == 0 && extent.len % 4096 == 0);
            }
        }
        let experts = inspect(&checkpoint).unwrap().experts.unwrap();
        assert_eq!((experts.layout, experts.slices), (layout.name(), 45));
        assert_eq!((experts.aligned_share * 45.0).round() as u64, aligned);
    }
}

#[test]
fn what_is_missing_is_listed_completely() {
    let mut toy = Toy::default();
    let gone = [
        "blk.2.ffn_up_exps.weight",
        "blk.2.indexer.attn_k.weight",
        "blk.0.ffn_down.weight",
        "blk.1.exp_probs_b.bias",
        "output_norm.weight",
    ];
    toy.tensors.retain(|spec| !gone.contains(&spec.name.as_str()));
    let mut missing = inspected(&toy).missing;
    missing.sort();
    let mut expected = gone.to_vec();
    expected.sort_unstable();
    assert_eq!(missing, expected);
}

#[test]
fn without_a_list_of_types_full_layers_follow_the_context_length() {
    let mut toy = Toy::default();
    toy.metadata.retain(|key| !key.ends_with("indexer.types"));
    let missing = inspected(&toy).missing;
    assert_eq!(missing.len(), 5, "every layer is full, but layer 1 has no indexer: {missing:?}");
    assert!(missing.iter().all(|name| name.starts_with("blk.1.indexer.")));
    toy.metadata.insert("glm-dsa.context_length", 1_048_576u32);
    assert_eq!(inspected(&toy).missing.len(), 5, "layers 0 and 1 are full in GLM-5.2");
}

/// Such files run with dense attention.
#[test]
fn a_file_without_any_indexer_lacks_nothing() {
    let mut toy = Toy::default();
    // The block of next-token prediction keeps its own, which nobody runs.
    toy.tensors.retain(|spec| !spec.name.contains(".indexer.") || spec.name.starts_with("blk.3."));
    assert_eq!(inspected(&toy).missing, [""; 0]);
}

#[test]
fn deepseek2_has_either_form_of_queries_keys_and_routers() {
    let mut toy = Toy::default();
    let old: Vec<(String, Value)> = toy.metadata.iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
    toy.metadata = Metadata::new();
    for (key, value) in old.into_iter().filter(|(key, _)| !key.contains("indexer")) {
        toy.metadata.insert(key.replace("glm-dsa.", "deepseek2."), value);
    }
    toy.metadata.insert("general.architecture", "deepseek2");
    toy.tensors.retain(|spec| !spec.name.contains(".indexer."));
    toy.metadata.insert("deepseek2.attention.q_lora_rank", 7u32);
    toy.metadata.insert("deepseek2.expert_gating_func", 2u32);
    assert_eq!(inspected(&toy).missing, [""; 0], "as V3 has it");
    // V2-Lite: queries straight from the input, a softmax router.
    let mut lite = toy.clone();
    lite.metadata.retain(|key| !key.ends_with("q_lora_rank") && !key.ends_with("gating_func"));
    lite.tensors.retain(|spec| !spec.name.contains("exp_probs_b"));
    assert_eq!(
        inspected(&lite).missing,
        ["blk.0.attn_q.weight", "blk.1.attn_q.weight", "blk.2.attn_q.weight"]
    );
    // Keys and values in one tensor.
    toy.tensors.retain(|spec| !spec.name.contains("attn_v_b"));
    assert_eq!(inspected(&toy).missing.len(), 3);
    for spec in toy.tensors.iter_mut().filter(|spec| spec.name.contains("attn_k_b")) {
        spec.name = spec.name.replace("attn_k_b", "attn_kv_b");
    }
    assert_eq!(inspected(&toy).missing, [""; 0], "as older files have it");
    toy.tensors.retain(|spec| !spec.name.contains("blk.1.exp_probs_b"));
    assert_eq!(inspected(&toy).missing, ["blk.1.exp_probs_b.bias"]);
}

#[test]
fn a_dense_part_alone_lists_its_experts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dense.gguf");
    Toy::default().write_dense(&path);
    let it = inspect(&open(&path)).unwrap();
    assert!(it.experts.is_none());
    assert_eq!(it.missing.len(), 9);
    assert!(it.missing.contains(&"blk.3.ffn_down_exps.weight".to_owned()));
}

#[test]
fn a_bare_sidecar_is_described_from_its_manifest() {
    let dir = tempfile::tempdir().unwrap();
    Toy::default().write(&dir.path().join("toy.gguf"));
    let out = dir.path().join("out");
    extract(&open(&dir.path().join("toy.gguf")), &out, &Options::default(), &mut |_| ()).unwrap();
    let it = inspect(&open(&out)).unwrap();
    assert_eq!((it.source, it.architecture.as_str()), ("sidecar", "glm-dsa"));
    assert_eq!(it.missing, ["the dense part of the model"]);
    assert_eq!(it.geometry.block_count, Some(4));
    assert_eq!(it.mtp_layers, [3]);
    let json = serde_json::to_value(&it).unwrap();
    assert_eq!(json["experts"]["families"][0]["family"], "ffn_gate_exps");
    assert_eq!(json["experts"]["families"][0]["types"][0]["type"], "IQ1_M", "the largest comes first");
}

/// The default toy with the dense tensors of another family: `layer` in every layer, `dense` and `routed` where they belong.
fn with_tensors(arch: &str, layer: &[&str], dense: &[&str], routed: &[&str]) -> Toy {
    let mut toy = Toy::default();
    let old: Vec<(String, Value)> = toy.metadata.iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
    toy.metadata = Metadata::new();
    for (key, value) in old.into_iter().filter(|(key, _)| !key.contains("indexer")) {
        toy.metadata.insert(key.replace("glm-dsa.", &format!("{arch}.")), value);
    }
    toy.metadata.insert("general.architecture", arch);
    toy.metadata.insert(format!("{arch}.attention.head_count"), 8u32);
    toy.metadata.insert(format!("{arch}.attention.head_count_kv"), 2u32);
    toy.tensors.retain(|spec| spec.is_expert() || !spec.name.starts_with("blk."));
    if dense.is_empty() {
        toy.metadata.retain(|key| !key.ends_with("leading_dense_block_count"));
        for family in ["gate", "up", "down"] {
            let name = format!("blk.0.ffn_{family}_exps.weight");
            toy.tensors.push(common::Spec::new(name, GgmlType::Q8_0, &[EMBD, FF, EXPERTS]));
        }
    }
    // The prediction layer's are not looked at.
    for i in 0..3 {
        let rest = if i == 0 && !dense.is_empty() { dense } else { routed };
        let names = layer.iter().chain(rest).map(|name| format!("blk.{i}.{name}"));
        toy.tensors.extend(names.map(|name| common::Spec::new(name, GgmlType::F32, &[7])));
    }
    toy
}

#[test]
fn families_with_keys_of_their_own_list_what_they_lack() {
    let projections =
        ["attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight"];
    let normed =
        [&projections[..], &["attn_q_norm.weight", "attn_k_norm.weight", "ffn_norm.weight"]].concat();
    let post = [&projections[..], &["post_attention_norm.weight"]].concat();
    let shared = ["ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"];
    let router = ["ffn_gate_inp.weight"];
    let biased = ["ffn_gate_inp.weight", "exp_probs_b.bias"];
    let logits = ["ffn_gate_inp.weight", "ffn_gate_inp.bias"];
    let dense = ["ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"];
    let families = [
        ("qwen3moe", normed.clone(), &[][..], [&router[..], &shared].concat()),
        ("glm4moe", post.clone(), &dense[..], [&biased[..], &shared].concat()),
        ("minimax-m2", normed, &[][..], [&biased[..], &shared].concat()),
        ("gpt-oss", [&post[..], &["attn_sinks.weight"]].concat(), &[][..], [&logits[..], &shared].concat()),
    ];
    for (arch, layer, dense, routed) in families {
        let toy = with_tensors(arch, &layer, dense, &routed);
        let it = inspected(&toy);
        assert_eq!(it.missing, [""; 0], "{arch}");
        assert_eq!((it.geometry.head_count, it.geometry.head_count_kv), (vec![8], vec![2]));
        let all: Vec<String> = toy
            .tensors
            .iter()
            .filter(|spec| spec.name.starts_with("blk.1."))
            .map(|spec| spec.name.clone())
            .collect();
        // A layer without its router needs no experts, and experts are not what is looked at here.
        for gone in
            all.into_iter().filter(|name| !name.contains("_exps") && !name.contains("gate_inp.weight"))
        {
            let mut lacking = toy.clone();
            lacking.tensors.retain(|spec| spec.name != gone);
            assert_eq!(inspected(&lacking).missing, [gone], "{arch}");
        }
        let mut fused = toy.clone();
        fused.tensors.retain(|spec| !spec.name.contains("attn_q.") && !spec.name.contains("attn_k."));
        assert_eq!(inspected(&fused).missing.len(), 6, "{arch}: queries and keys of three layers");
        for spec in fused.tensors.iter_mut().filter(|spec| spec.name.contains("attn_v.")) {
            spec.name = spec.name.replace("attn_v", "attn_qkv");
        }
        assert_eq!(inspected(&fused).missing, [""; 0], "{arch}: all three in one");
    }
}
