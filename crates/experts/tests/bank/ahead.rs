//! Reading ahead of demand: it moves bytes early and changes nothing else.

use proptest::prelude::*;
use slotbank_experts::read::sim::{self, Fault, FaultAt};
use slotbank_experts::{Bank, BankSize, Error, Trace, trace};

use crate::cases::Sink;
use crate::support::{Placement, Toy, assert_content, assert_maps, rough, serve};

const N_EXPERT: u32 = 9;
const LAYERS: u32 = 3;
const SIZES: [u64; 3] = [700, 4096, 5000];

fn toy(placement: Placement) -> Toy {
    Toy::new(N_EXPERT, &[SIZES; LAYERS as usize], placement)
}

fn bank(toy: &Toy, size: BankSize, spares: u32, drive: sim::Options) -> Bank {
    toy.bank(toy.plan(size, 2).unwrap().with_spares(spares), toy.sim(drive))
}

/// Guesses before a call, and the call.
#[derive(Debug, Clone)]
struct Turn {
    guesses: Vec<(u32, Vec<u32>)>,
    layer: u32,
    ids: Vec<u32>,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let ids = |n: usize| prop::sample::subsequence((0..N_EXPERT).collect::<Vec<_>>(), n).prop_shuffle();
    let guess = (0..LAYERS, (1..=4usize).prop_flat_map(ids)).prop_map(|(layer, ids)| (layer + 3, ids));
    let call = (0..LAYERS, 1..=3usize).prop_flat_map(move |(layer, tokens)| {
        prop::collection::vec(ids(2), tokens).prop_map(move |ids| (layer + 3, ids.concat()))
    });
    let turn = (prop::collection::vec(guess, 0..3), call).prop_map(|(guesses, (layer, ids))| Turn {
        guesses,
        layer,
        ids,
    });
    prop::collection::vec(turn, 1..40)
}

fn residents(bank: &Bank) -> Vec<Option<(u32, u32)>> {
    let classes = (0u16..).zip(bank.plan().classes());
    let slots = classes.flat_map(|(class, size)| (0..size.slots).map(move |index| (class, index)));
    slots
        .map(|(class, index)| bank.resident(slotbank_experts::SlotId { class, index }))
        .map(|key| key.map(|key| (key.layer, key.expert)))
        .collect()
}

proptest! {
    /// With guesses and without: the same hits, misses and evictions, the same experts in the same slots after every call, and every
    /// expert computed with its own bytes.
    #[test]
    fn guesses_change_nothing_but_when_bytes_are_read(
        turns in turns(),
        slots in 2..=6u32,
        spares in 1..=4u32,
        record in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let toy = toy(if record { Placement::Record } else { Placement::Whole });
        let size = BankSize::SlotsPerLayer(slots);
        let mut plain = bank(&toy, size, 0, rough(seed));
        let mut ahead = bank(&toy, size, spares, rough(seed));
        for turn in &turns {
            for (layer, ids) in &turn.guesses {
                ahead.read_ahead(*layer, ids).unwrap();
            }
            serve(&mut plain, turn.layer, &turn.ids, 2, SIZES).unwrap();
            serve(&mut ahead, turn.layer, &turn.ids, 2, SIZES).unwrap();
            assert_maps(&ahead);
            prop_assert_eq!(residents(&plain), residents(&ahead));
            for (layer, expert) in residents(&ahead).into_iter().flatten() {
                assert_content(&ahead, layer, expert, ahead.slot_of(layer, expert).unwrap(), SIZES);
            }
        }
        let (plain, ahead) = (plain.stats().total(), ahead.stats().total());
        prop_assert_eq!(plain.without_time(), ahead.without_time());
        prop_assert!(ahead.ahead_used <= ahead.ahead && ahead.ahead_used <= ahead.misses);
    }
}

#[test]
fn a_right_guess_is_there_at_once() {
    let toy = toy(Placement::Whole);
    let mut bank = bank(&toy, BankSize::SlotsPerLayer(2), 2, sim::Options::default());
    bank.read_ahead(3, &[7, 1]).unwrap();
    let waves = serve(&mut bank, 4, &[0, 5], 2, SIZES).unwrap();
    assert_eq!(waves.concat(), [0, 5]);
    // By now the drive has delivered; both come in one wave, without a read of their own.
    assert_eq!(serve(&mut bank, 3, &[1, 7], 2, SIZES).unwrap(), [[1, 7]]);
    let total = bank.stats().total();
    assert_eq!((total.ahead, total.ahead_used, total.ahead_late), (2, 2, 0), "{total:?}");
    assert_eq!((total.misses, total.ahead_wasted_bytes), (4, 0), "a miss that was foreseen is still a miss");
    assert_eq!((total.guessed, total.guessed_right), (2, 2));
}

