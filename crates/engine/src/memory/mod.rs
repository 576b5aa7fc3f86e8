//! How much memory this process may use, and whether the machine is running out of it.
//!
//! The system's free memory is not the whole answer: a control group may allow less, and its limit is not what the system reports.
//! [`Watch`] looks again while tokens are generated, because a bank larger than what the system keeps resident is many
//! times slower than one that is a little too small.

mod group;
mod watch;

pub use group::Group;
pub use watch::{Decision, Needs, Sample, Watch, decide};

/// What there is, in bytes.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Memory {
    /// Of the machine.
    pub total_bytes: u64,
    /// What this process may still take: what the system calls available, and no more than its control group allows.
    pub available_bytes: u64,
    /// The tightest control group above this process, where one sets a limit.
    pub group: Option<Group>,
    /// Swap space.
    pub swap_total_bytes: u64,
    /// Swap space that is free.
    pub swap_free_bytes: u64,
}

impl Memory {
    /// As of now.
    pub fn now() -> Memory {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        let total_bytes = system.total_memory();
        let group = Group::tightest(total_bytes);
        let room = group.as_ref().map_or(u64::MAX, Group::room_bytes);
        Memory {
            total_bytes,
            available_bytes: system.available_memory().min(room),
            group,
            swap_total_bytes: system.total_swap(),
            swap_free_bytes: system.free_swap(),
        }
    }
}
