//! Decoded frames of the memo that were read or written lately, within a limit of bytes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use arrow::array::RecordBatch;
use indexmap::IndexMap;

/// Which frame: segment, offset or row group in it, and whether requests are in it.
pub(super) type FrameId = (u32, u64, bool);

/// Decoded frames under a limit of bytes, by the second-chance rule: a frame that was read since
/// the hand last passed stays, so that a hit takes only a shared lock.
pub(super) struct Cache {
    limit_bytes: usize,
    frames: RwLock<Frames>,
}

#[derive(Default)]
struct Frames {
    held: IndexMap<FrameId, Held>,
    bytes: usize,
    hand: usize,
}

struct Held {
    rows: Arc<RecordBatch>,
    bytes: usize,
    used: AtomicBool,
}

impl Cache {
    /// An empty cache.
    pub(super) fn new(limit_bytes: usize) -> Cache {
        Cache { limit_bytes, frames: RwLock::default() }
    }

    /// The frame, if it is held.
    pub(super) fn get(&self, id: FrameId) -> Option<Arc<RecordBatch>> {
        let frames = self.frames.read().unwrap_or_else(PoisonError::into_inner);
        let held = frames.held.get(&id)?;
        held.used.store(true, Ordering::Relaxed);
        Some(Arc::clone(&held.rows))
    }

    /// Holds a frame of so many bytes, and lets go of others for it.
    pub(super) fn put(&self, id: FrameId, rows: Arc<RecordBatch>, bytes: usize) {
        let mut frames = self.frames.write().unwrap_or_else(PoisonError::into_inner);
        while frames.bytes + bytes > self.limit_bytes && !frames.held.is_empty() {
            frames.advance();
        }
        let held = Held { rows, bytes, used: AtomicBool::new(false) };
        frames.bytes += bytes;
        if let Some(before) = frames.held.insert(id, held) {
            frames.bytes -= before.bytes;
        }
    }
}

impl Frames {
    /// Moves the hand by one frame: spares it when it was used, lets go of it when not.
    fn advance(&mut self) {
        self.hand %= self.held.len();
        let (_, held) = self.held.get_index(self.hand).expect("the hand is within");
        if held.used.swap(false, Ordering::Relaxed) {
            self.hand += 1;
        } else {
            let (_, gone) = self.held.swap_remove_index(self.hand).expect("the hand is within");
            self.bytes -= gone.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::Schema;

    fn rows() -> Arc<RecordBatch> {
        Arc::new(RecordBatch::new_empty(Arc::new(Schema::empty())))
    }

    #[test]
    fn the_cache_stays_within_its_limit_and_keeps_what_is_used() {
        let cache = Cache::new(100);
        for offset in 0..50 {
            cache.put((0, offset, true), rows(), 10);
            assert!(offset == 0 || cache.get((0, 0, true)).is_some(), "frame 0 is used each time");
        }
        let held = (0..50).filter(|offset| cache.get((0, *offset, true)).is_some()).count();
        assert!(held <= 10, "{held} frames of 10 bytes are within 100");
    }

    #[test]
    fn a_frame_larger_than_the_limit_is_held_alone() {
        let cache = Cache::new(100);
        cache.put((0, 0, true), rows(), 10);
        cache.put((0, 1, true), rows(), 1000);
        assert!(cache.get((0, 0, true)).is_none() && cache.get((0, 1, true)).is_some());
    }
}
