//! Gathering: what needs several rows at once: pairs of siblings, the lowest so many, one of each
//! key.

use std::sync::Arc;

use super::ask::Coll;
use super::rows::{Lineage, Rec};
use super::shape::Pairs;
use super::shared::Shared;
use crate::operators::{Reason, made_id};
use crate::record::{BatchBuilder, Cell, Id, KeyHasher, Origin, Relation};

/// A pair as a row: its id, and the two contents kept as one.
type Pair = (Id, Id);

/// Gathers siblings to pairs. A pair whose sibling failed is a reject.
pub(super) fn pairs<'s>(
    rows: Coll<'s, Rec>,
    pairs: &Pairs,
    node: &str,
    shared: &Arc<Shared>,
) -> (Coll<'s, Pair>, Coll<'s, Rec>) {
    let wanted = wanted(pairs);
    let of_parent = Arc::clone(shared);
    let siblings = rows.map(move |rec| {
        let lineage = of_parent.rows.lineage(rec.row);
        (lineage.parents[0], (lineage.sibling, rec.row, rec.content))
    });
    // Siblings carry one time, so the reduction sees all that there are.
    let found = siblings.reduce_named("Pairs", move |_parent, siblings, output| {
        let find = |number: u64| siblings.iter().find(|(row, _)| row.0 == number);
        for (a, b) in &wanted {
            match (find(*a), find(*b)) {
                (Some((a, _)), Some((b, _))) => output.push(((a.1, b.1, a.2, b.2), 1isize)),
                (Some((one, _)), None) | (None, Some((one, _))) => {
                    output.push(((one.1, Id::ZERO, one.2, Id::ZERO), 1));
                }
                (None, None) => {}
            }
        }
    });
    let keep = Arc::clone(shared);
    let whole = found.clone().filter(|(_, (_, b, _, _))| *b != Id::ZERO).map(
        move |(_, (a, b, of_a, of_b))| {
            let pair = made_id("pair", &[a, b], 0);
            let root = || keep.rows.lineage(a).root;
            keep.rows.descend(pair, || Lineage { root: root(), parents: vec![a, b], sibling: 0 });
            let mut hasher = KeyHasher::new("amend/pair/1");
            hasher.add_id(of_a);
            hasher.add_id(of_b);
            let known = !of_a.is_unknown() && !of_b.is_unknown();
            let content = if known { hasher.id() } else { hasher.id().unknown() };
            keep.rows.keep_pair(content, (of_a, of_b));
            (pair, content)
        },
    );
    let (shared, node) = (Arc::clone(shared), node.to_owned());
    let broken = found.filter(|(_, (_, b, _, _))| *b == Id::ZERO).map(move |(_, (one, ..))| {
        reject(&shared, &node, one, Reason::ParentRejected, "the other answer of the pair failed")
    });
    (whole, broken)
}

fn wanted(pairs: &Pairs) -> Vec<(u64, u64)> {
    if !pairs.all {
        return (0..pairs.of / 2).map(|pair| (2 * pair, 2 * pair + 1)).collect();
    }
    (0..pairs.of).flat_map(|a| (a + 1..pairs.of).map(move |b| (a, b))).collect()
}

fn reject(shared: &Shared, node: &str, row: Id, reason: Reason, detail: &str) -> Rec {
    let root_id = shared.rows.lineage(row).root;
    let row_id = made_id("reject", &[row, KeyHasher::new(node).id()], 0);
    let origin = Origin { row_id, root_id, parents: vec![row], call_keys: Vec::new() };
    let cells = [
        ("node", Cell::text(node.to_owned())),
        ("reason", Cell::text(reason.name())),
        ("detail", Cell::text(detail.to_owned())),
    ];
    let mut builder = BatchBuilder::new(Relation::Rejects);
    builder.push(&origin, &cells);
    let (batch, ids) = builder.finish();
    shared.rows.keep(batch, &ids)[0]
}

/// Of each input that has a number, so many rows of the lowest rank.
pub(super) fn lowest<'s>(
    rows: Coll<'s, (u64, Rec)>,
    counts: Vec<Option<u64>>,
    stages: Coll<'s, Id>,
    shared: &Arc<Shared>,
) -> Coll<'s, (u64, Rec)> {
    let shared = Arc::clone(shared);
    let ranked = rows.map(|row| ((), row)).join_map(
        stages.map(|stages| ((), stages)),
        move |(), (input, rec), stages| {
            let stages = shared.contexts.stages(*stages);
            let rank = stages.stage(*input as usize).operator.rank(rec.row);
            (*input, (rank, *rec))
        },
    );
    let counts: Vec<usize> =
        counts.into_iter().map(|count| count.map_or(usize::MAX, |count| count as usize)).collect();

    ranked.reduce_named("Lowest", move |input, rows, output| {
        let most = counts[*input as usize];
        output.extend(rows.iter().take(most).map(|((_, rec), count)| (*rec, *count)));
    })
}

/// One row of each key, and rejects of the others.
pub(super) fn dedupe<'s>(
    rows: Coll<'s, (u64, Rec)>,
    stages: Coll<'s, Id>,
    node: &str,
    shared: &Arc<Shared>,
) -> (Coll<'s, (u64, Rec)>, Coll<'s, Rec>) {
    let keyed_by = Arc::clone(shared);
    let keyed = rows.map(|row| ((), row)).join_map(
        stages.map(|stages| ((), stages)),
        move |(), (input, rec), stages| {
            let stages = keyed_by.contexts.stages(*stages);
            let operator = &stages.stage(*input as usize).operator;
            let slot = keyed_by.rows.get(rec.version);
            let key = slot.and_then(|slot| operator.dedupe_key(slot.row())).unwrap_or(rec.row);
            (key, (operator.rank(rec.row), *input, *rec))
        },
    );
    let sorted = keyed.reduce_named("Dedupe", |_key, rows, output| {
        let rows = rows.iter().enumerate();
        output.extend(rows.map(|(at, ((_, input, rec), _))| ((*input, *rec, at == 0), 1isize)));
    });
    let kept = sorted.clone().filter(|(_, row)| row.2).map(|(_, (input, rec, _))| (input, rec));
    let (shared, node) = (Arc::clone(shared), node.to_owned());
    let duplicates = sorted.filter(|(_, row)| !row.2).map(move |(_, (_, rec, _))| {
        reject(&shared, &node, rec.row, Reason::Duplicate, "another row has the same key")
    });
    (kept, duplicates)
}
