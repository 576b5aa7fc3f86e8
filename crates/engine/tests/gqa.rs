//! Families with grouped-query attention: each way to compute them silently wrong is far from what transformers computes, what files
//! may leave out or write differently means what it should, and nothing depends on how the work is cut.

mod common;

use std::path::Path;

use common::{Logits, OnDisk, assert_same_bits, difference, exact, listed, run};
use files::gguf::Writer;
use files::{Class, GgmlType, Metadata, Value};
use slotbank_engine::{AttentionMode, BankSize, CacheType, Engine, EngineOptions, Error, Want};
use toy::{Listed, TensorSpec, Types};

const FAMILIES: [&str; 8] = [
    "qwen3moe",
    "qwen3moe_yarn",
    "qwen3moe_linear",
    "glm4moe",
    "glm4moe_air",
    "minimax_m2",
    "gpt_oss",
    "gpt_oss_wide",
];

fn edited(f: &Listed, keep: impl Fn(&str) -> bool, edit: impl FnOnce(&mut Metadata)) -> OnDisk {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("toy.gguf");
    f.write_edited(&Types::all(GgmlType::F32), &path, keep, edit);
    OnDisk { path, dir }
}

/// With other keys.
fn keyed(f: &Listed, edit: impl FnOnce(&mut Metadata, &str)) -> OnDisk {
    edited(f, |_| true, |m| edit(m, f.architecture()))
}

fn all_logits(model: &OnDisk, f: &Listed, options: EngineOptions) -> Logits {
    run(&mut model.load(options), &f.tokens, &[f.tokens.len()])
}

fn plain(f: &Listed) -> Logits {
    all_logits(&listed(f, &Types::all(GgmlType::F32)), f, exact())
}

/// What a mistake computes, the engine computes from a file with the mistake in it: far enough from the reference to be noticed.
#[track_caller]
fn noticed(f: &Listed, mistaken: &OnDisk, mistake: &str) {
    let apart = difference(&all_logits(mistaken, f, exact()), &f.logits);
    assert!(
        apart > 1e-3 * f64::from(f.max_abs_logit()),
        "{}: {mistake} would not be noticed: {apart:e}",
        f.name
    );
}

#[test]
fn forgotten_tensors_would_be_noticed() {
    let cases: &[(&str, &[&str])] = &[
        ("glm4moe", &["attn_q.bias", "attn_k.bias", "attn_v.bias", "_norm.weight", "exp_probs_b.bias"]),
        ("glm4moe_air", &["attn_qkv.bias", "exp_probs_b.bias"]),
        ("minimax_m2", &["exp_probs_b.bias"]),
        (
            "gpt_oss",
            &[
                "attn_q.bias",
                "attn_k.bias",
                "attn_v.bias",
                "attn_output.bias",
                "ffn_gate_inp.bias",
                "ffn_gate_exps.bias",
                "ffn_up_exps.bias",
                "ffn_down_exps.bias",
            ],
        ),
    ];
    for (name, parts) in cases {
        let f = Listed::named(name);
        for part in *parts {
            // Of the norms only those that files of this family may lack.
            let gone = |name: &str| name.ends_with(part) && (*part != "_norm.weight" || is_qk_norm(name));
            assert!(f.tensors.iter().any(|spec| gone(&spec.name)), "{}: no tensor {part}", f.name);
            noticed(&f, &edited(&f, |name| !gone(name), |_| ()), part);
        }
    }
}

fn is_qk_norm(name: &str) -> bool {
    name.ends_with("attn_q_norm.weight") || name.ends_with("attn_k_norm.weight")
}

