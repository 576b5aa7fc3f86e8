//! Who is in which slot: the bookkeeping of the bank without any bytes.
//!
//! The table resolves a request completely, once, before anything is read. That makes residency a function of
//! the order of the requests alone: what is evicted, and so every later hit, depends neither on how fast
//! reads arrive nor on who computes when. A replay drives this same code.
//!
//! Resolution has two phases. First every expert of the request that is resident gets its lease; only then
//! are slots sought for the others, so no expert of a request can lose its slot to another one of it. When no
//! slot can be had for a miss, it queues behind the earliest entry of the same request that has no successor
//! yet: it takes over that entry's slot once its lease has dropped. Such successions are how a request is
//! computed in groups.
//!
//! A request of more experts than the layer's share of the slots, as prompts have them, is *wide*. It passes through its share and a
//! small ring beside it, the least used experts first, so that the most used ones of every layer are what a prompt leaves behind, and
//! no layer's prompt empties another's slots.

use files::Family;

use crate::plan::{BankPlan, SlotId};
use crate::policy::{ExpertKey, Policy};
use crate::stats::{Counters, Stats};
use crate::{Error, Result};

const NONE: u32 = u32::MAX;
/// Hits since an expert was read at which it is packed. Packing costs what three to four hits of the packed form save (`bench kernels
/// --ablate`); who packs at about as many hits has spent about twice the least that was possible at most, whenever the hits end.
const PACKING_HITS: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Empty,
    /// Promised to an expert whose bytes are not complete. No map leads here.
    Loading,
    Ready,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    state: State,
    /// Index into the plan's layers, not a block index.
    layer: u32,
    expert: u32,
    /// Leases.
    pins: u32,
    /// The number of the slot in its layer, for traces.
    local: u32,
    /// Hits since the expert was read.
    hits: u32,
    /// The expert was rewritten in packed form.
    packed: bool,
}

const BLANK: Slot =
    Slot { state: State::Empty, layer: NONE, expert: NONE, pins: 0, local: NONE, hits: 0, packed: false };

#[derive(Debug)]
struct Layer {
    /// Flat slot index of every ready expert, or `NONE`.
    expert_slot: Vec<u32>,
    /// Slots that are this layer's, loading ones included.
    held: u32,
    /// Slot numbers in use, a bit each.
    locals: Vec<u64>,
}

/// Where an entry of a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Behind another entry of the request for its slot.
    Queued,
    /// Has its slot; its bytes are to be read.
    Loading,
    /// Has a lease on complete bytes.
    Leased,
    /// The lease has dropped, or the read has failed.
    Over,
}

/// One unique expert of the request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) expert: u32,
    pub(crate) slot: SlotId,
    /// Place of the expert in the order in which the request is worked through: by first appearance, or in a wide one the
    /// experts that fewest tokens have chosen first.
    pub(crate) rank: u32,
    pub(crate) phase: Phase,
    local: u32,
    successor: u32,
}

/// The request that is being served, and the scratch that its resolution needs.
#[derive(Debug)]
struct Request {
    /// Index into the plan's layers.
    layer: usize,
    /// Hits, then misses, each in order of first appearance.
    entries: Vec<Entry>,
    hits: usize,
    /// In the order of ranks.
    uniques: Vec<u32>,
    wide: bool,
    /// Entries before these, hits and misses, have a successor.
    succeeded: [usize; 2],
    epoch: u32,
    seen: Vec<u32>,
    /// By expert: how often the request names it, and below that when it first did.
    uses: Vec<u64>,
    entry_of: Vec<u32>,
}

pub(crate) struct Table {
    pub(crate) plan: BankPlan,
    pub(crate) stats: Stats,
    policy: Box<dyn Policy>,
    slots: Vec<Slot>,
    /// Flat index of the first slot of each class.
    first: Vec<u32>,
    /// Empty slots of each class, the next one last.
    empty: Vec<Vec<u32>>,
    /// Slots of each class that are out of use for now.
    retired: Vec<Vec<u32>>,
    layers: Vec<Layer>,
    /// From block index to index into the plan's layers.
    layer_of: Vec<u32>,
    request: Request,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table")
            .field("plan", &self.plan)
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}

