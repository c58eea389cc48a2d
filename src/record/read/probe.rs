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
