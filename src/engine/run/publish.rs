//! Publishing: the tables of a settled session become a snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::report::{NodeCalls, NodeReport, Report, RunCalls, RunSpent};
use super::world::LocalWorld;
use super::{Options, RunError, by_table, trains};
use crate::engine::policy::{KeptBy, Standing};
use crate::engine::rows::{Rec, Rows};
use crate::engine::session::{Session, Settled};
use crate::engine::shared::TrainingState;
use crate::operators::train::external;
use crate::plan::Plan;
use crate::record::{Id, KeyHasher, Relation};
use crate::store::manifest::{CheckpointRef, Inputs, Mark, NodeAbout, TextFile};
use crate::store::{RowIds, Snapshots, Table, TableRow};

/// The tables that are the pipeline's rather than a node's.
pub(super) const REJECTS: &str = "rejects";
const METRICS: &str = "metrics";

/// Writes what the session holds as the next snapshot, if it says anything new.
pub(super) fn publish(
    plan: &Plan,
    options: &Options,
    world: &LocalWorld<'_>,
    session: &Session,
    settled: &Settled,
    snapshots: &Snapshots,
    began: Instant,
) -> Result<Report, RunError> {
    trained_all(plan, settled)?;
    let rows = session.rows();
    let tables = session.tables();
    let mut draft = snapshots.begin()?;
    for (name, nodes) in plan.tables() {
        let recs = nodes.iter().flat_map(|node| tables[*node].rows.values());
        let relation = plan.nodes[nodes[0]].relation;
        draft.add(name, about(plan, &nodes, session, settled), &table(rows, relation, recs))?;
        let rollouts = nodes.iter().flat_map(|node| tables[*node].rollouts.values());
        if matches!(plan.op(&plan.nodes[nodes[0]]), crate::spec::Op::PpoUpdate(_))
            && trains(&plan.nodes[nodes[0]].step)
        {
            let rollouts = table(rows, Relation::Rollouts, rollouts);
            draft.add(&format!("{name}.rollouts"), plain("rollouts"), &rollouts)?;
            let kept = nodes.iter().flat_map(|node| tables[*node].snapshots.values());
            let kept = table(rows, Relation::Checkpoints, kept);
            draft.add(&format!("{name}.snapshots"), plain("snapshots"), &kept)?;
        }
    }
    let metrics = tables.iter().flat_map(|table| table.metrics.values());
    draft.add(METRICS, plain(METRICS), &table(rows, Relation::Metrics, metrics))?;
    let rejects = tables.iter().flat_map(|table| table.rejects.values());
    draft.add(REJECTS, plain(REJECTS), &table(rows, Relation::Rejects, rejects))?;

    if options.until.is_some() {
        // A part of a plan is no state of the pipeline: what was made stays in the memo.
        return Ok(report(plan, settled, session, None, &BTreeMap::new(), began));
    }
    let inputs = inputs(plan, options, world.sources());
    draft.count_calls(settled.calls.iter().map(|calls| calls.made).sum());
    let committed = draft.commit(options.now_ms * 1000, inputs)?;
    let manifest = committed.snapshot.manifest();
    let digests: BTreeMap<String, Id> =
        manifest.nodes.iter().map(|(name, node)| (name.clone(), node.table.digest)).collect();
    Ok(report(plan, settled, session, Some((manifest.number, manifest.digest)), &digests, began))
}

fn trained_all(plan: &Plan, settled: &Settled) -> Result<(), RunError> {
    for (at, node) in plan.nodes.iter().enumerate() {
        if trains(&node.step) && !settled.trainings.contains_key(&at) {
            let message = format!(
                "node \"{}\" has no row to train on, so there is no model; see the table `rejects`",
                node.name
            );
            return Err(RunError::Stopped(message));
        }
    }
    Ok(())
}

fn table<'a>(rows: &Rows, relation: Relation, recs: impl Iterator<Item = &'a Rec>) -> Table {
    let row = |rec: &Rec| {
        let slot = rows.get(rec.version).expect("a published row is kept");
        let ids = RowIds { row_id: rec.row, content: rec.content, version: rec.version };
        TableRow { ids, batch: std::sync::Arc::clone(slot.batch()), index: slot.index() }
    };
    Table::new(relation, recs.map(row).collect())
}

fn plain(op: &str) -> NodeAbout {
    NodeAbout {
        op: op.to_owned(),
        fingerprint: Id::ZERO,
        inputs: Vec::new(),
        rejects: 0,
        dropped: 0,
        checkpoint: None,
        marks: BTreeSet::new(),
    }
}

