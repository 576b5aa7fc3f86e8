//! Architectures that carry a state from token to token beside their cached rows (`qwen35moe`, `qwen3next`): what a cut, a failed step or
//! an interruption leaves behind, which layers are of which kind, and that every tensor counts.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{Logits, OnDisk, assert_same_bits, difference, exact, listed, run, step, ways};
use experts::read::sim::{Fault, FaultAt, Options as Drive, SimReader};
use files::{Class, GgmlType, Metadata};
use slotbank_engine::{BankSize, Engine, EngineOptions, Event, GenerateOptions, SamplingOptions, Want};
use toy::{Listed, Types};

const NAMES: [&str; 4] = ["qwen35moe", "qwen35moe_listed", "qwen3next", "qwen3next_legacy"];

fn in_f32(f: &Listed) -> OnDisk {
    listed(f, &Types::all(GgmlType::F32))
}

fn edited(f: &Listed, keep: impl Fn(&str) -> bool, edit: impl FnOnce(&mut Metadata)) -> OnDisk {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("toy.gguf");
    f.write_edited(&Types::all(GgmlType::F32), &path, keep, edit);
    OnDisk { path, dir }
}

/// The recurrence has one form, so that not even the last bit depends on how tokens arrive or on the threads.
#[test]
fn how_tokens_arrive_changes_no_bit() {
    for name in NAMES {
        let f = Listed::named(name);
        let model = in_f32(&f);
        let whole = run(&mut model.load(exact()), &f.tokens, &[f.tokens.len()]);
        for (way, [batch, ubatch], chunks) in ways(f.tokens.len()) {
            let mut engine = model.load(EngineOptions { batch, ubatch, ..exact() });
            assert_same_bits(&run(&mut engine, &f.tokens, &chunks), &whole, &format!("{name}, {way}"));
        }
        for threads in [1, 5] {
            let mut engine = model.load(EngineOptions { threads: Some(threads), ..exact() });
            let logits = run(&mut engine, &f.tokens, &[29, 1]);
            assert_same_bits(&logits, &whole, &format!("{name}, {threads} threads"));
        }
    }
}

/// Only the logits of the last token are asked for, or none: the states of all layers follow all the same.
#[test]
fn unwanted_rows_count() {
    for name in NAMES {
        let f = Listed::named(name);
        let model = in_f32(&f);
        let mut engine = model.load(exact());
        let whole = run(&mut engine, &f.tokens, &[f.tokens.len()]);
        for want in [Want::None, Want::Last] {
            let mut sequence = engine.new_sequence().expect("a free sequence");
            engine.forward(&mut sequence, &f.tokens[..40], want, &mut |_, _| ()).expect("the prompt runs");
            let rest = step(&mut engine, &mut sequence, &f.tokens[40..]);
            assert_same_bits(&rest, &whole[40..].to_vec(), &format!("{name} after {want:?}"));
        }
    }
}

#[test]
fn snapshots_bring_a_sequence_back() {
    let f = Listed::named("qwen35moe");
    let model = in_f32(&f);
    let mut engine = model.load(EngineOptions { snapshots: 2, ..exact() });
    let whole = run(&mut engine, &f.tokens, &[f.tokens.len()]);
    let mut sequence = engine.new_sequence().expect("a free sequence");
    assert!(sequence.carries_state());
    step(&mut engine, &mut sequence, &f.tokens[..20]);
    engine.save(&mut sequence);
    step(&mut engine, &mut sequence, &f.tokens[20..33]);
    engine.save(&mut sequence);
    let others: Vec<u32> = f.tokens.iter().rev().copied().collect();
    step(&mut engine, &mut sequence, &others[..25]);

    assert_eq!((sequence.truncate(50), sequence.len()), (33, 33));
    let rest = step(&mut engine, &mut sequence, &f.tokens[33..]);
    assert_same_bits(&rest, &whole[33..].to_vec(), "from 33 on");
    assert_eq!(sequence.truncate(32), 20);
    step(&mut engine, &mut sequence, &others[..7]);
    assert_eq!(sequence.truncate(20), 20);
    let rest = step(&mut engine, &mut sequence, &f.tokens[20..]);
    assert_same_bits(&rest, &whole[20..].to_vec(), "from 20 on");
    assert_eq!(sequence.truncate(19), 0);
    assert_same_bits(&step(&mut engine, &mut sequence, &f.tokens), &whole, "from the beginning");

    // A sequence in the same place begins without what the last one left, snapshots included.
    engine.save(&mut sequence);
    drop(sequence);
    let mut sequence = engine.new_sequence().expect("a free sequence");
    assert_same_bits(&step(&mut engine, &mut sequence, &f.tokens), &whole, "the next sequence");
    assert_eq!(sequence.truncate(79), 0);
}

