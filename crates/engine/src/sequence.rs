//! One conversation's place in the cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A sequence: its cached positions belong to it until it is dropped.
#[derive(Debug)]
pub struct Sequence {
    pub(crate) slot: usize,
    pub(crate) len: usize,
    busy: Arc<AtomicBool>,
}

impl Sequence {
    /// Takes the cache `slot` when it is free.
    pub(crate) fn claim(slot: usize, busy: &Arc<AtomicBool>) -> Option<Self> {
        let free = busy.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire).is_ok();
        free.then(|| Self { slot, len: 0, busy: Arc::clone(busy) })
    }

    /// Cached positions.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets positions from `len` on; what remains is continued exactly as if they had never been there.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.busy.store(false, Ordering::Release);
    }
}
