//! CSV: records under a header that names each column once. A header that appears again among the rows,
//! a quote that nothing closes and a record that does not fit the header are rejects.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::path::Path;
use std::rc::Rc;

use serde_json::Value;

use super::ReadError;
use super::fields::Fields;
use super::lines::{COLUMNS_MAX, RECORD_MAX, Record, Take, malformed};
use super::open::at;

/// Stands behind the end of a file: a record that ends with it was open when the file ended, which a
/// reader of CSV does not tell otherwise.
const END: &str = "\n\u{0}amend: the end of the file\n";

/// The columns that the header names.
pub(super) fn header(path: &Path, file: Box<dyn BufRead>) -> Result<Vec<String>, ReadError> {
    Ok(Records::new(path, file)?.names.into_iter().filter(|name| !name.is_empty()).collect())
}

/// Gives every record to `take`.
pub(super) fn records(
    path: &Path,
    file: Box<dyn BufRead>,
    take: &mut Take<'_>,
) -> Result<(), ReadError> {
    let mut records = Records::new(path, file)?;
    while let Some((line, record)) = records.next()? {
        let raw = record.iter().map(String::from_utf8_lossy).collect::<Vec<_>>().join(",");
        let fields = records.fields(&record);
        let raw = raw.strip_suffix(END).unwrap_or(&raw).to_owned();
        if !take(Record { line, fields, raw })? {
            return Ok(());
        }
    }
    Ok(())
}

/// The records of a file behind its header.
struct Records<'a> {
    path: &'a Path,
    reader: csv::Reader<Ended>,
    /// Where the record that is read now may reach to.
    most: Rc<Cell<u64>>,
    header: csv::ByteRecord,
    names: Vec<String>,
    /// The line of the last record.
    last: u64,
}

