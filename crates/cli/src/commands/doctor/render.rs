//! The findings on one screen.

use super::Outcome;
use crate::machine::drive::{Drive, Origin};
use crate::ui::table::{Align, Table};
use crate::ui::{Paint, units};

pub(super) fn text(outcome: &Outcome) -> String {
    let mut parts = vec![drive(outcome)];
    let grid = grid(&outcome.drive);
    if !grid.is_empty() {
        parts.push(grid);
    }
    parts.push(format!("{}\n{}", Paint::Bold.on("machine"), machine(outcome).render("  ")));
    if !outcome.hints.is_empty() {
        let hints: Vec<String> = outcome.hints.iter().map(|hint| format!("  - {hint}")).collect();
        parts.push(format!("{}\n{}", Paint::Bold.on("hints"), hints.join("\n")));
    }
    parts.join("\n\n")
}

fn drive(outcome: &Outcome) -> String {
    let (drive, subject, filesystem) = (&outcome.drive, &outcome.subject, &outcome.filesystem);
    let mut table = Table::new(&[Align::Left, Align::Left]);
    let what = if subject.temporary { "a temporary file" } else { "the experts" };
    let files = if subject.files == 1 { String::new() } else { format!(" in {} files", subject.files) };
    table.row(["read".to_owned(), format!("{what}, {}{files}", units::bytes(subject.bytes))]);
    let kind = filesystem.kind.as_deref().unwrap_or("unknown");
    let source = filesystem.source.as_ref().map_or_else(String::new, |source| format!(" on {source}"));
    let free =
        filesystem.free_bytes.map_or_else(String::new, |free| format!(", {} free", units::bytes(free)));
    table.row(["filesystem".to_owned(), format!("{kind}{source}{free}")]);
    let direct = match &drive.direct_refused {
        _ if drive.origin == Origin::Holes => "not tried".to_owned(),
        Some(why) => format!("refused: {why}"),
        None => "accepted".to_owned(),
    };
    table.row(["direct reads".to_owned(), direct]);
    if let (Some(rate), Some(depth)) = (drive.read_gb_per_s, drive.best_depth) {
        let size = units::bytes(drive.expert_read_bytes);
        let rate = format!("{rate:.2} GB/s, {} reads of {size}, {depth} at a time", drive.reader);
        table.row(["rate".to_owned(), rate]);
    }
    if let Some(latency) = drive.read_latency_us {
        let memory =
            drive.cached_latency_us.map_or_else(String::new, |us| format!("; {us:.0} µs from memory"));
        table.row(["latency".to_owned(), format!("{latency:.0} µs for 4 KiB{memory}")]);
    }
    if let Some(choice) = &drive.choice {
        table.row(["in turns".to_owned(), choice.to_string()]);
    }
    let heading = format!("drive · {}", subject.path.display());
    format!("{}\n{}", Paint::Bold.on(&heading), table.render("  "))
}

/// Sizes down, depths across, in GB/s; one block per reader.
fn grid(drive: &Drive) -> String {
    let sorted = |mut values: Vec<u64>| {
        values.sort_unstable();
        values.dedup();
        values
    };
    let sizes = sorted(drive.cells.iter().map(|cell| cell.read_bytes).collect());
    let depths = sorted(drive.cells.iter().map(|cell| cell.depth as u64).collect());
    let mut blocks = Vec::new();
    for reader in ["direct", "buffered"] {
        if drive.best_of(reader).is_none() {
            continue;
        }
        let mut align = vec![Align::Left];
        align.extend(vec![Align::Right; depths.len()]);
        let mut table = Table::new(&align);
        let head = depths.iter().map(|depth| format!("×{depth}"));
        table.row(std::iter::once(format!("{reader}, GB/s")).chain(head));
        for &size in &sizes {
            let at = |&depth: &u64| {
                let cell = drive
                    .cells
                    .iter()
                    .find(|cell| (cell.reader, cell.read_bytes, cell.depth as u64) == (reader, size, depth));
                cell.map_or_else(|| "–".to_owned(), |cell| format!("{:.2}", cell.gb_per_s))
            };
            table.row(std::iter::once(units::bytes(size)).chain(depths.iter().map(at)));
        }
        blocks.push(table.render("  "));
    }
    blocks.join("\n\n")
}

fn machine(outcome: &Outcome) -> Table {
    let (processor, system) = (&outcome.processor, &outcome.system);
    let mut table = Table::new(&[Align::Left, Align::Left]);
    let forced = if processor.isa_forced { " (SLOTBANK_ISA)" } else { "" };
    table.row([
        "processor".to_owned(),
        format!(
            "{}, kernels use {}{forced}, {} threads",
            system.system, processor.isa_used, processor.threads
        ),
    ]);
    let pair = |pair: &crate::machine::processor::Pair, digits: usize, unit: &str| {
        format!("{:.digits$} {unit} on one thread, {:.digits$} on all", pair.one, pair.all)
    };
    table.row(["int8".to_owned(), pair(&processor.int8_gop_per_s, 0, "GOP/s")]);
    table.row(["f32".to_owned(), pair(&processor.f32_gflop_per_s, 0, "GFLOP/s")]);
    table.row(["memory read".to_owned(), pair(&processor.memory_gb_per_s, 1, "GB/s")]);
    let memory = &system.memory;
    let (total, available) = (units::bytes(memory.total_bytes), units::bytes(memory.available_bytes));
    table.row(["memory".to_owned(), format!("{total}, {available} available to this process")]);
    if let Some(group) = &memory.group {
        let (limit, used) = (units::bytes(group.limit_bytes), units::bytes(group.used_bytes));
        table.row([
            "control group".to_owned(),
            format!("version {}, {limit} allowed, {used} used", group.version),
        ]);
    }
    let swap = match (memory.swap_total_bytes, memory.swap_free_bytes) {
        (0, _) => "none".to_owned(),
        (total, free) => {
            format!("{}, {} used", units::bytes(total), units::bytes(total.saturating_sub(free)))
        }
    };
    table.row(["swap".to_owned(), swap]);
    let unknown = || "cannot be told on this system".to_owned();
    let limit = |limit: Option<u64>, text: fn(u64) -> String| match limit {
        None => unknown(),
        Some(u64::MAX) => "no limit".to_owned(),
        Some(limit) => text(limit),
    };
    table.row(["open files".to_owned(), limit(system.open_files, |n| format!("at most {n}"))]);
    table.row([
        "locked memory".to_owned(),
        limit(system.locked_bytes, |n| format!("at most {}", units::bytes(n))),
    ]);
    table.row(["huge pages".to_owned(), system.huge_pages.clone().unwrap_or_else(unknown)]);
    table
}
