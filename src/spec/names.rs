//! References between nodes and models: every name names something.

use std::collections::BTreeSet;

use super::mistake::{Mistakes, did_you_mean};
use super::op::{Edge, Op, Reference};
use super::pipeline::Pipeline;

/// Reports references to what is not there, or is there and is something else.
pub(super) fn check(pipeline: &Pipeline, mistakes: &mut Mistakes) {
    let rows: BTreeSet<String> =
        pipeline.nodes.iter().flat_map(|(name, op)| row_names(name, op)).collect();
    let models: BTreeSet<&str> = pipeline
        .nodes
        .iter()
        .filter(|(_, op)| op.trains())
        .map(|(name, _)| name.as_str())
        .chain(pipeline.models.keys().map(|name| name.as_str()))
        .collect();
    same(pipeline, mistakes);
    for (node, op) in &pipeline.nodes {
        for reference in op.references() {
            let name = reference.name.as_str();
            let found = match reference.edge {
                Edge::Rows => rows.contains(name),
                Edge::Model => models.contains(name),
            };
            // A name that could not be read is a mistake already.
            if !found && !name.is_empty() {
                let (is, help) = explain(pipeline, &reference, &rows, &models);
                let verb = if reference.edge == Edge::Rows { "reads" } else { "names" };
                let message = format!("node \"{node}\" {verb} \"{name}\", which is {is}");
                mistakes.add(reference.name.place, message, help);
            }
        }
    }
}

/// Reports entries that are said to be the same as what they cannot be.
fn same(pipeline: &Pipeline, mistakes: &mut Mistakes) {
    for (name, model) in &pipeline.models {
        let Some(other) = model.same_as.as_ref().filter(|other| !other.is_empty()) else {
            continue;
        };
        let endpoints = pipeline
            .models
            .iter()
            .filter(|(entry, model)| model.endpoint.is_some() && entry.as_str() != name.as_str());
        let named = pipeline.models.get(other.as_str()).filter(|_| other.value != name.value);
        let fault = match named {
            None => Some(("is no other entry of `models`", None)),
            Some(_) if model.endpoint.is_none() => Some((
                "cannot be the same as a checkpoint: its weights identify one",
                Some("leave `same_as` out"),
            )),
            Some(of) if of.endpoint.is_none() => Some(("is a checkpoint", None)),
            Some(of) if (&of.name, &of.revision) != (&model.name, &model.revision) => Some((
                "has another `name` or `revision`, by which models are told apart",
                Some("give both entries one `name` and one `revision`, or leave `same_as` out"),
            )),
            Some(_) => None,
        };
        if let Some((is, help)) = fault {
            let near = || did_you_mean(other, endpoints.map(|(entry, _)| entry.as_str()));
            let message = format!("\"same_as\" of model \"{name}\" names \"{other}\", which {is}");
            mistakes.add(other.place, message, help.map(str::to_owned).or_else(near));
        }
    }
}

/// The names under which a node's rows are used.
fn row_names(name: &str, op: &Op) -> Vec<String> {
    match op {
        Op::Split(split) => split.parts.keys().map(|part| format!("{name}.{part}")).collect(),
        op if op.trains() => Vec::new(),
        _ => vec![name.to_owned()],
    }
}

/// What a name is, if not what it should be, and what may have been meant.
fn explain(
    pipeline: &Pipeline,
    reference: &Reference<'_>,
    rows: &BTreeSet<String>,
    models: &BTreeSet<&str>,
) -> (String, Option<String>) {
    let name = reference.name.as_str();
    let op = pipeline.nodes.get(name);
    let near = match reference.edge {
        Edge::Rows => did_you_mean(name, rows.iter().map(String::as_str)),
        Edge::Model => did_you_mean(name, models.iter().copied()),
    };
    match (reference.edge, op) {
        (Edge::Rows, Some(Op::Split(split))) => {
            let parts: Vec<_> = split.parts.keys().map(|part| format!("`{name}.{part}`")).collect();
            ("a split".to_owned(), Some(format!("name one of its parts: {}", parts.join(" or "))))
        }
        (Edge::Rows, Some(op)) => (format!("a model: a `{}` has no rows", op.verb()), None),
        (Edge::Rows, None) if pipeline.models.contains_key(name) => {
            (format!("a model: `{}` takes rows", reference.key), near)
        }
        (Edge::Rows, None) => ("not a node".to_owned(), near),
        (Edge::Model, Some(op)) => {
            let help = format!(
                "a `{}` makes rows; name an entry of `models` or a node that trains one",
                op.verb()
            );
            ("not a model".to_owned(), Some(help))
        }
        (Edge::Model, None) => {
            ("not a model".to_owned(), near.or_else(|| Some("add it to `models`".to_owned())))
        }
    }
}
