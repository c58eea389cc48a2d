//! Trainings by the binary, from end to end: held, done again after an edit, and killed inside.
//!
//! The models that are trained are tiny and real; those that are asked are a server in another
//! process, which counts, or a checkpoint.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use amend::engine::compile::{World, compile};
use amend::engine::local::models;
use amend::engine::rows::{Lineage, Rows};
use amend::engine::session::Source;
use amend::engine::train::{Held, Training};
use amend::model::{Answer, CallError, Estimator, Request};
use amend::operators::{ModelRef, Predicate, read};
use amend::record::{Id, Relation, read::read as read_files};
use amend::spec::Model;
use amend::spec::op::Read;
use amend::store::manifest::Mark;
use amend::store::{Memo, Snapshot, Store};
use serde_json::{Value, json};

use crate::durable::tables;
use crate::oracle::oracle;
use crate::support::server::FakeServer;
use crate::support::shared::data;
use crate::torch_tiny::fixture;

const IN_FLIGHT: u64 = 16;

/// A folder with a pipeline named `bench`, and the server that it asks.
pub struct Bench {
    pub dir: tempfile::TempDir,
    server: FakeServer,
}

impl Bench {
    pub fn new(nodes: Value, model: Option<Value>) -> Bench {
        let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::start());
        let asked = || json!({ "endpoint": server.base_url(), "name": "fake", "max_in_flight": IN_FLIGHT, "scoring": "top_logprobs" });
        let pipeline = json!({
            "name": "bench", "seed": 5, "constitution": "constitution.yaml",
            "models": { "m": model.unwrap_or_else(asked) }, "nodes": nodes,
        });
        fs::write(dir.path().join("pipeline.yaml"), pipeline.to_string()).unwrap();
        let principle = |n: usize| {
            json!({
                "id": format!("p{n:02}"), "critique": format!("what breaks rule {n}?"),
                "revise": format!("keep rule {n}"), "judge": format!("which keeps rule {n}?"),
            })
        };
        let principles: Vec<Value> = (0..16).map(principle).collect();
        let text = json!({ "principles": principles }).to_string();
        fs::write(dir.path().join("constitution.yaml"), text).unwrap();
        Bench { dir, server }
    }

    /// So many prompts of our own, as `prompts.jsonl`.
    fn prompts(self, rows: usize) -> Bench {
        let prompt = |n: usize| json!({ "prompt": format!("question {n}: how?") }).to_string();
        let prompts: Vec<String> = (0..rows).map(prompt).collect();
        fs::write(self.dir.path().join("prompts.jsonl"), prompts.join("\n")).unwrap();
        self
    }

    pub fn store(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("pipeline.yaml")
    }

    fn command(&self, verb: &str, store: &Path, workers: usize) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amend"));
        command.arg(verb).arg(self.file()).arg("--store").arg(store);
        command.args(["-o", "json", "-q", "--workers", &workers.to_string()]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs to the end, with or without rejects, and gives the JSON.
    pub fn run(&self, verb: &str, store: &Path, workers: usize) -> Value {
        let output = self.command(verb, store, workers).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 3)), "{verb}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn edit(&self, from: &str, to: &str) {
        let path = self.dir.path().join("constitution.yaml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(path, text.replace(from, to)).unwrap();
    }
}

/// A model of a few thousand weights.
pub fn scratch() -> Value {
    let architecture = json!({
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 256,
    });
    json!({ "scratch": { "architecture": architecture, "tokenizer": { "vocab_size": 300 } } })
}

