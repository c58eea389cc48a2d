//! A compacted segment of the memo: a Parquet file of calls in the order in which they were made.
//!
//! The order is that of the log and not that of the keys, because a rerun asks for calls in nearly
//! the order in which they were made: by a key's order each look-up would decode another row group.
//! Row groups are small and carry a checksum each in the file's metadata, which Parquet lacks; the
//! metadata carries one of itself, because a column with another name would be one that is missing.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{RecordBatch, RecordBatchReader};
use arrow::compute::concat_batches;
use crc32c::{crc32c, crc32c_append};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::arrow_writer::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::FOOTER_SIZE;
use parquet::file::metadata::{KeyValue, ParquetMetaDataReader};
use parquet::file::properties::{EnabledStatistics, WriterProperties};

use super::columns::{self, calls_schema};
use super::salvage::{Lost, damage};
use crate::record::CallKey;
use crate::store::disk::Output;
use crate::store::error::{At, Result, StoreError};

/// Rows of a row group: what one look-up decodes at most.
pub(super) const GROUP_ROWS: usize = 2048;

/// The key of the metadata under which the checksums stand: first that of the footer, then those of
/// the row groups.
const CHECKSUMS: &str = "amend.crc32c";

/// What stands before the copy of the footer: one damaged footer would cost all calls of a file.
const COPY: &[u8] = b"amend/footer-copy/1\0";

/// The key of the metadata under which a newer format is to say so; this one is what says nothing.
const FORMAT_KEY: &str = "amend.format";
const FORMAT: u64 = 1;

/// What stands before the footer's checksum, and in the place of its digits while it is summed.
const FOOTER: &[u8] = b"footer=";
const UNKNOWN: &[u8] = b"00000000";

/// One compacted segment, open for reading. The file stays readable when its name is gone.
pub(super) struct Archive {
    path: PathBuf,
    /// Clones of a file share their place in it, so threads take turns.
    file: Mutex<File>,
    metadata: ArrowReaderMetadata,
    groups: Vec<Extent>,
    /// The row groups that are damaged.
    left_out: BTreeSet<usize>,
}

/// Where a row group stands, and the checksum of its bytes.
struct Extent {
    start: u64,
    end: u64,
    crc: u32,
}

