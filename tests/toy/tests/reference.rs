//! The f64 reference against what transformers computed, and each mistake against the reference: a mistake that changed
//! nothing in any fixture would be a test that cannot fail.

use slotbank_toy::reference::{self, Mistake, Options, Outcome};
use slotbank_toy::{Fixture, Toy};

fn largest_difference(a: &Outcome, b: &[Vec<f32>]) -> f64 {
    let pairs = a.logits.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, f64::max)
}

#[test]
fn the_reference_computes_what_transformers_computed() {
    for f in Fixture::all() {
        assert!(f.margins.values().all(|m| *m > 1e-5), "{}: {:?}", f.name, f.margins);
        let options = Options { latent_eps: f.latent_eps, ..Options::default() };
        let out = reference::forward(&Toy::from_fixture(&f), &f.tokens, options);
        let difference = largest_difference(&out, &f.logits);
        let bound = 1e-5 * f64::from(f.max_abs_logit());
        assert!(difference <= bound, "{}: logits differ by {difference}, bound {bound}", f.name);
        assert_eq!(out.selections, f.selections, "{}", f.name);
        assert_eq!(out.experts, f.experts, "{}", f.name);
        for (layer, rows) in &f.expert_weights {
            let ours = out.expert_weights[layer].iter().flatten();
            for (ours, theirs) in ours.zip(rows.iter().flatten()) {
                let theirs = f64::from(*theirs);
                assert!((ours - theirs).abs() < 1e-5 * theirs.max(1.0), "{}: layer {layer}", f.name);
            }
        }
        for (ours, theirs) in out.hidden_norms.iter().flatten().zip(f.hidden_norms.iter().flatten()) {
            assert!(
                (ours / f64::from(*theirs) - 1.0).abs() < 1e-5,
                "{}: hidden norm {ours} {theirs}",
                f.name
            );
        }
    }
}

/// How far off each mistake is, in the fixture that shows it best. All but the ties, which no fixture has.
#[test]
fn every_mistake_shows_in_a_fixture() {
    use Mistake as M;
    let cases = [
        ("share", M::IndexerRopeHalfSplit),
        ("share", M::IndexerRopeLast),
        ("share", M::MlaRopeFirst),
        ("share", M::MlaRopeHalfSplit),
        ("share", M::KNormWithoutBias),
        ("share", M::IndexerReadsRawHidden),
        ("share", M::IndexerReadsRawQueryLatent),
        ("share", M::IndexerWithoutRelu),
        ("share", M::IndexKeysLate),
        ("share", M::StaleIndexers),
        ("share", M::SelectionOfLayerZero),
        ("share", M::NormedRopeKey),
        ("share", M::HeadSizeFromKeyLength),
        ("share", M::HeadSizeFromHeadDim),
        ("share", M::KeyUpNotTransposed),
        ("share", M::WeightFromChoice),
        ("share", M::ScaleBeforeNormalising),
        ("yarn", M::NoMscale),
        ("groups", M::NoGroupLimit),
        ("v3", M::MlaRopeHalfSplit),
        ("v3", M::NormedRopeKey),
        ("v3", M::KeyUpNotTransposed),
        ("v3", M::HeadSizeFromKeyLength),
        ("v3", M::NoMscale),
        ("v3", M::MscaleNotSquared),
        ("v3", M::AttentionFactorOnAngles),
        ("v3", M::NoGroupLimit),
        ("v3", M::OtherGroupScore),
        ("v3", M::OtherNormalising),
        ("v3", M::WeightFromChoice),
        ("v3", M::ScaledSharedExpert),
        ("kimi", M::DefaultBetas),
        ("kimi", M::NoMscale),
        ("kimi", M::NoScale),
        ("flash", M::OtherGating),
        ("flash", M::ScaleBeforeNormalising),
        ("v2", M::OtherGroupScore),
        ("v2", M::NoGroupLimit),
        ("v2", M::NoScale),
        ("lite", M::OtherGating),
        ("lite", M::OtherNormalising),
        ("lite", M::NoMscale),
    ];
    for (name, mistake) in cases {
        let f = Fixture::named(name);
        let toy = Toy { stale_indexers: mistake == M::StaleIndexers, ..Toy::from_fixture(&f) };
        let out = reference::forward(&toy, &f.tokens, mistake);
        let difference = largest_difference(&out, &f.logits);
        let bound = 1e-5 * f64::from(f.max_abs_logit());
        assert!(difference > 1000.0 * bound, "{mistake:?} moves the logits of {name} by {difference} only");
    }
}

/// The two epsilons in use differ by more than the tolerance of the golden test, so neither can pass for the other.
#[test]
fn the_latent_epsilon_shows() {
    let f = Fixture::named("share");
    let options = Options { latent_eps: 1e-5, ..Options::default() };
    let out = reference::forward(&Toy::from_fixture(&f), &f.tokens, options);
    let difference = largest_difference(&out, &f.logits);
    let bound = 1e-5 * f64::from(f.max_abs_logit());
    assert!((bound..20.0 * bound).contains(&difference), "{difference}, bound {bound}");
}
