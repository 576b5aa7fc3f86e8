//! What the tests of this crate share: slot memory, and small models whose every expert byte says whose it
//! is.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use files::{ExpertTensor, Family, FileIndex, GgmlType};
use slotbank_experts::policy::by_name;
use slotbank_experts::read::sim::{self, SimReader};
use slotbank_experts::{
    Arena, Bank, BankPlan, BankSize, Destination, LayerExperts, Origin, Priority, Read, Reader, Result,
    SizeClass, SlotId, Ticket,
};

pub(crate) const FAMILIES: [Family; 3] = [Family::Gate, Family::Up, Family::Down];

/// Start, layout, bytes of a slot.
type Region = (NonNull<u8>, Layout, usize);

/// Slot memory on the heap.
#[derive(Debug, Default)]
pub(crate) struct TestArena {
    regions: Vec<Region>,
    /// Slots out of use.
    released: std::collections::BTreeSet<SlotId>,
    pub(crate) loading_max: Option<usize>,
    /// Bytes allocated, for whoever kept a clone.
    pub(crate) allocated: Arc<AtomicU64>,
}

// SAFETY: the regions are plain memory that the arena owns; who may touch which slot when is the bank's
// contract.
unsafe impl Send for TestArena {}
// SAFETY: as above; shared access reads ready slots only.
unsafe impl Sync for TestArena {}

impl TestArena {
    fn start(&self, slot: SlotId) -> (NonNull<u8>, usize) {
        let (base, layout, slot_bytes) = self.regions[slot.class as usize];
        let offset = slot.index as usize * slot_bytes;
        assert!(offset + slot_bytes <= layout.size());
        // SAFETY: checked against the size of the region just above.
        (unsafe { base.add(offset) }, slot_bytes)
    }
}

// SAFETY: regions are zeroed at allocation, aligned to 4 KiB and live as long as the arena; slots are
// disjoint multiples of `slot_bytes`; `host_bytes` builds its slice from the slot's own memory.
unsafe impl Arena for TestArena {
    fn allocate(&mut self, classes: &[SizeClass]) -> Result<()> {
        for class in classes {
            let bytes = class.bytes() as usize;
            let layout = Layout::from_size_align(bytes, 4096).unwrap();
            // SAFETY: no class of a plan is empty, so the layout has a size.
            let base = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap();
            self.allocated.fetch_add(bytes as u64, Ordering::Relaxed);
            self.regions.push((base, layout, class.slot_bytes as usize));
        }
        Ok(())
    }

    fn destination(&mut self, slot: SlotId) -> Destination {
        let (start, len) = self.start(slot);
        Destination { start, len }
    }

    fn host_bytes(&self, slot: SlotId) -> &[u8] {
        let (start, len) = self.start(slot);
        // SAFETY: the slot is ready, so nobody writes to it while the bank is borrowed.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), len) }
    }

    /// Slot by slot, without those that were given back.
    fn regions(&self) -> Vec<(NonNull<u8>, usize)> {
        let slots = self.regions.iter().enumerate().flat_map(|(class, &(_, layout, slot_bytes))| {
            let class = class as u16;
            (0..(layout.size() / slot_bytes) as u32).map(move |index| SlotId { class, index })
        });
        slots.filter(|slot| !self.released.contains(slot)).map(|slot| self.start(slot)).collect()
    }

    /// Pages that a reader has pinned are no longer those of the slot after this.
    fn release(&mut self, slot: SlotId) {
        self.released.insert(slot);
        #[cfg(target_os = "linux")]
        {
            let (start, len) = self.start(slot);
            let give_back = rustix::mm::Advice::LinuxDontNeed;
            // SAFETY: whole pages of memory of ours that nobody uses until the slot's next `destination`; they read as zeros then.
            unsafe { rustix::mm::madvise(start.as_ptr().cast(), len, give_back) }.unwrap();
        }
    }

    fn reclaim(&mut self, slot: SlotId) {
        assert!(self.released.remove(&slot), "a slot in use comes back: {slot:?}");
    }

    fn loading_max(&self) -> usize {
        self.loading_max.unwrap_or(usize::MAX)
    }
}

