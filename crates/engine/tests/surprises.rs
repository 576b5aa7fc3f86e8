//! One test per surprise and pitfall of the architecture. Each shows twice that the engine has it right: its logits are those
//! of the f64 reference, and the reference with that one mistake made on purpose is far from them.

mod common;

use common::{
    Choices, OnDisk, agrees, assert_same_bits, avoids, bound, difference, difference_to, engine_logits,
    exact, run, run_dumped,
};
use files::GgmlType;
use files::gguf::Writer;
use slotbank_engine::{AttentionMode, CacheType, Engine, EngineOptions, Error};
use toy::reference::{self, Attention, Mistake, Options};
use toy::{Fixture, Toy};

#[test]
fn rope_of_the_indexer_is_interleaved() {
    avoids("share", Mistake::IndexerRopeHalfSplit);
    avoids("million", Mistake::IndexerRopeHalfSplit); // a head that is rotated as a whole
}

#[test]
fn rope_of_mla_is_interleaved() {
    avoids("share", Mistake::MlaRopeHalfSplit);
}

#[test]
fn rope_comes_first_in_the_indexer() {
    avoids("share", Mistake::IndexerRopeLast);
}

#[test]
fn rope_comes_last_in_mla() {
    avoids("share", Mistake::MlaRopeFirst);
}

#[test]
fn the_rotary_key_is_not_normed() {
    avoids("share", Mistake::NormedRopeKey);
}

#[test]
fn index_keys_have_a_norm_with_bias() {
    avoids("share", Mistake::KNormWithoutBias);
}

#[test]
fn the_indexer_reads_the_normed_input() {
    avoids("share", Mistake::IndexerReadsRawHidden);
}

#[test]
fn the_indexer_reads_the_normed_query_latent() {
    avoids("share", Mistake::IndexerReadsRawQueryLatent);
}

#[test]
fn index_scores_pass_a_relu_per_head() {
    avoids("share", Mistake::IndexerWithoutRelu);
}

#[test]
fn key_up_projection_is_stored_transposed() {
    avoids("share", Mistake::KeyUpNotTransposed);
}

#[test]
fn the_head_size_is_neither_key_length_nor_head_dim() {
    avoids("share", Mistake::HeadSizeFromKeyLength);
    avoids("share", Mistake::HeadSizeFromHeadDim);
}

#[test]
fn yarn_scales_the_softmax_by_mscale_squared() {
    avoids("yarn", Mistake::NoMscale);
    avoids("mixed", Mistake::NoMscale);
}

#[test]
fn expert_weights_come_from_the_probability_not_the_choice() {
    avoids("share", Mistake::WeightFromChoice);
    avoids("yarn", Mistake::WeightFromChoice); // not normalised
}

#[test]
fn experts_are_scaled_after_normalisation() {
    avoids("share", Mistake::ScaleBeforeNormalising);
}

#[test]
fn experts_come_from_the_best_groups_only() {
    avoids("groups", Mistake::NoGroupLimit);
    avoids("mixed", Mistake::NoGroupLimit);
}

#[test]
fn shared_layers_reuse_the_nearest_full_layer() {
    avoids("share", Mistake::SelectionOfLayerZero);
}

/// Surprise 3. The epsilons differ by little more than the tolerance, so the engine must be much nearer to its own.
#[test]
fn the_latent_epsilon_is_a_parameter() {
    let f = Fixture::named("share");
    let toy = Toy::from_fixture(&f);
    let references = [1e-6, 1e-5]
        .map(|eps| reference::forward(&toy, &f.tokens, Options { latent_eps: eps, ..Options::default() }));
    for (own, eps) in [1e-6f32, 1e-5].into_iter().enumerate() {
        let logits = engine_logits(&toy, &f.tokens, EngineOptions { latent_eps: eps, ..exact() });
        let [to_own, to_other] = [own, 1 - own].map(|i| difference_to(&logits, &references[i]));
        assert!(
            to_own <= bound(&references[own]) && 4.0 * to_own < to_other,
            "{eps}: {to_own:e} {to_other:e}"
        );
    }
    assert_eq!(EngineOptions::default().latent_eps, 1e-6);
}

