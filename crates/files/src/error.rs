//! What can go wrong with model files, and what to do about it.
//!
//! A message says what happened, where and why, in lower case and without a full stop; [`Error::hint`] says what to do;
//! [`Error::class`] decides the exit code. No message contains file content longer than a name.

use std::io;
use std::path::{Path, PathBuf};

/// The kinds of failure that a caller (and a shell script) can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// A bug in slotbank.
    Internal,
    /// The request itself makes no sense.
    Usage,
    /// A file is damaged, incomplete or not what it claims to be.
    BadFile,
    /// A valid file that this build cannot run.
    Unsupported,
    /// Not enough memory or disk space.
    DoesNotFit,
    /// The operating system failed to read or write.
    Io,
    /// Bytes differ from what they were.
    Integrity,
    /// Stopped by the user.
    Interrupted,
}

impl Class {
    /// The process exit code of this class.
    pub fn exit_code(self) -> u8 {
        match self {
            Class::Internal => 1,
            Class::Usage => 2,
            Class::BadFile => 3,
            Class::Unsupported => 4,
            Class::DoesNotFit => 5,
            Class::Io => 6,
            Class::Integrity => 7,
            Class::Interrupted => 130,
        }
    }
}

/// Any failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing at the path that was asked for.
    #[error("{path}: no such file or folder", path = path.display())]
    NotFound {
        /// What was asked for.
        path: PathBuf,
    },
    /// A file of another kind than expected.
    #[error("{path} is {found}, not {expected}", path = path.display())]
    WrongKind {
        /// The file.
        path: PathBuf,
        /// What it looks like, with an article.
        found: String,
        /// What was expected, with an article.
        expected: &'static str,
        /// What to do.
        hint: String,
    },
    /// The GGUF header contradicts itself or the file it is in.
    #[error("{path}: bad gguf at byte {offset}: {what}: {why}", path = path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
        /// Which field, key or tensor.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A GGUF version or byte order that is not read here.
    #[error("{path}: {why}", path = path.display())]
    GgufVersion {
        /// The file.
        path: PathBuf,
        /// Which version, and why not.
        why: String,
    },
    /// A tensor type id or name without a known size.
    #[error("{path}: tensor `{tensor}`: {why}", path = path.display())]
    TensorType {
        /// The file.
        path: PathBuf,
        /// Tensor name.
        tensor: String,
        /// Which type, and who knows it.
        why: String,
    },
    /// A file ends before its last tensor does.
    #[error("{path} is truncated: {what} needs {needs} bytes, the file has {has}", path = path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Tensor or manifest entry that lies beyond the end.
        what: String,
        /// Bytes that the file should have at least.
        needs: u64,
        /// Bytes that it has.
        has: u64,
    },
    /// One file of a split set is absent.
    #[error("shard {number} of {count} is missing: {path}", path = path.display())]
    MissingShard {
        /// The name that it should have.
        path: PathBuf,
        /// Counted from 1.
        number: u32,
        /// Shards in the set.
        count: u32,
    },
    /// The files of a split set do not belong together.
    #[error("{path}: split set: {why}", path = path.display())]
    Split {
        /// The shard.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// Two tensors of one checkpoint have the same name.
    #[error("{path}: tensor `{tensor}` appears twice", path = path.display())]
    DuplicateTensor {
        /// The file with the second one.
        path: PathBuf,
        /// Tensor name.
        tensor: String,
    },
    /// A metadata value has another type, or an impossible value.
    #[error("{path}: metadata `{key}`: expected {expected}, found {found}", path = path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// Metadata key.
        key: String,
        /// What the reader asked for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A metadata key that is needed is absent.
    #[error("{path}: metadata `{key}` is missing", path = path.display())]
    MetadataMissing {
        /// The file.
        path: PathBuf,
        /// Metadata key.
        key: String,
    },
    /// The manifest as a whole is malformed.
    #[error("{path}: bad manifest: {why}", path = path.display())]
    Manifest {
        /// The manifest file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A manifest of a kind that is not read here.
    #[error("{path}: {why}", path = path.display())]
    ManifestVersion {
        /// The manifest file.
        path: PathBuf,
        /// Which kind.
        why: String,
    },
    /// One entry of a manifest is malformed.
    #[error("{path}: bad manifest: entry {index} (`{tensor}`): {why}", path = path.display())]
    ManifestEntry {
        /// The manifest file.
        path: PathBuf,
        /// Counted from 0, as in the JSON array.
        index: usize,
        /// Tensor name, `?` when the entry has none.
        tensor: String,
        /// What is wrong.
        why: String,
    },
    /// The file of sums is malformed.
    #[error("{path}: bad sums: {why}", path = path.display())]
    Sums {
        /// The file of sums.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Dense part and sidecar are not of the same model.
    #[error("wrong sidecar: {manifest} does not belong to {dense}: {why}", manifest = manifest.display(), dense = dense.display())]
    WrongSidecar {
        /// The manifest.
        manifest: PathBuf,
        /// The GGUF that it was opened with.
        dense: PathBuf,
        /// What differs.
        why: String,
    },
    /// A second sidecar is no copy of the first.
    #[error("{copy} is no copy of {original}: {why}", copy = copy.display(), original = original.display())]
    CopyDiffers {
        /// The one given later.
        copy: PathBuf,
        /// The one given first.
        original: PathBuf,
        /// What differs.
        why: String,
    },
    /// Part of a model is absent: its dense GGUF, or its experts.
    #[error("{path}: {what}", path = path.display())]
    Incomplete {
        /// The entry point that was given.
        path: PathBuf,
        /// What is absent.
        what: String,
        /// Where it was looked for, or how to supply it.
        hint: String,
    },
    /// A path, option or combination that makes no sense.
    #[error("{why}")]
    Usage {
        /// What is wrong with it.
        why: String,
        /// What to do instead.
        hint: Option<String>,
    },
    /// Something is already at the destination.
    #[error("{path} already exists", path = path.display())]
    Exists {
        /// The file or folder in the way.
        path: PathBuf,
        /// How to go on.
        hint: String,
    },
    /// The disk is too small.
    #[error("not enough space on the disk of {path}: {needs} bytes needed, {has} free", path = path.display())]
    Space {
        /// Destination.
        path: PathBuf,
        /// Bytes still to be written.
        needs: u64,
        /// Bytes available to this user.
        has: u64,
    },
    /// Bytes differ from their recorded sum.
    #[error("{path}: {why}", path = path.display())]
    Integrity {
        /// The file.
        path: PathBuf,
        /// What differs.
        why: String,
    },
    /// The caller asked to stop.
    #[error("interrupted: {what}")]
    Interrupted {
        /// What was going on.
        what: String,
    },
    /// A promise inside this crate was broken.
    #[error("internal error: {why}")]
    Internal {
        /// Which one.
        why: String,
    },
}

impl Error {
    /// An operating-system failure on `path`; a missing file becomes [`Error::NotFound`].
    pub fn io(path: impl AsRef<Path>, source: io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound => Error::NotFound { path },
            _ => Error::Io { path, source },
        }
    }

    /// Which exit code this failure leads to.
    pub fn class(&self) -> Class {
        match self {
            Error::Io { .. } => Class::Io,
            Error::Usage { .. } | Error::Exists { .. } | Error::NotFound { .. } => Class::Usage,
            Error::GgufVersion { .. } | Error::TensorType { .. } | Error::ManifestVersion { .. } => {
                Class::Unsupported
            }
            Error::Space { .. } => Class::DoesNotFit,
            Error::Integrity { .. } => Class::Integrity,
            Error::Interrupted { .. } => Class::Interrupted,
            Error::Internal { .. } => Class::Internal,
            Error::WrongKind { .. }
            | Error::Gguf { .. }
            | Error::Truncated { .. }
            | Error::MissingShard { .. }
            | Error::Split { .. }
            | Error::DuplicateTensor { .. }
            | Error::Metadata { .. }
            | Error::MetadataMissing { .. }
            | Error::Manifest { .. }
            | Error::ManifestEntry { .. }
            | Error::Sums { .. }
            | Error::WrongSidecar { .. }
            | Error::CopyDiffers { .. }
            | Error::Incomplete { .. } => Class::BadFile,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::WrongKind { hint, .. } | Error::Incomplete { hint, .. } | Error::Exists { hint, .. } => {
                hint.clone()
            }
            Error::Truncated { path, .. } => {
                format!("download {} again; the other files can stay", name_of(path))
            }
            Error::MissingShard { path, .. } => {
                format!("download {} into the same folder as the other shards", name_of(path))
            }
            Error::Gguf { path, .. } => format!("the file is damaged: download {} again", name_of(path)),
            Error::Split { .. } => {
                "keep exactly the shards of one download in one folder, under their original names".into()
            }
            Error::GgufVersion { .. } => "convert the model again with a current llama.cpp".into(),
            Error::TensorType { why, .. } if why.contains("ik_llama.cpp") => {
                "use a file quantised by llama.cpp itself".into()
            }
            Error::TensorType { .. } => "use a file with types that current llama.cpp writes".into(),
            Error::Manifest { .. } | Error::ManifestEntry { .. } => {
                "download or extract the sidecar again; manifest.json must not be edited".into()
            }
            Error::Sums { path, .. } => {
                format!("delete {} and write it again with `slotbank verify --write-sums`", name_of(path))
            }
            Error::ManifestVersion { .. } => {
                "extract the sidecar again from the GGUF with `slotbank extract`".into()
            }
            Error::WrongSidecar { .. } => "pass the sidecar that was extracted from this very model".into(),
            Error::CopyDiffers { .. } => {
                "copy the sidecar again with all of its files, or give only one of them".into()
            }
            Error::Space { needs, has, .. } => {
                format!("free {} more bytes or choose another disk", needs.saturating_sub(*has))
            }
            Error::Integrity { .. } => "copy or download the file again, then run verify".into(),
            Error::Usage { hint, .. } => return hint.clone(),
            Error::Internal { .. } => "please report this with the command that led to it".into(),
            _ => return None,
        })
    }
}

/// The last component, for hints that stay on one line.
fn name_of(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}
