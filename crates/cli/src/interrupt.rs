//! Ctrl-C. While tokens are being generated the first one asks the engine to stop and the second leaves at once; at any
//! other time (loading, copying) the first one leaves. Every file that slotbank writes appears by a rename or can be
//! resumed, so leaving at once is safe.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);
static GENERATING: AtomicBool = AtomicBool::new(false);

/// Once, before anything slow starts.
pub(crate) fn install() {
    // Failing means that another handler is there already; the default action (leave) is then still sensible.
    let _ = ctrlc::set_handler(|| {
        let asked_before = STOP.swap(true, Ordering::SeqCst);
        if asked_before || !GENERATING.load(Ordering::SeqCst) {
            process::exit(i32::from(files::Class::Interrupted.exit_code()));
        }
    });
}

/// While this lives, Ctrl-C stops the generation instead of the process.
pub(crate) struct Generating;

impl Generating {
    pub(crate) fn begin() -> Self {
        STOP.store(false, Ordering::SeqCst);
        GENERATING.store(true, Ordering::SeqCst);
        Self
    }

    /// Handed to the engine; also raised by us when stdout is gone.
    pub(crate) fn stop_flag(&self) -> &'static AtomicBool {
        &STOP
    }
}

impl Drop for Generating {
    fn drop(&mut self) {
        GENERATING.store(false, Ordering::SeqCst);
    }
}