impl Archive {
    /// Opens a file; reads its metadata only. Where its footer is damaged, the copy of that is read.
    pub(super) fn open(path: &Path) -> Result<(Archive, Option<Lost>)> {
        let file = File::open(path).at("open", path)?;
        let footer = read_footer(&file).at("read", path)?;
        let footer = footer.filter(|footer| FooterSum::holds(footer));
        let (metadata, mut lost) = if let Some(footer) = &footer {
            (parse_footer(footer), None)
        } else {
            let what = "its footer has another checksum";
            let copy = copied_footer(&file).at("read", path)?;
            let copy = copy.ok_or_else(|| damage(path, what))?;
            (parse_footer(&copy), Some(Lost::nothing(what)))
        };
        let metadata = metadata.map_err(|error| damage(path, &error.to_string()))?;
        let entries = metadata.metadata().file_metadata().key_value_metadata();
        let value = |key: &str| {
            let entry = entries?.iter().find(|entry| entry.key == key)?;
            entry.value.as_deref()
        };
        if let Some(found) = value(FORMAT_KEY).and_then(|format| format.parse().ok())
            && found > FORMAT
        {
            return Err(StoreError::Format { path: path.to_owned(), found, expected: FORMAT });
        }
        let groups = value(CHECKSUMS)
            .and_then(parse_checksums)
            .filter(|groups| groups.len() == metadata.metadata().num_row_groups())
            .ok_or_else(|| damage(path, "it has no checksums"))?;
        if let Some(footer) = &footer {
            let end = groups.last().map_or(0, |group| group.end);
            if !has_copy(&file, end, footer).at("read", path)? {
                lost = Some(Lost::nothing("the copy of its footer is damaged"));
            }
        }
        let (path, file, left_out) = (path.to_owned(), Mutex::new(file), BTreeSet::new());
        Ok((Archive { path, file, metadata, groups, left_out }, lost))
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How many row groups it has.
    pub(super) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Leaves a group out, which is damaged.
    pub(super) fn leave_out(&mut self, group: usize) {
        self.left_out.insert(group);
    }

    /// The groups that are not left out.
    pub(super) fn whole_groups(&self) -> Vec<u64> {
        let all = (0..self.groups.len()).filter(|group| !self.left_out.contains(group));
        all.map(|group| group as u64).collect()
    }

    /// How many calls a group has.
    pub(super) fn rows(&self, group: usize) -> u64 {
        self.metadata.metadata().row_group(group).num_rows().max(0) as u64
    }

    /// The keys of a group, and whether the calls failed.
    pub(super) fn keys(&self, group: usize) -> Result<Vec<(CallKey, bool)>> {
        let rows = self.decode(group, |column| ["key", "error"].contains(&column))?;
        columns::keys(&rows).ok_or_else(|| damage(&self.path, "it has no column of keys"))
    }

    /// Some columns of a group.
    pub(super) fn columns(&self, group: usize, names: &[&str]) -> Result<RecordBatch> {
        self.decode(group, |column| names.contains(&column))
    }

    /// The rows of a group and about how many bytes they take. Without requests, theirs are empty.
    pub(super) fn read(&self, group: usize, requests: bool) -> Result<(RecordBatch, usize)> {
        let rows = self.decode(group, |column| requests || column != "request")?;
        let rows = columns::adapt(&rows).map_err(|error| damage(&self.path, &error.to_string()))?;
        let bytes = rows.get_array_memory_size();
        Ok((rows, bytes))
    }

    fn decode(&self, group: usize, wanted: impl Fn(&str) -> bool) -> Result<RecordBatch> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let extent = &self.groups[group];
        let len = file.metadata().at("read", &self.path)?.len();
        if extent.end > len {
            return Err(damage(&self.path, &format!("row group {group} is gone")));
        }
        let mut bytes = vec![0; (extent.end - extent.start) as usize];
        file.read_exact_at(&mut bytes, extent.start).at("read", &self.path)?;
        if crc32c(&bytes) != extent.crc {
            return Err(damage(&self.path, &format!("row group {group} has another checksum")));
        }
        let broken = |error: ParquetError| damage(&self.path, &error.to_string());
        let (clone, metadata) = (file.try_clone().at("read", &self.path)?, self.metadata.clone());
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(clone, metadata);
        let fields = builder.schema().fields().iter().enumerate();
        let columns: Vec<usize> =
            fields.filter(|(_, field)| wanted(field.name())).map(|(at, _)| at).collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), columns);
        let builder = builder.with_row_groups(vec![group]).with_projection(mask);
        let batches = builder.with_batch_size(GROUP_ROWS).build().map_err(broken)?;
        let schema = batches.schema();
        let batches = batches.collect::<std::result::Result<Vec<_>, _>>();
        let rows = batches.and_then(|batches| concat_batches(&schema, &batches));
        rows.map_err(|error| damage(&self.path, &error.to_string()))
    }
}

/// Writes a compacted segment.
pub(super) struct ArchiveWriter {
    path: PathBuf,
    writer: ArrowWriter<Summed>,
    groups: Vec<Extent>,
    start: u64,
}

