//! Checks of the constitution, and of what nodes select from it.

use std::collections::{BTreeMap, BTreeSet};

use super::Check;
use crate::spec::constitution::{Constitution, Principle, Purpose, Stage, TEMPLATES};
use crate::spec::mistake::{Mistakes, did_you_mean};
use crate::spec::op::{Critiquing, FewShot, Op, Reward};
use crate::spec::pipeline::Pipeline;
use crate::spec::place::{Name, Place};
use crate::spec::selector::Selector;

/// Checks principles, examples and templates.
pub(in crate::spec) fn constitution(constitution: &Constitution, mistakes: &mut Mistakes) {
    unique(constitution, mistakes);
    for principle in &constitution.principles {
        let mut check = Check { owner: format!("principle \"{}\"", principle.id), mistakes };
        check.least("weight", &principle.weight, 0.0);
        texts(principle, &mut check);
    }
    for example in &constitution.few_shot.judge_cot {
        let slots = example.matches("{}").count();
        if slots != 1 {
            let message =
                format!("an example of \"judge_cot\" has {slots} places for its principle");
            mistakes.push(example.place, message, "write one `{}` where the instruction goes");
        }
    }
    for name in constitution.templates.keys() {
        if !TEMPLATES.contains(&name.as_str()) {
            let help = did_you_mean(name, TEMPLATES)
                .unwrap_or_else(|| format!("there are {}", TEMPLATES.join(", ")));
            mistakes.push(name.place, format!("\"{name}\" is not the name of a template"), help);
        }
    }
}

/// Ids, and the former ids that draws go by, are unique.
fn unique(constitution: &Constitution, mistakes: &mut Mistakes) {
    let mut seen: BTreeMap<&str, Place> = BTreeMap::new();
    for id in constitution
        .principles
        .iter()
        .map(|principle| &principle.id)
        .filter(|id| id.place.is_somewhere())
    {
        if let Some(first) = seen.get(id.as_str()) {
            let help = format!("the first is on line {}; give one of them another id", first.line);
            mistakes.push(id.place, format!("there are two principles \"{id}\""), help);
        } else {
            seen.insert(id, id.place);
        }
    }
    for was in constitution.principles.iter().filter_map(|principle| principle.was.as_ref()) {
        if let Some(other) = seen.get(was.as_str()) {
            let help = format!(
                "the principle on line {} has that id, and they would draw the same rows",
                other.line
            );
            mistakes.push(
                was.place,
                format!("\"was\" names \"{was}\", which is a principle of today"),
                help,
            );
        } else {
            seen.insert(was, was.place);
        }
    }
}

fn texts(principle: &Principle, check: &mut Check<'_>) {
    let id = &principle.id;
    if id.is_empty() && id.place.is_somewhere() {
        check.wrong("id", id.place, "a text that is not empty");
    }
    let lacks = |purpose: Purpose| !principle.serves(purpose);
    match principle.stage {
        Some(Stage::Sl) if lacks(Purpose::Revise) => {
            check.says(
                id.place,
                "is for stage \"sl\" and has no \"revise\"",
                "add `revise: …`, the revision request",
            );
        }
        Some(Stage::Rl) if lacks(Purpose::Judge) => {
            check.says(
                id.place,
                "is for stage \"rl\" and has no \"judge\"",
                "add `judge: …`, the judge's instruction",
            );
        }
        None if lacks(Purpose::CritiqueAlone)
            && lacks(Purpose::Revise)
            && lacks(Purpose::Judge) =>
        {
            check.says(id.place, "has no text", "add `critique` and `revise`, or `judge`");
        }
        _ => {}
    }
    for (key, text) in [
        ("critique", &principle.critique),
        ("revise", &principle.revise),
        ("judge", &principle.judge),
    ] {
        if let Some(text) = text
            && text.trim().is_empty()
        {
            check.wrong(key, text.place, "more than white space");
        }
    }
}

/// Checks that what nodes select is there: ids, and at least one principle with the texts needed, and examples.
pub(in crate::spec) fn selectors(
    pipeline: &Pipeline,
    constitution: &Constitution,
    mistakes: &mut Mistakes,
) {
    for (node, op) in &pipeline.nodes {
        for (selector, purpose, draws) in uses(pipeline, node, op) {
            let mut known = Known { node, constitution, mistakes };
            known.ids(selector);
            known.enough(selector, purpose, draws);
        }
        for (shots, has) in shots(op, constitution) {
            if shots.count.value as usize > has {
                let help = format!("the constitution has {has}; `count` is at most that");
                let message = format!("node \"{node}\" wants {} worked examples", shots.count);
                mistakes.push(shots.count.place, message, help);
            }
        }
    }
}

/// Reports that a node draws principles in a pipeline that names no constitution.
pub(in crate::spec) fn no_constitution(pipeline: &Pipeline, mistakes: &mut Mistakes) {
    let mut nodes = pipeline.nodes.iter();
    if let Some((node, _)) = nodes.find(|(node, op)| !uses(pipeline, node, op).is_empty()) {
        let message =
            format!("node \"{node}\" draws principles, and the pipeline names no constitution");
        mistakes.push(node.place, message, "add `constitution: FILE`");
    }
}

