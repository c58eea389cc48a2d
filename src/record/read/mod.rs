//! Reading: rows from a file. Every row of it becomes a row or a reject that names its line.
//!
//! ```text
//! file ──lines──▶ fields by name ──shape──▶ conversation, pair or demonstration ──identity──▶ row
//!                       └──────────────────────────┴──▶ reject, with its line and the reason
//! ```

mod conversation;
mod identity;
mod lines;
mod probe;
mod shape;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::batch::{Batch, Cell};
use super::builder::{BatchBuilder, Origin};
use super::key::Id;
use super::relation::Relation;
use identity::Identities;
use lines::{Fields, Record};
use shape::Fault;

pub use probe::{Probe, probe};

/// Rows of one batch.
const BATCH: usize = 8192;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// Parquet.
    Parquet,
    /// Comma-separated, with a header line.
    Csv,
    /// JSON lines of `{"chosen", "rejected"}` transcripts.
    HhRlhf,
}

/// How a file is read.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// What the file holds. A gzipped file is unpacked whatever its name.
    pub format: Format,
    /// What its rows are: prompts, comparisons or demonstrations.
    pub relation: Relation,
    /// Whether prompts and completions are texts that stand as they are, instead of conversations.
    pub verbatim: bool,
    /// Columns that identify a row; without them its id is a hash of what it says.
    pub key: Vec<String>,
    /// Our column, and what the file calls it.
    pub columns: IndexMap<String, String>,
    /// Rows read, from the top.
    pub limit: Option<u64>,
    /// What the file is called in the column `source`: its path as it is written.
    pub source: String,
    /// The node that reads, for rejects.
    pub node: String,
}

/// What a file gave: batches with each row's content and version.
#[derive(Debug)]
pub struct ReadRows {
    /// The rows.
    pub rows: Vec<Stamped>,
    /// The rejects.
    pub rejects: Stamped,
}

/// A batch with each row's content and version.
pub type Stamped = (Batch, Vec<(Id, Id)>);

impl ReadRows {
    /// How many rows there are, without rejects.
    pub fn len(&self) -> usize {
        self.rows.iter().map(|(batch, _)| batch.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why a file cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be opened, or ends in its middle.
    #[error("{}: after line {line}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The last line that was read; 0 is none.
        line: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is not what its format says.
    #[error("{}:{line}: {detail}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, or the row of a Parquet file.
        line: u64,
        /// What is wrong.
        detail: String,
    },
    /// No row has the columns that are needed.
    #[error("{}:{line}: {detail}; it has {}", path.display(), found.join(", "))]
    Columns {
        /// The file.
        path: PathBuf,
        /// The first line that lacks them.
        line: u64,
        /// What is wanted.
        detail: String,
        /// The columns of that line.
        found: Vec<String>,
    },
    /// Two rows have one key and say different things.
    #[error("{}: lines {} and {} have the key {key} and differ", path.display(), lines.0, lines.1)]
    SameKey {
        /// The file.
        path: PathBuf,
        /// The key, as JSON.
        key: String,
        /// The two lines.
        lines: (u64, u64),
    },
}

/// Reads a file.
///
/// # Panics
///
/// When the relation is none that files hold.
pub fn read(path: &Path, options: &ReadOptions) -> Result<ReadRows, ReadError> {
    let mut reader = Reader::new(path, options);
    let mut seen = 0;
    lines::each(path, options.format, &mut |record| {
        if options.limit.is_some_and(|limit| seen >= limit) {
            return Ok(false);
        }
        seen += 1;
        reader.take(record)?;
        Ok(true)
    })?;
    reader.finish()
}

/// Collects rows and rejects.
struct Reader<'a> {
    path: &'a Path,
    options: &'a ReadOptions,
    identities: Identities,
    done: Vec<Stamped>,
    rows: BatchBuilder,
    rejects: BatchBuilder,
    /// The first fault of the file, if no row has been good yet.
    first_fault: Option<(u64, Fault, Vec<String>)>,
    good: bool,
    /// Whether every fault so far is of the same kind as the first: then it is the file's.
    alike: bool,
}

