//! Secrets: a key reaches neither the disk nor any output, wherever it is written.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::cli_run::Lab;

const KEY: &str = "AIza-sesame-7f3a";

/// Every file below a folder that holds the key.
fn leaks(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            found.extend(leaks(&path));
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap();
            let holds = bytes.windows(KEY.len()).any(|window| window == KEY.as_bytes());
            found.extend(holds.then(|| path.display().to_string()));
        }
    }
    found
}

/// A key in the query or before the host is known by its place: written there, out of the environment
/// as a whole or in part, or given by a flag. The server echoes what it is sent.
#[test]
fn a_key_in_the_address_of_an_endpoint_is_shown_and_kept_nowhere() {
    let lab = Lab::new(json!({ "permanent_every": 3 }));
    let query = format!("http://{}/v1?key={KEY}", lab.server.address());
    let password = format!("http://me:{KEY}@{}/v1", lab.server.address());
    let written = |address: &str| {
        fs::read_to_string(lab.dir.path().join("small.yaml"))
            .unwrap()
            .replace("${FAKE_URL}", address)
    };
    let plain = fs::read_to_string(lab.dir.path().join("small.yaml")).unwrap();
    let ways = [
        ("literal", written(&query), None, vec![]),
        ("password", written(&password), None, vec![]),
        ("variable", plain.clone(), Some(query.clone()), vec![]),
        ("part", written(&query.replace(KEY, "${THE_KEY}")), None, vec![]),
        ("flag", plain, None, vec![format!("--set=models.fake.endpoint={query}")]),
    ];
    for (name, text, url, flags) in ways {
        lab.write("small.yaml", &text);
        let store = format!("store-{name}");
        for verb in ["check", "plan", "run", "run", "log", "graph"] {
            let mut command = lab.command(&[verb]);
            command.env("THE_KEY", KEY);
            if let Some(url) = &url {
                command.env("FAKE_URL", url);
            }
            if verb != "log" {
                command.arg("small.yaml").args(&flags);
            }
            if !matches!(verb, "check" | "graph") {
                command.args(["--store", &store]);
            }
            let output = command.arg("-v").output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            assert!(!said.contains(KEY), "{name}, {verb}: {said}");
            assert!(matches!(output.status.code(), Some(0 | 3)), "{name}, {verb}: {said}");
        }
        let leaks = leaks(&lab.dir.path().join(&store));
        assert!(leaks.is_empty(), "{name}: {leaks:?}");
    }
}
