//! What tokens mean beyond their text: at which of them generation stops, and which are part of an answer's markup.
//!
//! The ids named in the metadata, and tokens known by their text: files leave out one or the other.

use super::vocabulary::{Checked, Kind};

/// Texts that end a turn, a message or a document in one family or another.
const TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "</s>",
    // Code models pad and separate files with these; after one, nothing more belongs to the answer.
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// Roles that GLM models hand the turn to.
const GLM_TEXTS: &[&str] = &["<|user|>", "<|observation|>"];

/// Control tokens without which an answer cannot be read: they say where its reasoning, a channel, a call or an
/// argument begins and ends. Some files have them as user-defined tokens, so that they are shown; then every user
/// could write them.
const MARKUP: &[&str] = &[
    // Harmony.
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|constrain|>",
    // Gemma.
    "<|channel>",
    "<channel|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    "<|\"|>",
    // Kimi.
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    // DeepSeek.
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
];

/// Markup as well where a file has it as control tokens; where it is user-defined or several ordinary tokens, it is
/// shown anyhow, and models read it in users' texts without harm.
const TAGS: &[&str] = &[
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<minimax:tool_call>",
    "</minimax:tool_call>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
];

/// Gives the markup of an answer its kind.
pub(super) fn mark(checked: &mut Checked) {
    for (text, kind) in checked.tokens.iter().zip(&mut checked.kinds) {
        let is_markup = match kind {
            Kind::Control => MARKUP.contains(&text.as_str()) || TAGS.contains(&text.as_str()),
            Kind::UserDefined => MARKUP.contains(&text.as_str()),
            _ => false,
        };
        if is_markup {
            *kind = Kind::Markup;
        }
    }
}

/// The end tokens, ascending. A normal token among them is made a control token: no user's text means it.
pub(super) fn find(checked: &mut Checked) -> Vec<u32> {
    let is_glm = matches!(checked.pre.as_str(), "glm4" | "glm5" | "chatglm-bpe");
    let glm_texts = if is_glm { GLM_TEXTS } else { &[] };
    let mut found: Vec<(u32, &str)> = Vec::new();
    for (id, text) in (0u32..).zip(&checked.tokens) {
        let kind = &mut checked.kinds[id as usize];
        let Some(text) = TEXTS.iter().chain(glm_texts).find(|known| *known == text) else { continue };
        // HTML's strike-through tag is an ordinary word of many vocabularies.
        let ordinary = *text == "</s>" && matches!(kind, Kind::Normal | Kind::UserDefined);
        if ordinary || matches!(kind, Kind::Unused | Kind::Unknown | Kind::Byte) {
            continue;
        }
        if matches!(kind, Kind::Normal | Kind::UserDefined) {
            *kind = Kind::Control;
        }
        found.push((id, text));
    }
    let has = |text: &str| found.iter().any(|(_, known)| *known == text);
    // Harmony, and what follows it: `<|end|>` only ends a message, and the model goes on with the next.
    let harmony = has("<|return|>") && has("<|call|>") || has("<|calls|>") && has("<|flush|>");
    let gemma = has("<|tool_response>");
    found.retain(|(_, text)| !(harmony && *text == "<|end|>" || gemma && *text == "</s>"));
    if harmony && let Some(end) = checked.tokens.iter().position(|text| text == "<|end|>") {
        checked.kinds[end] = Kind::Markup;
    }
    let named = [checked.eos, checked.eot, checked.eom].into_iter().chain(checked.fim).flatten();
    let mut ids: Vec<u32> = named.chain(found.into_iter().map(|(id, _)| id)).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}
