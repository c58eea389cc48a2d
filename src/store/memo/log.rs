//! A segment of the memo's log: a file of framed, checksummed Arrow IPC batches.
//!
//! ```text
//! AMENDLG1 │ frame: schema │ frame: rows │ frame: rows │ … │ frame: end
//!
//! frame  tag 4 │ rows u32 │ payload bytes u64 │ payload crc32c u32 │ head crc32c u32 │ keys │ payload
//! keys   rows × (key 32 │ failed 1), part of the head, so that opening reads no payload
//! ```
//!
//! Without the frames' heads the payloads are an Arrow IPC stream.
//! One process writes one segment and never adds to another's. A frame is synced before the next is
//! written, so a crash can only tear the last: it is cut. The frame `end` is written when the
//! segment is closed; from then on, and wherever a whole frame follows, a broken one is damage: it
//! is left out, and those around it stay.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::RecordBatch;
use arrow::buffer::{Buffer, MutableBuffer};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::writer::{IpcWriteOptions, StreamEncoder};
use arrow::ipc::{MetadataVersion, convert, reader, root_as_message};
use crc32c::{crc32c, crc32c_append};

use super::columns::{self, KEY_LEN, calls_schema};
use super::salvage::{Lost, damage};
use crate::record::CallKey;
use crate::store::disk::{Disk, Output, crash_point, parent};
use crate::store::error::{At, Result, StoreError};

const MAGIC: &[u8; 8] = b"AMENDLG1";
/// What all formats begin with, before the digit of the format.
const FAMILY: &[u8] = b"AMENDLG";
/// The format that is written and read here.
const FORMAT: u64 = 1;
/// A schema that differs from ours in no more bytes is ours, damaged.
const SCHEMA_BYTES_DAMAGED: usize = 16;
const SCHEMA: [u8; 4] = *b"AmdS";
const ROWS: [u8; 4] = *b"AmdR";
const END: [u8; 4] = *b"AmdE";
const HEAD_LEN: usize = 24;
/// A key and whether the call failed.
const KEY_ROW_LEN: usize = KEY_LEN + 1;
/// More rows than this are no frame of ours.
const ROWS_MAX: u32 = 1 << 20;

/// Writes one segment.
pub(super) struct LogWriter {
    path: PathBuf,
    output: Box<dyn Output>,
    encoder: StreamEncoder,
    len: u64,
}

impl LogWriter {
    /// A new segment; its name is safe when this returns.
    pub(super) fn create(disk: &dyn Disk, path: &Path) -> Result<LogWriter> {
        let output = disk.create(path).at("create", path)?;
        disk.sync_dir(parent(path)).at("sync", parent(path))?;
        let (encoder, schema) = begin();
        let mut writer = LogWriter { path: path.to_owned(), output, encoder, len: 0 };
        if let Err(error) = writer.write(&[&MAGIC[..], &schema].concat()) {
            // It holds nothing; where it cannot be removed, whoever opens the memo does.
            drop(disk.remove(path));
            return Err(error);
        }
        Ok(writer)
    }

    /// Adds a frame of rows, which is safe when this returns. Gives its offset and bytes.
    pub(super) fn append(&mut self, rows: &RecordBatch) -> Result<(u64, usize)> {
        let mut keys = Vec::with_capacity(rows.num_rows() * KEY_ROW_LEN);
        for row in 0..rows.num_rows() {
            keys.extend(columns::key(rows, row).0);
            keys.push(u8::from(columns::failed(rows, row)));
        }
        let payload = encode(&mut self.encoder, rows);
        let offset = self.len;
        self.write(&frame(ROWS, &keys, &payload))?;
        crash_point("memo:before_sync");
        self.output.sync().at("sync", &self.path)?;
        crash_point("memo:after_sync");
        Ok((offset, payload.len()))
    }

    /// Marks the segment as whole.
    pub(super) fn close(mut self) -> Result<()> {
        self.write(&frame(END, &[], &[]))?;
        self.output.sync().at("sync", &self.path)
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes written.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.output.append(bytes).at("write", &self.path)?;
        self.len += bytes.len() as u64;
        Ok(())
    }
}

