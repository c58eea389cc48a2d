//! A pipeline planned, run, edited, compared and explained by the command line, against a real
//! local HTTP server.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::server::FakeServer;

pub(crate) const PIPELINE: &str = r#"
name: small
seed: 17
constitution: constitution.yaml
models:
  fake: { endpoint: "${FAKE_URL}", name: fake-model, max_in_flight: 8 }
nodes:
  prompts: { read: { path: prompts.jsonl, key: [id] } }
  drafts: { sample: { from: prompts, model: fake, max_tokens: 20 } }
  critiques: { critique: { from: drafts, model: fake, max_tokens: 20 } }
  revisions: { revise: { from: critiques, model: fake, max_tokens: 20 } }
  labels: { evaluate: { from: [drafts, revisions], labels: { vowel: "(?i)^[aeiou]", consonant: "(?i)^[a-z]" } } }
"#;

pub(crate) const ROWS: usize = 12;

/// A folder with a pipeline, and the server that it asks.
pub(crate) struct Lab {
    pub(crate) dir: TempDir,
    pub(crate) server: FakeServer,
}

impl Lab {
    pub(crate) fn new(config: Value) -> Lab {
        let lab = Lab { dir: TempDir::new().unwrap(), server: FakeServer::with(config) };
        lab.write("small.yaml", PIPELINE);
        lab.constitution("Say what is wrong.");
        let line = |n: usize| {
            let category = if n.is_multiple_of(2) { "red" } else { "benign" };
            json!({ "id": n, "prompt": format!("question {n}"), "category": category })
        };
        let lines: Vec<String> = (0..ROWS).map(|n| line(n).to_string()).collect();
        lab.write("prompts.jsonl", &lines.join("\n"));
        lab
    }

    pub(crate) fn constitution(&self, critique: &str) {
        let principle = |id: &str, critique: &str| json!({ "id": id, "critique": critique, "revise": "Mend it." });
        let constitution =
            json!({ "principles": [principle("one", critique), principle("two", "Find fault.")] });
        self.write("constitution.yaml", &constitution.to_string());
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).unwrap();
    }

    /// Runs `amend`, and gives its exit code, stdout and stderr.
    pub(crate) fn amend(&self, args: &[&str]) -> (i32, String, String) {
        let output = self.command(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// `amend` with arguments, in the folder.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amend"));
        command.env_remove("AMEND_STORE").env("FAKE_URL", self.server.base_url());
        command.current_dir(self.dir.path()).args(args);
        command
    }

    /// The JSON that a command prints, which ends with 0.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let (code, stdout, stderr) = self.amend(&[args, &["-o", "json"]].concat());
        assert_eq!(code, 0, "{args:?}: {stdout}{stderr}");
        serde_json::from_str(&stdout)
            .unwrap_or_else(|error| panic!("{args:?}: {error} in {stdout}"))
    }

    /// What all calls cost.
    fn usd(&self) -> f64 {
        self.sum("cost_usd")
    }

    /// The sum of a column of the memo.
    fn sum(&self, of: &str) -> f64 {
        let rows = self.json(&["query", &format!("select sum({of})::double as sum from calls")]);
        rows[0]["sum"].as_f64().unwrap_or_else(|| panic!("{rows}"))
    }

    /// The pipeline with a price of its model.
    fn priced(&self) {
        let priced = "max_in_flight: 8, price: { input: 2000.0, output: 8000.0 }";
        self.write("small.yaml", &PIPELINE.replace("max_in_flight: 8", priced));
    }
}

pub(crate) fn node<'a>(document: &'a Value, name: &str) -> &'a Value {
    let mut nodes = document["nodes"].as_array().unwrap().iter();
    nodes.find(|node| node["name"] == name).unwrap_or_else(|| panic!("{name} in {document}"))
}

