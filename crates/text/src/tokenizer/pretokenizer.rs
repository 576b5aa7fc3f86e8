//! Pre-tokenizers: how text is cut into words before byte-pair merging, by the name in `tokenizer.ggml.pre`.
//!
//! The expressions are those of the models' own `tokenizer.json` files. They end in `\s+(?!\S)|\s+`, which needs
//! look-ahead and therefore a backtracking engine: slow, and with a step limit that a long run of spaces reaches.
//! Its meaning is simple, though: a run of white space leaves its last character to the word that follows. So
//! the look-ahead is cut off here and done by hand, and what remains runs in linear time on any input.

use regex::Regex;

use crate::Error;

/// What words are made of when they reach the merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Bytes, written in the GPT-2 alphabet.
    Bytes,
    /// Characters, with `▁` for a space; the whole text is one word.
    Characters,
    /// The same, and the tokens have scores instead of merges.
    Scored,
}

/// What a name in `tokenizer.ggml.pre` stands for.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    names: &'static [&'static str],
    /// What is merged.
    pub(super) form: Form,
    /// Applied one after the other, each to the pieces of the one before.
    splits: &'static [&'static str],
    /// Whether a word that is itself a token is taken whole, even where the merges would not lead to it.
    pub(super) ignore_merges: bool,
    /// Whether text is brought into Unicode normal form C first.
    pub(super) nfc: bool,
    /// The value of `tokenizer.ggml.add_bos_token` when a file has none.
    pub(super) add_bos: bool,
    /// Whether prompts start with `bos` even where the file says that they do not: the model is lost without.
    pub(super) needs_bos: bool,
}

const PLAIN: PreTokenizer = PreTokenizer {
    names: &[],
    form: Form::Bytes,
    splits: &[],
    ignore_merges: false,
    nfc: false,
    add_bos: false,
    needs_bos: false,
};

/// The model `gemma4`.
pub(super) static GEMMA4: PreTokenizer =
    PreTokenizer { form: Form::Characters, add_bos: true, needs_bos: true, ..PLAIN };

/// The model `llama`.
pub(super) static SENTENCEPIECE: PreTokenizer = PreTokenizer { form: Form::Scored, add_bos: true, ..PLAIN };

/// The end of most expressions.
const SPACE: &str = r"\s+(?!\S)|\s+";

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const QWEN35: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const O200K: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const KIMI_K2: &str = concat!(
    r"[\p{Han}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const DEEPSEEK_V3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Letters of Latin, Greek, Cyrillic, Armenian, Georgian, Cherokee and some extinct scripts, as DeepSeek-LLM and V2
/// list them.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ",
    r"Ὗ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ",
    r"𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
);

/// Han, kana and Hangul in DeepSeek before V3, with a range that was meant to be smaller.
const DEEPSEEK_CJK: &str = r"[一-龥ࠀ-一가-퟿]+";

static TABLE: &[PreTokenizer] = &[
    PreTokenizer { names: &["glm4", "glm5"], splits: &[LLAMA3], ignore_merges: true, ..PLAIN },
    PreTokenizer { names: &["chatglm-bpe"], splits: &[LLAMA3], ..PLAIN },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        splits: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    PreTokenizer { names: &["qwen2"], splits: &[QWEN2], nfc: true, ..PLAIN },
    PreTokenizer { names: &["qwen35"], splits: &[QWEN35], nfc: true, ..PLAIN },
    PreTokenizer { names: &["gpt-2"], splits: &[GPT2], ..PLAIN },
    PreTokenizer {
        names: &["deepseek-v3"],
        splits: &[r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK_V3],
        ..PLAIN
    },
    // In the models' own files the last split of the next two is a rule that takes digits one by one.
    PreTokenizer {
        names: &["deepseek-llm"],
        splits: &[
            r"[\r\n]",
            DEEPSEEK_LETTERS,
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            DEEPSEEK_CJK,
            r"\p{N}",
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        splits: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, r"\p{N}"],
        ..PLAIN
    },
    PreTokenizer { names: &["gpt-4o", "minimax-m2"], splits: &[O200K], ..PLAIN },
    PreTokenizer { names: &["kimi-k2"], splits: &[KIMI_K2], ..PLAIN },
];

/// The entry for `pre`. There is no default: a wrong split gives fluent, subtly wrong prompts.
pub(super) fn find(pre: &str) -> Result<&'static PreTokenizer, Error> {
    TABLE
        .iter()
        .find(|entry| entry.names.contains(&pre))
        .ok_or_else(|| Error::UnknownPreTokenizer { pre: pre.into() })
}

/// All names in the table.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().flat_map(|entry| entry.names.iter().copied())
}

/// A compiled [`PreTokenizer`].
#[derive(Debug)]
pub(super) struct Splitter {
    splits: Vec<Split>,
}

#[derive(Debug)]
struct Split {
    regex: Regex,
    /// The expression ended in `SPACE`, which is now its last alternative `\s+` and a rule applied by hand.
    yields_space: bool,
    /// Runs with a line break in them are matched by an earlier alternative, up to their last line break, and keep
    /// their last character.
    keeps_newlines: bool,
}

