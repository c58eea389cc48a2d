//! Change policies: what a training node does when what it was trained on has changed.
//!
//! `retrain` gives a function of the inputs. `hold`, `warm_start` and `min_changed` look at what the
//! node came to before, so that its model is a function of history too: a [`Standing`] says so.
//!
//! A warm start is a training of its own, whose recipe has the weights that it goes on from. It
//! and `min_changed` answer a change of rows alone: after a change of settings or models, a model
//! that went on from the old one would be neither the old nor the new.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::train::{DataRow, Held, TrainAsk, Training, Trainings};
use super::trained;
use crate::model::Trained;
use crate::model::train::Basis;
use crate::record::{Id, KeyHasher};
use crate::spec::op::OnChange;

/// What a training node does when what it was trained on has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Policy {
    /// What it does.
    pub on_change: OnChange,
    /// The share of the rows below which a change is none.
    pub min_changed: Option<f64>,
}

impl Policy {
    /// Whether the model is a function of the inputs alone.
    pub fn is_of_inputs(&self) -> bool {
        *self == Policy::default()
    }

    /// The words of the language: `warm_start, min_changed 2%`.
    pub fn name(&self) -> String {
        let word = match self.on_change {
            OnChange::Retrain => "retrain",
            OnChange::Hold => "hold",
            OnChange::WarmStart => "warm_start",
        };
        match self.min_changed {
            None => word.to_owned(),
            Some(share) => format!("{word}, min_changed {}%", (1e4 * share).round() / 1e2),
        }
    }
}

/// How a node's model stands to what the node asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Why it is an earlier model than the inputs give, if it is.
    pub kept: Option<KeptBy>,
    /// Whether it went on from an earlier model of the node.
    pub warm: bool,
}

impl Standing {
    /// Whether it is another model than the inputs give.
    pub fn is_stale(self) -> bool {
        self.kept.is_some()
    }
}

/// Why an earlier model is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptBy {
    /// It is held.
    Hold,
    /// Too few rows changed.
    MinChanged {
        /// Rows that changed, at most.
        changed: u64,
        /// Rows that it was trained on.
        of: u64,
    },
}

/// What is to be done for a node.
pub(super) enum Decision {
    /// There is nothing to train on, and so no model.
    Nothing,
    /// A training that was done is used.
    Use { recipe: Id, trained: Arc<Trained>, standing: Standing },
    /// It is trained, maybe from the weights of an earlier training of the node.
    Train { recipe: Id, warm: Option<Id> },
}

/// Decides what is to be done for a node that asks, with those rows. Of what is not known yet,
/// nothing is said that could turn out otherwise, but for a recipe that is marked unknown.
pub(super) fn decide(
    training: &Training,
    ask: &TrainAsk,
    rows: &BTreeMap<DataRow, isize>,
    trainings: &dyn Trainings,
) -> Decision {
    let recipe = training.recipe(ask.dataset);
    if let Some(held) = training.held() {
        let trained = trainings.recall(held.recipe);
        let trained = trained.unwrap_or_else(|| Arc::new(trained::weights_only(held.weights)));
        let is_current = match &trained.basis {
            Some(basis) => is_of(basis, training, ask),
            None => held.recipe == recipe,
        };
        let kept = (!is_current).then_some(KeptBy::Hold);
        return used(held.recipe, trained, kept);
    }
    if ask.dataset_rows == 0 {
        return Decision::Nothing;
    }
    if !recipe.is_unknown()
        && let Some(trained) = trainings.recall(recipe)
    {
        return used(recipe, trained, None);
    }
    let history = training.last.and_then(|last| Some((last, trainings.recall(last.recipe)?)));
    let comparable = |(_, trained): &(Held, Arc<Trained>)| {
        trained.basis.is_some_and(|basis| basis.frame == training.frame())
    };
    let Some((last, trained)) = history.filter(comparable) else {
        return Decision::Train { recipe, warm: None };
    };
    if trained.basis.is_some_and(|basis| is_of(&basis, training, ask)) {
        return used(last.recipe, trained, None);
    }
    if let Some(min_changed) = training.policy.min_changed
        && let Some(before) = trainings.dataset(last.recipe)
    {
        let (changed, of) = (changed(&before, rows.keys()), before.len() as u64);
        if (changed as f64) < min_changed * of as f64 {
            return used(last.recipe, trained, Some(KeptBy::MinChanged { changed, of }));
        }
    }
    if training.policy.on_change != OnChange::WarmStart {
        return Decision::Train { recipe, warm: None };
    }
    let warm = warm(recipe, last.weights);
    if !warm.is_unknown()
        && let Some(trained) = trainings.recall(warm)
    {
        return used(warm, trained, None);
    }
    Decision::Train { recipe: warm, warm: Some(last.weights) }
}

fn used(recipe: Id, trained: Arc<Trained>, kept: Option<KeptBy>) -> Decision {
    let warm = trained.basis.is_some_and(|basis| basis.warm_from.is_some());
    Decision::Use { recipe, trained, standing: Standing { kept, warm } }
}

fn is_of(basis: &Basis, training: &Training, ask: &TrainAsk) -> bool {
    basis.frame == training.frame() && basis.dataset == ask.dataset
}

/// The recipe of a training that goes on from weights.
fn warm(recipe: Id, from: Id) -> Id {
    let id = KeyHasher::new("amend/warm-recipe/1").with(recipe).with(from).id();
    if recipe.is_unknown() { id.unknown() } else { id }
}

/// The rows that are new, gone or say something else, each once: at most, where what one says is
/// not known yet. Such a row may change, and if it turns out a reject another may take its place.
fn changed<'a>(before: &[DataRow], now: impl Iterator<Item = &'a DataRow>) -> u64 {
    let mut before: BTreeMap<Id, Id> = before.iter().copied().collect();
    let count = |(row, content): &DataRow| match before.remove(row) {
        Some(was) if was == *content => 0,
        _ if content.is_unknown() => 2,
        _ => 1,
    };
    let changed: u64 = now.map(count).sum();
    changed + before.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> Id {
        KeyHasher::new("amend/test/1").u64(n).id()
    }

    #[test]
    fn a_row_that_is_new_or_gone_or_says_something_else_counts_once() {
        let before: Vec<DataRow> = (0..10).map(|n| (id(n), id(100 + n))).collect();
        let count = |edit: fn(&mut Vec<DataRow>)| {
            let mut now = before.clone();
            edit(&mut now);
            changed(&before, now.iter())
        };
        assert_eq!(count(|_| {}), 0);
        assert_eq!(count(|now| now.reverse()), 0, "order is no change");
        assert_eq!(count(|now| now[3].1 = id(7)), 1);
        assert_eq!(count(|now| now.truncate(9)), 1);
        assert_eq!(count(|now| now.push((id(50), id(1)))), 1);
        assert_eq!(count(|now| now[3].0 = id(50)), 2, "one is gone and one is new");
        assert_eq!(count(Vec::clear), 10);
    }

    #[test]
    fn what_is_not_known_yet_is_counted_as_if_it_changed() {
        let before = [(id(0), id(10)), (id(1), id(11))];
        let now = [(id(0), id(10).unknown()), (id(1), id(11))];
        assert!(changed(&before, now.iter()) >= 1);
    }

    #[test]
    fn a_policy_is_named_in_the_words_of_the_language() {
        let policy = Policy { on_change: OnChange::WarmStart, min_changed: Some(0.02) };
        assert_eq!(policy.name(), "warm_start, min_changed 2%");
        assert_eq!(Policy::default().name(), "retrain");
        assert!(Policy::default().is_of_inputs() && !policy.is_of_inputs());
    }
}
