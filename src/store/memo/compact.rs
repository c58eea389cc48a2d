//! The directory of the memo: which segments count, and compaction of many to one.
//!
//! ```text
//! 000001-000008.parquet   an archive of the segments 1 to 8
//! 000009.log              a segment
//! ```
//!
//! An archive replaces the segments within its range: it gets its name, safely, before they are
//! removed, and whoever opens the memo for writing removes those that a crash left.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;

use super::archive::{Archive, ArchiveWriter, GROUP_ROWS};
use super::columns::{self, calls_schema};
use super::index::Index;
use super::log::{self, Found, Log};
use super::salvage::{self, Lost, damage};
use super::{MemoOptions, Segment};
use crate::record::CallKey;
use crate::store::disk::{ASIDE, Disk, aside, crash_point};
use crate::store::error::{At, Result, StoreError};

/// The whole frames of a segment: offset and keys with whether the call failed.
pub(super) type Frames = Vec<(u64, Vec<(CallKey, bool)>)>;

/// A file of the memo that was opened.
#[derive(Default)]
pub(super) struct Opened {
    /// The segment with its whole frames; none where nothing of it can be read, or it has none.
    pub(super) segment: Option<(Segment, Frames)>,
    /// What of it is damaged.
    pub(super) lost: Option<Lost>,
    /// Where a log ends that was not closed.
    open_end: Option<u64>,
}

/// A file of the memo by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Named {
    first: u64,
    last: u64,
    log: bool,
    pub(super) path: PathBuf,
}

impl Named {
    fn parse(path: &Path) -> Option<Named> {
        let (stem, kind) = path.file_name()?.to_str()?.split_once('.')?;
        let (first, last) = match kind {
            "log" => (stem, stem),
            "parquet" => stem.split_once('-')?,
            _ => return None,
        };
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        Some(Named { first, last, log: kind == "log", path: path.to_owned() })
    }

    /// An archive of what is in this file.
    pub(super) fn as_archive(&self) -> Named {
        let (first, last) = (self.first, self.last);
        let path = self.path.with_file_name(format!("{first:06}-{last:06}.parquet"));
        Named { first, last, log: false, path }
    }

    /// Whether an archive stands for this file.
    fn is_within(&self, other: &Named) -> bool {
        let wider = (other.first, other.last) != (self.first, self.last) || self.log;
        !other.log && wider && other.first <= self.first && self.last <= other.last
    }
}

/// What a directory has: the files that count in their order, and those that do not.
fn list(dir: &Path) -> Result<(Vec<Named>, Vec<PathBuf>)> {
    let (mut named, mut gone) = (Vec::new(), Vec::new());
    if !dir.exists() {
        return Ok((named, gone));
    }
    for entry in fs::read_dir(dir).at("list", dir)? {
        let path = entry.at("list", dir)?.path();
        let unfinished =
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(ASIDE));
        if unfinished {
            gone.push(path);
        } else {
            named.extend(Named::parse(&path));
        }
    }
    named.sort();
    let (counts, replaced): (Vec<Named>, Vec<Named>) =
        named.iter().cloned().partition(|file| !named.iter().any(|other| file.is_within(other)));
    gone.extend(replaced.into_iter().map(|file| file.path));
    Ok((counts, gone))
}

/// The name of a new segment.
pub(super) fn next_log(dir: &Path) -> Result<PathBuf> {
    let last = list(dir)?.0.iter().map(|file| file.last).max().unwrap_or(0);
    Ok(dir.join(format!("{:06}.log", last + 1)))
}