#[test]
fn a_trace_line_has_the_guess_for_its_call() {
    let toy = toy(Placement::Whole);
    let mut bank = bank(&toy, BankSize::SlotsPerLayer(2), 2, sim::Options::default());
    let sink = Sink::default();
    bank.set_trace(Trace::new(Box::new(sink.clone())));
    bank.read_ahead(4, &[7, 1]).unwrap();
    serve(&mut bank, 4, &[1, 2], 2, SIZES).unwrap();
    serve(&mut bank, 4, &[1, 2], 2, SIZES).unwrap();
    bank.take_trace().unwrap().finish().unwrap();
    let text = sink.0.lock().unwrap().clone();
    let records: Vec<_> = trace::read(text.as_slice()).map(Result::unwrap).collect();
    assert_eq!((&records[0].predicted[..], &records[1].predicted[..]), (&[7, 1][..], &[][..]));
}

#[test]
fn a_wrong_guess_is_given_up_when_its_layer_asks_for_others() {
    let toy = toy(Placement::Whole);
    let mut bank = bank(&toy, BankSize::SlotsPerLayer(2), 2, sim::Options::default());
    bank.read_ahead(3, &[7, 1]).unwrap();
    serve(&mut bank, 4, &[0, 5], 2, SIZES).unwrap();
    serve(&mut bank, 3, &[1, 2], 2, SIZES).unwrap();
    let total = bank.stats().total();
    assert_eq!((total.ahead, total.ahead_used, total.guessed_right), (2, 1, 1), "{total:?}");
    assert_eq!(total.ahead_wasted_bytes, SIZES.iter().sum::<u64>());
    // Its spare is free again, and so is the one whose memory became a slot's.
    bank.read_ahead(4, &[8, 3]).unwrap();
    assert_eq!(bank.stats().total().ahead, 4);
}

#[test]
fn an_error_ahead_of_demand_is_nobodys_until_somebody_asks() {
    let toy = toy(Placement::Whole);
    let at = FaultAt::Expert { layer: 3, expert: 7 };
    // The three reads ahead, and one more.
    for times in [1, 4] {
        let drive = sim::Options { faults: vec![Fault { at, times }], ..rough(5) };
        let mut bank = bank(&toy, BankSize::SlotsPerLayer(2), 2, drive);
        bank.read_ahead(3, &[7]).unwrap();
        serve(&mut bank, 4, &[0, 5], 2, SIZES).unwrap();
        serve(&mut bank, 5, &[0, 5], 2, SIZES).unwrap();
        serve(&mut bank, 4, &[0, 5], 2, SIZES).unwrap();
        let asked = serve(&mut bank, 3, &[7, 1], 2, SIZES);
        match times {
            1 => drop(asked.expect("the second read of the expert is good")),
            _ => assert!(matches!(asked, Err(Error::Read { layer: 3, expert: 7, .. })), "{asked:?}"),
        }
        serve(&mut bank, 3, &[7, 1], 2, SIZES).unwrap();
    }
}

#[test]
fn foreign_layers_and_experts_are_refused() {
    let toy = toy(Placement::Whole);
    let mut bank = bank(&toy, BankSize::SlotsPerLayer(2), 2, sim::Options::default());
    assert!(matches!(bank.read_ahead(99, &[0]), Err(Error::NoSuchLayer { layer: 99 })));
    assert!(matches!(bank.read_ahead(3, &[0, N_EXPERT]), Err(Error::NoSuchExpert { expert: N_EXPERT, .. })));
    assert_eq!(bank.stats().total().ahead, 0);
}

#[test]
fn spares_come_out_of_a_budget_and_on_top_of_a_number_of_slots() {
    let toy = toy(Placement::Whole);
    let slot_bytes = toy.plan(BankSize::SlotsPerLayer(2), 2).unwrap().classes()[0].slot_bytes;
    let counts = |size, spares| {
        let plan = toy.plan(size, 2).unwrap().with_spares(spares);
        assert_eq!(plan.arena_bytes(), plan.classes().iter().map(|class| class.bytes()).sum::<u64>());
        (plan.classes()[0].slots, plan.classes()[0].spares)
    };
    assert_eq!(counts(BankSize::Bytes(15 * slot_bytes), 4), (11, 4));
    assert_eq!(counts(BankSize::Bytes(8 * slot_bytes), 4), (6, 2), "the floor stays");
    assert_eq!(counts(BankSize::Bytes(6 * slot_bytes), 4), (6, 0));
    assert_eq!(counts(BankSize::SlotsPerLayer(4), 4), (12, 4));
    assert_eq!(counts(BankSize::All, 4), (27, 0), "nothing is ever missed");
}
