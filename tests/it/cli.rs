//! The command line as a user sees it: exit codes, stdout, stderr.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// What came of a command.
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

/// Runs `amend` in the root of the checkout, without a terminal and without the user's settings.
fn amend(args: &[&str]) -> Ended {
    amend_in(Path::new(env!("CARGO_MANIFEST_DIR")), args)
}

fn amend_in(dir: &Path, args: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_amend"));
    for name in ["AMEND_STORE", "AMEND_LOG", "AMEND_CONSTITUTION"] {
        command.env_remove(name);
    }
    command.current_dir(dir).args(args);
    let output = command.output().expect("the binary was built with this test");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints UTF-8");
    Ended {
        code: output.status.code().expect("no signal ended it"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// The one JSON document of stdout.
fn json_of(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| {
        panic!("{error} in stdout {:?}, stderr {:?}", ended.stdout, ended.stderr)
    })
}

const PAPER: &str = "pipelines/paper.yaml";
const BAD: &str = "tests/bad/ten_mistakes.yaml";

/// The pipeline of the paper with all that it names: a row in each file, and checkpoints that are
/// there and can be opened by nobody.
struct Paper(tempfile::TempDir);

impl Paper {
    fn new() -> Paper {
        let dir = tempfile::tempdir().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for name in ["paper.yaml", "constitutions/harmless.yaml"] {
            write(name, &std::fs::read_to_string(root.join(name)).unwrap());
        }
        for name in ["red_team", "helpful", "red_team_rl", "helpful_rl"] {
            write(&format!("data/{name}.jsonl"), r#"{"prompt": "how?"}"#);
        }
        let pair = |answer| format!("\\n\\nHuman: how?\\n\\nAssistant: {answer}");
        let pair = format!(r#"{{"chosen": "{}", "rejected": "{}"}}"#, pair("so"), pair("no"));
        write("data/helpful_pairs.jsonl", &pair);
        for name in ["pretrained", "helpful"] {
            write(&format!("checkpoints/{name}/config.json"), "{}");
            write(&format!("checkpoints/{name}/model.safetensors"), "");
        }
        Paper(dir)
    }

    fn amend(&self, args: &[&str]) -> Ended {
        amend_in(self.0.path(), args)
    }
}

const GOOD: &str = "paper.yaml";

#[test]
fn a_pipeline_without_mistakes_is_checked_with_0() {
    let paper = Paper::new();
    let ended = paper.amend(&["check", GOOD]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    assert!(ended.stdout.ends_with("nodes, no mistakes\n"), "{}", ended.stdout);
    assert_eq!(paper.amend(&["check", GOOD, "-q"]).stdout, "");
    let document = json_of(&paper.amend(&["check", GOOD, "-o", "json"]));
    assert_eq!((&document["mistakes"], &document["warnings"]), (&json!([]), &json!([])));
}

#[test]
fn mistakes_are_shown_with_their_lines_and_end_with_2() {
    for verb in ["check", "plan", "run", "graph"] {
        let ended = amend(&[verb, BAD]);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{verb}");
        assert!(ended.stderr.contains("ten_mistakes.yaml:"), "{verb}: {}", ended.stderr);
        assert!(ended.stderr.contains("help: "), "{verb}: {}", ended.stderr);
        assert!(ended.stderr.contains("did you mean"), "{verb}: {}", ended.stderr);
    }
}

#[test]
fn mistakes_as_json_have_line_column_and_help() {
    let ended = amend(&["check", BAD, "-o", "json"]);
    assert_eq!(ended.code, 2);
    let mistakes = json_of(&ended)["mistakes"].as_array().expect("a list").clone();
    assert!(mistakes.len() >= 10, "{mistakes:?}");
    assert!(mistakes.iter().all(|one| one["message"].is_string() && one["path"].is_string()));
    assert!(
        mistakes
            .iter()
            .any(|one| one["line"].is_u64() && one["column"].is_u64() && one["help"].is_string())
    );

    let ended = amend(&["-o", "json", "run", BAD]);
    assert_eq!(json_of(&ended)["error"]["kind"], "usage");
    assert_eq!(json_of(&ended)["error"]["mistakes"].as_array().map(Vec::len), Some(mistakes.len()));
}

#[test]
fn colour_is_used_when_asked_for() {
    assert!(!amend(&["check", BAD]).stderr.contains('\u{1b}'));
    assert!(amend(&["check", BAD, "--color", "always"]).stderr.contains('\u{1b}'));
}

#[test]
fn a_value_that_is_set_is_checked_like_one_that_is_written() {
    let paper = Paper::new();
    let ended = paper.amend(&["check", GOOD, "--set", "nodes.sl.train-sl.epochs=2"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let ended = paper.amend(&["check", GOOD, "--set", "nodes.sl.train-sl.epoch=2"]);
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("epochs"), "{}", ended.stderr);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let ended = amend(&["check", "no/such.yaml"]);
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("no/such.yaml"), "{}", ended.stderr);
}

#[test]
fn usage_that_cannot_be_followed_ends_with_2() {
    let paper = Paper::new();
    let wrong: [&[&str]; 9] = [
        &[],
        &["bogus"],
        &["check"],
        &["check", GOOD, "--workers", "0"],
        &["check", GOOD, "--workers", "500"],
        &["check", GOOD, "-o", "csv"],
        &["run", GOOD, "--max-cost", "-1"],
        &["run", GOOD, "--until", "prefrences"],
        &["run", GOOD, "--hold", "drafts"],
    ];
    for args in wrong {
        let ended = paper.amend(args);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{args:?}: {}", ended.stderr);
        assert!(!ended.stderr.is_empty(), "{args:?}");
    }
    let misspelt = paper.amend(&["run", GOOD, "--until", "prefrences"]);
    assert!(misspelt.stderr.contains("did you mean `preferences`?"), "{}", misspelt.stderr);
    let many = paper.amend(&["run", GOOD, "--workers", "500"]);
    assert!(many.stderr.contains("from 1 to 256"), "{}", many.stderr);
}

#[test]
fn help_names_every_subcommand_and_the_exit_codes() {
    let ended = amend(&["--help"]);
    assert_eq!(ended.code, 0);
    for word in [
        "check", "plan", "run", "query", "log", "diff", "explain", "verify", "graph", "schema",
        "import", "75", "130",
    ] {
        assert!(ended.stdout.contains(word), "{word} is not in {}", ended.stdout);
    }
    assert_eq!(amend(&["--version"]).stdout, format!("amend {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_graph_has_every_node_and_says_how_calls_are_fed() {
    let mermaid = amend(&["graph", PAPER]).stdout;
    assert!(mermaid.starts_with("flowchart LR\n"));
    assert!(mermaid.contains("-->|settled|") && mermaid.contains("-->|final|"), "{mermaid}");

    let graph = json_of(&amend(&["graph", PAPER, "-o", "json"]));
    let nodes: Vec<&str> =
        graph["nodes"].as_array().unwrap().iter().filter_map(|n| n["name"].as_str()).collect();
    assert!(nodes.contains(&"drafts") && nodes.contains(&"revisions[4].revise"), "{nodes:?}");
    let edges = graph["edges"].as_array().unwrap();
    let edge = |from: &str, to: &str| {
        edges
            .iter()
            .find(|edge| edge["from"] == from && edge["to"] == to)
            .unwrap_or_else(|| panic!("{from} → {to}"))
    };
    assert_eq!(edge("drafts", "revisions[1].critique")["spends"], "settled");
    assert_eq!(edge("revisions[1].critique", "revisions[1].revise")["spends"], "final");
    assert_eq!(edge("sl", "pairs")["carries"], "model");
    assert!(edge("helpful_samples", "sl_data")["spends"].is_null());
}

#[test]
fn schemas_are_printed_as_they_are_in_the_checkout() {
    for (of, file) in
        [("pipeline", "pipeline.schema.json"), ("constitution", "constitution.schema.json")]
    {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas").join(file);
        assert_eq!(amend(&["schema", of]).stdout, std::fs::read_to_string(path).unwrap());
    }
    let relations = json_of(&amend(&["schema", "relations"]));
    assert_eq!(relations["prompts"]["columns"][0]["name"], "row_id");
}

#[test]
fn an_import_is_a_constitution_and_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let published =
        r#"[{"name": "kind", "critique_request": "Find harm.", "revision_request": "Remove it."}]"#;
    std::fs::write(dir.path().join("published.json"), published).unwrap();
    let printed = amend_in(dir.path(), &["import", "published.json"]);
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    assert!(printed.stdout.contains("id: kind"), "{}", printed.stdout);

    let write = ["import", "published.json", "-o", "ours.yaml"];
    assert_eq!(amend_in(dir.path(), &write).code, 0);
    let text = std::fs::read_to_string(dir.path().join("ours.yaml")).unwrap();
    assert_eq!(text, printed.stdout);
    let again = amend_in(dir.path(), &write);
    assert_eq!(again.code, 2);
    assert!(again.stderr.contains("--force"), "{}", again.stderr);
    assert_eq!(
        amend_in(dir.path(), &["import", "published.json", "-o", "ours.yaml", "--force"]).code,
        0
    );
}

#[test]
fn a_store_that_is_not_there_is_said_to_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&["log"][..], &["diff"], &["explain", "drafts/00"], &["query", "select 1"]] {
        let ended = amend_in(dir.path(), args);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("--store"), "{args:?}: {}", ended.stderr);
    }
    let ended = amend_in(dir.path(), &["log", "--store", "nowhere", "-o", "json"]);
    assert_eq!(ended.code, 2);
    assert!(json_of(&ended)["error"]["message"].as_str().unwrap().contains("nowhere"));
}