/// Everything that ties are checked with: one prefill, chunks, token by token.
fn in_three_ways(toy: &Toy, tokens: &[u32]) -> Choices {
    let model = OnDisk::gguf(toy);
    let ways: [(u32, &[usize]); 3] = [(128, &[128]), (5, &[20, 13]), (1, &[1])];
    let mut all = ways.map(|(ubatch, chunks)| {
        run_dumped(&mut model.load(EngineOptions { ubatch, ..exact() }), tokens, chunks).1
    });
    assert_eq!(all[0], all[1], "prefill and chunks choose differently");
    assert_eq!(all[0], all[2], "prefill and decode choose differently");
    std::mem::take(&mut all[0])
}

/// Surprise 2, at its worst: all scores equal.
#[test]
fn equal_index_scores_go_to_the_lower_positions_in_prefill_and_decode_alike() {
    let f = Fixture::named("share");
    for tensor in ["indexer.proj.weight", "indexer.attn_q_b.weight"] {
        let constants = [0, 1, 2, 6].map(|i| (format!("blk.{i}.{tensor}"), 0.0)).to_vec();
        let toy = Toy { constants, ..Toy::from_fixture(&f) };
        let choices = in_three_ways(&toy, &f.tokens);
        for rows in choices.selections.values() {
            for (t, row) in rows.iter().enumerate() {
                let expected: Vec<u32> = (0..16.min(t as u32 + 1)).collect();
                assert_eq!(*row, expected, "{tensor}, position {t}");
            }
        }
    }
}

/// Surprise 2 as it really happens: one index head, so that the relu makes about half of the scores exactly zero.
#[test]
fn exact_zeros_of_the_relu_tie_like_any_other_score() {
    let mut f = Fixture::named("share");
    f.config.index_n_heads = 1;
    let toy = Toy::from_fixture(&f);
    let choices = in_three_ways(&toy, &f.tokens);
    let right = reference::forward(&toy, &f.tokens, Options::default());
    let wrong = reference::forward(&toy, &f.tokens, Mistake::TiesToHigherPosition);
    assert_eq!(choices.selections, right.selections);
    assert_ne!(right.selections[&0], wrong.selections[&0], "there are no ties here");
}

#[test]
fn equal_experts_go_to_the_lower_ids_in_prefill_and_decode_alike() {
    let f = Fixture::named("groups");
    let zero =
        |i: u32| [(format!("blk.{i}.ffn_gate_inp.weight"), 0.0), (format!("blk.{i}.exp_probs_b.bias"), 0.0)];
    let toy = Toy { constants: (1..4).flat_map(zero).collect(), ..Toy::from_fixture(&f) };
    let choices = in_three_ways(&toy, &f.tokens);
    assert!(choices.experts.values().flatten().all(|ids| ids[..] == [0, 1, 2]));
    let wrong = reference::forward(&toy, &f.tokens, Mistake::TiesToHigherExpert);
    assert_ne!(wrong.experts, choices.experts);
}

/// The skip rule: nothing is scored up to index_topk positions, but their keys are needed afterwards.
#[test]
fn index_keys_are_cached_before_they_are_needed() {
    let f = Fixture::named("share");
    let toy = Toy::from_fixture(&f);
    let model = OnDisk::gguf(&toy);
    let wrong = reference::forward(&toy, &f.tokens, Mistake::IndexKeysLate);
    // Up to one below, exactly at, and one above index_topk = 16 in the first call.
    for first in [8, 15, 16, 17] {
        let logits = run(&mut model.load(EngineOptions { ubatch: 64, ..exact() }), &f.tokens, &[first, 48]);
        agrees(&toy, &f.tokens, &logits, Options::default());
        assert!(difference_to(&logits, &wrong) > 100.0 * bound(&wrong));
    }
}

