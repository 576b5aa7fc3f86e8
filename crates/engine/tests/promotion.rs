//! Promotion: experts that are hit again are rewritten in their slots, and no bit of any logit shows it. Whether slots are made large
//! enough for that is decided before loading.

mod common;

use common::{OnDisk, assert_same_bits, exact, packable, run};
use files::{Class, GgmlType};
use slotbank_engine::{BankSize, Engine, EngineOptions, Promote};
use toy::weights::tokens;
use toy::{Toy, Types};

#[test]
fn packed_experts_give_the_same_answer_with_and_without_evictions() {
    let model = packable();
    let tokens = tokens("promotion", 60, 96);
    let chunks = [20, 1];
    for ubatch in [1, 7, 32] {
        let base = EngineOptions { ubatch, promote: Promote::Never, ..exact() };
        let mut plain = model.load(base.clone());
        let reference = run(&mut plain, &tokens, &chunks);
        let stats = plain.bank_stats().expect("a bank").total();
        assert_eq!((stats.promotions, stats.packed_hits), (0, 0));
        for (bank, threads, slot8) in [
            (BankSize::All, 1, true),
            (BankSize::All, 3, false),
            (BankSize::SlotsPerLayer(3), 2, true),
            (BankSize::SlotsPerLayer(6), 3, true),
            (BankSize::SlotsPerLayer(11), 2, false),
        ] {
            let what = format!("ubatch {ubatch}, {bank:?}, {threads} threads, slot8 {slot8}");
            let options = EngineOptions {
                bank,
                threads: Some(threads),
                slot8,
                promote: Promote::Always,
                ..base.clone()
            };
            let mut engine = model.load(options);
            assert_same_bits(&run(&mut engine, &tokens, &chunks), &reference, &what);
            let stats = engine.bank_stats().expect("a bank").total();
            assert!(stats.promotions > 0, "{what}: {stats:?}");
            assert!(stats.packed_hits > 0 && stats.packed_hits <= stats.hits, "{what}: {stats:?}");
            assert_eq!(stats.evictions > 0, bank != BankSize::All, "{what}");
            // What an expert loses with its slot it earns again.
            assert!(bank != BankSize::All || stats.promotions <= 36, "{what}: {stats:?}");
            assert_eq!(engine.stats().allocated_bytes, engine.memory_plan().total_bytes, "{what}");
        }
    }
}

/// `auto` packs only where no slot is lost by it.
#[test]
fn auto_packs_where_every_expert_fits_that_way() {
    let model = packable();
    let checkpoint = model.open();
    let plan = |bank, promote, memory_bytes| {
        let options = EngineOptions { bank, promote, memory_bytes, ..exact() };
        Engine::plan(&checkpoint, &options).unwrap_or_else(|e| panic!("{e}"))
    };
    let slots = |plan: &slotbank_engine::MemoryPlan| plan.bank.as_ref().expect("a bank").slots_total();
    let packs = |plan: &slotbank_engine::MemoryPlan| plan.bank.as_ref().expect("a bank").packs();
    let plain = plan(BankSize::All, Promote::Never, None);
    let packed = plan(BankSize::All, Promote::Auto, None);
    assert!(!packs(&plain) && packs(&packed) && packed.total_bytes > plain.total_bytes);
    assert_eq!(slots(&packed), slots(&plain));
    // One byte short, and experts stay as they are.
    assert!(packs(&plan(BankSize::All, Promote::Auto, Some(packed.total_bytes))));
    assert!(!packs(&plan(BankSize::All, Promote::Auto, Some(packed.total_bytes - 1))));
    let all_bytes = packed.bank.as_ref().expect("a bank").all_bytes();
    assert!(packs(&plan(BankSize::Bytes(all_bytes), Promote::Auto, None)));
    assert!(!packs(&plan(BankSize::Bytes(all_bytes - 1), Promote::Auto, None)));
    assert!(!packs(&plan(BankSize::SlotsPerLayer(6), Promote::Auto, None)));
    // The same bytes hold fewer slots.
    let budget = plain.bank.as_ref().expect("a bank").all_bytes();
    assert!(slots(&plan(BankSize::Bytes(budget), Promote::Always, None)) < slots(&plain));
}

#[test]
fn always_is_refused_where_nothing_has_a_packed_form() {
    let model = OnDisk::gguf(&Toy::wide(Types::all(GgmlType::Q8_0)));
    let options = EngineOptions { promote: Promote::Always, ..exact() };
    let error = Engine::plan(&model.open(), &options).expect_err("Q8_0 has no packed form");
    assert_eq!(error.class(), Class::Usage, "{error}");
    assert!(error.to_string().contains("--promote"), "{error}");
    let plan = Engine::plan(&model.open(), &EngineOptions { promote: Promote::Auto, ..options });
    assert!(!plan.expect("auto runs anything").bank.expect("a bank").packs());
}
