//! Tests of the bank.
