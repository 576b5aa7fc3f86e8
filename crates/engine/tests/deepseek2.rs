//! What goes wrong silently in `deepseek2`: one test per pitfall. Where the reference can make a mistake on purpose, the engine agrees
//! with the one that does not and is far from the one that does.

mod common;

use common::{
    OnDisk, agrees, assert_same_bits, avoids, difference, difference_to, engine_logits, exact, run,
};
use files::{Class, GgmlType};
use slotbank_engine::{AttentionMode, BankSize, CacheType, Engine, EngineOptions, Error};
use toy::reference::{self, Mistake, Options};
use toy::{Fixture, Toy, Types};

const ALL: fn(&str) -> bool = |_| true;

#[test]
fn rope_is_interleaved() {
    avoids("v3", Mistake::MlaRopeHalfSplit);
    avoids("lite", Mistake::MlaRopeHalfSplit);
}

#[test]
fn rope_comes_last_in_a_head() {
    avoids("v3", Mistake::MlaRopeFirst);
}

#[test]
fn the_rotary_key_is_not_normed() {
    avoids("v3", Mistake::NormedRopeKey);
    avoids("flash", Mistake::NormedRopeKey);
}

#[test]
fn the_head_size_is_neither_key_length_nor_the_rotary_width() {
    avoids("v3", Mistake::HeadSizeFromKeyLength);
    avoids("flash", Mistake::HeadSizeFromHeadDim);
}

#[test]
fn key_up_projection_is_stored_transposed() {
    avoids("v3", Mistake::KeyUpNotTransposed);
}

#[test]
fn yarn_scales_the_softmax_by_mscale_squared_and_angles_by_nothing() {
    for name in ["v3", "kimi", "lite"] {
        avoids(name, Mistake::NoMscale);
        avoids(name, Mistake::MscaleNotSquared);
        avoids(name, Mistake::AttentionFactorOnAngles);
    }
}

#[test]
fn yarn_has_the_ramp_that_the_file_says() {
    avoids("kimi", Mistake::DefaultBetas);
}

/// Without the keys, the defaults of transformers.
#[test]
fn yarn_without_betas_has_the_usual_ramp() {
    let f = Fixture::named("v3");
    let toy = Toy::from_fixture(&f);
    let silent = OnDisk::edited(&toy, ALL, |m| m.retain(|key| !key.contains("yarn_beta")));
    assert_same_bits(
        &run(&mut silent.load(exact()), &f.tokens, &[72]),
        &engine_logits(&toy, &f.tokens, exact()),
        "32, 1",
    );
    let f = Fixture::named("kimi");
    let toy = Toy::from_fixture(&f);
    let silent = OnDisk::edited(&toy, ALL, |m| m.retain(|key| !key.contains("yarn_beta")));
    agrees(&toy, &f.tokens, &run(&mut silent.load(exact()), &f.tokens, &[80]), Mistake::DefaultBetas.into());
}

#[test]
fn routers_score_as_the_file_says() {
    avoids("flash", Mistake::OtherGating);
    avoids("lite", Mistake::OtherGating);
}

#[test]
fn experts_come_from_the_best_groups_only() {
    avoids("v3", Mistake::NoGroupLimit);
    avoids("v2", Mistake::NoGroupLimit);
}

#[test]
fn a_group_is_as_good_as_its_two_best_experts_or_under_softmax_its_best() {
    avoids("v3", Mistake::OtherGroupScore);
    avoids("v2", Mistake::OtherGroupScore);
}

#[test]
fn weights_are_the_scores_normalised_where_the_file_says_so_and_scaled_afterwards() {
    avoids("v3", Mistake::WeightFromChoice);
    avoids("v3", Mistake::OtherNormalising);
    avoids("lite", Mistake::OtherNormalising);
    avoids("v3", Mistake::ScaleBeforeNormalising);
    avoids("v2", Mistake::NoScale);
}

#[test]
fn shared_experts_are_not_scaled() {
    avoids("v3", Mistake::ScaledSharedExpert);
    avoids("v2", Mistake::ScaledSharedExpert);
}

#[test]
fn a_model_without_shared_experts_has_none() {
    let f = Fixture::named("v3");
    let mut toy = Toy::from_fixture(&f);
    toy.config.n_shared_experts = 0;
    agrees(&toy, &f.tokens, &engine_logits(&toy, &f.tokens, exact()), Options::default());
}

