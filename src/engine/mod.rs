//! `engine`: renders a plan to one timely/differential dataflow and runs it.
//!
//! Through differential travel keys alone; what they stand for is in [`rows`] and [`context`].

mod ask;
mod asked;
mod bell;
mod budget;
mod call;
pub mod compile;
pub mod context;
mod digest;
pub mod dispatch;
pub mod draw;
pub mod estimate;
mod gather;
pub mod local;
mod once;
mod policy;
pub mod progress;
mod render;
pub mod rows;
pub mod run;
pub mod session;
pub mod shape;
mod shared;
mod streak;
mod tally;
mod time;
pub mod train;
mod trained;
mod worker;

pub use policy::{KeptBy, Policy, Standing};
pub use shared::{Span, TrainingState};
