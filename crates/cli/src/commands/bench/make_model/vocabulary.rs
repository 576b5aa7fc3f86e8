//! A tokenizer for a model that has never read: every byte, then made-up words, then GLM's special tokens.
//!
//! The words are the ring. Each is one piece for the `glm4` pre-tokenizer and stands in the vocabulary whole, so a text of
//! words becomes exactly their ids, in any engine.

use std::ops::Range;

use files::Metadata;

const BYTES: u64 = 256;

const SPECIALS: [&str; 13] = [
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<think>",
    "</think>",
    "<tool_call>",
];

/// Fewest ids that make sense: the ring keeps more than 200.
pub(super) const VOCAB_MIN: u64 = 512;

const CONSONANTS: &[u8; 15] = b"bdfgjklmnprstvz";
const VOWELS: &[u8; 5] = b"aeiou";
const SYLLABLES: u64 = 75;

/// A template of GLM's shape, without its tools.
const TEMPLATE: &str = "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}\
                        {% if add_generation_prompt %}<|assistant|><think></think>{% endif %}";

/// Ids of the words, in ring order.
pub(super) fn ring_ids(vocab: u64) -> Range<u64> {
    BYTES..vocab - SPECIALS.len() as u64
}

/// The word at a place of the ring, without its leading blank: three syllables, four beyond the
/// first 421,875 words.
pub(super) fn word(place: u64) -> String {
    let mut rest = place;
    let mut syllables = Vec::new();
    while syllables.len() < 3 || rest > 0 {
        syllables.push((rest % SYLLABLES) as usize);
        rest /= SYLLABLES;
    }
    syllables.iter().rev().flat_map(|&s| [char::from(CONSONANTS[s / 5]), char::from(VOWELS[s % 5])]).collect()
}

/// GPT-2's printable stand-in for a byte.
fn stand_in(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(256 + rank).expect("a code point below 512")
}

/// Adds `tokenizer.*` for `vocab` ids.
pub(super) fn insert(metadata: &mut Metadata, vocab: u64) {
    let ring = ring_ids(vocab);
    let mut tokens: Vec<String> = (0..=255).map(|b| stand_in(b).to_string()).collect();
    tokens.extend((0..ring.end - ring.start).map(|place| format!("Ġ{}", word(place))));
    let mut types = vec![1i32; tokens.len()];
    tokens.extend(SPECIALS.iter().map(|s| (*s).to_owned()));
    // Thinking and tool marks are text that a model writes (user-defined); the others are control tokens.
    types.extend(SPECIALS.iter().map(|s| if s.contains("think") || s.contains("tool") { 4 } else { 3 }));
    let id = |name: &str| {
        (ring.end + SPECIALS.iter().position(|s| *s == name).expect("a special token") as u64) as u32
    };
    metadata.insert("tokenizer.ggml.model", "gpt2");
    metadata.insert("tokenizer.ggml.pre", "glm4");
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", types);
    // Words are found whole and need no merges; a loader wants the list all the same.
    metadata.insert("tokenizer.ggml.merges", Vec::<String>::new());
    metadata.insert("tokenizer.ggml.bos_token_id", id("[gMASK]"));
    metadata.insert("tokenizer.ggml.eos_token_id", id("<|endoftext|>"));
    metadata.insert("tokenizer.ggml.eot_token_id", id("<|user|>"));
    metadata.insert("tokenizer.ggml.eom_token_id", id("<|observation|>"));
    metadata.insert("tokenizer.ggml.unknown_token_id", id("<|endoftext|>"));
    metadata.insert("tokenizer.ggml.padding_token_id", id("<|endoftext|>"));
    metadata.insert("tokenizer.ggml.add_bos_token", false);
    metadata.insert("tokenizer.chat_template", TEMPLATE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_distinct_letters() {
        let words: std::collections::HashSet<String> = (0..20_000).map(word).collect();
        assert_eq!(words.len(), 20_000);
        assert!(words.iter().all(|w| w.len() == 6 && w.bytes().all(|b| b.is_ascii_lowercase())));
        assert_eq!((word(0).as_str(), word(76).as_str()), ("bababa", "babebe"));
    }

    #[test]
    fn every_id_has_a_token_of_its_own() {
        let mut metadata = Metadata::new();
        insert(&mut metadata, 1024);
        let tokens = metadata.strs("tokenizer.ggml.tokens").expect("a list").expect("present");
        let distinct: std::collections::HashSet<&str> = tokens.iter().map(AsRef::as_ref).collect();
        assert_eq!((tokens.len(), distinct.len()), (1024, 1024));
    }
}
