//! Trainings against a plain `PyTorch` loop, TRL's `SFTTrainer` and TRL 1.12's `PPOTrainer`, in one run
//! on one machine, with the same libtorch, threads, weights and rows; the peak of memory beside each.
//!
//! `AMEND_BENCH_TRL` names a Python with torch, transformers and TRL 1.12 (`make bench` sets it); without
//! it amend is measured alone. `AMEND_BENCH_THREADS=2` changes the threads, and
//! `AMEND_BENCH_ONLY=sl` or `ppo` takes a part. Each figure is had in a process of its own, which gives
//! the seconds of each step after the first, and the median of those counts.

#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on says where")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use amend::model::torch::{Checkpoint, TorchTrainer, TransformerConfig, Weights, prepare_process};
use amend::model::train::{
    Algorithm, Compute, CriticTrunk, Device, Dtype, Example, Init, Optim, PpoSettings, Progress,
    Scratch, SlSettings, TrainJob, TrainSettings, Trainer,
};
use amend::record::{Id, KeyHasher};
use serde_json::{Value, json};

const VOCAB: usize = 8192;
/// Steps of each figure; the first is not counted.
const STEPS: usize = 4;
/// The paper's rollouts are longer; these are what TRL was measured on before.
const ROLLOUTS: usize = 8;
const RESPONSE: usize = 64;
const PPO_EPOCHS: usize = 4;

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn threads() -> usize {
    variable("AMEND_BENCH_THREADS").map_or(1, |threads| threads.parse().unwrap())
}

fn main() {
    if let Some(dir) = variable("AMEND_BENCH_DIR") {
        // As the binary does.
        drop(prepare_process(threads(), &std::env::args_os().collect::<Vec<_>>()));
        return one(Path::new(&dir));
    }
    println!("{} threads, 29 M parameters, {VOCAB} words", threads());
    let only = variable("AMEND_BENCH_ONLY");
    let is_wanted = |name: &str| only.as_ref().is_none_or(|only| only == name);
    if is_wanted("sl") {
        println!(
            "\n| rows of `train-sl` | numbers | who | tokens/s | peak MiB |\n|---|---|---|--:|--:|"
        );
        for (name, workload) in [("equal", Workload::equal()), ("mixed", Workload::mixed())] {
            for dtype in ["f32", "bf16"] {
                workload.compare(name, dtype);
            }
        }
    }
    if is_wanted("ppo") {
        println!(
            "\n| `ppo-update` | numbers | who | s an update | peak MiB |\n|---|---|---|--:|--:|"
        );
        for dtype in ["f32", "bf16"] {
            Workload::prompts().compare("8 × (64 + 64), 4 passes", dtype);
        }
    }
}

/// Rows as token ids, and how many of each are the prompt; none where all are.
struct Workload {
    rows: Vec<Vec<usize>>,
    prompts: Vec<usize>,
    batch_size: usize,
    /// Parts of a step: of amend at least so many, of the others so many.
    parts: usize,
    /// Whether amend is measured packed too.
    packs: bool,
}

impl Workload {
    fn of(lengths: impl Iterator<Item = usize>, batch_size: usize, parts: usize) -> Workload {
        let rows: Vec<Vec<usize>> = lengths
            .enumerate()
            .map(|(row, length)| {
                (0..length).map(|at| 3 + (row * 7919 + at * 104_729) % (VOCAB - 3)).collect()
            })
            .collect();
        let prompts = rows.iter().map(|row| row.len() / 4).collect();
        Workload { rows, prompts, batch_size, parts, packs: false }
    }

    /// Rows of one length: nothing can be gained but by computing faster.
    fn equal() -> Workload {
        Workload::of((0..8 * STEPS).map(|_| 192), 8, 1)
    }

    /// Rows of 20 to 250 tokens, in the order that they come in.
    fn mixed() -> Workload {
        let lengths = (0..32 * STEPS).map(|row| 20 + row * 97 % 231);
        Workload { packs: true, ..Workload::of(lengths, 32, 4) }
    }

    /// Prompts of 64 tokens.
    fn prompts() -> Workload {
        let rows = Workload::of((0..ROLLOUTS * STEPS).map(|_| 64), ROLLOUTS, 1);
        Workload { prompts: vec![64; rows.rows.len()], ..rows }
    }

