//! What to do about what was found, one plain sentence or two each.

use experts::ReaderChoice;
use experts::read::probe::Choice;

use super::Outcome;
use crate::machine::drive::Origin;
use crate::ui::units;

/// Below this a drive is what everything waits for, whatever the processor.
const SLOW_GB_PER_S: f64 = 1.0;
/// A drive that turns does not reach this with random reads.
const TURNING_GB_PER_S: f64 = 0.3;
/// Dense weights of models worth streaming take more than this.
const LOCKED_BYTES_MIN: u64 = 1 << 30;
/// Files open at a time besides those of the model.
const FILES_BESIDES: u64 = 64;

pub(super) fn of(outcome: &Outcome) -> Vec<String> {
    let mut hints = Vec::new();
    drive(outcome, &mut hints);
    memory(outcome, &mut hints);
    processor(outcome, &mut hints);
    hints
}

fn drive(outcome: &Outcome, hints: &mut Vec<String>) {
    let (drive, filesystem, subject) = (&outcome.drive, &outcome.filesystem, &outcome.subject);
    let kind = filesystem.kind.as_deref().unwrap_or("this filesystem");
    match drive.origin {
        Origin::Drive => {}
        Origin::Memory => hints.push(format!(
            "reads came back as fast as from memory: {kind} or something below it keeps these bytes there, so the rates above \
             are not the drive's; measure a folder on the drive itself (`slotbank doctor DIR`)"
        )),
        Origin::Holes => hints.push(
            "the files have holes or are compressed by the filesystem, so nothing was measured; `slotbank doctor DIR` \
             measures a folder of the same drive with a file of its own"
                .into(),
        ),
    }
    if let Some(why) = &drive.direct_refused {
        hints.push(format!(
            "direct reads are refused on {kind} ({why}): experts come through the page cache, which costs a copy and competes with \
             the bank for memory; ext4 or xfs on a local drive take them"
        ));
    }
    let buffered =
        |choice: &&Choice| choice.reader == ReaderChoice::Buffered && choice.direct_gb_per_s.is_some();
    if let Some(choice) = drive.choice.as_ref().filter(buffered) {
        hints.push(format!(
            "{choice}; try `--reader buffered`, with a bank small enough to leave memory to the page cache"
        ));
    }
    if filesystem.is_remote() {
        hints.push(format!("{kind} reaches over a network or into a host: copy the model to a local drive"));
    }
    if let Some(rate) = drive.read_gb_per_s {
        if filesystem.rotational == Some(true) && rate < TURNING_GB_PER_S {
            hints.push(
                "this looks like a hard disk: random reads of experts need an SSD, best a local NVMe drive"
                    .into(),
            );
        } else if rate < SLOW_GB_PER_S {
            let cost = match subject.cold_bytes_per_token {
                Some(bytes) => format!(
                    "a token that finds nothing in the bank reads {} and waits {} for it",
                    units::bytes(bytes),
                    units::seconds((bytes as f64 / rate) as u64)
                ),
                None => "every miss of the bank is felt".into(),
            };
            hints.push(format!(
                "the drive brings {rate:.2} GB/s: {cost}; a larger bank or a faster drive gains more than anything else"
            ));
        }
    }
    if drive.cached_cells > 0 {
        hints.push(format!(
            "{} buffered measurements were left out because the page cache holds what they would have read",
            drive.cached_cells
        ));
    }
    if subject.temporary && drive.origin == Origin::Drive {
        hints.push(
            "a file just written can be read faster than old data; `slotbank doctor MODEL` reads the model's own files".into(),
        );
    }
}