/// Surprise 4: some files carry indexer tensors on shared layers.
#[test]
fn stale_indexers_of_shared_layers_are_ignored() {
    let f = Fixture::named("share");
    let clean = Toy::from_fixture(&f);
    let stale = Toy { stale_indexers: true, ..clean.clone() };
    let logits = engine_logits(&stale, &f.tokens, exact());
    assert_same_bits(&logits, &engine_logits(&clean, &f.tokens, exact()), "stale tensors");
    let wrong = reference::forward(&stale, &f.tokens, Mistake::StaleIndexers);
    assert!(difference_to(&logits, &wrong) > 100.0 * bound(&wrong), "the stale tensors change nothing here");
}

#[test]
fn full_layers_come_from_the_metadata_or_the_default_rule() {
    let full = |toy: &Toy| OnDisk::gguf(toy).load(exact()).model().full_layers.clone();
    let named = Toy::from_fixture(&Fixture::named("share"));
    assert_eq!(full(&named), [0, 1, 2, 6]);
    // The schedule in the file wins over the rule for a million positions.
    let mut long = named.clone();
    long.config.max_position_embeddings = 1_048_576;
    assert_eq!(full(&long), [0, 1, 2, 6]);
    // Without it: the fixed schedule of GLM-5.2 from 2^20 positions on, every layer below.
    let mut silent = Toy { schedule_in_file: false, stale_indexers: true, ..long };
    assert_eq!(full(&silent), [0, 1, 2, 6]);
    silent.config = silent.config.with_pattern("FFFFFFFFFFF");
    assert_eq!(full(&silent), [0, 1, 2, 6, 10]);
    silent.config.max_position_embeddings -= 1;
    assert_eq!(full(&silent), (0..11).collect::<Vec<u32>>());
}

