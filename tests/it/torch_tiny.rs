//! Small local models for the tests of the local model.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use amend::model::torch::{Transformer, TransformerConfig, Weights};
use amend::model::train::Scratch;
use amend::model::{Answer, Backend, CallError, Request, Sampling};
use tch::{Device, Kind};

/// A directory of `tests/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Greedy sampling.
pub(crate) fn greedy(max_tokens: u32) -> Sampling {
    Sampling { temperature: 0.0, seed: None, ..sampled(0, max_tokens) }
}

/// Sampling from the whole distribution.
pub(crate) fn sampled(seed: u64, max_tokens: u32) -> Sampling {
    Sampling {
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        max_tokens,
        stop: vec![],
        seed: Some(seed),
    }
}

/// What a model is run by, and in which kind.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// The kernels, with weights in f32 or bf16.
    Kernels(Kind),
    /// libtorch, as where there are no kernels.
    Libtorch(Kind),
}

/// A random model of the tiny fixture's vocabulary, that draws its end token now and then.
pub(crate) fn random(hidden_size: i64, layers: i64, heads: i64, key_heads: i64) -> Transformer {
    random_of(Way::Kernels(Kind::Float), hidden_size, layers, heads, key_heads)
}

/// The same, run in another way.
pub(crate) fn random_of(
    way: Way,
    hidden_size: i64,
    layers: i64,
    heads: i64,
    key_heads: i64,
) -> Transformer {
    let config = TransformerConfig::scratch(
        &Scratch {
            vocab_size: 320,
            hidden_size,
            intermediate_size: hidden_size * 8 / 3,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: key_heads,
            max_position_embeddings: 512,
            rope_theta: 10_000.0,
            tie_word_embeddings: true,
            initializer_range: 0.15,
        },
        320,
        None,
        2,
        0,
    );
    tch::set_num_threads(1);
    let weights = Weights::random(&config, 17);
    let model = |kind| Transformer::new(&config, &weights, kind, Device::Cpu).unwrap();
    match way {
        Way::Kernels(kind) => model(kind).stacked(),
        Way::Libtorch(kind) => model(kind),
    }
}

/// The answers to some requests, in their order.
pub(crate) fn ask(backend: &dyn Backend, requests: Vec<Request>) -> Vec<Result<Answer, CallError>> {
    let (sender, answers) = mpsc::channel();
    let count = requests.len();
    for (index, request) in requests.into_iter().enumerate() {
        let sender = sender.clone();
        backend.submit(
            Arc::new(request),
            Box::new(move |answer| sender.send((index, answer)).unwrap()),
        );
    }
    drop(sender);
    let mut answers: Vec<_> = answers.iter().collect();
    assert_eq!(answers.len(), count, "every request is answered once");
    answers.sort_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// A copy of a fixture, to be broken.
pub(crate) fn copied(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}
