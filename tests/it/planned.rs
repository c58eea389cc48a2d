//! A plan that is written down and followed: `amend run --plan`, against a server that counts.

use serde_json::json;

use crate::cli_run::{Lab, PIPELINE, ROWS};

impl Lab {
    /// Writes the plan of the pipeline down.
    fn plan(&self, more: &[&str]) {
        let plan = self.json(&[&["plan", "small.yaml"], more].concat());
        self.write("plan.json", &plan.to_string());
    }

    /// Follows the plan and is refused, without a call: what is said.
    fn refused(&self, more: &[&str]) -> String {
        let calls = self.server.stats().calls;
        let run = ["run", "small.yaml", "--plan", "plan.json", "-o", "json"];
        let (code, stdout, stderr) = self.amend(&[&run, more].concat());
        assert_eq!(code, 2, "{stdout}{stderr}");
        assert_eq!(self.server.stats().calls, calls, "nothing is asked: {stderr}");
        assert!(stdout.contains(r#""kind": "usage""#), "{stdout}");
        assert!(stderr.contains("help: "), "a way out is said: {stderr}");
        stderr
    }
}

#[test]
fn a_plan_is_followed_while_nothing_moved() {
    let lab = Lab::new(json!({}));
    lab.plan(&[]);
    // It is the files that matter, and not from where they are named or when they were written.
    let file = lab.dir.path().join("small.yaml");
    lab.write("small.yaml", PIPELINE);
    let report = lab.json(&["run", file.to_str().unwrap(), "--plan", "plan.json"]);
    assert_eq!(report["calls"]["made"], 3 * ROWS);
    assert_eq!(lab.server.stats().calls as usize, 3 * ROWS);

    lab.plan(&[]);
    let again = lab.json(&["run", "small.yaml", "--plan", "plan.json"]);
    assert_eq!((&again["snapshot"], &again["calls"]["made"]), (&json!(1), &json!(0)));
    lab.plan(&[]);
    let early = lab.json(&["run", "small.yaml", "--plan", "plan.json"]);
    assert_eq!(early["snapshot"], again["snapshot"]);
}

#[test]
fn a_plan_is_refused_after_an_edit_and_what_was_edited_is_named() {
    let lab = Lab::new(json!({}));
    lab.plan(&[]);
    lab.constitution("Say precisely what is wrong.");
    let said = lab.refused(&[]);
    assert!(said.contains(r#"the file "constitution.yaml" changed"#), "{said}");
    lab.constitution("Say what is wrong.");
    lab.write("prompts.jsonl", &json!({ "id": 99, "prompt": "another" }).to_string());
    let said = lab.refused(&[]);
    assert!(said.contains(r#"the file "prompts.jsonl" changed"#), "{said}");
    assert!(!said.contains("constitution.yaml"), "that was put back: {said}");

    lab.plan(&[]);
    let said = lab.refused(&["--set", "nodes.drafts.sample.max_tokens=21"]);
    assert!(said.contains("were none and are `--set nodes.drafts"), "{said}");
    let said = lab.refused(&["--until", "drafts"]);
    assert!(said.contains("were none and are `--until drafts`"), "{said}");
    lab.plan(&["--until", "drafts"]);
    let report = lab.json(&["run", "small.yaml", "--plan", "plan.json", "--until", "drafts"]);
    assert_eq!(report["calls"]["made"], 1);
}

#[test]
fn a_plan_is_refused_after_another_run_published() {
    let lab = Lab::new(json!({}));
    lab.json(&["run", "small.yaml"]);
    lab.constitution("Say precisely what is wrong.");
    lab.plan(&[]);
    lab.json(&["run", "small.yaml"]);
    let said = lab.refused(&[]);
    assert!(said.contains("the last snapshot was 1 and is 2"), "{said}");
    assert!(said.contains(r#"with other rows of "critiques""#), "{said}");
    assert!(!said.contains(r#""drafts""#) && !said.contains("the file"), "{said}");
}

#[test]
fn a_file_that_is_no_plan_of_the_pipeline_is_named() {
    let lab = Lab::new(json!({}));
    assert!(lab.refused(&[]).contains(r#""plan.json": it cannot be read"#));
    for text in ["{", "[]", r#"{ "pipeline": "small", "nodes": [] }"#] {
        lab.write("plan.json", text);
        assert!(lab.refused(&[]).contains(r#""plan.json": it is no plan"#), "{text}");
    }
    lab.plan(&[]);
    lab.write("small.yaml", &PIPELINE.replace("name: small", "name: other"));
    assert!(lab.refused(&[]).contains(r#"a plan of "small", and this is "other""#));
}
