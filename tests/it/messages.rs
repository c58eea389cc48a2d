//! Anthropic's Messages API through the binary: what is sent, what is told of it in the rows, and
//! what is an error before anything is spent.

use std::process::Command;

use serde_json::{Value, json};

use crate::cli_run::{Lab, ROWS};

/// A pipeline with a model of that interface: more of its settings, and nodes that ask it.
fn pipeline(settings: &str, nodes: &str) -> String {
    format!(
        r#"
name: small
seed: 17
constitution: constitution.yaml
models:
  m: {{ endpoint: "${{FAKE_URL}}", name: fake-model, api: messages, api_key: sk-ant-sesame{settings} }}
nodes:
  prompts: {{ read: {{ path: prompts.jsonl, key: [id] }} }}
{nodes}
"#
    )
}

fn lab(config: Value, settings: &str, nodes: &str) -> Lab {
    let lab = Lab::new(config);
    lab.write("small.yaml", &pipeline(settings, nodes));
    let principle =
        json!({ "id": "one", "critique": "Find fault.", "revise": "Mend it.", "judge": "Which?" });
    lab.write("constitution.yaml", &json!({ "principles": [principle] }).to_string());
    lab
}

fn bodies(lab: &Lab) -> Vec<Value> {
    let asked = lab.server.requests();
    let answered = asked.iter().filter(|asked| asked.answered > 0);
    answered.map(|asked| serde_json::from_str(&asked.body).unwrap()).collect()
}

const DRAFTS: &str = "  drafts: { sample: { from: prompts, model: m, max_tokens: 2000 } }\n";

#[test]
fn a_request_is_sent_as_the_interface_has_it_and_the_key_in_its_own_header() {
    let nodes = "  drafts: { sample: { from: prompts, model: m, temperature: 0.5, top_k: 40, top_p: 0.9, max_tokens: 20, stop: ['###', \"\\n\\n\"] } }\n";
    let config = json!({ "dialect": "anthropic", "api_key": "sk-ant-sesame" });
    let lab = lab(config, ", system: Be brief.", nodes);
    lab.json(&["run", "small.yaml"]);
    let bodies = bodies(&lab);
    assert_eq!(bodies.len(), ROWS);
    for mut body in bodies {
        let turns = body["messages"].take();
        assert!(turns[0]["content"].as_str().unwrap().starts_with("question"), "{turns}");
        let expected = json!({
            "model": "fake-model", "max_tokens": 20, "system": "Be brief.", "messages": null,
            "temperature": 0.5, "top_k": 40, "top_p": 0.9, "stop_sequences": ["###"],
        });
        assert_eq!(body, expected);
    }
    // Another key is refused, by a message that says what to do and does not show it.
    lab.server.config(json!({ "api_key": "sk-ant-other" }));
    lab.write("small.yaml", &pipeline("", DRAFTS));
    let (code, _, stderr) = lab.amend(&["run", "small.yaml"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("refuses the API key (401)") && !stderr.contains("sesame"), "{stderr}");
}

#[test]
fn the_key_is_in_no_file_and_no_message() {
    let config =
        json!({ "dialect": "anthropic", "permanent_every": 3, "api_key": "sk-ant-sesame" });
    let lab = lab(config, "", DRAFTS);
    let from_environment =
        pipeline("", DRAFTS).replace("sk-ant-sesame", "\"${ANTHROPIC_API_KEY}\"");
    lab.write("small.yaml", &from_environment);
    let mut command = Command::new(env!("CARGO_BIN_EXE_amend"));
    command.env_remove("AMEND_STORE").env("FAKE_URL", lab.server.base_url());
    command.env("ANTHROPIC_API_KEY", "sk-ant-sesame").current_dir(lab.dir.path());
    let output = command.args(["run", "small.yaml", "-v", "-o", "json"]).output().unwrap();
    let shown = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(3), "the server quotes the key as it refuses: {shown}");
    assert!(!shown.contains("sesame"), "{shown}");
    let rejects = lab.json(&["query", "select detail from rejects"]).to_string();
    assert!(rejects.contains("key …"), "the server quotes it: {rejects}");
    let mut folders = vec![lab.dir.path().join(".amend")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            files += 1;
            let has = bytes.windows(6).any(|window| window == b"sesame");
            assert!(!has, "{}", path.display());
        }
    }
    assert!(files > 3);
}

