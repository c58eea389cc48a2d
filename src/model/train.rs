//! Training: the call that takes a dataset and gives weights.

mod settings;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::settings::{
    AdaptiveKl, Algorithm, Compute, CriticTrunk, Device, DpoSettings, Dtype, LoraSettings, Optim,
    PmSettings, PpoSettings, SlSettings, TrainSettings,
};
use crate::record::{Id, Message};

/// A training to be done. What decides the weights is in `settings`, `init` and the data; the
/// caller has hashed it (the recipe).
pub struct TrainJob {
    /// Which training, with its settings.
    pub settings: TrainSettings,
    /// Where the weights begin.
    pub init: Init,
    /// The examples, in the order of training: sorted by hash(seed, row id).
    pub examples: Vec<Example>,
    /// The directory to write the checkpoint to: it exists and is empty, and the caller renames it.
    pub out: PathBuf,
    /// The directory to keep the state in from which a killed training goes on, and the snapshots of
    /// a policy: it exists, and holds what an earlier try at the same job left.
    pub state: PathBuf,
    /// How the judge is asked whose verdicts are the reward, where no preference model is:
    /// [`PpoSettings::reward`] is its checkpoint then.
    pub asks: Option<Box<dyn Asks>>,
    /// Told of progress.
    pub progress: Box<dyn Fn(&Progress<'_>) + Send>,
}

/// Asks which of two answers to a prompt is better.
pub trait Asks: Send {
    /// The question, rendered in the judge's format, ending where a label is written. `row` is that
    /// of the prompt; `update` counts from 0.
    fn question(
        &self,
        row: Id,
        update: u64,
        prompt: &[Message],
        shown: [&str; 2],
    ) -> Result<String, String>;

    /// The labels of the answer shown first and of the other, as continuations.
    fn labels(&self) -> &[String; 2];
}

/// How far a training is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress<'a> {
    /// A line for a person, such as `loss 1.23`.
    pub line: &'a str,
    /// Steps done.
    pub done: u64,
    /// Steps in all.
    pub all: u64,
    /// Tokens read so far, where they are counted.
    pub tokens: f64,
    /// What was logged since it was told last.
    pub metrics: &'a [Metric],
}

/// Where the weights begin.
#[derive(Clone, Debug)]
pub enum Init {
    /// At a checkpoint's.
    Checkpoint(PathBuf),
    /// At random ones, with a tokenizer trained on the examples.
    Scratch(Scratch),
}

/// A small Llama from nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of a Hugging Face config.json")]
pub struct Scratch {
    pub vocab_size: usize,
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    pub num_key_value_heads: i64,
    pub max_position_embeddings: i64,
    pub rope_theta: f64,
    pub tie_word_embeddings: bool,
    pub initializer_range: f64,
}

/// One example of a dataset.
#[derive(Clone, Debug)]
pub enum Example {
    /// A text to complete: the loss is on the completion.
    Demonstration {
        /// The row.
        row_id: Id,
        /// What is read, rendered in the model's format, ending where the completion begins.
        prompt: String,
        /// What is learnt, without the end token, which the trainer adds.
        completion: String,
        /// The weight of the row's loss.
        weight: f64,
    },
    /// Two texts and the probability that the first is better.
    Comparison {
        /// The row.
        row_id: Id,
        /// The shared beginning, rendered in the model's format.
        prompt: String,
        /// The first completion.
        a: String,
        /// The second completion.
        b: String,
        /// P(A better).
        p: f64,
        /// The weight of the row's loss.
        weight: f64,
        /// The source, for metrics: a node's name.
        source: String,
        /// The category, for metrics.
        category: Option<String>,
    },
    /// A prompt to be answered in reinforcement learning.
    Prompt {
        /// The row.
        row_id: Id,
        /// What is read, rendered in the model's format.
        prompt: String,
        /// The same as messages, for the rollouts table.
        messages: Vec<Message>,
    },
}

impl Example {
    /// The example as that of another row that says the same.
    #[must_use]
    pub fn of_row(mut self, row: Id) -> Example {
        match &mut self {
            Example::Demonstration { row_id, .. }
            | Example::Comparison { row_id, .. }
            | Example::Prompt { row_id, .. } => *row_id = row,
        }
        self
    }
}

