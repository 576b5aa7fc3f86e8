//! The messages of a conversation, in the shape that chat templates (and the OpenAI API) expect.
//!
//! Fields this crate does not know are kept in [`Message::extra`] and reach the template unchanged. Splitting a
//! reply into reasoning, answer and tool calls is not done here, except as far as templates insist ([`Message::reply`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::template::json;
use crate::{ChatTemplate, Error, RenderOptions, Tokenizer};

/// Who speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions of the operator.
    System,
    /// Instructions of the operator, as newer clients call them.
    Developer,
    /// The human.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
    /// A role that only some templates know.
    #[serde(untagged)]
    Other(String),
}

/// What is said: plain text, or the list of typed parts of multi-modal clients, handed to the template as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Parts such as `{"type": "text", "text": …}`.
    Parts(Vec<Value>),
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said. `None` (JSON `null`) reaches the template as `none` and prints as nothing, never as "None".
    #[serde(default)]
    pub content: Option<Content>,
    /// The model's earlier reasoning. Absent, it is undefined in the template rather than `none`, because templates
    /// ask `is defined`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls that the model made in this turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCall>>,
    /// For a tool's turn: which call it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// For a tool's turn, or a named speaker: the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whatever else the client sent.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// A call of a tool by the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The call's id, repeated by the answering turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Always `function` so far.
    #[serde(rename = "type", default = "function_kind")]
    pub kind: String,
    /// What is called.
    pub function: Function,
}

/// The function of a [`ToolCall`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Its arguments. Clients send a string holding a JSON object, templates walk a mapping: a string that parses
    /// as an object becomes that object when the template is rendered, unless the template wants text.
    #[serde(default)]
    pub arguments: Value,
}

fn function_kind() -> String {
    "function".into()
}

impl Message {
    /// A turn of plain text.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Self {
            role,
            content: Some(Content::Text(text.into())),
            reasoning_content: None,
            tool_calls: None,
            tool_call_id: None,
            name: None,
            extra: BTreeMap::new(),
        }
    }

    /// Instructions of the operator.
    pub fn system(text: impl Into<String>) -> Self {
        Self::new(Role::System, text)
    }

    /// A turn of the human.
    pub fn user(text: impl Into<String>) -> Self {
        Self::new(Role::User, text)
    }

    /// A turn of the model.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self::new(Role::Assistant, text)
    }

    /// What the model wrote, markup shown, as its turn of the conversation. Templates take it as it is, reasoning included,
    /// except harmony's, which refuse channels inside content: these are taken apart.
    pub fn reply(text: &str) -> Self {
        if !text.starts_with("<|channel|>") {
            return Self::assistant(text);
        }
        let (mut reasoning, mut content) = (String::new(), String::new());
        for part in text.split("<|start|>") {
            let Some((header, body)) = part.split_once("<|message|>") else { continue };
            let channel = header.split_once("<|channel|>").map_or("", |(_, channel)| channel);
            let place = if channel.starts_with("analysis") { &mut reasoning } else { &mut content };
            place.push_str(body.strip_suffix("<|end|>").unwrap_or(body));
        }
        Self { reasoning_content: (!reasoning.is_empty()).then_some(reasoning), ..Self::assistant(content) }
    }

    /// Runs `change` over every string of the message that somebody other than the template wrote.
    pub(crate) fn map_strings(&mut self, change: &dyn Fn(&mut String)) {
        if let Role::Other(role) = &mut self.role {
            change(role);
        }
        match &mut self.content {
            Some(Content::Text(text)) => change(text),
            Some(Content::Parts(parts)) => parts.iter_mut().for_each(|part| map_json(part, change)),
            None => {}
        }
        for text in
            [&mut self.reasoning_content, &mut self.tool_call_id, &mut self.name].into_iter().flatten()
        {
            change(text);
        }
        for call in self.tool_calls.iter_mut().flatten() {
            call.id.iter_mut().for_each(change);
            change(&mut call.kind);
            change(&mut call.function.name);
            map_json(&mut call.function.arguments, change);
        }
        self.extra.values_mut().for_each(|value| map_json(value, change));
    }
}

impl ToolCall {
    /// Turns arguments that are a string holding a JSON object into that object.
    pub(crate) fn parse_arguments(&mut self) {
        if let Value::String(text) = &self.function.arguments
            && let Ok(object @ Value::Object(_)) = serde_json::from_str(text)
        {
            self.function.arguments = object;
        }
    }

    /// Turns arguments that are no text into JSON text.
    pub(crate) fn spell_arguments(&mut self) {
        if !matches!(self.function.arguments, Value::String(_) | Value::Null) {
            let text = json::dumps(&self.function.arguments, &json::Style::default());
            self.function.arguments = Value::String(text);
        }
    }
}

/// Runs `change` over the keys and strings of a JSON value.
fn map_json(value: &mut Value, change: &dyn Fn(&mut String)) {
    match value {
        Value::String(text) => change(text),
        Value::Array(items) => items.iter_mut().for_each(|item| map_json(item, change)),
        Value::Object(fields) => {
            *fields = std::mem::take(fields)
                .into_iter()
                .map(|(mut key, mut value)| {
                    change(&mut key);
                    map_json(&mut value, change);
                    (key, value)
                })
                .collect();
        }
        _ => {}
    }
}

/// Renders a conversation and encodes it, so that control tokens come from the template alone: the text of a
/// control token inside a message, a tool description or a document stays plain text
/// ([`Tokenizer::shield`]). Never adds the beginning-of-sequence token: templates write it themselves.
pub fn encode(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
    options: &RenderOptions,
) -> Result<Vec<u32>, Error> {
    let shield = |text: &mut String| {
        if let std::borrow::Cow::Owned(shielded) = tokenizer.shield(text) {
            *text = shielded;
        }
    };
    let mut options = options.clone();
    for list in [&mut options.tools, &mut options.documents].into_iter().flatten() {
        list.iter_mut().for_each(|value| map_json(value, &shield));
    }
    options.variables.values_mut().for_each(|value| map_json(value, &shield));
    tokenizer.encode_shielded(&template.render_changed(messages, &options, &shield)?)
}
