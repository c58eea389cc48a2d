//! `local`: the world of a run on this machine: its files, models, memo and trainer.

mod external;
pub mod memory;
pub mod models;
pub mod trainings;
