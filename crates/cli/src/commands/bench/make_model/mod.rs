//! `slotbank bench make-model`: a synthetic model with the shape of a real one, small enough to be made where it is measured.
//!
//! Weights are random blocks of deviation `1/sqrt(n_in)`, so that activations neither vanish nor explode; routing is skewed
//! and drifts ([`ring`]). What a model says is nonsense; how it routes, reads and computes is what a real one of its shape
//! asks of a machine.

mod blocks;
mod model;
mod random;
mod ring;
mod shape;
mod vocabulary;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use files::gguf::Writer;
use files::{Class, GgmlType};

use crate::interrupt::Generating;
use crate::ui::error::{Failure, Report};
use crate::ui::progress::Bar;
use crate::ui::{self, units};
use blocks::Blocks;
use model::{Model, Tensor};
use shape::{Knobs, Preset, Shape};

/// Write a synthetic model: the shape of a real one, random weights, skewed and drifting routing
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The GGUF to write
    #[arg(value_name = "FILE")]
    out: PathBuf,
    /// Sizes to begin with
    #[arg(long, value_enum, value_name = "SHAPE", default_value_t = Preset::Glm52)]
    shape: Preset,
    /// Layers in all
    #[arg(long, value_name = "N", help_heading = "Sizes")]
    layers: Option<u64>,
    /// Layers without experts, the first ones
    #[arg(long, value_name = "N", help_heading = "Sizes")]
    dense_layers: Option<u64>,
    /// Experts of a layer
    #[arg(long, value_name = "N", help_heading = "Sizes")]
    n_experts: Option<u64>,
    /// Experts per token
    #[arg(long, value_name = "N", help_heading = "Sizes")]
    top_k: Option<u64>,
    /// Channels of the residual stream
    #[arg(long, value_name = "N", help_heading = "Sizes")]
    n_embd: Option<u64>,
    /// Channels inside an expert
    #[arg(long, value_name = "N", help_heading = "Sizes")]
    n_ff: Option<u64>,
    /// Token ids
    #[arg(long, value_name = "N", help_heading = "Sizes")]
    vocab: Option<u64>,
    /// Formats of the routed experts: one for all, or gate, up and down
    #[arg(long, value_name = "GATE,UP,DOWN", default_value = "IQ1_M,IQ1_M,IQ2_XXS", value_parser = expert_formats, help_heading = "Formats")]
    experts_format: ExpertFormats,
    /// One format for all dense matrices [default: Q4_K to Q6_K, Q8_0 for the indexer]
    #[arg(long, value_name = "FORMAT", value_parser = format_named, help_heading = "Formats")]
    dense_format: Option<GgmlType>,
    /// Popularity: router bias of the most popular expert over the least (probabilities are 0 to 1)
    #[arg(long, value_name = "X", default_value_t = 0.25, value_parser = range::<0, 1000>, help_heading = "Routing")]
    skew: f32,
    /// Tokens after which the slow part of the embeddings has forgotten all but 1/e
    #[arg(long, value_name = "TOKENS", default_value_t = 8.0, value_parser = range::<1, 100_000>, help_heading = "Routing")]
    drift: f32,
    /// Share of an embedding that belongs to its token alone, as a deviation
    #[arg(long, value_name = "X", default_value_t = 0.5, value_parser = range::<0, 1>, help_heading = "Routing")]
    noise: f32,
    /// Share of a router's logits that the layer before adds, as a deviation: 0 = the next layer's experts are foreseen
    #[arg(long, value_name = "X", default_value_t = 0.29, value_parser = range::<0, 1>, help_heading = "Routing")]
    mixing: f32,
    /// The same seed gives the same bytes
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Also write the ids and the text of a walk around the ring, as JSON: a prompt that drifts as greedy decoding does
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    stream: Option<PathBuf>,
    /// Tokens of that walk
    #[arg(long, value_name = "N", default_value_t = 512, requires = "stream", help_heading = "Output")]
    stream_tokens: u64,
    /// Replace FILE
    #[arg(long, help_heading = "Output")]
    force: bool,
    /// No progress
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

const AFTER_HELP: &str = "\
Ordinary ids form a ring of made-up words. The head prefers the next word, so greedy decoding walks
the ring; a prompt that walks it too (see --stream) drifts in the same way.";

/// A newtype, since the argument parser reads a list as \"may be given several times\".
#[derive(Debug, Clone, Copy)]
struct ExpertFormats([GgmlType; 3]);

fn expert_formats(text: &str) -> Result<ExpertFormats, String> {
    let formats = text.split(',').map(format_named).collect::<Result<Vec<_>, _>>()?;
    match formats[..] {
        [all] => Ok(ExpertFormats([all; 3])),
        [gate, up, down] => Ok(ExpertFormats([gate, up, down])),
        _ => Err(format!("{} formats: give one for all, or gate, up and down", formats.len())),
    }
}