    fn is_rl(&self) -> bool {
        self.rows.iter().zip(&self.prompts).all(|(row, prompt)| row.len() == *prompt)
    }

    /// Tokens of a step, on average.
    fn step_tokens(&self) -> f64 {
        self.rows.iter().map(Vec::len).sum::<usize>() as f64 / STEPS as f64
    }

    /// Measures all and prints their lines.
    fn compare(&self, name: &str, dtype: &str) {
        let dir = tempfile::tempdir().unwrap();
        write_models(dir.path());
        let mut cases = vec![("amend", "amend")];
        if self.packs {
            cases.push(("amend, packed", "packed"));
        }
        if self.is_rl() {
            cases.push(("amend, `critic: shared`", "shared"));
        }
        if variable("AMEND_BENCH_TRL").is_some() {
            match self.is_rl() {
                true => cases.push(("TRL 1.12 `PPOTrainer`", "ppo")),
                false => cases.extend([("PyTorch loop", "plain"), ("TRL `SFTTrainer`", "trl")]),
            }
        }
        for (who, case) in cases {
            let bench = json!({
                "case": case, "dtype": dtype, "threads": threads(), "rows": self.rows,
                "prompts": self.prompts, "batch_size": self.batch_size, "parts": self.parts,
                "learning_rate": 1e-5, "response_length": RESPONSE, "num_ppo_epochs": PPO_EPOCHS,
            });
            std::fs::write(dir.path().join("bench.json"), bench.to_string()).unwrap();
            let (seconds, peak_mib) = measured(case, dir.path());
            let figure = if self.is_rl() { seconds } else { self.step_tokens() / seconds };
            println!("| {name} | {dtype} | {who} | {figure:.1} | {peak_mib:.0} |");
        }
    }
}

/// The median seconds of a step, and the peak of memory, of a process of its own.
fn measured(case: &str, dir: &Path) -> (f64, f64) {
    let mut command = match case {
        "amend" | "packed" | "shared" => {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.env("AMEND_BENCH_DIR", dir);
            command
        }
        script => {
            let mut command = Command::new(variable("AMEND_BENCH_TRL").unwrap());
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/training.py");
            command.arg(path).arg(script).arg(dir);
            command
        }
    };
    let output = command.env("OMP_WAIT_POLICY", "PASSIVE").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{case}: {}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    let mut seconds: Vec<f64> = serde_json::from_value(found["seconds"].clone()).unwrap();
    seconds.sort_by(f64::total_cmp);
    (seconds[seconds.len() / 2], found["peak_mib"].as_f64().unwrap())
}

/// A Llama of 29 million random parameters, and in the folder `pm` a preference model of that shape.
fn write_models(dir: &Path) {
    let shape = Scratch {
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
    };
    let words: serde_json::Map<String, Value> =
        (0..VOCAB).map(|id| (format!("w{id}"), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": { "type": "WhitespaceSplit" },
        "model": { "type": "WordLevel", "vocab": words, "unk_token": "w0" },
    });
    let files = BTreeMap::from([("tokenizer.json".to_owned(), tokenizer.to_string().into_bytes())]);
    let config = TransformerConfig::scratch(&shape, VOCAB, Some(1), 2, 0);
    let weights = Weights::random(&config, 17);
    let checkpoint = || Checkpoint {
        config: config.clone(),
        weights: Weights(weights.0.iter().map(|(n, w)| (n.clone(), w.shallow_clone())).collect()),
        tokenizer_files: files.clone(),
    };
    checkpoint().write(dir, "").unwrap();
    std::fs::create_dir(dir.join("pm")).unwrap();
    checkpoint().into_scorer(0, 17).write(&dir.join("pm"), "").unwrap();
}

