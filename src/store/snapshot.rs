//! A committed snapshot: reading its manifest and its tables. Readers never lock.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use arrow::array::RecordBatch;

use super::error::{At, Result, StoreError};
use super::manifest::{FORMAT, Manifest, Part, TableEntry};
use super::table::{self, Place, RowIds};
use crate::record::{Batch, Id};

/// The name of the file that commits a snapshot.
pub(super) const MANIFEST: &str = "manifest.json";

/// One committed state of all tables of a pipeline; it never changes.
#[derive(Debug)]
pub struct Snapshot {
    dir: PathBuf,
    manifest: Manifest,
    /// The parts whose bytes were checked.
    verified: Mutex<BTreeSet<PathBuf>>,
}

/// How the rows of a node differ between two snapshots. Each list is sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdsDiff {
    /// Rows of the second only.
    pub inserted: Vec<RowIds>,
    /// Rows of the first only.
    pub deleted: Vec<RowIds>,
    /// Rows of both that say something else, as they were and as they are.
    pub updated: Vec<(RowIds, RowIds)>,
}

impl Snapshot {
    /// Opens the snapshot of a directory; nothing when it was not committed.
    pub(super) fn open(dir: &Path) -> Result<Option<Snapshot>> {
        let path = dir.join(MANIFEST);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.at("read", &path)?,
        };
        let manifest = parse(&path, &bytes)?;
        Ok(Some(Snapshot { dir: dir.to_owned(), manifest, verified: Mutex::default() }))
    }

    /// What it is made of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The Parquet files of a node's table, in the order of their rows.
    pub fn files(&self, node: &str) -> Result<Vec<PathBuf>> {
        let place = self.place(node);
        Ok(self.table_entry(node)?.parts.iter().map(|part| place.part(part)).collect())
    }

    /// The columns of a node's table, or all, its rows sorted by row id.
    pub fn read_table(&self, node: &str, columns: Option<&[&str]>) -> Result<Vec<RecordBatch>> {
        let mut batches = Vec::new();
        for part in &self.table_entry(node)?.parts {
            batches.extend(self.read_part(node, part, columns, None)?);
        }
        Ok(batches)
    }

    /// A node's whole table as batches of its relation.
    pub fn read_batches(&self, node: &str) -> Result<Vec<Batch>> {
        let batches = self.read_table(node, None)?;
        batches.into_iter().map(|rows| self.batch(node, rows)).collect()
    }

    /// The rows of those ids that the node has, sorted by row id.
    pub fn find(&self, node: &str, row_ids: &BTreeSet<Id>) -> Result<Vec<Batch>> {
        let mut found = Vec::new();
        for part in &self.table_entry(node)?.parts {
            let ids = self.part_ids(node, part)?;
            let rows = ids.iter().enumerate().filter(|(_, ids)| row_ids.contains(&ids.row_id));
            let rows: Vec<usize> = rows.map(|(row, _)| row).collect();
            if !rows.is_empty() {
                let batches = self.read_part(node, part, None, Some(&rows))?;
                for rows in batches {
                    found.push(self.batch(node, rows)?);
                }
            }
        }
        Ok(found)
    }

    /// The ids of a node's rows, sorted by row id; reads no Parquet.
    pub fn read_ids(&self, node: &str) -> Result<Vec<RowIds>> {
        let mut ids = Vec::new();
        for part in &self.table_entry(node)?.parts {
            ids.extend(self.part_ids(node, part)?);
        }
        Ok(ids)
    }

    /// How a node's rows changed from this snapshot to another; a node that one of them has not has
    /// no rows there. Reads no Parquet, and nothing of parts that are the same.
    pub fn diff(&self, after: &Snapshot, node: &str) -> Result<IdsDiff> {
        let same = |part: &Part, of: &Snapshot| {
            let parts = of.manifest.nodes.get(node).map_or(&[][..], |entry| &entry.table.parts);
            parts.iter().any(|other| other.is_same(part))
        };
        let changed = |of: &Snapshot, other: &Snapshot| -> Result<Vec<RowIds>> {
            let parts = of.manifest.nodes.get(node).map_or(&[][..], |entry| &entry.table.parts);
            let mut ids = Vec::new();
            for part in parts.iter().filter(|part| !same(part, other)) {
                ids.extend(of.part_ids(node, part)?);
            }
            Ok(ids)
        };
        Ok(diff(&changed(self, after)?, &changed(after, self)?))
    }

    /// The ids of a part; where their file is damaged, those of its rows, which are the same.
    fn part_ids(&self, node: &str, part: &Part) -> Result<Vec<RowIds>> {
        let error = match table::read_ids(&self.place(node), part) {
            Ok(ids) => return Ok(ids),
            Err(error) => error,
        };
        let Some(ids) = self.ids_of_rows(node, part) else { return Err(error) };
        tracing::warn!("{error}; the rows were read in its place");
        Ok(ids)
    }

    /// The ids of a part by its rows; nothing where those are damaged.
    pub(super) fn ids_of_rows(&self, node: &str, part: &Part) -> Option<Vec<RowIds>> {
        let rows = self.read_part(node, part, None, None).ok()?.into_iter();
        let rows = rows.map(|rows| self.batch(node, rows)).collect::<Result<Vec<Batch>>>();
        table::ids_of(part, &rows.ok()?)
    }

    fn read_part(
        &self,
        node: &str,
        part: &Part,
        columns: Option<&[&str]>,
        rows: Option<&[usize]>,
    ) -> Result<Vec<RecordBatch>> {
        let place = self.place(node);
        let path = place.part(part);
        let verified = || self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if !verified().contains(&path) {
            table::verify(&place, part)?;
            verified().insert(path);
        }
        table::read_part(&place, part, columns, rows)
    }

    fn batch(&self, node: &str, rows: RecordBatch) -> Result<Batch> {
        let relation = self.table_entry(node)?.relation;
        if rows.schema().fields() != relation.schema().fields() {
            let what = format!("its columns are not those of the relation {relation}");
            let help = "read it with the amend that wrote it, or run into another --store";
            return Err(StoreError::corrupt(&self.dir.join("tables").join(node), what, help));
        }
        let columns = rows.columns().to_vec();
        let rows = RecordBatch::try_new(relation.schema(), columns).expect("the fields are equal");
        Ok(Batch::new(relation, rows))
    }

    pub(super) fn place(&self, node: &str) -> Place {
        Place::of(&self.dir, node)
    }

    pub(super) fn table_entry(&self, node: &str) -> Result<&TableEntry> {
        let nodes = &self.manifest.nodes;
        let entry = nodes.get(node).ok_or_else(|| StoreError::NoSuchName {
            place: format!("snapshot {}", self.manifest.number),
            kind: "node",
            name: node.to_owned(),
            available: nodes.keys().cloned().collect(),
        });
        Ok(&entry?.table)
    }
}

