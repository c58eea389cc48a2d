//! Minimal and equal: after every edit the calls made and the tables are the oracle's.

use std::collections::{BTreeMap, BTreeSet};

use amend::engine::TrainingState;
use amend::engine::draw::{Draw, Purpose, principle_key};
use amend::engine::train::Held;
use amend::model::{Answer, CallError, Request, Task};
use amend::operators::ModelRef;
use amend::record::{CallKey, Id};

use crate::lab::{Files, Lab, fake_answer, fake_weights, sixteen};
use crate::oracle::{Truth, oracle};
use crate::property::compare;

const PIPELINE: &str = r#"
name: lab
seed: 17
constitution: constitution.yaml
models:
  assistant: { endpoint: "http://127.0.0.1:9", name: fake, format: transcript }
nodes:
  red: { read: { path: red.jsonl } }
  helpful: { read: { path: helpful.jsonl } }
  drafts: { sample: { from: red, model: assistant } }
  revisions:
    repeat: { from: drafts, times: 2, critique: { model: assistant }, revise: { model: assistant } }
  demos: { sample: { from: helpful, model: assistant, n: 2 } }
  sl_data: { mix: { from: [{ rows: revisions }, { rows: demos }] } }
  sl: { train-sl: { from: sl_data, init: { scratch: { architecture: { hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2 } } } } }
  pairs: { sample: { from: red, model: sl, n: 2 } }
  preferences: { pairwise-judge: { from: pairs, model: assistant, order: both } }
  pm: { train-pm: { from: preferences, init: sl } }
"#;

fn principle(id: &str, text: &str) -> String {
    format!(
        "  - {{ id: {id}, critique: \"what of {text}?\", revise: \"without {text}\", \
         judge: \"which has less {text}?\" }}\n"
    )
}

fn constitution(principles: &[(&str, &str)]) -> String {
    let all: Vec<String> = principles.iter().map(|(id, text)| principle(id, text)).collect();
    format!("principles:\n{}", all.concat())
}

fn numbered(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n}|{prefix} question {n}")).collect()
}

/// The pipeline of these tests over so many red-team prompts and a quarter of helpful ones.
pub fn files(rows: usize) -> Files {
    Files {
        pipeline: PIPELINE.to_owned(),
        constitution: constitution(&[("a", "harm"), ("b", "lies"), ("c", "spite"), ("d", "scorn")]),
        prompts: [
            ("red".to_owned(), numbered("red", rows)),
            ("helpful".to_owned(), numbered("help", rows / 4)),
        ]
        .into(),
    }
}

/// Applies files to a lab and holds what came of it against the oracle.
fn check(lab: &mut Lab, files: &Files) -> Truth {
    let desired = lab.desired(files);
    let truth = oracle(&desired, &lab.rows, &lab.model.answering, &fake_weights);
    let known: BTreeSet<CallKey> = lab.memo.keys();
    let expected = truth.calls_by_node(&known);
    let settled = lab.session.apply(&desired).unwrap();
    let made: Vec<u64> = settled.calls.iter().map(|calls| calls.made).collect();
    let names: Vec<&str> = desired.shape.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(made, expected, "calls made by {names:?}");
    compare(&desired, lab.session.tables(), &truth);
    truth
}

#[test]
fn a_first_run_makes_every_call_once() {
    let mut lab = Lab::new(1);
    let truth = check(&mut lab, &files(40));
    assert_eq!(lab.model.made(), truth.calls.len() as u64);
    assert_eq!(lab.trainings.trained(), 2);
}

#[test]
fn an_edit_of_a_text_makes_the_calls_whose_request_changed() {
    let mut lab = Lab::new(1);
    let mut files = files(40);
    check(&mut lab, &files);
    let before = lab.model.made();
    files.constitution = files.constitution.replace("spite", "malice");
    check(&mut lab, &files);
    assert!(lab.model.made() > before);
    let after = lab.model.made();
    files.constitution = files.constitution.replace("malice", "spite");
    check(&mut lab, &files);
    assert_eq!(lab.model.made(), after, "a revert costs nothing");
    assert_eq!(lab.trainings.trained(), 4, "two trainings, and two after the edit");
}

