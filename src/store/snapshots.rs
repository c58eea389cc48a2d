//! The snapshots of a pipeline: finding them, and committing a new one.
//!
//! ```text
//! <pipeline>/snapshots/000017/manifest.json, tables/, ids/, checkpoints/
//! <pipeline>/tables      -> snapshots/000017/tables
//! <pipeline>/checkpoints -> snapshots/000017/checkpoints
//! ```
//!
//! A commit writes the files aside and syncs them, gives the directory its number, and then links
//! the manifest into it: that one operation is the commit, and fails if somebody else did it.
//! The links at stable paths are moved after it. A crash leaves orphans or old links, which whoever
//! begins the next snapshot removes and repairs.

mod draft;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::draft::{Committed, Draft};
use super::disk::{ASIDE, Disk, aside, crash_point, parent as parent_dir};
use super::error::{At, Result, StoreError};
use super::given;
use super::manifest::Inputs;
use super::snapshot::{MANIFEST, Snapshot};
use super::whole::{self, DamagedPart};

/// The links at stable paths.
const LINKS: [&str; 2] = ["tables", "checkpoints"];

/// The directories of a snapshot.
const KINDS: [&str; 3] = ["tables", "ids", "checkpoints"];

/// The snapshots of one pipeline.
#[derive(Clone, Debug)]
pub struct Snapshots {
    dir: PathBuf,
    pipeline: String,
    disk: Arc<dyn Disk>,
}

impl Snapshots {
    /// Those of a pipeline in a store; its directory need not exist.
    ///
    /// # Panics
    ///
    /// When the name is one of the store's own or no name of a directory.
    pub(super) fn new(store: &Path, pipeline: &str, disk: Arc<dyn Disk>) -> Snapshots {
        let own = ["calls", "checkpoints", "trainings", "lock"].contains(&pipeline);
        let plain = !pipeline.is_empty() && !pipeline.contains('/') && !pipeline.starts_with('.');
        assert!(plain && !own, "{pipeline:?} cannot be the name of a pipeline: the planner checks");
        Snapshots { dir: store.join(pipeline), pipeline: pipeline.to_owned(), disk }
    }

    /// The numbers of the committed ones, ascending.
    pub fn numbers(&self) -> Result<Vec<u64>> {
        let committed = |number: &u64| self.path(*number).join(MANIFEST).exists();
        Ok(self.directories()?.into_iter().filter(committed).collect())
    }

    /// The last one, if there is any.
    pub fn latest(&self) -> Result<Option<Snapshot>> {
        match self.numbers()?.last() {
            Some(number) => Snapshot::open(&self.path(*number)),
            None => Ok(None),
        }
    }

    /// The one of a number.
    pub fn at(&self, number: u64) -> Result<Snapshot> {
        let found = Snapshot::open(&self.path(number))?;
        let available = self.numbers()?;
        let pipeline = self.pipeline.clone();
        found.ok_or(StoreError::NoSnapshot { pipeline, number, available })
    }

    /// What else than its manifest says gave the last snapshot's tables, where something did since.
    pub fn given(&self, last: &Snapshot) -> Option<Inputs> {
        given::read(&self.dir, last.manifest())
    }

    /// The parts of a snapshot whose files are not those that were written, by their stamps and, where
    /// those differ, by their bytes.
    pub fn damaged(&self, snapshot: &Snapshot) -> Vec<DamagedPart> {
        whole::damaged(snapshot, &*self.disk)
    }

    /// Begins the next one. The caller holds the store's lock. What a crash left is removed and the
    /// links are repaired.
    pub fn begin(&self) -> Result<Draft> {
        self.repair()?;
        let parent = self.latest()?;
        let number = parent.as_ref().map_or(1, |parent| parent.manifest().number + 1);
        let dir = aside(&self.path(number));
        self.disk.create_dirs(parent_dir(&dir)).at("make", &dir)?;
        for dir in [dir.clone()].into_iter().chain(KINDS.map(|kind| dir.join(kind))) {
            self.disk.create_dir(&dir).at("make", &dir)?;
        }
        let damaged = parent.as_ref().map(|parent| self.damaged(parent)).unwrap_or_default();
        for part in &damaged {
            tracing::warn!("{}", part.error);
        }
        Ok(Draft::new(self.clone(), parent, number, dir, damaged))
    }

    /// Removes what a crash left and points the links at the last snapshot. The caller holds the
    /// store's lock.
    pub fn repair(&self) -> Result<()> {
        let dir = self.dir.join("snapshots");
        if !dir.exists() {
            return Ok(());
        }
        for entry in fs::read_dir(&dir).at("list", &dir)? {
            let path = entry.at("list", &dir)?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            let unfinished = name.is_some_and(|name| name.starts_with(ASIDE));
            if unfinished || !path.join(MANIFEST).exists() {
                self.disk.remove(&path).at("remove", &path)?;
            }
        }
        match self.numbers()?.last() {
            Some(number) => self.point(*number),
            None => Ok(()),
        }
    }