#[test]
fn without_snapshots_a_sequence_begins_anew() {
    let f = Listed::named("qwen3next");
    let mut engine = in_f32(&f).load(exact());
    let mut sequence = engine.new_sequence().expect("a free sequence");
    let whole = step(&mut engine, &mut sequence, &f.tokens);
    engine.save(&mut sequence);
    assert_eq!(sequence.truncate(f.tokens.len()), f.tokens.len());
    assert_eq!(sequence.truncate(60), 0);
    assert_same_bits(&step(&mut engine, &mut sequence, &f.tokens), &whole, "again");
}

/// A step that fails in the middle, whatever layer it has come to, leaves the states as they were.
#[test]
fn a_failed_step_has_changed_nothing() {
    let f = Listed::named("qwen35moe");
    let model = in_f32(&f);
    for ubatch in [1, 7] {
        let whole = run(&mut model.load(EngineOptions { ubatch, ..exact() }), &f.tokens, &[f.tokens.len()]);
        for nth in [0, 5, 23, 40, 77] {
            let drive = Drive {
                faults: vec![Fault { at: FaultAt::Nth(nth), times: 1 }],
                seed: nth,
                ..Drive::default()
            };
            let options = EngineOptions { bank: BankSize::SlotsPerLayer(4), ubatch, ..exact() };
            let reader = move |files: &[std::path::PathBuf]| -> Result<Box<dyn experts::Reader>, _> {
                Ok(Box::new(SimReader::open(files, drive)?))
            };
            let mut engine = Engine::load_with_reader(&model.open(), options, reader).expect("loads");
            let mut sequence = engine.new_sequence().expect("a free sequence");
            let mut logits: Logits = Vec::new();
            let mut keep = |_: usize, row: &[f32]| logits.push(row.to_vec());
            engine.forward(&mut sequence, &f.tokens, Want::All, &mut keep).expect_err("the fault strikes");
            let done = sequence.len();
            logits.truncate(done);
            logits.extend(step(&mut engine, &mut sequence, &f.tokens[done..]));
            assert_same_bits(&logits, &whole, &format!("fault at read {nth}, ubatch {ubatch}"));
        }
    }
}

/// The same for a prompt that the caller stops between two layers.
#[test]
fn an_interrupted_step_has_changed_nothing() {
    let f = Listed::named("qwen3next");
    let mut engine = in_f32(&f).load(EngineOptions { batch: 16, ubatch: 16, ..exact() });
    let whole = run(&mut engine, &f.tokens, &[f.tokens.len()]);
    for (batch, layers) in [(0, 1), (1, 2), (2, 3)] {
        let mut sequence = engine.new_sequence().expect("a free sequence");
        let stop = AtomicBool::new(false);
        let options = GenerateOptions {
            max_tokens: Some(1),
            sampling: SamplingOptions { temperature: 0.0, ..SamplingOptions::default() },
            ..GenerateOptions::default()
        };
        engine
            .generate(&mut sequence, &f.tokens, &options, &stop, &mut |event| {
                if let Event::Prompt(p) = event {
                    let there = p.tokens_done == 16 * batch && p.layers_done == layers;
                    stop.fetch_or(there, Ordering::Relaxed);
                }
            })
            .expect("an interruption is no error");
        assert_eq!(sequence.len(), 16 * batch, "batches that are through");
        let rest = step(&mut engine, &mut sequence, &f.tokens[16 * batch..]);
        assert_same_bits(&rest, &whole[16 * batch..].to_vec(), &format!("in batch {batch}"));
    }
}

/// What a conversation does: the next prompt has most of this one in common, but not its end.
#[test]
fn a_prompt_is_saved_where_the_next_one_will_branch_off() {
    let f = Listed::named("qwen3next");
    let model = in_f32(&f);
    let mut engine = model.load(EngineOptions { batch: 16, ubatch: 16, snapshots: 1, ..exact() });
    let whole = run(&mut engine, &f.tokens, &[f.tokens.len()]);
    let mut generate = |save_after| {
        let options = GenerateOptions {
            max_tokens: Some(5),
            sampling: SamplingOptions { temperature: 0.0, ..SamplingOptions::default() },
            save_after,
            ..GenerateOptions::default()
        };
        let mut sequence = engine.new_sequence().expect("a free sequence");
        let stop = AtomicBool::new(false);
        let done = engine.generate(&mut sequence, &f.tokens[..50], &options, &stop, &mut |_| ());
        let kept = sequence.truncate(49);
        let rest = step(&mut engine, &mut sequence, &f.tokens[kept..]);
        assert_same_bits(&rest, &whole[kept..].to_vec(), &format!("from {kept} on"));
        (done.expect("generates").tokens, kept)
    };
    let (tokens, kept) = generate(None);
    assert_eq!(kept, 0);
    for at in [1, 16, 37, 49] {
        assert_eq!(generate(Some(at)), (tokens.clone(), at));
    }
    assert_eq!(generate(Some(50)), (tokens, 0), "at its end, which is too late");
}

