//! Named cases: what once went wrong elsewhere, and what a drive can do to us.

use std::io::Write;
use std::sync::{Arc, Mutex};

use slotbank_experts::policy::{NAMES, by_name};
use slotbank_experts::read::sim::{self, Fault, FaultAt};
use slotbank_experts::{Bank, BankSize, Counters, Error, Lru, Trace, replay, trace};

use crate::support::{Placement, TestArena, Toy, assert_maps, rough, serve};

const SIZES: [u64; 3] = [700, 4096, 5000];

fn toy(layers: usize) -> Toy {
    Toy::new(16, &vec![SIZES; layers], Placement::Whole)
}

/// The predecessor walked the ids once and reserved residents only when it came to them: a miss listed before
/// a hit could take the hit's slot, if that was the least recently used one, and both experts then computed
/// with the miss's weights.
#[test]
fn a_miss_listed_before_a_hit_never_takes_the_slot_of_that_hit() {
    let mut bank = toy(1).rough(BankSize::SlotsPerLayer(2), 2, 1);
    serve(&mut bank, 3, &[1, 2], 2, SIZES).unwrap();
    let slot_of_one = bank.slot_of(3, 1).unwrap();
    // Expert 1 is the least recently used, and the miss comes first.
    let waves = serve(&mut bank, 3, &[7, 1], 2, SIZES).unwrap();
    assert_eq!(waves, [[1], [7]], "the hit computes first, from its own slot");
    assert_eq!(bank.slot_of(3, 1), Some(slot_of_one));
    assert_eq!(bank.slot_of(3, 2), None, "the expert nobody asked for has left");
    assert_ne!(bank.slot_of(3, 7), Some(slot_of_one));
}

#[test]
fn a_request_for_more_experts_than_slots_is_served_in_groups() {
    for seed in 0..20 {
        let toy = toy(2);
        let mut bank = toy.rough(BankSize::SlotsPerLayer(3), 3, seed);
        serve(&mut bank, 3, &[0, 5, 9], 3, SIZES).unwrap();
        let all: Vec<u32> = (0..15).collect();
        let waves = serve(&mut bank, 3, &all, 3, SIZES).unwrap();
        assert_eq!(waves[0], [0, 5, 9], "the hits come first");
        assert!(waves.len() >= 5, "{waves:?}");
        let total = bank.stats().total();
        assert_eq!((total.hits, total.misses, total.cold, total.evictions), (3, 15, 3, 12));
    }
}

#[test]
fn residency_does_not_depend_on_the_order_of_arrival() {
    let outcome = |seed: u64| {
        let toy = toy(3);
        let bytes = 11 * toy.plan(BankSize::All, 2).unwrap().classes()[0].slot_bytes;
        let mut bank = toy.rough(BankSize::Bytes(bytes), 2, seed);
        let mut state = 7u32;
        for call in 0..200 {
            let mut draw = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 20) % 16
            };
            let ids: Vec<u32> = (0..if call % 5 == 0 { 14 } else { 2 }).map(|_| draw()).collect();
            serve(&mut bank, 3 + call % 3, &ids, 2, SIZES).unwrap();
        }
        let resident: Vec<_> = (3..6).flat_map(|l| (0..16).map(move |e| (l, e))).collect();
        let resident: Vec<_> = resident.into_iter().filter(|&(l, e)| bank.slot_of(l, e).is_some()).collect();
        (resident, bank.stats().total().without_time())
    };
    let first = outcome(0);
    for seed in 1..10 {
        assert_eq!(outcome(seed), first);
    }
}

