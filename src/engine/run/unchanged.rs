//! A run that has nothing to do is answered from the manifest: no graph is built, no model is
//! opened, the memo is not read.

use std::time::Instant;

use super::publish::{REJECTS, inputs};
use super::report::{NodeCalls, NodeReport, Report, RunCalls};
use super::same::is_same;
use super::{Options, RunError, basis};
use crate::plan::Plan;
use crate::store::manifest::Inputs;
use crate::store::{Snapshot, Snapshots};

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
    if options.retry_rejects || is_to_be_asked_again(&latest)? {
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
        seconds: began.elapsed().as_secs_f64(),
    }))
}

/// Whether a call failed in a way that may pass: then it is asked again.
fn is_to_be_asked_again(latest: &Snapshot) -> Result<bool, RunError> {
    if latest.manifest().nodes.get(REJECTS).is_none_or(|rejects| rejects.table.rows == 0) {
        return Ok(false);
    }
    let rejects = latest.read_batches(REJECTS)?;
    Ok(rejects.iter().any(|batch| batch.iter().any(|row| row.str("reason") == "http_transient")))
}
