//! `text`: strings ⇄ tokens ⇄ choices.
//!
//! A [`Tokenizer`] is built from a GGUF vocabulary, a [`Detokenizer`] turns its ids back into text one at a time,
//! a [`ChatTemplate`] renders a conversation into a prompt, and a [`Sampler`] picks the next id from logits. Nothing
//! here knows a file, a model or a thread; vocabularies and templates come from downloaded files and are treated as
//! hostile, and so is the text of a chat message.
#![forbid(unsafe_code)]

pub mod chat;
mod error;
pub mod sampling;
pub mod template;
pub mod tokenizer;

pub use chat::{Content, Function, Message, Role, ToolCall};
pub use error::{Error, Fault};
pub use sampling::{Sampler, SamplingOptions};
pub use template::{ChatTemplate, RenderOptions};
pub use tokenizer::{Detokenizer, Specials, Tokenizer, Vocabulary};
