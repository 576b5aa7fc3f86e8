//! The bank: requests of routed experts in, waves of resident experts out.
//!
//! ```text
//! request(layer, ids)            leases every hit, promises slots, submits the reads of all misses; never waits
//! while next_wave()? {           the hits first, then whatever has arrived; waits only when nothing has
//!     for resident in wave() { .. weights(resident.slot, family) .. }
//!     finish_wave()              the backend is done with these slots
//! }
//! ```
//! A slot is found through the maps only when all its bytes have arrived, and loses them only when no lease
//! is on it. A read that fails ends the request with an error; the slots it spoiled are empty then and
//! everything else is as it was. After construction these calls allocate nothing, except to report an error.

mod ahead;
mod busy;
mod flight;
mod table;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use files::Family;

use crate::arena::Arena;
use crate::plan::{BankPlan, SlotId};
use crate::policy::{ExpertKey, Policy};
use crate::read::{Completion, Interval, Origin, Priority, Read, ReadFailure, Reader, Ticket};
use crate::stats::Stats;
use crate::trace::Trace;
use crate::{Error, Result};
use ahead::Places;
use busy::Busy;
use flight::{Flight, Owner, Task};
pub(crate) use table::Table;

/// An expert of the current wave and the slot that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// Expert id in the layer of the request.
    pub expert: u32,
    /// Its slot, under lease until [`Bank::finish_wave`].
    pub slot: SlotId,
}

/// The order in which a request is served. The answer does not depend on it; the parts can be switched off to see what they are
/// worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Hits are computed while misses are read; else nothing is computed before everything is there.
    pub hits_first: bool,
    /// What is needed first of every expert is read before what is needed last of any; else expert by expert.
    pub ordered_reads: bool,
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule { hits_first: true, ordered_reads: true }
    }
}

/// The resident experts of a model.
pub struct Bank {
    // Dropped first: a reader that is gone writes nowhere, and only then may the arena go.
    reader: Box<dyn Reader>,
    arena: Box<dyn Arena>,
    table: Table,
    flight: Flight,
    places: Places,
    busy: Busy,
    schedule: Schedule,
    files: Vec<PathBuf>,
    trace: Option<Trace>,
}

impl std::fmt::Debug for Bank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bank")
            .field("table", &self.table)
            .field("reader", &self.reader.describe())
            .finish_non_exhaustive()
    }
}

impl Bank {
    /// Builds an empty bank: allocates what `plan` says in `arena`, and all the scratch it will ever need.
    ///
    /// `files` are the files that `reader` was opened with, in the same order; they are used in messages.
    pub fn new(
        plan: BankPlan,
        files: &[PathBuf],
        mut reader: Box<dyn Reader>,
        mut arena: Box<dyn Arena>,
        policy: Box<dyn Policy>,
    ) -> Result<Bank> {
        let parts = plan.layers().iter().flat_map(|layer| &layer.parts);
        if let Some(part) = parts.into_iter().find(|part| part.file.0 as usize >= files.len()) {
            return Err(Error::Usage(format!(
                "expert file {} of {} was not opened",
                part.file.0,
                files.len()
            )));
        }
        if reader.capacity() < plan.parts_max() {
            return Err(Error::Usage(format!(
                "a reader of {} outstanding reads is too small",
                reader.capacity()
            )));
        }
        arena.allocate(plan.classes())?;
        // SAFETY: the arena vouches for its regions as long as it lives, which is longer than the reader does.
        unsafe { reader.register(&arena.regions()) };
        let flight =
            Flight::new(plan.experts_max(), Places::spares(&plan), plan.parts_max(), reader.capacity());
        Ok(Bank {
            reader,
            arena,
            flight,
            places: Places::new(&plan),
            busy: Busy::new(),
            schedule: Schedule::default(),
            table: Table::new(plan, policy),
            files: files.to_vec(),
            trace: None,
        })
    }

