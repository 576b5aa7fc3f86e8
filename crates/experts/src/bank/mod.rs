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

mod table;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use files::Family;

use crate::arena::Arena;
use crate::plan::{BankPlan, SlotId};
use crate::policy::{ExpertKey, Policy};
use crate::read::{Completion, Origin, Priority, Read, ReadFailure, Reader, Ticket};
use crate::stats::Stats;
use crate::trace::Trace;
use crate::{Error, Result};
pub(crate) use table::Table;

/// An expert of the current wave and the slot that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// Expert id in the layer of the request.
    pub expert: u32,
    /// Its slot, under lease until [`Bank::finish_wave`].
    pub slot: SlotId,
}

/// The resident experts of a model.
pub struct Bank {
    // Dropped first: a reader that is gone writes nowhere, and only then may the arena go.
    reader: Box<dyn Reader>,
    arena: Box<dyn Arena>,
    table: Table,
    flight: Flight,
    files: Vec<PathBuf>,
    trace: Option<Trace>,
}

/// The open request from the side of its reads.
#[derive(Debug)]
struct Flight {
    /// Entries not yet handed out in a wave.
    remaining: usize,
    hits_due: bool,
    wave_open: bool,
    /// One per outstanding read; the index is the ticket.
    tasks: Vec<Task>,
    tasks_free: Vec<u32>,
    /// Entries with a slot, to be submitted in this order; those before `submitted` are.
    ready_to_read: Vec<u32>,
    submitted: usize,
    /// Entries with reads outstanding.
    loading: usize,
    /// Outstanding reads by entry.
    parts_left: Vec<u32>,
    /// Entries whose bytes are complete and that no wave has had yet.
    arrived: Vec<u32>,
    batch: Vec<Read>,
    wave_entries: Vec<u32>,
    wave: Vec<Resident>,
}

