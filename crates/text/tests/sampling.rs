//! Sampling: distributions, edges of the options, stability of the stream.

use proptest::prelude::*;
use slotbank_text::{Error, Fault, Sampler, SamplingOptions};

/// Every stage off, temperature 1: the softmax itself.
fn open() -> SamplingOptions {
    SamplingOptions { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplingOptions::default() }
}

fn sampler(options: &SamplingOptions, n_vocab: usize) -> Sampler {
    Sampler::new(options, n_vocab).unwrap()
}

fn once(options: &SamplingOptions, logits: &[f32], recent: &[u32]) -> u32 {
    sampler(options, logits.len()).sample(logits, recent)
}

const DRAWS: usize = 20_000;

fn counts(options: &SamplingOptions, logits: &[f32], recent: &[u32]) -> Vec<usize> {
    let mut sampler = sampler(options, logits.len());
    let mut counts = vec![0; logits.len()];
    (0..DRAWS).for_each(|_| counts[sampler.sample(logits, recent) as usize] += 1);
    counts
}

/// Pearson's statistic against `odds`; classes of no odds must be empty.
fn assert_distributed(counts: &[usize], odds: &[f64]) {
    let total: f64 = odds.iter().sum();
    let mut statistic = 0.0;
    for (count, odds) in counts.iter().zip(odds) {
        let expected = odds / total * DRAWS as f64;
        if expected == 0.0 {
            assert_eq!(*count, 0, "{counts:?} against {odds:?}");
        } else {
            statistic += (*count as f64 - expected).powi(2) / expected;
        }
    }
    // Six degrees of freedom or fewer exceed this once in a hundred thousand seeds.
    assert!(statistic < 33.0, "{statistic}: {counts:?} against {odds:?}");
}

/// Probabilities 40, 25, 15, 10, 6, 4 per cent, in an order that is not sorted.
fn logits() -> Vec<f32> {
    [6.0, 40.0, 10.0, 25.0, 4.0, 15.0].map(|percent: f32| percent.ln()).to_vec()
}

#[test]
fn open_sampling_is_the_softmax() {
    for seed in 0..5 {
        let options = SamplingOptions { seed, ..open() };
        assert_distributed(&counts(&options, &logits(), &[]), &[6.0, 40.0, 10.0, 25.0, 4.0, 15.0]);
    }
}

#[test]
fn each_stage_cuts_where_it_should() {
    let check = |options: SamplingOptions, odds: [f64; 6]| {
        assert_distributed(&counts(&options, &logits(), &[]), &odds);
    };
    check(SamplingOptions { top_k: 3, ..open() }, [0.0, 40.0, 0.0, 25.0, 0.0, 15.0]);
    check(SamplingOptions { top_k: 1, ..open() }, [0.0, 40.0, 0.0, 0.0, 0.0, 0.0]);
    check(SamplingOptions { top_k: 6, ..open() }, [6.0, 40.0, 10.0, 25.0, 4.0, 15.0]);
    check(SamplingOptions { top_k: u32::MAX, ..open() }, [6.0, 40.0, 10.0, 25.0, 4.0, 15.0]);
    // 40 + 25 < 70 ≤ 40 + 25 + 15.
    check(SamplingOptions { top_p: 0.7, ..open() }, [0.0, 40.0, 0.0, 25.0, 0.0, 15.0]);
    check(SamplingOptions { top_p: 0.3, ..open() }, [0.0, 40.0, 0.0, 0.0, 0.0, 0.0]);
    check(SamplingOptions { top_p: 1e-9, ..open() }, [0.0, 40.0, 0.0, 0.0, 0.0, 0.0]);
    // A fifth of 40 is 8.
    check(SamplingOptions { min_p: 0.2, ..open() }, [0.0, 40.0, 10.0, 25.0, 0.0, 15.0]);
    check(SamplingOptions { min_p: 1.0, ..open() }, [0.0, 40.0, 0.0, 0.0, 0.0, 0.0]);
    let squared = [6.0, 40.0, 10.0, 25.0, 4.0, 15.0].map(|odds: f64| odds * odds);
    check(SamplingOptions { temperature: 0.5, ..open() }, squared);
    let rooted = [6.0, 40.0, 10.0, 25.0, 4.0, 15.0].map(f64::sqrt);
    check(SamplingOptions { temperature: 2.0, ..open() }, rooted);
}

#[test]
fn stages_come_in_llama_cpps_order() {
    // top-p counts inside what top-k left: 40 of 80 per cent reach one half.
    let options = SamplingOptions { top_k: 3, top_p: 0.49, ..open() };
    assert_distributed(&counts(&options, &logits(), &[]), &[0.0, 40.0, 0.0, 0.0, 0.0, 0.0]);
    // Temperature comes after the cuts: at 10, an uncut top-p of 0.7 would keep five tokens.
    let options = SamplingOptions { temperature: 10.0, top_p: 0.7, ..open() };
    let tenth = |odds: f64| odds.powf(0.1);
    assert_distributed(
        &counts(&options, &logits(), &[]),
        &[0.0, tenth(40.0), 0.0, tenth(25.0), 0.0, tenth(15.0)],
    );
    // The penalty comes first: it takes token 1 from the top before top-k looks.
    let options = SamplingOptions { repetition_penalty: 2.0, top_k: 1, ..open() };
    assert_distributed(&counts(&options, &logits(), &[1]), &[0.0, 0.0, 0.0, 25.0, 0.0, 0.0]);
}

