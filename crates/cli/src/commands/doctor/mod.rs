//! `slotbank doctor`: what this machine gives to streaming, measured, and what to do where it is little.

mod hints;
mod render;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use experts::{BankPlan, BankSize};
use files::{Checkpoint, Class};
use serde::Serialize;

use crate::machine::drive::{self, Drive, Effort, Target};
use crate::machine::processor::{self, Processor};
use crate::machine::system::{Filesystem, System};
use crate::ui;
use crate::ui::error::{Failure, Report};

/// Measure the drive, the memory and the processor, and say what is in the way
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Model whose expert files are read, or folder for a temporary file [default: the current folder]
    #[arg(value_name = "MODEL|DIR")]
    path: Option<PathBuf>,
    /// Fewer sizes and depths: about 5 seconds in place of 25
    #[arg(long, help_heading = "What to measure")]
    quick: bool,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

const AFTER_HELP: &str = "\
reads go to random places: past the page cache where the filesystem allows it (direct), and through
it where it does not hold them already (buffered). What comes from memory is not reported as a
drive's rate. GB is 10^9 bytes.";

/// Everything that was found.
#[derive(Debug, Serialize)]
struct Outcome {
    engine: &'static str,
    version: &'static str,
    /// At the model's read size; null when it could not be measured.
    read_gb_per_s: Option<f64>,
    /// Of one small read at a time.
    read_latency_us: Option<f64>,
    subject: Subject,
    filesystem: Filesystem,
    drive: Drive,
    processor: Processor,
    system: System,
    hints: Vec<String>,
}

/// What was read.
#[derive(Debug, Serialize)]
struct Subject {
    path: PathBuf,
    /// A temporary file in `path`, not a model.
    temporary: bool,
    files: usize,
    bytes: u64,
    /// Expert bytes that a token reads when nothing is cached; absent without a model, or where its metadata does not say.
    cold_bytes_per_token: Option<u64>,
}

/// A temporary file that is large enough for drives to show themselves, and small enough to be written soon.
const FILE_BYTES: u64 = 512 << 20;
const QUICK_FILE_BYTES: u64 = 128 << 20;
/// What must be left on the drive besides.
const FREE_BYTES_MIN: u64 = 256 << 20;

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    // Asked first: a wrong environment should not cost half a minute.
    processor::isa()?;
    let (target, subject) = target(args)?;
    let filesystem = Filesystem::of(&target.files[0]);
    let effort = if args.quick { Effort::QUICK } else { Effort::FULL };
    let drive = drive::measure(&target, &effort, args.json)?;
    let processor = processor::measure(args.quick)?;
    let mut outcome = Outcome {
        engine: "slotbank",
        version: env!("CARGO_PKG_VERSION"),
        read_gb_per_s: drive.read_gb_per_s,
        read_latency_us: drive.read_latency_us,
        subject,
        filesystem,
        drive,
        processor,
        system: System::now(),
        hints: Vec::new(),
    };
    outcome.hints = hints::of(&outcome);
    if args.json {
        ui::print_json(&outcome)?;
    } else {
        ui::print(render::text(&outcome))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn target(args: &Args) -> Result<(Target, Subject), Failure> {
    let path = args.path.as_deref().unwrap_or(Path::new("."));
    if let Some(checkpoint) = model(path, args.path.is_some())? {
        if checkpoint.experts().is_empty() {
            return Err(Report::new(Class::Unsupported, "this model has no streamed experts to read")
                .place(path.display().to_string())
                .hint("`slotbank doctor DIR` measures a drive with a temporary file")
                .into());
        }
        let target = Target::experts(&checkpoint)?;
        let subject = Subject {
            path: path.to_owned(),
            temporary: false,
            files: target.files.len(),
            bytes: target.bytes(),
            cold_bytes_per_token: cold_bytes_per_token(&checkpoint),
        };
        return Ok((target, subject));
    }
    let wanted = if args.quick { QUICK_FILE_BYTES } else { FILE_BYTES };
    let free = Filesystem::of(path).free_bytes.unwrap_or(u64::MAX);
    if free < wanted + FREE_BYTES_MIN {
        return Err(
            files::Error::Space { path: path.to_owned(), needs: wanted + FREE_BYTES_MIN, has: free }.into()
        );
    }
    let target = Target::temporary(path, wanted)?;
    let bytes = target.bytes();
    let temporary = target.is_temporary();
    Ok((target, Subject { path: path.to_owned(), temporary, files: 1, bytes, cold_bytes_per_token: None }))
}

/// The model at `path`; none where it is a folder without one.
fn model(path: &Path, named: bool) -> Result<Option<Checkpoint>, Failure> {
    if !named || (path.is_dir() && !holds_model_files(path)) {
        return Ok(None);
    }
    let options = files::OpenOptions { allow_incomplete: true, ..Default::default() };
    Ok(Some(Checkpoint::open_with(path, &options)?))
}

/// Whether a folder looks like a model: whatever is wrong with it then is worth an error.
fn holds_model_files(folder: &Path) -> bool {
    let is_model = |name: &std::ffi::OsStr| {
        let name = name.to_string_lossy().to_lowercase();
        name.ends_with(".gguf") || name == "manifest.json"
    };
    let looks = |folder: &Path| {
        std::fs::read_dir(folder).is_ok_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|entry| is_model(&entry.file_name())))
        })
    };
    let inside = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    looks(folder) || inside.filter(|path| path.is_dir()).any(|path| looks(&path))
}

/// One token's working set.
fn cold_bytes_per_token(checkpoint: &Checkpoint) -> Option<u64> {
    let key = format!("{}.expert_used_count", checkpoint.architecture());
    let top_k = u32::try_from(checkpoint.metadata().u64(&key).ok()??).ok()?;
    let layers: Vec<_> = checkpoint
        .experts()
        .chunk_by(|a, b| a.layer == b.layer)
        .filter(|layer| !checkpoint.is_mtp_layer(layer[0].layer))
        .map(|layer| experts::LayerExperts {
            layer: layer[0].layer,
            n_expert: u32::try_from(layer[0].n_expert()).unwrap_or(u32::MAX),
            tensors: layer.to_vec(),
        })
        .collect();
    let plan = BankPlan::new(BankSize::All, 0, top_k, &layers).ok()?;
    Some(plan.layers().iter().map(|layer| layer.expert_bytes * u64::from(top_k.min(layer.n_expert))).sum())
}
