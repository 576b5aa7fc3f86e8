//! Toy models against what Hugging Face transformers computed for them in f32: logits of every position to 1e-5 of the
//! largest, the same selected positions and experts (every fixture's margins are above 1e-5), whether the tokens arrive at
//! once, in chunks, or one by one.

mod common;

use common::{Choices, Logits, OnDisk, difference, exact, run_dumped, ways};
use slotbank_engine::EngineOptions;
use toy::{Fixture, Toy};

fn check(f: &Fixture, logits: &Logits, choices: &Choices, what: &str) {
    let (found, bound) = (difference(logits, &f.logits), 1e-5 * f64::from(f.max_abs_logit()));
    let positions: Vec<f64> =
        logits.iter().zip(&f.logits).map(|(a, b)| difference(&vec![a.clone()], &vec![b.clone()])).collect();
    assert_eq!(choices.selections, f.selections, "{what}: selected positions");
    assert_eq!(choices.experts, f.experts, "{what}: experts");
    assert!(
        found <= bound,
        "{what}: logits differ by {found:e}, allowed {bound:e}; by position {positions:?}"
    );
    for (layer, rows) in &f.expert_weights {
        for (ours, theirs) in choices.weights[layer].iter().flatten().zip(rows.iter().flatten()) {
            assert!(
                (ours - theirs).abs() <= 1e-5 * theirs.max(1.0),
                "{what}: layer {layer}: {ours} {theirs}"
            );
        }
    }
}

fn golden(name: &str) {
    let f = Fixture::named(name);
    assert!(f.margins.values().all(|margin| *margin > 1e-5), "{:?}", f.margins);
    let model = OnDisk::gguf(&Toy::from_fixture(&f));
    for (way, [batch, ubatch], chunks) in ways(f.tokens.len()) {
        let mut engine =
            model.load(EngineOptions { batch, ubatch, latent_eps: f.latent_eps as f32, ..exact() });
        let (logits, choices) = run_dumped(&mut engine, &f.tokens, &chunks);
        check(&f, &logits, &choices, &format!("{name}, {way}"));
    }
}

#[test]
fn v3_groups_and_yarn() {
    golden("v3");
}

#[test]
fn kimi_k2_with_a_ramp_of_one_pair() {
    golden("kimi");
}

#[test]
fn flash_glm_4_7_in_small() {
    golden("flash");
}

#[test]
fn v2_softmax_and_the_best_expert_of_a_group() {
    golden("v2");
}

#[test]
fn lite_without_a_query_latent() {
    golden("lite");
}

#[test]
fn share_glm_5_2_in_small() {
    golden("share");
}

#[test]
fn groups_of_experts_and_no_schedule_in_a_short_context() {
    golden("groups");
}

#[test]
fn yarn_with_mscale_and_weights_as_they_are() {
    golden("yarn");
}

#[test]
fn million_positions_and_no_schedule() {
    golden("million");
}

#[test]
fn mixed_alternating_layers_other_betas_and_groups() {
    golden("mixed");
}
