//! Warnings that the graph gives: what can run, and is hardly meant.
//!
//! Rows are followed up to the files they come from. Which rows a condition keeps is not known here, so
//! where that decides, nothing is said.

mod entries;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{Ask, ModelEdge, Node, NodeIdx, Plan, Step};
use crate::spec::op::{Evaluate, Filter, Op, PpoUpdate, Read};
use crate::spec::{Mistakes, Name};

/// What can be said against a plan although it can run.
pub fn warnings(plan: &Plan) -> Mistakes {
    let mut warnings = Mistakes::warnings(plan.loaded.files.clone());
    let graph = Graph { plan, flows: flows(plan), makers: makers(plan) };
    for node in &plan.nodes {
        match (plan.op(node), &node.step) {
            (Op::PpoUpdate(train), Step::Train { of, .. }) => {
                graph.only_critiqued(node, train, *of, &mut warnings);
            }
            (Op::Evaluate(op), step) if !op.allow_overlap => {
                graph.trained_on_what_is_measured(node, op, step, &mut warnings);
            }
            _ => {}
        }
    }
    entries::warn(plan.pipeline(), &mut warnings);
    warnings
}

/// Where rows come from, and what they passed on the way that leaves rows out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flow<'a> {
    file: File<'a>,
    /// The node by which they are known: the `read`, or the part or filter that they passed last.
    name: &'a str,
    /// By split, the part.
    parts: BTreeMap<&'a str, &'a str>,
    /// The conditions in SQL.
    conditions: BTreeSet<&'a str>,
}

impl Flow<'_> {
    /// Whether some rows are surely rows of both, if there are any.
    fn meets(&self, other: &Flow<'_>) -> bool {
        let apart = |(split, part): (&&str, &&str)| {
            other.parts.get(split).is_some_and(|other| other != part)
        };
        let nested = self.conditions.is_subset(&other.conditions)
            || other.conditions.is_subset(&self.conditions);
        self.file == other.file && nested && !self.parts.iter().any(apart)
    }

    /// Whether it is drawn from what the other is drawn from: parts of a split are alike.
    fn is_like(&self, other: &Flow<'_>) -> bool {
        self.file == other.file && other.conditions.is_subset(&self.conditions)
    }
}

/// A file, folder or pattern that is named, and what of a data set in it.
type File<'a> = (&'a Path, Option<&'a str>, Option<&'a str>);

/// The files that a node names.
fn files(read: &Read) -> impl Iterator<Item = File<'_>> {
    let config = read.config.as_ref().map(|name| name.as_str());
    let splits: Vec<Option<&str>> = match &read.split {
        Some(splits) => splits.iter().map(|name| Some(name.as_str())).collect(),
        None => vec![None],
    };
    let of = move |path| splits.clone().into_iter().map(move |split| (path, config, split));
    read.path.iter().flat_map(move |path| of(path.path.as_path()))
}

/// Of each node, where its rows come from; of what trains, nothing.
fn flows(plan: &Plan) -> Vec<BTreeSet<Flow<'_>>> {
    let mut flows: Vec<BTreeSet<Flow<'_>>> = Vec::new();
    for node in &plan.nodes {
        let all = |of: &[NodeIdx]| of.iter().flat_map(|of| flows[*of].clone()).collect();
        let made: BTreeSet<Flow<'_>> = match (&node.step, plan.op(node)) {
            (Step::Read, Op::Read(read)) => files(read)
                .map(|file| Flow {
                    file,
                    name: &node.name,
                    parts: BTreeMap::new(),
                    conditions: BTreeSet::new(),
                })
                .collect(),
            (Step::Part { of, part }, _) => {
                let of = flows[*of].iter().cloned();
                of.map(|mut flow| {
                    flow.parts.insert(&node.written, part);
                    Flow { name: &node.name, ..flow }
                })
                .collect()
            }
            (Step::Filter { of }, Op::Filter(Filter { condition: Some(sql), .. })) => {
                let of = flows[*of].iter().cloned();
                of.map(|mut flow| {
                    flow.conditions.insert(sql);
                    Flow { name: &node.name, ..flow }
                })
                .collect()
            }
            (Step::Train { .. }, _) => BTreeSet::new(),
            _ => all(&node.rows_of()),
        };
        flows.push(made);
    }
    flows
}

/// Of each node, the trained models that made its rows and those above them.
fn makers(plan: &Plan) -> Vec<BTreeSet<NodeIdx>> {
    let mut makers: Vec<BTreeSet<NodeIdx>> = Vec::new();
    for node in &plan.nodes {
        let mut of: BTreeSet<NodeIdx> =
            node.rows_of().iter().flat_map(|of| makers[*of].clone()).collect();
        match &node.step {
            Step::Ask(ask) => of.extend(trained_by(ask)),
            Step::Train { .. } => of.clear(),
            _ => {}
        }
        makers.push(of);
    }
    makers
}

struct Graph<'a> {
    plan: &'a Plan,
    flows: Vec<BTreeSet<Flow<'a>>>,
    makers: Vec<BTreeSet<NodeIdx>>,
}