impl ArchiveWriter {
    /// A new file.
    pub(super) fn create(path: &Path, output: Box<dyn Output>) -> Result<ArchiveWriter> {
        let properties = WriterProperties::builder()
            .set_created_by("amend".to_owned())
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_max_row_group_row_count(Some(GROUP_ROWS))
            // Indexes of pages would stand outside of what has a checksum, and a group is small.
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_offset_index_disabled(true)
            .set_column_dictionary_enabled("key".into(), false)
            .set_column_compression("key".into(), Compression::UNCOMPRESSED)
            .build();
        let output = Summed { output, len: 0, crc: 0, held: None };
        let writer = ArrowWriter::try_new(output, calls_schema(), Some(properties))
            .map_err(|error| write_error(path, error))?;
        Ok(ArchiveWriter { path: path.to_owned(), writer, groups: Vec::new(), start: 0 })
    }

    /// Adds a row group.
    pub(super) fn group(&mut self, rows: &RecordBatch) -> Result<()> {
        assert!(rows.num_rows() <= GROUP_ROWS, "a group has at most {GROUP_ROWS} rows");
        self.writer.inner_mut().crc = 0;
        let written = self.writer.write(rows);
        let written =
            written.and_then(|()| self.writer.flush()).and_then(|()| Ok(self.writer.sync()?));
        written.map_err(|error| write_error(&self.path, error))?;
        let (end, crc) = (self.writer.inner().len, self.writer.inner().crc);
        self.groups.push(Extent { start: self.start, end, crc });
        self.start = end;
        Ok(())
    }

    /// Ends the file, whose bytes are safe when this returns.
    pub(super) fn close(mut self) -> Result<()> {
        let extents = self.groups.iter();
        let extents =
            extents.map(|group| format!("{}-{}:{:08x}", group.start, group.end, group.crc));
        let digits = [FOOTER, UNKNOWN].concat();
        let first = String::from_utf8(digits).expect("they are ASCII");
        let checksums = std::iter::once(first).chain(extents).collect::<Vec<String>>().join(" ");
        self.writer.append_key_value_metadata(KeyValue::new(CHECKSUMS.to_owned(), checksums));
        self.writer.inner_mut().held = Some(Vec::new());
        let output = self.writer.into_inner().map_err(|error| write_error(&self.path, error));
        let Summed { mut output, held, .. } = output?;
        let tail = with_footer_sum(held.unwrap_or_default());
        output.append(&tail).at("write", &self.path)?;
        output.sync().at("sync", &self.path)
    }
}

/// The footer of a Parquet file: its metadata, the length of that, and the magic number.
fn read_footer(file: &File) -> io::Result<Option<Vec<u8>>> {
    let len = file.metadata()?.len();
    let mut last = [0; FOOTER_SIZE];
    let Some(end) = len.checked_sub(FOOTER_SIZE as u64) else { return Ok(None) };
    file.read_exact_at(&mut last, end)?;
    let [a, b, c, d, ..] = last;
    let Some(start) = end.checked_sub(u64::from(u32::from_le_bytes([a, b, c, d]))) else {
        return Ok(None);
    };
    let mut footer = vec![0; (len - start) as usize];
    file.read_exact_at(&mut footer, start)?;
    Ok(Some(footer))
}

/// What a footer says. The Arrow schema in it says nothing that Parquet's does not, and what reads it
/// panics at a type that it does not know.
fn parse_footer(footer: &[u8]) -> std::result::Result<ArrowReaderMetadata, ParquetError> {
    let bytes = &footer[..footer.len() - FOOTER_SIZE];
    let metadata = ParquetMetaDataReader::decode_metadata(bytes)?;
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    ArrowReaderMetadata::try_new(Arc::new(metadata), options)
}

/// Whether between the row groups and the footer there is the copy of that, or what earlier versions
/// wrote there.
fn has_copy(file: &File, groups_end: u64, footer: &[u8]) -> io::Result<bool> {
    let copy = copy_of(footer);
    let start = file.metadata()?.len() - footer.len() as u64;
    if start.checked_sub(groups_end) != Some(copy.len() as u64) {
        return Ok(true);
    }
    let mut there = vec![0; copy.len()];
    file.read_exact_at(&mut there, groups_end)?;
    Ok(there == copy)
}

