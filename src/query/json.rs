//! Rows as JSON: one object a row, nulls written.

use arrow::array::RecordBatch;
use arrow::json::writer::{JsonArray, WriterBuilder};
use serde_json::{Map, Value};

use super::{QueryError, Result};

/// A row by its columns.
pub type Object = Map<String, Value>;

/// The rows of batches as objects.
pub fn objects<'a>(batches: impl IntoIterator<Item = &'a RecordBatch>) -> Result<Vec<Object>> {
    let mut bytes = Vec::new();
    let mut writer =
        WriterBuilder::new().with_explicit_nulls(true).build::<_, JsonArray>(&mut bytes);
    for batch in batches {
        writer.write(batch)?;
    }
    writer.finish()?;
    drop(writer);
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&bytes).map_err(|error| QueryError::Sql(error.to_string()))
}
