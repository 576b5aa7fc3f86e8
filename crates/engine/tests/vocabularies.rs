//! Tokenizer and template as they stand in a file. And tokenizers of published models, where their vocabularies are at hand: ids
//! as the models' own tokenizers give them. `SLOTBANK_VOCABULARIES` names the folder; docs/tokenizers.md says how to fill it.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;

use common::{OnDisk, exact};
use files::Metadata;
use serde::Deserialize;
use slotbank_engine::vocabulary;
use text::{Specials, Tokenizer};
use toy::{BYTES_MIN, Fixture, Toy, Vocabulary};

#[test]
fn the_keys_of_a_file_reach_the_tokenizer() {
    let mut metadata = Metadata::new();
    assert_eq!(vocabulary(&metadata).unwrap().map(|v| v.model), None);
    metadata.insert("tokenizer.ggml.model", "llama");
    metadata.insert("tokenizer.ggml.tokens", vec!["<unk>", "a", "b", "ab", "▁", "<pad>"]);
    metadata.insert("tokenizer.ggml.token_type", vec![2, 1, 1, 1, 1, 3]);
    metadata.insert("tokenizer.ggml.scores", vec![0f32, -3.0, -4.0, -1.0, -2.0, 0.0]);
    metadata.insert("tokenizer.ggml.unknown_token_id", 0u32);
    metadata.insert("tokenizer.ggml.fim_pad_token_id", 5u32);
    metadata.insert("tokenizer.ggml.add_bos_token", false);
    metadata.insert("tokenizer.ggml.add_space_prefix", false);
    let found = vocabulary(&metadata).unwrap().unwrap();
    let tokenizer = Tokenizer::new(found).unwrap();
    assert_eq!(tokenizer.encode("abc a", Specials::Plain).unwrap(), [3, 0, 4, 1]);
    assert_eq!((tokenizer.end_tokens(), tokenizer.add_bos()), (&[5][..], false));
    // Other models have scores to no effect, right or wrong.
    metadata.insert("tokenizer.ggml.model", "gemma4");
    assert!(vocabulary(&metadata).unwrap().unwrap().scores.is_empty());
}

#[test]
fn a_broken_template_prevents_conversations_and_nothing_else() {
    let mut toy = Toy::from_fixture(&Fixture::named("share"));
    toy.config.vocab_size = toy.config.vocab_size.max(BYTES_MIN);
    toy.vocabulary = Vocabulary::Bytes;
    let load = |template: &str| {
        let edit = |metadata: &mut Metadata| {
            metadata.insert("tokenizer.chat_template", template);
        };
        OnDisk::edited(&toy, |_| true, edit).load(exact())
    };
    let mut engine = load("fine");
    assert!(engine.chat_template().is_some());
    let warnings = |engine: &mut slotbank_engine::Engine| {
        std::iter::from_fn(|| engine.take_warning())
            .filter(|text| text.contains("template"))
            .collect::<Vec<_>>()
    };
    assert!(warnings(&mut engine).is_empty());
    let mut engine = load("one line\n{% if %}");
    assert!(engine.chat_template().is_none() && engine.tokenizer().is_some());
    let said = warnings(&mut engine);
    assert!(said.len() == 1 && said[0].starts_with("chat template, line 2: "), "{said:?}");
}

/// What tools/goldens/compare_llama_tokens.py writes.
#[derive(Deserialize)]
struct Ids {
    corpus: Vec<String>,
    vocabularies: BTreeMap<String, Golden>,
}

#[derive(Deserialize)]
struct Golden {
    /// Texts of this vocabulary alone, behind those of the corpus.
    extra: Vec<String>,
    ids: Vec<Vec<u32>>,
    /// At which tokens llama.cpp stops.
    #[serde(default)]
    llama_end: Option<Vec<u32>>,
}

#[test]
fn ids_of_published_vocabularies() {
    let Some(folder) = std::env::var_os("SLOTBANK_VOCABULARIES").map(PathBuf::from) else {
        println!("skipped: SLOTBANK_VOCABULARIES names no folder of vocabularies (docs/tokenizers.md)");
        return;
    };
    let ids = std::fs::read_to_string(folder.join("ids.json")).unwrap();
    let ids: Ids = serde_json::from_str(&ids).unwrap();
    assert!(!ids.vocabularies.is_empty());
    let mut wrong = Vec::new();
    for (name, golden) in &ids.vocabularies {
        let header = files::gguf::read(&folder.join(name)).unwrap();
        let tokenizer = Tokenizer::new(vocabulary(&header.metadata).unwrap().unwrap())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let texts = ids.corpus.iter().chain(&golden.extra);
        assert_eq!(texts.clone().count(), golden.ids.len());
        for (text, expected) in texts.zip(&golden.ids) {
            let got = tokenizer.encode(text, Specials::Parse).unwrap();
            if got != *expected {
                wrong.push(format!("{name}: {text:?}\n    {got:?}\n    {expected:?}"));
            }
        }
        let words = |ids: &[u32]| ids.iter().map(|id| tokenizer.token_text(*id)).collect::<Vec<_>>();
        println!("{name}: {} texts, stops at {:?}", golden.ids.len(), words(tokenizer.end_tokens()));
        let missing: Vec<u32> =
            golden.llama_end.iter().flatten().copied().filter(|id| !tokenizer.is_end(*id)).collect();
        if !missing.is_empty() {
            println!("    llama.cpp also stops at {:?}", words(&missing));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