fn about(plan: &Plan, nodes: &[usize], session: &Session, settled: &Settled) -> NodeAbout {
    let node = &plan.nodes[nodes[0]];
    let tables = session.tables();
    let mut inputs: Vec<String> = Vec::new();
    for input in nodes.iter().flat_map(|at| plan.inputs(&plan.nodes[*at])) {
        let table = &plan.nodes[input].table;
        if !inputs.contains(table) {
            inputs.push(table.clone());
        }
    }
    let mut about = NodeAbout {
        op: plan.op(node).verb().to_owned(),
        fingerprint: KeyHasher::new("amend/node/1").text(&node.name).id(),
        inputs,
        rejects: nodes.iter().map(|at| tables[*at].rejects.len() as u64).sum(),
        dropped: nodes.iter().map(|at| tables[*at].dropped).sum(),
        checkpoint: None,
        marks: marks(plan, nodes[0], settled),
    };
    if let Some(TrainingState::Done { recipe, weights, standing }) =
        settled.trainings.get(&nodes[0])
    {
        about.fingerprint = *recipe;
        about.checkpoint = Some(CheckpointRef {
            weights: *weights,
            recipe: recipe.to_string(),
            stale: standing.is_stale(),
        });
    }
    about
}

fn marks(plan: &Plan, at: usize, settled: &Settled) -> BTreeSet<Mark> {
    let standing = |node: usize| match settled.trainings.get(&node) {
        Some(TrainingState::Done { standing, .. }) => *standing,
        _ => Standing::default(),
    };
    let mut marks = BTreeSet::new();
    if trains(&plan.nodes[at].step) && external(plan.op(&plan.nodes[at])).is_some() {
        marks.insert(Mark::NonDeterministic);
    }
    let own = standing(at);
    marks.extend(own.kept.map(|kept| match kept {
        KeptBy::Hold => Mark::Held,
        KeptBy::MinChanged { .. } => Mark::MinChanged,
    }));
    if own.warm {
        marks.insert(Mark::WarmStart);
    }
    let above = (0..plan.nodes.len()).filter(|above| *above != at);
    for above in above.filter(|above| standing(*above) != Standing::default()) {
        if plan.reaches(above, at) {
            let Standing { kept, warm } = standing(above);
            marks.extend(kept.map(|_| Mark::Stale));
            marks.extend(warm.then_some(Mark::OfHistory));
        }
    }
    marks
}

/// What the run was given, as the manifest remembers it.
pub(super) fn inputs(
    plan: &Plan,
    options: &Options,
    sources: Vec<crate::store::manifest::SourceFile>,
) -> Inputs {
    let loaded = &plan.loaded;
    let file = |file: &crate::spec::SourceFile| TextFile {
        path: file.path.display().to_string(),
        text: file.text.clone(),
    };
    let files = std::iter::once(loaded.pipeline_file()).chain(loaded.constitution_file());
    let mut variables = loaded.variables.clone();
    // Another program may make other rows of the same files.
    variables.insert("amend version".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    let mut set = loaded.sets.clone();
    set.extend(options.hold.iter().map(|node| format!("--hold {node}")));
    Inputs { files: files.map(file).collect(), variables, set, sources }
}

/// How long the nodes of a table were at work, from the first that began to the last that ended.
fn seconds(settled: &Settled, nodes: &[usize]) -> f64 {
    let spans = nodes.iter().filter_map(|at| settled.spans[*at]);
    let all = spans.reduce(|(begin, end), (first, last)| (begin.min(first), end.max(last)));
    all.map_or(0.0, |(begin, end)| (end - begin).as_secs_f64())
}

fn report(
    plan: &Plan,
    settled: &Settled,
    session: &Session,
    published: Option<(u64, Id)>,
    digests: &BTreeMap<String, Id>,
    began: Instant,
) -> Report {
    let tables = session.tables();
    let nodes = by_table(plan, settled, |name, nodes, calls| NodeReport {
        name: name.to_owned(),
        op: plan.op(&plan.nodes[nodes[0]]).verb().to_owned(),
        rows: nodes.iter().map(|at| tables[*at].rows.len() as u64).sum(),
        rejects: nodes.iter().map(|at| tables[*at].rejects.len() as u64).sum(),
        dropped: nodes.iter().map(|at| tables[*at].dropped).sum(),
        calls: NodeCalls { made: calls.made, memo: calls.memo, attempts: calls.attempts },
        seconds: seconds(settled, nodes),
        digest: digests.get(name).map(Id::to_string),
    });
    let made = nodes.iter().map(|node| node.calls.made).sum();
    let memo = nodes.iter().map(|node| node.calls.memo).sum();
    let seconds = began.elapsed().as_secs_f64();
    let (snapshot, digest) = published.map(|(number, digest)| (number, digest.to_string())).unzip();
    let calls = RunCalls { made, memo };
    Report { snapshot, digest, nodes, calls, spent: RunSpent::default(), seconds }
}
