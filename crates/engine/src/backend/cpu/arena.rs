//! Slots in host memory: the slot is the buffer that the drive writes into.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use experts::{Arena, Destination, SizeClass, SlotId};
use kernels::AlignedBuf;

/// One page-aligned region per size class.
pub struct HostArena {
    classes: Vec<Region>,
    allocated_bytes: Arc<AtomicU64>,
}

struct Region {
    /// Owns the memory; after construction only `start` is used, so that no reference covers a slot being written.
    _memory: AlignedBuf,
    start: NonNull<u8>,
    slot_bytes: usize,
    slots: usize,
    /// Slots whose memory was given back.
    released: Vec<bool>,
}

impl Region {
    /// Stretches of slots in use: (first byte, bytes).
    fn stretches(&self) -> impl Iterator<Item = (NonNull<u8>, usize)> {
        let mut first = 0;
        self.released.chunk_by(|a, b| a == b).filter_map(move |run| {
            let start = first;
            first += run.len();
            // SAFETY: a slot of the region begins there.
            let at = unsafe { self.start.add(start * self.slot_bytes) };
            (!run[0]).then_some((at, run.len() * self.slot_bytes))
        })
    }
}

// SAFETY: `start` points into memory that the region owns and that does not move; who may read or write which slot,
// and when, is the bank's contract (see `Arena`).
unsafe impl Send for Region {}
// SAFETY: as above; `&Region` gives out only addresses and slots that the bank says are ready.
unsafe impl Sync for Region {}

impl HostArena {
    /// Nothing allocated yet; `allocated_bytes` is told what is.
    pub fn new(allocated_bytes: Arc<AtomicU64>) -> Self {
        Self { classes: Vec::new(), allocated_bytes }
    }

    fn slot(&self, slot: SlotId) -> (NonNull<u8>, usize) {
        let region = &self.classes[slot.class as usize];
        assert!((slot.index as usize) < region.slots, "slot {} of {}", slot.index, region.slots);
        // SAFETY: the offset is inside the region's allocation by the assertion.
        let start = unsafe { region.start.add(slot.index as usize * region.slot_bytes) };
        (start, region.slot_bytes)
    }
}

// SAFETY: regions are allocated once, page-aligned and zeroed; slots are disjoint multiples of `slot_bytes` (a multiple
// of the alignment); once they are allocated nothing here touches a slot's bytes except `host_bytes`, for that slot alone.
unsafe impl Arena for HostArena {
    fn allocate(&mut self, classes: &[SizeClass]) -> experts::Result<()> {
        for class in classes {
            let (slot_bytes, slots) = (class.slot_bytes as usize, (class.slots + class.spares) as usize);
            let mut memory = AlignedBuf::zeroed(slot_bytes * slots);
            // Else the first read into each slot waits until the system has cleared its pages, on the cores that compute; and memory
            // that is not there is better missed now.
            memory.touch();
            self.allocated_bytes.fetch_add(memory.len() as u64, Ordering::Relaxed);
            let start = NonNull::new(memory.as_mut_ptr()).expect("an allocation is not null");
            let released = vec![false; slots];
            self.classes.push(Region { _memory: memory, start, slot_bytes, slots, released });
        }
        Ok(())
    }

    fn destination(&mut self, slot: SlotId) -> Destination {
        let (start, len) = self.slot(slot);
        Destination { start, len }
    }

    fn release(&mut self, slot: SlotId) {
        self.classes[slot.class as usize].released[slot.index as usize] = true;
        #[cfg(target_os = "linux")]
        {
            let (start, len) = self.slot(slot);
            let give_back = rustix::mm::Advice::LinuxDontNeed;
            // SAFETY: whole pages of private memory that nobody uses until the slot's next `destination`; they read as zeros from now on,
            // which are initialised bytes. A refusal only means that the memory stays taken.
            let _ = unsafe { rustix::mm::madvise(start.as_ptr().cast(), len, give_back) };
        }
    }

    fn reclaim(&mut self, slot: SlotId) {
        self.classes[slot.class as usize].released[slot.index as usize] = false;
    }

    fn host_bytes(&self, slot: SlotId) -> &[u8] {
        let (start, len) = self.slot(slot);
        // SAFETY: the bank calls this only for slots that are ready: initialised, and written by nobody meanwhile.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), len) }
    }

    fn regions(&self) -> Vec<(NonNull<u8>, usize)> {
        self.classes.iter().flat_map(Region::stretches).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_the_stretches_in_use() {
        let mut arena = HostArena::new(Arc::default());
        let class = |slot_bytes, slots, spares| SizeClass { slot_bytes, slots, spares };
        arena.allocate(&[class(4096, 5, 1), class(8192, 2, 0)]).unwrap();
        let starts: Vec<usize> = arena.classes.iter().map(|class| class.start.as_ptr() as usize).collect();
        let regions = |arena: &HostArena| -> Vec<(usize, usize, usize)> {
            let place = |(at, bytes): (NonNull<u8>, usize)| {
                let at = at.as_ptr() as usize;
                let class = usize::from((starts[1]..starts[1] + 2 * 8192).contains(&at));
                (class, at - starts[class], bytes)
            };
            arena.regions().into_iter().map(place).collect()
        };
        assert_eq!(regions(&arena), [(0, 0, 6 * 4096), (1, 0, 2 * 8192)]);
        for (class, index) in [(0, 1), (0, 2), (0, 4), (1, 0), (1, 1)] {
            arena.release(SlotId { class, index });
        }
        assert_eq!(regions(&arena), [(0, 0, 4096), (0, 3 * 4096, 4096), (0, 5 * 4096, 4096)]);
        arena.reclaim(SlotId { class: 0, index: 4 });
        arena.reclaim(SlotId { class: 1, index: 1 });
        assert_eq!(regions(&arena), [(0, 0, 4096), (0, 3 * 4096, 3 * 4096), (1, 8192, 8192)]);
    }
}
