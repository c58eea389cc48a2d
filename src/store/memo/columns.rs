//! The columns of the table `calls`: entries to Arrow and back.
//!
//! The log, the compacted Parquet files and `amend query` share one schema, so that an entry is
//! encoded once and a file of either kind can be read by any Arrow tool.

use std::sync::{Arc, OnceLock};

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray, FixedSizeBinaryArray,
    FixedSizeBinaryBuilder, ListArray, ListBuilder, PrimitiveBuilder, RecordBatch, StringArray,
    StringBuilder, TimestampMicrosecondArray, new_null_array,
};
use arrow::datatypes::{
    DataType, Field, Float32Type, Float64Type, Int32Type, Int64Type, Schema, SchemaRef, TimeUnit,
    TimestampMicrosecondType,
};
use arrow::error::ArrowError;

use super::entry::{CallKind, Entry, Failure, Outcome};
use crate::model::{Answer, Billed, Finish};
use crate::record::CallKey;

/// Bytes of a key.
pub(super) const KEY_LEN: usize = 32;

/// Positions in the schema.
#[derive(Clone, Copy)]
enum Col {
    #[expect(dead_code, reason = "it keeps the count; the whole key stands in the last column")]
    CallKey,
    Kind,
    Model,
    ModelFingerprint,
    Request,
    Answer,
    FinishReason,
    TokenLogprobs,
    ChoiceLogprobs,
    Votes,
    Seed,
    PromptTokens,
    CachedTokens,
    CompletionTokens,
    CostUsd,
    Attempts,
    StartedAt,
    LatencyMs,
    ServedModel,
    SystemFingerprint,
    Device,
    Reasoning,
    EstimatedUsage,
    Omitted,
    Error,
    ErrorStatus,
    TooLong,
    Key,
}

/// The schema of the table `calls`.
///
/// `call_key` is the first 16 bytes of the key, as rows carry it; `key` is the whole. A call that
/// failed for good has a null `answer` and an `error`.
pub fn calls_schema() -> SchemaRef {
    static SCHEMA: OnceLock<SchemaRef> = OnceLock::new();
    let schema = SCHEMA.get_or_init(|| {
        let not_null = |name: &str, kind: DataType| Field::new(name, kind, false);
        let nullable = |name: &str, kind: DataType| Field::new(name, kind, true);
        let list = |kind: DataType| DataType::List(Arc::new(Field::new("item", kind, false)));
        let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        Arc::new(Schema::new(vec![
            not_null("call_key", DataType::Utf8),
            not_null("kind", DataType::Utf8),
            not_null("model", DataType::Utf8),
            not_null("model_fingerprint", DataType::Utf8),
            not_null("request", DataType::Utf8),
            nullable("answer", DataType::Utf8),
            nullable("finish_reason", DataType::Utf8),
            nullable("token_logprobs", list(DataType::Float32)),
            nullable("choice_logprobs", list(DataType::Float64)),
            nullable("votes", DataType::Int32),
            nullable("seed", DataType::Int64),
            not_null("prompt_tokens", DataType::Int32),
            not_null("cached_tokens", DataType::Int32),
            not_null("completion_tokens", DataType::Int32),
            nullable("cost_usd", DataType::Float64),
            not_null("attempts", DataType::Int32),
            not_null("started_at", time),
            not_null("latency_ms", DataType::Float64),
            nullable("served_model", DataType::Utf8),
            nullable("system_fingerprint", DataType::Utf8),
            nullable("device", DataType::Utf8),
            nullable("reasoning", DataType::Utf8),
            nullable("estimated_usage", DataType::Boolean),
            nullable("omitted", list(DataType::Utf8)),
            nullable("error", DataType::Utf8),
            nullable("error_status", DataType::Int32),
            not_null("too_long", DataType::Boolean),
            not_null("key", DataType::FixedSizeBinary(KEY_LEN as i32)),
        ]))
    });
    Arc::clone(schema)
}

