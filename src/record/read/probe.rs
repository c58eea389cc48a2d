//! Probing: whether files are what they are declared to be, as far as their headers and first records say.

use indexmap::IndexSet;

use super::lines::COLUMNS_MAX;
use super::{Input, ReadError, ReadOptions, Reader, lines, with_note};

/// Records that are looked at in a file, at most.
const RECORDS: u64 = 10_000;

/// Files that are looked at, at most, if they have every column that the options name: a run reads all
/// before it asks anything.
const FILES: usize = 64;

/// What was seen of files.
#[derive(Debug, Default)]
pub struct Probe {
    /// Their columns: those of headers, or those of the records looked at.
    pub columns: IndexSet<String>,
    /// Columns that the options name and none of the files has, as the options name them.
    pub lacking: Vec<String>,
    /// Files, by their place among all, that cannot be read, or of which none of the rows looked at can
    /// be one.
    pub errors: Vec<(usize, ReadError)>,
}

/// Looks at the beginning of files: until a record is a row and every column that the options name
/// was seen. Only of a file in which that is not so are more than a few records read, 10,000 at most.
///
/// # Panics
///
/// When the relation is none that files hold.
pub fn probe(inputs: &[Input], options: &ReadOptions) -> Probe {
    let mut probe = Probe::default();
    // A key that is lacking is one of `named`: it does not hide what else is wrong with a row.
    let unkeyed = ReadOptions { key: Vec::new(), ..options.clone() };
    for at in 0..inputs.len() {
        let is_seen = |name: &str| probe.columns.contains(name);
        if at >= FILES && named(options).into_iter().all(is_seen) {
            break;
        }
        let mut reader = Reader::new(inputs, &unkeyed);
        reader.begin(at);
        match probe.look(&inputs[at], options, &mut reader) {
            Ok(()) => {}
            // With a limit, files after the first may not be read at all.
            Err(_) if at > 0 && options.limit.is_some() => {}
            Err(error) => probe.errors.push((at, with_note(error))),
        }
    }
    if !probe.columns.is_empty() {
        let lacking = named(options).into_iter().filter(|name| !probe.columns.contains(*name));
        probe.lacking = lacking.map(str::to_owned).collect();
    }
    // Rows that lack a column where another one is named wrongly lack it because of that.
    if !probe.lacking.iter().all(|name| options.key.contains(name)) {
        probe.errors.retain(|(_, error)| !matches!(error, ReadError::Columns { .. }));
    }
    probe
}

impl Probe {
    /// Looks at a file.
    fn look(
        &mut self,
        input: &Input,
        options: &ReadOptions,
        reader: &mut Reader<'_>,
    ) -> Result<(), ReadError> {
        let most = options.limit.unwrap_or(RECORDS).min(RECORDS);
        let header = lines::header(&input.path, input.format)?;
        let has_header = header.is_some();
        self.columns.extend(header.into_iter().flatten());
        let named = named(options);
        let mut seen = 0;
        lines::each(&input.path, input.format, &mut |record| {
            let all_named = has_header || named.iter().all(|name| self.columns.contains(*name));
            if seen == most || (reader.good && all_named) {
                return Ok(false);
            }
            seen += 1;
            if let (Ok(fields), false) = (&record.fields, has_header)
                && self.columns.len() < COLUMNS_MAX
            {
                self.columns.extend(fields.names().cloned());
            }
            reader.take(record)?;
            Ok(true)
        })?;
        reader.end()
    }
}

