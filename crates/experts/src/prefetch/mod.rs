//! Whether reading ahead of demand pays. Who is likely to be needed is for the engine to guess; how guesses are read without
//! disturbing anybody is the affair of [`Bank::read_ahead`](crate::Bank::read_ahead).

mod judge;

pub use judge::Judge;
