//! The vocabulary as a file gives it, and its checks. Files are downloaded from strangers: every list is bounded,
//! every id compared with the number of tokens, and every merge looked up before the tokenizer library sees it,
//! since that library panics on some of what is refused here.

use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::bytes::Alphabet;
use super::pretokenizer::{self, Form, PreTokenizer};
use super::scheme::SPACE;
use crate::Error;

/// The largest vocabularies have 262 k tokens.
const MAX_TOKENS: usize = 1 << 22;
const MAX_MERGES: usize = 1 << 23;
/// The longest real tokens are a few hundred bytes of spaces or punctuation.
const MAX_TOKEN_BYTES: usize = 1 << 16;
const MAX_BYTES: usize = 1 << 28;
/// Control and user-defined tokens; real files have at most some thousand.
const MAX_SPECIALS: usize = 1 << 16;

/// A tokenizer's vocabulary, as it stands in GGUF metadata (`tokenizer.ggml.*`).
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    /// `model`: the kind of tokenizer. `gpt2` is byte-level BPE, `gemma4` BPE on characters, `llama` the BPE of
    /// sentencepiece, with scores instead of merges.
    pub model: String,
    /// `pre`: the name of the pre-tokenizer; empty when missing.
    pub pre: String,
    /// `tokens`: the text of each token; ordinary ones are in the GPT-2 byte alphabet under `gpt2`, and have `▁` for
    /// a space under the other models.
    pub tokens: Vec<String>,
    /// `scores`: how much each token is liked, for `llama` alone; other files have them to no effect.
    pub scores: Vec<f32>,
    /// `token_type`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. Empty when missing: all
    /// normal.
    pub token_types: Vec<i32>,
    /// `merges`: "left right", the most important first.
    pub merges: Vec<String>,
    /// `bos_token_id`: beginning of sequence.
    pub bos: Option<u32>,
    /// `eos_token_id`: end of sequence.
    pub eos: Option<u32>,
    /// `eot_token_id`: end of turn.
    pub eot: Option<u32>,
    /// `eom_token_id`: end of message.
    pub eom: Option<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `padding_token_id`.
    pub pad: Option<u32>,
    /// `fim_pad_token_id`, `fim_rep_token_id` and `fim_sep_token_id`: what code models pad and separate files with.
    pub fim: [Option<u32>; 3],
    /// `add_bos_token`: whether prompts start with `bos`.
    pub add_bos: Option<bool>,
    /// `add_space_prefix`: whether text gets a space in front, for `llama` alone.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

impl Vocabulary {
    /// The pre-tokenizer, once the model is one we have.
    pub(super) fn pre_tokenizer(&self) -> Result<&'static PreTokenizer, Error> {
        match self.model.as_str() {
            "gpt2" => pretokenizer::find(&self.pre),
            // Whatever their `pre` says: it is missing in some files, and these models know no other.
            "gemma4" => Ok(&pretokenizer::GEMMA4),
            "llama" => Ok(&pretokenizer::SENTENCEPIECE),
            _ => Err(Error::UnsupportedModel { model: self.model.clone() }),
        }
    }

    fn check_sizes(&self) -> Result<(), Error> {
        let bytes = self.tokens.iter().chain(&self.merges).map(String::len).sum();
        for (key, count, limit) in [
            ("tokenizer.ggml.tokens", self.tokens.len(), MAX_TOKENS),
            ("tokenizer.ggml.merges", self.merges.len(), MAX_MERGES),
            ("the vocabulary's text in bytes", bytes, MAX_BYTES),
        ] {
            if count > limit {
                return Err(Error::TooMany { key, count, limit });
            }
        }
        if !self.token_types.is_empty() && self.token_types.len() != self.tokens.len() {
            return Err(Error::TokenTypes { types: self.token_types.len(), tokens: self.tokens.len() });
        }
        if self.model == "llama" && self.scores.len() != self.tokens.len() {
            return Err(Error::Scores { scores: self.scores.len(), tokens: self.tokens.len() });
        }
        Ok(())
    }

    fn check_ids(&self) -> Result<(), Error> {
        let [fim_pad, fim_rep, fim_sep] = self.fim;
        for (key, id) in [
            ("tokenizer.ggml.bos_token_id", self.bos),
            ("tokenizer.ggml.eos_token_id", self.eos),
            ("tokenizer.ggml.eot_token_id", self.eot),
            ("tokenizer.ggml.eom_token_id", self.eom),
            ("tokenizer.ggml.unknown_token_id", self.unk),
            ("tokenizer.ggml.padding_token_id", self.pad),
            ("tokenizer.ggml.fim_pad_token_id", fim_pad),
            ("tokenizer.ggml.fim_rep_token_id", fim_rep),
            ("tokenizer.ggml.fim_sep_token_id", fim_sep),
        ] {
            if let Some(id) = id
                && id as usize >= self.tokens.len()
            {
                return Err(Error::TokenId { key, id, n_vocab: self.tokens.len() });
            }
        }
        Ok(())
    }
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text, in the byte alphabet.
    Normal,
    /// Stands for text the vocabulary cannot express.
    Unknown,
    /// Steers the conversation; never made from a user's text.
    Control,
    /// A control token that is part of what the model answers: where its reasoning, a channel or a call begins.
    Markup,
    /// Literal text that is always one token.
    UserDefined,
    /// Padding of the table.
    Unused,
    /// One raw byte, written `<0xNN>`.
    Byte,
}

