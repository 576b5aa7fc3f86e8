//! One bar on stderr while something long runs: only on a terminal, gone when it is done.

use std::io::IsTerminal;
use std::time::Duration;

use engine::PromptProgress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// Counts bytes. `hint` tells what an interruption would cost.
    pub(crate) fn bytes(quiet: bool, total: u64, hint: &str) -> Self {
        let template = format!(
            "{{msg}} [{{bar:28}}] {{binary_bytes}}/{{binary_total_bytes}} {{binary_bytes_per_sec}} eta {{eta}} {hint}"
        );
        Self::with_template(quiet, total, &template)
    }

    /// Counts things.
    pub(crate) fn count(quiet: bool, total: u64) -> Self {
        Self::with_template(quiet, total, "{msg} [{bar:28}] {pos}/{len} eta {eta}")
    }

    fn with_template(quiet: bool, total: u64, template: &str) -> Self {
        if quiet || !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
        let style = ProgressStyle::with_template(template).expect("a template of ours");
        bar.set_style(style.progress_chars("=> "));
        bar.enable_steady_tick(Duration::from_millis(500));
        Self(bar)
    }

    pub(crate) fn set(&self, done: u64, total: u64, message: impl Into<String>) {
        self.0.set_length(total);
        self.0.set_position(done);
        self.0.set_message(message.into());
    }
}

/// A prompt on its way, once it takes long enough to be noticed.
pub(crate) struct PromptBar {
    bar: Option<Bar>,
    quiet: bool,
}

impl PromptBar {
    /// Faster prompts show nothing.
    const AFTER: Duration = Duration::from_millis(500);

    pub(crate) fn new(quiet: bool) -> Self {
        Self { bar: None, quiet }
    }

    pub(crate) fn set(&mut self, progress: &PromptProgress) {
        let elapsed = Duration::from_nanos(progress.elapsed_ns);
        if elapsed < Self::AFTER {
            return;
        }
        let total = progress.tokens_total as u64;
        let done = progress.share() * progress.tokens_total as f64;
        let seconds = elapsed.as_secs_f64();
        let reads = match progress.bytes_read {
            0 => String::new(),
            bytes => format!(
                ", {:.2} GB/s, each expert for {:.1} tokens",
                bytes as f64 / 1e9 / seconds,
                progress.refs as f64 / progress.unique.max(1) as f64
            ),
        };
        let bar = self.bar.get_or_insert_with(|| {
            Bar::with_template(self.quiet, total, "prompt [{bar:28}] {pos}/{len} tokens eta {eta} {msg}")
        });
        bar.set(done as u64, total, format!("{:.1} tokens/s{reads}", done / seconds));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
