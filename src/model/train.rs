//! Training: the call that takes a dataset and gives weights.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
    /// Told of progress: a line such as `step 20/450 loss 1.23`, steps done, steps in all.
    pub progress: Box<dyn Fn(&str, u64, u64) + Send>,
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

/// Which training, with the settings that decide the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(clippy::large_enum_variant, reason = "there is one for each training")]
pub enum TrainSettings {
    /// Fine-tuning on demonstrations.
    TrainSl(SlSettings),
    /// A preference model on comparisons.
    TrainPm(PmSettings),
    /// A policy on comparisons, without a preference model.
    TrainDpo(DpoSettings),
    /// Reinforcement learning of a policy against a preference model.
    PpoUpdate(PpoSettings),
}

impl TrainSettings {
    /// The optimizer's settings.
    pub fn optim(&self) -> &Optim {
        match self {
            TrainSettings::TrainSl(settings) => &settings.optim,
            TrainSettings::TrainPm(settings) => &settings.optim,
            TrainSettings::TrainDpo(settings) => &settings.optim,
            TrainSettings::PpoUpdate(settings) => &settings.optim,
        }
    }

    /// How it computes.
    pub fn compute(&self) -> &Compute {
        match self {
            TrainSettings::TrainSl(settings) => &settings.compute,
            TrainSettings::TrainPm(settings) => &settings.compute,
            TrainSettings::TrainDpo(settings) => &settings.compute,
            TrainSettings::PpoUpdate(settings) => &settings.compute,
        }
    }
}

/// Settings of the optimizer, shared by all trainings. Names are Hugging Face's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Optim {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// `constant`, `linear` or `cosine`, after the warm-up.
    pub lr_scheduler_type: String,
    /// Share of the steps that warm up linearly.
    pub warmup_ratio: f64,
    /// Steps that warm up linearly, instead of the share.
    pub warmup_steps: Option<u64>,
    /// Decoupled weight decay, on matrices only.
    pub weight_decay: f64,
    /// Adam's first moment decay.
    pub adam_beta1: f64,
    /// Adam's second moment decay.
    pub adam_beta2: f64,
    /// Adam's epsilon.
    pub adam_epsilon: f64,
    /// Global norm that gradients are clipped to; 0 is off.
    pub max_grad_norm: f64,
    /// A low-rank change of chosen matrices, all else frozen; without it, all weights learn.
    pub lora: Option<LoraSettings>,
    /// Seed of the order of rows and of fresh weights.
    pub seed: u64,
    /// Log a metric row each so many steps.
    pub logging_steps: u64,
}

/// A low-rank change of matrices. Names are PEFT's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraSettings {
    /// The rank.
    pub r: usize,
    /// The change is scaled by `alpha / r`.
    pub alpha: f64,
    /// The last words of the names of the matrices that change, such as `q_proj`.
    pub target_modules: Vec<String>,
}

/// How a training computes, shared by all trainings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Compute {
    /// The numbers that products are computed in. Weights and moments are f32 always.
    pub dtype: Dtype,
    /// Where it computes.
    pub device: Device,
    /// Threads of one operation; without it, as many as the trainer was given.
    pub threads: Option<usize>,
    /// Parts, at least, into which the rows of an optimizer step are cut to save memory.
    pub gradient_accumulation_steps: usize,
    /// Optimizer steps (for `ppo-update`, batches) between two states that a killed training resumes
    /// from; 0 is none.
    pub save_steps: u64,
}

/// The numbers that products are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// Those that the checkpoint is stored in; on a CPU, f32.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit brain floats.
    Bf16,
}

/// Where a training computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// The first GPU where there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// That GPU.
    Cuda(u32),
}