impl<'a> Reader<'a> {
    fn new(path: &'a Path, options: &'a ReadOptions) -> Reader<'a> {
        Reader {
            path,
            options,
            identities: Identities::default(),
            done: Vec::new(),
            rows: BatchBuilder::new(options.relation),
            rejects: BatchBuilder::new(Relation::Rejects),
            first_fault: None,
            good: false,
            alike: true,
        }
    }

    fn take(&mut self, record: Record) -> Result<(), ReadError> {
        let found: Vec<String> = match &record.fields {
            Ok(fields) if !self.good => fields.keys().cloned().collect(),
            _ => Vec::new(),
        };
        let fields = record.fields.map_err(Fault::Broken);
        match fields.and_then(|fields| self.shaped(fields)) {
            Ok((key, row)) => {
                let id = self.identities.row(key.as_deref(), &row, record.line);
                let id = id.map_err(|first| ReadError::SameKey {
                    path: self.path.to_owned(),
                    key: key.unwrap_or_default(),
                    lines: (first, record.line),
                })?;
                self.good = true;
                row.push(id, record.line, self.options, &mut self.rows);
                if self.rows.len() == BATCH {
                    let full =
                        std::mem::replace(&mut self.rows, BatchBuilder::new(self.options.relation));
                    self.done.push(full.finish());
                }
            }
            Err(fault) => {
                self.reject(record.line, &record.raw, &fault);
                match &self.first_fault {
                    None => self.first_fault = Some((record.line, fault, found)),
                    Some((_, first, _)) => self.alike &= first.is_like(&fault),
                }
            }
        }
        Ok(())
    }

    /// The key, as JSON, and what the row says.
    fn shaped(&self, mut fields: Fields) -> Result<(Option<String>, shape::Shaped), Fault> {
        let key = identity::key(&fields, self.options)?;
        let columns = self.options.columns.iter();
        let renamed: Vec<(&String, Option<serde_json::Value>)> =
            columns.map(|(ours, theirs)| (ours, fields.shift_remove(theirs))).collect();
        // A column of the file that has the name of another of ours is none of ours.
        let mut strangers = Fields::new();
        for (ours, value) in renamed {
            if let Some(stranger) = value.and_then(|value| fields.insert(ours.clone(), value)) {
                strangers.insert(ours.clone(), stranger);
            }
        }
        Ok((key, shape::shape(fields, strangers, self.options)?))
    }

    fn reject(&mut self, line: u64, raw: &str, fault: &Fault) {
        let id = self.identities.reject(raw, &self.options.node);
        let origin = Origin { row_id: id, root_id: id, parents: Vec::new(), call_keys: Vec::new() };
        self.rejects.push(
            &origin,
            &[
                ("node", Cell::text(&*self.options.node)),
                ("reason", Cell::text(fault.reason())),
                ("detail", Cell::text(fault.detail())),
                ("source", Cell::text(&*self.options.source)),
                ("source_line", Cell::Int(line as i64)),
            ],
        );
    }

    fn finish(mut self) -> Result<ReadRows, ReadError> {
        if let (false, true, Some((line, fault, found))) = (self.good, self.alike, self.first_fault)
        {
            let path = self.path.to_owned();
            match fault {
                Fault::Broken(detail) => return Err(ReadError::Malformed { path, line, detail }),
                Fault::Lacks(detail) => {
                    return Err(ReadError::Columns { path, line, detail, found });
                }
                Fault::Row(_) | Fault::Identical => {}
            }
        }
        if !self.rows.is_empty() {
            self.done.push(self.rows.finish());
        }
        Ok(ReadRows { rows: self.done, rejects: self.rejects.finish() })
    }
}

/// What a file is, so that a change can be seen: without reading it by size and time, surely by
/// its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Bytes.
    pub bytes: u64,
    /// Nanoseconds since 1970 when it was last changed; 0 where that is not known.
    pub modified_ns: u64,
    /// The blake3 hash of its bytes.
    pub hash: String,
}

/// The fingerprint of a file.
pub fn fingerprint(path: &Path) -> io::Result<Fingerprint> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let modified = metadata.modified().ok();
    let since = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            bytes => hasher.update(&buffer[..bytes]),
        };
    }
    Ok(Fingerprint {
        bytes: metadata.len(),
        modified_ns: since.map_or(0, |since| since.as_nanos() as u64),
        hash: hasher.finalize().to_hex().to_string(),
    })
}

#[cfg(test)]
mod tests;
