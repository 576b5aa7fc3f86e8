//! `slotbank verify`: are these still the bytes that were recorded? Names every bad entry, then fails.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use files::Class;
use files::verify::{Mode, Options, Report, SumsState, verify};

use crate::args::ModelPath;
use crate::ui::error::Failure;
use crate::ui::progress::Bar;
use crate::ui::{self, units};
use crate::{interrupt, session};

/// Check every byte of a model against its recorded sums, or against another copy
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelPath,
    /// Compare with this model too, usually the GGUF that the sidecar was extracted from
    #[arg(long, value_name = "GGUF", help_heading = "Checks")]
    against: Option<PathBuf>,
    /// Structure, sizes, headers and a sample of the sums
    #[arg(long, help_heading = "Checks", conflicts_with = "write_sums")]
    quick: bool,
    /// Record the sums of what is there now; refused where sums exist
    #[arg(long, help_heading = "Checks")]
    write_sums: bool,
    /// Print the report as JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// No progress
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let path = session::locate(args.model.path())?.0;
    if !args.model.sidecar.copies().is_empty() {
        return Err(Failure::usage("several sidecars are given", "verify one copy after the other"));
    }
    let options = Options {
        sidecar: args.model.sidecar.first().map(Path::to_owned),
        mode: if args.quick { Mode::Quick } else { Mode::Full },
        against: args.against.clone(),
        packers: engine::known_packers(),
        write_sums: args.write_sums,
        threads: None,
        stop: None,
    };
    let report = with_progress(&path, options, args.quiet)?;
    if args.json {
        ui::print_json(&report)?;
    } else {
        ui::print(render(&report))?;
        for note in &report.notes {
            ui::note(format!("note: {note}"));
        }
    }
    match report.check() {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // The report is the error message; a second one would only push it off the screen.
        Err(_) if args.json => Ok(ExitCode::from(Class::Integrity.exit_code())),
        Err(error) => Err(error.into()),
    }
}

/// The same check before a run, of every copy of the sidecar: a bad model is not run. A further copy without sums of its own is
/// compared with the first.
pub(crate) fn before_run(model: &session::Model, quiet: bool) -> Result<(), Failure> {
    let check = |sidecar: Option<&PathBuf>, against: Option<&PathBuf>| {
        let options = Options {
            sidecar: sidecar.cloned(),
            mode: Mode::Full,
            against: against.cloned(),
            packers: engine::known_packers(),
            write_sums: false,
            threads: None,
            stop: None,
        };
        with_progress(&model.path, options, quiet)
    };
    let say = |report: &Report, copy: &str| {
        if !quiet || !report.bad.is_empty() {
            ui::note(format!("{copy}{}", render(report)));
        }
    };
    let first = check(model.sidecar.as_ref(), None)?;
    say(&first, "");
    first.check()?;
    for copy in &model.copies {
        let mut report = check(Some(copy), None)?;
        if report.is_ok() && report.sums == SumsState::Absent {
            report = check(Some(copy), Some(model.sidecar.as_ref().unwrap_or(&model.path)))?;
        }
        say(&report, &format!("{}: ", copy.display()));
        report.check().map_err(|error| match error {
            // Else the model's own file would be named, whichever copy it is.
            files::Error::Integrity { why, .. } => files::Error::Integrity { path: copy.clone(), why },
            error => error,
        })?;
    }
    Ok(())
}

/// With a bar, and until somebody interrupts.
fn with_progress(path: &Path, mut options: Options, quiet: bool) -> Result<Report, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    options.stop = Some(stop.clone());
    let waiting = interrupt::Generating::begin();
    let bar = Bar::bytes(quiet, 0, "");
    let report = verify(path, &options, &mut |progress| {
        stop.store(waiting.stop_flag().load(Ordering::Relaxed), Ordering::Relaxed);
        bar.set(progress.bytes_done, progress.bytes_total, format!("{} bad", progress.bad));
    });
    drop((bar, waiting));
    Ok(report?)
}

fn render(report: &Report) -> String {
    let mut lines: Vec<String> = report.bad.iter().map(|bad| format!("bad: {bad}")).collect();
    let read =
        format!("{} entries read, {} in {} files", report.slices, units::bytes(report.bytes), report.files);
    let sums = match &report.sums {
        SumsState::Checked(path) => format!("checked against {}", path.display()),
        SumsState::Written(path) => format!("sums written to {}", path.display()),
        SumsState::Absent => "no recorded sums".to_owned(),
    };
    let verdict = match report.bad.len() {
        0 if report.slices == 0 => "structure ok, bytes not checked".to_owned(),
        0 => "ok".to_owned(),
        n => format!("{n} bad"),
    };
    lines.push(format!("{verdict}: {read}, {sums}"));
    lines.join("\n")
}
