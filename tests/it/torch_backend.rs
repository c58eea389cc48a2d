//! A checkpoint as a backend: every request is answered once, and rightly.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::path::Path;
use std::sync::{Arc, mpsc};

use amend::model::torch::{
    Checkpoint, TorchBackend, TorchError, TorchOptions, Transformer, Weights, is_preference_model,
    rewards, weights_id,
};
use amend::model::{
    Answer, Backend, CacheBytes, CallError, Estimator, Finish, Prompt, Request, Sampling, Task,
};
use amend::record::Message;
use tch::{Device, Kind};

use crate::torch_tiny::{ask, copied, fixture, greedy, sampled};

const PROMPT: &str = "\n\nHuman: Which answer is better?\n\nAssistant:";

fn open(dir: &str) -> TorchBackend {
    TorchBackend::open(&fixture(dir), TorchOptions::default()).unwrap()
}

fn generate(prompt: &str, sampling: Sampling) -> Request {
    Request { prompt: Prompt::Text(prompt.to_owned()), task: Task::Generate(sampling) }
}

fn score(prompt: &str, choices: &[&str]) -> Request {
    let choices = choices.iter().map(|&choice| choice.to_owned()).collect();
    let task = Task::Score { choices, estimator: Estimator::Echo };
    Request { prompt: Prompt::Text(prompt.to_owned()), task }
}

/// An answer without what tells when and how fast it came.
fn timeless(answer: &Result<Answer, CallError>) -> Answer {
    Answer { started_at_us: 0, latency_ms: 0.0, ..answer.clone().unwrap() }
}

#[test]
fn requests_of_all_kinds_are_answered_together_as_they_are_alone() {
    let mut requests = vec![generate(PROMPT, greedy(12)), score(PROMPT, &[" (A)", " (B)"])];
    requests.extend((0..20).map(|seed| generate(PROMPT, sampled(seed, 5 + seed as u32))));
    requests.extend((0..5).map(|n| score(&format!("{PROMPT} {n}"), &[" (A)", " (B)"])));
    let backend = open("llama_tiny");
    let together = ask(&backend, requests.clone());
    for (request, answer) in requests.into_iter().zip(&together) {
        assert_eq!(timeless(&ask(&backend, vec![request])[0]), timeless(answer));
    }
    let first = timeless(&together[0]);
    assert_eq!((first.text.as_str(), first.finish), ("lP(el}", Finish::Stop));
    assert_eq!((first.prompt_tokens, first.completion_tokens), (15, 6));
    assert_eq!((first.device.as_deref(), first.attempts), (Some("cpu"), 1));
    assert!(together[1].as_ref().unwrap().choice_logprobs.is_some());
}

#[test]
fn an_answer_is_the_same_whichever_replica_gives_it() {
    let requests: Vec<Request> = (0..60u64)
        .map(|seed| match seed % 5 {
            0 => score(&format!("{PROMPT} {seed}"), &[" (A)", " (B)"]),
            _ => generate(PROMPT, sampled(seed, 5 + seed as u32 % 40)),
        })
        .collect();
    let answers = |replicas: usize| {
        let options =
            TorchOptions { replicas: Some(replicas), max_in_flight: 16, ..TorchOptions::default() };
        let backend = TorchBackend::open(&fixture("llama_tiny"), options).unwrap();
        let answers = ask(&backend, requests.clone());
        answers.iter().map(timeless).collect::<Vec<_>>()
    };
    let alone = answers(1);
    for replicas in [2, 3] {
        assert!(alone == answers(replicas), "{replicas} replicas");
    }
}

