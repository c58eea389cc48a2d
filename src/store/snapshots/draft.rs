//! A snapshot on its way: written aside, and committed as a whole.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use super::{KINDS, Snapshots};
use crate::store::disk::{aside, crash_point, parent as parent_dir};
use crate::store::error::{At, Result, StoreError};
use crate::store::given;
use crate::store::manifest::{FORMAT, Inputs, Manifest, NodeAbout, NodeEntry, Part, TableEntry};
use crate::store::snapshot::{MANIFEST, Snapshot};
use crate::store::table::{self, Place, Table};
use crate::store::whole::{self, DamagedPart};

/// What [`Draft::commit`] did.
#[derive(Debug)]
pub struct Committed {
    /// The snapshot that says what the draft said.
    pub snapshot: Snapshot,
    /// Whether it is new: a draft that says nothing new makes no snapshot.
    pub is_new: bool,
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
    /// Parts of the snapshot before that are not taken over.
    damaged: Vec<DamagedPart>,
    is_done: bool,
}

impl Draft {
    pub(super) fn new(
        to: Snapshots,
        parent: Option<Snapshot>,
        number: u64,
        dir: PathBuf,
        damaged: Vec<DamagedPart>,
    ) -> Draft {
        let (nodes, calls, is_done) = (IndexMap::new(), None, false);
        Draft { to, parent, number, dir, nodes, calls, damaged, is_done }
    }

    /// Whether a part of a node in the snapshot before is damaged.
    fn is_damaged(&self, node: &str, part: &Part) -> bool {
        self.damaged.iter().any(|damaged| damaged.node == node && damaged.part == *part)
    }

    /// The snapshot before it.
    pub fn parent(&self) -> Option<&Snapshot> {
        self.parent.as_ref()
    }

    /// Writes a node's table. Parts whose rows are those of the snapshot before are not written
    /// again, unless their files are damaged. Nodes are added in plan order.
    ///
    /// # Panics
    ///
    /// When the node was added before.
    pub fn add(&mut self, name: &str, node: NodeAbout, table: &Table) -> Result<()> {
        let place = self.make_place(name)?;
        let before = self.parent.as_ref().and_then(|parent| {
            let entry = parent.manifest().nodes.get(name)?;
            let parts = entry.table.parts.iter().filter(|part| !self.is_damaged(name, part));
            Some((parent.place(name), parts.cloned().collect::<Vec<Part>>()))
        });
        let before = before.as_ref().map(|(place, parts)| (place, &parts[..]));
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
    /// it was made from is remembered beside the last one, whose damaged files are put in order.
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
            self.mend(&parent)?;
            if parent.manifest().inputs != manifest.inputs {
                given::write(&*self.to.disk, &self.to.dir, parent.manifest(), manifest.inputs)?;
            }
            // Its files lose their second names, and so have other stamps.
            self.discard();
            whole::note(&parent, &*self.to.disk);
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
        whole::note(&snapshot, &*self.to.disk);
        assert_eq!(snapshot.manifest(), &manifest, "a manifest reads back as it was");
        Ok(Committed { snapshot, is_new: true })
    }

    /// Removes what was written aside; what cannot be removed, the next draft removes.
    fn discard(&mut self) {
        if !self.is_done {
            drop(self.to.disk.remove(&self.dir));
            self.is_done = true;
        }
    }

    /// Puts files that were just written in the place of damaged ones of a snapshot that says the same.
    fn mend(&self, parent: &Snapshot) -> Result<()> {
        let disk = &*self.to.disk;
        for DamagedPart { node, part, .. } in &self.damaged {
            let (from, to) = (Place::of(&self.dir, node), parent.place(node));
            for (from, to) in from.files(part).into_iter().zip(to.files(part)) {
                disk.create_dirs(parent_dir(&to)).at("make", &to)?;
                disk.sync_file(&from).at("sync", &from)?;
                disk.rename(&from, &to).at("rename", &from)?;
            }
            for dir in to.dirs() {
                disk.sync_dir(dir).at("sync", dir)?;
            }
        }
        Ok(())
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
            let is_kept =
                |before: &Part, part: &Part| before.is_same(part) && !self.is_damaged(name, before);
            let is_new = |part: &&Part| !before.iter().any(|before| is_kept(before, part));
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
        let text = manifest.text();
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
    fn drop(&mut self) {
        self.discard();
    }
}
