//! Reads a GGUF header: metadata and the tensor table. Never a byte of tensor data.
//!
//! The file is hostile until proven otherwise. Every count is checked against the bytes that are left in the file before
//! anything is allocated for it, so memory stays proportional to the header that is really there, and the header itself is
//! limited to [`HEADER_BYTES_MAX`] (the largest known, 250,000 tokens with merges, is about 20 MB).

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::metadata::type_name;
use super::sniff::SNIFF_BYTES;
use super::{Array, DEFAULT_ALIGNMENT, Metadata, Value, expect_gguf, value_type as t};
use crate::{Error, GgmlType};

/// Longest header that is read.
const HEADER_BYTES_MAX: u64 = 128 << 20;
/// ggml has four dimensions.
const DIMS_MAX: u32 = 4;
/// Longest key or tensor name. ggml allows 63 bytes for tensors and 65,535 for keys; real ones stay below 100.
const NAME_BYTES_MAX: u64 = 1024;
/// Largest `general.alignment` accepted; real files use 32.
const ALIGNMENT_MAX: u64 = 1 << 20;

/// One line of the tensor table.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Tensor name.
    pub name: String,
    /// Element type.
    pub ty: GgmlType,
    /// Dimensions, contiguous one first.
    pub shape: Vec<u64>,
    /// Absolute offset in the file.
    pub offset: u64,
    /// Bytes, without padding.
    pub len: u64,
}

/// Everything in a GGUF but the data.
#[derive(Debug, Clone)]
pub struct Header {
    /// The file.
    pub path: PathBuf,
    /// 2 or 3.
    pub version: u32,
    /// Keys and values.
    pub metadata: Metadata,
    /// In file order.
    pub tensors: Vec<TensorInfo>,
    /// Alignment of the data section.
    pub alignment: u64,
    /// Where the data section starts.
    pub data_offset: u64,
    /// Length of the file when it was read.
    pub file_bytes: u64,
}

/// Reads the header of the GGUF at `path` and checks that every tensor lies inside the file.
///
/// # Errors
/// When the file is no GGUF, damaged, truncated, or has types without a known size.
pub fn read(path: &Path) -> Result<Header, Error> {
    read_with(path, false)
}

/// As [`read`]; a file that ends too early is accepted when `allow_truncated` says so, for reports that list every damage.
pub(crate) fn read_with(path: &Path, allow_truncated: bool) -> Result<Header, Error> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let stat = file.metadata().map_err(|e| Error::io(path, e))?;
    if !stat.is_file() {
        return Err(Error::Usage { why: format!("{} is not a file", path.display()), hint: None });
    }
    Parser::new(path, file, stat.len(), allow_truncated)?.header()
}

/// A tensor as the table states it, before types and sizes are resolved.
struct RawTensor {
    name: String,
    shape: Vec<u64>,
    file_type: u32,
    relative: u64,
    /// Where in the header this line starts, for messages.
    at: u64,
}

struct Parser<'a> {
    path: &'a Path,
    input: BufReader<File>,
    at: u64,
    file_bytes: u64,
    allow_truncated: bool,
}

impl<'a> Parser<'a> {
    fn new(path: &'a Path, file: File, file_bytes: u64, allow_truncated: bool) -> Result<Self, Error> {
        let mut input = BufReader::with_capacity(1 << 18, file);
        let mut head = [0u8; SNIFF_BYTES];
        let got = fill(&mut input, &mut head).map_err(|e| Error::io(path, e))?;
        expect_gguf(path, &head[..got], file_bytes)?;
        io::Seek::rewind(&mut input).map_err(|e| Error::io(path, e))?;
        Ok(Self { path, input, at: 0, file_bytes, allow_truncated })
    }