#[test]
fn rows_of_a_round_without_a_principle_left_are_rejects_of_their_own_reason() {
    let repeat = "times: 3, replacement: false, ";
    let mut files = files(12);
    files.pipeline = files.pipeline.replace("times: 2, ", repeat);
    for (workers, left) in [(1, 2), (2, 1), (3, 0)] {
        let mut lab = Lab::new(workers);
        check(&mut lab, &files);
        // Files that leave too few are a mistake: what is desired of the engine is not files.
        let mut desired = lab.desired(&files);
        for candidates in desired.candidates.values_mut() {
            candidates.truncate(left);
        }
        let truth = oracle(&desired, &lab.rows, &lab.model.answering, &fake_weights);
        lab.session.apply(&desired).unwrap();
        compare(&desired, lab.session.tables(), &truth);
        let at = |name: &str| desired.shape.nodes.iter().position(|node| node.name == name);
        let lacking = at(&format!("revisions[{}].critique", left + 1)).unwrap();
        let rejects = &lab.session.tables()[lacking].rejects;
        assert_eq!(rejects.len(), 12, "with {left} principles");
        for rec in rejects.values() {
            let slot = lab.rows.get(rec.version).unwrap();
            assert_eq!(slot.row().str("reason"), "no_principle");
        }
    }
}

#[test]
fn adding_and_removing_a_principle_moves_only_its_rows() {
    let mut lab = Lab::new(1);
    let mut files = files(40);
    check(&mut lab, &files);
    let four = files.constitution.clone();
    files.constitution = four.clone() + &principle("e", "haste");
    check(&mut lab, &files);
    files.constitution = four;
    let before = lab.model.made();
    check(&mut lab, &files);
    assert_eq!(lab.model.made(), before, "removing what was added costs nothing");
    files.constitution = constitution(&[("a", "harm"), ("c", "spite"), ("d", "scorn")]);
    check(&mut lab, &files);
}

#[test]
fn order_and_formatting_of_the_constitution_cost_nothing() {
    let mut lab = Lab::new(1);
    let mut files = files(40);
    check(&mut lab, &files);
    let before = lab.model.made();
    files.constitution =
        constitution(&[("d", "scorn"), ("b", "lies"), ("c", "spite"), ("a", "harm")]);
    files.constitution.insert_str(0, "# a comment\n");
    check(&mut lab, &files);
    files.pipeline = files.pipeline.replace("pairs:", "twos:").replace("from: pairs", "from: twos");
    check(&mut lab, &files);
    assert_eq!(lab.model.made(), before);
}

#[test]
fn prompts_and_parameters_are_edits_too() {
    let mut lab = Lab::new(1);
    let mut files = files(40);
    check(&mut lab, &files);
    let red = files.prompts.get_mut("red").unwrap();
    red[3] = "red3|red question 3, said otherwise".to_owned();
    red.remove(7);
    red.push("red40|red question 40".to_owned());
    check(&mut lab, &files);
    for (from, to) in [
        ("from: red, model: assistant }", "from: red, model: assistant, temperature: 0.5 }"),
        ("n: 2 } }\n  sl_data", "n: 3 } }\n  sl_data"),
        ("times: 2", "times: 3"),
        ("order: both", "order: fixed"),
        ("{ rows: revisions }", "{ rows: revisions, rounds: last }"),
    ] {
        assert!(files.pipeline.contains(from), "{from}");
        files.pipeline = files.pipeline.replace(from, to);
        check(&mut lab, &files);
    }
}

#[test]
fn two_edits_in_one_epoch_and_a_removal_of_rows_that_drew_one_are_one_edit() {
    let mut lab = Lab::new(1);
    let mut files = files(60);
    check(&mut lab, &files);
    files.constitution = files.constitution.replace("spite", "malice").replace("lies", "untruth");
    files.prompts.get_mut("red").unwrap().retain(|text| !text.contains('7'));
    check(&mut lab, &files);
}

#[test]
fn a_row_that_fails_is_a_reject_and_its_children_are_skipped() {
    let mut lab = Lab::new(1);
    let mut files = files(20);
    for red in files.prompts.get_mut("red").unwrap().iter_mut().step_by(5) {
        red.push_str(" [[fail]]");
    }
    let truth = check(&mut lab, &files);
    assert!(truth.rejects.iter().any(|rejects| !rejects.is_empty()));
}