/// Trains in this process, and prints what a script of the others would.
fn one(dir: &Path) {
    let bench: Value =
        serde_json::from_slice(&std::fs::read(dir.join("bench.json")).unwrap()).unwrap();
    let number = |key: &str| bench[key].as_u64().unwrap() as usize;
    let rows: Vec<Vec<usize>> = serde_json::from_value(bench["rows"].clone()).unwrap();
    let prompts: Vec<usize> = serde_json::from_value(bench["prompts"].clone()).unwrap();
    let is_rl = rows.iter().zip(&prompts).all(|(row, prompt)| row.len() == *prompt);
    let compute = Compute {
        dtype: if bench["dtype"] == "bf16" { Dtype::Bf16 } else { Dtype::F32 },
        device: Device::Cpu,
        threads: Some(number("threads")),
        gradient_accumulation_steps: number("parts"),
        gradient_checkpointing: false,
        save_steps: 0,
    };
    let optim = Optim {
        learning_rate: bench["learning_rate"].as_f64().unwrap(),
        lr_scheduler_type: "constant".to_owned(),
        adam_beta1: 0.9,
        adam_beta2: 0.999,
        adam_epsilon: 1e-8,
        max_grad_norm: 1.0,
        logging_steps: 1,
        ..Optim::default()
    };
    let settings = if is_rl {
        TrainSettings::PpoUpdate(ppo(optim, compute, dir, rows.len(), bench["case"] == "shared"))
    } else {
        TrainSettings::TrainSl(SlSettings {
            optim,
            compute,
            epochs: 1.0,
            batch_size: number("batch_size"),
            max_length: 512,
            packing: bench["case"] == "packed",
            held_out: 0.0,
            eval_steps: None,
            patience: None,
        })
    };
    let words = |ids: &[usize]| -> String {
        let words: Vec<String> = ids.iter().map(|id| format!("w{id} ")).collect();
        words.concat()
    };
    let id = |row: usize| KeyHasher::new("amend/bench/1").u64(row as u64).id();
    let example = |(row, (ids, &prompt)): (usize, (&Vec<usize>, &usize))| -> Example {
        let (row_id, text): (Id, String) = (id(row), words(&ids[..prompt]));
        match is_rl {
            true => Example::Prompt { row_id, prompt: text, messages: Vec::new() },
            // The end token is one of the row's.
            false => Example::Demonstration {
                row_id,
                prompt: text,
                completion: words(&ids[prompt..ids.len() - 1]),
                weight: 1.0,
            },
        }
    };
    let examples = rows.iter().zip(&prompts).enumerate().map(example).collect();
    train(dir, settings, examples);
}

fn train(dir: &Path, settings: TrainSettings, examples: Vec<Example>) {
    let out = tempfile::tempdir().unwrap();
    let state = out.path().join("state-of-training");
    std::fs::create_dir(&state).unwrap();
    let stamps: Arc<Mutex<BTreeMap<u64, Instant>>> = Arc::default();
    let heard = Arc::clone(&stamps);
    let job = TrainJob {
        settings,
        init: Init::Checkpoint(dir.to_owned()),
        examples,
        out: out.path().to_owned(),
        state,
        asks: None,
        progress: Box::new(move |told: &Progress<'_>| {
            heard.lock().unwrap().entry(told.done).or_insert_with(Instant::now);
        }),
    };
    TorchTrainer::default().train(job).unwrap();
    let stamps: Vec<Instant> = stamps.lock().unwrap().values().copied().collect();
    let seconds: Vec<f64> =
        stamps.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs_f64()).collect();
    println!("{}", json!({ "seconds": seconds, "peak_mib": peak_mib() }));
}

fn ppo(
    optim: Optim,
    compute: Compute,
    dir: &Path,
    episodes: usize,
    is_shared: bool,
) -> PpoSettings {
    PpoSettings {
        optim,
        compute,
        algorithm: Algorithm::Ppo,
        num_generations: 1,
        total_episodes: episodes,
        batch_size: ROLLOUTS,
        num_ppo_epochs: PPO_EPOCHS,
        num_mini_batches: 1,
        critic: if is_shared { CriticTrunk::Shared } else { CriticTrunk::Separate },
        critic_warmup: 0,
        response_length: RESPONSE,
        temperature: 1.0,
        kl_coef: 0.05,
        adaptive_kl: None,
        kl_estimator: "k1".to_owned(),
        cliprange: 0.2,
        cliprange_value: 0.2,
        vf_coef: 0.1,
        gamma: 1.0,
        lam: 0.95,
        missing_eos_penalty: 0.0,
        reward_clip: 0.0,
        whiten_advantages: true,
        whiten_rewards: false,
        normalize_reward: false,
        target_kl: 0.0,
        stop: Vec::new(),
        keep_tokens: false,
        save_every: 0,
        keep_below_kl: None,
        reward: dir.join("pm"),
        reference: None,
        test_reward: None,
    }
}

/// The most memory that this process had.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}
