//! `amend plan`: what a run would do and cost, the blast radius first.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;

use super::args::{Common, PlanArgs};
use super::failure::{self, Status};
use super::files;
use super::options::{self, Setup};
use super::screen::Screen;
use super::table::{TextTable, about, count, counted, up_to, usd};
use crate::engine::run::{Forecast, NodeForecast, TrainingForecast, foretell, moved, renamed};
use crate::plan::{self, NodeIdx, Plan};
use crate::spec::Mistake;

/// Foretells a run.
pub(super) fn run(args: &PlanArgs, common: &Common, screen: Screen) -> anyhow::Result<Status> {
    let plan = files::checked(&args.file.file, common, args.limits.until.as_deref())?;
    let setup =
        Setup { file: &args.file.file, limits: &args.limits, max_calls: None, max_cost: None };
    let options = setup.options(&plan, common, screen)?;
    options::heed_ctrl_c(&options.interrupt, screen)?;
    let mut warnings = plan::warnings(&plan);
    renamed(&plan, &options, &mut warnings);
    moved(&plan, &options, &mut warnings);
    let forecast = foretell(&plan, &options);
    super::progress::end();
    let of_models = forecast.iter().flat_map(|forecast| forecast.warnings.clone());
    of_models.for_each(|Mistake { message, help, place }| warnings.add(place, message, help));
    failure::warn(&warnings, screen);
    let forecast = forecast.map_err(|error| options::error(&plan, error))?;
    if screen.json {
        screen.json(&Document { forecast, warnings: failure::mistakes_json(&warnings) })?;
    } else {
        screen.text(&text(&plan, &forecast, screen))?;
    }
    Ok(Status::Done)
}

/// A forecast as JSON.
#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    forecast: Forecast,
    warnings: Vec<Value>,
}

fn text(plan: &Plan, forecast: &Forecast, screen: Screen) -> String {
    let mut text = format!("{}\n\n", screen.bold(&blast_radius(plan, forecast)));
    let heads = [
        "node", "op", ">rows", ">change", ">calls", ">in memo", ">to make", ">tokens", ">cost",
        "training",
    ];
    let mut table = TextTable::new(&heads);
    for node in &forecast.nodes {
        let training = node.training.as_ref().map(|training| {
            let unsure = if training.exact { "" } else { ", if its data changes" };
            let changed = training.changed.map_or_else(String::new, |share| {
                format!(": {:.1}% of its rows changed", 100.0 * share)
            });
            format!("{}{changed}{unsure}", training.state)
        });
        table.row(vec![
            node.name.clone(),
            node.op.clone(),
            up_to(node.rows.total, node.rows.exact),
            up_to(node.rows.changed, node.rows.exact),
            up_to(node.calls.total, node.calls.exact),
            up_to(node.calls.memo, true),
            up_to(node.calls.to_make, node.calls.exact),
            about(node.tokens),
            usd(node.cost_usd.filter(|_| node.calls.to_make > 0)),
            training.unwrap_or_default(),
        ]);
    }
    text.push_str(&table.render(|head| screen.dim(head)));
    let totals = &forecast.totals;
    let _ = writeln!(
        text,
        "\nin all {} to make, {} in the memo{}{}",
        calls(totals.calls.to_make, totals.calls.exact),
        count(totals.calls.memo),
        match totals.tokens {
            None => ", of tokens not yet known".to_owned(),
            Some(0) => String::new(),
            Some(tokens) => format!(", about {} tokens", count(tokens)),
        },
        match totals.cost_usd {
            cost @ Some(_) if totals.calls.to_make > 0 => format!(", about {}", usd(cost)),
            _ => String::new(),
        },
    );
    text
}