#[test]
fn keys_and_values_take_no_more_than_they_may_and_what_they_take_is_told() {
    // All 80 rows at once would take more.
    let most = 1 << 20;
    for replicas in [1, 2] {
        let options =
            TorchOptions { cache_bytes: most, replicas: Some(replicas), ..TorchOptions::default() };
        let backend = Arc::new(TorchBackend::open(&fixture("llama_tiny"), options).unwrap());
        assert_eq!(backend.cache_bytes(), CacheBytes { held: 0, most });
        let (sender, held) = mpsc::channel();
        for seed in 0..80 {
            let (sender, asked) = (sender.clone(), Arc::downgrade(&backend));
            let done = move |answer: Result<Answer, CallError>| {
                assert!(answer.is_ok());
                let asked = asked.upgrade().unwrap();
                sender.send(asked.cache_bytes().held).unwrap();
            };
            backend.submit(Arc::new(generate(PROMPT, sampled(seed, 30))), Box::new(done));
        }
        drop(sender);
        let held: Vec<usize> = held.iter().collect();
        let greatest = held.iter().copied().max().unwrap();
        assert!(held.len() == 80 && greatest > 0 && greatest <= most, "{greatest} of {most}");
    }
}

#[test]
fn a_stop_text_ends_an_answer_and_is_not_part_of_it() {
    let backend = open("llama_tiny");
    let stop = |stop: &str| Sampling { stop: vec![stop.to_owned(), String::new()], ..greedy(12) };
    let answers = ask(
        &backend,
        vec![
            generate(PROMPT, stop("(el")),
            generate(PROMPT, stop("l")),
            generate(PROMPT, greedy(3)),
        ],
    );
    assert_eq!(timeless(&answers[0]).text, "lP");
    assert_eq!(
        (timeless(&answers[1]).text.as_str(), timeless(&answers[1]).completion_tokens),
        ("", 1)
    );
    assert_eq!(
        (timeless(&answers[2]).text.as_str(), timeless(&answers[2]).finish),
        ("lP(", Finish::Length)
    );
}

#[test]
fn what_can_never_be_answered_is_refused_with_the_reason() {
    let backend = open("llama_tiny");
    let messages = Request {
        prompt: Prompt::Messages(vec![Message::user("hi")]),
        task: Task::Generate(greedy(3)),
    };
    let long = "wait ".repeat(200);
    let answers = ask(
        &backend,
        vec![generate(&long, greedy(3)), generate("", greedy(3)), messages, score(&long, &["a"])],
    );
    let is_too_long = |answer: &Result<Answer, CallError>| match answer {
        Err(CallError::Permanent { too_long, .. }) => *too_long,
        other => panic!("{other:?}"),
    };
    assert_eq!(answers.iter().map(is_too_long).collect::<Vec<_>>(), [true, false, false, true]);
}

#[test]
fn a_prompt_that_reaches_the_end_of_the_context_ends_by_length() {
    let backend = open("llama_tiny");
    let prompt = "x".repeat(126);
    let answer = timeless(&ask(&backend, vec![generate(&prompt, sampled(5, 50))])[0]);
    assert!(answer.prompt_tokens == 126 && answer.completion_tokens <= 2, "{answer:?}");
}

