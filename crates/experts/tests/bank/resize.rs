//! A bank that changes its size while it works.

use proptest::prelude::*;
use slotbank_experts::{BankSize, Error};

use crate::support::{Placement, Toy, assert_maps, rough, serve};

const N_EXPERT: u32 = 9;
const SIZES: [u64; 3] = [700, 4096, 5000];

proptest! {
    /// Whatever the sizes, every request gets its experts, no more slots are used than the size allows, and floors hold.
    #[test]
    fn requests_never_notice(
        steps in prop::collection::vec((0..40u64, 3..6u32, prop::collection::vec(0..N_EXPERT, 2)), 1..40),
        seed in any::<u64>(),
    ) {
        let toy = Toy::new(N_EXPERT, &[SIZES; 3], Placement::Whole);
        let slot_bytes = toy.plan(BankSize::All, 2).unwrap().classes()[0].slot_bytes;
        let plan = toy.plan(BankSize::Bytes(22 * slot_bytes), 2).unwrap().with_spares(2);
        let mut bank = toy.bank(plan, toy.sim(rough(seed)));
        for (size, layer, ids) in steps {
            let bytes = bank.resize(size * slot_bytes).unwrap();
            // Floors of two slots in three layers, and two spares; or everything that was planned.
            prop_assert_eq!(bytes, slot_bytes * size.clamp(8, 22));
            let ids: Vec<u32> = if ids[0] == ids[1] { vec![ids[0], (ids[0] + 1) % N_EXPERT] } else { ids };
            bank.read_ahead(3 + (layer + 1) % 3, &ids).unwrap();
            serve(&mut bank, layer, &ids, 2, SIZES).unwrap();
            assert_maps(&bank);
            let held: usize = (3..6u32)
                .map(|layer| (0..N_EXPERT).filter(|&e| bank.slot_of(layer, e).is_some()).count())
                .sum();
            prop_assert!(held as u64 <= size.clamp(8, 22) - 2);
        }
    }
}

/// Full is a bank without an empty slot; what a resize brings back is empty first.
#[test]
fn a_bank_knows_whether_it_is_full() {
    let toy = Toy::new(N_EXPERT, &[SIZES; 3], Placement::Whole);
    let slot_bytes = toy.plan(BankSize::All, 2).unwrap().classes()[0].slot_bytes;
    let mut bank = toy.rough(BankSize::Bytes(8 * slot_bytes), 2, 5);
    let fill = |bank: &mut slotbank_experts::Bank| {
        for step in 0..30u32 {
            let ids = [step % N_EXPERT, (step + 1) % N_EXPERT];
            serve(bank, 3 + step % 3, &ids, 2, SIZES).unwrap();
        }
    };
    assert!(!bank.is_full());
    fill(&mut bank);
    assert!(bank.is_full());
    bank.resize(6 * slot_bytes).unwrap();
    assert!(bank.is_full(), "the slots that are gone are not empty ones");
    bank.resize(8 * slot_bytes).unwrap();
    assert!(!bank.is_full());
    fill(&mut bank);
    assert!(bank.is_full());
    bank.clear();
    assert!(!bank.is_full());
}

#[test]
fn a_cleared_bank_is_cold() {
    let toy = Toy::new(N_EXPERT, &[SIZES; 3], Placement::Whole);
    for size in [BankSize::SlotsPerLayer(4), BankSize::All] {
        let mut bank = toy.rough(size, 2, 3);
        serve(&mut bank, 3, &[1, 2], 2, SIZES).unwrap();
        serve(&mut bank, 4, &[1, 2], 2, SIZES).unwrap();
        bank.clear();
        bank.reset_stats();
        assert_maps(&bank);
        serve(&mut bank, 3, &[1, 2], 2, SIZES).unwrap();
        let total = bank.stats().total();
        assert_eq!((total.hits, total.misses, total.evictions), (0, 2, 0), "{total:?}");
        serve(&mut bank, 3, &[1, 2], 2, SIZES).unwrap();
        assert_eq!(bank.stats().total().hits, 2);
    }
}

#[test]
fn a_fixed_number_of_slots_per_layer_stays() {
    let toy = Toy::new(N_EXPERT, &[SIZES; 3], Placement::Whole);
    let mut bank = toy.rough(BankSize::SlotsPerLayer(4), 2, 1);
    assert!(matches!(bank.resize(1 << 20), Err(Error::Usage(_))));
}
