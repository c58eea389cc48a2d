//! The training operator: a training is a call whose key is its recipe.
//!
//! It waits for the end of an epoch, so that a dataset is whole, and for no later edit to be
//! accepted meanwhile: a superseded epoch starts no training. What is below uses the weights id
//! alone, which is a collection of one row.

use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};
use differential_dataflow::{AsCollection, consolidation};
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::operator::Operator as _;
use timely::scheduling::SyncActivator;

use super::ask::Coll;
use super::asked::JudgeSetup;
use super::dispatch::Mode;
use super::policy::{Decision, Policy, Standing, decide};
use super::rows::{Rec, Slot};
use super::shared::Shared;
use super::time::{self, Time};
use super::trained;
use crate::model::panics::caught;
use crate::model::train::{Basis, Scratch};
use crate::model::{TrainSettings, Trained};
use crate::operators::ModelRef;
use crate::record::{Id, KeyHasher};
use crate::spec::Model;
use crate::spec::op::OnChange;

/// The settings of a training, as data: everything but the dataset and the models.
#[derive(Clone)]
pub struct Training {
    /// The node.
    pub node: Arc<str>,
    /// The verb.
    pub verb: &'static str,
    /// The hash of all settings that decide the weights.
    pub settings: Id,
    /// The same settings as canonical JSON, for the table of checkpoints.
    pub settings_json: Arc<str>,
    /// What the trainer is told.
    pub setup: Arc<Setup>,
    /// The operator's version.
    pub version: u32,
    /// The models it starts from or uses, in the order of the shape: fixed ones are known now,
    /// those of training nodes are filled in by the dataflow.
    pub models: Vec<Option<ModelRef>>,
    /// What it does when its rows have changed.
    pub policy: Policy,
    /// The training that the node came to last, where the policy asks for it.
    pub last: Option<Held>,
}

/// What a trainer is told of a node, besides its data and models.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The settings.
    pub settings: TrainSettings,
    /// The shape of new weights, where it begins with those.
    pub scratch: Option<Scratch>,
    /// The entry of `models` that decides how rows are rendered; without one, as transcripts.
    pub model: Option<Model>,
    /// Whether sources weigh as wholes.
    pub balanced: bool,
    /// The program that trains, with its arguments, where amend does not.
    pub external: Option<Vec<String>>,
    /// The keys that name its models, in their order.
    pub roles: Vec<&'static str>,
    /// The judge whose verdicts are the reward, where no preference model is.
    pub judge: Option<Arc<JudgeSetup>>,
    /// The entry of `models` that says how the judge is spoken to.
    pub judge_model: Option<Model>,
}

/// A finished training that a node came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its recipe.
    pub recipe: Id,
    /// Its weights.
    pub weights: Id,
}

impl Training {
    /// The training whose checkpoint is kept, under `hold`.
    pub fn held(&self) -> Option<Held> {
        self.last.filter(|_| self.policy.on_change == OnChange::Hold)
    }

    /// What the settings travel as; unknown where a model is.
    pub(super) fn id(&self) -> Id {
        let mut hasher = KeyHasher::new("amend/training/1");
        hasher.add_text(&self.node);
        hasher.add_id(self.settings);
        hasher.add_text(&self.policy.name());
        if let Some(last) = self.last {
            hasher.add_id(last.recipe);
        }
        let mut unknown = false;
        for model in &self.models {
            let fingerprint = model.as_ref().map_or(Id::ZERO, |model| model.fingerprint);
            unknown |= fingerprint.is_unknown();
            hasher.add_id(fingerprint);
        }
        if unknown { hasher.id().unknown() } else { hasher.id() }
    }

    /// The recipe: the key of the training as a call.
    pub fn recipe(&self, dataset: Id) -> Id {
        let mut hasher = KeyHasher::new("amend/recipe/1");
        hasher.add_text(self.verb);
        hasher.add_u64(u64::from(self.version));
        hasher.add_id(self.settings);
        let mut unknown = dataset.is_unknown();
        for model in self.models.iter().flatten() {
            unknown |= model.fingerprint.is_unknown();
            hasher.add_id(model.fingerprint);
        }
        hasher.add_id(dataset);
        if unknown { hasher.id().unknown() } else { hasher.id() }
    }

