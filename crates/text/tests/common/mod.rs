//! The small vocabularies of the goldens, shared by the tests.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use serde::Deserialize;
use slotbank_text::{Tokenizer, Vocabulary};

#[derive(Deserialize)]
pub(crate) struct Golden {
    pub(crate) parse: Vec<Vec<u32>>,
    pub(crate) plain_differs: BTreeMap<usize, Vec<u32>>,
}

#[derive(Deserialize)]
pub(crate) struct Fixture {
    pub(crate) tokens: Vec<String>,
    pub(crate) token_types: Vec<i32>,
    pub(crate) merges: Vec<String>,
    pub(crate) corpus: Vec<String>,
    pub(crate) goldens: BTreeMap<String, Golden>,
}

pub(crate) static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../../../tests/fixtures/tokenizer/bpe.json")).unwrap()
});

/// A vocabulary of characters, as Gemma's and sentencepiece's are.
#[derive(Deserialize)]
pub(crate) struct Characters {
    pub(crate) tokens: Vec<String>,
    token_types: Vec<i32>,
    merges: Vec<String>,
    scores: Vec<f32>,
    pub(crate) corpus: Vec<String>,
    pub(crate) goldens: BTreeMap<String, Golden>,
}

pub(crate) static CHARACTERS: LazyLock<Characters> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../../../tests/fixtures/tokenizer/characters.json")).unwrap()
});

impl Characters {
    pub(crate) fn id(&self, token: &str) -> u32 {
        self.tokens.iter().position(|known| known == token).unwrap() as u32
    }

    /// `model` is `gemma4` or `llama`. Both lists are there, as in real files.
    pub(crate) fn vocabulary(&self, model: &str) -> Vocabulary {
        Vocabulary {
            model: model.into(),
            tokens: self.tokens.clone(),
            token_types: self.token_types.clone(),
            merges: self.merges.clone(),
            scores: self.scores.clone(),
            bos: Some(self.id("<bos>")),
            eos: Some(self.id("<eos>")),
            unk: Some(self.id("<unk>")),
            pad: Some(self.id("<pad>")),
            ..Vocabulary::default()
        }
    }
}

impl Fixture {
    pub(crate) fn id(&self, token: &str) -> u32 {
        self.tokens.iter().position(|known| known == token).unwrap() as u32
    }

    pub(crate) fn vocabulary(&self, pre: &str) -> Vocabulary {
        Vocabulary {
            model: "gpt2".into(),
            pre: pre.into(),
            tokens: self.tokens.clone(),
            token_types: self.token_types.clone(),
            merges: self.merges.clone(),
            bos: Some(self.id("[gMASK]")),
            eos: Some(self.id("<|endoftext|>")),
            ..Vocabulary::default()
        }
    }

    pub(crate) fn tokenizer(&self, pre: &str) -> Arc<Tokenizer> {
        Arc::new(Tokenizer::new(self.vocabulary(pre)).unwrap())
    }
}
