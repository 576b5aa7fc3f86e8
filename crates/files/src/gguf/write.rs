//! Writes a GGUF (version 3). Payloads are streamed: only the header is ever in memory.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use super::{Array, DEFAULT_ALIGNMENT, Metadata, Value};
use crate::{Error, GgmlType};

/// Produces the bytes of one tensor.
type Payload<'a> = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + 'a>;

struct Planned<'a> {
    name: String,
    ty: GgmlType,
    shape: Vec<u64>,
    len: u64,
    payload: Payload<'a>,
}

/// A GGUF in the making: metadata, then tensors in the order in which they are added.
pub struct Writer<'a> {
    metadata: Metadata,
    alignment: u64,
    tensors: Vec<Planned<'a>>,
    names: HashSet<String>,
}

impl<'a> Writer<'a> {
    /// Starts a file. `general.alignment` is obeyed where present and is 32 otherwise.
    ///
    /// # Errors
    /// When that alignment is no power of two.
    pub fn new(metadata: Metadata) -> Result<Self, Error> {
        let alignment = metadata.u64("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() {
            return Err(refuse(format!("alignment {alignment} is no power of two")));
        }
        Ok(Self { metadata, alignment, tensors: Vec::new(), names: HashSet::new() })
    }

    /// Adds a tensor whose bytes `payload` will write, exactly as many as type and shape ask for.
    ///
    /// # Errors
    /// When the name is taken or the shape does not suit the type.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        ty: GgmlType,
        shape: &[u64],
        payload: impl FnOnce(&mut dyn Write) -> io::Result<()> + 'a,
    ) -> Result<&mut Self, Error> {
        let name = name.into();
        let Some(len) = ty.tensor_bytes(shape) else {
            return Err(refuse(format!("tensor `{name}`: shape {shape:?} does not suit type {ty}")));
        };
        if !(1..=4).contains(&shape.len()) || shape.contains(&0) {
            return Err(refuse(format!(
                "tensor `{name}`: shape {shape:?} needs 1 to 4 non-empty dimensions"
            )));
        }
        if !self.names.insert(name.clone()) {
            return Err(refuse(format!("tensor `{name}` is added twice")));
        }
        self.tensors.push(Planned { name, ty, shape: shape.to_vec(), len, payload: Box::new(payload) });
        Ok(self)
    }

    /// Adds a tensor from its bytes.
    pub fn tensor_bytes(
        &mut self,
        name: impl Into<String>,
        ty: GgmlType,
        shape: &[u64],
        bytes: impl AsRef<[u8]> + 'a,
    ) -> Result<&mut Self, Error> {
        self.tensor(name, ty, shape, move |out| out.write_all(bytes.as_ref()))
    }

    /// Adds an F32 tensor.
    pub fn tensor_f32(
        &mut self,
        name: impl Into<String>,
        shape: &[u64],
        values: &[f32],
    ) -> Result<&mut Self, Error> {
        self.tensor_bytes(name, GgmlType::F32, shape, f32_bytes(values))
    }

    /// Adds a tensor whose bytes are read from `input` when the file is written.
    pub fn tensor_reader(
        &mut self,
        name: impl Into<String>,
        ty: GgmlType,
        shape: &[u64],
        mut input: impl Read + 'a,
    ) -> Result<&mut Self, Error> {
        self.tensor(name, ty, shape, move |out| io::copy(&mut input, out).map(drop))
    }

    /// Number of tensors added so far.
    pub fn tensor_count(&self) -> usize {
        self.tensors.len()
    }

    /// Writes the file at `path`, replacing what is there only when everything has been written and synced.
    ///
    /// # Errors
    /// On I/O failure, and when a payload is not exactly as long as its tensor.
    pub fn write_file(self, path: &Path) -> Result<(), Error> {
        let temporary = crate::atomic::temporary_path(path);
        let result = File::create(&temporary).map_err(|e| Error::io(&temporary, e)).and_then(|file| {
            let mut out = BufWriter::with_capacity(1 << 20, file);
            self.write(&mut out).map_err(|e| e.on(path))?;
            let file = out.into_inner().map_err(|e| Error::io(&temporary, e.into_error()))?;
            crate::atomic::publish(file, &temporary, path)
        });
        if result.is_err() {
            // Best effort: the first error is the one that matters.
            drop(std::fs::remove_file(&temporary));
        }
        result
    }

    /// Writes the file to any output.
    ///
    /// # Errors
    /// As [`Writer::write_file`], without knowing the path.
    pub fn write(self, out: &mut dyn Write) -> Result<(), WriteError> {
        let header = self.header();
        let mut out = Counting { out, written: 0 };
        out.write_all(&header)?;
        for tensor in self.tensors {
            out.pad(self.alignment)?;
            let start = out.written;
            (tensor.payload)(&mut out)?;
            let written = out.written - start;
            if written != tensor.len {
                return Err(WriteError::Length { name: tensor.name, expected: tensor.len, written });
            }
        }
        out.pad(self.alignment)?;
        out.flush()?;
        Ok(())
    }

    fn header(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(b"GGUF");
        out.extend_from_slice(&3u32.to_le_bytes());
        out.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        out.extend_from_slice(&(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in self.metadata.iter() {
            put_str(&mut out, key);
            out.extend_from_slice(&value.type_id().to_le_bytes());
            put_value(&mut out, value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            put_str(&mut out, &tensor.name);
            #[expect(clippy::cast_possible_truncation, reason = "at most 4")]
            out.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
            for dim in &tensor.shape {
                out.extend_from_slice(&dim.to_le_bytes());
            }
            out.extend_from_slice(&tensor.ty.file_id().to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
            offset += tensor.len.next_multiple_of(self.alignment);
        }
        let padded = (out.len() as u64).next_multiple_of(self.alignment);
        out.resize(usize::try_from(padded).expect("a header fits in memory"), 0);
        out
    }
}

/// Why [`Writer::write`] stopped.
#[derive(Debug)]
pub enum WriteError {
    /// The output refused, or the payload's source did.
    Io(io::Error),
    /// A payload was too long or too short.
    Length {
        /// Tensor name.
        name: String,
        /// Bytes by type and shape.
        expected: u64,
        /// Bytes that its payload wrote.
        written: u64,
    },
}

impl WriteError {
    /// The same, naming the file.
    pub(crate) fn on(self, path: &Path) -> Error {
        match self {
            // A payload that copies from a checkpoint wraps this crate's own errors.
            WriteError::Io(e) => match e.downcast::<Error>() {
                Ok(inner) => inner,
                Err(source) => Error::Io { path: path.to_path_buf(), source },
            },
            WriteError::Length { name, expected, written } => Error::Internal {
                why: format!(
                    "{}: tensor `{name}` needs {expected} bytes, its payload has {written}",
                    path.display()
                ),
            },
        }
    }
}

impl From<io::Error> for WriteError {
    fn from(e: io::Error) -> Self {
        WriteError::Io(e)
    }
}

/// Little-endian bytes of `values`.
pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

struct Counting<'a> {
    out: &'a mut dyn Write,
    written: u64,
}

impl Counting<'_> {
    fn pad(&mut self, alignment: u64) -> io::Result<()> {
        let zeros = self.written.next_multiple_of(alignment) - self.written;
        io::copy(&mut io::repeat(0).take(zeros), self).map(drop)
    }
}

impl Write for Counting<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.out.write(buf)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    out.extend_from_slice(&(s.len() as u64).to_le_bytes());
    out.extend_from_slice(s.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(x) => out.push(*x),
        Value::I8(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::U16(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::I16(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::U32(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::I32(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::U64(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::I64(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::F32(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::F64(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::Bool(x) => out.push(u8::from(*x)),
        Value::Str(s) => put_str(out, s),
        Value::Array(array) => put_array(out, array),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend_from_slice(&array.element_type().to_le_bytes());
    out.extend_from_slice(&(array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend_from_slice(v),
        Array::I8(v) => v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
        Array::U16(v) => v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
        Array::I16(v) => v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
        Array::U32(v) => v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
        Array::I32(v) => v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
        Array::U64(v) => v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
        Array::I64(v) => v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
        Array::F32(v) => v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
        Array::F64(v) => v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
        Array::Bool(v) => v.iter().for_each(|x| out.push(u8::from(*x))),
        Array::Str(v) => v.iter().for_each(|s| put_str(out, s)),
    }
}

fn refuse(why: String) -> Error {
    Error::Usage { why, hint: None }
}