#[test]
fn penalties_divide_positive_and_multiply_negative_logits_once() {
    let logits = [2.0, -1.0, 0.0, 1.0];
    let options = SamplingOptions { repetition_penalty: 2.0, ..open() };
    let odds = [1.0f64, -2.0, 0.0, 1.0].map(f64::exp);
    assert_distributed(&counts(&options, &logits, &[0, 1, 1, 0, 2, u32::MAX, 4]), &odds);
    // Only the last two of the window count.
    let options = SamplingOptions { repetition_window: 2, ..options };
    let odds = [2.0f64, -2.0, 0.0, 1.0].map(f64::exp);
    assert_distributed(&counts(&options, &logits, &[0, 3, 0, 1, 1]), &odds);
    let options = SamplingOptions { repetition_window: 0, ..options };
    let odds = [2.0f64, -1.0, 0.0, 1.0].map(f64::exp);
    assert_distributed(&counts(&options, &logits, &[0, 1, 2, 3]), &odds);
}

#[test]
fn greedy_takes_the_best_and_the_lower_of_equals() {
    let greedy = SamplingOptions::greedy();
    assert_eq!(once(&greedy, &[1.0, 3.0, 2.0], &[]), 1);
    assert_eq!(once(&greedy, &[1.0, 3.0, 3.0], &[]), 1);
    assert_eq!(once(&greedy, &[-0.0, 0.0], &[]), 0);
    assert_eq!(once(&greedy, &[f32::NAN, f32::NEG_INFINITY, -9.0], &[]), 2);
    let penalised = SamplingOptions { repetition_penalty: 4.0, ..greedy };
    assert_eq!(once(&penalised, &[1.0, 3.0, 2.0], &[1]), 2);
}

#[test]
fn ties_at_a_border_go_to_the_lower_id() {
    let logits = vec![1.0; 1000];
    let options = SamplingOptions { top_k: 3, ..open() };
    assert!(counts(&options, &logits, &[])[3..].iter().all(|count| *count == 0));
    let options = SamplingOptions { top_p: 0.1, ..open() };
    let counts = counts(&options, &logits, &[]);
    assert!(counts[..99].iter().all(|count| *count > 0) && counts[101..].iter().all(|count| *count == 0));
}

#[test]
fn a_nucleus_of_a_large_vocabulary_is_exact() {
    // 3000 equal tokens hold 90 per cent; the growing sort has to pass several of its steps.
    let logits: Vec<f32> = (0..50_000).map(|id| if id % 16 == 5 { 0.0 } else { -12.0 }).collect();
    let options = SamplingOptions { top_p: 0.9, ..open() };
    let mut sampler = sampler(&options, logits.len());
    for _ in 0..50 {
        assert_eq!(sampler.sample(&logits, &[]) % 16, 5);
    }
}

#[test]
fn the_stream_of_a_seed_never_changes() {
    let logits: Vec<f32> = (0..50).map(|id| ((id * 37) % 50) as f32 * 0.1).collect();
    let draw = |options: &SamplingOptions| -> Vec<u32> {
        let mut sampler = sampler(options, logits.len());
        (0..16).map(|_| sampler.sample(&logits, &[])).collect()
    };
    assert_eq!(draw(&SamplingOptions { seed: 42, ..open() }), OPEN);
    assert_eq!(draw(&SamplingOptions { seed: 42, ..SamplingOptions::default() }), DEFAULT);
    assert_ne!(draw(&SamplingOptions { seed: 43, ..open() }), OPEN);
}

/// Worked out by a second implementation, in Python floats, straight from the definitions.
const OPEN: [u32; 16] = [35, 8, 12, 16, 3, 39, 8, 36, 16, 29, 8, 25, 27, 27, 31, 8];
const DEFAULT: [u32; 16] = [47, 4, 31, 8, 27, 5, 4, 24, 8, 16, 4, 12, 12, 12, 43, 4];

#[test]
fn options_out_of_range_are_named() {
    let reject = |options: SamplingOptions, name: &str| {
        let error = Sampler::new(&options, 4).unwrap_err();
        assert!(matches!(&error, Error::Option { option, .. } if *option == name), "{error}");
        assert_eq!(error.fault(), Fault::Usage);
        assert!(error.to_string().contains("but must be"), "{error}");
    };
    for bad in [f32::NAN, f32::INFINITY, -0.1, 101.0] {
        reject(SamplingOptions { temperature: bad, ..open() }, "temperature");
        reject(SamplingOptions { repetition_penalty: bad, ..open() }, "repetition_penalty");
    }
    for bad in [f32::NAN, -0.1, 1.1] {
        reject(SamplingOptions { top_p: bad, ..open() }, "top_p");
        reject(SamplingOptions { min_p: bad, ..open() }, "min_p");
    }
    reject(SamplingOptions { top_p: 0.0, ..open() }, "top_p");
    reject(SamplingOptions { repetition_penalty: 0.0, ..open() }, "repetition_penalty");
    SamplingOptions::default().validate().unwrap();
    SamplingOptions::greedy().validate().unwrap();
}

