//! Only the logits that were asked for are computed to the end: the last layer is skipped for all other positions. Nobody may
//! see that in a result, only in what is read and computed.

mod common;

use common::{Logits, OnDisk, assert_same_bits, exact, run};
use slotbank_engine::{AttentionMode, Engine, EngineOptions, Want};
use toy::{Fixture, Toy};

/// The logits of each call's last position, where calls alternate between wanting them and wanting none; then all of the rest.
fn wanted(engine: &mut Engine, tokens: &[u32], chunk: usize) -> (Vec<usize>, Logits) {
    let mut sequence = engine.new_sequence().expect("a free sequence");
    let (mut positions, mut logits) = (Vec::new(), Logits::new());
    let (asked, rest) = tokens.split_at(tokens.len() * 3 / 4);
    let mut sink = |position: usize, row: &[f32]| {
        positions.push(position);
        logits.push(row.to_vec());
    };
    for (i, part) in asked.chunks(chunk).enumerate() {
        let want = if i % 2 == 0 { Want::Last } else { Want::None };
        engine.forward(&mut sequence, part, want, &mut sink).unwrap_or_else(|e| panic!("{e}"));
    }
    engine.forward(&mut sequence, rest, Want::All, &mut sink).unwrap_or_else(|e| panic!("{e}"));
    (positions, logits)
}

#[test]
fn logits_do_not_depend_on_which_others_were_wanted() {
    for fixture in Fixture::all() {
        let model = OnDisk::gguf(&Toy::from_fixture(&fixture));
        let modes = [AttentionMode::Sparse, AttentionMode::Dense, AttentionMode::Recent];
        // Without an indexer there is one way to attend.
        let modes = if fixture.config.index_topk > 0 { &modes[..] } else { &modes[..1] };
        for &attention in modes {
            for (batch, ubatch) in [(1, 1), (1, 3), (1, 32), (32, 3), (7, 2)] {
                let options = EngineOptions { attention, batch, ubatch, ..exact() };
                let mut engine = model.load(options);
                let all = run(&mut engine, &fixture.tokens, &[fixture.tokens.len()]);
                for chunk in [1, 5, 13] {
                    let (positions, logits) = wanted(&mut engine, &fixture.tokens, chunk);
                    assert!(positions.len() > 1 && positions.len() == logits.len());
                    let expected: Logits = positions.iter().map(|&p| all[p].clone()).collect();
                    let what = format!(
                        "{}, {attention:?}, batch {batch}, ubatch {ubatch}, chunk {chunk}",
                        fixture.name
                    );
                    assert_same_bits(&logits, &expected, &what);
                }
            }
        }
    }
}

/// The experts of the last layer are asked for by wanted positions only, those of the layers before by all.
#[test]
fn the_last_layers_experts_are_read_for_wanted_positions_only() {
    let fixture = Fixture::named("share");
    let mut engine = OnDisk::gguf(&Toy::from_fixture(&fixture)).load(EngineOptions { ubatch: 8, ..exact() });
    let (tokens, top_k) = (&fixture.tokens[..20], u64::from(engine.model().top_k));
    let refs = |engine: &Engine| -> Vec<u64> {
        engine.bank_stats().expect("a bank").layers.iter().map(|layer| layer.counters.refs).collect()
    };
    let mut before = refs(&engine);
    for (want, last) in [(Want::All, 20), (Want::Last, 1), (Want::None, 0)] {
        let mut sequence = engine.new_sequence().expect("a free sequence");
        engine.forward(&mut sequence, tokens, want, &mut |_, _| {}).unwrap_or_else(|e| panic!("{e}"));
        let after = refs(&engine);
        let made: Vec<u64> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
        let (end, others) = made.split_last().expect("routed layers");
        assert!(!others.is_empty() && others.iter().all(|&refs| refs == 20 * top_k), "{want:?}: {made:?}");
        assert_eq!(*end, last * top_k, "{want:?}");
        before = after;
    }
}