#[test]
fn a_read_error_ends_the_request_and_the_next_one_works() {
    let toy = toy(2);
    let faults = vec![Fault { at: FaultAt::Expert { layer: 4, expert: 6 }, times: 1 }];
    let plan = toy.plan(BankSize::SlotsPerLayer(4), 2).unwrap();
    let mut bank = toy.bank(plan, toy.sim(sim::Options { faults, ..rough(3) }));
    serve(&mut bank, 4, &[1, 2], 2, SIZES).unwrap();
    let error = serve(&mut bank, 4, &[2, 6, 5, 1], 2, SIZES).unwrap_err();
    let Error::Read { ref path, offset, layer, expert, ref families, .. } = error else { panic!("{error}") };
    assert_eq!((layer, expert), (4, 6));
    assert_eq!(path.to_str(), Some("toy-0.bin"));
    let tensor = toy.layers[1].tensors.iter().find(|tensor| *families == tensor.family.name()).unwrap();
    let extent = tensor.extent(6);
    assert!((extent.offset..extent.offset + extent.len).contains(&offset), "{error}");
    assert!(error.to_string().contains("layer 4") && error.to_string().contains("toy-0.bin"), "{error}");
    assert!(error.hint().is_some());
    assert_maps(&bank);
    assert_eq!(bank.slot_of(4, 6), None);
    assert_eq!(bank.stats().total().failed, 1);
    assert!(bank.slot_of(4, 1).is_some() && bank.slot_of(4, 2).is_some(), "hits keep their slots");
    serve(&mut bank, 4, &[2, 6, 5, 1], 2, SIZES).unwrap();
    serve(&mut bank, 3, &[0, 1, 2, 3, 4, 5, 6, 7], 2, SIZES).unwrap();
}

#[test]
fn every_single_read_may_fail_once() {
    for nth in 0..24 {
        let toy = toy(1);
        let faults = vec![Fault { at: FaultAt::Nth(nth), times: 1 }];
        let plan = toy.plan(BankSize::SlotsPerLayer(3), 2).unwrap();
        let mut bank = toy.bank(plan, toy.sim(sim::Options { faults, ..rough(nth) }));
        let ids = [0, 1, 2, 3, 4, 5, 6, 7];
        let error = serve(&mut bank, 3, &ids, 2, SIZES).unwrap_err();
        assert!(matches!(error, Error::Read { .. }), "{error}");
        assert_maps(&bank);
        assert!(!bank.next_wave().unwrap(), "the failed request is over");
        serve(&mut bank, 3, &ids, 2, SIZES).unwrap();
    }
}

#[test]
fn a_file_that_ends_too_early_is_an_error_and_not_text() {
    let mut toy = toy(1);
    let len = toy.files[0].len();
    toy.files[0].truncate(len - 1);
    let mut bank = toy.rough(BankSize::SlotsPerLayer(4), 2, 0);
    serve(&mut bank, 3, &[0, 14], 2, SIZES).unwrap();
    let error = serve(&mut bank, 3, &[0, 15], 2, SIZES).unwrap_err();
    let Error::Read { source, expert, families, .. } = error else { panic!("{error}") };
    assert_eq!(
        (source.kind(), expert, families.as_str()),
        (std::io::ErrorKind::UnexpectedEof, 15, "ffn_down_exps")
    );
}

#[test]
fn impossible_requests_change_nothing() {
    let mut bank = toy(1).rough(BankSize::SlotsPerLayer(4), 2, 0);
    serve(&mut bank, 3, &[0, 1], 2, SIZES).unwrap();
    assert!(matches!(bank.request(2, &[0], 1), Err(Error::NoSuchLayer { layer: 2 })));
    assert!(matches!(bank.request(99, &[0], 1), Err(Error::NoSuchLayer { .. })));
    let error = bank.request(3, &[5, 16], 2).unwrap_err();
    assert!(matches!(error, Error::NoSuchExpert { expert: 16, n_expert: 16, .. }), "{error}");
    assert_maps(&bank);
    assert_eq!(bank.stats().total().calls, 1);
    serve(&mut bank, 3, &[5, 6], 2, SIZES).unwrap();
}

#[test]
fn an_abandoned_request_leaves_a_sound_bank() {
    for seed in 0..30 {
        let mut bank = toy(1).rough(BankSize::SlotsPerLayer(4), 2, seed);
        serve(&mut bank, 3, &[0, 1], 2, SIZES).unwrap();
        bank.request(3, &[1, 2, 3, 4, 5, 6], 2).unwrap();
        for _ in 0..seed % 4 {
            assert!(bank.next_wave().unwrap());
            if seed % 3 == 0 {
                bank.finish_wave();
            } else {
                break;
            }
        }
        bank.abandon();
        assert_maps(&bank);
        assert!(bank.wave().is_empty());
        serve(&mut bank, 3, &[1, 2, 3, 4, 5, 6], 2, SIZES).unwrap();
    }
}

