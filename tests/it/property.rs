//! Random pipelines and random edits: the engine does what the oracle does, whatever the edit, the
//! number of workers and the size of chunks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use amend::engine::session::{Desired, Settled, Table};
use amend::engine::shape::{Kind, NodeIdx, Pairs};
use amend::engine::{TrainingState, train::Held};
use amend::model::{Answer, CallError, Finish, Request, Task};
use amend::operators::ModelRef;
use amend::record::{CallKey, Id};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::lab::{Files, Lab, fake_weights};
use crate::oracle::{Truth, oracle, wanted};
use crate::sketch::{Edit, Sketch, edit, sketch};

/// A model of moods: what it says is a function of the request, and now and then it is nothing, or
/// the same as to another, or a failure for good.
fn moody(model: &ModelRef, request: &Request) -> Result<Answer, CallError> {
    let hash = request.key(model.fingerprint).id().low();
    let (mood, words) = (hash % 24, hash >> 8);
    if mood < 2 {
        let (status, message) = (Some(400), "the fake refuses this".to_owned());
        return Err(CallError::Permanent { status, message, too_long: mood == 0 });
    }
    let mut answer = Answer { attempts: 1, ..Answer::default() };
    answer.completion_tokens = (words % 9) as i32;
    match &request.task {
        Task::Generate(_) => {
            answer.text = match mood {
                2 => String::new(),
                3..=6 => "yes".to_owned(),
                7..=9 => "no".to_owned(),
                _ => format!("words {:08x}", words as u32),
            };
            answer.finish = if mood % 8 == 3 { Finish::Length } else { Finish::Stop };
        }
        Task::Score { choices, .. } if mood > 2 => {
            let score = |at: usize| -0.5 - (words >> (8 * at) & 7) as f64 / 4.0;
            answer.choice_logprobs = Some((0..choices.len()).map(score).collect());
        }
        Task::Score { .. } => {}
    }
    Ok(answer)
}

/// Edits, each with whether the next one is made before it is done.
type Steps = Vec<(Edit, bool)>;

/// How the engine is run: workers, rows to a chunk, and whether answers come later, in any order.
type Way = (usize, usize, bool);

fn way() -> impl Strategy<Value = Way> {
    (1usize..=3, prop_oneof![Just(1usize), Just(7), Just(64)], any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(48), max_shrink_iters: 600, ..ProptestConfig::default() })]

    #[test]
    fn every_edit_of_every_pipeline_does_what_the_oracle_does(
        first in sketch(),
        steps in vec((edit(), prop::bool::weighted(0.2)), 1..5),
        way in way(),
        other in way(),
    ) {
        follow(first, &steps, way, other);
    }
}

/// The number of cases, unless `PROPTEST_CASES` says another.
fn cases(usually: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(usually)
}

/// Makes the edits one after the other, and holds what comes of each against the oracle.
fn follow(first: Sketch, steps: &Steps, way: Way, other: Way) {
    let mut bench = Bench::new(way);
    let mut now = first;
    if now.files().try_plan().is_err() {
        return;
    }
    let mut files = now.files();
    bench.check(&files);
    for (edit, is_superseded) in steps {
        let next = now.edited(edit);
        files = next.files();
        if files.try_plan().is_err() {
            files = now.files();
            continue;
        }
        now = next;
        match is_superseded {
            true => bench.supersede(&files),
            false => bench.check(&files),
        }
    }
    bench.check(&files);
    bench.compare_with_a_run_from_nothing(&files, other);
}

/// A lab, and what is known of what it did.
struct Bench {
    lab: Lab,
    /// What edits wanted that were overtaken by the next.
    superseded: Vec<Truth>,
    known: BTreeSet<CallKey>,
}

impl Bench {
    fn new((workers, chunk, later): Way) -> Bench {
        let mut lab = Lab::answering(workers, moody);
        lab.chunk = chunk;
        if later {
            lab.model.later.store(true, Ordering::SeqCst);
            lab.model.max_in_flight.store(3, Ordering::SeqCst);
        }
        Bench { lab, superseded: Vec::new(), known: BTreeSet::new() }
    }

    fn truth(&self, desired: &Desired) -> Truth {
        oracle(desired, &self.lab.rows, &moody, &fake_weights)
    }

    /// Makes an edit without waiting until it is done.
    fn supersede(&mut self, files: &Files) {
        let desired = self.lab.desired(files);
        self.superseded.push(self.truth(&desired));
        self.lab.session.submit(&desired);
    }

