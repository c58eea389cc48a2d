//! A node's table as files: Parquet parts whose bytes are a function of the rows alone.
//!
//! Rows are sorted by row id and cut into 2^⌈log2(rows / 65,536)⌉ parts by its first bits, so that
//! a changed row changes one part and growth seldom moves others. Beside each part stand its ids:
//! row id, content and version of each row, 48 bytes, so that a plan or a diff reads no Parquet.

use std::fs;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::interleave_record_batch;
use indexmap::IndexMap;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
};
use parquet::arrow::arrow_writer::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::WriterProperties;

use super::disk::Disk;
use super::error::{At, Result, StoreError};
use super::manifest::Part;
use crate::record::{Batch, Id, KeyHasher, Relation, Row};

/// Rows of a part at most, on average.
const PART_ROWS: u64 = 65_536;
/// Rows of a row group.
const GROUP_ROWS: usize = 16_384;
/// Rows that are gathered and encoded at once; part of what decides the bytes.
const CHUNK_ROWS: usize = 4096;
/// Bytes of one row's ids.
const IDS_LEN: usize = 48;
/// Part of each digest: raised when the same rows are written as other bytes.
const WRITER: &str = "amend/table/1";
/// What is wrong with most damaged files.
const OTHER_HASH: &str = "its bytes have another hash";

/// One row of a table to be.
#[derive(Clone, Debug)]
pub struct TableRow {
    /// What identifies it.
    pub ids: RowIds,
    /// The batch it is in.
    pub batch: Arc<Batch>,
    /// Its place there.
    pub index: usize,
}

/// What identifies a row and what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowIds {
    /// Which row.
    pub row_id: Id,
    /// The hash of what consumers read.
    pub content: Id,
    /// The hash of the whole row.
    pub version: Id,
}

impl TableRow {
    /// A row of a batch, its ids read and hashed from its columns.
    ///
    /// # Panics
    ///
    /// When the batch has no such row.
    pub fn of(batch: &Arc<Batch>, index: usize) -> TableRow {
        let row = batch.row(index);
        let content = row.id("content").expect("content is not null");
        let ids = RowIds { row_id: row.row_id(), content, version: row.version_hash() };
        TableRow { ids, batch: Arc::clone(batch), index }
    }
}

/// The rows of a table, in order.
#[derive(Debug)]
pub struct Table {
    relation: Relation,
    rows: Vec<TableRow>,
}

impl Table {
    /// The table of these rows, in any order.
    ///
    /// # Panics
    ///
    /// When two have the same id, or one is of another relation.
    pub fn new(relation: Relation, mut rows: Vec<TableRow>) -> Table {
        rows.sort_by_key(|row| row.ids);
        for pair in rows.windows(2) {
            assert_ne!(pair[0].ids.row_id, pair[1].ids.row_id, "a row id is there once");
        }
        assert!(rows.iter().all(|row| row.batch.relation() == relation), "rows of {relation}");
        Table { relation, rows }
    }

    /// What the rows are.
    pub fn relation(&self) -> Relation {
        self.relation
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The hash of the sorted (row id, version).
    pub fn digest(&self) -> Id {
        digest(self.relation, &self.rows)
    }

    /// The rows as one Parquet file.
    pub fn parquet(&self) -> Vec<u8> {
        encode(self.relation, &self.rows)
    }

    /// The rows of each part.
    fn parts(&self) -> Vec<&[TableRow]> {
        let parts = (self.rows.len() as u64).div_ceil(PART_ROWS).max(1).next_power_of_two();
        let mut rest = &self.rows[..];
        let mut cut = |part| {
            let len = rest.partition_point(|row| part_of(row.ids.row_id, parts) == part);
            let (rows, after) = rest.split_at(len);
            rest = after;
            rows
        };
        (0..parts).map(&mut cut).collect()
    }
}

/// The part of a row: the first bits of its id below the highest, which no hash sets.
fn part_of(row_id: Id, parts: u64) -> u64 {
    let below_highest = (row_id.bits() << 1 >> 64) as u64;
    if parts == 1 { 0 } else { below_highest >> (64 - parts.trailing_zeros()) }
}

fn digest(relation: Relation, rows: &[TableRow]) -> Id {
    let mut hasher = KeyHasher::new(WRITER);
    hasher.add_text(relation.name());
    for row in rows {
        hasher.add_id(row.ids.row_id);
        hasher.add_id(row.ids.version);
    }
    hasher.id()
}

/// The directories of a table in a snapshot.
#[derive(Clone, Debug)]
pub(super) struct Place {
    tables: PathBuf,
    ids: PathBuf,
}

impl Place {
    /// Those of a node in a snapshot's directory.
    pub(super) fn of(snapshot: &Path, node: &str) -> Place {
        Place { tables: snapshot.join("tables").join(node), ids: snapshot.join("ids").join(node) }
    }

