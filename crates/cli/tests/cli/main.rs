//! The binary as a user meets it: arguments in, text, files and exit codes out.

mod architectures;
mod bench;
mod chat;
mod demo;
mod doctor;
mod errors;
mod eval;
mod flash_moe;
mod help;
mod interrupt;
mod logits;
mod make_model;
mod packed;
mod perplexity;
mod run;
mod sidecar;
mod support;
mod trace;
