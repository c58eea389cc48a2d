//! `store`: what is kept between runs: the memo of calls, tables, checkpoints, snapshots, the lock.

pub mod disk;
pub mod error;
pub mod memo;

pub use error::{Result, StoreError};
pub use memo::{CallKind, Entry, Failure, Memo, MemoOptions, Outcome};
