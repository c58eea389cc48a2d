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
use super::log::{self, Log};
use super::{MemoOptions, Segment};
use crate::record::CallKey;
use crate::store::disk::{ASIDE, Disk, aside, crash_point};
use crate::store::error::{At, Result, StoreError};

/// A segment with its frames: offset and keys with whether the call failed.
pub(super) type Opened = (Segment, Vec<(u64, Vec<(CallKey, bool)>)>);

/// A file of the memo by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    first: u64,
    last: u64,
    log: bool,
    path: PathBuf,
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
/// removed, and torn segments are cut.
pub(super) fn open(dir: &Path, disk: &Arc<dyn Disk>, write: bool) -> Result<Vec<Opened>> {
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
        match list(dir)?
            .0
            .iter()
            .map(|file| open_file(file, disk, write))
            .collect::<Result<Vec<_>>>()
        {
            Err(StoreError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound && attempts < 10 => {}
            opened => return Ok(opened?.into_iter().flatten().collect()),
        }
    }
}

fn open_file(file: &Named, disk: &Arc<dyn Disk>, write: bool) -> Result<Option<Opened>> {
    if !file.log {
        let archive = Archive::open(&file.path)?;
        let keys = |group| Ok((group as u64, archive.keys(group)?));
        let frames = (0..archive.groups()).map(keys).collect::<Result<Vec<_>>>()?;
        return Ok(Some((Segment::Archive(archive), frames)));
    }
    let found = Log::open(&file.path)?;
    if !write {
        return Ok(found.map(|found| (Segment::Log(found.log), found.frames)));
    }
    match found {
        Some(found) if found.frames.is_empty() => {
            disk.remove(&file.path).at("remove", &file.path)?;
            Ok(None)
        }
        Some(found) => {
            if !found.sealed {
                log::seal(&**disk, &file.path, found.log.end())?;
            }
            Ok(Some((Segment::Log(found.log), found.frames)))
        }
        None => {
            disk.remove(&file.path).at("remove", &file.path)?;
            Ok(None)
        }
    }
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
    let output = disk.create(&temp).at("create", &temp)?;
    write_archive(&taken, ArchiveWriter::create(&temp, output)?, options)?;
    Archive::open(&temp)?;
    crash_point("compaction:before_rename");
    disk.rename(&temp, &path).at("rename", &temp)?;
    disk.sync_dir(dir).at("sync", dir)?;
    crash_point("compaction:before_remove");
    for file in taken {
        disk.remove(&file.path).at("remove", &file.path)?;
    }
    Ok(true)
}

/// Writes the calls of the files in their order, without those that a later one replaces.
fn write_archive(files: &[Named], mut to: ArchiveWriter, options: &MemoOptions) -> Result<()> {
    let opened = files.iter().map(|file| open_file(file, &options.disk, false));
    let opened: Vec<Opened> = opened.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
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
                return Err(super::damage(segment.path(), "its keys are not those of its rows"));
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
    to.close()
}

fn concat(held: &[RecordBatch]) -> RecordBatch {
    concat_batches(&calls_schema(), held).expect("all have the schema of calls")
}
