//! GGUF metadata: an ordered map from keys to typed values, with getters that name the key when the type is wrong.
//!
//! Writers disagree about integer widths and about scalar versus one-value-per-layer, so the getters accept any integer type
//! that holds the number, and the plural ones accept a scalar as a list of one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::value_type as t;
use crate::Error;

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the variants are ggml's own type names")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(String),
    Array(Array),
}

/// A list of values of one type. Nested lists are legal GGUF, written by nobody and rejected when read.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the variants are ggml's own type names")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    Str(Vec<String>),
}

macro_rules! each_array {
    ($array:expr, $v:ident => $body:expr) => {
        match $array {
            Array::U8($v) => $body,
            Array::I8($v) => $body,
            Array::U16($v) => $body,
            Array::I16($v) => $body,
            Array::U32($v) => $body,
            Array::I32($v) => $body,
            Array::U64($v) => $body,
            Array::I64($v) => $body,
            Array::F32($v) => $body,
            Array::F64($v) => $body,
            Array::Bool($v) => $body,
            Array::Str($v) => $body,
        }
    };
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        each_array!(self, v => v.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Header number of the element type.
    pub(crate) fn element_type(&self) -> u32 {
        match self {
            Array::U8(_) => t::U8,
            Array::I8(_) => t::I8,
            Array::U16(_) => t::U16,
            Array::I16(_) => t::I16,
            Array::U32(_) => t::U32,
            Array::I32(_) => t::I32,
            Array::U64(_) => t::U64,
            Array::I64(_) => t::I64,
            Array::F32(_) => t::F32,
            Array::F64(_) => t::F64,
            Array::Bool(_) => t::BOOL,
            Array::Str(_) => t::STR,
        }
    }

    /// Each element as an integer; `None` when the elements are of another kind.
    fn integers(&self) -> Option<Vec<i128>> {
        Some(match self {
            Array::U8(v) => v.iter().map(|&n| i128::from(n)).collect(),
            Array::I8(v) => v.iter().map(|&n| i128::from(n)).collect(),
            Array::U16(v) => v.iter().map(|&n| i128::from(n)).collect(),
            Array::I16(v) => v.iter().map(|&n| i128::from(n)).collect(),
            Array::U32(v) => v.iter().map(|&n| i128::from(n)).collect(),
            Array::I32(v) => v.iter().map(|&n| i128::from(n)).collect(),
            Array::U64(v) => v.iter().map(|&n| i128::from(n)).collect(),
            Array::I64(v) => v.iter().map(|&n| i128::from(n)).collect(),
            _ => return None,
        })
    }
}

impl Value {
    /// Header number of this value's type.
    pub(crate) fn type_id(&self) -> u32 {
        match self {
            Value::U8(_) => t::U8,
            Value::I8(_) => t::I8,
            Value::U16(_) => t::U16,
            Value::I16(_) => t::I16,
            Value::U32(_) => t::U32,
            Value::I32(_) => t::I32,
            Value::U64(_) => t::U64,
            Value::I64(_) => t::I64,
            Value::F32(_) => t::F32,
            Value::F64(_) => t::F64,
            Value::Bool(_) => t::BOOL,
            Value::Str(_) => t::STR,
            Value::Array(_) => t::ARRAY,
        }
    }

    /// What this is, for error messages and listings: `u32`, `string[151552]`.
    pub fn kind(&self) -> String {
        match self {
            Value::Array(array) => format!("{}[{}]", type_name(array.element_type()), array.len()),
            other => type_name(other.type_id()).to_owned(),
        }
    }

    /// The number, when this is an integer of any width.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match self {
            Value::U8(n) => i128::from(*n),
            Value::I8(n) => i128::from(*n),
            Value::U16(n) => i128::from(*n),
            Value::I16(n) => i128::from(*n),
            Value::U32(n) => i128::from(*n),
            Value::I32(n) => i128::from(*n),
            Value::U64(n) => i128::from(*n),
            Value::I64(n) => i128::from(*n),
            _ => return None,
        })
    }

    /// The number as f32. Integers are accepted: some converters write `1` for `1.0`.
    pub fn as_f32(&self) -> Option<f32> {
        match self {
            Value::F32(x) => Some(*x),
            #[expect(clippy::cast_possible_truncation, reason = "metadata in f64 is meant as f32")]
            Value::F64(x) => Some(*x as f32),
            #[expect(clippy::cast_precision_loss, reason = "integers here are small")]
            other => other.as_integer().map(|n| n as f32),
        }
    }

    /// The text, when this is a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(s) => Some(s),
            _ => None,
        }
    }
}

/// A type's name as used in messages.
pub(crate) fn type_name(id: u32) -> &'static str {
    match id {
        t::U8 => "u8",
        t::I8 => "i8",
        t::U16 => "u16",
        t::I16 => "i16",
        t::U32 => "u32",
        t::I32 => "i32",
        t::F32 => "f32",
        t::BOOL => "bool",
        t::STR => "string",
        t::ARRAY => "array",
        t::U64 => "u64",
        t::I64 => "i64",
        t::F64 => "f64",
        _ => "unknown",
    }
}

