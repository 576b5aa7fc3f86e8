//! The bank against a model of 40 lines, over random requests on a drive that delays, reorders, returns short
//! and fails.

use std::collections::BTreeSet;

use proptest::prelude::*;
use slotbank_experts::read::sim;
use slotbank_experts::{Bank, BankSize, Error};

use crate::support::{Placement, Toy, assert_content, assert_maps, rough};

/// Who is resident, oldest use first. Knows experts only; which slot is whose is the bank's affair.
struct Naive {
    slots: usize,
    min: usize,
    max: usize,
    share: usize,
    wide: usize,
    order: Vec<(u32, u32)>,
}

impl Naive {
    fn held(&self, layer: u32) -> usize {
        self.order.iter().filter(|key| key.0 == layer).count()
    }

    /// The hits of a request, and the succession of experts in each slot that it uses.
    fn request(&mut self, layer: u32, ids: &[u32]) -> (usize, Vec<Vec<u32>>) {
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
        let (hits, misses): (Vec<u32>, Vec<u32>) =
            unique.iter().partition(|id| self.order.contains(&(layer, **id)));
        let pinned: Vec<_> = hits.iter().map(|&id| (layer, id)).collect();
        let mut chains: Vec<Vec<u32>> = hits.iter().map(|&id| vec![id]).collect();
        // The last of a chain can be taken over by the next one, the least used of them first.
        let mut taken = 0;
        self.order.retain(|key| !pinned.contains(key));
        for id in misses {
            let own = self.held(layer) + hits.len() + taken;
            let full = self.order.len() + hits.len() + taken == self.slots;
            let held = |key: &(u32, u32)| if key.0 == layer { own } else { self.held(key.0) };
            let may = |key: &&(u32, u32)| key.0 == layer || (own < most && held(key) > kept);
            if own < most && !full {
                taken += 1;
                chains.push(vec![id]);
            } else if let Some(victim) = self.order.iter().find(may).copied() {
                self.order.retain(|key| *key != victim);
                taken += 1;
                chains.push(vec![id]);
            } else {
                let rank = |chain: &&mut Vec<u32>| unique.iter().position(|u| u == chain.last().unwrap());
                chains.iter_mut().min_by_key(rank).unwrap().push(id);
            }
        }
        let rank = |id: &u32| unique.iter().position(|u| u == id);
        chains.sort_by_key(|chain| chain.iter().map(rank).max());
        self.order.extend(chains.iter().map(|chain| (layer, *chain.last().unwrap())));
        (hits.len(), chains)
    }

    /// After a failed request: each chain stands wherever it was cut, or its slot is empty.
    fn resync(&mut self, bank: &Bank, layer: u32, chains: &[Vec<u32>]) {
        for chain in chains {
            let place = self.order.iter().position(|key| *key == (layer, *chain.last().unwrap())).unwrap();
            let resident = chain.iter().find(|&&id| bank.slot_of(layer, id).is_some());
            match resident {
                Some(&id) => self.order[place] = (layer, id),
                None => drop(self.order.remove(place)),
            }
        }
    }
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

fn run(size: BankSize, layout: Placement, options: sim::Options, calls: &[Call]) {
    let toy = Toy::new(N_EXPERT, &[SIZES; LAYERS as usize], layout);
    let slot_bytes = toy.plan(BankSize::All, 3).unwrap().classes()[0].slot_bytes;
    let size = if let BankSize::Bytes(slots) = size { BankSize::Bytes(slots * slot_bytes) } else { size };
    let plan = toy.plan(size, 3).unwrap();
    assert_eq!(plan.classes().len(), 1, "the model knows one class");
    let (min, max) = plan.slots_for(3).unwrap();
    let (slots, min, max) = (plan.slots_total() as usize, min as usize, max as usize);
    let beyond = if min == max { 0 } else { slots - LAYERS as usize * min };
    let all_fit = slots >= (LAYERS * N_EXPERT) as usize;
    let ring = if all_fit { 0 } else { (beyond / 4).min(16) };
    let share = if all_fit { N_EXPERT as usize } else { min + (beyond - ring) / LAYERS as usize };
    let share = max.min(share);
    let mut naive = Naive { slots, min, max, share, wide: max.min(share + ring), order: Vec::new() };
    let mut bank = toy.bank(plan, toy.sim(options));
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
                    naive.order.contains(&(layer, expert)),
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
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_bank_equals_the_naive_model(
        size in sizes(),
        layout in prop_oneof![Just(Placement::Whole), Just(Placement::Record), Just(Placement::Split)],
        seed in any::<u64>(),
        fault_ppm in prop_oneof![3 => Just(0u32), 1 => Just(30_000u32)],
        capacity in prop_oneof![Just(3usize), Just(7), Just(4096)],
        calls in calls(),
    ) {
        run(size, layout, sim::Options { fault_ppm, capacity, ..rough(seed) }, &calls);
    }
}
