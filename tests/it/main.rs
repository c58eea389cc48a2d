//! Every test that sees the crate from outside, in one binary: it is linked once.

mod setup;
mod tidy;
#[cfg(feature = "torch")]
mod torch_conformance;
