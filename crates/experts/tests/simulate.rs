//! Simulations against live runs, against each other and against cases worked out by hand.

#[expect(dead_code, reason = "most of it is for the other tests")]
#[path = "support/mod.rs"]
mod support;

use proptest::prelude::*;
use slotbank_experts::policy::{ExpertKey, NAMES, by_name, pinned::Pinned};
use slotbank_experts::simulate::time::{Compute, Disk};
use slotbank_experts::simulate::{
    BELADY, Figures, Lookahead, Rates, STATIC_HOT, Scope, Workload, hottest, run,
};
use slotbank_experts::{BankPlan, BankSize, Counters, Error, TraceRecord, replay};
use support::{Placement, Toy, rough, serve};

const SIZES: [u64; 3] = [700, 4096, 5000];

fn toy(layers: usize) -> Toy {
    Toy::new(16, &vec![SIZES; layers], Placement::Whole)
}

/// A call of layer `layer` with `k` experts per token.
fn call(layer: u32, k: u32, experts: &[u32]) -> TraceRecord {
    let n_tokens = experts.len() as u32 / k;
    TraceRecord {
        seq: 0,
        layer,
        n_expert_used: k,
        n_tokens,
        experts: experts.to_vec(),
        slots: vec![],
        predicted: vec![],
    }
}

fn workload(records: &[TraceRecord], plan: &BankPlan) -> Workload {
    Workload::new(records.iter().cloned().map(Ok), plan).unwrap()
}

fn figures(records: &[TraceRecord], plan: &BankPlan, name: &str) -> Figures {
    run(&workload(records, plan), plan, name, Scope::default(), None).unwrap()
}

/// Passes through layers 3, 4, 5, …, skewed and with some memory; every eleventh is a prompt of eight tokens.
fn routed(layers: u32, passes: u32, seed: u32) -> Vec<TraceRecord> {
    let mut state = seed;
    let mut draw = |bound: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % bound
    };
    let mut records = Vec::new();
    for pass in 0..passes {
        let tokens = if pass % 11 == 0 { 8 } else { 1 };
        for layer in 3..3 + layers {
            let ids: Vec<u32> = (0..tokens)
                .flat_map(|_| {
                    let first = (draw(16) * draw(16) / 16 + pass / 20) % 16;
                    [first, (first + 1 + draw(15)) % 16]
                })
                .collect();
            records.push(call(layer, 2, &ids));
        }
    }
    records
}

#[test]
fn simulated_counts_are_those_of_a_live_run() {
    let toy = toy(3);
    let slot = toy.plan(BankSize::All, 2).unwrap().classes()[0].slot_bytes;
    let records = routed(3, 60, 11);
    let tokens: u64 = 6 * 8 + 54;
    for size in [
        BankSize::SlotsPerLayer(2),
        BankSize::SlotsPerLayer(7),
        BankSize::Bytes(11 * slot),
        BankSize::Bytes(30 * slot),
    ] {
        for name in NAMES {
            let plan = toy.plan(size, 2).unwrap();
            let mut bank = toy.bank_with(plan.clone(), toy.sim(rough(3)), name);
            for record in &records {
                serve(&mut bank, record.layer, &record.experts, 2, SIZES).unwrap();
            }
            let live: Counters = bank.stats().total();
            let simulated = figures(&records, &plan, name);
            assert_eq!(
                (simulated.calls, simulated.unique, simulated.hits, simulated.misses, simulated.tokens),
                (live.calls, live.unique, live.hits, live.misses, tokens),
                "{size}, {name}"
            );
            assert_eq!(simulated.bytes_per_token, live.bytes_read as f64 / tokens as f64);
            assert_eq!(simulated.hit_rate, live.hit_rate());
            assert!(simulated.full_hit_rate < 1.0 && live.misses > 0);
        }
    }
}

