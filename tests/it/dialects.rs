//! Every dialect that servers speak, with every fault that is known of them, through the binary: no row
//! is lost or taken for what it is not, and what is counted is what the server counted.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};

use crate::cli_run::{Lab, ROWS};
use crate::support::fake_dialects::{DIALECTS, Ending, FAULTS};
use crate::support::fake_openai::Stats;

/// A pipeline of drafts, and more of what a server is asked.
#[derive(Clone, Debug)]
struct Shape {
    n: u32,
    temperature: f64,
    chain: bool,
    judge: Option<&'static str>,
    max_tokens: u32,
    stop: bool,
}

impl Shape {
    fn pipeline(&self, api: &str) -> String {
        let Shape { n, temperature, max_tokens, .. } = self;
        let scoring = self.judge.unwrap_or("auto");
        let stop =
            if self.stop { ", stop: ['###', '<|a|>', '<|b|>', '<|c|>', '<|d|>']" } else { "" };
        let mut text = format!(
            r#"
name: small
seed: 17
constitution: constitution.yaml
limits: {{ retries: 3 }}
models:
  m: {{ endpoint: "${{FAKE_URL}}", name: fake-model, api: {api}, max_in_flight: 4, scoring: {scoring}, votes: 3, price: {{ input: 2000.0, output: 8000.0 }} }}
nodes:
  prompts: {{ read: {{ path: prompts.jsonl, key: [id] }} }}
  drafts: {{ sample: {{ from: prompts, model: m, n: {n}, temperature: {temperature}, max_tokens: {max_tokens}{stop} }} }}
"#
        );
        if self.chain {
            text += "  critiques: { critique: { from: drafts, model: m, max_tokens: 20 } }\n";
            text += "  revisions: { revise: { from: critiques, model: m, max_tokens: 20 } }\n";
        }
        if self.judge.is_some() {
            text += "  preferences: { pairwise-judge: { from: drafts, model: m, order: fixed } }\n";
        }
        text
    }
}

fn shapes() -> impl Strategy<Value = Shape> {
    let judges = prop::sample::select(vec![None, None, Some("auto"), Some("votes")]);
    let temperatures = prop::sample::select(vec![0.0, 0.7, 1.0]);
    (temperatures, any::<bool>(), judges, any::<bool>()).prop_map(
        |(temperature, chain, judge, stop)| {
            let n = if judge.is_some() { 2 } else { 1 };
            Shape { n, temperature, chain, judge, max_tokens: 24, stop }
        },
    )
}

fn texts(rows: &Value, column: &str) -> Vec<String> {
    let text = |row: &Value| match &row[column] {
        Value::Array(turns) => turns[0]["content"].as_str().unwrap().to_owned(),
        other => other.as_str().unwrap_or_default().to_owned(),
    };
    rows.as_array().unwrap().iter().map(text).collect()
}

/// What was counted is what the server counted; where it does not say, at least that, and marked.
fn check_counts(
    [dialect, fault]: [&str; 2],
    shape: &Shape,
    report: &Value,
    stats: &Stats,
    drafts: &Value,
    told: &str,
) {
    let spent = &report["spent"];
    let (requests, tokens) =
        (spent["requests"].as_u64().unwrap(), spent["tokens"].as_u64().unwrap());
    let probed = shape.judge == Some("auto") && !dialect.starts_with("anthropic");
    let counts =
        !matches!(fault, "null-usage" | "no-usage" | "hangs-up" | "cut-json" | "no-body" | "html");
    let served = stats.prompt_tokens + stats.completion_tokens;
    if counts && !probed {
        assert_eq!((requests, tokens), (stats.billed, served), "{told}: {stats:?}");
        let usd =
            (stats.prompt_tokens as f64 * 2000.0 + stats.completion_tokens as f64 * 8000.0) / 1e6;
        let own = spent["cost_usd"].as_f64().unwrap();
        assert!((usd - own).abs() < 1e-9, "{told}: {usd} {own}");
    } else if !probed {
        assert_eq!(requests, stats.billed, "{told}");
        assert!(tokens >= served, "{told}: {tokens} of {served}");
    }
    let marked = drafts
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["warnings"].to_string().contains("upper bounds"));
    let is_marked = marked.count() > 0;
    let uncounted = matches!(fault, "null-usage" | "no-usage");
    assert!(uncounted || !is_marked, "{told}");
}

