//! `diff`: how the rows of two snapshots of a pipeline differ.
//!
//! Counting reads the ids beside the tables, and nothing of parts that are the same; only the rows
//! asked for are read from Parquet.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::json::{Object, objects};
use super::{QueryError, Result};
use crate::record::{Batch, Id, Row};
use crate::store::{IdsDiff, Snapshot, StoreError};

/// How two snapshots differ.
#[derive(Clone, Debug, Serialize)]
pub struct Diff {
    /// The number of the first.
    pub from: u64,
    /// The number of the second.
    pub to: u64,
    /// The nodes of either, in plan order; those of the first only come last.
    pub nodes: Vec<NodeDiff>,
}

/// How one node's rows differ.
#[derive(Clone, Debug, Serialize)]
pub struct NodeDiff {
    /// The node.
    pub name: String,
    /// Rows of the second only.
    pub inserted: u64,
    /// Rows of the first only.
    pub deleted: u64,
    /// Rows of both that say something else.
    pub updated: u64,
    /// Of the updated rows, those whose content is the same: only how they came to be differs.
    #[serde(skip)]
    pub provenance: u64,
    /// The rows, if they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<Vec<RowDiff>>,
}

/// How one row differs.
#[derive(Clone, Debug, Serialize)]
pub struct RowDiff {
    /// The row.
    pub row_id: String,
    /// As it was, if it was there.
    pub before: Option<Object>,
    /// As it is, if it is there.
    pub after: Option<Object>,
}

/// What is wanted of a diff.
#[derive(Clone, Debug, Default)]
pub struct Wanted<'a> {
    /// Only this node.
    pub node: Option<&'a str>,
    /// The rows too, at most so many of a node.
    pub rows: Option<usize>,
}

/// Compares two snapshots.
pub fn diff(from: &Snapshot, to: &Snapshot, wanted: &Wanted<'_>) -> Result<Diff> {
    let (before, after) = (from.manifest(), to.manifest());
    let gone = before.nodes.keys().filter(|name| !after.nodes.contains_key(*name));
    let names: Vec<&String> = after.nodes.keys().chain(gone).collect();
    if let Some(node) = wanted.node.filter(|node| !names.iter().any(|name| name == node)) {
        return Err(QueryError::Store(StoreError::NoSuchName {
            place: format!("snapshots {} and {}", before.number, after.number),
            kind: "node",
            name: node.to_owned(),
            available: names.into_iter().cloned().collect(),
        }));
    }
    let names = names.into_iter().filter(|name| wanted.node.is_none_or(|node| node == *name));
    let nodes = names.map(|name| node_diff(from, to, name, wanted.rows)).collect::<Result<_>>()?;
    Ok(Diff { from: before.number, to: after.number, nodes })
}

fn node_diff(from: &Snapshot, to: &Snapshot, node: &str, rows: Option<usize>) -> Result<NodeDiff> {
    let ids = from.diff(to, node)?;
    let same_content = |(was, is): &&(_, _)| content(was) == content(is);
    Ok(NodeDiff {
        name: node.to_owned(),
        inserted: ids.inserted.len() as u64,
        deleted: ids.deleted.len() as u64,
        updated: ids.updated.len() as u64,
        provenance: ids.updated.iter().filter(same_content).count() as u64,
        rows: rows.map(|most| row_diffs(from, to, node, &ids, most)).transpose()?,
    })
}

fn content(ids: &crate::store::RowIds) -> Id {
    ids.content
}

/// The first rows that differ, updated ones first: those are what an edit of a text makes.
fn row_diffs(
    from: &Snapshot,
    to: &Snapshot,
    node: &str,
    ids: &IdsDiff,
    most: usize,
) -> Result<Vec<RowDiff>> {
    let updated = ids.updated.iter().map(|(was, _)| was.row_id);
    let inserted = ids.inserted.iter().map(|ids| ids.row_id);
    let deleted = ids.deleted.iter().map(|ids| ids.row_id);
    let shown: Vec<Id> = updated.chain(inserted).chain(deleted).take(most).collect();
    let wanted: BTreeSet<Id> = shown.iter().copied().collect();
    let mut before = rows_of(from, node, &wanted)?;
    let mut after = rows_of(to, node, &wanted)?;
    let row = |id: &Id| RowDiff {
        row_id: id.to_string(),
        before: before.remove(id),
        after: after.remove(id),
    };
    Ok(shown.iter().map(row).collect())
}

/// Some rows of a node as objects; of a node that is not there, none.
pub(super) fn rows_of(
    snapshot: &Snapshot,
    node: &str,
    wanted: &BTreeSet<Id>,
) -> Result<BTreeMap<Id, Object>> {
    if wanted.is_empty() || !snapshot.manifest().nodes.contains_key(node) {
        return Ok(BTreeMap::new());
    }
    let batches = snapshot.find(node, wanted)?;
    let ids = batches.iter().flat_map(Batch::iter).map(Row::row_id);
    Ok(ids.zip(objects(batches.iter().map(Batch::rows))?).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::testing::{Lab, row};

    #[test]
    fn rows_are_inserted_deleted_and_updated_by_their_ids() {
        let lab = Lab::new();
        lab.commit(&[("drafts", &[row(1, "a"), row(2, "b"), row(3, "c")])]);
        lab.commit(&[
            ("drafts", &[row(1, "a"), row(2, "B"), row(4, "d")]),
            ("more", &[row(9, "x")]),
        ]);
        let reader = lab.reader();
        let (from, to) = (reader.snapshot("1").unwrap(), reader.snapshot("latest").unwrap());
        let diff = diff(&from, &to, &Wanted::default()).unwrap();
        insta::assert_snapshot!(serde_json::to_string(&diff).unwrap(), @r#"{"from":1,"to":2,"nodes":[{"name":"drafts","inserted":1,"deleted":1,"updated":1},{"name":"more","inserted":1,"deleted":0,"updated":0}]}"#);
    }

    #[test]
    fn a_row_is_shown_before_and_after() {
        let lab = Lab::new();
        lab.commit(&[("drafts", &[row(1, "a"), row(2, "b")])]);
        lab.commit(&[("drafts", &[row(1, "z")])]);
        let reader = lab.reader();
        let (from, to) = (reader.snapshot("latest~1").unwrap(), reader.snapshot("2").unwrap());
        let diff = diff(&from, &to, &Wanted { node: Some("drafts"), rows: Some(10) }).unwrap();
        let rows = diff.nodes[0].rows.as_ref().unwrap();
        let said = |object: &Option<Object>| {
            object.as_ref().map(|row| row["completion"][0]["content"].clone())
        };
        assert_eq!(said(&rows[0].before).unwrap(), "a");
        assert_eq!(said(&rows[0].after).unwrap(), "z");
        assert_eq!((said(&rows[1].before).unwrap(), rows[1].after.is_none()), ("b".into(), true));
    }

    #[test]
    fn a_node_that_neither_has_is_named_with_those_there_are() {
        let lab = Lab::new();
        lab.commit(&[("drafts", &[row(1, "a")])]);
        let one = lab.reader().snapshot("1").unwrap();
        let error = diff(&one, &one, &Wanted { node: Some("draft"), rows: None }).unwrap_err();
        assert_eq!(error.to_string(), "snapshots 1 and 1 has no node \"draft\"; it has drafts");
        assert!(error.is_usage());
    }
}