macro_rules! from_value {
    ($($ty:ty => $variant:ident),*) => {$(
        impl From<$ty> for Value {
            fn from(value: $ty) -> Self {
                Value::$variant(value)
            }
        }
        impl From<Vec<$ty>> for Value {
            fn from(values: Vec<$ty>) -> Self {
                Value::Array(Array::$variant(values))
            }
        }
    )*};
}
from_value!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64,
    f32 => F32, f64 => F64, bool => Bool, String => Str);

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::Str(value.to_owned())
    }
}

impl From<Vec<&str>> for Value {
    fn from(values: Vec<&str>) -> Self {
        Value::Array(Array::Str(values.into_iter().map(str::to_owned).collect()))
    }
}

/// Keys and values in file order.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
    origin: PathBuf,
}

impl PartialEq for Metadata {
    /// Same keys, values and order; where they were read from does not matter.
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl Metadata {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Empty, with the file that errors shall name.
    pub fn with_origin(origin: &Path) -> Self {
        Self { origin: origin.to_path_buf(), ..Self::default() }
    }

    /// The file that this was read from; empty when it was built in memory.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All pairs in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&at| &self.entries[at].1)
    }

    /// Sets `key`, at its old place if it exists and at the end otherwise; returns what was there.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) -> Option<Value> {
        let (key, value) = (key.into(), value.into());
        if let Some(&at) = self.index.get(&key) {
            return Some(std::mem::replace(&mut self.entries[at].1, value));
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        None
    }

    /// Drops every key for which `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.entries.retain(|(key, _)| keep(key));
        self.index = self.entries.iter().enumerate().map(|(at, (key, _))| (key.clone(), at)).collect();
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.mismatch(key, expected, value))
    }

    fn mismatch(&self, key: &str, expected: &str, value: &Value) -> Error {
        let found = match (value.as_integer(), value) {
            (Some(n), _) => format!("{} {n}", value.kind()),
            (None, Value::F32(x)) => format!("f32 {x}"),
            (None, Value::F64(x)) => format!("f64 {x}"),
            _ => value.kind(),
        };
        Error::Metadata {
            path: self.origin.clone(),
            key: key.to_owned(),
            expected: expected.to_owned(),
            found,
        }
    }

    /// A non-negative integer of any width.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, Error> {
        self.typed(key, "a non-negative integer", |v| u64::try_from(v.as_integer()?).ok())
    }

    /// A non-negative integer below 2^32.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, Error> {
        self.typed(key, "an integer below 2^32", |v| u32::try_from(v.as_integer()?).ok())
    }

    /// An integer of any width and sign.
    pub fn i64(&self, key: &str) -> Result<Option<i64>, Error> {
        self.typed(key, "an integer", |v| i64::try_from(v.as_integer()?).ok())
    }

    /// A finite number.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, Error> {
        self.typed(key, "a finite number", |v| v.as_f32().filter(|x| x.is_finite()))
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "a bool", |v| match v {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    /// A string.
    pub fn str(&self, key: &str) -> Result<Option<&str>, Error> {
        self.typed(key, "a string", Value::as_str)
    }

    /// A list of non-negative integers; a scalar counts as a list of one.
    pub fn u64s(&self, key: &str) -> Result<Option<Vec<u64>>, Error> {
        self.integers(key, "non-negative integers", |n| u64::try_from(n).ok())
    }

    /// A list of integers below 2^32; a scalar counts as a list of one.
    pub fn u32s(&self, key: &str) -> Result<Option<Vec<u32>>, Error> {
        self.integers(key, "integers below 2^32", |n| u32::try_from(n).ok())
    }

    /// A list of 32-bit integers; a scalar counts as a list of one.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, Error> {
        self.integers(key, "32-bit integers", |n| i32::try_from(n).ok())
    }

    fn integers<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl Fn(i128) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Error> {
        self.typed(key, expected, |v| match v {
            Value::Array(array) if array.is_empty() => Some(Vec::new()),
            Value::Array(array) => array.integers()?.into_iter().map(&convert).collect(),
            scalar => Some(vec![convert(scalar.as_integer()?)?]),
        })
    }

    /// A list of numbers; a scalar counts as a list of one.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, Error> {
        self.typed(key, "finite numbers", |v| {
            let list: Vec<f32> = match v {
                Value::Array(Array::F32(list)) => list.clone(),
                #[expect(clippy::cast_possible_truncation, reason = "metadata in f64 is meant as f32")]
                Value::Array(Array::F64(list)) => list.iter().map(|&x| x as f32).collect(),
                #[expect(clippy::cast_precision_loss, reason = "integers here are small")]
                Value::Array(array) => array.integers()?.into_iter().map(|n| n as f32).collect(),
                scalar => vec![scalar.as_f32()?],
            };
            list.iter().all(|x| x.is_finite()).then_some(list)
        })
    }

    /// A list of booleans; a scalar counts as a list of one.
    pub fn bools(&self, key: &str) -> Result<Option<Vec<bool>>, Error> {
        self.typed(key, "bools", |v| match v {
            Value::Array(Array::Bool(list)) => Some(list.clone()),
            Value::Bool(b) => Some(vec![*b]),
            _ => None,
        })
    }

    /// A list of strings; a scalar counts as a list of one.
    pub fn strs(&self, key: &str) -> Result<Option<Vec<&str>>, Error> {
        self.typed(key, "strings", |v| match v {
            Value::Array(Array::Str(list)) => Some(list.iter().map(String::as_str).collect()),
            Value::Str(s) => Some(vec![s.as_str()]),
            _ => None,
        })
    }

    fn require<T>(&self, key: &str, value: Option<T>) -> Result<T, Error> {
        value.ok_or_else(|| Error::MetadataMissing { path: self.origin.clone(), key: key.to_owned() })
    }
}