impl Kind {
    fn new(id: u32, ty: i32) -> Result<Self, Error> {
        Ok(match ty {
            // 0 is ggml's "undefined", which nothing sets on purpose.
            0 | 5 => Self::Unused,
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            6 => Self::Byte,
            _ => {
                return Err(Error::Token {
                    id,
                    reason: format!("tokenizer.ggml.token_type is {ty}, which is none of 1 to 6"),
                });
            }
        })
    }

    /// Whether byte-pair merging may produce such a token.
    pub(super) fn is_mergeable(self) -> bool {
        matches!(self, Self::Normal | Self::UserDefined)
    }

    /// Whether the token steers the conversation, so that text of others must not become it.
    pub(super) fn is_control(self) -> bool {
        matches!(self, Self::Control | Self::Markup)
    }

    /// Whether a prompt's text becomes the token before anything else is done with it. The unknown token is among
    /// them in the original tokenizers.
    pub(super) fn is_special(self) -> bool {
        self.is_control() || matches!(self, Self::UserDefined | Self::Unknown)
    }
}

/// A vocabulary whose lists are consistent.
pub(super) struct Checked {
    pub(super) pre: String,
    pub(super) tokens: Vec<String>,
    pub(super) kinds: Vec<Kind>,
    pub(super) scores: Vec<f32>,
    merges: Vec<String>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) eot: Option<u32>,
    pub(super) eom: Option<u32>,
    pub(super) unk: Option<u32>,
    pub(super) fim: [Option<u32>; 3],
    pub(super) add_bos: Option<bool>,
    pub(super) add_space_prefix: Option<bool>,
    pub(super) chat_template: Option<String>,
}

impl Checked {
    pub(super) fn new(vocabulary: Vocabulary) -> Result<Self, Error> {
        vocabulary.check_sizes()?;
        vocabulary.check_ids()?;
        let types = vocabulary.token_types.iter().copied().chain(std::iter::repeat(1));
        let kinds: Vec<Kind> = (0u32..)
            .zip(types.take(vocabulary.tokens.len()))
            .map(|(id, ty)| Kind::new(id, ty))
            .collect::<Result<_, _>>()?;
        let specials = kinds.iter().filter(|kind| kind.is_special()).count();
        if specials > MAX_SPECIALS {
            let key = "tokenizer.ggml.token_type: control and user-defined tokens";
            return Err(Error::TooMany { key, count: specials, limit: MAX_SPECIALS });
        }
        check_tokens(&vocabulary.tokens, &kinds)?;
        Ok(Self {
            pre: vocabulary.pre,
            tokens: vocabulary.tokens,
            kinds,
            scores: vocabulary.scores,
            merges: vocabulary.merges,
            bos: vocabulary.bos,
            eos: vocabulary.eos,
            eot: vocabulary.eot,
            eom: vocabulary.eom,
            unk: vocabulary.unk,
            fim: vocabulary.fim,
            add_bos: vocabulary.add_bos,
            add_space_prefix: vocabulary.add_space_prefix,
            chat_template: vocabulary.chat_template,
        })
    }

    /// Control, user-defined and unknown tokens by their text.
    pub(super) fn specials(&self) -> HashMap<String, u32> {
        (0u32..)
            .zip(self.tokens.iter().zip(&self.kinds))
            .filter(|(_, (_, kind))| kind.is_special())
            .map(|(id, (text, _))| (text.clone(), id))
            .collect()
    }

    /// The tokens that merging may produce, by their text.
    pub(super) fn mergeable(&self) -> impl Iterator<Item = (&str, u32)> {
        (0u32..)
            .zip(self.tokens.iter().zip(&self.kinds))
            .filter(|(_, (text, kind))| kind.is_mergeable() && !text.is_empty())
            .map(|(id, (text, _))| (text.as_str(), id))
    }

    /// The tokens that stand for one byte, by that byte.
    pub(super) fn byte_tokens(&self) -> [Option<u32>; 256] {
        let mut tokens = [None; 256];
        for (id, (text, kind)) in (0u32..).zip(self.tokens.iter().zip(&self.kinds)) {
            if *kind == Kind::Byte
                && let Some(byte) = raw_byte(text)
            {
                tokens[usize::from(byte)] = Some(id);
            }
        }
        tokens
    }