/// The columns of the file that the options name. A key may be named as we call it.
fn named(options: &ReadOptions) -> Vec<&str> {
    let keys = options.key.iter().filter(|name| !options.columns.contains_key(*name));
    options.columns.values().chain(keys).map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, RecordBatch, StringArray};
    use indexmap::IndexMap;

    use super::*;
    use crate::record::Relation;
    use crate::record::read::{Format, read};

    fn options(format: Format, key: &[&str], columns: &[(&str, &str)]) -> (Format, ReadOptions) {
        let owned = |name: &&str| (*name).to_owned();
        let columns = columns.iter().map(|(ours, theirs)| (owned(ours), owned(theirs)));
        let options = ReadOptions {
            relation: Relation::Prompts,
            verbatim: false,
            key: key.iter().map(owned).collect(),
            columns: columns.collect::<IndexMap<_, _>>(),
            limit: None,
            node: "node".to_owned(),
        };
        (format, options)
    }

    /// What a file lacks, and what else is wrong with it.
    fn probed(
        bytes: &[u8],
        (format, options): &(Format, ReadOptions),
    ) -> (Vec<String>, Option<String>) {
        let (lacking, errors) = all_probed(&[bytes], *format, options);
        (lacking, errors.into_iter().next())
    }

    /// The same of several files.
    fn all_probed(
        files: &[&[u8]],
        format: Format,
        options: &ReadOptions,
    ) -> (Vec<String>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let input = |(at, bytes): (usize, &&[u8])| {
            let source = if files.len() == 1 { "rows".to_owned() } else { format!("rows-{at}") };
            let path = folder.path().join(&source);
            std::fs::write(&path, bytes).unwrap();
            Input { path, source, format }
        };
        let inputs: Vec<Input> = files.iter().enumerate().map(input).collect();
        let probe = probe(&inputs, options);
        // What is no fault of a file that was looked at is none of one that is read.
        if probe.errors.is_empty() && probe.lacking.is_empty() {
            read(&inputs, options).unwrap();
        }
        let root = format!("{}/", folder.path().display());
        let shown = |(_, error): (usize, ReadError)| error.to_string().replace(&root, "");
        (probe.lacking, probe.errors.into_iter().map(shown).collect())
    }

    #[test]
    fn a_column_that_some_files_have_is_not_lacking_and_a_file_without_a_row_is_named() {
        let (format, wanted) = options(Format::Jsonl, &[], &[("category", "topic")]);
        let [a, b] = [&b"{\"prompt\": \"a\"}\n"[..], b"{\"prompt\": \"b\", \"topic\": \"t\"}\n"];
        assert_eq!(all_probed(&[a, b], format, &wanted), (vec![], vec![]));
        assert_eq!(all_probed(&[a, a], format, &wanted).0, ["topic"]);
        let (lacking, errors) =
            all_probed(&[b, b"{\"text\": \"c\"}\n", b"{\n", b], format, &wanted);
        assert_eq!((lacking.len(), errors.len()), (0, 2), "{errors:?}");
        assert!(errors[0].starts_with("rows-1:1: it has no column \"prompt\""), "{errors:?}");
        assert!(errors[1].starts_with("rows-2:1: column 1: "), "{errors:?}");
    }

    #[test]
    fn columns_are_those_of_all_records_that_are_looked_at() {
        let rows = "{\"prompt\": \"a\"}\nbroken\n{\"prompt\": \"b\", \"id\": 1, \"topic\": null}\n";
        let wanted = options(Format::Jsonl, &["id"], &[("category", "topic")]);
        assert_eq!(probed(rows.as_bytes(), &wanted), (vec![], None));
        let wanted = options(Format::Jsonl, &["category", "no"], &[("category", "tropic")]);
        let lacking = vec!["tropic".to_owned(), "no".to_owned()];
        assert_eq!(probed(rows.as_bytes(), &wanted), (lacking, None));
        let (format, wanted) = options(Format::Jsonl, &["id"], &[]);
        let most = (format, ReadOptions { limit: Some(2), ..wanted });
        assert_eq!(probed(rows.as_bytes(), &most), (vec!["id".to_owned()], None));
        assert_eq!(probed(b"", &most), (vec![], None));
    }

    #[test]
    fn a_key_that_is_lacking_hides_no_other_column() {
        let (lacking, error) =
            probed(b"{\"question\": \"a\"}\n", &options(Format::Jsonl, &["id"], &[]));
        assert_eq!(lacking, ["id"]);
        assert!(error.unwrap().contains("it has no column \"prompt\""));
        // Here the prompt is lacking because its column is misnamed.
        let misnamed = options(Format::Jsonl, &[], &[("prompt", "qestion")]);
        let told = (vec!["qestion".to_owned()], None);
        assert_eq!(probed(b"{\"question\": \"a\"}\n", &misnamed), told);
    }

    #[test]
    fn of_many_files_the_last_may_have_the_column_and_be_beyond_a_limit() {
        let (format, wanted) = options(Format::Jsonl, &[], &[("category", "topic")]);
        let mut files = vec![&b"{\"prompt\": \"a\"}\n"[..]; FILES + 2];
        assert_eq!(all_probed(&files, format, &wanted).0, ["topic"]);
        *files.last_mut().unwrap() = b"{\"prompt\": \"b\", \"topic\": \"t\"}\n";
        assert_eq!(all_probed(&files, format, &wanted), (vec![], vec![]));

        let files = [&b"{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n"[..], b"broken\n"];
        let (format, all) = options(Format::Jsonl, &[], &[]);
        assert_eq!(all_probed(&files, format, &all).1.len(), 1);
        let few = ReadOptions { limit: Some(2), ..all };
        assert_eq!(all_probed(&files, format, &few), (vec![], vec![]));
    }

    #[test]
    fn a_header_says_what_columns_there_are_though_they_hold_nothing() {
        let wanted = |format| options(format, &["id"], &[("category", "topic")]);
        let csv = b"prompt,id,topic\na,1,\n";
        assert_eq!(probed(csv, &wanted(Format::Csv)), (vec![], None));
        assert_eq!(probed(b"prompt,id\n", &wanted(Format::Csv)).0, ["topic"]);

        let texts = |text: Option<&str>| Arc::new(StringArray::from(vec![text])) as ArrayRef;
        let rows = [("prompt", Some("a")), ("id", Some("1")), ("topic", None)];
        let rows = rows.map(|(name, text)| (name, texts(text), true));
        let rows = RecordBatch::try_from_iter_with_nullable(rows).unwrap();
        let mut bytes = Vec::new();
        let mut writer =
            parquet::arrow::ArrowWriter::try_new(&mut bytes, rows.schema(), None).unwrap();
        writer.write(&rows).unwrap();
        writer.close().unwrap();
        assert_eq!(probed(&bytes, &wanted(Format::Parquet)), (vec![], None));
        let lacking = options(Format::Parquet, &["no"], &[]);
        assert_eq!(probed(&bytes, &lacking).0, ["no"]);
        assert!(probed(csv, &lacking).1.unwrap().starts_with("rows: it is no Parquet file"));
    }
}