/// A layer that should be full and has no indexer is an error, never a silently reused selection.
#[test]
fn a_full_layer_without_an_indexer_is_refused() {
    let toy = Toy { schedule_in_file: false, ..Toy::from_fixture(&Fixture::named("share")) };
    let model = OnDisk::gguf(&toy);
    match Engine::load(&model.open(), exact()) {
        Err(Error::MissingTensor { tensor, .. }) => assert!(tensor.starts_with("blk.3.indexer."), "{tensor}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("layers 3 to 5 have no indexer and were accepted"),
    }
}

/// Some files of GLM-5 and 5.1 were made without the indexer: they run, attend to everything, and say so once.
#[test]
fn a_file_without_any_indexer_attends_densely_and_says_so_once() {
    let f = Fixture::named("groups");
    let toy = Toy { mtp: true, ..Toy::from_fixture(&f) };
    let dense = EngineOptions { attention: AttentionMode::Dense, ..exact() };
    let complete = OnDisk::gguf(&toy);
    let mut engine = complete.load(dense.clone());
    let expected = run(&mut engine, &f.tokens, &[40, 1]);
    assert_eq!(engine.take_warning(), None);
    assert_eq!(complete.load(exact()).take_warning(), None);
    // The block that predicts further tokens keeps its own: nobody runs it.
    let trunk = |name: &str| !name.contains(".indexer.") || name.starts_with("blk.4.");
    for with_sizes in [true, false] {
        let model = OnDisk::edited(&toy, trunk, |m| {
            m.retain(|key| with_sizes || !key.contains(".attention.indexer."));
        });
        let mut engine = model.load(exact());
        assert_same_bits(&run(&mut engine, &f.tokens, &[40, 1]), &expected, "without an indexer");
        assert!(engine.model().full_layers.is_empty() && engine.model().index_topk == 0);
        let warning = engine.take_warning().expect("a warning");
        assert!(warning.contains("indexer") && warning.contains("--attention dense"), "{warning}");
        assert_eq!(engine.take_warning(), None);
        assert_eq!(model.load(dense.clone()).take_warning(), None, "it was asked for");
        let recent = EngineOptions { attention: AttentionMode::Recent, ..exact() };
        let refused = Engine::load(&model.open(), recent);
        assert!(refused.is_err_and(|e| e.class() == files::Class::Usage));
    }
}

#[test]
fn the_block_that_predicts_further_tokens_is_not_run() {
    let f = Fixture::named("share");
    let plain = Toy::from_fixture(&f);
    let with = Toy { mtp: true, ..plain.clone() };
    let logits = engine_logits(&with, &f.tokens, exact());
    assert_same_bits(&logits, &engine_logits(&plain, &f.tokens, exact()), "MTP block");
}

#[test]
fn dense_and_recent_attention_see_what_they_say() {
    let f = Fixture::named("share");
    let toy = Toy::from_fixture(&f);
    for (mode, attention) in
        [(AttentionMode::Dense, Attention::Dense), (AttentionMode::Recent, Attention::Recent)]
    {
        for ubatch in [1, 7, 128] {
            let options = EngineOptions { attention: mode, ubatch, ..exact() };
            let logits = engine_logits(&toy, &f.tokens, options);
            agrees(&toy, &f.tokens, &logits, Options { attention, ..Options::default() });
            let sparse = reference::forward(&toy, &f.tokens, Options::default());
            assert!(difference_to(&logits, &sparse) > 100.0 * bound(&sparse));
        }
    }
}

#[test]
fn fewer_experts_per_token_are_the_best_ones_normalised_anew() {
    for (name, counts) in [("share", [1, 2]), ("yarn", [1, 3]), ("groups", [2, 3])] {
        let f = Fixture::named(name);
        let toy = Toy::from_fixture(&f);
        for moe_topk in counts {
            let options = EngineOptions { moe_topk: Some(moe_topk), ..exact() };
            let logits = engine_logits(&toy, &f.tokens, options);
            agrees(&toy, &f.tokens, &logits, Options { moe_topk: Some(moe_topk), ..Options::default() });
        }
    }
    let toy = OnDisk::gguf(&Toy::from_fixture(&Fixture::named("share")));
    for bad in [0, 3] {
        let refused = Engine::load(&toy.open(), EngineOptions { moe_topk: Some(bad), ..exact() });
        assert!(refused.is_err_and(|e| e.class() == files::Class::Usage), "--moe-topk {bad}");
    }
}

#[test]
fn shared_only_leaves_the_routed_experts_out() {
    let f = Fixture::named("million");
    let toy = Toy::from_fixture(&f);
    let logits = engine_logits(&toy, &f.tokens, EngineOptions { shared_only: true, ..exact() });
    agrees(&toy, &f.tokens, &logits, Options { shared_only: true, ..Options::default() });
}

/// f16 caches cannot be compared tightly once selections depend on them; before that they can, and afterwards the rotated
/// keys keep nearly every selection.
#[test]
fn f16_caches_stay_close_and_keep_the_selections() {
    let f = Fixture::named("share");
    let model = OnDisk::gguf(&Toy::from_fixture(&f));
    let options = EngineOptions { cache_type: CacheType::F16, ..exact() };
    let (logits, choices) = run_dumped(&mut model.load(options), &f.tokens, &[f.tokens.len()]);
    let top = f.config.index_topk as usize;
    let off = difference(&logits[..top].to_vec(), &f.logits[..top].to_vec());
    assert!(off > 0.0 && off < 2e-3 * f64::from(f.max_abs_logit()), "{off:e}");
    let (mut same, mut all) = (0, 0);
    for (layer, rows) in &f.selections {
        for (theirs, ours) in rows.iter().zip(&choices.selections[layer]).skip(top) {
            same += ours.iter().filter(|p| theirs.contains(p)).count();
            all += theirs.len();
        }
    }
    assert!(same as f64 >= 0.95 * all as f64, "{same} of {all} selected positions");
}

/// The error of an 8-bit latent is at most 1/254 of its block's peak, uniformly spread: about 0.7 % of a typical one, where f16
/// has 0.02 %. Scores and values average over many, so the logits of a position that sees the same positions stay within 2 %
/// of the largest one; and the selections are f16's own wherever the hidden states do not differ, because index keys stay f16.
#[test]
fn q8_latents_stay_near_f16() {
    let f = Fixture::named("share");
    let model = OnDisk::gguf(&Toy::from_fixture(&f));
    let with = |cache_type| {
        let options = EngineOptions { cache_type, ..exact() };
        run_dumped(&mut model.load(options), &f.tokens, &[f.tokens.len()])
    };
    let ((q8, ours), (f16, theirs)) = (with(CacheType::Q8), with(CacheType::F16));
    let top = f.config.index_topk as usize;
    let off = difference(&q8[..top].to_vec(), &f16[..top].to_vec());
    assert!(off > 0.0 && off < 2e-2 * f64::from(f.max_abs_logit()), "{off:e} of {:e}", f.max_abs_logit());
    // Layer 0 selects before any latent is read.
    assert_eq!(ours.selections[&0], theirs.selections[&0]);
    let pairs =
        || ours.selections.iter().flat_map(|(layer, rows)| rows.iter().zip(&theirs.selections[layer]));
    let same: usize = pairs().map(|(a, b)| a.iter().filter(|p| b.contains(p)).count()).sum();
    let all: usize = pairs().map(|(_, b)| b.len()).sum();
    assert!(same as f64 >= 0.95 * all as f64, "{same} of {all} selected positions");
}

/// Neither the heads of a task nor the tokens of a step change a result: threads and micro-batches cut them differently.
#[test]
fn attention_does_not_depend_on_how_it_is_cut() {
    let f = Fixture::named("share");
    let model = OnDisk::gguf(&Toy::from_fixture(&f));
    for cache_type in [CacheType::F32, CacheType::F16, CacheType::Q8] {
        let with = |threads, ubatch| {
            let options = EngineOptions { cache_type, threads: Some(threads), ubatch, ..exact() };
            run_dumped(&mut model.load(options), &f.tokens, &[f.tokens.len()])
        };
        let (logits, choices) = with(1, 32);
        for (threads, ubatch) in [(2, 1), (3, 7), (5, 32)] {
            let (other, others) = with(threads, ubatch);
            assert!(logits == other, "{cache_type:?}: {threads} threads, micro-batches of {ubatch}");
            assert_eq!(choices.selections, others.selections);
        }
    }
}

/// Quantised weights through the reference. Activations are quantised too, so this is not tight; but no choice is left that
/// could flip (16 positions are all selected, every expert is used), and a wrong block layout would be nowhere near.
#[test]
fn quantised_models_resemble_their_dequantised_selves() {
    let tokens = toy::weights::tokens("quantised", 16, 96);
    for ty in [GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0, GgmlType::Q4_0] {
        let mut toy = Toy::wide(toy::Types::all(ty));
        toy.config.num_experts_per_tok = toy.config.n_routed_experts;
        let logits = engine_logits(&toy, &tokens, exact());
        let right = reference::forward(&toy, &tokens, Options::default());
        let pairs = || logits.iter().flatten().zip(right.logits.iter().flatten());
        let error: f64 = pairs().map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
        let power: f64 = pairs().map(|(_, b)| b * b).sum();
        let relative = (error / power).sqrt();
        // Unrelated logits would give about 1.4.
        let allowed = if matches!(ty, GgmlType::Q8_0 | GgmlType::Q4_0) { 0.08 } else { 1e-5 };
        assert!(relative < allowed, "{ty}: relative error {relative}");
    }
}

/// A factor that nothing would multiply by is an error, never ignored: on a dense tensor and on experts.
#[test]
fn a_tensor_with_a_factor_of_its_own_is_refused() {
    let toy = Toy::from_fixture(&Fixture::named("share"));
    for base in ["blk.0.attn_output", "blk.3.ffn_down_exps"] {
        let model = OnDisk::gguf(&toy);
        let mut writer = Writer::new(toy.metadata()).unwrap();
        for spec in toy.tensors() {
            let (ty, bytes) = (toy.type_of(&spec), toy.bytes(&spec));
            writer.tensor_bytes(spec.name, ty, &spec.shape, bytes).unwrap();
        }
        let name = format!("{base}.scale");
        writer.tensor_f32(name.clone(), &[1], &[2.0]).unwrap();
        writer.write_file(&model.path).unwrap();
        match Engine::load(&model.open(), exact()) {
            Err(Error::TensorFactor { tensor, factor }) => {
                assert_eq!((tensor, factor), (format!("{base}.weight"), name));
            }
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{name} was ignored"),
        }
    }
}