#[test]
fn the_optimum_knows_what_comes_next() {
    let toy = toy(1);
    let records: Vec<_> = [[0, 1], [2, 3], [4, 5], [0, 1]].iter().map(|ids| call(3, 2, ids)).collect();
    let plan = toy.plan(BankSize::SlotsPerLayer(4), 2).unwrap();
    // 2 and 3 are never used again and leave; the least recently used are 0 and 1.
    assert_eq!(figures(&records, &plan, BELADY).misses, 6);
    assert_eq!(figures(&records, &plan, "lru").misses, 8);
    // Three slots: one of 0 and 1 has to go while 2 and 3 are there together, then 4 and 5 beside the other one.
    let plan = toy.plan(BankSize::SlotsPerLayer(3), 2).unwrap();
    assert_eq!(figures(&records, &plan, BELADY).misses, 7);
    // A prompt of everything passes through three slots; what is used next stays.
    let all: Vec<u32> = (0..16).collect();
    let records = [call(3, 2, &all), call(3, 2, &[14, 2]), call(3, 2, &[14, 9])];
    assert_eq!(figures(&records, &plan, BELADY).misses, 16);
}

#[test]
fn slots_are_shared_or_not_as_the_plan_says() {
    let toy = toy(2);
    // Layer 3 goes round six experts, layer 4 keeps to two.
    let records: Vec<_> =
        (0..30).flat_map(|i| [call(3, 2, &[2 * i % 6, (2 * i + 1) % 6]), call(4, 2, &[0, 1])]).collect();
    let fixed = toy.plan(BankSize::SlotsPerLayer(4), 2).unwrap();
    let shared = toy.plan(BankSize::Bytes(fixed.arena_bytes()), 2).unwrap();
    assert_eq!(fixed.slots_total(), shared.slots_total());
    assert_eq!(figures(&records, &shared, BELADY).misses, 8, "six and two fit into eight slots");
    assert!(figures(&records, &fixed, BELADY).misses > 8);
    assert_eq!(figures(&records, &shared, STATIC_HOT).misses, 0);
    // 4 of 6 experts, each used ten times.
    assert_eq!(figures(&records, &fixed, STATIC_HOT).misses, 20);
}

#[test]
fn passes_count_as_asked() {
    let toy = toy(2);
    let plan = toy.plan(BankSize::All, 2).unwrap();
    // A prompt whose last layer computes one token only, and two tokens.
    let records = [
        call(3, 2, &[0, 1, 2, 3, 0, 2]),
        call(4, 2, &[5, 6]),
        call(3, 2, &[0, 1]),
        call(4, 2, &[5, 7]),
        call(3, 2, &[4, 1]),
        call(4, 2, &[8, 9]),
    ];
    let small = toy.plan(BankSize::SlotsPerLayer(15), 2).unwrap();
    let workload = workload(&records, &plan);
    assert_eq!((workload.tokens(), workload.single_token_passes()), (5, 2));
    let count = |warm_up_tokens, single_tokens_only| {
        let scope = Scope { warm_up_tokens, single_tokens_only };
        let figures = run(&workload, &small, "lru", scope, None).unwrap();
        (figures.tokens, figures.calls, figures.hits, figures.misses)
    };
    assert_eq!(count(0, false), (5, 6, 4, 10));
    assert_eq!(count(0, true), (2, 4, 4, 4));
    assert_eq!(count(3, false), (2, 4, 4, 4));
    assert_eq!(count(4, false), (1, 2, 1, 3));
    assert_eq!(count(100, false), (0, 0, 0, 0));
    // A bank of everything begins full.
    assert_eq!(run(&workload, &plan, "lru", Scope::default(), None).unwrap().misses, 0);
    assert!(matches!(run(&workload, &plan, "best", Scope::default(), None), Err(Error::Usage(_))));
}

