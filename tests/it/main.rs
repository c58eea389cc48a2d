//! Every test that sees the crate from outside, in one binary: it is linked once.

#[path = "../support/mod.rs"]
mod support;

mod openai;
mod setup;
mod tidy;