macro_rules! require {
    ($($name:ident = $getter:ident -> $ty:ty;)*) => {
        impl Metadata {
            $(#[doc = concat!("As [`Metadata::", stringify!($getter), "`], an error when the key is absent.")]
            pub fn $name(&self, key: &str) -> Result<$ty, Error> {
                let value = self.$getter(key)?;
                self.require(key, value)
            })*
        }
    };
}
require! {
    require_u64 = u64 -> u64;
    require_u32 = u32 -> u32;
    require_i64 = i64 -> i64;
    require_f32 = f32 -> f32;
    require_bool = bool -> bool;
    require_str = str -> &str;
    require_u64s = u64s -> Vec<u64>;
    require_u32s = u32s -> Vec<u32>;
    require_i32s = i32s -> Vec<i32>;
    require_f32s = f32s -> Vec<f32>;
    require_bools = bools -> Vec<bool>;
    require_strs = strs -> Vec<&str>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Metadata {
        let mut m = Metadata::with_origin(Path::new("model.gguf"));
        m.insert("count", 7i32);
        m.insert("negative", -1i64);
        m.insert("big", 1u64 << 40);
        m.insert("eps", 1e-5f32);
        m.insert("name", "toy");
        m.insert("types", vec![true, false]);
        m.insert("list", vec![1u16, 2]);
        m.insert("words", vec!["a", "b"]);
        m.insert("nan", f32::NAN);
        m.insert("empty", Vec::<String>::new());
        m
    }

    #[test]
    fn integers_of_any_width_are_accepted_when_they_fit() {
        let m = sample();
        assert_eq!(m.u64("count").unwrap(), Some(7));
        assert_eq!(m.u32("count").unwrap(), Some(7));
        assert_eq!(m.u64s("count").unwrap(), Some(vec![7]));
        assert_eq!(m.u64s("list").unwrap(), Some(vec![1, 2]));
        assert_eq!(m.i64("negative").unwrap(), Some(-1));
        assert_eq!(m.u64("absent").unwrap(), None);
        assert_eq!(m.u64s("empty").unwrap(), Some(vec![]));
        assert_eq!(m.f32("count").unwrap(), Some(7.0));
        assert_eq!(m.bools("types").unwrap(), Some(vec![true, false]));
        assert_eq!(m.strs("words").unwrap(), Some(vec!["a", "b"]));
        assert_eq!(m.strs("name").unwrap(), Some(vec!["toy"]));
    }

    #[test]
    fn wrong_types_name_key_and_file() {
        let m = sample();
        let message = |e: Error| e.to_string();
        assert_eq!(
            message(m.u64("negative").unwrap_err()),
            "model.gguf: metadata `negative`: expected a non-negative integer, found i64 -1"
        );
        assert_eq!(
            message(m.u32("big").unwrap_err()),
            "model.gguf: metadata `big`: expected an integer below 2^32, found u64 1099511627776"
        );
        assert!(message(m.u64("name").unwrap_err()).contains("found string"));
        assert!(message(m.str("words").unwrap_err()).contains("found string[2]"));
        assert!(message(m.bool("count").unwrap_err()).contains("expected a bool"));
        assert!(message(m.f32("nan").unwrap_err()).contains("f32 NaN"));
        assert_eq!(message(m.require_u32("absent").unwrap_err()), "model.gguf: metadata `absent` is missing");
    }

    #[test]
    fn insert_keeps_order_and_replaces_in_place() {
        let mut m = sample();
        assert_eq!(m.insert("negative", 5u8), Some(Value::I64(-1)));
        let keys: Vec<_> = m.iter().map(|(k, _)| k.to_owned()).collect();
        assert_eq!(keys[..3], ["count", "negative", "big"]);
        m.retain(|key| key != "count");
        assert_eq!(m.get("count"), None);
        assert_eq!(m.u64("negative").unwrap(), Some(5));
    }
}
