//! Which checkpoint a command works on.

use std::path::{Path, PathBuf};

use clap::Args;

use super::flash_moe::LaneArgs;

/// Where the experts are, for those who do not have them beside the model.
#[derive(Debug, Default, Args)]
pub(crate) struct SidecarArgs {
    /// Folder with the experts, when it cannot be found from MODEL. Given several times: identical copies on drives of
    /// their own, all of which are read
    #[arg(long, value_name = "DIR", alias = "moe-sidecar")]
    sidecar: Vec<PathBuf>,
    #[command(flatten)]
    lanes: LaneArgs,
}

impl SidecarArgs {
    /// What was given as the sidecar, if anything; the model's own one else.
    pub(crate) fn first(&self) -> Option<&Path> {
        self.sidecar.first().map(PathBuf::as_path)
    }

    /// Further copies of it.
    pub(crate) fn copies(&self) -> Vec<PathBuf> {
        self.sidecar.iter().skip(1).chain(self.lanes.copies()).cloned().collect()
    }
}

/// For `run` and `chat`, whose free argument is the prompt.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// GGUF file (any shard), model folder, sidecar folder, manifest or package file [default: the embedded demo]
    #[arg(short, long, value_name = "MODEL")]
    model: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) sidecar: SidecarArgs,
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
    #[command(flatten)]
    pub(crate) sidecar: SidecarArgs,
}

impl ModelPath {
    /// `None` is the demo.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.positional.as_deref().or(self.flag.as_deref())
    }
}
