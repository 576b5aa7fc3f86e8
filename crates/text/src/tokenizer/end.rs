//! At which tokens generation stops.
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
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<|eom_id|>",
    "<EOT>",
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
    "<|repo_name|>",
    "<|file_sep|>",
];

/// Roles that GLM models hand the turn to.
const GLM_TEXTS: &[&str] = &["<|user|>", "<|observation|>"];

/// The end tokens, ascending. A normal token among them is made a control token: no user's text means it.
pub(super) fn find(checked: &mut Checked) -> Vec<u32> {
    let is_glm = matches!(checked.pre.as_str(), "glm4" | "glm5" | "chatglm-bpe");
    let glm_texts = if is_glm { GLM_TEXTS } else { &[] };
    let mut found: Vec<(u32, &str)> = Vec::new();
    for (id, text) in (0u32..).zip(&checked.tokens) {
        let kind = &mut checked.kinds[id as usize];
        let Some(text) = TEXTS.iter().chain(glm_texts).find(|known| *known == text) else { continue };
        // HTML's strike-through tag is an ordinary word of many byte-level vocabularies.
        let ordinary = *text == "</s>" && *kind == Kind::Normal;
        if ordinary || matches!(kind, Kind::Unused | Kind::Unknown | Kind::Byte) {
            continue;
        }
        if *kind == Kind::Normal {
            *kind = Kind::Control;
        }
        found.push((id, text));
    }
    let has = |text: &str| found.iter().any(|(_, known)| *known == text);
    // Harmony: `<|end|>` only ends a message, and the model goes on with the next.
    let harmony = has("<|return|>") && has("<|call|>");
    let gemma = has("<|tool_response>");
    found.retain(|(_, text)| !(harmony && *text == "<|end|>" || gemma && *text == "</s>"));
    let named = [checked.eos, checked.eot, checked.eom];
    let mut ids: Vec<u32> = named.into_iter().flatten().chain(found.into_iter().map(|(id, _)| id)).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}