    /// Reads every expert into the bank; for banks that hold them all ([`BankPlan::is_resident`]).
    pub fn preload(&mut self) -> Result<()> {
        if !self.table.plan.is_resident() {
            return Err(Error::Usage("only a bank that holds every expert can be loaded in advance".into()));
        }
        let ids: Vec<u32> = (0..self.table.plan.experts_max() as u32).collect();
        for layer in 0..self.table.plan.layers().len() {
            let n_expert = self.table.plan.layers()[layer].n_expert as usize;
            self.read_in(layer, &ids[..n_expert])?;
        }
        Ok(())
    }

    /// Reads these experts, each layer once, into the bank in advance. Errors: [`Error::Usage`] when they do not all fit, and those
    /// of [`Bank::request`].
    pub fn preload_some(&mut self, experts: &[(u32, Vec<u32>)]) -> Result<()> {
        for (layer, ids) in experts {
            let index = self.table.layer_index(*layer)?;
            self.read_in(index, ids)?;
        }
        for (layer, ids) in experts {
            let held = ids.iter().filter(|&&id| self.slot_of(*layer, id).is_some()).count();
            if held < ids.len() {
                let wanted = ids.len();
                return Err(Error::Usage(format!(
                    "{wanted} experts of layer {layer} are to be resident, the bank has room for {held} of them"
                )));
            }
        }
        Ok(())
    }

    /// A request that nobody computes and no counter of requests sees.
    fn read_in(&mut self, layer: usize, ids: &[u32]) -> Result<()> {
        self.begin();
        self.table.resolve(layer, ids)?;
        self.start();
        while self.next_wave()? {
            self.finish_wave();
        }
        Ok(())
    }

    /// Opens the request of a routed layer: leases all hits, finds slots for the misses, submits all their
    /// reads. Does not wait.
    ///
    /// `ids` are the chosen experts, token-major, `k` per token in router order. Any number of tokens works
    /// with any bank; an expert chosen by several tokens is one expert. Errors leave the bank as it was.
    ///
    /// # Panics
    /// When another request is still open, or `ids` is not a multiple of `k` long.
    pub fn request(&mut self, layer: u32, ids: &[u32], k: u32) -> Result<()> {
        assert!(k > 0 && ids.len().is_multiple_of(k as usize), "{} ids for {k} per token", ids.len());
        self.begin();
        let index = self.table.layer_index(layer)?;
        self.table.resolve(index, ids)?;
        self.table.count_request(ids.len());
        self.start();
        let predicted = self.drop_wrong_guesses();
        if let Some(trace) = &mut self.trace {
            let (table, places) = (&self.table, &self.places);
            let predicted = if predicted { places.guessed() } else { &[] };
            trace.record(layer, k, ids, ids.iter().map(|&id| table.local_of(id)), predicted);
        }
        Ok(())
    }

    /// Makes the next wave of experts available in [`Bank::wave`], each expert of the request in exactly one
    /// wave. The first wave is the hits, if there are any; each later one is everything that has arrived. A
    /// request of more experts than the layer's share of the slots comes in waves of a few.
    /// Waits only when nothing has. False: the request is complete.
    ///
    /// An error ends the request: its leases drop, outstanding reads are taken back or awaited, and the bank
    /// can take the next request.
    ///
    /// # Panics
    /// When the previous wave is not finished.
    pub fn next_wave(&mut self) -> Result<bool> {
        assert!(!self.flight.wave_open, "finish_wave must come between two waves");
        if self.flight.remaining == 0 {
            return Ok(false);
        }
        if !self.schedule.hits_first {
            // A request whose experts queue for slots can never have all of them at once.
            while self.flight.demanded() > 0 && !self.table.has_queue() {
                let since = Instant::now();
                let completion = self.reader.wait_any(None);
                self.table.counters().stall_ns += since.elapsed().as_nanos() as u64;
                if let Err(error) = self.take(completion.expect("a reader owes a completion for every read"))
                {
                    self.abandon();
                    return Err(error);
                }
            }
        }
        if self.flight.hits_out < self.table.hits() {
            let from = self.flight.hits_out;
            let until = self.table.hits().min(from.saturating_add(self.wave_max()));
            self.flight.hits_out = until;
            self.flight.arrived.extend(from as u32..until as u32);
            self.open_wave();
            return Ok(true);
        }
        let mut outcome = self.collect();
        while outcome.is_ok() && self.flight.arrived.is_empty() {
            let since = Instant::now();
            let completion = self.reader.wait_any(None);
            self.table.counters().stall_ns += since.elapsed().as_nanos() as u64;
            let completion = completion.expect("experts are missing and no read for them is outstanding");
            // Others may have finished meanwhile; they belong to the same wave.
            outcome = self.take(completion).and_then(|()| self.collect());
        }
        match outcome {
            Ok(()) => {
                self.open_wave();
                Ok(true)
            }
            Err(error) => {
                self.abandon();
                Err(error)
            }
        }
    }

