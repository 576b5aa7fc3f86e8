//! From GGUF metadata to `text::Vocabulary`.

use files::Metadata;
use text::Vocabulary;

use crate::Error;

/// The vocabulary of a checkpoint; `None` where the file says it has none.
pub fn vocabulary(metadata: &Metadata) -> Result<Option<Vocabulary>, Error> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let Some(model) = metadata.str(&key("model"))? else { return Ok(None) };
    if matches!(model, "no_vocab" | "none") {
        return Ok(None);
    }
    let id = |name: &str| -> Result<Option<u32>, Error> { Ok(metadata.u32(&key(name))?) };
    let strings = |name: &str| -> Result<Vec<String>, Error> {
        Ok(metadata.strs(&key(name))?.unwrap_or_default().into_iter().map(str::to_owned).collect())
    };
    Ok(Some(Vocabulary {
        model: model.to_owned(),
        pre: metadata.str(&key("pre"))?.unwrap_or_default().to_owned(),
        tokens: strings("tokens")?,
        scores: if model == "llama" {
            metadata.f32s(&key("scores"))?.unwrap_or_default()
        } else {
            Vec::new()
        },
        token_types: metadata.i32s(&key("token_type"))?.unwrap_or_default(),
        merges: strings("merges")?,
        bos: id("bos_token_id")?,
        eos: id("eos_token_id")?,
        eot: id("eot_token_id")?,
        eom: id("eom_token_id")?,
        unk: id("unknown_token_id")?,
        pad: id("padding_token_id")?,
        fim: [id("fim_pad_token_id")?, id("fim_rep_token_id")?, id("fim_sep_token_id")?],
        add_bos: metadata.bool(&key("add_bos_token"))?,
        add_space_prefix: metadata.bool(&key("add_space_prefix"))?,
        chat_template: metadata.str("tokenizer.chat_template")?.map(str::to_owned),
    }))
}
