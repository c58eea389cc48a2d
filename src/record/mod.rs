//! `record`: what an edge of the dataflow carries: relations, typed batches, keys.

pub mod batch;
pub mod builder;
mod describe;
pub mod key;
pub mod message;
pub mod read;
pub mod relation;
pub mod transcript;

pub use batch::{Batch, Cell, Row, Turns};
pub use builder::{BatchBuilder, Origin};
pub use key::{CallKey, Id, IdMap, KeyHasher};
pub use message::Message;
pub use relation::{Column, Kind, Part, Relation};