/// One server, one fault, one pipeline: what must be true of all of them.
fn check(dialect: &str, fault: &str, ending: Ending, every: u64, shape: &Shape) {
    let lab = Lab::new(json!({ "dialect": dialect, "fault": fault, "fault_every": every }));
    let is_messages = dialect.starts_with("anthropic");
    lab.write("small.yaml", &shape.pipeline(if is_messages { "messages" } else { "chat" }));
    let principle =
        json!({ "id": "one", "critique": "Find fault.", "revise": "Mend it.", "judge": "Which?" });
    lab.write("constitution.yaml", &json!({ "principles": [principle] }).to_string());
    let told = format!("{dialect}, {fault} every {every}, {shape:?}");

    let (code, stdout, stderr) = lab.amend(&["run", "small.yaml", "-o", "json"]);
    let stats = lab.server.stats();
    if code == 1 {
        // All that was asked failed in the same way: nothing is published.
        assert!(stderr.contains("failed in the same way"), "{told}: {stderr}");
        assert_eq!(lab.json(&["log"])["snapshots"], json!([]), "{told}");
        return;
    }
    assert!(code == 0 || code == 3, "{told}: {code} {stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();

    // Each draft is there once, as a row or as a reject.
    let drafts = lab.json(&[
        "query",
        "select row_id, completion, finish_reason, warnings, reasoning from drafts",
    ]);
    let rejects =
        lab.json(&["query", "select node, reason, detail from rejects where node = 'drafts'"]);
    let (n_drafts, n_rejects) =
        (drafts.as_array().unwrap().len(), rejects.as_array().unwrap().len());
    assert_eq!(n_drafts + n_rejects, ROWS * shape.n as usize, "{told}");
    for reject in rejects.as_array().unwrap() {
        assert!(!reject["detail"].as_str().unwrap().is_empty(), "{told}: {reject}");
    }
    if ending != Ending::Rejected {
        assert_eq!(n_rejects, 0, "{told}: {rejects}");
    }
    // No text is half an answer, and none is reasoning.
    for (text, row) in texts(&drafts, "completion").iter().zip(drafts.as_array().unwrap()) {
        assert!(!text.contains("They "), "{told}: reasoning is no answer: {text:?}");
        assert!(!text.trim().is_empty(), "{told}");
        let finish = row["finish_reason"].as_str().unwrap();
        assert!(finish == "stop" || finish == "length", "{told}: {finish}");
    }
    check_counts([dialect, fault], shape, &report, &stats, &drafts, &told);

    // The next run asks again what may be answered then, and nothing else.
    let before = lab.server.stats().calls;
    lab.server.config(json!({ "fault": "", "fault_every": 0 }));
    let (code, stdout, stderr) = lab.amend(&["run", "small.yaml", "-o", "json"]);
    assert!(code == 0 || code == 3, "{told}: {code} {stderr}");
    let again: Value = serde_json::from_str(&stdout).unwrap();
    let transient = rejects.as_array().unwrap().iter().any(|one| one["reason"] == "http_transient");
    if n_rejects == 0 {
        assert_eq!(
            (lab.server.stats().calls, &again["digest"]),
            (before, &report["digest"]),
            "{told}"
        );
    } else if transient {
        let left = lab.json(&["query", "select 1 as one from rejects where node = 'drafts'"]);
        assert_eq!(left, json!([]), "{told}: what was unreadable is asked again");
    }
}

/// Each fault in each dialect once would be hundreds of runs: each fault is met in one dialect, each
/// dialect with a few faults, and each time in a pipeline drawn at random.
fn check_faults(of: Ending) {
    check_faults_of(of, |nth| DIALECTS[(nth * 5) % DIALECTS.len()]);
}

fn check_faults_of(of: Ending, dialect: impl Fn(usize) -> &'static str) {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    for (nth, (fault, ending)) in FAULTS.iter().enumerate() {
        let dialect = dialect(nth);
        let shape = shapes().new_tree(&mut runner).unwrap().current();
        if *ending == of {
            check(dialect, fault, *ending, 2 + (nth as u64 % 3), &shape);
        }
    }
}

#[test]
fn what_passes_is_asked_again_and_paid_for_once() {
    check_faults(Ending::Again);
}

#[test]
fn what_is_no_answer_is_a_reject_with_its_reason() {
    check_faults(Ending::Rejected);
}

#[test]
fn an_answer_in_an_odd_shape_is_an_answer() {
    check_faults(Ending::Answered);
}

#[test]
fn what_passes_is_asked_again_and_paid_for_once_by_the_messages_api() {
    check_faults_of(Ending::Again, |_| "anthropic");
}

#[test]
fn what_is_no_answer_is_a_reject_with_its_reason_by_the_messages_api() {
    check_faults_of(Ending::Rejected, |_| "anthropic");
}

#[test]
fn an_answer_in_an_odd_shape_is_an_answer_by_the_messages_api() {
    check_faults_of(Ending::Answered, |_| "anthropic");
}

#[test]
fn every_dialect_is_understood_where_nothing_fails() {
    let messages = ["anthropic", "anthropic-4.5", "anthropic-5"];
    for dialect in DIALECTS.iter().chain(&messages) {
        for temperature in [0.0, 0.7] {
            let judge = (temperature > 0.0).then_some("votes");
            let (n, stop) = (if judge.is_some() { 2 } else { 1 }, true);
            let shape = Shape { n, temperature, chain: true, judge, max_tokens: 24, stop };
            check(dialect, "", Ending::Answered, 0, &shape);
        }
    }
}

