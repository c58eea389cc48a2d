//! The update of PPO: what policy and critic learn from one batch of episodes.

use tch::{Kind, Tensor};

use super::critic::{Critic, Trunk};
use super::experience::{Experience, FirstPass, layout};
use super::learner::Learner;
use super::loss::{clipped_policy, clipped_value, kl_to_reference};
use super::optimizer::{AdamW, Schedule};
use super::order::epoch_order;
use super::rows::{MicroBatch, micro_batches};
use crate::model::train::{Algorithm, PpoSettings, TrainError};
use crate::record::{Id, KeyHasher};

/// The largest difference between a token's log-probability before the update and in its first
/// pass: the two are one function of the same weights.
const FIRST_PASS_TOLERANCE: f64 = 1e-5;

/// What is learnt, with its optimizers.
pub(super) struct Students {
    /// The policy.
    pub(super) policy: Learner,
    /// The policy's optimizer.
    pub(super) policy_optimizer: AdamW,
    /// The critic, where there is one.
    pub(super) critic: Option<Critic>,
    /// The learning rate of each optimizer step.
    pub(super) schedule: Schedule,
}

impl Students {
    /// Policy and critic at the beginning.
    pub(super) fn new(
        policy: Learner,
        critic: Option<Trunk>,
        schedule: Schedule,
        settings: &PpoSettings,
    ) -> Students {
        let policy_optimizer = AdamW::new(policy.weights(), &settings.optim);
        let critic = critic.map(|trunk| Critic::new(trunk, settings));
        Students { policy, policy_optimizer, critic, schedule }
    }

    /// One step of both optimizers; gives the norms of the gradients.
    fn step(&mut self, rate: f64, pass: Pass) -> Result<(f64, f64), TrainError> {
        let policy = match pass.is_warmup {
            true => 0.0,
            false => self.policy.step(&mut self.policy_optimizer, rate)?,
        };
        let critic = match &mut self.critic {
            Some(critic) => critic.step(rate)?,
            None => 0.0,
        };
        Ok((policy, critic))
    }

    /// Takes in that weights changed.
    pub(super) fn refresh(&mut self) -> Result<(), TrainError> {
        self.policy.refresh()?;
        self.critic.as_mut().map_or(Ok(()), Critic::refresh)
    }

    /// The optimizers by their names in the state.
    pub(super) fn optimizers(&self) -> Vec<(&str, &AdamW)> {
        let critic = self.critic.as_ref().map(|critic| ("critic", &critic.optimizer));
        std::iter::once(("policy", &self.policy_optimizer)).chain(critic).collect()
    }

    /// The same, to be restored.
    pub(super) fn optimizers_mut(&mut self) -> Vec<(&str, &mut AdamW)> {
        let critic = self.critic.as_mut().map(|critic| ("critic", &mut critic.optimizer));
        std::iter::once(("policy", &mut self.policy_optimizer)).chain(critic).collect()
    }
}

/// Sums over the tokens of minibatches, and over minibatches.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    /// Tokens.
    pub(super) n: f64,
    /// The policy's loss.
    pub(super) policy: f64,
    /// The critic's loss.
    pub(super) value: f64,
    /// `(lp − lp_old)²`.
    pub(super) squares: f64,
    /// Tokens whose policy loss is clipped.
    pub(super) policy_clipped: f64,
    /// Tokens whose value loss is clipped.
    pub(super) value_clipped: f64,
    /// Ratios.
    pub(super) ratio: f64,
    /// Squares of the ratios.
    pub(super) ratio_squared: f64,
    /// The norms of the policy's gradients, and of the critic's, a minibatch each.
    pub(super) norms: (f64, f64),
    /// Minibatches.
    pub(super) n_minibatches: f64,
    /// The largest |lp − lp_old| of the first minibatch.
    pub(super) first_difference: f64,
    /// The largest of all.
    pub(super) difference: f64,
}

impl Sums {
    /// The approximate KL of the update, `½ mean (lp − lp_old)²`.
    pub(super) fn approx_kl(&self) -> f64 {
        0.5 * self.squares / self.n
    }

    fn add(&mut self, other: &Sums) {
        self.n += other.n;
        self.policy += other.policy;
        self.value += other.value;
        self.squares += other.squares;
        self.policy_clipped += other.policy_clipped;
        self.value_clipped += other.value_clipped;
        self.ratio += other.ratio;
        self.ratio_squared += other.ratio_squared;
        self.norms.0 += other.norms.0;
        self.norms.1 += other.norms.1;
        self.n_minibatches += other.n_minibatches;
        self.first_difference = self.first_difference.max(other.first_difference);
        self.difference = self.difference.max(other.difference);
    }
}

/// What is special about the pass over a minibatch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pass {
    /// Whether it is the batch's first: then the policy is still the one that was measured.
    pub(super) is_first: bool,
    /// Whether the critic learns alone: a critic that knows nothing yet misleads the policy.
    pub(super) is_warmup: bool,
}

