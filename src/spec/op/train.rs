//! Verbs that train a model: `train-sl`, `train-pm`, `train-dpo`, `ppo-update`. Options carry TRL's names.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::init::{
    AdaptiveKl, Algorithm, Balance, CriticTrunk, External, Init, Keep, Lora, OnChange, Schedule,
    Share,
};
use super::reward::Reward;
use super::source::{OneOrMany, Source};
use crate::spec::model::{Device, Dtype};
use crate::spec::place::{Name, Spanned};

/// How weights are moved: the settings that all trainers share.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Optimiser {
    /// Greatest learning rate.
    pub learning_rate: f64,
    /// How it changes over the steps.
    pub lr_scheduler_type: Schedule,
    /// Share of the steps over which it rises from 0.
    pub warmup_ratio: f64,
    /// Steps over which it rises from 0, instead of the share.
    pub warmup_steps: Option<u64>,
    /// AdamW's decay, not applied to norms and biases.
    pub weight_decay: f64,
    /// Decay of the gradient's mean.
    pub adam_beta1: f64,
    /// Decay of the gradient's square.
    pub adam_beta2: f64,
    /// Added to the root of the square.
    pub adam_epsilon: f64,
    /// Norm to which a gradient is cut; 0 is off.
    pub max_grad_norm: f64,
    /// A low-rank change, where not all weights learn.
    pub lora: Option<Lora>,
}

/// Declares a trainer with the fields written, then those that all trainers share, which serde cannot share
/// without losing their places.
macro_rules! trainer {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
            /// How the learning rate changes over the steps.
            #[serde(default)]
            pub lr_scheduler_type: Schedule,
            /// Share of the steps over which the learning rate rises from 0, in [0, 1].
            #[serde(default)]
            pub warmup_ratio: Spanned<f64>,
            /// Steps over which the learning rate rises from 0, instead of `warmup_ratio`.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub warmup_steps: Option<u64>,
            /// AdamW's decay, not applied to norms and biases.
            #[serde(default)]
            pub weight_decay: Spanned<f64>,
            /// AdamW's decay of the gradient's mean.
            #[serde(default = "adam_beta1")]
            pub adam_beta1: Spanned<f64>,
            /// AdamW's decay of the gradient's square.
            #[serde(default = "adam_beta2")]
            pub adam_beta2: Spanned<f64>,
            /// AdamW's epsilon.
            #[serde(default = "adam_epsilon")]
            pub adam_epsilon: Spanned<f64>,
            /// Norm to which a gradient is cut; 0 is off.
            #[serde(default = "max_grad_norm")]
            pub max_grad_norm: Spanned<f64>,
            /// A low-rank change of chosen matrices instead of all weights; of `ppo-update`, of the policy. The model is
            /// the merged one, and the change lies beside it in the folder `adapter`, as PEFT reads it.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub lora: Option<Lora>,
            /// Number format of products and activations. Weights learn in `f32` whatever this is.
            #[serde(default)]
            pub dtype: Dtype,
            /// Where it runs.
            #[serde(default)]
            pub device: Device,
            /// Whether what is inside the blocks is computed again for the gradients: memory for one block's insides in
            /// place of all, and a third more time.
            #[serde(default, skip_serializing_if = "std::ops::Not::not")]
            pub gradient_checkpointing: bool,
            /// Threads inside one tensor operation on CPU. It is part of the recipe: another number gives other last
            /// bits. Without it, all cores, and the recipe does not say how many they were.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub threads: Option<Spanned<u32>>,
            /// Seed of the order of rows and of new weights, instead of the pipeline's.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub seed: Option<u64>,
            /// Optimiser steps between two rows of `metrics`.
            #[serde(default = "logging_steps")]
            pub logging_steps: Spanned<u32>,
            /// Optimiser steps (updates of `ppo-update`) between two states from which a killed training resumes; 0 is
            /// none.
            #[serde(default = "save_steps")]
            pub save_steps: u32,
            /// A program that trains in amend's place.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub trainer: Option<External>,
            /// What a changed data set does.
            #[serde(default)]
            pub on_change: OnChange,
            /// The share of the rows last trained on below which a change is none: rows that are new, gone or say something
            /// else, each counted once. The checkpoint is kept then, and what is below marked as stale.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub min_changed: Option<Spanned<Share>>,
        }

        impl $name {
            /// How weights are moved.
            pub fn optimiser(&self) -> Optimiser {
                Optimiser {
                    learning_rate: self.learning_rate.value,
                    lr_scheduler_type: self.lr_scheduler_type,
                    warmup_ratio: self.warmup_ratio.value,
                    warmup_steps: self.warmup_steps,
                    weight_decay: self.weight_decay.value,
                    adam_beta1: self.adam_beta1.value,
                    adam_beta2: self.adam_beta2.value,
                    adam_epsilon: self.adam_epsilon.value,
                    max_grad_norm: self.max_grad_norm.value,
                    lora: self.lora.clone(),
                }
            }
        }
    };
}