fn format_named(name: &str) -> Result<GgmlType, String> {
    match GgmlType::from_name(name.trim()) {
        Some(ty) if Blocks::of(ty).is_some() => Ok(ty),
        Some(ty) => Err(format!("no kernel computes with {ty}; one of {}", known_formats())),
        None => Err(format!("{}; one of {}", GgmlType::explain_unknown_name(name), known_formats())),
    }
}

fn known_formats() -> String {
    kernels::FORMATS.iter().map(|format| format.name).collect::<Vec<_>>().join(" ")
}

fn range<const LOW: i32, const HIGH: i32>(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if (LOW as f32..=HIGH as f32).contains(&x) => Ok(x),
        _ => Err(format!("expected a number from {LOW} to {HIGH}")),
    }
}

impl Args {
    fn model(&self) -> Result<Model, Failure> {
        let mut shape = Shape::preset(self.shape);
        for (size, given) in [
            (&mut shape.layers, self.layers),
            (&mut shape.dense_layers, self.dense_layers),
            (&mut shape.n_experts, self.n_experts),
            (&mut shape.top_k, self.top_k),
            (&mut shape.n_embd, self.n_embd),
            (&mut shape.n_ff, self.n_ff),
            (&mut shape.vocab, self.vocab),
        ] {
            *size = given.unwrap_or(*size);
        }
        shape.check().map_err(|(what, hint)| impossible(&what, hint))?;
        let knobs = Knobs { skew: self.skew, drift: self.drift, noise: self.noise, mixing: self.mixing };
        Ok(Model { shape, knobs, seed: self.seed, experts: self.experts_format.0, dense: self.dense_format })
    }
}

fn impossible(why: &str, hint: String) -> Failure {
    Report::new(Class::Usage, "no such model can be made").why(why).hint(hint).into()
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let model = args.model()?;
    let tensors = model.tensors().map_err(|(what, hint)| impossible(&what, hint))?;
    if args.out.exists() && !args.force {
        return Err(Failure::usage(format!("{} exists", args.out.display()), "give --force to replace it"));
    }
    let started = std::time::Instant::now();
    if !write(&model, &tensors, &args.out, args.quiet || args.json)? {
        return Ok(ExitCode::from(Class::Interrupted.exit_code()));
    }
    if let Some(path) = &args.stream {
        write_stream(&model, args.stream_tokens, path)?;
    }
    let bytes = std::fs::metadata(&args.out).map_or(0, |m| m.len());
    if args.json {
        ui::print_json(&serde_json::json!({
            "file": args.out, "bytes": bytes, "tensors": tensors.len(), "seconds": started.elapsed().as_secs_f64(),
            "seed": model.seed, "shape": model.shape, "routing": model.knobs, "experts_format": model.experts,
            "dense_format": model.dense,
        }))?;
    } else {
        let s = &model.shape;
        ui::print(format!(
            "{}: {} in {} tensors, {} dense and {} routed layers, {} experts of {}, {} used",
            args.out.display(),
            units::bytes(bytes),
            tensors.len(),
            s.dense_layers,
            s.layers - s.dense_layers,
            s.n_experts,
            model.experts.map(GgmlType::name).join("/"),
            s.top_k
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the file was written to its end; not if somebody interrupted it.
fn write(model: &Model, tensors: &[Tensor], path: &Path, quiet: bool) -> Result<bool, Failure> {
    let waiting = Generating::begin();
    let stop = waiting.stop_flag();
    let total = Model::bytes(tensors);
    let bar = Bar::bytes(quiet, total, "(ctrl-c leaves nothing behind)");
    let done = Cell::new(0u64);
    let progress = |n: u64| {
        done.set(done.get() + n);
        bar.set(done.get(), total, String::new());
    };
    let mut writer = Writer::new(model.metadata())?;
    model.add_to(&mut writer, tensors, stop, &progress)?;
    let result = writer.write_file(path);
    if stop.load(std::sync::atomic::Ordering::Relaxed) {
        return Ok(false);
    }
    result?;
    Ok(true)
}

/// The ring's first ids, over and over, and the text that is tokenised into them.
fn write_stream(model: &Model, n: u64, path: &Path) -> Result<(), Failure> {
    let ring = vocabulary::ring_ids(model.shape.vocab);
    let places = (0..n).map(|i| i % (ring.end - ring.start));
    let ids: Vec<u64> = places.clone().map(|place| ring.start + place).collect();
    let text: String = places.map(|place| format!(" {}", vocabulary::word(place))).collect();
    let json = serde_json::json!({ "tokens": ids, "text": text });
    std::fs::write(path, format!("{json}\n")).map_err(|e| Failure::file("cannot write the stream", path, &e))
}
