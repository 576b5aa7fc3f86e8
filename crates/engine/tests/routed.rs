//! The routed experts and what surrounds them: neither the threads, nor the micro-batch, nor whether the experts of a wave are
//! computed together or one by one changes a bit of the logits.

mod common;

use common::{OnDisk, assert_same_bits, exact, run};
use files::GgmlType;
use slotbank_engine::{BankSize, EngineOptions};
use toy::weights::tokens;
use toy::{Toy, Types};

/// Layers whose gate, up and down differ in format and activation form.
fn mixed() -> Types {
    use GgmlType as T;
    Types {
        dense: T::Q8_0,
        experts: vec![[T::IQ2_XXS, T::Q4_0, T::Q6_K], [T::Q4_K, T::Q4_K, T::F32], [T::Q8_0, T::F32, T::Q4_0]],
    }
}

/// More tokens than the largest turn of the routed experts has room for pairs.
const PROMPT: usize = 400;

#[test]
fn nothing_but_the_weights_and_the_tokens_decides() {
    let model = OnDisk::gguf(&Toy::wide(mixed()));
    let tokens = tokens("routed", PROMPT + 3, 96);
    let chunks = [PROMPT, 1];
    let base = EngineOptions { context: Some(PROMPT as u32 + 3), ..exact() };
    let one = EngineOptions { ubatch: 1, threads: Some(1), slot8: false, ..base.clone() };
    let reference = run(&mut model.load(one), &tokens, &chunks);
    for (batch, ubatch, threads, slot8, bank) in [
        (1, 1, 2, true, BankSize::All),
        (1, 1, 8, true, BankSize::SlotsPerLayer(3)),
        (300, 2, 3, true, BankSize::SlotsPerLayer(5)),
        (1, 7, 8, true, BankSize::All),
        (1, 32, 2, true, BankSize::SlotsPerLayer(4)),
        (100, 32, 1, false, BankSize::All),
        (512, 32, 3, true, BankSize::SlotsPerLayer(6)),
        (512, 512, 1, true, BankSize::All),
        (1, 512, 2, false, BankSize::All),
        (1, 512, 3, true, BankSize::SlotsPerLayer(3)),
        (512, 512, 8, true, BankSize::All),
        (1, 512, 2, false, BankSize::SlotsPerLayer(7)),
    ] {
        let options = EngineOptions { batch, ubatch, threads: Some(threads), slot8, bank, ..base.clone() };
        let logits = run(&mut model.load(options), &tokens, &chunks);
        let what = format!("batch {batch}, ubatch {ubatch}, {threads} threads, slot8 {slot8}, {bank:?}");
        assert_same_bits(&logits, &reference, &what);
    }
}

#[test]
fn prompts_may_use_other_threads_than_tokens() {
    let model = OnDisk::gguf(&Toy::wide(mixed()));
    let tokens = tokens("threads", 40, 96);
    let reference = run(&mut model.load(exact()), &tokens, &[20, 1, 1, 5]);
    for (threads, threads_batch) in [(1, 4), (4, 1), (2, 3)] {
        let options = EngineOptions { threads: Some(threads), threads_batch: Some(threads_batch), ..exact() };
        let mut engine = model.load(options);
        assert_same_bits(
            &run(&mut engine, &tokens, &[20, 1, 1, 5]),
            &reference,
            &format!("{threads} threads, {threads_batch} for prompts"),
        );
        let described = engine.stats().backend;
        assert!(
            described.contains(&format!("{threads} threads ({threads_batch} for prompts)")),
            "{described}"
        );
    }
}