impl Table {
    pub(crate) fn new(plan: BankPlan, policy: Box<dyn Policy>) -> Self {
        let mut first = Vec::with_capacity(plan.classes().len());
        let mut total = 0;
        for class in plan.classes() {
            first.push(total);
            total += class.slots;
        }
        let layers = plan.layers().iter().map(|layer| Layer {
            expert_slot: vec![NONE; layer.n_expert as usize],
            held: 0,
            locals: vec![0; layer.n_expert.div_ceil(64) as usize],
        });
        let blocks = plan.layers().last().map_or(0, |layer| layer.layer as usize + 1);
        let mut layer_of = vec![NONE; blocks];
        plan.layers().iter().zip(0..).for_each(|(layer, i)| layer_of[layer.layer as usize] = i);
        let widest = plan.experts_max();
        let request = Request {
            layer: 0,
            entries: Vec::with_capacity(widest),
            hits: 0,
            uniques: Vec::with_capacity(widest),
            wide: false,
            succeeded: [0; 2],
            epoch: 0,
            seen: vec![0; widest],
            uses: vec![0; widest],
            entry_of: vec![0; widest],
        };
        Table {
            stats: Stats::new(plan.layers().iter().map(|layer| layer.layer)),
            policy,
            slots: vec![BLANK; total as usize],
            first,
            empty: plan.classes().iter().map(|class| (0..class.slots).rev().collect()).collect(),
            retired: plan.classes().iter().map(|class| Vec::with_capacity(class.slots as usize)).collect(),
            layers: layers.collect(),
            layer_of,
            request,
            plan,
        }
    }

    /// Index into the plan's layers.
    pub(crate) fn layer_index(&self, layer: u32) -> Result<usize> {
        match self.layer_of.get(layer as usize) {
            Some(&index) if index != NONE => Ok(index as usize),
            _ => Err(Error::NoSuchLayer { layer }),
        }
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.request.entries
    }

    /// How many of the entries, from the front, are hits.
    pub(crate) fn hits(&self) -> usize {
        self.request.hits
    }

    /// Whether experts of the request queue for slots of others.
    pub(crate) fn has_queue(&self) -> bool {
        self.request.succeeded != [0, self.request.hits]
    }

    /// Index into the plan's layers of the request.
    pub(crate) fn layer(&self) -> usize {
        self.request.layer
    }

    /// Counters of the layer of the request.
    pub(crate) fn counters(&mut self) -> &mut Counters {
        &mut self.stats.layers[self.request.layer].counters
    }

    /// Decides where every expert of the request will be. Leases all hits; promises slots to the misses,
    /// which are `Loading` now or `Queued`. Changes nothing when it returns an error.
    pub(crate) fn resolve(&mut self, layer: usize, ids: &[u32]) -> Result<()> {
        let n_expert = self.plan.layers()[layer].n_expert;
        if let Some(&expert) = ids.iter().find(|&&id| id >= n_expert) {
            return Err(Error::NoSuchExpert { layer: self.plan.layers()[layer].layer, expert, n_expert });
        }
        self.request.begin(layer, ids, self.plan.layers()[layer].share);
        self.lease_hits();
        for rank in 0..self.request.uniques.len() as u32 {
            let expert = self.request.uniques[rank as usize];
            if self.layers[layer].expert_slot[expert as usize] != NONE {
                continue;
            }
            let index = self.request.entries.len() as u32;
            let (slot, phase) = match self.place(layer, expert) {
                Some(slot) => (slot, Phase::Loading),
                None => (self.request.succeed(index), Phase::Queued),
            };
            let local = self.slots[self.flat(slot)].local;
            self.request.entry_of[expert as usize] = index;
            self.request.entries.push(Entry { expert, slot, rank, phase, local, successor: NONE });
        }
        self.touch_all();
        Ok(())
    }

