//! Damage in a store: it is named, it is never read as data, and the next run puts it in order.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cli_run::{Lab, ROWS, node};

/// Flips one bit in the middle of a file, whoever may write it.
pub(crate) fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    // Not in place: a file that snapshots share has one inode.
    let aside = path.with_extension("flipped");
    fs::write(&aside, bytes).unwrap();
    fs::rename(aside, path).unwrap();
}

/// The only file of a kind of a node, in the last snapshot.
fn file(lab: &Lab, kind: &str, node: &str) -> PathBuf {
    let tables = lab.dir.path().join(".amend/small/tables").canonicalize().unwrap();
    let dir = tables.parent().unwrap().join(kind).join(node);
    let mut files = fs::read_dir(dir).unwrap();
    files.next().unwrap().unwrap().path()
}

/// The last part of a path: messages have it as it was given.
fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// What `amend verify` says, with its exit code.
fn verify(lab: &Lab) -> (i32, Value) {
    let (code, stdout, stderr) = lab.amend(&["verify", "-o", "json"]);
    (code, serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout}{stderr}")))
}

#[test]
fn a_whole_store_is_verified_and_a_store_that_is_not_there_is_said() {
    let lab = Lab::new(json!({}));
    assert_eq!(lab.amend(&["verify", "--store", "nowhere"]).0, 2);
    assert_eq!(lab.amend(&["run", "small.yaml"]).0, 0);
    let (code, found) = verify(&lab);
    assert_eq!((code, &found["whole"], &found["faults"]), (0, &json!(true), &json!([])));
    let checked = &found["checked"];
    assert_eq!((&checked["snapshots"], &checked["calls"]), (&json!(1), &json!(1)));
    assert!(checked["files"].as_u64().unwrap() >= 2 * 5, "tables and ids of five nodes: {checked}");
    let (_, text, _) = lab.amend(&["verify"]);
    assert!(text.contains("nothing is damaged"), "{text}");
}

#[test]
fn a_damaged_table_is_no_reason_to_do_nothing_and_is_made_again_without_a_call() {
    let lab = Lab::new(json!({}));
    let first = lab.json(&["run", "small.yaml"]);
    let table = file(&lab, "tables", "drafts");
    let whole = fs::read(&table).unwrap();
    let damages: [&dyn Fn(); 3] = [&|| flip(&table), &|| fs::remove_file(&table).unwrap(), &|| {
        fs::remove_dir_all(table.parent().unwrap()).unwrap();
    }];
    for damage in damages {
        damage();
        let (code, found) = verify(&lab);
        let fault = &found["faults"][0];
        assert_eq!((code, &fault["kind"], &fault["repaired"]), (1, &json!("table"), &json!(false)));
        assert_eq!(fault["path"], json!(table), "{found}");
        let (code, said, _) = lab.amend(&["verify"]);
        assert!(code == 1 && said.contains("run its pipeline again"), "{said}");
        let again = lab.json(&["run", "small.yaml"]);
        assert_eq!((&again["snapshot"], &again["calls"]["made"]), (&first["snapshot"], &json!(0)));
        assert_eq!(fs::read(&table).unwrap(), whole, "its bytes are a function of the rows");
        assert_eq!(verify(&lab).0, 0);
    }
    assert_eq!(lab.server.stats().calls as usize, 3 * ROWS);
}

#[test]
fn a_damaged_table_is_not_taken_over_into_the_next_snapshot() {
    let lab = Lab::new(json!({}));
    lab.json(&["run", "small.yaml"]);
    let older = file(&lab, "tables", "drafts");
    flip(&older);
    lab.constitution("Say once more what is wrong.");
    let (code, _, said) = lab.amend(&["run", "small.yaml"]);
    assert!(code == 0 && said.contains(&name(&older)), "it is named: {said}");
    let newer = file(&lab, "tables", "drafts");
    assert!(newer != older && newer.file_name() == older.file_name());
    let (code, found) = verify(&lab);
    assert_eq!(code, 0, "the older file has the bytes of the newer again: {found}");
    assert_eq!(found["faults"][0]["repaired"], json!(true));
    assert_eq!(fs::read(newer).unwrap(), fs::read(older).unwrap());
    assert_eq!(verify(&lab).1["faults"], json!([]));
}

