//! What chat templates make of conversations, for comparison with other readers of them:
//! `cargo run --example render -- CASES.json OUT.json`.
//!
//! CASES is a JSON object with `tokenizer_config` (the special tokens) and `cases`, each with a
//! `template`, `messages`, `arguments`, and whether an answer is begun (`prompt`). OUT is the list of
//! texts, null where the template raises.

use std::path::PathBuf;

use amend::model::torch::ChatTemplate;
use amend::record::Message;
use serde::Deserialize;
use serde_json::{Map, Value};

type Failure = Box<dyn std::error::Error>;

#[derive(Deserialize)]
struct Cases {
    tokenizer_config: Value,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    messages: Vec<Message>,
    arguments: Map<String, Value>,
    prompt: bool,
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [cases, out] = arguments.as_slice() else {
        return Err("usage: render CASES.json OUT.json".into());
    };
    let Cases { tokenizer_config, cases } = serde_json::from_slice(&std::fs::read(cases)?)?;
    let config = serde_json::to_vec(&tokenizer_config)?;
    let files = [("tokenizer_config.json".to_owned(), config)].into();
    let text = |case: &Case| {
        let template = ChatTemplate::of(&files, Some(&case.template), &case.arguments).ok()??;
        template.render(&case.messages, case.prompt).ok()
    };
    let texts: Vec<Option<String>> = cases.iter().map(text).collect();
    std::fs::write(out, serde_json::to_vec(&texts)?)?;
    Ok(())
}
