//! The numbers of a Llama against transformers: the checkpoints of `../shared/conformance`, and a
//! small one of our own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

use std::path::{Path, PathBuf};

use amend::model::Finish;
use amend::model::torch::{
    Checkpoint, Continuation, Generated, Head, Llama, TextTokenizer, generate, rewards, score,
};
use safetensors::SafeTensors;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::torch_tiny::{fixture, greedy, sampled};

/// The directory of the shared checkpoints; none, said on stderr, where it is not.
fn shared() -> Option<PathBuf> {
    let given = std::env::var_os("AMEND_CONFORMANCE").map(PathBuf::from);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/conformance");
    let dir = given.unwrap_or(beside);
    if dir.is_dir() {
        return Some(dir);
    }
    eprintln!("skipped: {} is not there (AMEND_CONFORMANCE names another)", dir.display());
    None
}

fn expected(dir: &Path, name: &str) -> Tensor {
    let bytes = std::fs::read(dir.join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
    let kind = match view.dtype() {
        safetensors::Dtype::I64 => Kind::Int64,
        _ => Kind::Float,
    };
    Tensor::from_data_size(view.data(), &shape, kind)
}

fn model(dir: &Path) -> (Checkpoint, Llama) {
    let checkpoint = Checkpoint::read(dir).unwrap();
    let llama =
        Llama::new(&checkpoint.config, &checkpoint.weights, Kind::Float, Device::Cpu).unwrap();
    (checkpoint, llama)
}

/// The largest difference from transformers at tokens that are not padding.
fn difference(dir: &Path) -> f64 {
    let _guard = tch::no_grad_guard();
    tch::set_num_threads(1);
    let (checkpoint, llama) = model(dir);
    let attention_mask = expected(dir, "attention_mask");
    let mask = llama.padding_mask(&attention_mask);
    let (ids, positions) = (expected(dir, "input_ids"), expected(dir, "position_ids"));
    let difference = |llama: &Llama| {
        let hidden = llama.hidden_at(&ids, &positions, &mask);
        match checkpoint.config.head {
            Head::Lm => {
                let error = (llama.logits(&hidden) - expected(dir, "logits")).abs();
                (error * attention_mask.unsqueeze(-1)).max().double_value(&[])
            }
            Head::Score => {
                let last = (attention_mask.cumsum(1, Kind::Int64).argmax(-1, false)).view([-1, 1]);
                let scores = llama.scores(&hidden).gather(1, &last, false); // (B, 1)
                (scores - expected(dir, "scores")).abs().max().double_value(&[])
            }
        }
    };
    difference(&llama).max(difference(&llama.stacked()))
}

#[test]
fn the_shared_llamas_give_the_numbers_of_transformers() {
    let Some(dir) = shared() else { return };
    for case in
        ["llama_mha", "llama_gqa_tied_theta", "llama3_ropescale", "llama_bias", "llama_seqcls"]
    {
        let difference = difference(&dir.join(case));
        eprintln!("{case}: largest difference {difference:.1e}");
        assert!(difference < 1e-4, "{case}: {difference:e}");
    }
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    let Some(dir) = shared() else { return };
    for case in ["llama_mha", "llama_gqa_tied_theta", "llama3_ropescale", "llama_bias"] {
        let (checkpoint, mut llama) = model(&dir.join(case));
        // transformers was told to write on past the end token.
        llama.config.eos_token_ids.clear();
        assert!(checkpoint.config.eos_token_ids == [2]);
        let ids = Vec::<i64>::try_from(expected(&dir.join(case), "greedy_ids").view([-1])).unwrap();
        let prompt = ids[..12].to_vec();
        let written = continued(&llama, &numbered_words(512), prompt, 12);
        assert_eq!(written.tokens, ids[12..], "{case}");
        assert_eq!(written.finish, Finish::Length);
    }
}

#[derive(Deserialize)]
struct Expected {
    prompt: String,
    ids: Vec<i64>,
    greedy_ids: Vec<i64>,
    greedy_text: String,
    choices: Vec<String>,
    choice_logprobs: Vec<f64>,
}

fn tiny() -> (Llama, TextTokenizer, Vec<Expected>) {
    let dir = fixture("llama_tiny");
    let (checkpoint, llama) = model(&dir);
    let text = std::fs::read_to_string(dir.join("expected.json")).unwrap();
    (llama.stacked(), checkpoint.tokenizer().unwrap(), serde_json::from_str(&text).unwrap())
}

#[test]
fn the_tiny_llama_writes_what_transformers_writes() {
    let _guard = tch::no_grad_guard();
    let (llama, tokenizer, cases) = tiny();
    for (index, case) in cases.iter().enumerate() {
        let ids = tokenizer.encode(&case.prompt).unwrap();
        assert_eq!(ids, case.ids);
        let hidden = llama.hidden(&Tensor::from_slice(&ids).view([1, -1]));
        let logits = expected(&fixture("llama_tiny"), &format!("logits_{index}"));
        let error = (llama.logits(&hidden).squeeze_dim(0) - logits).abs().max();
        assert!(error.double_value(&[]) < 1e-4);

        let written = continued(&llama, &tokenizer, ids, 12);
        assert_eq!(written.tokens, case.greedy_ids);
        assert_eq!(written.text, case.greedy_text);
    }
}

#[test]
fn choices_are_scored_as_one_pass_for_each_scores_them() {
    let (llama, tokenizer, cases) = tiny();
    let rows: Vec<_> = cases
        .iter()
        .map(|case| {
            let choices: Vec<&str> = case.choices.iter().map(String::as_str).collect();
            tokenizer.encode_continued(&case.prompt, &choices).unwrap()
        })
        .collect();
    for (case, scores) in cases.iter().zip(score(&llama, &rows)) {
        for (score, expected) in scores.iter().zip(&case.choice_logprobs) {
            assert!((score - expected).abs() < 1e-4, "{scores:?} {:?}", case.choice_logprobs);
        }
    }
}

#[test]
fn the_tiny_preference_model_gives_the_scores_of_transformers() {
    #[derive(Deserialize)]
    struct Scored {
        text: String,
        score: f32,
    }
    let dir = fixture("llama_tiny_scorer");
    let (checkpoint, llama) = model(&dir);
    let tokenizer = checkpoint.tokenizer().unwrap();
    let text = std::fs::read_to_string(dir.join("expected.json")).unwrap();
    let cases: Vec<Scored> = serde_json::from_str(&text).unwrap();
    let rows: Vec<Vec<i64>> =
        cases.iter().map(|case| tokenizer.encode(&case.text).unwrap()).collect();
    for (case, score) in cases.iter().zip(rewards(&llama, &rows)) {
        assert!((score - case.score).abs() < 1e-4, "{score} {}", case.score);
    }
}

#[test]
fn drawn_tokens_have_the_log_probabilities_of_a_whole_pass() {
    let _guard = tch::no_grad_guard();
    let (llama, tokenizer, cases) = tiny();
    for (seed, case) in cases.iter().enumerate() {
        let prompt = case.ids.clone();
        let row = Continuation { prompt: prompt.clone(), sampling: sampled(seed as u64, 40) };
        let written = generate(&llama, &tokenizer, vec![row], 8).remove(0);
        let whole: Vec<i64> = prompt.iter().chain(&written.tokens).copied().collect();
        let hidden = llama.hidden(&Tensor::from_slice(&whole).view([1, -1]));
        let table = llama.logits(&hidden).log_softmax(-1, Kind::Float);
        for (at, (token, logprob)) in written.tokens.iter().zip(&written.logprobs).enumerate() {
            let place = (prompt.len() + at - 1) as i64;
            let whole = table.double_value(&[0, place, *token]);
            assert!((whole - f64::from(*logprob)).abs() < 1e-5, "{whole} {logprob}");
        }
    }
}

fn continued(
    llama: &Llama,
    tokenizer: &TextTokenizer,
    prompt: Vec<i64>,
    max_tokens: u32,
) -> Generated {
    let row = Continuation { prompt, sampling: greedy(max_tokens) };
    generate(llama, tokenizer, vec![row], 8).remove(0)
}

/// A tokenizer of so many words, for checkpoints that have none.
fn numbered_words(count: usize) -> TextTokenizer {
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..count).map(|id| (format!("w{id}"), id.into())).collect();
    let text = serde_json::json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": { "type": "WhitespaceSplit" },
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w0" },
    });
    TextTokenizer::from_bytes(text.to_string().as_bytes(), Path::new("words")).unwrap()
}