/// The whole method: both stages, and all three trainings.
fn method(epochs: u32) -> Value {
    let short = json!({ "model": "m", "max_tokens": 12 });
    let train = json!({ "epochs": epochs, "batch_size": 8, "max_length": 192, "logging_steps": 1 });
    let with = |mut base: Value, more: Value| {
        let more = more.as_object().unwrap().clone();
        base.as_object_mut().unwrap().extend(more);
        base
    };
    json!({
        "prompts": { "read": { "path": "prompts.jsonl" } },
        "drafts": { "sample": with(short.clone(), json!({ "from": "prompts" })) },
        "revisions": { "repeat": { "from": "drafts", "times": 2, "critique": short, "revise": short } },
        "sl": { "train-sl": with(train.clone(), json!({ "from": "revisions", "init": scratch() })) },
        "pairs": { "sample": with(short.clone(), json!({ "from": "prompts", "n": 2 })) },
        "preferences": { "pairwise-judge": { "from": "pairs", "model": "m" } },
        "pm": { "train-pm": with(train, json!({ "from": "preferences", "init": "sl" })) },
        "rl": { "ppo-update": {
            "prompts": "prompts", "policy": "sl", "reward": "pm", "batch_size": 8,
            "total_episodes": 8 * epochs, "num_ppo_epochs": 2, "response_length": 8, "logging_steps": 1,
        } },
        "answers": { "sample": { "from": "prompts", "model": "rl", "max_tokens": 8 } },
    })
}

/// The entry of a node in a report or a plan.
pub fn node<'a>(document: &'a Value, name: &str) -> &'a Value {
    let mut nodes = document["nodes"].as_array().unwrap().iter();
    nodes.find(|node| node["name"] == name).unwrap_or_else(|| panic!("{name} in {document}"))
}

pub fn made(report: &Value) -> u64 {
    report["calls"]["made"].as_u64().unwrap()
}

pub fn latest(store: &Path) -> Snapshot {
    Store::new(store).snapshots("bench").latest().unwrap().unwrap()
}

/// The files as the engine is given them, for the oracle.
struct FileWorld {
    rows: Rows,
    held: BTreeMap<String, Held>,
}

impl World for FileWorld {
    fn read(&self, node: &str, op: &Read) -> Result<Arc<Source>, String> {
        let inputs = read::inputs(op).unwrap();
        let read = read_files(&inputs.files, &read::options(op, node)).unwrap();
        let adopt = |(batch, ids): (amend::record::Batch, Vec<(Id, Id)>)| {
            for row in batch.iter() {
                let root = row.id("root_id").unwrap();
                let parents = row.ids("parents");
                self.rows.descend(row.row_id(), || Lineage { root, parents, sibling: 0 });
            }
            self.rows.keep(batch, &ids)
        };
        let rows = read.rows.into_iter().flat_map(adopt).collect();
        Ok(Arc::new(Source { rows, rejects: adopt(read.rejects) }))
    }

    fn fingerprint(&self, _name: &str, model: &Model) -> Result<Id, String> {
        models::fingerprint(model)
    }

    fn estimator(&self, _name: &str, _model: &Model) -> Result<Option<Estimator>, String> {
        Ok(None)
    }

    fn predicate(&self, _sql: &str, _over: Relation) -> Result<Arc<dyn Predicate>, String> {
        Err("the pipelines here have no SQL".to_owned())
    }

    fn last(&self, node: &str) -> Option<Held> {
        self.held.get(node).copied()
    }
}

