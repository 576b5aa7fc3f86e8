//! Requests of more experts than a layer's share: what prompts do to a bank.

use slotbank_experts::BankSize;

use crate::support::{Placement, Toy, rough, serve};

const N_EXPERT: u32 = 32;
const SIZES: [u64; 3] = [96, 96, 96];

/// Tokens that choose expert `e` the more often, the higher its number; two experts each.
fn prompt() -> Vec<u32> {
    (0..N_EXPERT).flat_map(|e| (0..=e).flat_map(move |_| [e, (e + 1) % N_EXPERT])).collect()
}

#[test]
fn a_prompt_leaves_every_layer_its_most_used_experts() {
    let toy = Toy::new(N_EXPERT, &[SIZES; 4], Placement::Whole);
    let slot_bytes = toy.plan(BankSize::All, 2).unwrap().classes()[0].slot_bytes;
    let plan = toy.plan(BankSize::Bytes(40 * slot_bytes), 2).unwrap();
    // 40 slots, floors of 2: a ring of 8 and shares of 2 + 24 / 4.
    let share = plan.layers()[0].share;
    assert_eq!(share, 8);
    let mut bank = toy.bank(plan, toy.sim(rough(1)));
    for pass in 0..3u64 {
        bank.reset_stats();
        for layer in 3..7 {
            let waves = serve(&mut bank, layer, &prompt(), 2, SIZES).unwrap();
            assert_eq!(waves.concat().len(), N_EXPERT as usize, "each expert once");
            assert!(waves.iter().all(|wave| wave.len() <= 8), "small waves: {waves:?}");
        }
        let total = bank.stats().total();
        // Expert 31 is named most, and 0 by its neighbour's tokens too.
        for layer in 3..7 {
            for expert in N_EXPERT - share..N_EXPERT {
                assert!(bank.slot_of(layer, expert).is_some(), "layer {layer} expert {expert}, pass {pass}");
            }
        }
        // What the pass before left is there, and is not read again.
        assert_eq!(total.hits, if pass == 0 { 0 } else { total.hits.max(4 * u64::from(share)) });
        assert_eq!(total.reads, total.misses, "the three families are neighbours");
    }
}

#[test]
fn a_prompt_takes_nothing_of_another_layers_share() {
    let toy = Toy::new(N_EXPERT, &[SIZES; 4], Placement::Whole);
    let slot_bytes = toy.plan(BankSize::All, 2).unwrap().classes()[0].slot_bytes;
    let plan = toy.plan(BankSize::Bytes(40 * slot_bytes), 2).unwrap();
    let mut bank = toy.bank(plan, toy.sim(rough(2)));
    for layer in [3, 4, 5] {
        serve(&mut bank, layer, &[0, 1, 2, 3, 4, 5, 6, 7], 2, SIZES).unwrap();
    }
    serve(&mut bank, 6, &prompt(), 2, SIZES).unwrap();
    for layer in [3, 4, 5] {
        assert!((0..8).all(|expert| bank.slot_of(layer, expert).is_some()), "layer {layer} lost experts");
    }
}