/// The rows of entries, in their order.
pub(super) fn encode(entries: &[Entry]) -> RecordBatch {
    let columns = vec![
        text(entries, |entry| Some(entry.key.id().to_string())),
        text(entries, |entry| Some(entry.kind.name())),
        text(entries, |entry| Some(&entry.model)),
        text(entries, |entry| Some(entry.model_fingerprint.to_string())),
        text(entries, |entry| Some(&entry.request_json)),
        text(entries, |entry| Some(&answer(entry)?.text)),
        text(entries, |entry| Some(answer(entry)?.finish.name())),
        list::<Float32Type>(entries, |answer| answer.token_logprobs.as_deref()),
        list::<Float64Type>(entries, |answer| answer.choice_logprobs.as_deref()),
        number::<Int32Type>(entries, |entry| answer(entry)?.votes),
        number::<Int64Type>(entries, |entry| entry.seed),
        number::<Int32Type>(entries, |entry| Some(of(entry, |answer| answer.prompt_tokens))),
        number::<Int32Type>(entries, |entry| Some(of(entry, |answer| answer.cached_tokens))),
        number::<Int32Type>(entries, |entry| Some(of(entry, |answer| answer.completion_tokens))),
        number::<Float64Type>(entries, |entry| entry.cost_usd),
        number::<Int32Type>(entries, |entry| Some(of(entry, |answer| answer.attempts))),
        times(entries),
        number::<Float64Type>(entries, |entry| Some(of(entry, |answer| answer.latency_ms))),
        text(entries, |entry| answer(entry)?.served_model.as_ref()),
        text(entries, |entry| answer(entry)?.system_fingerprint.as_ref()),
        text(entries, |entry| answer(entry)?.device.as_ref()),
        text(entries, |entry| answer(entry)?.reasoning.as_ref()),
        flags(entries, |answer| answer.estimated_usage),
        names(entries, |answer| &answer.omitted),
        text(entries, |entry| Some(&failure(entry)?.message)),
        number::<Int32Type>(entries, |entry| failure(entry)?.status.map(i32::from)),
        too_long(entries),
        whole_keys(entries),
    ];
    RecordBatch::try_new(calls_schema(), columns).expect("the columns are those of the schema")
}

fn answer(entry: &Entry) -> Option<&Answer> {
    entry.outcome.as_ref().ok()
}

fn failure(entry: &Entry) -> Option<&Failure> {
    entry.outcome.as_ref().err()
}

fn of<T: Default>(entry: &Entry, field: impl Fn(&Answer) -> T) -> T {
    answer(entry).map(field).unwrap_or_default()
}

fn text<'a, T: AsRef<str>>(
    entries: &'a [Entry],
    field: impl Fn(&'a Entry) -> Option<T>,
) -> ArrayRef {
    Arc::new(entries.iter().map(field).collect::<StringArray>())
}

fn number<T: ArrowPrimitiveType>(
    entries: &[Entry],
    field: impl Fn(&Entry) -> Option<T::Native>,
) -> ArrayRef {
    let mut numbers = PrimitiveBuilder::<T>::with_capacity(entries.len());
    for entry in entries {
        numbers.append_option(field(entry));
    }
    Arc::new(numbers.finish())
}

fn list<T: ArrowPrimitiveType>(
    entries: &[Entry],
    field: impl Fn(&Answer) -> Option<&[T::Native]>,
) -> ArrayRef {
    let item = Field::new("item", T::DATA_TYPE, false);
    let mut lists = ListBuilder::new(PrimitiveBuilder::<T>::new()).with_field(item);
    for entry in entries {
        let numbers = answer(entry).and_then(&field);
        if let Some(numbers) = numbers {
            lists.values().append_slice(numbers);
        }
        lists.append(numbers.is_some());
    }
    Arc::new(lists.finish())
}

