//! Tests of reading: rows, rejects and identities, in every format.

mod columnar;
mod odd;
mod several;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::*;
use crate::record::Row;

fn options(relation: Relation) -> ReadOptions {
    ReadOptions {
        relation,
        verbatim: false,
        key: Vec::new(),
        columns: IndexMap::new(),
        limit: None,
        node: "node".to_owned(),
    }
}

/// Reads bytes as a file of JSON lines.
fn read_bytes(bytes: &[u8], options: &ReadOptions) -> Result<ReadRows, ReadError> {
    read_as(Format::Jsonl, bytes, options)
}

/// Reads bytes as a file.
fn read_as(format: Format, bytes: &[u8], options: &ReadOptions) -> Result<ReadRows, ReadError> {
    read_files(&[("rows", format, bytes)], options)
}

/// Reads several files.
fn read_files(
    files: &[(&str, Format, &[u8])],
    options: &ReadOptions,
) -> Result<ReadRows, ReadError> {
    let folder = tempfile::tempdir().unwrap();
    let input = |(source, format, bytes): &(&str, Format, &[u8])| {
        let path = folder.path().join(source);
        std::fs::write(&path, bytes).unwrap();
        Input { path, source: (*source).to_owned(), format: *format }
    };
    let inputs: Vec<Input> = files.iter().map(input).collect();
    read(&inputs, options)
}

