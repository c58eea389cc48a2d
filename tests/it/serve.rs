//! `amend serve` and `amend chat`, by the binary: the interface of OpenAI as its clients use it, many
//! at once, and what they are told when they ask wrongly.

use std::io::{BufReader, Write};
use std::process::{Child, Command, Stdio};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::torch_tiny::{copied, fixture};

/// A running server.
pub(crate) struct Server {
    child: Child,
    url: String,
    client: reqwest::Client,
}

impl Server {
    fn start(dir: &std::path::Path, more: &[&str]) -> Server {
        Server::spawn(dir.as_os_str(), &[more, &["--name", "tiny"]].concat())
    }

    /// Serves a node or a directory on a free port.
    pub(crate) fn spawn(model: &std::ffi::OsStr, more: &[&str]) -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_amend"))
            .arg("serve")
            .arg(model)
            .args(["--port", "0", "-o", "json"])
            .args(more)
            .env_remove("AMEND_API_KEY")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let told = Value::deserialize(&mut serde_json::Deserializer::from_reader(stdout)).unwrap();
        let url = told["url"].as_str().unwrap().to_owned();
        // reqwest asks for one although no test speaks TLS.
        drop(rustls::crypto::ring::default_provider().install_default());
        Server { child, url, client: reqwest::Client::new() }
    }

    /// The status and the body of an answer.
    async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> (u16, String) {
        let request = self.client.post(format!("{}{path}", self.url)).body(body);
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    pub(crate) async fn ask(&self, path: &str, body: Value) -> Value {
        let (status, text) = self.post(path, body.to_string()).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(test);
}

fn chat(content: &str, more: Value) -> Value {
    let mut body = json!({
        "model": "tiny", "max_tokens": 12, "messages": [{ "role": "user", "content": content }],
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The text of an answer, which is a function of the request.
fn text(answer: &Value) -> String {
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[test]
fn a_conversation_is_answered_and_its_model_listed() {
    run(async {
        let server = Server::start(&fixture("llama_tiny"), &[]);
        let models = server.client.get(format!("{}/models", server.url)).send().await.unwrap();
        let models: Value = serde_json::from_str(&models.text().await.unwrap()).unwrap();
        assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("tiny")));

        let asked = chat("Which answer is better?", json!({ "temperature": 0 }));
        let answer = server.ask("/chat/completions", asked).await;
        assert_eq!(answer["object"], "chat.completion");
        assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
        // What `the_tiny_llama_writes_what_transformers_writes` has transformers write.
        assert_eq!(text(&answer), "lP(el}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert_eq!(answer["usage"]["prompt_tokens"], 15);
        assert_eq!(answer["usage"]["total_tokens"], 21);

        let many = chat("Tell me.", json!({ "n": 3, "seed": 5, "max_tokens": 20 }));
        let answer = server.ask("/chat/completions", many.clone()).await;
        let texts = |answer: &Value| -> Vec<Value> {
            let choices = answer["choices"].as_array().unwrap();
            choices.iter().map(|choice| choice["message"]["content"].clone()).collect()
        };
        assert_eq!(texts(&answer).len(), 3);
        assert_ne!(texts(&answer)[0], texts(&answer)[1], "each sample has a seed of its own");
        assert_eq!(texts(&answer), texts(&server.ask("/chat/completions", many).await));
        let one = server.ask("/chat/completions", chat("Tell me.", json!({}))).await;
        assert_eq!(
            answer["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"],
            "a prompt counts once, whatever the number of its answers"
        );
    });
}

#[test]
fn sixty_four_clients_at_once_hear_what_each_hears_alone() {
    run(async {
        let server = Server::start(&fixture("llama_tiny"), &[]);
        let asked = |client: usize| {
            let content = format!("{} {client}", "wait ".repeat(client % 7));
            chat(&content, json!({ "seed": client, "max_tokens": 4 + client % 9 }))
        };
        let together = (0..64).map(|client| server.ask("/chat/completions", asked(client)));
        let together = futures_util::future::join_all(together).await;
        for (client, answer) in together.iter().enumerate().step_by(5) {
            let alone = server.ask("/chat/completions", asked(client)).await;
            assert_eq!(text(answer), text(&alone), "client {client}");
        }
    });
}

#[test]
fn a_stream_tells_in_pieces_what_is_told_at_once() {
    run(async {
        let server = Server::start(&fixture("llama_tiny"), &[]);
        for seed in 0..6 {
            let more =
                json!({ "seed": seed, "max_tokens": 24, "stop": ["er", "\n"], "logprobs": true });
            let whole = server.ask("/chat/completions", chat("Hi", more.clone())).await;
            let mut asked = chat("Hi", more);
            asked["stream"] = json!(true);
            asked["stream_options"] = json!({ "include_usage": true });
            let (status, body) = server.post("/chat/completions", asked.to_string()).await;
            assert_eq!(status, 200, "{body}");
            let mut data: Vec<&str> =
                body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
            assert_eq!(data.pop(), Some("[DONE]"), "{body}");
            let chunks: Vec<Value> =
                data.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
            assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
            let delta =
                |chunk: &Value| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned);
            assert_eq!(chunks.iter().filter_map(delta).collect::<String>(), text(&whole));
            let tokens = |choice: &Value| {
                choice["logprobs"]["content"].as_array().cloned().unwrap_or_default()
            };
            let told: Vec<Value> =
                chunks.iter().flat_map(|chunk| tokens(&chunk["choices"][0])).collect();
            assert_eq!(told, tokens(&whole["choices"][0]));
            let finish: Vec<&Value> = chunks
                .iter()
                .map(|chunk| &chunk["choices"][0]["finish_reason"])
                .filter(|reason| !reason.is_null())
                .collect();
            assert_eq!(finish, [&whole["choices"][0]["finish_reason"]]);
            assert_eq!(chunks.last().unwrap()["usage"], whole["usage"]);
        }
    });
}

#[test]
fn a_text_is_scored_by_the_log_probabilities_of_its_echo() {
    run(async {
        let server = Server::start(&fixture("llama_tiny"), &[]);
        let expected = std::fs::read(fixture("llama_tiny").join("expected.json")).unwrap();
        let expected: Value = serde_json::from_slice(&expected).unwrap();
        let (prompt, choice) =
            (expected[0]["prompt"].as_str().unwrap(), &expected[0]["choices"][0]);
        let asked = json!({
            "prompt": [format!("{prompt}{}", choice.as_str().unwrap()), "Hi"],
            "max_tokens": 0, "echo": true, "logprobs": 2,
        });
        let answer = server.ask("/completions", asked).await;
        let logprobs = &answer["choices"][0]["logprobs"];
        assert_eq!(logprobs["token_logprobs"][0], Value::Null, "nothing predicts the first token");
        let first = expected[0]["ids"].as_array().unwrap().len();
        let of_choice = logprobs["token_logprobs"].as_array().unwrap()[first..].iter();
        let sum: f64 = of_choice.map(|logprob| logprob.as_f64().unwrap()).sum();
        assert!((sum - expected[0]["choice_logprobs"][0].as_f64().unwrap()).abs() < 1e-4, "{sum}");
        assert_eq!(logprobs["top_logprobs"][1].as_object().unwrap().len(), 2);
        assert_eq!(answer["choices"][1]["text"], "Hi");

        let asked = json!({ "prompt": "Hi", "max_tokens": 3, "temperature": 0, "logprobs": 0, "echo": true });
        let answer = server.ask("/completions", asked).await;
        let tokens = answer["choices"][0]["logprobs"]["tokens"].as_array().unwrap();
        let joined: String = tokens.iter().map(|token| token.as_str().unwrap()).collect();
        assert_eq!(answer["choices"][0]["text"], joined);
        assert_eq!(answer["usage"]["completion_tokens"], 3);
    });
}

#[test]
fn a_prompt_of_token_ids_is_answered_as_its_text_is() {
    run(async {
        let server = Server::start(&fixture("llama_tiny"), &[]);
        let expected = std::fs::read(fixture("llama_tiny").join("expected.json")).unwrap();
        let expected: Value = serde_json::from_slice(&expected).unwrap();
        let prompts = || expected.as_array().unwrap().iter().map(|case| case["prompt"].clone());
        let ids = || expected.as_array().unwrap().iter().map(|case| case["ids"].clone());
        let asked = |prompt: Value| json!({ "prompt": prompt, "temperature": 0, "max_tokens": 9, "logprobs": 3 });
        let by_text = server.ask("/completions", asked(prompts().collect())).await;
        let by_ids = server.ask("/completions", asked(ids().collect())).await;
        assert_eq!(
            (&by_ids["choices"], &by_ids["usage"]),
            (&by_text["choices"], &by_text["usage"])
        );
        let one = server.ask("/completions", asked(ids().next().unwrap())).await;
        assert_eq!(one["choices"][0], by_text["choices"][0]);

        // What evaluation harnesses ask: the log-probabilities of the prompt, and one token more.
        let echoed = |prompt: Value| json!({ "prompt": prompt, "temperature": 0, "max_tokens": 1, "echo": true, "logprobs": 1 });
        let by_text = server.ask("/completions", echoed(prompts().collect())).await;
        let by_ids = server.ask("/completions", echoed(ids().collect())).await;
        assert_eq!(by_ids["choices"], by_text["choices"]);
        let tokens = by_ids["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
        assert_eq!(tokens.len(), ids().next().unwrap().as_array().unwrap().len() + 1);

        let mut asked = echoed(ids().next().unwrap());
        (asked["stream"], asked["max_tokens"]) = (json!(true), json!(0));
        let (_, body) = server.post("/completions", asked.to_string()).await;
        let data: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let last: Value = serde_json::from_str(data[data.len() - 2]).unwrap();
        assert_eq!(last["choices"][0]["finish_reason"], "length", "{body}");
    });
}

/// Requests about a conversation that are wrong: where, what, the status, a word of the reason.
fn wrong_conversations() -> Vec<(&'static str, String, u16, &'static str)> {
    let long = "wait ".repeat(200);
    let mut cases = wrong_bodies();
    cases.extend([
        ("/chat/completions", chat("hi", json!({ "n": 0 })).to_string(), 400, "from 1"),
        ("/chat/completions", chat("hi", json!({ "n": 1e9 as u64 })).to_string(), 400, "from 1"),
        ("/chat/completions", chat("hi", json!({ "temperature": -1 })).to_string(), 400, "from 0"),
        ("/chat/completions", chat("hi", json!({ "temperature": "hot" })).to_string(), 400, "body"),
        ("/chat/completions", chat("hi", json!({ "max_tokens": -4 })).to_string(), 400, "body"),
        (
            "/chat/completions",
            chat("hi", json!({ "top_logprobs": 3 })).to_string(),
            400,
            "logprobs",
        ),
        (
            "/chat/completions",
            chat("hi", json!({ "logprobs": true, "top_logprobs": 99 })).to_string(),
            400,
            "at most",
        ),
        (
            "/chat/completions",
            chat("hi", json!({ "tools": [{}] })).to_string(),
            400,
            "not supported",
        ),
        ("/chat/completions", chat(&long, json!({})).to_string(), 400, "context"),
        ("/chat/completions", chat(&long, json!({ "stream": true })).to_string(), 400, "context"),
    ]);
    cases
}

/// Those that are no request at all.
fn wrong_bodies() -> Vec<(&'static str, String, u16, &'static str)> {
    vec![
        ("/chat/completions", "{ not json".to_owned(), 400, "body"),
        ("/chat/completions", "[]".to_owned(), 400, "body"),
        ("/chat/completions", "\u{0}".to_owned(), 400, "body"),
        ("/chat/completions", json!({}).to_string(), 400, "messages"),
        ("/chat/completions", json!({ "messages": [] }).to_string(), 400, "message"),
        ("/chat/completions", json!({ "messages": "hi" }).to_string(), 400, "body"),
        (
            "/chat/completions",
            json!({ "messages": [{ "role": "pope", "content": "hi" }] }).to_string(),
            400,
            "pope",
        ),
        (
            "/chat/completions",
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] })
                .to_string(),
            400,
            "image_url",
        ),
        ("/chat/completions", chat("hi", json!({ "model": "gpt-9" })).to_string(), 404, "gpt-9"),
    ]
}

/// Requests about a text.
fn wrong_texts() -> Vec<(&'static str, String, u16, &'static str)> {
    vec![
        ("/completions", json!({ "prompt": [] }).to_string(), 400, "prompt"),
        ("/completions", json!({ "prompt": [[]] }).to_string(), 400, "no token"),
        ("/completions", json!({ "prompt": 7 }).to_string(), 400, "prompt"),
        ("/completions", json!({ "prompt": [5, "five"] }).to_string(), 400, "five"),
        ("/completions", json!({ "prompt": [5, 1.5] }).to_string(), 400, "1.5"),
        ("/completions", json!({ "prompt": [5, 320] }).to_string(), 400, "token 320 is not"),
        ("/completions", json!({ "prompt": [[5], [-1]] }).to_string(), 400, "token -1 is not"),
        (
            "/completions",
            json!({ "prompt": [999_999], "echo": true, "stream": true }).to_string(),
            400,
            "token 999999 is not",
        ),
        ("/completions", json!({ "prompt": "x".repeat(32 << 20) }).to_string(), 413, "length"),
        ("/completions", json!({ "prompt": "" }).to_string(), 400, "no token"),
        (
            "/completions",
            json!({ "prompt": "Hi", "min_tokens": 4 }).to_string(),
            400,
            "not supported",
        ),
        (
            "/completions",
            json!({ "prompt": "Hi", "suffix": "!" }).to_string(),
            400,
            "not supported",
        ),
        ("/completions", json!({ "prompt": "Hi", "best_of": 2 }).to_string(), 400, "not supported"),
        ("/embeddings", json!({ "input": "hi" }).to_string(), 404, "/v1/embeddings"),
    ]
}

#[test]
fn a_request_that_is_wrong_is_told_what_is_wrong_in_openais_words() {
    run(async {
        let server = Server::start(&fixture("llama_tiny"), &[]);
        let cases = wrong_conversations().into_iter().chain(wrong_texts());
        for (path, body, status, part) in cases {
            let (found, told) = server.post(path, body.clone()).await;
            let body = &body[..body.len().min(200)];
            assert_eq!(found, status, "{body}: {told}");
            let error: Value = serde_json::from_str(&told).unwrap();
            let error = &error["error"];
            assert_eq!(error["type"], "invalid_request_error", "{told}");
            assert!(error["message"].as_str().unwrap().contains(part), "{body}: {told}");
        }
        let wrong = server.client.get(format!("{}/completions", server.url)).send().await.unwrap();
        assert_eq!(wrong.status(), 405);
        let harmless = json!({
            "user": "x", "tools": [], "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0,
            "suffix": null, "response_format": { "type": "text" },
        });
        let answer = server.ask("/chat/completions", chat("hi", harmless)).await;
        assert_eq!(answer["choices"].as_array().unwrap().len(), 1, "it still serves");
    });
}

#[test]
fn a_token_is_asked_for_and_without_one_the_server_stays_on_this_machine() {
    run(async {
        let server = Server::start(&fixture("llama_tiny"), &["--api-key", "s3cret"]);
        let models = |token: Option<&'static str>| {
            let request = server.client.get(format!("{}/models", server.url));
            let request = match token {
                Some(token) => request.header("Authorization", token),
                None => request,
            };
            async move {
                let response = request.send().await.unwrap();
                (response.status().as_u16(), response.text().await.unwrap())
            }
        };
        for wrong in [None, Some("Bearer nope"), Some("s3cret"), Some("Basic s3cret")] {
            let (status, told) = models(wrong).await;
            assert_eq!(status, 401, "{wrong:?}");
            assert!(told.contains("authentication_error") && !told.contains("s3cret"), "{told}");
        }
        assert_eq!(models(Some("Bearer s3cret")).await.0, 200);
        assert!(server.url.starts_with("http://127.0.0.1:"));
    });
    let open = Command::new(env!("CARGO_BIN_EXE_amend"))
        .args(["serve", "--host", "0.0.0.0", "--port", "0"])
        .arg(fixture("llama_tiny"))
        .env_remove("AMEND_API_KEY")
        .output()
        .unwrap();
    assert_eq!(open.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&open.stderr).contains("--api-key"));
}

