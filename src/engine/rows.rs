//! What the keys in the dataflow stand for: batches held by content and version, and where each
//! row comes from.
//!
//! Through differential travel ids alone. A content id finds a row that says that (the columns
//! that spending operators read), a version id finds the row with its whole provenance, a row id
//! finds the row's lineage, which is a function of the id.

use std::sync::{Arc, RwLock};

use serde::{Deserialize, Serialize};

use crate::record::{Batch, Id, IdMap, Row};

/// A row as it travels: its id, what consumers that spend read, all that it says.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub struct Rec {
    /// Where the row comes from.
    pub row: Id,
    /// What it says, for consumers that spend.
    pub content: Id,
    /// All that it says.
    pub version: Id,
}

/// Where a row comes from: a function of its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// The source row.
    pub root: Id,
    /// The rows it was made of.
    pub parents: Vec<Id>,
    /// Its number among the rows made of the same parents.
    pub sibling: u64,
}

/// A place in a batch.
#[derive(Clone, Debug)]
pub struct Slot {
    batch: Arc<Batch>,
    index: usize,
}

impl Slot {
    /// The row there.
    pub fn row(&self) -> Row<'_> {
        self.batch.row(self.index)
    }

    /// The batch.
    pub fn batch(&self) -> &Arc<Batch> {
        &self.batch
    }

    /// The row's place in it.
    pub fn index(&self) -> usize {
        self.index
    }
}

const SHARDS: usize = 64;

/// The shard of an id. They are of many sizes, the last 127 times the first, so that an edit does not
/// meet all of them when they grow.
fn shard_of(id: Id) -> usize {
    (id.low() as usize % (SHARDS * SHARDS)).isqrt()
}

/// A map that many workers read and write.
struct Sharded<V>(Vec<RwLock<IdMap<Id, V>>>);

impl<V: Clone> Sharded<V> {
    fn new() -> Sharded<V> {
        Sharded((0..SHARDS).map(|_| RwLock::default()).collect())
    }

    fn shard(&self, id: Id) -> &RwLock<IdMap<Id, V>> {
        &self.0[shard_of(id)]
    }

    fn get(&self, id: Id) -> Option<V> {
        self.shard(id).read().expect("no holder of a shard panics").get(&id).cloned()
    }

    fn insert(&self, id: Id, value: impl FnOnce() -> V) {
        if self.shard(id).read().expect("no holder of a shard panics").contains_key(&id) {
            return;
        }
        // The value may come from this very map: it is made before the shard is locked.
        let value = value();
        let mut shard = self.shard(id).write().expect("no holder of a shard panics");
        shard.entry(id).or_insert(value);
    }

    /// Inserts a value that is at hand and mostly new.
    fn put(&self, id: Id, value: V) {
        let mut shard = self.shard(id).write().expect("no holder of a shard panics");
        shard.entry(id).or_insert(value);
    }
}

/// The rows of a session, by content, version and row id. Shared by all workers.
pub struct Rows {
    slots: Sharded<Slot>,
    pairs: Sharded<(Id, Id)>,
    lineage: Sharded<Arc<Lineage>>,
}

impl Default for Rows {
    fn default() -> Rows {
        Rows { slots: Sharded::new(), pairs: Sharded::new(), lineage: Sharded::new() }
    }
}

impl Rows {
    /// Keeps the rows of a batch under their contents and versions, and gives their keys.
    pub fn keep(&self, batch: Batch, ids: &[(Id, Id)]) -> Vec<Rec> {
        assert_eq!(batch.len(), ids.len(), "a content and a version for each row");
        let batch = Arc::new(batch);
        let keep = |(index, (content, version)): (usize, &(Id, Id))| {
            let row = batch.row(index);
            let slot = Slot { batch: Arc::clone(&batch), index };
            self.slots.put(*content, slot.clone());
            self.slots.put(*version, slot);
            Rec { row: row.row_id(), content: *content, version: *version }
        };
        ids.iter().enumerate().map(keep).collect()
    }

    /// Keeps the rows of a batch that was read from a file, lineage included.
    pub fn adopt(&self, batch: Batch) -> Vec<Rec> {
        for row in batch.iter() {
            let root = row.id("root_id").expect("root_id is not null");
            let (parents, sibling) = (row.ids("parents"), row.index() as u64);
            self.descend(row.row_id(), || Lineage { root, parents, sibling });
        }
        let ids: Vec<(Id, Id)> =
            batch.iter().map(|row| (row.content_hash(), row.version_hash())).collect();
        self.keep(batch, &ids)
    }

    /// The row under a content or a version.
    pub fn get(&self, id: Id) -> Option<Slot> {
        self.slots.get(id)
    }

    /// Keeps two contents as one, of a pair.
    pub fn keep_pair(&self, pair: Id, contents: (Id, Id)) {
        self.pairs.insert(pair, || contents);
    }

    /// The two contents of a pair.
    pub fn pair(&self, pair: Id) -> Option<(Id, Id)> {
        self.pairs.get(pair)
    }

    /// Keeps where a row comes from.
    pub fn descend(&self, row: Id, lineage: impl FnOnce() -> Lineage) {
        self.lineage.insert(row, || Arc::new(lineage()));
    }

    /// Where a row comes from.
    ///
    /// # Panics
    ///
    /// When the row is none that the session made or read.
    pub fn lineage(&self, row: Id) -> Arc<Lineage> {
        self.lineage.get(row).unwrap_or_else(|| panic!("row {row} has a lineage"))
    }
}
