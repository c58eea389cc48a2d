//! Checkpoints that came damaged: files cut short, bits flipped, files missing or swapped. Whatever
//! is in a directory, it is read or refused with a reason; nothing panics.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::path::{Path, PathBuf};

use amend::model::torch::{
    ChatTemplate, Checkpoint, TorchBackend, TorchOptions, Transformer, weights_id,
};
use amend::model::{Estimator, Prompt, Request, Task};
use proptest::prelude::*;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::torch_tiny::{ask, copied, fixture, greedy};

/// Checkpoints of different layouts; those of `conformance` borrow the tokenizer of `llama_tiny`.
const CHECKPOINTS: [&str; 11] = [
    "llama_tiny",
    "llama_tiny_scorer",
    "conformance/llama_shards",
    "conformance/llama3",
    "conformance/llama_bf16",
    "conformance/mistral",
    "conformance/qwen2_window",
    "conformance/qwen3",
    "conformance/smollm3",
    "conformance/gpt2",
    "conformance/gpt_neox",
];

/// What happens to a file.
#[derive(Clone, Debug)]
enum Damage {
    /// Only this share of it is left.
    Cut(f64),
    /// Bits at these shares of its length are flipped.
    Flip(Vec<(f64, u8)>),
    /// Bytes near its beginning, where headers are.
    FlipHead(Vec<(usize, u8)>),
    /// A value of its JSON, where it is JSON, is another.
    Value(usize, Value),
    /// It is gone.
    Remove,
    /// It is empty.
    Empty,
    /// Another file has its name.
    Swap(usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        2 => (0.0..1.0).prop_map(Damage::Cut),
        4 => prop::collection::vec((0.0..1.0, 0u8..8), 1..6).prop_map(Damage::Flip),
        3 => prop::collection::vec((0usize..400, 0u8..8), 1..4).prop_map(Damage::FlipHead),
        4 => (0usize..4000, prop::sample::select(values())).prop_map(|(at, to)| Damage::Value(at, to)),
        1 => Just(Damage::Remove),
        1 => Just(Damage::Empty),
        1 => (0usize..8).prop_map(Damage::Swap),
    ]
}

/// Values that stand where others belong.
fn values() -> Vec<Value> {
    let values = json!([
        null, true, -1, 0, 1, 3, 0.5, 1e300, i64::MAX, u64::MAX, "", "x", [], {}, [1, "x"], { "x": 1 }
    ]);
    values.as_array().unwrap().clone()
}

/// The places of a document that hold no others.
fn leaves<'v>(value: &'v mut Value, found: &mut Vec<&'v mut Value>) {
    match value {
        Value::Object(map) => map.values_mut().for_each(|value| leaves(value, found)),
        Value::Array(items) => items.iter_mut().for_each(|value| leaves(value, found)),
        leaf => found.push(leaf),
    }
}

fn with_value(bytes: Vec<u8>, at: usize, to: &Value) -> Vec<u8> {
    let Ok(mut document) = serde_json::from_slice::<Value>(&bytes) else { return bytes };
    let mut found = Vec::new();
    leaves(&mut document, &mut found);
    let count = found.len().max(1);
    if let Some(place) = found.get_mut(at % count) {
        **place = to.clone();
    }
    document.to_string().into_bytes()
}

/// The files of a checkpoint, in order.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| !path.to_string_lossy().contains("expected"));
    files.sort();
    files
}

