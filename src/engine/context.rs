//! What is the same for many rows: the settings and models of a chain, and the principles drawn.
//!
//! They travel as one id each; the tables here say what the ids stand for.

use std::sync::{Arc, RwLock};

use super::draw::Candidate;
use super::train::Training;
use crate::operators::{Drawn, ModelRef, Operator};
use crate::record::{Id, IdMap, KeyHasher};

/// One stage of a chain, ready to run but for the row.
#[derive(Clone)]
pub struct Stage {
    /// The operator.
    pub operator: Arc<dyn Operator>,
    /// The model it asks, if it asks one.
    pub model: Option<ModelRef>,
    /// Which of the chain's draws it uses.
    pub draw: Option<usize>,
}

/// The stages of a chain: one value of the settings of its nodes and of the models they ask.
#[derive(Clone)]
pub struct Stages {
    id: Id,
    stages: Vec<Stage>,
}

impl Stages {
    /// The stages; their id is the hash of the operators and models. It is unknown where a model
    /// is not yet known.
    pub fn new(stages: Vec<Stage>) -> Stages {
        let mut hasher = KeyHasher::new("amend/stages/1");
        let mut unknown = false;
        for stage in &stages {
            hasher.add_id(stage.operator.fingerprint());
            hasher.add_u64(stage.draw.map_or(0, |draw| draw as u64 + 1));
            if let Some(model) = &stage.model {
                hasher.add_text(&model.name);
                hasher.add_id(model.fingerprint);
                unknown |= model.fingerprint.is_unknown();
            }
        }
        let id = if unknown { hasher.id().unknown() } else { hasher.id() };
        Stages { id, stages }
    }

    /// What they travel as.
    pub fn id(&self) -> Id {
        self.id
    }

    /// A stage.
    pub fn stage(&self, at: usize) -> &Stage {
        &self.stages[at]
    }

    /// All of them.
    pub fn all(&self) -> &[Stage] {
        &self.stages
    }
}

/// Stages with the principles drawn for a row, one list a draw.
pub struct Context {
    /// The stages.
    pub stages: Arc<Stages>,
    /// For each draw of the chain, the principles, best first.
    pub drawn: Vec<Vec<Drawn>>,
}

impl Context {
    /// What a stage sees of the draws.
    pub fn drawn(&self, stage: &Stage) -> &[Drawn] {
        stage.draw.map_or(&[], |draw| &self.drawn[draw])
    }
}

type Table<V> = RwLock<IdMap<Id, V>>;

/// What the ids of stages, candidates, texts and contexts stand for. Shared by all workers.
#[derive(Default)]
pub struct Contexts {
    stages: Table<Arc<Stages>>,
    candidates: Table<Arc<[Candidate]>>,
    texts: Table<Arc<Drawn>>,
    joined: Table<Arc<Context>>,
    trainings: Table<Arc<Training>>,
}

fn get<V: Clone>(table: &Table<V>, id: Id) -> V {
    let table = table.read().expect("no holder of a table panics");
    table.get(&id).unwrap_or_else(|| panic!("{id} is in its table")).clone()
}

fn put<V>(table: &Table<V>, id: Id, value: impl FnOnce() -> V) -> Id {
    if !table.read().expect("no holder of a table panics").contains_key(&id) {
        let value = value();
        table.write().expect("no holder of a table panics").entry(id).or_insert(value);
    }
    id
}

impl Contexts {
    /// Keeps stages.
    pub fn keep_stages(&self, stages: Stages) -> Id {
        put(&self.stages, stages.id(), || Arc::new(stages))
    }

    /// The stages of an id.
    pub fn stages(&self, id: Id) -> Arc<Stages> {
        get(&self.stages, id)
    }

    /// The same stages with another model at some of them.
    pub fn with_model(&self, id: Id, at: usize, model: &ModelRef) -> Id {
        let mut stages = self.stages(id).all().to_vec();
        stages[at].model = Some(model.clone());
        self.keep_stages(Stages::new(stages))
    }

    /// Keeps the settings of a training.
    pub fn keep_training(&self, training: Training) -> Id {
        put(&self.trainings, training.id(), || Arc::new(training))
    }

    /// The settings of a training.
    pub fn training(&self, id: Id) -> Arc<Training> {
        get(&self.trainings, id)
    }

    /// The same settings with another model at a place.
    pub fn with_training_model(&self, id: Id, at: usize, model: &ModelRef) -> Id {
        let mut training = Training::clone(&self.training(id));
        training.models[at] = Some(model.clone());
        self.keep_training(training)
    }

    /// Keeps the principles that can be drawn.
    pub fn keep_candidates(&self, candidates: Vec<Candidate>) -> Id {
        let mut hasher = KeyHasher::new("amend/candidates/1");
        for candidate in &candidates {
            hasher.add_text(&candidate.id);
            hasher.add_id(candidate.key);
            hasher.add_f64(candidate.weight);
        }
        put(&self.candidates, hasher.id(), || candidates.into())
    }

    /// The principles that can be drawn.
    pub fn candidates(&self, id: Id) -> Arc<[Candidate]> {
        get(&self.candidates, id)
    }

    /// Keeps a principle's texts.
    pub fn keep_texts(&self, drawn: Drawn) -> Id {
        put(&self.texts, drawn.hash, || Arc::new(drawn))
    }

    /// The context of stages and of the texts drawn: for each draw, the texts' ids, best first.
    pub fn keep(&self, stages: Id, drawn: &[Vec<Id>]) -> Id {
        let mut hasher = KeyHasher::new("amend/context/1");
        hasher.add_id(stages);
        for texts in drawn {
            hasher.add_u64(texts.len() as u64);
            texts.iter().for_each(|text| hasher.add_id(*text));
        }
        let id = if stages.is_unknown() { hasher.id().unknown() } else { hasher.id() };
        put(&self.joined, id, || {
            let text = |id: &Id| -> Drawn { Arc::unwrap_or_clone(get(&self.texts, *id)) };
            let drawn = drawn.iter().map(|texts| texts.iter().map(text).collect()).collect();
            Arc::new(Context { stages: self.stages(stages), drawn })
        })
    }

    /// The context of an id.
    pub fn get(&self, id: Id) -> Arc<Context> {
        get(&self.joined, id)
    }
}
