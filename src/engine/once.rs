//! Once: a training that several ask for is done once, and the others wait for it.
//!
//! A dataflow that an edit replaced may still be at a training, and so may a node whose edit was
//! taken back and made again: the same recipe is asked for a second time before it is known.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::train::{Recipe, Trainings};
use crate::model::Trained;
use crate::record::Id;

/// Trainings, of which no recipe is at work twice.
pub(super) struct Once {
    trainings: Arc<dyn Trainings>,
    at_work: Mutex<BTreeSet<Id>>,
    ended: Condvar,
}

impl Once {
    pub(super) fn new(trainings: Arc<dyn Trainings>) -> Once {
        Once { trainings, at_work: Mutex::default(), ended: Condvar::new() }
    }
}

impl Trainings for Once {
    fn recall(&self, recipe: Id) -> Option<Arc<Trained>> {
        self.trainings.recall(recipe)
    }

    fn resumes(&self, recipe: Id) -> bool {
        self.trainings.resumes(recipe)
    }

    fn dataset(&self, recipe: Id) -> Option<Vec<(Id, Id)>> {
        self.trainings.dataset(recipe)
    }

    fn train(&self, recipe: Recipe) -> Result<Arc<Trained>, String> {
        let id = recipe.id;
        let mut at_work = self.at_work.lock().expect("no holder panics");
        while at_work.contains(&id) {
            at_work = self.ended.wait(at_work).expect("no holder panics");
        }
        if let Some(trained) = self.trainings.recall(id) {
            return Ok(trained);
        }
        at_work.insert(id);
        drop(at_work);
        let _ended = Ended { once: self, id };
        self.trainings.train(recipe)
    }
}

/// A training at work; whoever waits for it is told when it ends, also by a panic.
struct Ended<'a> {
    once: &'a Once,
    id: Id,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let mut at_work = self.once.at_work.lock().unwrap_or_else(PoisonError::into_inner);
        at_work.remove(&self.id);
        self.once.ended.notify_all();
    }
}
