//! What is done about damage in the memo: what is whole stays, what is not is set aside and asked
//! again.
//!
//! Whoever only reads leaves damaged frames out. Whoever opens the memo for writing keeps the damaged
//! file in `calls/damaged/`, and writes an archive of what is whole in its place.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::MemoOptions;
use super::compact::{self, Named};
use crate::store::disk::{Disk, aside};
use crate::store::error::{At, Result, StoreError};

/// The folder of damaged files, in that of the memo.
const FOLDER: &str = "damaged";

/// What is lost of a file of the memo.
#[derive(Clone, Debug)]
pub struct Lost {
    /// The first thing that does not hold.
    pub what: String,
    /// How many calls, where it can be told.
    pub calls: Option<u64>,
}

impl Lost {
    /// Damage that cost no call so far.
    pub(super) fn nothing(what: &str) -> Lost {
        Lost { what: what.to_owned(), calls: Some(0) }
    }

    /// Damage of which nobody can tell what it cost.
    pub(super) fn unknown(what: &str) -> Lost {
        Lost { what: what.to_owned(), calls: None }
    }

    /// Adds calls, if it is known how many.
    pub(super) fn add(&mut self, calls: Option<u64>) {
        self.calls = self.calls.zip(calls).map(|(before, more)| before + more);
    }

    /// How much is lost, in words.
    pub fn counted(&self) -> String {
        match self.calls {
            None => "an unknown number of calls is lost".to_owned(),
            Some(0) => "no call is lost".to_owned(),
            Some(1) => "1 call is lost".to_owned(),
            Some(calls) => format!("{calls} calls are lost"),
        }
    }
}

/// A file of the memo that cannot be read.
pub(super) fn damage(path: &Path, what: &str) -> StoreError {
    StoreError::corrupt(path, what, "the next run sets it aside, and asks again for its calls")
}

/// Says what was left out of a file that is only read.
pub(super) fn warn(file: &Path, lost: &Lost) {
    tracing::warn!(
        "\"{}\" is damaged: {}; {}, and the next run asks again for those that it needs",
        file.display(),
        lost.what,
        lost.counted()
    );
}

/// Sets a damaged file aside and puts an archive of what is whole in it in its place, if anything is.
pub(super) fn set_aside(
    file: &Named,
    lost: &Lost,
    has_calls: bool,
    disk: &Arc<dyn Disk>,
) -> Result<Option<Named>> {
    let dir = crate::store::disk::parent(&file.path);
    let kept = keep(dir, &file.path, &**disk)?;
    let mut rest = None;
    if has_calls {
        let archive = file.as_archive();
        let temp = aside(&archive.path);
        disk.remove_if_there(&temp).at("remove", &temp)?;
        let options = MemoOptions { disk: Arc::clone(disk), ..MemoOptions::default() };
        compact::write_archive(std::slice::from_ref(file), &temp, &options, true)?;
        disk.rename(&temp, &archive.path).at("rename", &temp)?;
        disk.sync_dir(dir).at("sync", dir)?;
        rest = Some(archive);
    }
    if rest.as_ref().is_none_or(|rest| rest.path != file.path) {
        disk.remove(&file.path).at("remove", &file.path)?;
        disk.sync_dir(dir).at("sync", dir)?;
    }
    tracing::warn!(
        "\"{}\" was damaged: {}; {}: those that a run needs are asked again; the damaged file is \
         kept as \"{}\"",
        file.path.display(),
        lost.what,
        lost.counted(),
        kept.display()
    );
    Ok(rest)
}

/// Gives a damaged file a second name, which no file has yet.
fn keep(dir: &Path, path: &Path, disk: &dyn Disk) -> Result<PathBuf> {
    let folder = dir.join(FOLDER);
    disk.create_dirs(&folder).at("make", &folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut number = 1;
    loop {
        let kept = match number {
            1 => folder.join(&name),
            number => folder.join(format!("{name}.{number}")),
        };
        match disk.link(path, &kept) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
            linked => {
                linked.at("link", path)?;
                disk.sync_dir(&folder).at("sync", &folder)?;
                return Ok(kept);
            }
        }
    }
}
