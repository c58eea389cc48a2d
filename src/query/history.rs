//! `log`: the snapshots of a pipeline, with what each changed.

use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use arrow::temporal_conversions::timestamp_us_to_datetime;
use serde::Serialize;

use super::explain::REJECTS;
use super::{Reader, Result};
use crate::store::{IdsDiff, Memo, Snapshot};

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// Its number.
    pub number: u64,
    /// Its digest.
    pub digest: String,
    /// When its run began, in UTC.
    pub created_at: String,
    /// Rows of all nodes but rejects.
    pub rows: u64,
    /// Rows that failed.
    pub rejects: u64,
    /// Rows that the snapshot before it has not.
    pub inserted: u64,
    /// Rows that the snapshot before it has and it has not.
    pub deleted: u64,
    /// Rows that say something else than in the snapshot before it.
    pub updated: u64,
    /// Calls that its run made. Of a snapshot of an earlier version, which does not say, those that
    /// the store took up since its run began, until that of the next snapshot did; of the first, all
    /// before it too.
    pub calls: u64,
}

/// The snapshots of a pipeline, the last one first, at most so many.
pub fn log(reader: &Reader, limit: Option<usize>) -> Result<Vec<Entry>> {
    // All times of the memo, once a snapshot does not say what its run made.
    let mut started: Option<Vec<i64>> = None;
    let numbers = reader.snapshots().numbers()?;
    let shown = numbers.len().min(limit.unwrap_or(usize::MAX));
    let at = |at: usize| numbers.get(at).map(|number| reader.snapshots().at(*number)).transpose();
    let mut entries = Vec::with_capacity(shown);
    for number in (numbers.len() - shown..numbers.len()).rev() {
        let snapshot = at(number)?.expect("it was listed");
        let before = number.checked_sub(1).map(at).transpose()?.flatten();
        let calls = if let Some(calls) = snapshot.manifest().calls {
            calls
        } else {
            let started = match &started {
                Some(started) => started,
                None => started.insert(started_at_us(&reader.store.memo_read_only()?)?),
            };
            let next_us = at(number + 1)?.map(|next| next.manifest().created_at_us);
            let since = before.as_ref().map_or(i64::MIN, |_| snapshot.manifest().created_at_us);
            let until = |us: i64| started.partition_point(|started| *started < us) as u64;
            until(next_us.unwrap_or(i64::MAX)).saturating_sub(until(since))
        };
        entries.push(Entry { calls, ..entry(&snapshot, before.as_ref())? });
    }
    Ok(entries)
}

fn entry(snapshot: &Snapshot, before: Option<&Snapshot>) -> Result<Entry> {
    let manifest = snapshot.manifest();
    let mut entry = Entry {
        number: manifest.number,
        digest: manifest.digest.to_string(),
        created_at: time(manifest.created_at_us),
        rows: 0,
        rejects: 0,
        inserted: 0,
        deleted: 0,
        updated: 0,
        calls: 0,
    };
    for (name, node) in &manifest.nodes {
        let rows = if name == REJECTS { &mut entry.rejects } else { &mut entry.rows };
        *rows += node.table.rows;
    }
    let Some(before) = before else {
        return Ok(Entry { inserted: entry.rows, ..entry });
    };
    let gone = before.manifest().nodes.keys().filter(|name| !manifest.nodes.contains_key(*name));
    for name in manifest.nodes.keys().chain(gone).filter(|name| *name != REJECTS) {
        let IdsDiff { inserted, deleted, updated } = before.diff(snapshot, name)?;
        entry.inserted += inserted.len() as u64;
        entry.deleted += deleted.len() as u64;
        entry.updated += updated.len() as u64;
    }
    Ok(entry)
}

/// When each call was sent, sorted.
fn started_at_us(memo: &Memo) -> Result<Vec<i64>> {
    let mut times = Vec::with_capacity(memo.len());
    for batch in memo.scan(Some(&["started_at"])) {
        times.extend_from_slice(
            batch?.column(0).as_primitive::<TimestampMicrosecondType>().values(),
        );
    }
    times.sort_unstable();
    Ok(times)
}

/// A time, to the second.
pub fn time(us: i64) -> String {
    let time = timestamp_us_to_datetime(us);
    time.map_or_else(|| us.to_string(), |time| time.format("%Y-%m-%dT%H:%M:%SZ").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::testing::{Lab, row};

    #[test]
    fn the_last_snapshot_comes_first_with_what_it_changed() {
        let lab = Lab::new();
        lab.commit(&[("drafts", &[row(1, "a"), row(2, "b")])]);
        lab.commit(&[("drafts", &[row(1, "z"), row(3, "c")])]);
        let log = log(&lab.reader(), None).unwrap();
        let said: Vec<_> =
            log.iter().map(|e| (e.number, e.rows, e.inserted, e.deleted, e.updated)).collect();
        assert_eq!(said, [(2, 2, 1, 1, 1), (1, 2, 2, 0, 0)]);
        assert_eq!(log[0].created_at, "2023-11-14T22:13:20Z");
    }
}