/// What an edit reaches, in one line: the rows that change first, the trainings that follow, the
/// calls below those.
fn blast_radius(plan: &Plan, forecast: &Forecast) -> String {
    let first = forecast.nodes.iter().all(|node| node.rows.changed == node.rows.total);
    let trains =
        |node: &&NodeForecast| node.training.as_ref().is_some_and(TrainingForecast::trains);
    let trained: Vec<&NodeForecast> = forecast.nodes.iter().filter(trains).collect();
    let all_calls = calls(forecast.totals.calls.to_make, forecast.totals.calls.exact);
    let quiet = forecast.nodes.iter().all(|node| node.rows.changed == 0 && node.calls.to_make == 0);
    if quiet && trained.is_empty() {
        return "nothing changes: a run makes no call".to_owned();
    }
    if first {
        let trainings = counted(trained.len() as u64, "training");
        return format!("everything is new: {all_calls}, {trainings}");
    }
    let roots = roots(plan, forecast);
    let mut parts: Vec<String> = roots.iter().map(|node| changed(plan, node)).collect();
    if parts.len() > 3 {
        let more = parts.len() - 2;
        parts.truncate(2);
        parts.push(format!("{more} more nodes change"));
    }
    let mut text = parts.join(", ");
    let Some(training) = trained.first() else {
        return if text.is_empty() { all_calls } else { format!("{text} → {all_calls}") };
    };
    let below = below(plan, forecast, &training.name);
    let exact = below.iter().all(|node| node.calls.exact);
    let below = below.iter().map(|node| node.calls.to_make).sum();
    let sure = training.training.as_ref().is_some_and(|training| training.exact);
    let warm = training.training.as_ref().is_some_and(|training| training.state == "warm_start");
    let verb = match (warm, sure) {
        (false, true) => "retrains",
        (false, false) => "may retrain",
        (true, true) => "goes on from its last checkpoint",
        (true, false) => "may go on from its last checkpoint",
    };
    let name = &training.name;
    if !text.is_empty() {
        text.push_str(" → ");
    }
    let _ = write!(text, "{name} {verb}");
    if below > 0 {
        let _ = write!(text, " → {} below; `--hold {name}` stops here", calls(below, exact));
    }
    text
}

fn calls(number: u64, exact: bool) -> String {
    format!("{}{}", if exact { "" } else { "up to " }, counted(number, "call"))
}

/// `6,575 of 100,000 critiques change`.
fn changed(plan: &Plan, node: &NodeForecast) -> String {
    let named = nodes_of(plan, &node.name).first().map(|at| plan.nodes[*at].relation.name());
    let up_to = if node.rows.exact { "" } else { "up to " };
    let (changed, total) = (count(node.rows.changed), count(node.rows.total));
    format!("{up_to}{changed} of {total} {} of {} change", named.unwrap_or("rows"), node.name)
}

/// The nodes that change although nothing above them does.
fn roots<'a>(plan: &Plan, forecast: &'a Forecast) -> Vec<&'a NodeForecast> {
    let changes = |node: &&NodeForecast| node.rows.changed > 0 && node.training.is_none();
    let changing: Vec<&NodeForecast> = forecast.nodes.iter().filter(changes).collect();
    let below_another = |node: &NodeForecast| {
        let above = |other: &&&NodeForecast| {
            other.name != node.name && is_below(plan, &other.name, &node.name)
        };
        changing.iter().any(|other| above(&other) && !is_below(plan, &node.name, &other.name))
    };
    changing.iter().copied().filter(|node| !below_another(node)).collect()
}

/// The nodes below a node.
fn below<'a>(plan: &Plan, forecast: &'a Forecast, name: &str) -> Vec<&'a NodeForecast> {
    forecast
        .nodes
        .iter()
        .filter(|node| node.name != name && is_below(plan, name, &node.name))
        .collect()
}

fn is_below(plan: &Plan, above: &str, below: &str) -> bool {
    let mut reached = vec![false; plan.nodes.len()];
    for at in nodes_of(plan, above) {
        reached[at] = true;
    }
    // Nodes come after what they read, so that one walk finds all.
    for at in 0..plan.nodes.len() {
        reached[at] |= plan.inputs(&plan.nodes[at]).into_iter().any(|input| reached[input]);
    }
    nodes_of(plan, below).into_iter().any(|at| reached[at])
}