    /// The experts of the current wave, in the order in which the request first names them; in a wide one those
    /// that fewest tokens have chosen first.
    pub fn wave(&self) -> &[Resident] {
        &self.flight.wave
    }

    /// The backend has finished with the slots of the wave (its fence has passed): their leases drop, and
    /// experts that queue for the slots are read.
    pub fn finish_wave(&mut self) {
        let flight = &mut self.flight;
        flight.wave_open = false;
        flight.wave.clear();
        for &entry in &flight.wave_entries {
            if let Some(next) = self.table.release(entry as usize) {
                flight.ready_to_read.push(next as u32);
            }
        }
        flight.wave_entries.clear();
        if flight.remaining == 0 {
            self.table.counters().open_ns += self.busy.since_asked_ns();
        }
        self.submit();
    }

    /// Gives up the open request, if there is one: takes back or awaits its reads and drops its leases. The
    /// backend must have finished with the current wave. Experts that did arrive stay.
    pub fn abandon(&mut self) {
        let flight = &mut self.flight;
        if flight.remaining == 0 && !flight.wave_open {
            return;
        }
        for ticket in 0..flight.tasks.len() {
            let task = flight.tasks[ticket];
            let demanded = task.outstanding && matches!(task.owner, Owner::Entry(_));
            if demanded && self.reader.cancel(Ticket(ticket as u64)) {
                flight.take_back(ticket);
            }
        }
        while self.flight.demanded() > 0 {
            let completion = self.reader.wait_any(None).expect("a reader owes a completion for every read");
            // One error has been reported, or nobody asks any more.
            let _ = self.take(completion);
        }
        self.table.end();
        self.table.counters().failed += 1;
        self.flight.reset();
    }

    /// Changes the order in which requests are served from now on.
    pub fn set_schedule(&mut self, schedule: Schedule) {
        self.schedule = schedule;
    }

    /// Forgets every expert, as after the load of a bank that reads nothing in advance; for measurements. An open request ends
    /// first, as by [`Bank::abandon`].
    pub fn clear(&mut self) {
        self.abandon();
        self.give_up_all();
        self.table.clear();
    }

    /// Shrinks or grows the bank to about `bytes`, between its floor and what was planned, and says how many bytes its slots take
    /// now. The least useful experts leave; nothing that is computed changes. The memory of slots that go is given back to the system
    /// where the arena can do that.
    ///
    /// Errors: [`Error::Usage`] for a bank with a fixed number of slots per layer. An open request ends first, as by [`Bank::abandon`].
    pub fn resize(&mut self, bytes: u64) -> Result<u64> {
        if self.table.plan.is_fixed() {
            return Err(Error::Usage("a bank of a fixed number of slots per layer keeps its size".into()));
        }
        self.abandon();
        let slots = self.table.plan.slots_for_bytes(bytes);
        // SAFETY: no region. A reader that has pinned pages would go on writing into those that are given back here.
        unsafe { self.reader.register(&[]) };
        let (arena, places) = (&mut self.arena, &self.places);
        self.table.resize(&slots, |slot, in_use| match in_use {
            true => arena.reclaim(places.of(slot)),
            false => arena.release(places.of(slot)),
        });
        // SAFETY: as in `Bank::new`; what is released later is so after the call above.
        unsafe { self.reader.register(&self.arena.regions()) };
        let classes = self.table.plan.classes().iter().zip(&slots);
        Ok(classes.map(|(class, &slots)| class.slot_bytes * u64::from(slots + class.spares)).sum())
    }