fn flags(entries: &[Entry], field: impl Fn(&Answer) -> bool) -> ArrayRef {
    let flags = entries.iter().map(|entry| answer(entry).map(&field));
    Arc::new(flags.collect::<BooleanArray>())
}

fn names(entries: &[Entry], field: impl Fn(&Answer) -> &[String]) -> ArrayRef {
    let item = Field::new("item", DataType::Utf8, false);
    let mut lists = ListBuilder::new(StringBuilder::new()).with_field(item);
    for entry in entries {
        let names = answer(entry).map(&field).filter(|names| !names.is_empty());
        names.into_iter().flatten().for_each(|name| lists.values().append_value(name));
        lists.append(names.is_some());
    }
    Arc::new(lists.finish())
}

fn too_long(entries: &[Entry]) -> ArrayRef {
    let too_long = |entry| Some(failure(entry).is_some_and(|failure| failure.too_long));
    Arc::new(entries.iter().map(too_long).collect::<BooleanArray>())
}

fn times(entries: &[Entry]) -> ArrayRef {
    let times = entries.iter().map(|entry| of(entry, |answer| answer.started_at_us));
    Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
}

fn whole_keys(entries: &[Entry]) -> ArrayRef {
    let mut keys = FixedSizeBinaryBuilder::with_capacity(entries.len(), KEY_LEN as i32);
    for entry in entries {
        keys.append_value(entry.key.0).expect("a key has the width of the column");
    }
    Arc::new(keys.finish())
}

/// The rows as this program's columns, whatever order and extra columns the file had; the request
/// is empty where it was not read. Names the column that is missing.
pub(super) fn adapt(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = calls_schema();
    if rows.schema().fields() == schema.fields() {
        return Ok(rows.clone());
    }
    let columns = schema.fields().iter().map(|field| match rows.column_by_name(field.name()) {
        Some(column) => Ok(Arc::clone(column)),
        None if field.is_nullable() => Ok(new_null_array(field.data_type(), rows.num_rows())),
        None if field.name() == "request" => {
            Ok(Arc::new(StringArray::from_iter_values((0..rows.num_rows()).map(|_| "")))
                as ArrayRef)
        }
        None => Err(ArrowError::SchemaError(format!("there is no column {:?}", field.name()))),
    });
    let columns = columns.collect::<Result<Vec<ArrayRef>, ArrowError>>()?;
    RecordBatch::try_new(schema, columns)
}

/// The key of a row.
pub(super) fn key(rows: &RecordBatch, row: usize) -> CallKey {
    let keys: &FixedSizeBinaryArray = rows.column(Col::Key as usize).as_fixed_size_binary();
    CallKey(keys.value(row).try_into().expect("the column has the width of a key"))
}

/// The keys of rows that have at least the columns `key` and `error`, and whether the calls failed.
pub(super) fn keys(rows: &RecordBatch) -> Option<Vec<(CallKey, bool)>> {
    let keys = rows.column_by_name("key")?.as_fixed_size_binary_opt()?;
    let errors = rows.column_by_name("error")?;
    let key = |row| Some((CallKey(keys.value(row).try_into().ok()?), errors.is_valid(row)));
    (0..rows.num_rows()).map(key).collect()
}

/// Whether a row is a failure.
pub(super) fn failed(rows: &RecordBatch, row: usize) -> bool {
    rows.column(Col::Error as usize).is_valid(row)
}