    /// Makes an edit and holds calls, rows, rejects, drops and trainings against the oracle.
    fn check(&mut self, files: &Files) {
        let desired = self.lab.desired(files);
        let truth = self.truth(&desired);
        let planned = self.superseded.is_empty().then(|| self.foretell(files));
        let weights = self.lab.trainings.weights();
        let settled = self.lab.session.apply(&desired).unwrap();

        if let Some(planned) = planned {
            let expected = truth.calls_by_node(&self.known);
            let made: Vec<u64> = settled.calls.iter().map(|calls| calls.made).collect();
            assert_eq!(made, expected, "calls made by {:?}", names(&desired));
            let is_new = |(_, (weights_of, held)): &(&NodeIdx, &(Id, bool))| {
                !held && !weights.contains(weights_of)
            };
            let trained: BTreeMap<NodeIdx, Id> =
                truth.weights.iter().filter(is_new).map(|(at, (id, _))| (*at, *id)).collect();
            let new = self.lab.trainings.weights().len() - weights.len();
            assert_eq!(new, trained.len(), "trainings");
            foretold(&planned, &settled, &truth, &trained, &names(&desired));
        } else {
            self.check_superseded(&truth);
        }
        self.known = self.lab.memo.keys();
        compare(&desired, self.lab.session.tables(), &truth);
        conserve(&desired, &self.lab);
        for (at, state) in &settled.trainings {
            if let TrainingState::Done { recipe, weights, .. } = state {
                let held = Held { recipe: *recipe, weights: *weights };
                self.lab.held.insert(desired.shape.nodes[*at].name.clone(), held);
            }
        }
    }

    /// After edits that were overtaken: what is needed was made, and what else was made was wanted
    /// by one of them.
    fn check_superseded(&mut self, truth: &Truth) {
        let made = self.lab.memo.keys();
        for key in truth.calls.keys() {
            assert!(made.contains(key), "what is needed was made");
        }
        let superseded = std::mem::take(&mut self.superseded);
        for key in made.difference(&self.known) {
            let mut wanted = superseded.iter().chain([truth]);
            assert!(wanted.any(|truth| truth.calls.contains_key(key)), "nobody wanted {key}");
        }
    }

    /// What a plan says of an edit.
    fn foretell(&self, files: &Files) -> Settled {
        let mut foresight = self.lab.foresight();
        let desired = foresight.desired(files);
        let planned = foresight.session.apply(&desired).unwrap();
        assert_eq!(foresight.model.made(), 0, "a plan spends nothing");
        planned
    }

    /// A run from an empty store gives the same tables, whatever the workers and chunks.
    fn compare_with_a_run_from_nothing(&self, files: &Files, way: Way) {
        let mut fresh = Bench::new(way).lab;
        fresh.held.clone_from(&self.lab.held);
        let desired = fresh.desired(files);
        fresh.session.apply(&desired).unwrap();
        let tables = fresh.session.tables().iter().zip(self.lab.session.tables());
        for (at, (fresh, table)) in tables.enumerate() {
            // A held training's row says what is left of it, which a new store does not have.
            let is_held =
                desired.trainings.get(&at).is_some_and(|training| training.held().is_some());
            if !is_held {
                assert_eq!(table, fresh, "table of {}", desired.shape.nodes[at].name);
            }
        }
    }
}

fn names(desired: &Desired) -> Vec<String> {
    desired.shape.nodes.iter().map(|node| node.name.clone()).collect()
}

/// Holds a plan against what was then done.
fn foretold(
    planned: &Settled,
    done: &Settled,
    truth: &Truth,
    trained: &BTreeMap<NodeIdx, Id>,
    names: &[String],
) {
    for (at, (planned, done)) in planned.calls.iter().zip(&done.calls).enumerate() {
        let (name, most) = (&names[at], planned.made + planned.up_to);
        assert!(done.made <= most, "{name}: {} calls, of up to {most}", done.made);
        if planned.up_to == 0 {
            assert_eq!(done.made, planned.made, "{name}: calls that were said to be exact");
        }
    }
    for (at, name) in names.iter().enumerate() {
        match planned.trainings.get(&at) {
            Some(TrainingState::Would { exact: true, .. }) => {
                assert!(trained.contains_key(&at), "{name} was said to be trained");
            }
            Some(TrainingState::Would { exact: false, .. }) => {}
            Some(TrainingState::Done { weights, .. }) => {
                assert_eq!(truth.weights[&at].0, *weights, "{name} was said to be there");
            }
            None => assert!(!truth.weights.contains_key(&at), "{name} was said to be no model"),
        }
    }
}