    /// Phase one: nobody in this request can lose its slot to anybody else in it.
    fn lease_hits(&mut self) {
        let layer = self.request.layer;
        for rank in 0..self.request.uniques.len() {
            let expert = self.request.uniques[rank];
            let flat = self.layers[layer].expert_slot[expert as usize];
            if flat == NONE {
                continue;
            }
            let held = &mut self.slots[flat as usize];
            held.pins += 1;
            held.hits = held.hits.saturating_add(1);
            self.stats.layers[layer].counters.packed_hits += u64::from(held.packed);
            let (local, slot) = (held.local, self.slot_id(flat, self.plan.layers()[layer].class));
            self.request.entry_of[expert as usize] = self.request.entries.len() as u32;
            let (rank, phase) = (rank as u32, Phase::Leased);
            self.request.entries.push(Entry { expert, slot, rank, phase, local, successor: NONE });
        }
        self.request.hits = self.request.entries.len();
        self.request.succeeded[1] = self.request.hits;
    }

    /// The order of use is that of the ranks, whatever arrives first.
    fn touch_all(&mut self) {
        let Request { layer, uniques, entry_of, entries, .. } = &self.request;
        let layer = self.plan.layers()[*layer].layer;
        for &expert in uniques {
            let entry = &entries[entry_of[expert as usize] as usize];
            self.policy.touch(entry.slot, ExpertKey { layer, expert });
        }
    }

    pub(crate) fn count_request(&mut self, refs: usize) {
        let (unique, hits) = (self.request.entries.len() as u64, self.request.hits as u64);
        let counters = self.counters();
        counters.calls += 1;
        counters.refs += refs as u64;
        counters.unique += unique;
        counters.hits += hits;
        counters.misses += unique - hits;
    }

    /// Phase two: a slot for a miss. An empty one if the layer may grow, else the policy's victim among the
    /// ready slots without a lease that are the layer's own or that another layer holds beyond its floor; for
    /// a wide request, beyond its share.
    fn place(&mut self, layer: usize, expert: u32) -> Option<SlotId> {
        let class = self.plan.layers()[layer].class;
        let wide = self.request.wide;
        let planned = &self.plan.layers()[layer];
        let most = if wide { planned.slots_wide } else { planned.slots_max };
        let may_grow = self.layers[layer].held < most;
        if may_grow && let Some(index) = self.empty[class as usize].pop() {
            let slot = SlotId { class, index };
            self.counters().cold += 1;
            self.join(slot, layer);
            self.promise(slot, expert);
            return Some(slot);
        }
        let (slots, layers, plan, first) = (&self.slots, &self.layers, &self.plan, &self.first);
        let eligible = |slot: SlotId| {
            let held = &slots[(first[slot.class as usize] + slot.index) as usize];
            if held.state != State::Ready || held.pins > 0 {
                return false;
            }
            let other = held.layer as usize;
            let kept = if wide { plan.layers()[other].share } else { plan.layers()[other].slots_min };
            other == layer || (may_grow && layers[other].held > kept)
        };
        let slot = self.policy.victim(class, &eligible)?;
        assert!(slot.class == class && eligible(slot), "the policy chose a slot that is not eligible");
        self.counters().evictions += 1;
        self.unpublish(slot);
        if self.slots[self.flat(slot)].layer as usize != layer {
            self.leave(slot);
            self.join(slot, layer);
        }
        self.promise(slot, expert);
        Some(slot)
    }

