//! Local models against transformers and llama.cpp: decode, prefill, the judge's workload and
//! sampling, in one run on one machine, with the same weights, prompts and threads, and with
//! transformers the same libtorch. The last columns say what the machine could do at best.
//!
//! `AMEND_BENCH_PYTHON` names a Python with torch and transformers, `AMEND_BENCH_LLAMA_CPP` one with
//! xllamacpp and gguf (`make bench` sets both); what is not named is not measured.
//! `AMEND_BENCH_SMALL=1` takes an eighth of the judge's and the sampling workload,
//! `AMEND_BENCH_DTYPE=bf16` and `AMEND_BENCH_THREADS=2` change what they say.

#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on says where")]

#[path = "local_models/limits.rs"]
mod limits;
#[path = "local_models/replicas.rs"]
mod replicas;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use amend::model::Sampling;
use amend::model::torch::{
    Checkpoint, Continuation, Continued, Precision, TextTokenizer, Transformer, TransformerConfig,
    Weights, generate, prepare_process, score,
};
use amend::model::train::Scratch;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::{Value, json};
use tch::{Device, Kind};

use limits::{Machine, Needs};

const VOCAB: usize = 8192;
const DECODE_TOKENS: u32 = 48;
const DECODE_ROWS: [usize; 3] = [1, 8, 32];
const TIMES: usize = 2;

/// What is measured.
struct Workloads {
    decode_prompts: Vec<Vec<i64>>,
    prefill_prompts: Vec<Vec<i64>>,
    judge_prefix: Vec<i64>,
    judge_tails: Vec<Vec<i64>>,
    sample_prompts: Vec<Vec<i64>>,
    sample_tokens: Vec<u32>,
}

fn main() {
    let variable = |name: &str| std::env::var(name).ok();
    let threads = variable("AMEND_BENCH_THREADS").map_or(1, |threads| threads.parse().unwrap());
    let is_bf16 = variable("AMEND_BENCH_DTYPE").as_deref() == Some("bf16");
    let share = if variable("AMEND_BENCH_SMALL").is_some() { 8 } else { 1 };
    // With one thread too: the last table has two.
    let arguments: Vec<_> = std::env::args_os().collect();
    drop(prepare_process(2, &arguments));
    tch::set_num_threads(threads);

    let (config, weights) = random(&shape());
    let kind = if is_bf16 { Kind::BFloat16 } else { Kind::Float };
    let mut model = Transformer::new(&config, &weights, kind, Device::Cpu).unwrap().stacked();
    // Rows are as long as they are told to be.
    model.config.eos_token_ids.clear();
    let workloads = Workloads::new(share);
    let amend = measure(&model, &workloads);
    let most = workloads.most(&Needs::of(&config, &weights, kind), &Machine::measured(kind));

    let dir = stored(config, weights);
    let dtype = if is_bf16 { "bf16" } else { "f32" };
    workloads.write(dir.path(), threads, dtype);
    let transformers = variable("AMEND_BENCH_PYTHON").map(|python| {
        serde_json::from_value(told(&python, "local_models.py", dir.path())).unwrap()
    });
    let llama_cpp = variable("AMEND_BENCH_LLAMA_CPP").map(|python| {
        let mut told = told(&python, "llama_cpp.py", dir.path());
        check_first(&model, &workloads, &told["first"]);
        serde_json::from_value(told["seconds"].take()).unwrap()
    });
    println!("{dtype}, {threads} threads, 30 M parameters, {VOCAB} words");
    print_table(&workloads, &amend, [transformers.as_ref(), llama_cpp.as_ref()], &most);
    let dtype = if is_bf16 { Precision::Bf16 } else { Precision::F32 };
    replicas::print_table(dir.path(), dtype, &workloads.as_calls(VOCAB));
    println!("the same calls of a model of the demo's shape, 0.4 M parameters");
    let small = demo_shape();
    let (config, weights) = random(&small);
    let dir = stored(config, weights);
    replicas::print_table(dir.path(), dtype, &workloads.as_calls(small.vocab_size));
}

/// A checkpoint's directory, with a tokenizer that reads `w7` as token 7.
fn stored(config: TransformerConfig, weights: Weights) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer_files = [("tokenizer.json".to_owned(), numbered_words())].into();
    Checkpoint { config, weights, tokenizer_files }.write(dir.path(), "").unwrap();
    dir
}

/// A Llama of 30 million parameters.
fn shape() -> Scratch {
    Scratch {
        vocab_size: VOCAB,
        hidden_size: 512,
        intermediate_size: 1408,
        num_hidden_layers: 8,
        num_attention_heads: 8,
        num_key_value_heads: 8,
        max_position_embeddings: 2048,
        rope_theta: 10_000.0,
        tie_word_embeddings: true,
        initializer_range: 0.02,
    }
}

