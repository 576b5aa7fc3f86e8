//! The bank, with every policy, against a small model, over random requests on a drive that delays, reorders, returns short
//! and fails.

use std::collections::BTreeSet;

use proptest::prelude::*;
use slotbank_experts::policy::{NAMES, by_name};
use slotbank_experts::read::sim;
use slotbank_experts::{Bank, BankPlan, BankSize, Error, ExpertKey, Policy, SlotId};

use crate::support::{Placement, Toy, assert_content, assert_maps, rough};

/// Who is in which slot, in as few words as possible. It asks a policy of its own for victims; whether that policy itself is
/// right is the policy's own test.
struct Naive {
    policy: Box<dyn Policy>,
    /// Layer and expert of each slot.
    held: Vec<Option<(u32, u32)>>,
    min: usize,
    max: usize,
    /// What a wide request leaves every layer, and how many slots it may take.
    share: usize,
    wide: usize,
}

/// A slot and the experts that pass through it in one request.
type Chain = (usize, Vec<u32>);

impl Naive {
    fn new(plan: &BankPlan, policy: &str) -> Self {
        let (min, max) = plan.slots_for(3).unwrap();
        let (slots, min, max) = (plan.slots_total() as usize, min as usize, max as usize);
        let beyond = if min == max { 0 } else { slots - LAYERS as usize * min };
        let all_fit = slots >= (LAYERS * N_EXPERT) as usize;
        let ring = if all_fit { 0 } else { (beyond / 4).min(16) };
        let share = if all_fit { N_EXPERT as usize } else { min + (beyond - ring) / LAYERS as usize };
        let share = max.min(share);
        let (policy, held) = (by_name(policy, plan).unwrap(), vec![None; slots]);
        Naive { policy, held, min, max, share, wide: max.min(share + ring) }
    }

    fn holds(&self, layer: u32) -> usize {
        self.held.iter().flatten().filter(|key| key.0 == layer).count()
    }

    fn find(&self, layer: u32, expert: u32) -> Option<usize> {
        self.held.iter().position(|key| *key == Some((layer, expert)))
    }

    /// The hits of a request, and what passes through each slot that it uses.
    fn request(&mut self, layer: u32, ids: &[u32]) -> (usize, Vec<Chain>) {
        let mut unique: Vec<u32> = Vec::new();
        ids.iter().for_each(|id| {
            if !unique.contains(id) {
                unique.push(*id)
            }
        });
        let uses = |id: u32| ids.iter().filter(|&&other| other == id).count();
        let wide = unique.len() > self.share;
        let (most, kept) = if wide { (self.wide, self.share) } else { (self.max, self.min) };
        if wide {
            unique.sort_by_key(|&id| uses(id));
        }
        let mut chains: Vec<Chain> =
            unique.iter().filter_map(|&id| Some((self.find(layer, id)?, vec![id]))).collect();
        let hits = chains.len();
        let missing = |id: &u32| self.find(layer, *id).is_none();
        let misses: Vec<u32> = unique.iter().copied().filter(missing).collect();
        for id in misses {
            let grows = self.holds(layer) < most;
            let slot = match self.held.iter().position(Option::is_none) {
                Some(slot) if grows => Some(slot),
                _ => self.victim(layer, grows.then_some(kept), &chains),
            };
            if let Some(slot) = slot {
                // Held from now on, though nobody is found there yet.
                self.held[slot] = Some((layer, u32::MAX));
                chains.push((slot, vec![id]));
            } else {
                // Behind whoever comes last so far in the slot whose last one is used least.
                let rank = |chain: &&mut Chain| unique.iter().position(|u| u == chain.1.last().unwrap());
                chains.iter_mut().min_by_key(rank).unwrap().1.push(id);
            }
        }
        for &expert in &unique {
            let slot = chains.iter().find(|chain| chain.1.contains(&expert)).unwrap().0;
            self.policy.touch(slot_id(slot), ExpertKey { layer, expert });
        }
        chains.iter().for_each(|chain| self.held[chain.0] = Some((layer, *chain.1.last().unwrap())));
        (hits, chains)
    }

    /// `kept`: what other layers keep where this one may grow.
    fn victim(&mut self, layer: u32, kept: Option<usize>, chains: &[Chain]) -> Option<usize> {
        let held: Vec<usize> = (0..self.held.len())
            .map(|slot| self.held[slot].map_or(0, |(other, _)| self.holds(other)))
            .collect();
        let eligible = |slot: SlotId| {
            let slot = slot.index as usize;
            let other = self.held[slot].expect("policies know filled slots only").0;
            let leased = chains.iter().any(|chain| chain.0 == slot);
            !leased && (other == layer || kept.is_some_and(|kept| held[slot] > kept))
        };
        self.policy.victim(0, &eligible).map(|slot| slot.index as usize)
    }