    /// All bytes of the entry are in its slot: from now on the expert is found there.
    pub(crate) fn publish(&mut self, index: usize) {
        let Entry { expert, slot, phase, .. } = self.request.entries[index];
        assert_eq!(phase, Phase::Loading);
        let (layer, flat) = (self.request.layer, self.flat(slot));
        let held = &mut self.slots[flat];
        debug_assert!(held.state == State::Loading && held.expert == expert && held.layer as usize == layer);
        held.state = State::Ready;
        self.layers[layer].expert_slot[expert as usize] = flat as u32;
        self.request.entries[index].phase = Phase::Leased;
        let planned = &self.plan.layers()[layer];
        let (bytes, reads) = (planned.expert_bytes, planned.parts.len() as u64);
        self.counters().bytes_read += bytes;
        self.counters().reads += reads;
    }

    /// Drops the lease of an entry. If another entry queues for the slot it gets it, and its index is
    /// returned: its bytes can be read now.
    pub(crate) fn release(&mut self, index: usize) -> Option<usize> {
        let Entry { slot, phase, successor, .. } = self.request.entries[index];
        assert_eq!(phase, Phase::Leased);
        self.request.entries[index].phase = Phase::Over;
        let flat = self.flat(slot);
        self.slots[flat].pins -= 1;
        if successor == NONE {
            return None;
        }
        let next = &mut self.request.entries[successor as usize];
        next.phase = Phase::Loading;
        let expert = next.expert;
        self.unpublish(slot);
        self.promise(slot, expert);
        self.counters().evictions += 1;
        Some(successor as usize)
    }

    /// Ends the request wherever it stands: slots whose bytes are incomplete become empty, every lease drops.
    /// No read may be outstanding.
    pub(crate) fn end(&mut self) {
        for index in 0..self.request.entries.len() {
            let Entry { slot, phase, .. } = self.request.entries[index];
            let flat = self.flat(slot);
            match phase {
                Phase::Leased => self.slots[flat].pins -= 1,
                Phase::Loading => {
                    self.policy.forget(slot);
                    self.leave(slot);
                    self.slots[flat] = BLANK;
                    self.empty[slot.class as usize].push(slot.index);
                }
                Phase::Queued | Phase::Over => {}
            }
            self.request.entries[index].phase = Phase::Over;
        }
    }

    /// Serves the resolved request in no time, for replays: every read succeeds, every lease drops.
    pub(crate) fn settle(&mut self) {
        for index in 0..self.request.entries.len() {
            if self.request.entries[index].phase == Phase::Loading {
                self.publish(index);
            }
            // A successor stands behind its predecessor in the list, so it is served when its turn comes.
            self.release(index);
        }
    }

    /// Whether the latest request is one of this layer and names the expert.
    pub(crate) fn wants(&self, layer: usize, expert: u32) -> bool {
        self.request.layer == layer && self.request.names(expert)
    }

    /// The slot number that serves an id of the request.
    pub(crate) fn local_of(&self, expert: u32) -> u32 {
        self.request.entries[self.request.entry_of[expert as usize] as usize].local
    }

    /// Block index and expert of a ready slot.
    pub(crate) fn resident(&self, slot: SlotId) -> Option<ExpertKey> {
        let held = &self.slots[self.flat(slot)];
        let layer = || self.plan.layers()[held.layer as usize].layer;
        (held.state == State::Ready).then(|| ExpertKey { layer: layer(), expert: held.expert })
    }

    /// The slot of an expert whose bytes are complete.
    pub(crate) fn slot_of(&self, layer: usize, expert: u32) -> Option<SlotId> {
        let flat = *self.layers[layer].expert_slot.get(expert as usize)?;
        (flat != NONE).then(|| self.slot_id(flat, self.plan.layers()[layer].class))
    }

    /// Where the bytes of a family lie in a ready slot: offset and length.
    pub(crate) fn location(&self, slot: SlotId, family: Family) -> Option<(u64, u64)> {
        let held = &self.slots[self.flat(slot)];
        if held.state != State::Ready {
            return None;
        }
        let planned = &self.plan.layers()[held.layer as usize];
        if held.packed {
            return planned.packed_piece(family).map(|piece| (piece.offset, piece.len));
        }
        let (part, piece) = planned.piece(family)?;
        Some((part.landing(held.expert) + piece.offset, piece.len))
    }