/// An encoder that gave its schema, and the frame of that.
fn begin() -> (StreamEncoder, Vec<u8>) {
    let schema = calls_schema();
    let options = IpcWriteOptions::try_new(8, false, MetadataVersion::V5);
    let options = options.expect("an alignment of 8 is allowed");
    let mut encoder = StreamEncoder::try_new_with_options(&schema, options)
        .expect("the schema of calls can be written");
    // The encoder gives the schema with its first batch.
    let first = encode(&mut encoder, &RecordBatch::new_empty(schema));
    let schema_len = message_len(&first).expect("the encoder begins with the schema");
    let frame = frame(SCHEMA, &[], &first[..schema_len]);
    (encoder, frame)
}

/// Cuts a torn segment at `end` and marks it as whole.
pub(super) fn seal(disk: &dyn Disk, path: &Path, end: u64) -> Result<()> {
    let mut output = disk.reopen(path, end).at("cut", path)?;
    output.append(&frame(END, &[], &[])).at("write", path)?;
    output.sync().at("sync", path)
}

fn encode(encoder: &mut StreamEncoder, rows: &RecordBatch) -> Vec<u8> {
    let buffers = encoder.encode(rows).expect("the rows have the encoder's schema");
    buffers.iter().flat_map(Buffer::as_slice).copied().collect()
}

fn frame(tag: [u8; 4], keys: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD_LEN + keys.len() + payload.len());
    frame.extend(tag);
    frame.extend(((keys.len() / KEY_ROW_LEN) as u32).to_le_bytes());
    frame.extend((payload.len() as u64).to_le_bytes());
    frame.extend(crc32c(payload).to_le_bytes());
    frame.extend(crc32c_append(crc32c(&frame), keys).to_le_bytes());
    frame.extend(keys);
    frame.extend(payload);
    frame
}

/// The bytes of the first message of an IPC stream, which has no body.
fn message_len(stream: &[u8]) -> Option<usize> {
    let len = stream.get(4..8)?;
    Some(8 + u32::from_le_bytes(len.try_into().ok()?) as usize)
}

/// The head of a frame, as it stands in the file.
struct Head {
    tag: [u8; 4],
    rows: u32,
    payload_len: u64,
    payload_crc: u32,
    crc: u32,
}

impl Head {
    fn parse(bytes: &[u8]) -> Option<Head> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let head = Head {
            tag: bytes.get(..4)?.try_into().ok()?,
            rows: word(4)?,
            payload_len: u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?),
            payload_crc: word(16)?,
            crc: word(20)?,
        };
        let known = [SCHEMA, ROWS, END].contains(&head.tag);
        (known && head.rows <= ROWS_MAX && head.payload_len < 1 << 40).then_some(head)
    }

    fn keys_len(&self) -> usize {
        self.rows as usize * KEY_ROW_LEN
    }

    fn payload_offset(&self, offset: u64) -> u64 {
        offset + (HEAD_LEN + self.keys_len()) as u64
    }

    fn end(&self, offset: u64) -> u64 {
        self.payload_offset(offset) + self.payload_len
    }
}

/// One segment, open for reading. The file stays readable when its name is gone.
pub(super) struct Log {
    path: PathBuf,
    file: File,
    schema: SchemaRef,
    start: u64,
    /// Where the last whole frame of rows ends; grows when this process writes the segment.
    end: AtomicU64,
    /// Where damaged frames begin and end.
    holes: Vec<(u64, u64)>,
}

/// What the walk over a segment found.
pub(super) struct Found {
    /// The segment.
    pub(super) log: Log,
    /// Per frame its offset and its keys with whether the call failed.
    pub(super) frames: Vec<(u64, Vec<(CallKey, bool)>)>,
    /// Whether the segment was closed.
    pub(super) sealed: bool,
    /// What is damaged in it.
    pub(super) lost: Option<Lost>,
}

impl Log {
    /// Opens a segment and walks over its frames. Nothing when not even its beginning was written.
    pub(super) fn open(path: &Path) -> Result<Option<Found>> {
        let file = File::open(path).at("open", path)?;
        let len = file.metadata().at("read", path)?.len();
        let begins = bytes_at(&file, 0, MAGIC.len(), len).at("read", path)?;
        let mut lost = None;
        if begins != MAGIC {
            if len < MAGIC.len() as u64 || begins.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            if let Some([digit @ b'2'..=b'9']) = begins.strip_prefix(FAMILY) {
                let (path, found) = (path.to_owned(), u64::from(digit - b'0'));
                return Err(StoreError::Format { path, found, expected: FORMAT });
            }
            lost = Some(Lost::nothing("it does not begin as a log"));
        }
        let start = MAGIC.len() as u64;
        if let Some(end) = damaged_schema(&file, start, len).at("read", path)? {
            let lost = Some(Lost::nothing("its schema is broken"));
            return Log::at(path, file, calls_schema(), end).walk(len, lost).map(Some);
        }
        let head = head_at(&file, start, len).at("read", path)?;
        let Some((head, _)) = head.filter(|(head, _)| head.tag == SCHEMA) else {
            return match frame_after(&file, start, len).at("read", path)? {
                None if lost.is_some() => Err(damage(path, "it does not begin as a log")),
                Some(_) => Err(damage(path, "its schema is broken")),
                None => Ok(None),
            };
        };
        let payload = payload_at(&file, &head, start).at("read", path)?;
        let schema = payload.as_deref().and_then(parse_schema);
        let Some(schema) = schema else {
            return match frame_after(&file, head.end(start), len).at("read", path)? {
                Some(_) => Err(damage(path, "its schema is broken")),
                None => Ok(None),
            };
        };
        let start = head.end(start);
        Log::at(path, file, schema, start).walk(len, lost).map(Some)
    }

