//! What can go wrong with text: a vocabulary or template that is broken, hostile or of a kind this build does not
//! know, and options outside their range.

/// An error of this crate. `Display` says what happened, where and why; [`Error::hint`] says what to do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kind of tokenizer (`tokenizer.ggml.model`) is not one this build can run.
    #[error("tokenizer model `{}` is not supported; `gpt2`, `gemma4` and `llama` are", model.escape_debug())]
    UnsupportedModel {
        /// The file's value.
        model: String,
    },
    /// The pre-tokenizer (`tokenizer.ggml.pre`) is missing or not in the table.
    #[error("pre-tokenizer {} is not known, so prompts would be split wrongly", quoted(.pre))]
    UnknownPreTokenizer {
        /// The file's value; empty when the key is missing.
        pre: String,
    },
    /// A list of the vocabulary is longer than any real one.
    #[error("{key} has {count} entries, more than the limit of {limit}")]
    TooMany {
        /// The metadata key, or what is counted.
        key: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// `tokenizer.ggml.token_type` does not go with `tokenizer.ggml.tokens`.
    #[error("tokenizer.ggml.token_type has {types} entries for {tokens} tokens")]
    TokenTypes {
        /// Length of the type list.
        types: usize,
        /// Length of the token list.
        tokens: usize,
    },
    /// `tokenizer.ggml.scores`, which this kind of tokenizer merges by, does not go with `tokenizer.ggml.tokens`.
    #[error("tokenizer.ggml.scores has {scores} entries for {tokens} tokens")]
    Scores {
        /// Length of the list of scores.
        scores: usize,
        /// Length of the token list.
        tokens: usize,
    },
    /// One token of the vocabulary is unusable.
    #[error("token {id} of tokenizer.ggml.tokens: {reason}")]
    Token {
        /// Its id.
        id: u32,
        /// Why.
        reason: String,
    },
    /// One merge of the vocabulary is unusable.
    #[error("merge {index} of tokenizer.ggml.merges: {reason}")]
    Merge {
        /// Its index, the most important merge being 0.
        index: usize,
        /// Why.
        reason: String,
    },
    /// There are tokens of several characters and no merges that lead to them.
    #[error("tokenizer.ggml.merges is missing or empty, so text would fall apart into single characters")]
    NoMerges,
    /// A special token's id lies outside the vocabulary.
    #[error("{key} is {id}, but the vocabulary has {n_vocab} tokens")]
    TokenId {
        /// The metadata key.
        key: &'static str,
        /// The id it holds.
        id: u32,
        /// The size of the vocabulary.
        n_vocab: usize,
    },
    /// The file asks for a first token and does not say which.
    #[error("tokenizer.ggml.add_bos_token is true, but there is no tokenizer.ggml.bos_token_id")]
    MissingBos,
    /// The text has a byte that no token of the vocabulary covers.
    #[error("the vocabulary has no token for byte 0x{byte:02x} of the text")]
    NoSymbol {
        /// The byte.
        byte: u8,
    },
    /// The tokenizer library refused something that was checked before, or a table of this crate is wrong.
    #[error("tokenizer: {reason}")]
    Tokenizer {
        /// What the library said.
        reason: String,
    },
    /// The chat template cannot be parsed or rendered.
    #[error("chat template{}: {reason}", at_line(*.line))]
    Template {
        /// 1-based line of the template, when known.
        line: Option<usize>,
        /// Why.
        reason: String,
    },
    /// The chat template ran longer than any real one.
    #[error("chat template{} ran past its limit of {limit} steps", at_line(*.line))]
    TemplateFuel {
        /// 1-based line of the template, when known.
        line: Option<usize>,
        /// The limit, in steps of the template engine.
        limit: u64,
    },
    /// The chat template itself refused the conversation (`raise_exception`).
    #[error("the chat template refuses this conversation: {message}")]
    TemplateRefused {
        /// The template's words.
        message: String,
    },
    /// A sampling option is outside its range.
    #[error("{option} is {value}, but must be {range}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// The value given.
        value: String,
        /// What it may be.
        range: &'static str,
    },
    /// The logits leave nothing to choose: the computation that made them is broken.
    #[error("the logits cannot be sampled: {nan} of {n_vocab} are not numbers and {usable} can be chosen")]
    BrokenLogits {
        /// How many are NaN.
        nan: usize,
        /// How many are greater than minus infinity.
        usable: usize,
        /// How many there are.
        n_vocab: usize,
    },
}

/// Whose fault an [`Error`] is; callers map it to an exit code or an HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The file is broken or hostile.
    BadFile,
    /// The file is valid, but this build cannot run it.
    Unsupported,
    /// The request is wrong: an option, a conversation, a text.
    Usage,
    /// A bug in slotbank or in the numbers it computed.
    Internal,
}

impl Error {
    /// Whose fault this is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::UnsupportedModel { .. } | Self::UnknownPreTokenizer { .. } => Fault::Unsupported,
            Self::TooMany { .. }
            | Self::TokenTypes { .. }
            | Self::Scores { .. }
            | Self::Token { .. }
            | Self::Merge { .. }
            | Self::NoMerges
            | Self::TokenId { .. }
            | Self::MissingBos
            | Self::Template { .. }
            | Self::TemplateFuel { .. } => Fault::BadFile,
            Self::NoSymbol { .. } | Self::TemplateRefused { .. } | Self::Option { .. } => Fault::Usage,
            Self::Tokenizer { .. } | Self::BrokenLogits { .. } => Fault::Internal,
        }
    }

    /// What to do about it, when there is something to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnsupportedModel { .. } => {
                Some("`slotbank logits MODEL --tokens …` runs this model without its tokenizer".into())
            }
            Self::UnknownPreTokenizer { .. } => Some(format!(
                "known pre-tokenizers: {}; a new one is one entry in the table of the text crate",
                crate::tokenizer::pretokenizer::names().collect::<Vec<_>>().join(", ")
            )),
            Self::TokenTypes { .. }
            | Self::Scores { .. }
            | Self::Token { .. }
            | Self::Merge { .. }
            | Self::NoMerges
            | Self::TokenId { .. }
            | Self::MissingBos => {
                Some("the tokenizer in this file is damaged; download or convert it again".into())
            }
            Self::NoSymbol { .. } => {
                Some("leave the character out, or use a model whose vocabulary has it".into())
            }
            Self::Template { .. } | Self::TemplateFuel { .. } => {
                Some("use `slotbank run`, which needs no chat template, or a file with a repaired one".into())
            }
            _ => None,
        }
    }
}

fn quoted(pre: &str) -> String {
    if pre.is_empty() {
        "(tokenizer.ggml.pre is missing)".into()
    } else {
        format!("`{}`", pre.escape_debug())
    }
}

fn at_line(line: Option<usize>) -> String {
    line.map(|line| format!(", line {line}")).unwrap_or_default()
}