#[test]
fn a_preference_model_scores_whole_texts_to_their_end_token_and_does_not_write() {
    let dir = fixture("llama_tiny_scorer");
    assert!(is_preference_model(&dir).unwrap());
    let backend = open("llama_tiny_scorer");
    let answers = ask(&backend, vec![score("Human", &[" kind", " No."]), generate("x", greedy(1))]);

    let checkpoint = Checkpoint::read(&dir).unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    let texts = ["Human kind", "Human No."].map(|text| {
        let mut ids = tokenizer.encode(text).unwrap();
        ids.push(2);
        ids
    });
    let model = Transformer::new(&checkpoint.config, &checkpoint.weights, Kind::Float, Device::Cpu);
    let expected: Vec<f64> = rewards(&model.unwrap(), &texts).into_iter().map(f64::from).collect();
    let scores = timeless(&answers[0]).choice_logprobs.unwrap();
    assert!(scores.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{scores:?}");
    assert!(matches!(answers[1], Err(CallError::Permanent { .. })));
}

#[test]
fn a_dropped_backend_answers_what_it_still_held() {
    let (sender, answers) = mpsc::channel();
    let backend = open("llama_tiny");
    for seed in 0..200 {
        let sender = sender.clone();
        let request = Arc::new(generate(PROMPT, sampled(seed, 100)));
        backend.submit(request, Box::new(move |answer| sender.send(answer.is_ok()).unwrap()));
    }
    drop((backend, sender));
    assert_eq!(answers.iter().count(), 200);
}

#[test]
fn a_broken_checkpoint_stops_the_run_and_names_its_file() {
    let dir = copied("llama_tiny");
    let path = dir.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let backend = TorchBackend::open(dir.path(), TorchOptions::default()).unwrap();
    for answer in ask(&backend, vec![generate("x", greedy(1)), generate("y", greedy(1))]) {
        let Err(CallError::Outage { message }) = answer else { panic!("{answer:?}") };
        assert!(
            message.contains("model.safetensors: is not a whole safetensors file"),
            "{message}"
        );
    }
    std::fs::remove_file(&path).unwrap();
    assert!(read_error(dir.path()).contains("model.safetensors"));
    let index = r#"{ "weight_map": { "model.norm.weight": "model-00001-of-00002.safetensors" } }"#;
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    assert!(
        read_error(dir.path()).contains("index.json: names \"model-00001-of-00002.safetensors\"")
    );
}

#[test]
fn weights_of_another_shape_are_refused_by_name() {
    let dir = copied("llama_tiny");
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let change = |from: &str, to: &str| std::fs::write(&path, text.replace(from, to)).unwrap();
    change("\"intermediate_size\": 48", "\"intermediate_size\": 64");
    let message = read_error(dir.path());
    assert!(message.contains("mlp.down_proj.weight\" has shape [32, 48]"), "{message}");
    change("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    let message = read_error(dir.path());
    assert!(message.contains("9 weights are missing"), "{message}");
}

#[test]
fn a_checkpoint_written_is_the_checkpoint_read_and_its_id_tells_every_change() {
    let checkpoint = Checkpoint::read(&fixture("llama_tiny")).unwrap();
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    checkpoint.write(one.path(), "# One\n").unwrap();
    Checkpoint::read(one.path()).unwrap().write(two.path(), "# Two\n").unwrap();
    let id = weights_id(one.path()).unwrap();
    assert_eq!(id, weights_id(two.path()).unwrap(), "neither directory nor card are in the id");

    let backend = TorchBackend::open(two.path(), TorchOptions::default()).unwrap();
    let answer = timeless(&ask(&backend, vec![generate(PROMPT, greedy(12))])[0]);
    assert_eq!(answer.text, "lP(el}");

    std::fs::write(two.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
    assert_ne!(id, weights_id(two.path()).unwrap());
    let mut changed = Checkpoint::read(one.path()).unwrap();
    changed.weights = Weights::random(&changed.config, 1);
    changed.write(one.path(), "# One\n").unwrap();
    assert_ne!(id, weights_id(one.path()).unwrap());
}

#[test]
fn a_language_model_becomes_a_preference_model_with_a_score_for_a_head() {
    let scorer = Checkpoint::read(&fixture("llama_tiny")).unwrap().into_scorer(0, 5);
    let dir = tempfile::tempdir().unwrap();
    scorer.write(dir.path(), "").unwrap();
    let back = Checkpoint::read(dir.path()).unwrap();
    assert_eq!(back.weights.get("score.weight").unwrap().size(), [1, 32]);
    assert!(!dir.path().join("generation_config.json").exists());
    let text = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    assert!(text.contains("LlamaForSequenceClassification") && text.contains("\"regression\""));
    assert!(Transformer::new(&back.config, &back.weights, Kind::Float, Device::Cpu).is_ok());
}

fn read_error(dir: &Path) -> String {
    match Checkpoint::read(dir) {
        Err(error @ (TorchError::Content { .. } | TorchError::File { .. })) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was read"),
    }
}