#[test]
fn workers_and_chunks_change_no_row() {
    let files = files(50);
    let tables = |workers: usize, chunk: usize| {
        let mut lab = Lab::new(workers);
        lab.chunk = chunk;
        let desired = lab.desired(&files);
        lab.session.apply(&desired).unwrap();
        lab.session.tables().to_vec()
    };
    let one = tables(1, 64);
    for (workers, chunk) in [(2, 64), (3, 64), (1, 1), (1, 7), (2, 7)] {
        assert_eq!(tables(workers, chunk), one, "{workers} workers, chunks of {chunk}");
    }
}

#[test]
fn an_edit_during_a_run_makes_the_oracles_calls_and_those_under_way() {
    let mut lab = Lab::new(1);
    let mut files = files(40);
    check(&mut lab, &files);
    let known = lab.memo.keys();
    lab.model.held.store(true, std::sync::atomic::Ordering::SeqCst);

    files.constitution = files.constitution.replace("spite", "malice");
    let first = lab.desired(&files);
    lab.session.submit(&first);
    while lab.model.kept() == 0 {
        std::thread::yield_now();
    }
    files.constitution = files.constitution.replace("malice", "venom");
    let second = lab.desired(&files);
    lab.session.submit(&second);
    lab.model.release();
    lab.session.wait().unwrap();

    let truth = oracle(&second, &lab.rows, &fake_answer, &fake_weights);
    let superseded = oracle(&first, &lab.rows, &fake_answer, &fake_weights);
    let needed: BTreeSet<CallKey> = truth.calls.keys().copied().collect();
    let made: BTreeSet<CallKey> = lab.memo.keys().difference(&known).copied().collect();
    assert!(needed.difference(&known).all(|key| made.contains(key)), "what is needed was made");
    for key in made.difference(&needed) {
        assert!(superseded.calls.contains_key(key), "what else was made was under way");
    }
    let extra = made.difference(&needed).count();
    assert!(extra <= 64, "{extra} calls of the superseded edit, at most max_in_flight");
    assert_eq!(lab.trainings.trained(), 4, "the superseded edit trained nothing");
    for (at, table) in lab.session.tables().iter().enumerate() {
        if !second.trainings.contains_key(&at) {
            let rows: BTreeSet<_> =
                table.rows.iter().map(|(row, rec)| (*row, rec.version)).collect();
            assert_eq!(rows, truth.tables[at].clone().into_iter().collect());
        }
    }
}

#[test]
fn a_plan_says_what_a_run_then_does() {
    let mut lab = Lab::new(1);
    let mut files = files(40);
    check(&mut lab, &files);
    for (from, to) in [("spite", "malice"), ("lies", "untruth")] {
        files.constitution = files.constitution.replace(from, to);
        let mut foresight = lab.foresight();
        let desired = foresight.desired(&files);
        let planned = foresight.session.apply(&desired).unwrap();
        let desired = lab.desired(&files);
        let done = lab.session.apply(&desired).unwrap();
        for (at, (planned, done)) in planned.calls.iter().zip(&done.calls).enumerate() {
            let name = &desired.shape.nodes[at].name;
            assert!(done.made <= planned.made + planned.up_to, "{name}: never exceeded");
            if planned.up_to == 0 {
                assert_eq!(done.made, planned.made, "{name}: exact");
            }
        }
        assert_eq!(foresight.model.made(), 0, "a plan spends nothing");
    }
}