    /// Whether the expert of a slot is in packed form.
    pub(crate) fn is_packed(&self, slot: SlotId) -> bool {
        self.slots[self.flat(slot)].packed
    }

    /// Whether the expert of a ready slot has been hit [`PACKING_HITS`] times since it was read, and could be packed but is not.
    pub(crate) fn wants_packing(&self, slot: SlotId) -> bool {
        let held = &self.slots[self.flat(slot)];
        held.state == State::Ready
            && !held.packed
            && held.hits >= PACKING_HITS
            && self.plan.layers()[held.layer as usize].packed_bytes > 0
    }

    /// Where a family of the expert of a ready slot lies once it is packed.
    pub(crate) fn packed_location(&self, slot: SlotId, family: Family) -> Option<(u64, u64)> {
        let held = &self.slots[self.flat(slot)];
        let piece = self.plan.layers().get(held.layer as usize)?.packed_piece(family)?;
        (held.state == State::Ready).then_some((piece.offset, piece.len))
    }

    /// From now on the slot holds its expert in packed form.
    pub(crate) fn set_packed(&mut self, slot: SlotId) {
        let flat = self.flat(slot);
        self.slots[flat].packed = true;
        self.counters().promotions += 1;
    }

    fn flat(&self, slot: SlotId) -> usize {
        (self.first[slot.class as usize] + slot.index) as usize
    }

    fn slot_id(&self, flat: u32, class: u16) -> SlotId {
        SlotId { class, index: flat - self.first[class as usize] }
    }

    /// Takes slots out of use until `slots[class]` of each class are left, or back into use until so many are; between two
    /// requests. Experts leave in the policy's order. `changed` is told of every slot that goes (false) or comes back (true).
    pub(crate) fn resize(&mut self, slots: &[u32], mut changed: impl FnMut(SlotId, bool)) {
        self.plan.bound_to(slots);
        for (class, &wanted) in (0u16..).zip(slots) {
            let at = class as usize;
            let all = self.plan.classes()[at].slots;
            while all - (self.retired[at].len() as u32) < wanted {
                let index = self.retired[at].pop().expect("more slots are wanted than are in use");
                self.empty[at].push(index);
                changed(SlotId { class, index }, true);
            }
            while all - self.retired[at].len() as u32 > wanted {
                let index = match self.empty[at].pop() {
                    Some(index) => index,
                    None => self.vacate(class),
                };
                self.retired[at].push(index);
                changed(SlotId { class, index }, false);
            }
        }
    }

    /// Whether no slot in use is empty.
    pub(crate) fn is_full(&self) -> bool {
        self.empty.iter().all(Vec::is_empty)
    }

    /// Empties every slot, between two requests.
    pub(crate) fn clear(&mut self) {
        for class in 0..self.empty.len() as u16 {
            for index in 0..self.plan.classes()[class as usize].slots {
                let slot = SlotId { class, index };
                let flat = self.flat(slot);
                if self.slots[flat].state == State::Ready {
                    self.unpublish(slot);
                    self.policy.forget(slot);
                    self.leave(slot);
                    self.slots[flat] = BLANK;
                    self.empty[class as usize].push(index);
                }
            }
        }
    }

    /// Empties a slot of a class, of a layer that holds more than its floor.
    fn vacate(&mut self, class: u16) -> u32 {
        let (slots, layers, plan, first) = (&self.slots, &self.layers, &self.plan, &self.first);
        let eligible = |slot: SlotId| {
            let held = &slots[(first[slot.class as usize] + slot.index) as usize];
            let floor = |layer: usize| plan.layers()[layer].slots_min;
            held.state == State::Ready && layers[held.layer as usize].held > floor(held.layer as usize)
        };
        let slot = self.policy.victim(class, &eligible).expect("floors fit into what is left");
        self.counters_of(slot).evictions += 1;
        self.unpublish(slot);
        self.policy.forget(slot);
        self.leave(slot);
        let flat = self.flat(slot);
        self.slots[flat] = BLANK;
        slot.index
    }