#[derive(Debug, Clone, Copy)]
struct Task {
    entry: u32,
    part: u32,
    outstanding: bool,
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
        let flight = Flight::new(plan.experts_max(), plan.parts_max(), reader.capacity());
        Ok(Bank {
            reader,
            arena,
            flight,
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
        self.begin();
        let ids: Vec<u32> = (0..self.table.plan.experts_max() as u32).collect();
        for layer in 0..self.table.plan.layers().len() {
            let n_expert = self.table.plan.layers()[layer].n_expert as usize;
            self.table.resolve(layer, &ids[..n_expert])?;
            self.start();
            while self.next_wave()? {
                self.finish_wave();
            }
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
        if let Some(trace) = &mut self.trace {
            let table = &self.table;
            trace.record(layer, k, ids, ids.iter().map(|&id| table.local_of(id)));
        }
        Ok(())
    }

    /// Makes the next wave of experts available in [`Bank::wave`], each expert of the request in exactly one
    /// wave. The first wave is the hits, if there are any; each later one is everything that has arrived.
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
        if self.flight.hits_due {
            self.flight.hits_due = false;
            self.flight.arrived.extend(0..self.table.hits() as u32);
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

    /// The experts of the current wave, in the order in which the request first names them.
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
            if flight.tasks[ticket].outstanding && self.reader.cancel(Ticket(ticket as u64)) {
                flight.take_back(ticket);
            }
        }
        while self.flight.outstanding() > 0 {
            let completion = self.reader.wait_any(None).expect("a reader owes a completion for every read");
            // One error has been reported, or nobody asks any more.
            let _ = self.take(completion);
        }
        self.table.end();
        self.table.counters().failed += 1;
        self.flight.reset();
    }

    /// The bytes of one family of the expert in a ready slot, exactly as they are in the file.
    ///
    /// # Panics
    /// When the slot is not ready or its layer has no such family.
    pub fn weights(&self, slot: SlotId, family: Family) -> &[u8] {
        let range = self.location(slot, family);
        &self.arena.host_bytes(slot)[range]
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

    /// Whether the expert of a slot of the wave is worth its packed form: the plan has room for it, and it was hit twice since it
    /// was read.
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
        let destination = self.arena.destination(slot);
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
        flight.hits_due = self.table.hits() > 0;
        let loading =
            |(i, entry): (usize, &table::Entry)| (entry.phase == table::Phase::Loading).then_some(i as u32);
        flight.ready_to_read.extend(self.table.entries().iter().enumerate().filter_map(loading));
        self.submit();
    }

    /// Submits, in one call, the reads of every entry that has a slot, as far as the reader and the arena
    /// take them: what is needed first of all entries before what is needed last of any.
    fn submit(&mut self) {
        let flight = &mut self.flight;
        let planned = &self.table.plan.layers()[self.table.layer()];
        flight.batch.clear();
        while let Some(&index) = flight.ready_to_read.get(flight.submitted) {
            if flight.tasks_free.len() < planned.parts.len()
                || flight.loading >= self.arena.loading_max().max(1)
            {
                break;
            }
            flight.submitted += 1;
            flight.loading += 1;
            flight.parts_left[index as usize] = planned.parts.len() as u32;
            let entry = self.table.entries()[index as usize];
            let destination = self.arena.destination(entry.slot);
            for (i, part) in planned.parts.iter().enumerate() {
                assert!(part.start + part.span <= destination.len as u64, "a part reaches beyond its slot");
                // SAFETY: `start + span` was just checked against the bytes that the arena vouches for.
                let window = unsafe { destination.start.add(part.start as usize) };
                let ticket = flight.take_ticket(index, i as u32);
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
        if flight.batch.is_empty() {
            return;
        }
        let tasks = &flight.tasks;
        flight.batch.sort_unstable_by_key(|read| {
            let part = read.origin.part;
            (planned.parts[part as usize].last, tasks[read.ticket.0 as usize].entry, part)
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
        let Completion { ticket, result } = completion;
        let task = self.flight.take_back(ticket.0 as usize);
        let index = task.entry as usize;
        if let Err(failure) = result {
            return Err(self.read_error(task, failure));
        }
        self.flight.parts_left[index] -= 1;
        if self.flight.parts_left[index] > 0 {
            return Ok(());
        }
        self.flight.loading -= 1;
        let entry = self.table.entries()[index];
        let parts = &self.table.plan.layers()[self.table.layer()].parts;
        let written = parts.iter().map(|part| part.start + part.span).max().unwrap_or(0);
        self.arena.commit(entry.slot, 0..written as usize)?;
        self.table.publish(index);
        self.flight.arrived.push(index as u32);
        Ok(())
    }

    fn open_wave(&mut self) {
        let Flight { arrived, wave, wave_entries, remaining, wave_open, .. } = &mut self.flight;
        let entries = self.table.entries();
        arrived.sort_unstable_by_key(|&index| entries[index as usize].rank);
        wave.extend(arrived.iter().map(|&index| {
            let entry = &entries[index as usize];
            Resident { expert: entry.expert, slot: entry.slot }
        }));
        wave_entries.extend_from_slice(arrived);
        *remaining -= arrived.len();
        *wave_open = true;
        arrived.clear();
    }

    fn read_error(&self, task: Task, failure: ReadFailure) -> Error {
        let planned = &self.table.plan.layers()[self.table.layer()];
        let part = &planned.parts[task.part as usize];
        let families: Vec<&str> = part.pieces.iter().map(|piece| piece.family.name()).collect();
        Error::Read {
            path: failure.path.unwrap_or_else(|| self.files[part.file.0 as usize].clone()),
            offset: failure.offset,
            len: part.len,
            layer: planned.layer,
            expert: self.table.entries()[task.entry as usize].expert,
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

impl Flight {
    fn new(experts: usize, parts: usize, capacity: usize) -> Self {
        let reads = (experts * parts).min(capacity);
        Flight {
            remaining: 0,
            hits_due: false,
            wave_open: false,
            tasks: vec![Task { entry: 0, part: 0, outstanding: false }; reads],
            tasks_free: (0..reads as u32).rev().collect(),
            ready_to_read: Vec::with_capacity(experts),
            submitted: 0,
            loading: 0,
            parts_left: vec![0; experts],
            arrived: Vec::with_capacity(experts),
            batch: Vec::with_capacity(reads),
            wave_entries: Vec::with_capacity(experts),
            wave: Vec::with_capacity(experts),
        }
    }

    fn outstanding(&self) -> usize {
        self.tasks.len() - self.tasks_free.len()
    }

    fn take_ticket(&mut self, entry: u32, part: u32) -> Ticket {
        let ticket = self.tasks_free.pop().expect("as many tasks as the caller has counted");
        self.tasks[ticket as usize] = Task { entry, part, outstanding: true };
        Ticket(u64::from(ticket))
    }

    fn take_back(&mut self, ticket: usize) -> Task {
        let task = self.tasks[ticket];
        assert!(task.outstanding, "a completion for a read that is not outstanding");
        self.tasks[ticket].outstanding = false;
        self.tasks_free.push(ticket as u32);
        task
    }

    /// Between two requests; no read is outstanding.
    fn reset(&mut self) {
        debug_assert_eq!(self.outstanding(), 0);
        self.remaining = 0;
        self.hits_due = false;
        self.wave_open = false;
        self.ready_to_read.clear();
        self.submitted = 0;
        self.loading = 0;
        self.arrived.clear();
        self.wave_entries.clear();
        self.wave.clear();
    }
}