    /// Points the links at a snapshot, if they point elsewhere.
    fn point(&self, number: u64) -> Result<()> {
        let mut moved = false;
        for link in LINKS {
            let path = self.dir.join(link);
            let target = Path::new("snapshots").join(format!("{number:06}")).join(link);
            if fs::read_link(&path).is_ok_and(|now| now == target) {
                continue;
            }
            if moved {
                crash_point("snapshot:between_links");
            }
            self.disk.point(&path, &target).at("link", &path)?;
            moved = true;
        }
        if moved { self.disk.sync_dir(&self.dir).at("sync", &self.dir) } else { Ok(()) }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join("snapshots").join(format!("{number:06}"))
    }

    /// The numbers of the directories, committed or not.
    fn directories(&self) -> Result<Vec<u64>> {
        let dir = self.dir.join("snapshots");
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&dir).at("list", &dir)? {
            let name = entry.at("list", &dir)?.file_name();
            numbers.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Batch, BatchBuilder, Cell, Id, KeyHasher, Origin, Relation};
    use crate::store::manifest::{CheckpointRef, NodeAbout, TextFile};
    use crate::store::table::{Table, TableRow};
    use crate::store::{LocalDisk, Mark};
    use std::collections::{BTreeMap, BTreeSet};
    use tempfile::TempDir;

    fn row_id(n: u64) -> Id {
        KeyHasher::new("amend/test/1").u64(n).id()
    }

    fn batch(rows: &BTreeMap<u64, f64>) -> Arc<Batch> {
        let mut batch = BatchBuilder::new(Relation::Metrics);
        for (n, value) in rows {
            let id = row_id(*n);
            let origin = Origin { row_id: id, root_id: id, parents: vec![], call_keys: vec![] };
            let cells = [
                ("node", Cell::text("sl")),
                ("run", Cell::id(Id::ZERO)),
                ("step", Cell::Int(*n as i64)),
                ("epoch", Cell::Float(0.5)),
                ("split", Cell::text("train")),
                ("name", Cell::text("loss")),
                ("value", Cell::Float(*value)),
            ];
            batch.push(&origin, &cells);
        }
        Arc::new(batch.finish().0)
    }

    /// The table of step and value, its rows spread over two batches and out of order.
    fn table(rows: impl IntoIterator<Item = (u64, f64)>) -> Table {
        let (even, odd): (BTreeMap<_, _>, BTreeMap<_, _>) =
            rows.into_iter().partition(|(n, _)| n % 2 == 0);
        let mut rows = Vec::new();
        for batch in [batch(&odd), batch(&even)] {
            rows.extend((0..batch.len()).map(|index| TableRow::of(&batch, index)));
        }
        Table::new(Relation::Metrics, rows)
    }

    fn about(checkpoint: Option<Id>) -> NodeAbout {
        let reference = |weights| CheckpointRef { weights, recipe: "ab".repeat(32), stale: true };
        NodeAbout {
            op: "train-sl".to_owned(),
            fingerprint: row_id(1),
            inputs: vec!["data".to_owned()],
            rejects: 1,
            dropped: 2,
            checkpoint: checkpoint.map(reference),
            marks: BTreeSet::from([Mark::Held]),
        }
    }

    fn commit(snapshots: &Snapshots, tables: &[(&str, Table)], text: &str) -> Committed {
        let mut draft = snapshots.begin().unwrap();
        for (name, table) in tables {
            draft.add(name, about(Some(row_id(7))), table).unwrap();
        }
        let file = TextFile { path: "p.yaml".to_owned(), text: text.to_owned() };
        draft.commit(5, Inputs { files: vec![file], ..Inputs::default() }).unwrap()
    }

    fn open(dir: &TempDir) -> Snapshots {
        Snapshots::new(dir.path(), "cai", Arc::new(LocalDisk))
    }

    fn numbers(n: u64) -> impl Iterator<Item = (u64, f64)> {
        (0..n).map(|n| (n, n as f64))
    }

    #[test]
    fn a_committed_table_reads_back_sorted_by_row_id() {
        let dir = TempDir::new().unwrap();
        let committed = commit(&open(&dir), &[("sl", table(numbers(100)))], "");
        assert!(committed.is_new);
        let snapshot = open(&dir).latest().unwrap().unwrap();
        let batches = snapshot.read_batches("sl").unwrap();
        let rows: Vec<_> = batches.iter().flat_map(Batch::iter).collect();
        let ids: Vec<Id> = rows.iter().map(|row| row.row_id()).collect();
        assert!(rows.len() == 100 && ids.is_sorted());
        assert!(rows.iter().all(|row| row.int("step").map(|n| n as f64) == row.float("value")));
        let kept = snapshot.read_ids("sl").unwrap();
        assert!(kept.iter().zip(&rows).all(|(ids, row)| ids.version == row.version_hash()));
        let two = BTreeSet::from([row_id(3), row_id(80), row_id(1000)]);
        let found = snapshot.find("sl", &two).unwrap();
        assert_eq!(found.iter().map(Batch::len).sum::<usize>(), 2);
        let link = dir
            .path()
            .join("cai/tables/sl")
            .join(&snapshot.manifest().nodes["sl"].table.parts[0].file);
        assert!(link.exists() && fs::metadata(link).unwrap().permissions().readonly());
        let checkpoint = fs::read_link(dir.path().join("cai/checkpoints/sl")).unwrap();
        assert!(checkpoint.ends_with(row_id(7).to_string()));
    }

