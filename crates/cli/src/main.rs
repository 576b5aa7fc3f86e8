//! The `slotbank` binary: parse, dispatch, and turn every end — good, bad, interrupted, crashed — into its exit code.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod demo;
mod folders;
mod forecast;
mod generation;
mod interrupt;
mod likelihood;
mod machine;
mod session;
mod ui;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use commands::{
    Cli, Command, bench, chat, doctor, eval, extract, inspect, kl, logits, perplexity, plan, run, trace,
    verify,
};
use ui::error::{Failure, Report};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to stdout with code 0, misuse to stderr with code 2. A closed pipe is nobody's fault.
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    report_panics();
    match std::panic::catch_unwind(AssertUnwindSafe(|| dispatch(cli.command))) {
        Ok(Ok(code)) => code,
        Ok(Err(Failure::BrokenPipe)) => ExitCode::SUCCESS,
        Ok(Err(Failure::Report(report))) => {
            report.print();
            ExitCode::from(report.class.exit_code())
        }
        Err(_) => ExitCode::from(files::Class::Internal.exit_code()),
    }
}

fn dispatch(command: Command) -> Result<ExitCode, Failure> {
    interrupt::install();
    match command {
        Command::Run(args) => run::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Extract(args) => extract::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Perplexity(args) => perplexity::run(&args),
        Command::Kl(args) => kl::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Trace(args) => trace::run(&args),
    }
}

/// A panic is a bug of ours: one short report, whichever thread it happens on, and no backtrace. A panic that a
/// worker pool hands on to its caller is reported once. What a chat template makes its engine do becomes an error instead.
fn report_panics() {
    static REPORTED: AtomicBool = AtomicBool::new(false);
    std::panic::set_hook(Box::new(|info| {
        if text::template::is_rendering() || REPORTED.swap(true, Ordering::Relaxed) {
            return;
        }
        let why = info.payload_as_str().unwrap_or("no message");
        let mut report = Report::new(files::Class::Internal, "internal error").why(why);
        if let Some(at) = info.location() {
            report = report.place(format!("{}:{}", at.file(), at.line()));
        }
        let version = env!("CARGO_PKG_VERSION");
        report
            .hint(format!(
                "this is a bug in slotbank {version}: please report it with the command that you ran"
            ))
            .print();
    }));
}