    fn header(mut self) -> Result<Header, Error> {
        self.take::<4>("magic")?;
        let version = self.version()?;
        let n_tensors = self.u64("tensor count")?;
        let n_kv = self.u64("metadata count")?;
        // Smallest possible lines: an empty name, one byte of value; an empty name, one dimension.
        self.check_count("metadata count", n_kv, 13)?;
        self.check_count("tensor count", n_tensors, 32)?;
        let metadata = self.metadata(n_kv)?;
        let alignment = self.alignment(&metadata)?;
        let raw = self.tensor_table(n_tensors)?;
        let data_offset = self.at.next_multiple_of(alignment);
        let tensors = self.resolve(raw, alignment, data_offset)?;
        Ok(Header {
            path: self.path.to_path_buf(),
            version,
            metadata,
            tensors,
            alignment,
            data_offset,
            file_bytes: self.file_bytes,
        })
    }

    fn version(&mut self) -> Result<u32, Error> {
        let version = self.u32("version")?;
        let refuse = |why: String| Err(Error::GgufVersion { path: self.path.to_path_buf(), why });
        match version {
            2 | 3 => Ok(version),
            1 => refuse("gguf version 1 (of August 2023, with 32-bit lengths) is not supported".into()),
            v if matches!(v.swap_bytes(), 1..=3) => {
                refuse(format!("big-endian gguf (version {}) is not supported", v.swap_bytes()))
            }
            v => refuse(format!("gguf version {v} is not supported, only 2 and 3")),
        }
    }

