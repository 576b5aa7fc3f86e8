//! Chat templates: a conversation rendered into the text of a prompt, by the Jinja template inside the model file.
//!
//! The dialect is that of Hugging Face transformers: `trim_blocks` and `lstrip_blocks`, Python's string and mapping
//! methods, loop controls, `raise_exception`, `strftime_now`, and a `tojson` that writes what Python's `json.dumps`
//! writes. Two things are done for conversations that come through an API, and only where the template needs them:
//! content that is `null` becomes empty where it would print as "None", and arguments of calls are given in the form,
//! mapping or text, that the template can use.
//!
//! Templates are programs written by strangers. They cannot read files or reach anything but their variables, a step
//! limit ends endless loops, and recursion of calls is bounded. The engine does not bound values: a template that
//! doubles a string forty times, or nests a list a hundred thousand deep, exhausts memory or the stack and ends the
//! process. Such a file can do no more than that, and only to whoever loads it.

mod filters;
pub(crate) mod json;
mod python;
mod source;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value, escape_formatter};

use crate::{Content, Error, Message};

/// Steps of the engine in one rendering. A conversation of a hundred turns takes about fifty thousand.
const FUEL: u64 = 20_000_000;
/// Nested calls and blocks. Macros count several; real templates stay below twenty.
const RECURSION: usize = 128;
/// The longest real templates have 30 KB.
const MAX_SOURCE: usize = 1 << 20;
const NAME: &str = "chat";

/// A parsed chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

/// What a template gets besides the messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RenderOptions {
    /// Whether the prompt ends where the model's answer begins.
    pub add_generation_prompt: bool,
    /// Descriptions of tools, in the OpenAI API's shape.
    pub tools: Option<Vec<serde_json::Value>>,
    /// Documents to answer from.
    pub documents: Option<Vec<serde_json::Value>>,
    /// Further variables (`enable_thinking`, `reasoning_effort`, …); they win over the ones above.
    pub variables: BTreeMap<String, serde_json::Value>,
}

