//! The settings of trainings: what decides the weights besides data and models.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
    /// Whether what is inside the blocks is computed again for the gradients, to save memory.
    #[serde(default)]
    pub gradient_checkpointing: bool,
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
    /// Optimizer steps between two measurements of the held-out loss; without it, one at the end.
    #[serde(default)]
    pub eval_steps: Option<u64>,
    /// Measurements without a lower loss after which the training ends with its best weights.
    #[serde(default)]
    pub patience: Option<u64>,
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
    /// What the critic of `ppo` sees by.
    #[serde(default, skip_serializing_if = "CriticTrunk::is_separate")]
    pub critic: CriticTrunk,
    /// Batches at the beginning from which the critic alone learns.
    pub critic_warmup: u64,
    pub response_length: usize,
    pub temperature: f64,
    pub kl_coef: f64,
    /// How `kl_coef` follows the KL divergence; without it, it stays.
    #[serde(default)]
    pub adaptive_kl: Option<AdaptiveKl>,
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
    /// The preference model's checkpoint, or the judge's.
    #[serde(skip)]
    pub reward: PathBuf,
    /// The model that KL is measured from; without it, the policy's start.
    #[serde(skip)]
    pub reference: Option<PathBuf>,
    /// A second preference model that scores the same rollouts, if any.
    #[serde(skip)]
    pub test_reward: Option<PathBuf>,
}

/// How the weight of the KL divergence follows it (arXiv 1909.08593, section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdaptiveKl {
    /// The divergence of an episode that is aimed at.
    pub target: f64,
    /// Episodes over which the weight is moved by as much as the divergence is off, a fifth at most.
    pub horizon: f64,
}

impl AdaptiveKl {
    /// The weight after a batch of `n_episodes` whose mean divergence is `kl`.
    pub fn next(&self, kl_coef: f64, kl: f64, n_episodes: usize) -> f64 {
        let error = (kl / self.target - 1.0).clamp(-0.2, 0.2);
        kl_coef * (1.0 + error * n_episodes as f64 / self.horizon)
    }
}

/// What the critic of `ppo` sees by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CriticTrunk {
    /// A model of its own, which begins at the preference model.
    #[default]
    Separate,
    /// The policy, on whose states the critic is a head.
    Shared,
}

impl CriticTrunk {
    fn is_separate(&self) -> bool {
        *self == CriticTrunk::Separate
    }
}

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
