//! One entry of a manifest: read, and checked against itself and its siblings.

use std::collections::HashMap;
use std::path::{Component, Path};

use serde_json::{Map, Value};

use super::{Layout, kind};
use crate::{Error, Family, Form, GgmlType};

/// One routed tensor of a sidecar.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Position in the manifest's array.
    pub index: usize,
    /// GGUF block number.
    pub layer: u32,
    /// Which matrix.
    pub family: Family,
    /// Tensor name.
    pub name: String,
    /// Element type; `None` when the manifest leaves it to the GGUF. Of packed experts that which they were packed from.
    pub ty: Option<GgmlType>,
    /// What the bytes are, where they are not those of `ty`.
    pub form: Option<Form>,
    /// `[n_in, n_out, n_expert]`
    pub shape: [u64; 3],
    /// Bin, relative to the manifest's folder.
    pub file: String,
    /// First byte of expert 0.
    pub offset: u64,
    /// Distance between experts.
    pub stride: u64,
    /// Bytes of one expert.
    pub expert_bytes: u64,
    /// Whether the experts lie in records with those of other families.
    pub expert_major: bool,
    /// Shard that it was taken from: the author's business, never opened.
    pub source_shard: Option<String>,
    /// Number of that shard, from 0.
    pub source_shard_index: Option<u64>,
    /// Offset in that shard.
    pub source_offset: Option<u64>,
}

impl Entry {
    /// First byte after the last expert. Cannot overflow: checked when the entry was parsed.
    pub fn end(&self) -> u64 {
        self.offset + (self.shape[2] - 1) * self.stride + self.expert_bytes
    }
}

/// What an entry is checked against.
pub(super) struct Context<'a> {
    pub(super) path: &'a Path,
    pub(super) layout: Layout,
    /// Whether this kind of manifest may have packed experts.
    pub(super) packed: bool,
    pub(super) expert_count: Option<u64>,
    pub(super) allow_outside: bool,
}

/// All routed entries, and how many others there are.
pub(super) fn parse_all(raw: &[Value], context: &Context) -> Result<(Vec<Entry>, usize), Error> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut seen: HashMap<(u32, Family), usize> = HashMap::new();
    let mut skipped = 0;
    for (index, value) in raw.iter().enumerate() {
        let tensor = value.get("tensor_name").and_then(Value::as_str).unwrap_or("?").to_owned();
        let fail = |why: String| Error::ManifestEntry {
            path: context.path.to_path_buf(),
            index,
            tensor: tensor.clone(),
            why,
        };
        let Value::Object(map) = value else {
            return Err(fail(format!("is {}, not an object", kind(value))));
        };
        let family = string(map, "tensor_family").map_err(&fail)?;
        let Some(family) = Family::from_name(&family) else {
            skipped += 1;
            continue;
        };
        let entry = match parse(index, family, map, context) {
            Ok(entry) => entry,
            Err(Problem::Type(why)) => {
                return Err(Error::TensorType { path: context.path.to_path_buf(), tensor, why });
            }
            Err(Problem::Other(why)) => return Err(fail(why)),
        };
        if let Some(first) = seen.insert((entry.layer, family), index) {
            return Err(fail(format!("the same tensor as entry {first}")));
        }
        entries.push(entry);
    }
    check_overlaps(&entries, context.path)?;
    Ok((entries, skipped))
}

/// Unknown types are reported as unsupported rather than damaged.
enum Problem {
    Type(String),
    Other(String),
}

impl From<String> for Problem {
    fn from(why: String) -> Self {
        Problem::Other(why)
    }
}

fn parse(
    index: usize,
    family: Family,
    map: &Map<String, Value>,
    context: &Context,
) -> Result<Entry, Problem> {
    if let Some(id) = map.get("expert_id").filter(|id| !id.is_null()) {
        return Err(format!("expert_id is {id}: sidecars with one file per expert are not supported").into());
    }
    let layer = number(map, "layer")?;
    let layer = u32::try_from(layer).map_err(|_| format!("`layer` {layer} is too large"))?;
    let name = string(map, "tensor_name")?;
    if Family::parse_tensor_name(&name) != Some((layer, family)) {
        return Err(format!("the name does not belong to layer {layer} and family {family}").into());
    }
    let file = file_name(string(map, "repacked_file")?, context.allow_outside)?;
    let (ty, form) = match packed(map, context)? {
        Some((ty, form)) => (Some(ty), Some(form)),
        None => (quant_type(map)?, None),
    };
    let shape = shape(map)?;
    let expert_bytes = number(map, "bytes_per_expert")?;
    check_geometry(map, ty.map(|ty| (ty, form.as_ref())), shape, expert_bytes, context)?;
    let offset = number(map, "repacked_offset")?;
    let (stride, expert_major) = stride(map, offset, expert_bytes, context.layout)?;
    // The whole extent must be expressible before anything adds up its parts.
    let end =
        (shape[2] - 1).checked_mul(stride).and_then(|n| n.checked_add(offset)?.checked_add(expert_bytes));
    end.ok_or_else(|| "its extent is larger than 2^64 bytes".to_owned())?;
    Ok(Entry {
        index,
        layer,
        family,
        name,
        ty,
        form,
        shape,
        file,
        offset,
        stride,
        expert_bytes,
        expert_major,
        source_shard: map.get("source_shard").and_then(Value::as_str).map(str::to_owned),
        source_shard_index: map.get("source_shard_index").and_then(Value::as_u64),
        source_offset: map.get("source_offset").and_then(Value::as_u64),
    })
}