/// The file under [`TrainJob::state`] that a killed training goes on from, there once it was written
/// as a whole.
pub const STATE_FILE: &str = "state";

/// What a training gave.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Trained {
    /// The hash of config, weights, tokenizer, chat template and dtype.
    pub weights: Id,
    /// `lm` or `pm`.
    pub kind: String,
    /// The step of the weights: optimizer steps, or updates of `ppo-update`.
    pub steps: u64,
    /// The logged numbers, in order.
    pub metrics: Vec<Metric>,
    /// The episodes, in order, for `ppo-update`.
    pub rollouts: Vec<Rollout>,
    /// Examples left out, with the reason (`too_long`, `empty`).
    pub rejected: Vec<(Id, String, String)>,
    /// Mean and standard deviation of a preference model's scores, of what was held out of the sources
    /// that give its scale.
    pub scores: Option<(f64, f64)>,
    /// The checkpoint's files: name, bytes, sha256. The caller of the trainer fills it in.
    pub files: Vec<(String, i64, String)>,
    /// The policies on the way that were kept, in order.
    #[serde(default)]
    pub snapshots: Vec<Kept>,
    /// What it was trained on. The caller of the trainer fills it in.
    #[serde(default)]
    pub basis: Option<Basis>,
}

/// What a training was trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Basis {
    /// The recipe without the dataset: the settings and the models.
    pub frame: Id,
    /// The dataset's digest.
    pub dataset: Id,
    /// The dataset's rows.
    pub dataset_rows: u64,
    /// The weights of the same node that it went on from, where it did not begin at its `init`.
    pub warm_from: Option<Id>,
}

/// A policy on the way of a training that was kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// The updates it has learnt from.
    pub step: u64,
    /// Its weights id.
    pub weights: Id,
    /// The directory under [`TrainJob::state`] that it was written to.
    pub dir: String,
    /// The files: name, bytes, sha256. The caller of the trainer fills it in.
    pub files: Vec<(String, i64, String)>,
}

/// One logged number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Optimizer step.
    pub step: u64,
    /// Passes over the data so far.
    pub epoch: f64,
    /// `train` or `heldout`.
    pub split: String,
    /// TRL's name.
    pub name: String,
    /// The value; NaN is kept, which JSON writes as null.
    #[serde(deserialize_with = "number_or_nan")]
    pub value: f64,
}

fn number_or_nan<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::NAN))
}

/// One episode.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are the columns of the relation rollouts")]
pub struct Rollout {
    pub prompt_row: Id,
    pub prompt: Vec<Message>,
    pub completion: String,
    pub step: i64,
    pub episode: i64,
    #[serde(default)]
    pub sample_index: i64,
    pub token_ids: Vec<i32>,
    pub logprobs: Vec<f32>,
    pub ref_logprobs: Vec<f32>,
    pub values: Vec<f32>,
    pub advantages: Vec<f32>,
    pub returns: Vec<f32>,
    pub score: f64,
    pub score_normalized: f64,
    pub score_test_pm: Option<f64>,
    pub kl: f64,
    pub reward: f64,
    pub finish_reason: String,
    pub completion_tokens: i32,
}

/// Why a training failed.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The data or the settings do not allow it.
    #[error("{0}")]
    Data(String),
    /// The loss or the gradient is not a number any more.
    #[error(
        "the loss is {loss} and the gradient's norm {grad_norm} at step {step}: lower the learning \
         rate, or look at the data"
    )]
    Diverged {
        /// The step.
        step: u64,
        /// The loss.
        loss: f64,
        /// The norm of the gradient.
        grad_norm: f64,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// libtorch refused.
    #[error("libtorch: {0}")]
    Torch(String),
    /// The run is being stopped.
    #[error("stopped")]
    Stopped,
}

/// Trains models.
pub trait Trainer: Send + Sync {
    /// Does the training and writes the checkpoint to `job.out`.
    fn train(&self, job: TrainJob) -> Result<Trained, TrainError>;
}
