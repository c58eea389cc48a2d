//! Tests of Parquet: every type that writers give a text or messages, and values that are neither.

use std::sync::Arc;

use arrow::array::*;
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Int32Type, TimestampMicrosecondType};

use super::*;

fn written(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let columns = columns.into_iter().map(|(name, array)| (name, array, true));
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    written_batch(&batch)
}

fn written_batch(batch: &RecordBatch) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn shown_as(bytes: &[u8], options: &ReadOptions, columns: &[&str]) -> String {
    match read_as(Format::Parquet, bytes, options) {
        Ok(read) => show(&read, columns),
        Err(error) => shown(&error),
    }
}

#[test]
fn a_text_is_one_in_every_type_that_writers_have_for_it() {
    let texts = ["hi", "é\u{0}"];
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(texts)),
        Arc::new(LargeStringArray::from_iter_values(texts)),
        Arc::new(StringViewArray::from_iter_values(texts)),
        Arc::new(BinaryArray::from_iter_values(texts)),
        Arc::new(LargeBinaryArray::from_iter_values(texts)),
        Arc::new(BinaryViewArray::from_iter_values(texts)),
        Arc::new(DictionaryArray::<Int32Type>::from_iter(texts)),
    ];
    let prompts = options(Relation::Prompts);
    let plain =
        read_as(Format::Parquet, &written(vec![("prompt", Arc::clone(&arrays[0]))]), &prompts);
    let plain = ids(&plain.unwrap());
    for array in arrays {
        let kind = array.data_type().clone();
        let read = read_as(Format::Parquet, &written(vec![("prompt", array)]), &prompts).unwrap();
        assert_eq!(ids(&read), plain, "{kind}");
    }
}

#[test]
fn bytes_that_are_no_text_are_a_reject_where_they_are_used_and_marked_where_they_are_kept() {
    let prompts: ArrayRef = Arc::new(BinaryArray::from_iter_values([&b"a"[..], b"b\xff", b"c"]));
    let images: ArrayRef =
        Arc::new(BinaryArray::from_opt_vec(vec![Some(b"\xff\xd8"), Some(b"x"), None]));
    let digests =
        FixedSizeBinaryArray::try_from_iter([[1u8, 255], [2, 65], [66, 67]].iter()).unwrap();
    let bytes = written(vec![("text", prompts), ("image", images), ("uuid", Arc::new(digests))]);
    let columns = IndexMap::from([("prompt".to_owned(), "text".to_owned())]);
    let renamed = ReadOptions { columns, ..options(Relation::Prompts) };
    insta::assert_snapshot!(shown_as(&bytes, &renamed, &["prompt", "extra", "source_line"]), @r#"
    prompt = user: "a"  extra = Some("{\"image\":{\"hex\":\"ffd8\"},\"uuid\":\"01ff\"}")  source_line = Some(1)
    prompt = user: "c"  extra = Some("{\"uuid\":\"4243\"}")  source_line = Some(3)
    line 2: bad_input: the column "text" holds bytes that are not UTF-8, the first at byte 2
    "#);

    // A UUID tells rows apart, and is no prompt.
    let keyed = ReadOptions { key: vec!["uuid".to_owned()], ..renamed.clone() };
    assert_eq!(shown_as(&bytes, &keyed, &["prompt"]).lines().count(), 3);
    let keyed = ReadOptions { key: vec!["image".to_owned()], ..renamed };
    insta::assert_snapshot!(shown_as(&bytes, &keyed, &["prompt"]), @r#"
    line 1: bad_input: the column "image" holds bytes that are not UTF-8, the first at byte 1
    line 2: bad_input: the column "text" holds bytes that are not UTF-8, the first at byte 2
    line 3: bad_input: it has no key column "image"
    "#);
    let columns = IndexMap::from([("prompt".to_owned(), "uuid".to_owned())]);
    let wrong = ReadOptions { columns, ..options(Relation::Prompts) };
    insta::assert_snapshot!(shown_as(&bytes, &wrong, &["prompt"]), @r#"
    line 1: bad_input: the column "uuid" holds 2 bytes and no text
    line 2: bad_input: the column "uuid" holds 2 bytes and no text
    line 3: bad_input: the column "uuid" holds 2 bytes and no text
    "#);
}

/// Messages with their roles in a dictionary and their contents as bytes.
fn messages() -> StructArray {
    let roles: ArrayRef =
        Arc::new(DictionaryArray::<Int32Type>::from_iter(["user", "assistant", "user"]));
    let contents: ArrayRef =
        Arc::new(BinaryArray::from_iter_values([&b"hi"[..], b"hello", b"b\xff"]));
    let names: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>; 3]));
    StructArray::from(vec![
        (Arc::new(Field::new("role", roles.data_type().clone(), true)), roles),
        (Arc::new(Field::new("content", DataType::Binary, true)), contents),
        (Arc::new(Field::new("name", DataType::Utf8, true)), names),
    ])
}

