//! Experts read before anybody asks, into spare slots: memory that belongs to no slot of the table.
//!
//! ```text
//!   table:   slot 0 | slot 1 | slot 2 | …                 who is where; knows nothing of this page
//!               \       /                  spares
//!   memory:   place 0 | place 1 | place 2 | … | place n | place n + 1
//! ```
//! When a miss is to be read whose bytes a spare holds or is getting, slot and spare exchange their places: the slot has the expert at
//! once, or when the rest arrives, with the urgency of demand from now on. Hits, misses and evictions are those of a bank that never
//! read ahead, so neither the answer nor a replay depends on what was guessed or on when reads arrive.

use super::flight::Owner;
use super::{Bank, Flight};
use crate::plan::{BankPlan, SlotId};
use crate::read::{Origin, Priority, Read, Reader, Ticket};
use crate::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    /// Reads are outstanding.
    Reading,
    /// All bytes are there.
    Complete,
    /// Nobody wants it any more; reads that could not be taken back are awaited.
    Leaving,
}

/// One spare slot.
#[derive(Debug, Clone, Copy)]
struct Spare {
    place: SlotId,
    state: State,
    /// Index into the plan's layers.
    layer: u32,
    expert: u32,
    parts_left: u32,
}

/// Where slots and spares have their memory.
#[derive(Debug)]
pub(super) struct Places {
    /// By class: the place of each slot.
    of_slot: Vec<Vec<u32>>,
    spares: Vec<Spare>,
    /// The latest guess: an index into the plan's layers, and experts of that layer.
    guess: Option<usize>,
    guessed: Vec<u32>,
}

impl Places {
    pub(super) fn new(plan: &BankPlan) -> Places {
        let of_slot = plan.classes().iter().map(|class| (0..class.slots).collect()).collect();
        let spare = |place| Spare { place, state: State::Free, layer: 0, expert: 0, parts_left: 0 };
        let places = (0u16..).zip(plan.classes()).flat_map(|(class, size)| {
            (size.slots..size.slots + size.spares).map(move |index| SlotId { class, index })
        });
        Places {
            of_slot,
            spares: places.map(spare).collect(),
            guess: None,
            guessed: Vec::with_capacity(plan.experts_max()),
        }
    }

    /// Spare slots of all classes.
    pub(super) fn spares(plan: &BankPlan) -> usize {
        plan.classes().iter().map(|class| class.spares as usize).sum()
    }

    /// The memory of a slot of the table.
    pub(super) fn of(&self, slot: SlotId) -> SlotId {
        SlotId { index: self.of_slot[slot.class as usize][slot.index as usize], ..slot }
    }

    /// The spare that holds this expert or is getting it.
    fn find(&self, layer: usize, expert: u32) -> Option<usize> {
        self.spares.iter().position(|spare| {
            matches!(spare.state, State::Reading | State::Complete)
                && (spare.layer as usize, spare.expert) == (layer, expert)
        })
    }

    /// The layer that a spare was last read for.
    pub(super) fn layer_of(&self, spare: usize) -> usize {
        self.spares[spare].layer as usize
    }

    /// The experts of the latest guess, likeliest first.
    pub(super) fn guessed(&self) -> &[u32] {
        &self.guessed
    }

    /// Exchanges the memory of a slot and a spare.
    fn exchange(&mut self, slot: SlotId, spare: usize) {
        let place = &mut self.of_slot[slot.class as usize][slot.index as usize];
        std::mem::swap(place, &mut self.spares[spare].place.index);
    }
}

impl Bank {
    /// Says that `layer` may soon ask for `experts`, likeliest first: those that are not resident are read into spare slots while
    /// no request waits for a read, as far as there are spares. A request of the layer takes what was guessed right and gives the rest up.
    ///
    /// Errors: [`Error::NoSuchLayer`], [`Error::NoSuchExpert`].
    pub fn read_ahead(&mut self, layer: u32, experts: &[u32]) -> Result<()> {
        let index = self.table.layer_index(layer)?;
        let n_expert = self.table.plan.layers()[index].n_expert;
        if let Some(&expert) = experts.iter().find(|&&expert| expert >= n_expert) {
            return Err(Error::NoSuchExpert { layer, expert, n_expert });
        }
        self.places.guess = Some(index);
        self.places.guessed.clear();
        self.places.guessed.extend(experts.iter().take(self.table.plan.experts_max()));
        for &expert in experts {
            let known = self.table.slot_of(index, expert).is_some() || self.table.wants(index, expert);
            if !known && self.places.find(index, expert).is_none() && !self.read_into_spare(index, expert) {
                break;
            }
        }
        if !self.flight.batch.is_empty() {
            // SAFETY: as in `Bank::submit`; the place of a spare is the memory of no slot, and nobody reads it before it is complete.
            unsafe { self.reader.submit(&self.flight.batch) };
            self.flight.batch.clear();
        }
        Ok(())
    }