    /// The file of a part.
    pub(super) fn part(&self, part: &Part) -> PathBuf {
        self.tables.join(&part.file)
    }

    fn part_ids(&self, part: &Part) -> PathBuf {
        self.ids.join(&part.file).with_extension("ids")
    }

    /// The files of a part.
    pub(super) fn files(&self, part: &Part) -> [PathBuf; 2] {
        [self.part(part), self.part_ids(part)]
    }

    /// The directories: what has to be made before, and synced after.
    pub(super) fn dirs(&self) -> [&Path; 2] {
        [&self.tables, &self.ids]
    }
}

/// Writes a table; nothing is safe until [`Place::files`] and the directories are synced. A part whose rows are
/// those of a part before gets that one's files.
pub(super) fn write_table(
    disk: &dyn Disk,
    to: &Place,
    table: &Table,
    before: Option<(&Place, &[Part])>,
) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for (number, rows) in table.parts().into_iter().enumerate() {
        let digest = digest(table.relation, rows);
        let same = before.and_then(|(place, parts)| {
            let same = |part: &&Part| part.digest == digest && part.rows == rows.len() as u64;
            Some((place, parts.iter().find(same)?))
        });
        let part = match same {
            Some((place, part)) => link_part(disk, place, part, to, number)?,
            None => write_part(disk, to, table.relation, number, rows, digest)?,
        };
        parts.push(part);
    }
    Ok(parts)
}

/// Gives the files of a part a second name, that of a part of this number.
pub(super) fn link_part(
    disk: &dyn Disk,
    from: &Place,
    part: &Part,
    to: &Place,
    number: usize,
) -> Result<Part> {
    let linked = Part { file: file_name(number, &part.blake3), ..part.clone() };
    let names = [(from.part(part), to.part(&linked)), (from.part_ids(part), to.part_ids(&linked))];
    for (from, to) in names {
        disk.link(&from, &to).at("link", &from)?;
    }
    Ok(linked)
}

fn file_name(number: usize, blake3: &str) -> String {
    format!("part-{number:05}-{}.parquet", &blake3[..16])
}

fn write_part(
    disk: &dyn Disk,
    to: &Place,
    relation: Relation,
    number: usize,
    rows: &[TableRow],
    digest: Id,
) -> Result<Part> {
    let bytes = encode(relation, rows);
    let blake3 = blake3::hash(&bytes).to_hex().to_string();
    let ids = encode_ids(rows.iter().map(|row| &row.ids));
    let part = Part {
        file: file_name(number, &blake3),
        ids_blake3: blake3::hash(&ids).to_hex().to_string(),
        blake3,
        bytes: bytes.len() as u64,
        rows: rows.len() as u64,
        digest,
    };
    for (path, bytes) in [(to.part(&part), bytes), (to.part_ids(&part), ids)] {
        disk.create(&path).and_then(|mut file| file.append(&bytes)).at("write", &path)?;
        disk.protect(&path).at("protect", &path)?;
    }
    Ok(part)
}

fn encode(relation: Relation, rows: &[TableRow]) -> Vec<u8> {
    let sorting = SortingColumn { column_idx: 0, descending: false, nulls_first: false };
    let properties = WriterProperties::builder()
        .set_created_by("amend".to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_sorting_columns(Some(vec![sorting]))
        .set_column_dictionary_enabled("row_id".into(), false)
        .set_column_dictionary_enabled("content".into(), false)
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), relation.schema(), Some(properties))
        .expect("the schemas of relations can be written");
    for chunk in rows.chunks(CHUNK_ROWS) {
        writer.write(&gather(chunk)).expect("rows are written to memory");
    }
    writer.into_inner().expect("rows are written to memory")
}

/// The rows as one batch.
fn gather(rows: &[TableRow]) -> RecordBatch {
    let mut batches: IndexMap<*const Batch, &RecordBatch> = IndexMap::new();
    let mut places = Vec::with_capacity(rows.len());
    for row in rows {
        let entry = batches.entry(Arc::as_ptr(&row.batch));
        let at = entry.index();
        entry.or_insert(row.batch.rows());
        places.push((at, row.index));
    }
    let batches: Vec<&RecordBatch> = batches.into_values().collect();
    interleave_record_batch(&batches, &places).expect("the batches are of one relation")
}

fn encode_ids<'a>(rows: impl Iterator<Item = &'a RowIds>) -> Vec<u8> {
    let ids = rows.flat_map(|ids| [ids.row_id, ids.content, ids.version]);
    ids.flat_map(|id| id.bits().to_be_bytes()).collect()
}

