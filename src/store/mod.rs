//! `store`: what is kept between runs: the memo of calls, tables, checkpoints, snapshots, the lock.
//!
//! ```text
//! .amend/                        shared by all pipelines that name this store
//! ├── calls/                     the memo
//! ├── checkpoints/<weights id>/  models
//! ├── trainings/<recipe>.json    what each training gave
//! ├── lock
//! └── <pipeline>/                snapshots, links to the last, what gave that again, its files' stamps
//! ```

pub mod checkpoints;
#[cfg(test)]
mod crash;
pub mod disk;
pub mod error;
mod given;
pub mod lock;
pub mod manifest;
pub mod memo;
mod profiles;
mod seal;
pub mod snapshot;
pub mod snapshots;
mod sound;
pub mod stamp;
pub mod table;
pub mod verify;
mod whole;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use checkpoints::Checkpoints;
pub use disk::{Disk, LocalDisk};
pub use error::{Result, StoreError};
pub use lock::Lock;
pub use manifest::{
    CheckpointRef, Inputs, Manifest, Mark, NodeAbout, NodeEntry, Part, SourceFile, TableEntry,
    TextFile,
};
pub use memo::{CallKind, Entry, Failure, Memo, MemoOptions, Outcome, Served};
pub use profiles::StoredProfiles;
pub use snapshot::{IdsDiff, Snapshot};
pub use snapshots::{Committed, Draft, Snapshots};
pub use table::{RowIds, Table, TableRow};
pub use verify::{Fault, Verified};
pub use whole::DamagedPart;

use error::At;

/// A store: a directory.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
}

impl Store {
    /// The store of a directory, which need not exist: a store that nothing was written to is empty.
    pub fn new(dir: &Path) -> Store {
        Store::on(dir, Arc::new(LocalDisk))
    }

    /// The same, with its files changed through a disk.
    pub fn on(dir: &Path, disk: Arc<dyn Disk>) -> Store {
        Store { dir: dir.to_owned(), disk }
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes the lock for a run of a pipeline that started at a time, microseconds since 1970.
    pub fn lock(&self, pipeline: &str, started_at_us: i64) -> Result<Lock> {
        self.disk.create_dirs(&self.dir).at("make", &self.dir)?;
        Lock::take(&self.dir, pipeline, started_at_us)
    }

    /// Where the memo is.
    pub fn calls(&self) -> PathBuf {
        self.dir.join("calls")
    }

    /// Opens the memo for reading and writing; the caller holds the lock.
    pub fn memo(&self) -> Result<Memo> {
        let disk = Arc::clone(&self.disk);
        Memo::open_with(&self.calls(), MemoOptions { disk, ..MemoOptions::default() })
    }

    /// Opens the memo for reading.
    pub fn memo_read_only(&self) -> Result<Memo> {
        Memo::open_read_only(&self.calls())
    }

    /// The profiles of endpoints.
    pub fn profiles(&self) -> StoredProfiles {
        StoredProfiles::new(self.dir.join("endpoints"), Arc::clone(&self.disk))
    }

    /// The checkpoints and trainings.
    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints::new(&self.dir, Arc::clone(&self.disk))
    }

    /// The snapshots of a pipeline.
    pub fn snapshots(&self, pipeline: &str) -> Snapshots {
        Snapshots::new(&self.dir, pipeline, Arc::clone(&self.disk))
    }
}
