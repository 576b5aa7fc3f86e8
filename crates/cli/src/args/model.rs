//! Which checkpoint a command works on.

use std::path::{Path, PathBuf};

use clap::Args;

/// For `run` and `chat`, whose free argument is the prompt.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// GGUF file (any shard), model folder, sidecar folder, manifest or package file [default: the embedded demo]
    #[arg(short, long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Folder with the experts, when it cannot be found from MODEL. Given several times: identical copies on drives of
    /// their own, all of which are read
    #[arg(long, value_name = "DIR", alias = "moe-sidecar")]
    pub(crate) sidecar: Vec<PathBuf>,
}

impl ModelArgs {
    /// `None` is the demo.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.model.as_deref()
    }
}

/// For every other command: MODEL as the free argument, or after `-m`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelPath {
    /// GGUF file (any shard), model folder, sidecar folder, manifest or package file [default: the embedded demo]
    #[arg(value_name = "MODEL", help_heading = None::<&'static str>)]
    positional: Option<PathBuf>,
    /// The same as a flag
    #[arg(short = 'm', long = "model", value_name = "MODEL", conflicts_with = "positional")]
    flag: Option<PathBuf>,
    /// Folder with the experts, when it cannot be found from MODEL. Given several times: identical copies on drives of
    /// their own, all of which are read
    #[arg(long, value_name = "DIR", alias = "moe-sidecar")]
    pub(crate) sidecar: Vec<PathBuf>,
}

impl ModelPath {
    /// `None` is the demo.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.positional.as_deref().or(self.flag.as_deref())
    }
}
