//! Change policies beside `retrain` and `hold`: a warm start, and changes too small to train for.

#[cfg(feature = "torch")]
use std::fs;

use amend::engine::session::Settled;
use amend::engine::train::Held;
use amend::engine::{KeptBy, Standing, TrainingState};
use amend::record::Id;

use crate::lab::{Files, Lab, fake_warm, fake_weights};

/// A model of drafts, and answers that ask it. `POLICY` stands in the training node.
const PIPELINE: &str = r#"
name: lab
seed: 17
models:
  assistant: { endpoint: "http://127.0.0.1:9", name: fake, format: transcript }
nodes:
  red: { read: { path: red.jsonl } }
  helpful: { read: { path: helpful.jsonl } }
  drafts: { sample: { from: red, model: assistant } }
  sl: { train-sl: { from: drafts, POLICY, init: { scratch: { architecture: { hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2 } } } } }
  answers: { sample: { from: helpful, model: sl } }
"#;

const HELPFUL: u64 = 7;

fn files(policy: &str) -> Files {
    let numbered = |name: &str, rows: u64| {
        (0..rows).map(|n| format!("{name}{n}|{name} question {n}")).collect::<Vec<_>>()
    };
    Files {
        pipeline: PIPELINE.replace("POLICY", policy),
        constitution: String::new(),
        prompts: [
            ("red".to_owned(), numbered("red", 100)),
            ("helpful".to_owned(), numbered("help", HELPFUL)),
        ]
        .into(),
    }
}

/// Says something else in so many red-team prompts.
fn edit(files: &mut Files, rows: std::ops::Range<usize>) {
    for prompt in &mut files.prompts.get_mut("red").unwrap()[rows] {
        prompt.push_str(", said otherwise");
    }
}

/// What an epoch came to, seen from the model of drafts.
struct Came {
    recipe: Id,
    weights: Id,
    standing: Standing,
    /// Calls of the answers below.
    below: u64,
}

/// Applies files as a run does: what the node came to is known to the next.
fn apply(lab: &mut Lab, files: &Files) -> Came {
    let desired = lab.desired(files);
    let at = |name: &str| desired.shape.nodes.iter().position(|node| node.name == name).unwrap();
    let settled = lab.session.apply(&desired).unwrap();
    let state = settled.trainings[&at("sl")];
    let TrainingState::Done { recipe, weights, standing } = state else { panic!("{state:?}") };
    lab.held.insert("sl".to_owned(), Held { recipe, weights });
    Came { recipe, weights, standing, below: settled.calls[at("answers")].made }
}

/// What a plan says of files: the training, and the calls below it, at most and whether that is exact.
fn foretell(lab: &Lab, files: &Files) -> (TrainingState, u64, bool) {
    let mut foresight = lab.foresight();
    let desired = foresight.desired(files);
    let at = |name: &str| desired.shape.nodes.iter().position(|node| node.name == name).unwrap();
    let Settled { trainings, calls, .. } = foresight.session.apply(&desired).unwrap();
    let calls = calls[at("answers")];
    (trainings[&at("sl")], calls.made + calls.up_to, calls.up_to == 0)
}

/// The weights of a training from nothing on what the node reads now.
fn cold(lab: &Lab, files: &Files) -> Id {
    let desired = lab.desired(files);
    let at = |name: &str| desired.shape.nodes.iter().position(|node| node.name == name).unwrap();
    let rows: Vec<(Id, Id)> = lab.session.tables()[at("sl.data")]
        .rows
        .iter()
        .map(|(row, rec)| (*row, lab.rows.get(rec.content).unwrap().row().content_hash()))
        .collect();
    fake_weights(&desired.trainings[&at("sl")], &rows)
}

const COLD: Standing = Standing { kept: None, warm: false };
const WARM: Standing = Standing { kept: None, warm: true };

#[test]
fn a_warm_start_goes_on_from_the_last_checkpoint_and_says_so() {
    let mut lab = Lab::new(1);
    let mut files = files("on_change: warm_start");
    let first = apply(&mut lab, &files);
    assert_eq!(
        (first.standing, first.weights),
        (COLD, cold(&lab, &files)),
        "it begins at its init"
    );

    edit(&mut files, 0..1);
    let (planned, _, _) = foretell(&lab, &files);
    assert_eq!(planned, TrainingState::Would { exact: false, resumes: false, warm: true });
    let second = apply(&mut lab, &files);
    assert_eq!(second.standing, WARM);
    assert_eq!(second.weights, fake_warm(cold(&lab, &files), first.weights));
    assert_eq!((second.below, lab.trainings.trained()), (HELPFUL, 2));

    let (planned, below, exact) = foretell(&lab, &files);
    assert!(matches!(planned, TrainingState::Done { standing: WARM, .. }), "{planned:?}");
    assert_eq!((below, exact), (0, true));
    let again = apply(&mut lab, &files);
    assert_eq!((again.weights, again.standing), (second.weights, WARM), "nothing changed");
    assert_eq!((again.below, lab.trainings.trained()), (0, 2));

    edit(&mut files, 1..2);
    let third = apply(&mut lab, &files);
    assert_eq!(third.weights, fake_warm(cold(&lab, &files), second.weights), "it goes on and on");
}

