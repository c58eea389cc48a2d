//! A fake server in a process of its own, as a test sees it.
//!
//! The process is this test binary once more, which runs the one test [`the_process`] of it under
//! an environment variable: it is always built, and always of the same source as the tests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use serde::Deserialize;
use serde_json::{Value, json};

use super::fake_openai::{self, Stats};

const VARIABLE: &str = "AMEND_TEST_FAKE_OPENAI";

/// Not a test: the process of [`FakeServer`], when that starts it.
#[test]
fn the_process() {
    if std::env::var_os(VARIABLE).is_some() {
        fake_openai::serve();
    }
}

/// A running fake server; it is killed when this is dropped, and ends when the test's process does.
pub(crate) struct FakeServer {
    process: Child,
    address: String,
}

/// A body that the server was asked.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Asked {
    /// The canonical body.
    pub(crate) body: String,
    /// The kind, as in [`Stats`].
    pub(crate) kind: String,
    /// How often it was.
    #[serde(rename = "asked")]
    pub(crate) times: u64,
    /// How often it was answered with 200.
    pub(crate) answered: u64,
}

impl FakeServer {
    /// Starts a server that behaves.
    pub(crate) fn start() -> FakeServer {
        let (_, module) = module_path!().split_once("::").expect("a module of a test binary");
        let mut process = Command::new(std::env::current_exe().expect("this binary has a path"))
            .args([&format!("{module}::the_process"), "--exact", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("this binary can be run");
        let stdout = process.stdout.take().expect("it is piped");
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let address = lines.find_map(|line| Some(line.split_once("listening on ")?.1.to_owned()));
        let address = address.expect("the server says where it listens");
        FakeServer { process, address }
    }

    /// Starts a server with some options of [`fake_openai::Config`].
    pub(crate) fn with(config: Value) -> FakeServer {
        let server = FakeServer::start();
        server.config(config);
        server
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The address of its API.
    pub(crate) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// What was counted since the last reset.
    pub(crate) fn stats(&self) -> Stats {
        serde_json::from_str(&self.http("GET", "/stats", "")).expect("stats are JSON")
    }

    /// The different bodies that were asked since the last reset.
    pub(crate) fn requests(&self) -> Vec<Asked> {
        let lines = self.http("GET", "/requests", "");
        lines.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
    }

    /// Forgets all counts.
    pub(crate) fn reset(&self) {
        self.http("POST", "/reset", "");
    }

    /// Sets some options; the others stay.
    pub(crate) fn config(&self, config: Value) {
        self.http("POST", "/config", &config.to_string());
    }

    fn http(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("the fake server runs");
        let request =
            format!("{method} {path} HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).expect("the fake server reads");
        let mut reader = BufReader::new(stream);
        let (mut head, mut length) = (String::new(), 0);
        while reader.read_line(&mut head).expect("the fake server answers") > 2 {
            let line = head.lines().last().unwrap_or_default();
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().expect("a length is a number");
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("the fake server writes what it announced");
        let body = String::from_utf8(body).expect("JSON is UTF-8");
        assert!(head.starts_with("HTTP/1.1 200"), "{method} {path}: {body}");
        body
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        // It may have ended by itself: its life is limited.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn the_fake_counts_each_body_and_forgets_on_reset() {
    let server = FakeServer::start();
    for content in ["a", "b", "a"] {
        let body = json!({ "model": "m", "messages": [{ "content": content, "role": "user" }] });
        server.http("POST", "/v1/chat/completions", &body.to_string());
    }
    let stats = server.stats();
    assert_eq!((stats.calls, stats.distinct, stats.answered, stats.repeats), (3, 2, 3, 1));
    let asked = server.requests().into_iter().find(|asked| asked.times == 2).expect("it was asked");
    assert_eq!((asked.answered, asked.kind.as_str()), (2, "chat"));
    assert_eq!(asked.body, r#"{"messages":[{"content":"a","role":"user"}],"model":"m"}"#);
    server.reset();
    assert_eq!((server.stats().calls, server.requests().len()), (0, 0));
}
