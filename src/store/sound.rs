//! Whether a checkpoint is what its name says: the hash of its files, remembered by their stamps.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::disk::{Disk, aside};
use super::seal;
use super::stamp::{Stamp, Stamps};
use crate::record::Id;

/// What is known of the checkpoints of a store, and of others that a process opened.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    shared: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    /// By directory: what its files were like, and the weights id that they made.
    ids: BTreeMap<PathBuf, (Stamps, Id)>,
    /// The checkpoints that were said to be damaged.
    told: BTreeSet<Id>,
}

impl Known {
    /// The weights id of a directory. It is hashed once, as long as its files stay as they were. With
    /// a `note`, a file in which it is remembered beyond this process: where that cannot be written,
    /// the next process hashes again.
    pub(super) fn weights_id(
        &self,
        dir: &Path,
        note: Option<(&Path, &dyn Disk)>,
    ) -> Result<Id, String> {
        let stamps = Stamp::of_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        if let Some((before, id)) = self.seen().ids.get(dir)
            && *before == stamps
        {
            return Ok(*id);
        }
        let noted = note.and_then(|(note, _)| read_note(note, &stamps));
        let id = if let Some(id) = noted {
            id
        } else {
            let probe = note.and_then(|(note, disk)| probe(note, disk));
            let id = hash(dir)?;
            if let (Some((note, disk)), Some(probe)) = (note, probe)
                && stamps.values().all(|stamp| stamp.is_before(&probe))
            {
                write_note(note, disk, &stamps, id);
            }
            id
        };
        self.seen().ids.insert(dir.to_owned(), (stamps, id));
        Ok(id)
    }

    /// Whether it is the first time that somebody is to be told about a checkpoint.
    pub(super) fn is_first_told(&self, weights: Id) -> bool {
        self.seen().told.insert(weights)
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The weights id of a directory, by the bytes of its files.
#[cfg(feature = "torch")]
pub(super) fn hash(dir: &Path) -> Result<Id, String> {
    crate::model::torch::weights_id(dir).map_err(|error| error.to_string())
}

/// The weights id of a directory, by the bytes of its files.
#[cfg(not(feature = "torch"))]
pub(super) fn hash(dir: &Path) -> Result<Id, String> {
    Err(format!("{} is a checkpoint, and this amend was built without `torch`", dir.display()))
}

/// What a note says: the files of a checkpoint when they were hashed, and what they made.
#[derive(serde::Serialize, serde::Deserialize)]
struct Note {
    weights: String,
    files: Stamps,
}

fn read_note(path: &Path, stamps: &Stamps) -> Option<Id> {
    let text = fs::read_to_string(path).ok()?;
    let note: Note = serde_json::from_str(seal::open(&text).ok()?).ok()?;
    (note.files == *stamps).then(|| note.weights.parse().ok())?
}

fn write_note(path: &Path, disk: &dyn Disk, stamps: &Stamps, id: Id) {
    let note = Note { weights: id.to_string(), files: stamps.clone() };
    if let Ok(text) = serde_json::to_string(&note) {
        drop(disk.note(path, seal::seal(&text).as_bytes()));
    }
}

/// A file made now, for its time.
fn probe(note: &Path, disk: &dyn Disk) -> Option<Stamp> {
    let path = aside(note).with_extension("now");
    disk.remove_if_there(&path).ok()?;
    disk.create(&path).ok()?;
    let stamp = Stamp::of(&path);
    disk.remove(&path).ok()?;
    stamp.ok()
}