/// A bin must lie in the sidecar's folder: a downloaded manifest has no business elsewhere on this disk. Returns the one
/// spelling of the path, so that `a//b` and `a/b` are seen to be the same file.
fn file_name(file: String, allow_outside: bool) -> Result<String, String> {
    if file.is_empty() || file.contains('\0') {
        return Err("`repacked_file` is not a file name".to_owned());
    }
    // Backslashes and drive letters count everywhere, so that a manifest means the same on every system.
    let parts: Option<Vec<&str>> = Path::new(&file)
        .components()
        .map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    match parts {
        Some(parts) if !file.contains(['\\', ':']) => Ok(parts.join("/")),
        _ if allow_outside => Ok(file),
        _ => Err(format!("`repacked_file` \"{}\" leaves the sidecar's folder", file.escape_debug())),
    }
}

fn quant_type(map: &Map<String, Value>) -> Result<Option<GgmlType>, Problem> {
    match map.get("quant_type") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) if name.is_empty() => Ok(None),
        Some(Value::String(name)) => GgmlType::from_name(name)
            .map(Some)
            .ok_or_else(|| Problem::Type(GgmlType::explain_unknown_name(name))),
        Some(other) => Err(format!("`quant_type` is {}, not a string", kind(other)).into()),
    }
}

/// The source type and the form of packed experts. Then `quant_type` is the form's name, which no reader of ggml types knows.
fn packed(map: &Map<String, Value>, context: &Context) -> Result<Option<(GgmlType, Form)>, Problem> {
    let map_of = match map.get("packed") {
        None | Some(Value::Null) => return Ok(None),
        Some(_) if !context.packed => {
            return Err("`packed` experts in a manifest that is not of that kind".to_owned().into());
        }
        Some(Value::Object(packed)) => packed,
        Some(other) => return Err(format!("`packed` is {}, not an object", kind(other)).into()),
    };
    let within = |why: String| format!("`packed`: {why}");
    let source = string(map_of, "source_type").map_err(within)?;
    let Some(source) = GgmlType::from_name(&source) else {
        return Err(Problem::Type(GgmlType::explain_unknown_name(&source)));
    };
    let form = Form {
        name: string(map, "quant_type")?,
        version: string(map_of, "version").map_err(within)?,
        block_bytes: number(map_of, "block_bytes").map_err(within)?,
    };
    form.check(source)?;
    Ok(Some((source, form)))
}

fn shape(map: &Map<String, Value>) -> Result<[u64; 3], String> {
    let Some(Value::Array(list)) = map.get("shape") else {
        return Err("the key `shape` is missing".to_owned());
    };
    let dims: Option<Vec<u64>> = list.iter().map(Value::as_u64).collect();
    let shape = dims.and_then(|dims| <[u64; 3]>::try_from(dims).ok());
    shape
        .filter(|shape| shape.iter().all(|&n| n > 0))
        .ok_or_else(|| format!("`shape` is {}, not [n_in, n_out, n_expert]", short(map.get("shape"))))
}

fn check_geometry(
    map: &Map<String, Value>,
    ty: Option<(GgmlType, Option<&Form>)>,
    shape: [u64; 3],
    expert_bytes: u64,
    context: &Context,
) -> Result<(), String> {
    let [n_in, n_out, n_expert] = shape;
    if expert_bytes == 0 {
        return Err("`bytes_per_expert` is 0".to_owned());
    }
    if let Some((ty, form)) = ty {
        let expected = match form {
            None => ty.tensor_bytes(&[n_in, n_out]),
            Some(form) => form.tensor_bytes(ty, &[n_in, n_out]),
        };
        let expected = expected.ok_or_else(|| {
            format!("shape {shape:?} does not suit type {ty} (blocks of {})", ty.block_elements())
        })?;
        if expert_bytes != expected {
            let name = form.map_or(ty.name(), |form| &form.name);
            return Err(format!(
                "`bytes_per_expert` is {expert_bytes}, but {n_in} x {n_out} in {name} are {expected} bytes"
            ));
        }
        if let Some(block) = optional(map, "block_size")?.filter(|&block| block != ty.block_elements()) {
            return Err(format!("`block_size` is {block}, {ty} has {}", ty.block_elements()));
        }
    }
    let exact = number(map, "exact_byte_length")?;
    if expert_bytes.checked_mul(n_expert) != Some(exact) {
        return Err(format!(
            "`exact_byte_length` is {exact}, not {n_expert} experts of {expert_bytes} bytes"
        ));
    }
    let counts =
        [("`expert_count`", optional(map, "expert_count")?), ("`model.expert_count`", context.expert_count)];
    for (what, count) in counts {
        if let Some(count) = count.filter(|&count| count != n_expert) {
            return Err(format!("{what} is {count}, the shape has {n_expert} experts"));
        }
    }
    Ok(())
}

