//! Every test that sees the crate from outside, in one binary: it is linked once.

#[path = "../support/mod.rs"]
mod support;

mod cli;
mod cli_run;
mod incremental;
mod lab;
mod openai;
mod oracle;
mod schemas;
mod setup;
mod tidy;
#[cfg(feature = "torch")]
mod torch_backend;
#[cfg(feature = "torch")]
mod torch_conformance;
#[cfg(feature = "torch")]
mod torch_invariance;
#[cfg(feature = "torch")]
mod torch_tiny;
