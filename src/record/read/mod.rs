//! Reading: rows from files. Every row of them becomes a row or a reject that names its file and line.
//!
//! ```text
//! files ──open──▶ text ──lines──▶ fields by name ──shape──▶ conversation, pair or demonstration ──identity──▶ row
//!                                       └──────────────────────────┴──▶ reject, with its line and the reason
//! ```

mod commas;
mod conversation;
mod fields;
mod files;
mod fingerprint;
mod identity;
mod json;
mod lines;
mod open;
mod parquet_rows;
mod probe;
mod shape;

use std::io;
use std::path::PathBuf;

use indexmap::IndexMap;

use super::batch::{Batch, Cell};
use super::builder::{BatchBuilder, Origin};
use super::key::Id;
use super::relation::Relation;
use fields::Fields;
use identity::{Identities, Place};
use lines::Record;
use shape::Fault;

pub use files::{Found, FoundError, folder, is_pattern, matching};
pub use fingerprint::{Fingerprint, fingerprint};
pub use open::open;
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

/// A file of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Where it is.
    pub path: PathBuf,
    /// What it is called in the column `source`: its path as it is written.
    pub source: String,
    /// What it holds. A file that is packed by gzip or zstd is unpacked whatever its name.
    pub format: Format,
}

/// How files are read.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// What their rows are: prompts, comparisons or demonstrations.
    pub relation: Relation,
    /// Whether prompts and completions are texts that stand as they are, instead of conversations.
    pub verbatim: bool,
    /// Columns that identify a row; without them its id is a hash of what it says.
    pub key: Vec<String>,
    /// Our column, and what the files call it.
    pub columns: IndexMap<String, String>,
    /// Rows read, from the top of the first file.
    pub limit: Option<u64>,
    /// The node that reads, for rejects.
    pub node: String,
}

/// What files gave: batches with each row's content and version.
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
    /// It is a file of another kind.
    #[error("{}: {detail}: {help}", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What it is.
        detail: String,
        /// What to do.
        help: String,
    },
    /// No row has the columns that are needed.
    #[error("{}:{line}: {detail}; it has {}", path.display(), some_of(found))]
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
    #[error("{}", same_key(files, key, lines))]
    SameKey {
        /// Their files.
        files: Box<(PathBuf, PathBuf)>,
        /// The key, as JSON.
        key: String,
        /// Their lines.
        lines: (u64, u64),
    },
}

/// Names, not more than a person reads.
pub fn some_of(names: &[String]) -> String {
    const MOST: usize = 30;
    match names.len().checked_sub(MOST) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..MOST].join(", ")),
    }
}

fn same_key((first, second): &(PathBuf, PathBuf), key: &str, lines: &(u64, u64)) -> String {
    if first == second {
        let path = first.display();
        return format!("{path}: lines {} and {} have the key {key} and differ", lines.0, lines.1);
    }
    format!(
        "line {} of {} and line {} of {} have the key {key} and differ",
        lines.0,
        first.display(),
        lines.1,
        second.display()
    )
}

/// Reads files, one after the other.
///
/// # Panics
///
/// When the relation is none that files hold.
pub fn read(inputs: &[Input], options: &ReadOptions) -> Result<ReadRows, ReadError> {
    let mut reader = Reader::new(inputs, options);
    let mut seen = 0;
    for (at, input) in inputs.iter().enumerate() {
        if options.limit.is_some_and(|limit| seen >= limit) {
            break;
        }
        reader.begin(at);
        let each = lines::each(&input.path, input.format, &mut |record| {
            if options.limit.is_some_and(|limit| seen >= limit) {
                return Ok(false);
            }
            seen += 1;
            reader.take(record)?;
            Ok(true)
        });
        each.and_then(|()| reader.end()).map_err(with_note)?;
    }
    Ok(reader.finish())
}

/// An error with what the name of its file says, where that is why nothing in it can be read.
fn with_note(error: ReadError) -> ReadError {
    match error {
        ReadError::Malformed { path, line, detail } => {
            let note = open::note(&path).unwrap_or_default();
            ReadError::Malformed { path, line, detail: detail + &note }
        }
        error => error,
    }
}

/// Collects rows and rejects.
struct Reader<'a> {
    inputs: &'a [Input],
    /// Which of the files is read now.
    at: usize,
    options: &'a ReadOptions,
    identities: Identities,
    done: Vec<Stamped>,
    rows: BatchBuilder,
    rejects: BatchBuilder,
    /// The first fault of the file that is read now, if no row of it has been good yet.
    first_fault: Option<(u64, Fault, Vec<String>)>,
    /// Whether a row of that file has been good.
    good: bool,
    /// Whether every fault so far is of the same kind as the first: then it is the file's.
    alike: bool,
}

impl<'a> Reader<'a> {
    fn new(inputs: &'a [Input], options: &'a ReadOptions) -> Reader<'a> {
        Reader {
            inputs,
            at: 0,
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

    /// Begins a file.
    fn begin(&mut self, at: usize) {
        (self.at, self.first_fault, self.good, self.alike) = (at, None, false, true);
    }

    fn input(&self) -> &'a Input {
        &self.inputs[self.at]
    }

    fn take(&mut self, record: Record) -> Result<(), ReadError> {
        let found: Vec<String> = match &record.fields {
            Ok(fields) if !self.good => fields.names().cloned().collect(),
            _ => Vec::new(),
        };
        let fields = record.fields.map_err(Fault::Broken);
        match fields.and_then(|fields| self.shaped(fields)) {
            Ok((key, row)) => {
                let place = Place { file: self.at, line: record.line };
                let id = self.identities.row(key.as_deref(), &row, place);
                let path = |file: usize| self.inputs[file].path.clone();
                let id = id.map_err(|first| ReadError::SameKey {
                    files: Box::new((path(first.file), path(self.at))),
                    key: key.unwrap_or_default(),
                    lines: (first.line, record.line),
                })?;
                self.good = true;
                let place = (&*self.input().source, record.line);
                row.push(id, place, self.options, &mut self.rows);
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
        let strangers = fields.rename(&self.options.columns);
        Ok((key, shape::shape(fields, strangers, self.input().format, self.options)?))
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
                ("source", Cell::text(&*self.input().source)),
                ("source_line", Cell::Int(line as i64)),
            ],
        );
    }

    /// Ends a file: one of which every row has the same fault is something else.
    fn end(&mut self) -> Result<(), ReadError> {
        if let (false, true, Some((line, fault, found))) =
            (self.good, self.alike, self.first_fault.take())
        {
            let path = self.input().path.clone();
            match fault {
                Fault::Broken(detail) => return Err(ReadError::Malformed { path, line, detail }),
                Fault::Lacks(detail) => {
                    return Err(ReadError::Columns { path, line, detail, found });
                }
                Fault::Row(_) | Fault::Identical => {}
            }
        }
        Ok(())
    }

    fn finish(mut self) -> ReadRows {
        if !self.rows.is_empty() {
            self.done.push(self.rows.finish());
        }
        ReadRows { rows: self.done, rejects: self.rejects.finish() }
    }
}

#[cfg(test)]
mod tests;