/// The block that predicts further tokens is no layer: neither run nor planned for.
#[test]
fn the_predicting_block_is_not_counted() {
    let f = Listed::named("qwen35moe");
    assert!(f.tensors.iter().any(|t| t.name == "blk.4.ffn_gate_exps.weight"), "the toy has the block");
    let engine = in_f32(&f).load(exact());
    assert_eq!((engine.model().n_layers, &engine.model().expert_layers[..]), (4, &[0, 1, 2, 3][..]));
}

/// Which layers have full attention: as the file lists them, else one in four or whatever it says.
#[test]
fn layer_kinds_come_from_the_list_then_from_the_interval() {
    let f = Listed::named("qwen35moe_listed");
    let key = "qwen35moe.attention.recurrent_layers";
    let listed = in_f32(&f).load(exact());
    assert_eq!(listed.model().n_layers, 5);
    // By the interval of four that the file names as well, layers 1 to 3 would be of the other kind.
    let error = |edit: &dyn Fn(&mut Metadata)| {
        let model = edited(&f, |_| true, |m| edit(m));
        Engine::load(&model.open(), exact()).err().unwrap_or_else(|| panic!("it loads"))
    };
    let without = error(&|m| m.retain(|k| k != key));
    assert!(without.to_string().contains("blk.1.attn_qkv.weight"), "{without}");
    let short = error(&|m| drop(m.insert(key, vec![true, false])));
    assert!(short.to_string().contains("names 2 of 5 layers"), "{short}");
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let f = Listed::named("qwen35moe");
    for (key, value, why) in [
        ("ssm.inner_size", 97, "is not 6 value heads of ssm.state_size 16"),
        ("ssm.group_count", 4, "is no multiple of ssm.group_count 4"),
        ("ssm.conv_kernel", 9, "is above 8"),
        ("ssm.state_size", 0, "is 0"),
        ("rope.dimension_count", 34, "is above"),
        ("attention.value_length", 16, "attention.value_length"),
    ] {
        let model = edited(&f, |_| true, |m| drop(m.insert(format!("qwen35moe.{key}"), value as u32)));
        let error =
            Engine::load(&model.open(), exact()).err().unwrap_or_else(|| panic!("{key} {value} loads"));
        assert!(error.to_string().contains(why), "{key}: {error}");
        assert_ne!(error.class(), Class::Io);
    }
    for (name, tensor) in [("qwen35moe", "blk.1.ssm_beta.weight"), ("qwen3next", "blk.0.attn_gate.weight")] {
        let model = edited(&Listed::named(name), |t| t != tensor, |_| ());
        let error = Engine::load(&model.open(), exact()).err().unwrap_or_else(|| panic!("{tensor} is gone"));
        assert!(error.to_string().contains(tensor), "{error}");
    }
}

/// Other values in any of these tensors give other logits: none is read and then ignored.
#[test]
fn every_tensor_counts() {
    for (name, tensor, middle) in [
        ("qwen35moe", "blk.0.ffn_gate_inp_shexp.weight", 0.0),
        ("qwen35moe", "blk.3.ffn_gate_inp_shexp.weight", 0.0),
        ("qwen35moe", "blk.1.post_attention_norm.weight", 1.0),
        ("qwen35moe", "blk.0.ssm_norm.weight", 1.0),
        ("qwen35moe", "blk.2.ssm_dt.bias", 0.0),
        ("qwen35moe", "blk.0.ssm_a", -1.0),
        ("qwen35moe", "blk.1.ssm_conv1d.weight", 0.25),
        ("qwen35moe", "blk.2.attn_gate.weight", 0.0),
        ("qwen35moe", "blk.3.attn_q_norm.weight", 1.0),
        ("qwen35moe", "blk.3.attn_k_norm.weight", 1.0),
        ("qwen3next", "blk.0.ssm_ba.weight", 0.0),
        ("qwen3next_legacy", "blk.4.ssm_in.weight", 0.1),
    ] {
        let mut f = Listed::named(name);
        let bound = 1e-5 * f64::from(f.max_abs_logit());
        let n = f.tokens.len();
        f.ranges.insert(tensor.to_owned(), [middle, 0.0]);
        let logits = run(&mut in_f32(&f).load(exact()), &f.tokens, &[n]);
        assert!(difference(&logits, &f.logits) > 100.0 * bound, "{name}: {tensor} does not matter");
    }
}
