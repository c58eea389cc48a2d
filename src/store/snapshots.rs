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

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;

use super::disk::{ASIDE, Disk, aside, crash_point, parent as parent_dir};
use super::error::{At, Result, StoreError};
use super::given;
use super::manifest::{FORMAT, Inputs, Manifest, NodeAbout, NodeEntry, Part, TableEntry};
use super::snapshot::{MANIFEST, Snapshot};
use super::table::{self, Place, Table};

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

/// What [`Draft::commit`] did.
#[derive(Debug)]
pub struct Committed {
    /// The snapshot that says what the draft said.
    pub snapshot: Snapshot,
    /// Whether it is new: a draft that says nothing new makes no snapshot.
    pub is_new: bool,
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
        let nodes = IndexMap::new();
        let to = self.clone();
        Ok(Draft { to, parent, number, dir, nodes, calls: None, is_done: false })
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

/// A snapshot that is being written. Dropped without a commit, it leaves nothing.
#[derive(Debug)]
pub struct Draft {
    to: Snapshots,
    parent: Option<Snapshot>,
    number: u64,
    dir: PathBuf,
    nodes: IndexMap<String, NodeEntry>,
    calls: Option<u64>,
    is_done: bool,
}

impl Draft {
    /// The snapshot before it.
    pub fn parent(&self) -> Option<&Snapshot> {
        self.parent.as_ref()
    }

    /// Writes a node's table. Parts whose rows are those of the snapshot before are not written
    /// again. Nodes are added in plan order.
    ///
    /// # Panics
    ///
    /// When the node was added before.
    pub fn add(&mut self, name: &str, node: NodeAbout, table: &Table) -> Result<()> {
        let place = self.make_place(name)?;
        let before = self.parent.as_ref().and_then(|parent| {
            let entry = parent.manifest().nodes.get(name)?;
            Some((parent.place(name), &entry.table.parts[..]))
        });
        let before = before.as_ref().map(|(place, parts)| (place, *parts));
        let parts = table::write_table(&*self.to.disk, &place, table, before)?;
        let (relation, digest) = (table.relation(), table.digest());
        let table = TableEntry { relation, digest, rows: table.len() as u64, parts };
        self.nodes.insert(name.to_owned(), NodeEntry { node, table });
        Ok(())
    }

    /// Takes a node's table over from the snapshot before, which has it.
    ///
    /// # Panics
    ///
    /// When the node was added before.
    pub fn keep(&mut self, name: &str, node: NodeAbout) -> Result<()> {
        let place = self.make_place(name)?;
        let parent = self.parent.as_ref().ok_or_else(|| StoreError::NoSnapshot {
            pipeline: self.to.pipeline.clone(),
            number: self.number - 1,
            available: Vec::new(),
        })?;
        let table = parent.table_entry(name)?.clone();
        for (number, part) in table.parts.iter().enumerate() {
            table::link_part(&*self.to.disk, &parent.place(name), part, &place, number)?;
        }
        self.nodes.insert(name.to_owned(), NodeEntry { node, table });
        Ok(())
    }

    fn make_place(&self, name: &str) -> Result<Place> {
        assert!(!self.nodes.contains_key(name), "node {name:?} is added once");
        assert!(!name.contains('/') && !name.starts_with('.'), "{name:?} is the name of a node");
        let place = Place::of(&self.dir, name);
        for dir in place.dirs() {
            self.to.disk.create_dir(dir).at("make", dir)?;
        }
        Ok(place)
    }

    /// Says how many calls were made for it.
    pub fn count_calls(&mut self, made: u64) {
        self.calls = Some(made);
    }