/// Opens all segments of a directory. For writing, the directory is made, what a crash left is
/// removed, torn segments are cut, and damaged ones are set aside. Who only reads leaves out what is
/// damaged.
pub(super) fn open(
    dir: &Path,
    disk: &Arc<dyn Disk>,
    write: bool,
) -> Result<Vec<(Segment, Frames)>> {
    if write {
        disk.create_dirs(dir).at("make", dir)?;
        for path in list(dir)?.1 {
            disk.remove(&path).at("remove", &path)?;
        }
    }
    // A run that ends may compact between listing and opening; then the list has changed.
    let mut attempts = 0;
    loop {
        attempts += 1;
        let files = list(dir)?.0;
        let last = files.len().saturating_sub(1);
        let each = files.iter().enumerate();
        let opened = each.map(|(at, file)| match write {
            true => open_to_write(file, at == last, disk),
            false => open_to_read(file, at == last),
        });
        match opened.collect::<Result<Vec<_>>>() {
            Err(StoreError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound && attempts < 10 => {}
            opened => return Ok(opened?.into_iter().flatten().collect()),
        }
    }
}

/// What every file of a directory has that is damaged; every byte is read.
pub(super) fn look(dir: &Path) -> Result<Vec<(PathBuf, Option<Lost>)>> {
    let files = list(dir)?.0;
    let last = files.len().saturating_sub(1);
    let each = files.into_iter().enumerate();
    each.map(|(at, file)| {
        let opened = open_file(&file, at == last)?;
        Ok((file.path, opened.lost))
    })
    .collect()
}

fn open_to_read(file: &Named, is_last: bool) -> Result<Option<(Segment, Frames)>> {
    let opened = open_file(file, is_last)?;
    if let Some(lost) = &opened.lost {
        salvage::warn(&file.path, lost);
    }
    Ok(opened.segment)
}

fn open_to_write(
    file: &Named,
    is_last: bool,
    disk: &Arc<dyn Disk>,
) -> Result<Option<(Segment, Frames)>> {
    let Opened { segment, lost, open_end } = open_file(file, is_last)?;
    let has_calls = segment.as_ref().is_some_and(|(_, frames)| !frames.is_empty());
    if let Some(lost) = lost {
        let rest = salvage::set_aside(file, &lost, has_calls, disk)?;
        return rest.map_or(Ok(None), |rest| Ok(open_file(&rest, is_last)?.segment));
    }
    if file.log && !has_calls {
        disk.remove(&file.path).at("remove", &file.path)?;
        return Ok(None);
    }
    if let Some(end) = open_end {
        log::seal(&**disk, &file.path, end)?;
    }
    Ok(segment)
}

/// Opens a file and reads all of it. Of logs only the last may have a torn end: it is what a crash
/// leaves.
fn open_file(file: &Named, is_last: bool) -> Result<Opened> {
    let opened = if file.log { open_log(&file.path, is_last) } else { open_archive(&file.path) };
    match opened {
        Err(StoreError::Corrupt { what, .. }) => {
            Ok(Opened { lost: Some(Lost::unknown(&what)), ..Opened::default() })
        }
        opened => opened,
    }
}

fn open_log(path: &Path, is_last: bool) -> Result<Opened> {
    let lost_end = || (!is_last).then(|| Lost::unknown("its end is gone"));
    let Some(Found { log, frames, sealed, mut lost }) = Log::open(path)? else {
        return Ok(Opened { lost: lost_end(), ..Opened::default() });
    };
    if !sealed && let Some(end) = lost_end() {
        lost.get_or_insert(end).add(None);
    }
    let open_end = (!sealed).then(|| log.end());
    Ok(Opened { segment: Some((Segment::Log(log), frames)), lost, open_end })
}

fn open_archive(path: &Path) -> Result<Opened> {
    let (mut archive, mut lost) = Archive::open(path)?;
    let mut frames = Frames::new();
    for group in 0..archive.groups() {
        match archive.keys(group) {
            Ok(keys) => frames.push((group as u64, keys)),
            Err(StoreError::Corrupt { what, .. }) => {
                lost.get_or_insert_with(|| Lost::nothing(&what)).add(Some(archive.rows(group)));
                archive.leave_out(group);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Opened { segment: Some((Segment::Archive(archive), frames)), lost, open_end: None })
}

/// Compacts the logs, and the last archives that are small, to one archive when there are as many
/// as the options say. Whether it did.
pub(super) fn compact(dir: &Path, options: &MemoOptions) -> Result<bool> {
    let disk = &*options.disk;
    let files = list(dir)?.0;
    let size =
        |file: &Named| fs::metadata(&file.path).map(|meta| meta.len()).at("read", &file.path);
    let (mut logs, mut logs_bytes) = (0, 0);
    let mut taken = Vec::new();
    for file in files.iter().rev() {
        let bytes = size(file)?;
        if !file.log && bytes >= options.archive_bytes {
            break;
        }
        logs += usize::from(file.log);
        logs_bytes += if file.log { bytes } else { 0 };
        taken.push(file.clone());
    }
    taken.reverse();
    if logs == 0 || (logs < options.compact_logs && logs_bytes < options.compact_bytes) {
        return Ok(false);
    }
    let (first, last) = (taken[0].first, taken[taken.len() - 1].last);
    let path = dir.join(format!("{first:06}-{last:06}.parquet"));
    let temp = aside(&path);
    disk.remove_if_there(&temp).at("remove", &temp)?;
    write_archive(&taken, &temp, options, false)?;
    crash_point("compaction:before_rename");
    disk.rename(&temp, &path).at("rename", &temp)?;
    disk.sync_dir(dir).at("sync", dir)?;
    crash_point("compaction:before_remove");
    for file in taken {
        disk.remove(&file.path).at("remove", &file.path)?;
    }
    Ok(true)
}

/// Writes the calls of the files in their order, without those that a later one replaces, to a new
/// file. What is damaged is an error, unless it may be left out.
pub(super) fn write_archive(
    files: &[Named],
    path: &Path,
    options: &MemoOptions,
    leave_out: bool,
) -> Result<()> {
    let mut opened: Vec<(Segment, Frames)> = Vec::new();
    for file in files {
        let Opened { segment, lost, .. } = open_file(file, true)?;
        if let (Some(lost), false) = (lost, leave_out) {
            return Err(damage(&file.path, &lost.what));
        }
        opened.extend(segment);
    }
    let output = options.disk.create(path).at("create", path)?;
    let mut to = ArchiveWriter::create(path, output)?;
    let index = Index::default();
    for (at, (_, frames)) in opened.iter().enumerate() {
        for (offset, keys) in frames {
            index.insert(at as u32, *offset, keys);
        }
    }
    let mut held: Vec<RecordBatch> = Vec::new();
    for (at, (segment, frames)) in opened.iter().enumerate() {
        for (offset, keys) in frames {
            let (rows, _) = segment.read(*offset, true)?;
            let keys: Vec<CallKey> = keys.iter().map(|(key, _)| *key).collect();
            let read = (0..rows.num_rows()).map(|row| columns::key(&rows, row));
            if !read.eq(keys) {
                return Err(damage(segment.path(), "its keys are not those of its rows"));
            }
            held.push(index.current(&rows, at as u32, *offset));
            while held.iter().map(RecordBatch::num_rows).sum::<usize>() >= GROUP_ROWS {
                let all = concat(&held);
                to.group(&all.slice(0, GROUP_ROWS))?;
                held = vec![all.slice(GROUP_ROWS, all.num_rows() - GROUP_ROWS)];
            }
        }
    }
    let rest = concat(&held);
    if rest.num_rows() > 0 {
        to.group(&rest)?;
    }
    to.close()?;
    Archive::open(path)?;
    Ok(())
}

fn concat(held: &[RecordBatch]) -> RecordBatch {
    concat_batches(&calls_schema(), held).expect("all have the schema of calls")
}
