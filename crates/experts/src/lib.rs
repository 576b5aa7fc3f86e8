//! Which experts are resident, and how they get there.
//!
//! The room holds four things and keeps them apart:
//! * [`plan`]: bytes → slots. Nothing is allocated that the plan has not named.
//! * [`bank`]: who is in which slot, leases, and the two-phase resolution of one layer's request.
//! * [`read`]: bytes from files into slots, with faults on demand for tests.
//! * [`prefetch`]: whether reading ahead of demand pays.
//! * [`policy`], [`trace`], [`mod@replay`], [`simulate`], [`stats`]: who leaves, what happened, what would have
//!   happened.
//!
//! No maths lives here and no model: the bank sees layers, expert ids and byte ranges. A miss changes bytes
//! in a slot, never the shape of the computation and never the answer.

pub mod arena;
pub mod bank;
mod error;
pub mod plan;
pub mod policy;
pub mod prefetch;
pub mod read;
pub mod replay;
pub mod simulate;
pub mod stats;
pub mod trace;

pub use arena::{Arena, Destination};
pub use bank::{Bank, Resident, Schedule};
pub use error::Error;
pub use plan::{BankPlan, BankSize, LayerExperts, LayerPlan, SizeClass, SlotId};
pub use policy::{ExpertKey, Policy, lru::Lru};
pub use read::{
    Completion, Interval, Origin, Priority, Read, ReadFailure, Reader, ReaderChoice, ReaderKind, Ticket,
    parse_reader,
};
pub use replay::replay;
pub use stats::{Counters, Stats};
pub use trace::{Trace, TraceRecord};

/// Offsets and lengths of direct reads, slot starts and slot sizes are multiples of this many bytes.
///
/// Every drive and filesystem we know of accepts it; one that wants more refuses the probe and is read
/// buffered.
pub const ALIGNMENT: u64 = 4096;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
