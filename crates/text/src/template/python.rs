//! What Python's values can do and the engine's cannot, or does differently: methods of strings and lists, lists
//! that change, and how floats are written.

use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Tuple, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::json;
use super::source::REVERSED;

/// A method that the value itself does not have.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let found = match (value.as_str(), value.kind()) {
        (Some(text), _) => of_string(text, name, args)?,
        (None, ValueKind::Seq | ValueKind::Iterable) => of_list(value, name, args)?,
        (None, ValueKind::Map) if name == "copy" => {
            from_args::<()>(args)?;
            Some(value.clone())
        }
        _ => None,
    };
    match found {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// White space of `str.isspace`: Unicode's, and four separators of old.
fn is_space(char: char) -> bool {
    char.is_whitespace() || matches!(char, '\u{1c}'..='\u{1f}')
}

/// Methods of `str`; `None` for those that the engine has right.
fn of_string(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            let cut = |char: char| chars.map_or_else(|| is_space(char), |chars| chars.contains(char));
            let text = if name == "rstrip" { text } else { text.trim_start_matches(cut) };
            Value::from(if name == "lstrip" { text } else { text.trim_end_matches(cut) })
        }
        "split" | "rsplit" => return split(text, name == "rsplit", args).map(Some),
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(args)?;
            lines(text, keep.unwrap_or(false))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (found, rest) = match name {
                "partition" => (text.split_once(separator), [text, "", ""]),
                _ => (text.rsplit_once(separator), ["", "", text]),
            };
            let parts = found.map_or(rest, |(before, after)| [before, separator, after]);
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            let found = if name == "index" { text.find(what) } else { text.rfind(what) };
            let at = found.ok_or_else(|| invalid("substring not found"))?;
            Value::from(text[..at].chars().count())
        }
        "title" => {
            from_args::<()>(args)?;
            Value::from(title(text))
        }
        "isspace" => {
            from_args::<()>(args)?;
            Value::from(!text.is_empty() && text.chars().all(is_space))
        }
        "zfill" | "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            Value::from(pad(text, name, width, fill.unwrap_or(if name == "zfill" { '0' } else { ' ' }))?)
        }
        REVERSED => Value::from(text.chars().rev().collect::<String>()),
        _ => return Ok(None),
    }))
}

/// `split` and `rsplit`: at a separator or at runs of white space, at most so often.
fn split(text: &str, from_end: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator, most, options): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = match separator {
        None => options.get::<Option<Value>>("sep")?,
        some => some,
    };
    let separator = separator.filter(|separator| !separator.is_none());
    let most = most.or(options.get::<Option<i64>>("maxsplit")?);
    options.assert_all_used()?;
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let mut parts: Vec<&str> = Vec::new();
    match &separator {
        Some(separator) => {
            let separator = separator.as_str().ok_or_else(|| invalid("a separator is a string"))?;
            if separator.is_empty() {
                return Err(invalid("empty separator"));
            }
            let count = most.saturating_add(1);
            if from_end {
                parts.extend(text.rsplitn(count, separator));
            } else {
                parts.extend(text.splitn(count, separator));
            }
        }
        None => {
            let mut rest = text;
            loop {
                rest = if from_end {
                    rest.trim_end_matches(is_space)
                } else {
                    rest.trim_start_matches(is_space)
                };
                let cut = if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
                let Some(at) = cut.filter(|_| parts.len() < most) else { break };
                let width = rest[at..].chars().next().map_or(0, char::len_utf8);
                let (before, after) = (&rest[..at], &rest[at + width..]);
                parts.push(if from_end { after } else { before });
                rest = if from_end { before } else { after };
            }
            if !rest.is_empty() {
                parts.push(rest);
            }
        }
    }
    if from_end {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// `splitlines`: at every kind of line break.
fn lines(text: &str, keep: bool) -> Value {
    let is_break = |char: char| {
        matches!(
            char,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(is_break).unwrap_or(rest.len());
        let tail = &rest[end..];
        let width = if tail.starts_with("\r\n") { 2 } else { tail.chars().next().map_or(0, char::len_utf8) };
        lines.push(Value::from(&rest[..if keep { end + width } else { end }]));
        rest = &rest[end + width..];
    }
    Value::from(lines)
}

/// `str.title`: a capital after everything that is no letter, an apostrophe included.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for char in text.chars() {
        match inside {
            true => out.extend(char.to_lowercase()),
            false => out.extend(char.to_uppercase()),
        }
        inside = char.is_lowercase() || char.is_uppercase();
    }
    out
}

