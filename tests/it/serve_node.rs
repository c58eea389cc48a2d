//! `amend serve` and `amend chat` of what a node trained, found in the store by the node's name.

use std::process::Command;

use serde_json::{Value, json};

use crate::serve::{Server, run, talk};

const PIPELINE: &str = "\
name: small
seed: 5
nodes:
  taught: { read: { path: taught.jsonl, relation: demonstrations } }
  pairs: { read: { path: pairs.jsonl, relation: comparisons } }
  sl:
    train-sl:
      from: taught
      init: { scratch: { architecture: { hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
        max_position_embeddings: 64 }, tokenizer: { vocab_size: 300 } } }
      learning_rate: 0.01
      epochs: 12
      batch_size: 8
      threads: 1
  pm: { train-pm: { from: pairs, init: sl, batch_size: 8, threads: 1 } }
";

/// A folder with a pipeline that has run: its model answers everything alike.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench { dir: tempfile::tempdir().unwrap() };
        bench.write("small.yaml", PIPELINE);
        let pair = |n: usize| json!({ "prompt": format!("q{n}?"), "response_a": "yes", "response_b": "no", "p": 0.9 });
        let pairs: Vec<String> = (0..8).map(|n| pair(n).to_string()).collect();
        bench.write("pairs.jsonl", &pairs.join("\n"));
        bench
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    /// Trains the model to give one answer to everything.
    fn teach(&self, answer: &str) {
        let row = |n: usize| json!({ "prompt": format!("q{n}?"), "completion": answer });
        let rows: Vec<String> = (0..32).map(|n| row(n).to_string()).collect();
        self.write("taught.jsonl", &rows.join("\n"));
        let output = self.amend(&["run", "small.yaml", "-q"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn amend(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amend"));
        command.current_dir(self.dir.path()).args(arguments).env_remove("AMEND_API_KEY");
        command
    }

    /// What a command that fails says.
    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.amend(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

async fn answer(server: &Server, model: &str) -> Value {
    let messages = json!([{ "role": "user", "content": "q3?" }]);
    let asked = json!({ "model": model, "messages": messages, "temperature": 0, "max_tokens": 12 });
    server.ask("/chat/completions", asked).await["choices"][0]["message"]["content"].clone()
}

#[test]
fn what_a_node_trained_is_talked_with_and_served_by_its_name() {
    let bench = Bench::new();
    bench.teach("Yes, I do.");
    bench.teach("No.");
    let greedy = ["--temperature", "0", "--max-tokens", "12"];
    let said =
        |more: &[&str]| talk(bench.amend(&[&["chat", "sl"], more].concat()).args(greedy), "q3?\n");
    assert_eq!(
        said(&[]),
        "No.\n",
        "the store of this folder, its only pipeline, its last snapshot"
    );
    assert_eq!(said(&["--at", "1"]), "Yes, I do.\n");
    assert_eq!(said(&["--pipeline", "small", "--at", "latest~1"]), "Yes, I do.\n");
    let checkpoint = bench.dir.path().join(".amend/small/checkpoints/sl");
    assert_eq!(talk(bench.amend(&["chat"]).arg(&checkpoint).args(greedy), "q3?\n"), "No.\n");

    let path = |name: &str| bench.dir.path().join(name).display().to_string();
    let (file, store) = (path("small.yaml"), path(".amend"));
    run(async {
        let server = Server::spawn("sl".as_ref(), &["--pipeline", &file]);
        assert_eq!(answer(&server, "sl").await, "No.", "without the space that a transcript has");
        let asked = json!({ "prompt": "\n\nHuman: q3?\n\nAssistant:", "temperature": 0 });
        let text = server.ask("/completions", asked).await["choices"][0]["text"].clone();
        assert_eq!(text, " No.", "a plain text is told as it is");
        drop(server);
        let server =
            Server::spawn("sl".as_ref(), &["--store", &store, "--at", "1", "--name", "older"]);
        assert_eq!(answer(&server, "older").await, "Yes, I do.");
    });
}

#[test]
fn a_node_that_has_no_model_to_talk_with_is_said_with_those_that_have() {
    let bench = Bench::new();
    let said = bench.fails(&["chat", "sl", "--pipeline", "small.yaml"]);
    assert!(said.contains("small"), "{said}");
    assert!(bench.fails(&["chat", "./sl"]).contains("\"./sl\" is no checkpoint"));
    bench.teach("No.");
    for wrong in ["taught", "ls"] {
        let said = bench.fails(&["serve", wrong]);
        assert!(said.contains(wrong) && said.contains("nodes with a model: sl, pm"), "{said}");
    }
    assert!(bench.fails(&["chat", "pm"]).contains("\"pm\" is a preference model"));
    let said = bench.fails(&["chat", "sl", "--at", "7"]);
    assert!(said.contains("no snapshot 7"), "{said}");
    let weights = bench.dir.path().join(".amend/small/checkpoints/sl").canonicalize().unwrap();
    std::fs::rename(&weights, weights.with_extension("gone")).unwrap();
    let output = bench.amend(&["chat", "sl"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is lost"));
}
