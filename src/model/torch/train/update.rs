//! The update of PPO: what policy and critic learn from one batch of episodes.

use tch::{Device, Kind, Tensor};

use super::critic::{Critic, Trunk, head_values};
use super::experience::{Experience, FirstPass, Judge, PolicyPass, are_at_once, layout};
use super::learner::Learner;
use super::loss::{clipped_policy, clipped_value, kl_to_reference};
use super::optimizer::{AdamW, Schedule};
use super::order::epoch_order;
use super::rows::{MicroBatch, micro_batches};
use super::side_by_side::side_by_side;
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

    /// Takes the critic's numbers of the same tokens and minibatches.
    fn with_critic(self, critic: &Sums) -> Sums {
        let norms = (self.norms.0, critic.norms.1);
        Sums { value: critic.value, value_clipped: critic.value_clipped, norms, ..self }
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

/// Learns from a batch of episodes. `step` counts the batches from 0.
///
/// A critic with a model of its own learns beside the policy: neither waits for the other before the
/// pass over the batch ends.
pub(super) fn update(
    students: &mut Students,
    experience: &Experience,
    first: FirstPass,
    settings: &PpoSettings,
    step: u64,
) -> Result<Sums, TrainError> {
    let Students { policy, policy_optimizer, critic, schedule } = students;
    let (head, mut own) = match critic {
        Some(Critic { trunk: Trunk::Own(judge), optimizer }) => {
            (None, Some(OwnCritic { judge, optimizer, first: first.values }))
        }
        Some(Critic { trunk: Trunk::Policy(weight), optimizer }) => {
            (Some(ValueHead { weight, optimizer }), None)
        }
        None => (None, None),
    };
    let at_once = own.is_some() && are_at_once(policy, settings);
    let mut actor = Actor { policy, optimizer: policy_optimizer, head, first: first.policy };
    let mut sums = Sums::default();
    for number in 0..settings.num_ppo_epochs.max(1) as u64 {
        let epoch = Epoch { experience, settings, schedule, step, number };
        let (of_policy, of_critic) = side_by_side(
            at_once && !epoch.is_warmup(),
            || epoch.teach(&mut actor),
            || own.as_mut().map(|critic| epoch.teach(critic)).transpose(),
        );
        let mut in_epoch = of_policy?;
        if let Some(of_critic) = of_critic? {
            in_epoch = in_epoch.with_critic(&of_critic);
        }
        sums.add(&in_epoch);
        if settings.target_kl > 0.0 && in_epoch.approx_kl() > settings.target_kl {
            break;
        }
    }
    Ok(sums)
}

/// A pass over a batch of episodes.
struct Epoch<'a> {
    experience: &'a Experience,
    settings: &'a PpoSettings,
    schedule: &'a Schedule,
    /// The batch's number, from 0.
    step: u64,
    /// The pass's number, from 0.
    number: u64,
}

/// The rows of one optimizer step.
struct Minibatch {
    /// Sorted, so that a minibatch of the whole batch is cut as it was when it was measured.
    rows: Vec<usize>,
    n_tokens: f64,
    rate: f64,
    /// Whether it is the batch's first: then the policy is still the one that was measured.
    is_first: bool,
    /// Whether the critic learns alone: a critic that knows nothing yet misleads the policy.
    is_warmup: bool,
}

/// What learns from minibatches.
trait Student {
    /// Adds the gradients of a micro-batch; the loss is a mean over the minibatch's tokens.
    fn learn(&mut self, epoch: &Epoch<'_>, of: &Minibatch, micro: &MicroBatch, sums: &mut Sums);

    /// One step of its optimizers; gives the norms of the gradients, as [`Sums::norms`].
    fn step(&mut self, of: &Minibatch) -> Result<(f64, f64), TrainError>;

    /// Where it computes.
    fn device(&self) -> Device;
}

impl Epoch<'_> {
    fn is_warmup(&self) -> bool {
        self.step < self.settings.critic_warmup
    }

    fn minibatches(&self) -> Vec<Minibatch> {
        let Epoch { experience, settings, schedule, step, number } = *self;
        let n_rows = experience.rows.len();
        let n_minibatches = settings.num_mini_batches.clamp(1, n_rows);
        let pass = step * settings.num_ppo_epochs.max(1) as u64 + number;
        let order = shuffled(settings.optim.seed, pass, n_rows);
        let minibatch = |(index, rows): (usize, &[usize])| {
            let mut rows = rows.to_vec();
            rows.sort_unstable();
            let n_tokens = rows.iter().map(|&row| experience.old[row].len()).sum::<usize>() as f64;
            let is_first = number == 0 && index == 0;
            let rate = schedule.rate(pass * n_minibatches as u64 + index as u64);
            Minibatch { rows, n_tokens, rate, is_first, is_warmup: self.is_warmup() }
        };
        order.chunks(n_rows.div_ceil(n_minibatches)).enumerate().map(minibatch).collect()
    }

