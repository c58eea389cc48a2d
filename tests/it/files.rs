//! The files that a `read` names, through the binary: patterns, folders, lists and data sets of the Hub;
//! what is added, taken away and edited is seen; what is no file is an error and no wait.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with a pipeline that reads.
struct Files(TempDir);

impl Files {
    /// A pipeline of one node, `rows`, with these settings.
    fn reading(settings: &str) -> Files {
        let files = Files(TempDir::new().unwrap());
        files.read(settings);
        files
    }

    fn read(&self, settings: &str) {
        self.write("p.yaml", &format!("name: p\nnodes:\n  rows: {{ read: {{ {settings} }} }}\n"));
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A file of JSON lines with these prompts.
    fn prompts(&self, name: &str, prompts: &[&str]) {
        let lines = prompts.iter().map(|prompt| format!("{}\n", json!({ "prompt": prompt })));
        self.write(name, &lines.collect::<String>());
    }

    fn amend(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amend"));
        command.env_remove("AMEND_STORE").current_dir(self.0.path()).args(args);
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    fn json(&self, args: &[&str]) -> Value {
        let (code, stdout, stderr) = self.amend(&[args, &["-o", "json"]].concat());
        assert!(code == 0 || code == 3, "{args:?}: {stdout}{stderr}");
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error} in {stdout}"))
    }

    /// Runs, and gives the snapshot and a line `source:line prompt` for each row and reject.
    fn rows(&self) -> (u64, String) {
        let report = self.json(&["run", "p.yaml"]);
        let said = |sql: &str| {
            let lines: Vec<String> = self
                .json(&["query", sql])
                .as_array()
                .unwrap()
                .iter()
                .map(|row| row["said"].as_str().unwrap().to_owned())
                .collect();
            lines.join("\n")
        };
        let rows = said(
            "select concat(source, ':', source_line, ' ', text(prompt)) as said from rows \
             order by source, source_line",
        );
        (report["snapshot"].as_u64().unwrap(), rows)
    }

    /// What is said where nothing can be read, a line for each mistake: `plan` and `run` start nothing.
    fn refused(&self) -> String {
        for command in ["plan", "run"] {
            let (code, _, said) = self.amend(&[command, "p.yaml"]);
            assert_eq!(code, 2, "{said}");
        }
        assert!(!self.path(".amend/p/snapshots").exists());
        let document: Value =
            serde_json::from_str(&self.amend(&["check", "p.yaml", "-o", "json"]).1).unwrap();
        let said = |one: &Value| {
            let part = |name: &str| one[name].as_str().unwrap_or("-").to_owned();
            format!("{} {} | {}", one["column"], part("message"), part("help"))
        };
        let all = ["mistakes", "warnings"].map(|of| document[of].as_array().unwrap().clone());
        all.iter().flatten().map(said).collect::<Vec<_>>().join("\n")
    }
}

#[test]
fn a_pattern_a_folder_and_a_list_are_read_in_the_order_of_their_paths() {
    let files = Files::reading("path: data/train-*.jsonl");
    files.prompts("data/train-2.jsonl", &["c"]);
    files.prompts("data/train-1.jsonl", &["a", "b"]);
    files.prompts("data/test-1.jsonl", &["t"]);
    files.write("data/deep/more.csv", "prompt\nd\n");
    files.write("data/notes.txt", "no rows");
    files.write("data/.hidden.jsonl", "no rows");
    let trained = "data/train-1.jsonl:1 a\ndata/train-1.jsonl:2 b\ndata/train-2.jsonl:1 c";
    assert_eq!(files.rows(), (1, trained.to_owned()));
    let ids = |files: &Files| files.json(&["query", "select row_id from rows order by row_id"]);
    let matched = ids(&files);

    for settings in [
        "path: [data/train-2.jsonl, data/train-1.jsonl]",
        "path: [\"data/train-?.jsonl\", data/train-1.jsonl]",
        "path: \"data/train-[0-9].jsonl\", format: jsonl",
    ] {
        files.read(settings);
        assert_eq!(files.rows(), (1, trained.to_owned()), "{settings}");
        assert_eq!(ids(&files), matched);
    }
    files.read("path: data");
    let all = format!("data/deep/more.csv:2 d\ndata/test-1.jsonl:1 t\n{trained}");
    assert_eq!(files.rows(), (2, all.clone()));
    files.read("path: data/");
    assert_eq!(files.rows().1, all);
    files.read("path: data, format: csv");
    assert_eq!(files.rows().1, "data/deep/more.csv:2 d");
    files.read("path: \"data/**/*.csv\"");
    assert_eq!(files.rows().1, "data/deep/more.csv:2 d");

    // One file has the rows that it has among others.
    files.read("path: data/train-1.jsonl");
    files.rows();
    let alone = ids(&files);
    assert!(alone.as_array().unwrap().iter().all(|id| matched.as_array().unwrap().contains(id)));
    // A name with the signs of a pattern is itself where there is such a file.
    files.prompts("data/a[1].jsonl", &["e"]);
    files.prompts("data/a1.jsonl", &["f"]);
    files.read("path: \"data/a[1].jsonl\"");
    assert_eq!(files.rows().1, "data/a[1].jsonl:1 e");
}

#[test]
fn a_file_that_is_added_edited_or_taken_away_is_seen_by_plan_and_run() {
    let files = Files::reading("path: data/*.jsonl");
    files.prompts("data/a.jsonl", &["a"]);
    files.prompts("data/b.jsonl", &["b"]);
    assert_eq!(files.rows().0, 1);
    assert_eq!(files.rows().0, 1);
    let changed =
        |files: &Files| files.json(&["plan", "p.yaml"])["totals"]["rows"]["changed"].clone();
    let follow = |files: &Files| {
        let plan = files.json(&["plan", "p.yaml"]);
        files.write("plan.json", &plan.to_string());
    };
    assert_eq!(changed(&files), 0);
    follow(&files);

    files.prompts("data/c.jsonl", &["c"]);
    assert_eq!(changed(&files), 1);
    let (code, _, said) = files.amend(&["run", "p.yaml", "--plan", "plan.json"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains(r#"the file "data/c.jsonl" is new"#), "{said}");
    let (snapshot, rows) = files.rows();
    assert_eq!((snapshot, rows.lines().count()), (2, 3));

    follow(&files);
    files.prompts("data/b.jsonl", &["b", "b2"]);
    assert_eq!(changed(&files), 1);
    let said = files.amend(&["run", "p.yaml", "--plan", "plan.json"]).2;
    assert!(said.contains(r#"the file "data/b.jsonl" changed"#), "{said}");
    assert_eq!(files.rows().0, 3);

    follow(&files);
    fs::remove_file(files.path("data/a.jsonl")).unwrap();
    assert_eq!(changed(&files), 1);
    let said = files.amend(&["run", "p.yaml", "--plan", "plan.json"]).2;
    assert!(said.contains(r#"the file "data/a.jsonl" is no longer read"#), "{said}");
    let (snapshot, rows) = files.rows();
    assert_eq!((snapshot, rows.lines().count()), (4, 3));
    assert!(!rows.contains("a.jsonl"));
    // Nothing is new: the same is answered at once.
    assert_eq!(files.rows().0, 4);
}

const CARD: &str = "---
license: mit
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: [main/test-0.jsonl]
- config_name: other
  data_files: other.csv
---
# A data set
";

#[test]
fn a_data_set_of_the_hub_is_read_as_its_readme_declares() {
    let files = Files::reading("path: set, split: train");
    files.write("set/README.md", CARD);
    files.prompts("set/main/train-1.jsonl", &["b"]);
    files.prompts("set/main/train-0.jsonl", &["a"]);
    files.prompts("set/main/test-0.jsonl", &["t"]);
    files.write("set/other.csv", "prompt\no\n");
    let train = "set/main/train-0.jsonl:1 a\nset/main/train-1.jsonl:1 b";
    assert_eq!(files.rows(), (1, train.to_owned()));
    files.read("path: set, config: main, split: [test, train]");
    assert_eq!(files.rows().1, format!("set/main/test-0.jsonl:1 t\n{train}"));
    files.read("path: set, config: other");
    assert_eq!(files.rows().1, "set/other.csv:2 o");

    // Another declaration is another input, though no file of rows changed.
    files.read("path: set, split: train");
    assert_eq!(files.rows().1, train);
    files.write("set/README.md", &CARD.replace("main/train-*", "main/*-0.jsonl"));
    let reread = "set/main/test-0.jsonl:1 t\nset/main/train-0.jsonl:1 a";
    assert_eq!(files.rows().1, reread);
    // A folder whose README declares nothing is a folder.
    files.write("set/README.md", "# A data set\n");
    files.read("path: set");
    assert_eq!(files.rows().1.lines().count(), 4);
}

#[test]
fn what_a_data_set_does_not_declare_or_have_is_named() {
    let files = Files::reading("path: set");
    files.write("set/README.md", CARD);
    files.prompts("set/main/test-0.jsonl", &["t"]);
    let mut said = Vec::new();
    let mut refused = |settings: &str| {
        files.read(settings);
        said.push(files.refused());
    };
    refused("path: set");
    refused("path: set, split: tran");
    refused("path: set, config: mian");
    refused("path: set, split: train");
    refused("path: set, config: other, split: train");
    files.write("set/README.md", &CARD.replace("  default: true\n", ""));
    refused("path: set, split: train");
    for path in ["../p.yaml", "/etc/passwd", "https://example.com/a.csv"] {
        files.write("set/README.md", &format!("---\nconfigs:\n- data_files: {path}\n---\n"));
        refused("path: set");
    }
    files.write("set/README.md", "---\nconfigs: [\n---\n");
    refused("path: set");
    files.write("set/README.md", "# Nothing\n");
    refused("path: set, split: test");
    insta::assert_snapshot!(said.join("\n"), @r#"
    25 "set" declares several splits | name one, or a list: `split: …`; its splits are train, test
    37 config "main" of "set" declares no split "tran" | did you mean `train`?
    38 "set" declares no config "mian" | did you mean `main`?
    25 "set" declares "main/train-*", and no file is that | download the whole data set (`hf download --repo-type dataset …`)
    25 "set" declares "other.csv", and no file is that | download the whole data set (`hf download --repo-type dataset …`)
    25 "set" declares several configs | name one: `config: …`; its configs are main, other
    25 "set" declares "../p.yaml", which is no file in it | download the file and name it here
    25 "set" declares "/etc/passwd", which is no file in it | download the file and name it here
    25 "set" declares "https://example.com/a.csv", which is no file in it | download the file and name it here
    25 "set/README.md": its declarations cannot be read: line 2 column 10: unclosed bracket '[' | mend its YAML, or name the files
    37 "test" is chosen of a data set that declares nothing | `config` and `split` need a folder whose README.md declares `configs`; else name the files: `path: folder/train-*.parquet`
    "#);
}

#[test]
fn a_pattern_and_a_folder_without_files_are_errors() {
    let files = Files::reading("path: data/train-*.parquet");
    files.write("data/notes.txt", "");
    files.write("data/rows.jsonl.xz", "");
    let mut said = vec![files.refused()];
    for settings in [
        "path: data",
        "path: data/*",
        "path: []",
        "path: [data/notes.txt, gone.jsonl]",
        "path: \"data/[.jsonl\"",
        "path: data, format: parquet",
    ] {
        files.read(settings);
        said.push(files.refused());
    }
    insta::assert_snapshot!(said.join("\n").replace(&*files.0.path().to_string_lossy(), ""), @r#"
    25 no file matches "data/train-*.parquet" | `*` matches within a folder, `**` folders of any depth; patterns are relative to the file that names them
    25 no file in the folder "data" ends in .jsonl, .ndjson, .parquet or .csv | packed files end in .gz or .zst after that; files with other endings are named: `path: folder/*.json` with `format: jsonl`
    25 the ending of "data/notes.txt" says no format | add `format: jsonl`, `parquet`, `csv` or `hh-rlhf`, or leave the file out: `path: data/*.parquet`
    3 node "rows" reads an empty list of files | name a file, a folder or a pattern: `path: data/train-*.parquet`
    26 node "rows" reads "data/notes.txt", whose ending says no format | add `format: jsonl`, `parquet`, `csv` or `hh-rlhf`
    42 the file "gone.jsonl" cannot be read: No such file or directory (os error 2) | relative paths are relative to the file that names them
    25 "data/[.jsonl": it is no pattern: invalid range pattern | `*` and `?` match within a name, `[0-9]` one of several characters
    25 no file in the folder "data" ends in .parquet | packed files end in .gz or .zst after that; files with other endings are named: `path: folder/*.json` with `format: jsonl`
    "#);
    // A pipeline can be right where its files are not.
    files.read("path: data/train-*.parquet");
    assert_eq!(files.amend(&["check", "p.yaml"]).0, 0);
}

#[test]
fn a_key_that_two_files_have_is_an_error_that_names_both() {
    let files = Files::reading("path: \"*.csv\", key: [id]");
    files.write("a.csv", "id,prompt\n1,a\n2,b\n");
    files.write("b.csv", "id,prompt\n3,c\n2,d\n");
    let (code, _, said) = files.amend(&["run", "p.yaml"]);
    assert_eq!(code, 1, "{said}");
    let lines = "line 3 of a.csv and line 3 of b.csv have the key \"2\" and differ";
    assert!(said.contains(lines), "{said}");
}

#[test]
fn a_table_names_the_same_rows_whether_one_file_is_named_or_matched() {
    let files = Files::reading("path: data/a.jsonl");
    files.prompts("data/a.jsonl", &["a", "a", "b"]);
    let digest = |files: &Files| files.json(&["run", "p.yaml"])["digest"].clone();
    let named = digest(&files);
    for settings in ["path: [data/a.jsonl]", "path: data/*.jsonl", "path: data"] {
        files.read(settings);
        assert_eq!(digest(&files), named, "{settings}");
    }
}

#[cfg(unix)]
#[test]
fn a_pipe_where_a_file_should_be_is_an_error_and_no_wait() {
    let files = Files::reading("path: rows.jsonl");
    let pipe = |name: &str| {
        let made = Command::new("mkfifo").arg(files.path(name)).status().unwrap();
        assert!(made.success());
    };
    // A wait is ended with another exit code.
    let ends = |args: &[&str]| {
        let mut command = Command::new("timeout");
        command.args(["60", env!("CARGO_BIN_EXE_amend")]).args(args);
        let output =
            command.current_dir(files.0.path()).env_remove("AMEND_STORE").output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    pipe("rows.jsonl");
    for command in ["check", "plan", "run"] {
        let (code, said) = ends(&[command, "p.yaml"]);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("it is a pipe and not a file"), "{said}");
    }
    files.read("path: \"*.jsonl\"");
    assert_eq!(ends(&["run", "p.yaml"]).0, Some(2));
    files.read("path: /dev/zero, format: jsonl");
    assert!(ends(&["run", "p.yaml"]).1.contains("it is a device"));
    pipe("q.yaml");
    let (code, said) = ends(&["check", "q.yaml"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("it is a pipe"), "{said}");
}