#[test]
fn options_are_json() {
    let options: SamplingOptions = serde_json::from_str(r#"{"temperature": 0.3, "seed": 7}"#).unwrap();
    assert_eq!(options, SamplingOptions { temperature: 0.3, seed: 7, ..SamplingOptions::default() });
    assert!(serde_json::from_str::<SamplingOptions>(r#"{"temprature": 0.3}"#).is_err());
}

#[test]
fn broken_logits_never_panic_and_can_be_an_error() {
    let options = open();
    let nan = f32::NAN;
    let (up, down) = (f32::INFINITY, f32::NEG_INFINITY);
    let mut three = sampler(&options, 3);
    for hopeless in [[nan; 3], [down; 3], [nan, down, nan]] {
        assert_eq!(three.sample(&hopeless, &[]), 0);
        let error = three.try_sample(&hopeless, &[]).unwrap_err();
        assert!(matches!(error, Error::BrokenLogits { usable: 0, n_vocab: 3, .. }), "{error}");
    }
    assert!(three.try_sample(&[nan, 1.0, 2.0], &[]).is_err());
    assert_eq!(three.sample(&[nan, 1.0, down], &[]), 1);
    assert_eq!(three.try_sample(&[down, 1.0, down], &[]), Ok(1));
    // Infinite logits win, equally.
    let seen: Vec<usize> = counts(&options, &[up, 5.0, up], &[]);
    assert_distributed(&seen, &[1.0, 0.0, 1.0]);
    assert_eq!(sampler(&options, 0).sample(&[], &[]), 0);
    assert!(sampler(&options, 0).try_sample(&[], &[]).is_err());
}

fn any_logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -30f32..30.0,
        2 => prop::sample::select(vec![0.0, -0.0, 1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
        2 => any::<f32>(),
    ]
}

prop_compose! {
    fn any_options()(
        temperature in prop_oneof![Just(0.0), Just(1.0), 0f32..100.0, 0f32..1e-30],
        top_k in prop_oneof![Just(0), 0u32..80],
        top_p in prop_oneof![Just(1.0), 1e-6f32..=1.0],
        min_p in prop_oneof![Just(0.0), 0f32..=1.0],
        repetition_penalty in prop_oneof![Just(1.0), 0.01f32..100.0],
        repetition_window in 0u32..20,
        seed in any::<u64>(),
    ) -> SamplingOptions {
        SamplingOptions { temperature, top_k, top_p, min_p, repetition_penalty, repetition_window, seed }
    }
}

proptest! {
    #[test]
    fn anything_yields_a_token_that_may_be_chosen(
        logits in prop::collection::vec(any_logit(), 1..100),
        recent in prop::collection::vec(0u32..120, 0..30),
        options in any_options(),
    ) {
        let mut first = sampler(&options, logits.len());
        let mut second = sampler(&options, logits.len());
        for _ in 0..3 {
            let id = first.sample(&logits, &recent);
            prop_assert_eq!(id, second.sample(&logits, &recent));
            let usable = logits.iter().any(|logit| *logit > f32::NEG_INFINITY);
            prop_assert!(logits[id as usize] > f32::NEG_INFINITY || (!usable && id == 0));
        }
    }

    /// The stages as a textbook has them, over a fully sorted list.
    #[test]
    fn the_cuts_equal_a_naive_model(
        logits in prop::collection::vec(-8i8..8, 1..60),
        options in any_options(),
    ) {
        let options = SamplingOptions { temperature: 1.0, repetition_penalty: 1.0, ..options };
        let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
        let mut kept: Vec<u32> = (0..logits.len() as u32).collect();
        let logit = |id: &u32| f64::from(logits[*id as usize]);
        kept.sort_by(|a, b| logit(b).total_cmp(&logit(a)));
        if options.top_k > 0 {
            kept.truncate(options.top_k as usize);
        }
        let total: f64 = kept.iter().map(|id| logit(id).exp()).sum();
        let mut sum = 0.0;
        let nucleus = kept.iter().position(|id| {
            sum += logit(id).exp() / total;
            sum >= f64::from(options.top_p) - 1e-9
        });
        // The border itself may fall either way by rounding; one more token is allowed below.
        let border = nucleus.map_or(kept.len(), |at| at + 2).min(kept.len());
        let best = logit(&kept[0]);
        let allowed: Vec<u32> = kept[..border]
            .iter()
            .copied()
            .filter(|id| (logit(id) - best).exp() >= f64::from(options.min_p) - 1e-6)
            .collect();
        let mut sampler = sampler(&options, logits.len());
        for _ in 0..5 {
            prop_assert!(allowed.contains(&sampler.sample(&logits, &[])));
        }
    }
}