impl<'a> Records<'a> {
    fn new(path: &'a Path, file: Box<dyn BufRead>) -> Result<Records<'a>, ReadError> {
        let most = Rc::new(Cell::new(0));
        let ended = Ended::new(file, Rc::clone(&most)).map_err(at(path, 0))?;
        let reader = csv::ReaderBuilder::new().flexible(true).has_headers(false).from_reader(ended);
        let header = csv::ByteRecord::new();
        let mut records = Records { path, reader, most, header, names: Vec::new(), last: 1 };
        let Some((line, header)) = records.next()? else { return Ok(records) };
        records.names = names(path, line, &header)?;
        records.header = header;
        Ok(records)
    }

    /// The next record and its line.
    fn next(&mut self) -> Result<Option<(u64, csv::ByteRecord)>, ReadError> {
        self.most.set(self.reader.position().byte() + RECORD_MAX as u64);
        let mut record = csv::ByteRecord::new();
        let read = self.reader.read_byte_record(&mut record);
        let is_one = read.map_err(|error| malformed(self.path, self.last, error.to_string()))?;
        let is_end = record.len() == 1 && record[0] == END.trim_matches('\n').as_bytes()[..];
        if !is_one || is_end {
            return Ok(None);
        }
        let begin = record.position().map_or(0, csv::Position::byte);
        self.last = self.reader.get_mut().line_of(begin);
        Ok(Some((self.last, record)))
    }

    fn fields(&self, record: &csv::ByteRecord) -> Result<Fields, String> {
        if let Some(last) = record.iter().next_back().filter(|last| last.ends_with(END.as_bytes()))
        {
            let lines = last.split(|byte| *byte == b'\n').count() - END.split('\n').count();
            let at = record.len() - 1;
            let column =
                self.names.get(at).map_or((at + 1).to_string(), |name| format!("\"{name}\""));
            return Err(format!(
                "a quote that opens in column {column} is never closed: the {lines} lines after it, \
                 to the end of the file, are in it"
            ));
        }
        if record.len() != self.names.len() {
            return Err(format!("it has {} fields, the header {}", record.len(), self.names.len()));
        }
        if *record == self.header {
            return Err("it is the header again".to_owned());
        }
        let mut is_nameless = false;
        let mut fields = Vec::with_capacity(self.names.len());
        for (at, (name, bytes)) in self.names.iter().zip(record).enumerate() {
            let text = std::str::from_utf8(bytes);
            let text = text.map_err(|_| format!("column \"{name}\" is not UTF-8"))?;
            // A value without a name is not lost to a later one without either.
            let is_second = name.is_empty() && std::mem::replace(&mut is_nameless, true);
            match text {
                "" if is_second => {}
                "" => fields.push((name.clone(), Value::Null)),
                _ if is_second => {
                    return Err(format!("column {} has a value and no name", at + 1));
                }
                text => fields.push((name.clone(), Value::from(text))),
            }
        }
        Ok(fields.into_iter().collect())
    }
}

/// The names in a header, each of which is there once. Columns without a name hold nothing.
fn names(path: &Path, line: u64, header: &csv::ByteRecord) -> Result<Vec<String>, ReadError> {
    let wrong = |detail: String| malformed(path, line, detail);
    if header.len() > COLUMNS_MAX {
        return Err(wrong(format!("the header has {} columns, above {COLUMNS_MAX}", header.len())));
    }
    if header.iter().next_back().is_some_and(|last| last.ends_with(END.as_bytes())) {
        return Err(wrong("a quote that opens in the header is never closed".to_owned()));
    }
    let mut names: indexmap::IndexMap<String, usize> = indexmap::IndexMap::new();
    let mut all = Vec::new();
    for (at, name) in header.iter().enumerate() {
        let name = std::str::from_utf8(name);
        let name =
            name.map_err(|_| wrong(format!("the name of column {} is not UTF-8", at + 1)))?;
        if let Some(first) = names.insert(name.to_owned(), at)
            && !name.is_empty()
        {
            return Err(wrong(format!(
                "columns {} and {} are both called \"{name}\": give one of them another name",
                first + 1,
                at + 1
            )));
        }
        all.push(name.to_owned());
    }
    Ok(all)
}

/// A file with a sign behind its end, of which no more is given than the record that is read now may
/// have, and which knows the lines of what it gave last.
struct Ended {
    of: Box<dyn BufRead>,
    end: &'static [u8],
    given: u64,
    most: Rc<Cell<u64>>,
    /// What was given last.
    recent: Vec<u8>,
    /// How much of it was counted.
    counted: usize,
    /// The line of what was not.
    line: u64,
}

impl Ended {
    fn new(mut of: Box<dyn BufRead>, most: Rc<Cell<u64>>) -> io::Result<Ended> {
        let mark = "\u{feff}".as_bytes();
        if of.fill_buf()?.starts_with(mark) {
            of.consume(mark.len());
        }
        let end = END.as_bytes();
        Ok(Ended { of, end, given: 0, most, recent: Vec::new(), counted: 0, line: 1 })
    }

    /// The line of a record whose reading began at a byte, which may be at the end of the line before
    /// or at empty lines.
    fn line_of(&mut self, begin: u64) -> u64 {
        let from = self.given - self.recent.len() as u64;
        let begin = (begin.saturating_sub(from) as usize).clamp(self.counted, self.recent.len());
        let empty = self.recent[begin..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n'));
        let begin = begin + empty.count();
        let lines = self.recent[self.counted..begin].iter().filter(|byte| **byte == b'\n');
        self.line += lines.count() as u64;
        self.counted = begin;
        self.line
    }
}

impl Read for Ended {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given > self.most.get() {
            return Err(io::Error::other(format!(
                "a record after this line has more than {RECORD_MAX} bytes: a quote that opens in it \
                 is not closed"
            )));
        }
        let bytes = match self.of.read(buffer)? {
            0 => self.end.read(buffer)?,
            bytes => bytes,
        };
        self.recent.drain(..self.counted);
        self.counted = 0;
        self.recent.extend_from_slice(&buffer[..bytes]);
        self.given += bytes as u64;
        Ok(bytes)
    }
}