/// Older files of V3 have no group keys: every expert is in the running, as the file says.
#[test]
fn without_group_keys_there_are_no_groups() {
    let f = Fixture::named("v3");
    let toy = Toy::from_fixture(&f);
    let model = OnDisk::edited(&toy, ALL, |m| m.retain(|key| !key.contains("expert_group")));
    agrees(&toy, &f.tokens, &run(&mut model.load(exact()), &f.tokens, &[72]), Mistake::NoGroupLimit.into());
}

/// What files of V2 leave out means what V2 does: softmax, weights as they are, times 1 (a written 0 means that, too).
#[test]
fn what_old_files_leave_out_has_the_meaning_of_deepseek_v2() {
    let f = Fixture::named("lite");
    let toy = Toy::from_fixture(&f);
    let expected = engine_logits(&toy, &f.tokens, exact());
    let silent = OnDisk::edited(&toy, ALL, |m| {
        m.retain(|key| {
            !["expert_gating_func", "expert_weights", "expert_group"].iter().any(|k| key.contains(k))
        });
    });
    assert_same_bits(&run(&mut silent.load(exact()), &f.tokens, &[64]), &expected, "keys left out");
    let zero = OnDisk::edited(&toy, ALL, |m| {
        m.insert("deepseek2.expert_weights_scale", 0f32);
    });
    assert_same_bits(&run(&mut zero.load(exact()), &f.tokens, &[64]), &expected, "a scale of 0");
}

#[test]
fn the_block_that_predicts_further_tokens_is_not_run() {
    let f = Fixture::named("flash");
    let plain = Toy::from_fixture(&f);
    let model = OnDisk::gguf(&Toy { mtp: true, ..plain.clone() });
    let mut engine = model.load(exact());
    let bank = engine.memory_plan().bank.clone().expect("a bank");
    assert_eq!(bank.layers().len(), 3, "no slots for the fifth block's experts");
    let logits = run(&mut engine, &f.tokens, &[64]);
    assert_same_bits(&logits, &engine_logits(&plain, &f.tokens, exact()), "MTP block");
}

/// `attn_kv_b` of older files holds what `attn_k_b` and `attn_v_b` hold, in another order: nothing is lost where 16 bits hold
/// the file's values.
#[test]
fn a_legacy_file_gives_the_same_answer() {
    for name in ["v3", "lite"] {
        let f = Fixture::named(name);
        for ty in [GgmlType::F32, GgmlType::F16] {
            let toy = Toy { types: Types::all(ty), ..Toy::from_fixture(&f) };
            let legacy = Toy { legacy_kv_b: true, ..toy.clone() };
            let expected = engine_logits(&toy, &f.tokens, exact());
            assert_same_bits(
                &engine_logits(&legacy, &f.tokens, exact()),
                &expected,
                &format!("{name} in {ty}"),
            );
        }
    }
}

/// Some files of those days hold the two parts as well, flattened for another engine: they are not looked at.
#[test]
fn flattened_parts_beside_the_legacy_tensor_are_ignored() {
    let f = Fixture::named("v3");
    let toy = Toy { legacy_kv_b: true, ..Toy::from_fixture(&f) };
    let model = OnDisk::gguf(&toy);
    let mut writer = files::gguf::Writer::new(toy.metadata()).expect("sound metadata");
    for spec in toy.tensors() {
        if spec.name.contains("attn_kv_b.") {
            for (part, shape) in [("attn_k_b", [32, 64 * 4]), ("attn_v_b", [64, 32 * 4])] {
                let name = spec.name.replace("attn_kv_b", part);
                writer.tensor_f32(name, &shape, &vec![7.0; 32 * 64 * 4]).expect("a sound tensor");
            }
        }
        let (ty, bytes) = (toy.type_of(&spec), toy.bytes(&spec));
        writer.tensor_bytes(spec.name, ty, &spec.shape, bytes).expect("a sound tensor");
    }
    writer.write_file(&model.path).expect("written");
    let logits = run(&mut model.load(exact()), &f.tokens, &[72]);
    assert_same_bits(&logits, &engine_logits(&toy, &f.tokens, exact()), "with flattened parts");
}

