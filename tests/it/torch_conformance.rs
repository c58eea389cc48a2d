//! The numbers of local models against transformers: every checkpoint directory under the folders
//! of `AMEND_CONFORMANCE` (by default the project's own and `../shared/conformance`), whatever its
//! architecture, and a small Llama with its tokenizer.
//!
//! A directory has `expected.safetensors` beside its weights: see `make_conformance.py`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]
#![allow(clippy::print_stderr, reason = "the differences are worth reading")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use amend::model::Finish;
use amend::model::torch::{
    Checkpoint, Continuation, Generated, Head, TextTokenizer, Transformer, Weights, generate,
    rewards, score,
};
use safetensors::SafeTensors;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::torch_tiny::{fixture, greedy, sampled};

/// How many tokens of `greedy_ids` are the prompt.
const PROMPT_TOKENS: usize = 12;

/// Every checkpoint with expected numbers.
fn checkpoints() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders: Vec<PathBuf> = match std::env::var_os("AMEND_CONFORMANCE") {
        Some(given) => std::env::split_paths(&given).collect(),
        None => vec![fixture("conformance"), root.join("../shared/conformance")],
    };
    let mut found = Vec::new();
    for entry in folders.iter().flat_map(std::fs::read_dir).flatten() {
        let dir = entry.unwrap().path();
        if dir.join("expected.safetensors").is_file() {
            found.push(dir);
        }
    }
    assert!(!found.is_empty(), "there is no checkpoint in {folders:?}");
    found.sort();
    found
}

/// The tensors of a safetensors file.
fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
        let kind = match view.dtype() {
            safetensors::Dtype::I64 => Kind::Int64,
            safetensors::Dtype::BF16 => Kind::BFloat16,
            safetensors::Dtype::F16 => Kind::Half,
            _ => Kind::Float,
        };
        (name.to_owned(), Tensor::from_data_size(view.data(), &shape, kind))
    };
    file.iter().map(tensor).collect()
}

fn model(dir: &Path) -> (Checkpoint, Transformer) {
    let checkpoint = Checkpoint::read(dir).unwrap();
    let model = Transformer::new(&checkpoint.config, &checkpoint.weights, Kind::Float, Device::Cpu)
        .unwrap();
    (checkpoint, model)
}

/// A checkpoint with what transformers makes of it.
struct Case {
    name: String,
    checkpoint: Checkpoint,
    expected: BTreeMap<String, Tensor>,
}

impl Case {
    fn read(dir: &Path) -> Case {
        tch::set_num_threads(1);
        Case {
            name: dir.file_name().unwrap().to_string_lossy().into_owned(),
            checkpoint: Checkpoint::read(dir).unwrap_or_else(|error| panic!("{error}")),
            expected: tensors(&dir.join("expected.safetensors")),
        }
    }

    fn model(&self, kind: Kind) -> Transformer {
        let Checkpoint { config, weights, .. } = &self.checkpoint;
        Transformer::new(config, weights, kind, Device::Cpu).unwrap()
    }

    /// Logits (B, T, V), or the score (B, 1) at the last token that is not padding.
    fn numbers(&self, model: &Transformer) -> Tensor {
        let (attention_mask, positions) =
            (&self.expected["attention_mask"], &self.expected["position_ids"]);
        let mask = model.padding_mask(attention_mask, positions);
        let hidden = model.hidden_at(&self.expected["input_ids"], positions, &mask);
        match model.config.head {
            Head::Lm => model.logits(&hidden),
            Head::Score => {
                let last = attention_mask.cumsum(1, Kind::Int64).argmax(-1, false).view([-1, 1]);
                model.scores(&hidden).gather(1, &last, false)
            }
        }
    }

    /// The largest difference from transformers, not counting padding.
    fn difference(&self, numbers: &Tensor) -> f64 {
        let error = match self.checkpoint.config.head {
            Head::Lm => {
                (numbers - &self.expected["logits"]).abs()
                    * self.expected["attention_mask"].unsqueeze(-1)
            }
            Head::Score => (numbers - &self.expected["scores"]).abs(),
        };
        error.max().double_value(&[])
    }
}

#[test]
fn every_checkpoint_gives_the_numbers_of_transformers() {
    let _guard = tch::no_grad_guard();
    for dir in checkpoints() {
        let case = Case::read(&dir);
        let model = case.model(Kind::Float);
        for model in [&model, &model.stacked()] {
            let difference = case.difference(&case.numbers(model));
            eprintln!("{}: largest difference {difference:.1e}", case.name);
            assert!(difference < 1e-4, "{}: {difference:e}", case.name);
        }
        // The first row has no padding: training's kernel reads it.
        let first = case.expected["input_ids"].narrow(0, 0, 1);
        let hidden = model.hidden_fused(&first);
        let error = match model.config.head {
            Head::Lm => model.logits(&hidden) - case.expected["logits"].narrow(0, 0, 1),
            Head::Score => {
                let last = hidden.narrow(1, hidden.size()[1] - 1, 1);
                model.scores(&last) - case.expected["scores"].narrow(0, 0, 1)
            }
        };
        let difference = error.abs().max().double_value(&[]);
        assert!(difference < 1e-4, "{} by the fused kernel: {difference:e}", case.name);
    }
}

