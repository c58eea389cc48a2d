//! TensorBoard: the numbers of trainings as event files, as they are logged.
//!
//! An event file is a row of records, each a length, a checksum of it, bytes and a checksum of
//! them; the bytes are the message `Event` of TensorFlow's `event.proto`. Of its fields five are
//! needed, so they are written by hand.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::engine::dispatch::Seen;
use crate::engine::progress::Far;
use crate::engine::run::Progress;
use crate::model::train::{self, Metric};

/// Shows progress as another does, and writes what trainings log to event files: a folder a node,
/// under `DIR/PIPELINE`.
pub(super) struct Tee {
    shown: Arc<dyn Progress>,
    dir: PathBuf,
    files: Mutex<BTreeMap<String, Option<File>>>,
}

impl Tee {
    /// Beside what shows progress, into a folder, which is made now.
    pub(super) fn new(shown: Arc<dyn Progress>, dir: &Path, pipeline: &str) -> io::Result<Tee> {
        let dir = dir.join(pipeline);
        fs::create_dir_all(&dir)?;
        Ok(Tee { shown, dir, files: Mutex::default() })
    }

    fn write(&self, node: &str, metrics: &[Metric], seconds: f64) -> io::Result<()> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if !files.contains_key(node) {
            files.insert(node.to_owned(), None);
            files.insert(node.to_owned(), Some(begin(&self.dir.join(node), seconds)?));
        }
        // A file that could not be made was said once.
        let Some(Some(file)) = files.get_mut(node) else { return Ok(()) };
        let records: Vec<u8> =
            metrics.iter().flat_map(|metric| record(&scalar(metric, seconds))).collect();
        file.write_all(&records)
    }
}

impl Progress for Tee {
    fn rows(&self, far: &[Far]) {
        self.shown.rows(far);
    }

    fn calls(&self, seen: &Seen) {
        self.shown.calls(seen);
    }

    fn training(&self, node: &str, told: &train::Progress<'_>) {
        if !told.metrics.is_empty()
            && let Err(error) = self.write(node, told.metrics, now())
        {
            self.shown.message(&format!("{}: {error}", self.dir.join(node).display()));
        }
        self.shown.training(node, told);
    }

    fn message(&self, line: &str) {
        self.shown.message(line);
    }
}

#[allow(clippy::disallowed_methods, reason = "the command line may look at the clock")]
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// A new event file in a folder, with the record that it begins with.
fn begin(dir: &Path, seconds: f64) -> io::Result<File> {
    fs::create_dir_all(dir)?;
    let name = format!("events.out.tfevents.{:010}.amend.{}", seconds as u64, std::process::id());
    let mut file = File::options().create(true).append(true).open(dir.join(name))?;
    let version = [double(1, seconds), bytes(3, b"brain.Event:2")].concat();
    file.write_all(&record(&version))?;
    Ok(file)
}

/// `Event { wall_time: 1, step: 2, summary: 5 { value: 1 { tag: 1, simple_value: 2 } } }`.
fn scalar(metric: &Metric, seconds: f64) -> Vec<u8> {
    // What is held out stands beside what is trained on.
    let tag = match metric.split.as_str() {
        "train" => metric.name.clone(),
        split => format!("{split}/{}", metric.name),
    };
    let simple = [vec![2 << 3 | 5], (metric.value as f32).to_le_bytes().to_vec()].concat();
    let value = [bytes(1, tag.as_bytes()), simple].concat();
    let step = [vec![2 << 3], varint(metric.step)].concat();
    [double(1, seconds), step, bytes(5, &bytes(1, &value))].concat()
}

fn double(field: u8, number: f64) -> Vec<u8> {
    [vec![field << 3 | 1], number.to_le_bytes().to_vec()].concat()
}

fn bytes(field: u8, bytes: &[u8]) -> Vec<u8> {
    [vec![field << 3 | 2], varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// A record of a file.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let sum = |data: &[u8]| masked(crc32c(data)).to_le_bytes();
    [&length[..], &sum(&length)[..], data, &sum(data)[..]].concat()
}

/// TensorFlow turns a checksum and adds a number, so that one of data that holds checksums is good.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (RFC 3720, appendix B.4), bit by bit: files are small.
fn crc32c(data: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !data.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::progress::Silent;

    #[test]
    fn checksums_are_those_of_the_standard() {
        // The check value of the catalogue, and 32 zeros of RFC 3720.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    /// `SerializeToString` of TensorBoard 2.20's own `Event` gives these.
    #[test]
    fn an_event_has_the_bytes_of_the_message() {
        let (split, name) = ("train".to_owned(), "loss".to_owned());
        let metric = Metric { step: 300, epoch: 1.0, split, name, value: 0.5 };
        let expected =
            b"\x09\0\0\0\0\0\0\xf8\x3f\x10\xac\x02\x2a\x0d\x0a\x0b\x0a\x04loss\x15\0\0\0\x3f";
        assert_eq!(scalar(&metric, 1.5), expected);
        let held_out = Metric { split: "heldout".to_owned(), ..metric };
        let bytes = scalar(&held_out, 1.5);
        assert!(bytes.windows(12).any(|window| window == b"heldout/loss"));
    }

    #[test]
    fn each_node_has_a_file_of_records() {
        let dir = tempfile::tempdir().unwrap();
        let tee = Tee::new(Arc::new(Silent), dir.path(), "demo").unwrap();
        let metric = |step| {
            let (split, name) = ("train".to_owned(), "loss".to_owned());
            Metric { step, epoch: 0.0, split, name, value: step as f64 }
        };
        for step in 1..4 {
            let metrics = [metric(step)];
            tee.training("sl", &train::Progress { metrics: &metrics, ..Default::default() });
        }
        tee.training("pm", &train::Progress::default());
        assert!(!dir.path().join("demo/pm").exists(), "nothing was logged");
        let files: Vec<_> = fs::read_dir(dir.path().join("demo/sl")).unwrap().flatten().collect();
        let [file] = &files[..] else { panic!("{files:?}") };
        assert!(file.file_name().to_string_lossy().starts_with("events.out.tfevents."));
        let data = fs::read(file.path()).unwrap();
        let (mut rest, mut n) = (&data[..], 0);
        while let Some((length, more)) = rest.split_first_chunk::<8>() {
            let size = u64::from_le_bytes(*length) as usize;
            assert_eq!(more[..4], masked(crc32c(length)).to_le_bytes());
            assert_eq!(more[4 + size..8 + size], masked(crc32c(&more[4..4 + size])).to_le_bytes());
            (rest, n) = (&more[8 + size..], n + 1);
        }
        assert_eq!((n, rest.len()), (4, 0), "the version and three steps");
    }
}
