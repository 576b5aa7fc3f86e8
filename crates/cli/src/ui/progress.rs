//! One bar on stderr while something long runs: only on a terminal, gone when it is done.

use std::io::IsTerminal;
use std::time::Duration;

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

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
