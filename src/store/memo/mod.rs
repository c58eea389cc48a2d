//! The memo: every finished call, found by its key.
//!
//! ```text
//! append ─▶ queue ─▶ writer thread: one batch ─▶ log segment ─▶ sync ─▶ index ─▶ callbacks
//! get    ─▶ index ─▶ cache ─▶ log segment or archive
//! ```
//!
//! Durable before visible: an entry is in the index, and its callback called, once it is safe.
//! A process writes one segment of its own (`calls/000007.log`); when a memo is closed, and there
//! are many, segments are compacted to one Parquet file (`calls/000001-000007.parquet`).

mod archive;
mod cache;
mod columns;
mod compact;
mod entry;
mod index;
mod log;
mod salvage;
mod served;
mod writer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use crossbeam_channel::{Sender, bounded};

pub use columns::calls_schema;
pub use entry::{CallKind, Entry, Failure, Outcome};
pub use salvage::Lost;
pub use served::Served;

use super::disk::{Disk, LocalDisk};
use super::error::{Result, StoreError};
use crate::record::CallKey;
use cache::Cache;
use index::{Index, Slot};
use salvage::damage;
use writer::Job;

/// How a memo is held. [`Default`] is what a run wants.
#[derive(Clone, Debug)]
pub struct MemoOptions {
    /// The most bytes of decoded calls in memory.
    pub cache_bytes: usize,
    /// The most calls that wait to be written; [`Memo::append`] waits when there are as many.
    pub queue_calls: usize,
    /// Closing compacts when there are so many log segments.
    pub compact_logs: usize,
    /// Closing compacts when log segments have so many bytes.
    pub compact_bytes: u64,
    /// An archive of at least so many bytes is not compacted again.
    pub archive_bytes: u64,
    /// Where files are changed.
    pub disk: Arc<dyn Disk>,
}

impl Default for MemoOptions {
    fn default() -> MemoOptions {
        MemoOptions {
            cache_bytes: 256 << 20,
            queue_calls: 16_384,
            compact_logs: 8,
            compact_bytes: 64 << 20,
            archive_bytes: 256 << 20,
            disk: Arc::new(LocalDisk),
        }
    }
}

/// Told when an entry is safe, or why it is not. Runs on the memo's thread: it must be quick, and
/// must neither panic nor close the memo.
pub type Durable = Box<dyn FnOnce(Result<()>) + Send>;

/// The finished calls of a store, shared by all threads of a run.
pub struct Memo {
    shared: Arc<Shared>,
    options: MemoOptions,
    queue: RwLock<Option<Sender<Job>>>,
    writer: Mutex<Option<JoinHandle<Result<()>>>>,
}

/// What the writer thread and the readers share.
struct Shared {
    dir: PathBuf,
    index: Index,
    cache: Cache,
    segments: RwLock<Vec<Arc<Segment>>>,
}

enum Segment {
    Log(log::Log),
    Archive(archive::Archive),
}

impl Memo {
    /// Opens the memo of a directory for reading and writing, and makes it if there is none. The
    /// caller holds the store's lock.
    pub fn open(dir: &Path) -> Result<Memo> {
        Memo::open_with(dir, MemoOptions::default())
    }

    /// The same, held as the options say.
    pub fn open_with(dir: &Path, options: MemoOptions) -> Result<Memo> {
        let shared = Arc::new(Shared::open(dir, &options, true)?);
        let (queue, jobs) = bounded(options.queue_calls);
        let thread = writer::spawn(Arc::clone(&shared), Arc::clone(&options.disk), jobs)?;
        let (queue, writer) = (RwLock::new(Some(queue)), Mutex::new(Some(thread)));
        Ok(Memo { shared, options, queue, writer })
    }

    /// Opens the memo of a directory for reading, beside a run that writes it or alone. A directory
    /// that is not there is an empty memo.
    pub fn open_read_only(dir: &Path) -> Result<Memo> {
        let options = MemoOptions::default();
        let shared = Arc::new(Shared::open(dir, &options, false)?);
        Ok(Memo { shared, options, queue: RwLock::new(None), writer: Mutex::new(None) })
    }