    #[test]
    fn the_same_rows_are_the_same_bytes_and_make_no_new_snapshot() {
        let (one, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        commit(&open(&one), &[("a", table(numbers(10))), ("b", table([]))], "x");
        commit(&open(&one), &[("a", table(numbers(11))), ("b", table([]))], "x");
        let edited = commit(&open(&one), &[("a", table(numbers(10))), ("b", table([]))], "y");
        let again = commit(&open(&one), &[("a", table(numbers(10))), ("b", table([]))], "y");
        let scratch = commit(&open(&other), &[("a", table(numbers(10))), ("b", table([]))], "y");
        assert!(edited.is_new && !again.is_new && again.snapshot.manifest().number == 3);
        let (here, there) = (again.snapshot.manifest(), scratch.snapshot.manifest());
        assert_eq!((&here.digest, &here.nodes), (&there.digest, &there.nodes));
        for (ours, theirs) in
            again.snapshot.files("a").unwrap().iter().zip(scratch.snapshot.files("a").unwrap())
        {
            assert_eq!(fs::read(ours).unwrap(), fs::read(theirs).unwrap());
        }
        assert_eq!(open(&one).numbers().unwrap(), [1, 2, 3]);
        assert!(open(&one).given(&again.snapshot).is_none(), "it was given what its manifest says");
        let comment = commit(&open(&one), &[("a", table(numbers(10))), ("b", table([]))], "y # z");
        assert!(!comment.is_new && comment.snapshot.manifest() == again.snapshot.manifest());
        let given = open(&one).given(&comment.snapshot).unwrap();
        assert_eq!(given.files[0].text, "y # z");
        assert!(open(&one).given(&open(&one).at(1).unwrap()).is_none(), "it is about the last one");
        assert!(!one.path().join("cai/snapshots/.tmp-000004").exists());
    }

    #[test]
    fn a_changed_row_writes_its_part_again_and_no_other() {
        use std::os::unix::fs::MetadataExt;
        let dir = TempDir::new().unwrap();
        commit(&open(&dir), &[("a", table(numbers(70_000)))], "");
        let changed = numbers(70_000).map(|(n, value)| (n, if n == 5 { -1.0 } else { value }));
        let after = commit(&open(&dir), &[("a", table(changed))], "").snapshot;
        let links = after.files("a").unwrap();
        let links: Vec<u64> =
            links.iter().map(|file| fs::metadata(file).unwrap().nlink()).collect();
        assert_eq!((links.len(), links.iter().sum::<u64>()), (2, 3), "one is linked, one is new");
        let before = open(&dir).at(1).unwrap();
        let diff = before.diff(&after, "a").unwrap();
        assert!(diff.inserted.is_empty() && diff.deleted.is_empty());
        assert_eq!(diff.updated.iter().map(|(was, _)| was.row_id).collect::<Vec<_>>(), [row_id(5)]);
        assert_eq!(after.read_ids("a").unwrap().len(), 70_000);
    }

    #[test]
    fn a_kept_node_is_that_of_the_snapshot_before() {
        let dir = TempDir::new().unwrap();
        let before = commit(&open(&dir), &[("a", table(numbers(10)))], "").snapshot;
        let mut draft = open(&dir).begin().unwrap();
        draft.keep("a", about(None)).unwrap();
        draft.add("b", about(None), &table(numbers(3))).unwrap();
        let after = draft.commit(9, Inputs::default()).unwrap().snapshot;
        let table = |snapshot: &Snapshot| snapshot.manifest().nodes["a"].table.clone();
        assert_eq!(table(&before), table(&after));
        assert_eq!(after.read_table("a", Some(&["value"])).unwrap()[0].num_rows(), 10);
    }

    #[test]
    fn a_draft_that_is_dropped_leaves_nothing() {
        let dir = TempDir::new().unwrap();
        let mut draft = open(&dir).begin().unwrap();
        draft.add("a", about(None), &table(numbers(3))).unwrap();
        drop(draft);
        assert_eq!(fs::read_dir(dir.path().join("cai/snapshots")).unwrap().count(), 0);
        assert!(open(&dir).latest().unwrap().is_none());
    }

    #[test]
    fn a_damaged_file_is_named_and_not_read() {
        let dir = TempDir::new().unwrap();
        let snapshot = commit(&open(&dir), &[("a", table(numbers(10)))], "").snapshot;
        let path = &snapshot.files("a").unwrap()[0];
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::remove_file(path).unwrap();
        (&LocalDisk as &dyn Disk).write_new(path, &bytes).unwrap();
        let error = snapshot.read_table("a", None).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        assert!(matches!(snapshot.read_table("x", None), Err(StoreError::NoSuchName { .. })));
        assert!(matches!(open(&dir).at(9), Err(StoreError::NoSnapshot { .. })));
    }
}