/// What `hold` promises somebody whose SL model took a week: an edit is drafted, critiqued and
/// revised, and what is below the model stays.
#[test]
fn a_held_training_stops_an_edit_of_real_prompts_where_it_is() {
    let Some(published) = data("hh-rlhf/harmless-base-test.jsonl.gz") else { return };
    let short = json!({ "model": "m", "max_tokens": 16 });
    let nodes = json!({
        "prompts": { "read": { "path": published, "format": "hh-rlhf", "limit": 1060 } },
        "drafts": { "sample": { "from": "prompts", "model": "m", "max_tokens": 16 } },
        "revisions": { "repeat": { "from": "drafts", "times": 4, "critique": short, "revise": short } },
        "sl": { "train-sl": {
            "from": { "rows": "revisions", "share": 0.05 }, "init": scratch(), "on_change": "hold",
            "batch_size": 32, "max_length": 128,
        } },
        "few": { "read": { "path": published, "format": "hh-rlhf", "limit": 12 } },
        "pairs": { "sample": { "from": "few", "model": "sl", "n": 2, "max_tokens": 8 } },
        "preferences": { "pairwise-judge": { "from": "pairs", "model": "m" } },
    });
    let bench = Bench::new(nodes, None);
    let store = bench.store("store");
    let first = bench.run("run", &store, 1);
    assert!(node(&first, "prompts")["rows"].as_u64().unwrap() >= 1000, "{first}");
    assert!(node(&first, "preferences")["rows"].as_u64().unwrap() > 0, "{first}");
    let before = Memo::open_read_only(&store.join("calls")).unwrap();
    let snapshot = latest(&store);
    let checkpoint = snapshot.manifest().nodes["sl"].node.checkpoint.clone().unwrap();
    let held = Held { recipe: checkpoint.recipe.parse().unwrap(), weights: checkpoint.weights };

    bench.edit("what breaks rule 3?", "what, if anything, breaks rule 3?");
    let plan = bench.run("plan", &store, 1);
    assert_eq!(node(&plan, "sl")["training"]["state"], "held");
    bench.server.reset();
    let report = bench.run("run", &store, 1);
    let asked = bench.server.stats().calls;

    let after = Memo::open_read_only(&store.join("calls")).unwrap();
    let world = FileWorld { rows: Rows::default(), held: [("sl".to_owned(), held)].into() };
    let plan_of_files = amend::plan::load(&bench.file(), &[], &|_: &str| None).unwrap();
    let desired = compile(&plan_of_files, &world, &[]).unwrap();
    let remembered = |model: &ModelRef, request: &Request| -> Result<Answer, CallError> {
        let outcome = after.get_outcome(&request.key(model.fingerprint)).unwrap();
        outcome.expect("what the oracle asks was asked").map_err(|failure| CallError::Permanent {
            status: failure.status,
            message: failure.message,
            too_long: failure.too_long,
        })
    };
    let no_weights = |_: &Training, _: &[(Id, Id)]| -> Id { panic!("nothing is trained") };
    let truth = oracle(&desired, &world.rows, &remembered, &no_weights);
    let is_new = |key: &&amend::record::CallKey| !before.contains(key);
    let needed = truth.calls.keys().filter(is_new).count() as u64;
    assert_eq!((asked, made(&report)), (needed, needed), "calls at the server, and reported");
    assert_eq!(after.len() as u64, before.len() as u64 + needed);
    // 1,060 prompts draw 4 times of 16, and what is revised anew is critiqued anew.
    assert!((500..4000).contains(&needed), "{needed}");

    for below in ["pairs", "preferences"] {
        assert_eq!(node(&report, below)["calls"]["made"], 0, "calls of {below}");
        assert_eq!(node(&report, below)["digest"], node(&first, below)["digest"], "{below}");
        assert!(latest(&store).manifest().nodes[below].node.marks.contains(&Mark::Stale));
    }
    let sl = latest(&store).manifest().nodes["sl"].node.clone();
    assert!(sl.marks.contains(&Mark::Held));
    let kept = sl.checkpoint.unwrap();
    assert_eq!((kept.weights, kept.stale), (held.weights, true));
    assert_ne!(node(&report, "revisions")["digest"], node(&first, "revisions")["digest"]);
}