fn sl_rate() -> Spanned<f64> {
    Spanned::nowhere(2e-5)
}

fn pm_rate() -> Spanned<f64> {
    Spanned::nowhere(1e-5)
}

fn ppo_rate() -> Spanned<f64> {
    Spanned::nowhere(3e-6)
}

fn adam_beta1() -> Spanned<f64> {
    Spanned::nowhere(0.9)
}

fn adam_beta2() -> Spanned<f64> {
    Spanned::nowhere(0.999)
}

fn adam_epsilon() -> Spanned<f64> {
    Spanned::nowhere(1e-8)
}

fn max_grad_norm() -> Spanned<f64> {
    Spanned::nowhere(1.0)
}

fn one() -> Spanned<f64> {
    Spanned::nowhere(1.0)
}

fn batch_size() -> Spanned<u32> {
    Spanned::nowhere(32)
}

fn accumulation() -> Spanned<u32> {
    Spanned::nowhere(1)
}

fn max_length() -> Spanned<u32> {
    Spanned::nowhere(1024)
}

fn logging_steps() -> Spanned<u32> {
    Spanned::nowhere(10)
}

fn save_steps() -> u32 {
    200
}

trainer! {
    /// `train-sl`: next-token loss on completions. `demonstrations | responses | revisions -> a model`.
    pub struct TrainSl {
        /// The rows trained on.
        pub from: OneOrMany<Source>,
        /// The weights to start from: a model, a node that trains one, or `{ scratch: … }`.
        pub init: Init,
        /// Greatest learning rate.
        #[serde(default = "sl_rate")]
        pub learning_rate: Spanned<f64>,
        /// Times that the rows are gone through.
        #[serde(default = "one")]
        pub epochs: Spanned<f64>,
        /// Rows in one optimiser step.
        #[serde(default = "batch_size")]
        pub batch_size: Spanned<u32>,
        /// Parts, at least, into which a step's rows are cut to save memory. A step's loss is their sum.
        #[serde(default = "accumulation")]
        pub gradient_accumulation_steps: Spanned<u32>,
        /// Tokens above which a row is left out, as a reject.
        #[serde(default = "max_length")]
        pub max_length: Spanned<u32>,
        /// Whether several rows share a sequence of up to `max_length` tokens. No row attends to another.
        #[serde(default)]
        pub packing: bool,
        /// Share of the rows, by hash, that are not trained on and whose loss is logged, in [0, 1).
        #[serde(default)]
        pub held_out: Spanned<f64>,
        /// Optimiser steps between two measurements of the held-out loss. Without it, there is one at the end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub eval_steps: Option<Spanned<u32>>,
        /// Measurements one after the other without a lower held-out loss, after which the training ends. The model is that
        /// of the lowest loss then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub early_stopping_patience: Option<Spanned<u32>>,
    }
}

impl TrainSl {
    /// Raised when the same rows and settings would make other weights.
    pub const VERSION: u32 = 1;
}

trainer! {
    /// `train-pm`: Bradley-Terry with soft targets, `-[p·logσ(r_A-r_B) + (1-p)·logσ(r_B-r_A)]`. `comparisons -> a preference model`.
    pub struct TrainPm {
        /// The comparisons trained on, each with a weight.
        pub from: OneOrMany<Source>,
        /// The weights to start from; the head is new.
        pub init: Init,
        /// Greatest learning rate.
        #[serde(default = "pm_rate")]
        pub learning_rate: Spanned<f64>,
        /// Whether sources weigh by their `weight` alone or also by their rows.
        #[serde(default)]
        pub balance: Balance,
        /// Weight of the mean squared score in the loss, which centres scores on 0; 0 is off.
        #[serde(default)]
        pub center_rewards_coefficient: Spanned<f64>,
        /// Times that the rows are gone through.
        #[serde(default = "one")]
        pub epochs: Spanned<f64>,
        /// Comparisons in one optimiser step.
        #[serde(default = "batch_size")]
        pub batch_size: Spanned<u32>,
        /// Parts, at least, into which a step's comparisons are cut to save memory. A step's loss is their sum.
        #[serde(default = "accumulation")]
        pub gradient_accumulation_steps: Spanned<u32>,
        /// Tokens above which a comparison is left out, as a reject.
        #[serde(default = "max_length")]
        pub max_length: Spanned<u32>,
        /// Share of the comparisons, by hash, that are not trained on and on which accuracy, margin and calibration
        /// are measured, in [0, 1).
        #[serde(default = "held_out_pm")]
        pub held_out: Spanned<f64>,
        /// The sources of `from` whose responses, held out, give the mean and the deviation of scores by which
        /// `ppo-update` normalises: those that the policy's start sampled. Without it, all sources.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub scale_on: Vec<Name>,
    }
}