/// A footer as it is copied.
fn copy_of(footer: &[u8]) -> Vec<u8> {
    [COPY, &(footer.len() as u32).to_le_bytes(), footer].concat()
}

/// The footer of a file by its copy, which stands before it.
fn copied_footer(file: &File) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    let mut end = bytes.len();
    // Texts of calls may hold the mark: what follows must have its checksum.
    while let Some(at) = bytes[..end].windows(COPY.len()).rposition(|bytes| bytes == COPY) {
        let copy = bytes[at + COPY.len()..].split_first_chunk::<4>();
        let copy = copy.and_then(|(len, rest)| rest.get(..u32::from_le_bytes(*len) as usize));
        if let Some(copy) = copy.filter(|copy| copy.len() > FOOTER_SIZE && FooterSum::holds(copy)) {
            return Ok(Some(copy.to_vec()));
        }
        end = at + COPY.len() - 1;
    }
    Ok(None)
}

/// The checksum of a footer.
struct FooterSum {
    /// Where its digits stand in the footer.
    at: usize,
    /// What the digits say.
    told: Option<u32>,
    is: u32,
}

impl FooterSum {
    /// Whether a footer has one, and it is right.
    fn holds(footer: &[u8]) -> bool {
        FooterSum::find(footer).is_some_and(|sum| sum.told == Some(sum.is))
    }

    /// Its place is the last of its kind: before it the footer has texts of calls, as statistics.
    fn find(footer: &[u8]) -> Option<FooterSum> {
        let at = footer.windows(FOOTER.len()).rposition(|bytes| bytes == FOOTER)? + FOOTER.len();
        let (before, rest) = footer.split_at(at);
        let (digits, after) = rest.split_at_checked(UNKNOWN.len())?;
        let digits = std::str::from_utf8(digits).ok();
        let told = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let is = [before, UNKNOWN, after].iter().fold(0, |crc, part| crc32c_append(crc, part));
        Some(FooterSum { at, told, is })
    }
}

/// The end of a file, with the checksum of its footer in the footer, and a copy of that before it.
fn with_footer_sum(mut tail: Vec<u8>) -> Vec<u8> {
    let end = tail.len() - FOOTER_SIZE;
    let [a, b, c, d] = tail[end..end + 4].try_into().expect("four bytes");
    let footer = &mut tail[end - u32::from_le_bytes([a, b, c, d]) as usize..];
    let FooterSum { at, is, .. } = FooterSum::find(footer).expect("it was written with its place");
    footer[at..at + UNKNOWN.len()].copy_from_slice(format!("{is:08x}").as_bytes());
    let footer = footer.to_vec();
    let before = tail.len() - footer.len();
    [&tail[..before], &copy_of(&footer), &footer].concat()
}

/// An output that sums what goes through it, and in the end holds it back.
struct Summed {
    output: Box<dyn Output>,
    len: u64,
    crc: u32,
    held: Option<Vec<u8>>,
}

impl Write for Summed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(held) = &mut self.held {
            held.extend_from_slice(bytes);
            return Ok(bytes.len());
        }
        self.output.append(bytes)?;
        self.len += bytes.len() as u64;
        self.crc = crc32c_append(self.crc, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn parse_checksums(text: &str) -> Option<Vec<Extent>> {
    let extent = |text: &str| {
        let (range, crc) = text.split_once(':')?;
        let (start, end) = range.split_once('-')?;
        let (start, end) = (start.parse().ok()?, end.parse().ok()?);
        let crc = u32::from_str_radix(crc, 16).ok()?;
        (start <= end).then_some(Extent { start, end, crc })
    };
    text.split_whitespace().skip(1).map(extent).collect()
}

fn write_error(path: &Path, error: ParquetError) -> StoreError {
    let error = match error {
        ParquetError::External(source) => match source.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(source) => io::Error::other(source),
        },
        error => io::Error::other(error),
    };
    StoreError::io("write", path, error)
}
