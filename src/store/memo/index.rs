//! Where each call is: key to segment, frame and row, in memory.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use indexmap::IndexMap;

use super::columns;
use crate::record::CallKey;

/// Where a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// The segment, in the order of opening.
    pub(super) segment: u32,
    /// The row in the frame.
    pub(super) row: u32,
    /// The frame's offset, or the row group.
    pub(super) offset: u64,
    /// Whether the call failed.
    pub(super) failed: bool,
}

/// Threads that look up different calls seldom wait for each other: a lock a shard.
const SHARDS: usize = 16;

type Shard = IndexMap<CallKey, Slot>;

/// Key to slot.
#[derive(Default)]
pub(super) struct Index {
    shards: [RwLock<Shard>; SHARDS],
}

impl Index {
    pub(super) fn len(&self) -> usize {
        (0..SHARDS).map(|shard| self.read(shard).len()).sum()
    }

    pub(super) fn get(&self, key: &CallKey) -> Option<Slot> {
        self.read(shard_of(key)).get(key).copied()
    }

    /// Adds the calls of a frame; the later wins.
    pub(super) fn insert(&self, segment: u32, offset: u64, keys: &[(CallKey, bool)]) {
        for (row, (key, failed)) in keys.iter().enumerate() {
            let slot = Slot { segment, row: row as u32, offset, failed: *failed };
            self.write(shard_of(key)).insert(*key, slot);
        }
    }

    pub(super) fn forget_failures(&self, keys: Option<&[CallKey]>) -> usize {
        let before = self.len();
        match keys {
            Some(keys) => {
                for key in keys {
                    let mut shard = self.write(shard_of(key));
                    if shard.get(key).is_some_and(|slot| slot.failed) {
                        shard.swap_remove(key);
                    }
                }
            }
            None => (0..SHARDS).for_each(|at| self.write(at).retain(|_, slot| !slot.failed)),
        }
        before - self.len()
    }

    /// The rows of a frame that no later append replaced.
    pub(super) fn current(&self, rows: &RecordBatch, segment: u32, offset: u64) -> RecordBatch {
        let is_current = |row: usize| {
            let slot = self.get(&columns::key(rows, row));
            slot.is_some_and(|slot| {
                (slot.segment, slot.offset, slot.row as usize) == (segment, offset, row)
            })
        };
        let mask: BooleanArray = (0..rows.num_rows()).map(|row| Some(is_current(row))).collect();
        filter_record_batch(rows, &mask).expect("the mask is as long as the rows")
    }

    fn read(&self, shard: usize) -> RwLockReadGuard<'_, Shard> {
        self.shards[shard].read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, shard: usize) -> RwLockWriteGuard<'_, Shard> {
        self.shards[shard].write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shard_of(key: &CallKey) -> usize {
    usize::from(key.0[31]) % SHARDS
}
