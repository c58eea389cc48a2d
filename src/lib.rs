//! amend: a declarative dataflow engine for Constitutional AI (arXiv 2212.08073).
//!
//! One folder per noun of the way the data goes; a folder names only those before it.
//! `ARCHITECTURE.md` draws the way, `tests/it/tidy.rs` keeps it.

pub mod record;

pub mod spec;

pub mod plan;

pub mod model;

pub mod operators;

pub mod store;

pub mod engine;

pub mod query;

pub mod cli;