/// The selectors of a node, what they select for, and how many different principles a row draws.
fn uses<'a>(pipeline: &Pipeline, node: &Name, op: &'a Op) -> Vec<(&'a Selector, Purpose, u64)> {
    match op {
        Op::Critique(op) => {
            let revised = pipeline.is_revised(node);
            let purpose = if revised { Purpose::Critique } else { Purpose::CritiqueAlone };
            vec![(&op.principles, purpose, u64::from(op.draws.value))]
        }
        // A revision of critiques draws nothing: the critique's principle holds.
        Op::Revise(op) if pipeline.draws_itself(op) => {
            vec![(&op.principles, Purpose::Revise, 1)]
        }
        Op::Repeat(op) => {
            let (purpose, draws) = match &op.critique {
                Critiquing::None => (Purpose::Revise, 1),
                Critiquing::Asked(critic) => (Purpose::Critique, u64::from(critic.draws.value)),
            };
            let rounds = if op.replacement { 1 } else { u64::from(op.times.value) };
            vec![(op.selector(), purpose, draws * rounds)]
        }
        Op::PairwiseJudge(op) => {
            vec![(&op.principles, Purpose::Judge, u64::from(op.draws.value))]
        }
        Op::PpoUpdate(op) => match &op.reward {
            Reward::Judge(judge) => vec![(&judge.principles, Purpose::Judge, 1)],
            Reward::Model(_) => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// The worked examples that a node wants, and how many there are.
fn shots<'a>(op: &'a Op, constitution: &Constitution) -> Vec<(&'a FewShot, usize)> {
    let examples = &constitution.few_shot;
    let (critique, judge) = (examples.critique_revise.len(), examples.judge.len());
    let wanted = match op {
        Op::Critique(op) => vec![(op.few_shot.as_ref(), critique)],
        Op::Revise(op) => vec![(op.few_shot.as_ref(), critique)],
        Op::Repeat(op) => {
            let critic = match &op.critique {
                Critiquing::Asked(critic) => critic.few_shot.as_ref(),
                Critiquing::None => None,
            };
            vec![(critic, critique), (op.revise.few_shot.as_ref(), critique)]
        }
        Op::PairwiseJudge(op) if op.cot.is_some() => {
            vec![(op.few_shot.as_ref(), examples.judge_cot.len())]
        }
        Op::PairwiseJudge(op) => vec![(op.few_shot.as_ref(), judge)],
        _ => Vec::new(),
    };
    wanted.into_iter().filter_map(|(shots, has)| shots.map(|shots| (shots, has))).collect()
}

struct Known<'a> {
    node: &'a Name,
    constitution: &'a Constitution,
    mistakes: &'a mut Mistakes,
}

impl Known<'_> {
    fn ids(&mut self, selector: &Selector) {
        let ids: BTreeSet<&str> =
            self.constitution.principles.iter().map(|principle| principle.id.as_str()).collect();
        for id in selector.ids.iter().filter(|id| !id.is_empty() && !ids.contains(id.as_str())) {
            let message =
                format!("node \"{}\" selects \"{id}\", which is not a principle", self.node);
            self.mistakes.add(id.place, message, did_you_mean(id, ids.iter().copied()));
        }
    }

    /// A row that could not draw as many as it is to would be lost.
    fn enough(&mut self, selector: &Selector, purpose: Purpose, draws: u64) {
        let ids_are_known = selector.ids.iter().all(|id| {
            self.constitution.principles.iter().any(|principle| principle.id.value == id.value)
        });
        let some = selector.select(self.constitution, purpose).len() as u64;
        if ids_are_known && (some == 0 || some < draws) {
            let needs = match purpose {
                Purpose::Critique => "a critique and a revision request",
                Purpose::CritiqueAlone => "a critique request",
                Purpose::Revise => "a revision request",
                Purpose::Judge => "a judge's instruction",
            };
            let node = self.node;
            let (message, help) = match some {
                0 => (
                    format!(
                        "node \"{node}\" selects no principle that has {needs} and a weight above 0"
                    ),
                    self.without(selector, purpose, needs),
                ),
                some => (
                    format!(
                        "node \"{node}\" draws {draws} principles for a row and selects {some}"
                    ),
                    "draw fewer, select more, or draw rounds with `replacement: true`".to_owned(),
                ),
            };
            self.mistakes.push(selector.place().unwrap_or(node.place), message, help);
        }
    }
    /// How a selector comes to leave nothing, and what changes that.
    fn without(&self, selector: &Selector, purpose: Purpose, needs: &str) -> String {
        let all = &self.constitution.principles;
        let serving: Vec<&Principle> = all
            .iter()
            .filter(|one| one.serves(purpose) && one.weight.value > 0.0 && !one.id.is_empty())
            .collect();
        let kept = all.iter().filter(|one| selector.matches(one)).count();
        let written = selector.to_string();
        match serving.first() {
            None => format!(
                "add {needs} to a principle with a weight above 0: the constitution has none"
            ),
            Some(_) if selector.limit.is_some_and(|limit| limit.value == 0) => {
                "its `limit` is 0: raise it, or leave it out".to_owned()
            }
            Some(first) => format!(
                "its selector `{written}` keeps {kept} of {} principles, none of which will do; \"{}\" would: select it, or leave the selector out",
                all.len(),
                first.id
            ),
        }
    }
}
