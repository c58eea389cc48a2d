//! `amend graph`: the nodes of a pipeline and what flows between them, as Mermaid.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::Serialize;

use super::args::{Common, File};
use super::failure::Status;
use super::files;
use super::screen::Screen;
use crate::plan::{Chain, ModelEdge, Node, Plan, Step};

/// Prints the graph of a pipeline.
pub(super) fn run(args: &File, common: &Common, screen: Screen) -> anyhow::Result<Status> {
    let graph = Graph::of(&files::plan(&args.file, common)?);
    if screen.json { screen.json(&graph) } else { screen.text(&graph.mermaid()) }?;
    Ok(Status::Done)
}

/// Nodes and edges.
#[derive(Debug, Serialize)]
struct Graph {
    pipeline: String,
    nodes: Vec<GraphNode>,
    models: Vec<String>,
    edges: Vec<Edge>,
}

#[derive(Debug, Serialize)]
struct GraphNode {
    name: String,
    op: String,
    relation: String,
    table: String,
}

#[derive(Debug, Serialize)]
struct Edge {
    from: String,
    to: String,
    carries: Carries,
    /// Whether the rows are settled before the node spends, or final as they come. Only where it spends.
    spends: Option<Spends>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Carries {
    Rows,
    Model,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Spends {
    Settled,
    Final,
}

impl Graph {
    fn of(plan: &Plan) -> Graph {
        let mut edges = Vec::new();
        let mut models = BTreeSet::new();
        for node in &plan.nodes {
            for from in rows_in(node) {
                let (from, to) = (plan.nodes[from].name.clone(), node.name.clone());
                edges.push(Edge { from, to, carries: Carries::Rows, spends: spends(node) });
            }
            for model in models_in(node) {
                if let ModelEdge::Entry(name) = model {
                    models.insert(name.clone());
                }
                let (from, to) = (plan.model_name(model).to_owned(), node.name.clone());
                edges.push(Edge { from, to, carries: Carries::Model, spends: spends(node) });
            }
        }
        let nodes = plan.nodes.iter().map(|node| GraphNode {
            name: node.name.clone(),
            op: plan.op(node).verb().to_owned(),
            relation: node.relation.name().to_owned(),
            table: node.table.clone(),
        });
        Graph {
            pipeline: plan.pipeline().name.value.clone(),
            nodes: nodes.collect(),
            models: models.into_iter().collect(),
            edges,
        }
    }

    fn mermaid(&self) -> String {
        let node = |name: &str| {
            self.nodes.iter().position(|node| node.name == name).map(|at| format!("n{at}"))
        };
        let model = |name: &str| {
            self.models.iter().position(|model| model == name).map(|at| format!("m{at}"))
        };
        let mut text = "flowchart LR\n".to_owned();
        for (at, node) in self.nodes.iter().enumerate() {
            let _ = writeln!(
                text,
                "  n{at}[\"{}<br/><small>{} → {}</small>\"]",
                node.name, node.op, node.relation
            );
        }
        for (at, name) in self.models.iter().enumerate() {
            let _ = writeln!(text, "  m{at}([\"{name}\"])");
        }
        for edge in &self.edges {
            let to = node(&edge.to).expect("an edge ends at a node");
            let (from, arrow) = match edge.carries {
                Carries::Rows => (node(&edge.from), "-->"),
                Carries::Model => (node(&edge.from).or_else(|| model(&edge.from)), "-.->"),
            };
            let from = from.expect("an edge begins at a node or a model");
            let label = match edge.spends.filter(|_| edge.carries == Carries::Rows) {
                Some(Spends::Settled) => "|settled|",
                Some(Spends::Final) => "|final|",
                None => "",
            };
            let _ = writeln!(text, "  {from} {arrow}{label} {to}");
        }
        text
    }
}

/// The nodes whose rows a node reads.
fn rows_in(node: &Node) -> Vec<usize> {
    match &node.step {
        Step::Read => Vec::new(),
        Step::Part { of, .. } | Step::Filter { of } | Step::Train { of, .. } => vec![*of],
        Step::Union { of } | Step::Label { of } => of.clone(),
        Step::Mix { of } => of.iter().map(|input| input.of).collect(),
        Step::Ask(ask) => vec![ask.of],
    }
}

/// The models that a node uses.
fn models_in(node: &Node) -> Vec<&ModelEdge> {
    match &node.step {
        Step::Ask(ask) => vec![&ask.model],
        Step::Train { models, .. } => models.iter().collect(),
        _ => Vec::new(),
    }
}

fn spends(node: &Node) -> Option<Spends> {
    match &node.step {
        Step::Train { .. } => Some(Spends::Settled),
        Step::Ask(ask) => Some(match ask.chain {
            Chain::Head { .. } => Spends::Settled,
            Chain::Follow { .. } => Spends::Final,
        }),
        _ => None,
    }
}
