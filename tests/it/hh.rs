//! `pipelines/hh.yaml` over a real file with dirty rows, and a server that refuses some requests:
//! every row that reaches a node is a parent of what the node made, or a reject that says why.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::server::FakeServer;
use crate::support::shared::data;

const ROUNDS: u64 = 4;

/// Requests that the server refuses for good: one in so many, the same ones always.
const REFUSED: u64 = 41;

struct Lab {
    dir: tempfile::TempDir,
    server: FakeServer,
}

impl Lab {
    fn amend(&self, args: &[&str], code: i32) -> Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amend"));
        command.current_dir(self.dir.path()).env_remove("AMEND_STORE").args(args);
        command.env("OPENAI_BASE_URL", self.server.base_url()).env_remove("OPENAI_API_KEY");
        command.env("AMEND_HH", "hh.jsonl.gz").env_remove("AMEND_MODEL");
        command.env("AMEND_CONSTITUTION", "constitutions/hh.yaml");
        let output = command.args(["-o", "json"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The one number that a query asks for.
    fn count(&self, sql: &str) -> u64 {
        let rows = self.amend(&["query", sql], 0);
        let row = rows[0].as_object().unwrap();
        row.values().next().unwrap().as_u64().unwrap()
    }

    /// Every row that a node was given is a parent of what it made, or of a reject of it.
    fn conserves(&self, from: &str, made: &str, node: &str, each: u64) {
        let lost = format!("(select parents from rejects where node = '{node}')");
        let unnested = |of: &str| format!("(select unnest(parents) as parent from {of} as made)");
        let given = self.count(&format!("select count(*) from {from} as given"));
        assert!(given > 1_000, "{node} is given {given} rows");
        let unaccounted = format!(
            "select count(*) from {from} as given
             where row_id not in {} and row_id not in {}",
            unnested(made),
            unnested(&lost)
        );
        assert_eq!(self.count(&unaccounted), 0, "rows lost silently at {node}");
        let out = format!(
            "select count(*) from {} as p where parent in (select row_id from {from} as given)",
            unnested(made)
        );
        let gone = format!(
            "select count(*) from {} as p where parent in (select row_id from {from} as given)",
            unnested(&lost)
        );
        assert_eq!(self.count(&out) + self.count(&gone), given * each, "rows of {node}");
    }
}

/// What is given to each node that makes rows of rows: `(given, made, node, rows made of one)`.
fn steps() -> Vec<(String, String, &'static str, u64)> {
    let mut steps = vec![
        ("prompts".to_owned(), "drafts".to_owned(), "drafts", 1),
        ("prompts".to_owned(), "pairs".to_owned(), "pairs", 2),
    ];
    let of_round = |table: &str, round: u64| {
        format!("(select row_id, parents from {table} where round = {round})")
    };
    let table = |table: &str| format!("\"{table}\"");
    for round in 1..=ROUNDS {
        let before = match round {
            1 => table("drafts"),
            _ => of_round("revisions", round - 1),
        };
        let critiques = of_round("\"revisions.critiques\"", round);
        steps.push((before, critiques.clone(), "revisions.critiques", 1));
        steps.push((critiques, of_round("revisions", round), "revisions", 1));
    }
    steps
}

#[test]
fn every_row_of_a_real_file_is_accounted_for_at_every_node() {
    let Some(file) = data("hh-rlhf/harmless-base-test.jsonl.gz") else { return };
    let Some(principles) = data("cai/prompts") else { return };
    let dir = tempfile::tempdir().unwrap();
    let server = FakeServer::with(json!({ "permanent_every": REFUSED, "keep_bodies": false }));
    let pipelines = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    // One request a question: the server that checks these counts is a slow one.
    let written = fs::read_to_string(pipelines.join("hh.yaml")).unwrap();
    let written = written.replace("scoring: auto", "scoring: top_logprobs");
    fs::write(dir.path().join("hh.yaml"), written).unwrap();
    fs::copy(file, dir.path().join("hh.jsonl.gz")).unwrap();
    fs::create_dir(dir.path().join("constitutions")).unwrap();
    let imported = Command::new(env!("CARGO_BIN_EXE_amend")).arg("import").arg(principles).output();
    fs::write(dir.path().join("constitutions/hh.yaml"), imported.unwrap().stdout).unwrap();
    let lab = Lab { dir, server };
    let report = lab.amend(&["run", "hh.yaml"], 3);

    let lines = lab.count("select count(*) from prompts")
        + lab.count("select count(*) from rejects where node = 'prompts'");
    assert_eq!(lines, 1_766);
    let twice = "select count(*) from (select source_line from prompts union select source_line
        from rejects where node = 'prompts')";
    assert_eq!(lab.count(twice), lines, "each line is there once");

    for (from, made, node, each) in steps() {
        lab.conserves(&from, &made, node, each);
    }
    // A pair has two parents; one whose sibling failed is a reject of the other.
    let pairs = lab.count("select count(*) from preferences");
    let broken = lab.count(
        "select count(*) from rejects where node = 'preferences' and reason = 'parent_rejected'",
    );
    let judged = lab.count(
        "select count(*) from rejects where node = 'preferences' and reason <> 'parent_rejected'",
    );
    assert_eq!(2 * (pairs + judged) + broken, lab.count("select count(*) from pairs"));
    assert!(pairs > 1_000 && broken > 0 && judged > 0, "{pairs} {broken} {judged}");
    // The mix takes all rounds as they are.
    let mixed = lab.count("select count(*) from sl_data");
    assert_eq!(mixed, lab.count("select count(*) from revisions"));

    assert_eq!(lab.count("select count(*) from rejects where detail = '' or reason = ''"), 0);
    let rejects: u64 = report["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["rejects"].as_u64().unwrap())
        .sum();
    assert_eq!(lab.count("select count(*) from rejects"), rejects);
    let again = lab.amend(&["run", "hh.yaml"], 3);
    assert_eq!((&again["calls"]["made"], &again["digest"]), (&json!(0), &report["digest"]));
}
