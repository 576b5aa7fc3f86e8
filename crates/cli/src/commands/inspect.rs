//! `slotbank inspect`: what a checkpoint is made of, without reading a tensor.

use std::process::ExitCode;

use files::inspect::{Experts, Inspection, Range, TypeLine, inspect};
use files::{Checkpoint, OpenOptions};

use crate::args::ModelPath;
use crate::session;
use crate::ui::error::Failure;
use crate::ui::table::{Align, Table};
use crate::ui::{self, units};

/// Show what a model consists of: geometry, types, experts, alignment, what is missing
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelPath,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let path = session::locate(args.model.path())?.0;
    let options = OpenOptions { allow_incomplete: true, ..session::with_sidecars(&args.model.sidecar) };
    let inspection = inspect(&Checkpoint::open_with(&path, &options)?)?;
    if args.json {
        ui::print_json(&inspection)?;
    } else {
        ui::print(render(&inspection))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn render(inspection: &Inspection) -> String {
    let mut table = Table::new(&[Align::Left, Align::Left]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("model", inspection.name.clone().unwrap_or_else(|| "(no name)".into()));
    row("architecture", inspection.architecture.clone());
    row("files", files_line(inspection));
    row("layers", layers_line(inspection));
    for (name, value) in widths(inspection) {
        row(name, value);
    }
    let parameters = &inspection.parameters;
    let active = parameters.active.map_or_else(String::new, |n| format!(", {} per token", count(n)));
    row("parameters", format!("{}{active}", count(parameters.total)));
    row("tokenizer", tokenizer_line(inspection));
    row("dense part", format!("{}: {}", units::bytes(inspection.dense_bytes), types(&inspection.dense)));
    if let Some(experts) = &inspection.experts {
        for (name, value) in expert_lines(experts) {
            row(name, value);
        }
    }
    let missing = match inspection.missing.len() {
        0 => "nothing".to_owned(),
        n => format!("{n} entries"),
    };
    row("missing", missing);
    let mut text = table.render("");
    for name in &inspection.missing {
        text.push_str(&format!("\n  {name}"));
    }
    for note in &inspection.notes {
        text.push_str(&format!("\nnote: {note}"));
    }
    text
}

fn files_line(inspection: &Inspection) -> String {
    let bytes = inspection.files.iter().filter_map(|file| file.bytes).sum();
    let n = inspection.files.len();
    let plural = if n == 1 { "file" } else { "files" };
    format!("{n} {plural}, {} ({}), {}", units::bytes(bytes), inspection.source, inspection.root.display())
}

fn layers_line(inspection: &Inspection) -> String {
    let geometry = &inspection.geometry;
    let mut parts = vec![number(geometry.block_count)];
    if let Some(leading) = geometry.leading_dense_block_count.filter(|&n| n > 0) {
        parts.push(format!("{leading} leading dense"));
    }
    if let Some(experts) = &inspection.experts {
        parts.push(format!("experts in {}", ranges(&experts.layers)));
    }
    if !inspection.mtp_layers.is_empty() {
        parts.push(format!("next-token prediction in {} (not run)", ranges(&inspection.mtp_layers)));
    }
    parts.join(", ")
}

fn widths(inspection: &Inspection) -> Vec<(&'static str, String)> {
    let geometry = &inspection.geometry;
    let list = |values: &[u64]| values.iter().map(u64::to_string).collect::<Vec<_>>().join("/");
    let mut width = format!("{}, {} heads", number(geometry.embedding_length), list(&geometry.head_count));
    // A latent is shared by all heads; what files say there of keys is about its form.
    let grouped = !geometry.head_count_kv.is_empty() && geometry.head_count_kv != geometry.head_count;
    if grouped && geometry.kv_lora_rank.is_none() {
        width += &format!(" on {} keys", list(&geometry.head_count_kv));
    }
    if !geometry.feed_forward_length.is_empty() {
        width += &format!(", feed-forward {}", list(&geometry.feed_forward_length));
    }
    let mut rows = vec![
        ("width", width),
        ("context", number(geometry.context_length)),
        ("vocabulary", number(geometry.vocabulary)),
    ];
    if geometry.expert_count.is_some_and(|n| n > 0) {
        let shared = geometry.expert_shared_count.map(|n| format!("{n} shared, ")).unwrap_or_default();
        rows.push((
            "experts",
            format!(
                "{} per layer, {} used, {shared}width {}",
                number(geometry.expert_count),
                number(geometry.expert_used_count),
                list(&geometry.expert_feed_forward_length)
            ),
        ));
    }
    rows
}

fn tokenizer_line(inspection: &Inspection) -> String {
    let template = if inspection.chat_template { "chat template" } else { "no chat template" };
    match &inspection.tokenizer {
        None => format!("none, {template}"),
        Some(t) => {
            format!("{} ({}), {template}", t.model, t.pre.as_deref().unwrap_or("no pre-tokenizer named"))
        }
    }
}

fn expert_lines(experts: &Experts) -> Vec<(&'static str, String)> {
    let mut rows = vec![("routed experts", format!("{}, {}", units::bytes(experts.bytes), experts.layout))];
    for family in &experts.families {
        let line = format!(
            "{}, {} per expert: {}",
            units::bytes(family.bytes),
            range(&family.expert_bytes),
            types(&family.types)
        );
        rows.push((family.family.name(), line));
    }
    let unpacked = experts.unpacked_expert_bytes.as_ref();
    let unpacked = unpacked.map_or_else(String::new, |bytes| format!("; unpacked {}", range(bytes)));
    rows.push(("one expert", format!("{}{unpacked}", range(&experts.expert_bytes))));
    rows.push(("one slot in every layer", units::bytes(experts.slot_bytes_all_layers)));
    if let Some(cold) = experts.cold_bytes_per_token {
        rows.push(("cold read per token", units::bytes(cold)));
    }
    rows.push((
        "4 KiB alignment",
        format!("{} of {} slices", units::percent(experts.aligned_share), units::exact(experts.slices)),
    ));
    rows
}

/// `IQ1_M ×74, IQ2_XXS ×2`
fn types(lines: &[TypeLine]) -> String {
    let name = |line: &TypeLine| line.form.clone().unwrap_or_else(|| line.ty.to_string());
    lines.iter().map(|line| format!("{} ×{}", name(line), line.tensors)).collect::<Vec<_>>().join(", ")
}

fn range(range: &Range) -> String {
    if range.min == range.max {
        units::bytes(range.min)
    } else {
        format!(
            "{} to {}, mean {}",
            units::bytes(range.min),
            units::bytes(range.max),
            units::bytes(range.mean)
        )
    }
}

fn number(value: Option<u64>) -> String {
    value.map_or_else(|| "?".to_owned(), |n| n.to_string())
}

/// `743.6 B`, `7.8 M`.
fn count(n: u64) -> String {
    let n = n as f64;
    match n {
        n if n >= 1e9 => format!("{:.1} B", n / 1e9),
        n if n >= 1e6 => format!("{:.1} M", n / 1e6),
        n => format!("{:.1} k", n / 1e3),
    }
}

/// `3-77`, `1-4,6`; the input ascends.
fn ranges(layers: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for &layer in layers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == layer => *last = layer,
            _ => parts.push((layer, layer)),
        }
    }
    let write =
        |(first, last): (u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    parts.into_iter().map(write).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_counts() {
        assert_eq!(ranges(&[3, 4, 5, 78]), "3-5,78");
        assert_eq!(ranges(&[]), "");
        assert_eq!(count(743_600_000_000), "743.6 B");
        assert_eq!(count(7_800_000), "7.8 M");
    }
}