/// What came of the call of a row; the request is not read.
pub(super) fn outcome(rows: &RecordBatch, row: usize) -> Outcome {
    let cells = Cells { rows, row };
    if let Some(message) = cells.text(Col::Error) {
        return Err(Failure {
            status: cells.int(Col::ErrorStatus).map(|status| status as u16),
            message,
            too_long: rows.column(Col::TooLong as usize).as_boolean().value(row),
        });
    }
    let finish = cells.str(Col::FinishReason);
    let Some(finish) = finish.map_or(Some(Finish::Stop), Finish::from_name) else {
        let message = format!("the memo holds an answer whose end is not known: {finish:?}");
        return Err(Failure { message, ..Failure::default() });
    };
    Ok(Answer {
        text: cells.text(Col::Answer).unwrap_or_default(),
        reasoning: cells.text(Col::Reasoning),
        finish,
        estimated_usage: cells.flag(Col::EstimatedUsage),
        omitted: cells.texts(Col::Omitted),
        wasted: Billed::default(),
        token_logprobs: cells.list::<Float32Type>(Col::TokenLogprobs),
        choice_logprobs: cells.list::<Float64Type>(Col::ChoiceLogprobs),
        votes: cells.int(Col::Votes),
        prompt_tokens: cells.int(Col::PromptTokens).unwrap_or_default(),
        cached_tokens: cells.int(Col::CachedTokens).unwrap_or_default(),
        completion_tokens: cells.int(Col::CompletionTokens).unwrap_or_default(),
        attempts: cells.int(Col::Attempts).unwrap_or_default(),
        started_at_us: cells.number::<TimestampMicrosecondType>(Col::StartedAt).unwrap_or_default(),
        latency_ms: cells.number::<Float64Type>(Col::LatencyMs).unwrap_or_default(),
        served_model: cells.text(Col::ServedModel),
        system_fingerprint: cells.text(Col::SystemFingerprint),
        device: cells.text(Col::Device),
    })
}

/// The entry of a row, or what in it cannot be read.
pub(super) fn entry(rows: &RecordBatch, row: usize) -> Result<Entry, String> {
    let cells = Cells { rows, row };
    let (kind, fingerprint) = (cells.str(Col::Kind), cells.str(Col::ModelFingerprint));
    Ok(Entry {
        key: key(rows, row),
        kind: kind.and_then(CallKind::from_name).ok_or_else(|| format!("kind {kind:?}"))?,
        model: cells.text(Col::Model).unwrap_or_default(),
        model_fingerprint: fingerprint
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| format!("model_fingerprint {fingerprint:?}"))?,
        request_json: cells.text(Col::Request).unwrap_or_default(),
        outcome: outcome(rows, row),
        seed: cells.number::<Int64Type>(Col::Seed),
        cost_usd: cells.number::<Float64Type>(Col::CostUsd),
    })
}

/// The cells of one row.
struct Cells<'a> {
    rows: &'a RecordBatch,
    row: usize,
}

impl<'a> Cells<'a> {
    fn str(&self, at: Col) -> Option<&'a str> {
        let array: &StringArray = self.rows.column(at as usize).as_string();
        array.is_valid(self.row).then(|| array.value(self.row))
    }

    fn text(&self, at: Col) -> Option<String> {
        self.str(at).map(str::to_owned)
    }

    fn number<T: ArrowPrimitiveType>(&self, at: Col) -> Option<T::Native> {
        let array = self.rows.column(at as usize).as_primitive::<T>();
        array.is_valid(self.row).then(|| array.value(self.row))
    }

    fn int(&self, at: Col) -> Option<i32> {
        self.number::<Int32Type>(at)
    }

    fn flag(&self, at: Col) -> bool {
        let array = self.rows.column(at as usize).as_boolean();
        array.is_valid(self.row) && array.value(self.row)
    }

    fn texts(&self, at: Col) -> Vec<String> {
        let array: &ListArray = self.rows.column(at as usize).as_list();
        if array.is_null(self.row) {
            return Vec::new();
        }
        let items = array.value(self.row);
        let items: &StringArray = items.as_string();
        items.iter().flatten().map(str::to_owned).collect()
    }

    fn list<T: ArrowPrimitiveType>(&self, at: Col) -> Option<Vec<T::Native>> {
        let array: &ListArray = self.rows.column(at as usize).as_list();
        let numbers = || array.value(self.row).as_primitive::<T>().values().to_vec();
        array.is_valid(self.row).then(numbers)
    }
}
