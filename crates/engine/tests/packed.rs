//! Sidecars whose experts are packed already: the same bits as from the GGUF, nothing left to promote, and what the plan says.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{OnDisk, assert_same_bits, exact, packable, run};
use experts::BankPlan;
use files::extract::{self, extract};
use files::manifest::Layout;
use files::{Checkpoint, Class, ExpertTensor, GgmlType};
use serde_json::{Value, json};
use slotbank_engine::{BankSize, Engine, EngineOptions, Error, Prefetch, Promote, known_packers};
use toy::weights::tokens;

/// Extracts `model` with its dense part into the folder `name` beside it. Every form, whatever pays on this processor.
fn sidecar(model: &OnDisk, name: &str, pack: bool) -> PathBuf {
    let folder = model.dir.path().join(name);
    let options = extract::Options {
        layout: Layout::ExpertMajor,
        dense: true,
        pack: pack.then(known_packers),
        ..Default::default()
    };
    extract(&model.open(), &folder, &options, &mut |_| ()).unwrap_or_else(|e| panic!("{e}"));
    folder
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn is_packed(tensor: &&ExpertTensor) -> bool {
    tensor.form.is_some()
}

#[test]
fn packed_sidecars_give_the_bits_of_the_gguf_and_of_the_plain_sidecar() {
    let model = packable();
    let [plain, packed] =
        [("plain", false), ("packed", true)].map(|(name, pack)| open(&sidecar(&model, name, pack)));
    assert_eq!(plain.experts().iter().filter(is_packed).count(), 0);
    // Three layers of three families; Q4_K, Q8_0 and Q4_0 have no packed form.
    assert_eq!(packed.experts().iter().filter(is_packed).count(), 6);
    let tokens = tokens("packed", 60, 96);
    // A prompt with many columns per expert, then token by token.
    let chunks = [44, 1];
    for ubatch in [1, 7, 64] {
        let base = EngineOptions { ubatch, promote: Promote::Never, ..exact() };
        let mut engine = model.load(base.clone());
        let reference = run(&mut engine, &tokens, &chunks);
        for (bank, threads, slot8, promote) in [
            (BankSize::All, 1, true, Promote::Auto),
            (BankSize::All, 3, false, Promote::Always),
            (BankSize::SlotsPerLayer(3), 2, true, Promote::Never),
            (BankSize::SlotsPerLayer(6), 3, true, Promote::Always),
            (BankSize::SlotsPerLayer(11), 2, false, Promote::Auto),
        ] {
            let options = EngineOptions { bank, threads: Some(threads), slot8, promote, ..base.clone() };
            for (name, checkpoint) in [("plain", &plain), ("packed", &packed)] {
                let what = format!("{name}: ubatch {ubatch}, {bank:?}, {threads} threads, {promote:?}");
                let mut engine =
                    Engine::load(checkpoint, options.clone()).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_same_bits(&run(&mut engine, &tokens, &chunks), &reference, &what);
                let stats = engine.bank_stats().expect("a bank").total();
                assert!(stats.hits > 0, "{what}");
                if name == "packed" {
                    assert_eq!((stats.promotions, stats.packed_hits), (0, 0), "{what}");
                }
                assert_eq!(engine.stats().allocated_bytes, engine.memory_plan().total_bytes, "{what}");
            }
        }
    }
}

#[test]
fn the_plan_says_what_packing_costs() {
    let model = packable();
    let [plain, packed] =
        [("plain", false), ("packed", true)].map(|(name, pack)| open(&sidecar(&model, name, pack)));
    let plan = |checkpoint, bank| {
        // Without spare slots, which are no part of the comparison.
        let prefetch = Prefetch::Off;
        let options = EngineOptions { bank, promote: Promote::Never, prefetch, ..exact() };
        Engine::plan(checkpoint, &options).unwrap_or_else(|e| panic!("{e}"))
    };
    let slots = |plan: &slotbank_engine::MemoryPlan| plan.bank.as_ref().map_or(0, BankPlan::slots_total);
    let all = plan(&packed, BankSize::All);
    assert!(plan(&plain, BankSize::All).notes.is_empty());
    assert!(all.total_bytes > plan(&plain, BankSize::All).total_bytes);
    let per_token = |bytes: fn(&ExpertTensor) -> u64| -> u64 {
        packed.experts().iter().map(bytes).sum::<u64>() * u64::from(all.model.top_k)
    };
    let (now, before) = (per_token(|t| t.expert_bytes), per_token(ExpertTensor::unpacked_expert_bytes));
    assert_eq!(
        before,
        plain.experts().iter().map(|t| t.expert_bytes).sum::<u64>() * u64::from(all.model.top_k)
    );
    let times = format!("{:.2} times as much", now as f64 / before as f64);
    assert!(all.notes[0].contains(&times), "{times}: {:?}", all.notes);
    // The same bytes, and the number of slots that they would be otherwise.
    let bytes = BankSize::Bytes(plan(&plain, BankSize::SlotsPerLayer(6)).bank.expect("a bank").arena_bytes());
    let fewer = plan(&packed, bytes);
    let taken = fewer.bank.as_ref().expect("a bank").arena_bytes();
    let otherwise = slots(&plan(&plain, BankSize::Bytes(taken)));
    assert!(slots(&fewer) < otherwise);
    let expected = format!("{} slots take the memory of {otherwise} unpacked ones", slots(&fewer));
    assert!(fewer.notes[0].contains(&expected), "{expected}: {:?}", fewer.notes);
}

/// A change of a packed entry, and whether the manifest still parses.
type Change = fn(&mut Value);

#[test]
fn forms_that_this_version_does_not_know_are_refused() {
    let model = packable();
    let folder = sidecar(&model, "packed", true);
    let path = folder.join("manifest.json");
    let good: Value = serde_json::from_slice(&fs::read(&path).expect("a manifest")).expect("json");
    // Found by name: in which order the layers have which types is the toy's business.
    let entries = good["entries"].as_array().expect("a list");
    let at = entries.iter().position(|e| e["packed"]["source_type"] == "IQ2_XXS").expect("a packed entry");
    let changes: [(&str, Change); 3] = [
        ("name", |entry| entry["quant_type"] = json!("IQ2_XXS of tomorrow")),
        ("version", |entry| entry["packed"]["version"] = json!("0123456789abcdef")),
        // Of the same block size in elements, so that the manifest is consistent.
        ("source type", |entry| entry["packed"]["source_type"] = json!("IQ2_S")),
    ];
    for (what, change) in changes {
        let mut bad = good.clone();
        change(&mut bad["entries"][at]);
        fs::write(&path, bad.to_string()).expect("written");
        let checkpoint = open(&folder);
        let error = Engine::plan(&checkpoint, &exact()).expect_err(what);
        assert_eq!(error.class(), Class::Unsupported, "{what}: {error}");
        let tensor = bad["entries"][at]["tensor_name"].as_str().expect("a name");
        assert!(matches!(&error, Error::Form { tensor: found, .. } if found == tensor), "{what}: {error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("extract")), "{error}");
    }
    fs::write(&path, good.to_string()).expect("written");
    Engine::plan(&open(&folder), &exact()).expect("as it was");
}

/// The names and ids by which forms are known must not be those of anything else.
#[test]
fn forms_have_names_and_ids_of_their_own() {
    let packers = known_packers();
    assert!(!packers.is_empty());
    for packer in &packers {
        let packed = kernels::packed(packer.source().id()).expect("it has a form");
        assert_eq!(packer.form().name, packed.format.name);
        assert!(kernels::format(packed.format.id).is_none(), "{}", packed.format.name);
        assert!(GgmlType::from_name(packed.format.name).is_none(), "{}", packed.format.name);
        let same = |other: &&files::Packer| other.form().name == packer.form().name;
        assert_eq!(packers.iter().filter(same).count(), 1, "{}", packed.format.name);
    }
}
