//! Gemma 4: that the engine reads everything that a file of it has, and which members of the family it refuses. (The numbers
//! themselves, and streaming, are in `families.rs`; `tools/goldens/gemma4.py` makes each known mistake and sees to it that the fixtures
//! would show it.)

mod common;

use common::{Logits, OnDisk, assert_same_bits, difference, exact, run};
use files::extract::{self, extract};
use files::manifest::Layout;
use files::{Checkpoint, Class, GgmlType as T, Metadata};
use slotbank_engine::{BankSize, Engine, EngineOptions, Error, Prefetch, Promote, known_packers};
use toy::{Listed, Types};

/// The fixture with the tensors that `keep` keeps and metadata as `edit` leaves it.
fn edited(f: &Listed, keep: impl Fn(&str) -> bool, edit: impl FnOnce(&mut Metadata)) -> OnDisk {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("toy.gguf");
    f.write_edited(&Types::all(T::F32), &path, keep, edit);
    OnDisk { path, dir }
}

fn logits(model: &OnDisk, f: &Listed) -> Logits {
    run(&mut model.load(exact()), &f.tokens, &[f.tokens.len()])
}

/// Each of these is silent: without it the model runs, and says something else.
#[test]
fn nothing_that_a_file_has_is_ignored() {
    let f = Listed::named("gemma4");
    let bound = 1e-5 * f64::from(f.max_abs_logit());
    let differs = |model: OnDisk, what: &str| {
        let off = difference(&logits(&model, &f), &f.logits);
        assert!(off > 100.0 * bound, "{what}: {off:e}, the bound is {bound:e}");
    };
    for tensor in ["rope_freqs.weight", "blk.0.layer_output_scale.weight", "blk.5.ffn_down_exps.scale"] {
        differs(edited(&f, |name| name != tensor, |_| ()), tensor);
    }
    let cases: [(&str, files::Value); 5] = [
        ("attention.sliding_window", 21u32.into()),
        ("final_logit_softcapping", 2.0f32.into()),
        ("rope.freq_base", 1e4f32.into()),
        ("rope.freq_base_swa", 1e6f32.into()),
        ("expert_used_count", 2u32.into()),
    ];
    for (key, value) in cases {
        differs(edited(&f, |_| true, |m| drop(m.insert(format!("gemma4.{key}"), value))), key);
    }
    assert!(difference(&logits(&edited(&f, |_| true, |_| ()), &f), &f.logits) <= bound);
}

#[test]
fn what_is_not_implemented_is_refused_and_says_why() {
    let f = Listed::named("gemma4");
    let error = |model: &OnDisk| match Engine::load(&model.open(), exact()) {
        Err(error) => error,
        Ok(_) => panic!("it was loaded"),
    };
    let members: [(&str, u32, &str); 3] = [
        ("embedding_length_per_layer_input", 16, "embeddings per layer"),
        ("attention.shared_kv_layers", 2, "keys and values of earlier ones"),
        ("expert_count", 0, "no routed experts"),
    ];
    for (key, value, told) in members {
        let dense = value == 0;
        let keep = |name: &str| !dense || !name.contains("_exps.") && !name.contains("ffn_gate_inp");
        let refused = error(&edited(&f, keep, |m| drop(m.insert(format!("gemma4.{key}"), value))));
        assert!(
            matches!(&refused, Error::Member { architecture, .. } if architecture == "gemma4"),
            "{refused}"
        );
        assert_eq!(refused.class(), Class::Unsupported);
        assert!(refused.to_string().contains(told), "{refused}");
    }
    let cases: [(&str, files::Value, &str); 6] = [
        ("attention.sliding_window_pattern", vec![true, false].into(), "6 layers"),
        ("attention.value_length", 16u32.into(), "value_length 16 is not"),
        ("attention.head_count_kv", 3u32.into(), "no multiple"),
        ("rope.scaling.factor", 8f32.into(), "rope.scaling.factor 8"),
        ("rope.dimension_count_swa", 15u32.into(), "dimension_count_swa 15"),
        ("expert_used_count", vec![3u32, 3, 3, 3, 3, 2].into(), "3 in one layer and 2 in another"),
    ];
    for (key, value, told) in cases {
        let refused = error(&edited(&f, |_| true, |m| drop(m.insert(format!("gemma4.{key}"), value))));
        assert!(matches!(refused, Error::Metadata { .. }), "{key}: {refused}");
        assert!(refused.to_string().contains(told), "{refused}");
    }
}