    /// Commits. The time is microseconds since 1970. What says nothing new makes no snapshot: what
    /// it was made from is remembered beside the last one.
    pub fn commit(mut self, created_at_us: i64, inputs: Inputs) -> Result<Committed> {
        let manifest = Manifest {
            format: FORMAT,
            pipeline: self.to.pipeline.clone(),
            number: self.number,
            parent: self.parent.as_ref().map(|parent| parent.manifest().number),
            digest: Manifest::digest_of(&self.nodes),
            created_at_us,
            nodes: std::mem::take(&mut self.nodes),
            inputs,
            calls: self.calls,
        };
        if let Some(parent) =
            self.parent.take_if(|parent| parent.manifest().says_the_same(&manifest))
        {
            if parent.manifest().inputs != manifest.inputs {
                given::write(&*self.to.disk, &self.to.dir, parent.manifest(), manifest.inputs)?;
            }
            return Ok(Committed { snapshot: parent, is_new: false });
        }
        self.link_checkpoints(&manifest)?;
        self.to
            .disk
            .sync_all(&self.files(&manifest), &self.dirs(&manifest))
            .at("sync", &self.dir)?;
        crash_point("snapshot:before_rename");
        let path = self.to.path(self.number);
        self.to.disk.rename(&self.dir, &path).at("rename", &self.dir)?;
        self.is_done = true;
        let snapshots = self.to.dir.join("snapshots");
        self.to.disk.sync_dir(&snapshots).at("sync", &snapshots)?;
        crash_point("snapshot:before_manifest");
        self.put(&path, &manifest)?;
        crash_point("snapshot:after_manifest");
        self.to.point(self.number)?;
        let snapshot = self.to.at(self.number)?;
        assert_eq!(snapshot.manifest(), &manifest, "a manifest reads back as it was");
        Ok(Committed { snapshot, is_new: true })
    }

    /// Links each node's model: `checkpoints/<node>` to the store's `checkpoints/<weights id>`.
    fn link_checkpoints(&self, manifest: &Manifest) -> Result<()> {
        let dir = self.dir.join("checkpoints");
        for (name, entry) in &manifest.nodes {
            if let Some(checkpoint) = &entry.node.checkpoint {
                let target = format!("../../../../checkpoints/{}", checkpoint.weights);
                let link = dir.join(name);
                self.to.disk.symlink(Path::new(&target), &link).at("link", &link)?;
            }
        }
        Ok(())
    }

    /// The files that are not those of the snapshot before.
    fn files(&self, manifest: &Manifest) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for (name, entry) in &manifest.nodes {
            let before = self.parent.as_ref().and_then(|parent| parent.manifest().nodes.get(name));
            let before = before.map_or(&[][..], |entry| &entry.table.parts);
            let is_new = |part: &&Part| !before.iter().any(|before| before.is_same(part));
            let place = Place::of(&self.dir, name);
            files
                .extend(entry.table.parts.iter().filter(is_new).flat_map(|part| place.files(part)));
        }
        files
    }

    /// The directories.
    fn dirs(&self, manifest: &Manifest) -> Vec<PathBuf> {
        let places = manifest.nodes.keys().map(|name| Place::of(&self.dir, name));
        let nodes = places.flat_map(|place| place.dirs().map(Path::to_owned));
        nodes.chain(KINDS.map(|kind| self.dir.join(kind))).chain([self.dir.clone()]).collect()
    }

    /// Puts the manifest where there is none: the commit.
    fn put(&self, path: &Path, manifest: &Manifest) -> Result<()> {
        let text = serde_json::to_string_pretty(manifest).expect("a manifest has keys of text");
        let (path, disk) = (path.join(MANIFEST), &*self.to.disk);
        let temp = aside(&path);
        disk.write_new(&temp, text.as_bytes()).at("write", &temp)?;
        disk.protect(&temp).at("protect", &temp)?;
        match disk.link(&temp, &path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(StoreError::Conflict { number: self.number });
            }
            linked => linked.at("link", &path)?,
        }
        let dir = self.to.path(self.number);
        disk.sync_dir(&dir).at("sync", &dir)?;
        disk.remove(&temp).at("remove", &temp)
    }
}

impl Drop for Draft {
    /// Removes what was written aside; what cannot be removed, the next draft removes.
    fn drop(&mut self) {
        if !self.is_done {
            drop(self.to.disk.remove(&self.dir));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Batch, BatchBuilder, Cell, Id, KeyHasher, Origin, Relation};
    use crate::store::manifest::{CheckpointRef, TextFile};
    use crate::store::table::TableRow;
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
