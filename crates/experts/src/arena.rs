//! Slot memory, as the bank sees it: a page-aligned stretch of bytes per slot that a drive can write into.
//!
//! Each backend brings its own. On the CPU the destination of a read *is* the slot. A GPU backend whose
//! memory the host cannot see hands out staging buffers as destinations, uploads in [`Arena::commit`], and
//! bounds the number of staging buffers by [`Arena::loading_max`]; the bank never has more slots than that
//! between `destination` and `commit`. The bank does not know which of the two it has.

use std::ops::Range;
use std::ptr::NonNull;

use crate::plan::{SizeClass, SlotId};

/// Where the bytes of one slot are to be written by a reader.
#[derive(Debug, Clone, Copy)]
pub struct Destination {
    /// First byte; aligned to [`crate::ALIGNMENT`].
    pub start: NonNull<u8>,
    /// Writable bytes from `start`: the slot size of the class.
    pub len: usize,
}

/// Memory for the slots of a bank, a region per size class.
///
/// # Safety
/// After [`Arena::allocate`], for every slot of the classes given:
/// * [`Arena::destination`] points at `slot_bytes` initialised bytes, aligned to [`crate::ALIGNMENT`], valid
///   for reads and writes from any thread. They stay so until the arena is dropped or, if the memory is a
///   staging buffer, until the slot's `commit` returns. They overlap the memory of no other slot that can be
///   loading at the time.
/// * The arena itself neither reads nor writes them between `destination` and `commit`, and never makes a
///   reference that covers them then. So [`Arena::host_bytes`] must be built from that one slot's memory
///   alone, not by slicing a reference to the whole region.
/// * [`Arena::regions`] keeps what it says.
pub unsafe trait Arena: Send + Sync {
    /// Allocates every slot of every class, and behind them its spares; called once. What is allocated is
    /// `Σ (slots + spares) · slot_bytes`, no less and no more.
    fn allocate(&mut self, classes: &[SizeClass]) -> crate::Result<()>;

    /// Where the next reads for this slot go. Called when the slot begins to load, so nothing computes on it.
    fn destination(&mut self, slot: SlotId) -> Destination;

    /// The bytes of the slot have arrived in `written` (relative to the start of the slot). An uploading
    /// arena records its copy here; it must be ordered before any later computation on the slot. An error
    /// here fails the request like a read error.
    fn commit(&mut self, slot: SlotId, written: Range<usize>) -> crate::Result<()> {
        let _ = (slot, written);
        Ok(())
    }

    /// The whole slot as the host sees it. Called only on slots that are ready.
    ///
    /// # Panics
    /// May panic where the memory is not visible to the host; such a backend uses [`crate::Bank::location`]
    /// instead.
    fn host_bytes(&self, slot: SlotId) -> &[u8];

    /// The memory that destinations of slots in use lie in (first byte, bytes), where it stays mapped to the same pages as long as the
    /// arena lives, up to the next [`Arena::release`]: a reader may pin it. An arena that does not know names none of it.
    fn regions(&self) -> Vec<(NonNull<u8>, usize)> {
        Vec::new()
    }

    /// The slot is out of use until its next `destination`: its memory may be given back to the system, if that keeps the promise of
    /// initialised bytes.
    fn release(&mut self, slot: SlotId) {
        let _ = slot;
    }

    /// The slot is in use again after [`Arena::release`].
    fn reclaim(&mut self, slot: SlotId) {
        let _ = slot;
    }

    /// How many slots may be loading at once. Only staging arenas need to bound it (at least 1).
    fn loading_max(&self) -> usize {
        usize::MAX
    }
}
