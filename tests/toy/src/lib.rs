//! Toy checkpoints for tests.