/// Learns from a batch of episodes. `step` counts the batches from 0.
pub(super) fn update(
    students: &mut Students,
    experience: &Experience,
    settings: &PpoSettings,
    step: u64,
) -> Result<Sums, TrainError> {
    let n_rows = experience.rows.len();
    let n_minibatches = settings.num_mini_batches.clamp(1, n_rows);
    let n_epochs = settings.num_ppo_epochs.max(1) as u64;
    let mut sums = Sums::default();
    for epoch in 0..n_epochs {
        let mut in_epoch = Sums::default();
        let order = shuffled(settings.optim.seed, step * n_epochs + epoch, n_rows);
        for (index, minibatch) in order.chunks(n_rows.div_ceil(n_minibatches)).enumerate() {
            let pass = Pass {
                is_first: epoch == 0 && index == 0,
                is_warmup: step < settings.critic_warmup,
            };
            let mut own = accumulate(students, experience, settings, minibatch, pass);
            let loss = own.policy / own.n + settings.vf_coef * own.value / own.n;
            let done = (step * n_epochs + epoch) * n_minibatches as u64 + index as u64;
            let rate = students.schedule.rate(done);
            own.norms = students.step(rate, pass)?;
            let grad_norm = own.norms.0.max(own.norms.1);
            let is_number = own.norms.0.is_finite() && own.norms.1.is_finite();
            if !loss.is_finite() || !is_number {
                return Err(TrainError::Diverged { step: step + 1, loss, grad_norm });
            }
            own.n_minibatches = 1.0;
            in_epoch.add(&own);
        }
        sums.add(&in_epoch);
        if settings.target_kl > 0.0 && in_epoch.approx_kl() > settings.target_kl {
            break;
        }
    }
    Ok(sums)
}

/// The rows in an order that is a function of seed and pass alone.
pub(super) fn shuffled(seed: u64, pass: u64, n_rows: usize) -> Vec<usize> {
    let places: Vec<Id> =
        (0..n_rows as u64).map(|row| KeyHasher::new("amend/minibatch/1").u64(row).id()).collect();
    epoch_order(seed, pass + 1, &places)
}

/// Adds the gradients of a minibatch; both losses are means over all its tokens.
pub(super) fn accumulate(
    students: &Students,
    experience: &Experience,
    settings: &PpoSettings,
    minibatch: &[usize],
    pass: Pass,
) -> Sums {
    // Sorted, so that a minibatch of the whole batch is cut as it was when it was measured.
    let mut minibatch = minibatch.to_vec();
    minibatch.sort_unstable();
    let n: usize = minibatch.iter().map(|&row| experience.old[row].len()).sum();
    let mut sums = Sums { n: n as f64, ..Sums::default() };
    let layout = layout(settings, students.policy.device());
    for micro in micro_batches(&experience.rows, &minibatch, &layout) {
        learn(students, experience, settings, &micro, pass, &mut sums);
    }
    sums
}

/// Adds the gradients of a micro-batch.
fn learn(
    students: &Students,
    experience: &Experience,
    settings: &PpoSettings,
    micro: &MicroBatch,
    pass: Pass,
    sums: &mut Sums,
) {
    let policy = &students.policy;
    let kept = pass.is_first.then(|| experience.first.take()).flatten();
    let FirstPass { states, log_probs, values } =
        kept.unwrap_or_else(|| FirstPass::of(policy, micro, settings));
    let loss = policy_loss(policy, &log_probs, experience, settings, micro, pass, sums);
    match students.critic.as_ref().map(|critic| &critic.trunk) {
        Some(trunk @ Trunk::Policy(_)) => {
            let states = if pass.is_warmup { states.detach() } else { states };
            let of_values =
                value_loss(&trunk.values(micro, &states), experience, settings, micro, sums);
            match pass.is_warmup {
                true => of_values.backward(),
                false => policy.backward(&(loss + of_values)),
            }
        }
        own => {
            if !pass.is_warmup {
                policy.backward(&loss);
            }
            if let Some(trunk @ Trunk::Own(judge)) = own {
                let values = values.unwrap_or_else(|| trunk.values(micro, &states)); // (N)
                judge.model.backward(&value_loss(&values, experience, settings, micro, sums));
            }
        }
    }
}

fn policy_loss(
    policy: &Learner,
    new: &Tensor, // (N)
    experience: &Experience,
    settings: &PpoSettings,
    micro: &MicroBatch,
    pass: Pass,
    sums: &mut Sums,
) -> Tensor {
    let old = micro.gathered(&experience.old); // (N)
    let advantages = micro.gathered(&experience.advantages); // (N)
    let difference = (new.detach() - &old).abs().max().double_value(&[]);
    sums.difference = sums.difference.max(difference);
    if pass.is_first {
        assert!(
            difference < FIRST_PASS_TOLERANCE
                || difference.is_nan()
                // In 16 bits another shape of a product is another rounding of its sums.
                || policy.kind() != Kind::Float,
            "before the first step the policy is the one that was measured, yet a log-probability \
             differs by {difference:e}"
        );
        sums.first_difference = sums.first_difference.max(difference);
    }
    let loss = clipped_policy(new, &old, &advantages, settings.cliprange);
    let whole = match settings.algorithm {
        Algorithm::Grpo => {
            let reference = micro.gathered(&experience.reference); // (N)
            &loss.sum + kl_to_reference(new, &reference) * settings.kl_coef
        }
        Algorithm::Ppo | Algorithm::Rloo => loss.sum.shallow_clone(),
    };
    sums.policy += loss.sum.double_value(&[]);
    sums.squares += loss.squares.double_value(&[]);
    sums.policy_clipped += loss.n_clipped.double_value(&[]);
    sums.ratio += loss.ratio.sum(Kind::Float).double_value(&[]);
    sums.ratio_squared += loss.ratio.square().sum(Kind::Float).double_value(&[]);
    whole / sums.n
}

fn value_loss(
    values: &Tensor, // (N)
    experience: &Experience,
    settings: &PpoSettings,
    micro: &MicroBatch,
    sums: &mut Sums,
) -> Tensor {
    let old = micro.gathered(&experience.values); // (N)
    let returns = micro.gathered(&experience.returns); // (N)
    let (loss, n_clipped) = clipped_value(values, &old, &returns, settings.cliprange_value);
    sums.value += loss.double_value(&[]);
    sums.value_clipped += n_clipped.double_value(&[]);
    loss * (settings.vf_coef / sums.n)
}
