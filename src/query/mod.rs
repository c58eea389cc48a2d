//! `query`: what was made, read back: SQL over snapshots, how two differ, where a row comes from.
//!
//! Readers never lock. A [`Reader`] is the snapshots of one pipeline.

#[cfg(feature = "sql")]
mod depth;
pub mod diff;
pub mod explain;
pub mod history;
pub mod json;
pub mod predicate;
pub mod shown;
#[cfg(feature = "sql")]
pub mod sql;
#[cfg(test)]
mod testing;

use std::fs;

use crate::store::{Snapshot, Snapshots, Store, StoreError};

/// Why nothing could be read.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such pipeline.
    #[error("the store holds no pipeline \"{name}\"; it holds {}", list(available))]
    NoPipeline {
        /// The name asked for.
        name: String,
        /// The names there are.
        available: Vec<String>,
    },
    /// The words name no snapshot.
    #[error("\"{0}\" names no snapshot: it is a number, `latest` or `latest~1`")]
    NoReference(String),
    /// The pipeline has not so many snapshots.
    #[error("pipeline \"{pipeline}\" has {count} snapshots, so there is no \"{reference}\"")]
    TooFew {
        /// The pipeline.
        pipeline: String,
        /// How many it has.
        count: usize,
        /// The one asked for.
        reference: String,
    },
    /// There is no such row.
    #[error("no row of {place} has an id that begins with \"{prefix}\"")]
    NoRow {
        /// Where was searched.
        place: String,
        /// What was searched for.
        prefix: String,
    },
    /// Several rows match.
    #[error("\"{prefix}\" is the beginning of several ids: {}", found.join(", "))]
    ManyRows {
        /// What was searched for.
        prefix: String,
        /// Some that match, as NODE/ROW.
        found: Vec<String>,
    },
    /// What stands for a row id is none.
    #[error("\"{0}\" names no row: a row is NODE/ROW, ROW being the first hex digits of its id")]
    NotAnId(String),
    /// The query was refused, by words or by rows.
    #[error("{0}")]
    Sql(String),
    /// This program was built without SQL.
    #[error(
        "this amend was built without SQL: build it with `--features sql`, or point DuckDB or Polars at {0}"
    )]
    NoSql(String),
    /// Rows could not be shown.
    #[error("rows cannot be written as text: {0}")]
    Show(#[from] arrow::error::ArrowError),
}

impl QueryError {
    /// Whether other words would help.
    pub fn is_usage(&self) -> bool {
        !matches!(self, QueryError::Store(_) | QueryError::Show(_) | QueryError::Sql(_))
            || matches!(
                self,
                QueryError::Store(StoreError::NoSnapshot { .. } | StoreError::NoSuchName { .. })
            )
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

type Result<T> = std::result::Result<T, QueryError>;

/// The pipelines of a store.
#[derive(Clone, Debug)]
pub struct Pipelines {
    store: Store,
    names: Vec<String>,
}

impl Pipelines {
    /// Those that have a snapshot, by name.
    pub fn of(store: &Store) -> Result<Pipelines> {
        let mut names = Vec::new();
        if store.dir().is_dir() {
            let failed = |error| StoreError::io("list", store.dir(), error);
            for entry in fs::read_dir(store.dir()).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if entry.path().join("snapshots").is_dir()
                    && !store.snapshots(&name).numbers()?.is_empty()
                {
                    names.push(name);
                }
            }
        }
        names.sort();
        Ok(Pipelines { store: store.clone(), names })
    }

    /// Their names, sorted.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// A reader of one of them.
    pub fn reader(&self, name: &str) -> Result<Reader> {
        if self.names.iter().any(|known| known == name) {
            return Ok(Reader::new(&self.store, name));
        }
        Err(QueryError::NoPipeline { name: name.to_owned(), available: self.names.clone() })
    }
}

/// Reads the snapshots of one pipeline.
#[derive(Clone, Debug)]
pub struct Reader {
    /// The store.
    pub store: Store,
    /// The pipeline.
    pub pipeline: String,
}

impl Reader {
    /// A reader of a pipeline of a store.
    pub fn new(store: &Store, pipeline: &str) -> Reader {
        Reader { store: store.clone(), pipeline: pipeline.to_owned() }
    }

    /// The pipeline's snapshots.
    pub fn snapshots(&self) -> Snapshots {
        self.store.snapshots(&self.pipeline)
    }

    /// The snapshot that words name: a number, `latest`, or `latest~N`, N before it.
    pub fn snapshot(&self, reference: &str) -> Result<Snapshot> {
        if let Ok(number) = reference.parse() {
            return Ok(self.snapshots().at(number)?);
        }
        let wrong = || QueryError::NoReference(reference.to_owned());
        let back: usize = match reference.strip_prefix("latest") {
            Some("") => 0,
            Some(rest) => rest.strip_prefix('~').and_then(|n| n.parse().ok()).ok_or_else(wrong)?,
            None => return Err(wrong()),
        };
        let numbers = self.snapshots().numbers()?;
        match numbers.len().checked_sub(back + 1) {
            Some(at) => Ok(self.snapshots().at(numbers[at])?),
            None => Err(QueryError::TooFew {
                pipeline: self.pipeline.clone(),
                count: numbers.len(),
                reference: reference.to_owned(),
            }),
        }
    }
}