/// Rows by version, rejects by id, and drops are the oracle's.
pub fn compare(desired: &Desired, tables: &[Table], truth: &Truth) {
    let names = names(desired);
    for (at, table) in tables.iter().enumerate() {
        if desired.trainings.contains_key(&at) {
            continue;
        }
        let versions: BTreeMap<Id, Id> =
            table.rows.iter().map(|(row, rec)| (*row, rec.version)).collect();
        assert_eq!(versions, truth.tables[at], "rows of {}", names[at]);
        let rejects: BTreeSet<Id> = table.rejects.keys().copied().collect();
        assert_eq!(rejects, truth.rejects[at], "rejects of {}", names[at]);
        assert_eq!(table.dropped, truth.dropped[at], "dropped of {}", names[at]);
    }
}

/// Nothing is lost silently: for each node, rows in × fan-out = rows out + rejects + dropped; and that
/// is what progress said of it.
fn conserve(desired: &Desired, lab: &Lab) {
    let tables = lab.session.tables();
    let far = lab.session.far().nodes();
    assert_eq!(far.len(), desired.shape.nodes.len());
    let rows = |at: &NodeIdx| tables[*at].rows.len() as u64;
    for (at, node) in desired.shape.nodes.iter().enumerate() {
        let expected = match &node.kind {
            Kind::Source | Kind::Train { .. } => continue,
            Kind::Union { of } | Kind::Local { of, .. } => of.iter().map(rows).sum(),
            Kind::Follow { of, .. } => rows(of),
            // Without a row to train on there is no model, and nobody to ask.
            Kind::Head { models, .. } if models.iter().flatten().any(|node| rows(node) == 0) => 0,
            Kind::Head { of, pairs: Some(pairs), .. } => broken_or_whole(*of, pairs, lab),
            Kind::Head { of, .. } => rows(of) * desired.stages[&at][0].operator.fan_out(),
        };
        let table = &tables[at];
        let (out, rejects) = (table.rows.len() as u64, table.rejects.len() as u64);
        let accounted = out + rejects + table.dropped;
        assert_eq!(
            accounted, expected,
            "{}: {out} rows, {rejects} rejects and {} dropped of {expected}",
            node.name, table.dropped
        );
        let shown = &far[at];
        assert_eq!((&shown.name, shown.done), (&node.name, accounted));
        // Of pairs whose answers all failed, and of rows that no model is there for, nothing comes.
        let comes = shown.total == expected || (!shown.exact && shown.total > expected);
        assert!(comes || expected == 0, "{shown:?}: {expected} come of it");
    }
}

/// The pairs of which at least one answer is there.
fn broken_or_whole(of: NodeIdx, pairs: &Pairs, lab: &Lab) -> u64 {
    let mut siblings: BTreeMap<Id, BTreeSet<u64>> = BTreeMap::new();
    for row in lab.session.tables()[of].rows.keys() {
        let lineage = lab.rows.lineage(*row);
        siblings.entry(lineage.parents[0]).or_default().insert(lineage.sibling);
    }
    let of = |siblings: &BTreeSet<u64>| {
        let there = |pair: &&(u64, u64)| siblings.contains(&pair.0) || siblings.contains(&pair.1);
        wanted(pairs).iter().filter(there).count() as u64
    };
    siblings.values().map(of).sum()
}

#[test]
fn most_sketches_and_edits_are_free_of_mistakes() {
    let mut runner = TestRunner::deterministic();
    let (mut sketches, mut edits) = (0, 0);
    for _ in 0..100 {
        let first = sketch().new_tree(&mut runner).unwrap().current();
        let edit = edit().new_tree(&mut runner).unwrap().current();
        if let Err(mistakes) = first.files().try_plan() {
            assert!(mistakes.contains("principle"), "{mistakes}");
            continue;
        }
        sketches += 1;
        edits += u32::from(first.edited(&edit).files().try_plan().is_ok());
    }
    assert!(sketches > 60 && edits > sketches * 8 / 10, "{sketches} sketches, {edits} edits");
}