/// Values stay as they are stored, keys are decoded and kept in 16 bits. Every expert is used, so that no choice can flip.
#[test]
fn a_quantised_legacy_file_resembles_the_exact_one() {
    let f = Fixture::named("v3");
    let mut exact_toy = Toy::from_fixture(&f);
    exact_toy.config.num_experts_per_tok = exact_toy.config.n_routed_experts;
    (exact_toy.config.n_group, exact_toy.config.topk_group) = (1, 1);
    let expected = engine_logits(&exact_toy, &f.tokens, exact());
    let power: f64 = expected.iter().flatten().map(|x| f64::from(*x).powi(2)).sum();
    // (Not the total: how many pages a slot spans depends on where the experts lie in the file.)
    let dense_bytes = |model: &OnDisk| {
        let plan = Engine::plan(&model.open(), &exact()).expect("a plan");
        plan.rows.iter().find(|row| row.name == "dense weights").expect("a row").bytes
    };
    let exact_bytes = dense_bytes(&OnDisk::gguf(&exact_toy));
    let legacy = Toy { legacy_kv_b: true, ..exact_toy };
    for ty in [GgmlType::Q8_0, GgmlType::BF16] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("toy.gguf");
        let mut writer = files::gguf::Writer::new(legacy.metadata()).expect("sound metadata");
        for spec in legacy.tensors() {
            // Only what is converted is rounded.
            let ty = if spec.name.contains("attn_kv_b.") { ty } else { GgmlType::F32 };
            let typed = Toy { types: Types::all(ty), ..legacy.clone() };
            let (bytes, ty) = (typed.bytes(&spec), typed.type_of(&spec));
            writer.tensor_bytes(spec.name, ty, &spec.shape, bytes).expect("a sound tensor");
        }
        writer.write_file(&path).expect("written");
        let model = OnDisk { path, dir };
        let mut engine = model.load(exact());
        let logits = run(&mut engine, &f.tokens, &[72]);
        let pairs = logits.iter().flatten().zip(expected.iter().flatten());
        let error: f64 = pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
        // Unrelated logits would give about 1.4; 8 bits are worth about 1 %, activations among them.
        let relative = (error / power).sqrt();
        assert!(relative > 0.0 && relative < 0.03, "{ty}: relative error {relative}");
        assert!(dense_bytes(&model) < exact_bytes, "16-bit keys take less");
        assert_eq!(engine.stats().allocated_bytes, engine.memory_plan().total_bytes);
    }
}

/// A file with gate and up of all experts in one tensor, as converters can write it: per expert gate rows, then up rows.
fn fused(toy: &Toy) -> OnDisk {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("toy.gguf");
    let mut writer = files::gguf::Writer::new(toy.metadata()).expect("sound metadata");
    for spec in toy.tensors().into_iter().filter(|spec| !spec.name.contains("ffn_up_exps")) {
        let (ty, mut bytes, mut shape) = (toy.type_of(&spec), toy.bytes(&spec), spec.shape.clone());
        let mut name = spec.name.clone();
        if name.contains("ffn_gate_exps") {
            let up_name = name.replace("gate", "up");
            let up = toy.tensors().into_iter().find(|spec| spec.name == up_name).expect("a partner");
            let (size, up) = (bytes.len() / shape[2] as usize, toy.bytes(&up));
            assert_eq!(bytes.len(), up.len());
            bytes = bytes
                .chunks_exact(size)
                .zip(up.chunks_exact(size))
                .flat_map(|(g, u)| [g, u].concat())
                .collect();
            shape[1] *= 2;
            name = name.replace("gate", "gate_up");
        }
        writer.tensor_bytes(name, ty, &shape, bytes).expect("a sound tensor");
    }
    writer.write_file(&path).expect("written");
    OnDisk { path, dir }
}

#[test]
fn fused_gate_and_up_stream_and_give_the_same_answer() {
    let (tokens, chunks) = (toy::weights::tokens("fused", 24, 96), [20, 1]);
    for ty in [GgmlType::Q8_0, GgmlType::IQ1_M, GgmlType::Q4_K] {
        let dense = if ty == GgmlType::Q8_0 { ty } else { GgmlType::Q4_0 };
        let toy = Toy::wide_deepseek2(Types { dense, experts: vec![[ty; 3]] });
        let expected = run(&mut OnDisk::gguf(&toy).load(exact()), &tokens, &chunks);
        for bank in [BankSize::All, BankSize::SlotsPerLayer(3), BankSize::SlotsPerLayer(7)] {
            let mut engine = fused(&toy).load(EngineOptions { bank, ..exact() });
            assert_same_bits(&run(&mut engine, &tokens, &chunks), &expected, &format!("{ty}, {bank:?}"));
        }
    }
}