impl Graph<'_> {
    /// Red-team prompts are those whose answers are critiqued: a policy that sees no others learns
    /// to refuse everything.
    fn only_critiqued(&self, node: &Node, train: &PpoUpdate, of: NodeIdx, warnings: &mut Mistakes) {
        let critiqued: Vec<&Flow<'_>> = self
            .plan
            .nodes
            .iter()
            .filter(|node| {
                let op = self.plan.op(node);
                matches!(op, Op::Critique(_) | Op::Revise(_) | Op::Repeat(_))
            })
            .filter_map(|node| match &node.step {
                Step::Ask(ask) => Some(ask.of),
                _ => None,
            })
            .flat_map(|of| &self.flows[of])
            .collect();
        let prompts = &self.flows[of];
        let is_red = |flow: &Flow<'_>| critiqued.iter().any(|red| flow.is_like(red));
        if prompts.is_empty() || !prompts.iter().all(is_red) {
            return;
        }
        let names: BTreeSet<&str> = prompts.iter().map(|flow| flow.name).collect();
        let names: Vec<String> = names.into_iter().map(|name| format!("\"{name}\"")).collect();
        let place = train.prompts.first().map_or_else(Default::default, |first| first.rows.place);
        warnings.push(
            place,
            format!(
                "node \"{}\" has no prompts but those of {}, whose answers are critiqued",
                node.name,
                names.join(" and ")
            ),
            "red-team prompts alone teach a model to refuse everything: add a source of helpful ones",
        );
    }

    fn trained_on_what_is_measured(
        &self,
        node: &Node,
        op: &Evaluate,
        step: &Step,
        warnings: &mut Mistakes,
    ) {
        let measured: Vec<(&Name, NodeIdx, BTreeSet<NodeIdx>)> = match step {
            Step::Label { of } => {
                let inputs = op.from.iter().zip(of);
                inputs.map(|(from, of)| (from, *of, self.makers[*of].clone())).collect()
            }
            Step::Ask(ask) => vec![(&op.from[0], ask.of, trained_by(ask).into_iter().collect())],
            _ => Vec::new(),
        };
        for (from, of, models) in measured {
            for model in models {
                self.overlap(node, from, of, model, warnings);
            }
        }
    }

    fn overlap(
        &self,
        node: &Node,
        from: &Name,
        of: NodeIdx,
        model: NodeIdx,
        warnings: &mut Mistakes,
    ) {
        for training in self.trainings(model) {
            let Step::Train { of: data, .. } = &self.plan.nodes[training].step else { continue };
            let meets = |flow: &&Flow<'_>| self.flows[*data].iter().any(|row| flow.meets(row));
            let Some(flow) = self.flows[of].iter().find(meets) else { continue };
            let (model, trained) = (&self.plan.nodes[model].name, &self.plan.nodes[training].name);
            let through = match model == trained {
                true => String::new(),
                false => format!(", which \"{model}\" comes from,"),
            };
            warnings.push(
                from.place,
                format!(
                    "node \"{}\" measures \"{model}\" by rows of \"{}\", on which \"{trained}\"{through} is trained",
                    node.name, flow.name
                ),
                "hold prompts out by a `split`, or write `allow_overlap: true` where it is meant",
            );
            return;
        }
    }

    /// The trainings that decide a model: its own, and those of the models that it began with, is
    /// rewarded by and keeps near to.
    fn trainings(&self, model: NodeIdx) -> Vec<NodeIdx> {
        let (mut found, mut next) = (Vec::new(), vec![model]);
        while let Some(at) = next.pop() {
            let node = &self.plan.nodes[at];
            let Step::Train { models, .. } = &node.step else { continue };
            if found.contains(&at) {
                continue;
            }
            found.push(at);
            let shown = match self.plan.op(node) {
                // What a test reward says is logged, and decides nothing.
                Op::PpoUpdate(train) => models.len() - usize::from(train.test_reward.is_some()),
                _ => models.len(),
            };
            next.extend(models[..shown].iter().rev().filter_map(|edge| match edge {
                ModelEdge::Node(node) => Some(*node),
                ModelEdge::Entry(_) => None,
            }));
        }
        found
    }
}

fn trained_by(ask: &Ask) -> Option<NodeIdx> {
    match ask.model {
        ModelEdge::Node(node) => Some(node),
        ModelEdge::Entry(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn no_pipeline_of_ours_is_warned_of() {
        let pipelines = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
        let mut seen = 0;
        for file in std::fs::read_dir(pipelines).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|ending| ending != "yaml") {
                continue;
            }
            let environment = |name: &str| match name {
                "OPENAI_BASE_URL" => Some("http://localhost/v1".to_owned()),
                "AMEND_HH" => Some("hh.jsonl.gz".to_owned()),
                _ => None,
            };
            let plan = crate::plan::load(&path, &[], &environment).unwrap();
            assert_eq!(super::warnings(&plan).to_string(), "", "{}", path.display());
            seen += 1;
        }
        assert!(seen >= 4, "{seen}");
    }
}