/// What options ask for and what a file can say are the same thing.
#[test]
fn fewer_experts_and_none_are_what_they_say() {
    let f = Listed::named("gemma4");
    let model = edited(&f, |_| true, |_| ());
    let with = |options: EngineOptions| run(&mut model.load(options), &f.tokens, &[40, 1]);
    let two = edited(&f, |_| true, |m| drop(m.insert("gemma4.expert_used_count", 2u32)));
    let two = run(&mut two.load(exact()), &f.tokens, &[40, 1]);
    assert_same_bits(&with(EngineOptions { moe_topk: Some(2), ..exact() }), &two, "two experts");
    // Experts that weigh nothing: the norm after them leaves nothing, too.
    let mut mute = f.clone();
    for layer in 0..6 {
        mute.ranges.insert(format!("blk.{layer}.ffn_down_exps.scale"), [0.0; 2]);
    }
    let mute = logits(&edited(&mute, |_| true, |_| ()), &f);
    let none =
        run(&mut model.load(EngineOptions { shared_only: true, ..exact() }), &f.tokens, &[f.tokens.len()]);
    assert_same_bits(&none, &mute, "no experts");
    assert!(none.iter().flatten().all(|logit| logit.is_finite()));
}

/// Experts with gate and up in one tensor: in the GGUF, in sidecars of both layouts and packed, promoted or not, together or one by one.
#[test]
fn fused_experts_give_the_same_bits_in_every_form() {
    let f = Listed::named("gemma4_wide");
    let types = Types {
        dense: T::Q8_0,
        experts: vec![
            [T::IQ1_M, T::F32, T::IQ2_XXS],
            [T::IQ2_XS, T::F32, T::Q4_0],
            [T::Q4_K, T::F32, T::IQ1_S],
        ],
    };
    let model = common::listed(&f, &types);
    let sidecar = |name: &str, layout, pack: bool| {
        let folder = model.dir.path().join(name);
        let pack = pack.then(known_packers);
        let options = extract::Options { layout, dense: true, pack, ..Default::default() };
        extract(&model.open(), &folder, &options, &mut |_| ()).unwrap_or_else(|e| panic!("{name}: {e}"));
        folder
    };
    let forms = [
        model.path.clone(),
        sidecar("layers", Layout::LayerMajor, false),
        sidecar("experts", Layout::ExpertMajor, false),
        sidecar("packed", Layout::ExpertMajor, true),
    ];
    let open = |path| Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"));
    let packed = open(&forms[3]).experts().iter().filter(|tensor| tensor.form.is_some()).count();
    assert_eq!(packed, 4, "all but Q4_K and Q4_0");
    let chunks = [30, 1];
    let plain = EngineOptions { promote: Promote::Never, slot8: false, ..exact() };
    let reference = run(&mut model.load(plain), &f.tokens, &chunks);
    for path in &forms {
        for (bank, slot8, promote, prefetch) in [
            (BankSize::All, true, Promote::Auto, Prefetch::Off),
            (BankSize::SlotsPerLayer(3), true, Promote::Never, Prefetch::NextLayer),
            (BankSize::SlotsPerLayer(5), false, Promote::Auto, Prefetch::Auto),
            (BankSize::SlotsPerLayer(6), true, Promote::Always, Prefetch::NextLayer),
        ] {
            let what = format!("{}, {bank:?}, {promote:?}", path.display());
            let options = EngineOptions { bank, slot8, promote, prefetch, ..exact() };
            let mut engine = Engine::load(&open(path), options).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_same_bits(&run(&mut engine, &f.tokens, &chunks), &reference, &what);
            assert_eq!(engine.stats().allocated_bytes, engine.memory_plan().total_bytes, "{what}");
            let total = engine.bank_stats().expect("a bank").total();
            if promote == Promote::Always && !path.ends_with("packed") {
                assert!(total.promotions > 0 && total.packed_hits > 0, "{what}: {total:?}");
            }
            if prefetch == Prefetch::NextLayer {
                assert!(total.guessed_right > 0, "{what}: {total:?}");
            }
        }
    }
}