/// The shape of `pipelines/demo.yaml`, with the bench's context.
fn demo_shape() -> Scratch {
    Scratch {
        vocab_size: 1024,
        hidden_size: 96,
        intermediate_size: 256,
        num_hidden_layers: 3,
        num_attention_heads: 3,
        num_key_value_heads: 1,
        ..shape()
    }
}

/// A model of random parameters.
fn random(shape: &Scratch) -> (TransformerConfig, Weights) {
    let config = TransformerConfig::scratch(shape, shape.vocab_size, Some(1), 2, 0);
    let weights = Weights::random(&config, 17);
    (config, weights)
}

impl Workloads {
    fn new(share: usize) -> Workloads {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let mut below = |n: usize| (random.next_u64() % n as u64) as usize;
        let mut text = |length: usize| -> Vec<i64> {
            (0..length).map(|_| 3 + below(VOCAB - 3) as i64).collect()
        };
        let decode_prompts = (0..32).map(|_| text(64)).collect();
        let prefill_prompts = (0..8).map(|_| text(256)).collect();
        let judge_prefix = text(1200);
        let judge_tails = (0..256 / share).map(|row| text(60 + row % 60)).collect();
        // Four samples of each prompt.
        let prompts: Vec<Vec<i64>> =
            (0..200 / share).map(|row| text(16 + row * 37 % 240)).collect();
        let sample_prompts = prompts.iter().flat_map(|prompt| vec![prompt.clone(); 4]).collect();
        let sample_tokens = (0..prompts.len() * 4).map(|row| 8 + (row * 53 % 120) as u32).collect();
        Workloads {
            decode_prompts,
            prefill_prompts,
            judge_prefix,
            judge_tails,
            sample_prompts,
            sample_tokens,
        }
    }

    /// Says in a checkpoint's directory what is to be measured.
    fn write(&self, dir: &Path, threads: i32, dtype: &str) {
        let bench = json!({
            "threads": threads, "dtype": dtype, "times": TIMES,
            "decode_rows": DECODE_ROWS, "decode_tokens": DECODE_TOKENS,
            "decode_prompts": self.decode_prompts, "prefill_prompts": self.prefill_prompts,
            "judge_prefix": self.judge_prefix, "judge_tails": self.judge_tails,
            "sample_prompts": self.sample_prompts, "sample_tokens": self.sample_tokens,
        });
        std::fs::write(dir.join("bench.json"), bench.to_string()).unwrap();
    }

    /// The most that the machine could do, of workloads for which that is one number.
    fn most(&self, needs: &Needs, machine: &Machine) -> BTreeMap<&'static str, f64> {
        println!(
            "reads {:.1} GB/s, multiplies at {:.0} GFLOP/s",
            machine.bandwidth / 1e9,
            machine.flops / 1e9
        );
        let prefill = needs.read_most(machine, &self.prefill_prompts);
        BTreeMap::from([("decode_1", needs.decoded_most(machine)), ("prefill", prefill)])
    }

    /// Sampling and judging as calls of a model with so many words.
    fn as_calls(&self, words: usize) -> replicas::Work {
        let known = |ids: &[i64]| ids.iter().map(|id| id % words as i64).collect::<Vec<i64>>();
        let judged = self.judge_tails.iter();
        let judged = judged.map(|tail| known(&[self.judge_prefix.as_slice(), tail].concat()));
        replicas::Work {
            prompts: self.sample_prompts.iter().map(|ids| known(ids)).collect(),
            sampling: self
                .sample_tokens
                .iter()
                .enumerate()
                .map(|(row, &tokens)| sampling(tokens, Some(row as u64)))
                .collect(),
            judged: judged.collect(),
        }
    }

    /// What each workload is counted in, and how many.
    fn counts(&self) -> Vec<(String, &'static str, f64)> {
        let mut counts: Vec<(String, &'static str, f64)> = DECODE_ROWS
            .iter()
            .map(|&rows| {
                (format!("decode_{rows}"), "tokens/s", f64::from(rows as u32 * DECODE_TOKENS))
            })
            .collect();
        let tokens: usize = self.prefill_prompts.iter().map(Vec::len).sum();
        counts.push(("prefill".to_owned(), "tokens/s", tokens as f64));
        counts.push(("judge".to_owned(), "pairs/s", self.judge_tails.len() as f64));
        let tokens: u32 = self.sample_tokens.iter().sum();
        counts.push(("sample".to_owned(), "tokens/s", f64::from(tokens)));
        counts
    }
}