fn said(row: Row<'_>, name: &str) -> String {
    row.turns(name)
        .map(|(role, content)| format!("{role}: {content:?}"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The rows a line each, then the rejects.
fn show(read: &ReadRows, columns: &[&str]) -> String {
    let mut text = String::new();
    for row in read.rows.iter().flat_map(|(batch, _)| batch.iter()) {
        for name in columns {
            let value = match row.relation().columns()[row.relation().position(name)].kind {
                crate::record::Kind::Messages => said(row, name),
                crate::record::Kind::Float => format!("{:?}", row.float(name)),
                crate::record::Kind::Texts => format!("{:?}", row.texts(name)),
                crate::record::Kind::Int32 | crate::record::Kind::Int64 => {
                    format!("{:?}", row.int(name))
                }
                _ => format!("{:?}", row.text(name)),
            };
            let _ = write!(text, "{name} = {value}  ");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    for row in read.rejects.0.iter() {
        let line = row.int("source_line").unwrap();
        let _ = writeln!(text, "line {line}: {}: {}", row.str("reason"), row.str("detail"));
    }
    text
}

fn ids(read: &ReadRows) -> Vec<Id> {
    read.rows.iter().flat_map(|(batch, _)| batch.iter().map(Row::row_id)).collect()
}

#[test]
fn a_prompt_is_a_text_a_transcript_or_messages() {
    let file = r#"{"prompt": "hi", "category": "a", "tags": ["x", "y"], "note": 1}
{"prompt": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: bye\n\nAssistant:"}

{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}], "tags": "x, y"}
{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
"#;
    let read = read_bytes(file.as_bytes(), &options(Relation::Prompts)).unwrap();
    insta::assert_snapshot!(show(&read, &["prompt", "turn", "category", "tags", "extra", "source_line"]), @r#"
    prompt = user: "hi"  turn = Some(0)  category = Some("a")  tags = ["x", "y"]  extra = Some("{\"note\":1}")  source_line = Some(1)
    prompt = user: "hi", assistant: "hello", user: "bye"  turn = Some(1)  category = None  tags = []  extra = None  source_line = Some(2)
    prompt = system: "s", user: "hi"  turn = Some(0)  category = None  tags = ["x", "y"]  extra = None  source_line = Some(4)
    prompt = user: "hi"  turn = Some(0)  category = None  tags = []  extra = None  source_line = Some(5)
    "#);
}

#[test]
fn what_cannot_be_used_is_a_reject_that_names_its_line() {
    let file = b"{\"prompt\": \"hi\"}\n{\"prompt\": \nnull\n{\"prompt\": \"  \"}\n{\"prompt\": 3}\n\
        {\"question\": \"hi\"}\n{\"prompt\": \"\xff\"}\n\
        {\"prompt\": \"\\n\\nHuman: a\\n\\nHuman: b\"}\n{\"prompt\": [{\"role\": \"bot\", \"content\": \"a\"}]}\n";
    let read = read_bytes(file, &options(Relation::Prompts)).unwrap();
    insta::assert_snapshot!(show(&read, &["prompt"]), @r#"
    prompt = user: "hi"
    line 2: bad_input: column 10: it is not JSON: EOF while parsing a value
    line 3: bad_input: it is JSON but not an object
    line 4: bad_input: turn 1 of the prompt is empty
    line 5: bad_input: `prompt`: it is neither a text nor a list of messages
    line 6: bad_input: it has no column "prompt" (say what the file calls it: `columns: { prompt: … }`)
    line 7: bad_input: byte 13 is not UTF-8
    line 8: bad_input: turns 1 and 2 of the prompt are both the human's
    line 9: bad_input: `prompt`: message 1 has the role "bot"
    "#);
}

#[test]
fn a_comparison_has_any_of_the_three_shapes() {
    let file = r#"{"chosen": "\n\nHuman: hi\n\nAssistant: hello ", "rejected": "\n\nHuman: hi\n\nAssistant: go away"}
{"prompt": "hi", "chosen": "hello", "rejected": "no"}
{"prompt": "hi", "chosen": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}], "rejected": [{"role": "assistant", "content": "nope"}]}
{"chosen": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"}], "rejected": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "b"}]}
{"prompt": "hi", "response_a": "x", "response_b": "y", "p": 0.25, "weight": 2}
{"prompt": "hi", "response_a": "x", "response_b": "y", "p": 1.25}
{"prompt": "hi", "chosen": "same", "rejected": " same"}
{"chosen": "\n\nHuman: hi\n\nAssistant: hello", "rejected": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: x\n\nAssistant: y"}
{"chosen": "\n\nHuman: hi\n\nAssistant: ", "rejected": "\n\nHuman: hi\n\nAssistant: y"}
"#;
    let read = read_bytes(file.as_bytes(), &options(Relation::Comparisons)).unwrap();
    insta::assert_snapshot!(show(&read, &["prompt", "response_a", "response_b", "chosen", "p", "weight"]), @r#"
    prompt = user: "hi"  response_a = assistant: "go away"  response_b = assistant: "hello"  chosen = assistant: "hello"  p = Some(0.0)  weight = Some(1.0)
    prompt = user: "hi"  response_a = assistant: "hello"  response_b = assistant: "no"  chosen = assistant: "hello"  p = Some(1.0)  weight = Some(1.0)
    prompt = user: "hi"  response_a = assistant: "hello"  response_b = assistant: "nope"  chosen = assistant: "hello"  p = Some(1.0)  weight = Some(1.0)
    prompt = user: "hi"  response_a = assistant: "b"  response_b = assistant: "a"  chosen = assistant: "a"  p = Some(0.0)  weight = Some(1.0)
    prompt = user: "hi"  response_a = assistant: "x"  response_b = assistant: "y"  chosen = assistant: "y"  p = Some(0.25)  weight = Some(2.0)
    line 6: bad_input: `p` is 1.25, not a probability
    line 7: identical_pair: the two responses are equal
    line 8: bad_input: `rejected` has 3 turns after the prompt
    line 9: bad_input: `chosen` is empty
    "#);
}

#[test]
fn the_better_response_is_a_as_often_as_b() {
    let line =
        |n: u32| format!("{{\"prompt\": \"{n}\", \"chosen\": \"x\", \"rejected\": \"y\"}}\n");
    let file: String = (0..400).map(line).collect();
    let read = read_bytes(file.as_bytes(), &options(Relation::Comparisons)).unwrap();
    let first = read.rows[0].0.iter().filter(|row| row.float("p") == Some(1.0)).count();
    assert!((160..240).contains(&first), "{first}");
}

#[test]
fn a_demonstration_is_a_prompt_and_its_answer() {
    let file = r#"{"prompt": "hi", "completion": " hello "}
{"messages": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
{"messages": [{"role": "user", "content": "hi"}]}
"#;
    let read = read_bytes(file.as_bytes(), &options(Relation::Demonstrations)).unwrap();
    insta::assert_snapshot!(show(&read, &["prompt", "completion", "messages"]), @r#"
    prompt = user: "hi"  completion = assistant: "hello"  messages = user: "hi", assistant: "hello"
    prompt = user: "hi"  completion = assistant: "hello"  messages = user: "hi", assistant: "hello"
    line 3: bad_input: `messages` is of the user, not of the assistant
    "#);
}

#[test]
fn a_verbatim_demonstration_is_two_texts_with_every_space() {
    let file = r#"{"prompt": "\n\nHuman: hi\n\nAssistant:", "completion": " hello "}
{"prompt": "", "completion": "once"}
{"prompt": "hi", "completion": ""}
{"prompt": [{"role": "user", "content": "hi"}], "completion": " hello"}
"#;
    let options = ReadOptions { verbatim: true, ..options(Relation::Demonstrations) };
    let read = read_bytes(file.as_bytes(), &options).unwrap();
    insta::assert_snapshot!(show(&read, &["prompt", "completion"]), @r#"
    prompt = text: "\n\nHuman: hi\n\nAssistant:"  completion = text: " hello "
    prompt = text: ""  completion = text: "once"
    line 3: bad_input: `completion` is empty
    line 4: bad_input: `prompt` is not a text, and the node is `verbatim`
    "#);
}

#[test]
fn a_row_without_a_key_is_what_it_says_wherever_it_stands() {
    let read = |file: &str| read_bytes(file.as_bytes(), &options(Relation::Prompts)).unwrap();
    let [a, b] = ["{\"prompt\": \"a\"}\n", "{\"prompt\": \"b\", \"x\": 1, \"y\": 2}\n"];
    let first = ids(&read(&format!("{a}{b}{a}")));
    assert_eq!(ids(&read(&format!("{b}{a}"))), [first[1], first[0]]);
    assert_ne!(first[0], first[2]);
    assert_eq!(ids(&read("{\"y\": 2, \"x\": 1, \"prompt\": \"b\"}\n")), [first[1]]);
    assert_ne!(ids(&read("{\"prompt\": \"c\"}\n")), [first[0]]);
}

#[test]
fn a_row_with_a_key_keeps_its_id_when_it_is_edited() {
    let options = ReadOptions { key: vec!["n".to_owned()], ..options(Relation::Prompts) };
    let read = |file: &str| read_bytes(file.as_bytes(), &options);
    let before = read("{\"n\": 1, \"prompt\": \"a\"}\n{\"n\": 2, \"prompt\": \"b\"}\n").unwrap();
    let after = read("{\"n\": 2, \"prompt\": \"c\"}\n{\"n\": 1, \"prompt\": \"a\"}\n").unwrap();
    assert_eq!(ids(&before), [ids(&after)[1], ids(&after)[0]]);

    let error =
        read("{\"n\": 1, \"prompt\": \"a\"}\n\n{\"n\": 1, \"prompt\": \"b\"}\n").unwrap_err();
    assert!(
        error.to_string().ends_with("rows: lines 1 and 3 have the key 1 and differ"),
        "{error}"
    );
    assert_eq!(
        read("{\"n\": 1, \"prompt\": \"a\"}\n{\"n\": 1, \"prompt\": \"a\"}\n").unwrap().len(),
        2
    );
}

#[test]
fn columns_are_renamed_and_what_they_hide_is_kept() {
    let columns = [("prompt", "question"), ("category", "topic")];
    let columns = columns.map(|(ours, theirs)| (ours.to_owned(), theirs.to_owned()));
    let options = ReadOptions { columns: columns.into(), ..options(Relation::Prompts) };
    let file = "{\"question\": \"hi\", \"prompt\": \"other\", \"topic\": \"t\"}\n";
    let read = read_bytes(file.as_bytes(), &options).unwrap();
    insta::assert_snapshot!(show(&read, &["prompt", "category", "extra"]), @r#"
    prompt = user: "hi"  category = Some("t")  extra = Some("{\"prompt\":\"other\"}")
    "#);
}

#[test]
fn csv_and_gzip_and_parquet_hold_the_same_rows() {
    let json = "{\"prompt\": \"hi\\nthere\", \"category\": \"a\"}\n{\"prompt\": \"bye\"}\n";
    let csv = "prompt,category\n\"hi\nthere\",a\nbye,\nodd\n";
    let from_json = read_bytes(json.as_bytes(), &options(Relation::Prompts)).unwrap();
    let prompts = options(Relation::Prompts);
    let from_csv = read_as(Format::Csv, csv.as_bytes(), &prompts).unwrap();
    assert_eq!(ids(&from_csv), ids(&from_json));
    insta::assert_snapshot!(show(&from_csv, &["prompt", "category", "source_line"]), @r#"
    prompt = user: "hi\nthere"  category = Some("a")  source_line = Some(2)
    prompt = user: "bye"  category = None  source_line = Some(4)
    line 5: bad_input: it has 1 fields, the header 2
    "#);

    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(json.as_bytes()).unwrap();
    let packed = packed.finish().unwrap();
    let from_gzip = read_bytes(&packed, &options(Relation::Prompts)).unwrap();
    assert_eq!(ids(&from_gzip), ids(&from_json));
    let error = read_bytes(&packed[..packed.len() - 4], &options(Relation::Prompts)).unwrap_err();
    assert!(matches!(error, ReadError::File { line: 2, .. }), "{error:?}");

    let (batch, _) = &from_json.rows[0];
    let some = batch.rows().project(&[5, 9]).unwrap();
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, some.schema(), None).unwrap();
    writer.write(&some).unwrap();
    writer.close().unwrap();
    let as_parquet = |bytes: &[u8]| read_as(Format::Parquet, bytes, &prompts);
    assert_eq!(ids(&as_parquet(&bytes).unwrap()), ids(&from_json));
    assert!(matches!(as_parquet(json.as_bytes()), Err(ReadError::Other { .. })));
    assert!(matches!(as_parquet(b"PAR1 and no more"), Err(ReadError::Malformed { line: 1, .. })));
}

#[test]
fn a_file_that_is_something_else_is_an_error_and_not_a_thousand_rejects() {
    let error = read_bytes(b"prompt,category\nhi,a\n", &options(Relation::Prompts)).unwrap_err();
    insta::assert_snapshot!(shown(&error), @r"
    rows:1: column 1: it is not JSON: expected value
    ");
    let file = b"{\"question\": \"hi\", \"n\": 1}\n{\"question\": \"bye\"}\n";
    let error = read_bytes(file, &options(Relation::Prompts)).unwrap_err();
    insta::assert_snapshot!(shown(&error), @r#"
    rows:1: it has no column "prompt" (say what the file calls it: `columns: { prompt: … }`); it has question, n
    "#);
}

/// An error without the folder of its file.
fn shown(error: &ReadError) -> String {
    let text = error.to_string();
    text.split_once("/rows").map_or(text.clone(), |(_, rest)| format!("rows{rest}"))
}

#[test]
fn a_limit_takes_rows_from_the_top() {
    let options = ReadOptions { limit: Some(2), ..options(Relation::Prompts) };
    let read = read_bytes(b"{\"prompt\": \"a\"}\n3\n{\"prompt\": \"b\"}\n", &options).unwrap();
    assert_eq!((read.len(), read.rejects.0.len()), (1, 1));
}

#[test]
fn a_fingerprint_changes_with_the_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows");
    std::fs::write(&path, "a").unwrap();
    let before = fingerprint(&path).unwrap();
    std::fs::write(&path, "b").unwrap();
    let after = fingerprint(&path).unwrap();
    assert_eq!((before.bytes, after.bytes), (1, 1));
    assert_ne!(before.hash, after.hash);
}

/// The folder of real data, if it is there.
fn data() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let folder = std::env::var_os("AMEND_DATA").map_or_else(beside, PathBuf::from);
    folder.is_dir().then_some(folder)
}

#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn every_row_of_the_published_test_split_is_a_row_or_a_reject() {
    let Some(folder) = data() else {
        eprintln!("skipped: there is no folder of real data (AMEND_DATA)");
        return;
    };
    let path = folder.join("hh-rlhf/harmless-base-test.jsonl.gz");
    let prompts = options(Relation::Prompts);
    let inputs = [Input { path, source: "hh".to_owned(), format: Format::HhRlhf }];
    let read_prompts = read(&inputs, &prompts).unwrap();
    assert_eq!(read_prompts.len() + read_prompts.rejects.0.len(), 1766);
    insta::assert_snapshot!(reasons(&read_prompts), @r"
    1762 rows
    4 bad_input: turns # and # of the prompt are both the assistant's
    ");

    let pairs = ReadOptions { relation: Relation::Comparisons, ..prompts };
    let read_pairs = read(&inputs, &pairs).unwrap();
    assert_eq!(read_pairs.len() + read_pairs.rejects.0.len(), 1766);
    insta::assert_snapshot!(reasons(&read_pairs), @r"
    1758 rows
    2 bad_input: `chosen` has # turns after the prompt
    2 bad_input: `chosen` is empty
    4 bad_input: turns # and # of the prompt are both the assistant's
    ");

    let all: std::collections::BTreeSet<Id> = ids(&read_prompts).into_iter().collect();
    assert_eq!(all.len(), read_prompts.len(), "ids are unique");
}

/// How many rejects have each reason, numbers left out.
fn reasons(read: &ReadRows) -> String {
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for row in read.rejects.0.iter() {
        let detail: String =
            row.str("detail").chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
        *counts.entry(format!("{}: {detail}", row.str("reason"))).or_default() += 1;
    }
    let lines = counts.iter().map(|(reason, count)| format!("{count} {reason}"));
    std::iter::once(format!("{} rows", read.len())).chain(lines).collect::<Vec<_>>().join("\n")
}
