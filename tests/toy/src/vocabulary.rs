//! Tokenizer metadata of a toy: none, or a byte-level vocabulary with GLM's special tokens.

use files::Metadata;

/// What `tokenizer.ggml.*` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vocabulary {
    /// `no_vocab`: token ids only.
    None,
    /// `gpt2` with the `glm4` pre-tokenizer: 256 byte tokens, a few merges, GLM's specials, unused ids up to the size.
    Bytes,
}

/// Smallest vocabulary that holds every token of [`Vocabulary::Bytes`].
pub const BYTES_MIN: u32 = 256 + MERGES.len() as u32 + SPECIALS.len() as u32;

const MERGES: [(&str, &str); 6] = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "the"), ("e", "r"), ("Ġ", "a")];

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

/// A template of GLM's shape, without its tools.
const TEMPLATE: &str = "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}\
                        {% if add_generation_prompt %}<|assistant|><think></think>{% endif %}";

/// GPT-2's printable stand-in for a byte.
fn stand_in(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(256 + rank).expect("a code point below 512")
}

/// Adds the tokenizer of a model with `vocab_size` ids.
pub(crate) fn insert(metadata: &mut Metadata, vocabulary: Vocabulary, vocab_size: u32) {
    if vocabulary == Vocabulary::None {
        metadata.insert("tokenizer.ggml.model", "no_vocab");
        return;
    }
    assert!(vocab_size >= BYTES_MIN, "{vocab_size} ids cannot hold {BYTES_MIN} tokens");
    let mut tokens: Vec<String> = (0..=255).map(|b| stand_in(b).to_string()).collect();
    tokens.extend(MERGES.iter().map(|(a, b)| format!("{a}{b}")));
    let mut types = vec![1i32; tokens.len()];
    let first_special = tokens.len();
    tokens.extend(SPECIALS.iter().map(|s| (*s).to_owned()));
    // Thinking and tool marks are text that the model writes (user-defined); the others are control tokens.
    types.extend(SPECIALS.iter().map(|s| if s.contains("think") || s.contains("tool") { 4 } else { 3 }));
    for i in tokens.len()..vocab_size as usize {
        tokens.push(format!("[PAD{i}]"));
        types.push(5);
    }
    let id = |name: &str| {
        (first_special + SPECIALS.iter().position(|s| *s == name).expect("a special token")) as u32
    };
    metadata.insert("tokenizer.ggml.model", "gpt2");
    metadata.insert("tokenizer.ggml.pre", "glm4");
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", types);
    metadata
        .insert("tokenizer.ggml.merges", MERGES.iter().map(|(a, b)| format!("{a} {b}")).collect::<Vec<_>>());
    metadata.insert("tokenizer.ggml.bos_token_id", id("[gMASK]"));
    metadata.insert("tokenizer.ggml.eos_token_id", id("<|endoftext|>"));
    metadata.insert("tokenizer.ggml.eot_token_id", id("<|user|>"));
    metadata.insert("tokenizer.ggml.eom_token_id", id("<|observation|>"));
    metadata.insert("tokenizer.ggml.unknown_token_id", id("<|endoftext|>"));
    metadata.insert("tokenizer.ggml.padding_token_id", id("<|endoftext|>"));
    metadata.insert("tokenizer.chat_template", TEMPLATE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_256_distinct_stand_ins() {
        let all: std::collections::HashSet<char> = (0..=255).map(stand_in).collect();
        assert_eq!(all.len(), 256);
        assert_eq!((stand_in(b' '), stand_in(b'\n'), stand_in(b'a')), ('Ġ', 'Ċ', 'a'));
    }
}