impl Splitter {
    pub(super) fn new(entry: &PreTokenizer) -> Result<Self, Error> {
        let splits = entry.splits.iter().map(|pattern| Split::new(pattern)).collect::<Result<_, _>>()?;
        Ok(Self { splits })
    }

    /// Calls `piece` with each word of `text`, in order; together they are `text`.
    pub(super) fn split<'t>(
        &self,
        text: &'t str,
        piece: &mut dyn FnMut(&'t str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        Self::descend(&self.splits, text, piece)
    }

    fn descend<'t>(
        splits: &[Split],
        text: &'t str,
        piece: &mut dyn FnMut(&'t str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Some((split, rest)) = splits.split_first() else { return piece(text) };
        let mut at = 0;
        while at < text.len() {
            let (start, end) = split.find(text, at).unwrap_or((text.len(), text.len()));
            if at < start {
                Self::descend(rest, &text[at..start], piece)?;
            }
            if start < end {
                Self::descend(rest, &text[start..end], piece)?;
            }
            at = end;
        }
        Ok(())
    }
}

impl Split {
    fn new(pattern: &str) -> Result<Self, Error> {
        let linear = pattern.strip_suffix(SPACE).map(|head| format!(r"{head}\s+"));
        let regex = Regex::new(linear.as_deref().unwrap_or(pattern))
            .map_err(|error| Error::Tokenizer { reason: error.to_string() })?;
        Ok(Self { regex, yields_space: linear.is_some(), keeps_newlines: pattern.contains(r"|\s*[\r\n]+|") })
    }

    /// The first match at or after `at`, as byte offsets; never empty.
    fn find(&self, text: &str, at: usize) -> Option<(usize, usize)> {
        let found = self.regex.find_at(text, at)?;
        let word = found.as_str();
        let end = found.end();
        if !self.yields_space || end == text.len() {
            return Some((found.start(), end));
        }
        // Only the last alternative matches white space alone (or the one for line breaks, which keeps them), and
        // it is greedy: what follows is no white space.
        let last = word.chars().next_back().map_or(0, char::len_utf8);
        let kept = self.keeps_newlines && word.ends_with(['\r', '\n']);
        if kept || word.len() == last || !word.chars().all(char::is_whitespace) {
            return Some((found.start(), end));
        }
        Some((found.start(), end - last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pre: &str, text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        Splitter::new(find(pre).unwrap())
            .unwrap()
            .split(text, &mut |piece| {
                pieces.push(piece.to_owned());
                Ok(())
            })
            .unwrap();
        assert_eq!(pieces.concat(), text);
        assert!(pieces.iter().all(|piece| !piece.is_empty()));
        pieces
    }

    #[test]
    fn every_expression_compiles_and_loses_nothing() {
        for name in names() {
            split(
                name,
                "a  b\n\n c\t\td  \u{3000}\u{3000}e 1234 …!!\r\n\r\n  中文かな x's X'S \u{301}e\u{301}  ",
            );
            assert!(split(name, "").is_empty());
        }
    }

    #[test]
    fn a_run_of_space_leaves_its_last_character() {
        assert_eq!(split("glm4", "a   b"), ["a", "  ", " b"]);
        assert_eq!(split("glm4", "a \n \n  b"), ["a", " \n \n", " ", " b"]);
        assert_eq!(split("glm4", "a   "), ["a", "   "]);
        assert_eq!(split("glm4", "  1"), [" ", " ", "1"]);
        assert_eq!(split("gpt-2", "a\n\nb"), ["a", "\n", "\n", "b"]);
    }

    #[test]
    fn families_differ_where_they_should() {
        assert_eq!(split("glm4", "12345"), ["123", "45"]);
        assert_eq!(split("qwen2", "123"), ["1", "2", "3"]);
        assert_eq!(split("gpt-2", "12345"), ["12345"]);
        assert_eq!(split("gpt-4o", "HelloWorld"), ["Hello", "World"]);
        assert_eq!(split("kimi-k2", "HelloWorld中文"), ["Hello", "World", "中文"]);
        assert_eq!(split("deepseek-v3", "価格は1234円"), ["価格は", "123", "4", "円"]);
        // The second list of DeepSeek-LLM has the letters of ASCII among its punctuation, and cuts what the first left.
        assert_eq!(split("deepseek-llm", "Año 12, ñé"), ["A", "ñ", "o", " ", "1", "2", ",", " ñé"]);
        assert_eq!(split("deepseek-coder", "x+=1;  y "), ["x", "+=", "1", ";", " ", " y", " "]);
        assert_eq!(split("qwen35", "e\u{301}a"), ["e\u{301}a"]);
        assert_eq!(split("qwen2", "e\u{301}a"), ["e", "\u{301}a"]);
    }

    #[test]
    fn long_runs_take_linear_time() {
        for name in names() {
            for unit in [" ", "a", "\n", "1", "!", "'", "\u{301}", " \n", "A'"] {
                let text = unit.repeat(100_000) + "x";
                split(name, &text);
            }
        }
    }

    #[test]
    fn unknown_names_are_errors() {
        for pre in ["", "default", "GLM4", "tekken"] {
            assert_eq!(find(pre).unwrap_err(), Error::UnknownPreTokenizer { pre: pre.into() });
        }
    }
}