    /// Whether every slot holds an expert or is about to.
    pub fn is_full(&self) -> bool {
        self.table.is_full()
    }

    /// The bytes of one family of the expert in a ready slot, exactly as they are in the file.
    ///
    /// # Panics
    /// When the slot is not ready or its layer has no such family.
    pub fn weights(&self, slot: SlotId, family: Family) -> &[u8] {
        let range = self.location(slot, family);
        &self.arena.host_bytes(self.places.of(slot))[range]
    }

    /// Where those bytes lie, relative to the start of the slot; for backends that address slot memory
    /// themselves. It depends on the expert, as direct reads keep the alignment that the bytes have in the
    /// file.
    ///
    /// # Panics
    /// When the slot is not ready or its layer has no such family.
    pub fn location(&self, slot: SlotId, family: Family) -> std::ops::Range<usize> {
        let (start, len) = self.table.location(slot, family).expect("a ready slot that holds the family");
        start as usize..(start + len) as usize
    }

    /// Whether the expert of a slot was rewritten in packed form; [`Bank::weights`] shows that form then.
    pub fn is_packed(&self, slot: SlotId) -> bool {
        self.table.is_packed(slot)
    }

    /// Whether the expert of a slot of the wave is worth its packed form: the plan has room for it, and it was hit so often since it
    /// was read that packing will have cost little beside what hits cost.
    pub fn wants_packing(&self, slot: SlotId) -> bool {
        self.table.wants_packing(slot)
    }

    /// Where a family will lie in the packed form of the expert in a ready slot, relative to the start of the slot.
    ///
    /// # Panics
    /// When the slot is not ready or its layer has no packed form or no such family.
    pub fn packed_location(&self, slot: SlotId, family: Family) -> std::ops::Range<usize> {
        let location = self.table.packed_location(slot, family);
        let (start, len) = location.expect("a ready slot with a packed form of the family");
        start as usize..(start + len) as usize
    }