/// A copy of a checkpoint of which some files are damaged.
fn damaged(name: &str, damages: &[(usize, Damage)]) -> tempfile::TempDir {
    let dir = copied(name);
    if !dir.path().join("tokenizer.json").exists() {
        let tokenizer = fixture("llama_tiny").join("tokenizer.json");
        std::fs::copy(tokenizer, dir.path().join("tokenizer.json")).unwrap();
    }
    let template = "{{ messages[0].content }}";
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    for (at, damage) in damages {
        let files = files(dir.path());
        let path = &files[at % files.len()];
        let mut bytes = std::fs::read(path).unwrap();
        let length = bytes.len();
        match damage {
            Damage::Cut(share) => bytes.truncate((length as f64 * share) as usize),
            Damage::Flip(bits) => {
                for (share, bit) in bits.iter().filter(|_| length > 0) {
                    bytes[(length as f64 * share) as usize] ^= 1 << bit;
                }
            }
            Damage::FlipHead(bits) => {
                for (at, bit) in bits.iter().filter(|(at, _)| *at < length) {
                    bytes[*at] ^= 1 << bit;
                }
            }
            Damage::Value(at, to) => bytes = with_value(bytes, *at, to),
            Damage::Remove => {
                std::fs::remove_file(path).unwrap();
                continue;
            }
            Damage::Empty => bytes.clear(),
            Damage::Swap(other) => bytes = std::fs::read(&files[other % files.len()]).unwrap(),
        }
        std::fs::write(path, bytes).unwrap();
    }
    dir
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_checkpoint_is_read_or_refused(
        name in prop::sample::select(CHECKPOINTS.to_vec()),
        damages in prop::collection::vec((0usize..16, damage()), 1..3),
    ) {
        let dir = damaged(name, &damages);
        let _guard = tch::no_grad_guard();
        tch::set_num_threads(1);
        let _ = weights_id(dir.path());
        let checkpoint = match Checkpoint::read(dir.path()) {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                prop_assert!(!error.to_string().is_empty());
                return Ok(());
            }
        };
        let template = ChatTemplate::of(&checkpoint.tokenizer_files, None, &serde_json::Map::new());
        let _ = template.map(|template| template.map(|template| template.render(&[], true)));
        let tokenizer = checkpoint.tokenizer();
        let _ = tokenizer.map(|tokenizer| tokenizer.encode("Hello, wörld!"));
        let Checkpoint { config, weights, .. } = &checkpoint;
        let model = Transformer::new(config, weights, Kind::Float, Device::Cpu).unwrap();
        let hidden = model.hidden(&Tensor::from_slice(&[1i64, 0, 3]).view([1, -1]));
        prop_assert_eq!(hidden.size(), [1, 3, config.hidden_size]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_model_of_a_damaged_checkpoint_answers_every_request_once(
        name in prop::sample::select(CHECKPOINTS.to_vec()),
        damages in prop::collection::vec((0usize..16, damage()), 1..3),
    ) {
        let dir = damaged(name, &damages);
        let Ok(backend) = TorchBackend::open(dir.path(), TorchOptions::default()) else {
            return Ok(());
        };
        let prompt = || Prompt::Text("Which answer is better? naïve café".to_owned());
        let score = Task::Score { choices: vec![" (A)".to_owned()], estimator: Estimator::Echo };
        let requests = vec![
            Request { prompt: prompt(), task: Task::Generate(greedy(4)) },
            Request { prompt: prompt(), task: score },
        ];
        prop_assert_eq!(ask(&backend, requests).len(), 2);
    }
}

#[test]
fn what_is_not_read_here_is_refused_by_the_name_of_its_file_with_a_way_out() {
    let refused = |change: &dyn Fn(&Path)| {
        let dir = copied("llama_tiny");
        std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        change(dir.path());
        Checkpoint::read(dir.path()).err().unwrap().to_string()
    };
    let write = |name: &'static str| move |dir: &Path| std::fs::write(dir.join(name), "x").unwrap();
    for (name, part) in [
        ("pytorch_model.bin", "pytorch_model.bin: is a pickle"),
        ("pytorch_model-00001-of-00002.bin", "save_pretrained"),
        ("model-q4.gguf", "model-q4.gguf: is for llama.cpp"),
        ("adapter_model.safetensors", "merge it"),
        ("model-00001-of-00002.safetensors", "fetch the index"),
        ("notes.txt", "model.safetensors: is not there"),
    ] {
        let message = refused(&write(name));
        assert!(message.contains(part), "{name}: {message}");
    }
}
