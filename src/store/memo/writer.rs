//! The memo's one writer: takes what is queued, writes it as one frame, syncs once, then tells.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::Receiver;

use super::entry::Entry;
use super::log::{self, Log, LogWriter};
use super::{Durable, Segment, Shared, columns, compact};
use crate::record::CallKey;
use crate::store::disk::Disk;
use crate::store::error::{At, Result};

/// The most calls of a frame.
const GROUP_CALLS: usize = 1024;
/// A frame takes no more calls once it has so many bytes.
const GROUP_BYTES: usize = 4 << 20;

/// An entry to be written and who waits for it.
pub(super) struct Job {
    pub(super) entry: Entry,
    pub(super) durable: Durable,
}

/// Starts the thread; it ends when the queue's senders are gone and the queue is empty.
pub(super) fn spawn(
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    jobs: Receiver<Job>,
) -> Result<JoinHandle<Result<()>>> {
    let path = shared.dir.clone();
    let mut writer = Writer { shared, disk, active: None };
    let work = move || {
        while let Some((entries, waiting)) = next_group(&jobs) {
            let result = writer.write(&entries);
            for durable in waiting {
                durable(result.clone());
            }
        }
        writer.active.take().map_or(Ok(()), |active| active.writer.close())
    };
    thread::Builder::new().name("memo".to_owned()).spawn(work).at("start a thread for", &path)
}

/// Waits for a job and takes those that are queued behind it.
fn next_group(jobs: &Receiver<Job>) -> Option<(Vec<Entry>, Vec<Durable>)> {
    let (mut entries, mut waiting, mut bytes) = (Vec::new(), Vec::new(), 0);
    let mut next = jobs.recv().ok();
    while let Some(Job { entry, durable }) = next {
        bytes +=
            entry.request_json.len() + entry.outcome.as_ref().map_or(0, |answer| answer.text.len());
        entries.push(entry);
        waiting.push(durable);
        let full = entries.len() >= GROUP_CALLS || bytes >= GROUP_BYTES;
        next = if full { None } else { jobs.try_recv().ok() };
    }
    (!entries.is_empty()).then_some((entries, waiting))
}

struct Writer {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    active: Option<Active>,
}

/// The segment that is being written, and as its readers see it.
struct Active {
    writer: LogWriter,
    segment: u32,
}

impl Writer {
    /// Writes a frame. After a failure the segment is closed as it was before, and the next
    /// frame begins another: what the failed write left on the disk is not known.
    fn write(&mut self, entries: &[Entry]) -> Result<()> {
        let active = match self.active.take() {
            Some(active) => active,
            None => self.begin()?,
        };
        let active = self.active.insert(active);
        let rows = columns::encode(entries);
        let whole = active.writer.len();
        let appended = active.writer.append(&rows);
        let (offset, bytes) = match appended {
            Ok(appended) => appended,
            Err(error) => {
                // Closed where it was whole, if that can be written: a later log than one without an
                // end says that it lost it.
                drop(log::seal(&*self.disk, active.writer.path(), whole));
                self.active = None;
                return Err(error);
            }
        };
        let (segment, end) = (active.segment, active.writer.len());
        if let Segment::Log(log) = &*Arc::clone(&self.shared.segments()[segment as usize]) {
            log.grew(end);
        }
        let keys: Vec<(CallKey, bool)> =
            entries.iter().map(|entry| (entry.key, entry.outcome.is_err())).collect();
        self.shared.cache.put((segment, offset, true), Arc::new(rows), bytes);
        self.shared.index.insert(segment, offset, &keys);
        Ok(())
    }

    fn begin(&self) -> Result<Active> {
        let path: PathBuf = compact::next_log(&self.shared.dir)?;
        let writer = LogWriter::create(&*self.disk, &path)?;
        let log = Log::of_writer(&writer)?;
        let mut segments = self.shared.segments.write().unwrap_or_else(PoisonError::into_inner);
        segments.push(Arc::new(Segment::Log(log)));
        Ok(Active { writer, segment: segments.len() as u32 - 1 })
    }
}
