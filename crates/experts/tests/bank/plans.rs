//! Plans: floors, budgets, size classes, and that what is planned is what is allocated.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use slotbank_experts::{Bank, BankPlan, BankSize, Error, Lru};

use crate::support::{Placement, TestArena, Toy};

#[test]
fn below_the_floor_the_plan_refuses_with_both_numbers() {
    let toy = Toy::new(8, &[[5000, 5000, 5000]; 2], Placement::Record);
    let plan = toy.plan(BankSize::SlotsPerLayer(3), 3).unwrap();
    let floor = 2 * 3 * 16384;
    assert_eq!((plan.floor_bytes(), plan.arena_bytes()), (floor, floor));
    assert_eq!(toy.plan(BankSize::Bytes(floor), 3).unwrap().arena_bytes(), floor);
    let error = toy.plan(BankSize::Bytes(floor - 1), 3).unwrap_err();
    assert!(
        matches!(error, Error::DoesNotFit { needed, given, floor: 3, layers: 2 } if needed == floor && given == floor - 1)
    );
    assert_eq!(error.class(), files::Class::DoesNotFit);
    assert_eq!(error.hint().unwrap(), "give the bank at least 96.00 KiB");
    let text = error.to_string();
    assert!(text.contains("98304") && text.contains("98303"), "{text}");
    let error = toy.plan(BankSize::SlotsPerLayer(2), 3).unwrap_err();
    assert!(
        matches!(error, Error::DoesNotFit { needed, given, .. } if needed == floor && given == floor / 3 * 2)
    );
    let error = BankPlan::new(BankSize::Auto, 1000, 3, &toy.layers).unwrap_err();
    assert!(matches!(error, Error::DoesNotFit { given: 1000, .. }));
}

#[test]
fn auto_takes_what_is_available_and_never_more_than_everything() {
    let toy = Toy::new(8, &[[5000, 5000, 5000]; 2], Placement::Record);
    let auto = |available| BankPlan::new(BankSize::Auto, available, 3, &toy.layers).unwrap();
    assert_eq!(auto(1 << 40).arena_bytes(), 16 * 16384);
    assert!(auto(1 << 40).is_resident());
    assert_eq!(auto(11 * 16384 + 100).slots_total(), 11);
    assert_eq!(auto(7 * 16384).slots_total(), 7);
    // Where the classes differ, no layer falls under top-k + 2 as long as that fits.
    let mixed = Toy::new(16, &[[5000, 5000, 5000], [90_000, 90_000, 90_000]], Placement::Record);
    let least = |k| mixed.plan(BankSize::SlotsPerLayer(k), 1).unwrap().arena_bytes();
    let plan = BankPlan::new(BankSize::Auto, least(5), 3, &mixed.layers).unwrap();
    assert!(plan.classes().iter().all(|class| class.slots == 5), "{plan:?}");
}

#[test]
fn layers_of_like_size_share_a_class() {
    let toy = Toy::new(4, &[[400_000; 3], [90_000; 3], [398_000; 3], [90_000; 3]], Placement::Record);
    let plan = toy.plan(BankSize::All, 2).unwrap();
    let classes: Vec<u16> = plan.layers().iter().map(|layer| layer.class).collect();
    assert_eq!(classes, [0, 1, 0, 1]);
    assert_eq!(plan.classes().iter().map(|class| class.slots).collect::<Vec<_>>(), [8, 8]);
    assert_eq!(plan.layers()[0].expert_bytes, 1_200_000);
    assert!(plan.summary().contains("all 16 experts of 4 layers"), "{}", plan.summary());
    assert!(serde_json::to_string(&plan).unwrap().contains("\"arena_bytes\""));
}

#[test]
fn broken_geometry_is_an_error() {
    let good = Toy::new(4, &[[500, 500, 500]], Placement::Whole);
    let broken = |change: fn(&mut Toy)| {
        let mut toy = good.clone();
        change(&mut toy);
        toy.plan(BankSize::All, 2).unwrap_err()
    };
    for change in [
        (|toy| toy.layers[0].tensors[1].family = files::Family::Gate) as fn(&mut Toy),
        |toy| toy.layers[0].tensors[1].expert_bytes = 0,
        |toy| toy.layers[0].tensors[1].shape[2] = 5,
        |toy| toy.layers[0].tensors[1].stride = u64::MAX / 2,
        |toy| toy.layers[0].tensors.clear(),
        |toy| toy.layers.push(toy.layers[0].clone()),
    ] {
        let error = broken(change);
        assert!(matches!(error, Error::Geometry { layer: 3, .. }), "{error}");
    }
    assert!(matches!(good.plan(BankSize::All, 0), Err(Error::Usage(_))));
}

#[test]
fn sizes_are_read_as_people_write_them() {
    let parse = |text: &str| text.parse::<BankSize>().ok();
    assert_eq!(parse("auto"), Some(BankSize::Auto));
    assert_eq!(parse("ALL"), Some(BankSize::All));
    assert_eq!(parse("16"), Some(BankSize::SlotsPerLayer(16)));
    assert_eq!(parse("8GiB"), Some(BankSize::Bytes(8 << 30)));
    assert_eq!(parse("25%"), Some(BankSize::Percent(25)));
    assert_eq!(BankSize::Percent(25).to_string(), "25%");
    for bad in ["0%", "101%", "2.5%", "-1%", "%"] {
        assert_eq!(parse(bad), None, "{bad}");
    }
    assert_eq!(parse("1.5g"), Some(BankSize::Bytes(3 << 29)));
    assert_eq!(parse("500 MB"), Some(BankSize::Bytes(500_000_000)));
    assert_eq!(parse("123456B"), Some(BankSize::Bytes(123_456)));
    for bad in ["", "-1", "8Gib8", "x", "1.5", "99999999999999TiB", "GiB", "1e9"] {
        assert_eq!(parse(bad), None, "{bad}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_stays_inside_its_budget_and_is_what_the_arena_allocates(
        sizes in prop::collection::vec([100..9000u64, 100..9000, 100..9000], 1..5),
        n_expert in 1..7u32,
        top_k in 1..4u32,
        budget in 0..1_500_000u64,
        record in any::<bool>(),
    ) {
        let toy = Toy::new(n_expert, &sizes, if record { Placement::Record } else { Placement::Whole });
        match toy.plan(BankSize::Bytes(budget), top_k) {
            Err(Error::DoesNotFit { needed, given, .. }) => prop_assert!(given == budget && needed > budget),
            Err(error) => panic!("{error}"),
            Ok(plan) => {
                prop_assert!(plan.arena_bytes() <= budget);
                prop_assert!(plan.floor_bytes() <= plan.arena_bytes());
                prop_assert!(plan.arena_bytes() <= plan.all_bytes());
                let smallest = plan.classes().iter().map(|class| class.slot_bytes).min().unwrap();
                prop_assert!(plan.is_resident() || budget - plan.arena_bytes() < smallest.max(plan.classes()[0].slot_bytes));
                for layer in plan.layers() {
                    prop_assert!(layer.slots_min == top_k.min(n_expert) && layer.slots_max >= layer.slots_min);
                }
                let arena = TestArena::default();
                let allocated = Arc::clone(&arena.allocated);
                let policy = Box::new(Lru::new(&plan));
                let reader = toy.sim(Default::default());
                let bank = Bank::new(plan, &toy.names(), reader, Box::new(arena), policy).unwrap();
                prop_assert_eq!(allocated.load(Ordering::Relaxed), bank.plan().arena_bytes());
            }
        }
    }
}