impl Drop for TestArena {
    fn drop(&mut self) {
        for &(base, layout, _) in &self.regions {
            // SAFETY: allocated with this layout in `allocate`.
            unsafe { dealloc(base.as_ptr(), layout) };
        }
    }
}

/// Where the experts of a toy lie in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Tensor after tensor, starting at an odd place, as in a GGUF.
    Whole,
    /// Gate, up and down of an expert side by side, each record padded to 4 KiB.
    Record,
    /// The same, but down lies in a file of its own.
    Split,
}

/// A model in miniature.
#[derive(Debug, Clone)]
pub(crate) struct Toy {
    pub(crate) layers: Vec<LayerExperts>,
    pub(crate) files: Vec<Vec<u8>>,
}

impl Toy {
    /// Layers `3, 4, 5, …`; layer i has gate, up and down of `sizes[i]` bytes.
    pub(crate) fn new(n_expert: u32, sizes: &[[u64; 3]], layout: Placement) -> Toy {
        let mut toy = Toy { layers: Vec::new(), files: vec![vec![0xEE; 4096 + 32], vec![0xEE; 96]] };
        for (layer, bytes) in (3..).zip(sizes) {
            let mut tensors = Vec::new();
            let record: u64 = bytes.iter().sum();
            let record_at = toy.files[0].len().next_multiple_of(4096) as u64;
            let mut within = 0;
            for (&family, &expert_bytes) in FAMILIES.iter().zip(bytes) {
                let alone =
                    layout == Placement::Whole || (layout == Placement::Split && family == Family::Down);
                let file = usize::from(layout == Placement::Split && family == Family::Down);
                let (offset, stride) = match alone {
                    true => ((toy.files[file].len() as u64).next_multiple_of(32), expert_bytes),
                    false => (record_at + within, record.next_multiple_of(4096)),
                };
                within += expert_bytes;
                let name = format!("blk.{layer}.{}", family.name());
                let shape = [expert_bytes, 1, u64::from(n_expert)];
                let (ty, file) = (GgmlType::Q8_0, FileIndex(file as u32));
                tensors.push(ExpertTensor {
                    layer,
                    family,
                    name,
                    ty,
                    form: None,
                    shape,
                    file,
                    offset,
                    stride,
                    expert_bytes,
                });
                for expert in 0..n_expert {
                    let at = (offset + stride * u64::from(expert)) as usize;
                    let content = &mut toy.files[file.0 as usize];
                    content.resize(content.len().max(at + expert_bytes as usize), 0xEE);
                    content[at..at + expert_bytes as usize].copy_from_slice(&pattern(
                        layer,
                        expert,
                        family,
                        expert_bytes,
                    ));
                }
            }
            toy.layers.push(LayerExperts { layer, n_expert, tensors });
        }
        toy
    }

    pub(crate) fn plan(&self, size: BankSize, top_k: u32) -> Result<BankPlan> {
        BankPlan::new(size, 0, top_k, &self.layers)
    }

    pub(crate) fn names(&self) -> Vec<PathBuf> {
        (0..self.files.len()).map(|i| PathBuf::from(format!("toy-{i}.bin"))).collect()
    }

    pub(crate) fn sim(&self, options: sim::Options) -> Box<dyn Reader> {
        let sources = self.files.iter().map(|content| sim::Source::Memory(content.as_slice().into()));
        Box::new(SimReader::new(sources.collect(), options))
    }

    pub(crate) fn bank(&self, plan: BankPlan, reader: Box<dyn Reader>) -> Bank {
        self.bank_with(plan, reader, "lru")
    }

    pub(crate) fn bank_with(&self, plan: BankPlan, reader: Box<dyn Reader>, policy: &str) -> Bank {
        let policy = by_name(policy, &plan).unwrap();
        Bank::new(plan, &self.names(), reader, Box::new(TestArena::default()), policy).unwrap()
    }

    /// The usual bank over the usual drive: delays, reordering and short reads.
    pub(crate) fn rough(&self, size: BankSize, top_k: u32, seed: u64) -> Bank {
        self.bank(self.plan(size, top_k).unwrap(), self.sim(rough(seed)))
    }
}

/// Memory for reads outside any bank.
pub(crate) struct Window(NonNull<u8>, Layout);