fn memory(outcome: &Outcome, hints: &mut Vec<String>) {
    let (system, subject) = (&outcome.system, &outcome.subject);
    let memory = &system.memory;
    if let Some(group) = &memory.group {
        hints.push(format!(
            "a control group allows {} in all ({}): plans keep to that",
            units::bytes(group.limit_bytes),
            group.path.display()
        ));
    }
    let swapped = memory.swap_total_bytes.saturating_sub(memory.swap_free_bytes);
    if swapped > 0 {
        hints.push(format!(
            "{} are swapped out: a bank that the system swaps is many times slower than a smaller one; leave it more room (`--ram`) or turn swap off",
            units::bytes(swapped)
        ));
    }
    if memory.swap_total_bytes > 0 && system.locked_bytes.is_some_and(|limit| limit < LOCKED_BYTES_MIN) {
        hints.push(format!(
            "there is swap space and only {} may be locked in memory, so the system can swap dense weights out: raise the limit \
             (`ulimit -l unlimited`) or turn swap off",
            units::bytes(system.locked_bytes.unwrap_or_default())
        ));
    }
    if system.open_files.is_some_and(|limit| limit < subject.files as u64 + FILES_BESIDES) {
        hints.push(format!(
            "at most {} files may be open and the experts lie in {}: raise the limit (`ulimit -n 4096`)",
            system.open_files.unwrap_or_default(),
            subject.files
        ));
    }
    if system.huge_pages.as_deref() == Some("never") {
        hints.push(
            "huge pages are off, so reading weights costs more page walks; `madvise` in \
             /sys/kernel/mm/transparent_hugepage/enabled lets slotbank ask for them"
                .into(),
        );
    }
}

fn processor(outcome: &Outcome, hints: &mut Vec<String>) {
    let processor = &outcome.processor;
    if processor.isa_forced && processor.isa_used != processor.isa {
        hints.push(format!(
            "SLOTBANK_ISA asks for {} and the processor has {}: unset it for speed",
            processor.isa_used, processor.isa
        ));
    } else if processor.isa == "scalar" {
        hints.push(
            "this processor has none of AVX2, AVX-512 with VNNI and NEON with dot products: kernels run without vectors, many \
             times slower"
                .into(),
        );
    }
    let (memory, drive) = (processor.memory_gb_per_s.all, outcome.drive.read_gb_per_s.unwrap_or(0.0));
    if drive > 0.0 && memory < 2.0 * drive {
        hints.push(format!(
            "memory brings {memory:.1} GB/s, hardly more than the drive: what is resident costs as much time as what is read"
        ));
    }
}

#[cfg(test)]
mod tests {
    use engine::memory::{Group, Memory};

    use super::*;
    use crate::commands::doctor::Subject;
    use crate::machine::drive::{Drive, DriveCell};
    use crate::machine::processor::{Pair, Processor};
    use crate::machine::system::{Filesystem, System};

    const GIB: u64 = 1 << 30;

    /// A machine without anything to complain about.
    fn good() -> Outcome {
        let cell = |reader, gb_per_s| DriveCell {
            reader,
            read_bytes: 2 << 20,
            depth: 8,
            reads: 100,
            gb_per_s,
            latency_us: 90.0,
        };
        let pair = |one, all| Pair { one, all };
        Outcome {
            engine: "slotbank",
            version: "0",
            read_gb_per_s: Some(6.0),
            read_latency_us: Some(90.0),
            subject: Subject {
                path: "m".into(),
                temporary: false,
                files: 76,
                bytes: 200 * GIB,
                cold_bytes_per_token: Some(6 * GIB),
            },
            filesystem: Filesystem {
                kind: Some("ext4".into()),
                mounted_at: None,
                source: None,
                rotational: Some(false),
                free_bytes: Some(GIB),
            },
            drive: Drive {
                read_gb_per_s: Some(6.0),
                read_latency_us: Some(90.0),
                reader: "direct",
                origin: Origin::Drive,
                direct_refused: None,
                expert_read_bytes: 2 << 20,
                best_depth: Some(8),
                best_read_bytes: Some(2 << 20),
                cached_latency_us: Some(9.0),
                cached_cells: 0,
                cells: vec![cell("direct", 6.0), cell("buffered", 3.0)],
                choice: None,
            },
            processor: Processor {
                isa: "avx2",
                isa_used: "avx2",
                isa_forced: false,
                threads: 8,
                memory_gb_per_s: pair(12.0, 60.0),
                int8_gop_per_s: pair(1.0, 8.0),
                f32_gflop_per_s: pair(1.0, 8.0),
            },
            system: System {
                system: "linux x86_64".into(),
                memory: Memory {
                    total_bytes: 128 * GIB,
                    available_bytes: 120 * GIB,
                    group: None,
                    swap_total_bytes: 0,
                    swap_free_bytes: 0,
                },
                open_files: Some(1024),
                locked_bytes: Some(u64::MAX),
                huge_pages: Some("madvise".into()),
            },
            hints: Vec::new(),
        }
    }