    /// Looks at every byte of the memo of a directory: its files, each with what is damaged in it.
    pub fn look(dir: &Path) -> Result<Vec<(PathBuf, Option<Lost>)>> {
        compact::look(dir)
    }

    /// How many calls it holds.
    pub fn len(&self) -> usize {
        self.shared.index.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it holds the call; reads no file.
    pub fn contains(&self, key: &CallKey) -> bool {
        self.shared.index.get(key).is_some()
    }

    /// Whether it holds the call, and the call failed; reads no file.
    pub fn failed(&self, key: &CallKey) -> bool {
        self.shared.index.get(key).is_some_and(|slot| slot.failed)
    }

    /// The entry of a call.
    pub fn get(&self, key: &CallKey) -> Result<Option<Arc<Entry>>> {
        let Some(slot) = self.shared.index.get(key) else { return Ok(None) };
        let rows = self.shared.rows(slot, true)?;
        let entry = columns::entry(&rows, slot.row as usize);
        let entry = entry.map_err(|what| self.shared.damage(slot, &what))?;
        self.shared.check(key, entry.key, slot)?;
        Ok(Some(Arc::new(entry)))
    }

    /// What came of a call, without its request.
    pub fn get_outcome(&self, key: &CallKey) -> Result<Option<Outcome>> {
        let Some(slot) = self.shared.index.get(key) else { return Ok(None) };
        let rows = self.shared.rows(slot, false)?;
        self.shared.check(key, columns::key(&rows, slot.row as usize), slot)?;
        Ok(Some(columns::outcome(&rows, slot.row as usize)))
    }

    /// Adds an entry, in place of what the memo holds for its key. Returns before it is written:
    /// `durable` is told when it is safe and can be found. Waits when the queue is full.
    pub fn append(&self, entry: Entry, durable: Durable) {
        let queue = self.queue.read().unwrap_or_else(PoisonError::into_inner).clone();
        let job = Job { entry, durable };
        let refused = match queue {
            Some(queue) => queue.send(job).err().map(|error| error.0),
            None => Some(job),
        };
        if let Some(job) = refused {
            (job.durable)(Err(StoreError::ReadOnly { path: self.shared.dir.clone() }));
        }
    }

    /// Forgets failures, so that they are asked again: those of the keys, or all. The file keeps
    /// them; what is appended later wins. Returns how many were forgotten.
    pub fn forget_failures(&self, keys: Option<&[CallKey]>) -> usize {
        self.shared.index.forget_failures(keys)
    }

    /// The table `calls`, batch by batch in the order in which the calls were made, with the columns
    /// of that name or all but the whole `key`. Each call is there once.
    pub fn scan<'a>(
        &'a self,
        columns: Option<&'a [&'a str]>,
    ) -> impl Iterator<Item = Result<RecordBatch>> + 'a {
        let segments = self.shared.segments().clone();
        let requests = columns.is_none_or(|columns| columns.contains(&"request"));
        let frames = segments.into_iter().enumerate().flat_map(move |(at, segment)| {
            let offsets = segment.offsets();
            let (offsets, error) = match offsets {
                Ok(offsets) => (offsets, None),
                Err(error) => (Vec::new(), Some(Err(error))),
            };
            let read = move |offset| {
                let (rows, _) = segment.read(offset, requests)?;
                Ok(self.shared.index.current(&rows, at as u32, offset))
            };
            error.into_iter().chain(offsets.into_iter().map(read))
        });
        frames.map(move |rows| project(&rows?, columns))
    }

    /// The schema of what [`Memo::scan`] gives for the columns.
    pub fn scan_schema(columns: Option<&[&str]>) -> Result<SchemaRef> {
        Ok(project(&RecordBatch::new_empty(calls_schema()), columns)?.schema())
    }

    /// Waits until what was appended is safe, closes the segment, and compacts when there is much
    /// to compact. Later calls of [`Memo::append`] are refused; reading goes on.
    pub fn close(&self) -> Result<()> {
        if self.stop()? {
            compact::compact(&self.shared.dir, &self.options)?;
        }
        Ok(())
    }

    /// Ends the writer; whether there was one.
    fn stop(&self) -> Result<bool> {
        drop(self.queue.write().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        match thread.map(JoinHandle::join) {
            Some(Ok(result)) => result.map(|()| true),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(false),
        }
    }
}

