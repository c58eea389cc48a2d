//! Ctrl-C in `amend chat` and `amend serve` while an answer is written that would take long.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::torch_tiny::copied;

/// A model that writes on and on: it has no token that ends.
fn endless() -> tempfile::TempDir {
    let dir = copied("llama_tiny");
    for name in ["config.json", "generation_config.json"] {
        let path = dir.path().join(name);
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["eos_token_id"] = Value::Null;
        config["max_position_embeddings"] = json!(200_000);
        std::fs::write(&path, config.to_string()).unwrap();
    }
    dir
}

fn begin(verb: &str, dir: &tempfile::TempDir, more: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_amend"));
    command.arg(verb).arg(dir.path()).args(more).env_remove("AMEND_API_KEY");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn interrupt(child: &Child) {
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// The exit code, and how long it took; a process that does not end is killed and has none.
fn ended(mut child: Child) -> (Option<i32>, Duration) {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return (status.code(), began.elapsed());
        }
        if began.elapsed() > Duration::from_mins(1) {
            child.kill().unwrap();
            child.wait().unwrap();
            return (None, began.elapsed());
        }
        std::thread::yield_now();
    }
}

/// A server in the midst of a stream that nobody would see the end of.
fn streaming(dir: &tempfile::TempDir) -> (Child, BufReader<TcpStream>) {
    let mut child = begin("serve", dir, &["--port", "0", "--name", "tiny"]);
    let mut said = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
    let (_, address) = said.trim_end().trim_end_matches("/v1").split_once("http://").unwrap();
    let body = json!({
        "model": "tiny", "max_tokens": 190_000, "stream": true,
        "messages": [{ "role": "user", "content": "Hi" }],
    })
    .to_string();
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!("Host: {address}\r\nContent-Length: {}", body.len());
    write!(stream, "POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n\r\n{body}").unwrap();
    let mut reader = BufReader::new(stream);
    let (mut line, mut chunks) = (String::new(), 0);
    while chunks < 5 {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "the stream ended early");
        chunks += usize::from(line.starts_with("data: "));
    }
    (child, reader)
}

#[test]
fn a_second_interrupt_ends_a_server_at_once() {
    let dir = endless();
    let (mut child, mut stream) = streaming(&dir);
    interrupt(&child);
    let mut said = String::new();
    BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("again to end at once"), "{said}");
    // What is under way goes on meanwhile.
    let mut line = String::new();
    assert!(stream.read_line(&mut line).unwrap() > 0 && child.try_wait().unwrap().is_none());
    interrupt(&child);
    let (code, took) = ended(child);
    assert_eq!(code, Some(130));
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[test]
fn an_interrupt_ends_a_server_after_a_few_seconds_and_at_once_when_nothing_is_under_way() {
    let dir = endless();
    let (child, mut stream) = streaming(&dir);
    let reader = std::thread::spawn(move || drop(stream.read_to_end(&mut Vec::new())));
    interrupt(&child);
    assert_eq!(ended(child).0, Some(130), "a stream without an end is not waited for");
    reader.join().unwrap();

    let mut idle = begin("serve", &dir, &["--port", "0"]);
    BufReader::new(idle.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
    interrupt(&idle);
    let (code, took) = ended(idle);
    assert_eq!(code, Some(0), "that is how it is to end");
    assert!(took < Duration::from_secs(4), "{took:?}");
}

/// A chat whose input stays open, once it has written the beginning of an answer.
fn answering(dir: &tempfile::TempDir) -> (Child, ChildStdout) {
    let mut child = begin("chat", dir, &["--max-tokens", "190000"]);
    child.stdin.as_mut().unwrap().write_all(b"Hi\n").unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 20]).unwrap();
    (child, stdout)
}

#[test]
fn an_interrupt_cuts_an_answer_of_a_chat_short() {
    let dir = endless();
    let (mut child, mut stdout) = answering(&dir);
    let stdin = child.stdin.take();
    let reader = std::thread::spawn(move || {
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).map(|_| rest)
    });
    interrupt(&child);
    let (code, took) = ended(child);
    assert_eq!(code, Some(130));
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(reader.join().unwrap().unwrap().ends_with('\n'), "its line is ended");
    drop(stdin);
}

/// A training that would take long.
const LONG: &str = "\
name: long
seed: 1
nodes:
  taught: { read: { path: taught.jsonl, relation: demonstrations } }
  sl:
    train-sl:
      from: taught
      init: { scratch: { architecture: { hidden_size: 128, num_hidden_layers: 4, num_attention_heads: 4,
        max_position_embeddings: 128 }, tokenizer: { vocab_size: 400 } } }
      epochs: 5000
      batch_size: 32
";

/// A run whose training is at work.
fn training(folder: &std::path::Path) -> Child {
    std::fs::write(folder.join("long.yaml"), LONG).unwrap();
    let row = |n: usize| json!({ "prompt": format!("what is {n}?"), "completion": format!("{n} is {n}") });
    let rows: Vec<String> = (0..256).map(|n| row(n).to_string()).collect();
    std::fs::write(folder.join("taught.jsonl"), rows.join("\n")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_amend"));
    command.current_dir(folder).args(["run", "long.yaml"]).env_remove("AMEND_STORE");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // The fourteenth field is the time that it used the processor, in hundredths of a second.
    let used = |child: &Child| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split(' ').collect();
        fields[12].parse::<u64>().unwrap()
    };
    while used(&child) < 200 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was interrupted");
        std::thread::yield_now();
    }
    child
}

#[test]
fn a_second_interrupt_ends_a_run_at_once_whatever_its_training_is_at() {
    // Without the end that it has, about every second one ended by a signal.
    for _ in 0..6 {
        let folder = tempfile::tempdir().unwrap();
        let mut child = training(folder.path());
        interrupt(&child);
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("again to end at once") {
            said.clear();
            assert!(stderr.read_line(&mut said).unwrap() > 0, "it ended at the first");
        }
        interrupt(&child);
        let (code, took) = ended(child);
        assert_eq!(code, Some(130), "no signal ends it");
        assert!(took < Duration::from_secs(4), "{took:?}");
    }
}