/// There is no seed: the rows say so, as of a server that refuses it, and it is said once.
#[test]
fn a_row_says_that_it_was_drawn_without_its_seed_and_a_greedy_one_had_none() {
    let lab = lab(json!({ "dialect": "anthropic" }), "", DRAFTS);
    let (code, _, stderr) = lab.amend(&["run", "small.yaml"]);
    assert_eq!((code, stderr.matches("refuses `seed`").count()), (0, 1), "{stderr}");
    assert_eq!(lab.server.stats().calls, ROWS as u64, "nothing had to be found out");
    let rows = lab.json(&["query", "select warnings from drafts"]);
    let warning =
        json!({ "warnings": ["the server refuses `seed`: the answer was given without it"] });
    assert!(rows.as_array().unwrap().iter().all(|row| *row == warning), "{rows}");

    lab.write("small.yaml", &pipeline("", &DRAFTS.replace("max_tokens: 2000", "temperature: 0")));
    let (code, _, stderr) = lab.amend(&["run", "small.yaml"]);
    assert_eq!((code, stderr.matches("refuses `seed`").count()), (0, 0), "{stderr}");
    let warned = "select count(*) as n from drafts where warnings is not null";
    assert_eq!(lab.json(&["query", warned]), json!([{ "n": 0 }]));
}

#[test]
fn a_judge_votes_without_being_tried_out() {
    let nodes = "  drafts: { sample: { from: prompts, model: m, n: 2 } }\n  preferences: { pairwise-judge: { from: other, model: m, order: fixed } }\n  other: { sample: { from: prompts, model: w, n: 2 } }\n";
    let lab = lab(json!({ "dialect": "anthropic" }), ", votes: 5", nodes);
    // Two drafts of one prompt have the same body here, which takes no seed: another model writes.
    let text = pipeline(", votes: 5", nodes)
        .replace("nodes:", "  w: { endpoint: \"${FAKE_URL}\", name: fake-model }\nnodes:");
    lab.write("small.yaml", &text);
    lab.json(&["run", "small.yaml"]);
    let rows =
        lab.json(&["query", "select estimator, count(*) as n from preferences group by estimator"]);
    assert_eq!(rows, json!([{ "estimator": "votes", "n": ROWS }]));
    let votes = bodies(&lab).into_iter().filter(|body| body["max_tokens"] == 8).count();
    assert_eq!(votes, ROWS, "equal votes are one body");
    let calls = 2 * ROWS + 2 * ROWS + 5 * ROWS;
    assert_eq!(lab.server.stats().calls, calls as u64, "none was spent on trying out");
}

#[test]
fn a_model_that_thinks_shows_its_reasoning_and_another_thought_is_another_call() {
    for (dialect, thinking, sent) in [
        (
            "anthropic",
            "{ budget_tokens: 1024 }",
            json!([{ "type": "enabled", "budget_tokens": 1024 }, null]),
        ),
        (
            "anthropic-5",
            "{ effort: low }",
            json!([{ "type": "adaptive", "display": "summarized" }, { "effort": "low" }]),
        ),
    ] {
        let lab = lab(json!({ "dialect": dialect }), &format!(", thinking: {thinking}"), DRAFTS);
        lab.json(&["run", "small.yaml"]);
        for body in bodies(&lab) {
            assert_eq!(json!([body["thinking"], body["output_config"]]), sent);
        }
        let rows = lab.json(&["query", "select distinct reasoning from drafts"]);
        assert_eq!(rows, json!([{ "reasoning": "They ask." }]));
        lab.write("small.yaml", &pipeline("", DRAFTS));
        assert_eq!(lab.json(&["run", "small.yaml"])["calls"]["made"], ROWS);
        let rows = lab.json(&["query", "select count(reasoning) as n from drafts"]);
        assert_eq!(rows, json!([{ "n": 0 }]));
    }
}

/// Newer models take fewer parameters: what states a default is left out, what decides answers is
/// said, and what cannot be left out ends the run with its name.
#[test]
fn what_newer_models_do_not_take_is_left_out_with_a_warning_or_is_an_error() {
    let run = |dialect: &str, settings: &str, sampling: &str| {
        let nodes = DRAFTS.replace("max_tokens", &format!("{sampling}max_tokens"));
        let lab = lab(json!({ "dialect": dialect }), settings, &nodes);
        let (code, _, stderr) = lab.amend(&["run", "small.yaml"]);
        let warnings = match code {
            0 => lab.json(&["query", "select distinct warnings from drafts"]).to_string(),
            _ => String::new(),
        };
        (code, stderr, warnings)
    };
    let (code, stderr, warnings) = run("anthropic-4.5", "", "");
    assert!(code == 0 && !warnings.contains("top_p"), "{stderr} {warnings}");
    let (code, stderr, warnings) = run("anthropic-4.5", "", "top_p: 0.9, ");
    assert!(code == 0 && !warnings.contains("temperature"), "{stderr} {warnings}");
    let (code, stderr, _) = run("anthropic-4.5", "", "temperature: 0.5, top_p: 0.9, ");
    assert!(code == 1 && stderr.contains("setting `top_p`"), "{stderr}");
    let (code, stderr, warnings) = run("anthropic-5", "", "temperature: 0.5, ");
    assert!(code == 0 && warnings.contains("`temperature`"), "{stderr} {warnings}");
    for (dialect, thinking) in
        [("anthropic-4.5", "{ effort: high }"), ("anthropic-5", "{ budget_tokens: 1024 }")]
    {
        let (code, stderr, _) = run(dialect, &format!(", thinking: {thinking}"), "");
        assert!(code == 1 && stderr.contains("setting `thinking`"), "{stderr}");
    }
}

