//! The bank from outside: its state machine against a naive model, its reactions to a bad drive, and its
//! readers on real files.

#[path = "../support/mod.rs"]
mod support;

mod ahead;
mod cases;
mod drives;
mod model;
mod plans;
mod readers;
mod resize;
mod wide;