/// The nodes of a plan that a name stands for: one, or all whose rows are in the table of that name.
fn nodes_of(plan: &Plan, name: &str) -> Vec<NodeIdx> {
    match plan.find(name) {
        Some(at) => vec![at],
        None => (0..plan.nodes.len()).filter(|at| plan.nodes[*at].table == name).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::run::{Basis, CallsForecast, RowsForecast, Totals};

    /// The plan of the shared fixture of the paper.
    fn paper() -> Plan {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/paper.yaml");
        plan::load(&path, &[], &|_| None).unwrap()
    }

    fn node(name: &str, changed: u64, total: u64, to_make: u64) -> NodeForecast {
        NodeForecast {
            name: name.to_owned(),
            op: "sample".to_owned(),
            rows: RowsForecast { total, changed, exact: true },
            calls: CallsForecast { total, memo: total - to_make, to_make, exact: true },
            training: None,
            tokens: Some(0),
            has_price: false,
            cost_usd: None,
        }
    }

    fn training(name: &str, state: &str, exact: bool) -> NodeForecast {
        let training = Some(TrainingForecast { state: state.to_owned(), exact, changed: None });
        let changed = u64::from(state != "unchanged");
        NodeForecast { training, ..node(name, changed, 1, 0) }
    }

    fn told(nodes: Vec<NodeForecast>) -> String {
        let to_make = nodes.iter().map(|node| node.calls.to_make).sum();
        let calls = CallsForecast {
            total: 0,
            memo: 0,
            to_make,
            exact: nodes.iter().all(|n| n.calls.exact),
        };
        let totals = Totals { calls, ..Totals::default() };
        let (pipeline, from, warnings) = ("paper".to_owned(), Basis::default(), Vec::new());
        blast_radius(&paper(), &Forecast { pipeline, nodes, totals, from, warnings })
    }

    #[test]
    fn an_edit_is_told_from_where_it_begins_to_the_calls_below_the_training() {
        let mut pairs = node("pairs", 300_000, 300_000, 300_000);
        pairs.calls.exact = false;
        let nodes = vec![
            node("drafts", 0, 100_000, 0),
            node("revisions.critiques", 6_575, 100_000, 6_575),
            node("revisions", 6_575, 100_000, 6_575),
            training("sl", "retrain", true),
            pairs,
        ];
        insta::assert_snapshot!(told(nodes), @"6,575 of 100,000 critiques of revisions.critiques change → sl retrains → up to 300,000 calls below; `--hold sl` stops here");
    }

    #[test]
    fn an_edit_below_the_trainings_stops_at_its_calls() {
        let nodes = vec![
            node("drafts", 0, 10, 0),
            training("sl", "unchanged", true),
            node("preferences", 3, 10, 6),
            training("pm", "retrain", false),
        ];
        insta::assert_snapshot!(told(nodes), @"3 of 10 comparisons of preferences change → pm may retrain");
        let mut kept = training("pm", "min_changed", true);
        kept.rows.changed = 0;
        let nodes = vec![training("sl", "unchanged", true), node("preferences", 3, 10, 6), kept];
        insta::assert_snapshot!(told(nodes), @"3 of 10 comparisons of preferences change → 6 calls");
        let nodes = vec![node("preferences", 3, 10, 6), training("pm", "warm_start", true)];
        insta::assert_snapshot!(told(nodes), @"3 of 10 comparisons of preferences change → pm goes on from its last checkpoint");
    }

    #[test]
    fn nothing_and_everything_are_said_in_a_word() {
        let nothing = vec![node("drafts", 0, 10, 0), training("sl", "unchanged", true)];
        assert_eq!(told(nothing), "nothing changes: a run makes no call");
        let everything = vec![node("drafts", 10, 10, 10), training("sl", "fresh", true)];
        assert_eq!(told(everything), "everything is new: 10 calls, 1 training");
    }
}
