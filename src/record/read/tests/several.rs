//! Tests of several files that are read as one table.

use super::*;

fn sources(read: &ReadRows) -> Vec<(String, i64)> {
    let rows = read.rows.iter().flat_map(|(batch, _)| batch.iter());
    rows.map(|row| (row.str("source").to_owned(), row.int("source_line").unwrap())).collect()
}

const A: &[u8] = b"{\"n\": 1, \"prompt\": \"a\"}\nno JSON\n{\"n\": 2, \"prompt\": \"b\"}\n";
const B: &[u8] = b"prompt,n\nc,3\n,4\n";

#[test]
fn a_row_and_a_reject_name_the_file_that_they_are_of() {
    let files = [("a.jsonl", Format::Jsonl, A), ("b.csv", Format::Csv, B)];
    let read = read_files(&files, &options(Relation::Prompts)).unwrap();
    let named = |name: &str, line| (name.to_owned(), line);
    assert_eq!(sources(&read), [named("a.jsonl", 1), named("a.jsonl", 3), named("b.csv", 2)]);
    let rejects: Vec<(String, i64)> = read
        .rejects
        .0
        .iter()
        .map(|row| (row.str("source").to_owned(), row.int("source_line").unwrap()))
        .collect();
    assert_eq!(rejects, [named("a.jsonl", 2), named("b.csv", 3)]);
}

#[test]
fn keys_and_equal_rows_are_told_apart_over_all_files() {
    let keyed = ReadOptions { key: vec!["n".to_owned()], ..options(Relation::Prompts) };
    let other: &[u8] = b"{\"n\": 9, \"prompt\": \"z\"}\n{\"n\": 2, \"prompt\": \"not b\"}\n";
    let files = [("a.jsonl", Format::Jsonl, A), ("c.jsonl", Format::Jsonl, other)];
    let error = read_files(&files, &keyed).unwrap_err().to_string();
    let (first, second) = error.split_once(" and line 2 of ").unwrap_or_else(|| panic!("{error}"));
    assert!(first.starts_with("line 3 of ") && first.ends_with("/a.jsonl"), "{error}");
    assert!(second.ends_with("/c.jsonl have the key 2 and differ"), "{error}");

    let files = [("a.jsonl", Format::Jsonl, A), ("c.jsonl", Format::Jsonl, A)];
    let twice = read_files(&files, &options(Relation::Prompts)).unwrap();
    let once = read_files(&files[..1], &options(Relation::Prompts)).unwrap();
    assert_eq!(ids(&twice)[..2], ids(&once), "rows of one file have the ids that they have alone");
    let all: std::collections::BTreeSet<Id> = ids(&twice).into_iter().collect();
    assert_eq!(all.len(), 4);
}

#[test]
fn a_file_among_others_that_is_something_else_is_an_error() {
    let files = [("a.jsonl", Format::Jsonl, A), ("b.jsonl", Format::Jsonl, b"{\"text\": \"a\"}\n")];
    let error = read_files(&files, &options(Relation::Prompts)).unwrap_err();
    assert!(
        matches!(&error, ReadError::Columns { path, line: 1, .. } if path.ends_with("b.jsonl"))
    );
    let files = [("a.jsonl", Format::Jsonl, A), ("b.jsonl", Format::Jsonl, b"")];
    assert_eq!(read_files(&files, &options(Relation::Prompts)).unwrap().len(), 2);
}

#[test]
fn a_limit_goes_on_from_file_to_file() {
    let files = [("a.jsonl", Format::Jsonl, A), ("b.csv", Format::Csv, B)];
    for (limit, rows, rejects) in [(1, 1, 0), (2, 1, 1), (3, 2, 1), (4, 3, 1), (9, 3, 2)] {
        let options = ReadOptions { limit: Some(limit), ..options(Relation::Prompts) };
        let read = read_files(&files, &options).unwrap();
        assert_eq!((read.len(), read.rejects.0.len()), (rows, rejects), "{limit}");
    }
}