#[test]
fn what_was_trained_from_its_init_is_used_after_a_revert_under_any_policy() {
    for policy in ["on_change: warm_start", "min_changed: 50%"] {
        let mut lab = Lab::new(1);
        let before = files(policy);
        let first = apply(&mut lab, &before);
        let mut after = before.clone();
        edit(&mut after, 0..60);
        let second = apply(&mut lab, &after);
        assert_ne!(second.weights, first.weights, "{policy}");
        let reverted = apply(&mut lab, &before);
        assert_eq!((reverted.weights, reverted.standing), (first.weights, COLD), "{policy}");
        assert_eq!((reverted.below, lab.trainings.trained()), (0, 2), "{policy}");
    }
}

/// To go on from a model that was trained by other settings would be neither the one nor the other.
#[test]
fn a_change_of_settings_trains_from_the_init_under_any_policy() {
    for policy in ["on_change: warm_start", "min_changed: 50%"] {
        let mut lab = Lab::new(1);
        let mut files = files(policy);
        let first = apply(&mut lab, &files);
        files.pipeline = files.pipeline.replace("from: drafts,", "from: drafts, epochs: 2,");
        let second = apply(&mut lab, &files);
        assert_eq!((second.standing, second.weights), (COLD, cold(&lab, &files)), "{policy}");
        assert_ne!(second.weights, first.weights);
    }
}

#[test]
fn changes_below_the_least_are_none_until_they_add_up() {
    let mut lab = Lab::new(1);
    let mut files = files("min_changed: 5%");
    let first = apply(&mut lab, &files);
    let kept = |changed| {
        let kept = Some(KeptBy::MinChanged { changed, of: 100 });
        Standing { kept, warm: false }
    };

    edit(&mut files, 0..2);
    let (planned, below, exact) = foretell(&lab, &files);
    let TrainingState::Done { weights, .. } = planned else { panic!("{planned:?}") };
    assert_eq!((weights, below, exact), (first.weights, 0, true), "said before a draft is known");
    let second = apply(&mut lab, &files);
    assert_eq!((second.weights, second.recipe), (first.weights, first.recipe));
    assert_eq!((second.standing, second.below), (kept(2), 0));

    edit(&mut files, 2..4);
    let (planned, below, exact) = foretell(&lab, &files);
    assert_eq!(planned, TrainingState::Would { exact: false, resumes: false, warm: false });
    assert_eq!((below, exact), (HELPFUL, false), "two drafts could be lost, and move two others");
    let third = apply(&mut lab, &files);
    assert_eq!((third.standing, third.below), (kept(4), 0), "counted from what was trained on");

    edit(&mut files, 4..5);
    let fourth = apply(&mut lab, &files);
    assert_eq!((fourth.standing, fourth.weights), (COLD, cold(&lab, &files)));
    assert_eq!((fourth.below, lab.trainings.trained()), (HELPFUL, 2));

    edit(&mut files, 5..7);
    assert_eq!(apply(&mut lab, &files).standing, kept(2), "counted from there on");
    files.prompts.get_mut("red").unwrap().truncate(97);
    assert_eq!(apply(&mut lab, &files).weights, cold(&lab, &files), "3 rows more are gone");
}

#[test]
fn a_warm_start_waits_for_the_least_change() {
    let mut lab = Lab::new(1);
    let mut files = files("on_change: warm_start, min_changed: 0.05");
    let first = apply(&mut lab, &files);
    edit(&mut files, 0..4);
    assert_eq!(apply(&mut lab, &files).weights, first.weights);
    edit(&mut files, 4..9);
    let second = apply(&mut lab, &files);
    assert_eq!(second.weights, fake_warm(cold(&lab, &files), first.weights));
    edit(&mut files, 9..10);
    let third = apply(&mut lab, &files);
    let kept = Some(KeptBy::MinChanged { changed: 1, of: 100 });
    assert_eq!(third.standing, Standing { kept, warm: true }, "both are said");
}

/// By the binary, with the trainer that is real.
#[cfg(feature = "torch")]
mod by_the_binary {
    use std::process::Command;

    use amend::store::manifest::Mark;
    use serde_json::{Value, json};

    use super::*;
    use crate::training::{Bench, latest, node, scratch};

    fn demos(bench: &Bench, edited: usize) {
        let demo = |n: usize| {
            let more = if n < edited { " well" } else { "" };
            json!({ "id": n, "prompt": format!("make thing {n}"), "completion": format!("made it{more}") })
        };
        let rows: Vec<String> = (0..50).map(|n| demo(n).to_string()).collect();
        fs::write(bench.dir.path().join("demos.jsonl"), rows.join("\n")).unwrap();
    }