    fn at(path: &Path, file: File, schema: SchemaRef, start: u64) -> Log {
        let (path, end, holes) = (path.to_owned(), AtomicU64::new(start), Vec::new());
        Log { path, file, schema, start, end, holes }
    }

    /// Finds the whole frames. One that is broken although something whole follows is damaged, and
    /// left out; at the end of the file it may be torn.
    fn walk(mut self, len: u64, mut lost: Option<Lost>) -> Result<Found> {
        let path = &self.path.clone();
        let (mut frames, mut offset, mut sealed) = (Vec::new(), self.start, false);
        while offset < len {
            let head = head_at(&self.file, offset, len).at("read", path)?;
            let (rows, next) = match head {
                Some((head, _)) if head.tag == END && head.end(offset) == len => {
                    sealed = true;
                    break;
                }
                Some((head, keys)) if head.tag == ROWS => {
                    let end = head.end(offset);
                    if payload_at(&self.file, &head, offset).at("read", path)?.is_some() {
                        frames.push((offset, parse_keys(&keys)));
                        offset = end;
                        continue;
                    }
                    (Some(u64::from(head.rows)), (end < len).then_some(end))
                }
                _ => (None, frame_after(&self.file, offset, len).at("read", path)?),
            };
            let Some(next) = next else { break };
            let what = format!("the frame at byte {offset} is broken");
            lost.get_or_insert_with(|| Lost::nothing(&what)).add(rows);
            self.holes.push((offset, next));
            offset = next;
        }
        self.end.store(offset, Ordering::Release);
        Ok(Found { log: self, frames, sealed, lost })
    }

    /// The segment that this process writes.
    pub(super) fn of_writer(writer: &LogWriter) -> Result<Log> {
        let file = File::open(&writer.path).at("open", &writer.path)?;
        Ok(Log::at(&writer.path, file, calls_schema(), writer.len()))
    }

