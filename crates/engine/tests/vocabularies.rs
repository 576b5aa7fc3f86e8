//! Tokenizers of published models, where their vocabularies are at hand: ids as the models' own tokenizers give them.
//!
//! `SLOTBANK_VOCABULARIES` names the folder; docs/tokenizers.md says how to fill it. Without it nothing is tested here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use text::{Specials, Tokenizer};

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
        let vocabulary = slotbank_engine::vocabulary(&header.metadata).unwrap().unwrap();
        let tokenizer = Tokenizer::new(vocabulary).unwrap_or_else(|error| panic!("{name}: {error}"));
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
