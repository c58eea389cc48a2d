//! The critic of PPO: at each token of an answer, the reward that it expects of the rest.

use tch::{Kind, Tensor};

use super::experience::Judge;
use super::learner::Learner;
use super::optimizer::AdamW;
use crate::model::train::{PpoSettings, TrainError};

/// A critic with its optimizer.
pub(super) struct Critic {
    /// What it sees by.
    pub(super) trunk: Trunk,
    /// Its optimizer.
    pub(super) optimizer: AdamW,
}

/// What a critic sees by.
pub(super) enum Trunk {
    /// A model of its own, which begins at the preference model, score head included.
    Own(Box<Judge>),
    /// The policy: the critic is a head on its states, which begins at zero, and both losses flow back
    /// through them, as in trlX and in TRL's `AutoModelForCausalLMWithValueHead`.
    Policy(Tensor), // (1, d)
}

impl Trunk {
    /// That of the policy, under a head that knows nothing.
    pub(super) fn of_policy(policy: &Learner) -> Trunk {
        let width = policy.transformer().config.hidden_size;
        let head = Tensor::zeros([1, width], (Kind::Float, policy.device()));
        Trunk::Policy(head.set_requires_grad(true))
    }

    /// What learns.
    pub(super) fn weights(&self) -> Vec<Tensor> {
        match self {
            Trunk::Own(judge) => judge.model.weights(),
            Trunk::Policy(head) => vec![head.shallow_clone()],
        }
    }
}

/// The values that a head says of the policy's states.
pub(super) fn head_values(head: &Tensor, states: &Tensor) -> Tensor {
    let products = states.to_kind(Kind::Float) * head; // (N, d)
    products.sum_dim_intlist(-1, false, Kind::Float) // (N)
}

impl Critic {
    /// At the beginning.
    pub(super) fn new(trunk: Trunk, settings: &PpoSettings) -> Critic {
        let optimizer = AdamW::new(trunk.weights(), &settings.optim);
        Critic { trunk, optimizer }
    }

    /// Takes in that weights changed.
    pub(super) fn refresh(&mut self) -> Result<(), TrainError> {
        match &mut self.trunk {
            Trunk::Own(judge) => judge.model.refresh(),
            Trunk::Policy(_) => Ok(()),
        }
    }
}