#[test]
fn other_layers_keep_their_floor() {
    let toy = toy(3);
    let slot = toy.plan(BankSize::All, 2).unwrap().classes()[0].slot_bytes;
    let mut bank = toy.rough(BankSize::Bytes(12 * slot), 2, 5);
    assert_eq!(bank.plan().slots_for(3), Some((2, 8)));
    for layer in 3..6 {
        serve(&mut bank, layer, &[0, 1, 2, 3], 2, SIZES).unwrap();
    }
    let all: Vec<u32> = (0..16).collect();
    for pair in all.chunks(2) {
        serve(&mut bank, 3, pair, 2, SIZES).unwrap();
    }
    let held = |bank: &Bank, layer| (0..16).filter(|&e| bank.slot_of(layer, e).is_some()).count();
    assert_eq!([held(&bank, 3), held(&bank, 4), held(&bank, 5)], [8, 2, 2]);
    assert!(
        bank.slot_of(4, 3).is_some() && bank.slot_of(4, 2).is_some(),
        "what is left is what was used last"
    );
    // The starved layers can grow again.
    for pair in all.chunks(2) {
        serve(&mut bank, 4, pair, 2, SIZES).unwrap();
    }
    assert_eq!([held(&bank, 3), held(&bank, 4), held(&bank, 5)], [2, 8, 2]);
}

#[test]
fn the_least_recently_used_expert_leaves() {
    let mut bank = toy(1).rough(BankSize::SlotsPerLayer(3), 2, 9);
    serve(&mut bank, 3, &[0, 1], 2, SIZES).unwrap();
    serve(&mut bank, 3, &[2, 0], 2, SIZES).unwrap();
    // Used last to first: 0, 2, 1.
    serve(&mut bank, 3, &[3, 2], 2, SIZES).unwrap();
    assert!(bank.slot_of(3, 1).is_none());
    // 2, 3, 0.
    serve(&mut bank, 3, &[4, 5], 2, SIZES).unwrap();
    let resident: Vec<u32> = (0..16).filter(|&e| bank.slot_of(3, e).is_some()).collect();
    assert_eq!(resident, [2, 4, 5]);
}

#[test]
fn a_preloaded_bank_never_reads_again() {
    let toy = toy(2);
    let mut bank = toy.rough(BankSize::All, 2, 1);
    assert!(bank.plan().is_resident());
    bank.preload().unwrap();
    let after_load = bank.stats().total();
    assert_eq!((after_load.calls, after_load.reads, after_load.cold), (0, 2 * 16 * 3, 32));
    assert_eq!(after_load.bytes_read, 32 * SIZES.iter().sum::<u64>());
    let waves = serve(&mut bank, 4, &[9, 3, 9, 15], 2, SIZES).unwrap();
    assert_eq!(waves, [[9, 3, 15]]);
    assert_eq!(bank.stats().total().misses, 0);
    let mut small = toy.rough(BankSize::SlotsPerLayer(4), 2, 1);
    assert!(small.preload().is_err());
}

#[test]
fn a_staging_arena_bounds_what_is_loading() {
    let toy = toy(1);
    let plan = toy.plan(BankSize::SlotsPerLayer(8), 2).unwrap();
    let policy = Box::new(Lru::new(&plan));
    let mut arena = TestArena::default();
    arena.loading_max = Some(2);
    let mut bank = Bank::new(plan, &toy.names(), toy.sim(rough(4)), Box::new(arena), policy).unwrap();
    let waves = serve(&mut bank, 3, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 2, SIZES).unwrap();
    assert!(waves.iter().all(|wave| wave.len() <= 4), "{waves:?}");
}

#[test]
fn time_spent_waiting_is_counted() {
    let toy = toy(1);
    let ms = std::time::Duration::from_millis;
    let options = sim::Options { clock: sim::Clock::Real, latency: ms(20), ..Default::default() };
    let mut bank = toy.bank(toy.plan(BankSize::SlotsPerLayer(4), 2).unwrap(), toy.sim(options));
    serve(&mut bank, 3, &[0, 1], 2, SIZES).unwrap();
    let cold = bank.stats().total().stall_ns;
    assert!(cold >= 15_000_000, "{cold}");
    serve(&mut bank, 3, &[0, 1], 2, SIZES).unwrap();
    assert_eq!(bank.stats().total().stall_ns, cold, "hits never wait");
}

const LATENCY_MS: u64 = 20;

/// A drive that takes its time over each read, however many it has, in time that passes.
fn slow() -> sim::Options {
    let latency = std::time::Duration::from_millis(LATENCY_MS);
    sim::Options { clock: sim::Clock::Real, latency, ..Default::default() }
}

