//! The tokenizer: text to ids and back, for the BPE vocabularies of GGUF metadata: byte-level (`gpt2`), on characters
//! (`gemma4`), and sentencepiece's (`llama`).
//!
//! Merging by rank is done by the Hugging Face `tokenizers` crate. Splitting text into words and finding special
//! tokens is done here: the first must not give up silently on odd text, and the second decides who may write a
//! control token (see [`Specials`]). Designed for vocabularies of 50 k to 260 k tokens and prompts of up to some
//! megabytes.

mod bytes;
mod end;
pub(crate) mod pretokenizer;
mod scheme;
mod scored;
mod stream;
mod vocabulary;

use std::borrow::Cow;
use std::collections::HashMap;

use aho_corasick::{AhoCorasick, MatchKind};

pub use stream::Detokenizer;
pub use vocabulary::Vocabulary;

use crate::Error;
use scheme::Scheme;
use vocabulary::{Checked, Kind};

/// Whether the text of a control token becomes that token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// Yes: for prompts that a template rendered or the operator wrote.
    Parse,
    /// No: for text of users, tools and documents, which must not be able to end a turn or open one. User-defined
    /// tokens, which have no such powers, are found in both modes; as in llama.cpp.
    Plain,
}

/// The escape character of [`Tokenizer::shield`]: a noncharacter, which no text in interchange has.
pub(crate) const SHIELD: char = '\u{fdd0}';

/// A tokenizer, built from a [`Vocabulary`].
pub struct Tokenizer {
    scheme: Scheme,
    /// Control, user-defined and unknown tokens by their text.
    specials: HashMap<String, u32>,
    all: Matcher,
    user_defined: Matcher,
    kinds: Vec<Kind>,
    /// The bytes of all tokens, one after the other; token `id` is `bytes[ends[id - 1]..ends[id]]`.
    bytes: Vec<u8>,
    ends: Vec<u32>,
    longest: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    end: Vec<u32>,
    chat_template: Option<String>,
}

/// Finds special tokens in text, leftmost and then longest first.
struct Matcher {
    /// `None` when there is nothing to find.
    automaton: Option<AhoCorasick>,
    ids: Vec<u32>,
}

impl Matcher {
    fn new(checked: &Checked, wanted: impl Fn(Kind) -> bool) -> Result<Self, Error> {
        let found: Vec<(&str, u32)> = (0u32..)
            .zip(checked.tokens.iter().zip(&checked.kinds))
            .filter(|(_, (text, kind))| wanted(**kind) && !text.is_empty())
            .map(|(id, (text, _))| (text.as_str(), id))
            .collect();
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(found.iter().map(|(text, _)| text))
            .map_err(|error| Error::Tokenizer { reason: error.to_string() })?;
        Ok(Self {
            automaton: (!found.is_empty()).then_some(automaton),
            ids: found.into_iter().map(|(_, id)| id).collect(),
        })
    }

    /// The first special token at or after `at`: start, end, id.
    fn find(&self, text: &str, at: usize) -> Option<(usize, usize, u32)> {
        let found = self.automaton.as_ref()?.find(aho_corasick::Input::new(text).range(at..))?;
        Some((found.start(), found.end(), self.ids[found.pattern().as_usize()]))
    }
}

impl Tokenizer {
    /// Builds a tokenizer, checking everything the file says: an unknown model or pre-tokenizer, ids out of range,
    /// duplicate tokens and merges of unknown tokens are errors that name the entry.
    pub fn new(vocabulary: Vocabulary) -> Result<Self, Error> {
        let entry = vocabulary.pre_tokenizer()?;
        let mut checked = Checked::new(vocabulary)?;
        end::mark(&mut checked);
        let end = end::find(&mut checked);
        let add_bos = entry.needs_bos || checked.add_bos.unwrap_or(entry.add_bos);
        if add_bos && checked.bos.is_none() {
            return Err(Error::MissingBos);
        }
        let scheme = Scheme::new(&mut checked, entry)?;
        let (bytes, ends) = checked.decode(entry.form);
        let starts = std::iter::once(0).chain(ends.iter().copied());
        Ok(Self {
            scheme,
            specials: checked.specials(),
            all: Matcher::new(&checked, Kind::is_special)?,
            user_defined: Matcher::new(&checked, |kind| kind == Kind::UserDefined)?,
            longest: starts.zip(&ends).map(|(start, end)| (end - start) as usize).max().unwrap_or(0),
            kinds: checked.kinds,
            bytes,
            ends,
            bos: checked.bos,
            eos: checked.eos,
            add_bos,
            end,
            chat_template: checked.chat_template,
        })
    }

    /// The ids of `text`. Never adds a beginning-of-sequence token; see [`Tokenizer::add_bos`].
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>, Error> {
        let matcher = match specials {
            Specials::Parse => &self.all,
            Specials::Plain => &self.user_defined,
        };
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        let mut at = 0;
        while let Some((start, end, id)) = matcher.find(text, at) {
            self.encode_ordinary(&text[at..start], &mut ids)?;
            ids.push(id);
            at = end;
        }
        self.encode_ordinary(&text[at..], &mut ids)?;
        Ok(ids)
    }