    /// Replaces the expert in a slot of the wave by its packed form, `bytes` from the start of the slot. It is packed until it
    /// loses its slot. For backends whose arena's destinations are the slots themselves; an uploading arena would not see it.
    ///
    /// # Panics
    /// When the slot is not in the wave, is packed already, or `bytes` are not as many as planned.
    pub fn store_packed(&mut self, slot: SlotId, bytes: &[u8]) {
        assert!(
            self.wave().iter().any(|resident| resident.slot == slot),
            "only a leased expert is rewritten"
        );
        assert!(!self.table.is_packed(slot), "the expert is packed already");
        let planned = &self.table.plan.layers()[self.table.layer()];
        assert_eq!(bytes.len() as u64, planned.packed_bytes, "bytes of a packed expert");
        let destination = self.arena.destination(self.places.of(slot));
        assert!(bytes.len() <= destination.len, "a packed expert reaches beyond its slot");
        // SAFETY: the arena vouches for `len` writable bytes. The slot is ready and leased, so no read into it is outstanding, and
        // `&mut self` means that nobody has a reference to its bytes.
        unsafe { destination.start.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        self.table.set_packed(slot);
    }

    /// The expert whose complete bytes a slot holds.
    pub fn resident(&self, slot: SlotId) -> Option<ExpertKey> {
        self.table.resident(slot)
    }

    /// The slot of an expert that is resident now.
    pub fn slot_of(&self, layer: u32, expert: u32) -> Option<SlotId> {
        self.table.slot_of(self.table.layer_index(layer).ok()?, expert)
    }

    /// The plan that the bank was built from.
    pub fn plan(&self) -> &BankPlan {
        &self.table.plan
    }

    /// The counters so far.
    pub fn stats(&self) -> &Stats {
        &self.table.stats
    }

    /// Sets the counters to zero; residency stays.
    pub fn reset_stats(&mut self) {
        self.table.stats.reset();
    }

    /// How experts are read, for people.
    pub fn describe_reader(&self) -> String {
        self.reader.describe()
    }

    /// What reading met without failing, once each, for people.
    pub fn take_warning(&mut self) -> Option<String> {
        self.reader.take_warning()
    }

    /// The slot memory; a backend that knows which arena it gave finds its buffers through it.
    pub fn arena(&self) -> &dyn Arena {
        self.arena.as_ref()
    }

    /// Writes a line per request from now on.
    pub fn set_trace(&mut self, trace: Trace) {
        self.trace = Some(trace);
    }

    /// Ends tracing; [`Trace::finish`] says whether every line was written.
    pub fn take_trace(&mut self) -> Option<Trace> {
        self.trace.take()
    }

    fn begin(&mut self) {
        let flight = &self.flight;
        assert!(
            flight.remaining == 0 && !flight.wave_open,
            "the previous request is still open: finish or abandon it"
        );
    }

    /// From the resolved table to reads.
    fn start(&mut self) {
        let flight = &mut self.flight;
        flight.reset();
        flight.remaining = self.table.entries().len();
        let loading =
            |(i, entry): (usize, &table::Entry)| (entry.phase == table::Phase::Loading).then_some(i as u32);
        flight.ready_to_read.extend(self.table.entries().iter().enumerate().filter_map(loading));
        self.busy.ask();
        self.submit();
    }

    /// Submits, in one call, the reads of every entry that has a slot, as far as the reader and the arena
    /// take them: what is needed first of all entries before what is needed last of any.
    fn submit(&mut self) {
        self.flight.batch.clear();
        while let Some(&index) = self.flight.ready_to_read.get(self.flight.submitted) {
            if self.adopt(index) {
                self.flight.submitted += 1;
                continue;
            }
            let flight = &mut self.flight;
            let planned = &self.table.plan.layers()[self.table.layer()];
            if flight.tasks_free.len() < planned.parts.len()
                || flight.loading >= self.arena.loading_max().max(1)
            {
                break;
            }
            flight.submitted += 1;
            flight.loading += 1;
            flight.parts_left[index as usize] = planned.parts.len() as u32;
            let entry = self.table.entries()[index as usize];
            let destination = self.arena.destination(self.places.of(entry.slot));
            for (i, part) in planned.parts.iter().enumerate() {
                assert!(part.start + part.span <= destination.len as u64, "a part reaches beyond its slot");
                // SAFETY: `start + span` was just checked against the bytes that the arena vouches for.
                let window = unsafe { destination.start.add(part.start as usize) };
                let ticket = flight.take_ticket(Owner::Entry(index), i as u32);
                flight.batch.push(Read {
                    ticket,
                    file: part.file,
                    offset: part.file_offset(entry.expert),
                    len: part.len,
                    window,
                    span: part.span,
                    priority: Priority::Demand,
                    origin: Origin { layer: planned.layer, expert: entry.expert, part: i as u32 },
                });
            }
        }
        let flight = &mut self.flight;
        if flight.batch.is_empty() {
            return;
        }
        let planned = &self.table.plan.layers()[self.table.layer()];
        let (tasks, ordered) = (&flight.tasks, self.schedule.ordered_reads);
        flight.batch.sort_unstable_by_key(|read| {
            let part = read.origin.part;
            let last = ordered && planned.parts[part as usize].last;
            (last, tasks[read.ticket.0 as usize].rank(), part)
        });
        // SAFETY: the arena vouches for the memory and for slots not overlapping; parts of a slot do not
        // overlap either. The slot is `Loading` until its last completion is taken, and nothing reads or
        // writes a loading slot: no map leads to it, `weights` refuses it.
        unsafe { self.reader.submit(&flight.batch) };
        flight.batch.clear();
    }

    /// Takes every completion that is there, without waiting.
    fn collect(&mut self) -> Result<()> {
        while self.flight.outstanding() > 0 {
            match self.reader.wait_any(Some(Duration::ZERO)) {
                Some(completion) => self.take(completion)?,
                None => break,
            }
        }
        if self.flight.submitted < self.flight.ready_to_read.len() {
            self.submit();
        }
        Ok(())
    }

    /// Books one completion. The last one of an expert publishes it.
    fn take(&mut self, completion: Completion) -> Result<()> {
        let Completion { ticket, at_drive, result } = completion;
        let task = self.flight.take_back(ticket.0 as usize);
        self.count_drive(task.owner, at_drive);
        let index = match task.owner {
            Owner::Entry(index) => index as usize,
            Owner::Spare(index) => {
                self.take_spare(index as usize, result.is_ok());
                return Ok(());
            }
        };
        if let Err(failure) = result {
            return Err(self.read_error(index, task, failure));
        }
        self.flight.parts_left[index] -= 1;
        if self.flight.parts_left[index] > 0 {
            return Ok(());
        }
        self.flight.loading -= 1;
        let entry = self.table.entries()[index];
        let parts = &self.table.plan.layers()[self.table.layer()].parts;
        let written = parts.iter().map(|part| part.start + part.span).max().unwrap_or(0);
        self.arena.commit(self.places.of(entry.slot), 0..written as usize)?;
        self.table.publish(index);
        self.flight.arrived.push(index as u32);
        Ok(())
    }

    /// Books when the drive had a read that is over.
    fn count_drive(&mut self, owner: Owner, at_drive: Interval) {
        let (demanded, layer) = match owner {
            Owner::Entry(_) => (true, self.table.layer()),
            Owner::Spare(index) => (false, self.places.layer_of(index as usize)),
        };
        let (io_wall_ns, ahead_ns) = self.busy.add(at_drive, demanded);
        let counters = &mut self.table.stats.layers[layer].counters;
        counters.io_wall_ns += io_wall_ns;
        counters.ahead_io_wall_ns += ahead_ns;
    }

    /// Experts of a wave. Where others queue for their slots a wave is small, so that these are read while the next is computed.
    fn wave_max(&self) -> usize {
        const QUEUED_WAVE: usize = 8;
        if self.table.has_queue() { QUEUED_WAVE } else { usize::MAX }
    }

    fn open_wave(&mut self) {
        let wave_max = self.wave_max();
        let Flight { arrived, wave, wave_entries, remaining, wave_open, .. } = &mut self.flight;
        let entries = self.table.entries();
        arrived.sort_unstable_by_key(|&index| entries[index as usize].rank);
        let now = arrived.len().min(wave_max);
        wave.extend(arrived[..now].iter().map(|&index| {
            let entry = &entries[index as usize];
            Resident { expert: entry.expert, slot: entry.slot }
        }));
        wave_entries.extend(arrived.drain(..now));
        *remaining -= now;
        *wave_open = true;
    }

    fn read_error(&self, index: usize, task: Task, failure: ReadFailure) -> Error {
        let planned = &self.table.plan.layers()[self.table.layer()];
        let part = &planned.parts[task.part as usize];
        let families: Vec<&str> = part.pieces.iter().map(|piece| piece.family.name()).collect();
        Error::Read {
            path: failure.path.unwrap_or_else(|| self.files[part.file.0 as usize].clone()),
            offset: failure.offset,
            len: part.len,
            layer: planned.layer,
            expert: self.table.entries()[index].expert,
            families: families.join("+"),
            source: failure.source,
        }
    }
}

impl Drop for Bank {
    fn drop(&mut self) {
        self.abandon();
    }
}
