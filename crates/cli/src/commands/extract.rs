//! `slotbank extract`: copies the routed experts into a sidecar, and on request the dense part beside it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use clap::ValueEnum;
use files::extract::{FormLine, Options, Progress, Summary, extract, parse_families, parse_layers};
use files::{Checkpoint, Family};

use crate::interrupt;
use crate::ui::error::Failure;
use crate::ui::progress::Bar;
use crate::ui::{self, units};

/// Copy the routed experts of a model into a sidecar folder
#[derive(Debug, clap::Args)]
#[command(
    after_help = "SRC stays as it is; a sidecar as SRC is repacked. An interrupted extraction goes on where it ended"
)]
#[command(
    override_usage = "slotbank extract [OPTIONS] <SRC> <DST>\n       slotbank extract [OPTIONS] -m <SRC> <DST>"
)]
pub(crate) struct Args {
    /// Model to copy from, then the folder to write
    #[arg(value_name = "SRC> <DST", num_args = 1..=2, required = true)]
    paths: Vec<PathBuf>,
    /// Model to copy from
    #[arg(short, long, value_name = "SRC")]
    model: Option<PathBuf>,
    /// Whole tensors one after another, or one padded record per expert
    #[arg(long, value_enum, default_value_t = LayoutArg::LayerMajor)]
    layout: LayoutArg,
    /// Store experts packed for speed, in more bytes; with --layout expert-major
    #[arg(long)]
    pack: bool,
    /// Only these layers, as in 3,5-9
    #[arg(long, value_name = "LIST", value_parser = layers)]
    layers: Option<Layers>,
    /// Only these families: gate, up, down, gate_up
    #[arg(long, value_name = "LIST", value_parser = families)]
    families: Option<Families>,
    /// Also write the dense part, so that DST is a model of its own
    #[arg(long)]
    dense: bool,
    /// Replace what an earlier extraction left in DST
    #[arg(long)]
    force: bool,
    /// Print the result as JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Neither progress nor notes
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LayoutArg {
    LayerMajor,
    ExpertMajor,
}

/// Lists are newtypes, since the argument parser reads a `Vec` as "may be given several times".
#[derive(Debug, Clone)]
struct Layers(Vec<u32>);

#[derive(Debug, Clone)]
struct Families(Vec<Family>);

fn layers(text: &str) -> Result<Layers, String> {
    parse_layers(text).map(Layers).map_err(|e| with_hint(&e))
}

fn families(text: &str) -> Result<Families, String> {
    parse_families(text).map(Families).map_err(|e| with_hint(&e))
}

fn with_hint(error: &files::Error) -> String {
    match error.hint() {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let (src, dst) = paths(args)?;
    let checkpoint =
        Checkpoint::open_with(src, &files::OpenOptions { allow_incomplete: true, ..Default::default() })?;
    for note in checkpoint.notes().iter().filter(|_| !args.quiet) {
        ui::note(format!("note: {note}"));
    }
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let options = Options {
        layout: match args.layout {
            LayoutArg::LayerMajor => files::manifest::Layout::LayerMajor,
            LayoutArg::ExpertMajor => files::manifest::Layout::ExpertMajor,
        },
        layers: args.layers.as_ref().map(|list| list.0.clone()),
        families: args.families.as_ref().map(|list| list.0.clone()),
        pack: args.pack.then(engine::packers),
        dense: args.dense,
        force: args.force,
        stop: Some(stop.clone()),
    };
    let waiting = interrupt::Generating::begin();
    let bar = Bar::bytes(args.quiet, 0, "(ctrl-c is safe: the next run goes on)");
    let done = extract(&checkpoint, dst, &options, &mut |progress: Progress| {
        stop.store(waiting.stop_flag().load(Ordering::Relaxed), Ordering::Relaxed);
        let what = progress.layer.map_or_else(|| "dense".to_owned(), |layer| format!("layer {layer}"));
        bar.set(progress.bytes_done, progress.bytes_total, what);
    });
    drop(bar);
    let summary = done?;
    if args.json {
        ui::print_json(&serde_json::json!({
            "tensors": summary.tensors, "layers": summary.layers, "layers_resumed": summary.layers_resumed,
            "forms": summary.forms, "bytes_written": summary.bytes_written, "bytes_resumed": summary.bytes_resumed,
            "manifest": summary.manifest, "sums": summary.sums, "dense": summary.dense, "removed": summary.removed,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    ui::print(render(&summary))?;
    Ok(ExitCode::SUCCESS)
}

fn render(summary: &Summary) -> String {
    let mut lines = vec![format!(
        "{} tensors of {} layers, {} written",
        summary.tensors,
        summary.layers,
        units::bytes(summary.bytes_written)
    )];
    if summary.forms.iter().any(|line| line.form.is_some()) {
        lines.extend(summary.forms.iter().map(form_line));
    }
    if summary.layers_resumed > 0 {
        lines.push(format!(
            "{} layers ({}) were there already",
            summary.layers_resumed,
            units::bytes(summary.bytes_resumed)
        ));
    }
    if !summary.removed.is_empty() {
        lines.push(format!("{} files of an earlier extraction removed", summary.removed.len()));
    }
    for (what, path) in [
        ("manifest", Some(&summary.manifest)),
        ("sums", Some(&summary.sums)),
        ("dense", summary.dense.as_ref()),
    ] {
        lines.extend(path.map(|path| format!("{what}: {}", path.display())));
    }
    lines.join("\n")
}

/// `IQ1_M packed ×6: 9.0 MiB instead of 4.4 MiB, 2.04 times as much`
fn form_line(line: &FormLine) -> String {
    let FormLine { ty, form, tensors, source_bytes, bytes } = line;
    match form {
        Some(form) => format!(
            "{form} ×{tensors}: {} instead of {}, {:.2} times as much",
            units::bytes(*bytes),
            units::bytes(*source_bytes),
            *bytes as f64 / (*source_bytes).max(1) as f64
        ),
        None => {
            format!("{ty} ×{tensors}: {} as they were: {}", units::bytes(*bytes), engine::why_unpacked(*ty))
        }
    }
}

fn paths(args: &Args) -> Result<(&Path, &Path), Failure> {
    match (&args.paths[..], &args.model) {
        ([src, dst], None) => Ok((src, dst)),
        ([dst], Some(src)) => Ok((src, dst)),
        ([_], None) => Err(Failure::usage("the destination is missing", "slotbank extract <SRC> <DST>")),
        _ => Err(Failure::usage("the source is given twice", "slotbank extract <SRC> <DST>")),
    }
}