/// `ljust`, `rjust`, `center`, `zfill`.
fn pad(text: &str, name: &str, width: usize, fill: char) -> Result<String, Error> {
    // Wider than any line; a template must not ask for all memory.
    if width > 1 << 16 {
        return Err(invalid("the width is more than 65536"));
    }
    let missing = width.saturating_sub(text.chars().count());
    let before = match name {
        "ljust" => 0,
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    let (sign, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) if name == "zfill" => text.split_at(text.len() - digits.len()),
        _ => ("", text),
    };
    let fill = |count| std::iter::repeat_n(fill, count);
    Ok(sign.chars().chain(fill(before)).chain(digits.chars()).chain(fill(missing - before)).collect())
}

/// Methods of `list` and `tuple`.
fn of_list(value: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let items = || value.try_iter().map(Iterator::collect::<Vec<Value>>);
    Ok(Some(match name {
        "copy" => {
            from_args::<()>(args)?;
            Value::from(items()?)
        }
        "index" => {
            let (what,): (&Value,) = from_args(args)?;
            let at = items()?.iter().position(|item| item == what);
            Value::from(at.ok_or_else(|| invalid("the list has no such item"))?)
        }
        "count" => {
            let (what,): (&Value,) = from_args(args)?;
            Value::from(items()?.iter().filter(|item| *item == what).count())
        }
        "append" | "extend" | "insert" | "pop" | "remove" | "clear" => {
            return Err(invalid("only a list that is an argument of namespace() can be changed"));
        }
        REVERSED => Value::from(items()?.into_iter().rev().collect::<Vec<Value>>()),
        _ => return Ok(None),
    }))
}

/// `namespace(…)`, whose lists can be changed. transformers forbids that, but some templates were written for
/// engines that allow it.
pub(super) fn namespace(defaults: Option<ValueOrKwargs>) -> Result<Value, Error> {
    let Some(defaults) = defaults.map(ValueOrKwargs::into_value) else {
        return minijinja::functions::namespace(None);
    };
    if defaults.kind() != ValueKind::Map {
        return minijinja::functions::namespace(Some(defaults.into()));
    }
    let mut fields = Vec::new();
    for name in defaults.try_iter()? {
        let value = defaults.get_item(&name)?;
        let value = if value.kind() == ValueKind::Seq && value.downcast_object_ref::<Tuple>().is_none() {
            Value::from_object(List(Mutex::new(value.try_iter()?.collect())))
        } else {
            value
        };
        fields.push((name, value));
    }
    minijinja::functions::namespace(Some(Value::from_pairs(fields).into()))
}

/// A list that can be changed.
#[derive(Debug)]
struct List(Mutex<Vec<Value>>);

/// Longer lists, or deeper items, are no template's.
const MAX_ITEMS: usize = 1 << 20;
const MAX_DEPTH: usize = 32;

impl List {
    fn items(&self) -> std::sync::MutexGuard<'_, Vec<Value>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, at: Option<i64>, item: Value) -> Result<Value, Error> {
        let mut items = self.items();
        if items.len() >= MAX_ITEMS {
            return Err(invalid("the list has more than 1048576 items"));
        }
        let at = at.map_or(items.len(), |at| position(at, items.len()).min(items.len()));
        items.insert(at, item);
        Ok(Value::from(()))
    }
}