impl ChatTemplate {
    /// Parses `source`. `bos` and `eos` are the texts of the tokens that begin and end a sequence, empty if there
    /// are none. Errors name the line.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, Error> {
        Self::with_clock(source, bos, eos, || {
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs())
        })
    }

    /// As [`ChatTemplate::new`], with a clock (seconds since 1970, UTC) for templates that write the date.
    pub fn with_clock(
        source: &str,
        bos: &str,
        eos: &str,
        clock: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        if source.len() > MAX_SOURCE {
            return Err(Error::TooMany {
                key: "tokenizer.chat_template, in bytes",
                count: source.len(),
                limit: MAX_SOURCE,
            });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(broken)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_formatter(|out, state, value| match python::float(value) {
            Some(_) => Ok(out.write_str(&python::printed(value))?),
            None => escape_formatter(out, state, value),
        });
        environment.set_unknown_method_callback(python::method);
        environment.add_test("sequence", python::is_sequence);
        environment.add_test("iterable", python::is_iterable);
        environment.add_function("namespace", python::namespace);
        environment.add_test("callable", python::is_callable);
        environment.add_filter("first", python::first);
        environment.add_filter("length", python::length);
        environment.add_filter("count", python::length);
        environment.add_filter("string", python::string);
        environment.add_filter("tojson", filters::tojson);
        environment.add_function("raise_exception", filters::raise_exception);
        environment.add_function("strftime_now", move |format: &str| filters::strftime(format, clock()));
        environment.add_template_owned(NAME, source::adapt(source)).map_err(broken)?;
        Ok(Self { environment, bos: bos.into(), eos: eos.into() })
    }

    /// The prompt for a conversation. Text of messages goes in as it is; see [`crate::chat::encode`] for prompts
    /// whose control tokens must come from the template alone.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String, Error> {
        self.render_changed(messages, options, &|_| {})
    }

    /// As [`ChatTemplate::render`], with `change` made to every string of the messages that somebody other than the
    /// template wrote.
    pub(crate) fn render_changed(
        &self,
        messages: &[Message],
        options: &RenderOptions,
        change: &dyn Fn(&mut String),
    ) -> Result<String, Error> {
        let prepare = |form: fn(&mut crate::ToolCall)| {
            let mut messages = messages.to_vec();
            for message in &mut messages {
                message.tool_calls.iter_mut().flatten().for_each(form);
                message.map_strings(change);
            }
            messages
        };
        let mut messages_used = prepare(crate::ToolCall::parse_arguments);
        let mut rendered = self.render_as_is(&messages_used, options);
        // Most templates walk over the arguments of a call. Some join them to text, which fails for a mapping.
        let has_calls = messages.iter().any(|message| message.tool_calls.is_some());
        if has_calls && matches!(rendered, Err(Error::Template { .. })) {
            let spelled = prepare(crate::ToolCall::spell_arguments);
            let again = self.render_as_is(&spelled, options);
            if !matches!(again, Err(Error::Template { .. })) {
                (messages_used, rendered) = (spelled, again);
            }
        }
        let has_null = messages.iter().any(|message| message.content.is_none());
        if has_null && !matches!(rendered, Err(Error::TemplateFuel { .. })) {
            for message in &mut messages_used {
                message.content.get_or_insert_with(|| Content::Text(String::new()));
            }
            let filled = self.render_as_is(&messages_used, options);
            if is_better(&filled, &rendered) {
                rendered = filled;
            }
        }
        rendered
    }

    fn render_as_is(&self, messages: &[Message], options: &RenderOptions) -> Result<String, Error> {
        let mut context: BTreeMap<&str, Value> = BTreeMap::from([
            ("messages", Value::from(Serde(&messages))),
            ("add_generation_prompt", options.add_generation_prompt.into()),
            ("tools", Value::from(Serde(&options.tools))),
            ("documents", Value::from(Serde(&options.documents))),
            ("bos_token", self.bos.as_str().into()),
            ("eos_token", self.eos.as_str().into()),
        ]);
        for (name, value) in &options.variables {
            context.insert(name, Value::from(Serde(value)));
        }
        let template = self.environment.get_template(NAME).map_err(broken)?;
        let context = Value::from_pairs(context);
        // The engine's slices panic on bounds that lie the wrong way round; nothing of it outlives the panic.
        RENDERING.set(true);
        let rendered = catch_unwind(AssertUnwindSafe(|| template.render(context)));
        RENDERING.set(false);
        rendered.map_or_else(
            |_| Err(Error::Template { line: None, reason: "the template engine gave up".into() }),
            |rendered| rendered.map_err(broken),
        )
    }
}

thread_local! {
    static RENDERING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread renders a template: a panic is then the template engine's and becomes an error, so that a panic hook has
/// nothing to report.
pub fn is_rendering() -> bool {
    RENDERING.get()
}

/// Whether content that is empty did better than content that is `null`: it rendered at all, or no longer said
/// "None".
fn is_better(filled: &Result<String, Error>, null: &Result<String, Error>) -> bool {
    let nones = |text: &str| text.matches("None").count();
    match (filled, null) {
        (Ok(_), Err(_)) => true,
        (Ok(filled), Ok(null)) => nones(filled) < nones(null),
        (Err(_), _) => false,
    }
}

/// An error of the template engine in our words. Errors inside macros carry the cause as their source.
fn broken(error: minijinja::Error) -> Error {
    let line = error.line();
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    let mut reason = describe(&error);
    while let Some(current) = cause {
        if let Some(refusal) = current.downcast_ref::<filters::Refusal>() {
            return Error::TemplateRefused { message: refusal.0.clone() };
        }
        if let Some(inner) = current.downcast_ref::<minijinja::Error>() {
            if inner.kind() == ErrorKind::OutOfFuel {
                return Error::TemplateFuel { line: inner.line().or(line), limit: FUEL };
            }
            reason = describe(inner);
        }
        cause = current.source();
    }
    Error::Template { line, reason }
}

fn describe(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}