    fn nodes(init: &Value, policy: (&str, Value)) -> Value {
        let train = json!({
            "from": "demos", "init": init, "batch_size": 10, "threads": 1, "learning_rate": 0.01,
            policy.0: policy.1,
        });
        json!({
            "demos": { "read": { "path": "demos.jsonl", "relation": "demonstrations", "key": ["id"] } },
            "sl": { "train-sl": train },
            "prompts": { "read": { "path": "prompts.jsonl" } },
            "answers": { "sample": { "from": "prompts", "model": "sl", "max_tokens": 4 } },
        })
    }

    fn bench(init: &Value, policy: (&str, Value), model: Option<Value>) -> Bench {
        let bench = Bench::new(nodes(init, policy), model);
        fs::write(bench.dir.path().join("prompts.jsonl"), r#"{ "prompt": "make thing 3" }"#)
            .unwrap();
        demos(&bench, 0);
        bench
    }

    /// What `explain` says of the only row of a node.
    fn explained(bench: &Bench, name: &str) -> Value {
        let ids = latest(&bench.store("store")).read_ids(name).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_amend"));
        command.args(["explain", &format!("{name}/{}", ids[0].row_id), "-o", "json", "-q"]);
        command.arg("-p").arg(bench.dir.path().join("pipeline.yaml"));
        command.arg("--store").arg(bench.store("store"));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[test]
    fn a_warm_start_has_the_weights_of_a_training_that_begins_at_the_last_checkpoint() {
        let bench = bench(&scratch(), ("on_change", json!("warm_start")), None);
        let store = bench.store("store");
        bench.run("run", &store, 1);
        let first = latest(&store).manifest().nodes["sl"].node.checkpoint.clone().unwrap().weights;
        demos(&bench, 5);
        let plan = bench.run("plan", &store, 1);
        assert_eq!(node(&plan, "sl")["training"], json!({ "state": "warm_start", "exact": true }));
        bench.run("run", &store, 1);
        let snapshot = latest(&store);
        let sl = &snapshot.manifest().nodes["sl"].node;
        let warm = sl.checkpoint.clone().unwrap();
        assert_ne!(warm.weights, first);
        assert_eq!(sl.marks, [Mark::WarmStart].into());
        assert_eq!(snapshot.manifest().nodes["answers"].node.marks, [Mark::OfHistory].into());
        let row = explained(&bench, "sl");
        assert_eq!(row["marks"], json!(["warm_start"]));
        assert_eq!(row["row"]["warm_from"], json!(first.to_string()));
        assert_eq!(row["row"]["policy"], "warm_start");
        assert_eq!(explained(&bench, "answers")["marks"], json!(["of_history"]));
        let plan = bench.run("plan", &store, 1);
        assert_eq!(node(&plan, "sl")["training"]["state"], "unchanged");

        let start = store.join("checkpoints").join(first.to_string());
        let model = json!({ "checkpoint": start, "format": "transcript" });
        let cold = self::bench(&json!("m"), ("on_change", json!("retrain")), Some(model));
        demos(&cold, 5);
        cold.run("run", &cold.store("store"), 1);
        let from_there =
            latest(&cold.store("store")).manifest().nodes["sl"].node.checkpoint.clone();
        assert_eq!(from_there.unwrap().weights, warm.weights);
    }

    #[test]
    fn a_change_too_small_is_said_in_the_plan_the_manifest_and_the_explanation() {
        let bench = bench(&scratch(), ("min_changed", json!("10%")), None);
        let store = bench.store("store");
        bench.run("run", &store, 1);
        let first = latest(&store).manifest().nodes["sl"].node.checkpoint.clone().unwrap();
        demos(&bench, 4);
        let plan = bench.run("plan", &store, 1);
        let expected = json!({ "state": "min_changed", "exact": true, "changed": 0.08 });
        assert_eq!(node(&plan, "sl")["training"], expected);
        assert_eq!(node(&plan, "answers")["calls"]["to_make"], 0);
        bench.run("run", &store, 1);
        let snapshot = latest(&store);
        let sl = &snapshot.manifest().nodes["sl"].node;
        let kept = sl.checkpoint.clone().unwrap();
        assert_eq!((kept.weights, kept.stale), (first.weights, true));
        assert_eq!(sl.marks, [Mark::MinChanged].into());
        assert_eq!(snapshot.manifest().nodes["answers"].node.marks, [Mark::Stale].into());
        let row = explained(&bench, "sl");
        assert_eq!(row["marks"], json!(["min_changed"]));
        assert_eq!(row["row"]["rows_changed"], json!(4));
        assert_eq!(row["row"]["policy"], "retrain, min_changed 10%");

        demos(&bench, 5);
        let plan = bench.run("plan", &store, 1);
        assert_eq!(node(&plan, "sl")["training"], json!({ "state": "retrain", "exact": true }));
        bench.run("run", &store, 1);
        let snapshot = latest(&store);
        let sl = &snapshot.manifest().nodes["sl"].node;
        assert_ne!(sl.checkpoint.clone().unwrap().weights, first.weights);
        assert!(sl.marks.is_empty() && snapshot.manifest().nodes["answers"].node.marks.is_empty());
    }
}
