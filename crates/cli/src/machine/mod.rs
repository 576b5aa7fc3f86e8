//! What this machine can do, measured briefly: the drive under a model, the memory, the processor, and the limits set to us.
//! `doctor` shows all of it; `plan` predicts from a part.

pub(crate) mod drive;
pub(crate) mod processor;
pub(crate) mod system;