    /// Puts the reads of an expert into the batch. False: there is no room.
    fn read_into_spare(&mut self, layer: usize, expert: u32) -> bool {
        let planned = &self.table.plan.layers()[layer];
        let free = |spare: &Spare| spare.state == State::Free && spare.place.class == planned.class;
        let Some(index) = self.places.spares.iter().position(free) else { return false };
        // The reads of a request come first, even those that wait for their turn.
        if self.flight.tasks_free.len() < planned.parts.len()
            || self.flight.submitted < self.flight.ready_to_read.len()
        {
            return false;
        }
        let spare = &mut self.places.spares[index];
        let parts_left = planned.parts.len() as u32;
        *spare = Spare { state: State::Reading, layer: layer as u32, expert, parts_left, place: spare.place };
        let destination = self.arena.destination(spare.place);
        for (i, part) in planned.parts.iter().enumerate() {
            assert!(part.start + part.span <= destination.len as u64, "a part reaches beyond its slot");
            // SAFETY: `start + span` was just checked against the bytes that the arena vouches for.
            let window = unsafe { destination.start.add(part.start as usize) };
            let ticket = self.flight.take_ticket(Owner::Spare(index as u32), i as u32);
            self.flight.batch.push(Read {
                ticket,
                file: part.file,
                offset: part.file_offset(expert),
                len: part.len,
                window,
                span: part.span,
                priority: Priority::Speculative,
                origin: Origin { layer: planned.layer, expert, part: i as u32 },
            });
        }
        let counters = &mut self.table.stats.layers[layer].counters;
        counters.ahead += 1;
        true
    }

    /// Gives an entry that is to be read what a spare has of it. False: no spare has anything.
    pub(super) fn adopt(&mut self, entry: u32) -> bool {
        let layer = self.table.layer();
        let super::table::Entry { expert, slot, .. } = self.table.entries()[entry as usize];
        let Some(index) = self.places.find(layer, expert) else { return false };
        self.places.exchange(slot, index);
        let spare = &mut self.places.spares[index];
        let (state, parts_left) = (spare.state, spare.parts_left);
        spare.state = State::Free;
        self.table.counters().ahead_used += 1;
        if state == State::Complete {
            self.table.publish(entry as usize);
            self.flight.arrived.push(entry);
            return true;
        }
        self.table.counters().ahead_late += 1;
        self.flight.loading += 1;
        self.flight.parts_left[entry as usize] = parts_left;
        for ticket in 0..self.flight.tasks.len() {
            let task = self.flight.tasks[ticket];
            if task.outstanding && task.owner == Owner::Spare(index as u32) {
                self.flight.hand_over(ticket, entry);
                self.reader.promote(Ticket(ticket as u64));
            }
        }
        true
    }

    /// Holds the latest guess against the open request, and gives up the spares of its layer that it has no use for. True: there
    /// was a guess for it.
    pub(super) fn drop_wrong_guesses(&mut self) -> bool {
        let layer = self.table.layer();
        let guessed = self.places.guess == Some(layer);
        if guessed {
            self.places.guess = None;
            let right = self.places.guessed.iter().filter(|&&expert| self.table.wants(layer, expert)).count();
            let counters = self.table.counters();
            counters.guessed_right += right as u64;
            counters.guessed += self.places.guessed.len() as u64;
        }
        for index in 0..self.places.spares.len() {
            let Spare { layer: of, expert, state, .. } = self.places.spares[index];
            let held = matches!(state, State::Reading | State::Complete);
            if held && of as usize == layer && !self.table.wants(layer, expert) {
                self.give_up(index);
            }
        }
        guessed
    }

    /// Nobody wants what this spare holds or is getting.
    pub(super) fn give_up(&mut self, index: usize) {
        let (flight, spare) = (&mut self.flight, &mut self.places.spares[index]);
        let counters = &mut self.table.stats.layers[spare.layer as usize].counters;
        let planned = &self.table.plan.layers()[spare.layer as usize];
        let whole = planned.parts.len() as u32 == spare.parts_left;
        let cancelled = cancel_all(flight, &mut *self.reader, Owner::Spare(index as u32));
        spare.parts_left -= cancelled;
        // Parts are about equally long; what matters is whether the drive was kept busy for nothing.
        let read = planned.parts.len() as u32 - cancelled;
        counters.ahead_wasted_bytes += planned.expert_bytes * u64::from(read) / planned.parts.len() as u64;
        counters.ahead_cancelled += u64::from(whole && read == 0);
        spare.state = if spare.parts_left == 0 { State::Free } else { State::Leaving };
    }

    /// Gives up every spare.
    pub(super) fn give_up_all(&mut self) {
        for index in 0..self.places.spares.len() {
            if matches!(self.places.spares[index].state, State::Reading | State::Complete) {
                self.give_up(index);
            }
        }
    }

    /// Books a completion for a spare. An error is nobody's yet: who asks for the expert will read it again and see.
    pub(super) fn take_spare(&mut self, index: usize, arrived: bool) {
        let spare = &mut self.places.spares[index];
        spare.parts_left -= 1;
        if !arrived && spare.state == State::Reading {
            spare.state = State::Leaving;
            let cancelled = cancel_all(&mut self.flight, &mut *self.reader, Owner::Spare(index as u32));
            spare.parts_left -= cancelled;
        }
        if spare.parts_left > 0 {
            return;
        }
        spare.state = match spare.state {
            State::Reading => {
                let parts = &self.table.plan.layers()[spare.layer as usize].parts;
                let written = parts.iter().map(|part| part.start + part.span).max().unwrap_or(0);
                let committed = self.arena.commit(spare.place, 0..written as usize);
                if committed.is_ok() { State::Complete } else { State::Free }
            }
            _ => State::Free,
        };
    }
}

/// Takes back what the reader has not begun; how many reads that was.
fn cancel_all(flight: &mut Flight, reader: &mut dyn Reader, owner: Owner) -> u32 {
    let mut cancelled = 0;
    for ticket in 0..flight.tasks.len() {
        let task = flight.tasks[ticket];
        if task.outstanding && task.owner == owner && reader.cancel(Ticket(ticket as u64)) {
            flight.take_back(ticket);
            cancelled += 1;
        }
    }
    cancelled
}
