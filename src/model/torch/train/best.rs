//! The model on the way of a training that will be kept, where that may not be the last.

use std::collections::BTreeMap;

use tch::{Tensor, no_grad_guard};

use super::learner::Learner;
use super::state::Position;

/// The weights of the best model so far; its step and its number are in the [`Position`].
#[derive(Default)]
pub(super) struct Best {
    weights: Vec<Tensor>,
}

impl Best {
    /// What a state holds of it, where there is one.
    pub(super) fn of(tensors: BTreeMap<String, Tensor>) -> Best {
        // Names sort as the weights do.
        Best { weights: tensors.into_values().collect() }
    }

    /// The model as it is after `at.step` steps is the best.
    pub(super) fn keep(&mut self, at: &mut Position, model: &Learner, number: f64) {
        at.best = Some((at.step, number));
        self.weights = model.weights().iter().map(|weight| weight.detach().copy()).collect();
    }

    /// For the state of a training.
    pub(super) fn tensors(&self) -> BTreeMap<String, Tensor> {
        let named = |(place, weight): (usize, &Tensor)| {
            (format!("best/{place:06}"), weight.shallow_clone())
        };
        self.weights.iter().enumerate().map(named).collect()
    }

    /// Makes the model what it was; after that it is to take in that its weights changed.
    pub(super) fn restore(&self, model: &Learner) {
        let _guard = no_grad_guard();
        for (mut weight, best) in model.weights().into_iter().zip(&self.weights) {
            weight.copy_(best);
        }
    }
}
