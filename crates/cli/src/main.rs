//! The slotbank binary.
fn main() {}