    /// The merging machine. It knows no control tokens, so no text can be merged into one.
    pub(super) fn bpe(&mut self, entry: &PreTokenizer) -> Result<BPE, Error> {
        let mut vocab: Vocab = self.mergeable().map(|(text, id)| (text.to_owned(), id)).collect();
        let is_long = |text: &String| text.chars().nth(1).is_some();
        let has_words =
            || self.tokens.iter().zip(&self.kinds).any(|(text, kind)| *kind == Kind::Normal && is_long(text));
        if self.merges.is_empty() && !entry.ignore_merges && has_words() {
            return Err(Error::NoMerges);
        }
        let merges = self.merges(&vocab)?;
        self.merges = Vec::new();
        let mut builder = BPE::builder().ignore_merges(entry.ignore_merges);
        if entry.form == Form::Characters {
            // The machine looks these up by their spelling; no merge leads to them.
            for (byte, id) in (0..=255u8).zip(self.byte_tokens()) {
                id.map(|id| vocab.insert(format!("<0x{byte:02X}>"), id));
            }
            builder = builder.byte_fallback(true).fuse_unk(true);
            if let Some(unk) = self.unk {
                let text = self.tokens[unk as usize].clone();
                vocab.insert(text.clone(), unk);
                builder = builder.unk_token(text);
            }
        }
        builder.vocab_and_merges(vocab, merges).build().map_err(super::library)
    }

    fn merges(&self, vocab: &Vocab) -> Result<Merges, Error> {
        let specials = self.specials();
        let mut merges = Merges::with_capacity(self.merges.len());
        let mut product = String::new();
        'merges: for (index, merge) in self.merges.iter().enumerate() {
            // A token may itself start with a space, never contain one further on.
            let cut = merge.char_indices().skip(1).find(|(_, char)| *char == ' ').map(|(at, _)| at);
            let Some((left, right)) = cut.map(|at| (&merge[..at], &merge[at + 1..])) else {
                return Err(Error::Merge { index, reason: format!("`{}` is no pair", short(merge)) });
            };
            product.clear();
            product.push_str(left);
            product.push_str(right);
            for part in [left, right, &product] {
                if vocab.contains_key(part) {
                    continue;
                }
                // Text that spells a control token is cut out before merging, so this merge can do nothing.
                if specials.contains_key(part) {
                    continue 'merges;
                }
                let reason = format!("`{}` is not a token", short(part));
                return Err(Error::Merge { index, reason });
            }
            merges.push((left.to_owned(), right.to_owned()));
        }
        Ok(merges)
    }

    /// The bytes of all tokens, one after the other, and where each ends.
    pub(super) fn decode(&self, form: Form) -> (Vec<u8>, Vec<u32>) {
        let alphabet = Alphabet::new();
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(self.tokens.len());
        for (text, kind) in self.tokens.iter().zip(&self.kinds) {
            match (kind, raw_byte(text)) {
                (Kind::Byte, Some(byte)) => bytes.push(byte),
                (Kind::Normal, _) if form == Form::Bytes => alphabet.decode(text, &mut bytes),
                // Runs of spaces are user-defined tokens in some files.
                (Kind::Normal | Kind::UserDefined, _) if form != Form::Bytes => {
                    bytes.extend_from_slice(text.replace(SPACE, " ").as_bytes());
                }
                _ => bytes.extend_from_slice(text.as_bytes()),
            }
            // Bounded by MAX_BYTES: decoding never lengthens a token.
            ends.push(bytes.len() as u32);
        }
        bytes.shrink_to_fit();
        (bytes, ends)
    }
}

/// Tokens that text can become must be distinct; padding and unknowns may repeat.
fn check_tokens(tokens: &[String], kinds: &[Kind]) -> Result<(), Error> {
    let mut seen: HashMap<&str, u32> = HashMap::with_capacity(tokens.len());
    for (id, (text, kind)) in (0u32..).zip(tokens.iter().zip(kinds)) {
        if text.len() > MAX_TOKEN_BYTES {
            let reason = format!("its text has {} bytes, more than {MAX_TOKEN_BYTES}", text.len());
            return Err(Error::Token { id, reason });
        }
        let encodable = *kind == Kind::Normal || kind.is_control() || *kind == Kind::UserDefined;
        if encodable
            && !text.is_empty()
            && let Some(first) = seen.insert(text, id)
        {
            return Err(Error::Token { id, reason: format!("`{}` is already token {first}", short(text)) });
        }
    }
    Ok(())
}

/// The byte of `<0xNN>`.
fn raw_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hex.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// `text` for an error message: printable and of bounded length.
fn short(text: &str) -> String {
    let mut short: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    if text.chars().nth(40).is_some() {
        short.push('…');
    }
    short
}