    /// One optimizer step for each minibatch.
    fn teach(&self, student: &mut impl Student) -> Result<Sums, TrainError> {
        let mut sums = Sums::default();
        for minibatch in self.minibatches() {
            let mut own = self.gather(student, &minibatch);
            own.norms = student.step(&minibatch)?;
            let loss = (own.policy + self.settings.vf_coef * own.value) / own.n;
            let grad_norm = own.norms.0.max(own.norms.1);
            let is_number = own.norms.0.is_finite() && own.norms.1.is_finite();
            if !loss.is_finite() || !is_number {
                return Err(TrainError::Diverged { step: self.step + 1, loss, grad_norm });
            }
            sums.add(&own);
        }
        Ok(sums)
    }

    /// Adds the gradients of a minibatch.
    fn gather(&self, student: &mut impl Student, of: &Minibatch) -> Sums {
        let mut sums = Sums { n: of.n_tokens, n_minibatches: 1.0, ..Sums::default() };
        let layout = layout(self.settings, student.device());
        for micro in micro_batches(&self.experience.rows, &of.rows, &layout) {
            student.learn(self, of, &micro, &mut sums);
        }
        sums
    }
}

/// A critic that sees by the policy.
struct ValueHead<'a> {
    weight: &'a mut Tensor, // (1, d)
    optimizer: &'a mut AdamW,
}

impl ValueHead<'_> {
    /// One step of its optimizer; gives the norm of the gradients.
    fn step(&mut self, rate: f64) -> f64 {
        let norm = self.optimizer.step(rate);
        if let Some(renewed) = self.optimizer.renewed().pop() {
            *self.weight = renewed;
        }
        norm
    }
}

/// The policy, with a critic that sees by it.
struct Actor<'a> {
    policy: &'a mut Learner,
    optimizer: &'a mut AdamW,
    head: Option<ValueHead<'a>>,
    first: Option<PolicyPass>,
}

impl Student for Actor<'_> {
    fn learn(&mut self, epoch: &Epoch<'_>, of: &Minibatch, micro: &MicroBatch, sums: &mut Sums) {
        let Epoch { experience, settings, .. } = *epoch;
        let policy = &*self.policy;
        let kept = of.is_first.then(|| self.first.take()).flatten();
        let PolicyPass { states, log_probs } =
            kept.unwrap_or_else(|| PolicyPass::of(policy, micro, settings));
        let loss = policy_loss(policy, &log_probs, experience, settings, micro, of.is_first, sums);
        if let Some(head) = &self.head {
            let states = if of.is_warmup { states.detach() } else { states };
            let values = head_values(head.weight, &states); // (N)
            let of_values = value_loss(&values, experience, settings, micro, sums);
            match of.is_warmup {
                true => of_values.backward(),
                false => policy.backward(&(loss + of_values)),
            }
        } else if !of.is_warmup {
            policy.backward(&loss);
        }
    }

    fn step(&mut self, of: &Minibatch) -> Result<(f64, f64), TrainError> {
        let policy = match of.is_warmup {
            true => 0.0,
            false => self.policy.step(self.optimizer, of.rate)?,
        };
        let critic = self.head.as_mut().map_or(0.0, |head| head.step(of.rate));
        Ok((policy, critic))
    }

    fn device(&self) -> Device {
        self.policy.device()
    }
}

/// A critic with a model of its own.
struct OwnCritic<'a> {
    judge: &'a mut Judge,
    optimizer: &'a mut AdamW,
    first: Option<Tensor>, // (N)
}

impl Student for OwnCritic<'_> {
    fn learn(&mut self, epoch: &Epoch<'_>, of: &Minibatch, micro: &MicroBatch, sums: &mut Sums) {
        let Judge { model, .. } = &*self.judge;
        let kept = of.is_first.then(|| self.first.take()).flatten();
        let values = kept.unwrap_or_else(|| self.judge.values(&model.states(micro))); // (N)
        model.backward(&value_loss(&values, epoch.experience, epoch.settings, micro, sums));
    }

    fn step(&mut self, of: &Minibatch) -> Result<(f64, f64), TrainError> {
        Ok((0.0, self.judge.model.step(self.optimizer, of.rate)?))
    }

    fn device(&self) -> Device {
        self.judge.model.device()
    }
}

/// The rows in an order that is a function of seed and pass alone.
pub(super) fn shuffled(seed: u64, pass: u64, n_rows: usize) -> Vec<usize> {
    let places: Vec<Id> =
        (0..n_rows as u64).map(|row| KeyHasher::new("amend/minibatch/1").u64(row).id()).collect();
    epoch_order(seed, pass + 1, &places)
}

fn policy_loss(
    policy: &Learner,
    new: &Tensor, // (N)
    experience: &Experience,
    settings: &PpoSettings,
    micro: &MicroBatch,
    is_first: bool,
    sums: &mut Sums,
) -> Tensor {
    let old = micro.gathered(&experience.old); // (N)
    let advantages = micro.gathered(&experience.advantages); // (N)
    let difference = (new.detach() - &old).abs().max().double_value(&[]);
    sums.difference = sums.difference.max(difference);
    if is_first {
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