/// Settings of `train-sl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlSettings {
    /// The optimizer.
    pub optim: Optim,
    /// How it computes.
    pub compute: Compute,
    /// Passes over the data; may be fractional.
    pub epochs: f64,
    /// Rows a step.
    pub batch_size: usize,
    /// The longest row, in tokens; longer ones are an error of the example.
    pub max_length: usize,
    /// Whether several rows share a sequence of at most `max_length` tokens.
    pub packing: bool,
    /// Share of the rows, by hash, that is held out for the loss.
    pub held_out: f64,
}

/// Settings of `train-pm`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PmSettings {
    /// The optimizer.
    pub optim: Optim,
    /// How it computes.
    pub compute: Compute,
    /// Passes over the data.
    pub epochs: f64,
    /// Comparisons a step.
    pub batch_size: usize,
    /// The longest row, in tokens.
    pub max_length: usize,
    /// Share of the rows, by hash, that is held out.
    pub held_out: f64,
    /// Weight of the mean squared sum of a pair's scores, which centres them.
    pub center_rewards_coefficient: f64,
    /// The sources whose scores give the model's scale; without any, all.
    pub scale_on: Vec<String>,
}

/// Settings of `train-dpo`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DpoSettings {
    /// The optimizer.
    pub optim: Optim,
    /// How it computes.
    pub compute: Compute,
    /// Passes over the data.
    pub epochs: f64,
    /// Comparisons a step.
    pub batch_size: usize,
    /// The longest row, in tokens.
    pub max_length: usize,
    /// Share of the rows, by hash, that is held out.
    pub held_out: f64,
    /// How strongly the policy is held to the reference.
    pub beta: f64,
    /// The model that the policy is held to; without it, the policy's start.
    #[serde(skip)]
    pub reference: Option<PathBuf>,
}

/// Settings of `ppo-update`. Names are TRL's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are TRL's; `spec` documents them where users read")]
pub struct PpoSettings {
    pub optim: Optim,
    pub compute: Compute,
    pub algorithm: Algorithm,
    /// Rollouts of each prompt of a batch.
    pub num_generations: usize,
    pub total_episodes: usize,
    pub batch_size: usize,
    pub num_ppo_epochs: usize,
    pub num_mini_batches: usize,
    /// Batches at the beginning from which the critic alone learns.
    pub critic_warmup: u64,
    pub response_length: usize,
    pub temperature: f64,
    pub kl_coef: f64,
    pub kl_estimator: String,
    pub cliprange: f64,
    pub cliprange_value: f64,
    pub vf_coef: f64,
    pub gamma: f64,
    pub lam: f64,
    pub missing_eos_penalty: f64,
    pub reward_clip: f64,
    pub whiten_advantages: bool,
    pub whiten_rewards: bool,
    pub normalize_reward: bool,
    /// Stop the epochs of a batch when the approximate KL of the update passes this; 0 is off.
    pub target_kl: f64,
    pub stop: Vec<String>,
    /// Keep each token's numbers in the rollouts.
    pub keep_tokens: bool,
    /// Updates between two snapshots of the policy that are kept; 0 keeps none.
    pub save_every: u64,
    /// The KL divergence from the reference under which the policy that is kept lies; without it, the
    /// last one is kept.
    pub keep_below_kl: Option<f64>,
    /// The preference model's checkpoint.
    #[serde(skip)]
    pub reward: PathBuf,
    /// The model that KL is measured from; without it, the policy's start.
    #[serde(skip)]
    pub reference: Option<PathBuf>,
    /// A second preference model that scores the same rollouts, if any.
    #[serde(skip)]
    pub test_reward: Option<PathBuf>,
}

/// The file under [`TrainJob::state`] that a killed training goes on from, there once it was written
/// as a whole.
pub const STATE_FILE: &str = "state";

/// How a policy's advantages are had of its rewards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// By a critic and generalised advantage estimation.
    #[default]
    Ppo,
    /// By the other rollouts of the prompt.
    Rloo,
    /// By mean and deviation of the rollouts of the prompt, with the KL in the loss.
    Grpo,
}

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
