//! What can go wrong between a checkpoint and its logits.

use std::path::PathBuf;

use files::Class;

/// Any failure of loading or running a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model file is damaged, incomplete or not what it claims.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// The bank could not be planned, or an expert could not be read.
    #[error(transparent)]
    Experts(#[from] experts::Error),
    /// The tokenizer, the template or the sampler.
    #[error(transparent)]
    Text(#[from] text::Error),
    /// A valid file of an architecture that no model file here implements.
    #[error("architecture `{found}` is not supported: {path}")]
    Architecture {
        /// `general.architecture` of the file.
        found: String,
        /// Where it was read.
        path: PathBuf,
        /// What this build can run.
        known: Vec<&'static str>,
    },
    /// A valid file of an architecture that is implemented, but a member of it that is not.
    #[error("this `{architecture}` model is not supported: {why}: {path}")]
    Member {
        /// `general.architecture` of the file.
        architecture: String,
        /// Where it was read.
        path: PathBuf,
        /// What it has, or lacks.
        why: String,
    },
    /// A valid tensor of a type without a kernel.
    #[error("tensor `{tensor}` has type {ty}, which has no kernel here")]
    TensorType {
        /// Tensor name.
        tensor: String,
        /// ggml type name.
        ty: &'static str,
    },
    /// Experts that a sidecar holds in a packed form of another version.
    #[error(
        "tensor `{tensor}` is {ty} packed as `{form}` {version}, which this version of slotbank does not know"
    )]
    Form {
        /// Tensor name.
        tensor: String,
        /// ggml type name.
        ty: &'static str,
        /// Name of the form.
        form: String,
        /// Version of the form.
        version: String,
    },
    /// A tensor whose weights the file multiplies by a factor of its own.
    #[error("tensor `{factor}` scales `{tensor}`, which is not supported here")]
    TensorFactor {
        /// The tensor with the weights.
        tensor: String,
        /// The tensor with the factor, or one factor per expert.
        factor: String,
    },
    /// The model needs a tensor that the checkpoint does not have.
    #[error("tensor `{tensor}` is missing from {path}")]
    MissingTensor {
        /// Tensor name.
        tensor: String,
        /// The checkpoint.
        path: PathBuf,
    },
    /// A tensor's shape contradicts the metadata.
    #[error("tensor `{tensor}` has shape {found:?}, the metadata asks for {expected:?}")]
    Shape {
        /// Tensor name.
        tensor: String,
        /// ggml order, first number contiguous.
        found: Vec<u64>,
        /// Derived from the metadata.
        expected: Vec<u64>,
    },
    /// Metadata values that contradict each other or leave the supported range.
    #[error("metadata of {path}: {why}")]
    Metadata {
        /// The checkpoint.
        path: PathBuf,
        /// Which keys and values.
        why: String,
    },
    /// An option outside what this model or this build accepts.
    #[error("{option}: {why}")]
    Option {
        /// Flag or field name.
        option: &'static str,
        /// The reason with the numbers.
        why: String,
    },
    /// More tokens than the cache was planned for.
    #[error("the context is full: {needed} positions needed, {context} planned")]
    ContextFull {
        /// Positions the request needs.
        needed: usize,
        /// Positions allocated at load.
        context: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token id {token} is outside the vocabulary of {n_vocab}")]
    Token {
        /// The id.
        token: u32,
        /// Vocabulary size.
        n_vocab: u32,
    },
    /// The plan is larger than the memory that may be used.
    #[error("the model does not fit: {needed_bytes} bytes planned, {available_bytes} available")]
    DoesNotFit {
        /// Planned bytes.
        needed_bytes: u64,
        /// Bytes that may be used.
        available_bytes: u64,
        /// Name and bytes of every part.
        parts: Vec<(&'static str, u64)>,
        /// The largest bank that would fit beside the rest; `None` when not even its floor does.
        largest_bank_bytes: Option<u64>,
    },
    /// A file that slotbank writes (trace, dump) could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The caller's stop flag was raised.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// The exit-code class.
    pub fn class(&self) -> Class {
        match self {
            Self::Files(e) => e.class(),
            Self::Experts(e) => e.class(),
            Self::Text(e) => match e.fault() {
                text::Fault::Unsupported => Class::Unsupported,
                text::Fault::Usage => Class::Usage,
                text::Fault::Internal => Class::Internal,
                _ => Class::BadFile,
            },
            Self::MissingTensor { .. } | Self::Shape { .. } | Self::Metadata { .. } => Class::BadFile,
            Self::Architecture { .. }
            | Self::Member { .. }
            | Self::TensorType { .. }
            | Self::Form { .. }
            | Self::TensorFactor { .. } => Class::Unsupported,
            Self::Option { .. } | Self::Token { .. } => Class::Usage,
            Self::ContextFull { .. } | Self::DoesNotFit { .. } => Class::DoesNotFit,
            Self::Write { .. } => Class::Io,
            Self::Interrupted => Class::Interrupted,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Files(e) => e.hint(),
            Self::Experts(e) => e.hint(),
            Self::Text(e) => e.hint(),
            Self::Architecture { known, .. } => Some(format!("this build runs: {}", known.join(", "))),
            Self::Member { .. } => {
                Some("slotbank runs the models of this family whose layers have routed experts".into())
            }
            Self::TensorType { .. } | Self::TensorFactor { .. } => {
                Some("requantise that tensor, or use another file of this model".into())
            }
            Self::Form { .. } => Some(
                "extract the sidecar again with this version, or run it with the version that wrote it"
                    .into(),
            ),
            Self::MissingTensor { tensor, .. } if tensor.contains("indexer") => Some(
                "the file lacks the sparse-attention indexer; `--attention dense` runs without it".into(),
            ),
            Self::MissingTensor { .. } => {
                Some("the file may be incomplete; `slotbank inspect` lists what is missing".into())
            }
            Self::DoesNotFit { largest_bank_bytes: Some(bytes), .. } => {
                let (size, unit) = if *bytes < 1 << 30 { (bytes >> 10, "KiB") } else { (bytes >> 20, "MiB") };
                Some(format!("`--bank {size}{unit}` is the largest that fits; a smaller `-c` leaves more"))
            }
            Self::ContextFull { .. } => Some("raise the context with `-c`, or shorten the prompt".into()),
            Self::DoesNotFit { .. } => Some(
                "not even the smallest bank fits beside the rest; lower `-c`, or use a smaller model".into(),
            ),
            Self::Shape { .. } | Self::Metadata { .. } => {
                Some("the file is damaged or was converted by an incompatible tool".into())
            }
            _ => None,
        }
    }
}