/// Sleeps overrun by what the machine likes, so what compares two clocks has to hold in one round of many.
fn once_in(rounds: usize, mut round: impl FnMut() -> Result<(), String>) {
    let mut why = String::new();
    for _ in 0..rounds {
        match round() {
            Ok(()) => return,
            Err(seen) => why = seen,
        }
    }
    panic!("not once in {rounds} rounds: {why}");
}

#[test]
fn reads_at_the_same_time_count_once_and_a_stall_is_a_part_of_them() {
    let toy = toy(1);
    once_in(20, || {
        let mut bank = toy.bank(toy.plan(BankSize::SlotsPerLayer(4), 2).unwrap(), toy.sim(slow()));
        let begun = std::time::Instant::now();
        serve(&mut bank, 3, &[0, 1], 2, SIZES).unwrap();
        let (wall_ns, total) = (begun.elapsed().as_nanos() as u64, bank.stats().total());
        assert!(total.io_wall_ns >= LATENCY_MS * 1_000_000, "{total:?}");
        assert!(total.io_wall_ns <= wall_ns && total.open_ns <= wall_ns, "{wall_ns} {total:?}");
        assert!(total.stall_ns <= total.open_ns, "{total:?}");
        assert_eq!(total.ahead_io_wall_ns, 0);
        // Six reads of 20 ms were at the drive together. The stall ends when the sleep does, a little after the drive.
        let together = total.io_wall_ns < 2 * LATENCY_MS * 1_000_000;
        let exposed = total.stall_ns <= total.io_wall_ns + 5_000_000;
        if together && exposed { Ok(()) } else { Err(format!("{total:?}")) }
    });
}

#[test]
fn reads_behind_computing_count_and_expose_nothing() {
    let toy = toy(1);
    let mut bank = toy.bank(toy.plan(BankSize::SlotsPerLayer(4), 2).unwrap(), toy.sim(slow()));
    serve(&mut bank, 3, &[0, 1], 2, SIZES).unwrap();
    bank.reset_stats();
    bank.request(3, &[0, 2], 2).unwrap();
    assert!(bank.next_wave().unwrap());
    // Computing the hit takes longer than reading the miss.
    std::thread::sleep(std::time::Duration::from_millis(2 * LATENCY_MS));
    bank.finish_wave();
    assert!(bank.next_wave().unwrap());
    bank.finish_wave();
    assert!(!bank.next_wave().unwrap());
    let total = bank.stats().total();
    assert_eq!(total.stall_ns, 0, "{total:?}");
    assert!(total.io_wall_ns >= LATENCY_MS * 1_000_000, "{total:?}");
    assert!(total.open_ns >= 2 * LATENCY_MS * 1_000_000, "{total:?}");
}

#[test]
fn a_read_ahead_is_ahead_until_it_is_asked_for() {
    let toy = toy(1);
    once_in(20, || {
        let plan = toy.plan(BankSize::SlotsPerLayer(4), 2).unwrap().with_spares(2);
        let mut bank = toy.bank(plan, toy.sim(slow()));
        let begun = std::time::Instant::now();
        bank.read_ahead(3, &[5]).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(LATENCY_MS / 2));
        serve(&mut bank, 3, &[5, 5], 2, SIZES).unwrap();
        let (wall_ns, total) = (begun.elapsed().as_nanos() as u64, bank.stats().total());
        let both = total.io_wall_ns + total.ahead_io_wall_ns;
        assert!(both >= LATENCY_MS * 1_000_000 && both <= wall_ns, "{wall_ns} {total:?}");
        assert!(total.ahead_io_wall_ns >= LATENCY_MS * 500_000, "{total:?}");
        // A sleep that took twice as long leaves nothing for the request.
        if total.io_wall_ns > LATENCY_MS * 250_000 { Ok(()) } else { Err(format!("{total:?}")) }
    });
}

