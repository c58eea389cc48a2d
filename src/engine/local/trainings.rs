//! Trainings of a local run: done by a trainer in this process, remembered by the store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::models::chat;
use crate::engine::asked::{Asker, JudgeSetup};
use crate::engine::local::external;
use crate::engine::train::{Recipe, Setup, Training, Trainings};
use crate::model::train::{Asks, Progress, STATE_FILE};
use crate::model::{Example, Init, TrainJob, TrainSettings, Trained, Trainer};
use crate::operators::ModelRef;
use crate::operators::train::{Chat, Renderer, balance};
use crate::record::{CallKey, Id, KeyHasher};
use crate::store::{Checkpoints, StoreError};

/// Told how far the training of a node is.
pub type Told = Arc<dyn Fn(&str, &Progress<'_>) + Send + Sync>;

/// The same for one training.
type ToldOne = Box<dyn Fn(&Progress<'_>) + Send>;

/// Trainings by a trainer in this process.
pub struct LocalTrainings {
    /// Where checkpoints and what trainings gave are kept.
    pub checkpoints: Checkpoints,
    /// Who trains.
    pub trainer: Arc<dyn Trainer>,
    /// The folder in which a program that trains in its place is run.
    pub folder: Option<PathBuf>,
    /// The directories of entries of `models`.
    pub entries: BTreeMap<String, PathBuf>,
    /// Told of progress.
    pub progress: Told,
}

impl Trainings for LocalTrainings {
    fn recall(&self, recipe: Id) -> Option<Arc<Trained>> {
        let trained = self.checkpoints.get_training::<Trained>(&training_key(recipe));
        let trained = trained.map_err(|error| tracing::warn!("{error}")).ok()??;
        // A checkpoint that is lost or damaged is trained again.
        self.checkpoints.is_sound(trained.weights).then(|| Arc::new(trained))
    }

    fn resumes(&self, recipe: Id) -> bool {
        self.checkpoints.has_state(&training_key(recipe), STATE_FILE)
    }

    fn dataset(&self, recipe: Id) -> Option<Vec<(Id, Id)>> {
        let rows = self.checkpoints.get_dataset(&training_key(recipe));
        rows.map_err(|error| tracing::warn!("{error}")).ok()?
    }

    fn train(&self, recipe: Recipe) -> Result<Arc<Trained>, String> {
        let node = Arc::clone(&recipe.training.node);
        let trained = self.try_train(recipe);
        trained.map(Arc::new).map_err(|error| format!("node \"{node}\": {error}"))
    }
}

impl LocalTrainings {
    fn try_train(&self, recipe: Recipe) -> Result<Trained, String> {
        let setup = Arc::clone(&recipe.training.setup);
        let key = training_key(recipe.id);
        let stage = self.checkpoints.stage(&key).map_err(|error| error.to_string())?;
        let state = self.checkpoints.state(&key).map_err(|error| error.to_string())?;
        let (progress, node) = (Arc::clone(&self.progress), Arc::clone(&recipe.training.node));
        let progress: ToldOne = Box::new(move |told: &Progress<'_>| progress(&node, told));
        let mut trained = match &setup.external {
            Some(command) => self.by_program(&recipe, command, [&stage, &state], progress)?,
            None => self.by_trainer(&recipe, [&stage, &state], progress)?,
        };
        trained.rejected.sort();
        trained.files = files(&stage)?;
        trained.basis = Some(recipe.basis());
        self.keep(&key, &recipe, [&stage, &state], &mut trained)?;
        Ok(trained)
    }

    /// Has a program of its own train.
    fn by_program(
        &self,
        recipe: &Recipe,
        command: &[String],
        [out, state]: [&Path; 2],
        progress: ToldOne,
    ) -> Result<Trained, String> {
        let setup = &recipe.training.setup;
        let models = setup.roles.iter().zip(recipe.training.models.iter().flatten());
        let models: Result<Vec<_>, String> =
            models.map(|(role, model)| Ok((role_of(role), self.dir(model)?))).collect();
        let mut models = models?;
        // A policy that names no reference is held to its own start.
        let is_policy = ["train-dpo", "ppo-update"].contains(&recipe.training.verb);
        if is_policy && !models.iter().any(|(role, _)| *role == "reference") {
            models.push(("reference", models[0].1.clone()));
        }
        if let Some(weights) = recipe.warm {
            // What a training begins at is its first model.
            models[0].1 = self.warm(weights)?;
        }
        let folder = self.folder.as_deref().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        external::train(recipe, command, folder, models, [out, state], &*progress)
    }

    /// Has the trainer of this process train.
    fn by_trainer(
        &self,
        recipe: &Recipe,
        [out, state]: [&Path; 2],
        progress: ToldOne,
    ) -> Result<Trained, String> {
        let setup = &recipe.training.setup;
        let models = &recipe.training.models;
        let init = models.first().and_then(Option::as_ref).map(|model| self.dir(model));
        let warm = recipe.warm.map(|weights| self.warm(weights)).transpose()?;
        let init = init.transpose()?;
        let chat = match (&setup.model, &init) {
            (Some(entry), Some(dir)) => chat(entry, dir)?,
            _ => None,
        };
        let (examples, rejected) = examples(recipe, chat.as_deref())?;
        let asks = setup.judge.as_ref().map(|judge| self.asker(recipe, judge)).transpose()?;
        let job = TrainJob {
            settings: self.settings(setup, models, recipe.warm.is_some())?,
            init: match (warm, &setup.scratch, init) {
                (Some(dir), ..) | (None, None, Some(dir)) => Init::Checkpoint(dir),
                (None, Some(scratch), _) => Init::Scratch(scratch.clone()),
                (None, None, None) => {
                    unreachable!("a training begins with a model or from nothing")
                }
            },
            examples,
            out: out.to_owned(),
            state: state.to_owned(),
            asks,
            progress,
        };
        let mut trained = self.trainer.train(job).map_err(|error| error.to_string())?;
        trained.rejected.extend(rejected);
        Ok(trained)
    }

    /// Publishes the model and those kept on the way, then remembers the training with its dataset,
    /// then forgets the state from which it would go on.
    fn keep(
        &self,
        key: &CallKey,
        recipe: &Recipe,
        [stage, state]: [&Path; 2],
        trained: &mut Trained,
    ) -> Result<(), String> {
        let said = |error: StoreError| error.to_string();
        for kept in &mut trained.snapshots {
            let dir = self.checkpoints.publish(&state.join(&kept.dir), kept.weights);
            kept.files = files(&dir.map_err(said)?)?;
        }
        self.checkpoints.publish(stage, trained.weights).map_err(said)?;
        self.checkpoints.put_dataset(key, &recipe.data).map_err(said)?;
        self.checkpoints.put_training(key, trained).map_err(said)?;
        self.checkpoints.forget_state(key).map_err(said)
    }

    /// What asks a judge whose verdicts are the reward.
    fn asker(&self, recipe: &Recipe, judge: &Arc<JudgeSetup>) -> Result<Box<dyn Asks>, String> {
        let Training { setup, models, .. } = &*recipe.training;
        let of_judge = setup.roles.iter().zip(models.iter().flatten());
        let model = of_judge.into_iter().find(|(role, _)| **role == "judge");
        let dir = self.dir(model.expect("a judge is one of the models").1)?;
        let chat = setup.judge_model.as_ref().map(|entry| chat(entry, &dir)).transpose()?.flatten();
        Ok(Box::new(Asker { judge: Arc::clone(judge), chat }))
    }

    /// What the trainer is told. A policy that goes on from an earlier one is still held to the model
    /// that it would begin at.
    fn settings(
        &self,
        setup: &Setup,
        models: &[Option<ModelRef>],
        warm: bool,
    ) -> Result<TrainSettings, String> {
        let mut settings = setup.settings.clone();
        if let (true, Some(start)) = (warm, models.first().and_then(Option::as_ref)) {
            match &mut settings {
                TrainSettings::TrainDpo(dpo) => dpo.reference = Some(self.dir(start)?),
                TrainSettings::PpoUpdate(ppo) => ppo.reference = Some(self.dir(start)?),
                TrainSettings::TrainSl(_) | TrainSettings::TrainPm(_) => {}
            }
        }
        for (role, model) in setup.roles.iter().zip(models.iter().flatten()) {
            match (&mut settings, *role) {
                (TrainSettings::TrainDpo(dpo), "reference") => {
                    dpo.reference = Some(self.dir(model)?);
                }
                (TrainSettings::PpoUpdate(ppo), "reward" | "judge") => {
                    ppo.reward = self.dir(model)?;
                }
                (TrainSettings::PpoUpdate(ppo), "reference") => {
                    ppo.reference = Some(self.dir(model)?);
                }
                (TrainSettings::PpoUpdate(ppo), "test_reward") => {
                    ppo.test_reward = Some(self.dir(model)?);
                }
                // The model that the weights begin at is the job's `init`.
                _ => {}
            }
        }
        Ok(settings)
    }

    /// Where a model is whose files make its weights id.
    fn dir(&self, model: &ModelRef) -> Result<PathBuf, String> {
        let name: &str = &model.name;
        let kept = self.checkpoints.dir(model.fingerprint);
        let dir = match self.entries.get(name) {
            Some(entry) if !self.checkpoints.is_sound(model.fingerprint) => entry.clone(),
            _ => kept,
        };
        if !dir.is_dir() {
            return Err(format!("the checkpoint {} of \"{name}\" is lost", model.fingerprint));
        }
        let sound = self.checkpoints.verify_dir(&dir, model.fingerprint);
        sound.map_err(|error| format!("model \"{name}\" is not used: {error}"))?;
        Ok(dir)
    }

    /// Where the model is that a training goes on from.
    fn warm(&self, weights: Id) -> Result<PathBuf, String> {
        self.checkpoints.verify(weights).map_err(|error| error.to_string())?;
        Ok(self.checkpoints.dir(weights))
    }
}

/// The name under which a program is given a model: where the weights begin is `init` for all verbs.
fn role_of(role: &'static str) -> &'static str {
    if role == "policy" { "init" } else { role }
}

/// The key of a training as a call.
fn training_key(recipe: Id) -> CallKey {
    KeyHasher::new("amend/training-call/1").with(recipe).call_key()
}

/// The files of a checkpoint: name, bytes, sha256, by name.
fn files(dir: &Path) -> Result<Vec<(String, i64, String)>, String> {
    list(dir).map_err(|error| format!("{}: {error}", dir.display()))
}

fn list(dir: &Path) -> std::io::Result<Vec<(String, i64, String)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.path().is_dir() {
            continue;
        }
        let bytes = std::fs::read(entry.path())?;
        let hash = Sha256::digest(&bytes);
        let hex = format!("{hash:x}");
        files.push((entry.file_name().to_string_lossy().into_owned(), bytes.len() as i64, hex));
    }
    files.sort();
    Ok(files)
}

type Rejected = Vec<(Id, String, String)>;

/// The examples of a recipe, in the order of training, and the rows that make none.
fn examples(recipe: &Recipe, chat: Option<&Chat>) -> Result<(Vec<Example>, Rejected), String> {
    let setup = &recipe.training.setup;
    let renderer = Renderer::new(setup.model.as_ref(), chat);
    let seed = setup.settings.optim().seed;
    let mut ordered: Vec<(Id, Id, Example)> = Vec::new();
    let mut rejected = Rejected::new();
    for (row, slot) in &recipe.rows {
        match renderer.example(slot.row()) {
            // Rows of equal content share a slot: the id is the row's own.
            Ok(example) => ordered.push((order(seed, *row), *row, example.of_row(*row))),
            Err(reject) => rejected.push((*row, reject.reason.name().to_owned(), reject.detail)),
        }
    }
    if ordered.is_empty() {
        return Err("there is no row to train on: see the table `rejects`".to_owned());
    }
    ordered.sort_by_key(|(order, row, _)| (*order, *row));
    let mut examples: Vec<Example> = ordered.into_iter().map(|(_, _, example)| example).collect();
    if setup.balanced {
        balance(&mut examples);
    }
    Ok((examples, rejected))
}

/// Training order is the sort by hash(seed, epoch, row id): a function of the data alone.
fn order(seed: u64, row: Id) -> Id {
    let mut hasher = KeyHasher::new("amend/order/1");
    hasher.add_u64(seed);
    hasher.add_u64(0);
    hasher.add_id(row);
    hasher.id()
}