/// `benches/edit.rs` does the same with 100,000 rows, and takes the time.
#[test]
fn an_edit_of_one_of_sixteen_principles_touches_its_rows_alone() {
    let mut lab = Lab::new(1);
    lab.chunk = 512;
    let mut files = sixteen(4_000);
    let before = lab.desired(&files);
    lab.session.apply(&before).unwrap();
    let at = |name: &str| before.shape.nodes.iter().position(|node| node.name == name).unwrap();
    let draw = Draw { seed: 17, purpose: Purpose::Critique, round: 1 };
    let candidates = &before.candidates[&at("critiques")];
    let winner = |draft: &Id| draw.winners(draw.bucket(*draft), candidates, 1)[0];
    let mut drawn = BTreeMap::<Id, u64>::new();
    for draft in lab.session.tables()[at("drafts")].rows.keys() {
        *drawn.entry(winner(draft)).or_default() += 1;
    }
    assert_eq!(drawn.len(), 16);
    for n in [3, 11] {
        files.constitution = files.constitution.replace(
            &format!("what breaks rule {n}?"),
            &format!("what, if anything, breaks rule {n}?"),
        );
        let after = lab.desired(&files);
        let settled = lab.session.apply(&after).unwrap();
        let touched = drawn[&principle_key(&format!("p{n}"))];
        assert!((180..320).contains(&touched), "{touched} of 4,000, expected 250");
        let made: Vec<u64> = settled.calls.iter().map(|calls| calls.made).collect();
        // Each row is retracted under the old text and inserted under the new one.
        for (node, records, calls) in [
            ("drafts", 0, 0),
            ("critiques", 2 * touched, touched),
            ("revisions", 2 * touched, touched),
        ] {
            assert_eq!(settled.records[at(node)], records, "records through {node}");
            assert_eq!(made[at(node)], calls, "calls of {node}");
        }
    }
}

#[test]
fn an_edit_of_a_text_touches_only_the_rows_that_drew_it() {
    let mut lab = Lab::new(1);
    let mut files = files(400);
    files.pipeline = files.pipeline.split("  sl:").next().unwrap().to_owned();
    let before = lab.desired(&files);
    lab.session.apply(&before).unwrap();
    files.constitution = files.constitution.replace("spite", "malice");
    let after = lab.desired(&files);
    let settled = lab.session.apply(&after).unwrap();

    let at = |name: &str| after.shape.nodes.iter().position(|node| node.name == name).unwrap();
    let head = at("revisions[1].critique");
    let edited = principle_key("c");
    let drew_it = |draft: &&Id| {
        (1..=2).any(|round| {
            let draw = Draw { seed: 17, purpose: Purpose::Critique, round };
            draw.winners(draw.bucket(**draft), &after.candidates[&head], 1)[0] == edited
        })
    };
    let drafts = &lab.session.tables()[at("drafts")].rows;
    let touched = drafts.keys().filter(drew_it).count() as u64;
    assert!((100..250).contains(&touched), "{touched} of 400, expected 175");
    for (node, records) in [
        ("drafts", 0),
        ("demos", 0),
        // Each row is retracted under the old text and inserted under the new one.
        ("revisions[1].critique", 2 * touched),
    ] {
        assert_eq!(settled.records[at(node)], records, "records through {node}");
    }
    for node in ["revisions[1].revise", "revisions[2].critique", "revisions[2].revise"] {
        assert!(settled.records[at(node)] <= 2 * touched, "records through {node}");
    }
}

/// A pipeline with other nodes.
fn files_of(rows: usize, nodes: &str) -> Files {
    let head = PIPELINE.split("  drafts:").next().unwrap();
    Files { pipeline: format!("{head}{nodes}"), ..files(rows) }
}

/// Prompts of which many say the same.
fn repetitive(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("red{n}|question {}", n % 5)).collect()
}

/// A run over chunks paid for each row that was the first of its key for a while.
#[test]
fn rows_that_are_compared_are_spent_on_once_whatever_the_chunks() {
    for (filter, dropped) in [
        ("filter: { from: red, dedupe: { by: prompt, keep: last } }", false),
        ("filter: { from: red, dedupe: { by: prompt }, on_drop: drop }", true),
        ("mix: { from: { rows: red, count: 7 } }", true),
    ] {
        let nodes = format!(
            "  some: {{ {filter} }}\n  drafts: {{ sample: {{ from: some, model: assistant }} }}\n"
        );
        let mut files = files_of(0, &nodes);
        files.prompts.insert("red".to_owned(), repetitive(30));
        let mut lab = Lab::new(1);
        lab.chunk = 1;
        let truth = check(&mut lab, &files);
        assert_eq!(truth.dropped[2] > 0, dropped, "{filter}");
        // The rows stay where they are, and are fed in chunks again.
        for red in files.prompts.get_mut("red").unwrap() {
            red.push_str("|another topic");
        }
        check(&mut lab, &files);
    }
}

