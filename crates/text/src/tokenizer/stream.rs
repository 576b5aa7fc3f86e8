//! Text from tokens that arrive one at a time.
//!
//! A token may end in the middle of a character. Its bytes wait until the character is whole; bytes that cannot
//! become one are replaced by U+FFFD as soon as that is certain. What comes out in pieces is exactly what decoding
//! everything at once gives. Once constructed, nothing here allocates.

use std::sync::Arc;

use super::Tokenizer;

/// The incremental inverse of a [`Tokenizer`].
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    show_special: bool,
    /// Bytes of an unfinished character, at most three, and for a moment those of the newest token.
    pending: Vec<u8>,
    text: String,
}

/// The longest unfinished UTF-8 sequence.
const UNFINISHED: usize = 3;

impl Detokenizer {
    /// Starts a new text. Control tokens have none; see [`Detokenizer::show_special`].
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        let longest = tokenizer.longest_token() + UNFINISHED;
        // Each invalid byte may become a replacement character of three.
        let text = String::with_capacity(longest * char::REPLACEMENT_CHARACTER.len_utf8());
        Self { tokenizer, show_special: false, pending: Vec::with_capacity(longest), text }
    }

    /// Whether control tokens appear as their text.
    #[must_use]
    pub fn show_special(mut self, show: bool) -> Self {
        self.show_special = show;
        self
    }

    /// The text that this token completes, often empty and always valid UTF-8; `<0xNN>`-style half characters wait
    /// for the next token. An id outside the vocabulary has no text.
    pub fn push(&mut self, id: u32) -> &str {
        self.pending.extend_from_slice(self.tokenizer.token_bytes(id, self.show_special));
        self.text.clear();
        let mut done = 0;
        loop {
            match std::str::from_utf8(&self.pending[done..]) {
                Ok(rest) => {
                    self.text.push_str(rest);
                    done = self.pending.len();
                    break;
                }
                Err(error) => {
                    let valid = &self.pending[done..done + error.valid_up_to()];
                    self.text.push_str(std::str::from_utf8(valid).unwrap_or_default());
                    done += valid.len();
                    let Some(invalid) = error.error_len() else { break };
                    self.text.push(char::REPLACEMENT_CHARACTER);
                    done += invalid;
                }
            }
        }
        self.pending.drain(..done);
        &self.text
    }

    /// The end of the text: U+FFFD if it stopped inside a character. The next token starts a new text.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if !self.pending.is_empty() {
            self.pending.clear();
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        &self.text
    }
}
