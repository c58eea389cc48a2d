//! Dependency order of the nodes as written, and the cycles that forbid one.

use std::collections::BTreeMap;

use crate::spec::{Mistakes, Pipeline};

/// The written nodes, each after those it names. A cycle is a mistake at each of its nodes' names.
pub(super) fn order(pipeline: &Pipeline, mistakes: &mut Mistakes) -> Vec<String> {
    let mut visit =
        Visit { pipeline, mistakes, state: BTreeMap::new(), path: Vec::new(), done: Vec::new() };
    for name in pipeline.nodes.keys() {
        visit.node(&name.value);
    }
    visit.done
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Open,
    Done,
}

struct Visit<'a> {
    pipeline: &'a Pipeline,
    mistakes: &'a mut Mistakes,
    state: BTreeMap<String, State>,
    path: Vec<String>,
    done: Vec<String>,
}

impl Visit<'_> {
    fn node(&mut self, name: &str) {
        match self.state.get(name) {
            Some(State::Done) => return,
            Some(State::Open) => return self.cycle(name),
            None => {}
        }
        let Some((written, op)) = self.pipeline.nodes.get_key_value(name) else { return };
        let name = written.value.clone();
        self.state.insert(name.clone(), State::Open);
        self.path.push(name.clone());
        for reference in op.references() {
            let whole = reference.name.value.as_str();
            // A part of a split is `node.part`.
            let node = match self.pipeline.nodes.contains_key(whole) {
                true => whole,
                false => whole.split('.').next().unwrap_or(whole),
            };
            self.node(node);
        }
        self.path.pop();
        self.state.insert(name.clone(), State::Done);
        self.done.push(name);
    }

    fn cycle(&mut self, name: &str) {
        let from = self.path.iter().position(|node| node == name).unwrap_or_default();
        let mut round: Vec<&str> = self.path[from..].iter().map(String::as_str).collect();
        round.push(name);
        let place = self.pipeline.nodes.get_key_value(name).map(|(name, _)| name.place);
        self.mistakes.push(
            place.unwrap_or_default(),
            format!("node \"{name}\" depends on itself: {}", round.join(" → ")),
            "cut the cycle; further rounds of training are further nodes",
        );
    }
}
