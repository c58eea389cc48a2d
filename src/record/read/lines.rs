//! Lines: a file of any format as records, fields by name, each with its line.

use std::io::{self, BufRead, Read as _};
use std::path::Path;

use super::fields::Fields;
use super::open::{self, at};
use super::{Format, ReadError, commas, json, parquet_rows};

/// Bytes of a line of JSON, or of a record of CSV: longer ones are no rows.
pub(super) const RECORD_MAX: usize = 32 << 20;

/// Columns that a file may have.
pub(super) const COLUMNS_MAX: usize = 10_000;

/// Bytes of a line that is too long that are kept of it, as what a reject is known by.
const KEPT_OF_LONG: usize = 1 << 16;

/// One record of a file.
pub(super) struct Record {
    /// The line it begins on, from 1; the row, in a Parquet file.
    pub(super) line: u64,
    /// The fields, or why there are none.
    pub(super) fields: Result<Fields, String>,
    /// What the file says there.
    pub(super) raw: String,
}

/// Takes records, and says whether it wants more.
pub(super) type Take<'a> = dyn FnMut(Record) -> Result<bool, ReadError> + 'a;

/// Gives every record of a file to `take`.
pub(super) fn each(path: &Path, format: Format, take: &mut Take<'_>) -> Result<(), ReadError> {
    match format {
        Format::Jsonl | Format::HhRlhf => json_lines(path, &mut *open::text(path)?, take),
        Format::Csv => commas::records(path, open::text(path)?, take),
        Format::Parquet => parquet_rows::rows(path, take),
    }
}

/// The columns that a file declares before its rows; nothing of a format that declares none.
pub(super) fn header(path: &Path, format: Format) -> Result<Option<Vec<String>>, ReadError> {
    match format {
        Format::Jsonl | Format::HhRlhf => Ok(None),
        Format::Csv => commas::header(path, open::text(path)?).map(Some),
        Format::Parquet => parquet_rows::header(path).map(Some),
    }
}

pub(super) fn malformed(path: &Path, line: u64, detail: String) -> ReadError {
    ReadError::Malformed { path: path.to_owned(), line, detail }
}

fn json_lines(path: &Path, file: &mut dyn BufRead, take: &mut Take<'_>) -> Result<(), ReadError> {
    let (mut bytes, mut line) = (Vec::new(), 0);
    loop {
        let length = next_line(file, &mut bytes).map_err(at(path, line))?;
        if length == 0 {
            return Ok(());
        }
        line += 1;
        let lossy = String::from_utf8_lossy(&bytes);
        // Files that were put together have such marks inside as well.
        let text = lossy.trim_start_matches('\u{feff}').trim_end();
        if length == bytes.len() as u64 && text.trim().is_empty() {
            continue;
        }
        let fields = match std::str::from_utf8(&bytes) {
            _ if length > bytes.len() as u64 => {
                Err(format!("the line has {length} bytes, above {RECORD_MAX}"))
            }
            Ok(_) => json::object(text),
            Err(error) => Err(format!("byte {} is not UTF-8", error.valid_up_to() + 1)),
        };
        if !take(Record { line, fields, raw: text.trim().to_owned() })? {
            return Ok(());
        }
    }
}

/// Reads a line, of which only the beginning is kept if it is too long. Gives its length, 0 at the end.
fn next_line(file: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<u64> {
    line.clear();
    let mut length = file.take(RECORD_MAX as u64 + 1).read_until(b'\n', line)? as u64;
    if line.len() <= RECORD_MAX || line.ends_with(b"\n") {
        return Ok(length);
    }
    line.truncate(KEPT_OF_LONG);
    line.shrink_to_fit();
    loop {
        let ahead = file.fill_buf()?;
        if ahead.is_empty() {
            return Ok(length);
        }
        let end = ahead.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(ahead.len(), |end| end + 1);
        file.consume(used);
        length += used as u64;
        if end.is_some() {
            return Ok(length);
        }
    }
}
