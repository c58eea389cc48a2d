//! Parquet: rows as fields. Columns of bytes are texts where they are UTF-8; a value that cannot be
//! said in JSON is named, and never written as what it is not.

use std::fmt::{Display, Write as _};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrowPrimitiveType, AsArray, RecordBatch};
use arrow::datatypes::{DataType, FieldRef, Float16Type, Float32Type, Float64Type};
use arrow::error::ArrowError;
use arrow::json::writer::{
    Encoder, EncoderFactory, EncoderOptions, LineDelimited, NullableEncoder, WriterBuilder,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use serde_json::Value;

use super::fields::Fields;
use super::lines::{COLUMNS_MAX, Record, Take, malformed};
use super::open::{self, at};
use super::{ReadError, json};

/// Rows that are read at once.
const ROWS: usize = 1024;

/// The key of an object that stands for a value which JSON cannot say.
const UNSAID: &str = "\u{0}amend";

/// The key in it of bytes of a fixed number, which are shown as hexadecimal digits.
const DIGEST: &str = "digest";

/// The columns that the file declares.
pub(super) fn header(path: &Path) -> Result<Vec<String>, ReadError> {
    let fields = reader(path)?.schema().fields().clone();
    Ok(fields.iter().map(|field| field.name().clone()).collect())
}

/// Gives every row to `take`.
pub(super) fn rows(path: &Path, take: &mut Take<'_>) -> Result<(), ReadError> {
    let batches = reader(path)?.with_batch_size(ROWS).build();
    let batches = batches.map_err(|error| malformed(path, 1, error.to_string()))?;
    let mut line = 0;
    for batch in batches {
        let text = batch.and_then(|batch| in_json(&batch));
        let text = text.map_err(|error| malformed(path, line + 1, error.to_string()))?;
        for raw in text.lines() {
            line += 1;
            let fields = json::object(raw).map(said);
            if !take(Record { line, fields, raw: raw.to_owned() })? {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn reader(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, ReadError> {
    let mut file = open::open(path).map_err(at(path, 0))?;
    open::check_parquet(path, &mut file)?;
    // Rows become JSON: Parquet's own types say enough, and a damaged Arrow schema is not met.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options)
        .map_err(|error| malformed(path, 1, error.to_string()))?;
    let names: Vec<&String> = reader.schema().fields().iter().map(|field| field.name()).collect();
    if names.len() > COLUMNS_MAX {
        let detail = format!("it has {} columns, above {COLUMNS_MAX}", names.len());
        return Err(malformed(path, 1, detail));
    }
    let mut places = indexmap::IndexMap::new();
    for (at, name) in names.into_iter().enumerate() {
        if let Some(first) = places.insert(name, at) {
            let detail = format!(
                "columns {} and {} are both called \"{name}\": give one of them another name",
                first + 1,
                at + 1
            );
            return Err(malformed(path, 1, detail));
        }
    }
    Ok(reader)
}

fn in_json(batch: &RecordBatch) -> Result<String, ArrowError> {
    let builder = WriterBuilder::new().with_encoder_factory(Arc::new(Exact));
    let mut writer = builder.build::<_, LineDelimited>(Vec::new());
    writer.write(batch)?;
    writer.finish()?;
    Ok(String::from_utf8(writer.into_inner()).expect("JSON is UTF-8"))
}

/// The fields of a row, those apart that hold what JSON cannot say.
fn said(mut fields: Fields) -> Fields {
    let names: Vec<String> = fields.names().cloned().collect();
    for name in names {
        if let Some(why) = fields.value_mut(&name).and_then(unsaid) {
            fields.refuse(&name, format!("the column \"{name}\" {why}"));
        }
    }
    fields
}

/// Why a value cannot be used, if something in it stands for what JSON cannot say. What is left is
/// what `extra` shows.
fn unsaid(value: &mut Value) -> Option<String> {
    match value {
        Value::Array(items) => {
            let whys: Vec<String> = items.iter_mut().filter_map(unsaid).collect();
            whys.into_iter().next()
        }
        Value::Object(map) => {
            if let Some(Value::String(why)) = map.shift_remove(UNSAID) {
                let why = why.clone();
                if map.is_empty() {
                    *value = Value::Null;
                } else if let Some(digest) = map.shift_remove(DIGEST) {
                    *value = digest;
                }
                return Some(why);
            }
            let whys: Vec<String> = map.values_mut().filter_map(unsaid).collect();
            whys.into_iter().next()
        }
        _ => None,
    }
}

/// Writes what Arrow would write as something else: bytes as hexadecimal digits, a number that is none
/// as null, a time out of range as the text of an error.
#[derive(Debug)]
struct Exact;

impl EncoderFactory for Exact {
    fn make_default_encoder<'a>(
        &self,
        _field: &'a FieldRef,
        array: &'a dyn Array,
        _options: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let encoder: Box<dyn Encoder + 'a> = match array.data_type() {
            DataType::Binary => Box::new(Bytes(|at| array.as_binary::<i32>().value(at))),
            DataType::LargeBinary => Box::new(Bytes(|at| array.as_binary::<i64>().value(at))),
            DataType::BinaryView => Box::new(Bytes(|at| array.as_binary_view().value(at))),
            DataType::FixedSizeBinary(_) => {
                Box::new(Digest(|at| array.as_fixed_size_binary().value(at)))
            }
            DataType::Float16 if odd::<Float16Type>(array) => float::<Float16Type>(array),
            DataType::Float32 if odd::<Float32Type>(array) => float::<Float32Type>(array),
            DataType::Float64 if odd::<Float64Type>(array) => float::<Float64Type>(array),
            kind if kind.is_temporal() => {
                Box::new(Formatted(ArrayFormatter::try_new(array, &FormatOptions::new())?))
            }
            _ => return Ok(None),
        };
        Ok(Some(NullableEncoder::new(encoder, array.nulls().cloned())))
    }
}

/// Writes an object that stands for what cannot be said.
fn write_unsaid(why: &str, shown: Option<(&str, String)>, out: &mut Vec<u8>) {
    let mut object = serde_json::Map::from_iter([(UNSAID.to_owned(), Value::from(why))]);
    object.extend(shown.map(|(name, text)| (name.to_owned(), Value::from(text))));
    out.extend_from_slice(Value::Object(object).to_string().as_bytes());
}

struct Bytes<F>(F);

impl<'a, F: Fn(usize) -> &'a [u8]> Encoder for Bytes<F> {
    fn encode(&mut self, at: usize, out: &mut Vec<u8>) {
        let bytes = (self.0)(at);
        match std::str::from_utf8(bytes) {
            Ok(text) => out.extend_from_slice(Value::from(text).to_string().as_bytes()),
            Err(error) => {
                let byte = error.valid_up_to() + 1;
                let why = format!("holds bytes that are not UTF-8, the first at byte {byte}");
                write_unsaid(&why, Some(("hex", hex(bytes))), out);
            }
        }
    }
}

/// Bytes of a fixed number, such as a UUID or a hash: they tell rows apart, and are no text.
struct Digest<F>(F);

impl<'a, F: Fn(usize) -> &'a [u8]> Encoder for Digest<F> {
    fn encode(&mut self, at: usize, out: &mut Vec<u8>) {
        let bytes = (self.0)(at);
        let why = format!("holds {} bytes and no text", bytes.len());
        write_unsaid(&why, Some((DIGEST, hex(bytes))), out);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Whether there is a number that is none.
fn odd<T: ArrowPrimitiveType>(array: &dyn Array) -> bool
where
    T::Native: Into<f64>,
{
    let is_finite = |number: T::Native| Into::<f64>::into(number).is_finite();
    !array.as_primitive::<T>().iter().flatten().all(is_finite)
}

fn float<'a, T>(array: &'a dyn Array) -> Box<dyn Encoder + 'a>
where
    T: ArrowPrimitiveType,
    T::Native: Display + Into<f64>,
{
    Box::new(Float(move |at| array.as_primitive::<T>().value(at)))
}

struct Float<F>(F);

impl<N: Display + Into<f64> + Copy, F: Fn(usize) -> N> Encoder for Float<F> {
    fn encode(&mut self, at: usize, out: &mut Vec<u8>) {
        let number = (self.0)(at);
        let wide: f64 = number.into();
        if !wide.is_finite() {
            return write_unsaid(&format!("holds {number}, which is no number"), None, out);
        }
        // The shortest digits that are this number and no other of its type.
        let text = number.to_string();
        out.extend_from_slice(text.as_bytes());
        if !text.contains('.') {
            out.extend_from_slice(b".0");
        }
    }
}

struct Formatted<'a>(ArrayFormatter<'a>);

impl Encoder for Formatted<'_> {
    fn encode(&mut self, at: usize, out: &mut Vec<u8>) {
        if let Ok(text) = self.0.value(at).try_to_string() {
            out.extend_from_slice(Value::from(text).to_string().as_bytes());
        } else {
            let shown = ("unreadable", "out of range".to_owned());
            write_unsaid("holds a time out of range", Some(shown), out);
        }
    }
}