impl Window {
    pub(crate) fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes, 4096).unwrap();
        // SAFETY: the layout has a size.
        Window(NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap(), layout)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the tests look only after the completions.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), self.1.size()) }
    }

    /// Only between reads.
    pub(crate) fn clear(&self) {
        // SAFETY: the memory is this long, and nobody reads or writes it now.
        unsafe { self.0.write_bytes(0, self.1.size()) };
    }

    pub(crate) fn region(&self, bytes: usize) -> (NonNull<u8>, usize) {
        (self.0, bytes)
    }

    pub(crate) fn read(&self, ticket: u64, offset: u64, len: u64, priority: Priority) -> Read {
        let (ticket, file, span) = (Ticket(ticket), FileIndex(0), self.1.size() as u64);
        let origin = Origin { layer: 0, expert: 0, part: 0 };
        Read { ticket, file, offset, len, window: self.0, span, priority, origin }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`; readers are gone or idle by then.
        unsafe { dealloc(self.0.as_ptr(), self.1) };
    }
}

/// A drive that delays, reorders and returns short.
pub(crate) fn rough(seed: u64) -> sim::Options {
    let ms = std::time::Duration::from_millis;
    sim::Options {
        seed,
        latency: ms(1),
        jitter: ms(5),
        bandwidth: Some(1 << 26),
        short_reads: true,
        ..Default::default()
    }
}

/// The bytes of one family of one expert, unlike those of any other.
pub(crate) fn pattern(layer: u32, expert: u32, family: Family, len: u64) -> Vec<u8> {
    let who = (u64::from(layer) << 40) | (u64::from(expert) << 8) | family as u64;
    let key = (who + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..len as usize).map(|i| key[i % 8] ^ (i / 8) as u8).collect()
}

/// Panics unless the slot holds the expert's own bytes in every family.
pub(crate) fn assert_content(bank: &Bank, layer: u32, expert: u32, slot: SlotId, sizes: [u64; 3]) {
    for (family, len) in FAMILIES.into_iter().zip(sizes) {
        let wanted = pattern(layer, expert, family, len);
        assert!(
            bank.weights(slot, family) == wanted,
            "layer {layer} expert {expert} {family:?}: foreign bytes"
        );
    }
}

/// Panics unless both maps are inverse and no slot serves two experts.
pub(crate) fn assert_maps(bank: &Bank) {
    let plan = bank.plan();
    let mut resident = 0;
    for (class, size) in (0u16..).zip(plan.classes()) {
        for index in 0..size.slots {
            let slot = SlotId { class, index };
            if let Some(key) = bank.resident(slot) {
                resident += 1;
                assert_eq!(bank.slot_of(key.layer, key.expert), Some(slot));
            }
        }
    }
    let layers = plan.layers().iter();
    let found = layers.flat_map(|l| (0..l.n_expert).filter_map(|e| bank.slot_of(l.layer, e))).count();
    assert_eq!(found, resident);
}

/// Runs a request to its end and checks every wave; the error if a read failed.
pub(crate) fn serve(
    bank: &mut Bank,
    layer: u32,
    ids: &[u32],
    k: u32,
    sizes: [u64; 3],
) -> Result<Vec<Vec<u32>>> {
    let mut waves = Vec::new();
    let mut left: std::collections::BTreeSet<u32> = ids.iter().copied().collect();
    bank.request(layer, ids, k)?;
    while bank.next_wave()? {
        let wave = bank.wave().to_vec();
        assert!(!wave.is_empty());
        let slots: std::collections::BTreeSet<_> = wave.iter().map(|resident| resident.slot).collect();
        assert_eq!(slots.len(), wave.len(), "two experts of a wave share a slot");
        for resident in &wave {
            assert!(
                left.remove(&resident.expert),
                "expert {} comes twice or was not asked for",
                resident.expert
            );
            assert_content(bank, layer, resident.expert, resident.slot, sizes);
            assert_eq!(bank.slot_of(layer, resident.expert), Some(resident.slot));
        }
        waves.push(wave.iter().map(|resident| resident.expert).collect());
        bank.finish_wave();
    }
    assert!(left.is_empty(), "experts {left:?} never came");
    Ok(waves)
}