/// Edits a pipeline after a run, and holds what is published against a run from an empty store,
/// for one, two and three workers.
fn retrained_as_from_nothing(model: Option<Value>) {
    let bench = Bench::new(method(1), model).prompts(24);
    let stores: Vec<(usize, PathBuf)> =
        (1..=3).map(|workers| (workers, bench.store(&format!("workers-{workers}")))).collect();
    let mut before = Vec::new();
    for (workers, store) in &stores {
        let report = bench.run("run", store, *workers);
        for trained in ["sl", "pm", "rl"] {
            assert_eq!(node(&report, trained)["rows"], 1, "{report}");
        }
        assert!(node(&report, "preferences")["rows"].as_u64().unwrap() > 0, "{report}");
        before.push(tables(store));
    }
    bench.edit("what breaks rule 3?", "what, if anything, breaks rule 3?");
    let scratch = bench.store("scratch");
    bench.run("run", &scratch, 1);
    let expected = tables(&scratch);
    for ((workers, store), before) in stores.iter().zip(before) {
        let report = bench.run("run", store, *workers);
        assert!(made(&report) > 0, "the edit reached a row");
        let now = tables(store);
        assert_ne!(now, before);
        let names: Vec<_> = now.keys().collect();
        assert_eq!(names, expected.keys().collect::<Vec<_>>(), "{workers} workers");
        for (name, bytes) in &now {
            assert!(expected[name] == *bytes, "{}: {workers} workers", name.display());
        }
    }
}

#[test]
fn after_an_edit_the_tables_are_those_of_a_run_from_nothing_with_models_behind_http() {
    retrained_as_from_nothing(None);
}

#[test]
fn after_an_edit_the_tables_are_those_of_a_run_from_nothing_with_local_models() {
    // The tiny model of the fixtures, which reads further: a judge's question is longer than 128.
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"] {
        let bytes = fs::read(fixture("llama_tiny").join(file)).unwrap();
        fs::write(dir.path().join(file), bytes).unwrap();
    }
    let config = fs::read_to_string(dir.path().join("config.json")).unwrap();
    let (short, long) = (r#""max_position_embeddings": 128"#, r#""max_position_embeddings": 512"#);
    assert!(config.contains(short));
    fs::write(dir.path().join("config.json"), config.replace(short, long)).unwrap();
    retrained_as_from_nothing(Some(json!({ "checkpoint": dir.path(), "format": "transcript" })));
}

/// How many trainings a store has finished, and whether one is under way in it.
fn trainings(store: &Path) -> (usize, bool) {
    let count = |dir: &str, is: &dyn Fn(&str) -> bool| {
        let entries = fs::read_dir(store.join(dir)).into_iter().flatten().flatten();
        entries.filter(|entry| is(&entry.file_name().to_string_lossy())).count()
    };
    let finished = count("trainings", &|name| !name.starts_with('.'));
    (finished, count("checkpoints", &|name| name.starts_with(".tmp-")) > 0)
}

/// Lets a run go on until so many trainings are finished and the next is under way, and kills it.
fn kill_inside(mut child: Child, store: &Path, finished: usize) {
    while trainings(store) != (finished, true) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before training {finished}");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(trainings(store), (finished, true), "it was killed inside the training");
}

/// What a user sees whose machine goes down while a model is trained.
#[test]
fn a_run_that_is_killed_inside_each_training_goes_on_where_it_was() {
    let bench = Bench::new(method(12), None).prompts(40);
    let undisturbed = bench.store("undisturbed");
    let total = made(&bench.run("run", &undisturbed, 1));
    let expected = tables(&undisturbed);
    for (finished, training) in ["sl", "pm", "rl"].into_iter().enumerate() {
        bench.server.reset();
        let store = bench.store(training);
        let child = bench.command("run", &store, 1).spawn().unwrap();
        kill_inside(child, &store, finished);
        let remembered = Memo::open_read_only(&store.join("calls")).unwrap().len() as u64;
        let again = made(&bench.run("run", &store, 1));
        assert_eq!(again, total - remembered, "no key that the memo holds is asked again");
        let local = node(&bench.run("plan", &store, 1), "answers")["calls"]["total"].clone();
        let repeats = bench.server.stats().calls - (total - local.as_u64().unwrap());
        assert!(repeats <= IN_FLIGHT, "{repeats} requests twice, killed inside {training}");
        assert!(tables(&store) == expected, "killed inside {training}");
    }
}