#[test]
fn a_changed_mode_or_name_of_a_table_leaves_nothing_to_do() {
    use std::os::unix::fs::PermissionsExt as _;

    let lab = Lab::new(json!({}));
    lab.json(&["run", "small.yaml"]);
    let table = file(&lab, "tables", "drafts");
    fs::set_permissions(&table, fs::Permissions::from_mode(0o644)).unwrap();
    fs::hard_link(&table, lab.dir.path().join("mine.parquet")).unwrap();
    let store = lab.dir.path().join(".amend");
    let seen = || (files(&store.join("calls")), files(table.parent().unwrap()));
    let before = seen();
    let (code, _, said) = lab.amend(&["run", "small.yaml"]);
    assert_eq!((code, said.as_str(), seen()), (0, "", before));
    assert_eq!(verify(&lab).0, 0);
}

#[test]
fn damaged_ids_are_read_from_the_rows_by_plans_and_put_in_order() {
    let lab = Lab::new(json!({}));
    lab.json(&["run", "small.yaml"]);
    let ids = file(&lab, "ids", "drafts");
    let whole = fs::read(&ids).unwrap();
    flip(&ids);
    let (code, stdout, said) = lab.amend(&["plan", "small.yaml", "-o", "json"]);
    let plan: Value = serde_json::from_str(&stdout).unwrap();
    assert!(code == 0 && said.contains(&name(&ids)), "{said}");
    let rows = &node(&plan, "drafts")["rows"];
    assert_eq!((&rows["total"], &rows["changed"]), (&json!(ROWS), &json!(0)), "{plan}");

    flip(&file(&lab, "tables", "drafts"));
    let (_, stdout, said) = lab.amend(&["plan", "small.yaml", "-o", "json"]);
    let plan: Value = serde_json::from_str(&stdout).unwrap();
    let rows = &node(&plan, "drafts")["rows"];
    assert!(said.contains("all rows of \"drafts\" count as changed"), "{said}");
    assert_eq!((&rows["total"], &rows["changed"]), (&json!(ROWS), &json!(ROWS)), "{plan}");
    assert_eq!(lab.amend(&["run", "small.yaml"]).0, 0);

    fs::remove_file(&ids).unwrap();
    let (code, found) = verify(&lab);
    assert_eq!((code, &found["faults"][0]["repaired"]), (0, &json!(true)), "{found}");
    assert_eq!(fs::read(&ids).unwrap(), whole);
}

