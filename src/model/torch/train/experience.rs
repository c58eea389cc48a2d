//! Experience: what a batch of episodes is worth, token by token, before anything is learnt.
//!
//! Numbers of tokens lie in one list an episode, end token included and nothing after it.

use tch::{Device, Tensor, no_grad_guard, with_grad};

use super::advantage::{KlEstimator, gae, leave_one_out, standardised, whiten, whiten_around_mean};
use super::critic::{Trunk, head_values};
use super::learner::Learner;
use super::loss::{entropies, log_probs};
use super::reward::Reward;
use super::rollout::{Episode, Prompts};
use super::rows::{Layout, MicroBatch, Row, buckets, floats, micro_batches};
use super::side_by_side::side_by_side;
use crate::model::train::{Algorithm, PpoSettings, TrainError};

/// A preference model as a judge: its scores can be normalised by the mean and the standard
/// deviation that were stored with it.
pub(super) struct Judge {
    /// The model.
    pub(super) model: Learner,
    mean: f64,
    std: f64,
}

impl Judge {
    /// A judge whose scores are normalised, or not.
    pub(super) fn new(model: Learner, normalize: bool) -> Judge {
        let number = |key: &str| if normalize { model.number(key) } else { None };
        let mean = number("mean").unwrap_or(0.0);
        let std = number("std").filter(|&std| std > 0.0).unwrap_or(1.0);
        Judge { model, mean, std }
    }

    /// The normalised score.
    pub(super) fn normalized(&self, score: f64) -> f64 {
        (score - self.mean) / self.std
    }

    /// The normalised scores of states: what the critic begins at.
    pub(super) fn values(&self, hidden: &Tensor) -> Tensor {
        (self.model.scores(hidden) - self.mean) / self.std // (N)
    }

    /// The scores of the episodes' texts, read anew in the judge's own tokens, up to its end token.
    ///
    /// A text longer than the judge can read is read from as far back as it can.
    pub(super) fn scores(
        &self,
        prompts: &[&str],
        episodes: &[Episode],
        settings: &PpoSettings,
    ) -> Result<Vec<f64>, TrainError> {
        let _guard = no_grad_guard();
        let row = |episode: &Episode| -> Result<Row, TrainError> {
            let mut row = self.model.text(prompts[episode.prompt], &episode.text)?;
            let excess = row.tokens.len().saturating_sub(self.model.length_max());
            row.tokens.drain(..excess);
            Ok(row)
        };
        let rows = episodes.iter().map(row).collect::<Result<Vec<_>, _>>()?;
        let all: Vec<usize> = (0..rows.len()).collect();
        let mut scores = vec![0.0; rows.len()];
        let rows_max = layout(settings, self.model.device()).rows_max;
        for bucket in buckets(&all, rows_max, |row| rows[row].tokens.len()) {
            let micro = MicroBatch::of_ends(&rows, &bucket, self.model.device());
            let states = self.model.states(&micro); // (B, d)
            for (&row, score) in bucket.iter().zip(floats(&self.model.scores(&states))) {
                scores[row] = f64::from(score);
            }
        }
        Ok(scores)
    }
}

/// What a batch of episodes is worth.
pub(super) struct Experience {
    /// The episodes' tokens.
    pub(super) rows: Vec<Row>,
    /// The log-probabilities of the tokens under the policy that wrote them.
    pub(super) old: Vec<Vec<f32>>,
    /// The same under the reference.
    pub(super) reference: Vec<Vec<f32>>,
    /// The critic's values of the states before the tokens; without a critic, none.
    pub(super) values: Vec<Vec<f32>>,
    /// The entropies of the policy at the tokens.
    pub(super) entropies: Vec<Vec<f32>>,
    /// The estimated KL to the reference at the tokens.
    pub(super) kl: Vec<Vec<f32>>,
    /// The advantages, whitened if the settings say so.
    pub(super) advantages: Vec<Vec<f32>>,
    /// The returns; without a critic, none.
    pub(super) returns: Vec<Vec<f32>>,
    /// The preference model's scores.
    pub(super) scores: Vec<f64>,
    /// The scores as they are rewarded: normalised, clipped, without what an answer loses that
    /// did not end.
    pub(super) rewarded: Vec<f64>,
}