#[test]
fn a_run_makes_the_calls_that_the_plan_foretold_and_a_second_none() {
    let lab = Lab::new(json!({}));
    let plan = lab.json(&["plan", "small.yaml"]);
    assert_eq!(node(&plan, "drafts")["calls"]["to_make"], ROWS);
    let report = lab.json(&["run", "small.yaml"]);
    assert_eq!((&report["snapshot"], &report["calls"]["made"]), (&json!(1), &json!(3 * ROWS)));
    assert_eq!(lab.server.stats().calls as usize, 3 * ROWS);
    let keys = ["name", "op", "rows", "rejects", "dropped", "calls", "seconds", "digest"];
    assert!(keys.iter().all(|key| !node(&report, "revisions")[key].is_null()));
    let seconds = |name: &str| node(&report, name)["seconds"].as_f64().unwrap();
    assert!(seconds("drafts") > 0.0 && seconds("drafts") <= report["seconds"].as_f64().unwrap());

    let again = lab.json(&["run", "small.yaml"]);
    assert_eq!((&again["snapshot"], &again["digest"]), (&report["snapshot"], &report["digest"]));
    assert_eq!(again["calls"]["made"], 0);
    let (code, stdout, _) = lab.amend(&["plan", "small.yaml"]);
    assert_eq!(code, 0);
    assert!(stdout.starts_with("nothing changes"), "{stdout}");
}

#[test]
fn a_plan_says_about_how_many_tokens_and_dollars_a_run_takes() {
    let lab = Lab::new(json!({}));
    lab.priced();
    let first = lab.json(&["plan", "small.yaml"]);
    // Of nothing like it was asked yet: prompts by their length, answers as long as they may be.
    let drafts = node(&first, "drafts");
    assert!(drafts["tokens"].as_u64().unwrap() > 20 * ROWS as u64, "{drafts}");
    assert!(drafts["cost_usd"].as_f64().unwrap() > 0.0, "{drafts}");
    // What drafts will say is not known, so neither is what a critique reads.
    assert!(node(&first, "critiques")["tokens"].is_null(), "{first}");
    assert!(first["totals"]["tokens"].is_null() && first["totals"]["cost_usd"].is_null());

    assert_eq!(lab.amend(&["run", "small.yaml"]).0, 0);
    let done = lab.json(&["plan", "small.yaml"]);
    assert_eq!(done["totals"]["tokens"], 0, "{done}");
    lab.constitution("Say at length what is wrong with this answer, and why it is wrong.");
    let (plan, before) = (lab.json(&["plan", "small.yaml"]), lab.usd());
    assert_eq!(lab.amend(&["run", "small.yaml"]).0, 0);
    let spent = lab.usd() - before;
    let foretold = plan["totals"]["cost_usd"].as_f64().unwrap();
    // Revisions of critiques that came out the same are not made again.
    assert!(spent > 0.0 && foretold > 0.8 * spent && foretold < 1.6 * spent, "{foretold}: {spent}");
}

#[test]
fn a_run_stops_before_it_spends_more_than_it_may() {
    let lab = Lab::new(json!({}));
    let (code, _, stderr) = lab.amend(&["run", "small.yaml", "--max-cost", "1"]);
    assert_eq!(code, 2, "a model without a price costs nothing that can be counted");
    assert!(stderr.contains("model \"fake\" has no price"), "{stderr}");

    lab.priced();
    let (code, _, stderr) = lab.amend(&["run", "small.yaml", "--max-cost", "1"]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("limit of $1"), "{stderr}");
    // No snapshot was made: what was paid for can be asked all the same.
    let usd = lab.usd();
    assert!(usd > 0.5 && usd <= 1.0, "{usd} of 1.0");

    let budget = "constitution: constitution.yaml\nbudget: { tokens: 1000 }";
    let written = fs::read_to_string(lab.dir.path().join("small.yaml")).unwrap();
    lab.write("small.yaml", &written.replace("constitution: constitution.yaml", budget));
    let before = lab.sum("prompt_tokens + completion_tokens");
    let (code, _, stderr) = lab.amend(&["run", "small.yaml"]);
    assert_eq!(code, 1, "{stderr}");
    let tokens = lab.sum("prompt_tokens + completion_tokens") - before;
    assert!(tokens > 500.0 && tokens <= 1000.0, "{tokens} of 1000");

    lab.priced();
    assert_eq!(lab.amend(&["run", "small.yaml"]).0, 0, "what is left is made");
    assert_eq!(lab.server.stats().calls as usize, 3 * ROWS, "and nothing twice");
}

#[test]
fn a_part_of_a_pipeline_is_planned_and_run_and_not_published() {
    let lab = Lab::new(json!({}));
    let plan = lab.json(&["plan", "small.yaml", "--until", "drafts"]);
    assert_eq!(plan["totals"]["calls"]["to_make"], ROWS, "{plan}");
    let report = lab.json(&["run", "small.yaml", "--until", "drafts"]);
    assert_eq!(report["calls"]["made"], ROWS);
    assert!(report["snapshot"].is_null() && report["digest"].is_null(), "{report}");
    assert!(node(&report, "drafts")["digest"].is_null(), "{report}");
}

