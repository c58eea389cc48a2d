//! Foretelling: the same dataflow over a memo that is only read, where a miss is an unknown.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::basis::Basis;
use super::report::{
    CallsForecast, Forecast, NodeForecast, RowsForecast, Totals, TrainingForecast,
};
use super::world::LocalWorld;
use super::{Options, RunError, by_table, desired, served, until};
use crate::engine::dispatch::{Limits, Mode};
use crate::engine::estimate::Tokens;
use crate::engine::policy::KeptBy;
use crate::engine::session::{Session, Table};
use crate::engine::shared::TrainingState;
use crate::plan::{Ask, ModelEdge, Node, Plan, Step};
use crate::record::Id;
use crate::spec::model::Price;
use crate::store::{Snapshot, Store};

/// Says what a run would do: rows, calls and trainings, before anything is spent.
pub fn foretell(plan: &Plan, options: &Options) -> Result<Forecast, RunError> {
    let plan = match &options.until {
        Some(node) => &until(plan, node)?,
        None => plan,
    };
    let store = Store::new(&options.store);
    let memo = Arc::new(store.memo_read_only()?);
    let warnings = served::changed(plan, &memo);
    let world = LocalWorld::new(plan, options, &store, memo, false)?;
    let desired = desired(plan, &world, options)?;
    let limits = Limits { retry_rejects: options.retry_rejects, ..Limits::default() };
    let dispatcher = world.dispatcher(Mode::Plan, limits);
    let rows = Arc::clone(world.rows());
    let mut session = Session::new(1, rows, dispatcher, world.trainings());
    let settled = session.apply(&desired);
    let settled = settled.map_err(|stopped| RunError::Stopped(stopped.to_string()))?;

    let before = world.latest.as_ref();
    let nodes = by_table(plan, &settled, |name, nodes, calls| {
        let rows = rows_forecast(name, nodes, session.tables(), before);
        let tokens = calls.estimate.tokens(calls.made + calls.up_to);
        let price = price(plan, &plan.nodes[nodes[0]]);
        NodeForecast {
            name: name.to_owned(),
            op: plan.op(&plan.nodes[nodes[0]]).verb().to_owned(),
            rows,
            calls: CallsForecast {
                total: calls.made + calls.memo + calls.up_to,
                memo: calls.memo,
                to_make: calls.made + calls.up_to,
                exact: calls.up_to == 0,
            },
            training: settled.trainings.get(&nodes[0]).map(|state| training(name, *state, before)),
            tokens: tokens.map(|tokens| (tokens.read + tokens.written).round() as u64),
            has_price: price.is_some(),
            cost_usd: price.zip(tokens).map(|(price, Tokens { read, written })| {
                (read * price.input + written * price.output) / 1e6
            }),
        }
    });
    let totals = totals(&nodes);
    let from = Basis::of(plan, options, world.sources(), before.map(Snapshot::manifest));
    let pipeline = plan.pipeline().name.value.clone();
    Ok(Forecast { pipeline, nodes, totals, from, warnings })
}

/// The price of what a node asks; what a pipeline trains has none.
fn price(plan: &Plan, node: &Node) -> Option<Price> {
    let Step::Ask(Ask { model: ModelEdge::Entry(name), .. }) = &node.step else { return None };
    plan.pipeline().models.get(name.as_str())?.price
}

/// Rows that differ from the snapshot before: new, gone, or saying something else.
fn rows_forecast(
    name: &str,
    nodes: &[usize],
    tables: &[Table],
    before: Option<&Snapshot>,
) -> RowsForecast {
    let mut now: BTreeMap<Id, Id> = BTreeMap::new();
    for node in nodes {
        now.extend(tables[*node].rows.values().map(|rec| (rec.row, rec.version)));
    }
    let total = now.len() as u64;
    let exact = !now.values().any(|version| version.is_unknown());
    let was = match before.filter(|before| before.manifest().nodes.contains_key(name)) {
        Some(before) => before.read_ids(name).unwrap_or_else(|error| {
            tracing::warn!("{error}; until then all rows of \"{name}\" count as changed");
            Vec::new()
        }),
        None => Vec::new(),
    };
    let mut gone = 0;
    for ids in was {
        match now.remove(&ids.row_id) {
            Some(version) if version == ids.version => {}
            Some(version) => drop(now.insert(ids.row_id, version)),
            None => gone += 1,
        }
    }
    RowsForecast { total, changed: now.len() as u64 + gone, exact }
}

fn training(name: &str, state: TrainingState, before: Option<&Snapshot>) -> TrainingForecast {
    let entry = before.and_then(|before| before.manifest().nodes.get(name));
    let checkpoint = entry.and_then(|entry| entry.node.checkpoint.as_ref());
    let (mut changed, fresh) = (None, checkpoint.is_none());
    let (state, exact) = match state {
        TrainingState::Would { exact, resumes: true, .. } => ("resume", exact),
        TrainingState::Would { exact, .. } if fresh => ("fresh", exact),
        TrainingState::Would { exact, warm: true, .. } => ("warm_start", exact),
        TrainingState::Would { exact, .. } => ("retrain", exact),
        TrainingState::Done { standing, .. } => match standing.kept {
            Some(KeptBy::Hold) => ("held", true),
            Some(KeptBy::MinChanged { changed: rows, of }) => {
                changed = Some(rows as f64 / of as f64);
                ("min_changed", true)
            }
            None => ("unchanged", true),
        },
    };
    TrainingForecast { state: state.to_owned(), exact, changed }
}

fn totals(nodes: &[NodeForecast]) -> Totals {
    let asks = || nodes.iter().filter(|node| node.calls.to_make > 0);
    let priced = || asks().filter(|node| node.has_price);
    let mut totals = Totals {
        tokens: asks().map(|node| node.tokens).sum(),
        cost_usd: priced().next().and_then(|_| priced().map(|node| node.cost_usd).sum()),
        ..Totals::default()
    };
    totals.rows.exact = nodes.iter().all(|node| node.rows.exact);
    totals.calls.exact = nodes.iter().all(|node| node.calls.exact);
    for node in nodes {
        totals.rows.total += node.rows.total;
        totals.rows.changed += node.rows.changed;
        totals.calls.total += node.calls.total;
        totals.calls.memo += node.calls.memo;
        totals.calls.to_make += node.calls.to_make;
        let trains = node.training.as_ref().is_some_and(TrainingForecast::trains);
        totals.trainings += u64::from(trains);
    }
    totals
}
