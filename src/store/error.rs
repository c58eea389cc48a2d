//! Errors of the store: each names the file and what can be done.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What went wrong in the store. It is `Clone` because one failed write is told to every call that
/// was part of it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("{action} \"{}\": {source}{}", path.display(), advice(source))]
    Io {
        /// What was tried, such as `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// The bytes of a file are not those that were written.
    #[error("\"{}\" is damaged: {what}; {help}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What does not hold.
        what: String,
        /// The way out.
        help: String,
    },
    /// The file was written by another version of amend.
    #[error("\"{}\" was written by {} amend: it has format {found}, and this one reads {expected}; use the amend that wrote it, or another --store", path.display(), if found > expected { "a newer" } else { "another" })]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The format that this program reads.
        expected: u64,
    },
    /// Another run holds the store.
    #[error("the store \"{}\" is in use by {holder}; wait for it to end, or name another --store", path.display())]
    Locked {
        /// The store.
        path: PathBuf,
        /// Who holds it.
        holder: String,
    },
    /// There is no such snapshot.
    #[error("pipeline \"{pipeline}\" has no snapshot {number}{}", has(available))]
    NoSnapshot {
        /// The pipeline.
        pipeline: String,
        /// The number asked for.
        number: u64,
        /// The numbers there are.
        available: Vec<u64>,
    },
    /// There is no such table or column.
    #[error("{place} has no {kind} \"{name}\"; it has {}", available.join(", "))]
    NoSuchName {
        /// What was searched, such as `snapshot 17`.
        place: String,
        /// `table` or `column`.
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// The names there are.
        available: Vec<String>,
    },
    /// The memo was opened for reading, or is closed.
    #[error("the memo \"{}\" takes no more calls: it is closed or was opened for reading", path.display())]
    ReadOnly {
        /// The directory of the memo.
        path: PathBuf,
    },
    /// Somebody else committed the same snapshot.
    #[error("snapshot {number} was committed by another process meanwhile; run again")]
    Conflict {
        /// The number of the snapshot.
        number: u64,
    },
}

fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space and run again: every call acknowledged so far is kept"
        }
        io::ErrorKind::PermissionDenied => "; check the owner and the mode of the store",
        io::ErrorKind::ReadOnlyFilesystem => {
            "; name a --store on a file system that can be written"
        }
        _ => "",
    }
}

fn has(available: &[u64]) -> String {
    match (available.first(), available.last()) {
        (Some(first), Some(last)) => format!("; it has {first} to {last}"),
        _ => "; it has none yet".to_owned(),
    }
}

/// The result of what the store does.
pub type Result<T> = std::result::Result<T, StoreError>;

impl StoreError {
    /// An error of the operating system.
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> StoreError {
        StoreError::Io { action, path: path.to_owned(), source: Arc::new(source) }
    }

    /// A damaged file.
    pub fn corrupt(path: &Path, what: impl Into<String>, help: impl Into<String>) -> StoreError {
        StoreError::Corrupt { path: path.to_owned(), what: what.into(), help: help.into() }
    }
}

/// Says which file an operation was about.
pub(crate) trait At<T> {
    /// The error with what was tried and the file.
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| StoreError::io(action, path, source))
    }
}