    /// Says that the segment grew.
    pub(super) fn grew(&self, end: u64) {
        self.end.store(end, Ordering::Release);
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the last whole frame ends.
    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// The rows of the frame at an offset, and their bytes.
    pub(super) fn read(&self, offset: u64) -> Result<(RecordBatch, usize)> {
        let broken = |what: &str| damage(&self.path, &format!("the frame at byte {offset} {what}"));
        let head = bytes_at(&self.file, offset, HEAD_LEN, self.end()).at("read", &self.path)?;
        let head = Head::parse(&head).filter(|head| head.tag == ROWS);
        let head = head.ok_or_else(|| broken("has no head"))?;
        let payload = payload_at(&self.file, &head, offset).at("read", &self.path)?;
        let payload = payload.ok_or_else(|| broken("has another checksum"))?;
        let len = payload.len();
        let rows = parse_rows(payload, &self.schema).and_then(|rows| columns::adapt(&rows));
        let rows = rows.map_err(|error| broken(&format!("cannot be read: {error}")))?;
        Ok((rows, len))
    }

    /// The offsets of all frames.
    pub(super) fn offsets(&self) -> Result<Vec<u64>> {
        let (mut offsets, mut offset, end) = (Vec::new(), self.start, self.end());
        while offset < end {
            if let Some((_, after)) = self.holes.iter().find(|(hole, _)| *hole == offset) {
                offset = *after;
                continue;
            }
            let bytes = bytes_at(&self.file, offset, HEAD_LEN, end).at("read", &self.path)?;
            let head = Head::parse(&bytes).ok_or_else(|| {
                damage(&self.path, &format!("the frame at byte {offset} has no head"))
            })?;
            offsets.push(offset);
            offset = head.end(offset);
        }
        Ok(offsets)
    }
}

/// Keys with whether the call failed, as they stand in a head.
fn parse_keys(keys: &[u8]) -> Vec<(CallKey, bool)> {
    let key = |row: &[u8]| {
        let key = row[..KEY_LEN].try_into().expect("a row of keys begins with a key");
        (CallKey(key), row[KEY_LEN] != 0)
    };
    keys.chunks_exact(KEY_ROW_LEN).map(key).collect()
}

/// Where the frame of our own schema ends, if it is there and a few of its bytes are damaged.
fn damaged_schema(file: &File, start: u64, len: u64) -> io::Result<Option<u64>> {
    let (_, ours) = begin();
    let there = bytes_at(file, start, ours.len(), len)?;
    let differ = ours.iter().zip(&there).filter(|(ours, there)| ours != there).count();
    let is_damaged = there.len() == ours.len() && (1..=SCHEMA_BYTES_DAMAGED).contains(&differ);
    let end = start + ours.len() as u64;
    // An earlier schema may be as long as ours: then its checksums hold.
    let is_whole = match head_at(file, start, len)? {
        Some((head, _)) => payload_at(file, &head, start)?.is_some(),
        None => false,
    };
    Ok((is_damaged && !is_whole).then_some(end))
}

/// Up to `want` bytes at an offset; fewer at the end of the file.
fn bytes_at(file: &File, offset: u64, want: usize, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; want.min(len.saturating_sub(offset) as usize)];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// The head at an offset and its keys, if they are whole and the frame is within the file.
fn head_at(file: &File, offset: u64, len: u64) -> io::Result<Option<(Head, Vec<u8>)>> {
    const GUESS: usize = 4096; // holds most heads: one read instead of two
    let mut bytes = bytes_at(file, offset, GUESS, len)?;
    let Some(head) = Head::parse(&bytes) else { return Ok(None) };
    if head.end(offset) > len {
        return Ok(None);
    }
    let head_len = HEAD_LEN + head.keys_len();
    if bytes.len() < head_len {
        bytes = bytes_at(file, offset, head_len, len)?;
    }
    let keys = bytes[HEAD_LEN..head_len].to_vec();
    let whole = crc32c_append(crc32c(&bytes[..HEAD_LEN - 4]), &keys) == head.crc;
    Ok(whole.then_some((head, keys)))
}

/// The payload of a frame, aligned for Arrow, if its checksum holds.
fn payload_at(file: &File, head: &Head, offset: u64) -> io::Result<Option<Buffer>> {
    let mut payload = MutableBuffer::from_len_zeroed(head.payload_len as usize);
    file.read_exact_at(payload.as_slice_mut(), head.payload_offset(offset))?;
    Ok((crc32c(&payload) == head.payload_crc).then(|| payload.into()))
}

/// The offset of the next whole frame after one that is broken.
fn frame_after(file: &File, offset: u64, len: u64) -> io::Result<Option<u64>> {
    let rest = bytes_at(file, offset + 1, usize::MAX, len)?;
    for (at, window) in rest.windows(4).enumerate() {
        let here = offset + 1 + at as u64;
        if window.starts_with(b"Amd") && head_at(file, here, len)?.is_some() {
            return Ok(Some(here));
        }
    }
    Ok(None)
}

fn parse_schema(payload: &[u8]) -> Option<SchemaRef> {
    let message = root_as_message(payload.get(8..)?).ok()?;
    Some(Arc::new(convert::fb_to_schema(message.header_as_schema()?)))
}

fn parse_rows(payload: Buffer, schema: &SchemaRef) -> std::result::Result<RecordBatch, ArrowError> {
    let absent = || ArrowError::IpcError("there is no batch in the frame".to_owned());
    let body_at = message_len(&payload).filter(|at| *at <= payload.len()).ok_or_else(absent)?;
    let message = root_as_message(&payload[8..body_at])
        .map_err(|error| ArrowError::IpcError(error.to_string()))?;
    let batch = message.header_as_record_batch().ok_or_else(absent)?;
    let body = payload.slice(body_at);
    let (schema, version) = (Arc::clone(schema), message.version());
    #[expect(clippy::default_trait_access, reason = "its type, a hash map, is not to be named")]
    let dictionaries = Default::default(); // empty: no column has a dictionary
    reader::read_record_batch(&body, batch, schema, &dictionaries, None, &version)
}
