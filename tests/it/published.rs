//! What a run publishes, and what it leaves as it was: snapshots, and the calls that each says of
//! itself.

use std::fs;

use serde_json::{Value, json};

use crate::cli_run::{Lab, PIPELINE, ROWS};

/// Where a pipeline of three nodes has its model, for edits.
const MODEL: &str = "max_in_flight: 8";

impl Lab {
    /// The snapshots, the last one first: their numbers and calls.
    fn log(&self, pipeline: &str) -> Vec<(u64, u64)> {
        let log = self.json(&["log", "-p", pipeline]);
        let number = |entry: &Value, of: &str| entry[of].as_u64().unwrap();
        let entries = log["snapshots"].as_array().unwrap().iter();
        entries.map(|entry| (number(entry, "number"), number(entry, "calls"))).collect()
    }

    fn manifest(&self, number: u64) -> std::path::PathBuf {
        self.dir.path().join(format!(".amend/small/snapshots/{number:06}/manifest.json"))
    }
}

#[test]
fn an_edit_that_changes_no_table_publishes_nothing_and_is_then_answered_at_once() {
    let lab = Lab::new(json!({}));
    let first = lab.json(&["run", "small.yaml"]);
    let manifest = fs::read(lab.manifest(1)).unwrap();
    let edits = [
        format!("# A comment.\n{PIPELINE}"),
        PIPELINE.replace(MODEL, "max_in_flight: 9, price: { input: 1.0, output: 2.0 }"),
        PIPELINE.to_owned(),
    ];
    for edit in edits {
        lab.write("small.yaml", &edit);
        let run = lab.json(&["run", "small.yaml"]);
        assert_eq!((&run["snapshot"], &run["digest"]), (&json!(1), &first["digest"]), "{edit}");
        assert_eq!(run["calls"]["made"], 0);

        // Without the memo a run that looked for its calls would make them all again.
        let (calls, away) = (lab.dir.path().join(".amend/calls"), lab.dir.path().join("away"));
        fs::rename(&calls, &away).unwrap();
        let again = lab.json(&["run", "small.yaml"]);
        assert_eq!((&again["snapshot"], &again["calls"]["made"]), (&json!(1), &json!(0)), "{edit}");
        assert!(!calls.exists(), "the memo was not so much as opened");
        fs::rename(&away, &calls).unwrap();
    }
    assert_eq!(fs::read(lab.manifest(1)).unwrap(), manifest, "a snapshot never changes");
    assert_eq!(lab.log("small"), [(1, 3 * ROWS as u64)]);

    lab.constitution("Say precisely what is wrong.");
    assert_eq!(lab.json(&["run", "small.yaml"])["snapshot"], 2, "what changes a table does");
}

#[test]
fn the_log_counts_the_calls_of_the_run_that_published() {
    let lab = Lab::new(json!({}));
    let three = 3 * ROWS as u64;
    // A run that a limit stopped publishes nothing, and the next makes what is left.
    assert_eq!(lab.amend(&["run", "small.yaml", "--max-calls", "5"]).0, 1);
    let report = lab.json(&["run", "small.yaml"]);
    let other = PIPELINE.replace("name: small", "name: other").replace("20 }", "21 }");
    lab.write("other.yaml", &other);
    lab.json(&["run", "other.yaml"]);
    assert_eq!((lab.log("small"), lab.log("other")), (vec![(1, three - 5)], vec![(1, three)]));

    let undisturbed = lab.json(&["run", "small.yaml", "--store", "undisturbed"]);
    assert_eq!(undisturbed["calls"]["made"], three);
    assert_eq!(undisturbed["digest"], report["digest"], "how many calls it took changes no digest");

    // A manifest of before does not say: then calls are counted by time, those of others too.
    let mut manifest: Value = serde_json::from_slice(&fs::read(lab.manifest(1)).unwrap()).unwrap();
    assert_eq!(manifest.as_object_mut().unwrap().remove("calls"), Some(json!(three - 5)));
    fs::remove_file(lab.manifest(1)).unwrap();
    fs::write(lab.manifest(1), manifest.to_string()).unwrap();
    assert_eq!(lab.log("small"), [(1, 2 * three)]);
}

/// A principle that no node draws from is in no table, so that its new id is not published: it was
/// warned of at every run thereafter.
#[test]
fn what_seems_to_be_renamed_is_warned_of_once_also_where_nothing_is_published() {
    let lab = Lab::new(json!({}));
    let constitution = |id: &str| {
        let mut principles =
            vec![json!({ "id": id, "judge": "Which of the two is the kinder one?" })];
        for id in ["one", "two"] {
            principles.push(json!({ "id": id, "critique": "Find fault.", "revise": "Mend it." }));
        }
        lab.write("constitution.yaml", &json!({ "principles": principles }).to_string());
    };
    let run = || {
        let (code, stdout, stderr) = lab.amend(&["run", "small.yaml"]);
        assert_eq!(code, 0, "{stderr}");
        assert!(stdout.contains("snapshot 1 "), "{stdout}");
        stderr
    };
    constitution("kind");
    run();
    constitution("kindness");
    assert!(run().contains(r#"says nearly what "kind" said"#));
    assert!(!run().contains("says nearly"));
    constitution("kindness");
    lab.write("small.yaml", &format!("# A comment.\n{PIPELINE}"));
    assert!(!run().contains("says nearly"), "it is compared with what was given last");
}