    /// The recipe without its dataset.
    pub fn frame(&self) -> Id {
        self.recipe(Id::ZERO)
    }
}

/// A training to be done, with its data.
pub struct Recipe {
    /// The recipe's id.
    pub id: Id,
    /// Its settings.
    pub training: Arc<Training>,
    /// The dataset's digest.
    pub dataset: Id,
    /// The rows of the data set: their id, the row.
    pub rows: Vec<(Id, Slot)>,
    /// The same rows in the same order: their id, that of what they say.
    pub data: Vec<(Id, Id)>,
    /// The weights that it goes on from, where it does not begin at its `init`.
    pub warm: Option<Id>,
}

impl Recipe {
    /// What it is trained on.
    pub fn basis(&self) -> Basis {
        Basis {
            frame: self.training.frame(),
            dataset: self.dataset,
            dataset_rows: self.data.len() as u64,
            warm_from: self.warm,
        }
    }
}

/// Does trainings and remembers them.
pub trait Trainings: Send + Sync {
    /// What a recipe gave, if it was done and its checkpoint is still there.
    fn recall(&self, recipe: Id) -> Option<Arc<Trained>>;

    /// Whether a killed run left a state of the recipe from which it goes on.
    fn resumes(&self, recipe: Id) -> bool;

    /// The rows that a recipe was trained on, with what they said, if the training is remembered.
    fn dataset(&self, recipe: Id) -> Option<Vec<(Id, Id)>>;

    /// Does a training; what it gives is durable when this returns.
    fn train(&self, recipe: Recipe) -> Result<Arc<Trained>, String>;
}

/// A training that is asked for: a dataset and settings.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub(super) struct TrainAsk {
    pub(super) dataset: Id,
    pub(super) dataset_rows: u64,
    pub(super) training: Id,
}

/// A row of a dataset: its id, its content.
pub(super) type DataRow = (Id, Id);

/// What a training made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) enum TrainMade {
    /// The model: its weights id.
    Model(Id),
    /// The row of the table of checkpoints.
    Checkpoint(Rec),
    /// A logged number.
    Metric(Rec),
    /// An episode.
    Rollout(Rec),
    /// A policy on the way that was kept.
    Snapshot(Rec),
    /// A row of the dataset that was not trained on.
    Reject(Rec),
}

impl Default for TrainMade {
    fn default() -> TrainMade {
        TrainMade::Model(Id::ZERO)
    }
}

/// Trains when the dataset or the settings change.
pub(super) fn train<'s>(
    asks: Coll<'s, TrainAsk>,
    data: Coll<'s, DataRow>,
    node: usize,
    name: &str,
    shared: &Arc<Shared>,
) -> Coll<'s, TrainMade> {
    let scope = asks.scope();
    let shared = Arc::clone(shared);
    // One model, one place: both inputs go to the first worker.
    let first_ask = Exchange::new(|_: &(TrainAsk, Time, isize)| 0);
    let first_row = Exchange::new(|_: &(DataRow, Time, isize)| 0);
    let stream = asks.inner.binary_frontier::<_, CapacityContainerBuilder<Vec<_>>, _, _, _, _>(
        data.inner,
        first_ask,
        first_row,
        name,
        move |_capability, info| {
            let wake = scope.worker().sync_activator_for(info.address.to_vec());
            let mut desk = Desk::new(node, shared, Arc::new(wake));
            move |(asks, asks_frontier), (data, data_frontier), output| {
                asks.for_each_stamp(|capability, records| {
                    let Some(capability) = capability.retain_least(output.output_index()) else {
                        return;
                    };
                    for (ask, time, diff) in records.flat_map(|batch| batch.drain(..)) {
                        desk.stash(&capability, ask, time, diff);
                    }
                });
                data.for_each_stamp(|_, records| {
                    for (row, time, diff) in records.flat_map(|batch| batch.drain(..)) {
                        desk.incoming.entry(time).or_default().push((row, diff));
                    }
                });
                let open =
                    |time: &Time| asks_frontier.less_equal(time) || data_frontier.less_equal(time);
                desk.settle(open);
                for (time, made) in desk.flush(open) {
                    let capability = &desk.times[&time];
                    output.session(capability).give_iterator(made.into_iter());
                }
                desk.release();
            }
        },
    );
    stream.as_collection()
}

