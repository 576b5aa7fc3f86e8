//! From text without special tokens to ids: the kinds of tokenizer that files have.
//!
//! Merging by rank is done by the Hugging Face `tokenizers` crate, merging by score here.

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NFC;
use tokenizers::{Model, NormalizedString, Normalizer};

use super::bytes::Alphabet;
use super::library;
use super::pretokenizer::{Form, PreTokenizer, Splitter};
use super::scored::Scored;
use super::vocabulary::Checked;
use crate::Error;

/// What sentencepiece writes for a space.
pub(super) const SPACE: &str = "\u{2581}";

/// A kind of tokenizer with its vocabulary.
pub(super) enum Scheme {
    /// `gpt2`: text is cut into words, words are written in the byte alphabet and merged by rank.
    Bytes {
        bpe: BPE,
        splitter: Splitter,
        nfc: bool,
        alphabet: Alphabet,
        /// Bytes that no token covers; almost always none.
        missing: Vec<u8>,
    },
    /// `gemma4`: the whole text is merged by rank; characters without a token are written byte by byte.
    Characters {
        bpe: BPE,
        /// Bytes that no token covers, where no unknown token takes their place either; almost always none.
        missing: Vec<u8>,
    },
    /// `llama`: the whole text is merged by score.
    Scored {
        pieces: Scored,
        /// Whether each stretch of text gets a space in front.
        prefix: bool,
    },
}

impl Scheme {
    pub(super) fn new(checked: &mut Checked, entry: &PreTokenizer) -> Result<Self, Error> {
        match entry.form {
            Form::Bytes => {
                let bpe = checked.bpe(entry)?;
                let alphabet = Alphabet::new();
                let is_missing =
                    |byte: &u8| bpe.token_to_id(alphabet.char(*byte).encode_utf8(&mut [0; 4])).is_none();
                let missing = (0..=255).filter(is_missing).collect();
                Ok(Self::Bytes { bpe, splitter: Splitter::new(entry)?, nfc: entry.nfc, alphabet, missing })
            }
            Form::Characters => {
                let tokens = checked.byte_tokens();
                let is_missing = |byte: &u8| tokens[usize::from(*byte)].is_none() && checked.unk.is_none();
                let missing = (0..=255).filter(is_missing).collect();
                Ok(Self::Characters { bpe: checked.bpe(entry)?, missing })
            }
            Form::Scored => {
                let prefix = checked.add_space_prefix.unwrap_or(true);
                Ok(Self::Scored { pieces: Scored::new(checked), prefix })
            }
        }
    }

    /// Appends the ids of `text`, which is not empty.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), Error> {
        match self {
            Self::Bytes { bpe, splitter, nfc, alphabet, missing } => {
                let normal;
                let text = if *nfc && !text.is_ascii() {
                    let mut string = NormalizedString::from(text);
                    NFC.normalize(&mut string).map_err(library)?;
                    normal = string.get().to_owned();
                    &normal
                } else {
                    text
                };
                if !missing.is_empty()
                    && let Some(byte) = text.bytes().find(|byte| missing.contains(byte))
                {
                    return Err(Error::NoSymbol { byte });
                }
                let mut word = String::new();
                splitter.split(text, &mut |piece| {
                    word.clear();
                    alphabet.encode(piece, &mut word);
                    merge(bpe, &word, ids)
                })
            }
            Self::Characters { bpe, missing } => {
                let text = text.replace(' ', SPACE);
                if !missing.is_empty() {
                    check(bpe, missing, &text)?;
                }
                merge(bpe, &text, ids)
            }
            Self::Scored { pieces, prefix } => {
                let mut spaced = String::with_capacity(text.len() + SPACE.len());
                if *prefix {
                    spaced.push_str(SPACE);
                }
                spaced.push_str(&text.replace(' ', SPACE));
                pieces.encode(&spaced, ids)
            }
        }
    }

    /// The id of an ordinary token by its text in the vocabulary.
    pub(super) fn id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Bytes { bpe, .. } | Self::Characters { bpe, .. } => bpe.token_to_id(token),
            Self::Scored { pieces, .. } => pieces.id(token),
        }
    }
}

fn merge(bpe: &BPE, word: &str, ids: &mut Vec<u32>) -> Result<(), Error> {
    ids.extend(bpe.tokenize(word).map_err(library)?.into_iter().map(|token| token.id));
    Ok(())
}

/// The library leaves out what it cannot write; that must not happen silently.
fn check(bpe: &BPE, missing: &[u8], text: &str) -> Result<(), Error> {
    let mut buffer = [0; 4];
    for char in text.chars() {
        let symbol: &str = char.encode_utf8(&mut buffer);
        if bpe.token_to_id(symbol).is_none()
            && let Some(byte) = symbol.bytes().find(|byte| missing.contains(byte))
        {
            return Err(Error::NoSymbol { byte });
        }
    }
    Ok(())
}