#[test]
fn in_bf16_the_likeliest_token_is_the_same_where_the_next_is_a_tenth_behind() {
    let _guard = tch::no_grad_guard();
    for dir in checkpoints() {
        let case = Case::read(&dir);
        // By libtorch, and by the kernels.
        let model = case.model(Kind::BFloat16);
        for model in [&model, &model.stacked()] {
            let numbers = case.numbers(model);
            if case.checkpoint.config.head == Head::Score {
                assert!(case.difference(&numbers) < 0.1, "{}", case.name);
                continue;
            }
            let logits = &case.expected["logits"];
            let (top, _) = logits.topk(2, -1, true, true);
            let is_clear = (top.select(-1, 0) - top.select(-1, 1)).gt(0.1);
            let is_clear = is_clear.logical_and(&case.expected["attention_mask"].ne(0));
            let differs = numbers.argmax(-1, false).ne_tensor(&logits.argmax(-1, false));
            let faults = differs.logical_and(&is_clear).sum(Kind::Int64).int64_value(&[]);
            assert!(is_clear.any().int64_value(&[]) != 0, "{}: nothing was compared", case.name);
            let difference = case.difference(&numbers);
            assert_eq!(faults, 0, "{}: largest difference {difference:e}", case.name);
        }
    }
}

#[test]
fn the_kernels_in_bf16_give_the_bits_of_those_in_f32_with_the_same_weights() {
    let _guard = tch::no_grad_guard();
    for dir in checkpoints() {
        let case = Case::read(&dir);
        let Checkpoint { config, weights, .. } = &case.checkpoint;
        let rounded = weights.0.iter().map(|(name, weight)| {
            (name.clone(), weight.to_kind(Kind::BFloat16).to_kind(Kind::Float))
        });
        let rounded = Weights(rounded.collect());
        let model =
            |weights, kind| Transformer::new(config, weights, kind, Device::Cpu).unwrap().stacked();
        let whole = case.numbers(&model(&rounded, Kind::Float));
        assert!(case.numbers(&model(weights, Kind::BFloat16)).equal(&whole), "{}", case.name);
    }
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    for dir in checkpoints() {
        let case = Case::read(&dir);
        let Some(expected) = case.expected.get("greedy_ids") else { continue };
        let mut model = case.model(Kind::Float).stacked();
        // transformers was told to write on past the end token.
        model.config.eos_token_ids.clear();
        let tokenizer = numbered_words(model.config.vocab_size as usize);
        let expected = Vec::<Vec<i64>>::try_from(expected).unwrap();
        let gaps =
            case.expected.get("greedy_gaps").map(|gaps| Vec::<Vec<f32>>::try_from(gaps).unwrap());
        let rows = expected.iter().map(|ids| Continuation {
            prompt: ids[..PROMPT_TOKENS].to_vec(),
            sampling: greedy((ids.len() - PROMPT_TOKENS) as u32),
        });
        let written = generate(&model, &tokenizer, rows.collect(), 16);
        for (row, (written, ids)) in written.iter().zip(&expected).enumerate() {
            // From the first step at which two tokens are nearly as likely, either may be right.
            let clear = gaps.as_ref().map_or(usize::MAX, |gaps| {
                gaps[row].iter().position(|&gap| gap < 1e-4).unwrap_or(usize::MAX)
            });
            let count = clear.min(ids.len() - PROMPT_TOKENS);
            let expected = &ids[PROMPT_TOKENS..PROMPT_TOKENS + count];
            assert_eq!(written.tokens[..count], *expected, "{} row {row}", case.name);
            assert_eq!(written.finish, Finish::Length);
        }
    }
}

#[test]
fn a_checkpoint_is_written_as_it_was_read() {
    for dir in checkpoints() {
        let read = Checkpoint::read(&dir).unwrap();
        let out = tempfile::tempdir().unwrap();
        read.write(out.path(), "").unwrap();
        let config = |dir: &Path| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap()
        };
        assert_eq!(config(&dir), config(out.path()));
        let (mut stored, written) =
            (BTreeMap::new(), tensors(&out.path().join("model.safetensors")));
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().to_string_lossy().starts_with("model")
                && path.extension().is_some_and(|extension| extension == "safetensors")
            {
                stored.extend(tensors(&path));
            }
        }
        assert!(stored.keys().eq(written.keys()), "{dir:?}");
        for (name, weight) in &stored {
            assert!(
                weight.kind() == written[name].kind() && weight.equal(&written[name]),
                "{name}"
            );
        }
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

