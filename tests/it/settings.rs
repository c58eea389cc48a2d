//! Settings: each one that the schema has changes a request, a row, a plan or an error. One that does
//! nothing is worse than none.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::cli_run::Lab;

/// What can be seen of a run: its exit code and errors, the plan, what the server was asked; and the rows
/// and calls, where it is looked at `closely`.
fn seen(lab: &Lab, config: &Value, model: &str, node: &str, closely: bool) -> String {
    lab.server.reset();
    lab.server.config(json!({ "api_key": null, "latency_ms": 0, "fail_every": 0 }));
    lab.server.config(config.clone());
    let text = format!(
        r"
name: small
seed: 17
constitution: constitution.yaml
limits: {{ retries: 1 }}
models:
  m: {{ {model} }}
nodes:
  prompts: {{ read: {{ path: prompts.jsonl, key: [id], limit: 4 }} }}
  drafts: {{ sample: {{ from: prompts, model: m, n: 2, max_tokens: 4{node} }} }}
  preferences: {{ pairwise-judge: {{ from: drafts, model: m, order: fixed }} }}
"
    );
    lab.write("small.yaml", &text);
    // A folder that is not there yet is no error.
    let _ = std::fs::remove_dir_all(lab.dir.path().join("store"));
    let run = |args: &[&str]| {
        let (code, stdout, stderr) = lab.amend(&[args, &["--store", "store"]].concat());
        let errors: Vec<&str> = stderr.lines().filter(|line| line.contains("error")).collect();
        format!("{code} {errors:?} {stdout}")
    };
    let (plan, outcome) = (run(&["plan", "small.yaml", "-o", "json"]), run(&["run", "small.yaml"]));
    let outcome = outcome.split_once(']').unwrap().0.to_owned();
    let stats = lab.server.stats();
    let asked = lab.server.requests().into_iter();
    let bodies: BTreeSet<String> = asked.map(|asked| asked.kind + &asked.body).collect();
    // How many are under way at once is a matter of chance where answers take no time.
    let at_once = if config.get("latency_ms").is_some() { stats.in_flight_max.min(2) } else { 0 };
    let mut seen = format!("{outcome}\n{plan}\n{bodies:?}\n{at_once}\n{:?}", stats.by_status);
    if closely {
        seen += &run(&["query", "select * from drafts order by row_id", "-o", "json"]);
    }
    seen
}

/// Whether two ways to say a model or a node differ in what can be seen.
fn differ(lab: &Lab, config: &Value, one: [&str; 2], other: [&str; 2]) -> bool {
    [false, true].iter().any(|closely| {
        seen(lab, config, one[0], one[1], *closely)
            != seen(lab, config, other[0], other[1], *closely)
    })
}

/// The keys of a part of the schema.
fn keys(part: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/pipeline.schema.json");
    let schema: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let properties = schema["$defs"][part]["properties"].as_object().unwrap();
    properties.keys().cloned().collect()
}

#[test]
fn every_setting_of_an_endpoint_changes_something_that_can_be_seen() {
    let lab = Lab::new(json!({}));
    let principle = json!({ "id": "one", "judge": "Which?" });
    lab.write("constitution.yaml", &json!({ "principles": [principle] }).to_string());
    let url = lab.server.base_url();
    let base = format!("endpoint: \"{url}\", name: x, scoring: votes");
    // The setting, what the server is told to do with and without it, and what stands in for the base.
    let plain = || (json!({}), String::new());
    let table: Vec<(&str, &str, (Value, String))> = vec![
        ("checkpoint", "checkpoint: gone", plain()),
        (
            "endpoint",
            "endpoint: \"http://127.0.0.1:9/v1\"",
            (json!({}), "name: x, retries: 0".into()),
        ),
        ("name", "name: y", (json!({}), format!("endpoint: \"{url}\", scoring: votes"))),
        ("revision", "revision: r2", plain()),
        ("same_as", "same_as: gone", plain()),
        ("api_key", "api_key: right", (json!({ "api_key": "right" }), String::new())),
        ("api", "api: completions", plain()),
        ("thinking", "thinking: disabled", plain()),
        ("format", "format: transcript", plain()),
        ("chat_template", "chat_template: \"{{ messages }}\"", plain()),
        ("template_args", "template_args: { enable_thinking: false }", plain()),
        ("system", "system: Be brief.", plain()),
        ("stop", "stop: [\"###\"]", plain()),
        ("strip_thinking", "strip_thinking: true", plain()),
        ("scoring", "scoring: top_logprobs", (json!({}), format!("endpoint: \"{url}\", name: x"))),
        ("label_tokens", "label_tokens: [\" [1]\", \" [2]\"]", plain()),
        ("votes", "votes: 3", plain()),
        ("max_in_flight", "max_in_flight: 1", (json!({ "latency_ms": 20 }), String::new())),
        ("retries", "retries: 4", (json!({ "fail_every": 2 }), String::new())),
        ("timeout_s", "timeout_s: 0.05, retries: 0", (json!({ "latency_ms": 200 }), String::new())),
        ("price", "price: { input: 1.0, output: 2.0 }", plain()),
        ("dtype", "dtype: f32", plain()),
        ("device", "device: cpu", plain()),
        ("threads", "threads: 2", plain()),
        ("replicas", "replicas: 2", plain()),
        ("cache_mib", "cache_mib: 64", plain()),
    ];
    let named: BTreeSet<String> = table.iter().map(|(key, ..)| (*key).to_owned()).collect();
    assert_eq!(named, keys("Model"), "each setting of the schema stands in the table");
    for (key, setting, (config, other)) in &table {
        let base = if other.is_empty() { &base } else { other };
        let with = format!("{base}, {setting}");
        assert!(differ(&lab, config, [base, ""], [&with, ""]), "`{key}` changes nothing");
    }
    assert!(
        !differ(&lab, &json!({}), [&base, ""], [&base, ""]),
        "what is the same is seen as the same"
    );
}

/// What a request says of how tokens are drawn.
#[test]
fn every_setting_of_sampling_changes_what_is_asked() {
    let lab = Lab::new(json!({}));
    let principle = json!({ "id": "one", "judge": "Which?" });
    lab.write("constitution.yaml", &json!({ "principles": [principle] }).to_string());
    let base = format!("endpoint: \"{}\", name: x, scoring: votes", lab.server.base_url());
    for setting in [
        "temperature: 0.3",
        "top_p: 0.9",
        "top_k: 7",
        "min_p: 0.1",
        "repetition_penalty: 1.3",
        "stop: [\"###\"]",
        "seed: 5",
    ] {
        let with = format!(", {setting}");
        assert!(
            differ(&lab, &json!({}), [&base, ""], [&base, &with]),
            "`{setting}` changes nothing"
        );
    }
}