    #[track_caller]
    fn one(change: impl FnOnce(&mut Outcome), needle: &str) {
        let mut outcome = good();
        change(&mut outcome);
        let hints = of(&outcome);
        assert!(hints.len() == 1 && hints[0].contains(needle), "{needle}: {hints:?}");
    }

    #[test]
    fn a_good_machine_gets_no_hints() {
        assert_eq!(of(&good()), Vec::<String>::new());
    }

    #[test]
    fn each_finding_has_its_hint() {
        one(|o| o.drive.origin = Origin::Memory, "as fast as from memory");
        one(|o| o.drive.origin = Origin::Holes, "holes");
        one(
            |o| o.drive.direct_refused = Some("invalid argument".into()),
            "direct reads are refused on ext4 (invalid",
        );
        let choice = Choice {
            reader: ReaderChoice::Buffered,
            direct_gb_per_s: Some(1.0),
            buffered_gb_per_s: Some(2.0),
            why: "buffered is faster here",
        };
        one(
            |o| o.drive.choice = Some(choice),
            "buffered 2.00 GB/s: buffered is faster here; try `--reader buffered`",
        );
        one(|o| o.filesystem.kind = Some("nfs4".into()), "local drive");
        one(|o| o.drive.cached_cells = 3, "3 buffered measurements");
        one(|o| o.subject.temporary = true, "just written");
        one(|o| o.system.open_files = Some(100), "ulimit -n");
        one(|o| o.system.huge_pages = Some("never".into()), "madvise");
        one(|o| o.processor.isa = "scalar", "without vectors");
        one(|o| o.processor.memory_gb_per_s.all = 10.0, "memory brings 10.0 GB/s");
        one(|o| (o.processor.isa_forced, o.processor.isa_used) = (true, "scalar"), "unset it");
        one(
            |o| (o.system.memory.swap_total_bytes, o.system.memory.swap_free_bytes) = (4 * GIB, 3 * GIB),
            "1.0 GiB are swapped out",
        );
        one(
            |o| {
                (o.system.memory.swap_total_bytes, o.system.memory.swap_free_bytes) = (GIB, GIB);
                o.system.locked_bytes = Some(8 << 20);
            },
            "only 8.0 MiB may be locked",
        );
        let group = Group { version: 2, path: "/g".into(), limit_bytes: 32 * GIB, used_bytes: GIB };
        one(|o| o.system.memory.group = Some(group), "32.0 GiB in all (/g)");
    }

    #[test]
    fn a_slow_drive_is_told_in_seconds_per_token_and_a_turning_one_by_name() {
        let rate = |rate: f64| move |o: &mut Outcome| o.drive.read_gb_per_s = Some(rate);
        one(rate(0.5), "reads 6.0 GiB and waits 12.88 s");
        one(
            |o| {
                o.filesystem.rotational = Some(true);
                o.drive.read_gb_per_s = Some(0.1);
            },
            "hard disk",
        );
        // Virtual drives often claim to turn.
        one(
            |o| {
                o.filesystem.rotational = Some(true);
                o.drive.read_gb_per_s = Some(0.9);
            },
            "brings 0.90 GB/s",
        );
    }
}
