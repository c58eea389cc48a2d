//! Minimal and equal: after every edit the calls made and the tables are the oracle's.

use std::collections::BTreeSet;

use amend::record::CallKey;

use crate::lab::{Files, Lab, fake_answer, fake_weights};
use crate::oracle::{Truth, oracle};

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
  preferences: { pairwise-judge: { from: pairs, model: assistant } }
  pm: { train-pm: { from: preferences, init: sl } }
"#;

fn constitution(principles: &[(&str, &str)]) -> String {
    let principle = |(id, text): &(&str, &str)| {
        format!(
            "  - {{ id: {id}, critique: \"what of {text}?\", revise: \"without {text}\", judge: \"which has less {text}?\" }}\n"
        )
    };
    format!("principles:\n{}", principles.iter().map(principle).collect::<String>())
}

fn numbered(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n}|{prefix} question {n}")).collect()
}

fn files(rows: usize) -> Files {
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
    let truth = oracle(&desired, &lab.rows, &fake_answer, &fake_weights);
    let known: BTreeSet<CallKey> = lab.memo.keys();
    let expected = truth.calls_by_node(&known);
    let settled = lab.session.apply(&desired).unwrap();
    let made: Vec<u64> = settled.calls.iter().map(|calls| calls.made).collect();
    let names: Vec<&str> = desired.shape.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(made, expected, "calls made by {names:?}");
    for (at, table) in lab.session.tables().iter().enumerate() {
        let is_training = desired.trainings.contains_key(&at);
        if is_training {
            continue;
        }
        let versions: std::collections::BTreeMap<_, _> =
            table.rows.iter().map(|(row, rec)| (*row, rec.version)).collect();
        assert_eq!(versions, truth.tables[at], "rows of {}", names[at]);
        let rejects: BTreeSet<_> = table.rejects.keys().copied().collect();
        assert_eq!(rejects, truth.rejects[at], "rejects of {}", names[at]);
        assert_eq!(table.dropped, truth.dropped[at], "dropped of {}", names[at]);
    }
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
