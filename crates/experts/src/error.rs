//! The errors of the bank. Each says what happened, where, and why; [`Error::hint`] says what to do about it.

use std::path::PathBuf;

use files::Class;

/// Whatever can go wrong between a routed expert id and its bytes in a slot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bank would be smaller than one token's working set.
    #[error(
        "the expert bank needs at least {needed} bytes ({floor} slots in each of {layers} layers), {given} are given"
    )]
    DoesNotFit {
        /// Bytes of the smallest bank that works.
        needed: u64,
        /// Bytes that the request would have used or was given.
        given: u64,
        /// Slots per layer of that smallest bank.
        floor: u32,
        /// Routed layers.
        layers: u32,
    },
    /// Expert tensors that no bank can hold: doubled families, disagreeing counts, empty records.
    #[error("layer {layer}: {why}")]
    Geometry {
        /// Block index.
        layer: u32,
        /// What is wrong with it.
        why: String,
    },
    /// Options that contradict each other or the model.
    #[error("{0}")]
    Usage(String),
    /// A request for a layer without experts.
    #[error("layer {layer} has no streamed experts")]
    NoSuchLayer {
        /// Block index asked for.
        layer: u32,
    },
    /// A request for an expert that the layer does not have.
    #[error("layer {layer} has {n_expert} experts, expert {expert} was asked for")]
    NoSuchExpert {
        /// Block index.
        layer: u32,
        /// Expert id asked for.
        expert: u32,
        /// Experts of the layer.
        n_expert: u32,
    },
    /// A file of the checkpoint could not be opened for streaming.
    #[error("cannot open {path} for streaming: {source}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Direct reads were asked for by name and the filesystem refuses them.
    #[error("direct reads are refused for {path}: {source}", path = path.display())]
    DirectRefused {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// io_uring was asked for by name and cannot be used here.
    #[error("io_uring cannot be used: {source}")]
    UringRefused {
        /// What the system said.
        source: std::io::Error,
    },
    /// Bytes of an expert could not be read. The request that wanted them is over; the bank is intact.
    #[error(
        "cannot read {families} of expert {expert} in layer {layer}: {path} at offset {offset}, {len} bytes: {source}",
        path = path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Where the failing read stood, in bytes from the start of the file.
        offset: u64,
        /// Bytes wanted by the read.
        len: u64,
        /// Block index.
        layer: u32,
        /// Expert id.
        expert: u32,
        /// The tensor families in the read, joined by `+`.
        families: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Slot memory could not be had or a backend could not take the bytes of a slot.
    #[error("slot memory: {0}")]
    Arena(String),
    /// The trace file could not be read or written.
    #[error("trace: {0}")]
    TraceIo(#[source] std::io::Error),
    /// A line of a trace that is no record, or not of this model.
    #[error("trace line {line}: {why}")]
    TraceLine {
        /// Line, counted from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// A trace that is to be read could not be opened.
    #[error("cannot open the trace {path}: {source}", path = path.display())]
    TraceOpen {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A trace whose calls are those of another model.
    #[error("the trace is of another model: {why}")]
    TraceForeign {
        /// In what it differs.
        why: String,
    },
}

impl Error {
    /// The kind of failure; decides the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::DoesNotFit { .. } => Class::DoesNotFit,
            Error::Geometry { .. } | Error::TraceLine { .. } | Error::TraceForeign { .. } => Class::BadFile,
            Error::TraceOpen { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Class::Usage,
            Error::Usage(_) | Error::DirectRefused { .. } | Error::UringRefused { .. } => Class::Usage,
            Error::NoSuchLayer { .. } | Error::NoSuchExpert { .. } | Error::Arena(_) => Class::Internal,
            Error::Open { .. } | Error::Read { .. } | Error::TraceIo(_) | Error::TraceOpen { .. } => {
                Class::Io
            }
        }
    }

    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::DoesNotFit { needed, .. } => {
                Some(format!("give the bank at least {}", crate::plan::human_bytes_up(*needed)))
            }
            Error::DirectRefused { .. } => Some("use the automatic or the buffered reader".into()),
            Error::UringRefused { .. } => Some(
                "use the automatic reader or pread; containers and old kernels often lack io_uring".into(),
            ),
            Error::Read { source, .. } if source.kind() == std::io::ErrorKind::UnexpectedEof => {
                Some("the file is shorter than its headers say: it was changed or cut while in use".into())
            }
            Error::Read { .. } => Some("check the drive and its cable or mount, then try again".into()),
            Error::TraceLine { .. } | Error::TraceForeign { .. } => {
                Some("record the trace again with this model".into())
            }
            _ => None,
        }
    }
}