fn held_out_pm() -> Spanned<f64> {
    Spanned::nowhere(0.05)
}

impl TrainPm {
    /// Raised when the same rows and settings would make other weights.
    pub const VERSION: u32 = 1;
}

trainer! {
    /// `train-dpo`: a policy on comparisons with soft targets, without a preference model and without rollouts:
    /// `-[p·logσ(z) + (1-p)·logσ(-z)]`, `z = β[(log π_A - log π_B) - (log ref_A - log ref_B)]`. `comparisons -> a model`.
    pub struct TrainDpo {
        /// The comparisons trained on, each with a weight.
        pub from: OneOrMany<Source>,
        /// The model trained.
        pub init: Name,
        /// The model that the policy is held to. Without it, the policy's start.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub reference: Option<Name>,
        /// How strongly: the weight of the KL divergence of which the loss is the optimum.
        #[serde(default = "beta")]
        pub beta: Spanned<f64>,
        /// Greatest learning rate.
        #[serde(default = "dpo_rate")]
        pub learning_rate: Spanned<f64>,
        /// Times that the rows are gone through.
        #[serde(default = "one")]
        pub epochs: Spanned<f64>,
        /// Comparisons in one optimiser step.
        #[serde(default = "batch_size")]
        pub batch_size: Spanned<u32>,
        /// Parts, at least, into which a step's comparisons are cut to save memory. A step's loss is their sum.
        #[serde(default = "accumulation")]
        pub gradient_accumulation_steps: Spanned<u32>,
        /// Tokens above which a comparison is left out, as a reject.
        #[serde(default = "max_length")]
        pub max_length: Spanned<u32>,
        /// Share of the comparisons, by hash, that are not trained on and on which loss and accuracy are measured, in
        /// [0, 1).
        #[serde(default)]
        pub held_out: Spanned<f64>,
    }
}

impl TrainDpo {
    /// Raised when the same rows and settings would make other weights.
    pub const VERSION: u32 = 1;

    /// The models it works with, each with the key that names it. A reference that is the policy's
    /// start is not named again.
    pub fn models(&self) -> Vec<(&'static str, &Name)> {
        let reference = self.reference.iter().filter(|name| name.value != self.init.value);
        let reference = reference.map(|name| ("reference", name));
        std::iter::once(("init", &self.init)).chain(reference).collect()
    }
}

fn beta() -> Spanned<f64> {
    Spanned::nowhere(0.1)
}

fn dpo_rate() -> Spanned<f64> {
    Spanned::nowhere(1e-6)
}

