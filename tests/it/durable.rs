//! Durable: killed at any instant, a run goes on without asking again for what it has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use amend::store::Memo;

use crate::support::server::FakeServer;

const IN_FLIGHT: u64 = 16;

/// A pipeline of the SL half and the judge, over prompts of our own.
struct Bench {
    dir: tempfile::TempDir,
    server: FakeServer,
}

impl Bench {
    fn new(rows: usize) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let server = FakeServer::start();
        let prompts: Vec<String> = (0..rows)
            .map(|n| format!("{{\"prompt\": \"question {n}: how does one do thing {}?\"}}", n % 7))
            .collect();
        std::fs::write(dir.path().join("prompts.jsonl"), prompts.join("\n")).unwrap();
        let principles = (0..16).map(|n| {
            format!(
                "  - {{ id: p{n:02}, critique: \"what is wrong by rule {n}?\", \
                 revise: \"write it again by rule {n}\", judge: \"which keeps rule {n}?\" }}"
            )
        });
        let principles: Vec<String> = principles.collect();
        let text = format!("principles:\n{}\n", principles.join("\n"));
        std::fs::write(dir.path().join("constitution.yaml"), text).unwrap();
        let pipeline = format!(
            "name: bench\nseed: 3\nconstitution: constitution.yaml\n\
             models:\n  m: {{ endpoint: \"{}\", name: fake, max_in_flight: {IN_FLIGHT}, scoring: top_logprobs }}\n\
             nodes:\n\
             \x20 prompts: {{ read: {{ path: prompts.jsonl }} }}\n\
             \x20 drafts: {{ sample: {{ from: prompts, model: m, max_tokens: 64 }} }}\n\
             \x20 revisions: {{ repeat: {{ from: drafts, times: 4, critique: {{ model: m, max_tokens: 64 }}, \
             revise: {{ model: m, max_tokens: 64 }} }} }}\n\
             \x20 pairs: {{ sample: {{ from: prompts, model: m, n: 2, max_tokens: 64 }} }}\n\
             \x20 preferences: {{ pairwise-judge: {{ from: pairs, model: m }} }}\n",
            server.base_url()
        );
        std::fs::write(dir.path().join("pipeline.yaml"), pipeline).unwrap();
        Bench { dir, server }
    }

    fn store(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, verb: &str, store: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amend"));
        command.arg(verb).arg(self.dir.path().join("pipeline.yaml"));
        command.arg("--store").arg(store).args(["-o", "json", "-q"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn begin(&self, store: &Path) -> Child {
        self.command("run", store).spawn().unwrap()
    }

    /// Runs to the end and gives the JSON.
    fn run(&self, verb: &str, store: &Path) -> serde_json::Value {
        let output = self.command(verb, store).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{verb}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn edit(&self, from: &str, to: &str) {
        let path = self.dir.path().join("constitution.yaml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        std::fs::write(path, text.replace(from, to)).unwrap();
    }
}

/// Every file of the tables of the current snapshot of the pipeline `bench`, by name.
pub(crate) fn tables(store: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let root = store.join("bench/tables");
    let mut files = BTreeMap::new();
    for table in std::fs::read_dir(&root).unwrap() {
        for file in std::fs::read_dir(table.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let name = path.strip_prefix(&root).unwrap().to_owned();
            files.insert(name, std::fs::read(&path).unwrap());
        }
    }
    files
}

fn made(report: &serde_json::Value) -> u64 {
    report["calls"]["made"].as_u64().unwrap()
}

#[test]
fn a_killed_run_goes_on_where_it_was() {
    let bench = Bench::new(60);
    let undisturbed = bench.store("undisturbed");
    let total = made(&bench.run("run", &undisturbed));
    for percent in [10, 30, 50, 70, 90] {
        bench.server.reset();
        bench.server.config(serde_json::json!({ "latency_ms": 5 }));
        let store = bench.store(&format!("killed-{percent}"));
        let mut child = bench.begin(&store);
        while bench.server.stats().calls < total * percent / 100 {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let remembered = Memo::open_read_only(&store.join("calls")).unwrap().len() as u64;
        let again = made(&bench.run("run", &store));
        assert_eq!(again, total - remembered, "no key that the memo holds is asked again");
        let repeats = bench.server.stats().calls - total;
        assert!(repeats <= IN_FLIGHT, "{repeats} requests twice after {percent} %");
        assert_eq!(tables(&store), tables(&undisturbed), "killed after {percent} %");
    }
}

#[test]
fn a_crash_inside_the_swap_of_snapshots_loses_nothing() {
    let bench = Bench::new(20);
    let undisturbed = bench.store("undisturbed");
    bench.run("run", &undisturbed);
    for point in [
        "snapshot:before_rename",
        "snapshot:before_manifest",
        "snapshot:after_manifest",
        "snapshot:between_links",
    ] {
        let store = bench.store(&point.replace(':', "-"));
        let output = bench.command("run", &store).env("AMEND_CRASH_AT", point).output().unwrap();
        assert!(!output.status.success(), "it crashed at {point}");
        assert_eq!(made(&bench.run("run", &store)), 0, "every call was durable at {point}");
        assert_eq!(tables(&store), tables(&undisturbed), "crashed at {point}");
    }
}

#[test]
fn an_edit_asks_for_what_changed_and_publishes_what_a_run_from_nothing_does() {
    let bench = Bench::new(80);
    let store = bench.store("incremental");
    bench.run("run", &store);
    assert_eq!(made(&bench.run("run", &store)), 0, "nothing changed");
    let before = tables(&store);
    bench.edit("by rule 3?", "by rule 3, said otherwise?");
    let plan = bench.run("plan", &store);
    bench.server.reset();
    let report = bench.run("run", &store);
    let asked = bench.server.stats().calls;
    assert_eq!(asked, made(&report));
    let foretold = plan["totals"]["calls"]["to_make"].as_u64().unwrap();
    assert!((1..=foretold).contains(&asked), "{asked} of up to {foretold}");
    let critiques = |document: &serde_json::Value, key: &str| {
        let nodes = document["nodes"].as_array().unwrap().clone();
        let node = nodes.into_iter().find(|node| node["name"] == "revisions.critiques").unwrap();
        node["calls"][key].as_u64().unwrap()
    };
    assert!(critiques(&report, "made") <= critiques(&plan, "to_make"));

    let scratch = bench.store("scratch");
    bench.run("run", &scratch);
    assert_eq!(tables(&store), tables(&scratch), "as a run from an empty store");

    bench.edit("by rule 3, said otherwise?", "by rule 3?");
    assert_eq!(made(&bench.run("run", &store)), 0, "a revert costs nothing");
    assert_eq!(tables(&store), before);
}

#[test]
fn two_runs_on_one_store_exclude_each_other() {
    let bench = Bench::new(20);
    bench.server.config(serde_json::json!({ "latency_ms": 50 }));
    let store = bench.store("shared");
    let mut child = bench.begin(&store);
    while bench.server.stats().calls == 0 {
        std::thread::yield_now();
    }
    let output = bench.command("run", &store).output().unwrap();
    assert_eq!(output.status.code(), Some(75));
    assert!(child.wait().unwrap().success());
}
