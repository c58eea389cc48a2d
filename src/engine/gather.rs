//! Gathering: what needs several rows at once: pairs of siblings, the lowest so many, one of each
//! key.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ask::Coll;
use super::rows::{Lineage, Rec};
use super::shape::Pairs;
use super::shared::Shared;
use crate::operators::{Reason, made_id, reject_id};
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
                (Some((a, _)), Some((b, _))) => {
                    output.push((Found::Whole { rows: (a.1, b.1), contents: (a.2, b.2) }, 1isize));
                }
                (Some((one, _)), None) => output.push((Found::Broken(one.1, *b), 1)),
                (None, Some((one, _))) => output.push((Found::Broken(one.1, *a), 1)),
                (None, None) => {}
            }
        }
    });
    let keep = Arc::clone(shared);
    let whole = found.clone().flat_map(move |(_, found)| {
        let Found::Whole { rows: (a, b), contents: (of_a, of_b) } = found else { return None };
        let pair = made_id("pair", &[a, b], 0);
        let root = || keep.rows.lineage(a).root;
        keep.rows.descend(pair, || Lineage { root: root(), parents: vec![a, b], sibling: 0 });
        let mut hasher = KeyHasher::new("amend/pair/1");
        hasher.add_id(of_a);
        hasher.add_id(of_b);
        let known = !of_a.is_unknown() && !of_b.is_unknown();
        let content = if known { hasher.id() } else { hasher.id().unknown() };
        keep.rows.keep_pair(content, (of_a, of_b));
        Some((pair, content))
    });
    let (shared, node) = (Arc::clone(shared), node.to_owned());
    let broken = found.flat_map(move |(_, found)| {
        let Found::Broken(one, missing) = found else { return None };
        // Of all pairs of siblings one may be in several that are broken.
        let reason = (Reason::ParentRejected, "the other answer of the pair failed");
        Some(reject(&shared, &node, one, missing, reason))
    });
    (whole, broken)
}

/// What there is of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
enum Found {
    /// Both rows.
    Whole { rows: (Id, Id), contents: (Id, Id) },
    /// One row, and the number of the sibling that is missing.
    Broken(Id, u64),
}

impl Default for Found {
    fn default() -> Found {
        Found::Broken(Id::ZERO, 0)
    }
}

fn wanted(pairs: &Pairs) -> Vec<(u64, u64)> {
    if !pairs.all {
        return (0..pairs.of / 2).map(|pair| (2 * pair, 2 * pair + 1)).collect();
    }
    (0..pairs.of).flat_map(|a| (a + 1..pairs.of).map(move |b| (a, b))).collect()
}

/// A reject of a row, one of several that `number` tells apart.
fn reject(
    shared: &Shared,
    node: &str,
    row: Id,
    number: u64,
    (reason, detail): (Reason, &str),
) -> Rec {
    let root_id = shared.rows.lineage(row).root;
    let row_id = reject_id(row, node, number);
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

/// What became of rows that were compared with each other.
pub(super) struct Gathered<'s> {
    /// The rows that stay, each with the input that it came by.
    pub(super) kept: Coll<'s, (u64, Rec)>,
    /// Rejects of those that do not, if any can be.
    pub(super) rejects: Option<Coll<'s, Rec>>,
    /// Those that do not, where they are left out on purpose.
    pub(super) dropped: Coll<'s, Rec>,
}

/// Of each input that has a number, so many rows of the lowest rank; the others are dropped.
pub(super) fn lowest<'s>(
    rows: Coll<'s, (u64, Rec)>,
    counts: Vec<Option<u64>>,
    stages: Coll<'s, Id>,
    shared: &Arc<Shared>,
) -> Gathered<'s> {
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

    let sorted = ranked.reduce_named("Lowest", move |input, rows, output| {
        let most = counts[*input as usize];
        let rows = rows.iter().enumerate();
        output.extend(rows.map(|(at, ((_, rec), count))| ((*rec, at < most), *count)));
    });
    let kept = sorted.clone().filter(|(_, row)| row.1).map(|(input, (rec, _))| (input, rec));
    let dropped = sorted.filter(|(_, row)| !row.1).map(|(_, (rec, _))| rec);
    Gathered { kept, rejects: None, dropped }
}

/// One row of each key; the others are rejects, or dropped, as the operator says.
pub(super) fn dedupe<'s>(
    rows: Coll<'s, (u64, Rec)>,
    stages: Coll<'s, Id>,
    node: &str,
    shared: &Arc<Shared>,
) -> Gathered<'s> {
    let keyed_by = Arc::clone(shared);
    let keyed = rows.map(|row| ((), row)).join_map(
        stages.map(|stages| ((), stages)),
        move |(), (input, rec), stages| {
            let stages = keyed_by.contexts.stages(*stages);
            let operator = &stages.stage(*input as usize).operator;
            let slot = keyed_by.rows.get(rec.version);
            let key = slot.and_then(|slot| operator.dedupe_key(slot.row())).unwrap_or(rec.row);
            (key, (operator.rank(rec.row), *input, *rec, operator.drops_duplicates()))
        },
    );
    let sorted = keyed.reduce_named("Dedupe", |_key, rows, output| {
        let rows = rows.iter().enumerate();
        output.extend(rows.map(|(at, ((_, input, rec, drops), _))| {
            let fate = if at == 0 {
                Fate::Kept
            } else if *drops {
                Fate::Dropped
            } else {
                Fate::Lost
            };
            ((*input, *rec, fate), 1isize)
        }));
    });
    let of = |fate: Fate| sorted.clone().filter(move |(_, row)| row.2 == fate);
    let kept = of(Fate::Kept).map(|(_, (input, rec, _))| (input, rec));
    let dropped = of(Fate::Dropped).map(|(_, (_, rec, _))| rec);
    let (shared, node) = (Arc::clone(shared), node.to_owned());
    let rejects = of(Fate::Lost).map(move |(_, (_, rec, _))| {
        let reason = (Reason::Duplicate, "another row has the same key");
        reject(&shared, &node, rec.row, 0, reason)
    });
    Gathered { kept, rejects: Some(rejects), dropped }
}

/// What becomes of a row among its duplicates.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
enum Fate {
    #[default]
    Kept,
    Dropped,
    Lost,
}