trainer! {
    /// `ppo-update`: reinforcement learning against a preference model. `prompts -> a model`, and rollouts.
    ///
    /// The reward is the preference model's score at the end, less `kl_coef` times the KL divergence from `reference` per token.
    pub struct PpoUpdate {
        /// The prompts; red-team prompts alone teach refusal of everything, so mix in helpful ones.
        pub prompts: OneOrMany<Source>,
        /// The model trained.
        pub policy: Name,
        /// Where the reward comes from: a preference model, or `{ judge: { model: …, principles: … } }`.
        pub reward: Reward,
        /// The model from which KL is measured. Without it, the policy's start.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub reference: Option<Name>,
        /// A second preference model, logged and never trained on, that shows over-optimisation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub test_reward: Option<Name>,
        /// How advantages are had of rewards.
        #[serde(default)]
        pub algorithm: Algorithm,
        /// Rollouts of each prompt of a batch. Without it 1; and 4 where they are compared, by another algorithm or a judge.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub num_generations: Option<Spanned<u32>>,
        /// Greatest learning rate.
        #[serde(default = "ppo_rate")]
        pub learning_rate: Spanned<f64>,
        /// Weight of the KL divergence in the reward; the paper's is 0.001.
        #[serde(default = "kl_coef")]
        pub kl_coef: Spanned<f64>,
        /// Lets that weight follow the divergence: it rises where an episode's is above the target, and falls below.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub adaptive_kl: Option<AdaptiveKl>,
        /// Rollouts made in all.
        pub total_episodes: Spanned<u64>,
        /// Rollouts in one update.
        #[serde(default = "ppo_batch_size")]
        pub batch_size: Spanned<u32>,
        /// Times that an update goes through its rollouts.
        #[serde(default = "num_ppo_epochs")]
        pub num_ppo_epochs: Spanned<u32>,
        /// What the critic of `algorithm: ppo` sees by.
        #[serde(default)]
        pub critic: CriticTrunk,
        /// Updates at the beginning in which the critic learns alone, as verl has it.
        #[serde(default)]
        pub critic_warmup: Spanned<u32>,
        /// Optimiser steps in each of those times.
        #[serde(default = "accumulation")]
        pub num_mini_batches: Spanned<u32>,
        /// Parts, at least, into which an optimiser step's rollouts are cut to save memory.
        #[serde(default = "accumulation")]
        pub gradient_accumulation_steps: Spanned<u32>,
        /// Tokens after which a rollout is cut; the paper's is 128.
        #[serde(default = "response_length")]
        pub response_length: Spanned<u32>,
        /// Range of the ratio of probabilities.
        #[serde(default = "cliprange")]
        pub cliprange: Spanned<f64>,
        /// Range of the change of a value.
        #[serde(default = "cliprange")]
        pub cliprange_value: Spanned<f64>,
        /// Weight of the value loss.
        #[serde(default = "vf_coef")]
        pub vf_coef: Spanned<f64>,
        /// Discount per token.
        #[serde(default = "one")]
        pub gamma: Spanned<f64>,
        /// GAE's lambda.
        #[serde(default = "lam")]
        pub lam: Spanned<f64>,
        /// Whether rewards are scaled to a deviation of 1 over the tokens of a batch, their mean kept, besides
        /// advantages, which always are whitened.
        #[serde(default)]
        pub whiten_rewards: bool,
        /// Taken from the score of a rollout that did not end by itself; 0 is off.
        #[serde(default = "one")]
        pub missing_eos_penalty: Spanned<f64>,
        /// KL divergence from the old policy above which an update's remaining steps are skipped. Without it, never.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub target_kl: Option<Spanned<f64>>,
        /// Whether scores are normalised by the preference model's mean and deviation on held-out samples. What a model
        /// says that learnt nothing has a deviation near 0 (`pm_std`), and normalised it has the strength of a judgement.
        #[serde(default = "yes")]
        pub normalize_reward: bool,
        /// Updates between two snapshots of the policy, listed in the table `NODE.snapshots`; 0 is none. A change
        /// takes effect with the next training.
        #[serde(default)]
        pub save_every: u32,
        /// Which policy is the node's model.
        #[serde(default)]
        pub keep: Keep,
        /// Whether rollouts hold token ids, log-probabilities, values, advantages and returns.
        #[serde(default)]
        pub keep_tokens: bool,
    }
}

impl PpoUpdate {
    /// Raised when the same rows and settings would make other weights.
    pub const VERSION: u32 = 1;
}

impl PpoUpdate {
    /// Whether the rollouts of a prompt are compared with each other.
    pub fn compares(&self) -> bool {
        self.algorithm != Algorithm::Ppo || matches!(self.reward, Reward::Judge(_))
    }

    /// Rollouts of each prompt of a batch.
    pub fn generations(&self) -> u32 {
        let by_default = if self.compares() { 4 } else { 1 };
        self.num_generations.map_or(by_default, |count| count.value)
    }

    /// The models it works with, each with the key that names it. A reference that is the policy's
    /// start is not named again.
    pub fn models(&self) -> Vec<(&'static str, &Name)> {
        let mut models = vec![("policy", &self.policy), self.reward.model()];
        let reference = self.reference.iter().filter(|name| name.value != self.policy.value);
        models.extend(reference.map(|name| ("reference", name)));
        models.extend(self.test_reward.iter().map(|name| ("test_reward", name)));
        models
    }
}

fn kl_coef() -> Spanned<f64> {
    Spanned::nowhere(0.05)
}

fn ppo_batch_size() -> Spanned<u32> {
    Spanned::nowhere(128)
}

fn num_ppo_epochs() -> Spanned<u32> {
    Spanned::nowhere(4)
}

fn response_length() -> Spanned<u32> {
    Spanned::nowhere(128)
}

fn cliprange() -> Spanned<f64> {
    Spanned::nowhere(0.2)
}

fn vf_coef() -> Spanned<f64> {
    Spanned::nowhere(0.1)
}

fn lam() -> Spanned<f64> {
    Spanned::nowhere(0.95)
}

fn yes() -> bool {
    true
}