#[test]
fn predictions_cover_misses_and_save_time() {
    let toy = toy(2);
    let plan = toy.plan(BankSize::SlotsPerLayer(2), 2).unwrap();
    let mut records =
        vec![call(3, 2, &[0, 1]), call(4, 2, &[5, 6]), call(3, 2, &[0, 2]), call(4, 2, &[7, 8])];
    // Right about 7, wrong about 9; 5 is resident, so that naming it costs nothing.
    records[3].predicted = vec![7, 9, 5];
    let disk = Disk { read_gb_per_s: 1.0, read_latency_us: 0.0 };
    let compute = Compute { layer_ms: 1.0, shared_ms: 0.0, expert_ms: 0.0, other_ms: 0.0, lead_ms: 0.0 };
    let time = |lookahead| {
        let rates = Rates { disk, compute, lookahead };
        let scope = Scope { warm_up_tokens: 1, single_tokens_only: true };
        run(&workload(&records, &plan), &plan, "lru", scope, Some(&rates)).unwrap()
    };
    let figures = time(Lookahead::Traced);
    let coverage = figures.lookahead.expect("the trace has predictions");
    assert_eq!((figures.hits, figures.misses), (1, 3));
    // Of four experts asked for, 7 was named, and so it is of three misses.
    assert_eq!((coverage.recall, coverage.recall_of_misses), (0.25, 1.0 / 3.0));
    assert_eq!(coverage.wasted_per_token, 1.0);
    // Of 0, 2, 7, 8 the token before used 0, which is a hit. Its 6 and 5 are resident, 1 too: nothing is wasted.
    let previous = figures.previous_token;
    assert_eq!((previous.recall, previous.recall_of_misses, previous.wasted_per_token), (0.25, 0.0, 0.0));
    let dependency = |figures: Figures| figures.time.expect("one token").mean.dependency_ms;
    let expert_ms = 9796.0 / 1e6;
    // Routers at 1 and, after one read, 2 and a bit; two reads more.
    assert!((dependency(time(Lookahead::None)) - (2.0 + 3.0 * expert_ms)).abs() < 1e-9);
    assert!((dependency(figures) - (2.0 + 2.0 * expert_ms)).abs() < 1e-9);
    let assumed = time(Lookahead::Assumed { recall: 1.0, waste: 0.0 });
    assert!((dependency(assumed) - (2.0 + expert_ms)).abs() < 1e-9);
    let timing = assumed.time.unwrap();
    assert!((timing.dependency_tokens_per_s * timing.mean.dependency_ms - 1000.0).abs() < 1e-9);
}

#[test]
fn foreign_traces_are_refused() {
    let toy = toy(2);
    let plan = toy.plan(BankSize::All, 2).unwrap();
    let read = |records: &[TraceRecord]| Workload::new(records.iter().cloned().map(Ok), &plan).map(drop);
    let (good, other) = (call(3, 2, &[0, 1]), call(4, 2, &[0, 1]));
    assert!(read(&[good.clone(), other.clone()]).is_ok());
    for bad in [call(9, 2, &[0, 1]), call(4, 2, &[0, 16])] {
        let error = read(&[good.clone(), bad]).unwrap_err();
        assert!(matches!(error, Error::TraceLine { line: 2, .. }), "{error}");
    }
    let guess = TraceRecord { predicted: vec![16], ..other.clone() };
    assert!(matches!(read(&[good.clone(), guess]), Err(Error::TraceLine { line: 2, .. })));
    let error = read(&[good.clone(), call(4, 4, &[0, 1, 2, 3])]).unwrap_err();
    assert!(error.to_string().contains("4 experts per token, here 2"), "{error}");
    let error = read(&[good]).unwrap_err();
    assert!(matches!(&error, Error::TraceForeign { why } if why.contains("layer 4")), "{error}");
    assert!(matches!(read(&[]), Err(Error::Usage(_))));
}