    fn metadata(&mut self, n_kv: u64) -> Result<Metadata, Error> {
        let mut metadata = Metadata::with_origin(self.path);
        for _ in 0..n_kv {
            let start = self.at;
            let key = self.string("metadata key", NAME_BYTES_MAX)?;
            let type_id = self.u32(&key)?;
            let value = self.value(&key, type_id)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(self.bad_at(start, &format!("metadata `{key}`"), "the key appears twice"));
            }
        }
        Ok(metadata)
    }

    fn alignment(&self, metadata: &Metadata) -> Result<u64, Error> {
        let alignment = metadata.u64("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
        if alignment.is_power_of_two() && alignment <= ALIGNMENT_MAX {
            return Ok(alignment);
        }
        Err(self.bad("metadata `general.alignment`", &format!("{alignment} is not a small power of two")))
    }

    fn value(&mut self, key: &str, type_id: u32) -> Result<Value, Error> {
        Ok(match type_id {
            t::U8 => Value::U8(self.take::<1>(key)?[0]),
            t::I8 => Value::I8(i8::from_le_bytes(self.take(key)?)),
            t::U16 => Value::U16(u16::from_le_bytes(self.take(key)?)),
            t::I16 => Value::I16(i16::from_le_bytes(self.take(key)?)),
            t::U32 => Value::U32(u32::from_le_bytes(self.take(key)?)),
            t::I32 => Value::I32(i32::from_le_bytes(self.take(key)?)),
            t::U64 => Value::U64(u64::from_le_bytes(self.take(key)?)),
            t::I64 => Value::I64(i64::from_le_bytes(self.take(key)?)),
            t::F32 => Value::F32(f32::from_le_bytes(self.take(key)?)),
            t::F64 => Value::F64(f64::from_le_bytes(self.take(key)?)),
            t::BOOL => Value::Bool(self.bool(key)?),
            t::STR => Value::Str(self.string(key, HEADER_BYTES_MAX)?),
            t::ARRAY => Value::Array(self.array(key)?),
            other => return Err(self.bad(key, &format!("unknown value type {other}"))),
        })
    }

    fn array(&mut self, key: &str) -> Result<Array, Error> {
        let element = self.u32(key)?;
        let n = self.u64(key)?;
        Ok(match element {
            t::U8 => Array::U8(self.scalars(key, n, u8::from_le_bytes)?),
            t::I8 => Array::I8(self.scalars(key, n, i8::from_le_bytes)?),
            t::U16 => Array::U16(self.scalars(key, n, u16::from_le_bytes)?),
            t::I16 => Array::I16(self.scalars(key, n, i16::from_le_bytes)?),
            t::U32 => Array::U32(self.scalars(key, n, u32::from_le_bytes)?),
            t::I32 => Array::I32(self.scalars(key, n, i32::from_le_bytes)?),
            t::U64 => Array::U64(self.scalars(key, n, u64::from_le_bytes)?),
            t::I64 => Array::I64(self.scalars(key, n, i64::from_le_bytes)?),
            t::F32 => Array::F32(self.scalars(key, n, f32::from_le_bytes)?),
            t::F64 => Array::F64(self.scalars(key, n, f64::from_le_bytes)?),
            t::BOOL => {
                self.check_count(key, n, 1)?;
                Array::Bool((0..n).map(|_| self.bool(key)).collect::<Result<_, _>>()?)
            }
            t::STR => {
                self.check_count(key, n, 8)?;
                Array::Str((0..n).map(|_| self.string(key, HEADER_BYTES_MAX)).collect::<Result<_, _>>()?)
            }
            // Rejecting these also rules out a recursion as deep as the file is long.
            t::ARRAY => return Err(self.bad(key, "nested arrays are not supported")),
            other => {
                return Err(self.bad(key, &format!("unknown element type {other} ({})", type_name(other))));
            }
        })
    }

    fn scalars<T, const N: usize>(
        &mut self,
        key: &str,
        n: u64,
        convert: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, Error> {
        self.check_count(key, n, N as u64)?;
        (0..n).map(|_| self.take::<N>(key).map(convert)).collect()
    }

    fn bool(&mut self, key: &str) -> Result<bool, Error> {
        match self.take::<1>(key)?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.bad(key, &format!("a bool is 0 or 1, not {other}"))),
        }
    }

    fn tensor_table(&mut self, n_tensors: u64) -> Result<Vec<RawTensor>, Error> {
        let mut raw = Vec::new();
        let mut names = HashSet::new();
        for _ in 0..n_tensors {
            let at = self.at;
            let name = self.string("tensor name", NAME_BYTES_MAX)?;
            if !names.insert(name.clone()) {
                return Err(Error::DuplicateTensor { path: self.path.to_path_buf(), tensor: name });
            }
            let what = format!("tensor `{name}`");
            let n_dims = self.u32(&what)?;
            if !(1..=DIMS_MAX).contains(&n_dims) {
                return Err(self.bad(&what, &format!("{n_dims} dimensions, 1 to {DIMS_MAX} are allowed")));
            }
            let shape = (0..n_dims).map(|_| self.u64(&what)).collect::<Result<Vec<_>, _>>()?;
            if shape.contains(&0) {
                return Err(self.bad(&what, &format!("shape {shape:?} has an empty dimension")));
            }
            let file_type = self.u32(&what)?;
            let relative = self.u64(&what)?;
            raw.push(RawTensor { name, shape, file_type, relative, at });
        }
        Ok(raw)
    }

    /// Finds types and sizes, then checks extents against each other and against the end of the file.
    fn resolve(
        &self,
        raw: Vec<RawTensor>,
        alignment: u64,
        data_offset: u64,
    ) -> Result<Vec<TensorInfo>, Error> {
        let mut order: Vec<usize> = (0..raw.len()).collect();
        order.sort_by_key(|&i| raw[i].relative);
        // Room that each tensor has until the next one begins; the last one ends where the file does.
        let mut room = vec![0; raw.len()];
        for (i, &at) in order.iter().enumerate() {
            let end = order
                .get(i + 1)
                .map_or(self.file_bytes.saturating_sub(data_offset), |&next| raw[next].relative);
            room[at] = end.saturating_sub(raw[at].relative);
        }
        let mut tensors = Vec::with_capacity(raw.len());
        for (tensor, room) in raw.into_iter().zip(room) {
            tensors.push(self.resolve_one(tensor, room, alignment, data_offset)?);
        }
        Ok(tensors)
    }

    fn resolve_one(
        &self,
        raw: RawTensor,
        room: u64,
        alignment: u64,
        data_offset: u64,
    ) -> Result<TensorInfo, Error> {
        let what = format!("tensor `{}`", raw.name);
        let bad = |why: String| self.bad_at(raw.at, &what, &why);
        if !raw.relative.is_multiple_of(alignment) {
            return Err(bad(format!(
                "offset {} is not a multiple of the alignment {alignment}",
                raw.relative
            )));
        }
        let ty = self.resolve_type(&raw, room, alignment)?;
        let Some(len) = ty.tensor_bytes(&raw.shape) else {
            let block = ty.block_elements();
            return Err(bad(format!("shape {:?} does not suit type {ty} (blocks of {block})", raw.shape)));
        };
        let offset = data_offset.checked_add(raw.relative);
        let Some((offset, end)) = offset.and_then(|offset| Some((offset, offset.checked_add(len)?))) else {
            return Err(bad(format!("offset {} overflows", raw.relative)));
        };
        if end > self.file_bytes && !self.allow_truncated {
            let path = self.path.to_path_buf();
            return Err(Error::Truncated { path, what, needs: end, has: self.file_bytes });
        }
        if len > room && end <= self.file_bytes {
            return Err(bad(format!(
                "its {len} bytes overlap the next tensor, which starts {room} bytes further on"
            )));
        }
        Ok(TensorInfo { name: raw.name, ty, shape: raw.shape, offset, len })
    }

    /// Numbers that forks reused are told apart by the distance to the next tensor, which only one of the types explains.
    fn resolve_type(&self, raw: &RawTensor, room: u64, alignment: u64) -> Result<GgmlType, Error> {
        let mut candidates = GgmlType::candidates(raw.file_type);
        let first = candidates.next().ok_or_else(|| Error::TensorType {
            path: self.path.to_path_buf(),
            tensor: raw.name.clone(),
            why: GgmlType::explain_unknown_id(raw.file_type),
        })?;
        let explains = |ty: GgmlType| {
            let len = ty.tensor_bytes(&raw.shape);
            len.is_some_and(|len| len == room || len.checked_next_multiple_of(alignment) == Some(room))
        };
        if explains(first) {
            return Ok(first);
        }
        Ok(candidates.find(|&ty| explains(ty)).unwrap_or(first))
    }

    fn string(&mut self, what: &str, bytes_max: u64) -> Result<String, Error> {
        let len = self.u64(what)?;
        self.check_count(what, len, 1)?;
        if len > bytes_max {
            return Err(self.bad(what, &format!("{len} bytes long, at most {bytes_max} are allowed")));
        }
        let start = self.at;
        let mut bytes = Vec::new();
        let got = (&mut self.input).take(len).read_to_end(&mut bytes).map_err(|e| Error::io(self.path, e))?;
        self.at += got as u64;
        if (got as u64) < len {
            return Err(self.ends(what));
        }
        String::from_utf8(bytes).map_err(|_| self.bad_at(start, what, "not valid utf-8"))
    }

    fn u32(&mut self, what: &str) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.take(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.take(what)?))
    }

    fn take<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        match self.input.read_exact(&mut bytes) {
            Ok(()) => {
                self.at += N as u64;
                Ok(bytes)
            }
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(self.ends(what)),
            Err(e) => Err(Error::io(self.path, e)),
        }
    }

    /// An error unless `n` items of at least `bytes` each still fit in the file and in a sane header.
    fn check_count(&self, what: &str, n: u64, bytes: u64) -> Result<(), Error> {
        let left = self.file_bytes.saturating_sub(self.at).min(HEADER_BYTES_MAX.saturating_sub(self.at));
        match n.checked_mul(bytes) {
            Some(needed) if needed <= left => Ok(()),
            _ => Err(self.bad(what, &format!("{n} cannot be true with {left} header bytes left"))),
        }
    }

    fn ends(&self, what: &str) -> Error {
        Error::Truncated {
            path: self.path.to_path_buf(),
            what: format!("the header ({what})"),
            needs: self.at + 1,
            has: self.file_bytes,
        }
    }

    fn bad(&self, what: &str, why: &str) -> Error {
        self.bad_at(self.at, what, why)
    }

    fn bad_at(&self, offset: u64, what: &str, why: &str) -> Error {
        Error::Gguf { path: self.path.to_path_buf(), offset, what: what.to_owned(), why: why.to_owned() }
    }
}

/// Reads until `buf` is full or the file ends.
fn fill(input: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buf.len() {
        match input.read(&mut buf[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}
