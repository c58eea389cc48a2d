//! Whether the files of a snapshot are those that were written: by their stamps, and where those
//! differ by their bytes.
//!
//! `<pipeline>/stamps.json` has the stamps of the last snapshot's files. It is only ever a short cut:
//! where it is missing, torn or about another snapshot, the files are hashed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::disk::{Disk, parent};
use super::given::{SnapshotId, snapshot_id};
use super::manifest::Part;
use super::snapshot::Snapshot;
use super::stamp::Stamp;
use super::{StoreError, seal, table};

/// The name of the file.
const FILE: &str = "stamps.json";

#[derive(Serialize, Deserialize)]
struct Noted {
    snapshot: SnapshotId,
    /// By the file's path in the snapshot.
    files: BTreeMap<String, Stamp>,
}

/// A part of a table one of whose files is damaged or gone.
#[derive(Clone, Debug)]
pub struct DamagedPart {
    /// The node.
    pub node: String,
    /// Its part.
    pub part: Part,
    /// What is wrong, with the file.
    pub error: StoreError,
}

/// The parts of a snapshot that are damaged. Where none is, the stamps of its files are remembered.
pub(super) fn damaged(snapshot: &Snapshot, disk: &dyn Disk) -> Vec<DamagedPart> {
    let path = file(snapshot);
    let noted = read(&path, snapshot);
    let is_noted = |file: &Path, stamp: &Stamp| {
        let (noted, written) = noted.as_ref()?;
        let before = noted.files.get(&name(snapshot, file))?;
        Some(before == stamp && stamp.is_before(written))
    };
    let (mut damaged, mut is_known) = (Vec::new(), true);
    for (node, part) in parts(snapshot) {
        let place = snapshot.place(node);
        let is_as_noted = |file: &PathBuf| {
            Stamp::of(file).is_ok_and(|stamp| is_noted(file, &stamp) == Some(true))
        };
        if place.files(part).iter().all(is_as_noted) {
            continue;
        }
        is_known = false;
        if let Err(error) =
            table::verify(&place, part).and_then(|()| table::verify_ids(&place, part))
        {
            damaged.push(DamagedPart { node: node.clone(), part: part.clone(), error });
        }
    }
    if damaged.is_empty() && !is_known {
        note(snapshot, disk);
    }
    damaged
}

/// Remembers the stamps of a snapshot's files, which are known to be whole. The caller holds the
/// store's lock. What fails here costs the next run time only.
pub(super) fn note(snapshot: &Snapshot, disk: &dyn Disk) {
    let files = parts(snapshot).flat_map(|(node, part)| snapshot.place(node).files(part));
    let stamp = |file: PathBuf| Some((name(snapshot, &file), Stamp::of(&file).ok()?));
    let noted = Noted {
        snapshot: snapshot_id(snapshot.manifest()),
        files: files.filter_map(stamp).collect(),
    };
    if let Ok(text) = serde_json::to_string(&noted) {
        drop(disk.note(&file(snapshot), seal::seal(&text).as_bytes()));
    }
}

/// What was noted of a snapshot, and the stamp of the note.
fn read(path: &Path, snapshot: &Snapshot) -> Option<(Noted, Stamp)> {
    let written = Stamp::of(path).ok()?;
    let text = fs::read_to_string(path).ok()?;
    let noted: Noted = serde_json::from_str(seal::open(&text).ok()?).ok()?;
    (noted.snapshot == snapshot_id(snapshot.manifest())).then_some((noted, written))
}

fn parts(snapshot: &Snapshot) -> impl Iterator<Item = (&String, &Part)> {
    let nodes = snapshot.manifest().nodes.iter();
    nodes.flat_map(|(node, entry)| entry.table.parts.iter().map(move |part| (node, part)))
}

fn file(snapshot: &Snapshot) -> PathBuf {
    parent(parent(snapshot.dir())).join(FILE)
}

fn name(snapshot: &Snapshot, file: &Path) -> String {
    file.strip_prefix(snapshot.dir()).unwrap_or(file).to_string_lossy().into_owned()
}
