//! Every test that sees the crate from outside, in one binary: it is linked once.

#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]
#![allow(unreachable_pub, reason = "nothing reaches a test binary")]

#[path = "../support/mod.rs"]
mod support;

mod check;
mod cli;
mod cli_run;
mod dialects;
mod durable;
mod files;
#[cfg(feature = "torch")]
mod hh;
mod incremental;
#[cfg(all(unix, feature = "torch"))]
mod interrupt;
mod lab;
mod messages;
mod openai;
mod oracle;
mod overtaken;
mod panics;
mod planned;
mod policies;
mod progress;
mod property;
mod published;
mod schemas;
mod secrets;
#[cfg(feature = "torch")]
mod serve;
#[cfg(feature = "torch")]
mod serve_node;
mod settings;
mod setup;
mod sketch;
mod tidy;
#[cfg(feature = "torch")]
mod torch_backend;
#[cfg(feature = "torch")]
mod torch_chat;
#[cfg(feature = "torch")]
mod torch_conformance;
#[cfg(feature = "torch")]
mod torch_damage;
#[cfg(feature = "torch")]
mod torch_invariance;
#[cfg(feature = "torch")]
mod torch_tiny;
#[cfg(feature = "torch")]
mod trainers;
#[cfg(feature = "torch")]
mod training;
mod verify;