/// Bytes that outlive their writer.
#[derive(Clone, Default)]
pub(crate) struct Sink(pub(crate) Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_trace_numbers_slots_by_layer_from_the_lowest_free() {
    let toy = toy(2);
    let slot = toy.plan(BankSize::All, 2).unwrap().classes()[0].slot_bytes;
    let mut bank = toy.rough(BankSize::Bytes(6 * slot), 2, 2);
    let sink = Sink::default();
    bank.set_trace(Trace::new(Box::new(sink.clone())));
    serve(&mut bank, 3, &[5, 6, 6, 7], 2, SIZES).unwrap();
    serve(&mut bank, 4, &[1, 0], 2, SIZES).unwrap();
    serve(&mut bank, 4, &[1, 2, 2, 3], 2, SIZES).unwrap();
    serve(&mut bank, 3, &[7, 9], 2, SIZES).unwrap();
    serve(&mut bank, 3, &[8, 7], 2, SIZES).unwrap();
    bank.take_trace().unwrap().finish().unwrap();
    let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            r#"{"seq":0,"layer":3,"n_expert_used":2,"n_tokens":2,"experts":[5,6,6,7],"slots":[0,1,1,2]}"#,
            r#"{"seq":1,"layer":4,"n_expert_used":2,"n_tokens":1,"experts":[1,0],"slots":[0,1]}"#,
            // One empty slot is left, then layer 3 gives its oldest.
            r#"{"seq":2,"layer":4,"n_expert_used":2,"n_tokens":2,"experts":[1,2,2,3],"slots":[0,2,2,3]}"#,
            r#"{"seq":3,"layer":3,"n_expert_used":2,"n_tokens":1,"experts":[7,9],"slots":[2,1]}"#,
            // Layer 3 grows again, at the cost of layer 4, and reuses the number that it gave away.
            r#"{"seq":4,"layer":3,"n_expert_used":2,"n_tokens":1,"experts":[8,7],"slots":[0,2]}"#,
        ]
    );
}

/// A run of skewed random requests on a rough drive, its trace, and its counters.
fn traced(toy: &Toy, size: BankSize, policy: &str, seed: u64) -> (String, Counters) {
    let mut bank = toy.bank_with(toy.plan(size, 2).unwrap(), toy.sim(rough(seed)), policy);
    let preload = bank.plan().is_resident();
    if preload {
        bank.preload().unwrap();
    }
    let sink = Sink::default();
    bank.set_trace(Trace::new(Box::new(sink.clone())));
    let mut state = seed as u32;
    for call in 0..300u32 {
        let tokens = if call % 11 == 0 { 8 } else { 1 };
        let mut draw = |bound: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % bound
        };
        let ids: Vec<u32> = (0..tokens)
            .flat_map(|_| {
                let first = draw(16) * draw(16) / 16;
                [first, (first + 1 + draw(15)) % 16]
            })
            .collect();
        serve(&mut bank, 3 + call % 3, &ids, 2, SIZES).unwrap();
    }
    bank.take_trace().unwrap().finish().unwrap();
    let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
    (text, bank.stats().total().without_time())
}

#[test]
fn replaying_a_trace_counts_what_the_run_counted() {
    let toy = toy(3);
    let slot = toy.plan(BankSize::All, 2).unwrap().classes()[0].slot_bytes;
    for size in
        [BankSize::SlotsPerLayer(2), BankSize::SlotsPerLayer(5), BankSize::Bytes(20 * slot), BankSize::All]
    {
        for (seed, name) in (0..3).flat_map(|seed| NAMES.iter().map(move |name| (seed, name))) {
            let (text, live) = traced(&toy, size, name, seed);
            let plan = toy.plan(size, 2).unwrap();
            let policy = by_name(name, &plan).unwrap();
            let replayed = replay(trace::read(text.as_bytes()), &plan, policy, plan.is_resident()).unwrap();
            assert_eq!(replayed.total(), live, "{size}, {name}");
            assert_eq!(live.unique, live.hits + live.misses);
            assert_eq!(live.misses == 0, plan.is_resident());
        }
    }
}

#[test]
fn a_trace_of_another_model_is_refused_by_line() {
    let toy = toy(1);
    let plan = toy.plan(BankSize::All, 2).unwrap();
    for foreign in [
        r#"{"seq":0,"layer":9,"n_expert_used":1,"n_tokens":1,"experts":[0],"slots":[0]}"#,
        r#"{"seq":0,"layer":3,"n_expert_used":1,"n_tokens":1,"experts":[16],"slots":[0]}"#,
    ] {
        let outcome = replay(trace::read(foreign.as_bytes()), &plan, Box::new(Lru::new(&plan)), false);
        assert!(matches!(outcome, Err(Error::TraceLine { line: 1, .. })), "{outcome:?}");
    }
}