    /// Protects text of a user before a chat template puts it among the template's own: every control token in it
    /// is marked, so that [`Tokenizer::encode_shielded`] takes it for plain text. The marks are characters of their
    /// own; trimming, splitting and replacing in the template do not disturb them.
    pub fn shield<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut marks: Vec<usize> = text.match_indices(SHIELD).map(|(at, _)| at).collect();
        let mut from = 0;
        while let Some((start, _, id)) = self.all.find(text, from) {
            if self.kinds[id as usize] != Kind::UserDefined {
                marks.push(start);
            }
            // Tokens may overlap, so the search goes on inside the one found.
            from = start + text[start..].chars().next().map_or(1, char::len_utf8);
        }
        if marks.is_empty() {
            return Cow::Borrowed(text);
        }
        marks.sort_unstable();
        marks.dedup();
        let mut shielded = String::with_capacity(text.len() + marks.len() * SHIELD.len_utf8());
        let mut from = 0;
        for mark in marks {
            shielded.push_str(&text[from..mark]);
            shielded.push(SHIELD);
            from = mark;
        }
        shielded.push_str(&text[from..]);
        Cow::Owned(shielded)
    }

    /// The ids of a rendered prompt whose foreign parts went through [`Tokenizer::shield`]: control tokens are
    /// found where they are not marked, and the marks are taken out.
    pub fn encode_shielded(&self, prompt: &str) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::with_capacity(prompt.len() / 3 + 1);
        // Where the marks were: bytes of `text` at which no special token may start.
        let mut barred = Vec::new();
        let mut text = String::with_capacity(prompt.len());
        let mut chars = prompt.chars();
        while let Some(char) = chars.next() {
            if char == SHIELD {
                barred.push(text.len());
                text.extend(chars.next());
            } else {
                text.push(char);
            }
        }
        let (mut done, mut from, mut barred) = (0, 0, &barred[..]);
        while let Some((start, end, id)) = self.all.find(&text, from) {
            let passed = barred.partition_point(|at| *at < start);
            barred = &barred[passed..];
            let is_barred = barred.first().is_some_and(|at| *at < end);
            if is_barred && self.kinds[id as usize] != Kind::UserDefined {
                from = start + text[start..].chars().next().map_or(1, char::len_utf8);
                continue;
            }
            self.encode_ordinary(&text[done..start], &mut ids)?;
            ids.push(id);
            (done, from) = (end, end);
        }
        self.encode_ordinary(&text[done..], &mut ids)?;
        Ok(ids)
    }

    /// Encodes text without special tokens.
    fn encode_ordinary(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), Error> {
        if text.is_empty() { Ok(()) } else { self.scheme.encode(text, ids) }
    }

    /// The text of `ids`, invalid UTF-8 replaced by U+FFFD. Control tokens are left out unless `show_special`. A
    /// space that encoding put in front of the text (sentencepiece's do) stays.
    pub fn decode(&self, ids: &[u32], show_special: bool) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| self.token_bytes(*id, show_special)).copied().collect();
        String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    /// How many tokens there are; ids are below.
    pub fn n_vocab(&self) -> usize {
        self.kinds.len()
    }

    /// Whether generation stops at this token.
    pub fn is_end(&self, id: u32) -> bool {
        self.end.binary_search(&id).is_ok()
    }

    /// The tokens at which generation stops, ascending.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end
    }

    /// The bytes that a token stands for, not always whole characters. Empty for ids outside the vocabulary, and
    /// for control, unknown and unused tokens unless `show_special`; but control tokens that are the markup of an
    /// answer (`<|channel|>`, `<|tool_call>`) always show.
    pub fn token_bytes(&self, id: u32, show_special: bool) -> &[u8] {
        let index = id as usize;
        let hidden = match self.kinds.get(index) {
            None => true,
            Some(Kind::Control | Kind::Unknown | Kind::Unused) => !show_special,
            Some(_) => false,
        };
        if hidden {
            return &[];
        }
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start as usize..self.ends[index] as usize]
    }

    /// The length of the longest token in bytes.
    pub fn longest_token(&self) -> usize {
        self.longest
    }

    /// Whether the token is a control token: it steers the conversation, and no text of a user becomes it.
    pub fn is_control(&self, id: u32) -> bool {
        self.kinds.get(id as usize).is_some_and(|kind| kind.is_control())
    }

    /// The beginning-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-sequence token, one of [`Tokenizer::end_tokens`].
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether a prompt that no template rendered starts with [`Tokenizer::bos`], which is then there. Chat
    /// templates write it themselves.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// The id of a token by its text in the vocabulary (`<|user|>`; ordinary tokens as the file spells them).
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.specials.get(token).copied().or_else(|| self.scheme.id(token))
    }

    /// The text of a token, its control text included: what a chat template gets as `bos_token`.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.token_bytes(id, true)).into_owned()
    }

    /// The chat template of the file.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("n_vocab", &self.n_vocab())
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

fn library(error: tokenizers::Error) -> Error {
    Error::Tokenizer { reason: error.to_string() }
}