impl Drop for Memo {
    /// Closes the segment without compaction. What fails here was told to the callbacks.
    fn drop(&mut self) {
        drop(self.queue.write().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(thread.map(JoinHandle::join));
    }
}

impl fmt::Debug for Memo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memo")
            .field("dir", &self.shared.dir)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

fn project(rows: &RecordBatch, columns: Option<&[&str]>) -> Result<RecordBatch> {
    let schema = rows.schema();
    let names: Vec<&str> = match columns {
        Some(columns) => columns.to_vec(),
        None => schema
            .fields()
            .iter()
            .map(|field| field.name().as_str())
            .filter(|name| *name != "key")
            .collect(),
    };
    let position = |name: &&str| {
        schema.index_of(name).map_err(|_| StoreError::NoSuchName {
            place: "the table \"calls\"".to_owned(),
            kind: "column",
            name: (*name).to_owned(),
            available: schema.fields().iter().map(|field| field.name().clone()).collect(),
        })
    };
    let positions = names.iter().map(position).collect::<Result<Vec<usize>>>()?;
    Ok(rows.project(&positions).expect("the positions are those of columns"))
}

impl Shared {
    fn open(dir: &Path, options: &MemoOptions, write: bool) -> Result<Shared> {
        let found = compact::open(dir, &options.disk, write)?;
        let index = Index::default();
        let mut segments = Vec::with_capacity(found.len());
        for (at, (segment, frames)) in found.into_iter().enumerate() {
            for (offset, keys) in frames {
                index.insert(at as u32, offset, &keys);
            }
            segments.push(Arc::new(segment));
        }
        let cache = Cache::new(options.cache_bytes);
        Ok(Shared { dir: dir.to_owned(), index, cache, segments: RwLock::new(segments) })
    }

    fn segments(&self) -> std::sync::RwLockReadGuard<'_, Vec<Arc<Segment>>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn segment(&self, slot: Slot) -> Arc<Segment> {
        Arc::clone(&self.segments()[slot.segment as usize])
    }

    /// The decoded frame that a slot is in.
    fn rows(&self, slot: Slot, requests: bool) -> Result<Arc<RecordBatch>> {
        let whole = (slot.segment, slot.offset, true);
        if let Some(rows) = self.cache.get(whole) {
            return Ok(rows);
        }
        let segment = self.segment(slot);
        let id = match &*segment {
            Segment::Archive(_) => (slot.segment, slot.offset, requests),
            Segment::Log(_) => whole,
        };
        if let Some(rows) = self.cache.get(id) {
            return Ok(rows);
        }
        let (rows, bytes) = segment.read(slot.offset, requests)?;
        if slot.row as usize >= rows.num_rows() {
            return Err(self.damage(slot, "it has fewer rows than keys"));
        }
        let rows = Arc::new(rows);
        self.cache.put(id, Arc::clone(&rows), bytes);
        Ok(rows)
    }

    /// The row that was found must be the one that was asked for.
    fn check(&self, asked: &CallKey, found: CallKey, slot: Slot) -> Result<()> {
        if *asked == found { Ok(()) } else { Err(self.damage(slot, "a row has another key")) }
    }

    fn damage(&self, slot: Slot, what: &str) -> StoreError {
        damage(self.segment(slot).path(), what)
    }
}

impl Segment {
    fn path(&self) -> &Path {
        match self {
            Segment::Log(log) => log.path(),
            Segment::Archive(archive) => archive.path(),
        }
    }

    /// Where its frames are.
    fn offsets(&self) -> Result<Vec<u64>> {
        match self {
            Segment::Log(log) => log.offsets(),
            Segment::Archive(archive) => Ok(archive.whole_groups()),
        }
    }

    /// The frame at an offset, and about how many bytes it takes.
    fn read(&self, offset: u64, requests: bool) -> Result<(RecordBatch, usize)> {
        match self {
            Segment::Log(log) => log.read(offset),
            Segment::Archive(archive) => archive.read(offset as usize, requests),
        }
    }
}