/// The index that Python means: negative ones count from the end.
fn position(index: i64, len: usize) -> usize {
    match usize::try_from(index) {
        Ok(index) => index,
        Err(_) => len.saturating_sub(usize::try_from(index.unsigned_abs()).unwrap_or(usize::MAX)),
    }
}

/// `value` with every list that can change replaced by what it is now: a list must not come to contain itself.
fn frozen(value: &Value, depth: usize) -> Result<Value, Error> {
    if depth > MAX_DEPTH {
        return Err(invalid("a list of lists is nested too deep"));
    }
    let deeper = |value: Value| frozen(&value, depth + 1);
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            let is_tuple = value.downcast_object_ref::<Tuple>().is_some();
            let items = value.try_iter()?.map(deeper).collect::<Result<Vec<Value>, Error>>()?;
            Ok(if is_tuple { Value::from(Tuple::from(items)) } else { Value::from(items) })
        }
        ValueKind::Map => {
            let pair = |key: Value| Ok((key.clone(), deeper(value.get_item(&key)?)?));
            value.try_iter()?.map(pair).collect::<Result<Vec<(Value, Value)>, Error>>().map(Value::from_pairs)
        }
        _ => Ok(value.clone()),
    }
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.items().get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items().clone())
    }

    fn call_method(self: &Arc<Self>, _: &mut State, name: &str, args: &[Value]) -> Result<Value, Error> {
        match name {
            "append" => {
                let (item,): (&Value,) = from_args(args)?;
                self.add(None, frozen(item, 0)?)
            }
            "insert" => {
                let (at, item): (i64, &Value) = from_args(args)?;
                self.add(Some(at), frozen(item, 0)?)
            }
            "extend" => {
                let (items,): (&Value,) = from_args(args)?;
                for item in frozen(items, 0)?.try_iter()? {
                    self.add(None, item)?;
                }
                Ok(Value::from(()))
            }
            "pop" => {
                let (at,): (Option<i64>,) = from_args(args)?;
                let mut items = self.items();
                let at = position(at.unwrap_or(-1), items.len());
                if at >= items.len() {
                    return Err(invalid("pop: the list has no such item"));
                }
                Ok(items.remove(at))
            }
            "remove" => {
                let (what,): (&Value,) = from_args(args)?;
                let mut items = self.items();
                let at = items.iter().position(|item| item == what);
                items.remove(at.ok_or_else(|| invalid("remove: the list has no such item"))?);
                Ok(Value::from(()))
            }
            "clear" => {
                from_args::<()>(args)?;
                self.items().clear();
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

/// `is sequence`: whatever has a length and items, strings and mappings included.
pub(super) fn is_sequence(value: &Value) -> bool {
    let kinds = [ValueKind::Seq, ValueKind::Iterable, ValueKind::String, ValueKind::Map, ValueKind::Bytes];
    value.is_undefined() || kinds.contains(&value.kind())
}

/// `is iterable`, which `none` is not.
pub(super) fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// `is callable`: functions, macros and the like.
pub(super) fn is_callable(value: &Value) -> bool {
    value.kind() == ValueKind::Plain
}

/// `| length`: that of an undefined value is 0.
pub(super) fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() { Ok(0) } else { minijinja::filters::length(value) }
}

/// `| first`: that of an undefined value is undefined.
pub(super) fn first(value: &Value) -> Result<Value, Error> {
    if value.is_undefined() { Ok(Value::UNDEFINED) } else { minijinja::filters::first(value) }
}

/// `| string`.
pub(super) fn string(value: &Value) -> Value {
    if value.as_str().is_some() { value.clone() } else { Value::from(printed(value)) }
}

/// What `str(value)` gives.
pub(super) fn printed(value: &Value) -> String {
    match float(value) {
        Some(float) => json::float(float),
        None => value.to_string(),
    }
}

pub(super) fn float(value: &Value) -> Option<f64> {
    minijinja::tests::is_float(value).then(|| f64::try_from(value.clone()).ok()).flatten()
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