#[test]
fn what_the_interface_does_not_take_is_an_error_of_check_that_names_it() {
    let lab = lab(json!({ "dialect": "anthropic" }), "", DRAFTS);
    let check = |settings: &str, nodes: &str| {
        lab.write("small.yaml", &pipeline(settings, nodes));
        let (code, stdout, stderr) = lab.amend(&["check", "small.yaml"]);
        (code, stdout + &stderr)
    };
    assert_eq!(check("", DRAFTS).0, 0);
    for (setting, word) in [
        ("scoring: top_logprobs", "scoring"),
        ("scoring: prompt_logprobs", "scoring"),
        ("scoring: echo", "scoring"),
        ("format: transcript", "format: chat"),
        ("template_args: { a: 1 }", "template_args"),
        ("chat_template: x", "chat_template"),
        ("thinking: { budget_tokens: 100 }", "thinking.budget_tokens"),
        ("thinking: { budget_tokens: 2000 }", "max_tokens"),
        ("thinking: { effort: much }", "effort"),
    ] {
        let (code, said) = check(&format!(", {setting}"), DRAFTS);
        assert!(code == 2 && said.contains(word), "{setting}: {said}");
    }
    let sampled = |setting: &str| DRAFTS.replace("max_tokens", &format!("{setting}, max_tokens"));
    for setting in ["temperature: 1.5", "min_p: 0.1", "repetition_penalty: 1.2"] {
        let word = setting.split(':').next().unwrap();
        let (code, said) = check("", &sampled(setting));
        assert!(code == 2 && said.contains(word), "{setting}: {said}");
        let critic = format!("max_tokens: 20, {setting}");
        for node in [
            format!("critique: {{ from: drafts, model: m, {critic} }}"),
            format!(
                "repeat: {{ from: drafts, times: 2, critique: {{ model: m, {critic} }}, revise: {{ model: m }} }}"
            ),
            format!(
                "repeat: {{ from: drafts, times: 2, critique: none, revise: {{ model: m, {critic} }} }}"
            ),
        ] {
            let (code, said) = check("", &format!("{DRAFTS}  more: {{ {node} }}\n"));
            assert!(code == 2 && said.contains(word), "{node}: {said}");
        }
    }
    for setting in ["temperature: 0.5", "top_k: 40", "top_p: 0.5"] {
        let word = setting.split(':').next().unwrap();
        let (code, said) = check(", thinking: { effort: low }", &sampled(setting));
        assert!(code == 2 && said.contains(word), "{setting}: {said}");
        let (code, said) = check(", thinking: disabled", &sampled(setting));
        assert_eq!(code, 0, "{setting}: {said}");
    }
    let thoughts = "  pairs: { sample: { from: prompts, model: m, n: 2 } }\n  judged: { pairwise-judge: { from: pairs, model: m, cot: { temperature: 1.5 } } }\n";
    let (code, said) = check("", thoughts);
    assert!(code == 2 && said.contains("temperature"), "{said}");
    assert_eq!(lab.server.stats().calls, 0);
    // By chat there is no such setting.
    let by_chat = pipeline(", thinking: disabled", DRAFTS).replace("api: messages", "api: chat");
    lab.write("small.yaml", &by_chat);
    let (code, _, stderr) = lab.amend(&["check", "small.yaml"]);
    assert!(code == 2 && stderr.contains("thinking"), "{stderr}");
}

/// A model that thinks of itself has no room for a vote: no count of nothing is taken for one.
#[test]
fn a_vote_that_was_spent_on_thinking_is_no_vote() {
    let nodes = "  w: { sample: { from: prompts, model: writer, n: 2 } }\n  judged: { pairwise-judge: { from: w, model: m, order: fixed } }\n";
    let lab = lab(json!({ "dialect": "anthropic" }), "", nodes);
    let text = pipeline("", nodes)
        .replace("nodes:", "  writer: { endpoint: \"${FAKE_URL}\", name: fake-model }\nnodes:");
    lab.write("small.yaml", &text);
    assert_eq!(lab.amend(&["run", "small.yaml", "--until", "w"]).0, 0);
    lab.server.config(json!({ "fault": "cut-reasoning", "fault_every": 1 }));
    let (code, _, stderr) = lab.amend(&["run", "small.yaml"]);
    assert!(code == 1 && stderr.contains("wrote no text in the 8 tokens of a vote"), "{stderr}");
}