#[test]
fn pinned_experts_stay_where_others_can_go() {
    let toy = toy(2);
    let slot = toy.plan(BankSize::All, 2).unwrap().classes()[0].slot_bytes;
    let plan = toy.plan(BankSize::Bytes(10 * slot), 2).unwrap();
    // Experts 0 and 1 of both layers in every third pass, others once each between them.
    let records: Vec<_> = (0..60u32)
        .flat_map(|i| {
            let ids = if i % 3 == 0 { [0, 1] } else { [2 + i % 14, 2 + (i + 7) % 14] };
            [call(3, 2, &ids), call(4, 2, &ids)]
        })
        .collect();
    let hot = hottest(records.iter().cloned().map(Ok), &plan).unwrap();
    let of = |layer, expert| ExpertKey { layer, expert };
    // Ten slots, two times a floor of two: three of the six beyond them.
    assert_eq!(hot, [of(3, 0), of(3, 1), of(4, 0)]);
    for name in NAMES {
        let replayed =
            |policy| replay(records.iter().cloned().map(Ok), &plan, policy, false).unwrap().total();
        let plain = replayed(by_name(name, &plan).unwrap());
        let pinned = replayed(Box::new(Pinned::new(by_name(name, &plan).unwrap(), &plan, &hot)));
        assert_eq!(plain.calls, pinned.calls);
        // Each pinned expert is read once and then hit nineteen times.
        assert!(pinned.hits >= 3 * 19, "{name}: {pinned:?}");
        if *name == "lru" {
            assert!(pinned.misses < plain.misses, "{plain:?} {pinned:?}");
        }
    }
    // Everything pinned is nothing pinned: requests are served all the same.
    let all: Vec<_> = (3..5).flat_map(|layer| (0..16).map(move |expert| of(layer, expert))).collect();
    for name in NAMES {
        let policy = Box::new(Pinned::new(by_name(name, &plan).unwrap(), &plan, &all));
        let counted = replay(records.iter().cloned().map(Ok), &plan, policy, false).unwrap().total();
        let plain = figures(&records, &plan, name);
        assert_eq!((counted.hits, counted.misses), (plain.hits, plain.misses), "{name}");
    }
}

fn any_records() -> impl Strategy<Value = Vec<TraceRecord>> {
    let token = || prop::sample::subsequence((0..16u32).collect::<Vec<_>>(), 2).prop_shuffle();
    let tokens = prop_oneof![6 => Just(1usize), 1 => 2..9usize];
    let pass = tokens.prop_flat_map(move |n| prop::collection::vec(prop::collection::vec(token(), n), 3));
    prop::collection::vec(pass, 1..60).prop_map(|passes| {
        let layers = passes.iter().flat_map(|pass| (3..6).zip(pass));
        layers.map(|(layer, tokens)| call(layer, 2, &tokens.concat())).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nobody_beats_the_optimum(
        records in any_records(),
        size in prop_oneof![(2..16u32).prop_map(BankSize::SlotsPerLayer), (6..48u64).prop_map(BankSize::Bytes)],
        odd in any::<bool>(),
    ) {
        // Two size classes or one.
        let mut sizes = vec![SIZES; 3];
        if odd {
            sizes[1] = [7000, 9000, 9000];
        }
        let toy = Toy::new(16, &sizes, Placement::Whole);
        let classes = toy.plan(BankSize::All, 2).unwrap().classes().to_vec();
        let size = match size {
            BankSize::Bytes(slots) => BankSize::Bytes(slots * classes.iter().map(|class| class.slot_bytes).max().unwrap()),
            size => size,
        };
        let plan = toy.plan(size, 2).unwrap();
        let workload = workload(&records, &plan);
        let misses = |name: &str| run(&workload, &plan, name, Scope::default(), None).unwrap().misses;
        let optimum = misses(BELADY);
        for name in NAMES {
            // A bank of everything begins full, the optimum never does.
            prop_assert!(plan.is_resident() || optimum <= misses(name), "{name} has fewer than {optimum} misses");
        }
    }
}
