//! What several tests lean on.

pub(crate) mod fake_dialects;
pub(crate) mod fake_messages;
pub(crate) mod fake_model;
pub(crate) mod fake_openai;
pub(crate) mod fake_openai_replies;
pub(crate) mod server;
#[cfg(feature = "torch")]
pub(crate) mod shared;