/// What a server does not take and the pipeline states is said by name, and nothing is spent.
#[test]
fn a_setting_that_a_server_does_not_take_is_an_error_that_names_it() {
    let lab = Lab::new(json!({ "dialect": "openai" }));
    let pipeline = |settings: &str, sampling: &str| {
        format!(
            r#"
name: small
models:
  m: {{ endpoint: "${{FAKE_URL}}", name: fake-model{settings} }}
nodes:
  prompts: {{ read: {{ path: prompts.jsonl, key: [id] }} }}
  drafts: {{ sample: {{ from: prompts, model: m{sampling} }} }}
"#
        )
    };
    for (settings, sampling, name) in [
        ("", ", top_k: 40", "top_k"),
        ("", ", min_p: 0.1", "min_p"),
        ("", ", repetition_penalty: 1.2", "repetition_penalty"),
        (", template_args: { enable_thinking: false }", "", "template_args"),
    ] {
        lab.write("small.yaml", &pipeline(settings, sampling));
        let (code, _, stderr) = lab.amend(&["run", "small.yaml"]);
        assert_eq!(code, 1, "{name}: {stderr}");
        assert!(stderr.contains(&format!("setting `{name}`")), "{name}: {stderr}");
        assert_eq!(lab.server.stats().answered, 0, "{name}");
    }
    // The same settings reach a server that takes them.
    lab.server.config(json!({ "dialect": "vllm" }));
    let settings = ", template_args: { enable_thinking: false }, chat_template: \"{{ messages }}\"";
    lab.write("small.yaml", &pipeline(settings, ", top_k: 40, min_p: 0.1"));
    lab.json(&["run", "small.yaml"]);
    for asked in lab.server.requests().iter().filter(|asked| asked.answered > 0) {
        let body: Value = serde_json::from_str(&asked.body).unwrap();
        assert_eq!(body["chat_template_kwargs"], json!({ "enable_thinking": false }));
        assert_eq!((&body["top_k"], &body["min_p"]), (&json!(40), &json!(0.1)));
        assert_eq!(body["chat_template"], "{{ messages }}");
    }
    // Another value is another request.
    let calls = lab.server.stats().answered;
    lab.write(
        "small.yaml",
        &pipeline(&settings.replace("false", "true"), ", top_k: 40, min_p: 0.1"),
    );
    assert_eq!(lab.json(&["run", "small.yaml"])["calls"]["made"], ROWS);
    assert_eq!(lab.server.stats().answered, calls + ROWS as u64);
}

/// A seed or a temperature is left out with a warning, which the rows repeat; the profile keeps it.
#[test]
fn what_is_left_out_of_a_request_is_said_once_and_in_each_row() {
    let lab = Lab::new(json!({ "dialect": "gemini" }));
    let (code, _, stderr) = lab.amend(&["run", "small.yaml"]);
    assert_eq!((code, stderr.matches("refuses `seed`").count()), (0, 1), "{stderr}");
    let rows = lab.json(&["query", "select warnings from drafts"]);
    let warnings =
        json!([{ "warnings": ["the server refuses `seed`: the answer was given without it"] }]);
    assert_eq!(rows[0], warnings[0]);
    let refused = lab.server.stats().by_status[&400];
    lab.constitution("Say precisely what is wrong.");
    let (code, _, stderr) = lab.amend(&["run", "small.yaml"]);
    assert_eq!((code, lab.server.stats().by_status[&400]), (0, refused), "it is known: {stderr}");
}

/// Settings of an endpoint that would be taken and do nothing.
#[test]
fn a_setting_without_effect_is_an_error_of_check() {
    let lab = Lab::new(json!({}));
    let check = |model: &str| {
        let text = format!(
            "name: small\nmodels:\n  m: {{ {model} }}\nnodes:\n  p: {{ read: {{ path: prompts.jsonl }} }}\n  d: {{ sample: {{ from: p, model: m }} }}\n"
        );
        lab.write("small.yaml", &text);
        let (code, stdout, stderr) = lab.amend(&["check", "small.yaml"]);
        (code, stdout + &stderr)
    };
    let endpoint = "endpoint: \"http://127.0.0.1:9/v1\", name: x";
    assert_eq!(check(endpoint).0, 0);
    for setting in [
        "dtype: f32",
        "device: cpu",
        "threads: 2",
        "replicas: 2",
        "cache_mib: 64",
        "scoring: echo",
        "api: completions",
        "format: transcript, api: chat",
        "format: transcript, chat_template: x",
        "format: transcript, template_args: { a: 1 }",
    ] {
        let (code, said) = check(&format!("{endpoint}, {setting}"));
        assert_eq!(code, 2, "{setting}: {said}");
    }
    std::fs::create_dir(lab.dir.path().join("checkpoint")).unwrap();
    for setting in [
        "name: x",
        "revision: r",
        "api_key: k",
        "api: chat",
        "votes: 3",
        "retries: 1",
        "timeout_s: 9",
        "scoring: votes",
        "scoring: top_logprobs",
    ] {
        let (code, said) = check(&format!("checkpoint: checkpoint, {setting}"));
        let word = setting.split(':').next().unwrap();
        assert!(code == 2 && said.contains(word), "{setting}: {said}");
    }
}