/// f16 and q8 latents: no choice of positions depends on them here, only experts may flip.
#[test]
fn smaller_caches_stay_near_the_exact_one() {
    let f = Fixture::named("lite");
    let toy = Toy::from_fixture(&f);
    for (cache_type, share) in [(CacheType::F16, 2e-3), (CacheType::Q8, 3e-2)] {
        let logits = engine_logits(&toy, &f.tokens, EngineOptions { cache_type, ..exact() });
        let off = difference(&logits[..16].to_vec(), &f.logits[..16].to_vec());
        assert!(off > 0.0 && off < share * f64::from(f.max_abs_logit()), "{cache_type:?}: {off:e}");
    }
}

#[test]
fn fewer_experts_per_token_and_shared_only_do_what_they_say() {
    for (name, k) in [("v3", 2), ("v2", 1)] {
        let f = Fixture::named(name);
        let toy = Toy::from_fixture(&f);
        let logits = engine_logits(&toy, &f.tokens, EngineOptions { moe_topk: Some(k), ..exact() });
        agrees(&toy, &f.tokens, &logits, Options { moe_topk: Some(k), ..Options::default() });
        let logits = engine_logits(&toy, &f.tokens, EngineOptions { shared_only: true, ..exact() });
        agrees(&toy, &f.tokens, &logits, Options { shared_only: true, ..Options::default() });
    }
}

#[test]
fn there_is_one_way_to_attend() {
    let f = Fixture::named("flash");
    let toy = Toy::from_fixture(&f);
    let model = OnDisk::gguf(&toy);
    let mut dense = model.load(EngineOptions { attention: AttentionMode::Dense, ..exact() });
    assert_same_bits(&run(&mut dense, &f.tokens, &[64]), &engine_logits(&toy, &f.tokens, exact()), "dense");
    assert!(dense.model().full_layers.is_empty());
    let recent = Engine::load(&model.open(), EngineOptions { attention: AttentionMode::Recent, ..exact() });
    assert!(recent.is_err_and(|e| e.class() == Class::Usage && e.to_string().contains("--attention")));
}

/// The epsilon of the latent norms is not the layers': V3's two are equal, GLM-4.7-Flash's are not.
#[test]
fn the_latent_epsilon_is_not_the_layers() {
    let f = Fixture::named("flash");
    let toy = Toy::from_fixture(&f);
    let logits = engine_logits(&toy, &f.tokens, exact());
    let other = reference::forward(&toy, &f.tokens, Options { latent_eps: 1e-5, ..Options::default() });
    let right = agrees(&toy, &f.tokens, &logits, Options::default());
    assert!(difference_to(&logits, &other) > 4.0 * difference_to(&logits, &right));
}

#[test]
fn what_the_maths_cannot_run_is_refused_with_key_and_value() {
    let toy = Toy::from_fixture(&Fixture::named("v3"));
    let cases: [(&str, files::Value, &str); 6] = [
        ("rope.scaling.type", "longrope".into(), "longrope"),
        ("expert_gating_func", 4u32.into(), "expert_gating_func 4"),
        ("attention.key_length_mla", 16u32.into(), "leaves nothing"),
        ("rope.dimension_count", 15u32.into(), "odd"),
        ("expert_group_count", 5u32.into(), "5 groups"),
        ("rope.scaling.yarn_beta_fast", 0f32.into(), "yarn_beta_fast"),
    ];
    for (key, value, told) in cases {
        let model = OnDisk::edited(&toy, ALL, |m| {
            m.insert(format!("deepseek2.{key}"), value);
        });
        match Engine::load(&model.open(), exact()) {
            Err(error @ Error::Metadata { .. }) => assert!(error.to_string().contains(told), "{error}"),
            Err(other) => panic!("{key}: {other}"),
            Ok(_) => panic!("{key} was accepted"),
        }
    }
    for gone in ["blk.2.attn_kv_a_norm.weight", "blk.1.attn_q_b.weight", "blk.3.attn_v_b.weight"] {
        let model = OnDisk::edited(&toy, |name| name != gone, |_| ());
        let error = Engine::load(&model.open(), EngineOptions { bank: BankSize::All, ..exact() });
        assert!(error.is_err_and(|e| e.to_string().contains(gone)), "{gone}");
    }
}