    /// After a failed request: each chain stands wherever it was cut, or its slot is empty.
    fn resync(&mut self, bank: &Bank, layer: u32, chains: &[Chain]) {
        for (slot, chain) in chains {
            let resident = chain.iter().find(|&&id| bank.slot_of(layer, id).is_some());
            self.held[*slot] = resident.map(|&id| (layer, id));
            if resident.is_none() {
                self.policy.forget(slot_id(*slot));
            }
        }
    }
}

fn slot_id(index: usize) -> SlotId {
    SlotId { class: 0, index: index as u32 }
}

#[derive(Debug, Clone)]
struct Call {
    layer: u32,
    k: u32,
    ids: Vec<u32>,
    /// Give up after so many waves.
    abandon: Option<usize>,
}

const N_EXPERT: u32 = 9;
const LAYERS: u32 = 3;
const SIZES: [u64; 3] = [700, 4096, 5000];

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let call = (0..LAYERS, 1..=3u32, 1..=5usize, prop::option::weighted(0.1, 0..3usize)).prop_flat_map(
        |(layer, k, n_tokens, abandon)| {
            let token =
                prop::sample::subsequence((0..N_EXPERT).collect::<Vec<_>>(), k as usize).prop_shuffle();
            prop::collection::vec(token, n_tokens).prop_map(move |tokens| Call {
                layer: layer + 3,
                k,
                ids: tokens.concat(),
                abandon,
            })
        },
    );
    prop::collection::vec(call, 1..40)
}

/// A byte budget stands for that many slots here; what a slot costs depends on the layout.
fn sizes() -> impl Strategy<Value = BankSize> {
    prop_oneof![
        2 => (3..=N_EXPERT).prop_map(BankSize::SlotsPerLayer),
        4 => (9..27u64).prop_map(BankSize::Bytes),
        1 => Just(BankSize::All),
    ]
}

/// Serves one call wave by wave; true if it went to its end.
fn serve(bank: &mut Bank, call: &Call) -> Result<bool, Error> {
    let mut left: BTreeSet<u32> = call.ids.iter().copied().collect();
    bank.request(call.layer, &call.ids, call.k)?;
    let mut waves = 0;
    while call.abandon != Some(waves) && bank.next_wave()? {
        waves += 1;
        let wave = bank.wave().to_vec();
        let slots: BTreeSet<_> = wave.iter().map(|resident| resident.slot).collect();
        assert!(!wave.is_empty() && slots.len() == wave.len(), "two experts share a slot: {wave:?}");
        for resident in wave {
            assert!(left.remove(&resident.expert), "{resident:?} comes twice or was not asked for");
            assert_content(bank, call.layer, resident.expert, resident.slot, SIZES);
        }
        assert_maps(bank);
        bank.finish_wave();
    }
    if call.abandon == Some(waves) {
        bank.abandon();
        return Ok(false);
    }
    assert!(left.is_empty(), "experts {left:?} never came");
    Ok(true)
}

fn run(size: BankSize, policy: &str, layout: Placement, options: sim::Options, calls: &[Call]) {
    let toy = Toy::new(N_EXPERT, &[SIZES; LAYERS as usize], layout);
    let slot_bytes = toy.plan(BankSize::All, 3).unwrap().classes()[0].slot_bytes;
    let size = if let BankSize::Bytes(slots) = size { BankSize::Bytes(slots * slot_bytes) } else { size };
    let plan = toy.plan(size, 3).unwrap();
    assert_eq!(plan.classes().len(), 1, "the model knows one class");
    let mut naive = Naive::new(&plan, policy);
    let mut bank = toy.bank_with(plan, toy.sim(options), policy);
    for call in calls {
        let before = bank.stats().total();
        let (hits, chains) = naive.request(call.layer, &call.ids);
        let complete = match serve(&mut bank, call) {
            Ok(complete) => complete,
            Err(Error::Read { layer, .. }) => {
                assert_eq!(layer, call.layer);
                false
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(bank.stats().total().hits - before.hits, hits as u64);
        if !complete {
            naive.resync(&bank, call.layer, &chains);
        }
        assert_maps(&bank);
        for layer in 3..3 + LAYERS {
            for expert in 0..N_EXPERT {
                let resident = bank.slot_of(layer, expert);
                assert_eq!(
                    resident.is_some(),
                    naive.find(layer, expert).is_some(),
                    "layer {layer} expert {expert}"
                );
                if let Some(slot) = resident {
                    assert_content(&bank, layer, expert, slot, SIZES);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_bank_equals_the_naive_model(
        size in sizes(),
        policy in prop::sample::select(NAMES),
        layout in prop_oneof![Just(Placement::Whole), Just(Placement::Record), Just(Placement::Split)],
        seed in any::<u64>(),
        fault_ppm in prop_oneof![3 => Just(0u32), 1 => Just(30_000u32)],
        capacity in prop_oneof![Just(3usize), Just(7), Just(4096)],
        calls in calls(),
    ) {
        run(size, policy, layout, sim::Options { fault_ppm, capacity, ..rough(seed) }, &calls);
    }
}