/// The passes of policy and critic over a batch, with what their gradients flow back through.
///
/// Those that measure a batch are kept for the update where it would begin by making them again: the
/// weights are those that were measured.
#[derive(Default)]
pub(super) struct FirstPass {
    /// The policy's.
    pub(super) policy: Option<PolicyPass>,
    /// The values of a critic with a model of its own.
    pub(super) values: Option<Tensor>, // (N)
}

/// The policy's pass over a micro-batch.
pub(super) struct PolicyPass {
    /// The states that predict.
    pub(super) states: Tensor, // (N, d)
    /// The log-probabilities of the tokens.
    pub(super) log_probs: Tensor, // (N)
}

impl PolicyPass {
    /// The pass of that policy.
    pub(super) fn of(policy: &Learner, micro: &MicroBatch, settings: &PpoSettings) -> PolicyPass {
        let states = policy.states(micro); // (N, d)
        let log_probs = log_probs(&policy.logits(&states), &micro.targets, settings.temperature); // (N)
        PolicyPass { states, log_probs }
    }
}

/// The most tokens, padding included, whose passes are kept: the insides of two models at once.
const TOKENS_KEPT_MAX: i64 = 4_096;

/// Whether the passes over a batch are kept for the update: where its first minibatch is the whole
/// batch in one piece, and no memory is to be saved.
fn keeps(micros: &[MicroBatch], settings: &PpoSettings) -> bool {
    let is_one = settings.num_mini_batches <= 1 && !settings.compute.gradient_checkpointing;
    matches!(micros, [one] if is_one && one.ids.numel() as i64 <= TOKENS_KEPT_MAX)
}

/// Whether two models compute at once: on a processor, where no memory is to be saved.
pub(super) fn are_at_once(policy: &Learner, settings: &PpoSettings) -> bool {
    policy.device() == Device::Cpu && !settings.compute.gradient_checkpointing
}

/// Who acts, who judges and who is asked what it would have done.
pub(super) struct Actors<'a> {
    /// The policy that wrote the episodes.
    pub(super) policy: &'a Learner,
    /// The policy at the beginning, frozen.
    pub(super) reference: &'a mut Learner,
    /// The critic, where there is one.
    pub(super) critic: Option<&'a mut Trunk>,
    /// What gives the scores.
    pub(super) reward: &'a Reward<'a>,
}

/// What the policy says of a batch, a list of tokens an episode.
struct Written {
    old: Vec<Vec<f32>>,
    entropies: Vec<Vec<f32>>,
    /// The values of a critic that sees by the policy.
    values: Vec<Vec<f32>>,
    first: Option<PolicyPass>,
}

/// What others say of a batch, token by token: nobody that the policy waits for.
struct Read {
    reference: Vec<Vec<f32>>,
    /// The values of a critic with a model of its own.
    values: Option<Vec<Vec<f32>>>,
    first: Option<Tensor>, // (N)
}

