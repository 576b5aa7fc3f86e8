//! The open request from the side of its reads, and whom each outstanding read belongs to.

use super::Resident;
use crate::read::{Read, Ticket};

/// What is outstanding, what has arrived, what is being computed.
#[derive(Debug)]
pub(super) struct Flight {
    /// Entries not yet handed out in a wave.
    pub(super) remaining: usize,
    /// Hits that a wave has had.
    pub(super) hits_out: usize,
    pub(super) wave_open: bool,
    /// One per outstanding read; the index is the ticket.
    pub(super) tasks: Vec<Task>,
    pub(super) tasks_free: Vec<u32>,
    /// Outstanding reads that no request waits for.
    pub(super) speculative: usize,
    /// Entries with a slot, to be submitted in this order; those before `submitted` are.
    pub(super) ready_to_read: Vec<u32>,
    pub(super) submitted: usize,
    /// Entries with reads outstanding.
    pub(super) loading: usize,
    /// Outstanding reads by entry.
    pub(super) parts_left: Vec<u32>,
    /// Entries whose bytes are complete and that no wave has had yet.
    pub(super) arrived: Vec<u32>,
    pub(super) batch: Vec<Read>,
    pub(super) wave_entries: Vec<u32>,
    pub(super) wave: Vec<Resident>,
}

/// Who wants the bytes of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// An entry of the open request.
    Entry(u32),
    /// A spare slot: somebody may want them.
    Spare(u32),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Task {
    pub(super) owner: Owner,
    pub(super) part: u32,
    pub(super) outstanding: bool,
}

impl Task {
    /// The order in which owners are served.
    pub(super) fn rank(&self) -> u32 {
        match self.owner {
            Owner::Entry(index) | Owner::Spare(index) => index,
        }
    }
}

impl Flight {
    /// Room for requests of `experts` with `parts` reads each, and for as many spare slots; no more than `capacity` reads in all.
    pub(super) fn new(experts: usize, spares: usize, parts: usize, capacity: usize) -> Self {
        let reads = ((experts + spares) * parts).min(capacity);
        Flight {
            remaining: 0,
            hits_out: 0,
            wave_open: false,
            tasks: vec![Task { owner: Owner::Entry(0), part: 0, outstanding: false }; reads],
            tasks_free: (0..reads as u32).rev().collect(),
            speculative: 0,
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

    /// Reads of any kind.
    pub(super) fn outstanding(&self) -> usize {
        self.tasks.len() - self.tasks_free.len()
    }

    /// Reads that the open request waits for.
    pub(super) fn demanded(&self) -> usize {
        self.outstanding() - self.speculative
    }

    pub(super) fn take_ticket(&mut self, owner: Owner, part: u32) -> Ticket {
        let ticket = self.tasks_free.pop().expect("as many tasks as the caller has counted");
        self.tasks[ticket as usize] = Task { owner, part, outstanding: true };
        self.speculative += usize::from(matches!(owner, Owner::Spare(_)));
        Ticket(u64::from(ticket))
    }

    /// The read of this ticket is over.
    pub(super) fn take_back(&mut self, ticket: usize) -> Task {
        let task = self.tasks[ticket];
        assert!(task.outstanding, "a completion for a read that is not outstanding");
        self.tasks[ticket].outstanding = false;
        self.tasks_free.push(ticket as u32);
        self.speculative -= usize::from(matches!(task.owner, Owner::Spare(_)));
        task
    }

    /// From now on the read is one that a request waits for.
    pub(super) fn hand_over(&mut self, ticket: usize, entry: u32) {
        debug_assert!(matches!(self.tasks[ticket].owner, Owner::Spare(_)));
        self.tasks[ticket].owner = Owner::Entry(entry);
        self.speculative -= 1;
    }

    /// Between two requests; no read is outstanding that one waits for.
    pub(super) fn reset(&mut self) {
        debug_assert_eq!(self.demanded(), 0);
        self.remaining = 0;
        self.hits_out = 0;
        self.wave_open = false;
        self.ready_to_read.clear();
        self.submitted = 0;
        self.loading = 0;
        self.arrived.clear();
        self.wave_entries.clear();
        self.wave.clear();
    }
}
