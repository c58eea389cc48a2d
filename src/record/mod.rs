//! `record`: what an edge of the dataflow carries: relations, typed batches, keys.

pub mod batch;
mod describe;
pub mod key;
pub mod message;
pub mod read;
pub mod relation;
pub mod transcript;

pub use batch::{Batch, BatchBuilder, Cell, Origin, Row, Turns};
pub use key::{CallKey, Id, KeyHasher};
pub use message::Message;
pub use relation::{Column, Kind, Part, Relation};
