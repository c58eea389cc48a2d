//! Probing: whether a file is what it is declared to be, as far as its header and first records say.

use std::path::Path;

use indexmap::IndexSet;

use super::{ReadError, ReadOptions, Reader, lines};

/// Records that are looked at, at most.
const RECORDS: u64 = 10_000;

/// What was seen of a file.
#[derive(Debug, Default)]
pub struct Probe {
    /// Its columns: those of its header, or those of the records looked at.
    pub columns: IndexSet<String>,
    /// Columns that the options name and it has not, as they name them.
    pub lacking: Vec<String>,
    /// Why it cannot be read, or none of the rows looked at can be one.
    pub error: Option<ReadError>,
}

/// Looks at the beginning of a file: until a record is a row and every column that the options name
/// was seen. Only of a file in which that is not so are more than a few records read, 10,000 at most.
///
/// # Panics
///
/// When the relation is none that files hold.
pub fn probe(path: &Path, options: &ReadOptions) -> Probe {
    let mut probe = Probe::default();
    if let Err(error) = probe.look(path, options) {
        probe.error = Some(error);
    }
    probe
}

impl Probe {
    fn look(&mut self, path: &Path, options: &ReadOptions) -> Result<(), ReadError> {
        let header = lines::header(path, options.format)?;
        let has_header = header.is_some();
        self.columns.extend(header.into_iter().flatten());
        let named = named(options);
        // A key that is lacking is one of `named`: it does not hide what else is wrong with a row.
        let unkeyed = ReadOptions { key: Vec::new(), ..options.clone() };
        let mut reader = Reader::new(path, &unkeyed);
        let most = options.limit.unwrap_or(RECORDS).min(RECORDS);
        let mut seen = 0;
        lines::each(path, options.format, &mut |record| {
            let all_named = has_header || named.iter().all(|name| self.columns.contains(*name));
            if seen == most || (reader.good && all_named) {
                return Ok(false);
            }
            seen += 1;
            if let (Ok(fields), false) = (&record.fields, has_header) {
                self.columns.extend(fields.keys().cloned());
            }
            reader.take(record)?;
            Ok(true)
        })?;
        if !self.columns.is_empty() {
            let lacking = named.into_iter().filter(|name| !self.columns.contains(*name));
            self.lacking = lacking.map(str::to_owned).collect();
        }
        // Rows that lack a column where another one is named wrongly lack it because of that.
        if self.lacking.iter().all(|name| options.key.contains(name)) {
            reader.finish()?;
        }
        Ok(())
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

    fn options(format: Format, key: &[&str], columns: &[(&str, &str)]) -> ReadOptions {
        let owned = |name: &&str| (*name).to_owned();
        let columns = columns.iter().map(|(ours, theirs)| (owned(ours), owned(theirs)));
        ReadOptions {
            format,
            relation: Relation::Prompts,
            verbatim: false,
            key: key.iter().map(owned).collect(),
            columns: columns.collect::<IndexMap<_, _>>(),
            limit: None,
            source: "rows".to_owned(),
            node: "node".to_owned(),
        }
    }

    /// What a file lacks, and what else is wrong with it.
    fn probed(bytes: &[u8], options: &ReadOptions) -> (Vec<String>, Option<String>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows");
        std::fs::write(&path, bytes).unwrap();
        let probe = probe(&path, options);
        // What is no fault of a file that was looked at is none of one that is read.
        if probe.error.is_none() && probe.lacking.is_empty() {
            read(&path, options).unwrap();
        }
        let shown = |error: ReadError| error.to_string().replace(&*path.to_string_lossy(), "rows");
        (probe.lacking, probe.error.map(shown))
    }

    #[test]
    fn columns_are_those_of_all_records_that_are_looked_at() {
        let rows = "{\"prompt\": \"a\"}\nbroken\n{\"prompt\": \"b\", \"id\": 1, \"topic\": null}\n";
        let wanted = options(Format::Jsonl, &["id"], &[("category", "topic")]);
        assert_eq!(probed(rows.as_bytes(), &wanted), (vec![], None));
        let wanted = options(Format::Jsonl, &["category", "no"], &[("category", "tropic")]);
        let lacking = vec!["tropic".to_owned(), "no".to_owned()];
        assert_eq!(probed(rows.as_bytes(), &wanted), (lacking, None));
        let most = ReadOptions { limit: Some(2), ..options(Format::Jsonl, &["id"], &[]) };
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
        assert!(probed(csv, &lacking).1.unwrap().starts_with("rows:1: "));
    }
}
