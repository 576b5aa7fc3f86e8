//! Who leaves when a slot is needed. One file per policy, three functions each.
//!
//! A policy sees slots and the experts in them, never bytes and never leases: the bank asks for a victim
//! among the slots that it calls eligible, so a policy can be wrong about usefulness but not about
//! correctness. Policies are deterministic: the same calls in the same order give the same victims, which is
//! what lets a replay reproduce a run.

mod history;
pub mod lfu;
pub mod lrfu;
pub mod lru;
pub mod pinned;
mod ranks;

use crate::plan::{BankPlan, SlotId};

/// One expert of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExpertKey {
    /// Block index.
    pub layer: u32,
    /// Expert id in the layer.
    pub expert: u32,
}

/// An eviction policy.
pub trait Policy: Send + Sync {
    /// `slot` serves `expert` in the request that is being resolved. Called once per unique expert, in order
    /// of first appearance.
    fn touch(&mut self, slot: SlotId, expert: ExpertKey);

    /// The slot of `class` to give up, among those for which `eligible` holds, or none if there is no such
    /// slot. Must not change the standing of any slot; the bank touches the winner afterwards.
    fn victim(&mut self, class: u16, eligible: &dyn Fn(SlotId) -> bool) -> Option<SlotId>;

    /// `slot` is empty now.
    fn forget(&mut self, slot: SlotId);
}

/// The names that [`by_name`] understands, the default first: the one that had the best hit rates on our traces (docs/traces.md).
pub const NAMES: &[&str] = &["lfu", "lru", "lrfu"];

/// Builds a policy for the slots of `plan`.
pub fn by_name(name: &str, plan: &BankPlan) -> Option<Box<dyn Policy>> {
    match name {
        "lru" => Some(Box::new(lru::Lru::new(plan))),
        "lfu" => Some(Box::new(lfu::Lfu::new(plan))),
        "lrfu" => Some(Box::new(lrfu::Lrfu::new(plan))),
        _ => None,
    }
}