/// Seconds by workload.
fn measure(model: &Transformer, workloads: &Workloads) -> BTreeMap<String, f64> {
    let tokenizer = tokenizer();
    let mut found = BTreeMap::new();
    for rows in DECODE_ROWS {
        let run = |tokens: u32| {
            let rows = workloads.decode_prompts[..rows].iter();
            let rows = rows.map(|prompt| continuation(prompt, tokens, None)).collect();
            seconds(|| drop(generate(model, &tokenizer, rows, 32)))
        };
        let best = |tokens: u32| (0..TIMES).map(|_| run(tokens)).fold(f64::INFINITY, f64::min);
        found.insert(format!("decode_{rows}"), best(DECODE_TOKENS + 1) - best(1));
    }
    let prefill = || {
        let rows = workloads.prefill_prompts.iter();
        let rows = rows.map(|prompt| continuation(prompt, 1, None)).collect();
        seconds(|| drop(generate(model, &tokenizer, rows, 32)))
    };
    let best = (0..TIMES).map(|_| prefill()).fold(f64::INFINITY, f64::min);
    found.insert("prefill".to_owned(), best);

    let pair = |tail: &Vec<i64>| Continued {
        prefix: [workloads.judge_prefix.as_slice(), tail].concat(),
        tails: vec![vec![5], vec![6]],
    };
    let pairs: Vec<Continued> = workloads.judge_tails.iter().map(pair).collect();
    found.insert("judge".to_owned(), seconds(|| drop(score(model, &pairs))));

    let rows = workloads.sample_prompts.iter().zip(&workloads.sample_tokens).enumerate();
    let rows = rows
        .map(|(row, (prompt, &tokens))| continuation(prompt, tokens, Some(row as u64)))
        .collect();
    found.insert("sample".to_owned(), seconds(|| drop(generate(model, &tokenizer, rows, 32))));
    found
}

fn continuation(prompt: &[i64], max_tokens: u32, seed: Option<u64>) -> Continuation {
    Continuation { prompt: prompt.to_vec(), sampling: sampling(max_tokens, seed) }
}

/// Sampling from the whole distribution, or greedily without a seed.
fn sampling(max_tokens: u32, seed: Option<u64>) -> Sampling {
    Sampling {
        temperature: if seed.is_some() { 1.0 } else { 0.0 },
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        max_tokens,
        stop: vec![],
        seed,
    }
}

fn seconds(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64()
}

/// What a script beside this file says of a checkpoint's directory.
fn told(python: &str, script: &str, dir: &Path) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches").join(script);
    let output = Command::new(python).arg(script).arg(dir).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(told.lines().last().unwrap()).unwrap()
}

/// Holds llama.cpp to the same weights: it gives the likeliest first tokens about the same
/// log-probabilities. Where two tokens are nearly as likely, it may find the other likelier.
fn check_first(model: &Transformer, workloads: &Workloads, first: &Value) {
    let first: Vec<(i64, f32)> = serde_json::from_value(first.clone()).unwrap();
    let rows = workloads.decode_prompts.iter().take(first.len());
    let rows = rows.map(|prompt| continuation(prompt, 1, None)).collect();
    let ours = generate(model, &tokenizer(), rows, 32);
    let (mut same, mut worst) = (0, 0.0f32);
    for (ours, (token, logprob)) in ours.iter().zip(&first) {
        same += usize::from(ours.tokens[0] == *token);
        worst = worst.max((ours.logprobs[0] - logprob).abs());
    }
    println!(
        "llama.cpp finds {same} of {} first tokens likeliest that amend does, log-probabilities within {worst:.1e}",
        first.len()
    );
    assert!(same * 2 > first.len() && worst < 0.05, "llama.cpp has other weights");
}

fn print_table(
    workloads: &Workloads,
    amend: &BTreeMap<String, f64>,
    others: [Option<&BTreeMap<String, f64>>; 2],
    most: &BTreeMap<&'static str, f64>,
) {
    println!(
        "| workload | unit | amend | transformers | ratio | llama.cpp | ratio | limit | reached |"
    );
    println!("|---|---|--:|--:|--:|--:|--:|--:|--:|");
    for (name, unit, count) in workloads.counts() {
        let ours = count / amend[&name];
        let beside = others.map(|found| {
            let theirs = found.map(|found| count / found[&name]);
            theirs.map_or(" | ".to_owned(), |theirs| format!("{theirs:.1} | {:.2}", ours / theirs))
        });
        let most = most.get(name.as_str());
        let reached = most
            .map_or(" | ".to_owned(), |most| format!("{most:.1} | {:.0} %", 100.0 * ours / most));
        println!("| {name} | {unit} | {ours:.1} | {} | {reached} |", beside.join(" | "));
    }
}

/// A tokenizer of as many words as the model has, as `tokenizer.json`.
fn numbered_words() -> Vec<u8> {
    let vocab: serde_json::Map<String, Value> =
        (0..VOCAB).map(|id| (format!("w{id}"), id.into())).collect();
    let text = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": { "type": "WhitespaceSplit" },
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w0" },
    });
    text.to_string().into_bytes()
}

fn tokenizer() -> TextTokenizer {
    TextTokenizer::from_bytes(&numbered_words(), Path::new("words")).unwrap()
}