impl Experience {
    /// Measures a batch of episodes, and gives what is kept of the passes. `update` counts the
    /// batches from 0.
    pub(super) fn of(
        actors: Actors<'_>,
        prompts: &Prompts<'_>,
        episodes: &[Episode],
        update: u64,
        settings: &PpoSettings,
    ) -> Result<(Experience, FirstPass), TrainError> {
        let Actors { policy, reference, critic, reward } = actors;
        let (head, own) = match critic {
            Some(Trunk::Own(judge)) => (None, Some(judge)),
            Some(Trunk::Policy(head)) => (Some(&*head), None),
            None => (None, None),
        };
        let rows: Vec<Row> = episodes.iter().map(|episode| episode.row.clone()).collect();
        let all = rows.as_slice();
        let ((written, scores), read) = side_by_side(
            are_at_once(policy, settings),
            || {
                let written = Written::by(policy, head, all, settings);
                (written, reward.scores(prompts, episodes, update, settings))
            },
            // It takes its models with it: one may be in another thread, and never in two.
            move || Read::by(reference, own.map(|judge| &**judge), all, settings),
        );
        let scores = scores?;
        let rewarded = (scores.iter().zip(episodes))
            .map(|(&score, episode)| rewarded(reward.normalized(score), episode, settings))
            .collect();
        let empty = || vec![Vec::new(); rows.len()];
        let mut experience = Experience {
            old: written.old,
            reference: read.reference,
            values: read.values.unwrap_or(written.values),
            entropies: written.entropies,
            kl: empty(),
            advantages: empty(),
            returns: empty(),
            scores,
            rewarded,
            rows,
        };
        experience.judge(settings)?;
        Ok((experience, FirstPass { policy: written.first, values: read.first }))
    }

    /// Rewards, advantages and returns: the KL to the reference is paid at each token, the score
    /// is had at the last.
    fn judge(&mut self, settings: &PpoSettings) -> Result<(), TrainError> {
        let estimator = KlEstimator::named(&settings.kl_estimator).ok_or_else(|| {
            TrainError::Data(format!(
                "kl_estimator \"{}\" is not one of k1, k2, k3",
                settings.kl_estimator
            ))
        })?;
        let of_row = |(log_probs, reference): (&Vec<f32>, &Vec<f32>)| -> Vec<f32> {
            let pairs = log_probs.iter().zip(reference);
            pairs.map(|(&log_prob, &reference)| estimator.at(log_prob, reference)).collect()
        };
        self.kl = self.old.iter().zip(&self.reference).map(of_row).collect();
        match settings.algorithm {
            Algorithm::Ppo => self.estimate(settings),
            Algorithm::Rloo => {
                let reward = |row: usize| self.rewarded[row] - settings.kl_coef * self.kl_of(row);
                let rewards: Vec<f64> = (0..self.rows.len()).map(reward).collect();
                self.spread(&leave_one_out(&rewards, settings.num_generations));
            }
            // The KL is in the loss.
            Algorithm::Grpo => {
                self.spread(&standardised(&self.rewarded, settings.num_generations));
            }
        }
        Ok(())
    }

    /// Advantages and returns by the critic's values.
    fn estimate(&mut self, settings: &PpoSettings) {
        let paid = |kl: &f32| -(settings.kl_coef as f32) * kl;
        let paid = |kl: &Vec<f32>| kl.iter().map(paid).collect();
        let mut rewards: Vec<Vec<f32>> = self.kl.iter().map(paid).collect();
        for (rewards, &rewarded) in rewards.iter_mut().zip(&self.rewarded) {
            if let Some(last) = rewards.last_mut() {
                *last += rewarded as f32;
            }
        }
        if settings.whiten_rewards {
            whiten_around_mean(&mut rewards);
        }
        for (row, rewards) in rewards.iter().enumerate() {
            (self.advantages[row], self.returns[row]) =
                gae(rewards, &self.values[row], settings.gamma, settings.lam);
        }
        if settings.whiten_advantages {
            whiten(&mut self.advantages);
        }
    }

    /// Gives every token of an episode the episode's advantage.
    fn spread(&mut self, advantages: &[f64]) {
        let of_row = |(&advantage, tokens): (&f64, &Vec<f32>)| vec![advantage as f32; tokens.len()];
        self.advantages = advantages.iter().zip(&self.old).map(of_row).collect();
    }

    /// The mean over episodes of the sum of their KL.
    pub(super) fn mean_kl(&self) -> f64 {
        let sum: f64 = (0..self.rows.len()).map(|row| self.kl_of(row)).sum();
        sum / self.rows.len() as f64
    }