#[test]
fn a_run_for_people_ends_with_shares_by_source_and_group() {
    let lab = Lab::new(json!({}));
    let (code, stdout, stderr) = lab.amend(&["run", "small.yaml"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("36 calls made, 0 from the memo"), "{stdout}");
    assert!(stdout.contains("labels: share of rows, 95 % interval"), "{stdout}");
    for start in ["drafts     all       12", "drafts     benign     6", "revisions  red        6"] {
        assert!(stdout.lines().any(|line| line.starts_with(start)), "{start:?} in {stdout}");
    }
}

#[test]
fn two_nodes_lose_the_same_rows_and_each_says_so() {
    let lab = Lab::new(json!({ "context": 1 }));
    let second = "  again: { sample: { from: prompts, model: fake, max_tokens: 30 } }\n";
    lab.write("small.yaml", &format!("{PIPELINE}{second}"));
    let (code, _, stderr) = lab.amend(&["run", "small.yaml"]);
    assert_eq!(code, 3, "{stderr}");
    let sql =
        "select node, count(distinct row_id) as lost from rejects group by node order by node";
    let rejects = lab.json(&["query", sql]);
    assert_eq!(
        rejects,
        json!([{ "node": "again", "lost": ROWS }, { "node": "drafts", "lost": ROWS }])
    );
}

#[test]
fn an_edit_is_foretold_made_logged_compared_and_explained() {
    let lab = Lab::new(json!({}));
    lab.json(&["run", "small.yaml"]);
    lab.constitution("Say precisely what is wrong.");
    let (_, radius, _) = lab.amend(&["plan", "small.yaml"]);
    assert!(
        radius.lines().next().unwrap().contains("of 12 critiques of critiques change"),
        "{radius}"
    );
    let plan = lab.json(&["plan", "small.yaml"]);
    let changed = node(&plan, "critiques")["calls"]["to_make"].as_u64().unwrap();
    assert!(changed > 0 && changed < ROWS as u64, "{plan}");
    let report = lab.json(&["run", "small.yaml"]);
    assert_eq!(node(&report, "critiques")["calls"]["made"], changed);

    let log = lab.json(&["log"]);
    let numbers: Vec<&Value> =
        log["snapshots"].as_array().unwrap().iter().map(|one| &one["number"]).collect();
    assert_eq!(numbers, [2, 1]);
    assert_eq!(
        (&log["pipeline"], &log["snapshots"][1]["calls"]),
        (&json!("small"), &json!(3 * ROWS))
    );

    let diff = lab.json(&["diff", "1", "2", "critiques", "--rows"]);
    let critiques = node(&diff, "critiques");
    assert_eq!(critiques["updated"], changed);
    assert_eq!((&critiques["inserted"], &critiques["deleted"]), (&json!(0), &json!(0)));
    let row = &critiques["rows"][0];
    assert_eq!(row["before"]["principle_id"], "one");
    assert_ne!(row["before"]["principle_hash"], row["after"]["principle_hash"]);
    let (code, text, _) = lab.amend(&["diff", "--rows"]);
    assert_eq!(code, 0);
    assert!(text.contains("from snapshot 1 to 2"), "{text}");

    let id = row["row_id"].as_str().unwrap();
    let explained = lab.json(&["explain", &format!("critiques/{}", &id[..8])]);
    assert_eq!(explained["principle"]["id"], "one");
    assert!(explained["calls"][0]["request"].to_string().contains("Say precisely"), "{explained}");
    let draft = &explained["parents"][0];
    assert_eq!(
        (&draft["node"], &draft["parents"][0]["node"]),
        (&json!("drafts"), &json!("prompts"))
    );
    let (code, tree, _) = lab.amend(&["explain", id]);
    assert_eq!(code, 0);
    assert!(tree.contains("└─ drafts/") && tree.contains("└─ prompts/"), "{tree}");
}

#[test]
fn a_run_with_rejects_ends_with_3_and_explain_says_why() {
    let lab = Lab::new(json!({ "permanent_every": 4 }));
    let (code, stdout, stderr) = lab.amend(&["run", "small.yaml", "-o", "json"]);
    assert_eq!(code, 3, "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let rejects: u64 = report["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|node| node["rejects"].as_u64())
        .sum();
    assert!(rejects > 0);
    let diff = lab.json(&["diff", "1", "1", "rejects"]);
    assert_eq!(node(&diff, "rejects")["inserted"], 0);
    let parquet = lab.dir.path().join(".amend/small/tables/rejects");
    assert!(Path::new(&parquet).is_dir());
}

/// It showed the answer that the server gave when it had recovered, and no error.
#[test]
fn a_reject_is_explained_by_its_failure_also_when_a_later_call_succeeded() {
    let lab = Lab::new(json!({ "permanent_every": 4 }));
    assert_eq!(lab.amend(&["run", "small.yaml"]).0, 3);
    let sql = "select row_id, call_key, detail from rejects where node = 'drafts'";
    let reject = lab.json(&["query", sql])[0].clone();
    let row = format!("rejects/{}", reject["row_id"].as_str().unwrap());
    let failed = lab.json(&["explain", &row]);
    let call = &failed["calls"][0];
    assert_eq!((&call["call_key"], &call["error"]), (&reject["call_key"], &reject["detail"]));
    assert!(call["later_answer"].is_null() && call["answer"].is_null(), "{call}");

    lab.server.config(json!({ "permanent_every": 0 }));
    assert_eq!(lab.amend(&["run", "small.yaml", "--retry-rejects"]).0, 0);
    let since = lab.json(&["explain", &row, "--at", "1"]);
    let call = &since["calls"][0];
    assert_eq!((&call["error"], &call["answer"]), (&reject["detail"], &Value::Null), "{call}");
    assert!(call["later_answer"].as_str().is_some_and(|answer| !answer.is_empty()), "{call}");
    assert_eq!(call["request"], failed["calls"][0]["request"]);
    let (_, tree, _) = lab.amend(&["explain", &row, "--at", "1"]);
    let line = |of: &str| tree.lines().position(|line| line.contains(of));
    assert!(line("  error").is_some() && line("a later call was answered") > line("  error"));
}

/// The memo has nothing of a call whose retries are exhausted; its reject has.
#[test]
fn a_reject_whose_call_is_not_remembered_says_what_was_asked_and_why_it_failed() {
    let lab = Lab::new(json!({ "fail_every": 4 }));
    assert_eq!(lab.amend(&["run", "small.yaml", "--set", "models.fake.retries=0"]).0, 3);
    let reject = lab.json(&["query", "select row_id, detail from rejects"])[0].clone();
    let row = format!("rejects/{}", reject["row_id"].as_str().unwrap());
    let call = &lab.json(&["explain", &row])["calls"][0];
    assert_eq!(call["error"], reject["detail"]);
    assert!(call["request"].to_string().contains("question"), "{call}");
}

#[test]
fn a_limit_stops_a_run_which_the_next_takes_up() {
    let lab = Lab::new(json!({}));
    let (code, _, stderr) = lab.amend(&["run", "small.yaml", "--max-calls", "5"]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains('5') && stderr.contains("run again"), "{stderr}");
    let report = lab.json(&["run", "small.yaml"]);
    assert_eq!(report["calls"]["made"], 3 * ROWS - 5);
    assert_eq!(lab.server.stats().calls as usize, 3 * ROWS);
}

/// What a user sees who presses Ctrl-C, and who starts a second run meanwhile.
#[cfg(unix)]
#[test]
fn an_interrupt_ends_with_130_and_a_second_run_meanwhile_with_75() {
    use std::io::Read as _;
    use std::process::Stdio;

    let lab = Lab::new(json!({ "latency_ms": 300 }));
    let mut first = Command::new(env!("CARGO_BIN_EXE_amend"))
        .args(["run", "small.yaml", "--set", "models.fake.max_in_flight=1"])
        .env_remove("AMEND_STORE")
        .env("FAKE_URL", lab.server.base_url())
        .current_dir(lab.dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while lab.server.stats().calls == 0 {
        std::thread::yield_now();
    }
    let (code, _, stderr) = lab.amend(&["run", "small.yaml"]);
    assert_eq!(code, 75, "{stderr}");
    assert!(stderr.contains("small"), "{stderr}");

    let interrupt = Command::new("kill").args(["-INT", &first.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    let ended = first.wait().unwrap();
    let mut stderr = String::new();
    first.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(ended.code(), Some(130), "{stderr}");
    assert!(stderr.contains("run again to go on"), "{stderr}");
    let (code, _, stderr) = lab.amend(&["log"]);
    assert_eq!(code, 2, "a stopped run publishes nothing: {stderr}");
}