    fn counters_of(&mut self, slot: SlotId) -> &mut Counters {
        let layer = self.slots[self.flat(slot)].layer as usize;
        &mut self.stats.layers[layer].counters
    }

    /// Nobody finds the expert of this slot any more.
    fn unpublish(&mut self, slot: SlotId) {
        let held = self.slots[self.flat(slot)];
        debug_assert!(held.state == State::Ready && held.pins == 0);
        self.layers[held.layer as usize].expert_slot[held.expert as usize] = NONE;
    }

    fn promise(&mut self, slot: SlotId, expert: u32) {
        let flat = self.flat(slot);
        let held = &mut self.slots[flat];
        held.state = State::Loading;
        held.expert = expert;
        held.pins = 1;
        // A new expert comes as it is in the file.
        (held.hits, held.packed) = (0, false);
    }

    fn leave(&mut self, slot: SlotId) {
        let Slot { layer, local, .. } = self.slots[self.flat(slot)];
        let layer = &mut self.layers[layer as usize];
        layer.held -= 1;
        layer.locals[local as usize / 64] &= !(1 << (local % 64));
    }

    /// The slot becomes one of the layer's, with the lowest number that is free there.
    fn join(&mut self, slot: SlotId, index: usize) {
        let layer = &mut self.layers[index];
        layer.held += 1;
        let word = layer.locals.iter().position(|&word| word != u64::MAX);
        // A layer holds no more slots than it has experts, and there is a number for each.
        let word = word.expect("a free slot number");
        let bit = layer.locals[word].trailing_ones();
        layer.locals[word] |= 1 << bit;
        let flat = self.flat(slot);
        self.slots[flat].layer = index as u32;
        self.slots[flat].local = word as u32 * 64 + bit;
    }
}

impl Request {
    /// Whether an id is among those of the request; false before the first one.
    fn names(&self, expert: u32) -> bool {
        self.epoch != 0 && self.seen.get(expert as usize) == Some(&self.epoch)
    }

    /// The unique ids in the order of their ranks; more than `share` of them make the request wide.
    fn begin(&mut self, layer: usize, ids: &[u32], share: u32) {
        self.layer = layer;
        self.entries.clear();
        self.uniques.clear();
        self.hits = 0;
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            // Marks of four billion requests ago must not count for this one.
            self.seen.fill(0);
            self.epoch = 1;
        }
        for &id in ids {
            if self.seen[id as usize] != self.epoch {
                self.seen[id as usize] = self.epoch;
                self.uses[id as usize] = self.uniques.len() as u64;
                self.uniques.push(id);
            }
            self.uses[id as usize] += 1 << 32;
        }
        self.wide = self.uniques.len() > share as usize;
        self.succeeded = [0; 2];
        if self.wide {
            let uses = &self.uses;
            self.uniques.sort_unstable_by_key(|&id| uses[id as usize]);
        }
    }

    /// Queues entry `index` behind the least used one that has no successor yet; the slot that it will take over.
    fn succeed(&mut self, index: u32) -> SlotId {
        let [hit, miss] = self.succeeded;
        let uses = |at: usize| self.entries.get(at).map(|entry| self.uses[entry.expert as usize]);
        let hit_is_next = match (uses(hit).filter(|_| hit < self.hits), uses(miss)) {
            (Some(hit), Some(miss)) => hit < miss,
            (hit, _) => hit.is_some(),
        };
        let at = if hit_is_next { hit } else { miss };
        self.succeeded[usize::from(!hit_is_next)] += 1;
        let before = &mut self.entries[at];
        before.successor = index;
        before.slot
    }
}