#[test]
fn forgotten_and_misread_keys_would_be_noticed() {
    let full_rotation = ("rope.dimension_count", Some(Value::from(32u32)));
    let softmax = ("expert_gating_func", Some(Value::from(1u32)));
    // A value that the key gets, or none.
    type Edit = (&'static str, Option<Value>);
    let cases: Vec<(&str, Vec<Edit>)> = vec![
        ("qwen3moe", vec![("expert_weights_norm", Some(false.into())), ("rope.freq_base", None)]),
        (
            "qwen3moe_yarn",
            vec![
                ("rope.scaling.type", Some("none".into())),
                // Undoes the factor on cosines and sines: 0.1 ln 4 + 1.
                ("rope.scaling.attn_factor", Some((1.0f32 / 1.138_629_4).into())),
            ],
        ),
        ("qwen3moe_linear", vec![("rope.scaling.factor", Some(1.0f32.into()))]),
        (
            "glm4moe",
            vec![
                full_rotation.clone(),
                softmax.clone(),
                ("expert_weights_scale", Some(1.0f32.into())),
                ("expert_weights_norm", Some(false.into())),
                ("expert_shared_count", Some(0u32.into())),
                // Runs the block that predicts further tokens.
                ("nextn_predict_layers", None),
            ],
        ),
        ("minimax_m2", vec![full_rotation, softmax.clone(), ("expert_weights_norm", Some(false.into()))]),
        (
            "gpt_oss",
            vec![
                softmax,
                ("attention.sliding_window", Some(7u32.into())),
                ("attention.sliding_window", Some(9u32.into())),
                ("attention.sliding_window_pattern", Some(vec![false, true, false, true].into())),
                ("rope.scaling.type", Some("none".into())),
                ("rope.scaling.attn_factor", Some((1.0f32 / 1.346_573_6).into())),
            ],
        ),
        (
            "gpt_oss_wide",
            vec![
                ("attention.sliding_window", Some(49u32.into())),
                ("attention.sliding_window_pattern", None),
            ],
        ),
    ];
    for (name, edits) in cases {
        let f = Listed::named(name);
        for (key, value) in edits {
            let what = format!("{key} as {value:?}");
            let model = keyed(&f, |m, arch| {
                let key = format!("{arch}.{key}");
                m.retain(|other| other != key);
                if let Some(value) = value {
                    m.insert(key, value);
                }
            });
            noticed(&f, &model, &what);
        }
    }
}

/// A file whose tensors are `change`d.
fn rewritten(f: &Listed, change: impl Fn(&TensorSpec, Vec<f32>) -> Vec<f32>) -> OnDisk {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("toy.gguf");
    let mut writer = Writer::new(f.metadata.clone()).expect("sound metadata");
    for spec in &f.tensors {
        writer
            .tensor_f32(spec.name.clone(), &spec.shape, &change(spec, values(f, spec)))
            .expect("a sound tensor");
    }
    writer.write_file(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    OnDisk { path, dir }
}

fn values(f: &Listed, spec: &TensorSpec) -> Vec<f32> {
    let bytes = f.bytes(spec, GgmlType::F32);
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn key(f: &Listed, name: &str) -> usize {
    let key = format!("{}.{name}", f.architecture());
    f.metadata.u64(&key).expect("a number").unwrap_or_else(|| panic!("{}: no {key}", f.name)) as usize
}

/// Rows of each head in another order: halves rotated as if they were neighbours.
fn as_neighbours(f: &Listed, rotated: usize) -> OnDisk {
    let head = key(f, "attention.key_length");
    rewritten(f, |spec, values| {
        let of_queries = spec.name.contains(".attn_q") || spec.name.contains(".attn_k");
        if !of_queries || spec.name.contains("qkv") {
            return values;
        }
        let row = if spec.shape.len() > 1 { spec.shape[0] as usize } else { 1 };
        let mut out = values.clone();
        for (out, values) in out.chunks_exact_mut(head * row).zip(values.chunks_exact(head * row)) {
            for i in 0..rotated {
                let from = if i < rotated / 2 { 2 * i } else { 2 * (i - rotated / 2) + 1 };
                out[i * row..][..row].copy_from_slice(&values[from * row..][..row]);
            }
        }
        out
    })
}

#[test]
fn rope_turns_halves_against_each_other() {
    for (name, rotated) in [("qwen3moe", 32), ("glm4moe", 16), ("minimax_m2", 16), ("gpt_oss", 16)] {
        let f = Listed::named(name);
        noticed(&f, &as_neighbours(&f, rotated), "interleaved rope");
    }
}

/// Heads 0 and 1 share the first key, not heads 0 and 2.
#[test]
fn consecutive_heads_share_a_key() {
    let f = Listed::named("qwen3moe");
    let (heads, head) = (key(&f, "attention.head_count"), key(&f, "attention.key_length"));
    let kv = key(&f, "attention.head_count_kv");
    // The head whose place in a group of the right kind another one has in a group of the wrong kind.
    let other = |h: usize| h % kv * (heads / kv) + h / kv;
    let model = rewritten(&f, |spec, values| {
        let mut out = values.clone();
        let row = spec.shape[0] as usize;
        for h in 0..heads {
            if spec.name.ends_with("attn_q.weight") {
                let n = head * row;
                out[other(h) * n..][..n].copy_from_slice(&values[h * n..][..n]);
            } else if spec.name.ends_with("attn_output.weight") {
                for (out, values) in out.chunks_exact_mut(row).zip(values.chunks_exact(row)) {
                    out[other(h) * head..][..head].copy_from_slice(&values[h * head..][..head]);
                }
            }
        }
        out
    });
    noticed(&f, &model, "heads dealt out to keys in turns");
}

#[test]
fn sinks_take_their_share() {
    for name in ["gpt_oss", "gpt_oss_wide"] {
        let mut f = Listed::named(name);
        let sinks = f.ranges.keys().filter(|name| name.contains("attn_sinks")).cloned().collect::<Vec<_>>();
        assert!(!sinks.is_empty());
        f.ranges.extend(sinks.into_iter().map(|name| (name, [-1e30, 0.0])));
        noticed(&f, &listed(&f, &Types::all(GgmlType::F32)), "no sinks");
    }
}

/// The reference keeps the ends of YaRN's ramp where they are, between pairs 2 and 3 and between 4 and 5 here; others round them outwards.
/// There are numbers of rotations whose ends lie on whole pairs, so that rounding is what a file with them asks for.
#[test]
fn yarn_of_gpt_oss_is_not_rounded() {
    let f = Listed::named("gpt_oss");
    let rotations = |pair: f64| (4096.0 / std::f64::consts::TAU * 150_000f64.powf(-2.0 * pair / 16.0)) as f32;
    let edited = |fast: f32, slow: f32| {
        keyed(&f, |m, arch| {
            m.insert(format!("{arch}.rope.scaling.yarn_beta_fast"), fast);
            m.insert(format!("{arch}.rope.scaling.yarn_beta_slow"), slow);
        })
    };
    assert!(rotations(2.0) > 32.0 && rotations(3.0) < 32.0 && rotations(4.0) > 1.0 && rotations(5.0) < 1.0);
    noticed(&f, &edited(rotations(2.0), rotations(5.0)), "a rounded ramp");
    assert_same_bits(&all_logits(&edited(32.0, 1.0), &f, exact()), &plain(&f), "the usual rotations");
}

/// One norm over all heads is not one norm per head: minimax-m2 has the first, and its weight for every head is its own.
#[test]
fn minimax_norms_all_heads_together() {
    let f = Listed::named("minimax_m2");
    let head = key(&f, "attention.key_length");
    let model = rewritten(&f, |spec, mut values| {
        if is_qk_norm(&spec.name) {
            let first: Vec<f32> = values[..head].to_vec();
            values.chunks_exact_mut(head).for_each(|part| part.copy_from_slice(&first));
        }
        values
    });
    noticed(&f, &model, "the weights of the first head for all");
    // Norms per head undo the size of a head's rows, a norm over all does not.
    let scaled = |f: &Listed| {
        rewritten(f, |spec, mut values| {
            if spec.name.ends_with("attn_q.weight") {
                let n = head * spec.shape[0] as usize;
                values[..n].iter_mut().for_each(|x| *x *= 4.0);
            }
            values
        })
    };
    noticed(&f, &scaled(&f), "a norm per head");
    let qwen = Listed::named("qwen3moe");
    let apart = difference(&all_logits(&scaled(&qwen), &qwen, exact()), &qwen.logits);
    assert!(apart < 1e-4 * f64::from(qwen.max_abs_logit()), "qwen3moe norms each head: {apart:e}");
}

/// What files leave out means what the architecture does.
#[test]
fn what_files_leave_out() {
    let same = |name: &str, gone: &[&str], written: &[(&str, Value)]| {
        let f = Listed::named(name);
        let model = keyed(&f, |m, arch| {
            let gone: Vec<String> = gone.iter().map(|key| format!("{arch}.{key}")).collect();
            assert!(gone.iter().all(|key| m.get(key).is_some()), "{name}: {gone:?}");
            m.retain(|key| !gone.iter().any(|gone| gone == key));
            for (key, value) in written {
                m.insert(format!("{arch}.{key}"), value.clone());
            }
        });
        assert_same_bits(
            &all_logits(&model, &f, exact()),
            &plain(&f),
            &format!("{name}: {gone:?}, {written:?}"),
        );
    };
    same("qwen3moe", &[], &[("expert_gating_func", 1u32.into()), ("expert_weights_norm", true.into())]);
    same(
        "qwen3moe",
        &[],
        &[("expert_shared_feed_forward_length", 0u32.into()), ("expert_weights_scale", 0f32.into())],
    );
    same("qwen3moe_linear", &["rope.scaling.type"], &[]);
    same(
        "qwen3moe_linear",
        &[],
        &[("attention.head_count_kv", 4u32.into()), ("attention.key_length", 16u32.into())],
    );
    same(
        "glm4moe",
        &["expert_gating_func", "expert_weights_norm", "expert_group_count", "expert_group_used_count"],
        &[],
    );
    same("glm4moe_air", &["expert_weights_scale"], &[]);
    same("glm4moe_air", &[], &[("expert_weights_scale", 0f32.into())]);
    same("minimax_m2", &["expert_gating_func"], &[]);
    same("gpt_oss", &[], &[("attention.sliding_window_pattern", vec![true, false, true, false].into())]);
    same(
        "gpt_oss",
        &[],
        &[("rope.dimension_count", 16u32.into()), ("rope.scaling.yarn_beta_fast", 32f32.into())],
    );
    // One number per layer, and more than there are layers that run.
    same(
        "glm4moe",
        &[],
        &[("attention.head_count", vec![6u32; 6].into()), ("attention.head_count_kv", vec![2u32; 6].into())],
    );
}

/// One tensor of queries, keys and values, or three: the same numbers.
#[test]
fn fused_projections_are_cut_into_three() {
    for name in ["qwen3moe_yarn", "glm4moe_air"] {
        let f = Listed::named(name);
        let kv = key(&f, "attention.head_count_kv");
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("toy.gguf");
        let mut writer = Writer::new(f.metadata.clone()).expect("sound metadata");
        for spec in &f.tensors {
            let values = values(&f, spec);
            if !spec.name.contains("attn_qkv") {
                writer.tensor_f32(spec.name.clone(), &spec.shape, &values).expect("a sound tensor");
                continue;
            }
            let row = if spec.shape.len() > 1 { spec.shape[0] as usize } else { 1 };
            let head = key(&f, "attention.key_length");
            let own = key(&f, "attention.head_count") * head;
            for (part, rows) in
                [("q", 0..own), ("k", own..own + kv * head), ("v", own + kv * head..own + 2 * kv * head)]
            {
                let mut shape = spec.shape.clone();
                *shape.last_mut().expect("a dimension") = rows.len() as u64;
                let part = spec.name.replace("attn_qkv", &format!("attn_{part}"));
                writer
                    .tensor_f32(part, &shape, &values[rows.start * row..rows.end * row])
                    .expect("a sound tensor");
            }
        }
        writer.write_file(&path).expect("written");
        assert_same_bits(&all_logits(&OnDisk { path, dir }, &f, exact()), &plain(&f), name);
    }
}

#[test]
fn threads_and_micro_batches_do_not_change_a_bit() {
    for name in FAMILIES {
        let f = Listed::named(name);
        let model = listed(&f, &Types::all(GgmlType::Q8_0));
        for cache_type in [CacheType::F32, CacheType::F16, CacheType::Q8] {
            let options = EngineOptions { cache_type, ..exact() };
            let reference =
                all_logits(&model, &f, EngineOptions { threads: Some(1), ubatch: 1, ..options.clone() });
            for (threads, batch, ubatch, chunks) in [
                (1, 1, 32, &[64][..]),
                (2, 1, 9, &[64]),
                (3, 64, 5, &[40, 1]),
                (5, 1, 32, &[50, 3]),
                (16, 1, 1, &[64]),
            ] {
                let options = EngineOptions { threads: Some(threads), batch, ubatch, ..options.clone() };
                let logits = run(&mut model.load(options), &f.tokens, chunks);
                assert_same_bits(
                    &logits,
                    &reference,
                    &format!("{name}, {cache_type:?}, {threads} threads, {ubatch}"),
                );
            }
        }
    }
}

#[test]
fn logits_do_not_depend_on_which_others_were_wanted() {
    for name in FAMILIES {
        let f = Listed::named(name);
        let model = listed(&f, &Types::all(GgmlType::F32));
        for (batch, ubatch) in [(1, 32), (1, 3), (64, 7)] {
            let mut engine = model.load(EngineOptions { batch, ubatch, ..exact() });
            let all = run(&mut engine, &f.tokens, &[f.tokens.len()]);
            let mut sequence = engine.new_sequence().expect("a free sequence");
            for (i, part) in f.tokens.chunks(13).enumerate() {
                let want = if i % 2 == 0 { Want::Last } else { Want::None };
                let mut seen = 0;
                let mut sink = |position: usize, row: &[f32]| {
                    seen += 1;
                    assert_same_bits(&vec![row.to_vec()], &vec![all[position].clone()], name);
                };
                engine.forward(&mut sequence, part, want, &mut sink).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(seen, usize::from(i % 2 == 0));
            }
        }
    }
}

/// What is behind a cut is as if it had never been there, windows included.
#[test]
fn a_truncated_sequence_continues_as_if_it_had_ended_there() {
    for name in ["glm4moe", "gpt_oss", "gpt_oss_wide"] {
        let f = Listed::named(name);
        let mut engine = listed(&f, &Types::all(GgmlType::F32)).load(exact());
        let all = run(&mut engine, &f.tokens, &[f.tokens.len()]);
        let mut sequence = engine.new_sequence().expect("a free sequence");
        common::step(&mut engine, &mut sequence, &f.tokens);
        sequence.truncate(30);
        let again = common::step(&mut engine, &mut sequence, &f.tokens[30..]);
        assert_same_bits(&again, &all[30..].to_vec(), name);
    }
}

/// f16 and q8 keys and values: only experts may flip, which the first positions do not show.
#[test]
fn smaller_caches_stay_near_the_exact_one() {
    for name in ["qwen3moe", "qwen3moe_yarn"] {
        let f = Listed::named(name);
        let model = listed(&f, &Types::all(GgmlType::F32));
        for (cache_type, share) in [(CacheType::F16, 2e-3), (CacheType::Q8, 3e-2)] {
            let logits = all_logits(&model, &f, EngineOptions { cache_type, ..exact() });
            let off = difference(&logits[..8].to_vec(), &f.logits[..8].to_vec());
            assert!(
                off > 0.0 && off < share * f64::from(f.max_abs_logit()),
                "{name}, {cache_type:?}: {off:e}"
            );
        }
    }
}

#[test]
fn blocks_that_predict_further_tokens_have_no_slots() {
    let engine = listed(&Listed::named("glm4moe"), &Types::all(GgmlType::F32)).load(exact());
    assert_eq!(engine.model().expert_layers, [2, 3, 4]);
    assert_eq!(engine.memory_plan().bank.as_ref().expect("a bank").layers().len(), 3);
}

#[track_caller]
fn refused(model: &OnDisk, class: Class, told: &str) {
    match Engine::load(&model.open(), EngineOptions { bank: BankSize::All, ..exact() }) {
        Err(error) => {
            assert_eq!(error.class(), class, "{error}");
            assert!(error.to_string().contains(told), "{error} does not say `{told}`");
        }
        Ok(_) => panic!("accepted: {told}"),
    }
}

#[test]
fn what_the_maths_cannot_run_is_refused_with_key_and_value() {
    let cases: Vec<(&str, &str, Value, &str)> = vec![
        ("qwen3moe", "attention.head_count_kv", 3u32.into(), "4 is no multiple of attention.head_count_kv 3"),
        ("qwen3moe", "attention.head_count_kv", 0u32.into(), "has 0"),
        ("qwen3moe", "attention.head_count", vec![4u32; 3].into(), "3 values for 4 layers"),
        ("qwen3moe", "rope.dimension_count", 31u32.into(), "odd"),
        ("qwen3moe", "rope.dimension_count", 64u32.into(), "64 is above attention.key_length 32"),
        ("qwen3moe", "rope.scaling.type", "longrope".into(), "longrope"),
        ("qwen3moe", "rope.scaling.factor", 0f32.into(), "rope.scaling.factor"),
        ("qwen3moe", "expert_gating_func", 4u32.into(), "expert_gating_func 4"),
        ("gpt_oss", "attention.sliding_window", 0u32.into(), "sliding_window"),
        ("gpt_oss", "attention.sliding_window_pattern", vec![true; 3].into(), "names 3 of 4 layers"),
    ];
    for (name, key, value, told) in cases {
        let f = Listed::named(name);
        let model = keyed(&f, |m, arch| {
            m.insert(format!("{arch}.{key}"), value);
        });
        refused(&model, Class::BadFile, told);
    }
    for (name, gone) in [
        ("qwen3moe", "blk.2.attn_q_norm.weight"),
        ("qwen3moe", "blk.0.attn_k.weight"),
        ("glm4moe", "blk.1.attn_k_norm.weight"),
        ("minimax_m2", "blk.4.attn_k_norm.weight"),
        ("gpt_oss", "blk.3.attn_sinks.weight"),
        ("gpt_oss", "blk.1.post_attention_norm.weight"),
    ] {
        let f = Listed::named(name);
        refused(&edited(&f, |name| name != gone, |_| ()), Class::BadFile, gone);
    }
}

/// Norms of another length than the family's: one over all heads where each has its own.
#[test]
fn norms_of_another_kind_are_refused() {
    let f = Listed::named("minimax_m2");
    let mut other = f.clone();
    for spec in other.tensors.iter_mut().filter(|spec| is_qk_norm(&spec.name)) {
        spec.shape = vec![32];
    }
    refused(&listed(&other, &Types::all(GgmlType::F32)), Class::BadFile, "attn_q_norm.weight");
}

#[test]
fn files_with_a_tensor_per_expert_are_refused_by_name() {
    let f = Listed::named("qwen3moe");
    let mut old = f.clone();
    for spec in old.tensors.iter_mut().filter(|spec| spec.name.contains("_exps")) {
        spec.name = spec.name.replace("_exps", ".0");
        spec.shape.truncate(2);
    }
    let model = listed(&old, &Types::all(GgmlType::F32));
    let error = files::Checkpoint::open(&model.path).map(drop);
    assert!(
        error.is_err_and(
            |e| e.class() == Class::Unsupported && e.to_string().contains("blk.0.ffn_gate.0.weight")
        )
    );
}

#[test]
fn there_is_one_way_to_attend() {
    let f = Listed::named("minimax_m2");
    let model = listed(&f, &Types::all(GgmlType::F32));
    let dense = all_logits(&model, &f, EngineOptions { attention: AttentionMode::Dense, ..exact() });
    assert_same_bits(&dense, &plain(&f), "dense");
    let recent = Engine::load(&model.open(), EngineOptions { attention: AttentionMode::Recent, ..exact() });
    assert!(recent.is_err_and(|e| matches!(e, Error::Option { option: "--attention", .. })));
}

/// Every toy that is tried here is there, and the other way round.
#[test]
fn every_toy_of_these_families_is_tried() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/families");
    for name in FAMILIES {
        assert!(folder.join(format!("{name}.json")).is_file(), "{name}");
    }
    let ours = ["qwen3moe", "glm4moe", "minimax-m2", "gpt-oss"];
    // Those for the table of formats are not about the architecture.
    let found =
        Listed::all().into_iter().filter(|f| ours.contains(&f.architecture()) && !f.name.ends_with("_256"));
    assert_eq!(found.count(), FAMILIES.len());
}