/// Rows of sorted ids that differ.
fn diff(before: &[RowIds], after: &[RowIds]) -> IdsDiff {
    let mut diff = IdsDiff::default();
    let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let order = match (before.peek(), after.peek()) {
            (None, None) => return diff,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(was), Some(is)) => was.row_id.cmp(&is.row_id),
        };
        match order {
            std::cmp::Ordering::Less => diff.deleted.extend(before.next()),
            std::cmp::Ordering::Greater => diff.inserted.extend(after.next()),
            std::cmp::Ordering::Equal => {
                let pair = before.next().zip(after.next());
                diff.updated
                    .extend(pair.filter(|(was, is)| was != is).map(|(was, is)| (*was, *is)));
            }
        }
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Manifest> {
    /// What every format has.
    #[derive(serde::Deserialize)]
    struct Format {
        format: u64,
    }
    let help = "remove its directory to go back to the snapshot before it";
    let broken = |what: String| StoreError::corrupt(path, what, help);
    let text = std::str::from_utf8(bytes).map_err(|error| broken(error.to_string()))?;
    let damaged = Manifest::is_whole(text) == Some(false);
    if damaged {
        return Err(broken("its bytes have another checksum".to_owned()));
    }
    let Format { format } =
        serde_json::from_str(text).map_err(|error| broken(error.to_string()))?;
    if format != FORMAT {
        return Err(StoreError::Format { path: path.to_owned(), found: format, expected: FORMAT });
    }
    let manifest: Manifest =
        serde_json::from_str(text).map_err(|error| broken(error.to_string()))?;
    if Manifest::digest_of(&manifest.nodes) != manifest.digest {
        return Err(broken("its digest is not that of its nodes".to_owned()));
    }
    Ok(manifest)
}