/// What is known of a training that is asked for.
enum State {
    /// It may start when no later edit is accepted.
    Waiting(Time, Job),
    /// It runs.
    Running(Time, Job),
    /// It was done, and this was emitted.
    Done(Vec<TrainMade>),
}

/// Which training is done for what is asked.
#[derive(Clone, Copy)]
struct Job {
    recipe: Id,
    warm: Option<Id>,
}

type Finished = (TrainAsk, Result<Arc<Trained>, String>);

struct Desk {
    node: usize,
    shared: Arc<Shared>,
    wake: Arc<SyncActivator>,
    sender: Sender<Finished>,
    receiver: Receiver<Finished>,
    stashed: BTreeMap<Time, Vec<(TrainAsk, isize)>>,
    incoming: BTreeMap<Time, Vec<(DataRow, isize)>>,
    rows: BTreeMap<DataRow, isize>,
    times: BTreeMap<Time, Capability<Time>>,
    asks: BTreeMap<TrainAsk, State>,
    running: bool,
    made: BTreeMap<Time, Vec<(TrainMade, Time, isize)>>,
}

impl Desk {
    fn new(node: usize, shared: Arc<Shared>, wake: Arc<SyncActivator>) -> Desk {
        let (sender, receiver) = unbounded();
        Desk {
            node,
            shared,
            wake,
            sender,
            receiver,
            stashed: BTreeMap::new(),
            incoming: BTreeMap::new(),
            rows: BTreeMap::new(),
            times: BTreeMap::new(),
            asks: BTreeMap::new(),
            running: false,
            made: BTreeMap::new(),
        }
    }

    fn stash(&mut self, capability: &Capability<Time>, ask: TrainAsk, time: Time, diff: isize) {
        self.times.entry(time).or_insert_with(|| capability.delayed(&time));
        self.stashed.entry(time).or_default().push((ask, diff));
    }

    /// Takes in what is complete: rows of the dataset first, then what is asked of it.
    fn settle(&mut self, open: impl Fn(&Time) -> bool) {
        while let Some(time) = self.incoming.keys().next().copied().filter(|time| !open(time)) {
            for (row, diff) in self.incoming.remove(&time).unwrap_or_default() {
                let count = self.rows.entry(row).or_default();
                *count += diff;
                if *count == 0 {
                    self.rows.remove(&row);
                }
            }
        }
        while let Some(time) = self.stashed.keys().next().copied().filter(|time| !open(time)) {
            let mut asks = self.stashed.remove(&time).unwrap_or_default();
            consolidation::consolidate(&mut asks);
            self.shared.count_records(self.node, asks.len());
            for (ask, _) in asks.iter().filter(|(_, diff)| *diff < 0) {
                self.shared.untrained(self.node);
                // A running one is finished and remembered; nobody hears of it.
                if let Some(State::Done(made)) = self.asks.remove(ask) {
                    made.into_iter().for_each(|made| self.emit(time, made, -1));
                }
            }
            for (ask, _) in asks.iter().filter(|(_, diff)| *diff > 0) {
                self.begin(time, *ask);
            }
        }
    }

    fn begin(&mut self, time: Time, ask: TrainAsk) {
        let training = self.shared.contexts.training(ask.training);
        let job = match decide(&training, &ask, &self.rows, &*self.shared.trainings) {
            Decision::Nothing => {
                self.asks.insert(ask, State::Done(Vec::new()));
                return;
            }
            Decision::Use { recipe, trained, standing } => {
                return self.finish(time, ask, recipe, &trained, standing);
            }
            Decision::Train { recipe, warm } => Job { recipe, warm },
        };
        if self.shared.dispatcher.mode() == Mode::Plan {
            let exact = !job.recipe.is_unknown();
            let resumes = exact && self.shared.trainings.resumes(job.recipe);
            self.shared.may_train(self.node, exact, resumes, job.warm.is_some());
            let checkpoint = TrainMade::Checkpoint(trained::unknown(&training));
            let made = vec![TrainMade::Model(job.recipe.unknown()), checkpoint];
            made.iter().for_each(|made| self.emit(time, *made, 1));
            self.asks.insert(ask, State::Done(made));
            return;
        }
        self.asks.insert(ask, State::Waiting(time, job));
    }