/// Of four answers one by one, some fail, and a row is in several broken pairs: the run stopped,
/// because two rejects had one id.
#[test]
fn each_broken_pair_of_all_pairs_is_a_reject() {
    fn fickle(model: &ModelRef, request: &Request) -> Result<Answer, CallError> {
        let is_sample = matches!(request.task, Task::Generate(_));
        if is_sample && request.key(model.fingerprint).id().low().is_multiple_of(3) {
            let message = "the fake refuses this".to_owned();
            return Err(CallError::Permanent { status: Some(400), message, too_long: false });
        }
        fake_answer(model, request)
    }
    let nodes = "  pairs: { sample: { from: red, model: assistant, n: 4 } }\n  preferences: { pairwise-judge: { from: pairs, model: assistant, pairs: all } }\n";
    let mut lab = Lab::answering(1, fickle);
    let files = files_of(20, nodes);
    let truth = check(&mut lab, &files);
    let parent_of = |reject: &Id| {
        let reject = lab.session.tables()[3].rejects[reject];
        lab.rows.get(reject.version).unwrap().row().ids("parents")[0]
    };
    let parents: BTreeSet<Id> = truth.rejects[3].iter().map(parent_of).collect();
    assert!(parents.len() < truth.rejects[3].len(), "a row is in several broken pairs");
}

/// Of a prompt that failed at two samples the rejects had one id, and the run stopped when it published them.
#[test]
fn a_prompt_that_fails_at_two_samples_is_a_reject_of_each() {
    let nodes = "  drafts: { sample: { from: red, model: assistant } }\n  others: { sample: { from: red, model: assistant, temperature: 0.5 } }\n";
    let mut files = files_of(10, nodes);
    files.prompts.get_mut("red").unwrap()[3].push_str(" [[fail]]");
    let mut lab = Lab::new(1);
    let truth = check(&mut lab, &files);
    let rejects: Vec<&Id> = truth.rejects.iter().flatten().collect();
    let ids: BTreeSet<&Id> = rejects.iter().copied().collect();
    assert_eq!((rejects.len(), ids.len()), (2, 2));
}

/// The id of a principle is in the rows that a judge makes of examples shown under it.
#[test]
fn a_renamed_principle_is_renamed_in_the_rows_that_saw_it_in_an_example() {
    for shots in ["per_row", "per_bucket", "fixed"] {
        let nodes = format!(
            "  pairs: {{ sample: {{ from: red, model: assistant, n: 2 }} }}\n  preferences: {{ pairwise-judge: {{ \
             from: pairs, model: assistant, few_shot: {{ count: 1, principles: {shots} }} }} }}\n"
        );
        let mut files = files_of(20, &nodes);
        files.constitution += "few_shot:\n  judge:\n    - { prompt: \"\\n\\nHuman: hi\\n\\nAssistant:\", chosen: hello, rejected: no }\n";
        let mut lab = Lab::new(1);
        check(&mut lab, &files);
        let before = lab.model.made();
        files.constitution = files.constitution.replace("{ id: b,", "{ id: better, was: b,");
        check(&mut lab, &files);
        assert_eq!(lab.model.made(), before, "a new name costs nothing");
    }
}

/// Below a training that is held everything was lost when its dataset became empty.
#[test]
fn a_held_training_has_its_model_though_no_row_be_left() {
    let nodes = "  sl: { train-sl: { from: { rows: drafts }, on_change: hold, init: { scratch: { architecture: { hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2 } } } } }\n  drafts: { sample: { from: red, model: assistant } }\n  after: { sample: { from: helpful, model: sl } }\n";
    let mut files = files_of(20, nodes);
    let mut lab = Lab::new(1);
    let desired = lab.desired(&files);
    let settled = lab.session.apply(&desired).unwrap();
    for state in settled.trainings.into_values() {
        let TrainingState::Done { recipe, weights, .. } = state else { panic!("{state:?}") };
        lab.held.insert("sl".to_owned(), Held { recipe, weights });
    }
    files.prompts.insert("red".to_owned(), Vec::new());
    let truth = check(&mut lab, &files);
    assert_eq!(truth.tables.last().unwrap().len(), 5, "helpful prompts are answered");
    assert_eq!(lab.trainings.trained(), 1);
}
