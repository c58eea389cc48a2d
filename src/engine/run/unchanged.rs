//! A run that has nothing to do is answered from the manifest: no graph is built, no model is
//! opened, the memo is not read.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

use super::publish::{REJECTS, inputs};
use super::report::{NodeCalls, NodeReport, Report, RunCalls, RunSpent};
use super::same::is_same;
use super::{Options, RunError, basis};
use crate::operators::read;
use crate::plan::Plan;
use crate::spec::Op;
use crate::store::manifest::{Inputs, SourceFile};
use crate::store::{Checkpoints, Snapshot, Snapshots, Store};

/// The report of a run that has nothing to do, if this is one; the paths of its snapshot are mended
/// where a killed run left them behind.
pub(super) fn unchanged(
    plan: &Plan,
    options: &Options,
    snapshots: &Snapshots,
    began: Instant,
) -> Result<Option<Report>, RunError> {
    if options.until.is_some() {
        return Ok(None);
    }
    let Some(latest) = snapshots.latest()? else { return Ok(None) };
    let manifest = latest.manifest();
    let again = snapshots.given(&latest);
    let is_given = |before: &&Inputs| {
        inputs(plan, options, before.sources.clone()) == **before
            && before.sources.iter().all(is_same)
    };
    let Some(given) = [&manifest.inputs].into_iter().chain(&again).find(is_given) else {
        return Ok(None);
    };
    if !are_all(plan, &given.sources) {
        return Ok(None);
    }
    if options.retry_rejects || is_to_be_asked_again(&latest)? {
        return Ok(None);
    }
    let checkpoints = Store::new(&options.store).checkpoints();
    if !snapshots.damaged(&latest).is_empty() || !has_models(&latest, &checkpoints) {
        return Ok(None);
    }
    basis::check(plan, options, given.sources.clone(), Some(&latest), snapshots)?;
    snapshots.repair()?;
    let tables = plan.tables();
    let listed = manifest.nodes.iter().filter(|(name, _)| tables.contains_key(name.as_str()));
    let nodes = listed.map(|(name, node)| NodeReport {
        name: name.clone(),
        op: node.node.op.clone(),
        rows: node.table.rows,
        rejects: node.node.rejects,
        dropped: node.node.dropped,
        calls: NodeCalls::default(),
        seconds: 0.0,
        digest: Some(node.table.digest.to_string()),
    });
    Ok(Some(Report {
        snapshot: Some(manifest.number),
        digest: Some(manifest.digest.to_string()),
        nodes: nodes.collect(),
        calls: RunCalls::default(),
        spent: RunSpent::default(),
        seconds: began.elapsed().as_secs_f64(),
    }))
}

/// Whether the models of a snapshot are there and whole: what is not is trained again.
fn has_models(latest: &Snapshot, checkpoints: &Checkpoints) -> bool {
    let nodes = latest.manifest().nodes.values();
    let mut models = nodes.filter_map(|entry| entry.node.checkpoint.as_ref());
    models.all(|model| checkpoints.verify(model.weights).is_ok())
}

/// Whether every file that the nodes read now was read: a folder may have got another one.
fn are_all(plan: &Plan, sources: &[SourceFile]) -> bool {
    let known: BTreeSet<&str> = sources.iter().map(|file| file.path.as_str()).collect();
    let is_known = |path: &PathBuf| known.contains(path.display().to_string().as_str());
    let reads = plan.pipeline().nodes.values().filter_map(|op| match op {
        Op::Read(op) => Some(read::inputs(op)),
        _ => None,
    });
    reads.into_iter().all(|inputs| {
        inputs.is_ok_and(|inputs| {
            inputs.files.iter().map(|file| &file.path).chain(&inputs.cards).all(is_known)
        })
    })
}

/// Whether a call failed in a way that may pass: then it is asked again.
fn is_to_be_asked_again(latest: &Snapshot) -> Result<bool, RunError> {
    if latest.manifest().nodes.get(REJECTS).is_none_or(|rejects| rejects.table.rows == 0) {
        return Ok(false);
    }
    let rejects = latest.read_batches(REJECTS)?;
    Ok(rejects.iter().any(|batch| batch.iter().any(|row| row.str("reason") == "http_transient")))
}