#[test]
fn lists_of_structs_are_messages_in_every_type_of_list() {
    let item = Arc::new(Field::new("item", messages().data_type().clone(), true));
    let lists: Vec<ArrayRef> = vec![
        Arc::new(ListArray::new(
            Arc::clone(&item),
            OffsetBuffer::from_lengths([2, 1]),
            Arc::new(messages()),
            None,
        )),
        Arc::new(LargeListArray::new(
            Arc::clone(&item),
            OffsetBuffer::from_lengths([2, 1]),
            Arc::new(messages()),
            None,
        )),
    ];
    for list in lists {
        let kind = list.data_type().clone();
        let shown =
            shown_as(&written(vec![("messages", list)]), &options(Relation::Prompts), &["prompt"]);
        let wanted = "prompt = user: \"hi\"\nline 2: bad_input: the column \"messages\" holds bytes that are not UTF-8, the first at byte 2\n";
        assert_eq!(shown, wanted, "{kind}");
    }
    let fixed = FixedSizeListArray::new(item, 1, Arc::new(messages()), None);
    let shown = shown_as(
        &written(vec![("messages", Arc::new(fixed))]),
        &options(Relation::Prompts),
        &["prompt"],
    );
    assert!(shown.starts_with("prompt = user: \"hi\"\nline 2: "), "{shown}");
}

#[test]
fn a_value_that_json_cannot_say_is_never_taken_for_another() {
    let text = |texts: [&str; 4]| Arc::new(StringArray::from_iter_values(texts)) as ArrayRef;
    let weights: ArrayRef =
        Arc::new(Float32Array::from(vec![Some(0.1), Some(f32::NAN), Some(f32::INFINITY), None]));
    let times: ArrayRef =
        Arc::new(PrimitiveArray::<TimestampMicrosecondType>::from(vec![0, i64::MAX, 1, 2]));
    let bytes = written(vec![
        ("prompt", text(["a", "b", "c", "d"])),
        ("chosen", text(["x"; 4])),
        ("rejected", text(["y"; 4])),
        ("weight", weights),
        ("time", times),
    ]);
    insta::assert_snapshot!(shown_as(&bytes, &options(Relation::Comparisons), &["prompt", "weight"]), @r#"
    prompt = user: "a"  weight = Some(0.1)
    prompt = user: "d"  weight = Some(1.0)
    line 2: bad_input: the column "weight" holds NaN, which is no number
    line 3: bad_input: the column "weight" holds inf, which is no number
    "#);
    insta::assert_snapshot!(shown_as(&bytes, &options(Relation::Prompts), &["prompt", "extra"]), @r#"
    prompt = user: "a"  extra = Some("{\"chosen\":\"x\",\"rejected\":\"y\",\"time\":\"1970-01-01T00:00:00\",\"weight\":0.1}")
    prompt = user: "b"  extra = Some("{\"chosen\":\"x\",\"rejected\":\"y\",\"time\":{\"unreadable\":\"out of range\"}}")
    prompt = user: "c"  extra = Some("{\"chosen\":\"x\",\"rejected\":\"y\",\"time\":\"1970-01-01T00:00:00.000001\"}")
    prompt = user: "d"  extra = Some("{\"chosen\":\"x\",\"rejected\":\"y\",\"time\":\"1970-01-01T00:00:00.000002\"}")
    "#);
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    insta::assert_snapshot!(shown_as(&written(vec![("prompt", numbers)]), &options(Relation::Prompts), &["prompt"]), @r"
    line 1: bad_input: `prompt`: it is neither a text nor a list of messages
    line 2: bad_input: `prompt`: it is neither a text nor a list of messages
    ");
}

#[test]
fn a_damaged_file_is_an_error_and_never_a_panic() {
    let texts: ArrayRef =
        Arc::new(StringArray::from_iter_values((0..100).map(|n| format!("prompt {n}"))));
    let item = Arc::new(Field::new("item", DataType::Utf8, true));
    let lengths = vec![1usize; 100];
    let tags: ArrayRef = Arc::new(ListArray::new(
        item,
        OffsetBuffer::from_lengths(lengths),
        Arc::clone(&texts),
        None,
    ));
    let whole = written(vec![("prompt", texts), ("tags", tags)]);
    let mut state = 7u64;
    for _ in 0..400 {
        let mut bytes = whole.clone();
        for _ in 0..3 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let at = (state >> 33) as usize % bytes.len();
            bytes[at] ^= 1 << ((state >> 20) & 7);
        }
        // Whatever it says, it says it: what cannot be seen is a row of other words.
        drop(read_as(Format::Parquet, &bytes, &options(Relation::Prompts)));
    }
    for length in (0..whole.len()).step_by(37) {
        assert!(read_as(Format::Parquet, &whole[..length], &options(Relation::Prompts)).is_err());
    }
}