fn tiny() -> (Transformer, TextTokenizer, Vec<Expected>) {
    let dir = fixture("llama_tiny");
    let (checkpoint, model) = model(&dir);
    let text = std::fs::read_to_string(dir.join("expected.json")).unwrap();
    (model.stacked(), checkpoint.tokenizer().unwrap(), serde_json::from_str(&text).unwrap())
}

#[test]
fn the_tiny_llama_writes_what_transformers_writes() {
    let _guard = tch::no_grad_guard();
    let (model, tokenizer, cases) = tiny();
    let expected = tensors(&fixture("llama_tiny").join("expected.safetensors"));
    for (index, case) in cases.iter().enumerate() {
        let ids = tokenizer.encode(&case.prompt).unwrap();
        assert_eq!(ids, case.ids);
        let hidden = model.hidden(&Tensor::from_slice(&ids).view([1, -1]));
        let logits = &expected[&format!("logits_{index}")];
        let error = (model.logits(&hidden).squeeze_dim(0) - logits).abs().max();
        assert!(error.double_value(&[]) < 1e-4);

        let written = continued(&model, &tokenizer, ids, 12);
        assert_eq!(written.tokens, case.greedy_ids);
        assert_eq!(written.text, case.greedy_text);
    }
}

#[test]
fn choices_are_scored_as_one_pass_for_each_scores_them() {
    let (model, tokenizer, cases) = tiny();
    let rows: Vec<_> = cases
        .iter()
        .map(|case| {
            let choices: Vec<&str> = case.choices.iter().map(String::as_str).collect();
            tokenizer.encode_continued(&case.prompt, &choices).unwrap()
        })
        .collect();
    for (case, scores) in cases.iter().zip(score(&model, &rows)) {
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
    let (checkpoint, model) = model(&dir);
    let tokenizer = checkpoint.tokenizer().unwrap();
    let text = std::fs::read_to_string(dir.join("expected.json")).unwrap();
    let cases: Vec<Scored> = serde_json::from_str(&text).unwrap();
    let rows: Vec<Vec<i64>> =
        cases.iter().map(|case| tokenizer.encode(&case.text).unwrap()).collect();
    for (case, score) in cases.iter().zip(rewards(&model, &rows)) {
        assert!((score - case.score).abs() < 1e-4, "{score} {}", case.score);
    }
}

#[test]
fn drawn_tokens_have_the_log_probabilities_of_a_whole_pass() {
    let _guard = tch::no_grad_guard();
    let (model, tokenizer, cases) = tiny();
    for (seed, case) in cases.iter().enumerate() {
        let prompt = case.ids.clone();
        let row = Continuation { prompt: prompt.clone(), sampling: sampled(seed as u64, 40) };
        let written = generate(&model, &tokenizer, vec![row], 8).remove(0);
        let whole: Vec<i64> = prompt.iter().chain(&written.tokens).copied().collect();
        let hidden = model.hidden(&Tensor::from_slice(&whole).view([1, -1]));
        let table = model.logits(&hidden).log_softmax(-1, Kind::Float);
        for (at, (token, logprob)) in written.tokens.iter().zip(&written.logprobs).enumerate() {
            let place = (prompt.len() + at - 1) as i64;
            let whole = table.double_value(&[0, place, *token]);
            assert!((whole - f64::from(*logprob)).abs() < 1e-5, "{whole} {logprob}");
        }
    }
}

#[test]
fn a_penalised_token_is_not_drawn_again_and_its_log_probability_is_the_models_own() {
    let (mut model, tokenizer, cases) = tiny();
    model.config.eos_token_ids.clear();
    for case in &cases {
        let plain = continued(&model, &tokenizer, case.ids.clone(), 24);
        let sampling = amend::model::Sampling { repetition_penalty: 1e6, ..greedy(24) };
        let row = Continuation { prompt: case.ids.clone(), sampling };
        let penalised = generate(&model, &tokenizer, vec![row], 8).remove(0);
        let mut seen: Vec<i64> = case.ids.clone();
        for token in &penalised.tokens {
            assert!(!seen.contains(token), "{token} after {seen:?}");
            seen.push(*token);
        }
        if plain.tokens[0] == penalised.tokens[0] {
            assert_eq!(plain.logprobs[0].to_bits(), penalised.logprobs[0].to_bits());
        }
    }
}

fn continued(
    model: &Transformer,
    tokenizer: &TextTokenizer,
    prompt: Vec<i64>,
    max_tokens: u32,
) -> Generated {
    let row = Continuation { prompt, sampling: greedy(max_tokens) };
    generate(model, tokenizer, vec![row], 8).remove(0)
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