#[test]
fn a_damaged_memo_costs_the_lost_calls_alone_and_no_query_of_other_tables() {
    let lab = Lab::new(json!({}));
    // One log a run; a frame at least for each.
    lab.json(&["run", "small.yaml"]);
    lab.constitution("Say at length what is wrong.");
    lab.json(&["run", "small.yaml"]);
    let asked = lab.server.stats().calls;
    let calls = lab.dir.path().join(".amend/calls");
    let log = files(&calls).remove(0);
    flip(&log);

    let (code, stdout, said) =
        lab.amend(&["query", "select count(*) as n from drafts", "-o", "json"]);
    assert_eq!((code, said.as_str()), (0, ""), "the memo is not opened: {stdout}");
    let (code, _, said) = lab.amend(&["query", "select count(*) from calls"]);
    assert!(code == 0 && said.contains("lost") && said.contains(&name(&log)), "{said}");
    let aside = lab.dir.path().join("copy");
    let copied = std::process::Command::new("cp").arg("-a").args([&calls, &aside]).status();
    assert!(copied.unwrap().success());
    let (code, found) = verify(&lab);
    assert_eq!((code, &found["faults"][0]["kind"]), (1, &json!("calls")));
    assert_eq!(verify(&lab).0, 0, "what was damaged is set aside");
    fs::remove_dir_all(&calls).unwrap();
    fs::rename(aside, &calls).unwrap();

    // The pipeline as it was at first: its calls were in the damaged log.
    lab.constitution("Say what is wrong.");
    let (_, stdout, _) = lab.amend(&["plan", "small.yaml", "-o", "json"]);
    let plan: Value = serde_json::from_str(&stdout).unwrap();
    let (code, stdout, said) = lab.amend(&["run", "small.yaml", "-o", "json"]);
    assert!(code == 0 && said.contains("lost"), "{said}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let made = report["calls"]["made"].as_u64().unwrap();
    assert!(made > 0 && made <= 3 * ROWS as u64, "{made}");
    assert_eq!(lab.server.stats().calls, asked + made);
    assert!(made <= plan["totals"]["calls"]["to_make"].as_u64().unwrap(), "{plan}");
    assert_eq!(verify(&lab).0, 0);
    assert_eq!(files(&calls.join("damaged")).len(), 1, "the damaged file is kept");
    let again = lab.json(&["run", "small.yaml"]);
    assert_eq!(again["calls"]["made"], json!(0));
}

#[test]
fn a_damaged_or_newer_manifest_is_named() {
    let lab = Lab::new(json!({}));
    lab.json(&["run", "small.yaml"]);
    let manifest = lab.dir.path().join(".amend/small/snapshots/000001/manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let replace = |text: &str| {
        fs::remove_file(&manifest).unwrap();
        fs::write(&manifest, text).unwrap();
    };
    // In what no digest covers: what the run was given.
    replace(&text.replacen("max_tokens: 20", "max_tokens: 30", 1));
    let (code, _, said) = lab.amend(&["query", "select 1"]);
    assert!(code == 1 && said.contains("another checksum"), "{said}");
    assert_eq!(verify(&lab).1["faults"][0]["kind"], json!("manifest"));
    // A later version may write more, and no checksum.
    let (head, _) = text.rsplit_once(",\n  \"checksum\"").unwrap();
    replace(&format!("{}\n}}", head.replacen("\"format\": 1", "\"format\": 2", 1)));
    let (code, _, said) = lab.amend(&["run", "small.yaml"]);
    assert!(code == 1 && said.contains("was written by a newer amend"), "{said}");
    replace(&format!("{head}\n}}"));
    assert_eq!(lab.amend(&["run", "small.yaml"]).0, 0, "one of an earlier version has none");
}

#[cfg(feature = "torch")]
mod models {
    use super::{flip, name};
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use serde_json::{Value, json};

    const PIPELINE: &str = "\
name: small
seed: 5
nodes:
  taught: { read: { path: taught.jsonl, relation: demonstrations } }
  prompts: { read: { path: prompts.jsonl } }
  sl:
    train-sl:
      from: taught
      init: { scratch: { architecture: { hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
        max_position_embeddings: 64 }, tokenizer: { vocab_size: 300 } } }
      learning_rate: 0.01
      epochs: 2
      batch_size: 8
      threads: 1
  answers: { sample: { from: prompts, model: sl, max_tokens: 6, temperature: 0 } }
";

    struct Bench {
        dir: tempfile::TempDir,
    }

    impl Bench {
        /// A folder with a pipeline that has run.
        fn new() -> Bench {
            let bench = Bench { dir: tempfile::tempdir().unwrap() };
            bench.write("small.yaml", PIPELINE);
            let row = |n: usize| json!({ "prompt": format!("q{n}?"), "completion": "No." });
            let rows: Vec<String> = (0..16).map(|n| row(n).to_string()).collect();
            bench.write("taught.jsonl", &rows.join("\n"));
            let prompts: Vec<String> =
                (0..16).map(|n| json!({ "prompt": format!("q{n}?") }).to_string()).collect();
            bench.write("prompts.jsonl", &prompts.join("\n"));
            bench.json(&["run", "small.yaml"]);
            bench
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.dir.path().join(name), text).unwrap();
        }

        fn amend(&self, arguments: &[&str]) -> (i32, String, String) {
            let mut command = Command::new(env!("CARGO_BIN_EXE_amend"));
            command.current_dir(self.dir.path()).args(arguments);
            command.env_remove("AMEND_STORE").env_remove("AMEND_API_KEY");
            let output = command.output().unwrap();
            let text = |bytes| String::from_utf8(bytes).unwrap();
            (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
        }

        fn json(&self, arguments: &[&str]) -> (Value, String) {
            let (code, stdout, stderr) = self.amend(&[arguments, &["-o", "json"]].concat());
            assert_eq!(code, 0, "{arguments:?}: {stdout}{stderr}");
            (serde_json::from_str(&stdout).unwrap(), stderr)
        }

        fn store(&self) -> PathBuf {
            self.dir.path().join(".amend")
        }

        /// The trained model's directory.
        fn model(&self) -> PathBuf {
            self.store().join("small/checkpoints/sl").canonicalize().unwrap()
        }

        fn training(plan: &Value) -> &Value {
            let mut nodes = plan["nodes"].as_array().unwrap().iter();
            &nodes.find(|node| node["name"] == "sl").unwrap()["training"]["state"]
        }
    }

    fn bytes(path: &Path) -> Vec<u8> {
        fs::read(path).unwrap()
    }

    #[test]
    fn a_flipped_bit_in_a_model_is_never_asked_and_trained_away() {
        let bench = Bench::new();
        let (first, _) = bench.json(&["run", "small.yaml"]);
        for name in ["model.safetensors", "tokenizer.json", "config.json"] {
            let model = bench.model();
            let weights = model.join(name);
            let whole = bytes(&weights);
            flip(&weights);
            let named = model.file_name().unwrap().to_str().unwrap();
            for verb in ["chat", "serve"] {
                for of in ["sl", model.to_str().unwrap()] {
                    let (code, _, said) = bench.amend(&[verb, of]);
                    assert!(code == 1 && said.contains(named), "{verb} {of}: {said}");
                }
            }
            let (code, stdout, _) = bench.amend(&["verify", "-o", "json"]);
            let found: Value = serde_json::from_str(&stdout).unwrap();
            assert_eq!((code, &found["faults"][0]["kind"]), (1, &json!("checkpoint")), "{found}");
            let (plan, said) = bench.json(&["plan", "small.yaml"]);
            assert_eq!(Bench::training(&plan), "retrain", "{plan}");
            assert!(said.contains(named) && said.contains("damaged"), "{said}");
            let (again, said) = bench.json(&["run", "small.yaml"]);
            assert!(said.contains(named), "{said}");
            assert_eq!(
                (&again["digest"], &again["snapshot"]),
                (&first["digest"], &first["snapshot"])
            );
            assert_eq!(bytes(&weights), whole, "the recipe gives the same weights");
            assert_eq!(bench.amend(&["verify"]).0, 0);
            let (quiet, said) = bench.json(&["run", "small.yaml"]);
            assert_eq!((quiet["calls"]["made"].as_u64(), said.as_str()), (Some(0), ""));
        }
    }

    #[test]
    fn a_damaged_model_that_is_held_is_refused_and_nothing_is_published() {
        let bench = Bench::new();
        flip(&bench.model().join("model.safetensors"));
        bench.write("prompts.jsonl", "{\"prompt\": \"another?\"}\n");
        let (code, _, said) = bench.amend(&["run", "small.yaml", "--hold", "sl"]);
        assert!(code == 1 && said.contains("model \"sl\" is not asked"), "{said}");
        let (log, _) = bench.json(&["log"]);
        assert_eq!(log["snapshots"].as_array().unwrap().len(), 1);
        let (calls, _) =
            bench.json(&["query", "select count(*) as n from calls where error is not null"]);
        assert_eq!(calls[0]["n"], json!(0), "no failure is remembered");
        bench.json(&["run", "small.yaml"]);
    }

    #[test]
    fn a_damaged_record_of_a_training_is_named_and_the_training_done_again() {
        let bench = Bench::new();
        let trainings = bench.store().join("trainings");
        for ending in [".json", ".rows"] {
            let (before, _) = bench.json(&["run", "small.yaml"]);
            let files = fs::read_dir(&trainings).unwrap().map(|entry| entry.unwrap().path());
            let mut files = files.filter(|path| path.to_str().unwrap().ends_with(ending));
            let record = files.next().unwrap();
            flip(&record);
            let (code, stdout, _) = bench.amend(&["verify", "-o", "json"]);
            let found: Value = serde_json::from_str(&stdout).unwrap();
            let fault = &found["faults"][0];
            assert_eq!((code, &fault["kind"]), (1, &json!("training")), "{found}");
            assert_eq!(fault["path"], json!(record));
            assert!(!record.exists() && bench.amend(&["verify"]).0 == 0, "it is set aside");
            fs::rename(format!("{}.damaged", record.display()), &record).unwrap();
            // Nothing asks for the record while nothing is to do.
            bench.write("prompts.jsonl", &format!("{{\"prompt\": \"more {ending}\"}}\n"));
            let (plan, said) = bench.json(&["plan", "small.yaml"]);
            if ending == ".json" {
                assert_eq!(Bench::training(&plan), "retrain", "{plan}");
                assert!(said.contains(&name(&record)), "{said}");
                let (after, _) = bench.json(&["run", "small.yaml"]);
                assert!(after["digest"] != before["digest"]);
                assert_eq!(bench.amend(&["verify"]).0, 0);
            }
        }
    }
}
