//! The time of a record: epoch and chunk in one ordered integer.
//!
//! An epoch is one accepted edit. Insertions of an epoch enter in chunks, so that a later stage
//! starts while an earlier one still runs; retractions and changes of constitution and settings
//! carry the first chunk. Trainings wait for [`last`]: no chunk is later.

/// Epoch in the high half, chunk in the low half.
pub(super) type Time = u64;

/// The first time of an epoch.
pub(super) fn first(epoch: u64) -> Time {
    epoch << 32
}

/// The time of a chunk of an epoch.
pub(super) fn chunk(epoch: u64, chunk: u64) -> Time {
    assert!(chunk < u64::from(u32::MAX), "an epoch has fewer than 2^32 chunks");
    first(epoch) | chunk
}

/// The last time of an epoch, at which trainings act.
pub(super) fn last(epoch: u64) -> Time {
    first(epoch) | u64::from(u32::MAX)
}

/// The epoch of a time.
pub(super) fn epoch(time: Time) -> u64 {
    time >> 32
}

/// The last time of the epoch of a time.
pub(super) fn close(time: Time) -> Time {
    time | u64::from(u32::MAX)
}