/// The ids of a part, sorted by row id.
pub(super) fn read_ids(place: &Place, part: &Part) -> Result<Vec<RowIds>> {
    let path = place.part_ids(part);
    let bytes = fs::read(&path).at("read", &path)?;
    let whole = blake3::hash(&bytes).to_hex().as_str() == part.ids_blake3
        && bytes.len() as u64 == part.rows * IDS_LEN as u64;
    if !whole {
        return Err(damage(&path, OTHER_HASH));
    }
    let id = |bytes: &[u8]| {
        Id::from_bits(u128::from_be_bytes(bytes.try_into().expect("an id has 16 bytes")))
    };
    let ids = |row: &[u8]| RowIds {
        row_id: id(&row[..16]),
        content: id(&row[16..32]),
        version: id(&row[32..]),
    };
    Ok(bytes.chunks_exact(IDS_LEN).map(ids).collect())
}

/// Checks that the bytes of a part are those that were written.
pub(super) fn verify(place: &Place, part: &Part) -> Result<()> {
    verify_file(&place.part(part), &part.blake3)
}

/// Checks that the bytes of a part's ids are those that were written.
pub(super) fn verify_ids(place: &Place, part: &Part) -> Result<()> {
    verify_file(&place.part_ids(part), &part.ids_blake3)
}

fn verify_file(path: &Path, blake3: &str) -> Result<()> {
    match hash(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(damage(path, "it is not there"))
        }
        hash => match hash.at("read", path)? == blake3 {
            true => Ok(()),
            false => Err(damage(path, OTHER_HASH)),
        },
    }
}

/// The blake3 of a file, 64 hex digits.
pub(super) fn hash(path: &Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// The bytes of a file of ids.
pub(super) fn ids_bytes(ids: &[RowIds]) -> Vec<u8> {
    encode_ids(ids.iter())
}

/// The ids of a part, of its rows and not of their file; nothing where they are not those that were
/// written.
pub(super) fn ids_of(part: &Part, rows: &[Batch]) -> Option<Vec<RowIds>> {
    let of = |row: Row<'_>| {
        let content = row.id("content")?;
        Some(RowIds { row_id: row.row_id(), content, version: row.version_hash() })
    };
    let ids = rows.iter().flat_map(Batch::iter).map(of).collect::<Option<Vec<RowIds>>>()?;
    let bytes = encode_ids(ids.iter());
    (blake3::hash(&bytes).to_hex().as_str() == part.ids_blake3).then_some(ids)
}

/// Reads the columns of a part, or all; of the rows at the sorted places, or all.
pub(super) fn read_part(
    place: &Place,
    part: &Part,
    columns: Option<&[&str]>,
    rows: Option<&[usize]>,
) -> Result<Vec<RecordBatch>> {
    let path = place.part(part);
    let broken = |error: &dyn std::fmt::Display| damage(&path, &error.to_string());
    let file = File::open(&path).at("open", &path)?;
    // As in the memo's archives: what reads an embedded Arrow schema panics at a damaged one.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let mut builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options)
        .map_err(|error| broken(&error))?;
    if let Some(columns) = columns {
        let schema = builder.schema();
        let position = |name: &&str| {
            schema.index_of(name).map_err(|_| StoreError::NoSuchName {
                place: format!("\"{}\"", path.display()),
                kind: "column",
                name: (*name).to_owned(),
                available: schema.fields().iter().map(|field| field.name().clone()).collect(),
            })
        };
        let positions = columns.iter().map(position).collect::<Result<Vec<usize>>>()?;
        let mask = ProjectionMask::roots(builder.parquet_schema(), positions);
        builder = builder.with_projection(mask);
    }
    if let Some(rows) = rows {
        builder = builder.with_row_selection(selection(rows));
    }
    let reader = builder.with_batch_size(CHUNK_ROWS).build().map_err(|error| broken(&error))?;
    reader.map(|rows| rows.map_err(|error| broken(&error))).collect()
}

fn selection(rows: &[usize]) -> RowSelection {
    let mut selectors = Vec::with_capacity(2 * rows.len());
    let mut next = 0;
    for row in rows {
        assert!(*row >= next, "the places are sorted and there once");
        selectors.push(RowSelector::skip(row - next));
        selectors.push(RowSelector::select(1));
        next = row + 1;
    }
    selectors.into_iter().filter(|selector| selector.row_count > 0).collect::<Vec<_>>().into()
}

fn damage(path: &Path, what: &str) -> StoreError {
    let help =
        "run its pipeline again, which makes it again from the memo, or restore it from a copy";
    StoreError::corrupt(path, what, help)
}