/// Distance between experts, and whether they share records with other families.
fn stride(
    map: &Map<String, Value>,
    offset: u64,
    expert_bytes: u64,
    layout: Layout,
) -> Result<(u64, bool), String> {
    let expert_major = match map.get("expert_major") {
        None | Some(Value::Null) => layout == Layout::ExpertMajor,
        Some(Value::Bool(flag)) => *flag,
        Some(other) => return Err(format!("`expert_major` is {}, not a bool", kind(other))),
    };
    let stride = optional(map, "expert_stride")?.filter(|&n| n != 0).unwrap_or(expert_bytes);
    if !expert_major {
        if stride != expert_bytes {
            return Err(format!(
                "`expert_stride` {stride} in a layout whose experts are {expert_bytes} bytes apart"
            ));
        }
        return Ok((stride, false));
    }
    match offset.checked_add(expert_bytes) {
        Some(end) if end <= stride => Ok((stride, true)),
        _ => Err(format!(
            "{expert_bytes} bytes at `repacked_offset` {offset} do not fit a record of `expert_stride` {stride}"
        )),
    }
}

/// Bytes of one file that belong to one or several entries.
struct Span {
    start: u64,
    end: u64,
    /// Index into the entries, for messages.
    entry: usize,
}

/// No byte may belong to two experts. Records of equal stride interleave legally as long as their parts are disjoint.
fn check_overlaps(entries: &[Entry], path: &Path) -> Result<(), Error> {
    let mut spans: HashMap<&str, Vec<Span>> = HashMap::new();
    let mut records: HashMap<(&str, u64), Vec<Span>> = HashMap::new();
    for (at, entry) in entries.iter().enumerate() {
        if entry.expert_major {
            let part = Span { start: entry.offset, end: entry.offset + entry.expert_bytes, entry: at };
            records.entry((&entry.file, entry.stride)).or_default().push(part);
        } else {
            spans.entry(&entry.file).or_default().push(Span {
                start: entry.offset,
                end: entry.end(),
                entry: at,
            });
        }
    }
    for ((file, _), mut parts) in records {
        check_disjoint(&mut parts, entries, path)?;
        // To everything else in the file the interleaved entries are one block.
        let start = parts.first().map_or(0, |part| part.start);
        let end = parts.iter().map(|part| entries[part.entry].end()).max().unwrap_or(0);
        let entry = parts.first().map_or(0, |part| part.entry);
        spans.entry(file).or_default().push(Span { start, end, entry });
    }
    spans.values_mut().try_for_each(|spans| check_disjoint(spans, entries, path))
}

fn check_disjoint(spans: &mut [Span], entries: &[Entry], path: &Path) -> Result<(), Error> {
    spans.sort_by_key(|span| (span.start, span.end));
    for pair in spans.windows(2) {
        if pair[1].start < pair[0].end {
            let (first, second) = (&entries[pair[0].entry], &entries[pair[1].entry]);
            return Err(Error::ManifestEntry {
                path: path.to_path_buf(),
                index: second.index,
                tensor: second.name.clone(),
                why: format!("overlaps entry {} (`{}`) in {}", first.index, first.name, first.file),
            });
        }
    }
    Ok(())
}

fn string(map: &Map<String, Value>, key: &str) -> Result<String, String> {
    match map.get(key) {
        Some(Value::String(s)) => Ok(s.clone()),
        Some(other) => Err(format!("`{key}` is {}, not a string", kind(other))),
        None => Err(format!("the key `{key}` is missing")),
    }
}

fn optional(map: &Map<String, Value>, key: &str) -> Result<Option<u64>, String> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let n = value.as_u64();
            n.map(Some)
                .ok_or_else(|| format!("`{key}` is {}, not a non-negative integer", short(Some(value))))
        }
    }
}

fn number(map: &Map<String, Value>, key: &str) -> Result<u64, String> {
    match optional(map, key)? {
        Some(n) => Ok(n),
        None if map.contains_key(key) => Err(format!("`{key}` is null")),
        None => Err(format!("the key `{key}` is missing")),
    }
}

/// A value as text that stays on one line.
fn short(value: Option<&Value>) -> String {
    let mut text = value.map(Value::to_string).unwrap_or_default();
    if let Some((cut, _)) = text.char_indices().nth(60) {
        text.truncate(cut);
        text.push('…');
    }
    text
}