/// What `amend chat` says to some lines.
pub(crate) fn talk(command: &mut Command, lines: &str) -> String {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

fn chat_with(dir: &std::path::Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_amend"));
    command.arg("chat").arg(dir).args(more);
    command
}

#[test]
fn a_first_look_at_a_model_is_one_line_a_turn() {
    let dir = fixture("llama_tiny");
    let greedy = ["--temperature", "0", "--max-tokens", "12"];
    assert_eq!(talk(&mut chat_with(&dir, &greedy), "Which answer is better?\n"), "lP(el}\n");

    let more = ["-o", "json", "--max-tokens", "5", "--system", "Wait."];
    let told = talk(&mut chat_with(&dir, &more), "Hi\nMore\n");
    let told: Value = serde_json::from_str(&told).unwrap();
    let roles: Vec<&str> = told["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| message["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);

    // With a template of its own, a checkpoint is spoken to by it.
    let dir = copied("llama_tiny");
    let template =
        r"{% for m in messages %}{{ '\n\nHuman: ' + m.content }}{% endfor %}{{ '\n\nAssistant:' }}";
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    assert_eq!(talk(&mut chat_with(dir.path(), &greedy), "Which answer is better?\n"), "lP(el}\n");
}

#[test]
fn what_is_no_model_is_said_with_what_would_be() {
    let failed = |arguments: &[&std::ffi::OsStr]| {
        let output = Command::new(env!("CARGO_BIN_EXE_amend")).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let scorer = fixture("llama_tiny_scorer");
    let (code, told) = failed(&["chat".as_ref(), scorer.as_os_str()]);
    assert!(code == Some(2) && told.contains("preference model"), "{told}");
    let nothing = tempfile::tempdir().unwrap();
    let (code, told) = failed(&["serve".as_ref(), nothing.path().as_os_str()]);
    assert!(code == Some(2) && told.contains("config.json"), "{told}");
}
