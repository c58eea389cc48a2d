//! Lines: a file of any format as records, fields by name, each with its line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use indexmap::IndexMap;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use serde_json::Value;

use super::{Format, ReadError};

/// The fields of a record, in the file's order.
pub(super) type Fields = IndexMap<String, Value>;

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
        Format::Jsonl | Format::HhRlhf => json_lines(path, &mut *open(path)?, take),
        Format::Csv => csv_records(path, open(path)?, take),
        Format::Parquet => parquet_rows(path, take),
    }
}

/// The columns that a file declares before its rows; nothing of a format that declares none.
pub(super) fn header(path: &Path, format: Format) -> Result<Option<Vec<String>>, ReadError> {
    match format {
        Format::Jsonl | Format::HhRlhf => Ok(None),
        Format::Csv => {
            let (_, header) = csv_reader(path, open(path)?)?;
            Ok(Some(header.iter().map(str::to_owned).collect()))
        }
        Format::Parquet => {
            let fields = parquet_reader(path)?.schema().fields().clone();
            Ok(Some(fields.iter().map(|field| field.name().clone()).collect()))
        }
    }
}

fn malformed(path: &Path, line: u64, detail: String) -> ReadError {
    ReadError::Malformed { path: path.to_owned(), line, detail }
}

fn at(path: &Path, line: u64) -> impl Fn(io::Error) -> ReadError {
    move |source| ReadError::File { path: path.to_owned(), line, source }
}

/// The file as text, unpacked if its first bytes say that it is gzipped.
fn open(path: &Path) -> Result<Box<dyn BufRead>, ReadError> {
    let mut file = File::open(path).map_err(at(path, 0))?;
    let mut magic = [0; 2];
    let is_packed = match file.read_exact(&mut magic) {
        Ok(()) => magic == [0x1f, 0x8b],
        Err(_) => false,
    };
    file.rewind().map_err(at(path, 0))?;
    Ok(if is_packed {
        Box::new(BufReader::new(MultiGzDecoder::new(BufReader::new(file))))
    } else {
        Box::new(BufReader::with_capacity(1 << 16, file))
    })
}

fn json_lines(path: &Path, file: &mut dyn BufRead, take: &mut Take<'_>) -> Result<(), ReadError> {
    let (mut bytes, mut line) = (Vec::new(), 0);
    loop {
        bytes.clear();
        if file.read_until(b'\n', &mut bytes).map_err(at(path, line))? == 0 {
            return Ok(());
        }
        line += 1;
        let raw = String::from_utf8_lossy(&bytes);
        let text = if line == 1 { raw.trim_start_matches('\u{feff}') } else { &*raw };
        if text.trim().is_empty() {
            continue;
        }
        let fields = match std::str::from_utf8(&bytes) {
            Ok(_) => object(text.trim()),
            Err(error) => Err(format!("byte {} is not UTF-8", error.valid_up_to() + 1)),
        };
        if !take(Record { line, fields, raw: text.trim().to_owned() })? {
            return Ok(());
        }
    }
}

fn object(text: &str) -> Result<Fields, String> {
    serde_json::from_str::<Value>(text)
        .map_err(|error| {
            let (column, message) = (error.column(), error.to_string());
            let message = message.split(" at line ").next().unwrap_or_default().to_owned();
            format!("column {column}: it is not JSON: {message}")
        })
        .and_then(|value| match value {
            Value::Object(map) => Ok(map.into_iter().collect()),
            _ => Err("it is JSON but not an object".to_owned()),
        })
}

type CsvReader = csv::Reader<Box<dyn BufRead>>;

fn csv_reader(
    path: &Path,
    file: Box<dyn BufRead>,
) -> Result<(CsvReader, csv::StringRecord), ReadError> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(file);
    let header = reader.headers().map_err(|error| malformed(path, 1, error.to_string()))?.clone();
    Ok((reader, header))
}

fn csv_records(path: &Path, file: Box<dyn BufRead>, take: &mut Take<'_>) -> Result<(), ReadError> {
    let (mut reader, header) = csv_reader(path, file)?;
    let mut record = csv::ByteRecord::new();
    let mut last = 1;
    while reader
        .read_byte_record(&mut record)
        .map_err(|error| malformed(path, last, error.to_string()))?
    {
        let line = record.position().map_or(last, csv::Position::line);
        last = line;
        let raw = record.iter().map(String::from_utf8_lossy).collect::<Vec<_>>().join(",");
        let fields = if record.len() == header.len() {
            let field = |(name, bytes): (&str, &[u8])| match std::str::from_utf8(bytes) {
                Ok("") => Ok((name.to_owned(), Value::Null)),
                Ok(text) => Ok((name.to_owned(), Value::from(text))),
                Err(_) => Err(format!("column \"{name}\" is not UTF-8")),
            };
            header.iter().zip(record.iter()).map(field).collect()
        } else {
            Err(format!("it has {} fields, the header {}", record.len(), header.len()))
        };
        if !take(Record { line, fields, raw })? {
            return Ok(());
        }
    }
    Ok(())
}

fn parquet_reader(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, ReadError> {
    let file = File::open(path).map_err(at(path, 0))?;
    // Rows become JSON: Parquet's own types say enough, and a damaged Arrow schema is not met.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    ParquetRecordBatchReaderBuilder::try_new_with_options(file, options)
        .map_err(|error| malformed(path, 1, error.to_string()))
}

fn parquet_rows(path: &Path, take: &mut Take<'_>) -> Result<(), ReadError> {
    let batches = parquet_reader(path)?.with_batch_size(1024).build();
    let batches = batches.map_err(|error| malformed(path, 1, error.to_string()))?;
    let mut line = 0;
    for batch in batches {
        let batch = batch.map_err(|error| malformed(path, line + 1, error.to_string()))?;
        let mut writer = arrow::json::LineDelimitedWriter::new(Vec::new());
        writer
            .write(&batch)
            .and_then(|()| writer.finish())
            .map_err(|error| malformed(path, line + 1, error.to_string()))?;
        let text = String::from_utf8(writer.into_inner()).expect("JSON is UTF-8");
        for raw in text.lines() {
            line += 1;
            if !take(Record { line, fields: object(raw), raw: raw.to_owned() })? {
                return Ok(());
            }
        }
    }
    Ok(())
}