    fn finish(
        &mut self,
        time: Time,
        ask: TrainAsk,
        recipe: Id,
        trained: &Trained,
        standing: Standing,
    ) {
        let training = self.shared.contexts.training(ask.training);
        let facts = trained::Facts {
            recipe,
            dataset: ask.dataset,
            dataset_rows: ask.dataset_rows,
            standing,
        };
        let made = trained::rows(&training, trained, &facts, &self.shared.rows);
        self.shared.trained(self.node, recipe, trained.weights, standing);
        made.iter().for_each(|made| self.emit(time, *made, 1));
        self.asks.insert(ask, State::Done(made));
    }

    /// Takes finished trainings, starts one that may start, and gives what was made.
    fn flush(
        &mut self,
        open: impl Fn(&Time) -> bool,
    ) -> BTreeMap<Time, Vec<(TrainMade, Time, isize)>> {
        while let Ok((ask, result)) = self.receiver.try_recv() {
            self.running = false;
            match (self.asks.get(&ask), result) {
                (Some(State::Running(time, job)), Ok(trained)) => {
                    let (time, Job { recipe, warm }) = (*time, *job);
                    let standing = Standing { kept: None, warm: warm.is_some() };
                    self.finish(time, ask, recipe, &trained, standing);
                }
                (_, Ok(_)) => {}
                (_, Err(message)) => self.shared.dispatcher.stop(message),
            }
        }
        let latest = time::last(self.shared.latest_epoch());
        let may_start = |(ask, state): (&TrainAsk, &State)| match state {
            State::Waiting(time, job) if time::close(*time) >= latest || !open(&latest) => {
                Some((*ask, *time, *job))
            }
            _ => None,
        };
        if !self.running
            && self.shared.dispatcher.stopped().is_none()
            && let Some((ask, time, job)) = self.asks.iter().find_map(may_start)
        {
            self.running = true;
            self.asks.insert(ask, State::Running(time, job));
            self.start(ask, job);
        }
        std::mem::take(&mut self.made)
    }

    fn start(&self, ask: TrainAsk, job: Job) {
        let training = self.shared.contexts.training(ask.training);
        let row = |(row, content): &DataRow| {
            (*row, self.shared.rows.get(*content).expect("a row of a dataset is kept"))
        };
        let recipe = Recipe {
            id: job.recipe,
            training,
            dataset: ask.dataset,
            rows: self.rows.keys().map(row).collect(),
            data: self.rows.keys().copied().collect(),
            warm: job.warm,
        };
        let (sender, wake) = (self.sender.clone(), Arc::clone(&self.wake));
        let trainings = Arc::clone(&self.shared.trainings);
        std::thread::spawn(move || {
            let node = Arc::clone(&recipe.training.node);
            let result = caught(|| trainings.train(recipe)).unwrap_or_else(|message| {
                Err(format!(
                    "node \"{node}\": the training ended by a fault of amend itself: {message}"
                ))
            });
            if sender.send((ask, result)).is_ok() {
                let _ = wake.activate();
            }
        });
    }

    fn emit(&mut self, time: Time, made: TrainMade, diff: isize) {
        self.made.entry(time).or_default().push((made, time, diff));
    }

    /// Lets go of the times at which nothing waits any more.
    fn release(&mut self) {
        let (stashed, asks) = (&self.stashed, &self.asks);
        let waits = |time: &Time| {
            stashed.contains_key(time)
                || asks.values().any(
                    |state| matches!(state, State::Waiting(at, _) | State::Running(at, _) if at == time),
                )
        };
        self.times.retain(|time, _| waits(time));
    }
}
