//! What gave the last snapshot's tables again, when it was not what its manifest says.
//!
//! A comment or a price that was edited changes what a run is given and nothing of what it makes, so
//! that nothing is published, and a snapshot never changes. `<pipeline>/inputs.json` beside the
//! snapshots remembers what was given, so that the next run is answered without building its graph.
//! It is only ever a short cut: where it is missing, torn or about another snapshot, that run makes
//! its tables and sees that they are the same.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::error::{At, Result};
use super::manifest::{Inputs, Manifest};

/// The name of the file.
const FILE: &str = "inputs.json";

#[derive(Serialize, Deserialize)]
struct Given {
    /// The snapshot whose tables were made again: numbers alone may come again in a store.
    snapshot: SnapshotId,
    inputs: Inputs,
}

/// What names a snapshot.
pub(super) type SnapshotId = (u64, String, i64);

/// What names the snapshot of a manifest.
pub(super) fn snapshot_id(manifest: &Manifest) -> SnapshotId {
    (manifest.number, manifest.digest.to_string(), manifest.created_at_us)
}

/// What gave a snapshot's tables again, if anything else did.
pub(super) fn read(dir: &Path, manifest: &Manifest) -> Option<Inputs> {
    let text = fs::read_to_string(dir.join(FILE)).ok()?;
    let given: Given = serde_json::from_str(&text).ok()?;
    (given.snapshot == snapshot_id(manifest)).then_some(given.inputs)
}

/// Remembers what gave a snapshot's tables again. The caller holds the store's lock.
pub(super) fn write(
    disk: &dyn Disk,
    dir: &Path,
    manifest: &Manifest,
    inputs: Inputs,
) -> Result<()> {
    let path = dir.join(FILE);
    let given = Given { snapshot: snapshot_id(manifest), inputs };
    let text = serde_json::to_string_pretty(&given).expect("inputs have keys of text");
    disk.write_atomically(&path, text.as_bytes()).at("write", &path)
}
