//! `torch`: a checkpoint in Hugging Face layout, run in this process by libtorch.
//!
//! `config.json` and safetensors become a [`Checkpoint`], its weights a [`Transformer`], which reads
//! whole sequences (training, scoring) or one token a row with a cache (sampling).
//!
//! What a row gets is the same bits whatever its neighbours are, their number and their order, and
//! a row's draws are a function of its seed. On a processor a model is run by kernels of our own
//! (`amend_kernels`), which sum in one order whatever the shape and the number of threads.
//! Elsewhere libtorch runs it: every matrix product has at least [`ROWS_MIN`] rows, attention is
//! written as products and a softmax.

pub mod backend;
pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod generate;
pub mod generation_config;
pub mod listen;
pub mod score;
pub mod tokenizer;
pub mod train;
pub mod transformer;
pub mod weights;

mod block;
mod block_reader;
mod cache;
mod draw;
mod error;
mod fused;
mod kernels;
mod linear;
mod page_reader;
mod pages;
mod prefix;
mod reader;
mod restart;
mod rope;
mod row;
mod sampling;
mod worker;

pub use backend::{
    DeviceChoice, Precision, TorchBackend, TorchOptions, is_preference_model, usual_format,
};
pub use chat::ChatTemplate;
pub use checkpoint::{Checkpoint, weights_id};
pub use config::{Head, TransformerConfig};
pub use error::TorchError;
pub use generate::{CACHE_BYTES, Continuation, Generated, Generator, generate};
pub use generation_config::GenerationConfig;
pub use listen::{Event, Input, Listener, Piece, PromptDone, Token};
pub use restart::{clean_child, prepare_process};
pub use score::{rewards, score};
pub use tokenizer::{Continued, TextTokenizer};
pub use train::TorchTrainer;
pub use transformer::{AttentionMask, Transformer};
pub use weights::Weights;

/// The fewest rows of a matrix product of libtorch: below it another kernel is chosen, with other
/// bits.
pub const ROWS_MIN: usize = 8;

/// A count or an index as libtorch takes it.
pub(crate) fn int(count: usize) -> i64 {
    i64::try_from(count).expect("a count fits in 63 bits")
}

/// The least multiple of `step` that is not below `count`.
pub(crate) fn round_up(count: usize, step: usize) -> usize {
    count.div_ceil(step) * step
}