    /// The sum of an episode's KL.
    pub(super) fn kl_of(&self, row: usize) -> f64 {
        self.kl[row].iter().map(|&kl| f64::from(kl)).sum()
    }
}

/// The score as it is rewarded.
fn rewarded(normalized: f64, episode: &Episode, settings: &PpoSettings) -> f64 {
    let limit = settings.reward_clip;
    let clipped = if limit > 0.0 { normalized.clamp(-limit, limit) } else { normalized };
    // Whether the answer ended is what the sampler said, never read back from its tokens.
    if episode.ended { clipped } else { clipped - settings.missing_eos_penalty }
}

/// How episodes are laid out, to be measured and to be learnt from: the same way, so that the first
/// pass of an update has the bits of the measurement.
pub(super) fn layout(settings: &PpoSettings, device: Device) -> Layout {
    let minibatch = settings.batch_size.div_ceil(settings.num_mini_batches.max(1));
    Layout::of_parts(minibatch, settings.compute.gradient_accumulation_steps, device)
}

/// The logits of the states that predict.
pub(super) fn logits(model: &Learner, micro: &MicroBatch) -> Tensor {
    model.logits(&model.states(micro)) // (N, V)
}

impl Written {
    /// The pass of the policy over the rows, with the values of a head on its states.
    fn by(
        policy: &Learner,
        head: Option<&Tensor>, // (1, d)
        rows: &[Row],
        settings: &PpoSettings,
    ) -> Written {
        let _guard = no_grad_guard();
        let temperature = settings.temperature;
        let (micros, empty) = laid_out(rows, policy.device(), settings);
        let (old, entropies, values) = (empty.clone(), empty.clone(), empty);
        let mut of = Written { old, entropies, values, first: None };
        let keeps = keeps(&micros, settings);
        for micro in &micros {
            let states = measured(keeps, || policy.states(micro)); // (N, d)
            let logits = measured(keeps, || policy.logits(&states)); // (N, V)
            let log_probs = measured(keeps, || log_probs(&logits, &micro.targets, temperature)); // (N)
            micro.scatter(&log_probs, &mut of.old);
            micro.scatter(&self::entropies(&logits, temperature), &mut of.entropies);
            if let Some(head) = head {
                micro.scatter(&head_values(head, &states), &mut of.values);
            }
            of.first = keeps.then_some(PolicyPass { states, log_probs });
        }
        of
    }
}

impl Read {
    /// The passes of the reference and of a critic with a model of its own.
    fn by(
        reference: &Learner,
        critic: Option<&Judge>,
        rows: &[Row],
        settings: &PpoSettings,
    ) -> Read {
        let _guard = no_grad_guard();
        let (micros, empty) = laid_out(rows, reference.device(), settings);
        let values = critic.is_some().then(|| empty.clone());
        let mut of = Read { reference: empty, values, first: None };
        let keeps = keeps(&micros, settings);
        for micro in &micros {
            let logits = logits(reference, micro); // (N, V)
            let log_probs = log_probs(&logits, &micro.targets, settings.temperature); // (N)
            micro.scatter(&log_probs, &mut of.reference);
            if let Some((critic, into)) = critic.zip(of.values.as_mut()) {
                let values = measured(keeps, || critic.values(&critic.model.states(micro))); // (N)
                micro.scatter(&values, into);
                of.first = keeps.then_some(values);
            }
        }
        of
    }
}

/// The rows as they are measured, and an empty list for each.
fn laid_out(
    rows: &[Row],
    device: Device,
    settings: &PpoSettings,
) -> (Vec<MicroBatch>, Vec<Vec<f32>>) {
    let all: Vec<usize> = (0..rows.len()).collect();
    (micro_batches(rows, &all, &layout(settings, device)), vec![Vec::new(); rows.len()])
}

/// A pass, with what its gradients flow back through if it is kept.
fn measured(keeps: bool, pass: impl FnOnce() -> Tensor) -> Tensor {
    if keeps { with_grad(pass) } else { pass() }
}
