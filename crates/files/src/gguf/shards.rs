//! Split GGUF sets: `<prefix>-00002-of-00005.gguf`, opened from any shard.
//!
//! The first shard carries all model metadata and may have no tensors at all; the others carry `split.*` and their own
//! tensors, with offsets of their own. A tensor never straddles shards.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::read::read_with;
use super::{Header, Metadata};
use crate::Error;

/// More shards than any real set has; bounds the number of files that a hostile header can make us open.
const SHARDS_MAX: u64 = 4096;

/// A whole GGUF: one file, or all files of a split set in order.
#[derive(Debug, Clone)]
pub struct Shards {
    /// One header per file, in shard order.
    pub headers: Vec<Header>,
}

impl Shards {
    /// Metadata of the model, which lives in the first shard.
    pub fn metadata(&self) -> &Metadata {
        &self.headers[0].metadata
    }
}

/// `(prefix, number, digits, count, digits)` of a shard's file name.
fn parse_name(name: &str) -> Option<(&str, u64, usize, u64, usize)> {
    let stem = name.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let digits =
        |s: &str| (!s.is_empty() && s.len() <= 9 && s.bytes().all(|b| b.is_ascii_digit())).then_some(());
    digits(number)?;
    digits(count)?;
    Some((prefix, number.parse().ok()?, number.len(), count.parse().ok()?, count.len()))
}

/// The file name of shard `number` (from 1) of `count`.
pub fn shard_name(prefix: &str, number: u32, count: u32) -> String {
    format!("{prefix}-{number:05}-of-{count:05}.gguf")
}

/// Opens `path` and, when it is a shard, all its siblings.
///
/// # Errors
/// As [`super::read`], and when a shard is missing or belongs to another set.
pub fn open_set(path: &Path) -> Result<Shards, Error> {
    open_set_with(path, false)
}

/// As [`open_set`], accepting shards that end too early when `allow_truncated` says so.
pub(crate) fn open_set_with(path: &Path, allow_truncated: bool) -> Result<Shards, Error> {
    let given = read_with(path, allow_truncated)?;
    let count = given.metadata.u64("split.count")?.unwrap_or(1);
    if count <= 1 {
        check_tensor_count(std::slice::from_ref(&given))?;
        return Ok(Shards { headers: vec![given] });
    }
    if count > SHARDS_MAX {
        return Err(split(path, format!("{count} shards, at most {SHARDS_MAX} are allowed")));
    }
    let paths = sibling_paths(path, count)?;
    let mut headers = Vec::with_capacity(paths.len());
    let mut given = Some(given);
    for (at, shard_path) in paths.iter().enumerate() {
        let header = match given.take_if(|_| shard_path == path) {
            Some(header) => header,
            None => read_with(shard_path, allow_truncated)?,
        };
        check_place(&header, at as u64, count)?;
        headers.push(header);
    }
    check_tensor_count(&headers)?;
    check_unique(&headers)?;
    Ok(Shards { headers })
}

/// Names of all shards, each of which must exist.
fn sibling_paths(path: &Path, count: u64) -> Result<Vec<PathBuf>, Error> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Some((prefix, number, number_digits, named_count, count_digits)) = parse_name(&name) else {
        return Err(split(
            path,
            format!(
                "one of {count} shards, but its name does not end in -NNNNN-of-NNNNN.gguf, so the others cannot be found"
            ),
        ));
    };
    if named_count != count || number == 0 || number > count {
        return Err(split(
            path,
            format!("the name says {number} of {named_count}, the header says {count} shards"),
        ));
    }
    let mut paths = Vec::new();
    for i in 1..=count {
        let sibling =
            path.with_file_name(format!("{prefix}-{i:0number_digits$}-of-{count:0count_digits$}.gguf"));
        if !sibling.exists() {
            let (number, count) = (u32::try_from(i).unwrap_or(0), u32::try_from(count).unwrap_or(0));
            return Err(Error::MissingShard { path: sibling, number, count });
        }
        paths.push(sibling);
    }
    Ok(paths)
}

fn check_place(header: &Header, at: u64, count: u64) -> Result<(), Error> {
    let found_count = header.metadata.u64("split.count")?.unwrap_or(1);
    let found_at = header.metadata.u64("split.no")?.unwrap_or(0);
    if (found_at, found_count) == (at, count) {
        return Ok(());
    }
    Err(split(
        &header.path,
        format!(
            "shard {} of {count} is expected here, the header says {} of {found_count}",
            at + 1,
            found_at.saturating_add(1)
        ),
    ))
}

fn check_tensor_count(headers: &[Header]) -> Result<(), Error> {
    let has: usize = headers.iter().map(|header| header.tensors.len()).sum();
    let first = &headers[0];
    match first.metadata.u64("split.tensors.count")? {
        Some(says) if says != has as u64 => {
            Err(split(&first.path, format!("the set should have {says} tensors, its shards have {has}")))
        }
        _ => Ok(()),
    }
}

fn check_unique(headers: &[Header]) -> Result<(), Error> {
    let mut names = HashSet::new();
    for header in headers {
        for tensor in &header.tensors {
            if !names.insert(tensor.name.as_str()) {
                return Err(Error::DuplicateTensor {
                    path: header.path.clone(),
                    tensor: tensor.name.clone(),
                });
            }
        }
    }
    Ok(())
}

fn split(path: &Path, why: String) -> Error {
    Error::Split { path: path.to_path_buf(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names_keep_their_widths() {
        assert_eq!(
            parse_name("GLM-5.2-UD-IQ1_M-00002-of-00005.gguf"),
            Some(("GLM-5.2-UD-IQ1_M", 2, 5, 5, 5))
        );
        assert_eq!(parse_name("m-1-of-2.gguf"), Some(("m", 1, 1, 2, 1)));
        assert_eq!(parse_name("model.gguf"), None);
        assert_eq!(parse_name("m-x-of-2.gguf"), None);
        assert_eq!(parse_name("m-00001-of-00002.bin"), None);
        assert_eq!(shard_name("m", 2, 5), "m-00002-of-00005.gguf");
    }
}
